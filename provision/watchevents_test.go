package provision

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
)

func TestEventsMoveALookForward(t *testing.T) {
	const every = 300 * time.Second
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	w := &watched{due: at(300), last: t0, gap: eventGap}
	want := func(what string, due time.Time) {
		t.Helper()
		if !w.due.Equal(due) {
			t.Fatalf("%s: due at %s, want %s", what, w.due.Sub(t0), due.Sub(t0))
		}
	}
	look := func(s int, changed bool) {
		w.looking, w.last = true, at(s)
		w.saw(at(s), every, sight{changed: changed}, 0.5)
	}
	w.told(at(100))
	want("an event after a long time", at(100))
	look(100, true)
	want("something changed", at(400))
	w.told(at(101))
	want("the next event a second later", at(102))
	look(102, false)
	want("an event that showed nothing: the BMC may lag behind", at(117))
	look(117, false)
	want("nor did the second look", at(417))
	w.looking, w.last = true, at(417)
	w.told(at(417))
	want("an event while it is looked at", at(417))
	w.saw(at(418), every, sight{}, 0.5)
	want("it is looked at once more", at(419))

	w = &watched{due: at(0), gap: eventGap}
	looks := 0
	for s := range 3600 { // a BMC that tells of something each second
		w.told(at(s))
		if !w.due.After(at(s)) {
			looks++
			look(s, false)
		}
	}
	if looks > 25 {
		t.Errorf("%d looks in an hour at a BMC that tells of everything, want about one in the watch's interval", looks)
	}
	w.told(at(3600))
	w.saw(at(3700), every, sight{again: at(3710)}, 0.5)
	want("a look that is wanted sooner", at(3710))
}

func TestStreamsThatFailAreRetriedMoreAndMoreSeldom(t *testing.T) {
	var s stream
	var waits []time.Duration
	for range 8 {
		s.ended(t0, false)
		waits = append(waits, s.next.Sub(t0))
	}
	if waits[0] != time.Minute || waits[1] != 2*time.Minute || waits[7] != time.Hour {
		t.Errorf("retried after %v", waits)
	}
	if s.ended(t0, true); s.next.Sub(t0) != noStream {
		t.Errorf("a BMC without events is asked again after %s", s.next.Sub(t0))
	}
}

// awaitStatus waits until ok likes a machine's Status.
func (s *site) awaitStatus(name, what string, ok func(Status) bool) (st Status) {
	s.t.Helper()
	s.until(name+" "+what, func() bool {
		st = s.machine(name).snapshot().Status
		return ok(st)
	})
	return st
}

// running makes a machine one that runs what is wanted of it, without the work.
func (s *site) running(name string, board *Board) {
	s.t.Helper()
	m := s.machine(name)
	s.Engine.mu.RLock()
	w := s.wanted[name]
	s.Engine.mu.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.state
	next.Status.Phase, next.Status.Health, next.Status.Power, next.Status.Ran, next.Status.Board = Active, Healthy, "on", true, board
	next.Status.Running, next.Status.RunningRendered = w.Generation.Digest, w.Rendered.Digest
	if err := s.commit(s.t.Context(), m, next, nil); err != nil {
		s.t.Fatal(err)
	}
}

func enforced(yaml string) string {
	return strings.Replace(yaml, "definition: d,", "definition: d, power: enforce,", 1)
}

