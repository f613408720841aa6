package image

import (
	"fmt"
	"io"
	"os"

	"recast/inventory"
	"recast/pack"
)

// Reader gives an image's unpacked bytes at any offset; each chunk is checked as it
// is read. It is for one goroutine.
type Reader struct {
	Manifest *pack.Manifest
	pack     *os.File
	chunk    int // that data holds; -1 none
	data     []byte
}

// Reader opens image d. Its caller closes it.
func (s *Store) Reader(d inventory.Digest) (*Reader, error) {
	m, err := s.Manifest(d)
	if err != nil {
		return nil, err
	}
	f, err := s.root.Open("blobs/" + inventory.NewDigest(m.Pack).Hex())
	if err != nil {
		return nil, fmt.Errorf("%w: pack %s cannot be opened: %w", ErrDamaged, s.blobPath(m.Pack.Hex()), err)
	}
	return &Reader{Manifest: m, pack: f, chunk: -1}, nil
}

// Close lets go of the pack.
func (r *Reader) Close() error { return r.pack.Close() }

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		if at < 0 || at >= r.Manifest.Size {
			return n, io.EOF
		}
		i := int(at / pack.ChunkSize)
		if i != r.chunk {
			data, err := r.Manifest.ReadChunk(r.pack, i)
			if err != nil {
				return n, fmt.Errorf("read chunk %d: %w", i, err)
			}
			r.chunk, r.data = i, data
		}
		n += copy(p[n:], r.data[at-r.Manifest.ChunkOffset(i):])
	}
	return n, nil
}

// Numbers of the partitions of those names or numbers, no two of which are one.
func (r *Reader) Numbers(names []string) (list []int, err error) {
	parts, err := r.Manifest.Layout.FindAll(names)
	for _, p := range parts {
		list = append(list, p.Number)
	}
	return list, err
}

// File finds a file by its path in the file system that lies in the image from start
// to end.
func (r *Reader) File(start, end int64, path string) (inventory.DiskFile, error) {
	return findFile(r, start, end, path)
}
