package provision

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

func orDash(s string) string { return cmp.Or(s, "-") }

var gateRegions = []inventory.Region{{Name: "esp", Start: 1 << 20, End: 2 << 20}, {Name: "usr", Start: 2 << 20, End: 8 << 20}}

func storyGate(on inventory.OnMismatch) *Gate {
	return &Gate{Gate: inventory.Gate{OnMismatch: on, RepairLimit: 1 << 20}, Regions: gateRegions}
}

// storyKernel is what a gate of the stories may start by kexec.
var storyKernel = &inventory.JobKernel{Args: "ro",
	Kernel: inventory.DiskFile{Path: "/vmlinuz", Size: 4096, Digest: inventory.DigestOf([]byte("kernel")), Extents: []inventory.Extent{{Start: 2 << 20, Length: 4096}}},
	Initrd: &inventory.DiskFile{Path: "/initrd.img", Size: 4096, Digest: inventory.DigestOf([]byte("initrd")), Extents: []inventory.Extent{{Start: 3 << 20, Length: 4096}}}}

// storyVerdict is of a disk of which so many blocks differ.
func storyVerdict(blocks int64, table string) *inventory.Verdict {
	right, wrong := inventory.DigestOf([]byte("right")), inventory.DigestOf([]byte("wrong"))
	v := &inventory.Verdict{Table: table}
	for _, r := range gateRegions {
		v.Regions = append(v.Regions, inventory.RegionVerdict{Name: r.Name, Read: right, Want: right})
	}
	if blocks > 0 {
		v.Regions[1] = inventory.RegionVerdict{Name: "usr", Read: wrong, Want: right, Blocks: blocks, First: 4096}
	}
	return v
}

// gateEvent reads an event of a boot through the gate:
//
//	gate claim BOOT
//	gate inventory [why it is another disk]
//	gate report proving|done|failed [done=N] [blocks=N] [table] [suspended] [epoch=E] [other] [frozen] [refused WHY]
func (s *story) gateEvent(t *testing.T, f []string) Event {
	t.Helper()
	switch f[0] {
	case "claim":
		return GateClaimed{ClaimState{BootID: f[1], UUID: "u1", Until: s.now.Add(LeaseTime)}}
	case "inventory":
		ev := GateInspected{Foreign: strings.Join(f[1:], " ")}
		if ev.Foreign != "" {
			ev.Cure = "put it back"
		}
		return ev
	case "renewed":
		return GateRenewed{s.now.Add(LeaseTime)}
	case "report":
		ev := GateReported{Report: inventory.Report{Step: inventory.AgentStep(f[1])}, Epoch: "e"}
		var blocks int64
		table, suspended := "", false
		for i, w := range f[2:] {
			switch {
			case strings.HasPrefix(w, "blocks="):
				fmt.Sscanf(w, "blocks=%d", &blocks)
			case strings.HasPrefix(w, "done="):
				fmt.Sscanf(w, "done=%d", &ev.Report.Done)
			case w == "suspended":
				suspended = true
			case w == "table":
				table = "partition 1 is missing"
			case strings.HasPrefix(w, "epoch="):
				ev.Epoch = w[len("epoch="):]
			case w == "frozen":
				ev.NoRepair, ev.Cure = "everything is frozen: audit", unfreezeNext
			case w == "refused":
				ev.NoRepair = strings.Join(f[3+i:], " ")
			}
		}
		if ev.Report.Step == inventory.AgentDone && s.state.Status.Gate.Step != GateLoading {
			ev.Report.Verdict = storyVerdict(blocks, table)
			ev.Report.Verdict.Suspended = suspended
			ev.Report.Written = 8192
			if f[len(f)-1] == "other" {
				ev.Report.Verdict.Regions = ev.Report.Verdict.Regions[:1]
			}
		}
		if ev.Report.Step == inventory.AgentFailed {
			ev.Report.Error = "the disk cannot be read"
		}
		return ev
	}
	t.Fatalf("transcript: cannot read gate %q", f)
	return nil
}

