package provision

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
)

// State is everything durable about one machine.
type State struct {
	Status Status  `json:"status"`
	Intent *Intent `json:"intent,omitempty"`
}

// Params is what Step needs to know of the declaration.
type Params struct {
	HasBMC    bool
	Via       inventory.BootVia             // how the BMC makes it boot
	Attempts  int                           // at least 1
	Deadlines map[string]inventory.Duration // by step; the default for what is not in it
	Health    time.Duration                 // deadline of starting
	// Reports: the installed system will say what it runs.
	Reports bool
	// Restart is why its gate hands over by a restart whatever else is declared; "" it
	// may start its system by kexec.
	Restart string
	// Declared is the board that the machine is declared with; nothing in it is known of it.
	Declared Board
	// Enforce: switch it on again where somebody else switched it off.
	Enforce bool
}

// ImpossibleError is a transition that must not exist: a bug, never bad input.
type ImpossibleError struct {
	Machine string
	Phase   Phase
	Step    StepName
	Event   string
}

func (e *ImpossibleError) Error() string {
	return fmt.Sprintf("machine %q: event %s is impossible in %s/%s", e.Machine, e.Event, e.Phase, e.Step)
}

// Step is the only way a phase changes. It does no I/O and reads no clock. It
// returns the next state, what to do to the BMC, and lines for the timeline.
// Late or foreign events leave the state as it is. The given state is not
// changed.
func Step(p Params, s State, now time.Time, ev Event) (State, []Action, []TimelineEntry, error) {
	t := &transition{p: p, now: now, State: s}
	if s.Intent != nil {
		in := *s.Intent // what the caller holds stays as it is
		t.Intent = &in
	}
	switch ev := ev.(type) {
	case Started:
		t.started(ev)
	case BMCDone:
		t.bmcDone(ev)
	case BootWaits:
		t.bootWaits()
	case BootServed:
		t.bootServed()
	case Claimed:
		t.claimed(ev)
	case Inspected:
		t.inspected(ev)
	case Reported:
		t.reported(ev)
	case Renewed:
		t.renewed(ev)
	case Running:
		t.running(ev)
	case Ticked:
		t.ticked()
	case Aborted:
		t.aborted(ev)
	case Held:
		t.hold(ev.Hold)
	case Suspected:
		t.suspected(ev)
	case Noticed:
		t.noticed(ev)
	case Looked:
		t.looked(ev)
	case Enrolled:
		t.enrolled(ev)
	case Offered:
		t.offered(ev)
	case Identified:
		t.identified(ev)
	case Reverted:
		t.reverted()
	case Mended:
		t.mended()
	case GateClaimed:
		t.gateClaimed(ev)
	case GateInspected:
		t.gateInspected(ev)
	case TPMEnrolled:
		t.tpmEnrolled(ev)
	case TPMBack:
		t.tpmBack()
	case TPMForeign:
		t.tpmForeign(ev)
	case GateReported:
		t.gateReported(ev)
	case GateRenewed:
		t.gateRenewed(ev)
	case LocalServed:
		t.localServed()
	default:
		t.impossible(ev)
	}
	if t.err != nil {
		return s, nil, nil, t.err
	}
	return t.State, t.actions, t.lines, nil
}

type transition struct {
	State
	p       Params
	now     time.Time
	actions []Action
	lines   []TimelineEntry
	err     error
}

func (t *transition) impossible(ev Event) {
	t.err = &ImpossibleError{t.Status.Machine, t.Status.Phase, t.Status.Step, fmt.Sprintf("%T", ev)}
}

func (t *transition) line(kind, format string, args ...any) {
	t.lines = append(t.lines, TimelineEntry{Time: t.now, Kind: kind, Text: fmt.Sprintf(format, args...)})
}

// busy reports whether an attempt is under way.
func (t *transition) busy() bool { return Busy(t.Status.Phase) }

// Busy phases have an attempt under way and a live intent.
func Busy(p Phase) bool { return p == Deploying || p == Inspecting || p == Cleaning }

// enter moves to a step and gives it its deadline.
func (t *transition) enter(step StepName, next string) {
	t.Status.Step, t.Status.Since, t.Status.NextAction = step, t.now, next
	t.Status.Progress = nil
	t.Status.Deadline = t.now.Add(t.deadline(step))
	t.line("step", "%s", step)
}

