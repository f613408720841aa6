package provision

import (
	"fmt"
	"strings"
	"testing"
)

// TestATwinsHoldNamesWhoseUUIDItIsAndTheCure, on both machines.
func TestATwinsHoldNamesWhoseUUIDItIsAndTheCure(t *testing.T) {
	s := newSite(t, 2)
	s.apply(strings.Replace(s.yaml(true), fmt.Sprintf("  uuid: %q\n", testUUID(2)), "", 1), "m1", "m2")
	s.await("m1", Deploying, StepBooting)
	s.await("m2", Deploying, StepBooting)
	if _, _, err := s.boot(1, "b1", testUUID(1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.boot(2, "b2", testUUID(1)); err == nil {
		t.Fatal("m2 was let in with the UUID of m1")
	}
	for _, name := range []string{"m1", "m2"} {
		s.await(name, Failed, StepNone)
		x, err := s.Explain(t.Context(), name)
		reason := "m2 says the UUID " + testUUID(1) + ", which is the declared one of m1"
		next := "give m2 a UUID of its own in its firmware, or correct the uuid of m1 in its file and apply; if they are two cards of one machine, declare it once, then: recast release " + name
		if err != nil || !strings.Contains(x.Missing, reason) || !strings.Contains(x.Next, next) {
			t.Errorf("%s: missing %q, next %q, %v", name, x.Missing, x.Next, err)
		}
	}
}