// TestNothingIsEverRepairedWithoutItsStandingIntent walks at random over what can
// happen to a machine with a gate, and around it.
func TestNothingIsEverRepairedWithoutItsStandingIntent(t *testing.T) {
	reached := map[GateStep]int{}
	verdicts := map[GateVerdict]int{}
	for seed := range uint64(600) {
		w := newWalk(seed)
		w.gate = storyGate(pick(w.r, inventory.MismatchRepair, inventory.MismatchRepair, inventory.MismatchRestore, inventory.MismatchReport, inventory.MismatchHold, inventory.MismatchPowerOff))
		if w.r.IntN(2) == 0 {
			w.gate.Kernel = storyKernel
		}
		w.p.Restart = pick(w.r, "", "", "", "its boot.handover is reboot")
		if seed%4 > 0 { // the others have to come so far by themselves
			w.s = gatedStory(t, w.gate.OnMismatch).state
			w.s.Intent.Gate.Kernel = w.gate.Kernel
		}
		for range 150 {
			w.gateStep(t, seed)
			if g := w.s.Status.Gate; g != nil {
				reached[g.Step]++
				verdicts[g.Verdict]++
			}
		}
	}
	for _, step := range []GateStep{GateIdle, GateInspecting, GateProving, GateRepairing, GateLoading, GatePassed, GateAgain, GateStopped, GateOff} {
		if reached[step] < 50 {
			t.Errorf("%q was reached %d times", step, reached[step])
		}
	}
	for _, v := range []GateVerdict{GateMatches, GateRepaired, GateRestored, GateDiffers, GateUnverified} {
		if verdicts[v] < 50 {
			t.Errorf("%q was the verdict %d times", v, verdicts[v])
		}
	}
}

// gateEvent is what a boot through the gate could bring, likely or not.
func (w *walk) gateEvent() Event {
	r := w.r
	report := func() Event {
		ev := GateReported{Epoch: pick(r, "e", "e", "e", "e", "f"), NoRepair: pick(r, "", "", "", "too many"),
			Report: inventory.Report{Step: pick(r, inventory.AgentProving, inventory.AgentDone, inventory.AgentDone, inventory.AgentDone, inventory.AgentDone, inventory.AgentFailed)}}
		if r.IntN(8) > 0 {
			ev.Report.Verdict = storyVerdict(pick[int64](r, 0, 0, 1, 3, 256, 257, 9999), pick(r, "", "", "", "", "", "another"))
			if r.IntN(8) == 0 {
				ev.Report.Verdict.Regions = ev.Report.Verdict.Regions[:1]
			}
		}
		return ev
	}
	claim := func() Event {
		w.boots++
		return GateClaimed{ClaimState{BootID: fmt.Sprint(w.boots), UUID: "u1", Addr: netip.MustParseAddr("10.0.0.5"), Until: w.now.Add(LeaseTime)}}
	}
	if g := gated(w.s); g != nil && r.IntN(3) > 0 {
		switch w.s.Status.Gate.Step {
		case GateInspecting:
			return GateInspected{Foreign: pick(r, "", "", "", "", "", "another disk")}
		case GateProving:
			return report()
		case GateRepairing:
			if r.IntN(2) == 0 {
				return GateReported{Epoch: "e", Report: inventory.Report{Step: inventory.AgentDone, Verdict: storyVerdict(0, "")}}
			}
			return report()
		case GateLoading:
			if r.IntN(8) == 0 {
				return claim()
			}
			return GateReported{Epoch: "e", Report: inventory.Report{Step: pick(r, inventory.AgentLoading, inventory.AgentDone, inventory.AgentDone, inventory.AgentFailed), Error: "no"}}
		case GatePassed:
			return pick[Event](r, LocalServed{}, w.running(), w.running())
		default:
			return claim()
		}
	}
	switch r.IntN(9) {
	case 0:
		return GateInspected{Foreign: pick(r, "", "another disk")}
	case 1:
		return report()
	case 2:
		return claim()
	case 3:
		return pick[Event](r, LocalServed{}, GateRenewed{w.now.Add(LeaseTime)})
	case 4:
		return w.running()
	}
	ev := w.event()
	if in, ok := ev.(Inspected); ok {
		in.Decision.Gate = w.gate
		return in
	}
	return ev
}