func (t *transition) deadline(step StepName) time.Duration {
	if step == StepStarting && t.p.Health > 0 {
		return t.p.Health
	}
	if step == StepPowerOff || step == StepRestarting {
		step = StepStopping // the same to a BMC
	}
	if d := cmp.Or(t.p.Deadlines[string(step)], inventory.DefaultDeadlines[string(step)]); d > 0 {
		return time.Duration(d)
	}
	return 10 * time.Minute
}

func (t *transition) phase(ph Phase) {
	if t.Status.Phase != ph {
		t.line("phase", "%s", ph)
	}
	t.Status.Phase, t.Status.Step, t.Status.Since = ph, StepNone, t.now
	t.Status.Ran = t.Status.Ran || ph == Active
	t.Status.Deadline, t.Status.NextAction, t.Status.Progress = time.Time{}, "", nil
}

func (t *transition) started(ev Started) {
	if t.busy() || ev.Purpose == PurposeWipe && ev.Consent == nil {
		t.impossible(ev)
		return
	}
	var fence int64
	var claim *ClaimState
	var gate *Gate
	consent := ev.Consent
	if old := t.Intent; old != nil {
		fence, gate = old.Fence, old.Gate
		claim = old.Claim // its lease may still run: see begin
		if consent == nil && ev.Erase && old.Erase && old.Plan == ev.Plan {
			consent = old.Consent // another turn of one plan: it is about the same disk
		}
	}
	t.Intent = &Intent{Machine: t.Status.Machine, Purpose: ev.Purpose, Epoch: ev.Epoch,
		Generation: ev.Generation, Rendered: ev.Rendered, Fence: fence, Erase: ev.Erase, Consent: consent,
		Quick: ev.Quick, Live: true, Claim: claim, Gate: gate, Plan: ev.Plan, By: ev.By, Created: t.now, Before: t.Status.Phase}
	switch ev.Purpose {
	case PurposeDeploy:
		t.phase(Deploying)
	case PurposeWipe:
		t.phase(Cleaning)
	default:
		t.phase(Inspecting)
	}
	t.Status.Wanted, t.Status.WantedRendered = ev.Generation, ev.Rendered
	t.Status.Attempt, t.Status.Restarts, t.Status.LastError = 1, 0, ""
	t.Status.FailedImage = ""
	switch ev.Purpose {
	case PurposeDeploy:
		t.Status.Findings = t.aboutBoard() // the others are about what ends now; the timeline keeps them
		t.Status.OffSince, t.Status.SwitchedOn = time.Time{}, nil
	case PurposeWipe:
		t.Status.Findings = dropFindings(t.Status.Findings, notWiped)
	}
	t.Status.Health = Progressing
	switch {
	case ev.Purpose == PurposeWipe:
		t.line("operator", "wipe of %s, %s, started for %s", diskText(consent.Disk), orBlank(consent.Holds), ev.By)
	case ev.Generation == "":
		t.line("operator", "%s started for %s", ev.Purpose, ev.By)
	default:
		t.line("operator", "%s of generation %s started for %s", ev.Purpose, ev.Generation.Short(), ev.By)
	}
	t.begin()
}

// begin opens an attempt: off, armed, on; or a person where there is no BMC.
// The attempt was counted before this, so that a crash cannot lose it.
func (t *transition) begin() {
	t.Intent.Rearmed, t.Intent.Cycled = false, false
	if t.p.HasBMC {
		t.enter(StepStopping, "")
		t.actions = append(t.actions, ActOff)
		return
	}
	if c := t.Intent.Claim; c != nil && t.now.Before(c.Until.Add(LeaseGrace)) {
		// Nothing can see it off, so the earlier boot's lease must run out first.
		t.enter(StepStopping, "the lease of its earlier boot runs out")
		t.Status.Deadline = c.Until.Add(LeaseGrace)
		return
	}
	t.await()
}

// await a person, under a fence of its own.
func (t *transition) await() {
	t.fence()
	t.enter(StepAwaitingPerson, fmt.Sprintf("power-cycle %s by hand, network first in its boot order", t.Status.Machine))
}

