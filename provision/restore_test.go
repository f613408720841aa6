package provision

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"recast/inventory"
	"recast/store"
)

// reporter is what an installed system finds on its config volume.
func reporter(t *testing.T, volume []byte) (token string, r inventory.BootReport) {
	t.Helper()
	from := bytes.Index(volume, []byte("{\n  \"url\":"))
	if from < 0 {
		t.Fatal("the config volume has no reporter")
	}
	var c struct {
		inventory.BootReport
		Token string
	}
	if err := json.NewDecoder(bytes.NewReader(volume[from:])).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c.Token, c.BootReport
}

// backup of the running store.
func (s *site) backup() []byte {
	s.t.Helper()
	var b bytes.Buffer
	if _, err := store.Backup(s.t.Context(), s.Store, &b); err != nil {
		s.t.Fatal(err)
	}
	return b.Bytes()
}

// restore puts a backup in the place of the store, as recast store restore does.
func (s *site) restore(backup []byte) {
	s.t.Helper()
	epoch := s.Store.Epoch()
	s.close()
	path := filepath.Join(s.dir, "recast.db")
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
	if _, err := store.Restore(s.t.Context(), bytes.NewReader(backup), path, nil); err != nil {
		s.t.Fatal(err)
	}
	s.open()
	if s.Store.Epoch() == epoch {
		s.t.Fatal("a restored store has its old epoch")
	}
}

// write takes m1 from its claim to its disk, and returns its installed system.
func (s *site) write(bootID string) (token string, r inventory.BootReport) {
	s.t.Helper()
	s.await("m1", Deploying, StepBooting)
	reply, err := s.Claim(s.t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: bootID}, testAddr(1))
	if err != nil {
		s.t.Fatal(err)
	}
	agent := reply.Token
	facts := testFacts(1, testUUID(1))
	if known := s.machine("m1").snapshot().Status.Facts; known != nil {
		facts = *known // its disk says what was written
	}
	o, err := s.Inventory(s.t.Context(), agent, facts)
	if err != nil || o.Kind != inventory.OrderWrite {
		s.t.Fatalf("order %+v, %v", o, err)
	}
	volume, err := s.ConfigVolume(s.t.Context(), agent)
	if err != nil {
		s.t.Fatal(err)
	}
	done := inventory.Report{BootID: bootID, Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentDone, Erased: true, ReadBack: s.image}
	if _, err := s.Report(s.t.Context(), agent, done); err != nil {
		s.t.Fatal(err)
	}
	token, r = reporter(s.t, volume)
	r.Hostname = "m1"
	return token, r
}

// booted starts the installed system once more.
func (s *site) booted(token string, r inventory.BootReport, bootID string) Status {
	s.t.Helper()
	r.BootID = bootID
	if err := s.Booted(s.t.Context(), token, r); err != nil {
		s.t.Fatal(err)
	}
	v, _ := s.View("m1")
	return v.Status
}

func (s *site) planOf(yaml string) Plan {
	s.t.Helper()
	p, err := s.Plan(s.t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(yaml)}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// TestARestoredStoreHearsItsMachines: what recast wrote before the backup, and
// after it, may say so.
func TestARestoredStoreHearsItsMachines(t *testing.T) {
	s := newSite(t, 1)
	one := s.yaml(true)
	s.apply(one, "m1")
	s.await("m1", Deploying, StepBooting)
	early := s.backup() // in the middle of an attempt
	tokenA, a := s.write("b1")
	s.booted(tokenA, a, "os1")
	s.await("m1", Active, StepNone)
	late := s.backup()

	s.restore(late)
	before := s.Now()
	if st := s.booted(tokenA, a, "os2"); st.Phase != Active || st.Evidence.Level != inventory.E3 || !st.Evidence.At.Before(before) || st.Evidence.Reported.Before(before) || len(st.Findings) > 0 {
		t.Errorf("after a restore: %s, evidence %+v, findings %q", st.Phase, st.Evidence, st.Findings)
	}

	// Another generation, which the backup knows nothing of.
	two := strings.Replace(one, "hostname: x", "hostname: y", 1)
	s.apply(two, "m1")
	tokenB, b := s.write("b2")
	s.booted(tokenB, b, "os3")
	s.await("m1", Active, StepNone)
	s.restore(late)
	st := s.booted(tokenB, b, "os4")
	if st.Phase != Active || st.Running != b.Generation || st.Evidence.Level != inventory.E2 || len(st.Findings) != 1 || st.Health != Degraded {
		t.Errorf("it runs what the backup does not know: %s running %s, evidence %+v, findings %q", st.Phase, st.Running, st.Evidence, st.Findings)
	}
	if v, _ := s.View("m1"); v.Sync != OutOfSync {
		t.Errorf("it is %s", v.Sync)
	}
	if p := s.planOf(one); len(p.Entries) != 1 || p.Entries[0].Kind != EntryWrite {
		t.Errorf("the plan back: %+v", p.Entries)
	}
	if p := s.planOf(two); len(p.Entries) != 0 {
		t.Errorf("what it runs is planned again: %+v", p.Entries)
	}

	s.restore(early)
	if v, _ := s.View("m1"); v.Status.Phase != Available || v.Sync != SyncUnknown {
		t.Fatalf("restored into an attempt: %s, %s", v.Status.Phase, v.Sync)
	}
	if st := s.booted(tokenA, a, "os5"); st.Phase != Active || st.Health != Healthy || st.Running != a.Generation {
		t.Errorf("its write was finished since: %s, %s, running %s", st.Phase, st.Health, st.Running)
	}
}

// TestAReportSpeaksForOneWrite: the same generation in the same attempt, but of
// another write, is another disk.
func TestAReportSpeaksForOneWrite(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	tokenA, a := s.write("b1")
	s.booted(tokenA, a, "os1")
	two := strings.Replace(s.yaml(true), "hostname: x", "hostname: y", 1)
	s.apply(two, "m1")
	tokenB, b := s.write("b2")
	s.booted(tokenB, b, "os2")
	s.apply(s.yaml(true), "m1")
	token, c := s.write("b3")
	if a.Generation != c.Generation || a.Write == c.Write || tokenA == token {
		t.Fatalf("first %+v, then %+v", a, c)
	}
	if st := s.booted(tokenA, a, "os3"); st.Step != StepStarting || len(st.Findings) != 1 {
		t.Errorf("the disk before this one started: %s/%s, findings %q", st.Phase, st.Step, st.Findings)
	}
	s.booted(token, c, "os4")
	s.await("m1", Active, StepNone)
	for what, change := range map[string]func(*inventory.BootReport){
		"machine":    func(r *inventory.BootReport) { r.Machine = "m2" },
		"generation": func(r *inventory.BootReport) { r.Generation = b.Generation },
		"rendered":   func(r *inventory.BootReport) { r.Rendered = b.Rendered },
		"write":      func(r *inventory.BootReport) { r.Write = a.Write },
	} {
		r := c
		change(&r)
		var refused *RefusedError
		if err := s.Booted(t.Context(), token, r); !errors.As(err, &refused) {
			t.Errorf("a token was taken for another %s: %v", what, err)
		}
	}
}