func (w *walk) gateStep(t *testing.T, seed uint64) {
	if w.r.IntN(4) == 0 && w.s.Status.Hold != nil {
		if stopped(w.s) && gated(w.s) != nil && w.r.IntN(2) == 0 {
			w.s = consented(w.s, "ann", pick(w.r, "e", "e", "f"))
		} else {
			w.s = released(w.s)
		}
	}
	ev := w.gateEvent()
	w.now = w.now.Add(time.Duration(w.r.Int64N(int64(pick(w.r, time.Second, time.Minute, 25*time.Minute)))))
	prev := w.s
	frozenBefore := ""
	if w.r.IntN(16) == 0 {
		frozenBefore = frozen(t, prev)
	}
	next, _, lines, err := Step(w.p, w.s, w.now, ev)
	w.trail = append(w.trail, trailLine{w.now, ev, next.Status.Phase, next.Status.Step})
	bad := func(format string, args ...any) {
		t.Helper()
		for _, l := range w.trail[max(0, len(w.trail)-20):] {
			t.Logf("%s %T %+v → %s/%s", l.at.Format("15:04:05"), l.ev, l.ev, l.phase, l.step)
		}
		t.Fatalf("seed %d: "+format, append([]any{seed}, args...)...)
	}
	if frozenBefore != "" && frozen(t, prev) != frozenBefore {
		bad("Step changed the state it was given")
	}
	if err != nil {
		return
	}
	w.s = next
	var was, is GateStep
	if prev.Status.Gate != nil {
		was = prev.Status.Gate.Step
	}
	g := gated(next)
	if next.Status.Gate != nil {
		is = next.Status.Gate.Step
	}
	in := next.Intent
	if (next.Status.Gate == nil) != (in == nil || in.Gate == nil) {
		bad("a gate that saw nothing, or nothing that has seen")
	}
	if is == GateRepairing && was != GateRepairing {
		rep, ok := ev.(GateReported)
		old := prev.Intent.Gate
		said := old.Consent != nil && old.Consent.Epoch == rep.Epoch
		switch {
		case !ok || was != GateProving || rep.Report.Step != inventory.AgentDone:
			bad("a repair for %T after %q", ev, was)
		case !said && (!old.Writes() || old.Epoch != rep.Epoch || old.Epoch == ""):
			bad("a repair with %s, of epoch %q in %q", old.OnMismatch, old.Epoch, rep.Epoch)
		case rep.NoRepair != "" || prev.Status.Hold != nil:
			bad("a repair although %q, held %t", rep.NoRepair, prev.Status.Hold != nil)
		case rep.Report.Verdict.Table != "" || !said && rep.Report.Verdict.Blocks()*inventory.GateBlock > old.RepairLimit || !rep.Report.Verdict.About(old.Regions):
			bad("a repair of %+v", rep.Report.Verdict)
		case !said && old.OnMismatch == inventory.MismatchRepair && next.Status.Gate.repairedSince(w.now.Add(-time.Hour)) > maxRepairs:
			bad("the %dth repair within the hour", next.Status.Gate.repairedSince(w.now.Add(-time.Hour)))
		case len(next.Status.Gate.Repairs) == 0 || !next.Status.Gate.Repairs[len(next.Status.Gate.Repairs)-1].At.Equal(w.now):
			bad("a repair that is not on record")
		case len(lines) == 0 || !strings.Contains(lines[0].Text, "under the intent that stands") == !said || !strings.Contains(lines[0].Text, "by the word of ann") == said:
			bad("a repair that is no event")
		}
	}
	// An operator's word is for one proof.
	if g != nil && g.Consent != nil && (stopped(next) && !stopped(prev) || is == GatePassed || is == GateLoading) {
		bad("after it was proved or held it may be repaired still, by the word of %s", g.Consent.By)
	}
	// Who may start the disk: only what was read back, or compared, since the last claim.
	if in != nil && in.Gate != nil && in.Gate.Pass.valid(w.now) && (prev.Intent == nil || prev.Intent.Gate == nil || !prev.Intent.Gate.Pass.valid(w.now)) {
		switch e := ev.(type) {
		case Reported: // written and read back
		case GateReported:
			v := e.Report.Verdict
			if was == GateLoading {
				if e.Report.Step != inventory.AgentFailed {
					bad("started by kexec, and let through")
				}
				break
			}
			if e.Report.Step != inventory.AgentDone || v == nil || !v.Matches() && in.Gate.OnMismatch != inventory.MismatchReport {
				bad("let through with %+v", v)
			}
			if v.Matches() != (next.Status.Evidence.Level == inventory.E3) {
				bad("evidence %s for %+v", next.Status.Evidence.Level, v)
			}
		default:
			bad("let through by %T", ev)
		}
	}
	// What is started by kexec was proved by the same boot.
	if is == GateLoading && was != GateLoading {
		rep, ok := ev.(GateReported)
		if !ok || rep.Report.Verdict == nil || !rep.Report.Verdict.Matches() || g.Kernel == nil || w.p.Restart != "" || prev.Intent.Gate.NoKexec != "" || g.Pass.valid(w.now) || next.Status.Evidence.Level != inventory.E3 {
			bad("its kernel is loaded for %+v, %q", rep.Report.Verdict, w.p.Restart)
		}
	}
	if g != nil && !g.Jumped.IsZero() && (prev.Intent.Gate == nil || prev.Intent.Gate.Jumped.IsZero()) && (was != GateLoading || is != GatePassed || !g.Passed) {
		bad("started by kexec after %q", was)
	}
	if g != nil && next.Intent.Gate.Pass.valid(w.now) && stopped(next) {
		bad("stopped, and let through")
	}
	if g != nil && stopped(next) && !stopped(prev) && (next.Status.Hold == nil || next.Status.NextAction == "" || next.Status.Health != Degraded) {
		bad("stopped without a hold, or with nothing to do")
	}
	if _, says := ev.(Running); says && g != nil && stopped(prev) && !stopped(next) {
		bad("what its gate stopped goes on because somebody says that it runs")
	}
	// Standing ends with the disk that it is about.
	if in != nil && in.Write != nil && in.Write.Erased && in.Gate != nil && in.Gate.Epoch != "" && sameDisk(in.Gate.Disk, in.Write.Disk) && in.Gate.Write != in.WriteName() {
		bad("the intent for write %s stands after write %s began", in.Gate.Write, in.WriteName())
	}
	// The boot's answer: no disk is started unproved.
	q := bootQuestion{Machine: &inventory.Machine{Name: "m1", Arch: inventory.AMD64}, State: next, Key: Key{1}, Epoch: "e", Now: w.now,
		Arch: inventory.AMD64, Ramdisk: RamdiskFiles{Kernel: "k", Initrd: "i"}}
	if spec := boot(q); g != nil && spec.Kind == ipxe.SpecLocal && !g.Pass.valid(w.now) {
		bad("it is told to start its disk: %s", spec.Reason)
	}
}

