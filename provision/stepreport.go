package provision

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"recast/inventory"
)

func (t *transition) reported(ev Reported) {
	r, damaged := ev.Report, ev.Damaged
	if t.Intent == nil || t.Intent.Write == nil {
		return // late
	}
	w := *t.Intent.Write
	if r.Erased && !w.Erased {
		w.Erased = true
		t.Intent.Write = &w
		if g := t.Intent.Gate; g != nil && sameDisk(g.Disk, w.Disk) {
			t.Intent.Gate, t.Status.Gate = nil, nil // what it was about is gone
		}
		if t.Intent.Purpose == PurposeDeploy || t.onlyDisk(w.Disk) {
			t.Status.Disk, t.Status.Unfinished = &w.Disk, true
		}
		t.line("step", "the disk is being overwritten")
		if !t.busy() {
			// The word that ended the attempt and the first byte crossed on their way.
			t.stop(t.Status.LastError + " after its disk was erased")
		}
	}
	if !t.busy() {
		return
	}
	switch r.Step {
	case inventory.AgentFailed:
		// It says that it stopped: its lease need not run out.
		t.renewed(Renewed{Until: t.now.Add(-LeaseGrace)})
		if damaged != "" {
			t.damaged(damaged, r.Error)
			return
		}
		t.fail("the ramdisk: "+r.Error, true)
	case inventory.AgentDone:
		if t.Status.Step != StepWriting && t.Status.Step != StepVerifying {
			return
		}
		if t.Intent.Purpose == PurposeWipe {
			t.wiped(r)
			return
		}
		t.Status.Running, t.Status.RunningRendered, t.Status.Ran = t.Status.Wanted, t.Status.WantedRendered, false
		t.Status.RunningWrite = t.Intent.WriteName()
		t.Status.Disk, t.Status.Unfinished, t.Status.DiskImage = &w.Disk, false, r.ReadBack
		t.Status.Moved = &Moved{At: t.now, Fetched: r.Fetched, Written: r.Written}
		if t.Status.BootOrder = r.BootOrder; r.BootEntry != "" {
			t.finding("the firmware has no boot entry for the disk: " + r.BootEntry)
		}
		t.holds(r.ReadBack)
		t.gateOpens(w.Disk, w.Gate, true)
		t.Status.Evidence = Evidence{Level: inventory.E3, Generation: t.Status.Wanted, At: t.now,
			Detail: "read back " + r.ReadBack.Short()}
		t.line("step", "written and read back: image %s, %s fetched, %s written", r.ReadBack.Short(),
			inventory.SizeText(r.Fetched), inventory.SizeText(r.Written))
		t.measured(ev.Measured)
		if f := t.Status.Facts; f != nil && f.Boot.Mode == string(inventory.BIOS) {
			t.line("step", "its boot order is as it was: that of a BIOS cannot be set from here")
		}
		t.awaitSystem()
	case inventory.AgentVerifying:
		if t.Status.Step == StepWriting {
			t.enter(StepVerifying, "")
		}
		t.progress(r)
	case inventory.AgentComparing, inventory.AgentWriting, inventory.AgentConfigure:
		t.progress(r)
	}
}

// holds brings the inventory up to date about the disk that was written.
func (t *transition) holds(image inventory.Digest) {
	m := inventory.Marker{Machine: t.Status.Machine, Generation: t.Status.Wanted, Image: image,
		Rendered: t.Status.WantedRendered, Attempt: t.Status.Attempt, Write: t.Intent.WriteName()}
	t.seen(t.Intent.Write.Disk, func(d *inventory.DiskFacts) {
		d.Holds, d.Recast = holdsText(m), &m
	})
}

// seen changes what the inventory says of a disk.
func (t *transition) seen(disk inventory.DiskID, change func(*inventory.DiskFacts)) {
	if t.Status.Facts == nil {
		return
	}
	facts := *t.Status.Facts
	facts.Disks = append([]inventory.DiskFacts(nil), facts.Disks...)
	for i, d := range facts.Disks {
		if disk.Matches(d) == nil {
			change(&facts.Disks[i])
		}
	}
	t.Status.Facts = &facts
}

// progress moves the deadline only while bytes move: a slow disk is not a dead one.
func (t *transition) progress(r inventory.Report) {
	if t.Status.Step != StepWriting && t.Status.Step != StepVerifying {
		return
	}
	t.Status.NextAction = ""
	if t.moves(r) {
		t.Status.Deadline = t.now.Add(t.deadline(t.Status.Step))
	}
}

// moves keeps how far the ramdisk is, and tells whether a byte moved since it was heard
// last.
func (t *transition) moves(r inventory.Report) bool {
	p := Progress{At: t.now, Doing: r.Step, Since: t.now, Moved: t.now, Done: r.Done, Total: r.Total, Fetched: r.Fetched, Written: r.Written}
	old := t.Status.Progress
	if old != nil && r.Done == old.Done && r.Fetched <= old.Fetched && r.Written <= old.Written {
		p.Moved = old.Moved
	}
	if old != nil && old.Doing == p.Doing {
		p.Since = old.Since
	}
	if elapsed := t.now.Sub(p.Since).Seconds(); elapsed > 0 {
		p.Rate = float64(p.Done) / elapsed
	}
	t.Status.Progress = &p
	return p.Moved.Equal(t.now)
}

