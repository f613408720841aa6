package provision

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"recast/inventory"
)

// walk is one machine's random life.
type walk struct {
	r     *rand.Rand
	p     Params
	s     State
	now   time.Time
	trail []trailLine
	boots int
	wrote bool  // the disk may have been written since the machine was active last
	gate  *Gate // of what is written; nil none
	// allowed is what the write intent of an attempt permits, by intent and attempt.
	allowed map[string]permission
}

// permission of one attempt's write intent.
type permission struct {
	disk    inventory.DiskID
	purpose Purpose
	quick   bool
}

type trailLine struct {
	at    time.Time
	ev    Event
	phase Phase
	step  StepName
}

func newWalk(seed uint64) *walk {
	r := rand.New(rand.NewPCG(seed, 1))
	st := newStory()
	w := &walk{r: r, p: st.params, s: st.state, now: t0, allowed: map[string]permission{}}
	w.p.HasBMC, w.p.Reports, w.p.Attempts = r.IntN(4) > 0, r.IntN(3) > 0, 1+r.IntN(3)
	return w
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// event is anything that could arrive, likely or not: the engine's own checks
// before Step are left out on purpose.
func (w *walk) event() Event {
	r := w.r
	// Mostly what the machine waits for, so that walks get far.
	if r.IntN(3) > 0 && Busy(w.s.Status.Phase) {
		switch w.s.Status.Step {
		case StepStopping:
			if !w.p.HasBMC {
				return Ticked{}
			}
			return BMCDone{Action: ActOff}
		case StepArming:
			return BMCDone{Action: ActArm}
		case StepPowering:
			return BMCDone{Action: ActOn}
		case StepBooting, StepAwaitingPerson:
			return BootServed{}
		case StepClaiming:
			return w.claim()
		case StepInspecting:
			return w.inspected()
		case StepPowerOff:
			return BMCDone{Action: ActOff, Err: pick(r, "", "", "it says no")}
		case StepRestarting:
			return BMCDone{Action: dueAction(w.s.Status), Err: pick(r, "", "", "it says no")}
		case StepWriting, StepVerifying, StepStarting:
			if r.IntN(2) == 0 {
				return w.report()
			}
			return w.running()
		}
	}
	switch r.IntN(14) {
	case 0, 1:
		if r.IntN(3) == 0 {
			s := Started{Purpose: PurposeWipe, Epoch: "e", Quick: r.IntN(2) == 0, By: "ann"}
			if r.IntN(8) > 0 {
				s.Consent = &Consent{Disk: disk(pick(r, "S1", "S1", "S2"))}
			}
			return s
		}
		return Started{Purpose: pick(r, PurposeDeploy, PurposeDeploy, PurposeInspect, PurposeAdopt),
			Generation: pick(r, genA, genB), Rendered: rendA, Epoch: "e", Erase: r.IntN(2) == 0, By: "ann"}
	case 2, 3:
		if !w.p.HasBMC {
			return Ticked{}
		}
		ev := BMCDone{Action: pick(r, ActOff, ActArm, ActOn, ActClear)}
		if r.IntN(2) == 0 {
			ev.Err, ev.Final = "it says no", r.IntN(3) == 0
		}
		return ev
	case 4:
		return pick[Event](r, BootServed{}, BootServed{}, BootWaits{})
	case 5:
		return w.claim()
	case 6:
		return w.inspected()
	case 7:
		return w.report()
	case 8:
		return w.running()
	case 9, 10:
		return Ticked{}
	case 11:
		return Renewed{Until: w.now.Add(LeaseTime)}
	case 12:
		return pick[Event](r, Aborted{By: "ann"}, Held{Hold{Owner: "bob"}}, Suspected{Reason: "two machines"}, Noticed{Finding: "a nonce was used twice"})
	}
	return pick[Event](r, Mended{}, Reverted{}, Looked{Power: "off"}, Enrolled{}, Looked{Power: "on", Board: &Board{Serial: "A"}})
}

func (w *walk) claim() Event {
	w.boots++
	return Claimed{Resume: w.s.Intent != nil && w.s.Intent.Claim != nil,
		Claim: ClaimState{BootID: fmt.Sprint(w.boots), UUID: "u1", Addr: netip.MustParseAddr("10.0.0.5"), Until: w.now.Add(LeaseTime)}}
}

func (w *walk) inspected() Event {
	d := DiskDecision{Verdict: pick(w.r, DiskWrite, DiskWrite, DiskWrite, DiskWipe, DiskAdopt, DiskLook, DiskAsk, DiskRefuse),
		Disk: disk(pick(w.r, "S1", "S1", "S1", "S2")), Reason: "because"}
	if w.s.Intent != nil && w.s.Intent.Purpose == PurposeInspect && w.r.IntN(4) > 0 {
		d.Verdict = DiskLook
	}
	if in := w.s.Intent; in != nil && in.Purpose == PurposeWipe && w.r.IntN(4) > 0 {
		d.Verdict, d.Disk = DiskWipe, in.Consent.Disk
	}
	d.Marker = inventory.Marker{Machine: "m1", Generation: pick(w.r, genA, genB), Rendered: rendA, Attempt: 1 + w.r.IntN(2)}
	return Inspected{Decision: d}
}

func (w *walk) report() Event {
	rep := inventory.Report{Step: pick(w.r, inventory.AgentComparing, inventory.AgentWriting, inventory.AgentVerifying,
		inventory.AgentConfigure, inventory.AgentDone, inventory.AgentDone, inventory.AgentFailed),
		Erased: w.r.IntN(2) == 0, Done: w.r.Int64N(100), Total: 100}
	ev := Reported{Report: rep}
	if rep.Step == inventory.AgentFailed {
		ev.Report.Error = "it broke"
		if w.r.IntN(3) == 0 {
			ev.Damaged = imgA
		}
	}
	return ev
}

func (w *walk) running() Event {
	return Running{Report: inventory.BootReport{Machine: "m1", Generation: pick(w.r, genA, genB, w.s.Status.Running), Rendered: rendA,
		Write: pick(w.r, w.s.Status.RunningWrite, w.s.Status.RunningWrite, "e.1", "e.2"), BootID: fmt.Sprint(w.r.IntN(3)), Hostname: "m1"}}
}

func frozen(t *testing.T, s State) string {
	t.Helper()
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// step takes one event and holds every promise of the state machine against
// what came out.
func (w *walk) step(t *testing.T) {
	ev := w.event()
	w.now = w.now.Add(time.Duration(w.r.Int64N(int64(pick(w.r, time.Second, time.Minute, 25*time.Minute)))))
	prev, before := w.s, ""
	sample := w.r.IntN(16) == 0 // a deep copy is dear
	if sample {
		before = frozen(t, prev)
	}
	next, actions, lines, err := Step(w.p, w.s, w.now, ev)
	w.trail = append(w.trail, trailLine{w.now, ev, next.Status.Phase, next.Status.Step})
	bad := func(format string, args ...any) {
		t.Helper()
		from := max(0, len(w.trail)-25)
		for _, l := range w.trail[from:] {
			t.Logf("%s %T %+v → %s/%s", l.at.Format("15:04:05"), l.ev, l.ev, l.phase, l.step)
		}
		t.Fatalf(format, args...)
	}
	if sample && frozen(t, prev) != before {
		bad("Step changed the state it was given")
	}
	if err != nil {
		var impossible *ImpossibleError
		if !errors.As(err, &impossible) || impossible.Phase != prev.Status.Phase || impossible.Step != prev.Status.Step {
			bad("the error is %v, want an ImpossibleError with phase and step", err)
		}
		if !reflect.DeepEqual(next, prev) || len(actions)+len(lines) > 0 {
			bad("an impossible event changed something")
		}
		return
	}
	w.s = next
	st, in, old := next.Status, next.Intent, prev.Intent
	if _, is := ev.(Claimed); is {
		switch prev.Status.Step {
		case StepNone, StepStopping, StepStarting, StepRestarting:
			bad("a claim is taken while %s/%s: no ramdisk may run", prev.Status.Phase, prev.Status.Step)
		}
	}
	busy := Busy(st.Phase)
	if old != nil && sameTurn(prev, next) {
		for _, had := range []RolloutTarget{{Started: true}, {Started: true, Failed: true}, {Again: true}} {
			r := Rollout{Plan: old.Plan, Machines: map[string]RolloutTarget{"m1": had, "m2": {}}}
			look := func(s State) (a Admission, found bool) {
				states := map[string]State{"m1": s}
				r, found := r.outcomes(states)
				return admit(r, inventory.Rollout{}, states, "", func(string) Wait { return Wait{} }), found
			}
			was, foundThen := look(prev)
			is, found := look(next)
			if !reflect.DeepEqual(is, was) || found != foundThen {
				bad("%T lets another machine start, and nobody looks: %+v, before %+v", ev, is, was)
			}
		}
	}
	if st.Step == StepRestarting && prev.Status.Step != StepRestarting {
		_, tick := ev.(Ticked)
		switch {
		case !tick || !written(prev.Status.Step) || old.Cycled || prev.Status.Hold != nil:
			bad("a power cycle for %T while %s, held %t, cycled before %t", ev, prev.Status.Step, prev.Status.Hold != nil, old.Cycled)
		case w.now.Sub(prev.Status.Since) < min(w.p.Health/2, time.Duration(w.p.Deadlines["booting"])):
			bad("a power cycle after only %s of silence", w.now.Sub(prev.Status.Since))
		}
	}
	switch {
	case busy && (st.Phase == Deploying) != (in.Purpose == PurposeDeploy), busy && (st.Phase == Cleaning) != (in.Purpose == PurposeWipe):
		bad("%s for an intent to %s", st.Phase, in.Purpose)
	case busy && st.Deadline.IsZero():
		bad("busy without a deadline")
	case busy && (in == nil || !in.Live):
		bad("busy without a live intent")
	case !busy && in != nil && in.Live:
		bad("%s with a live intent", st.Phase)
	case st.Phase == Failed && (st.LastError == "" || st.NextAction == ""):
		bad("failed with reason %q and next action %q", st.LastError, st.NextAction)
	case len(actions) > 0 && !w.p.HasBMC:
		bad("%q for a machine without a BMC", actions)
	case st.Hold != nil && prev.Status.Hold == nil && busy && (in.Write == nil || in.Write.Attempt != st.Attempt):
		bad("held, and busy with a disk that is not its own yet")
	}
	if e := st.Evidence; e != prev.Status.Evidence && e.Level == inventory.E3 && e.Generation == "" {
		if rep, said := ev.(Reported); !said || rep.Report.Step != inventory.AgentDone || old.Purpose != PurposeWipe || old.Write == nil {
			bad("a disk is blank that was not wiped and read back")
		}
	}
	if _, back := ev.(Reverted); back && st.Phase == Active && prev.Status.Phase != Active && (w.wrote || st.Running == "") {
		bad("taken as active although its disk was written since it was active last")
	}
	if st.Phase == Active {
		w.wrote = false
	} else if in != nil && in.Purpose == PurposeDeploy && in.Write != nil && (old == nil || old.Write == nil || old.Write.At != in.Write.At) {
		w.wrote = true
	}
	if in == nil {
		return
	}
	if old != nil && in.Fence < old.Fence {
		bad("the fence fell from %d to %d", old.Fence, in.Fence)
	}
	if old != nil && in.Fence > old.Fence {
		done, off := ev.(BMCDone)
		seenOff := off && done.Action == ActOff && done.Err == ""
		rep, said := ev.(Reported)
		stopped := said && rep.Report.Step == inventory.AgentFailed // it writes no more, by its own word
		if c := old.Claim; !seenOff && !stopped && c != nil && w.now.Before(c.Until.Add(LeaseGrace)) {
			bad("a newer fence while the lease of the boot before may run, and nobody saw the machine off")
		}
		if in.Claim != nil || in.Boots != 0 {
			bad("a newer fence with the claim of an older one")
		}
	}
	if in.Write == nil {
		if busy && (st.Step == StepWriting || st.Step == StepVerifying) {
			bad("%s without a write intent", st.Step)
		}
		return
	}
	if old == nil || old.Write == nil || old.Write.At != in.Write.At {
		seen, ok := ev.(Inspected)
		switch {
		case !ok || seen.Decision.Verdict != DiskWrite && seen.Decision.Verdict != DiskWipe:
			bad("a write intent out of nowhere")
		case old == nil || !old.Live || old.Claim == nil || prev.Status.Step != StepInspecting:
			bad("a write intent without a claim and its inventory")
		case in.Purpose != map[DiskVerdict]Purpose{DiskWrite: PurposeDeploy, DiskWipe: PurposeWipe}[seen.Decision.Verdict]:
			bad("a write intent to %s for %s", seen.Decision.Verdict, in.Purpose)
		case in.Purpose == PurposeWipe && in.Write.Disk != in.Consent.Disk:
			bad("a wipe of %s, confirmed was %s", in.Write.Disk.Serial, in.Consent.Disk.Serial)
		case in.Fence != old.Fence || in.Write.Attempt != st.Attempt || in.Write.Disk != seen.Decision.Disk:
			bad("a write intent for another fence, attempt or disk")
		case in.Write.Erased:
			bad("a write intent that is used already")
		}
	}
	key := fmt.Sprintf("%s/%d", in.Created, in.Write.Attempt)
	if a, ok := w.allowed[key]; ok && a.disk != in.Write.Disk {
		bad("two disks may be written in one attempt: %s and %s", a.disk.Serial, in.Write.Disk.Serial)
	} else if ok && (a.purpose != in.Purpose || a.quick != in.Quick) {
		bad("what was permitted to %s is permitted to %s", a.purpose, in.Purpose)
	}
	w.allowed[key] = permission{in.Write.Disk, in.Purpose, in.Quick}
	if busy && (st.Step == StepWriting || st.Step == StepVerifying) {
		if in.Write.Attempt != st.Attempt {
			bad("attempt %d writes under the intent of attempt %d", st.Attempt, in.Write.Attempt)
		}
		if seen, is := ev.(Inspected); is && seen.Decision.Disk != in.Write.Disk {
			bad("the inventory chose %s, the write intent names %s", seen.Decision.Disk.Serial, in.Write.Disk.Serial)
		}
		// A system on another disk than the one that is wiped goes on to be known.
		if st.Running != "" && (in.Purpose == PurposeDeploy || st.Disk == nil || sameDisk(*st.Disk, in.Write.Disk)) {
			bad("something runs on a disk that may be erased")
		}
	}
}

// TestNoSequenceOfEventsErasesWithoutACurrentWriteIntent walks at random; a
// failure names its seed and shows the way there.
func TestNoSequenceOfEventsErasesWithoutACurrentWriteIntent(t *testing.T) {
	reached := map[string]int{}
	for seed := range uint64(1500) {
		w := newWalk(seed)
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			for range 100 {
				w.step(t)
				reached[string(w.s.Status.Phase)+"/"+string(w.s.Status.Step)]++
			}
		})
		if !ok {
			t.FailNow()
		}
	}
	// A walk that never got there proves nothing.
	for _, state := range []string{"deploying/stopping", "deploying/arming", "deploying/powering", "deploying/booting", "deploying/claiming",
		"deploying/inspecting", "deploying/writing", "deploying/verifying", "deploying/starting", "deploying/awaiting-operator",
		"inspecting/inspecting", "cleaning/stopping", "cleaning/awaiting-operator", "cleaning/inspecting", "cleaning/writing",
		"cleaning/verifying", "cleaning/powering-off", "active/", "failed/", "available/"} {
		if reached[state] < 50 {
			t.Errorf("%s was reached %d times", state, reached[state])
		}
	}
}
