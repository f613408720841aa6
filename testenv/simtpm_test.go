package testenv

import (
	"bytes"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// newSimTPM is a machine with a TPM and one without, of which evidence is wanted that
// a TPM has measured.
func newSimTPM(t *testing.T) (*simServer, simDeclare) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("needs swtpm")
	}
	s := newSimServer(t)
	d := simGate(s.addImage(SimImage(simImageSize, 7)), "onMismatch: repair", "100%")
	d.Spec += "  evidence: {minimum: measured}\n"
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range 2 {
		s.add(i+1, func(o *SimulatedOptions) { o.Sessions, o.UEFI, o.NetworkFirst, o.TPM = 200, true, false, i == 0 })
	}
	return s, d
}

func (s *simServer) verb(name, verb string) {
	s.t.Helper()
	s.must(http.MethodPost, "/api/v1/machines/"+name+"/"+verb, nil, nil)
}

// blocked is why a plan leaves a machine out.
func (p simPlan) blocked(name string) string {
	for _, e := range p.Entries {
		if e.Machine == name {
			return e.Blocked
		}
	}
	return ""
}

// deployMeasured inspects both machines, and deploys the first.
func (s *simServer) deployMeasured(d simDeclare) simView {
	s.t.Helper()
	p := s.apply(d)
	for _, name := range []string{"m01", "m02"} {
		if why := p.blocked(name); !strings.Contains(why, "measured by a TPM, and nothing is known of one; once it is declared and applied: recast inspect "+name) {
			s.t.Fatalf("%s, of which nothing is known, is planned: %q", name, why)
		}
		s.verb(name, "inspect")
		s.await(name+" tells what it is", 30*time.Second, func() bool {
			return s.view(name).Status.Phase == "available" && !strings.Contains(s.plan(d, "m01", "m02").blocked(name), "nothing is known")
		})
	}
	p = s.apply(d)
	if why := p.blocked("m01"); why != "" {
		s.t.Fatalf("m01 is left out: %s", why)
	}
	if why := p.blocked("m02"); !strings.Contains(why, "its ramdisk saw none; switch it on in the firmware's setup") {
		s.t.Errorf("m02 has no TPM: %q", why)
	}
	return s.awaitActive("m01", 60*time.Second)
}

func TestATPMVouchesForAWriteAndForEveryBootThroughTheGate(t *testing.T) {
	s, d := newSimTPM(t)
	v := s.deployMeasured(d)
	m := s.machines[0]
	if e := v.Status.Evidence; e.Level != "measured" || !strings.Contains(e.Detail, "its TPM signed it in quote") || len(v.Status.Findings) > 0 {
		t.Fatalf("after the write: %v, evidence %+v", v, e)
	}
	ak, nonce := v.Status.TPM.AK, v.Status.TPM.Quote.Nonce
	if s.view("m02").Status.Running != "" {
		t.Error("a machine without a TPM was written")
	}
	start := s.restart(m, func() {})
	s.awaitReport(m, start)
	v = s.awaitActive("m01", 10*time.Second)
	if e := v.Status.Evidence; e.Level != "measured" || !strings.Contains(e.Detail, "the gate read esp ") || len(v.Status.Findings) > 0 {
		t.Errorf("after a boot through the gate: %v, evidence %+v", v, e)
	}
	if !bytes.Equal(v.Status.TPM.AK, ak) || v.Status.TPM.Quote.Nonce == nonce || v.Status.TPM.Quote.Generation != v.Status.Running {
		t.Errorf("its attestation key or its nonce: %+v", v.Status.TPM)
	}

	// One that is repaired is vouched for after the repair.
	nonce = v.Status.TPM.Quote.Nonce
	start = s.restart(m, func() { simTamper(t, m, "esp", 5000) })
	s.awaitReport(m, start)
	v = s.awaitActive("m01", 10*time.Second)
	if v.Status.Gate.Verdict != "repaired" || v.Status.Evidence.Level != "measured" || v.Status.TPM.Quote.Nonce == nonce {
		t.Errorf("after a repair: %v, %+v", v, v.Status.Evidence)
	}
}

