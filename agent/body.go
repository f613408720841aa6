package agent

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"recast/pack"
)

// body brings every chunk but those of the table to the disk. The chunks are
// walked in order by one goroutine, which reads all that comes from this disk
// and lets go of a chunk only when nothing in its place is wanted any more;
// workers fetch, check and write what was let go of, in any order.
func (j *writer) body(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	work := make(chan func(*frameBuffer) error)
	for range j.Workers {
		wg.Go(func() {
			var buf frameBuffer
			for do := range work {
				if ctx.Err() != nil {
					continue
				}
				if err := do(&buf); err != nil {
					cancel(err)
				}
			}
		})
	}
	j.behind.begin(len(j.plan.Chunks), cmp.Or(j.turn, turnChunks), j.turn > 0)
	j.moved.blocks = make([][]byte, min(j.moved.memory, j.plan.Slots))
	news := j.fetchNews(ctx, &wg)
	if err := j.walk(ctx, work, news); err != nil {
		cancel(err)
	}
	close(work)
	for range news.frames { // the fetching goroutine may wait for room
	}
	wg.Wait()
	return context.Cause(ctx)
}

// walk is the one goroutine that takes the chunks in order.
func (j *writer) walk(ctx context.Context, work chan<- func(*frameBuffer) error, news *news) error {
	var fetch []int
	for i, d := range j.plan.Chunks {
		if d == pack.Fetch {
			fetch = append(fetch, i)
		}
	}
	requests := spans(j.manifest.Chunks, fetch)
	buffers := sync.Pool{New: func() any { return new([pack.ChunkSize]byte) }}
	var reading sync.WaitGroup
	defer reading.Wait()
	ahead := map[int]*gathering{}
	next := 0 // behind what is read already
	keep := j.plan.Keep
	for i, d := range j.plan.Chunks {
		if ctx.Err() != nil {
			return nil
		}
		n := 0
		for n < len(keep) && int64(keep[n].From)*pack.BlockSize < int64(i+1)*pack.ChunkSize {
			n++
		}
		for next = max(next, i); next < len(j.plan.Chunks) && len(ahead) < readAhead; next++ {
			if j.plan.Chunks[next] == pack.Elsewhere {
				ahead[next] = j.reads(ctx, next, buffers.Get().(*[pack.ChunkSize]byte), &reading)
			}
		}
		var chunk *[pack.ChunkSize]byte
		var have gathered
		if d == pack.Elsewhere {
			g := ahead[i]
			delete(ahead, i)
			chunk = g.chunk
			var err error
			if have, err = j.gather(ctx, i, g, news); err != nil {
				return err
			}
		}
		if err := j.moved.keep(ctx, j, keep[:n]); err != nil {
			return err
		}
		keep = keep[n:]

		// From here on the place of chunk i may be written.
		switch d {
		case pack.Right:
			j.Progress.done.Add(int64(j.manifest.ChunkLen(i)))
			if err := j.arrived(ctx, i); err != nil {
				return err
			}
		case pack.Fetch:
			if sp := requests[0]; sp[len(sp)-1] == i {
				requests = requests[1:]
				work <- func(buf *frameBuffer) error {
					return j.source.span(ctx, imageFrames(j.manifest), sp, buf, func(i int, data []byte) error {
						parts := j.plan.Wrong(i)
						if j.expected {
							parts = []pack.Region{{End: int64(len(data))}}
						}
						return j.put(ctx, i, data, parts)
					})
				}
			}
		case pack.Elsewhere:
			work <- func(buf *frameBuffer) error {
				defer buffers.Put(chunk)
				return j.settle(ctx, i, chunk[:j.manifest.ChunkLen(i)], have, buf)
			}
		default:
			work <- func(*frameBuffer) error { return j.put(ctx, i, nil, nil) }
		}
	}
	return nil
}

// settle writes a chunk that was put together from blocks, if it is the image's;
// else the disk or the difference were not what they were taken for, and the
// whole chunk is fetched.
func (j *writer) settle(ctx context.Context, i int, chunk []byte, have gathered, buf *frameBuffer) error {
	if have == proved || have == whole && pack.Decide(j.manifest, nil, i, chunk) == pack.Right {
		return j.put(ctx, i, chunk, j.plan.Wrong(i))
	}
	return j.source.span(ctx, imageFrames(j.manifest), span{i}, buf, func(i int, data []byte) error {
		return j.put(ctx, i, data, []pack.Region{{End: int64(len(data))}})
	})
}

