package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// BlockSize is the unit in which content is found again: file systems align
// files to it, so that a block of a rebuilt image moves and stays whole, while
// hardly any larger piece does.
const BlockSize = 4096

const blocksPerChunk = ChunkSize / BlockSize

// BlockSum is the first half of a block's SHA-256; all zeros stands for a block
// of zeros. It finds a block, the manifest's sum of its chunk proves it.
type BlockSum [16]byte

// SumBlock of one block.
func SumBlock(b []byte) BlockSum {
	if isZero(b) {
		return BlockSum{}
	}
	sum := sha256.Sum256(b)
	return BlockSum(sum[:])
}

// Index lists the blocks of an image, the last one padded with zeros. It is an
// artefact of its own, addressed by the SHA-256 of its encoded form.
type Index struct {
	Manifest *Manifest
	sums     [][]BlockSum // of each chunk; nil for a hole

	once  sync.Once
	slots []uint32 // open addressing: 1 + the first block with that sum
}

// NewIndex makes the index of an image whose pack was made without one. chunk
// returns the checked bytes of one chunk; it is asked by several goroutines.
func NewIndex(ctx context.Context, m *Manifest, chunk func(i int) ([]byte, error)) (*Index, error) {
	x := &Index{Manifest: m, sums: make([][]BlockSum, len(m.Chunks))}
	err := each(ctx, len(m.Chunks), runtime.GOMAXPROCS(0), func(i int) error {
		if m.Chunks[i].Hole {
			return nil
		}
		b, err := chunk(i)
		if err == nil && len(b) != m.ChunkLen(i) {
			err = fmt.Errorf("%d bytes instead of %d", len(b), m.ChunkLen(i))
		}
		if err != nil {
			return fmt.Errorf("index chunk %d: %w", i, err)
		}
		x.sums[i] = sumBlocks(b)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return x, nil
}

// sumBlocks of one chunk.
func sumBlocks(chunk []byte) []BlockSum {
	sums := make([]BlockSum, 0, blocksFor(len(chunk), BlockSize))
	for len(chunk) >= BlockSize {
		sums = append(sums, SumBlock(chunk[:BlockSize]))
		chunk = chunk[BlockSize:]
	}
	if len(chunk) > 0 {
		var last [BlockSize]byte
		copy(last[:], chunk)
		sums = append(sums, SumBlock(last[:]))
	}
	return sums
}

// Blocks is how many the image has.
func (x *Index) Blocks() int { return int((x.Manifest.Size + BlockSize - 1) / BlockSize) }

// Sum of block k.
func (x *Index) Sum(k int) BlockSum {
	if sums := x.sums[k/blocksPerChunk]; sums != nil {
		return sums[k%blocksPerChunk]
	}
	return BlockSum{}
}

// Find gives the first block of the image with this sum, which is not that of a
// block of zeros.
func (x *Index) Find(sum BlockSum) (k int, ok bool) {
	x.once.Do(x.fill)
	for at := x.slot(sum); ; at = (at + 1) % len(x.slots) {
		switch k := int(x.slots[at]) - 1; {
		case k < 0:
			return 0, false
		case x.Sum(k) == sum:
			return k, true
		}
	}
}

// slot is where the search for sum begins: sums are as good as random.
func (x *Index) slot(sum BlockSum) int {
	return int(binary.LittleEndian.Uint64(sum[:]) % uint64(len(x.slots)))
}

func (x *Index) fill() {
	n := 0
	for _, sums := range x.sums {
		n += len(sums)
	}
	x.slots = make([]uint32, 2*n+1)
	for i, sums := range x.sums {
	next:
		for b, sum := range sums {
			if sum == (BlockSum{}) {
				continue
			}
			at := x.slot(sum)
			for ; x.slots[at] != 0; at = (at + 1) % len(x.slots) {
				if x.Sum(int(x.slots[at])-1) == sum {
					continue next
				}
			}
			x.slots[at] = uint32(i*blocksPerChunk + b + 1)
		}
	}
}

const indexMagic = "recast block index 1\n"

// indexSize is the length of the index of m before it is compressed.
func indexSize(m *Manifest) int {
	n := len(indexMagic) + sha256.Size
	for i := range m.Chunks {
		if !m.Chunks[i].Hole {
			n += blocksFor(m.ChunkLen(i), BlockSize) * len(BlockSum{})
		}
	}
	return n
}

// IndexMemory is about how many bytes the index of m takes in memory once
// something is looked up in it: 24 for each block that is not in a hole.
func IndexMemory(m *Manifest) int64 { return int64(indexSize(m)) / 16 * 24 }

// Encode gives the form on disk and on the wire: one zstd frame of a line that
// names the form, the image's digest, and the sums of each chunk that is no hole.
func (x *Index) Encode() []byte {
	raw := make([]byte, 0, indexSize(x.Manifest))
	raw = append(raw, indexMagic...)
	raw = append(raw, x.Manifest.Digest[:]...)
	for _, sums := range x.sums {
		for _, sum := range sums {
			raw = append(raw, sum[:]...)
		}
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err) // constant options
	}
	defer enc.Close()
	return enc.EncodeAll(raw, nil)
}

// MaxIndexSize is the most bytes that the encoded index of m can have.
func MaxIndexSize(m *Manifest) int64 {
	n := int64(indexSize(m)) // sums do not compress: zstd stores them, 3 bytes for 128 KiB
	return n + n>>12 + 1024
}

// ParseIndex reads what Encode made for the image of m, and nothing else.
func ParseIndex(b []byte, m *Manifest) (*Index, error) {
	if int64(len(b)) > MaxIndexSize(m) {
		return nil, fmt.Errorf("parse index: %d bytes, more than the limit of %d", len(b), MaxIndexSize(m))
	}
	size := indexSize(m)
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(uint64(size)+1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("parse index: %w", err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(b, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("parse index: %w", err)
	}
	rest, ok := bytes.CutPrefix(raw, []byte(indexMagic))
	if !ok || len(raw) != size {
		return nil, fmt.Errorf("parse index: %d bytes that begin with %.24q, want %d that begin with %q", len(raw), raw, size, indexMagic)
	}
	if image := Digest(rest); image != m.Digest {
		return nil, fmt.Errorf("parse index: it is of image %s, want %s", image, m.Digest)
	}
	rest = rest[sha256.Size:]
	x := &Index{Manifest: m, sums: make([][]BlockSum, len(m.Chunks))}
	for i := range m.Chunks {
		if m.Chunks[i].Hole {
			continue
		}
		sums, zeros := make([]BlockSum, blocksFor(m.ChunkLen(i), BlockSize)), true
		for b := range sums {
			sums[b] = BlockSum(rest)
			zeros = zeros && sums[b] == BlockSum{}
			rest = rest[len(BlockSum{}):]
		}
		if zeros {
			return nil, fmt.Errorf("parse index: chunk %d is all zeros, but no hole", i)
		}
		x.sums[i] = sums
	}
	return x, nil
}