func gateClaimQuestion(s State, nonce string) claimQuestion {
	return claimQuestion{Key: Key{1}, Machine: &inventory.Machine{Name: "m1", Serial: "s1"}, State: s, Lease: "m1", Authoritative: true, Now: t0,
		Claim: inventory.Claim{Nonce: nonce, BootID: "b9", UUID: "u1", Serial: "s1"}, Remote: netip.MustParseAddr("10.0.0.5")}
}

// written is a story whose machine runs what was written, behind a gate.
func gatedStory(t *testing.T, on inventory.OnMismatch) *story {
	t.Helper()
	s := newStory()
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"},
		BMCDone{Action: ActOff}, BMCDone{Action: ActArm}, BMCDone{Action: ActOn}, BootServed{},
		Claimed{Claim: ClaimState{BootID: "b1", UUID: "u1", Until: t0.Add(LeaseTime)}},
		Inspected{Decision: DiskDecision{Verdict: DiskWrite, Disk: disk("S1"), Gate: storyGate(on)}},
		Reported{Report: inventory.Report{Step: inventory.AgentDone, ReadBack: imgA}},
		Running{Report: inventory.BootReport{Machine: "m1", Generation: genA, Rendered: rendA, Write: "e.1", BootID: "os1"}})
	if gated(s.state) == nil || s.state.Status.Phase != Active {
		t.Fatalf("%+v", s.state.Status)
	}
	return s
}

