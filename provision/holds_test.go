package provision

import (
	"strings"
	"testing"

	"recast/inventory"
)

// TestARedeployNamesTheGenerationOnTheDisk: in its timeline, and in a plan made
// while it is under way.
func TestARedeployNamesTheGenerationOnTheDisk(t *testing.T) {
	s := newSite(t, 1)
	y := s.yaml(true)
	s.apply(y, "m1")
	token, said := s.written(1, "m1")
	if err := s.Booted(t.Context(), token, said); err != nil {
		t.Fatal(err)
	}
	first := s.await("m1", Active, StepNone).Status
	s.apply(strings.Replace(y, "hostname: x", "hostname: y", 1))
	second := s.await("m1", Deploying, StepBooting).Status
	reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b2"}, testAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	facts := testFacts(1, testUUID(1))
	facts.Disks[0].Holds = "gpt, 4 partitions"
	facts.Disks[0].Recast = &inventory.Marker{Machine: "m1", Generation: first.Running, Rendered: first.RunningRendered, Attempt: 1, Write: first.RunningWrite}
	if o, err := s.Inventory(t.Context(), reply.Token, facts); err != nil || o.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	holds := "generation " + first.Running.Short() + ", written by recast in attempt 1"
	found := false
	for _, l := range s.Timeline("m1") {
		found = found || l.Text == "may erase disk serial D1 (holding "+holds+")"
	}
	if !found {
		t.Errorf("no line says what is erased: %+v", s.Timeline("m1"))
	}
	p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(strings.Replace(y, "hostname: x", "hostname: z", 1))}}, nil)
	if err != nil || len(p.Entries) != 1 {
		t.Fatalf("%+v, %v", p.Entries, err)
	}
	if e := p.Entries[0]; e.Holds != holds || e.Why != "generation "+second.Wanted.Short()+" is being written" {
		t.Errorf("holds %q, why %q", e.Holds, e.Why)
	}
}
