package testenv

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// wipe asks for it as an operator does.
func (s *simServer) wipe(name, disk string, quick bool) error {
	return s.call(http.MethodPost, "/api/v1/machines/"+name+"/wipe", map[string]any{"disk": disk, "quick": quick}, nil)
}

// awaitWiped waits until the machine is off and available, its disk read back as
// blank.
func (s *simServer) awaitWiped(m *Simulated) (v simView) {
	s.t.Helper()
	name := m.Options.Name
	deadline := time.Now().Add(time.Minute)
	for {
		v = s.view(name)
		if v.Status.Phase == "available" && strings.HasPrefix(v.Status.Evidence.Detail, "blank") && !m.Powered() {
			return v
		}
		if v.Status.Phase == "failed" || time.Now().After(deadline) {
			for _, l := range s.timeline(name) {
				s.t.Logf("%s %s %s: %s", name, l.Time.Format("05.000"), l.Kind, l.Text)
			}
			s.t.Fatalf("not wiped: %v, on %t", v, m.Powered())
		}
		time.Sleep(15 * time.Millisecond)
	}
}

func simZero(t *testing.T, d *SimDisk) bool {
	t.Helper()
	raw, err := os.ReadFile(d.Path)
	simMust(t, err)
	return len(bytes.Trim(raw, "\x00")) == 0
}

// A word that names no disk, or a machine that must not be touched, leaves every
// byte where it is, and the machine running.
func TestAWipeThatIsRefusedTouchesNoDisk(t *testing.T) {
	s := newSimServer(t)
	d := simDeclare{Image: s.addImage(SimImage(simImageSize, 7))}
	s.setSecret(simSecret, simUser+":"+simPassword)
	m := s.add(1, nil)
	s.apply(d)
	s.awaitActive("m01", time.Minute)
	before, err := m.Disks[0].Digest()
	simMust(t, err)
	starts := len(m.Starts())
	for _, word := range []string{"SIM0002-0", "SIM0001", "sim0001-0", ""} {
		if err := s.wipe("m01", word, false); err == nil || !strings.Contains(err.Error(), "409") || !strings.Contains(err.Error(), "disk serial SIM0001-0") {
			t.Errorf("%q: %v", word, err)
		}
	}
	s.must(http.MethodPost, "/api/v1/machines/m01/hold", map[string]any{"reason": "memory test"}, nil)
	if err := s.wipe("m01", "SIM0001-0", false); err == nil || !strings.Contains(err.Error(), "memory test") {
		t.Errorf("held: %v", err)
	}
	s.must(http.MethodPost, "/api/v1/machines/m01/release", nil, nil)
	if after, err := m.Disks[0].Digest(); err != nil || after != before {
		t.Errorf("the disk was %s and is %s (%v)", before.Short(), after.Short(), err)
	}
	if v := s.view("m01"); v.Status.Phase != "active" || !m.Powered() || len(m.Starts()) != starts {
		t.Errorf("%v, on %t, %d starts", v, m.Powered(), len(m.Starts())-starts)
	}
}

// The disk that was confirmed is swapped for another before the ramdisk looks:
// neither is touched.
func TestASwappedDiskIsNotWiped(t *testing.T) {
	s := newSimServer(t)
	d := simDeclare{Image: s.addImage(SimImage(simImageSize, 7))}
	s.setSecret(simSecret, simUser+":"+simPassword)
	m := s.add(1, nil)
	s.apply(d)
	s.awaitActive("m01", time.Minute)
	m.Disks[0].ID.Serial = "ANOTHER" // no start is under way that reads it
	before, err := m.Disks[0].Digest()
	simMust(t, err)
	simMust(t, s.wipe("m01", "SIM0001-0", false))
	s.await("the wipe is refused", time.Minute, func() bool {
		return strings.Contains(strings.Join(s.view("m01").Status.Findings, "; "), "not wiped: the disk to be wiped is not here")
	})
	if after, err := m.Disks[0].Digest(); err != nil || after != before {
		t.Errorf("the disk was %s and is %s (%v)", before.Short(), after.Short(), err)
	}
	s.awaitActive("m01", time.Minute) // its system is back, and says so
}

