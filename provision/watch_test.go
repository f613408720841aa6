package provision

import (
	"strings"
	"testing"
	"time"

	"recast/bmc"
)

func TestLooksAreSpread(t *testing.T) {
	const every = 300 * time.Second
	for _, c := range []struct {
		first    bool
		random   float64
		min, max time.Duration
	}{
		{true, 0, 0, 0},
		{true, 0.999, 299 * time.Second, every},
		{false, 0, 270 * time.Second, 270 * time.Second},
		{false, 0.999, 329 * time.Second, 330 * time.Second},
	} {
		if d := nextLook(t0, every, c.first, c.random).Sub(t0); d < c.min || d > c.max {
			t.Errorf("first %v, %v: %s, want %s to %s", c.first, c.random, d, c.min, c.max)
		}
	}
}

func TestLooked(t *testing.T) {
	a, b := Board{UUID: "u1", Serial: "A"}, Board{UUID: "u1", Serial: "B"}
	for _, c := range []struct {
		name    string
		before  Status
		ev      Looked
		health  Health
		finding string // begins so; "" none
		lines   int
		board   *Board
	}{
		{"as it was", Status{Phase: Active, Health: Healthy, Power: "on"}, Looked{Power: "on"}, Healthy, "", 0, nil},
		{"first look", Status{Phase: Active, Health: Healthy}, Looked{Power: "on", Board: &a}, Healthy, "", 0, &a},
		{"switched off behind our back", Status{Phase: Active, Health: Healthy, Power: "on"}, Looked{Power: "off"}, Missing, powerPrefix + "it is off", 3, nil},
		{"still off", Status{Phase: Active, Health: Missing, Power: "off", Findings: []string{powerPrefix + "it is off, and recast did not switch it off: recast power on "}}, Looked{Power: "off"}, Missing, powerPrefix, 0, nil},
		{"on again", Status{Phase: Active, Health: Missing, Power: "off", Findings: []string{powerPrefix + "x"}}, Looked{Power: "on"}, HealthUnknown, "", 2, nil},
		{"an operator switched it off", Status{Phase: Active, Health: Suspended, Power: "off"}, Looked{Power: "off"}, Suspended, "", 0, nil},
		{"switched on behind his back", Status{Phase: Active, Health: Suspended, Power: "off"}, Looked{Power: "on"}, HealthUnknown, "", 2, nil},
		{"available and off", Status{Phase: Available, Power: "on"}, Looked{Power: "off"}, "", "", 1, nil},
		{"the BMC does not know", Status{Phase: Active, Health: Healthy, Power: "on"}, Looked{Power: bmc.PowerUnknown}, Healthy, "", 0, nil},
		{"while we switch it", Status{Phase: Deploying, Health: Progressing, Power: "on"}, Looked{Power: "off", Board: &a}, Progressing, "", 0, nil},
		{"same board", Status{Phase: Active, Health: Healthy, Power: "on", Board: &a, Findings: []string{boardPrefix + "x"}}, Looked{Power: "on", Board: &a}, Healthy, "", 0, &a},
		{"another board", Status{Phase: Active, Health: Healthy, Power: "on", Board: &a}, Looked{Power: "on", Board: &b}, Healthy, boardPrefix + "the BMC is on another board: serial A before, B now", 1, &a},
		{"a board that tells less", Status{Phase: Active, Health: Healthy, Power: "on", Board: &a}, Looked{Power: "on", Board: &Board{UUID: "u1"}}, Healthy, "", 0, &a},
		{"a BMC that tells nothing", Status{Phase: Active, Health: Healthy, Power: "on", Board: &a}, Looked{Power: "on", Board: &Board{}}, Healthy, "", 0, &a},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, actions, lines, err := Step(Params{HasBMC: true}, State{Status: c.before}, t0, c.ev)
			st := s.Status
			if err != nil || len(actions) != 0 || st.Phase != c.before.Phase || st.Health != c.health || len(lines) != c.lines {
				t.Errorf("%v; %v; phase %s, health %q; %d lines, want %q and %d: %v", err, actions, st.Phase, st.Health, len(lines), c.health, c.lines, lines)
			}
			if c.finding == "" && len(st.Findings) != 0 || c.finding != "" && (len(st.Findings) != 1 || !strings.HasPrefix(st.Findings[0], c.finding)) {
				t.Errorf("findings %q, want %q", st.Findings, c.finding)
			}
			if (st.Board == nil) != (c.board == nil) || st.Board != nil && *st.Board != *c.board {
				t.Errorf("board %v, want %v", st.Board, c.board)
			}
		})
	}
}

func TestTheWatchSeesASwappedBoardAndSwitchesNothing(t *testing.T) {
	s := newSite(t, 1)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	fake := s.bmcs["10.9.0.1"]
	fake.SetPowered(true)
	tell := func(serial string) { fake.Told.Serial = serial }
	tell("A")
	m := s.machine("m1")
	s.look(t.Context(), m)
	if st := m.snapshot().Status; st.Power != "on" || st.Board == nil || st.Board.Serial != "A" || len(st.Findings) != 0 {
		t.Fatalf("power %q, board %v, findings %q", st.Power, st.Board, st.Findings)
	}
	tell("B")
	s.look(t.Context(), m)
	if st := m.snapshot().Status; len(st.Findings) != 0 {
		t.Errorf("it is asked for its board each time: %q", st.Findings)
	}
	fake.SetFault(bmc.FaultUnreachable) // while the board is replaced
	s.look(t.Context(), m)
	fake.SetFault(bmc.FaultNone)
	s.look(t.Context(), m)
	if st := m.snapshot().Status; len(st.Findings) != 1 || !strings.Contains(st.Findings[0], "serial A before, B now") {
		t.Errorf("findings %q", st.Findings)
	}
	s.restart()
	m = s.machine("m1")
	tell("A")
	s.look(t.Context(), m)
	if st := m.snapshot().Status; len(st.Findings) != 0 || st.Board == nil || st.Board.Serial != "A" {
		t.Errorf("board %v, findings %q", st.Board, st.Findings)
	}
	another := &bmc.Fake{}
	another.SetPowered(true)
	another.Told.Serial = "C"
	s.apply(strings.Replace(s.yaml(true), "10.9.0.1", "10.9.0.9", 1)) // as if two URLs had changed places
	s.bmcs["10.9.0.9"] = another
	s.look(t.Context(), m)
	if st := m.snapshot().Status; len(st.Findings) != 1 || !strings.Contains(st.Findings[0], "serial A before, C now") {
		t.Errorf("behind another bmc.url: %q", st.Findings)
	}
	for _, call := range append(fake.Calls(), another.Calls()...) {
		switch call.Verb {
		case "on", "off", "soft-off", "set-next-boot":
			t.Errorf("the watch called %s", call.Verb)
		}
	}
}

func TestEveryMachineIsLookedAtInTurn(t *testing.T) {
	s := newSite(t, 5)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	s.watch = 20 * time.Millisecond
	s.restart()
	for i := range 5 {
		host := "10.9.0." + string(rune('1'+i))
		s.until(host+" was looked at three times", func() bool { return s.bmcs[host].Count("power") >= 3 })
		if n := s.bmcs[host].Count("dial"); n != 1 {
			t.Errorf("%s: %d logins, want one session", host, n)
		}
	}
}
