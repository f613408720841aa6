package provision

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"recast/inventory"
)

// GateClaimed: a boot through the gate presented the right nonce; see decideGateClaim.
type GateClaimed struct{ Claim ClaimState }

// GateInspected: it reported what the machine is.
type GateInspected struct {
	Facts inventory.Facts
	// Foreign is why the disk is not the one that was written, Cure what ends that; see
	// foreignDisk.
	Foreign, Cure string
}

// GateReported is one report of it, already checked against boot and job.
type GateReported struct {
	Report inventory.Report
	Epoch  string // of the store now
	// NoRepair is why nothing may be written now, Cure what ends that; see repairBudget.
	NoRepair, Cure string
	// Measured is what its TPM said, nil where it was not asked.
	Measured *Measurement
}

// GateRenewed prolongs its lease.
type GateRenewed struct{ Until time.Time }

// LocalServed: the machine asked what to boot and was given its disk.
type LocalServed struct{}

func (GateClaimed) event()   {}
func (GateInspected) event() {}
func (GateReported) event()  {}
func (GateRenewed) event()   {}
func (LocalServed) event()   {}

// gatePrefix begins what a gate finds.
const gatePrefix = "gate: "

// maxRepairs of one machine in an hour: what breaks again and again is its hardware.
const maxRepairs = 3

// gate is the machine's gate and what it saw, both to be changed; nil where its boots
// go through none.
func (t *transition) gate() (*Gate, *GateSeen) {
	if gated(t.State) == nil {
		return nil, nil
	}
	g, seen := *t.Intent.Gate, GateSeen{}
	if t.Status.Gate != nil {
		seen = *t.Status.Gate
	}
	t.Intent.Gate, t.Status.Gate = &g, &seen
	return &g, &seen
}

// gateOpens: the disk was written and read back, and from now on every boot is proved.
// The first is: nothing ran since.
// One that was adopted is proved at its next, and nothing may be written to it.
func (t *transition) gateOpens(disk inventory.DiskID, plan *Gate, wrote bool) {
	st := &t.Status
	t.Intent.Gate, st.Gate = nil, nil
	if plan == nil {
		return
	}
	g := *plan
	g.Disk, g.Generation, g.Rendered, g.Write, g.Since = disk, st.Running, st.RunningRendered, st.RunningWrite, t.now
	t.Intent.Gate, st.Gate = &g, &GateSeen{}
	if wrote {
		st.Findings = dropFindings(st.Findings, kexecPrefix)
		g.Epoch = t.Intent.Epoch
		*st.Gate = GateSeen{Verdict: GateMatches, At: t.now, Detail: "written and read back"}
		if !g.Refuse { // else its gate sees first whether the firmware kept the order
			g.Pass, g.Passed, st.Gate.Step = &Pass{Until: t.now.Add(PassTime)}, true, GatePassed
		}
	}
	may := "nothing is written without a new apply"
	if wrote && g.Writes() {
		may = fmt.Sprintf("may write blocks of %s on %s that differ, at most %s each time", regionNames(g.Regions), diskName(disk), inventory.SizeText(g.RepairLimit))
	}
	t.line("step", "every boot is proved from now on; on a mismatch: %s; %s", g.OnMismatch, may)
}

func regionNames(list []inventory.Region) string {
	text := ""
	for i, r := range list {
		if i > 0 {
			text += ", "
		}
		text += r.Name
	}
	return text
}

func (t *transition) gateClaimed(ev GateClaimed) {
	g, seen := t.gate()
	if g == nil {
		t.impossible(ev)
		return
	}
	t.lostJump(g, seen)
	circles := t.circles(g)
	slow := g.Pass != nil && g.Pass.Asked.IsZero() && g.Passed && t.now.After(g.Pass.Until) && t.now.Before(g.Pass.Until.Add(PassTimeSlow))
	if g.Refuse && t.p.Reports && g.Passed && g.Pass != nil && !g.Pass.Asked.IsZero() {
		t.finding(bootOrderPrefix + "it was let through, asked the network again, and came back: its firmware does not start what BootNext names, and its order leads to no disk; declare onServerDown: lastGood and write it anew")
	}
	claim := ev.Claim
	t.Status.Progress = nil
	g.Boots++
	g.Claim, g.Jobs, g.Passed = &claim, 0, false
	if g.Pass = nil; slow {
		// It was let through and came back before it started anything: its firmware takes
		// longer than a pass lasts. What is past tells the next pass so.
		g.Pass = &Pass{}
	}
	seen.Boot = g.Boots
	t.line("seen", "the ramdisk claims it for its gate, boot %d", g.Boots)
	if stopped(t.State) && t.Status.Hold != nil {
		return // it waits there for its release
	}
	if circles {
		t.gateHoldsCircle(g, seen)
		return
	}
	seen.Step = GateInspecting
	t.gateAwaits(seen, t.deadline(StepInspecting))
	if t.Status.Health = Progressing; !t.busy() {
		t.Status.NextAction = ""
	}
}