// An event makes the watch look at once; what it says is not believed.
func TestAnEventMakesTheWatchLook(t *testing.T) {
	s := newSite(t, 2)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	for _, fake := range s.bmcs {
		fake.SetPowered(true)
	}
	s.bmcs["10.9.0.2"].NoEvents = true
	s.apply(s.yaml(true))
	s.watch = time.Hour
	s.restart()
	a, b := s.bmcs["10.9.0.1"], s.bmcs["10.9.0.2"]
	w := &watch{Engine: s.Engine, machines: map[string]*watched{}, streams: map[string]*stream{}, sights: make(chan sight, 10), heard: make(chan heard, 10)}
	w.tick(t.Context())
	for name, m := range w.machines { // their first turn
		m.due = t0
		w.begin(t.Context(), name, m, time.Now())
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); {
			select {
			case s := <-w.sights:
				w.saw(t.Context(), s)
			case h := <-w.heard:
				w.hear(t.Context(), h)
			case <-time.After(time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	until("both were asked for events", func() bool {
		return a.Count("subscribe") > 0 && b.Count("subscribe") > 0 && w.streams["10.9.0.2:623"].cancel == nil
	})
	if at := w.streams["10.9.0.2:623"].next; time.Until(at) < noStream-time.Minute {
		t.Errorf("a BMC without events is asked for them again at %s", at)
	}
	looks := a.Count("power")
	w.machines["m1"].last = t0
	a.SetPowered(false)
	s.until("it listens to what it subscribed to", func() bool { return a.Tell() > 0 })
	until("it is looked at", func() bool {
		return a.Count("power") > looks && s.machine("m1").snapshot().Status.Power == "off" && !w.machines["m1"].looking
	})
	if b.Count("power") != 1 {
		t.Errorf("the other BMC was looked at %d times", b.Count("power"))
	}
	// One that does not answer while its stream is open loses the stream.
	a.SetFault(bmc.FaultUnreachable)
	w.machines["m1"].due = t0
	w.begin(t.Context(), "m1", w.machines["m1"], time.Now())
	until("the stream is closed", func() bool { return w.streams["10.9.0.1:623"].cancel == nil })
	if n := a.Tell(); n != 0 {
		t.Errorf("%d streams are open", n)
	}
	// One that is declared no more is watched no more.
	s.apply(strings.Split(s.yaml(true), "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: m2")[0])
	if w.tick(t.Context()); w.machines["m2"] != nil || w.machines["m1"] == nil {
		t.Errorf("watched are %v", w.machines)
	}
}

// Who uses a credential that was changed does not wait five minutes to be asked with it.
func TestAChangedCredentialIsTriedSoonByAllThatUseIt(t *testing.T) {
	s := newSite(t, 3)
	s.idle()
	if _, err := s.SetSecret(t.Context(), "other", []byte("admin:other"), "ann"); err != nil {
		t.Fatal(err)
	}
	yaml := strings.Replace(s.yaml(true), "10.9.0.3\", credentials: rack-bmc", "10.9.0.3\", credentials: other", 1)
	s.apply(yaml)
	s.watch = 300 * time.Second
	s.restart()
	for i := range 3 {
		s.bmcs[fmt.Sprintf("10.9.0.%d", i+1)].SetFault(bmc.FaultAuth)
		if err := s.lets(fmt.Sprintf("m%d", i+1)); err == nil {
			t.Fatal("it is let in")
		}
	}
	for _, f := range s.bmcs {
		f.SetFault(bmc.FaultNone)
	}
	w := &watch{Engine: s.Engine, machines: map[string]*watched{}, streams: map[string]*stream{}, sights: make(chan sight, 10), heard: make(chan heard, 10)}
	w.follow()
	now := time.Now()
	for _, name := range []string{"m1", "m2", "m3"} {
		w.machines[name] = &watched{due: now.Add(200 * time.Second), gap: eventGap}
	}
	w.hasten(now)
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("admin:new"), "ann"); err != nil {
		t.Fatal(err)
	}
	s.soon.mu.Lock()
	asked := slices.Clone(s.soon.names)
	s.soon.mu.Unlock()
	w.hasten(now)
	for name, soon := range map[string]bool{"m1": true, "m2": true, "m3": false} {
		if got := w.machines[name].due.Sub(now) < time.Second; got != soon {
			t.Errorf("%s is looked at in %s (%q are asked)", name, w.machines[name].due.Sub(now), asked)
		}
	}
	for range 20000 {
		s.soon.names = append(s.soon.names, "m1") // so many that they take their turns
	}
	w.machines["m1"].due = now.Add(time.Hour)
	if w.hasten(now); w.machines["m1"].due.After(now.Add(301 * time.Second)) {
		t.Errorf("of many it waits %s, longer than its turn", w.machines["m1"].due.Sub(now))
	}
}

// The watch does so by itself.
func TestAFindingOfARefusedPasswordEndsSoonAfterTheSecretIsSet(t *testing.T) {
	s := newSite(t, 2)
	s.idle()
	s.apply(s.yaml(true))
	s.watch = 300 * time.Second
	s.restart()
	for i, f := range []*bmc.Fake{s.bmcs["10.9.0.1"], s.bmcs["10.9.0.2"]} {
		f.SetFault(bmc.FaultAuth)
		_ = s.lets(fmt.Sprintf("m%d", i+1))
		f.SetFault(bmc.FaultNone)
	}
	for _, name := range []string{"m1", "m2"} {
		if len(s.onBMC(name)) != 1 {
			t.Fatalf("%s: findings %q", name, s.onBMC(name))
		}
	}
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("admin:secret"), "ann"); err != nil {
		t.Fatal(err)
	}
	s.until("both findings are gone", func() bool { return len(s.onBMC("m1"))+len(s.onBMC("m2")) == 0 })
	for host, f := range s.bmcs {
		if n := f.Count("dial"); n != 2 {
			t.Errorf("%s: %d logins, want the refused one and one", host, n)
		}
	}
}

func TestNobodySwitchesTheMachineOfAnotherBoard(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	s.running("m1", &Board{UUID: "u1", Serial: "A"})
	fake, m := s.bmcs["10.9.0.1"], s.machine("m1")
	fake.SetPowered(true)
	fake.Told.UUID, fake.Told.Serial = "u2", "B" // two URLs have changed places
	for _, verb := range []string{"off", "cycle", "on"} {
		_, err := s.Power(t.Context(), "m1", "ann", verb, false)
		if err == nil || !strings.Contains(err.Error(), "serial A before, B now") || !strings.Contains(err.Error(), "recast bmc enrol m1") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	for _, call := range fake.Calls() {
		if call.Verb == "off" || call.Verb == "soft-off" || call.Verb == "on" {
			t.Errorf("the BMC was told %s", call.Verb)
		}
	}
	if seen, err := s.Power(t.Context(), "m1", "ann", "status", false); err != nil || seen != "on" {
		t.Errorf("status: %q, %v", seen, err)
	}
	if err := s.handle(t.Context(), m, Enrolled{Board: Board{UUID: "u2", Serial: "B", By: "ann"}}); err != nil {
		t.Fatal(err)
	}
	if seen, err := s.Power(t.Context(), "m1", "ann", "off", false); err != nil || seen != "off" {
		t.Errorf("off after an enrolment: %q, %v", seen, err)
	}
}

func TestEnforceSwitchesOnOnlyTheSameBoard(t *testing.T) {
	known := &Board{UUID: "u1", Serial: "A"}
	told := func(uuid, serial string) bmc.Inventory {
		return bmc.Inventory{Identity: bmc.Identity{UUID: uuid, Serial: serial}}
	}
	for _, c := range []struct {
		name    string
		enforce bool
		known   *Board
		told    bmc.Inventory
		on      bool
		finding string
	}{
		{"the same board", true, known, told("u1", "A"), true, "recast on again, 1 of 3 times"},
		{"it tells less", true, known, told("u1", ""), true, "recast on again, 1 of 3 times"},
		{"another board", true, known, told("u1", "B"), false, "the BMC is on another board: serial A before, B now"},
		{"a BMC that tells nothing", true, known, told("", ""), false, "the BMC does not say which board it is on"},
		{"nothing is on record", true, nil, told("u1", "A"), false, "is not on record"},
		{"only reported", false, known, told("u1", "A"), false, "it is off, and recast did not switch it off: recast power on m1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, 1)
			yaml := s.yaml(true)
			if c.enforce {
				yaml = enforced(yaml)
			}
			if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
				t.Fatal(err)
			}
			s.apply(yaml)
			s.running("m1", c.known)
			if err := s.Unfreeze(t.Context(), "ann"); err != nil {
				t.Fatal(err)
			}
			fake, m := s.bmcs["10.9.0.1"], s.machine("m1")
			fake.Told = c.told
			see := func(at time.Duration) {
				t.Helper()
				m.mu.Lock()
				defer m.mu.Unlock()
				now := time.Now().Add(at)
				next, actions, lines, err := Step(s.params("m1"), m.state, now, Looked{Power: bmc.PowerOff})
				if err != nil {
					t.Fatal(err)
				}
				if err := s.commit(t.Context(), m, next, lines); err != nil {
					t.Fatal(err)
				}
				for _, a := range actions {
					s.act(t.Context(), m, a)
				}
			}
			see(-2 * offFor)
			see(0)
			st := s.awaitStatus("m1", "with the finding "+c.finding, func(st Status) bool {
				return len(st.Findings) > 0 && strings.Contains(st.Findings[len(st.Findings)-1], c.finding)
			})
			if on, _ := fake.Power(t.Context()); (on == bmc.PowerOn) != c.on || (st.Health == Missing) == c.on {
				t.Errorf("power %s, health %s, findings %q", on, st.Health, st.Findings)
			}
			for _, call := range fake.Calls() {
				if call.Verb == "off" || call.Verb == "soft-off" || call.Verb == "set-next-boot" || call.Verb == "on" && !c.on {
					t.Errorf("the BMC was told %s", call.Verb)
				}
			}
		})
	}
}

