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

// TestAHeldBackMachineBeginsAgainWhenReleased: nobody has to ask for it twice.
func TestAHeldBackMachineBeginsAgainWhenReleased(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	first := s.await("m1", Deploying, StepBooting).Status.Since
	if err := s.Hold(t.Context(), "m1", "bob", "memory test", 0); err != nil {
		t.Fatal(err)
	}
	v := s.await("m1", Available, StepNone)
	if x, err := s.Explain(t.Context(), "m1"); err != nil || x.Missing != "held by bob: memory test" || x.Next != "recast release m1" {
		t.Errorf("missing %q, next %q, %v", x.Missing, x.Next, err)
	}
	s.restart() // which forgets nothing
	s.schedule(t.Context())
	if v, _ = s.View("m1"); Busy(v.Status.Phase) {
		t.Fatalf("it is %s although it is held", v.Status.Phase)
	}
	if err := s.Release(t.Context(), "m1", "bob"); err != nil {
		t.Fatal(err)
	}
	v = s.await("m1", Deploying, StepBooting)
	if !v.Status.Since.After(first) || v.Status.LastError != "" {
		t.Errorf("%+v", v.Status)
	}
}

// TestTakingAFailedChangeBackWritesNothing: it failed before it touched the disk.
func TestTakingAFailedChangeBackWritesNothing(t *testing.T) {
	s := newSite(t, 1)
	y := s.yaml(true)
	s.apply(y, "m1")
	token, said := s.written(1, "m1")
	if err := s.Booted(t.Context(), token, said); err != nil {
		t.Fatal(err)
	}
	first := s.await("m1", Active, StepNone).Status
	changed := strings.Replace(y, "hostname: x", "hostname: y", 1)
	s.apply(changed)
	s.await("m1", Deploying, StepBooting)
	if err := s.handle(t.Context(), s.machine("m1"), Suspected{Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Failed, StepNone)
	if err := s.Release(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(y)}}, nil)
	if err != nil || len(p.Entries) != 1 || p.Entries[0].Kind != EntryObserve || p.Entries[0].WriteBytes != 0 {
		t.Fatalf("%+v, %v", p.Entries, err)
	}
	s.apply(y)
	now := s.await("m1", Active, StepNone)
	if now.Status.Running != first.Running || now.Sync != InSync || now.Status.LastError != "" {
		t.Errorf("%+v", now)
	}
	if p, err = s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(y)}}, nil); err != nil || !p.Empty() {
		t.Errorf("not done: %+v, %v", p.Entries, err)
	}
	// Wanted once more, the change begins anew.
	s.apply(changed)
	s.await("m1", Deploying, StepBooting)
}
