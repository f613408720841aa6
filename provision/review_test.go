package provision

import (
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// ownDisk is a disk of a machine, with what it says of itself.
func ownDisk(serial, holds, marker string) inventory.DiskFacts {
	d := inventory.DiskFacts{Name: "/dev/sda", Serial: serial, Size: 4 << 30, LogicalBlockSize: 512, Holds: holds}
	if marker != "" {
		d.Recast = &inventory.Marker{Machine: marker, Generation: genB, Rendered: rendA}
	}
	return d
}

// TestDiskIsErasedOnlyWithProof: an identity alone is no permission.
func TestDiskIsErasedOnlyWithProof(t *testing.T) {
	known := disk("S1")
	foreign := disk("S9")
	slot := inventory.DiskID{Name: "/dev/sda", ByPath: "pci-1", Size: 4 << 30, LogicalBlockSize: 512}
	inSlot := ownDisk("", "gpt, 3 partitions", "")
	inSlot.ByPath = "pci-1"
	const full = "gpt, 3 partitions"
	for name, c := range map[string]struct {
		known      *inventory.DiskID
		unfinished bool
		protected  bool
		intent     Intent
		seen       inventory.DiskFacts
		want       DiskVerdict
	}{
		"blank":                                     {nil, false, false, Intent{}, ownDisk("S1", "", ""), DiskWrite},
		"unknown and full":                          {nil, false, false, Intent{}, ownDisk("S1", full, ""), DiskAsk},
		"unknown, full and named":                   {nil, false, false, Intent{Erase: true}, ownDisk("S1", full, ""), DiskWrite},
		"ours and says so":                          {&known, false, false, Intent{}, ownDisk("S1", full, "m1"), DiskWrite},
		"ours, but written for another":             {&known, false, false, Intent{}, ownDisk("S1", full, "m2"), DiskAsk},
		"ours, then installed by somebody":          {&known, false, false, Intent{}, ownDisk("S1", full, ""), DiskAsk},
		"ours and unfinished":                       {&known, true, false, Intent{}, ownDisk("S1", "gpt, only its backup table is left", ""), DiskWrite},
		"unfinished, but written by another since":  {&known, true, false, Intent{}, ownDisk("S1", full, "m2"), DiskAsk},
		"another disk in the slot of an unfinished": {&slot, true, false, Intent{}, inSlot, DiskAsk},
		"another's marker on a disk without table":  {nil, false, false, Intent{}, ownDisk("S1", "", "m2"), DiskAsk},
		"named, but it was another disk": {nil, false, false,
			Intent{Erase: true, Consent: &Consent{Disk: foreign, Holds: full}}, ownDisk("S1", full, ""), DiskAsk},
		"named, but it holds something else now": {nil, false, false,
			Intent{Erase: true, Consent: &Consent{Disk: known, Holds: "blank data"}}, ownDisk("S1", full, ""), DiskAsk},
		"named, as it was seen": {nil, false, false,
			Intent{Erase: true, Consent: &Consent{Disk: known, Holds: full}}, ownDisk("S1", full, ""), DiskWrite},
		"an earlier attempt had it": {nil, false, false,
			Intent{Earlier: &known}, ownDisk("S1", "data without a known signature", ""), DiskWrite},
		"protected":           {&known, false, true, Intent{Erase: true}, ownDisk("S1", full, "m1"), DiskRefuse},
		"protected and blank": {nil, false, true, Intent{}, ownDisk("S1", "", ""), DiskWrite},
		"protected after the intent, before the first byte": {&known, false, true,
			Intent{Write: &WriteState{Disk: known, Attempt: 1}}, ownDisk("S1", full, "m1"), DiskRefuse},
		"protected after it was erased": {&known, true, true,
			Intent{Write: &WriteState{Disk: known, Attempt: 1, Erased: true}}, ownDisk("S1", "gpt, only its backup table is left", ""), DiskWrite},
	} {
		t.Run(name, func(t *testing.T) {
			c.intent.Purpose, c.intent.Generation, c.intent.Rendered = PurposeDeploy, genA, rendA
			d := decideDisk(diskQuestion{Machine: &inventory.Machine{Name: "m1", Protected: c.protected}, Intent: &c.intent,
				Attempt: 1, Known: c.known, Unfinished: c.unfinished, ImageSize: 1 << 30, BlockSize: 512, Volume: 1 << 20},
				inventory.Facts{Disks: []inventory.DiskFacts{c.seen}})
			if d.Verdict != c.want {
				t.Errorf("verdict %s (%s), want %s", d.Verdict, d.Reason, c.want)
			}
		})
	}
}

// drive a story without a transcript.
func (s *story) must(t *testing.T, evs ...Event) []Action {
	t.Helper()
	var last []Action
	for _, ev := range evs {
		next, actions, _, err := Step(s.params, s.state, s.now, ev)
		if err != nil {
			t.Fatal(err)
		}
		s.state, last = next, actions
	}
	return last
}

func (s *story) writing(t *testing.T, erase bool) {
	t.Helper()
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", Erase: erase, Plan: genB, By: "ann"},
		BMCDone{Action: ActOff}, BMCDone{Action: ActArm}, BMCDone{Action: ActOn}, BootServed{},
		Claimed{Claim: ClaimState{BootID: "b", Until: s.now.Add(LeaseTime)}},
		Inspected{Decision: DiskDecision{Verdict: DiskWrite, Disk: disk("S1"), Holds: "gpt"}})
}