func (t *transition) gateInspected(ev GateInspected) {
	g, seen := t.gate()
	if g == nil || seen.Step != GateInspecting {
		t.impossible(ev)
		return
	}
	facts := ev.Facts
	t.Status.Facts, t.Status.FactsAt = &facts, t.now
	if ev.Foreign != "" {
		t.gateStops(g, seen, inventory.Verdict{}, ev.Foreign, ev.Cure)
		return
	}
	g.Jobs++
	seen.Step = GateProving
	t.gateAwaits(seen, gateSilence)
}

// gateAwaits gives a step of the boot its deadline. To read and to write a disk is no part
// of a first start's health deadline, which goes on when the machine is let through.
func (t *transition) gateAwaits(seen *GateSeen, d time.Duration) {
	seen.Deadline = t.now.Add(d)
	if t.Status.Step == StepStarting {
		t.prolong(seen.Deadline)
	}
}

func (t *transition) gateRenewed(ev GateRenewed) {
	g, seen := t.gate()
	if g == nil || g.Claim == nil {
		return
	}
	claim := *g.Claim
	claim.Until = ev.Until
	g.Claim = &claim
	if !seen.Step.working() {
		return
	}
	silence := gateSilence
	if p := t.Status.Progress; p != nil {
		silence -= t.now.Sub(p.Moved) // who reports for ever, and moves no byte, is not waited for
	}
	if silence > 0 {
		t.gateAwaits(seen, silence)
	}
}

// localServed uses the pass.
func (t *transition) localServed() {
	if g := gated(t.State); g == nil || !g.Pass.valid(t.now) || !g.Pass.Asked.IsZero() {
		return
	}
	g, _ := t.gate()
	pass := *g.Pass
	pass.Asked = t.now
	g.Pass = &pass
	t.line("seen", "it was told to start its disk, which its gate has proved")
}

func (t *transition) gateReported(ev GateReported) {
	if g := gated(t.State); g == nil || t.Status.Gate == nil || !t.Status.Gate.Step.working() {
		return // late
	}
	r := ev.Report
	if r.Step != inventory.AgentDone && r.Step != inventory.AgentFailed {
		t.moves(r)
		return
	}
	g, seen := t.gate()
	t.Status.Progress = nil
	v := r.Verdict
	t.gateOrderSeen(g, seen, r)
	switch {
	case seen.Step == GateLoading:
		t.gateJumps(g, seen, r)
	case r.Step == inventory.AgentFailed:
		t.gateFails(g, seen, r.Error)
	case v == nil || !v.About(g.reads()):
		t.gateFails(g, seen, "its verdict is not about the regions of the image")
	case v.Matches() && seen.Step == GateRepairing:
		verdict := GateRepaired
		if g.OnMismatch == inventory.MismatchRestore {
			verdict = GateRestored
		}
		if g.writesAll() {
			if n := len(seen.Repairs); n > 0 {
				seen.Repairs = slices.Clone(seen.Repairs)
				seen.Repairs[n-1].Blocks = r.Written / inventory.GateBlock // the comparison did not count them
			}
		}
		t.line("step", "%s: %s written, and read back", verdict, inventory.SizeText(r.Written))
		t.gatePasses(g, seen, verdict, *v)
		t.measured(ev.Measured)
	case v.Matches():
		t.gatePasses(g, seen, GateMatches, *v)
		t.measured(ev.Measured)
	case seen.Step == GateRepairing:
		t.gateStops(g, seen, *v, "after its repair there still differs "+describeVerdict(*v), "its disk does not keep what is written to it: replace it")
	case g.Consent != nil:
		t.gateRepairs(g, seen, ev)
	case g.OnMismatch == inventory.MismatchReport && !v.Suspended: // which no firmware starts
		t.finding(gatePrefix + "not as it was written: " + describeVerdict(*v))
		t.gatePasses(g, seen, GateDiffers, *v)
	case g.Writes():
		t.gateRepairs(g, seen, ev)
	default:
		t.gateStops(g, seen, *v, "not as it was written: "+describeVerdict(*v), t.repairNext(*v))
	}
}

