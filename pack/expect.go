package pack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// maxBlocks of the largest image.
const maxBlocks = MaxImageSize / BlockSize

// encodeLayout gives what stands where: for each run of blocks a uvarint of its
// length and, in the lowest two bits, its kind; for blocks of the image a varint
// more, of how far the first lies behind the last run's end.
func encodeLayout(mib [][]content) []byte {
	var out []byte
	var n, first, next uint64
	last := foreign
	flush := func() {
		if n == 0 {
			return
		}
		out = binary.AppendUvarint(out, n<<2|uint64(min(last, firstBlock)))
		if last >= firstBlock {
			out = binary.AppendVarint(out, int64(first)-int64(next))
			next = first + n
		}
		n = 0
	}
	f := Found{mib: mib}
	for p := range len(mib) * blocksPerChunk {
		c := f.at(p)
		goesOn := c == last && c < firstBlock || last >= firstBlock && c == firstBlock+content(first+n)
		if !goesOn {
			flush()
			if last = c; c >= firstBlock {
				first = uint64(c - firstBlock)
			}
		}
		n++
	}
	if last != foreign { // what is behind the last is foreign anyhow
		flush()
	}
	return out
}

// parseLayout reads what encodeLayout gave for an image of so many blocks.
func parseLayout(b []byte, blocks int) ([][]content, error) {
	var mib [][]content
	var next int64
	for p := uint64(0); len(b) > 0; {
		token, k := binary.Uvarint(b)
		if k <= 0 {
			return nil, errors.New("the layout ends in a number")
		}
		b = b[k:]
		n, kind := token>>2, content(token&3)
		if n == 0 || n > maxBlocks-p || kind > firstBlock {
			return nil, fmt.Errorf("a run of the layout at block %d of a disk is not one", p)
		}
		first := int64(0)
		if kind == firstBlock {
			by, k := binary.Varint(b)
			if k <= 0 {
				return nil, errors.New("the layout ends in a number")
			}
			b = b[k:]
			first = next + by
			if first < 0 || first > int64(blocks) || int64(n) > int64(blocks)-first {
				return nil, fmt.Errorf("the layout has block %d of an image of %d", first, blocks)
			}
			next = first + int64(n)
		}
		for end := p + n; p < end; {
			i, at := p/blocksPerChunk, p%blocksPerChunk
			take := min(end-p, blocksPerChunk-at)
			for uint64(len(mib)) <= i {
				mib = append(mib, nil)
			}
			switch {
			case kind == foreign:
			case kind == zeros && take == blocksPerChunk:
				mib[i] = zeroBlocks
			default:
				if mib[i] == nil {
					mib[i] = make([]content, blocksPerChunk)
				}
				for k := range take {
					c := kind
					if kind == firstBlock {
						c += content(first)
						first++
					}
					mib[i][at+k] = c
				}
			}
			p += take
		}
	}
	return mib, nil
}

// Expect is what a Scan would find on a disk that holds image From. Chunks of the
// table (nil for none) are not counted on.
func (d *Difference) Expect(t *Table) *Found {
	f := &Found{m: d.to.Manifest, x: d.to, t: t, mib: make([][]content, max(len(d.layout), len(d.to.Manifest.Chunks)))}
	copy(f.mib, d.layout)
	for i := range f.mib {
		if f.rendered(i) {
			f.mib[i] = nil
		}
	}
	return f
}

// At how many MiBs Holds looks.
const minLooks, maxLooks = 8, 64

// Holds tells whether a disk holds what was expected of it, by a sixteenth of the
// MiBs with blocks of the image, 8 to 64, from all over: nearly all of their blocks.
// A disk with another image holds none, one that was cut off in the middle of a write
// half. size is how far there is anything to read.
func (f *Found) Holds(ctx context.Context, disk io.ReaderAt, size int64, workers int) (bool, error) {
	if len(f.mib) > NumChunks(size) {
		return false, nil
	}
	var data []int
	for i, mib := range f.mib {
		for _, c := range mib {
			if c >= firstBlock {
				data = append(data, i)
				break
			}
		}
	}
	n := min(len(data), max(minLooks, len(data)/16), maxLooks)
	looks := make([]int, n)
	for k := range looks {
		looks[k] = data[(2*k+1)*len(data)/(2*n)]
	}
	var right, wrong atomic.Int64
	err := Read(ctx, disk, size, looks, workers, func(i int, have []byte) error {
		for b, c := range f.mib[i] {
			if c < firstBlock {
				continue
			}
			if (b+1)*BlockSize <= len(have) && SumBlock(have[b*BlockSize:][:BlockSize]) == f.x.Sum(int(c-firstBlock)) {
				right.Add(1)
			} else {
				wrong.Add(1)
			}
		}
		return nil
	})
	return right.Load() > 0 && wrong.Load()*16 <= right.Load(), err
}