func TestGateClaimIsGrantedOnceToTheMachineItself(t *testing.T) {
	s := gatedStory(t, inventory.MismatchHold)
	k, g := Key{1}, s.state.Intent.Gate
	nonce := k.GateNonce("e", "m1", g, 0)
	decide := func(change func(*claimQuestion)) ClaimDecision {
		q := gateClaimQuestion(s.state, nonce)
		change(&q)
		return decideGateClaim(q, gated(s.state), "e")
	}
	for what, tt := range map[string]struct {
		change func(*claimQuestion)
		want   ClaimVerdict
	}{
		"right":           {func(*claimQuestion) {}, ClaimGrant},
		"wrong nonce":     {func(q *claimQuestion) { q.Claim.Nonce = k.Nonce(s.state.Intent, 0) }, ClaimRefuse},
		"a later one":     {func(q *claimQuestion) { q.Claim.Nonce = k.GateNonce("e", "m1", g, 1) }, ClaimRefuse},
		"another epoch's": {func(q *claimQuestion) { q.Claim.Nonce = k.GateNonce("f", "m1", g, 0) }, ClaimRefuse},
		"another address": {func(q *claimQuestion) { q.Lease = "m2" }, ClaimRefuse},
		"another serial":  {func(q *claimQuestion) { q.Claim.Serial = "s2" }, ClaimHold},
		"a twin":          {func(q *claimQuestion) { q.Twin = "m2" }, ClaimHold},
		"held for doubt": {func(q *claimQuestion) {
			q.State.Status.Hold = &Hold{Owner: "recast", Reason: "two machines"}
		}, ClaimRefuse},
		"held by a person": {func(q *claimQuestion) { q.State.Status.Hold = &Hold{Owner: "ann"} }, ClaimGrant},
	} {
		if d := decide(tt.change); d.Verdict != tt.want {
			t.Errorf("%s: %s, %s; want %s", what, d.Verdict, d.Reason, tt.want)
		}
	}
	d := decide(func(*claimQuestion) {})
	s.must(t, GateClaimed{d.Claim})
	if d := decide(func(*claimQuestion) {}); d.Verdict != ClaimRepeat {
		t.Errorf("the same boot again: %s", d.Verdict)
	}
	if d := decide(func(q *claimQuestion) { q.Claim.BootID = "b10" }); d.Verdict != ClaimReplay {
		t.Errorf("another boot with the same nonce: %s", d.Verdict)
	}
}

func TestForeignDisksAreNotTheGates(t *testing.T) {
	g := &Gate{Disk: disk("S1"), Generation: genA, Rendered: rendA, Write: "e.1"}
	marker := inventory.Marker{Machine: "m1", Generation: genA, Rendered: rendA, Write: "e.1"}
	seen := func(serial string, m *inventory.Marker) inventory.DiskFacts {
		return inventory.DiskFacts{Name: "/dev/sda", Serial: serial, Size: 4 << 30, LogicalBlockSize: 512, Recast: m, Holds: "gpt"}
	}
	other, older, twin := marker, marker, marker
	other.Machine, older.Write, twin.Generation = "m2", "e.0", genB
	small := seen("S1", &marker)
	small.Size--
	for what, tt := range map[string]struct {
		disks []inventory.DiskFacts
		want  string
	}{
		"the one":            {[]inventory.DiskFacts{seen("S1", &marker)}, ""},
		"beside another":     {[]inventory.DiskFacts{seen("S2", nil), seen("S1", &marker)}, ""},
		"none":               {nil, "disk serial S1, which was written, is not there, and no other is"},
		"another":            {[]inventory.DiskFacts{seen("S2", &marker)}, "is not there: there is disk serial S2"},
		"two of it":          {[]inventory.DiskFacts{seen("S1", &marker), seen("S1", &marker)}, "there are 2 disks"},
		"of another size":    {[]inventory.DiskFacts{small}, "is not there"},
		"blank":              {[]inventory.DiskFacts{{Serial: "S1", Size: 4 << 30, LogicalBlockSize: 512}}, "it is blank"},
		"another system":     {[]inventory.DiskFacts{seen("S1", nil)}, "it is holding gpt"},
		"another machine's":  {[]inventory.DiskFacts{seen("S1", &other)}, "of m2"},
		"of an older write":  {[]inventory.DiskFacts{seen("S1", &older)}, "by write e.0"},
		"another generation": {[]inventory.DiskFacts{seen("S1", &twin)}, "generation " + genB.Short()},
	} {
		if why, cure := foreignDisk(g, "m1", inventory.Facts{Disks: tt.disks}); tt.want == "" && why != "" || !strings.Contains(why, tt.want) || (why == "") != (cure == "") {
			t.Errorf("%s: %q, cure %q", what, why, cure)
		}
	}
}