// put writes parts of one chunk and sees that it is read back.
func (j *writer) put(ctx context.Context, i int, data []byte, parts []pack.Region) error {
	if err := j.place(ctx, i, data, parts); err != nil {
		return err
	}
	j.Progress.done.Add(int64(j.manifest.ChunkLen(i)))
	return j.arrived(ctx, i)
}

// place writes parts of one chunk: the table's form where it has one, else data,
// else zeros. The disk's first and last MiB stay zeros until the very end.
func (j *writer) place(ctx context.Context, i int, data []byte, parts []pack.Region) error {
	off, n := j.manifest.ChunkOffset(i), int64(j.manifest.ChunkLen(i))
	end := min(off+n, j.size-MiB)
	c, ours := j.table.Chunks[i]
	switch {
	case off < MiB || end <= off:
		return nil
	case ours:
		return j.writeAt(ctx, c.Disk[:end-off], off)
	case data == nil:
		return j.zero(ctx, off, end)
	}
	for _, r := range parts {
		if err := j.writeAt(ctx, data[r.Start:min(r.End, end-off)], off+r.Start); err != nil {
			return err
		}
	}
	return nil
}

// gathered is how a chunk was put together.
type gathered uint8

const (
	holes  gathered = iota // the difference could not be had
	whole                  // of blocks that may have changed since they were hashed
	proved                 // of the very bytes that were, which nothing but the read back need hash again
)

// readAhead is how many chunks are put together at a time: the disk goes on reading
// while one waits for its last piece.
const readAhead = 4

// gathering is a chunk that is put together.
type gathering struct {
	chunk *[pack.ChunkSize]byte
	again bool       // some of it is read, and not of what was seen
	read  chan error // gets one
}

// reads begins to read what of chunk i stands on the disk. That may be any time before
// its place is let go of: what it names is never written, or later than itself.
func (j *writer) reads(ctx context.Context, i int, chunk *[pack.ChunkSize]byte, reading *sync.WaitGroup) *gathering {
	g := &gathering{chunk: chunk, read: make(chan error, 1)}
	var reads []piece
	for b, from := range j.plan.Blocks(i) {
		if from.Decision == pack.Right || from.Decision == pack.Elsewhere {
			reads = join(reads, piece{int64(from.At) * pack.BlockSize, j.blockOf(g, i, b)})
		}
	}
	reads = j.recall(reads)
	if g.again = len(reads) > 0; !g.again {
		g.read <- nil
		return g
	}
	reading.Go(func() { g.read <- readPieces(ctx, j.Disk, reads) })
	return g
}

// blockOf is the room of block b of chunk i.
func (j *writer) blockOf(g *gathering, i, b int) []byte {
	chunk := g.chunk[:j.manifest.ChunkLen(i)]
	return chunk[b*pack.BlockSize : min((b+1)*pack.BlockSize, len(chunk))]
}

// gather fills the rest of a chunk, from what was kept and the difference.
func (j *writer) gather(ctx context.Context, i int, g *gathering, news *news) (gathered, error) {
	var aside []piece
	have := proved
	for b, from := range j.plan.Blocks(i) {
		to := j.blockOf(g, i, b)
		switch from.Decision {
		case pack.Zero:
			clear(to)
		case pack.Kept:
			if b, off := j.moved.get(int(from.At)); b != nil {
				copy(to, b)
			} else {
				aside = join(aside, piece{off, to})
			}
		case pack.Fetch:
			if !news.copy(int(from.At), to) {
				have = holes
			}
		}
	}
	if (g.again || len(aside) > 0 || j.moved.again) && have == proved {
		have = whole
	}
	if err := readPieces(ctx, j.Disk, aside); err != nil {
		return have, err
	}
	return have, <-g.read
}

// recall fills what was seen when the disk was compared, and returns the rest.
func (j *writer) recall(pieces []piece) []piece {
	var rest []piece
	for _, p := range pieces {
		for len(p.to) > 0 {
			i, at := p.off/MiB, p.off%MiB
			n := min(int64(len(p.to)), MiB-at)
			if seen := j.seen[i]; seen != nil {
				copy(p.to[:n], seen[at:])
			} else {
				rest = join(rest, piece{p.off, p.to[:n]})
			}
			p = piece{p.off + n, p.to[n:]}
		}
	}
	return rest
}

