package pack

import (
	"context"
	"io"
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
	left // not looked at, and not to be written
	firstBlock
)

// ScanOptions of Scan; the zero value works.
type ScanOptions struct {
	// Size is how far the disk is looked at, bytes; at least as far as the image goes.
	Size int64
	// Regions are what shall be the image's, in bytes; nil for all of it. A block
	// that does not lie in one whole is left alone.
	Regions []Region
	Workers int // that read and hash; at least 1
	// Done is told how many bytes were looked at, by several goroutines. Nil for nobody.
	Done func(n int64)
}

// Region is the bytes from Start up to End.
type Region struct{ Start, End int64 }

func (r Region) holds(off, end int64) bool   { return r.Start <= off && end <= r.End }
func (r Region) touches(off, end int64) bool { return r.Start < end && off < r.End }

// Scan reads a disk and finds what of the image stands on it: with an index
// each block, wherever it is; without one (nil) whole chunks in their places.
// It goes by content alone, so it does not matter what the disk was believed to
// hold. Chunks of the table (nil for none) are not looked at.
func Scan(ctx context.Context, disk io.ReaderAt, m *Manifest, x *Index, t *Table, o ScanOptions) (*Found, error) {
	o.Size = max(o.Size, m.Size)
	f := &Found{m: m, x: x, t: t, mib: make([][]content, NumChunks(o.Size))}
	if x != nil {
		x.once.Do(x.fill)
	}
	err := Read(ctx, disk, o.Size, o.Workers, func(i int, have []byte) error {
		f.mib[i] = f.look(i, have)
		if o.Regions != nil && i < len(m.Chunks) {
			f.mib[i] = f.leave(i, o.Regions)
		}
		if o.Done != nil {
			o.Done(int64(len(have)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
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
	if f.rendered(i) {
		return nil
	}
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

// leave marks the blocks of one MiB that lie in none of the regions.
func (f *Found) leave(i int, regions []Region) []content {
	out := make([]content, blocksFor(f.m.ChunkLen(i), BlockSize))
	copy(out, f.mib[i])
	for b := range out {
		off := int64(i)*ChunkSize + int64(b)*BlockSize
		end, inside := min(off+BlockSize, f.m.Size), false
		for _, r := range regions {
			inside = inside || r.holds(off, end)
		}
		if !inside {
			out[b] = left
		}
	}
	return out
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
			switch r := (Region{off, end}); {
			case r.holds(at, at+BlockSize) && zeroed:
				out[b] = zeros
			case r.touches(at, at+BlockSize):
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

// Right says whether block k of the image stands in its place, or is left alone.
func (f *Found) Right(k int) bool {
	have := f.at(k)
	return have == left || have != foreign && have == f.want(k)
}
