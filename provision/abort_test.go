package provision

import (
	"strings"
	"testing"

	"recast/inventory"
)

// written brings a machine that boots to its disk written and read back; what its
// system will say of itself is the answer.
func (s *site) written(i int, name string) (token string, said inventory.BootReport) {
	s.t.Helper()
	s.await(name, Deploying, StepBooting)
	agent, o, err := s.boot(i, "b1", testUUID(i))
	if err != nil || o.Kind != inventory.OrderWrite {
		s.t.Fatalf("order %+v, %v", o, err)
	}
	volume, err := s.ConfigVolume(s.t.Context(), agent)
	if err != nil {
		s.t.Fatal(err)
	}
	r := inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentDone, Erased: true, Total: 1, ReadBack: s.image}
	if a, err := s.Report(s.t.Context(), agent, r); err != nil || a.Abort {
		s.t.Fatalf("report: %+v, %v", a, err)
	}
	s.await(name, Deploying, StepStarting)
	token, said = reporter(s.t, volume)
	said.BootID, said.Hostname = "os", name
	return token, said
}

// TestAnAbortedCanaryReleasesNobody: it was written and read back, and nobody saw
// it run.
func TestAnAbortedCanaryReleasesNobody(t *testing.T) {
	s := newSite(t, 2)
	s.apply(strings.Replace(s.yaml(true), "maxFailures: 100%", "maxFailures: 100%, canary: 1", 1), "m1", "m2")
	token, said := s.written(1, "m1")
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	waits := func(when string) {
		t.Helper()
		s.schedule(t.Context())
		v, _ := s.View("m2")
		x, err := s.Explain(t.Context(), "m2")
		if err != nil || Busy(v.Status.Phase) || x.Missing != "stopped: ann aborted m1" || !strings.Contains(x.Next, "recast retry m1") {
			t.Errorf("%s m2 is %s, missing %q, next %q, %v", when, v.Status.Phase, x.Missing, x.Next, err)
		}
	}
	v, _ := s.View("m1")
	if v.Status.Phase != Failed || v.Sync == InSync {
		t.Errorf("not seen running, m1 is %s, %s", v.Status.Phase, v.Sync)
	}
	x, err := s.Explain(t.Context(), "m1")
	if err != nil || !strings.Contains(x.Missing, "not seen running") || !strings.Contains(x.Next, "recast retry m1") {
		t.Errorf("explain m1: %q, next %q, %v", x.Missing, x.Next, err)
	}
	waits("after the abort")

	// A look at it makes nothing active that was not seen to run.
	if err := s.Look(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	waits("while it is looked at,")
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	if v, _ := s.View("m1"); v.Status.Phase == Active {
		t.Error("a look made m1 active")
	}
	waits("after a look")

	if err := s.Booted(t.Context(), token, said); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Active, StepNone)
	waits("though it arrived,")

	if err := s.Retry(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m2", Deploying, StepBooting)
	if v, _ := s.View("m1"); v.Status.Phase != Active {
		t.Errorf("m1 had arrived and is %s", v.Status.Phase)
	}
}
