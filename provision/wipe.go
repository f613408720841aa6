package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"recast/inventory"
)

// A wipe is a transaction like a deployment: the same intents, fences, leases and
// attempts, with its own purpose. What it may erase was confirmed beforehand, by
// the disk's serial; the ramdisk's inventory has to show that very disk.

// Wipe netboots a machine to zero the one disk that word names: by its serial,
// its WWN, or, where it tells neither, its path. Quick zeroes only what makes a
// disk look used. It returns the disk as the last inventory saw it.
func (e *Engine) Wipe(ctx context.Context, name, who, word string, quick bool) (inventory.DiskFacts, error) {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	var disk inventory.DiskFacts
	refuse := func(format string, args ...any) (inventory.DiskFacts, error) {
		return disk, fmt.Errorf("wipe %q: "+format, append([]any{name}, args...)...)
	}
	decl := e.Set().Machine(name)
	if decl == nil {
		return refuse("no such machine is declared; recast get machines lists them")
	}
	m := e.machine(name)
	st := m.snapshot().Status
	frozen := e.Frozen()
	switch {
	case decl.Protected:
		return refuse("the machine is protected; take protected: true out of its files and apply them")
	case frozen.Reason != "":
		return refuse("frozen: %s; recast unfreeze", frozen.Reason)
	case st.Hold != nil:
		return refuse("held by %s: %s; recast release %s", st.Hold.Owner, st.Hold.Reason, name)
	case Busy(st.Phase):
		return refuse("an attempt is under way (%s); recast abort %s stops it", st.Step, name)
	case st.Facts == nil:
		return refuse("no inventory has seen its disks yet; recast inspect %s", name)
	case e.Ramdisk(decl.Arch).Kernel == "":
		return refuse("there is no ramdisk for %s: recast ramdisk build", decl.Arch)
	}
	disk, err := namedDisk(st.Facts.Disks, word)
	if err != nil {
		return refuse("%w", err)
	}
	id, err := disk.ID()
	if err != nil {
		return refuse("%w", err)
	}
	how := "every byte"
	if quick {
		how = "quick"
	}
	audit, err := e.audit(ctx, AuditEntry{Who: who, What: "wipe", Machine: name, At: e.Now(),
		Detail: fmt.Sprintf("%s, %s, %s", diskText(id), orBlank(disk.Holds), how)})
	if err != nil {
		return disk, err
	}
	// First: what is wiped must not be deployed by a plan that was applied before.
	if err := e.takeOut(ctx, name); err != nil {
		return disk, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if Busy(m.state.Status.Phase) {
		return refuse("an attempt has begun in the meantime (%s); recast abort %s stops it", m.state.Status.Step, name)
	}
	return disk, e.handleWith(ctx, m, Started{Purpose: PurposeWipe, Epoch: e.Store.Epoch(), By: who,
		Consent: &Consent{Disk: id, Holds: disk.Holds}, Quick: quick}, nil, audit)
}

// takeOut ends a machine's part in the rollout under way. applyMu is held.
func (e *Engine) takeOut(ctx context.Context, name string) error {
	e.mu.RLock()
	var found []Rollout
	for _, r := range e.rolling {
		if t, ok := r.Machines[name]; ok && !t.Out {
			found = append(found, r)
		}
	}
	e.mu.RUnlock()
	for _, r := range found {
		r = r.changed([]string{name}, func(_ string, t *RolloutTarget) { t.Out = true })
		if err := e.saveRollout(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// namedDisk is the one disk that an operator's word names.
func namedDisk(disks []inventory.DiskFacts, word string) (inventory.DiskFacts, error) {
	var found, saw []string
	var one inventory.DiskFacts
	for _, d := range disks {
		text := diskName(inventory.DiskID{Name: d.Name, Serial: d.Serial, WWN: d.WWN, ByPath: d.ByPath}) +
			fmt.Sprintf(", %s, %s, %s", d.Name, inventory.DiskSizeText(d.Size), orBlank(d.Holds))
		saw = append(saw, text)
		// A path names the slot: it stands for a disk that says nothing of itself.
		anonymous := d.Serial == "" && d.WWN == ""
		if word != "" && (word == d.Serial || word == d.WWN || anonymous && word == d.ByPath) {
			found, one = append(found, text), d
		}
	}
	switch {
	case len(saw) == 0:
		return one, fmt.Errorf("the last inventory saw no disk")
	case len(found) == 0:
		return one, fmt.Errorf("no disk is %q; the last inventory saw %s", word, strings.Join(saw, "; "))
	case len(found) > 1:
		return one, fmt.Errorf("%d disks are %q: %s; name one by its WWN", len(found), word, strings.Join(found, "; "))
	}
	return one, nil
}

func diskText(d inventory.DiskID) string {
	return fmt.Sprintf("%s, %s, %s", diskName(d), d.Name, inventory.DiskSizeText(d.Size))
}

// decideWipe compares the disks that are there with the one that was confirmed.
// Anything different is a refusal.
func decideWipe(q diskQuestion, facts inventory.Facts) DiskDecision {
	refuse := func(format string, args ...any) DiskDecision {
		return DiskDecision{Verdict: DiskRefuse, Reason: fmt.Sprintf(format, args...)}
	}
	if q.Intent.Consent == nil {
		return refuse("no disk was confirmed")
	}
	want := q.Intent.Consent.Disk
	var found []inventory.DiskFacts
	near := ""
	for _, d := range facts.Disks {
		id, err := d.ID()
		switch {
		case err == nil && sameDisk(id, want):
			found = append(found, d)
		case want.Serial != "" && want.Serial == d.Serial || want.WWN != "" && want.WWN == d.WWN || want.ByPath != "" && want.ByPath == d.ByPath:
			near = fmt.Sprintf("; %s is WWN %q serial %q, %d bytes in blocks of %d", d.Name, d.WWN, d.Serial, d.Size, d.LogicalBlockSize)
		}
	}
	switch {
	case len(found) == 0:
		return refuse("the disk to be wiped is not here: WWN %q serial %q, %d bytes in blocks of %d%s",
			want.WWN, want.Serial, want.Size, want.LogicalBlockSize, near)
	case len(found) > 1:
		return refuse("%s and %s both say that they are %s", found[0].Name, found[1].Name, diskName(want))
	}
	d := found[0]
	id, _ := d.ID()
	w := q.Intent.Write
	current := w != nil && w.Attempt == q.Attempt && sameDisk(w.Disk, id)
	switch {
	case q.Machine.Protected && !(current && w.Erased): // only what was erased already has nothing left to protect
		return refuse("machine %s is protected", q.Machine.Name)
	case d.ReadOnly:
		return refuse("%s is read-only", diskName(id))
	case d.InUse:
		return refuse("%s is in use by the ramdisk", diskName(id))
	case want.Serial == "" && want.WWN == "" && d.Holds != q.Intent.Consent.Holds && !current &&
		(q.Intent.Earlier == nil || !sameDisk(*q.Intent.Earlier, id)):
		// Only the slot is known: another disk may stand in it now.
		return refuse("%s has no serial and is %s now, confirmed was one %s", diskName(id), orBlank(d.Holds), orBlank(q.Intent.Consent.Holds))
	}
	return DiskDecision{Verdict: DiskWipe, Disk: id, Holds: d.Holds}
}

// wipeJob is the write intent of a wipe as the agent gets it.
func wipeJob(name string, s State) *inventory.Job {
	in := s.Intent
	return &inventory.Job{Kind: inventory.JobWipe, Machine: name, Epoch: in.Epoch, Fence: in.Fence, Attempt: s.Status.Attempt,
		Disk: in.Write.Disk, Quick: in.Quick}
}

// wipeShort says why a finished wipe is none; "" it is one. Every byte has to
// have been read back as zero, of a quick one the disk's ends at the least.
func wipeShort(in *Intent, r inventory.Report) string {
	need := in.Write.Disk.Size
	if in.Quick {
		need = min(need, 2<<20)
	}
	if r.Blank >= need {
		return ""
	}
	return fmt.Sprintf("%d bytes of the disk read back as zeros, not %d", r.Blank, need)
}

// systemDisk tells whether a wipe of the disk takes what the machine runs with
// it: not where recast installed that on another.
func (t *transition) systemDisk(d inventory.DiskID) bool {
	return t.Status.Running == "" || t.Status.Disk == nil || sameDisk(*t.Status.Disk, d)
}

// mayWipe records the write intent of a wipe.
func (t *transition) mayWipe(ev Inspected) {
	d := ev.Decision
	if !sameDisk(d.Disk, t.Intent.Consent.Disk) {
		t.impossible(ev)
		return
	}
	if w := t.Intent.Write; w == nil || w.Attempt != t.Status.Attempt {
		t.Intent.Write = &WriteState{Disk: d.Disk, Holds: d.Holds, At: t.now, Attempt: t.Status.Attempt}
	}
	if t.systemDisk(d.Disk) {
		t.forget(Evidence{Level: inventory.E0, At: t.now})
	}
	t.enter(StepWriting, "")
	t.line("step", "may wipe %s (%s)", diskName(d.Disk), orBlank(d.Holds))
}

// onlyDisk tells whether the machine's system can only have been on that disk: it
// is where recast put it, or no other one of the inventory holds anything.
func (t *transition) onlyDisk(d inventory.DiskID) bool {
	if t.Status.Disk != nil {
		return sameDisk(*t.Status.Disk, d)
	}
	return t.Status.Facts != nil && !slices.ContainsFunc(t.Status.Facts.Disks, func(other inventory.DiskFacts) bool {
		return other.Holds != "" && d.Matches(other) != nil
	})
}

// forget what the machine runs.
func (t *transition) forget(now Evidence) {
	t.Status.Running, t.Status.RunningRendered, t.Status.RunningWrite, t.Status.Ran = "", "", "", false
	t.Status.Evidence = now
}

// wiped: the disk was read back as zeros; what is left is the power.
func (t *transition) wiped(r inventory.Report) {
	disk := t.Intent.Write.Disk
	what := "every byte of " + diskName(disk)
	if t.Intent.Quick {
		what = "the ends of " + diskName(disk) + " and of its partitions"
	}
	if t.systemDisk(disk) {
		blank := Evidence{At: t.now}
		if t.onlyDisk(disk) {
			blank.Level = inventory.E3
			blank.Detail = fmt.Sprintf("blank: %s, %s read back as zeros", what, inventory.SizeText(r.Blank))
		}
		t.forget(blank)
		// What was found before is about what was there.
		t.Status.BootID, t.Status.BootOrder, t.Status.Findings = "", "", nil
	}
	if t.Status.Disk != nil && sameDisk(*t.Status.Disk, disk) {
		t.Status.Disk, t.Status.Unfinished, t.Status.DiskImage = nil, false, ""
	}
	t.seen(disk, func(d *inventory.DiskFacts) { d.Holds, d.Recast = "", nil })
	t.line("step", "wiped and read back: %s, %s", what, inventory.SizeText(r.Blank))
	if r.BootEntry != "" {
		t.finding("the firmware keeps our boot entry to the wiped disk: " + r.BootEntry)
	}
	if !t.p.HasBMC {
		t.settled("it switches itself off; nothing here can see that")
		return
	}
	t.enter(StepPowerOff, "")
	t.actions = append(t.actions, ActOff)
}

// settled ends a wipe whose disk is blank, whatever became of the power.
func (t *transition) settled(power string) {
	t.Intent.Live = false
	t.settle()
	t.Status.LastError = ""
	if t.Status.Phase == Active {
		t.Status.NextAction = "the wipe left it off: recast power on " + t.Status.Machine
	}
	if power != "" {
		t.line("bmc", "%s", power)
	}
}

// powerOffDone is the last step of a wipe. What the BMC says does not change
// that the disk is blank.
func (t *transition) powerOffDone(problem string) {
	if problem == "" {
		t.Status.Power = "off"
		t.settled("")
		return
	}
	t.settled("")
	t.finding("wiped, but not seen off: " + problem)
	t.Status.NextAction = "recast power off " + t.Status.Machine
}

// wipeFailed: the disk may be erased in part. What was not begun leaves the
// machine as it was.
func (t *transition) wipeFailed(reason string) {
	again := againNext(t.Intent, t.Status.Machine)
	if t.Intent.Write == nil && t.Intent.Earlier == nil {
		t.settle()
		t.Status.LastError = notWiped + reason
		t.Status.NextAction = again
		// Its system will be back and say that all is well.
		t.finding(t.Status.LastError)
		return
	}
	t.phase(Failed)
	t.Status.LastError = wipeFailed + strings.TrimPrefix(reason, wipeFailed)
	t.Status.Health = Degraded
	t.Status.NextAction = again
}

// What the reason of a wipe begins with that was not begun, or not ended.
const (
	notWiped   = "not wiped: "
	wipeFailed = "the wipe failed: "
)

// blankSince is when a machine's disk was seen blank after a wipe, and nothing
// was written since; zero: it was not.
func blankSince(st Status) time.Time {
	if st.Phase == Available && st.Running == "" && st.Evidence.Level == inventory.E3 && st.Evidence.Generation == "" {
		return st.Evidence.At
	}
	return time.Time{}
}
