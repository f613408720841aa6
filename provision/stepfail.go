package provision

import (
	"cmp"
	"fmt"
	"time"

	"recast/bmc"
	"recast/inventory"
)

// rearm sets the override once more in an attempt, not for ever.
func (t *transition) rearm(why string) {
	if t.held() {
		return
	}
	if t.Intent.Rearmed || !t.p.HasBMC {
		what := "no network boot: "
		if t.Intent.Via != "" {
			what = fmt.Sprintf("no boot via %s: ", t.Intent.Via)
		}
		t.fail(what+why, true)
		return
	}
	t.Intent.Rearmed = true
	t.line("bmc", "armed again: %s", why)
	t.enter(StepStopping, "")
	t.actions = append(t.actions, ActOff)
}

func (t *transition) ticked() {
	if !t.busy() {
		t.gateTicked()
		return
	}
	if t.Status.Deadline.IsZero() || t.now.Before(t.Status.Deadline) {
		return
	}
	waited := t.now.Sub(t.Status.Since).Round(time.Second)
	last := ""
	if t.Status.LastSeen != "" {
		last = "; last seen: " + t.Status.LastSeen
	}
	switch t.Status.Step {
	case StepStopping:
		if !t.p.HasBMC {
			t.begin() // the lease of its earlier boot may have to run out still
			return
		}
		t.fail(fmt.Sprintf("not seen off after %s%s", waited, last), true)
	case StepBooting:
		asks := "request for a boot script"
		if t.Intent.Via == inventory.BootMedia {
			asks = "request for the ramdisk"
		}
		t.rearm(fmt.Sprintf("no %s within %s of power on%s", asks, waited, last))
	case StepRestarting:
		t.cycled(BMCDone{Action: dueAction(t.Status), Err: "not done after " + waited.String()})
	case StepStarting:
		if t.silent() {
			t.Intent.Cycled = true
			t.line("bmc", "nothing was seen of it for %s: it is power-cycled, in case it hangs", waited)
			t.Status.Power = string(bmc.PowerOn)
			t.enter(StepRestarting, "")
			t.actions = append(t.actions, ActOff)
			return
		}
		if end := t.Status.Since.Add(t.deadline(StepStarting)); t.now.Before(end) {
			t.prolong(end)
			t.Status.NextAction = startsNext
			return
		}
		if !t.p.Reports {
			t.line("phase", "no network boot within %s: taken as running", waited)
			t.activate(HealthUnknown)
			return
		}
		if h := t.Status.Hold; h != nil && h.Thaws && stopped(t.State) {
			t.prolong(t.now.Add(t.deadline(StepStarting))) // it goes on when nothing is frozen any more
			return
		}
		if next := t.Status.NextAction; stopped(t.State) && t.Status.Hold != nil {
			t.stop("written and read back, and stopped by its gate: " + t.Status.Gate.Detail)
			t.Status.NextAction = next
			return
		}
		t.stop(fmt.Sprintf("written and read back, but the system did not report itself within %s%s", waited, last))
		t.Status.NextAction = t.startingNext()
	case StepWriting, StepVerifying:
		// One that says nothing at all may be in its firmware's self-test.
		heard := t.Status.Since
		if p := t.Status.Progress; p != nil {
			heard = p.At
		}
		quiet := t.now.Sub(heard).Round(time.Second)
		if back := heard.Add(t.deadline(StepBooting)); quiet > silence && t.now.Before(back) {
			t.line("seen", "nothing was heard from the ramdisk for %s: it may have restarted", quiet)
			t.Status.NextAction = "it comes back with a request for its boot script"
			t.prolong(back)
			return
		}
		if quiet > silence {
			t.fail(fmt.Sprintf("nothing was heard from the ramdisk for %s while %s%s", quiet, t.Status.Step, last), true)
			return
		}
		t.fail(fmt.Sprintf("no byte moved while %s for %s%s", t.Status.Step, t.deadline(t.Status.Step), last), true)
	case StepAwaitingPerson:
		t.fail(fmt.Sprintf("nobody power-cycled it within %s%s", waited, last), false)
	default:
		t.fail(fmt.Sprintf("still %s after %s%s", t.Status.Step, waited, last), true)
	}
}

// startingNext is for a machine that holds its generation and was not seen to run it.
func (t *transition) startingNext() string {
	next := "look at its console; "
	if t.Status.Power == string(bmc.PowerOff) {
		next = fmt.Sprintf("it was left off: recast power on %s; ", t.Status.Machine)
	}
	if t.p.Reports {
		next += "it becomes active when it reports; "
	}
	return next + fmt.Sprintf("recast retry %s writes it anew", t.Status.Machine)
}

// silence of an agent that works: it reports every second.
const silence = time.Minute

// fail ends an attempt: the next one where the budget allows it and trying
// again can help, else the machine is failed.
func (t *transition) fail(reason string, again bool) {
	t.Status.LastError = reason
	t.line("error", "attempt %d: %s", t.Status.Attempt, reason)
	works := t.Intent.Purpose == PurposeDeploy || t.Intent.Purpose == PurposeWipe && t.Status.Step != StepPowerOff
	if again && works && t.Status.Attempt < t.p.Attempts && t.Status.Hold == nil {
		t.Status.Attempt++
		t.Status.Restarts = 0
		t.begin()
		return
	}
	t.stop(reason)
}

// hold is somebody's word to keep off. Who said it may have hands in the machine:
// an attempt that writes nothing yet ends at once. What writes goes on to its end.
func (t *transition) hold(h Hold) {
	t.Status.Hold = &h
	if t.busy() && (mayBoot(t.Status.Step) || t.Status.Step == StepStopping) && t.Status.Step != StepWriting && t.Status.Step != StepVerifying {
		t.held()
	}
}

