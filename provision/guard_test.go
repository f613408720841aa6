package provision

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// seen gives a machine an inventory and nothing else.
func (s *site) seen(name string, facts inventory.Facts) {
	m := s.machine(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.state
	now.Status.Facts, now.Status.FactsAt = &facts, s.Now()
	if err := s.commit(s.t.Context(), m, now, nil); err != nil {
		s.t.Fatal(err)
	}
}

// TestAnOldConsentDoesNotComeBack: an erase that was allowed by a plan, and had
// not happened when another plan came, is not allowed any more.
func TestAnOldConsentDoesNotComeBack(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "wait"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true), "m1") // may be erased, and cannot start yet
	s.seen("m1", testFacts(1, testUUID(1)))
	s.apply(strings.Replace(s.yaml(true), "hostname: x", "hostname: y", 1)) // nobody is named: blocked
	s.apply(s.yaml(true))                                                   // what the first plan was about, blocked as well
	for range 2 {
		if r := s.Rollouts(); len(r) != 0 {
			t.Fatalf("%+v may still start", r)
		}
		s.restart()
	}
}

// TestConsentIsAboutTheDiskThatWasShown, and about what it held.
func TestConsentIsAboutTheDiskThatWasShown(t *testing.T) {
	s := newSite(t, 1)
	s.apply(strings.Replace(s.yaml(true), "{rack: r}, definition", "{rack: none}, definition", 1)) // declared, in no group
	s.seen("m1", testFacts(1, testUUID(1)))
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b"}, testAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	facts := testFacts(1, testUUID(1))
	facts.Disks[0].Serial = "the spare"
	o, err := s.Inventory(t.Context(), reply.Token, facts)
	if err != nil || o.Kind != inventory.OrderLocal {
		t.Fatalf("order %+v, %v", o, err)
	}
	if st := s.machine("m1").snapshot().Status; !strings.Contains(st.LastError, "D1") || st.NextAction == "" {
		t.Errorf("it says %q, next %q", st.LastError, st.NextAction)
	}
}

// TestRolloutOfAnotherPlanStartsNothing: what a crash left between the rollouts
// and the pointer is no permission.
func TestRolloutOfAnotherPlanStartsNothing(t *testing.T) {
	s := newSite(t, 1)
	if err := s.putRollout(t.Context(), Rollout{Group: "g", Plan: genA, At: time.Now(),
		Machines: map[string]RolloutTarget{"m1": {Kind: EntryWrite, To: genA, Erase: true}}}); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if r := s.Rollouts(); len(r) != 0 {
		t.Errorf("rollouts %+v", r)
	}
}

