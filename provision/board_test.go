package provision

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/testenv"
)

func TestWhichBoardIsTheMachines(t *testing.T) {
	const u1, u2 = "00112233-4455-6677-8899-aabbccddeeff", "10112233-4455-6677-8899-aabbccddeeff"
	const u1Swapped = "33221100-5544-7766-8899-aabbccddeeff"
	known := func(b Board) *Board { return &b }
	a := Board{UUID: u1, Serial: "A", BMC: "x", URL: "ipmi://1"}
	b := Board{UUID: u2, Serial: "B", BMC: "y", URL: "ipmi://1"}
	enrolled := b
	enrolled.By, enrolled.At = "ann", t0
	m2 := boardOwner{Machine: "m2", Since: t0.Add(time.Hour)}
	for _, c := range []struct {
		name string
		q    boardQuestion
		want string // "" it is the machine's
	}{
		{"nothing is known", boardQuestion{Now: a}, ""},
		{"as before", boardQuestion{Known: &a, Now: a}, ""},
		{"its UUID in the other byte order", boardQuestion{Known: &a, Now: Board{UUID: u1Swapped, Serial: "A"}}, ""},
		{"it tells less", boardQuestion{Known: &a, Now: Board{UUID: u1, URL: "ipmi://2"}}, ""},
		{"it tells nothing for once", boardQuestion{Known: &a, Now: Board{URL: "ipmi://1"}}, ""},
		{"it tells nothing, behind another URL", boardQuestion{Known: &a, Now: Board{URL: "ipmi://2"}}, "the BMC does not say which board it is on, and the one before, behind ipmi://1, said serial A, UUID " + u1},
		{"an old record knows no URL", boardQuestion{Known: &Board{Serial: "A"}, Now: Board{URL: "ipmi://2"}}, ""},
		{"its BMC was reset to the factory's settings", boardQuestion{Known: &a, Now: Board{UUID: u1, Serial: "A", BMC: "z"}}, ""},
		{"a BMC that tells its own UUID alone", boardQuestion{Known: known(Board{BMC: "x"}), Now: Board{BMC: "z"}}, "BMC's UUID x before, z now"},
		{"another board", boardQuestion{Known: &a, Now: b}, "the BMC is on another board: serial A before, B now, UUID " + u1 + " before, " + u2 + " now"},
		{"another board of the same UUID", boardQuestion{Known: &a, Now: Board{UUID: u1, Serial: "B"}}, "serial A before, B now"},
		{"that of another machine", boardQuestion{Known: &a, Now: b, Owner: m2}, "another board, that of m2: serial A before, B now"},

		{"another one, which the machine says too", boardQuestion{Known: &a, Now: b, Agent: Board{UUID: u2, Serial: "chassis"}}, ""},
		{"another one, as it is declared", boardQuestion{Known: &a, Now: b, Declared: Board{UUID: u2}}, ""},
		{"another serial, which the machine says too", boardQuestion{Known: &a, Now: Board{UUID: u1, Serial: "B"}, Agent: Board{UUID: u1, Serial: "B"}}, ""},
		{"another UUID, and only the serial is its own", boardQuestion{Known: &a, Now: Board{UUID: u2, Serial: "A"}, Agent: Board{UUID: u1, Serial: "A"}}, "UUID " + u1 + " before"},

		{"first contact, and the machine says the same UUID", boardQuestion{Now: a, Agent: Board{UUID: u1, Serial: "chassis"}}, ""},
		{"first contact, the same serial alone", boardQuestion{Now: a, Agent: Board{UUID: u2, Serial: "A"}}, ""},
		{"first contact, as declared", boardQuestion{Now: a, Declared: Board{Serial: "A"}, Agent: Board{UUID: u2, Serial: "B"}}, ""},
		{"first contact, and the machine says another", boardQuestion{Now: b, Agent: Board{UUID: u1, Serial: "A"}}, "another board: it says serial B, UUID " + u2 + ", the machine says serial A, UUID " + u1},
		{"first contact, and another is declared", boardQuestion{Now: b, Declared: Board{UUID: u1}}, "the machine is declared with UUID " + u1},
		{"first contact with the board of another machine", boardQuestion{Now: b, Owner: m2}, "another board, that of m2: it says serial B"},
		{"first contact with a BMC that tells nothing", boardQuestion{Agent: Board{UUID: u1, Serial: "A"}}, ""},

		{"known from a first deployment behind exchanged URLs", boardQuestion{Known: &b, Now: b, Agent: Board{UUID: u1, Serial: "A"}, Owner: m2}, "another board, that of m2: it says serial B, UUID " + u2 + ", the machine says serial A"},
		{"and enrolled after that", boardQuestion{Known: &enrolled, Now: b, Agent: Board{UUID: u1, Serial: "A"}, Owner: boardOwner{"m2", t0.Add(-time.Hour)}}, ""},
		{"and enrolled before that", boardQuestion{Known: &enrolled, Now: b, Agent: Board{UUID: u1, Serial: "A"}, Owner: m2}, "that of m2"},
		{"two machines say one UUID", boardQuestion{Known: &b, Now: b, Agent: Board{UUID: u2}, Owner: m2}, ""},
	} {
		if got := c.q.wrong(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What is on record of a board changes by the machine's own word or a person's alone,
// whatever comes in between.
func TestARecordedBoardIsNeverForgottenByItself(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := newWalk(seed)
		w.p.HasBMC = true
		for range 60 {
			var ev Event
			if r.IntN(3) == 0 {
				board := pick(r, Board{Serial: "A"}, Board{Serial: "B"}, Board{Serial: "A", UUID: testUUID(1)}, Board{UUID: testUUID(2)}, Board{}, Board{BMC: "x"})
				ev = pick[Event](r, Identified{Board: board}, Looked{Power: "on", Board: &board}, Enrolled{Board: board})
			} else {
				ev = w.event()
			}
			before := w.s
			next, _, _, err := Step(w.p, before, w.now, ev)
			if err != nil {
				continue
			}
			w.s, w.now = next, w.now.Add(time.Second)
			was, is := before.Status.Board, next.Status.Board
			if _, said := ev.(Enrolled); said || was == nil {
				continue
			}
			if is == nil || was.other(*is) != "" || was.Serial != "" && is.Serial == "" || was.UUID != "" && is.UUID == "" {
				t.Fatalf("seed %d: %T %+v makes %+v of %+v", seed, ev, ev, is, *was)
			}
			if at, asked := ev.(Identified); asked && was.other(at.Board) != "" && !strings.Contains(strings.Join(next.Status.Findings, "\n"), was.other(at.Board)) {
				t.Fatalf("seed %d: %+v after %+v is no finding: %q", seed, at.Board, *was, next.Status.Findings)
			}
		}
	}
}

// switched are the calls that change something, of whichever BMC.
func switched(fakes ...*bmc.Fake) (told []string) {
	for i, f := range fakes {
		for _, call := range f.Calls() {
			switch call.Verb {
			case "on", "off", "soft-off", "set-next-boot", "insert", "eject":
				told = append(told, fmt.Sprintf("%d: %s", i+1, call.Verb))
			}
		}
	}
	return told
}

// exchanged is a site's YAML in which two BMCs have changed places.
func exchanged(yaml string) string {
	return strings.NewReplacer("://10.9.0.1\"", "://10.9.0.2\"", "://10.9.0.2\"", "://10.9.0.1\"").Replace(yaml)
}

// anew is a YAML whose definition is another one.
func anew(yaml string) string { return strings.Replace(yaml, "hostname: x", "hostname: y", 1) }

// ranTwo are two machines that run what is wanted, with their boards on record and on.
func ranTwo(t *testing.T, yaml func(*site) string) (s *site, a, b *bmc.Fake) {
	t.Helper()
	s = newSite(t, 2)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	s.apply(yaml(s))
	a, b = s.bmcs["10.9.0.1"], s.bmcs["10.9.0.2"]
	for i, f := range []*bmc.Fake{a, b} {
		f.SetPowered(true)
		f.Told.Identity = bmc.Identity{UUID: testUUID(i + 1), Serial: fmt.Sprintf("SN%d", i+1)}
	}
	for _, name := range []string{"m1", "m2"} {
		s.running(name, nil)
		s.look(t.Context(), s.machine(name))
		if st := s.machine(name).snapshot().Status; st.Board == nil || len(st.Findings) != 0 {
			t.Fatalf("%s: board %+v, findings %q", name, st.Board, st.Findings)
		}
	}
	if err := s.Unfreeze(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	return s, a, b
}

// Two exchanged bmc.url never switch anything, for whichever purpose and after whatever
// restart, until they are put right or somebody says that they are.
func TestExchangedBMCsSwitchNothingInAReimage(t *testing.T) {
	for _, kind := range []struct {
		name string
		yaml func(*site) string
	}{
		{"declared with UUIDs", func(s *site) string { return s.yaml(true) }},
		{"declared without", func(s *site) string { return s.yaml(false) }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			s, a, b := ranTwo(t, kind.yaml)
			s.apply(exchanged(anew(kind.yaml(s))), "m1", "m2")
			for i, name := range []string{"m1", "m2"} {
				st := s.awaitStatus(name, "failed", func(st Status) bool { return st.Phase == Failed })
				own, other := fmt.Sprintf("SN%d", i+1), fmt.Sprintf("SN%d", 2-i)
				for what, text := range map[string]string{"reason": st.LastError, "finding": strings.Join(st.Findings, "\n")} {
					if !strings.Contains(text, "serial "+own+" before, "+other+" now") {
						t.Errorf("%s: %s %q", name, what, text)
					}
				}
				if !strings.Contains(st.NextAction, "recast bmc enrol "+name) || !strings.Contains(st.NextAction, "bmc.url") || !strings.Contains(st.NextAction, "recast retry "+name) || len(st.Findings) != 1 {
					t.Errorf("%s: next %q, findings %q", name, st.NextAction, st.Findings)
				}
				if st.Board.Serial != own || st.Attempt != 1 {
					t.Errorf("%s: on record is %+v, attempt %d", name, st.Board, st.Attempt)
				}
			}
			s.restart()
			for _, name := range []string{"m1", "m2"} {
				if err := s.Retry(t.Context(), name, "ann"); err != nil {
					t.Fatal(err)
				}
				s.awaitStatus(name, "failed again", func(st Status) bool { return st.Phase == Failed })
				for _, what := range []func(context.Context, string, string) error{s.Look, s.Adopt} {
					if err := what(t.Context(), name, "ann"); err != nil {
						t.Fatal(err)
					}
					st := s.awaitStatus(name, "given up", func(st Status) bool { return !Busy(st.Phase) })
					if !strings.Contains(st.LastError, "nothing was switched") {
						t.Errorf("%s: %q", name, st.LastError)
					}
				}
			}
			if told := switched(a, b); len(told) != 0 {
				t.Fatalf("BMCs were told %q", told)
			}
			s.apply(anew(kind.yaml(s)), "m1", "m2") // put right
			for _, name := range []string{"m1", "m2"} {
				st := s.await(name, Deploying, StepBooting).Status
				if len(st.Findings) != 0 || st.Board == nil {
					t.Errorf("%s: findings %q, board %+v", name, st.Findings, st.Board)
				}
			}
		})
	}
}

// A board that was replaced is deployed once somebody has said so.
func TestAReplacedBoardIsReimagedAfterAnEnrolment(t *testing.T) {
	yaml := func(s *site) string { return s.yaml(false) }
	s, a, _ := ranTwo(t, yaml)
	a.Told.Serial, a.Told.UUID = "SN9", testUUID(9)
	s.apply(anew(yaml(s)), "m1", "m2")
	s.await("m2", Deploying, StepBooting)
	s.awaitStatus("m1", "failed", func(st Status) bool { return st.Phase == Failed })
	if told := switched(a); len(told) != 0 {
		t.Fatalf("BMCs were told %q", told)
	}
	board := boardOf(a.Told.Identity, "ipmi://10.9.0.1")
	board.By = "ann"
	if err := s.handle(t.Context(), s.machine("m1"), Enrolled{Board: board}); err != nil {
		t.Fatal(err)
	}
	if st := s.machine("m1").snapshot().Status; len(st.Findings) != 0 || st.Board.Serial != "SN9" || st.Board.By != "ann" {
		t.Errorf("after an enrolment: %+v, findings %q", st.Board, st.Findings)
	}
	if err := s.Retry(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
}

// Two bmc.url that change places while an attempt is under way: the other machine's BMC
// is told nothing.
func TestBMCsExchangedWithinAnAttemptAreToldNothing(t *testing.T) {
	yaml := func(s *site) string { return s.yaml(false) }
	for _, step := range []StepName{StepArming, StepBooting} {
		t.Run(string(step), func(t *testing.T) {
			s, a, b := ranTwo(t, yaml)
			alone := strings.Replace(anew(yaml(s)), "{name: m2, labels: {rack: r}}", "{name: m2, labels: {rack: other}}", 1)
			a.SetDelay(200 * time.Millisecond)
			s.apply(alone, "m1")
			s.await("m1", Deploying, step)
			s.apply(exchanged(alone), "m1")
			if step == StepBooting { // it is armed once more, since nothing came
				m := s.machine("m1")
				m.mu.Lock()
				next, actions, lines, err := Step(s.params("m1"), m.state, time.Now().Add(time.Hour), Ticked{})
				if err == nil {
					err = s.commit(t.Context(), m, next, lines)
				}
				for _, act := range actions {
					s.act(t.Context(), m, act)
				}
				m.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
			}
			st := s.awaitStatus("m1", "failed", func(st Status) bool { return st.Phase == Failed })
			if !strings.Contains(st.LastError, "another board: serial SN1 before, SN2 now") || st.Board.Serial != "SN1" {
				t.Errorf("%q, on record is %+v", st.LastError, st.Board)
			}
			if told := switched(b); len(told) != 0 {
				t.Errorf("the BMC of m2 was told %q", told)
			}
		})
	}
}

// A BMC that tells nothing, where the one before did, could be any.
func TestAMuteBMCBehindAnotherURLIsToldNothing(t *testing.T) {
	yaml := func(s *site) string { return s.yaml(false) }
	s, a, b := ranTwo(t, yaml)
	b.Told.Identity = bmc.Identity{}
	s.apply(anew(exchanged(yaml(s))), "m1")
	st := s.awaitStatus("m1", "failed", func(st Status) bool { return st.Phase == Failed })
	if !strings.Contains(st.LastError, "does not say which board it is on, and the one before, behind ipmi://10.9.0.1, said serial SN1") {
		t.Errorf("%q", st.LastError)
	}
	if told := switched(a, b); len(told) != 0 {
		t.Errorf("BMCs were told %q", told)
	}
}

// Behind exchanged bmc.url a first deployment may succeed, each by the other's power.
// What the machines say of themselves shows it.
func TestAFirstDeploymentBehindExchangedBMCsIsFoundOut(t *testing.T) {
	s, a, b := ranTwo(t, func(s *site) string { return exchanged(s.yaml(false)) })
	for i, name := range []string{"m1", "m2"} {
		m := s.machine(name)
		m.mu.Lock()
		next := m.state
		next.Status.Facts, next.Status.FactsAt = &inventory.Facts{SystemVendor: inventory.SystemVendor{UUID: testUUID(i + 1), SerialNumber: fmt.Sprintf("SN%d", i+1)}}, time.Now()
		if err := s.commit(t.Context(), m, next, nil); err != nil {
			t.Fatal(err)
		}
		m.mu.Unlock()
	}
	for i, name := range []string{"m1", "m2"} {
		s.look(t.Context(), s.machine(name)) // asked at once, since the machine has said what it is
		want := fmt.Sprintf("that of m%d: it says serial SN%d", 2-i, 2-i)
		if got := s.findings(name); !strings.Contains(got, want) {
			t.Errorf("%s: findings %q, want %q", name, got, want)
		}
		if _, err := s.Power(t.Context(), name, "ann", "cycle", false); err == nil || !strings.Contains(err.Error(), "nothing was switched") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"m1", "m2"} {
		if err := s.Look(t.Context(), name, "ann"); err != nil {
			t.Fatal(err)
		}
		st := s.awaitStatus(name, "given up", func(st Status) bool { return !Busy(st.Phase) })
		if !strings.Contains(st.LastError, "nothing was switched") {
			t.Errorf("%s: %q", name, st.LastError)
		}
	}
	if told := switched(a, b); len(told) != 0 {
		t.Fatalf("BMCs were told %q", told)
	}
	s.apply(s.yaml(false)) // put right: no enrolment is needed
	for i, name := range []string{"m1", "m2"} {
		if err := s.Look(t.Context(), name, "ann"); err != nil {
			t.Fatal(err)
		}
		st := s.await(name, Inspecting, StepBooting).Status
		if want := fmt.Sprintf("SN%d", i+1); st.Board.Serial != want || len(st.Findings) != 0 {
			t.Errorf("%s: board %+v, findings %q", name, st.Board, st.Findings)
		}
	}
}

// A BMC that is away when it is asked for its board costs no attempt, and one that never
// told may fail to.
func TestABMCThatCannotTellItsBoardNow(t *testing.T) {
	yaml := func(s *site) string { return s.yaml(false) }
	s, a, _ := ranTwo(t, yaml)
	a.SetFault(bmc.FaultBusy)
	s.apply(anew(yaml(s)), "m1", "m2")
	s.await("m2", Deploying, StepBooting)
	s.until("it was asked", func() bool { return a.Count("identity")+a.Count("dial") > 2 })
	if told := switched(a); len(told) != 0 {
		t.Errorf("a busy BMC was told %q", told)
	}
	a.SetFault(bmc.FaultNone)
	if st := s.await("m1", Deploying, StepBooting).Status; st.Attempt != 1 {
		t.Errorf("attempt %d", st.Attempt)
	}
}

func TestAnEnrolmentRecordsTheBoardAndWhoSaidSo(t *testing.T) {
	s, _ := redfishSite(t, testenv.RedfishOptions{UUID: testUUID(9), Serial: "SN9"}) // another UUID is declared
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err != nil {
		t.Fatal(err)
	}
	b := s.machine("m1").snapshot().Status.Board
	if b == nil || b.Serial != "SN9" || b.UUID != testUUID(9) || b.By != "ann" || b.At.IsZero() || !strings.HasPrefix(b.URL, "redfish://") {
		t.Fatalf("on record is %+v", b)
	}
	s.look(t.Context(), s.machine("m1"))
	if got := s.findings("m1"); strings.Contains(got, boardPrefix) {
		t.Errorf("after the operator's word: %q", got)
	}
}

// What a vendor leaves where a serial should be is the same on all its boards: two that
// say it are not one for that, neither to a power off nor to identity L1.
func TestASerialThatManyBoardsHaveNamesNone(t *testing.T) {
	const none = "0123456789"
	now := boardOf(bmc.Identity{UUID: testUUID(2), Serial: none}, "ipmi://1")
	var s State
	s.Status.Facts = &inventory.Facts{SystemVendor: inventory.SystemVendor{UUID: testUUID(1), SerialNumber: none}}
	for name, declared := range map[string]Board{"said": {}, "declared": {Serial: none}} {
		if why := s.boardQuestion(declared, now, boardOwner{}).wrong(); !strings.Contains(why, "the BMC is on another board") {
			t.Errorf("%s: %q", name, why)
		}
	}
	if is, _ := identityOf(&Intent{Via: inventory.BootHTTP, Board: &now}, testUUID(1), none); is != inventory.L0 {
		t.Errorf("identity %s by a serial that names no board", is)
	}
	if known := boardOf(bmc.Identity{Serial: none}, "ipmi://1"); known.named() || known.shares(known) {
		t.Errorf("%+v is a board of its own", known)
	}
}
