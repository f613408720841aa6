package testenv

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// simGate declares every boot to be proved.
func simGate(image inventory.Digest, boot, failures string) simDeclare {
	return simDeclare{Image: image, Immutable: "[esp]", Failures: failures, Spec: fmt.Sprintf("  boot: {every: gate, %s}\n", boot)}
}

// newSimGate is a rack of machines that ask the network first and run an image whose
// ESP is immutable.
func newSimGate(t *testing.T, machines int, boot, failures string) (*simServer, simDeclare, []byte) {
	s := newSimServer(t)
	raw := SimImage(simImageSize, 7)
	d := simGate(s.addImage(raw), boot, failures)
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range machines {
		// Under UEFI the agent sees to the order.
		s.add(i+1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, !o.UEFI })
	}
	s.apply(d)
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
	}
	return s, d, raw
}

// restart cuts the power and switches it on again, with what change does between.
func (s *simServer) restart(m *Simulated, change func()) (start int) {
	s.t.Helper()
	simMust(s.t, m.PowerOff(s.t.Context()))
	change()
	start = len(m.Boots())
	simMust(s.t, m.PowerOn(s.t.Context()))
	return start
}

// restartAndCut is restart, and cuts the power after so many bytes that start writes.
func (s *simServer) restartAndCut(m *Simulated, bytes int64, change func()) (start int) {
	s.t.Helper()
	cut := make(chan struct{})
	start = s.restart(m, func() {
		change()
		m.Disks[0].CutAfter(bytes, func() {
			_ = m.PowerOff(s.t.Context())
			close(cut)
		})
	})
	select {
	case <-cut:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("%s wrote less than %d bytes: nothing was cut", m.Options.Name, bytes)
	}
	return start
}

// path of every start from the one of that index on.
func (m *Simulated) path(from int) (path []string) {
	for _, b := range m.Boots()[from:] {
		path = append(path, b.Path...)
	}
	return path
}

// awaitReport waits until the system of one of these starts has reported itself.
func (s *simServer) awaitReport(m *Simulated, from int) {
	s.t.Helper()
	s.await(m.Options.Name+" reports itself", 30*time.Second, func() bool { return simHas(m.path(from), simReported) })
}

func simBytes(t testing.TB, m *Simulated) []byte {
	t.Helper()
	b, err := os.ReadFile(m.Disks[0].Path)
	simMust(t, err)
	return b
}

func simTamper(t testing.TB, m *Simulated, region string, offset int64) {
	t.Helper()
	_, err := Tamper(m.Disks[0].Path, region, offset)
	simMust(t, err)
}

func TestEveryBootGoesThroughTheGate(t *testing.T) {
	s, _, _ := newSimGate(t, 2, "onMismatch: repair", "100%")
	for _, m := range s.machines {
		before := simBytes(t, m)
		for range 2 {
			start := s.restart(m, func() {})
			s.awaitReport(m, start)
			want := "its gate has let it pass → disk → reported" // a BIOS asks the network again
			if m.Options.UEFI {
				want = "→ disk → reported" // BootNext does not
			}
			if path := strings.Join(m.path(start), " → "); len(m.Boots()) != start+2 || !strings.HasPrefix(path, "ramdisk: gate, boot ") || !strings.HasSuffix(path, want) ||
				strings.Contains(path, "local: ") == m.Options.UEFI {
				t.Errorf("%s went by %s", m.Options.Name, path)
			}
		}
		v := s.awaitActive(m.Options.Name, 10*time.Second)
		if e := v.Status.Evidence; e.Level != "read-back" || !strings.Contains(e.Detail, "the gate read esp ") || len(v.Status.Findings) > 0 {
			t.Errorf("%v, evidence %+v", v, e)
		}
		if !bytes.Equal(before, simBytes(t, m)) {
			t.Error("a gate wrote to a disk that was right")
		}
	}
}

func TestAByteFlippedInAnImmutableRegionIsRepairedAndStateIsKept(t *testing.T) {
	s, _, _ := newSimGate(t, 1, "onMismatch: repair", "100%")
	m := s.machines[0]
	clean := simBytes(t, m)
	start := s.restart(m, func() {
		simTamper(t, m, "esp", 5000)
		simTamper(t, m, "root", 5000)
	})
	s.awaitReport(m, start)
	want := bytes.Clone(clean)
	want[2<<20+5000] ^= 0xff
	if have := simBytes(t, m); !bytes.Equal(have, want) {
		t.Error("the disk is not: ESP as written, root as it was tampered with")
	}
	v := s.awaitActive("m01", 10*time.Second)
	if g := v.Status.Gate; g.Verdict != "repaired" || len(g.Repairs) != 1 || g.Repairs[0].Blocks != 1 {
		t.Errorf("%v, gate %+v", v, g)
	}
	said := false
	for _, l := range s.timeline("m01") {
		said = said || strings.Contains(l.Text, "may write 1 blocks to disk serial SIM0001-0 under the intent that stands")
	}
	if !said {
		t.Error("the use of the standing intent is not on the timeline")
	}
}

