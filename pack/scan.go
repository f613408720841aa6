package pack

import (
	"context"
	"io"
	"sync/atomic"
)

// Found is what of one image stands where on a disk.
type Found struct {
	m *Manifest
	x *Index
	t *Table
	// mib is what each MiB of the disk holds, block for block; nil for nothing.
	mib [][]content
}

// content is the first block of the image with a block's sum, counted from
// firstBlock, or one of these.
type content uint32

const (
	foreign content = iota // nothing of the image
	zeros
	firstBlock
)

// ScanOptions of Scan; the zero value works.
type ScanOptions struct {
	// Size is how far the disk is looked at, bytes; at least as far as the image goes.
	Size    int64
	Workers int // that read and hash; at least 1
	// Done is told how many bytes were looked at, by several goroutines. Nil for nobody.
	Done func(n int64)
	// Hold is offered each MiB that will be read again to write the image: it holds
	// blocks of it, and not all that it shall. True takes the slice; several
	// goroutines ask. Nil takes none.
	Hold func(i int, have []byte) bool
}

// Scan reads a disk and finds what of the image stands on it: with an index
// each block, wherever it is; without one (nil) whole chunks in their places.
// It goes by content alone, so it does not matter what the disk was believed to
// hold. Chunks of the table (nil for none) are not looked at.
func Scan(ctx context.Context, disk io.ReaderAt, m *Manifest, x *Index, t *Table, o ScanOptions) (*Found, error) {
	if o.Size = max(o.Size, m.Size); x == nil {
		o.Size = m.Size
	}
	f := &Found{m: m, x: x, t: t, mib: make([][]content, NumChunks(o.Size))}
	if x != nil {
		x.once.Do(x.fill)
	}
	var right atomic.Bool
	scan := func(pieces []int) error {
		return read(ctx, disk, o.Size, pieces, o.Workers, func(i int, have []byte) (held bool, err error) {
			f.mib[i] = f.look(i, have)
			if x == nil && !m.Chunks[i].Hole && f.right(i*blocksPerChunk) {
				right.Store(true)
			}
			if o.Done != nil {
				o.Done(int64(len(have)))
			}
			return o.Hold != nil && f.unsettled(i) && o.Hold(i, have), nil
		})
	}
	first, rest, blank := f.order()
	err := scan(first)
	if err == nil && (right.Load() || x != nil) {
		err = scan(rest)
	}
	if err == nil {
		err = scan(blank)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// samples are enough to see whether a write without an index was cut off here.
const samples = 64

// order is in which order a disk is looked at: where none of the first holds
// what it should, the rest is not worth reading. Where zeros shall be is looked
// at always: they are written slower than read.
func (f *Found) order() (first, rest, blank []int) {
	var data []int
	for i := range f.mib {
		switch {
		case f.rendered(i):
		case f.x == nil && f.m.Chunks[i].Hole:
			blank = append(blank, i)
		default:
			data = append(data, i)
		}
	}
	for k, i := range data {
		if k*samples/len(data) != (k-1)*samples/len(data) || k == 0 {
			first = append(first, i)
		} else {
			rest = append(rest, i)
		}
	}
	return first, rest, blank
}

var zeroBlocks = func() []content {
	b := make([]content, blocksPerChunk)
	for i := range b {
		b[i] = zeros
	}
	return b
}()

// look names the contents of one MiB of the disk.
func (f *Found) look(i int, have []byte) []content {
	n := blocksFor(len(have), BlockSize)
	if isZero(have) {
		return zeroBlocks[:n]
	}
	if f.x == nil {
		if Decide(f.m, nil, i, have) != Right {
			return nil
		}
		out := make([]content, n)
		for b := range out {
			out[b] = f.want(i*blocksPerChunk + b)
		}
		return out
	}
	// Behind the end of an image that is no whole number of blocks stands what
	// does not count.
	if i == len(f.m.Chunks)-1 && f.m.ChunkLen(i)%BlockSize != 0 && len(have) >= f.m.ChunkLen(i) {
		clear(have[f.m.ChunkLen(i):min(len(have), blocksFor(f.m.ChunkLen(i), BlockSize)*BlockSize)])
	}
	var out []content
	for b, sum := range sumBlocks(have) {
		c := f.content(sum)
		if c != foreign && out == nil {
			out = make([]content, n)
		}
		if out != nil {
			out[b] = c
		}
	}
	return out
}

// unsettled says that MiB i of the disk holds blocks of the image, and not all that
// it shall.
func (f *Found) unsettled(i int) bool {
	some, wrong := false, false
	for b, c := range f.mib[i] {
		k := i*blocksPerChunk + b
		some = some || c >= firstBlock
		wrong = wrong || int64(k)*BlockSize >= f.m.Size || !f.right(k)
		if some && wrong {
			return true
		}
	}
	return false
}

// Expect is what a Scan finds, with the index of another image, on a disk that
// was written with that image and is about to be written with this one. What
// the table's chunks hold, and the ends that are zeroed first, is not counted on.
func Expect(from, to *Index) *Found {
	f := &Found{m: to.Manifest, x: to, mib: make([][]content, max(len(from.Manifest.Chunks), len(to.Manifest.Chunks)))}
	for i := range from.Manifest.Chunks {
		n := blocksFor(from.Manifest.ChunkLen(i), BlockSize)
		if from.Manifest.Chunks[i].Hole {
			f.mib[i] = zeroBlocks[:n]
			continue
		}
		out := make([]content, n)
		for b, sum := range from.sums[i] {
			out[b] = f.content(sum)
		}
		f.mib[i] = out
	}
	f.Lose(0, MiB, false)
	for _, size := range []int64{from.Manifest.Size, to.Manifest.Size} {
		f.Lose(size-MiB, size, false)
	}
	return f
}

// Lose forgets what stood from byte off up to end; zeroed says that zeros stand
// there now.
func (f *Found) Lose(off, end int64, zeroed bool) {
	for i := max(0, int(off/ChunkSize)); i < len(f.mib) && int64(i)*ChunkSize < end; i++ {
		if f.mib[i] == nil && !zeroed || f.rendered(i) {
			continue
		}
		out := make([]content, blocksPerChunk)
		n := copy(out, f.mib[i])
		if f.mib[i] == nil {
			n = blocksPerChunk
		}
		out = out[:n]
		for b := range out {
			at := int64(i)*ChunkSize + int64(b)*BlockSize
			switch {
			case off <= at && at+BlockSize <= end && zeroed:
				out[b] = zeros
			case off < at+BlockSize && at < end:
				out[b] = foreign
			}
		}
		f.mib[i] = out
	}
}

func (f *Found) rendered(i int) bool {
	if f.t == nil {
		return false
	}
	_, ok := f.t.Chunks[i]
	return ok
}

// content of a block with this sum.
func (f *Found) content(sum BlockSum) content {
	if sum == (BlockSum{}) {
		return zeros
	}
	if k, ok := f.x.Find(sum); ok {
		return firstBlock + content(k)
	}
	return foreign
}

// want is what shall stand at block k of the image.
func (f *Found) want(k int) content {
	switch {
	case f.m.Chunks[k/blocksPerChunk].Hole:
		return zeros
	case f.x == nil:
		return firstBlock + content(k)
	}
	return f.content(f.x.Sum(k))
}

// at is what stands at block p of the disk.
func (f *Found) at(p int) content {
	if i, b := p/blocksPerChunk, p%blocksPerChunk; i < len(f.mib) && b < len(f.mib[i]) {
		return f.mib[i][b]
	}
	return foreign
}

// right says whether block k of the image stands in its place.
func (f *Found) right(k int) bool {
	have := f.at(k)
	return have != foreign && have == f.want(k)
}
