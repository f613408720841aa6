package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"recast/fat"
	"recast/inventory"
)

// A gate that starts a system by kexec needs the kernel's bytes, and they must be those
// that it has proved. So the file systems of an image are read here, where its bytes are
// known, and the machine gets places and digests: it mounts nothing, and a path that is
// wrong is seen by the plan.

const (
	// maxFile is more than a ramdisk that carries a whole system has.
	maxFile = 1 << 30
	// maxFolder is one of some hundred thousand names.
	maxFolder = 32 << 20
	// maxExtents of one file: it is badly fragmented, or no file.
	maxExtents = 4096
	maxLinks   = 16
	// maxNames are looked up on the way to a file: a link may name thousands, and each
	// reads a folder.
	maxNames = 256
)

// volume is a file system that is only read. A node is what one of its folders names.
type volume interface {
	root() (node, error)
	// entry of a folder; fs.ErrNotExist.
	entry(folder node, name string) (node, error)
	// link is where a symbolic link leads.
	link(n node) (string, error)
	// extents of a file or folder in order, from the beginning of the volume; they may
	// be longer than it is.
	extents(n node) ([]inventory.Extent, error)
}

type nodeKind int

const (
	nodeOther nodeKind = iota
	nodeFile
	nodeFolder
	nodeLink
)

type node struct {
	kind nodeKind
	size int64
	fat  fat.Node
	raw  []byte // ext: its inode
}

// fatVolume is FAT as a volume.
type fatVolume struct{ *fat.Reader }

func (v fatVolume) root() (node, error) { return fatNode(v.Root()) }

func (v fatVolume) entry(folder node, name string) (node, error) {
	return fatNode(v.Entry(folder.fat, name))
}

func fatNode(n fat.Node, err error) (node, error) {
	kind := nodeFile
	if n.Folder {
		kind = nodeFolder
	}
	return node{kind: kind, size: n.Size, fat: n}, err
}

func (v fatVolume) link(node) (string, error) { return "", errors.New("FAT has no links") }

func (v fatVolume) extents(n node) (out []inventory.Extent, err error) {
	if n.size > maxFile {
		return nil, errors.New("it is too large")
	}
	spans, err := v.Spans(n.fat)
	for _, s := range spans {
		out = append(out, inventory.Extent{Start: s.Start, Length: s.Length})
	}
	return out, err
}

// openVolume knows a file system by its magic numbers.
func openVolume(r io.ReaderAt, size int64) (volume, error) {
	head := make([]byte, min(size, 72<<10))
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, err
	}
	at := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case len(head) >= 2048 && at(1080, "\x53\xef"):
		return openExt(r, size, head[1024:2048])
	case at(0, "XFSB"):
		return nil, errors.New("it holds XFS, and recast finds files in ext2, ext3, ext4 and FAT")
	case at(65600, "_BHRfS_M"):
		return nil, errors.New("it holds btrfs, and recast finds files in ext2, ext3, ext4 and FAT")
	case at(0, "hsqs"):
		return nil, errors.New("it holds squashfs, and recast finds files in ext2, ext3, ext4 and FAT")
	case at(0, "LUKS\xba\xbe"):
		return nil, errors.New("it is encrypted")
	}
	v, err := fat.Open(r, size)
	if err != nil {
		return nil, errors.New("it holds no file system that recast knows: want ext2, ext3, ext4 or FAT")
	}
	return fatVolume{v}, nil
}

