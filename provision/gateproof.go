package provision

import (
	"encoding/json"
	"fmt"

	"recast/inventory"
)

// maxProof is how long a proof may be that travels with a job: the sums of some 70 GiB.
const maxProof = 3 << 20

// maxProofs are kept, of which there are few at a time: what is here does not need the
// image's files.
const maxProofs = 16

// gateProof is that of a gate's regions; nil where there is none, and the ramdisk has to
// fetch what it needs to know.
func (e *Engine) gateProof(regions []inventory.Region, image inventory.Digest) json.RawMessage {
	// By image and regions, which a BIOS has more of.
	p, err := e.proofs.get(fmt.Sprint(image, regions), func() (json.RawMessage, error) {
		p, err := e.Images.Proof(image, regions)
		if len(p) > maxProof {
			p = nil
		}
		return p, err
	})
	if err != nil {
		e.Log.Warn("no sums of the image travel with its gate's jobs", "image", image, "err", err)
		return nil
	}
	return p
}
