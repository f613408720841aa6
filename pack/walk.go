package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
)

// Decision is what has to happen to one chunk of the disk, or to one block.
type Decision uint8

const (
	Right     Decision = iota // stands on the disk already
	Zero                      // shall be zeros: no bytes to fetch
	Fetch                     // a chunk: from the image's pack; a block: from the difference
	Render                    // shall be Table.Chunks[i].Disk: the table's, not the image's
	Elsewhere                 // a block stands on another place of this disk; a chunk is put together from blocks
	Kept                      // a block whose place is written before: it was copied aside
)

func (d Decision) String() string {
	switch d {
	case Right:
		return "right"
	case Zero:
		return "zero"
	case Fetch:
		return "fetch"
	case Render:
		return "render"
	case Elsewhere:
		return "elsewhere"
	case Kept:
		return "kept"
	}
	return fmt.Sprintf("Decision(%d)", int(d))
}

// Decide compares what the disk holds at chunk i with what shall stand there.
// A nil table stands for the image as it is. It is the one place that proves a
// chunk: the read-back asks it.
func Decide(m *Manifest, t *Table, i int, have []byte) Decision {
	if t != nil {
		if c, ok := t.Chunks[i]; ok {
			if bytes.Equal(have, c.Disk) {
				return Right
			}
			return Render
		}
	}
	c := &m.Chunks[i]
	blank := len(have) == m.ChunkLen(i) && isZero(have)
	switch {
	case c.Hole && blank:
		return Right
	case c.Hole:
		return Zero
	case !blank && Digest(sha256.Sum256(have)) == c.Sum:
		return Right
	}
	return Fetch
}

// Read gives what MiBs of the first size bytes of the disk hold to look, on so many
// goroutines at once and in no fixed order. The slice that look gets is used again.
// The first error, look's or the disk's, ends it.
func Read(ctx context.Context, disk io.ReaderAt, size int64, pieces []int, workers int, look func(i int, have []byte) error) error {
	return read(ctx, disk, size, pieces, workers, func(i int, have []byte) (bool, error) { return false, look(i, have) })
}

// read is Read, but a slice that look holds on to is its own.
func read(ctx context.Context, disk io.ReaderAt, size int64, pieces []int, workers int, look func(i int, have []byte) (held bool, err error)) error {
	buffers := sync.Pool{New: func() any { return new([ChunkSize]byte) }}
	return each(ctx, len(pieces), workers, func(k int) error {
		buf := buffers.Get().(*[ChunkSize]byte)
		i := pieces[k]
		off := int64(i) * ChunkSize
		have := buf[:min(ChunkSize, size-off)]
		if n, err := disk.ReadAt(have, off); n < len(have) {
			return fmt.Errorf("read the disk at byte %d: %w", off+int64(n), err)
		}
		held, err := look(i, have)
		if !held {
			buffers.Put(buf)
		}
		return err
	})
}

// each calls do with 0 to n-1, in order, on so many goroutines (at least one).
func each(ctx context.Context, n, workers int, do func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		next int
	)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		i := next
		next++
		return i
	}
	for range max(1, workers) {
		wg.Go(func() {
			for i := take(); i < n && ctx.Err() == nil; i = take() {
				if err := do(i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

var zeroChunk [ChunkSize]byte

// isZero says whether b, at most a chunk, is all zeros.
func isZero(b []byte) bool { return bytes.Equal(b, zeroChunk[:len(b)]) }