func TestAnotherBootChainIsFoundAndTrustedByAPerson(t *testing.T) {
	s, d := newSimTPM(t)
	s.deployMeasured(d)
	m := s.machines[0]
	boot := func(change func()) simView {
		start := s.restart(m, change)
		s.awaitReport(m, start)
		s.await("m01 is active", 10*time.Second, func() bool { v := s.view("m01"); return v.Status.Phase == "active" && v.Status.Health == "healthy" })
		return s.view("m01")
	}
	v := boot(func() { m.SetFirmware("2.0") })
	if len(v.Status.Findings) != 1 || !strings.Contains(v.Status.Findings[0], "another boot chain than on record started the ramdisk: PCR 0 (the firmware)") ||
		v.Status.Evidence.Level != "read-back" || v.Sync != "unknown" {
		t.Fatalf("with another firmware: %v, evidence %+v", v, v.Status.Evidence)
	}
	for _, e := range s.plan(d, "m01").Entries {
		if e.Machine == "m01" && e.Kind != "observe" {
			t.Errorf("evidence that is too little leads to %s", e.Kind)
		}
	}
	s.verb("m01", "trust")
	if v = boot(func() {}); v.Status.Evidence.Level != "measured" || len(v.Status.Findings) > 0 {
		t.Errorf("after it was trusted: %v, evidence %+v", v, v.Status.Evidence)
	}
	if v = boot(func() { m.SetTPMOff(true) }); len(v.Status.Findings) != 1 || !strings.Contains(v.Status.Findings[0], "did not vouch for the last boot: no TPM is seen") ||
		v.Status.Evidence.Level != "read-back" {
		t.Errorf("with its TPM switched off: %v, evidence %+v", v, v.Status.Evidence)
	}
}

// TestAnAlteredBootScriptIsFound: who is between the machine and the server changes what
// its kernel is started with, and none of the registers that are always the same.
func TestAnAlteredBootScriptIsFound(t *testing.T) {
	s, d := newSimTPM(t)
	s.deployMeasured(d)
	m := s.machines[0]
	for _, tt := range []struct{ more, level, finding string }{
		{"rdinit=/bin/sh", "read-back", "tpm: its kernel was started with arguments that the server did not give it: rdinit=/bin/sh"},
		{"", "measured", ""},
	} {
		start := s.restart(m, func() { m.SetBootArguments(tt.more) })
		s.awaitReport(m, start)
		s.await("m01 is active", 10*time.Second, func() bool { v := s.view("m01"); return v.Status.Phase == "active" && v.Status.Health == "healthy" })
		if v := s.view("m01"); v.Status.Evidence.Level != tt.level || strings.Join(v.Status.Findings, "; ") != tt.finding {
			t.Errorf("with %q more: %v, evidence %+v", tt.more, v.Status.Findings, v.Status.Evidence)
		}
	}
}

func TestAnotherTPMHoldsTheMachineUntilAPersonTrustsIt(t *testing.T) {
	s, d := newSimTPM(t)
	ek := s.deployMeasured(d).Status.TPM.EK
	m := s.machines[0]
	start := s.restart(m, m.SwapTPM)
	s.await("m01 is held", 30*time.Second, func() bool { return s.view("m01").Status.Hold != nil })
	v := s.view("m01")
	if !strings.Contains(v.Status.Hold.Reason, "its TPM has the endorsement key") || !strings.Contains(v.Status.NextAction, "recast trust m01, then: recast release m01") ||
		!bytes.Equal(v.Status.TPM.EK, ek) || len(v.Status.TPM.Other) == 0 {
		t.Fatalf("%v, held: %+v", v, v.Status.Hold)
	}
	s.await("m01 is told so", 30*time.Second, func() bool {
		return strings.Contains(strings.Join(m.path(start), " "), "is on record: its board was changed")
	})
	if simHas(m.path(start), simDiskStarted) {
		t.Fatal("it started its disk")
	}
	s.verb("m01", "trust")
	s.verb("m01", "release")
	s.awaitReport(m, start)
	v = s.awaitActive("m01", 30*time.Second)
	if v.Status.Evidence.Level != "measured" || bytes.Equal(v.Status.TPM.EK, ek) || len(v.Status.Findings) > 0 {
		t.Errorf("after it was trusted: %v, evidence %+v", v, v.Status.Evidence)
	}
}
