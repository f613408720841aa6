package provision

import (
	"context"
	"errors"
	"fmt"
	"time"

	"recast/inventory"
	"recast/store"
)

// load reads what is on record.
func (e *Engine) load(ctx context.Context) error {
	gens, _, err := e.generations.List(ctx)
	if err != nil {
		return fmt.Errorf("list generations: %w", err)
	}
	for _, row := range gens {
		gen, err := inventory.DecodeGeneration(row.Value.Canonical)
		if err != nil {
			return fmt.Errorf("read generation %s: %w", row.Name, err)
		}
		e.kept[gen.Digest] = gen
	}
	if err := e.loadSet(ctx); err != nil {
		return err
	}
	if err := e.loadMachines(ctx); err != nil {
		return err
	}
	if err := e.loadRollouts(ctx); err != nil {
		return err
	}
	if e.frozen, _, err = e.freezes.Get(ctx, freezeName); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("read the freeze: %w", err)
	}
	strays, _, err := e.discovered.List(ctx)
	if err != nil {
		return fmt.Errorf("list discovered machines: %w", err)
	}
	for _, row := range strays {
		e.strays[row.Value.MAC] = row.Value
	}
	return e.loadPorts(ctx)
}

func (e *Engine) loadMachines(ctx context.Context) error {
	statuses, _, err := e.statuses.List(ctx)
	if err != nil {
		return fmt.Errorf("list statuses: %w", err)
	}
	for _, row := range statuses {
		m := e.machine(row.Name)
		m.put(State{Status: row.Value})
		m.statusRev = row.Revision
	}
	intents, _, err := e.intents.List(ctx)
	if err != nil {
		return fmt.Errorf("list intents: %w", err)
	}
	for _, row := range intents {
		m := e.machine(row.Name)
		intent := row.Value
		m.put(State{Status: m.state.Status, Intent: &intent})
		m.intentRev = row.Revision
	}
	if err := e.loadTimelines(ctx); err != nil {
		return err
	}
	now := e.Now()
	for _, m := range e.machines {
		m.put(loaded(m.state, e.Store.Epoch(), now))
		m.history.follow(e.liveTrace(m.state))
	}
	return nil
}

// restartGrace is what every step has at least after a start of the server: while
// it was away no machine could be heard and no BMC asked.
const restartGrace = powerTime + 30*time.Second

// loaded is what a record means after a start.
func loaded(s State, epoch string, now time.Time) State {
	st := &s.Status
	if in := s.Intent; in != nil && in.Epoch != epoch {
		// The store came back from a backup: what it permits is void, and so is its
		// word on a disk that cannot speak for itself.
		void := *in
		void.Live = false
		s.Intent, st.Unfinished = &void, false
		if Busy(st.Phase) {
			st.Phase, st.Step, st.Deadline, st.NextAction = Available, StepNone, time.Time{}, ""
			st.Running, st.RunningRendered, st.Ran, st.Health = "", "", false, HealthUnknown
			st.LastError = "the store was restored from a backup in the middle of an attempt"
		}
	}
	if Busy(st.Phase) && s.Intent == nil {
		st.Phase, st.Step, st.Deadline, st.NextAction = Available, StepNone, time.Time{}, ""
		st.LastError = "the store has lost its intent"
	}
	if st.Step == StepStarting && s.Intent != nil && !s.Intent.Cycled {
		in := *s.Intent
		in.Cycled, s.Intent = true, &in // what was seen of it is not on record
	}
	if g, d := st.Gate, now.Add(restartGrace); g != nil && !g.Deadline.IsZero() && g.Deadline.Before(d) {
		seen := *g
		seen.Deadline, st.Gate = d, &seen
	}
	if d := now.Add(restartGrace); Busy(st.Phase) && !st.Deadline.IsZero() && st.Deadline.Before(d) {
		st.Deadline = d
	}
	return s
}