func TestAGateThatMayNotRepairHoldsUntilItIsReleased(t *testing.T) {
	for _, policy := range []string{"hold", "poweroff"} {
		t.Run(policy, func(t *testing.T) {
			s, d, raw := newSimGate(t, 1, "onMismatch: "+policy, "100%")
			m := s.machines[0]
			start := s.restart(m, func() { simTamper(t, m, "esp", 5000) })
			s.await("the machine is held", 30*time.Second, func() bool { return s.view("m01").Status.Hold != nil })
			v := s.view("m01")
			if h := v.Status.Hold; h.Owner != "recast" || !strings.Contains(h.Reason, "esp 1 of its blocks, the first at byte 4096") || v.Status.Health != "degraded" || v.Sync == "in sync" {
				t.Errorf("%v, hold %+v", v, h)
			}
			if policy == "poweroff" {
				s.await("it is off", 10*time.Second, func() bool { return !m.Powered() })
				simMust(t, m.PowerOn(t.Context())) // somebody's hand: it does not start its disk
				s.await("it is off again", 10*time.Second, func() bool { return len(m.Boots()) == start+2 && !m.Powered() })
			}
			if simHas(m.path(start), simDiskStarted) {
				t.Fatalf("it started a disk that differs: %q", m.path(start))
			}
			// What it holds is written anew only by a person's word.
			s.must("POST", "/api/v1/machines/m01/retry", nil, nil)
			s.must("POST", "/api/v1/machines/m01/release", nil, nil)
			v = s.awaitActive("m01", 60*time.Second)
			if !bytes.Equal(simBytes(t, m)[1<<20:2<<20], raw[1<<20:2<<20]) {
				t.Error("the ESP is not the image's")
			}
			_ = d
		})
	}
}

func TestAGateThatOnlyReportsStartsADiskThatDiffers(t *testing.T) {
	s, _, _ := newSimGate(t, 1, "onMismatch: report", "100%")
	m := s.machines[0]
	start := s.restart(m, func() { simTamper(t, m, "esp", 0) })
	s.awaitReport(m, start)
	v := s.awaitActive("m01", 10*time.Second)
	if e := v.Status.Evidence; e.Level != "reported" || v.Status.Gate.Verdict != "differs" || len(v.Status.Findings) != 1 {
		t.Errorf("%v, evidence %+v, gate %+v", v, e, v.Status.Gate)
	}
	start = s.restart(m, func() { simTamper(t, m, "esp", 0) }) // flipped back
	s.awaitReport(m, start)
	if v = s.awaitActive("m01", 10*time.Second); v.Status.Evidence.Level != "read-back" || len(v.Status.Findings) != 0 {
		t.Errorf("%v, evidence %+v", v, v.Status.Evidence)
	}
}

func TestASwappedDiskIsHeldByItsGateAndNotWritten(t *testing.T) {
	s, _, _ := newSimGate(t, 2, "onMismatch: repair", "100%")
	a, b := s.machines[0], s.machines[1]
	simMust(t, b.PowerOff(t.Context()))
	var swapped []byte
	start := s.restart(a, func() { // the bytes of another machine's disk, in one that says the same serial
		swapped = simBytes(t, b)
		simMust(t, os.WriteFile(a.Disks[0].Path, swapped, 0o600))
	})
	s.await("the machine is held", 30*time.Second, func() bool { return s.view("m01").Status.Hold != nil })
	if h := s.view("m01").Status.Hold; !strings.Contains(h.Reason, "of m02") {
		t.Errorf("hold %+v", h)
	}
	if simHas(a.path(start), simDiskStarted) || !bytes.Equal(swapped, simBytes(t, a)) {
		t.Errorf("it went by %q; its disk is untouched: %t", a.path(start), bytes.Equal(swapped, simBytes(t, a)))
	}
}