func TestAFreezeStopsEnforcing(t *testing.T) {
	s := newSite(t, 1)
	s.apply(enforced(s.yaml(true)))
	if !s.params("m1").Enforce {
		t.Error("power: enforce is not heeded")
	}
	if err := s.Freeze(t.Context(), "ann", "a storm"); err != nil {
		t.Fatal(err)
	}
	if s.params("m1").Enforce {
		t.Error("frozen, and machines are switched on")
	}
}

func TestThePlanSaysWhatEnforceMeans(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true))
	s.await("m1", Deploying, StepBooting) // so that no plan is overtaken by its start
	plan := func(yaml string) string {
		t.Helper()
		p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(yaml)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(p.Changes, "\n")
	}
	if got, want := plan(enforced(s.yaml(true))), "group g changed: power (power: enforce: where somebody switches one of its active machines off, recast switches it on again)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.apply(enforced(s.yaml(true)))
	if got, want := plan(s.yaml(true)), "group g changed: power (power: report: where somebody switches one of its machines off, recast only says so)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := plan(strings.Replace(enforced(s.yaml(true)), "enforce", "report", 1)); !strings.Contains(got, "power: report") {
		t.Errorf("%q", got)
	}
}

// The records of sessions with BMCs go with their declaration.
func TestSessionsOfABMCThatIsNotDeclaredAreCollected(t *testing.T) {
	s := newSite(t, 2)
	s.apply(s.yaml(true))
	book := bmcSessions{s.bmcTable()}
	for _, name := range []string{"10.9.0.1:623", "10.9.0.9:443"} {
		if err := book.SetSessions(t.Context(), name, []bmc.Session{{URI: "/x"}}); err != nil {
			t.Fatal(err)
		}
	}
	s.restart()
	book = bmcSessions{s.bmcTable()}
	var open map[string][]bmc.Session
	s.until("those of the undeclared one are gone", func() bool {
		var err error
		if open, err = book.Sessions(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(open["10.9.0.9:443"]) == 0
	})
	if len(open["10.9.0.1:623"]) != 1 {
		t.Errorf("on record are %v", open)
	}
}
