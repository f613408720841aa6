package provision

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"recast/inventory"
	"recast/tpm"
)

func TestAnOrderThatLeadsToADiskIsNoEnforcement(t *testing.T) {
	for what, c := range map[string]struct{ left, seen, want string }{
		"as it was left":          {"010003000700", "010003000700", ""},
		"its cards sorted":        {"010003000700", "030001000700", ""},
		"entries behind the last": {"010003000700", "0100030007000000", ""},
		"a card gone":             {"010003000700", "01000700", ""},
		"a disk first":            {"010003000700", "0000010003000700", "was left as 0001,0003,0007 and is 0000,0001,0003,0007"},
		"a disk before the last":  {"010003000700", "0100030000000700", "is 0001,0003,0000,0007"},
		"the last gone":           {"010003000700", "01000300", "is 0001,0003"},
		"a system without EFI":    {"010003000700", "", ""},
		"nothing was left":        {"", "0100", ""},
	} {
		if got := unguarded(c.left, c.seen); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// refuseStory is a machine that was written for a gate that refuses, and has not started.
func refuseStory(t *testing.T) *story {
	t.Helper()
	s := newStory()
	gate := storyGate(inventory.MismatchRepair)
	gate.Refuse = true
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"},
		BMCDone{Action: ActOff}, BMCDone{Action: ActArm}, BMCDone{Action: ActOn}, BootServed{},
		Claimed{Claim: ClaimState{BootID: "b1", UUID: "u1", Until: t0.Add(LeaseTime)}},
		Inspected{Decision: DiskDecision{Verdict: DiskWrite, Disk: disk("S1"), Gate: gate}},
		Reported{Report: inventory.Report{Step: inventory.AgentDone, ReadBack: imgA, BootOrder: "01000700"}})
	return s
}

func (s *story) proved(t *testing.T, r inventory.Report, repaired bool) {
	t.Helper()
	s.must(t, GateClaimed{ClaimState{BootID: "b2", Until: s.now.Add(LeaseTime)}}, GateInspected{})
	r.Step, r.Verdict = inventory.AgentDone, storyVerdict(0, "")
	if repaired {
		first := r
		first.Verdict = storyVerdict(1, "")
		s.must(t, GateReported{Report: first, Epoch: "e"})
		r.Unguarded = "" // the first look set it anew
	}
	s.must(t, GateReported{Report: r, Epoch: "e"})
}

func (s *story) runs(t *testing.T, boot, order string) {
	t.Helper()
	s.must(t, Running{Report: inventory.BootReport{Machine: "m1", Generation: genA, Rendered: rendA, Write: "e.1", BootID: boot, BootOrder: order}})
}

func TestEvidenceIsEnforcedOnlyWhileTheOrderReadsSo(t *testing.T) {
	s := refuseStory(t)
	st := &s.state.Status
	if st.Evidence.Level != inventory.E3 || s.state.Intent.Gate.Pass != nil {
		t.Errorf("after its write: %s, pass %+v: nobody has seen yet what the firmware keeps", st.Evidence.Level, s.state.Intent.Gate.Pass)
	}
	want := func(what string, level inventory.EvidenceLevel, findings int) {
		t.Helper()
		if st.Evidence.Level != level || len(st.Findings) != findings {
			t.Errorf("%s: %s, findings %q; want %s, %d", what, st.Evidence.Level, st.Findings, level, findings)
		}
	}
	good := inventory.Report{BootOrder: "01000700"}
	s.proved(t, good, false)
	want("proved, its order as it was left", inventory.E5, 0)
	s.runs(t, "os1", "010007000000")
	want("its system says so too", inventory.E5, 0)
	at := st.Evidence.At
	s.runs(t, "os1", "010007000000")
	if st.Evidence.At != at {
		t.Error("the system's word made the proof younger")
	}
	s.proved(t, inventory.Report{BootOrder: "01000700", Unguarded: `its boot order has Boot0000 "debian" before the end; it was set anew`}, false)
	want("a disk was before it", inventory.E3, 1)
	s.runs(t, "os2", "01000700")
	s.proved(t, inventory.Report{BootOrder: "01000700", Unguarded: "another"}, true)
	want("the same, and repaired", inventory.E3, 1)
	s.runs(t, "os3", "01000700")
	s.proved(t, good, true)
	want("mended", inventory.E5, 0)
	s.runs(t, "os4", "000001000700")
	want("the system reads another order", inventory.E3, 1)
	s.proved(t, good, false)
	s.runs(t, "os5", "")
	want("a system that cannot read it", inventory.E5, 0)
	s.proved(t, inventory.Report{}, false)
	want("a ramdisk that does not tell", inventory.E3, 1)
	s.must(t, GateClaimed{ClaimState{BootID: "b3", Until: s.now.Add(LeaseTime)}}, GateInspected{Facts: inventory.Facts{Boot: inventory.BootFacts{Mode: "uefi", SecureBoot: true}}})
	s.must(t, GateReported{Report: inventory.Report{Step: inventory.AgentDone, BootOrder: good.BootOrder, Verdict: storyVerdict(0, "")}, Epoch: "e"})
	want("Secure Boot, which starts no program of ours", inventory.E3, 1)
	s.proved(t, good, false)
	s.must(t, GateClaimed{ClaimState{BootID: "b4", Until: s.now.Add(LeaseTime)}}, GateInspected{})
	s.must(t, GateReported{Report: inventory.Report{Step: inventory.AgentFailed, Error: "its disk is slow"}, Epoch: "e"})
	if st.Gate.Unguarded != "" {
		t.Errorf("who failed tells %q of the order", st.Gate.Unguarded)
	}
	s.proved(t, good, false)
	want("proved after it failed", inventory.E5, 0)
	s.runs(t, "os6", "")
	s.runs(t, "os7", "")
	want("a start without its gate", inventory.E2, 1)
	if st.Gate.Verdict != GateUnverified {
		t.Errorf("verdict %s", st.Gate.Verdict)
	}
}

func TestAFirmwareThatTakesNoBootNextIsFound(t *testing.T) {
	s := refuseStory(t)
	found := func() int {
		return len(s.state.Status.Findings)
	}
	for range 2 {
		s.proved(t, inventory.Report{BootOrder: "01000700"}, false)
		if found() != 0 {
			t.Fatalf("it goes through its gate: %q", s.state.Status.Findings)
		}
		s.runs(t, fmt.Sprint("os", s.state.Intent.Gate.Boots), "01000700")
	}
	s.proved(t, inventory.Report{BootOrder: "01000700"}, false)
	s.must(t, LocalServed{})
	for range 2 {
		s.proved(t, inventory.Report{BootOrder: "01000700"}, false)
		s.must(t, LocalServed{})
		if found() != 1 || !strings.Contains(s.state.Status.Findings[0], "does not start what BootNext names") {
			t.Fatalf("it comes back: %q", s.state.Status.Findings)
		}
	}
	s.runs(t, "os", "01000700")
	if found() != 0 {
		t.Errorf("its system runs, and still %q", s.state.Status.Findings)
	}
}

func TestWhatIsEnforcedIsMeasuredOnlyWhereATPMSignedIt(t *testing.T) {
	s := refuseStory(t)
	st := &s.state.Status
	w := Wanted{Group: &inventory.Group{Name: "g"}, Definition: &inventory.Definition{},
		Generation: inventory.Generation{Digest: genA, Resolved: inventory.Resolved{Evidence: inventory.E4}}, Rendered: inventory.Rendered{Digest: rendA}}
	st.TPM = &TPM{EK: []byte("ek"), AK: []byte("ak")}
	boot := 0
	proved := func(m Measurement) (Sync, string) {
		t.Helper()
		boot++
		s.must(t, GateClaimed{ClaimState{BootID: fmt.Sprint("b", boot), Until: s.now.Add(LeaseTime)}}, GateInspected{})
		s.must(t, GateReported{Report: inventory.Report{Step: inventory.AgentDone, Verdict: storyVerdict(0, ""), BootOrder: "01000700"}, Epoch: "e", Measured: &m})
		s.runs(t, fmt.Sprint("os", boot), "01000700")
		if st.Evidence.Level != inventory.E5 {
			t.Errorf("its evidence is %s: %q", st.Evidence.Level, st.Findings)
		}
		return synced(*st, w, true, s.now)
	}
	signed := func(firmware string) Measurement {
		return Measurement{Unified: true, Quoted: Quoted{Digest: imgA, Initrd: genA, PCRs: []inventory.PCR{{Index: 0, Value: inventory.DigestOf([]byte(firmware))}}}}
	}
	if sync, why := proved(Measurement{Err: "its TPM is off"}); sync != SyncUnknown || !strings.Contains(why, "no TPM signed it") {
		t.Errorf("not signed: %s, %q", sync, why)
	}
	apart := signed("1")
	apart.Unified = false
	if sync, why := proved(apart); sync != SyncUnknown || !strings.Contains(why, "no TPM signed it") || st.TPM.Chain != nil || len(st.Findings) > 0 {
		t.Errorf("of a kernel whose initrd nobody measured: %s, %q, %+v, %q", sync, why, st.TPM, st.Findings)
	}
	altered := signed("1")
	altered.Initrd, altered.Altered = "", "its kernel was started with rdinit=/bin/sh"
	if sync, why := proved(altered); sync != SyncUnknown || !strings.Contains(why, "no TPM signed it") || st.TPM.Chain != nil || !slices.Contains(st.Findings, "tpm: "+altered.Altered) {
		t.Errorf("with other arguments: %s, %q, %+v, %q", sync, why, st.TPM, st.Findings)
	}
	if sync, why := proved(signed("1")); sync != InSync || len(st.Findings) > 0 {
		t.Errorf("signed: %s, %q, %q", sync, why, st.Findings)
	}
	// A record of an earlier version has none of the initrd: the next boot's is it.
	st.TPM.Chain = slices.DeleteFunc(st.TPM.Chain, func(p inventory.PCR) bool { return p.Index == tpm.KernelPCR })
	if sync, why := proved(signed("1")); sync != InSync || len(st.TPM.Chain) != 2 {
		t.Errorf("with an earlier version's record: %s, %q, %+v", sync, why, st.TPM.Chain)
	}
	beside := signed("1")
	beside.Initrd = imgA
	if sync, why := proved(beside); sync != SyncUnknown || !strings.Contains(strings.Join(st.Findings, ""), "PCR 9 (the initrd)") {
		t.Errorf("with another initrd: %s, %q, %q", sync, why, st.Findings)
	}
	if sync, why := proved(signed("2")); sync != SyncUnknown || !strings.Contains(why, "no TPM signed it") {
		t.Errorf("from another boot chain: %s, %q", sync, why)
	}
}

func TestPlansLeaveOutWhatCannotRefuse(t *testing.T) {
	bios, secure := &inventory.Facts{Boot: inventory.BootFacts{Mode: "bios"}}, &inventory.Facts{Boot: inventory.BootFacts{Mode: "uefi", SecureBoot: true}}
	uefi := &inventory.Facts{Boot: inventory.BootFacts{Mode: "uefi"}}
	for what, tt := range map[string]struct {
		m     inventory.Machine
		facts *inventory.Facts
		want  string
	}{
		"UEFI":                   {inventory.Machine{}, uefi, ""},
		"unknown":                {inventory.Machine{}, nil, ""},
		"BIOS":                   {inventory.Machine{}, bios, "that of a BIOS is neither"},
		"declared BIOS":          {inventory.Machine{Firmware: inventory.BIOS}, nil, "that of a BIOS is neither"},
		"switched to UEFI since": {inventory.Machine{Firmware: inventory.UEFI}, bios, ""},
		"declared Secure Boot":   {inventory.Machine{SecureBoot: true}, nil, "Secure Boot does not start"},
		"seen with Secure Boot":  {inventory.Machine{}, secure, "Secure Boot does not start"},
	} {
		w := Wanted{Group: &inventory.Group{Name: "g"}, Generation: inventory.Generation{Digest: genA,
			Resolved: inventory.Resolved{Every: inventory.BootGate, Gate: &inventory.Gate{Refuse: true}}}}
		tt.m.Name = "m1"
		if tt.facts != nil {
			tt.facts.Disks = []inventory.DiskFacts{{Name: "/dev/sda", Serial: "S1", Size: 4 << 30, LogicalBlockSize: 512}}
		}
		s := State{Status: Status{Machine: "m1", Facts: tt.facts}}
		in := planInput{State: func(string) State { return s }, Image: func(inventory.Digest) (ImageFacts, bool) { return ImageFacts{}, false }}
		if e, _ := planMachine(in, &tt.m, w, s, true); tt.want == "" && strings.Contains(e.Blocked, "onServerDown") || !strings.Contains(e.Blocked, tt.want) {
			t.Errorf("%s: left out because %q, want %q", what, e.Blocked, tt.want)
		}
		d := DiskDecision{Verdict: DiskWrite, Gate: &Gate{Gate: inventory.Gate{Refuse: true}}}
		if tt.facts == nil {
			continue
		}
		if got := refuseDisk(d, &tt.m, *tt.facts); (got.Verdict == DiskRefuse) != (tt.want != "") || !strings.Contains(got.Reason, tt.want) {
			t.Errorf("%s: its disk: %s, %q", what, got.Verdict, got.Reason)
		}
	}
}