// repairNext is what a person does about a disk that differs, and that its gate may not
// write.
func (t *transition) repairNext(v inventory.Verdict) string {
	anew := fmt.Sprintf("recast retry %s writes it anew", t.Status.Machine)
	if v.Table != "" {
		return anew // and nothing else would
	}
	return fmt.Sprintf("recast release %s --repair lets it write what differs, and nothing else; or %s, its state too", t.Status.Machine, anew)
}

// gateRepairs uses the standing intent, where nothing speaks against it.
func (t *transition) gateRepairs(g *Gate, seen *GateSeen, ev GateReported) {
	v := *ev.Report.Verdict
	why, cure := ev.NoRepair, ev.Cure
	next := t.repairNext(v)
	by := "under the intent that stands since " + g.Since.UTC().Format(time.DateTime)
	said := g.Consent != nil && g.Consent.Epoch == ev.Epoch
	if said {
		by = "by the word of " + g.Consent.By
	}
	switch size := v.Blocks() * inventory.GateBlock; {
	case v.Table != "":
		why, cure = "a partition table is not repaired block by block", next
	case t.Status.Hold != nil:
		why, cure = fmt.Sprintf("held by %s: %s", t.Status.Hold.Owner, t.Status.Hold.Reason), ""
	case said:
	case !g.Writes():
		why, cure = "who let it be repaired said so in another store", next
	case g.Epoch == "":
		why, cure = "its disk was adopted, so that nobody approved a write to it", next
	case g.Epoch != ev.Epoch:
		why, cure = "the store came back from a backup since it was written, which ends what it permits", next
	case size > g.RepairLimit:
		why, cure = fmt.Sprintf("%s or more differ, and its repairLimit is %s", inventory.SizeText(size), inventory.SizeText(g.RepairLimit)), next
	case g.OnMismatch == inventory.MismatchRepair && seen.repairedSince(t.now.Add(-time.Hour)) >= maxRepairs:
		why, cure = fmt.Sprintf("it was repaired %d times within the hour", maxRepairs), "test its disk and its memory; "+next
	}
	if why != "" {
		t.gateStops(g, seen, v, fmt.Sprintf("not as it was written: %s; not repaired: %s", describeVerdict(v), why), cure)
		return
	}
	some := fmt.Sprintf("%d blocks", v.Blocks())
	if g.writesAll() {
		some = "up to " + inventory.SizeText(blockBytes(g.reads())) // nobody counted them
	}
	lately := slices.DeleteFunc(slices.Clone(seen.Repairs), func(r GateRepair) bool { return t.now.Sub(r.At) > 24*time.Hour })
	seen.Repairs = append(lately[max(0, len(lately)-99):], GateRepair{At: t.now, Blocks: v.Blocks()})
	// It is known to differ, until all is read back: a cut may come before that.
	seen.Verdict, seen.At, seen.Detail = GateDiffers, t.now, describeVerdict(v)
	t.Status.Evidence = Evidence{Level: inventory.E0, Generation: g.Generation, At: t.now, Detail: "its gate is writing what differs: " + describeVerdict(v)}
	seen.Step, seen.Regions = GateRepairing, v.Regions
	t.gateAwaits(seen, gateSilence)
	g.Jobs++
	t.line("step", "not as it was written: %s; may write %s to %s %s", describeVerdict(v), some, diskName(g.Disk), by)
}