// piece is bytes of the disk and where they go.
type piece struct {
	off int64
	to  []byte
}

// join adds a piece, to the last one where it goes on there and here.
func join(pieces []piece, p piece) []piece {
	if k := len(pieces) - 1; k >= 0 {
		last := &pieces[k]
		if n := len(last.to); last.off+int64(n) == p.off && cap(last.to) > n && &last.to[:n+1][n] == &p.to[0] {
			last.to = last.to[:n+len(p.to)]
			return pieces
		}
	}
	return append(pieces, p)
}

// readers is how many reads a disk gets at once: a flash disk is quick at random
// places only with several.
const readers = 8

func readPieces(ctx context.Context, disk Disk, pieces []piece) error {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for w := range min(readers, len(pieces)) {
		wg.Go(func() {
			for k := w; k < len(pieces) && ctx.Err() == nil; k += readers {
				if _, err := disk.ReadAt(pieces[k].to, pieces[k].off); err != nil {
					cancel(fmt.Errorf("read at byte %d: %w", pieces[k].off, err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// moved holds the blocks that were copied aside: in memory, and what does not
// fit there in the space behind the image.
type moved struct {
	memory int
	disk   region
	blocks [][]byte // by slot
	again  bool     // some were read a second time
}

// get gives the block in a slot, or its place on the disk.
func (v *moved) get(slot int) ([]byte, int64) {
	if slot < len(v.blocks) {
		return v.blocks[slot], 0
	}
	return nil, v.disk.off + int64(slot-v.memory)*pack.BlockSize
}

// keep copies blocks of one MiB of the disk aside, with one read.
func (v *moved) keep(ctx context.Context, j *writer, blocks []pack.Keep) error {
	if len(blocks) == 0 {
		return nil
	}
	first, last := int64(blocks[0].From), int64(blocks[len(blocks)-1].From)
	have := make([]byte, (last+1-first)*pack.BlockSize)
	again := j.recall([]piece{{first * pack.BlockSize, have}})
	v.again = v.again || len(again) > 0
	if err := readPieces(ctx, j.Disk, again); err != nil {
		return err
	}
	var out []piece // to the disk; in slots that follow each other
	for _, k := range blocks {
		b := have[(int64(k.From)-first)*pack.BlockSize:][:pack.BlockSize]
		slot := int(k.Slot)
		if slot < v.memory {
			v.blocks[slot] = append(v.blocks[slot][:0], b...)
			continue
		}
		_, off := v.get(slot)
		if n := len(out) - 1; n >= 0 && out[n].off+int64(len(out[n].to)) == off {
			out[n].to = append(out[n].to, b...)
		} else {
			out = append(out, piece{off, append([]byte(nil), b...)})
		}
	}
	for _, p := range out {
		if err := j.writeAt(ctx, p.to, p.off); err != nil {
			return err
		}
	}
	return nil
}

// news are the frames of the difference, as they come, in order.
type news struct {
	frames chan frame
	now    frame
}

type frame struct {
	i    int
	data []byte
}

// fetchNews starts to fetch what the plan needs of the difference. The channel
// is closed behind the last, and where no more can be had.
func (j *writer) fetchNews(ctx context.Context, wg *sync.WaitGroup) *news {
	n := &news{frames: make(chan frame, 4), now: frame{i: -1}}
	wg.Go(func() {
		defer close(n.frames)
		if j.diff == nil {
			return
		}
		var buf frameBuffer
		f := differenceFrames(j.diff)
		for _, sp := range spans(f.list, j.plan.Frames) {
			err := j.source.span(ctx, f, sp, &buf, func(i int, data []byte) error {
				select {
				case n.frames <- frame{i, append([]byte(nil), data...)}:
				case <-ctx.Done():
				}
				return context.Cause(ctx)
			})
			if err != nil {
				if ctx.Err() == nil {
					j.Log("fetching more of the image than needed: %v", err)
				}
				return
			}
		}
	})
	return n
}

// copy gives the block at place at of the difference; false if it is not to be had.
func (n *news) copy(at int, to []byte) bool {
	const blocks = pack.ChunkSize / pack.BlockSize
	for n.now.i < at/blocks {
		f, ok := <-n.frames
		if !ok {
			f.i = 1 << 30 // nothing comes any more
		}
		n.now = f
	}
	if n.now.i != at/blocks {
		return false
	}
	copy(to, n.now.data[at%blocks*pack.BlockSize:])
	return true
}
