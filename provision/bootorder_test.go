package provision

import (
	"slices"
	"strings"
	"testing"

	"recast/inventory"
)

func TestAChangedBootOrderIsAFinding(t *testing.T) {
	for name, c := range map[string]struct{ left, seen, current, want string }{
		"as it was left":               {"03000000", "03000000", "0300", ""},
		"entries added behind":         {"03000000", "030000000500", "0300", ""},
		"the rest in another order":    {"070002000000", "070000000200", "0700", ""},
		"ours is not first any more":   {"03000000", "00000300", "0000", "changed it from 0003,0000 to 0000,0003"},
		"ours is gone":                 {"03000000", "0000", "0000", "changed it from 0003,0000 to 0000"},
		"the network entry is gone":    {"03000000", "0300", "0300", "changed it from 0003,0000 to 0003"},
		"another entry was put before": {"0300", "05000300", "0500", "changed it from 0003 to 0005,0003"},
		"started by another":           {"03000000", "03000000", "0000", "started by 0000 and not by 0003"},
		"BIOS":                         {"", "", "", ""},
		"a system that cannot tell":    {"03000000", "", "", ""},
		"nonsense":                     {"03000000", "xyz", "0", ""},
	} {
		got := bootOrderFinding(c.left, c.seen, c.current)
		if !strings.Contains(got, c.want) || (c.want == "") != (got == "") || got != "" && !strings.HasPrefix(got, bootOrderPrefix) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestFirmwareThatForgetsIsShown: the entry that was refused, and the order that
// changed, stand in the machine's findings until they are not true any more.
func TestFirmwareThatForgetsIsShown(t *testing.T) {
	s := newStory()
	s.writing(t, false)
	s.must(t, Reported{Report: inventory.Report{Step: inventory.AgentDone, Erased: true, BootEntry: "write Boot0000: permission denied"}})
	if f := s.state.Status.Findings; len(f) != 1 || !strings.Contains(f[0], "permission denied") {
		t.Errorf("findings %q", f)
	}
	s.must(t, Aborted{By: "ann"})
	s.writing(t, false)
	s.must(t, Reported{Report: inventory.Report{Step: inventory.AgentDone, Erased: true, BootOrder: "03000000"}})
	if f := s.state.Status.Findings; len(f) != 0 {
		t.Errorf("a new write begins with %q", f)
	}
	run := func(order string) []string {
		s.must(t, Running{Report: inventory.BootReport{Generation: genA, Rendered: rendA, Write: s.state.Status.RunningWrite, BootID: order, BootOrder: order}})
		return s.state.Status.Findings
	}
	if f := run("00000300"); s.state.Status.Phase != Active || len(f) != 1 {
		t.Errorf("%s, findings %q", s.state.Status.Phase, f)
	}
	if f := run("03000000"); len(f) != 0 {
		t.Errorf("mended, and still %q", f)
	}
	x := explain(suspects{View: View{Name: "m1", Machine: &inventory.Machine{}, Group: "g", Sync: InSync, Status: Status{Phase: Active, Findings: run("00000300")}}}, t0)
	if len(x.Findings) != 1 {
		t.Errorf("explain shows %q", x.Findings)
	}
}

func TestABIOSIsToldToKeepItsBootOrder(t *testing.T) {
	for mode, want := range map[string]bool{"bios": true, "uefi": false} {
		s := newStory()
		s.writing(t, false)
		s.state.Status.Facts = &inventory.Facts{Boot: inventory.BootFacts{Mode: mode}}
		_, _, lines, err := Step(s.params, s.state, s.now, Reported{Report: inventory.Report{Step: inventory.AgentDone, Erased: true}})
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.ContainsFunc(lines, func(l TimelineEntry) bool { return strings.Contains(l.Text, "that of a BIOS cannot be set") }); got != want {
			t.Errorf("%s: said %v", mode, got)
		}
	}
}
