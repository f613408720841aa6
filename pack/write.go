package pack

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ErrTooLarge is wrapped by Write's error for an image over its limit.
var ErrTooLarge = errors.New("image is too large")

// WriteOptions of Write; the zero value works.
type WriteOptions struct {
	MaxSize int64 // of the unpacked image, bytes; 0 means MaxImageSize
	Workers int   // that hash and compress; 0 means one for each core
	// Progress is told the bytes read (unpacked) and written after each chunk.
	Progress func(read, written int64)
}

// Write reads a whole image from r, writes its pack to w and returns its index
// and in it its manifest: the same bytes for the same image, whatever the number
// of workers. It holds a few chunks for each worker in memory, and the sums.
func Write(ctx context.Context, w io.Writer, r io.Reader, o WriteOptions) (*Index, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MaxSize <= 0 || o.MaxSize > MaxImageSize {
		o.MaxSize = MaxImageSize
	}
	enc, err := NewEncoder(o.Workers)
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// One goroutine reads, workers compress whichever chunk comes, and this one
	// takes the results in the chunks' order: the channel ordered holds each
	// job from before a worker sees it.
	depth := 2 * o.Workers
	ordered := make(chan *job, depth)
	work := make(chan *job, depth)
	free := make(chan *job, 2*depth)
	for range cap(free) {
		free <- &job{done: make(chan struct{}, 1)}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(ordered)
		defer close(work)
		cancel(readChunks(ctx, r, o.MaxSize, free, ordered, work))
	})
	for range o.Workers {
		wg.Go(func() {
			for j := range work {
				j.sum, j.blocks = sha256.Sum256(j.data), nil
				if j.sum != zeroSum(len(j.data)) {
					j.blocks = sumBlocks(j.data)
				}
				j.frame = enc.Encode(j.data, j.frame[:0])
				j.done <- struct{}{}
			}
		})
	}
	x, err := collect(w, ordered, free, o.Progress)
	if err != nil {
		cancel(err)
		for range ordered { // the reader may wait for room
		}
	}
	wg.Wait()
	// The reader's own end is io.EOF; anything else, ours included, was first.
	if cause := context.Cause(ctx); cause != nil && cause != io.EOF {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	if len(x.Manifest.Chunks) == 0 {
		return nil, errors.New("image is empty")
	}
	return x, nil
}

type job struct {
	data, frame []byte
	sum         Digest
	blocks      []BlockSum // nil for a hole
	done        chan struct{}
}

// readChunks returns io.EOF when the image was read to its end.
func readChunks(ctx context.Context, r io.Reader, maxSize int64, free <-chan *job, ordered, work chan<- *job) error {
	var size int64
	for {
		var j *job
		select {
		case j = <-free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if j.data == nil {
			j.data = make([]byte, ChunkSize)
		}
		n, err := readFull(r, j.data[:ChunkSize])
		size += int64(n)
		if size > maxSize {
			return fmt.Errorf("%w: it goes on past the limit of %d bytes", ErrTooLarge, maxSize)
		}
		if n > 0 {
			j.data = j.data[:n]
			select {
			case ordered <- j:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			work <- j // as much room as in ordered
		}
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return fmt.Errorf("read the image at byte %d: %w", size, err)
		}
	}
}

// readFull is io.ReadFull, except that the reader's own io.ErrUnexpectedEOF (a
// transfer that broke) stays apart from its io.EOF (a last, short chunk).
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	if n == len(b) && err == io.EOF {
		err = nil // comes again
	}
	return n, err
}

// collect writes the frames in order and builds the manifest and the index.
func collect(w io.Writer, ordered <-chan *job, free chan<- *job, progress func(read, written int64)) (*Index, error) {
	m := &Manifest{}
	x := &Index{Manifest: m}
	image, packed := sha256.New(), sha256.New()
	var first []byte
	for j := range ordered {
		<-j.done
		if first == nil {
			first = append(first, j.data...)
		}
		image.Write(j.data)
		packed.Write(j.frame)
		if n, err := w.Write(j.frame); err != nil {
			return nil, fmt.Errorf("write the pack at byte %d: %w", m.PackSize+int64(n), err)
		}
		m.Chunks = append(m.Chunks, Chunk{
			Sum: j.sum, Offset: m.PackSize, Length: len(j.frame), Hole: j.blocks == nil,
		})
		x.sums = append(x.sums, j.blocks)
		m.Size += int64(len(j.data))
		m.PackSize += int64(len(j.frame))
		if progress != nil {
			progress(m.Size, m.PackSize)
		}
		free <- j
	}
	image.Sum(m.Digest[:0])
	packed.Sum(m.Pack[:0])
	if len(m.Chunks) == 0 {
		return x, nil
	}
	var err error
	m.Layout, m.BlockSize, err = ParseLayout(first, m.Size)
	return x, err
}

// Encoder makes frames. Frames are the same for the same chunk and the same
// version of the zstd library, whoever made them and when.
type Encoder struct {
	enc  *zstd.Encoder
	zero []byte // the frame of a whole chunk of zeros
}

// NewEncoder is for up to workers goroutines at once.
func NewEncoder(workers int) (*Encoder, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(ChunkSize),
		zstd.WithSingleSegment(true)) // the content's size stands in the frame
	if err != nil {
		return nil, fmt.Errorf("start the compressor: %w", err)
	}
	return &Encoder{enc: enc, zero: enc.EncodeAll(zeroChunk[:], nil)}, nil
}

// Encode appends the frame of one chunk to dst.
func (e *Encoder) Encode(chunk, dst []byte) []byte {
	if len(chunk) == ChunkSize && isZero(chunk) {
		return append(dst, e.zero...)
	}
	return e.enc.EncodeAll(chunk, dst)
}

// Close frees the compressor's memory.
func (e *Encoder) Close() { e.enc.Close() }
