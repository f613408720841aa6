package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
)

// Manifest proves an image chunk by chunk. It is addressed by the SHA-256 of
// its encoded form, of which there is exactly one for any image and pack.
type Manifest struct {
	Size      int64  // of the unpacked image, bytes
	Digest    Digest // of the unpacked image
	BlockSize int    // logical block size the image was made for: 512 or 4096
	Pack      Digest // of the pack file
	PackSize  int64  // of the pack file, bytes
	Layout    Layout
	Chunks    []Chunk
}

// Chunk is one MiB of the image (the last may be shorter) and its frame.
type Chunk struct {
	Sum    Digest // of the unpacked chunk
	Offset int64  // of the frame in the pack
	Length int    // of the frame, bytes
	Hole   bool   // all zeros: nothing to fetch
}

// manifestJSON is the form on disk and on the wire. Sums and lengths are packed
// binary, since 65,536 objects for a 64 GiB image would be 12 MB of JSON and
// this is 3. Offsets and holes follow from them, so they cannot contradict.
type manifestJSON struct {
	Version   int    `json:"version"`
	Size      int64  `json:"size"`
	Digest    Digest `json:"digest"`
	ChunkSize int    `json:"chunkSize"`
	BlockSize int    `json:"blockSize"`
	Pack      Digest `json:"pack"`
	PackSize  int64  `json:"packSize"`
	Layout    Layout `json:"layout"`
	Sums      string `json:"sums"`    // base64 of 32 bytes for each chunk
	Lengths   string `json:"lengths"` // base64 of a little-endian uint32 for each chunk
}

// NumChunks is how many chunks an image of size bytes has.
func NumChunks(size int64) int { return int((size + ChunkSize - 1) / ChunkSize) }

// ChunkLen is the unpacked length of chunk i.
func (m *Manifest) ChunkLen(i int) int {
	return int(min(int64(ChunkSize), m.Size-int64(i)*ChunkSize))
}

// ChunkOffset is where chunk i begins in the image.
func (m *Manifest) ChunkOffset(i int) int64 { return int64(i) * ChunkSize }

// Encode gives the one canonical form.
func (m *Manifest) Encode() []byte {
	sums := make([]byte, 0, len(m.Chunks)*sha256.Size)
	lengths := make([]byte, 0, len(m.Chunks)*4)
	for _, c := range m.Chunks {
		sums = append(sums, c.Sum[:]...)
		lengths = binary.LittleEndian.AppendUint32(lengths, uint32(c.Length))
	}
	b, err := json.Marshal(manifestJSON{
		Version: Version, Size: m.Size, Digest: m.Digest, ChunkSize: ChunkSize,
		BlockSize: m.BlockSize, Pack: m.Pack, PackSize: m.PackSize, Layout: m.Layout,
		Sums:    base64.StdEncoding.EncodeToString(sums),
		Lengths: base64.StdEncoding.EncodeToString(lengths),
	})
	if err != nil {
		panic(err) // plain numbers and strings always encode
	}
	return append(b, '\n')
}

// ParseManifest reads the canonical form and nothing else: an unknown field, a
// number out of range or another spelling of the same manifest is an error.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifestSize {
		return nil, fmt.Errorf("parse manifest: %d bytes, more than the limit of %d", len(b), MaxManifestSize)
	}
	var j manifestJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	if j.Version != Version {
		return nil, fmt.Errorf("parse manifest: version %d, this recast reads %d", j.Version, Version)
	}
	if j.Size <= 0 || j.Size > MaxImageSize {
		return nil, fmt.Errorf("parse manifest: size %d is outside 1 to %d", j.Size, int64(MaxImageSize))
	}
	if j.ChunkSize != ChunkSize {
		return nil, fmt.Errorf("parse manifest: chunkSize %d, want %d", j.ChunkSize, ChunkSize)
	}
	if j.BlockSize != 512 && j.BlockSize != 4096 {
		return nil, fmt.Errorf("parse manifest: blockSize %d, want 512 or 4096", j.BlockSize)
	}
	m := &Manifest{
		Size: j.Size, Digest: j.Digest, BlockSize: j.BlockSize,
		Pack: j.Pack, PackSize: j.PackSize, Layout: j.Layout,
	}
	if err := m.Layout.check(j.Size); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	n := NumChunks(j.Size)
	sums, err := base64.StdEncoding.DecodeString(j.Sums)
	if err != nil {
		return nil, fmt.Errorf("parse manifest: sums: %w", err)
	}
	lengths, err := base64.StdEncoding.DecodeString(j.Lengths)
	if err != nil {
		return nil, fmt.Errorf("parse manifest: lengths: %w", err)
	}
	if len(sums) != n*sha256.Size || len(lengths) != n*4 {
		return nil, fmt.Errorf("parse manifest: %d bytes of sums and %d of lengths, want %d and %d for %d chunks",
			len(sums), len(lengths), n*sha256.Size, n*4, n)
	}
	m.Chunks = make([]Chunk, n)
	var offset int64
	for i := range m.Chunks {
		c := &m.Chunks[i]
		c.Sum = Digest(sums[i*sha256.Size:])
		length := binary.LittleEndian.Uint32(lengths[i*4:])
		if length == 0 || length > MaxFrameSize {
			return nil, fmt.Errorf("parse manifest: frame %d is %d bytes long, want 1 to %d", i, length, MaxFrameSize)
		}
		c.Offset, c.Length = offset, int(length)
		c.Hole = c.Sum == zeroSum(m.ChunkLen(i))
		offset += int64(length)
	}
	if offset != j.PackSize {
		return nil, fmt.Errorf("parse manifest: packSize %d, but the frames add up to %d", j.PackSize, offset)
	}
	if !bytes.Equal(m.Encode(), b) {
		return nil, fmt.Errorf("parse manifest: not in canonical form")
	}
	return m, nil
}

var fullZeroSum = sync.OnceValue(func() Digest { return sha256.Sum256(make([]byte, ChunkSize)) })

// zeroSum is the sum of n zero bytes, n at most ChunkSize.
func zeroSum(n int) Digest {
	if n == ChunkSize {
		return fullZeroSum()
	}
	return sha256.Sum256(make([]byte, n))
}