// A wipe goes through everything that is real but the machine, with the server
// killed in each of its steps; the write intent stands before the first byte, and
// the rollout that deployed the machine does not bring it back.
func TestAServerKilledInAWipeWipesOnce(t *testing.T) {
	s := newSimServer(t)
	d := simDeclare{Image: s.addImage(SimImage(simImageSize, 7))}
	s.setSecret(simSecret, simUser+":"+simPassword)
	slow := func(o *SimulatedOptions) {
		o.Pace, o.Sessions = 10*time.Millisecond, 200
	}
	m := []*Simulated{s.add(1, slow), s.add(2, slow)}
	s.apply(d)
	for _, m := range m {
		s.awaitActive(m.Options.Name, time.Minute)
	}
	kept, err := m[1].Disks[0].Digest()
	simMust(t, err)
	begun, erased := time.Now(), len(m[0].Disks[0].Erases())
	simMust(t, s.wipe("m01", "SIM0001-0", false))
	killed := map[string]bool{}
	next := func() (over bool) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for v := range s.watch(ctx) {
			switch {
			case v.Name != "m01":
			case v.Status.Phase != "cleaning":
				return true
			case !killed[v.Status.Step]:
				killed[v.Status.Step] = true
				s.kill()
				s.start()
				return false
			}
		}
		return false
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && !next(); {
	}
	v := s.awaitWiped(m[0])
	for _, step := range []string{"writing", "verifying"} {
		if !killed[step] {
			t.Errorf("the server was never killed while %s: %v", step, killed)
		}
	}
	if !simZero(t, m[0].Disks[0]) {
		t.Error("something is left on the disk")
	}
	if v.Status.Running != "" || !strings.Contains(v.Status.Evidence.Detail, "20.0 MiB read back") || v.Sync != "out of sync" || len(v.Status.Findings) > 0 {
		t.Errorf("%v, runs %q, %+v", v, v.Status.Running, v.Status.Evidence)
	}
	var intents []simLine
	for _, l := range s.timeline("m01") {
		if strings.HasPrefix(l.Text, "may wipe ") {
			intents = append(intents, l)
		}
	}
	erases := m[0].Disks[0].Erases()[erased:]
	if len(intents) == 0 || len(erases) == 0 || len(erases) > len(intents) || erases[0].At.Before(intents[0].Time) || erases[0].At.Before(begun) {
		t.Errorf("erased %v under the intents %v", erases, intents)
	}
	// Nothing brings it back but an apply, which needs no --erase; the other one
	// never knew of it.
	starts := len(m[0].Starts())
	s.kill()
	s.start()
	if after, err := m[1].Disks[0].Digest(); err != nil || after != kept {
		t.Errorf("the other machine's disk was %s and is %s (%v)", kept.Short(), after.Short(), err)
	}
	p := s.plan(d)
	if len(p.Entries) != 1 || p.Entries[0].Machine != "m01" || p.Entries[0].Kind != "write" || p.Entries[0].Blocked != "" || p.Entries[0].Holds != "" {
		t.Fatalf("the next plan is %+v", p.Entries)
	}
	if n := len(m[0].Starts()); n != starts || m[0].Powered() {
		t.Errorf("it was started %d times by itself", n-starts)
	}
	s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
	s.awaitActive("m01", time.Minute)
}

// A quick wipe leaves the data where they are, and a disk that looks new.
func TestAQuickWipeLeavesADiskThatLooksNew(t *testing.T) {
	s := newSimServer(t)
	d := simDeclare{Image: s.addImage(SimImage(simImageSize, 7))}
	s.setSecret(simSecret, simUser+":"+simPassword)
	m := s.add(2, func(o *SimulatedOptions) {
		o.Disks = append(o.Disks, o.Disks[0])
		o.Disks[1].Serial = "SIM0002-1"
	})
	d.Hint = "serial: SIM0002-0"
	s.apply(d)
	s.awaitActive("m02", time.Minute)
	other, err := m.Disks[1].Digest()
	simMust(t, err)
	simMust(t, s.wipe("m02", "SIM0002-0", true))
	s.awaitWiped(m)
	facts, err := m.Disks[0].facts()
	if err != nil || facts.Holds != "" || facts.Recast != nil || m.Disks[0].Bootable() || simZero(t, m.Disks[0]) {
		t.Errorf("afterwards it holds %q, %+v, bootable %t (%v)", facts.Holds, facts.Recast, m.Disks[0].Bootable(), err)
	}
	// The second disk holds no system of ours: the first one's goes on to be known.
	p := s.plan(d)
	s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
	v := s.awaitActive("m02", time.Minute)
	if after, err := m.Disks[1].Digest(); err != nil || after != other {
		t.Errorf("the other disk was %s and is %s (%v)", other.Short(), after.Short(), err)
	}
	simMust(t, s.wipe("m02", "SIM0002-1", false))
	s.await("the second disk is wiped", time.Minute, func() bool { return simZero(t, m.Disks[1]) && !m.Powered() && s.view("m02").Status.Phase == "active" })
	if now := s.view("m02"); now.Status.Running != v.Status.Running || now.Sync != "in sync" || !strings.Contains(now.Status.NextAction, "recast power on m02") || !m.Disks[0].Bootable() {
		t.Errorf("%v, runs %q", now, now.Status.Running)
	}
}
