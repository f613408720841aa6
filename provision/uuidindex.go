package provision

import (
	"slices"
	"strings"
	"sync"

	"recast/inventory"
)

// uuidIndex finds the machines that say a UUID, so that a claim does not look at
// every machine there is.
type uuidIndex struct {
	mu     sync.RWMutex
	byUUID map[string][]string // in lower case; names in order
}

func (x *uuidIndex) who(uuid string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.byUUID[strings.ToLower(uuid)])
}

// uuidsOf a machine are those it says: in its inventory, and in the claim under way.
func uuidsOf(s State) (out [2]string) {
	if f := s.Status.Facts; f != nil {
		out[0] = strings.ToLower(f.SystemVendor.UUID)
	}
	if in := s.Intent; in != nil && in.Live && in.Claim != nil {
		out[1] = strings.ToLower(in.Claim.UUID)
	}
	return out
}

// moved follows one machine from state to state.
func (x *uuidIndex) moved(name string, before, after State) {
	was, now := uuidsOf(before), uuidsOf(after)
	if was == now {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, uuid := range was {
		if at, ok := slices.BinarySearch(x.byUUID[uuid], name); ok {
			if x.byUUID[uuid] = slices.Delete(x.byUUID[uuid], at, at+1); len(x.byUUID[uuid]) == 0 {
				delete(x.byUUID, uuid)
			}
		}
	}
	for _, uuid := range now {
		if at, ok := slices.BinarySearch(x.byUUID[uuid], name); !ok && inventory.UsableUUID(uuid) {
			x.byUUID[uuid] = slices.Insert(x.byUUID[uuid], at, name)
		}
	}
}
