package provision

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"recast/store"
)

// sameDurable reports whether two states differ in nothing that a restart must
// know: progress, the deadline that it moves, and packets seen.
func sameDurable(a, b State) bool {
	plain := func(s Status) Status {
		s.Progress, s.LastSeen, s.LastSeenAt = nil, "", time.Time{}
		if s.Step == StepWriting || s.Step == StepVerifying {
			s.Deadline = time.Time{}
		}
		return s
	}
	return reflect.DeepEqual(plain(a.Status), plain(b.Status)) && reflect.DeepEqual(a.Intent, b.Intent)
}

// commit makes a state and its timeline durable in one transaction, then
// remembers it. The machine's lock is held.
func (e *Engine) commit(ctx context.Context, m *machine, next State, lines []TimelineEntry, more ...store.Op) error {
	saved := next.Status
	saved.Progress = nil
	op, err := e.statuses.PutOp(m.name, saved, m.statusRev)
	if err != nil {
		return err
	}
	ops := append([]store.Op{op}, more...)
	if next.Intent != nil {
		op, err := e.intents.PutOp(m.name, *next.Intent, m.intentRev)
		if err != nil {
			return err
		}
		ops = append(ops, op)
	}
	// The line that ends an attempt belongs to it.
	live := e.liveTrace(next)
	trace := live
	if trace == "" {
		trace = e.liveTrace(m.state)
	}
	eventOps, entries, err := e.timelineOps(m, trace, lines)
	if err != nil {
		return err
	}
	ops = append(ops, eventOps...)
	rev, err := e.durable(ctx, ops...)
	if err != nil {
		e.reread(ctx, m)
		return fmt.Errorf("record the state of %q: %w", m.name, err)
	}
	over := !sameTurn(m.state, next)
	m.put(next)
	m.statusRev = rev
	if next.Intent != nil {
		m.intentRev = rev
	}
	m.history.add(entries...)
	m.history.follow(live)
	close(m.orders)
	m.orders = make(chan struct{})
	e.changes.send(m.name)
	if over {
		e.nudge()
	}
	return nil
}

// commitTime is how long one commit may wait for the disk or the cluster.
const commitTime = 30 * time.Second

func (e *Engine) durable(ctx context.Context, ops ...store.Op) (int64, error) {
	return durable(ctx, e.Store, ops...)
}

// durable commits. Whoever asked may hang up in the middle, but what was
// written must be known to have been written: else the revisions in memory are
// stale for good, and the machine stands still. So only our own deadline ends it.
func durable(ctx context.Context, s store.Store, ops ...store.Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	return s.Commit(ctx, ops...)
}

// reread takes a machine's records from the store after a commit that failed:
// where it was cut off by its deadline it may have happened all the same. The
// machine's lock is held.
func (e *Engine) reread(ctx context.Context, m *machine) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	status, rev, err := e.statuses.Get(ctx, m.name)
	if err != nil || rev == m.statusRev {
		return // nothing there, or what is in memory is what is there
	}
	intent, intentRev, err := e.intents.Get(ctx, m.name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return
	}
	next := State{Status: status, Intent: m.state.Intent}
	m.statusRev = rev
	if err == nil {
		next.Intent, m.intentRev = &intent, intentRev
	}
	m.put(next)
	e.Log.Warn("state read again: a commit was not known to have happened", "machine", m.name, "phase", status.Phase, "step", status.Step)
	e.repeat(e.background(), m)
}