func TestRepairsStopAtTheBudget(t *testing.T) {
	m := &inventory.Machine{Name: "m1"}
	base := budgetQuestion{Group: "g", Members: 40, Machine: m, Failures: inventory.IntOrPercent{Value: 2}}
	for what, tt := range map[string]struct {
		change func(*budgetQuestion)
		want   string
	}{
		"the first":          {func(*budgetQuestion) {}, ""},
		"the second":         {func(q *budgetQuestion) { q.Repaired = 1 }, ""},
		"the third":          {func(q *budgetQuestion) { q.Repaired = 2 }, "its maxFailures is 2"},
		"a share":            {func(q *budgetQuestion) { q.Repaired, q.Failures = 4, inventory.IntOrPercent{Value: 10, Percent: true} }, "its maxFailures is 4"},
		"within a share":     {func(q *budgetQuestion) { q.Repaired, q.Failures = 3, inventory.IntOrPercent{Value: 10, Percent: true} }, ""},
		"a restore":          {func(q *budgetQuestion) { q.Repaired, q.Restores = 39, true }, ""},
		"let by a person":    {func(q *budgetQuestion) { q.Repaired, q.Said, q.Group = 39, true, "" }, ""},
		"let, and frozen":    {func(q *budgetQuestion) { q.Said, q.Frozen = true, "audit" }, "everything is frozen"},
		"let, and protected": {func(q *budgetQuestion) { q.Said, q.Machine = true, &inventory.Machine{Protected: true} }, "protected"},
		"none allowed":       {func(q *budgetQuestion) { q.Failures = inventory.IntOrPercent{} }, "its maxFailures is 0"},
		"frozen":             {func(q *budgetQuestion) { q.Frozen = "audit" }, "everything is frozen: audit"},
		"undeclared":         {func(q *budgetQuestion) { q.Machine = nil }, "not declared"},
		"protected":          {func(q *budgetQuestion) { q.Machine = &inventory.Machine{Protected: true} }, "protected"},
		"no group":           {func(q *budgetQuestion) { q.Group = "" }, "no group"},
	} {
		q := base
		tt.change(&q)
		if why, cure := repairBudget(q); tt.want == "" && why != "" || !strings.Contains(why, tt.want) || (why == "") != (cure == "") {
			t.Errorf("%s: %q, cure %q", what, why, cure)
		}
	}
}

func TestEachBlockOfARegionCounts(t *testing.T) {
	for _, tt := range []struct{ start, end, want int64 }{{0, 4096, 1}, {4096, 4097, 1}, {512, 4608, 2}, {1 << 20, 3<<20 - 512, 512}} {
		list := []inventory.Region{{Start: tt.start, End: tt.end}, {Start: tt.start, End: tt.end}}
		if got := blockBytes(list); got != 2*tt.want*inventory.GateBlock {
			t.Errorf("from %d to %d: %d bytes", tt.start, tt.end, got)
		}
	}
}

