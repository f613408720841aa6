package provision

import (
	"testing"

	"recast/inventory"
)

// TestAPlanSaysThatItGoesBack: what a Group is pinned to is nothing new.
func TestAPlanSaysThatItGoesBack(t *testing.T) {
	st := Status{Phase: Active, Running: "sha256:b"}
	for pinned, want := range map[inventory.Digest]string{"": "a new generation", "sha256:a": "back to a kept generation"} {
		w := Wanted{Group: &inventory.Group{Generation: pinned}, Generation: inventory.Generation{Digest: "sha256:a"}}
		if got := planWhy(st, w); got != want {
			t.Errorf("pinned to %q: %q, want %q", pinned, got, want)
		}
	}
}
