package provision

import (
	"strings"
	"testing"

	"recast/bmc"
	"recast/inventory"
)

// TestALookThatSeesOtherDataTakesTheRecordBack: read back once is not what the
// ramdisk saw since.
func TestALookThatSeesOtherDataTakesTheRecordBack(t *testing.T) {
	id := disk("S1")
	seen := inventory.DiskFacts{Name: id.Name, Serial: id.Serial, Size: id.Size, LogicalBlockSize: id.LogicalBlockSize}
	foreign, blank, ours := seen, seen, seen
	foreign.Holds = "ntfs"
	ours.Holds, ours.Recast = "gpt, 4 partitions", &inventory.Marker{Machine: "m1", Generation: genA}
	for _, c := range []struct {
		name  string
		disks []inventory.DiskFacts
		want  string
	}{
		{"foreign", []inventory.DiskFacts{foreign}, "holds ntfs"},
		{"blank", []inventory.DiskFacts{blank}, "is blank"},
		{"not there", nil, ""},
		{"ours", []inventory.DiskFacts{ours}, ""},
	} {
		s := newStory()
		s.state.Status = Status{Machine: "m1", Phase: Active, Running: genA, RunningRendered: rendA, RunningWrite: "e.1", Disk: &id,
			Evidence: Evidence{Level: inventory.E3, Generation: genA}, Health: Healthy}
		s.must(t, Started{Purpose: PurposeInspect, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"})
		for _, a := range []Action{ActOff, ActArm, ActOn} {
			s.must(t, BMCDone{Action: a})
		}
		s.must(t, BootServed{})
		s.must(t, Claimed{Claim: ClaimState{BootID: "b1", Until: s.now.Add(LeaseTime)}})
		s.must(t, Inspected{Facts: inventory.Facts{Disks: c.disks}, Decision: DiskDecision{Verdict: DiskLook}})
		st := s.state.Status
		if c.want == "" {
			if st.Phase != Active || st.Running != genA || st.Evidence.Level != inventory.E3 {
				t.Errorf("%s: %s, %s, %+v", c.name, st.Phase, st.Running, st.Evidence)
			}
			continue
		}
		sync, why := synced(st, Wanted{}, true, t0)
		if st.Phase == Active || st.Running != "" || sync != OutOfSync || !strings.Contains(why, c.want) || !strings.Contains(st.Evidence.Detail, c.want) {
			t.Errorf("%s: %s, %q, %s: %s, %+v", c.name, st.Phase, st.Running, sync, why, st.Evidence)
		}
	}
}

func TestAMachineThatIsSwitchedOffIsNotHealthy(t *testing.T) {
	st := Status{Machine: "m1", Phase: Active, Health: Healthy}
	off := powered(st, "off", "off", "ann")
	if off.Health != Suspended || off.NextAction != "switched off by ann: recast power on m1" {
		t.Errorf("%s, next %q", off.Health, off.NextAction)
	}
	if x := explain(suspects{View: View{Name: "m1", Machine: &inventory.Machine{}, Group: "g", Sync: InSync, Status: off}}, t0); x.Missing == "" || x.Next != off.NextAction {
		t.Errorf("explain: missing %q, next %q", x.Missing, x.Next)
	}
	if again := powered(off, "status", "off", "bob"); again.Health != Suspended || again.NextAction != off.NextAction {
		t.Errorf("asked again: %s, next %q", again.Health, again.NextAction)
	}
	if seen := powered(st, "status", "off", "ann"); seen.Health != Missing || seen.NextAction == "" {
		t.Errorf("seen off: %s, next %q", seen.Health, seen.NextAction)
	}
	if on := powered(off, "on", "on", "ann"); on.Health != HealthUnknown || on.NextAction != "" {
		t.Errorf("switched on: %s, next %q", on.Health, on.NextAction)
	}
}

func TestAPowerOffIsRecorded(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	token, said := s.written(1, "m1")
	if err := s.Booted(t.Context(), token, said); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Active, StepNone)
	if _, err := s.Power(t.Context(), "m1", "ann", "off", false); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if v, _ := s.View("m1"); v.Status.Health != Suspended || v.Status.Power != "off" {
		t.Errorf("after a restart it is %s, power %s", v.Status.Health, v.Status.Power)
	}
	said.BootID = "os2"
	if err := s.Booted(t.Context(), token, said); err != nil {
		t.Fatal(err)
	}
	if v, _ := s.View("m1"); v.Status.Health != Healthy || v.Status.NextAction != "" {
		t.Errorf("it reported and is %s, next %q", v.Status.Health, v.Status.NextAction)
	}
}

// Who reads the timeline later must not take for done what an operator only asked for.
func TestATimelineTellsWhatBecameOfAPowerCommand(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	fake := s.bmcs["10.9.0.1"]
	fake.SetFault(bmc.FaultUnreachable)
	if _, err := s.Power(t.Context(), "m1", "ann", "cycle", false); err == nil {
		t.Fatal("a BMC that is not there has cycled its machine")
	}
	if _, err := s.Power(t.Context(), "m1", "ann", "dance", false); err == nil || !strings.Contains(err.Error(), "want status, on, off or cycle") {
		t.Errorf("dance: %v", err)
	}
	var lines []string
	for _, l := range s.Timeline("m1") {
		if strings.HasPrefix(l.Text, "power ") {
			lines = append(lines, l.Kind+" "+l.Text)
		}
	}
	if len(lines) != 2 || lines[0] != "operator power cycle by ann" || !strings.HasPrefix(lines[1], "bmc power cycle: ") || !strings.Contains(lines[1], bmc.ErrUnreachable.Error()) {
		t.Errorf("%q", lines)
	}
}