// A disk is replaced after a later plan, of others, was applied: a retry puts the machine
// into the next plan, which asks for the word to erase it.
func TestAReplacedDiskIsWrittenAfterPlansOfOthers(t *testing.T) {
	s, d, raw := newSimGate(t, 2, "onMismatch: hold", "100%")
	replaced := func(m *Simulated) {
		t.Helper()
		s.restart(m, func() {
			disk := bytes.Repeat([]byte{0xA5}, len(simBytes(t, m)))
			simMust(t, os.WriteFile(m.Disks[0].Path, disk, 0o600))
		})
		s.await("the machine is held", 30*time.Second, func() bool { return s.view(m.Options.Name).Status.Hold != nil })
	}
	for _, m := range s.machines { // the second, in sync by then, is in no plan once the first's is applied
		name := m.Options.Name
		replaced(m)
		s.must("POST", "/api/v1/machines/"+name+"/retry", nil, nil)
		if next := s.view(name).Status.NextAction; !strings.Contains(next, "recast plan PATH") || !strings.HasSuffix(next, "recast release "+name) {
			t.Errorf("%s: next %q", name, next)
		}
		p := s.plan(d, name)
		s.must("POST", "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
		s.must("POST", "/api/v1/machines/"+name+"/release", nil, nil)
		s.awaitActive(name, 60*time.Second)
		if !bytes.Equal(simBytes(t, m)[1<<20:2<<20], raw[1<<20:2<<20]) {
			t.Errorf("the ESP of %s is not the image's", name)
		}
	}
}

func TestManyMachinesThatDifferAtOnceAreNotRepaired(t *testing.T) {
	const machines, budget = 40, 2
	s, _, _ := newSimGate(t, machines, "onMismatch: repair", "2")
	starts := map[string]int{}
	for _, m := range s.machines {
		simMust(t, m.PowerOff(t.Context()))
		simTamper(t, m, "esp", 77)
		starts[m.Options.Name] = len(m.Boots())
	}
	for _, m := range s.machines {
		simMust(t, m.PowerOn(t.Context()))
	}
	held, repaired := 0, 0
	s.await("every machine is repaired or held", 2*time.Minute, func() bool {
		held, repaired = 0, 0
		for _, m := range s.machines {
			v := s.view(m.Options.Name)
			switch {
			case v.Status.Hold != nil:
				held++
			case simHas(m.path(starts[m.Options.Name]), simReported):
				repaired++
			}
		}
		return held+repaired == machines
	})
	if repaired != budget || held != machines-budget {
		t.Errorf("%d repaired, %d held; want %d and %d", repaired, held, budget, machines-budget)
	}
	for _, m := range s.machines {
		v := s.view(m.Options.Name)
		if v.Status.Hold != nil && (!strings.Contains(v.Status.Hold.Reason, "its maxFailures is 2") || simHas(m.path(starts[m.Options.Name]), simDiskStarted)) {
			t.Errorf("%v, hold %+v, path %q", v, v.Status.Hold, m.path(starts[m.Options.Name]))
		}
	}
}

func TestAStartWithoutTheServerIsShownAsUnverified(t *testing.T) {
	s, _, _ := newSimGate(t, 1, "onMismatch: hold", "100%")
	m := s.machines[0]
	s.kill()
	simTamperStart := len(m.Boots())
	simMust(t, m.PowerOff(t.Context()))
	m.Options.NetworkFirst = false // its firmware waits for nobody and falls through to its disk
	simMust(t, m.PowerOn(t.Context()))
	s.await("it starts its disk", 30*time.Second, func() bool { return simHas(m.path(simTamperStart), simDiskStarted) })
	s.start()
	s.awaitReport(m, simTamperStart)
	s.await("the start is known as unverified", 10*time.Second, func() bool { return s.view("m01").Status.Gate.Verdict == "unverified" })
	v := s.view("m01")
	if v.Status.Evidence.Level != "reported" || len(v.Status.Findings) != 1 || !strings.Contains(v.Status.Findings[0], "was not proved") {
		t.Errorf("%v, evidence %+v", v, v.Status.Evidence)
	}
	m.Options.NetworkFirst = true
	start := s.restart(m, func() {})
	s.awaitReport(m, start)
	if v := s.awaitActive("m01", 10*time.Second); v.Status.Gate.Verdict != "matches" || len(v.Status.Findings) != 0 {
		t.Errorf("%v, gate %+v", v, v.Status.Gate)
	}
}

// A power cut in the middle of a repair: the next boot finds what is left, and the
// machine has started nothing meanwhile.
func TestARepairThatIsCutIsTakenUpByTheNextBoot(t *testing.T) {
	s, _, raw := newSimGate(t, 1, "onMismatch: repair", "100%")
	m := s.machines[0]
	start := s.restartAndCut(m, 3*4096, func() {
		for i := range int64(5) {
			simTamper(t, m, "esp", i*10000)
		}
	})
	if bytes.Equal(simBytes(t, m)[1<<20:2<<20], raw[1<<20:2<<20]) || simHas(m.path(start), simDiskStarted) {
		t.Errorf("cut too late: %q", m.path(start))
	}
	simTamper(t, m, "esp", 60000) // its table is not in force, and there
	start = len(m.Boots())
	simMust(t, m.PowerOn(t.Context()))
	s.awaitReport(m, start)
	if !bytes.Equal(simBytes(t, m)[1<<20:2<<20], raw[1<<20:2<<20]) {
		t.Error("the ESP is not the image's")
	}
	if v := s.awaitActive("m01", 10*time.Second); v.Status.Gate.Verdict != "repaired" || len(v.Status.Gate.Repairs) != 2 {
		t.Errorf("%v, gate %+v", v, v.Status.Gate)
	}
}

// A repair is cut, and more differs afterwards than its gate may write: the disk does not
// boot, and an operator's word repairs it without a byte of its state.
func TestARepairThatItsGateMayNotEndIsEndedByAnOperatorsWord(t *testing.T) {
	s, _, raw := newSimGate(t, 1, "onMismatch: repair, repairLimit: 32KiB", "100%")
	m := s.machines[0]
	start := s.restartAndCut(m, 3*4096, func() {
		for i := range int64(5) {
			simTamper(t, m, "esp", i*10000)
		}
	})
	disk := simBytes(t, m) // its table names no partition now
	for i := range 12 {
		disk[1<<20+100000+i*10000] ^= 0xff
	}
	disk[2<<20+5000] ^= 0xff
	simMust(t, os.WriteFile(m.Disks[0].Path, disk, 0o600))
	simMust(t, m.PowerOn(t.Context()))
	s.await("the machine is held", 30*time.Second, func() bool { return s.view("m01").Status.Hold != nil })
	v := s.view("m01")
	if h := v.Status.Hold; !strings.Contains(h.Reason, "a repair that did not end, so that it does not boot") || !strings.Contains(h.Reason, "its repairLimit is 32.0 KiB") ||
		!strings.HasPrefix(v.Status.NextAction, "recast release m01 --repair lets it write") {
		t.Errorf("%v, hold %+v", v, h)
	}
	if simHas(m.path(start), simDiskStarted) {
		t.Fatalf("it started: %q", m.path(start))
	}
	boots := len(m.Boots())
	s.must("POST", "/api/v1/machines/m01/release", nil, nil)
	s.await("a release alone changes nothing", 30*time.Second, func() bool { return len(m.Boots()) > boots && s.view("m01").Status.Hold != nil })
	s.must("POST", "/api/v1/machines/m01/repair", nil, nil)
	s.await("it is repaired", 30*time.Second, func() bool {
		v := s.view("m01")
		return v.Status.Hold == nil && v.Status.Gate.Verdict == "repaired" && v.Status.Health == "healthy"
	})
	have := simBytes(t, m)
	if !bytes.Equal(have[1<<20:2<<20], raw[1<<20:2<<20]) {
		t.Error("the ESP is not the image's")
	}
	if end := len(have) - 1<<20; !bytes.Equal(have[2<<20:end], disk[2<<20:end]) {
		t.Error("state was written")
	}
}

// The server is killed and started anew at every boundary of a repair: it ends as it
// would have.
func TestAServerKilledInAGateLosesNothing(t *testing.T) {
	steps := []string{"inspecting", "proving", "repairing", "passed"}
	s, _, raw := newSimGate(t, len(steps), "onMismatch: repair", "100%")
	for i, at := range steps {
		m := s.machines[i]
		m.Disks[0].Pace = 20 * time.Millisecond
		start := s.restart(m, func() {
			for i := range int64(8) {
				simTamper(t, m, "esp", i*10000)
			}
		})
		s.await("the gate is "+at, 30*time.Second, func() bool { // or beyond, where it went by unseen
			var v simView
			return simHas(m.path(start), simReported) || s.call("GET", "/api/v1/machines/"+m.Options.Name, nil, &v) == nil && v.Status.Gate != nil && v.Status.Gate.Step == at
		})
		s.kill()
		s.start()
		s.awaitReport(m, start)
		if !bytes.Equal(simBytes(t, m)[1<<20:2<<20], raw[1<<20:2<<20]) {
			t.Fatalf("killed while %s: the ESP is not the image's", at)
		}
	}
}