func TestSecretsKeepTheVersionsThatGenerationsName(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "wait"); err != nil {
		t.Fatal(err)
	}
	set := func(values ...string) {
		t.Helper()
		for _, v := range values {
			for _, name := range []string{"used", "pw"} {
				if _, err := s.SetSecret(t.Context(), name, []byte(v), "ann"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	set("one")
	s.apply(strings.Replace(s.yaml(true), "hostname: x", "hostname: x\\npassword: ${secret.used}", 1))
	set("two")
	s.restart()
	x := s.Secrets()
	// The start collects what nothing names: when that is gone, it has looked at all.
	s.until("the version that no generation names is gone", func() bool {
		_, err := x.GetVersion(t.Context(), "pw", 1)
		return errors.Is(err, errNoSecret)
	})
	if b, err := x.GetVersion(t.Context(), "used", 1); err != nil || string(b) != "one" {
		t.Errorf("version 1 is %q, %v", b, err)
	}
	if n := len(x.List()); n != 3 {
		t.Errorf("%d secrets are listed, want pw, rack-bmc and used", n)
	}
	if err := x.Remove(t.Context(), "pw", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.GetVersion(t.Context(), "pw", 2); err == nil {
		t.Error("a removed secret can be read")
	}
	s.restart()
	if _, ok := s.Secrets().Version("pw"); ok {
		t.Error("a removed secret is back after a restart")
	}
	// The same number for another value would be the same generation.
	if info, err := s.SetSecret(t.Context(), "pw", []byte("three"), "ann"); err != nil || info.Version != 3 {
		t.Errorf("set anew: version %d, %v", info.Version, err)
	}
	s.apply(s.yaml(true))
	if err := s.RemoveSecret(t.Context(), "rack-bmc", "ann"); err == nil {
		t.Error("the password of a declared BMC was removed")
	}
}

// TestAMissingSecretStopsItsMachinesAndNotTheServer.
func TestAMissingSecretStopsItsMachinesAndNotTheServer(t *testing.T) {
	s := newSite(t, 1)
	if _, err := s.SetSecret(t.Context(), "pw", []byte("one"), "ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.Freeze(t.Context(), "ann", "wait"); err != nil {
		t.Fatal(err)
	}
	s.apply(strings.Replace(s.yaml(true), "hostname: x", "hostname: x\\npassword: ${secret.pw}", 1))
	s.Secrets().inUse = nil
	if err := s.Secrets().Remove(t.Context(), "pw", nil); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if v, _ := s.View("m1"); !strings.Contains(v.Waiting, "pw") || v.Sync != SyncUnknown {
		t.Errorf("m1 waits for %q, %s", v.Waiting, v.Sync)
	}
}

// TestDoneIsBelievedOnlyWithTheImagesDigest, and the configuration is for whoever writes.
func TestDoneIsBelievedOnlyWithTheImagesDigest(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	token, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil || o.Kind != inventory.OrderWrite {
		t.Fatal(o, err)
	}
	report := inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentDone, Erased: true, ReadBack: genA}
	if _, err := s.Report(t.Context(), token, report); err != nil {
		t.Fatal(err)
	}
	st := s.machine("m1").snapshot().Status
	if st.Step == StepStarting || st.Running != "" || st.Attempt != 2 || !strings.Contains(st.LastError, "reads back") {
		t.Errorf("%s/%s attempt %d: %s", st.Phase, st.Step, st.Attempt, st.LastError)
	}
	if _, err := s.ConfigVolume(t.Context(), token); err == nil {
		t.Error("a boot without a job reads the configuration")
	}
}

// TestADeclarationThatChangedIsARefusalAndNoErase.
func TestADeclarationThatChangedIsARefusalAndNoErase(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	s.apply(strings.Replace(s.yaml(true), "network: n}]", "network: n, ip: 10.0.0.77}]", 1), "m1")
	_, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil || o.Kind == inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	if in := s.machine("m1").snapshot().Intent; in.Write != nil {
		t.Error("a write intent stands")
	}
}

func TestClaimComesFromANetworkAndWithItsFacts(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	c := inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b"}
	var refused *RefusedError
	if _, err := s.Claim(t.Context(), c, netip.MustParseAddr("192.0.2.9")); !errors.As(err, &refused) {
		t.Errorf("from outside: %v", err)
	}
	none := c
	none.BootID = ""
	if _, err := s.Claim(t.Context(), none, testAddr(1)); !errors.As(err, &refused) {
		t.Errorf("without a boot id: %v", err)
	}
	reply, err := s.Claim(t.Context(), c, testAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	facts := testFacts(1, testUUID(1))
	facts.SystemVendor.SerialNumber = "another"
	if o, err := s.Inventory(t.Context(), reply.Token, facts); !errors.As(err, &refused) {
		t.Errorf("another machine's inventory: %+v, %v", o, err)
	}
	if st := s.machine("m1").snapshot().Status; st.Hold == nil {
		t.Error("it is not held")
	}
}

// A BMC's address is its machine's in the lease table, and still not the machine.
func TestLeaseOfABMCIsNotItsMachines(t *testing.T) {
	s := newSite(t, 1)
	a := netip.MustParseAddr("10.99.0.7")
	for bmc, want := range map[bool]string{true: "", false: "m1"} {
		l := inventory.Lease{Network: "n", Addr: a, MAC: "52:54:00:00:09:09", Machine: "m1", BMC: bmc, State: inventory.LeaseBound, Expires: s.Now().Add(time.Hour)}
		_, rev, err := s.leaseTable.Get(t.Context(), "n/"+a.String())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		op, err := s.leaseTable.PutOp("n/"+a.String(), l, rev)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Store.Commit(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		s.until(fmt.Sprintf("BMC %v: the lease is %q's", bmc, want), func() bool {
			got, err := s.leaseOf(t.Context(), "n", a) // what was watched may be the round before
			return err == nil && got == want
		})
	}
}

// A declared address is its machine's before anything is stored of its lease, and
// not while somebody else still has it.
func TestADeclaredAddressIsItsMachinesUnlessLeasedToAnother(t *testing.T) {
	s := newSite(t, 1)
	a := testAddr(1)
	s.apply(strings.Replace(s.yaml(true), "network: n}", "network: n, ip: "+a.String()+"}", 1), "m1")
	if got, err := s.leaseOf(t.Context(), "n", a); err != nil || got != "m1" {
		t.Errorf("without a lease it is %q's, %v", got, err)
	}
	l := inventory.Lease{Network: "n", Addr: a, MAC: "52:54:00:00:09:09", State: inventory.LeaseBound, Expires: s.Now().Add(time.Hour)}
	op, err := s.leaseTable.PutOp("n/"+a.String(), l, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Store.Commit(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	if got, err := s.leaseOf(t.Context(), "n", a); err != nil || got != "" {
		t.Errorf("while a stranger has it, it is %q's, %v", got, err)
	}
}

func TestALeaseThatIsGoneIsNobodys(t *testing.T) {
	s := newSite(t, 1)
	a := netip.MustParseAddr("10.99.0.7")
	held := func(want bool) {
		t.Helper()
		s.until(fmt.Sprintf("held: %v", want), func() bool {
			s.mu.RLock()
			defer s.mu.RUnlock()
			_, has := s.leases[a]
			return has == want
		})
	}
	rev, err := s.leaseTable.Put(t.Context(), "n/"+a.String(), inventory.Lease{Network: "n", Addr: a, State: inventory.LeaseBound, Expires: s.Now().Add(time.Hour)}, 0)
	if err != nil {
		t.Fatal(err)
	}
	held(true)
	if _, err := s.Store.Commit(t.Context(), s.leaseTable.DeleteOp("n/"+a.String(), rev)); err != nil {
		t.Fatal(err)
	}
	held(false)
}

// TestBootPathDoesNotWaitForACommit: the lock stands for a store that hangs.
func TestBootPathDoesNotWaitForACommit(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	m := s.machine("m1")
	m.mu.Lock()
	defer m.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		_, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Remote: testAddr(1)})
		s.Views()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the boot answer waits for a commit")
	}
}

// TestAMendedImageStartsNothingThatIsHeld.
func TestAMendedImageStartsNothingThatIsHeld(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	m := s.machine("m1")
	m.mu.Lock()
	now := m.state
	now.Status.Phase, now.Status.FailedImage = Failed, s.image
	now.Status.Hold = &Hold{Owner: "ann", Reason: "look"}
	err := s.commit(t.Context(), m, now, nil)
	m.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	s.Mend(s.image)
	s.schedule(t.Context())
	if v, _ := s.View("m1"); Busy(v.Status.Phase) || !strings.HasPrefix(v.Waiting, "held") {
		t.Fatalf("%s, waiting %q", v.Status.Phase, v.Waiting)
	}
	if err := s.Release(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
}

// TestOldActionIsDropped: an action whose step is over must not reach the BMC.
func TestOldActionIsDropped(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	m := s.machine("m1")
	before := m.snapshot()
	before.Status.Step = StepStopping
	calls := len(s.bmcs["10.9.0.1"].Calls())
	if err := s.once(t.Context(), m, ActOff, before); !errors.Is(err, errStale) {
		t.Errorf("the old power off: %v", err)
	}
	if now := len(s.bmcs["10.9.0.1"].Calls()); now != calls || !s.bmcs["10.9.0.1"].Powered() {
		t.Errorf("%d calls, were %d", now, calls)
	}
}

// TestStrangersAreBounded in number and in rate.
func TestStrangersAreBounded(t *testing.T) {
	s := newSite(t, 1)
	facts := testFacts(7, "")
	mac := inventory.MAC("02:00:00:00:00:01")
	token := s.key.DiscoveryToken(s.Store.Epoch(), mac)
	if _, err := s.Discover(t.Context(), token, facts, testAddr(9)); err != nil {
		t.Fatal(err)
	}
	s.mu.RLock()
	first := s.strays[mac].At
	s.mu.RUnlock()
	if _, err := s.Discover(t.Context(), token, facts, testAddr(9)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	if at := s.strays[mac].At; !at.Equal(first) {
		t.Error("it was written twice in one moment")
	}
	for i := len(s.strays); i < maxStrays; i++ {
		m := inventory.MACOf([]byte{2, 1, 0, 0, byte(i >> 8), byte(i)})
		s.strays[m] = Stray{MAC: m, At: time.Now()}
	}
	s.mu.Unlock()
	other := inventory.MAC("02:00:00:00:00:02")
	var refused *RefusedError
	if _, err := s.Discover(t.Context(), s.key.DiscoveryToken(s.Store.Epoch(), other), facts, testAddr(9)); !errors.As(err, &refused) {
		t.Errorf("one too many: %v", err)
	}
	if (Stray{}).empty() {
		t.Error("a machine that shows no disk is taken for an empty one")
	}
}

// TestAReleasedMachineKeepsItsNextAction: a hold that ended leaves a failed
// machine failed, and whoever looks at it must know how to go on.
func TestAReleasedMachineKeepsItsNextAction(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	if _, _, err := s.boot(1, "b1", testUUID(7)); err == nil {
		t.Fatal("another machine claimed m1")
	}
	s.await("m1", Failed, StepNone)
	for _, hold := range []bool{false, true} { // recast's own, then a person's
		if hold {
			if err := s.Hold(t.Context(), "m1", "bob", "memory test", 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Release(t.Context(), "m1", "ann"); err != nil {
			t.Fatal(err)
		}
		if x, err := s.Explain(t.Context(), "m1"); err != nil || x.Missing == "" || !strings.Contains(x.Next, "recast retry m1") || strings.Contains(x.Next, "release") {
			t.Errorf("%+v, %v", x, err)
		}
	}
}

// TestAHoldThatExpiredTakesNoOtherAlong: one that was placed after the clock
// looked stays.
func TestAHoldThatExpiredTakesNoOtherAlong(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true))
	s.await("m1", Deploying, StepBooting)
	if err := s.Hold(t.Context(), "m1", "bob", "memory test", time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := s.lift(t.Context(), "m1", "recast: the hold expired"); err == nil {
		t.Error("a hold that has not expired is released")
	}
	if st := s.machine("m1").snapshot().Status; st.Hold == nil || st.Hold.Owner != "bob" {
		t.Errorf("%+v", st.Hold)
	}
	if err := s.Hold(t.Context(), "m1", "bob", "memory test", time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	s.until("a hold that has expired ends", func() bool { return s.machine("m1").snapshot().Status.Hold == nil })
}

// A machine that only a freeze keeps from being put back goes on when it ends.
func TestWhatAFreezeAloneHeldGoesOnAfterIt(t *testing.T) {
	s := newSite(t, 2)
	if err := s.Freeze(t.Context(), "ann", "audit"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	for name, thaws := range map[string]bool{"m1": true, "m2": false} {
		m := s.machine(name)
		m.mu.Lock()
		next := m.snapshot()
		next.Intent = &Intent{Machine: name, Gate: &Gate{Disk: disk("D"), Epoch: "e"}}
		next.Status.Gate = &GateSeen{Step: GateStopped}
		next.Status.Hold = &Hold{Owner: "recast", Reason: "gate: not as it was written", Cure: unfreezeNext, Thaws: thaws}
		next.Status.NextAction = unfreezeNext + " lets it go on"
		err := s.commit(t.Context(), m, next, nil)
		m.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	s.tick(t.Context())
	if x, err := s.Explain(t.Context(), "m1"); err != nil || s.machine("m1").snapshot().Status.Hold == nil || x.Next != unfreezeNext {
		t.Fatalf("while all is frozen: %+v, %v", x, err)
	}
	if err := s.Unfreeze(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	s.until("it goes on by itself", func() bool { return s.machine("m1").snapshot().Status.Hold == nil })
	if st := s.machine("m1").snapshot().Status; strings.Contains(st.NextAction, unfreezeNext) {
		t.Errorf("next: %q", st.NextAction)
	}
	s.tick(t.Context())
	if s.machine("m2").snapshot().Status.Hold == nil {
		t.Error("what is held for another reason went on, too")
	}
}

func TestARepairIsLetOnlyWhereAGateHolds(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "audit"); err != nil { // nothing else shall move it
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	if err := s.Repair(t.Context(), "m1", "ann"); err == nil || !strings.Contains(err.Error(), "no gate holds it") {
		t.Errorf("a machine without a gate: %v", err)
	}
	m := s.machine("m1")
	m.mu.Lock()
	next := m.snapshot()
	gate := &Gate{Disk: disk("D"), Epoch: "e", NoKexec: "lost"}
	next.Intent = &Intent{Machine: "m1", Gate: gate}
	next.Status.Gate = &GateSeen{Step: GateStopped}
	next.Status.Hold = &Hold{Owner: "recast", Reason: "gate: not as it was written"}
	err := s.commit(t.Context(), m, next, nil)
	m.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	now := m.snapshot()
	if c := now.Intent.Gate.Consent; now.Status.Hold != nil || c == nil || *c != (GateConsent{By: "ann", Epoch: s.Store.Epoch()}) || gate.Consent != nil {
		t.Errorf("%+v, held %+v", now.Intent.Gate, now.Status.Hold)
	}
	if err := s.Repair(t.Context(), "m1", "ann"); err == nil || !strings.Contains(err.Error(), "no gate holds it") {
		t.Errorf("a second time: %v", err)
	}
}

// Of data that dm-verity protects no gate sees that it differs, so that none need hold it.
func TestARepairOfWhatNoGateReadsIsLetWhereNothingElseIsUnderWay(t *testing.T) {
	roots := []VerityRoot{{Data: inventory.Region{Name: "root", Start: 8192, End: 16384}, Tree: "tree"}}
	tree := inventory.Region{Name: "tree", Start: 16384, End: 20480}
	for name, tt := range map[string]struct {
		step GateStep
		hold *Hold
		why  string
	}{
		"at rest":          {GateIdle, nil, ""},
		"let through":      {GatePassed, nil, ""},
		"held by its gate": {GateStopped, &Hold{Owner: "recast", Reason: "gate: in circles"}, ""},
		"held by somebody": {GateIdle, &Hold{Owner: "ann", Reason: "mine"}, "no gate holds it"},
		"proving":          {GateProving, nil, "its gate is at work"},
		"loading":          {GateLoading, nil, "its gate is at work"},
		"released":         {GateStopped, nil, "no gate holds it"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 1)
			if err := s.Freeze(t.Context(), "ann", "audit"); err != nil { // nothing else shall move it
				t.Fatal(err)
			}
			s.apply(s.yaml(true))
			m := s.machine("m1")
			m.mu.Lock()
			next := m.snapshot()
			next.Intent = &Intent{Machine: "m1", Gate: &Gate{Disk: disk("D"), Epoch: "e", Regions: []inventory.Region{tree}, Verity: roots}}
			next.Status.Gate, next.Status.Hold, next.Status.Findings = &GateSeen{Step: tt.step}, tt.hold, []string{"bootorder: it stays"}
			err := s.commit(t.Context(), m, next, nil)
			m.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			err = s.Repair(t.Context(), "m1", "bob")
			now := m.snapshot()
			reads := now.Intent.Gate.reads()
			if tt.why == "" && (err != nil || len(reads) != 2 || reads[1] != roots[0].Data || now.Status.Hold != nil || tt.hold == nil && len(now.Status.Findings) != 1) ||
				tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why) || len(reads) != 1 || reads[0] != tree) {
				t.Errorf("%v; it reads %+v; held %+v, findings %q", err, reads, now.Status.Hold, now.Status.Findings)
			}
		})
	}
}

// What a gate holds and an operator wants written anew has its turn, however soon it comes
// back to its gate.
func TestARetryOfWhatAGateHoldsIsNotHeldAgain(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "audit"); err != nil { // its turn takes a while
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	m := s.machine("m1")
	m.mu.Lock()
	next := m.snapshot()
	next.Intent = &Intent{Machine: "m1", Epoch: "e", Gate: storyGate(inventory.MismatchHold)}
	next.Status.Phase, next.Status.Running, next.Status.Gate = Active, genA, &GateSeen{Step: GateStopped}
	next.Status.Hold = &Hold{Owner: "recast", Reason: "gate: not as it was written"}
	err := s.commit(t.Context(), m, next, nil)
	m.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	order := func() inventory.OrderKind {
		m.mu.Lock()
		defer m.mu.Unlock()
		o, err := s.gateOrder(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return o.Kind
	}
	if err := errors.Join(s.Retry(t.Context(), "m1", "ann"), s.Release(t.Context(), "m1", "ann")); err != nil {
		t.Fatal(err)
	}
	if o := order(); o != inventory.OrderWait {
		t.Errorf("in the ramdisk: %s", o)
	}
	for _, ev := range []Event{GateClaimed{ClaimState{BootID: "b2", Until: s.Now().Add(LeaseTime)}}, GateInspected{},
		GateReported{Report: inventory.Report{Step: inventory.AgentDone, Verdict: storyVerdict(1, "")}, Epoch: "e"}} {
		if err := s.handle(t.Context(), m, ev); err != nil {
			t.Fatal(err)
		}
	}
	if st := m.snapshot().Status; st.Hold != nil || st.Gate.Step != GateStopped || order() != inventory.OrderWait {
		t.Errorf("back at its gate: %s, held %+v", st.Gate.Step, st.Hold)
	}
}
