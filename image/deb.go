package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxDebSize bounds the unpacked contents of a package: a kernel's are 400 MB.
const maxDebSize = 4 << 30

// readDeb calls each with the plain files of a Debian package, names without
// the leading "./" (deb(5): an ar archive whose data member is a tar).
func readDeb(ctx context.Context, name string, each func(name string, size int64, r io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, member, err := debData(bufio.NewReaderSize(contextReader{ctx, f}, 1<<20))
	if err != nil {
		return fmt.Errorf("read package %q: %w", name, err)
	}
	defer data.Close()
	t := tar.NewReader(io.LimitReader(data, maxDebSize))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s of package %q: %w", member, name, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := each(strings.TrimPrefix(h.Name, "./"), h.Size, t); err != nil {
			return fmt.Errorf("read %q of package %q: %w", h.Name, name, err)
		}
	}
}

// debData finds the data member and unpacks it.
func debData(r io.Reader) (data io.ReadCloser, member string, err error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return nil, "", errors.New("it is no Debian package")
	}
	for {
		head := make([]byte, 60) // name, time, uid, gid, mode, size, "`\n"
		if _, err := io.ReadFull(r, head); err != nil {
			return nil, "", fmt.Errorf("it has no data.tar: %w", err)
		}
		member := strings.TrimSuffix(strings.TrimRight(string(head[:16]), " "), "/")
		size, err := strconv.ParseInt(strings.TrimRight(string(head[48:58]), " "), 10, 64)
		if err != nil || size < 0 || string(head[58:]) != "`\n" {
			return nil, "", fmt.Errorf("member %q has a broken header", member)
		}
		body := io.LimitReader(r, size)
		switch member {
		case "data.tar":
			return io.NopCloser(body), member, nil
		case "data.tar.gz":
			z, err := gzip.NewReader(body)
			return z, member, err
		case "data.tar.xz":
			z, err := xz.NewReader(body)
			return io.NopCloser(z), member, err
		case "data.tar.zst":
			z, err := zstd.NewReader(body, zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, "", err
			}
			return z.IOReadCloser(), member, nil
		}
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return nil, "", fmt.Errorf("member %q: %w", member, err)
		}
	}
}