// held ends an attempt on a machine that is on hold. A deployment of an untouched
// disk has its turn again once the hold is over.
func (t *transition) held() bool {
	h := t.Status.Hold
	if h == nil {
		return false
	}
	reason := fmt.Sprintf("held by %s: %s", h.Owner, h.Reason)
	t.line("error", "attempt %d ends: %s", t.Status.Attempt, reason)
	t.end(reason)
	t.clear()
	release := "recast release " + t.Status.Machine
	switch {
	case t.Status.Phase != Failed && t.Intent.Purpose == PurposeDeploy:
		t.Intent.HeldBack = true
		t.Status.NextAction = release + " lets it begin again"
	case t.Intent.Purpose == PurposeDeploy:
		t.Status.NextAction = fmt.Sprintf("%s, then: recast retry %s", release, t.Status.Machine)
	default:
		t.Status.NextAction = fmt.Sprintf("%s, then: recast %s %s", release, t.Intent.Purpose, t.Status.Machine)
	}
	if t.Status.Power == "off" {
		t.Status.NextAction += "; the attempt left it off"
	}
	return true
}

// end an attempt by somebody's word: the machine is what it was, unless its
// disk was erased.
func (t *transition) end(reason string) {
	if t.Intent.Purpose == PurposeWipe {
		t.stop(reason)
		return
	}
	if t.Status.Unfinished {
		t.stop(reason + " after its disk was erased")
		return
	}
	if written(t.Status.Step) {
		t.stop(reason + ": written and read back, but not seen running")
		t.Status.NextAction = t.startingNext()
		return
	}
	t.Intent.Live = false
	t.settle()
	t.Status.LastError = reason
}

// damaged: trying again is useless until the image is mended.
func (t *transition) damaged(image inventory.Digest, why string) {
	t.stop("the image is damaged: " + why)
	t.line("error", "the image %s is damaged here: %s", image.Short(), why)
	if t.Status.Phase == Failed {
		t.Status.FailedImage = image
		t.Status.NextAction = "recast image add SOURCE mends it; this machine then begins again by itself"
	}
}

// stop makes the machine failed, with what to do next.
func (t *transition) stop(reason string) {
	t.Intent.Live = false
	if t.Intent.Via != "" {
		t.clear() // a medium stays in its drive, and in some boot orders, for ever
	}
	switch {
	case t.Intent.Purpose == PurposeWipe && t.Status.Step == StepPowerOff:
		t.powerOffDone(reason)
		return
	case t.Intent.Purpose == PurposeWipe:
		t.wipeFailed(reason)
		return
	case t.Intent.Purpose != PurposeDeploy:
		t.settle()
		t.Status.LastError = reason
		return
	}
	t.phase(Failed)
	t.Status.LastError = reason
	t.Status.Health = Degraded
	t.Status.NextAction = againNext(t.Intent, t.Status.Machine)
}

// againNext is what a person does about a failed attempt.
func againNext(in *Intent, machine string) string {
	verb := "retry"
	if in != nil && in.Purpose == PurposeWipe {
		verb = "wipe"
	}
	return fmt.Sprintf("mend the cause, then: recast %s %s", verb, machine)
}

func (t *transition) aborted(ev Aborted) {
	if !t.busy() {
		return
	}
	t.line("operator", "aborted by %s", ev.By)
	t.Intent.AbortedBy = ev.By
	t.end("aborted by " + ev.By)
	t.clear()
	if t.p.HasBMC {
		if t.Status.Power == "off" && t.Status.Phase != Failed {
			t.Status.NextAction = "the attempt left it off: recast power on " + t.Status.Machine
		}
	}
	if t.Intent.Plan != "" && t.Intent.Purpose == PurposeDeploy {
		t.Status.NextAction = joinNext(t.Status.NextAction,
			fmt.Sprintf("its rollout starts no more machines until: recast retry %s, or the next apply", t.Status.Machine))
	}
}

func (t *transition) suspected(ev Suspected) {
	t.finding(ev.Reason)
	t.Status.Hold = &Hold{Owner: "recast", Reason: ev.Reason, Cure: ev.Cure, Since: t.now}
	if t.busy() {
		t.stop(ev.Reason)
	}
	t.Status.NextAction = fmt.Sprintf("%s, then: recast release %s", cmp.Or(ev.Cure, "find out why"), t.Status.Machine)
}

// reverted takes a failure back: what the machine was to become is not wanted any
// more, and what it was it still is.
func (t *transition) reverted() {
	st := &t.Status
	if !untouched(st) || st.Hold != nil {
		return
	}
	t.line("phase", "generation %s, which it ran and still holds, is wanted again", st.Running.Short())
	t.phase(Active)
	st.Wanted, st.WantedRendered = st.Running, st.RunningRendered
	st.Health, st.LastError, st.FailedImage = HealthUnknown, "", ""
}

// mended ends the wait for an image. The rollout gives the machine its next
// turn, so that a hold, a freeze or a newer plan is heeded.
func (t *transition) mended() {
	if t.Status.Phase != Failed || t.Status.FailedImage == "" {
		return
	}
	t.line("phase", "the image is whole again")
	t.phase(Available)
	t.Status.FailedImage, t.Status.LastError, t.Status.Health = "", "", HealthUnknown
}

func diskName(d inventory.DiskID) string {
	switch {
	case d.Serial != "":
		return "disk serial " + d.Serial
	case d.WWN != "":
		return "disk wwn " + d.WWN
	case d.ByPath != "":
		return "disk at " + d.ByPath
	}
	return "disk " + d.Name
}