// gatePasses lets the machine start its disk, once.
func (t *transition) gatePasses(g *Gate, seen *GateSeen, verdict GateVerdict, v inventory.Verdict) {
	st := &t.Status
	g.Failures, g.Consent = 0, nil
	seen.Verdict, seen.At, seen.Regions, seen.Detail = verdict, t.now, v.Regions, describeVerdict(v)
	st.Evidence = Evidence{Level: inventory.E3, Generation: g.Generation, At: t.now, Detail: "the gate read " + readText(v) + verityText(g.Verity)}
	why := t.noKexec(g, verdict)
	if verdict == GateDiffers {
		st.Evidence.Level, st.Evidence.Detail = inventory.E0, "the gate read what was not written: "+describeVerdict(v)
		t.line("step", "let through although it differs: onMismatch is %s", g.OnMismatch)
	} else {
		st.Findings = dropFindings(st.Findings, gatePrefix)
		t.line("step", "as it was written: %s%s", readText(v), verityText(g.Verity))
	}
	switch {
	case why == "":
		g.Jobs++
		seen.Step = GateLoading
		t.gateAwaits(seen, gateSilence)
	case g.Kernel == nil:
		t.line("step", "handed over by a restart")
		t.gateOpensDisk(g, seen)
	default:
		t.line("step", "handed over by a restart: %s", why)
		if g.NoKexec != "" {
			t.finding(fmt.Sprintf("%s%s; its gate restarts it until its disk is written anew, or: recast release %s", kexecPrefix, g.NoKexec, st.Machine))
		}
		t.gateOpensDisk(g, seen)
	}
	t.gateEnforces(g, seen)
	if !t.p.Reports && st.Phase == Active {
		st.Health = HealthUnknown
	}
	if written(st.Step) {
		t.prolong(t.now.Add(t.deadline(StepStarting)))
	}
}

// gateOpensDisk lets the machine start its disk, once.
func (t *transition) gateOpensDisk(g *Gate, seen *GateSeen) {
	last := PassTime
	if g.Pass != nil {
		last = PassTimeSlow
	}
	g.Pass, g.Jumped = &Pass{Until: t.now.Add(last)}, time.Time{}
	t.gateLeft(g, seen)
}

// gateLeft: the machine is on its way to its system.
func (t *transition) gateLeft(g *Gate, seen *GateSeen) {
	g.Passed = true
	seen.Step, seen.Deadline = GatePassed, time.Time{}
	if t.p.Reports {
		seen.Deadline = t.now.Add(t.deadline(StepStarting))
	}
}

// noKexec says why a boot that was proved is not handed over by kexec, "" it is.
func (t *transition) noKexec(g *Gate, verdict GateVerdict) string {
	facts := t.Status.Facts
	switch {
	case g.Kernel == nil:
		return "its image names no kernel"
	case verdict == GateDiffers:
		return "only a kernel that was proved is started so"
	case t.p.Restart != "":
		return t.p.Restart
	case facts != nil && facts.Boot.SecureBoot:
		return "its firmware has Secure Boot on"
	}
	return g.NoKexec
}

// gateJumps: the system's kernel is loaded and starts now, or cannot be. No pass is
// needed for it: a machine that asks the network again goes through its gate again.
func (t *transition) gateJumps(g *Gate, seen *GateSeen, r inventory.Report) {
	if g.Pass = nil; r.Step == inventory.AgentFailed {
		t.line("error", "not handed over by kexec: %s; it restarts instead", r.Error)
		t.gateOpensDisk(g, seen)
		return
	}
	text := g.Kernel.Kernel.Path + " " + g.Kernel.Kernel.Digest.Short()
	if i := g.Kernel.Initrd; i != nil {
		text += ", " + i.Path + " " + i.Digest.Short()
	}
	t.line("step", "handed over by kexec: %s", text)
	g.Jumped = t.now
	t.gateLeft(g, seen)
}

// gateFails: nothing is known; it tries anew, not for ever.
func (t *transition) gateFails(g *Gate, seen *GateSeen, why string) {
	g.Failures++
	if g.Failures > MaxRestarts {
		t.gateStops(g, seen, inventory.Verdict{}, fmt.Sprintf("it could not be proved, %d times: %s", g.Failures, why), "mend the cause")
		return
	}
	seen.Step = GateAgain
	t.gateAwaits(seen, t.deadline(StepBooting))
	t.line("error", "gate boot %d: %s", g.Boots, why)
}