// fence opens a new fence: the caller saw the machine off, or an older boot
// loses by its token, which names the fence.
func (t *transition) fence() {
	t.Intent.Fence++
	t.Intent.Boots, t.Intent.Claim, t.Intent.Asked = 0, nil, false
	t.Intent.Via, t.Intent.Board, t.Intent.Opened = "", nil, t.now
	if t.p.HasBMC {
		t.Intent.Via = t.p.Via
	}
	if w := t.Intent.Write; w != nil && w.Attempt != t.Status.Attempt {
		t.Intent.Earlier, t.Intent.Write = &w.Disk, nil
	}
}

// dueAction is what a step waits for; "" none. A power cycle is two, with what
// was seen of the first on record before the second, so that a server that is killed
// between them, or after, never cycles twice.
func dueAction(st Status) Action {
	switch st.Step {
	case StepStopping, StepPowerOff:
		return ActOff
	case StepArming:
		return ActArm
	case StepPowering:
		return ActOn
	case StepRestarting:
		if st.Power == string(bmc.PowerOff) {
			return ActOn
		}
		return ActOff
	}
	return ""
}

func (t *transition) bmcDone(ev BMCDone) {
	if ev.Action == ActRestore {
		t.restored(ev)
		return
	}
	if !t.busy() {
		return
	}
	expect := dueAction(t.Status)
	if ev.Action == ActClear {
		if ev.Err != "" {
			what := "the boot override still stands: "
			if t.Intent.Via == inventory.BootMedia {
				what = "the boot override, or the virtual medium, still stands: "
			}
			t.finding(what + ev.Err)
		}
		return
	}
	if ev.Err == "" {
		switch ev.Action {
		case ActOff:
			t.Status.Power = "off"
		case ActOn:
			t.Status.Power = "on"
		}
	}
	if expect != ev.Action {
		return // late: the machine has moved on
	}
	if ev.Err == "" {
		t.line("bmc", "%s: done", t.words(ev.Action))
	}
	switch t.Status.Step {
	case StepPowerOff:
		t.powerOffDone(ev.Err)
		return
	case StepRestarting:
		t.cycled(ev)
		return
	}
	if t.held() {
		return
	}
	if ev.Err != "" {
		t.fail(fmt.Sprintf("%s: %s", t.words(ev.Action), ev.Err), !ev.Final)
		if ev.Next != "" && !t.busy() {
			t.Status.NextAction = strings.Replace(againNext(t.Intent, t.Status.Machine), "mend the cause", ev.Next, 1)
		}
		return
	}
	switch t.Status.Step {
	case StepStopping:
		t.fence()
		t.enter(StepArming, "")
		t.actions = append(t.actions, ActArm)
	case StepArming:
		t.enter(StepPowering, "")
		t.actions = append(t.actions, ActOn)
	case StepPowering:
		t.enter(StepBooting, bootsNext(t.Intent.Via))
	}
}

// words for what was done to the BMC.
func (t *transition) words(a Action) string {
	if a == ActArm {
		return armWords(t.Intent.Via)
	}
	return string(a)
}

// clear takes back what was armed, once.
func (t *transition) clear() {
	if t.p.HasBMC && !slices.Contains(t.actions, ActClear) {
		t.actions = append(t.actions, ActClear)
	}
}

// mayBoot lists the steps in which the ramdisk is the answer.
func mayBoot(step StepName) bool {
	switch step {
	case StepArming, StepPowering, StepBooting, StepClaiming, StepInspecting, StepWriting, StepVerifying, StepAwaitingPerson:
		return true
	}
	return false
}

func (t *transition) bootServed() {
	if !t.busy() {
		return
	}
	switch t.Status.Step {
	// Not while it is being armed: it was seen off, so that it was somebody else
	// who asked, and the machine must still be switched on.
	case StepPowering, StepBooting, StepAwaitingPerson:
		t.enter(StepClaiming, "the ramdisk starts and claims the machine")
	case StepClaiming, StepInspecting, StepWriting, StepVerifying:
		// It restarted, and has to come as far as its claim again. Once for each
		// claim: one that restarts for ever must not wait for ever.
		if t.Intent.Asked {
			return
		}
		t.Intent.Asked = true
		t.line("seen", "it asked for its boot script again while %s", t.Status.Step)
		t.prolong(t.now.Add(t.deadline(StepClaiming)))
	}
}

