package provision

import (
	"slices"
	"strings"
	"testing"

	"recast/inventory"
)

// TestWhatIsBegunIsFinished: whatever is applied while a disk is half written.
func TestWhatIsBegunIsFinished(t *testing.T) {
	const machine = "---\napiVersion: recast/v1\nkind: Machine\n"
	for name, c := range map[string]struct {
		change func(string) string
		told   bool
		synced bool // once it is declared as before again
	}{
		"protected": {func(y string) string { return strings.Replace(y, "  uuid:", "  protected: true\n  uuid:", 1) }, true, true},
		"removed":   {func(y string) string { before, _, _ := strings.Cut(y, machine); return before }, true, true},
		"changed":   {func(y string) string { return strings.Replace(y, "network: n}]", "network: n, ip: 10.0.0.77}]", 1) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 1)
			s.apply(s.yaml(true), "m1")
			s.await("m1", Deploying, StepBooting)
			agent, o, err := s.boot(1, "b1", testUUID(1))
			if err != nil || o.Kind != inventory.OrderWrite {
				t.Fatalf("order %+v, %v", o, err)
			}
			report := inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentWriting, Erased: true, Total: 1}
			if _, err := s.Report(t.Context(), agent, report); err != nil {
				t.Fatal(err)
			}
			other := c.change(s.yaml(true))
			p := s.planOf(other)
			if told := slices.ContainsFunc(p.Changes, func(l string) bool { return strings.Contains(l, "m1 is being written") }); told != c.told {
				t.Errorf("the plan says %q", p.Changes)
			}
			if _, err := s.Apply(t.Context(), p.Digest, "ann"); err != nil {
				t.Fatal(err)
			}
			s.restart()
			if r, err := s.Report(t.Context(), agent, report); err != nil || r.Abort {
				t.Fatalf("report: %+v, %v", r, err)
			}
			volume, err := s.ConfigVolume(t.Context(), agent)
			if err != nil || inventory.DigestOf(volume) != o.Job.Config.Digest {
				t.Fatalf("the volume of the job cannot be had any more: %v", err)
			}
			report.Step, report.ReadBack = inventory.AgentDone, s.image
			if r, err := s.Report(t.Context(), agent, report); err != nil || r.Abort {
				t.Fatalf("report: %+v, %v", r, err)
			}
			token, said := reporter(t, volume)
			s.booted(token, said, "os1")
			if !c.synced { // its turn for the new declaration comes by itself
				if v := s.await("m1", Deploying, StepBooting); v.Status.WantedRendered == said.Rendered {
					t.Error("it is written with the old declaration again")
				}
				return
			}
			s.await("m1", Active, StepNone)
			s.apply(s.yaml(true))
			if v, _ := s.View("m1"); v.Sync != InSync {
				t.Errorf("declared as before, it is %s: %s", v.Sync, v.SyncWhy)
			}
		})
	}
}

// TestAnAbortThatCrossesTheFirstByteLeavesNoHalfDiskInSilence.
func TestAnAbortThatCrossesTheFirstByteLeavesNoHalfDiskInSilence(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	agent, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil || o.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Available, StepNone)
	report := inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentWriting, Erased: true, Total: 1}
	if r, err := s.Report(t.Context(), agent, report); err != nil || !r.Abort {
		t.Fatalf("report: %+v, %v", r, err)
	}
	v := s.await("m1", Failed, StepNone)
	if !v.Status.Unfinished || !strings.Contains(v.Status.LastError, "aborted by ann after its disk was erased") || v.Status.NextAction == "" {
		t.Errorf("unfinished %t, %q, next %q", v.Status.Unfinished, v.Status.LastError, v.Status.NextAction)
	}
}

// TestARetryStopsTheAgentThatWasAborted: without a BMC the earlier boot lives on
// until its lease ends, under the fence that the new intent begins with.
func TestARetryStopsTheAgentThatWasAborted(t *testing.T) {
	s := newSite(t, 1)
	y := s.yaml(true)
	before, after, _ := strings.Cut(y, "  bmc:")
	_, after, _ = strings.Cut(after, "\n")
	s.apply(before+after, "m1")
	s.await("m1", Deploying, StepAwaitingPerson)
	agent, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil || o.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.Retry(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	until := s.await("m1", Deploying, StepStopping).Status.Deadline
	report := inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentWriting, Erased: true, Total: 1}
	if r, _ := s.Report(t.Context(), agent, report); !r.Abort {
		t.Errorf("it may go on: %+v", r)
	}
	if v := s.await("m1", Deploying, StepStopping); !v.Status.Deadline.Equal(until) {
		t.Errorf("its lease was prolonged, from %s to %s", until, v.Status.Deadline)
	}
}

// TestASecretStaysForWhatIsBegun: no declaration needs it any more, but the
// machine that is being written does.
func TestASecretStaysForWhatIsBegun(t *testing.T) {
	s := newSite(t, 1)
	if _, err := s.SetSecret(t.Context(), "pw", []byte("sesame"), "ann"); err != nil {
		t.Fatal(err)
	}
	s.apply(strings.Replace(s.yaml(true), "hostname: x", "password: ${secret.pw}", 1), "m1")
	s.await("m1", Deploying, StepBooting)
	agent, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil || o.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	s.apply(s.yaml(true))
	if err := s.RemoveSecret(t.Context(), "pw", "ann"); err == nil || !strings.Contains(err.Error(), "the attempt under way on m1 needs it") {
		t.Errorf("remove: %v", err)
	}
	if volume, err := s.ConfigVolume(t.Context(), agent); err != nil || inventory.DigestOf(volume) != o.Job.Config.Digest {
		t.Errorf("the volume of the job cannot be had any more: %v", err)
	}
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSecret(t.Context(), "pw", "ann"); err != nil {
		t.Error(err)
	}
}