// TestPermissionIsNotPossession: an erase that was permitted and never begun
// leaves the disk what it was, for the next plan to ask about.
func TestPermissionIsNotPossession(t *testing.T) {
	s := newStory()
	s.writing(t, true)
	s.must(t, Aborted{By: "ann"})
	if s.state.Status.Disk != nil || s.state.Status.Phase != Available {
		t.Fatalf("after an abort before the first byte: phase %s, disk %v", s.state.Status.Phase, s.state.Status.Disk)
	}
	s = newStory()
	s.writing(t, true)
	s.must(t, Reported{Report: inventory.Report{Step: inventory.AgentWriting, Erased: true}})
	if s.state.Status.Disk == nil || !s.state.Status.Unfinished {
		t.Fatal("an erased disk is not recorded as ours and unfinished")
	}
	s.must(t, Reported{Report: inventory.Report{Step: inventory.AgentDone, Erased: true}})
	if s.state.Status.Unfinished {
		t.Fatal("a disk that was written and read back counts as unfinished")
	}
}

// TestAnotherTurnKeepsTheDiskThatWasNamed: a consent is spent on the disk it met.
func TestAnotherTurnKeepsTheDiskThatWasNamed(t *testing.T) {
	s := newStory()
	s.params.Attempts = 1
	s.writing(t, true)
	s.must(t, Reported{Report: inventory.Report{Step: inventory.AgentFailed, Error: "x"}})
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", Erase: true, Plan: genB, By: "ann"})
	c := s.state.Intent.Consent
	if c == nil || c.Disk != disk("S1") || c.Holds != "gpt" {
		t.Fatalf("consent %+v", c)
	}
}

// TestHoldStopsPower: a machine held in the middle of an attempt is not switched.
func TestHoldStopsPower(t *testing.T) {
	hold := &Hold{Owner: "ann", Reason: "hands in the machine"}
	s := newStory()
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"}, BMCDone{Action: ActOff})
	s.state.Status.Hold = hold
	if do := s.must(t, BMCDone{Action: ActArm}); len(do) != 1 || do[0] != ActClear || Busy(s.state.Status.Phase) || s.state.Intent.Live {
		t.Errorf("held while arming: %v, %s", do, s.state.Status.Phase)
	}
	s = newStory()
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"},
		BMCDone{Action: ActOff}, BMCDone{Action: ActArm}, BMCDone{Action: ActOn})
	s.state.Status.Hold = hold
	s.now = s.state.Status.Deadline
	if do := s.must(t, Ticked{}); len(do) != 1 || do[0] != ActClear || Busy(s.state.Status.Phase) {
		t.Errorf("held while booting: %v, %s", do, s.state.Status.Phase)
	}
	if !strings.Contains(s.state.Status.NextAction, "release") {
		t.Errorf("next action %q", s.state.Status.NextAction)
	}
}

// TestStrangersScriptRequestStopsNoPowerOn: a spoofed request while the machine
// is armed must not swallow what comes next.
func TestStrangersScriptRequestStopsNoPowerOn(t *testing.T) {
	s := newStory()
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"}, BMCDone{Action: ActOff}, BootServed{})
	if do := s.must(t, BMCDone{Action: ActArm}); len(do) != 1 || do[0] != ActOn {
		t.Errorf("after arming: %v in %s", do, s.state.Status.Step)
	}
}

// TestLostBMCWaitsForTheWholeLease: the BMC leaves the declaration while its
// machine is being stopped; the earlier boot may still write.
func TestLostBMCWaitsForTheWholeLease(t *testing.T) {
	s := newStory()
	s.writing(t, false)
	s.must(t, Renewed{Until: s.now.Add(time.Hour)})
	s.now = s.state.Status.Deadline
	s.must(t, Ticked{}) // not a word: it may have restarted
	s.now = s.state.Status.Deadline
	s.must(t, Ticked{}) // nothing came: the next attempt switches it off
	if s.state.Status.Step != StepStopping {
		t.Fatal(s.state.Status.Step)
	}
	s.params.HasBMC = false
	fence := s.state.Intent.Fence
	s.now = s.state.Status.Deadline
	s.must(t, Ticked{})
	if s.state.Status.Step != StepStopping || s.state.Intent.Fence != fence {
		t.Fatalf("a newer fence was given while the lease runs: %s", s.state.Status.Step)
	}
	s.now = s.state.Intent.Claim.Until.Add(LeaseGrace)
	s.must(t, Ticked{})
	if s.state.Status.Step != StepAwaitingPerson || s.state.Intent.Fence != fence+1 {
		t.Fatalf("after the lease: %s", s.state.Status.Step)
	}
}

// TestDiskNameIsNoIdentity: a restart may call the same disk sdb.
func TestDiskNameIsNoIdentity(t *testing.T) {
	s := newStory()
	s.writing(t, false)
	moved := disk("S1")
	moved.Name = "/dev/sdb"
	s.must(t, Claimed{Claim: ClaimState{BootID: "c", Until: s.now.Add(LeaseTime)}, Resume: true},
		Inspected{Decision: DiskDecision{Verdict: DiskWrite, Disk: moved}})
	if s.state.Status.Step != StepWriting {
		t.Fatal(s.state.Status.LastError)
	}
}
