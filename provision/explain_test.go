package provision

import (
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// Whoever asks why a machine does not move is told what ends that.
func TestEveryWaitNamesItsCure(t *testing.T) {
	now := time.Unix(1000, 0).UTC()
	declared := View{Name: "m1", Machine: &inventory.Machine{Name: "m1"}, Group: "g", Sync: OutOfSync, Status: Status{Phase: Active}}
	for _, c := range []struct {
		name   string
		change func(*View)
		want   string
	}{
		{"frozen", func(v *View) { w := frozenWait("stock taking"); v.Waiting, v.next = w.Why, w.Next }, "recast unfreeze"},
		{"frozen and left off", func(v *View) {
			w := frozenWait("stock taking")
			v.Waiting, v.next, v.Status.NextAction = w.Why, w.Next, "the attempt left it off: recast power on m1"
		}, "recast unfreeze lets rollouts go on; the attempt left it off: recast power on m1"},
		{"held", func(v *View) { v.Status.Hold = &Hold{Owner: "ann", Reason: "memory test"} }, "recast release m1"},
		{"no image", func(v *View) {
			w := imageWait(inventory.DigestOf(nil), ImageFacts{}, false)
			v.Waiting, v.next = w.Why, w.Next
		}, "recast image add SOURCE"},
		{"damaged image", func(v *View) {
			w := imageWait(inventory.DigestOf(nil), ImageFacts{Damaged: "frame 3"}, true)
			v.Waiting, v.next = w.Why, w.Next
		}, "recast image add SOURCE"},
		{"a secret is gone", func(v *View) { w := unresolvedWait("no secret"); v.Waiting, v.next = w.Why, w.Next }, "recast plan PATH"},
		{"not declared", func(v *View) { v.Machine = nil }, "add it to the files"},
		{"no group", func(v *View) { v.Group = "" }, "labels"},
		{"no plan yet", func(v *View) { v.SyncWhy = "another generation is wanted" }, "recast plan PATH"},
		{"at work", func(v *View) {
			v.Status.Phase, v.Status.Step, v.Status.Deadline = Deploying, StepBooting, now.Add(time.Minute)
		}, "by 1970-01-01T00:17:40Z, else"},
	} {
		v := declared
		c.change(&v)
		x := explain(suspects{View: v}, now)
		if x.Missing == "" || !strings.Contains(x.Next, c.want) {
			t.Errorf("%s: missing %q, next %q, want %q", c.name, x.Missing, x.Next, c.want)
		}
	}
}

// After the loss of the store a machine's disk knows what it runs.
func TestExplainNamesAdoptWhereTheDiskKnows(t *testing.T) {
	explained := func(change func(*Status)) string {
		st := Status{Machine: "m1", Phase: Available, Facts: &inventory.Facts{Disks: []inventory.DiskFacts{{Name: "/dev/sda"},
			{Name: "/dev/sdb", Recast: &inventory.Marker{Machine: "m1", Generation: genA}}}}}
		change(&st)
		return explain(suspects{View: View{Name: "m1", Machine: &inventory.Machine{Name: "m1"}, Group: "g", Sync: SyncUnknown, SyncWhy: "nothing is known of what it runs", Status: st}}, t0).Next
	}
	if next := explained(func(*Status) {}); !strings.Contains(next, "holds generation "+genA.Short()+": recast adopt m1") {
		t.Errorf("next %q", next)
	}
	for name, change := range map[string]func(*Status){
		"of another machine": func(st *Status) { st.Facts.Disks[1].Recast.Machine = "m2" },
		"half erased":        func(st *Status) { st.Unfinished = true },
		"on record":          func(st *Status) { st.Running = genA },
	} {
		if next := explained(change); strings.Contains(next, "adopt") {
			t.Errorf("%s: next %q", name, next)
		}
	}
}

func TestPlanDigestTellsDisksOfOneSerialApartBySize(t *testing.T) {
	p := Plan{Entries: []Entry{{Machine: "m1", Disk: "disk serial A, /dev/sda, 1.0 TB (931.3 GiB)", DiskSize: 1000000000000}}}
	q := Plan{Entries: []Entry{{Machine: "m1", Disk: "disk serial A, /dev/sda, 1.0 TB (931.3 GiB)", DiskSize: 1000000004096}}}
	if digestPlan(p) == digestPlan(q) {
		t.Error("a disk of another size has the same plan")
	}
}

func TestExplainSaysWhatHappensAtTheDeadline(t *testing.T) {
	at := t0.Add(time.Minute)
	when := at.Format(time.RFC3339)
	for _, c := range []struct{ step, next, want string }{
		{"booting", "its firmware asks for a network boot", "its firmware asks for a network boot by " + when + ", else it counts as a failure of attempt 1"},
		{"arming", "", "by " + when + ", else it counts as a failure of attempt 1"},
		{"starting", startsNext + ", else it is power-cycled", startsNext + " by " + when + ", else it is power-cycled"},
		{"starting", startsNext, startsNext + " by " + when + ", else it counts as a failure of attempt 1"},
		{"stopping", "the lease of its earlier boot runs out", "the lease of its earlier boot runs out at " + when},
	} {
		if got := byDeadline(Status{Step: StepName(c.step), NextAction: c.next, Deadline: at, Attempt: 1}); got != c.want {
			t.Errorf("%s: %q, want %q", c.step, got, c.want)
		}
	}
}