// gateStops holds the machine where it is: its disk is not started.
func (t *transition) gateStops(g *Gate, seen *GateSeen, v inventory.Verdict, why, cure string) {
	seen.Verdict, seen.At, seen.Regions = GateDiffers, t.now, v.Regions
	t.Status.Evidence = Evidence{Level: inventory.E0, Generation: g.Generation, At: t.now, Detail: "the gate: " + why}
	t.gateHolds(g, seen, why, cure)
	if g.OnMismatch == inventory.MismatchPowerOff {
		seen.Step = GateOff
	}
}

// gateHolds keeps the machine in the ramdisk, whatever is known of its disk.
func (t *transition) gateHolds(g *Gate, seen *GateSeen, why, cure string) {
	st := &t.Status
	g.Pass, g.Passed, g.Failures, g.Circles, g.Consent = nil, false, 0, 0, nil
	seen.Step, seen.Detail, seen.Deadline = GateStopped, why, time.Time{}
	st.Health = Degraded
	t.line("error", "stopped by its gate: %s", why)
	if g.Anew && st.Hold == nil {
		st.NextAction = "its turn in the rollout writes it anew"
		return
	}
	if st.Hold == nil {
		st.Hold = &Hold{Owner: "recast", Reason: gatePrefix + why, Cure: cure, Since: t.now}
	}
	st.NextAction = fmt.Sprintf("%s, then: recast release %s", cmp.Or(cure, "find out why"), st.Machine)
	if cure == unfreezeNext && st.Hold.Owner == "recast" {
		st.Hold = &Hold{Owner: "recast", Reason: st.Hold.Reason, Cure: cure, Since: st.Hold.Since, Thaws: true}
		st.NextAction = cure + " lets it go on"
	}
}

// gateStarted notes what a start of the system says of its gate.
func (t *transition) gateStarted() {
	if gated(t.State) == nil {
		return
	}
	g, seen := t.gate()
	seen.Deadline, t.Status.Progress = time.Time{}, nil
	if g.Passed {
		if !g.Jumped.IsZero() {
			g.Lost = 0
		}
		g.Pass, g.Passed, g.Jumped, g.Circles, seen.Step = nil, false, time.Time{}, 0, GateIdle
		t.Status.Findings = dropFindings(t.Status.Findings, gateNothing)
		return
	}
	if !stopped(t.State) { // what its gate holds stays held, whoever says that it runs
		seen.Step = GateIdle
	}
	seen.Verdict, seen.At, seen.Regions = GateUnverified, t.now, nil
	seen.Detail = "it started from its disk without its gate"
	t.Status.Evidence = Evidence{Level: inventory.E2, Generation: t.Status.Running, At: t.now, Detail: "the system's own word: this start was not proved"}
	t.finding(gatePrefix + "its last start was not proved: it did not come by its gate, because recast was not reached, or by its boot order")
}

// gateNothing begins what is found of a step that nothing came of.
const gateNothing = gatePrefix + "nothing came"

// gateSilence of a boot that proves or repairs: its reports renew its lease long before.
const gateSilence = LeaseTime + LeaseGrace

// gateLate tells that nothing came of a step of a boot through the gate.
func gateLate(st *Status, now time.Time) bool {
	return !Busy(st.Phase) && st.Gate != nil && !st.Gate.Deadline.IsZero() && !now.Before(st.Gate.Deadline)
}

// gateTicked says so, once. What to do about it is a person's: the machine is not ours
// to cycle while its system may be on its way.
func (t *transition) gateTicked() {
	if !gateLate(&t.Status, t.now) || gated(t.State) == nil {
		return
	}
	_, seen := t.gate()
	seen.Deadline = time.Time{}
	t.Status.Health = Degraded
	t.Status.NextAction = fmt.Sprintf("look at its console; recast power cycle %s sends it through its gate again", t.Status.Machine)
	t.finding(fmt.Sprintf("%s of boot %d: %s", gateNothing, seen.Boot, gateMissing(seen.Step)))
}

// gateMissing is what a boot through the gate waits for.
func gateMissing(step GateStep) string {
	switch step {
	case GateInspecting:
		return "its ramdisk has not reported its inventory"
	case GateProving:
		return "its ramdisk is comparing its disk"
	case GateRepairing:
		return "its ramdisk is repairing its disk"
	case GateLoading:
		return "its disk was proved, and its ramdisk is loading its kernel"
	case GatePassed:
		return "its disk was proved, and its system has not reported itself since"
	}
	return "its ramdisk could not prove it, and has not come back"
}