func (t *transition) renewed(ev Renewed) {
	if t.Intent == nil || t.Intent.Claim == nil {
		return
	}
	claim := *t.Intent.Claim
	claim.Until = ev.Until
	t.Intent.Claim = &claim
}

// running takes the installed system's word. Its token proves that recast made
// the disk it stands on, in that write.
func (t *transition) running(ev Running) {
	st, r := &t.Status, ev.Report
	fresh := r.BootID != st.BootID
	st.BootID = r.BootID
	if fresh {
		t.line("seen", "the system reports generation %s, host name %q", r.Generation.Short(), r.Hostname)
	}
	recorded := r.Generation == st.Running && r.Rendered == st.RunningRendered && r.Write == st.RunningWrite
	wanted := r.Generation == st.Wanted && r.Rendered == st.WantedRendered
	if fresh && recorded {
		t.gateStarted()
	}
	switch {
	case written(st.Step) && recorded:
		t.seenRunning(ev)
	case written(st.Step):
		t.finding(otherRuns(r, *st))
	case t.busy():
		if fresh && (st.Step == StepPowering || st.Step == StepBooting || st.Step == StepClaiming) {
			// It was seen off before, so that this is a new start, of its old disk instead
			// of the network, or after a ramdisk that did not start. It may be up before
			// the BMC shows it on.
			t.rearm("it started from its disk although the network was armed")
		}
	case st.Unfinished:
		t.finding(fmt.Sprintf("its disk was erased and not written, but the system reports generation %s: it started from another disk", r.Generation.Short()))
	case !blankSince(*st).IsZero():
		t.finding(fmt.Sprintf("its disk was wiped, but the system reports generation %s: it started from another disk", r.Generation.Short()))
	case st.Phase == Failed && !wanted:
		// It failed before its disk was touched, and its old system is back: what is
		// wanted still failed.
		st.LastSeen, st.LastSeenAt = "its old system reported itself as "+r.Hostname, t.now
	case recorded:
		t.seenRunning(ev)
	default:
		t.learn(ev)
	}
}

func otherRuns(r inventory.BootReport, st Status) string {
	return fmt.Sprintf("the system reports generation %s of write %s, but generation %s of write %s is on record",
		r.Generation.Short(), r.Write, st.Running.Short(), st.RunningWrite)
}

// learn believes a disk that knows better than the record: the store came back
// from a backup, or another disk of ours was started.
func (t *transition) learn(ev Running) {
	r := ev.Report
	health := Healthy
	if t.Status.Running != "" {
		t.finding(otherRuns(r, t.Status))
		health = Degraded
	}
	t.Status.Running, t.Status.RunningRendered, t.Status.RunningWrite = r.Generation, r.Rendered, r.Write
	t.Status.BootOrder = ""
	t.toldSecure(ev)
	t.Status.Evidence = Evidence{Level: inventory.E2, Generation: r.Generation, At: t.now, Detail: "the system's own word"}
	t.activate(health)
	t.Status.LastSeen, t.Status.LastSeenAt = "the system reported itself as "+r.Hostname, t.now
}

func (t *transition) seenRunning(ev Running) {
	r := ev.Report
	current := r.BootCurrent
	left := t.Status.BootOrder
	if g := gated(t.State); g != nil {
		current = "" // BootNext is what it starts by
		if g.Refuse {
			left = "" // see unguardedNow
		}
	}
	// What was read back, or signed by a TPM, is as old as that: a disk may have been changed
	// since by the very system that reports itself.
	if t.Status.Evidence.Level < inventory.E3 {
		t.Status.Evidence = Evidence{Level: inventory.E2, Generation: t.Status.Running, At: t.now, Detail: t.Status.Evidence.Detail}
	} else {
		t.Status.Evidence.Reported = t.now
	}
	if text := bootOrderFinding(left, r.BootOrder, current); text == "" || !slices.Contains(t.Status.Findings, text) {
		t.Status.Findings = dropFindings(t.Status.Findings, bootOrderPrefix)
		if text != "" {
			t.finding(text)
		}
	}
	t.unguardedNow(r)
	t.toldSecure(ev)
	t.activate(Healthy)
	t.Status.LastSeen, t.Status.LastSeenAt = "the system reported itself as "+r.Hostname, t.now
}

func (t *transition) activate(h Health) {
	if t.Status.Phase != Active {
		t.phase(Active)
	}
	t.Status.Health, t.Status.LastError, t.Status.NextAction = h, "", ""
	t.Status.OffSince = time.Time{}
	if t.Intent != nil {
		t.Intent.Live = false
	}
}

// finding is told once for as long as it stands: some can be caused by strangers.
func (t *transition) finding(text string) {
	if slices.Contains(t.Status.Findings, text) {
		return
	}
	t.Status.Findings = addFinding(t.Status.Findings, text)
	t.line("finding", "%s", text)
}

func (t *transition) noticed(ev Noticed) {
	if ev.About != "" && !slices.Contains(t.Status.Findings, ev.Finding) {
		t.Status.Findings = dropFindings(t.Status.Findings, ev.About)
	}
	if ev.Finding != "" {
		t.finding(ev.Finding)
	}
}

// dropFindings takes out those that begin so.
func dropFindings(list []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(f string) bool { return strings.HasPrefix(f, prefix) })
}

// addFinding keeps the last twenty.
func addFinding(list []string, text string) []string {
	out := append([]string(nil), list...)
	if len(out) >= 20 {
		out = out[1:]
	}
	return append(out, text)
}