func TestPassIsForOneStart(t *testing.T) {
	s := gatedStory(t, inventory.MismatchHold)
	answer := func() ipxe.SpecKind {
		return boot(bootQuestion{Machine: &inventory.Machine{Name: "m1", Arch: inventory.AMD64}, State: s.state, Key: Key{1}, Epoch: "e", Now: s.now,
			Arch: inventory.AMD64, Ramdisk: RamdiskFiles{Kernel: "k", Initrd: "i"}}).Kind
	}
	through := func() {
		t.Helper()
		s.must(t, GateClaimed{ClaimState{BootID: "b2", Until: s.now.Add(LeaseTime)}}, GateInspected{},
			GateReported{Report: inventory.Report{Step: inventory.AgentDone, Verdict: storyVerdict(0, "")}, Epoch: "e"})
	}
	if got := answer(); got != ipxe.SpecRamdisk {
		t.Fatalf("a start without a pass: %s", got)
	}
	through()
	for range 3 { // DHCP, DHCP, script
		if got := answer(); got != ipxe.SpecLocal {
			t.Fatalf("after its gate: %s", got)
		}
	}
	s.must(t, LocalServed{})
	s.now = s.now.Add(30 * time.Second)
	if got := answer(); got != ipxe.SpecLocal {
		t.Errorf("its second card in the same start: %s", got)
	}
	s.now = s.now.Add(31 * time.Second)
	if got := answer(); got != ipxe.SpecRamdisk {
		t.Errorf("the start after it: %s", got)
	}
	through()
	s.must(t, Running{Report: inventory.BootReport{Machine: "m1", Generation: genA, Rendered: rendA, Write: "e.1", BootID: "os2"}})
	if got := answer(); got != ipxe.SpecRamdisk {
		t.Errorf("its system has started by BootNext, and starts again: %s", got)
	}
	// A firmware that takes longer than a pass comes back, and has more time then.
	through()
	s.now = s.now.Add(PassTime + time.Minute)
	if got := answer(); got != ipxe.SpecRamdisk {
		t.Errorf("after the pass has run out: %s", got)
	}
	through()
	s.now = s.now.Add(PassTime + time.Minute)
	if got := answer(); got != ipxe.SpecLocal {
		t.Errorf("a slow firmware goes round for ever: %s", got)
	}
}

func TestOldEvidenceIsObservedAndNeverWritten(t *testing.T) {
	s := gatedStory(t, inventory.MismatchRepair)
	w := Wanted{Group: &inventory.Group{Name: "g"}, Definition: &inventory.Definition{EvidenceAge: inventory.Duration(24 * time.Hour)},
		Generation: inventory.Generation{Digest: genA, Resolved: inventory.Resolved{Evidence: inventory.E3}}, Rendered: inventory.Rendered{Digest: rendA}}
	m := &inventory.Machine{Name: "m1"}
	at := func(after time.Duration) (Entry, bool, Sync, string) {
		now := s.state.Status.Evidence.At.Add(after)
		e, ok := planMachine(planInput{Now: now}, m, w, s.state, true)
		sync, why := synced(s.state.Status, w, true, now)
		return e, ok, sync, why
	}
	if e, ok, sync, _ := at(24 * time.Hour); ok || sync != InSync {
		t.Errorf("fresh: %s %q, %s", e.Kind, e.Why, sync)
	}
	e, ok, sync, why := at(25 * time.Hour)
	if !ok || e.Kind != EntryObserve || e.Why != "evidence is older than 24h0m0s" || sync != SyncUnknown || why != e.Why || e.WriteBytes != 0 {
		t.Errorf("old: %s %q, %s %q", e.Kind, e.Why, sync, why)
	}
	// The next proof makes it fresh; that the system goes on saying the same does not.
	s.now = s.now.Add(25 * time.Hour)
	s.must(t, Running{Report: inventory.BootReport{Machine: "m1", Generation: genA, Rendered: rendA, Write: "e.1", BootID: "os1"}})
	if sync, _ := synced(s.state.Status, w, true, s.now); sync != SyncUnknown {
		t.Errorf("after the system's word: %s", sync)
	}
	less := w
	less.Generation.Resolved.Evidence = inventory.E2
	if sync, why := synced(s.state.Status, less, true, s.now); sync != InSync {
		t.Errorf("where the system's word is enough: %s, %s", sync, why)
	}
	s.must(t, GateClaimed{ClaimState{BootID: "b2", Until: s.now.Add(LeaseTime)}}, GateInspected{},
		GateReported{Report: inventory.Report{Step: inventory.AgentDone, Verdict: storyVerdict(0, "")}, Epoch: "e"})
	if sync, why := synced(s.state.Status, w, true, s.now); sync != InSync {
		t.Errorf("after its gate: %s, %s", sync, why)
	}
}
