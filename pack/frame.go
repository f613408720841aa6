package pack

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ErrBadFrame is wrapped by every error of a frame whose bytes are not what the
// manifest says.
var ErrBadFrame = errors.New("frame does not match the manifest")

// The window of our own frames is their content, at most a chunk; the limits
// make a foreign frame that asks for more an error before memory is taken.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(ChunkSize),
		zstd.WithDecoderMaxMemory(ChunkSize),
		zstd.IgnoreChecksum(true), // the chunk's SHA-256 says more
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // constant options
	}
	return d
})

// DecodeChunk unpacks the frame of chunk i and returns the chunk, but only if
// it is the one that the manifest lists. dst is used when it has room for a
// chunk (ChunkSize), otherwise a new slice is made; never more than the chunk's
// length is written. Safe for several goroutines at once.
func (m *Manifest) DecodeChunk(i int, frame, dst []byte) ([]byte, error) {
	if i < 0 || i >= len(m.Chunks) {
		return nil, fmt.Errorf("decode frame %d: the image has %d", i, len(m.Chunks))
	}
	want := &m.Chunks[i]
	if len(frame) != want.Length {
		return nil, fmt.Errorf("decode frame %d: %d bytes instead of %d: %w", i, len(frame), want.Length, ErrBadFrame)
	}
	n := m.ChunkLen(i)
	if cap(dst) < n {
		dst = make([]byte, 0, n)
	}
	out, err := decoder().DecodeAll(frame, dst[:0:n])
	if err != nil {
		return nil, fmt.Errorf("decode frame %d: %w: %w", i, err, ErrBadFrame)
	}
	if len(out) != n {
		return nil, fmt.Errorf("decode frame %d: %d bytes unpacked instead of %d: %w", i, len(out), n, ErrBadFrame)
	}
	if sum := Digest(sha256.Sum256(out)); sum != want.Sum {
		return nil, fmt.Errorf("decode frame %d: digest %s instead of %s: %w", i, sum, want.Sum, ErrBadFrame)
	}
	return out, nil
}

// ReadFrame reads the frame of chunk i from a pack, unchecked: DecodeChunk
// checks it.
func (m *Manifest) ReadFrame(pack io.ReaderAt, i int) ([]byte, error) {
	if i < 0 || i >= len(m.Chunks) {
		return nil, fmt.Errorf("read frame %d: the image has %d", i, len(m.Chunks))
	}
	c := &m.Chunks[i]
	b := make([]byte, c.Length)
	if n, err := pack.ReadAt(b, c.Offset); n < len(b) {
		return nil, fmt.Errorf("read frame %d at byte %d of the pack: %w", i, c.Offset+int64(n), err)
	}
	return b, nil
}

// ReadChunk reads, unpacks and checks chunk i of a pack.
func (m *Manifest) ReadChunk(pack io.ReaderAt, i int) ([]byte, error) {
	frame, err := m.ReadFrame(pack, i)
	if err != nil {
		return nil, err
	}
	return m.DecodeChunk(i, frame, nil)
}