// bootWaits: it is there and will be served. It asks every few seconds, and its
// deadline is moved so seldom that the store does not notice.
func (t *transition) bootWaits() {
	if !t.busy() {
		return
	}
	switch t.Status.Step {
	case StepPowering, StepBooting, StepAwaitingPerson:
		if left := t.Status.Deadline.Sub(t.now); !t.Status.Deadline.IsZero() && left < t.deadline(StepBooting)/2 {
			t.line("seen", "it waits for its turn to fetch the ramdisk")
			t.prolong(t.now.Add(t.deadline(StepBooting)))
		}
	}
}

// prolong moves the deadline away, never nearer.
func (t *transition) prolong(until time.Time) {
	if until.After(t.Status.Deadline) {
		t.Status.Deadline = until
	}
}

func (t *transition) claimed(ev Claimed) {
	if !t.busy() || !mayBoot(t.Status.Step) {
		t.impossible(ev)
		return
	}
	t.Intent.Boots++
	t.Intent.Asked = false
	claim := ev.Claim
	t.Intent.Claim = &claim
	if ev.Resume {
		t.Status.Restarts++
		t.line("seen", "the ramdisk started again (%d of %d)", t.Status.Restarts, MaxRestarts)
	}
	t.Status.Identity = cmp.Or(claim.Identity, inventory.L0)
	t.Status.Findings = dropFindings(t.Status.Findings, identityPrefix)
	if ev.Doubt != "" {
		t.finding(identityPrefix + ev.Doubt)
	}
	t.enter(StepInspecting, "the ramdisk reports its inventory")
	t.clear()
}

func (t *transition) inspected(ev Inspected) {
	if !t.busy() || t.Status.Step != StepInspecting {
		t.impossible(ev)
		return
	}
	facts := ev.Facts
	t.Status.Facts, t.Status.FactsAt = &facts, t.now
	t.disproved(facts)
	t.secured(ev.Declared, ev.Facts.Boot.SecureBoot)
	t.mode(ev)
	d := ev.Decision
	if wipe := t.Intent.Purpose == PurposeWipe; wipe != (d.Verdict == DiskWipe) && (!wipe || d.Verdict != DiskRefuse) {
		t.impossible(ev) // what one purpose permits, no other does
		return
	}
	switch d.Verdict {
	case DiskWipe:
		t.mayWipe(ev)
	case DiskWrite:
		if t.Intent.Purpose != PurposeDeploy {
			t.impossible(ev)
			return
		}
		if w := t.Intent.Write; w == nil || w.Attempt != t.Status.Attempt {
			t.Intent.Write = &WriteState{Disk: d.Disk, Holds: d.Holds, At: t.now, Attempt: t.Status.Attempt, Declared: ev.Declared, Gate: d.Gate}
		} else if !sameDisk(w.Disk, d.Disk) {
			t.fail(fmt.Sprintf("the disk changed within an attempt: %s was to be written, now it is %s", diskName(w.Disk), diskName(d.Disk)), false)
			return
		}
		if t.Intent.Erase && t.Intent.Consent == nil {
			t.Intent.Consent = &Consent{Disk: d.Disk, Holds: d.Holds}
		}
		t.Status.DiskImage = beneath(t.Status, d.Disk, func(inventory.Digest) inventory.Digest { return "" })
		// From here the disk may be erased: nothing is known to run any more.
		t.Status.Running, t.Status.RunningRendered = "", ""
		t.Status.Evidence = Evidence{Level: inventory.E0, Generation: t.Status.Wanted, At: t.now}
		t.enter(StepWriting, "")
		t.line("step", "may erase %s (%s)", diskName(d.Disk), orBlank(d.Holds))
	case DiskAdopt:
		t.adopt(d)
	case DiskDamaged:
		t.damaged(d.Image, d.Reason)
	case DiskLook:
		t.Intent.Live = false
		t.settle()
	case DiskAsk:
		t.Intent.Live = false
		t.settle()
		t.Status.LastError = d.Reason
		t.Status.NextAction = fmt.Sprintf("recast apply PATH --erase %s", t.Status.Machine)
		t.line("error", "%s", d.Reason)
	default:
		t.fail(d.Reason, false)
	}
}

