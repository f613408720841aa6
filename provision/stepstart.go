package provision

import "recast/inventory"

// written steps come after the read back: the disk is what was declared, and
// the machine has to start from it.
func written(step StepName) bool { return step == StepStarting || step == StepRestarting }

// awaitSystem gives the machine its health deadline to be seen running. Where
// silence would mean that it hangs, it is looked at before.
func (t *transition) awaitSystem() {
	t.enter(StepStarting, startsNext)
	if t.Intent.Via == inventory.BootMedia {
		t.clear() // a server that was killed after the claim has left it in
	}
	switch {
	case !t.p.Reports:
		t.Status.NextAction += ", else it is taken as running"
	case t.p.HasBMC && !t.Intent.Cycled:
		health := t.deadline(StepStarting)
		t.Status.Deadline = t.now.Add(min(health, max(health/2, t.deadline(StepBooting))))
		t.Status.NextAction += ", else it is power-cycled"
	}
}

// startsNext may be followed by ", else" and what happens at the deadline.
const startsNext = "the machine starts from its disk"

// silent: the system would report itself, and since the ramdisk left neither
// its firmware nor a system was heard. Servers hang at the restart, too. One that
// was heard is left alone: it may be in the middle of its first boot.
func (t *transition) silent() bool {
	return t.p.Reports && t.p.HasBMC && !t.Intent.Cycled && t.Status.Hold == nil &&
		!t.Status.LastSeenAt.After(t.Status.Since)
}

// cycled is one half of the power cycle: off, then on. Whatever came of it, the machine
// has its health deadline anew.
func (t *transition) cycled(ev BMCDone) {
	switch {
	case ev.Err != "":
		t.line("bmc", "%s: %s", ev.Action, ev.Err)
	case ev.Action == ActOff:
		t.actions = append(t.actions, ActOn)
		return
	}
	t.awaitSystem()
}
