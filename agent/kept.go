package agent

import (
	"sync"

	"recast/inventory"
	"recast/pack"
)

// keptChunks bounds what a verdict leaves to the repair behind it, in MiB of memory.
const keptChunks = 16

// kept is what was fetched of an image to prove a disk. A repair is a job of its own,
// behind the verdict's: what few blocks it needs are here, and not fetched again.
type kept struct {
	mu       sync.Mutex // over all, and the fetch of the manifest
	of       inventory.Digest
	manifest *pack.Manifest
	chunks   map[int][]byte
}

// begin forgets what is of another image; manifest is its manifest's digest.
func (k *kept) begin(manifest inventory.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of != manifest {
		k.of, k.manifest, k.chunks = manifest, nil, nil
	}
}

// chunk is nil where it is not kept. Nobody changes it.
func (k *kept) chunk(i int) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chunks[i]
}

func (k *kept) keep(i int, data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chunks == nil {
		k.chunks = map[int][]byte{}
	}
	if len(k.chunks) < keptChunks {
		k.chunks[i] = data
	}
}
