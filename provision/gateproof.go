package provision

import (
	"encoding/json"
	"fmt"
	"sync"

	"recast/inventory"
)

// maxProof is how long a proof may be that travels with a job: the sums of some 70 GiB.
const maxProof = 3 << 20

// proofs that are asked for, of which there are few at a time. What is
// here does not need the image's files.
type proofs struct {
	mu   sync.Mutex
	made map[string]json.RawMessage // by image and regions, which a BIOS has more of
}

// maxProofs are kept.
const maxProofs = 16

// gateProof is that of a gate's regions; nil where there is none, and the ramdisk has to
// fetch what it needs to know.
func (e *Engine) gateProof(g *Gate, image inventory.Digest) json.RawMessage {
	e.proofs.mu.Lock()
	defer e.proofs.mu.Unlock()
	key := fmt.Sprint(image, g.Regions)
	if p, ok := e.proofs.made[key]; ok {
		return p
	}
	p, err := e.Images.Proof(image, g.Regions)
	if err != nil {
		e.Log.Warn("no sums of the image travel with its gate's jobs", "image", image, "err", err)
		return nil
	}
	if len(p) > maxProof {
		p = nil
	}
	if e.proofs.made == nil || len(e.proofs.made) >= maxProofs {
		e.proofs.made = map[string]json.RawMessage{}
	}
	e.proofs.made[key] = p
	return p
}
