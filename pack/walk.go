package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
)

// Decision is what has to happen to one chunk of the disk.
type Decision int

const (
	Right  Decision = iota // stands on the disk already
	Zero                   // shall be zeros: no bytes to fetch
	Fetch                  // shall be the image's chunk
	Render                 // shall be Table.Chunks[i].Disk: the table's, not the image's
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
	}
	return fmt.Sprintf("Decision(%d)", int(d))
}

// Decide compares what the disk holds at chunk i with what shall stand there.
// A nil table stands for the image as it is. It is the one place that says
// when a chunk is right: first write, re-image and read-back all ask it.
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
	if c.Hole {
		if len(have) == m.ChunkLen(i) && isZero(have) {
			return Right
		}
		return Zero
	}
	if Digest(sha256.Sum256(have)) == c.Sum {
		return Right
	}
	return Fetch
}

// Walk reads every chunk's place on the disk and tells each what has to happen
// there. With a nil disk nothing is read and nothing is right: the answer for a
// disk that is known to be blank or wrong. The reads run on workers goroutines
// (at least one), each is called by one at a time, in no fixed order. The first
// error, each's or the disk's, ends the walk.
func Walk(ctx context.Context, disk io.ReaderAt, m *Manifest, t *Table, workers int, each func(i int, d Decision) error) error {
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
			buf := make([]byte, ChunkSize)
			for {
				i := take()
				if i >= len(m.Chunks) || ctx.Err() != nil {
					return
				}
				var have []byte
				if disk != nil {
					have = buf[:m.ChunkLen(i)]
					if n, err := disk.ReadAt(have, m.ChunkOffset(i)); n < len(have) {
						cancel(fmt.Errorf("read the disk at byte %d: %w", m.ChunkOffset(i)+int64(n), err))
						return
					}
				}
				d := Decide(m, t, i, have)
				mu.Lock()
				err := ctx.Err()
				if err == nil {
					err = each(i, d)
				}
				mu.Unlock()
				if err != nil {
					cancel(err)
					return
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
