package image

import (
	"encoding/json"
	"fmt"

	"recast/inventory"
	"recast/pack"
)

// Proof is what proves regions of a disk that holds the image, as JSON; see pack.Proof.
func (s *Store) Proof(d inventory.Digest, regions []inventory.Region) ([]byte, error) {
	m, err := s.Manifest(d)
	if err != nil {
		return nil, fmt.Errorf("make a proof: %w", err)
	}
	r, err := s.Reader(d)
	if err != nil {
		return nil, fmt.Errorf("make a proof: %w", err)
	}
	defer r.Close()
	var bounds [][2]int64
	for _, g := range regions {
		bounds = append(bounds, [2]int64{g.Start, g.End})
	}
	p, err := pack.NewProof(m, r, bounds)
	if err != nil {
		return nil, err
	}
	return json.Marshal(p)
}
