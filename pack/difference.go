package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Difference holds the blocks of one image that stand nowhere in another, in a
// pack of its own: plain zstd frames of up to a MiB, in the image's order; and says
// what stands where on a disk with the other, of which Expect tells. What is sent of the image to a disk that holds the other is this, since scattered
// blocks touch nearly every frame of the image's own pack.
type Difference struct {
	From, To Digest // of the unpacked images
	Pack     Digest // of the difference's pack
	PackSize int64
	Blocks   []uint32 // of To, ascending; 256 in each frame but the last
	Frames   []Chunk  // Offset and Length alone

	to     *Index
	layout [][]content
}

// differenceVersion is that of the list's form.
const differenceVersion = 2

// differenceJSON is the form on disk and on the wire; the places of frames and
// which blocks lie in them follow.
type differenceJSON struct {
	Version   int    `json:"version"`
	From      Digest `json:"from"`
	To        Digest `json:"to"`
	BlockSize int    `json:"blockSize"`
	Pack      Digest `json:"pack"`
	PackSize  int64  `json:"packSize"`
	Runs      string `json:"runs"`    // base64 of uvarints: blocks left out, blocks taken, and so on
	Lengths   string `json:"lengths"` // base64 of a little-endian uint32 for each frame
	Layout    string `json:"layout"`  // base64 of what stands where, as encodeLayout says
}

// ErrNoDifference is wrapped where a difference would hold more than the image's
// own pack, or list more than a client reads.
var ErrNoDifference = errors.New("no difference is worth making")

