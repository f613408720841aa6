package provision

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"recast/bmc"
)

const (
	// lookTime is how long one look at a BMC may take.
	lookTime = 30 * time.Second
	// identityEvery is how often a BMC is asked which board it is on, which costs it
	// more than its power: none is replaced without the BMC being away meanwhile,
	// after which it is asked too.
	identityEvery = time.Hour
)

// Board is which board a BMC says that it is on, in its own words: some tell
// another UUID or serial number than the system's SMBIOS.
type Board struct {
	UUID   string `json:"uuid,omitempty"`
	Serial string `json:"serial,omitempty"`
	BMC    string `json:"bmc,omitempty"` // the service's UUID
}

// other says in what two answers differ, "" where they do not, as far as both tell.
func (b Board) other(now Board) string {
	var diff []string
	for _, f := range []struct{ name, was, is string }{{"serial", b.Serial, now.Serial}, {"UUID", b.UUID, now.UUID}, {"BMC's UUID", b.BMC, now.BMC}} {
		if f.was != "" && f.is != "" && f.was != f.is {
			diff = append(diff, fmt.Sprintf("%s %s before, %s now", f.name, f.was, f.is))
		}
	}
	return strings.Join(diff, ", ")
}

// nextLook spreads the looks: a tenth more or less than the interval, and the
// first anywhere in it, so that a restart of the server does not ask all at once.
func nextLook(now time.Time, every time.Duration, first bool, random float64) time.Time {
	if first {
		return now.Add(time.Duration(random * float64(every)))
	}
	return now.Add(time.Duration((0.9 + 0.2*random) * float64(every)))
}

// watchBMCs looks at every machine's BMC once in a while, until ctx ends.
func (e *Engine) watchBMCs(ctx context.Context) {
	if e.WatchBMCs <= 0 {
		return
	}
	due := map[string]time.Time{}
	tick := time.NewTicker(max(e.WatchBMCs/300, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := e.Now()
		set := e.Set()
		for name := range due {
			if set.Machine(name) == nil {
				delete(due, name)
			}
		}
		for _, decl := range set.Machines {
			if decl.BMC == nil {
				continue
			}
			at, known := due[decl.Name]
			if known && now.Before(at) {
				continue
			}
			due[decl.Name] = nextLook(now, e.WatchBMCs, !known, rand.Float64())
			if known {
				m := e.machine(decl.Name)
				e.spawn(func() { e.look(ctx, m) })
			}
		}
	}
}

// look asks a BMC for power and, now and then, for its board. It changes nothing
// there, and leaves alone whom the engine is talking to.
func (e *Engine) look(ctx context.Context, m *machine) {
	if Busy(m.snapshot().Status.Phase) || !m.bmcMu.TryLock() {
		return
	}
	defer m.bmcMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var ev Looked
	err := e.withBMC(ctx, m.name, func(ctx context.Context, c bmc.Client) error {
		var err error
		if ev.Power, err = c.Power(ctx); err != nil {
			return err
		}
		d, ok := c.(bmc.Describer)
		if !ok || e.Now().Before(m.boardDue) && string(ev.Power) == m.snapshot().Status.Power {
			return nil
		}
		if id, err := d.Identity(ctx); err == nil { // without it the power is still told
			ev.Board = &Board{UUID: id.UUID, Serial: id.Serial, BMC: id.BMC.UUID}
			m.boardDue = e.Now().Add(identityEvery)
		}
		return nil
	})
	if err != nil {
		m.boardDue = time.Time{}
		e.Log.Debug("look at a BMC", "machine", m.name, "err", err)
		return
	}
	if err := e.handle(ctx, m, ev); err != nil {
		e.Log.Warn("look at a BMC not recorded", "machine", m.name, "err", err)
	}
}

const (
	// powerPrefix and boardPrefix begin the findings of looked.
	powerPrefix = "its power: "
	boardPrefix = "its board: "
)

func (t *transition) looked(ev Looked) {
	st := &t.Status
	if Busy(st.Phase) {
		return // we switch it ourselves
	}
	if ev.Power != bmc.PowerUnknown {
		before, health := st.Power, st.Health
		*st = powered(*st, "status", string(ev.Power), "")
		if before != "" && before != st.Power {
			t.line("bmc", "seen %s, after %s: recast did not switch it", st.Power, before)
		}
		if st.Health != health {
			t.line("bmc", "seen %s: %s", st.Power, st.Health)
		}
		if st.Health == Missing {
			t.finding(powerPrefix + "it is off, and recast did not switch it off: recast power on " + st.Machine)
		} else {
			st.Findings = dropFindings(st.Findings, powerPrefix)
		}
	}
	switch {
	case ev.Board == nil || *ev.Board == Board{}:
	case st.Board == nil:
		st.Board = ev.Board
	default:
		if diff := st.Board.other(*ev.Board); diff != "" {
			t.noticed(Noticed{About: boardPrefix, Finding: boardPrefix + "the BMC is on another one: " + diff +
				"; where it was not replaced on purpose, bmc.url names the wrong BMC. The next write takes it as known"})
		} else {
			st.Findings = dropFindings(st.Findings, boardPrefix)
		}
	}
}