// secureBootPrefix begins the finding of secured.
const secureBootPrefix = "Secure Boot: "

// secured compares what is declared of Secure Boot with what was found of it.
func (t *transition) secured(declared *inventory.Machine, on bool) {
	if declared == nil || on || !declared.SecureBoot {
		t.Status.Findings = dropFindings(t.Status.Findings, secureBootPrefix)
		return
	}
	t.finding(secureBootPrefix + "it is declared secureBoot: true, and its firmware has it off, so that it starts any loader: switch it on in its setup, or remove the declaration")
}

// toldSecure takes the installed system's word of it, which one that cannot read the
// firmware's variable does not give.
func (t *transition) toldSecure(ev Running) {
	on := ev.Report.SecureBoot == "01"
	if !on && ev.Report.SecureBoot != "00" {
		return
	}
	if t.Status.Facts != nil {
		facts := *t.Status.Facts
		facts.Boot.SecureBoot = on
		t.Status.Facts = &facts
	}
	t.secured(ev.Declared, on)
}

// modePrefix begins the finding of mode.
const modePrefix = "firmware: "

// mode compares the firmware's that is declared with the one the ramdisk came by.
// Network boot is armed for the declared one.
func (t *transition) mode(ev Inspected) {
	seen := ev.Facts.Boot.Mode
	if ev.Declared == nil || ev.Declared.Firmware == "" || seen == "" || seen == string(ev.Declared.Firmware) {
		t.Status.Findings = dropFindings(t.Status.Findings, modePrefix)
		return
	}
	t.finding(fmt.Sprintf("%sit is declared firmware: %s, and booted by %s: change the mode in its setup, or the declaration", modePrefix, ev.Declared.Firmware, seen))
}

// disproved takes back what is on record of the disk that was written, where the
// ramdisk sees that it holds something else.
func (t *transition) disproved(facts inventory.Facts) {
	st := &t.Status
	if st.Running == "" || st.Disk == nil {
		return
	}
	what := ""
	for _, d := range facts.Disks {
		if st.Disk.Matches(d) != nil {
			continue
		}
		if m := d.Recast; m != nil && m.Machine == st.Machine {
			return // which generation of ours, its system says
		}
		what = "holds " + d.Holds
		if d.Holds == "" {
			what = "is blank"
		}
	}
	if what == "" {
		return // one that is not there says nothing of what it holds
	}
	text := fmt.Sprintf("the ramdisk saw that %s %s, not generation %s", diskName(*st.Disk), what, st.Running.Short())
	st.Running, st.RunningRendered, st.RunningWrite = "", "", ""
	st.Evidence = Evidence{Level: inventory.E2, At: t.now, Detail: text}
	t.finding(text)
}

// sameDisk compares all but the name, which a restart may change.
func sameDisk(a, b inventory.DiskID) bool {
	a.Name, b.Name = "", ""
	return a == b
}

func orBlank(holds string) string {
	if holds == "" {
		return "blank"
	}
	return "holding " + holds
}

// adopt believes the disk's own marker.
func (t *transition) adopt(d DiskDecision) {
	t.Intent.Live = false
	disk := d.Disk
	t.Status.Disk, t.Status.Unfinished = &disk, false
	t.Status.Running, t.Status.RunningRendered = d.Marker.Generation, d.Marker.Rendered
	t.Status.Attempt, t.Status.RunningWrite = d.Marker.Attempt, d.Marker.Write
	t.Status.Evidence = Evidence{Level: inventory.E2, Generation: d.Marker.Generation, At: t.now, Detail: "the disk's own config volume"}
	t.phase(Active)
	t.gateOpens(disk, d.Gate, false)
	t.Status.Health = HealthUnknown
	t.line("phase", "adopted: %s says generation %s, attempt %d", diskName(d.Disk), d.Marker.Generation.Short(), d.Marker.Attempt)
}

// settle goes back to what the machine was before a look. One that was not seen
// running before is not active for having been looked at.
func (t *transition) settle() {
	if before := t.Intent.Before; t.Status.Running != "" && (before == Active || before == "") {
		t.phase(Active)
	} else {
		t.phase(Available)
	}
	t.Status.Health = HealthUnknown
}
