package testenv

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"recast/target"
)

// newSimRefuse is a rack of UEFIs whose disks recast alone starts.
func newSimRefuse(t *testing.T, boot string, change func(*SimulatedOptions)) (*simServer, *Simulated) {
	s := newSimServer(t)
	d := simGate(s.addImage(SimImage(simImageSize, 7)), "onServerDown: refuse, "+boot, "100%")
	d.Spec += "  evidence: {minimum: enforced}\n"
	s.setSecret(simSecret, simUser+":"+simPassword)
	m := s.add(2, func(o *SimulatedOptions) {
		o.Sessions, o.FallsThrough = 200, true
		if change != nil {
			change(o)
		}
	})
	s.apply(d)
	s.awaitActive("m02", 60*time.Second)
	return s, m
}

// awaitFinding waits for one that holds the words.
func (s *simServer) awaitFinding(name, words string) (v simView) {
	s.t.Helper()
	s.await(name+" has a finding: "+words, 10*time.Second, func() bool {
		v = s.view(name)
		return strings.Contains(strings.Join(v.Status.Findings, "\n"), words)
	})
	return v
}

func TestAMachineThatRefusesDoesNotStartItsDiskWithoutTheServer(t *testing.T) {
	s, m := newSimRefuse(t, "onMismatch: hold", nil)
	v := s.view("m02")
	// The first start after the write was proved too.
	if path := strings.Join(m.path(0), " → "); !strings.Contains(path, "ramdisk: gate, boot 1 → reboots: the disk is what was written → disk → reported") {
		t.Errorf("it went by %s", path)
	}
	if e := v.Status.Evidence; e.Level != "enforced" || v.Sync != "in sync" || len(v.Status.Findings) > 0 {
		t.Errorf("%v, evidence %+v", v, e)
	}
	s.kill()
	start := s.restart(m, func() {})
	s.await("it has started over three times", 30*time.Second, func() bool { return strings.Count(strings.Join(m.path(start), "\n"), simAgainStarted) >= 3 })
	if simHas(m.path(start), simDiskStarted) {
		t.Fatalf("it started its disk: %q", m.path(start))
	}
	s.start()
	s.awaitReport(m, start)
	if path := strings.Join(m.path(start), " → "); !strings.Contains(path, simAgainStarted+" → ramdisk: gate, boot 2 → reboots: the disk is what was written → disk → reported") {
		t.Errorf("it went by %s", path)
	}
	if v := s.awaitActive("m02", 10*time.Second); v.Status.Evidence.Level != "enforced" || v.Status.Gate.Verdict != "matches" || len(v.Status.Findings) > 0 {
		t.Errorf("%v, evidence %+v, gate %+v", v, v.Status.Evidence, v.Status.Gate)
	}
}

func TestAFirmwareThatPutsADiskEntryBackIsFoundAndMended(t *testing.T) {
	s, m := newSimRefuse(t, "onMismatch: hold", nil)
	m.Options.DiskEntry = true
	start := s.restart(m, func() {})
	s.awaitReport(m, start)
	v := s.awaitFinding("m02", "without recast")
	if e := v.Status.Evidence; e.Level != "read-back" || v.Sync != "unknown" || len(v.Status.Findings) != 1 || !strings.Contains(v.Status.Findings[0], `without recast its firmware would start a disk: its boot order has Boot0000 "UEFI disk" before the end`) {
		t.Errorf("%v, evidence %+v, findings %q", v, e, v.Status.Findings)
	}
	// It is what it says: without the server such a firmware starts the disk, and that shows.
	s.kill()
	start = s.restart(m, func() {})
	s.await("it starts its disk", 30*time.Second, func() bool { return simHas(m.path(start), simDiskStarted) })
	s.start()
	s.awaitReport(m, start)
	s.await("the start is known as unverified", 10*time.Second, func() bool { return s.view("m02").Status.Gate.Verdict == "unverified" })
	// The firmware mends its ways: the order was set anew by the gate meanwhile.
	m.Options.DiskEntry = false
	for range 2 {
		start = s.restart(m, func() {})
		s.awaitReport(m, start)
	}
	if v := s.awaitActive("m02", 10*time.Second); v.Status.Evidence.Level != "enforced" || len(v.Status.Findings) > 0 {
		t.Errorf("%v, evidence %+v, findings %q", v, v.Status.Evidence, v.Status.Findings)
	}
}

func TestAConfigurationVolumeThatLostItsProgramIsNotEnforced(t *testing.T) {
	s, m := newSimRefuse(t, "onMismatch: repair", nil)
	start := s.restart(m, func() {
		raw, program := simBytes(t, m), target.Again()
		at := bytes.Index(raw, program)
		if at < 0 {
			t.Fatal("the program is not on the disk")
		}
		raw[at+0x200] = 0xc3 // it returns at once
		simMust(t, os.WriteFile(m.Disks[0].Path, raw, 0o600))
	})
	s.awaitReport(m, start)
	if v := s.awaitFinding("m02", "without recast"); v.Status.Evidence.Level != "read-back" || len(v.Status.Findings) != 1 || !strings.Contains(v.Status.Findings[0], "the program that starts it over") {
		t.Errorf("%v, evidence %+v, findings %q", v, v.Status.Evidence, v.Status.Findings)
	}
}

func TestABIOSIsLeftOutWhereItCannotRefuse(t *testing.T) {
	s := newSimServer(t)
	d := simGate(s.addImage(SimImage(simImageSize, 7)), "onServerDown: refuse", "100%")
	s.setSecret(simSecret, simUser+":"+simPassword)
	m := s.add(1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, true })
	before := simBytes(t, m)
	s.apply(d)
	s.await("its inventory refuses it", 60*time.Second, func() bool {
		return strings.Contains(s.view("m01").Status.LastError, "that of a BIOS is neither from here")
	})
	if !bytes.Equal(before, simBytes(t, m)) {
		t.Error("its disk was written")
	}
}
