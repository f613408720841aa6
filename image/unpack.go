package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxWindow bounds the memory that a compressed source may ask for. "xz -9"
// takes 64 MiB, "zstd --ultra -22" 128 MiB.
const maxWindow = 256 << 20

// counter counts the bytes that were read from the source and remembers how it
// ended. Decoders read ahead on goroutines of their own.
type counter struct {
	r   io.Reader
	n   atomic.Int64
	err atomic.Pointer[error]
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	if err != nil && err != io.EOF {
		c.err.Store(&err)
	}
	return n, err
}

// unpack looks at the first bytes of a source and returns its unpacked bytes.
// What comes out begins with a partition table: anything else is refused by
// name. Errors of the returned reader name the byte of the source.
func unpack(src *counter) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(src, 1<<18)
	head, err := buffered.Peek(sniffLen)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(head) == 0 {
		return nil, fmt.Errorf("%w: the source is empty", ErrUnknown)
	}
	r, format, err := decompress(head, buffered)
	if err != nil {
		return nil, describe(err, format, src)
	}
	if format == "" {
		if err := sniff(head); err != nil {
			return nil, err
		}
		return io.NopCloser(buffered), nil
	}
	u := &unpacker{src: src, format: format, closer: r}
	u.r = bufio.NewReaderSize(r, 1<<18)
	head, err = u.r.Peek(sniffLen)
	if err == nil || err == io.EOF {
		if len(head) == 0 {
			err = fmt.Errorf("%w: the %s data unpacks to nothing", ErrUnknown, format)
		} else if err = sniff(head); err != nil {
			err = fmt.Errorf("%s data: %w", format, err)
		}
	} else {
		err = describe(err, format, src)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return u, nil
}

// sniffLen is enough to see a GPT header in blocks of 4096 bytes.
const sniffLen = 2 * 4096

var (
	gzipMagic = []byte{0x1f, 0x8b}
	xzMagic   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns format "" for a source that is not compressed.
func decompress(head []byte, r *bufio.Reader) (io.ReadCloser, string, error) {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(r)
		return z, "gzip", err
	case bytes.HasPrefix(head, zstdMagic), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow*2), zstd.WithDecoderConcurrency(0))
		if err != nil {
			return nil, "zstd", err
		}
		return z.IOReadCloser(), "zstd", nil
	case bytes.HasPrefix(head, xzMagic):
		if n, ok := xzDictionary(head); ok && n > maxWindow {
			return nil, "xz", fmt.Errorf("the dictionary of %d bytes is over the limit of %d", n, maxWindow)
		}
		z, err := xz.NewReader(r)
		return io.NopCloser(z), "xz", err
	}
	return nil, "", nil
}

// xzDictionary reads the LZMA2 dictionary size from the first block's header
// (xz file format 1.0.4, sections 3.1 and 5.3.1): the library would take that
// much memory on the file's word.
func xzDictionary(head []byte) (int64, bool) {
	const at = 12 // behind the stream header
	if len(head) < at+1024 || head[at] == 0 {
		return 0, false
	}
	h := head[at : at+(int(head[at])+1)*4]
	flags, h := h[1], h[2:]
	skip := func() {
		for len(h) > 0 && h[0]&0x80 != 0 {
			h = h[1:]
		}
		h = h[min(1, len(h)):]
	}
	for _, sizes := range []byte{0x40, 0x80} {
		if flags&sizes != 0 {
			skip()
		}
	}
	for range int(flags&3) + 1 {
		if len(h) < 3 {
			return 0, false
		}
		if h[0] == 0x21 && h[1] == 1 {
			n, err := lzma.DecodeDictCap(h[2])
			return n, err == nil
		}
		skip()
		if len(h) == 0 || int(h[0])+1 > len(h) {
			return 0, false
		}
		h = h[int(h[0])+1:]
	}
	return 0, false
}

type unpacker struct {
	src    *counter
	format string
	r      *bufio.Reader
	closer io.Closer
}

func (u *unpacker) Read(b []byte) (int, error) {
	n, err := u.r.Read(b)
	if err != nil && err != io.EOF {
		err = describe(err, u.format, u.src)
	}
	return n, err
}

func (u *unpacker) Close() error { return u.closer.Close() }

// describe says whether compressed data is cut or wrong, and where.
func describe(err error, format string, src *counter) error {
	n := src.n.Load()
	if broken := src.err.Load(); broken != nil {
		return fmt.Errorf("read the source at byte %d: %w", n, *broken)
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%s data is truncated: the source ends at byte %d: %w", format, n, err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%s data needs more memory to unpack than the limit of %d bytes: %w", format, maxWindow, err)
	}
	return fmt.Errorf("%s data is corrupt before byte %d of the source: %w", format, n, err)
}

// sniff refuses what certainly is no disk, by name.
func sniff(head []byte) error {
	for _, f := range []struct{ magic, name, cure string }{
		{"QFI\xfb", "a qcow2 image", "convert it first: qemu-img convert -O raw"},
		{"KDMV", "a VMDK image", "convert it first: qemu-img convert -O raw"},
		{"vhdxfile", "a VHDX image", "convert it first: qemu-img convert -O raw"},
		{"conectix", "a VHD image", "convert it first: qemu-img convert -O raw"},
		{string(gzipMagic), "gzip data once more", "unpack it once first"},
		{string(xzMagic), "xz data once more", "unpack it once first"},
		{string(zstdMagic), "zstd data once more", "unpack it once first"},
		{"BZh", "bzip2 data", "give it as raw, gzip, xz or zstd"},
		{"PK\x03\x04", "a zip archive", "give the disk image in it"},
		{"\x7fELF", "an ELF program", "give a disk image"},
	} {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return fmt.Errorf("%w but %s; %s", ErrUnknown, f.name, f.cure)
		}
	}
	if bytes.Equal(slice(head, 257, 262), []byte("ustar")) {
		return fmt.Errorf("%w but a tar archive; give the disk image in it", ErrUnknown)
	}
	if bytes.IndexByte(head, 0) < 0 && utf8.Valid(head[:len(head)-min(len(head)-1, utf8.UTFMax)]) {
		return fmt.Errorf("%w but text, which begins %q", ErrUnknown, head[:min(40, len(head))])
	}
	if !bytes.Equal(slice(head, 510, 512), []byte{0x55, 0xaa}) &&
		!bytes.Equal(slice(head, 512, 520), []byte("EFI PART")) && !bytes.Equal(slice(head, 4096, 4104), []byte("EFI PART")) {
		return fmt.Errorf("%w: neither a GPT nor an MBR at its start", ErrUnknown)
	}
	return nil
}

func slice(b []byte, from, to int) []byte {
	if to > len(b) {
		return nil
	}
	return b[from:to]
}