// findFile gives the place and the digest of a file. Links are followed inside the
// volume only: its root is where "/" and ".." end.
func findFile(r io.ReaderAt, start, end int64, path string) (inventory.DiskFile, error) {
	part := io.NewSectionReader(r, start, end-start)
	v, err := openVolume(part, end-start)
	if err != nil {
		return inventory.DiskFile{}, err
	}
	n, err := walk(v, path)
	if err != nil {
		return inventory.DiskFile{}, err
	}
	switch {
	case n.kind != nodeFile:
		return inventory.DiskFile{}, fmt.Errorf("%s is no file", path)
	case n.size == 0:
		return inventory.DiskFile{}, fmt.Errorf("%s is empty", path)
	case n.size > maxFile:
		return inventory.DiskFile{}, fmt.Errorf("%s has %s, at most %s are loaded", path, inventory.SizeText(n.size), inventory.SizeText(maxFile))
	}
	list, err := cut(v, n)
	if err != nil {
		return inventory.DiskFile{}, fmt.Errorf("%s: %w", path, err)
	}
	f := inventory.DiskFile{Path: path, Size: n.size}
	for _, e := range list {
		if e.Start != inventory.ZeroExtent {
			e.Start += start
		}
		f.Extents = append(f.Extents, e)
	}
	h := sha256.New()
	if _, err := f.Copy(h, r); err != nil {
		return inventory.DiskFile{}, fmt.Errorf("read %s: %w", path, err)
	}
	f.Digest = inventory.NewDigest([sha256.Size]byte(h.Sum(nil)))
	return f, nil
}

func walk(v volume, path string) (node, error) {
	root, err := v.root()
	if err != nil {
		return node{}, err
	}
	above, here, links, names := []node{}, root, 0, 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		if names++; names > maxNames {
			return node{}, fmt.Errorf("%s: more than %d names on the way", path, maxNames)
		}
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(above) > 0 {
				here, above = above[len(above)-1], above[:len(above)-1]
			}
			continue
		}
		if here.kind != nodeFolder {
			return node{}, fmt.Errorf("%s: %q is not in a folder", path, name)
		}
		n, err := v.entry(here, name)
		if errors.Is(err, fs.ErrNotExist) {
			return node{}, fmt.Errorf("there is no %s: %q is missing", path, name)
		}
		if err != nil {
			return node{}, fmt.Errorf("%s: %w", path, err)
		}
		if n.kind != nodeLink {
			here, above = n, append(above, here)
			continue
		}
		if links++; links > maxLinks {
			return node{}, fmt.Errorf("%s: more than %d links, one after the other", path, maxLinks)
		}
		to, err := v.link(n)
		if err != nil {
			return node{}, fmt.Errorf("%s: link %q: %w", path, name, err)
		}
		if strings.HasPrefix(to, "/") {
			here, above = root, nil
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return here, nil
}

// cut gives the extents of what there is of a node: neighbours joined, and no byte
// behind its end.
func cut(v volume, n node) (out []inventory.Extent, err error) {
	list, err := v.extents(n)
	if err != nil {
		return nil, err
	}
	left := n.size
	for _, e := range list {
		if e.Length = min(e.Length, left); e.Length <= 0 {
			break
		}
		left -= e.Length
		if k := len(out) - 1; k >= 0 {
			last := &out[k]
			zeros := last.Start == inventory.ZeroExtent && e.Start == inventory.ZeroExtent
			if zeros || last.Start != inventory.ZeroExtent && last.Start+last.Length == e.Start {
				last.Length += e.Length
				continue
			}
		}
		if len(out) == maxExtents {
			return nil, fmt.Errorf("it lies in more than %d pieces", maxExtents)
		}
		out = append(out, e)
	}
	if left > 0 {
		return nil, fmt.Errorf("its last %d bytes have no place", left)
	}
	return out, nil
}

// folder reads all of one.
func folder(v volume, r io.ReaderAt, n node) ([]byte, error) {
	if n.size > maxFolder {
		return nil, fmt.Errorf("a folder of %s", inventory.SizeText(n.size))
	}
	list, err := cut(v, n)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	f := inventory.DiskFile{Size: n.size, Extents: list}
	_, err = f.Copy(&b, r)
	return b.Bytes(), err
}

// blocksOf turns block numbers, 0 for a hole, into extents.
func blocksOf(numbers []int64, size int64) []inventory.Extent {
	out := make([]inventory.Extent, 0, 16)
	for _, b := range numbers {
		e := inventory.Extent{Start: b * size, Length: size}
		if b == 0 {
			e.Start = inventory.ZeroExtent
		}
		if k := len(out) - 1; k >= 0 && e.Start != inventory.ZeroExtent && out[k].Start != inventory.ZeroExtent && out[k].Start+out[k].Length == e.Start {
			out[k].Length += size
			continue
		}
		out = append(out, e)
	}
	return slices.Clip(out)
}
