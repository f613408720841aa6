package provision

import (
	"testing"
	"time"

	"recast/inventory"
)

// TestAFloodOfPacketsPushesOutNoDecision: what is durable stays in sight, and
// both kinds are bounded.
func TestAFloodOfPacketsPushesOutNoDecision(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	decided := func() (n int) {
		for _, l := range s.Timeline("m1") {
			if l.Seq > 0 {
				n++
			}
		}
		return n
	}
	before := decided()
	for i := range 3 * (keepSeen + keepDurable) {
		s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1), Time: s.Now().Add(time.Duration(i))})
	}
	lines := s.Timeline("m1")
	if n := decided(); n != before || n == 0 || len(lines) != n+keepSeen {
		t.Errorf("%d of %d decisions are left in %d lines", n, before, len(lines))
	}
	for i := 1; i < len(lines); i++ {
		if lines[i].Time.Before(lines[i-1].Time) {
			t.Fatalf("line %d is out of order", i)
		}
	}
	for i := range keepDurable + 50 {
		verb := []func(){
			func() { _ = s.Hold(t.Context(), "m1", "ann", "look", 0) },
			func() { _ = s.Release(t.Context(), "m1", "ann") },
		}[i%2]
		verb()
	}
	if n := decided(); n != keepDurable {
		t.Errorf("%d durable lines are kept, want %d", n, keepDurable)
	}
}
