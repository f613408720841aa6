package pack

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
)

// Proof is all that must be known of an image to prove regions of a disk: its partition
// table, and the sum of each piece of them. It holds no byte of the image, so that where
// it came nothing else has to.
type Proof struct {
	Image  Digest `json:"image"`
	Size   int64  `json:"size"`
	Layout Layout `json:"layout"`
	// Regions are where they begin and end in the image, Sums those of their pieces, 32
	// bytes each.
	Regions [][2]int64 `json:"regions"`
	Sums    []byte     `json:"sums"`
}

// NewProof reads of the image only the pieces that have no sum of their own.
func NewProof(m *Manifest, image io.ReaderAt, regions [][2]int64) (*Proof, error) {
	p := &Proof{Image: m.Digest, Size: m.Size, Layout: m.Layout, Regions: regions}
	for _, r := range regions {
		if r[0] < 0 || r[1] <= r[0] || r[1] > m.Size {
			return nil, fmt.Errorf("make a proof: bytes %d to %d do not lie in the image", r[0], r[1])
		}
		for _, q := range m.Pieces(r[0], r[1]) {
			sum := m.Chunks[q.Chunk].Sum
			if !q.Whole {
				b := make([]byte, q.End-q.Start)
				if _, err := image.ReadAt(b, q.Start); err != nil {
					return nil, fmt.Errorf("make a proof: %w", err)
				}
				sum = sha256.Sum256(b)
			}
			p.Sums = append(p.Sums, sum[:]...)
		}
	}
	return p, nil
}

// ParseProof reads one and checks that it has a sum for each piece.
func ParseProof(b []byte) (*Proof, error) {
	p := &Proof{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("parse proof: %w", err)
	}
	n := 0
	for _, r := range p.Regions {
		if r[0] < 0 || r[1] <= r[0] || r[1] > p.Size {
			return nil, fmt.Errorf("parse proof: bytes %d to %d do not lie in the image", r[0], r[1])
		}
		n += len(pieces(p.Size, r[0], r[1]))
	}
	if len(p.Sums) != n*sha256.Size {
		return nil, fmt.Errorf("parse proof: %d bytes of sums for %d pieces", len(p.Sums), n)
	}
	return p, nil
}

// Proven is a piece with its sum.
type Proven struct {
	Piece
	Region int
	Sum    Digest
}

// Pieces of all regions, in order.
func (p *Proof) Pieces() (out []Proven) {
	sums := p.Sums
	for i, r := range p.Regions {
		for _, q := range pieces(p.Size, r[0], r[1]) {
			out = append(out, Proven{q, i, Digest(sums)})
			sums = sums[sha256.Size:]
		}
	}
	return out
}