// WriteDifference writes the pack of the difference to w. chunk returns the
// checked bytes of one chunk of the image to; it is asked for one at a time, in
// order. The same images give the same bytes.
func WriteDifference(ctx context.Context, w io.Writer, from, to *Index, chunk func(i int) ([]byte, error)) (*Difference, error) {
	d := &Difference{From: from.Manifest.Digest, To: to.Manifest.Digest, to: to}
	d.Blocks, d.layout = missing(from, to)
	workers := runtime.GOMAXPROCS(0)
	// A difference is made once and sent to many: slower and smaller than a pack.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithWindowSize(ChunkSize), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("start the compressor: %w", err)
	}
	defer enc.Close()
	sum := sha256.New()
	raw, frames := make([][]byte, workers), make([][]byte, workers)
	have, at := []byte(nil), -1
	for next := 0; next < len(d.Blocks); {
		n := 0
		for ; n < workers && next < len(d.Blocks); n++ {
			end := min(next+blocksPerChunk, len(d.Blocks))
			raw[n] = raw[n][:0]
			for _, k := range d.Blocks[next:end] {
				i := int(k) / blocksPerChunk
				if i != at {
					if err := ctx.Err(); err != nil {
						return nil, context.Cause(ctx)
					}
					if have, err = chunk(i); err != nil {
						return nil, fmt.Errorf("read chunk %d: %w", i, err)
					}
					at = i
				}
				raw[n] = append(raw[n], block(have, int(k)%blocksPerChunk)...)
			}
			next = end
		}
		err := each(ctx, n, n, func(f int) error {
			frames[f] = enc.EncodeAll(raw[f], frames[f][:0])
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, frame := range frames[:n] {
			sum.Write(frame)
			if n, err := w.Write(frame); err != nil {
				return nil, fmt.Errorf("write the difference at byte %d: %w", d.PackSize+int64(n), err)
			}
			d.Frames = append(d.Frames, Chunk{Offset: d.PackSize, Length: len(frame)})
			d.PackSize += int64(len(frame))
			if d.PackSize >= to.Manifest.PackSize {
				return nil, fmt.Errorf("%w: it is larger than the whole image, %d bytes", ErrNoDifference, to.Manifest.PackSize)
			}
		}
	}
	sum.Sum(d.Pack[:0])
	if n := len(d.Encode()); n > MaxManifestSize {
		return nil, fmt.Errorf("%w: its list has %d bytes, the limit is %d", ErrNoDifference, n, MaxManifestSize)
	}
	return d, nil
}

// missing are the blocks of to, but for its first chunk, that a disk with from
// does not hold; and what that does.
func missing(from, to *Index) ([]uint32, [][]content) {
	f := Expect(from, to)
	src := f.sources()
	var out []uint32
	for k := blocksPerChunk; k < to.Blocks(); k++ {
		want := f.want(k)
		if want == zeros {
			continue
		}
		if _, ok := src.of(want); !ok {
			out = append(out, uint32(k))
		}
	}
	return out, f.mib
}

// block b of a chunk, the image's last padded with zeros.
func block(chunk []byte, b int) []byte {
	chunk = chunk[b*BlockSize:]
	if len(chunk) >= BlockSize {
		return chunk[:BlockSize]
	}
	return append(chunk[:len(chunk):len(chunk)], make([]byte, BlockSize-len(chunk))...)
}

// find gives the place of block k in Blocks; a nil difference holds none.
func (d *Difference) find(k int) (int, bool) {
	if d == nil {
		return 0, false
	}
	return slices.BinarySearch(d.Blocks, uint32(k))
}

// Len is how many blocks frame f holds.
func (d *Difference) Len(f int) int { return min(blocksPerChunk, len(d.Blocks)-f*blocksPerChunk) }

// Decode unpacks frame f into dst, which is used when it has room for a MiB, and
// returns its blocks only if they are those of the image.
func (d *Difference) Decode(f int, frame, dst []byte) ([]byte, error) {
	n := d.Len(f) * BlockSize
	if cap(dst) < n {
		dst = make([]byte, 0, n)
	}
	if len(frame) != d.Frames[f].Length {
		return nil, fmt.Errorf("decode frame %d of the difference: %d bytes instead of %d: %w", f, len(frame), d.Frames[f].Length, ErrBadFrame)
	}
	out, err := decoder().DecodeAll(frame, dst[:0:n])
	if err != nil {
		return nil, fmt.Errorf("decode frame %d of the difference: %w: %w", f, err, ErrBadFrame)
	}
	if len(out) != n {
		return nil, fmt.Errorf("decode frame %d of the difference: %d bytes unpacked instead of %d: %w", f, len(out), n, ErrBadFrame)
	}
	for b, k := range d.Blocks[f*blocksPerChunk:][:d.Len(f)] {
		if SumBlock(out[b*BlockSize:][:BlockSize]) != d.to.Sum(int(k)) {
			return nil, fmt.Errorf("decode frame %d of the difference: it does not hold block %d of the image: %w", f, k, ErrBadFrame)
		}
	}
	return out, nil
}

// Encode gives the one canonical form of the list.
func (d *Difference) Encode() []byte {
	var runs, lengths []byte
	next := uint32(0)
	for i := 0; i < len(d.Blocks); {
		n := 1
		for i+n < len(d.Blocks) && d.Blocks[i+n] == d.Blocks[i]+uint32(n) {
			n++
		}
		runs = binary.AppendUvarint(runs, uint64(d.Blocks[i]-next))
		runs = binary.AppendUvarint(runs, uint64(n))
		next = d.Blocks[i] + uint32(n)
		i += n
	}
	for _, f := range d.Frames {
		lengths = binary.LittleEndian.AppendUint32(lengths, uint32(f.Length))
	}
	b, err := json.Marshal(differenceJSON{
		Version: differenceVersion, From: d.From, To: d.To, BlockSize: BlockSize, Pack: d.Pack, PackSize: d.PackSize,
		Runs: base64.StdEncoding.EncodeToString(runs), Lengths: base64.StdEncoding.EncodeToString(lengths),
		Layout: base64.StdEncoding.EncodeToString(encodeLayout(d.layout)),
	})
	if err != nil {
		panic(err) // plain numbers and strings always encode
	}
	return append(b, '\n')
}

// ParseDifference reads the canonical form of a list for the image of to, and
// nothing else.
func ParseDifference(b []byte, to *Index) (*Difference, error) {
	if len(b) > MaxManifestSize {
		return nil, fmt.Errorf("parse difference: %d bytes, more than the limit of %d", len(b), MaxManifestSize)
	}
	var j differenceJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return nil, fmt.Errorf("parse difference: %w", err)
	}
	switch {
	case j.Version != differenceVersion:
		return nil, fmt.Errorf("parse difference: version %d, this recast reads %d", j.Version, differenceVersion)
	case j.BlockSize != BlockSize:
		return nil, fmt.Errorf("parse difference: blockSize %d, want %d", j.BlockSize, BlockSize)
	case j.To != to.Manifest.Digest:
		return nil, fmt.Errorf("parse difference: it leads to image %s, want %s", j.To, to.Manifest.Digest)
	}
	runs, err := base64.StdEncoding.DecodeString(j.Runs)
	if err != nil {
		return nil, fmt.Errorf("parse difference: runs: %w", err)
	}
	lengths, err := base64.StdEncoding.DecodeString(j.Lengths)
	if err != nil {
		return nil, fmt.Errorf("parse difference: lengths: %w", err)
	}
	layout, err := base64.StdEncoding.DecodeString(j.Layout)
	if err != nil {
		return nil, fmt.Errorf("parse difference: layout: %w", err)
	}
	d := &Difference{From: j.From, To: j.To, Pack: j.Pack, PackSize: j.PackSize, to: to}
	if d.layout, err = parseLayout(layout, to.Blocks()); err != nil {
		return nil, fmt.Errorf("parse difference: %w", err)
	}
	for at, end := uint64(0), uint64(to.Blocks()); len(runs) > 0; {
		skip, n := binary.Uvarint(runs)
		if n <= 0 {
			return nil, errors.New("parse difference: runs end in a number")
		}
		take, m := binary.Uvarint(runs[n:])
		if m <= 0 || take == 0 || skip > end-at || take > end-at-skip {
			return nil, fmt.Errorf("parse difference: a run behind block %d does not lie in an image of %d", at, end)
		}
		for k := at + skip; k < at+skip+take; k++ {
			if to.Sum(int(k)) == (BlockSum{}) {
				return nil, fmt.Errorf("parse difference: block %d is all zeros", k)
			}
			d.Blocks = append(d.Blocks, uint32(k))
		}
		at += skip + take
		runs = runs[n+m:]
	}
	n := blocksFor(len(d.Blocks), blocksPerChunk)
	if len(lengths) != n*4 {
		return nil, fmt.Errorf("parse difference: %d bytes of lengths, want %d for %d blocks", len(lengths), n*4, len(d.Blocks))
	}
	d.Frames = make([]Chunk, n)
	var offset int64
	for f := range d.Frames {
		length := binary.LittleEndian.Uint32(lengths[f*4:])
		if length == 0 || length > MaxFrameSize {
			return nil, fmt.Errorf("parse difference: frame %d is %d bytes long, want 1 to %d", f, length, MaxFrameSize)
		}
		d.Frames[f] = Chunk{Offset: offset, Length: int(length)}
		offset += int64(length)
	}
	if offset != j.PackSize {
		return nil, fmt.Errorf("parse difference: packSize %d, but the frames add up to %d", j.PackSize, offset)
	}
	if !bytes.Equal(d.Encode(), b) {
		return nil, errors.New("parse difference: not in canonical form")
	}
	return d, nil
}
