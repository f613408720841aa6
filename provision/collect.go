package provision

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"recast/inventory"
	"recast/store"
)

const (
	// keepGenerations that a group ran last: what it can be rolled back to. Older
	// ones stay while a machine runs them or an intent names them.
	keepGenerations = 10
	// keepPlans that were made last and can still be applied. They are collected
	// once there are twice as many, since that reads every candidate.
	keepPlans = 10
)

// ranNow is the history of the groups once they run these generations, newest
// first. A group that is declared no more has none; what its machines run is
// kept for them.
func ranNow(before map[string][]inventory.Digest, now map[string]inventory.Digest) map[string][]inventory.Digest {
	out := make(map[string][]inventory.Digest, len(now))
	for group, d := range now {
		history := []inventory.Digest{d}
		for _, old := range before[group] {
			if old != d && len(history) < keepGenerations {
				history = append(history, old)
			}
		}
		out[group] = history
	}
	return out
}

// collect removes what nothing names any more: rollouts, plans, candidates,
// generations and versions of secrets, each after what names it. applyMu is held,
// so that nothing is collected between its writing and its naming. What a crash
// or the store leaves is collected the next time.
func (e *Engine) collect(ctx context.Context) {
	for _, f := range []func(context.Context) error{e.sureOfTheSet, e.collectRollouts, e.collectPlans, e.collectGenerations, e.collectBMCs} {
		if err := f(ctx); err != nil {
			e.Log.Info("old records are left for later", "err", err)
			return
		}
	}
}

// sureOfTheSet: what is in memory is what stands in the store. After an apply
// whose answer was lost it may not be.
func (e *Engine) sureOfTheSet(ctx context.Context) error {
	_, rev, err := e.current.Get(ctx, currentName)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if rev != e.setRev {
		return errors.New("another Set was applied than is known here")
	}
	return nil
}

// collectRollouts: those of another plan than the one in force permit nothing.
func (e *Engine) collectRollouts(ctx context.Context) error {
	rows, _, err := e.rollouts.List(ctx)
	if err != nil {
		return err
	}
	var ops []store.Op
	for _, row := range rows {
		if row.Value.Plan != e.inForce() {
			ops = append(ops, e.rollouts.DeleteOp(row.Name, row.Revision))
		}
	}
	return deleteAll(ctx, e.Store, ops)
}

// collectPlans: one that was compared with another Set than the one in force can
// never be applied. Then the Sets that no plan names.
func (e *Engine) collectPlans(ctx context.Context) error {
	cur, _, err := e.current.Get(ctx, currentName)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	rows, _, err := e.plans.List(ctx)
	if err != nil {
		return err
	}
	// By revision: a clock may jump back, and the plan just made must stay.
	slices.SortFunc(rows, func(a, b store.Row[planRecord]) int { return cmp.Compare(b.Revision, a.Revision) })
	applied := e.Set().Digest()
	named := map[string]bool{cur.Digest.Hex(): true}
	var ops []store.Op
	var keep []store.Row[planRecord]
	for _, row := range rows {
		if row.Value.Plan.Applied == applied {
			keep = append(keep, row)
		} else {
			ops = append(ops, e.plans.DeleteOp(row.Name, row.Revision))
		}
	}
	if len(keep) >= 2*keepPlans {
		for _, row := range keep[keepPlans:] {
			ops = append(ops, e.plans.DeleteOp(row.Name, row.Revision))
		}
		keep = keep[:keepPlans]
	}
	if len(ops) == 0 && e.swept {
		return nil
	}
	e.swept = false
	if err := deleteAll(ctx, e.Store, ops); err != nil {
		return err
	}
	for _, row := range keep {
		named[row.Value.Plan.Candidate.Hex()] = true
	}
	parts, _, err := e.Store.List(ctx, setPrefix)
	if err != nil {
		return err
	}
	ops = nil
	for _, r := range parts {
		digest, _, _ := strings.Cut(strings.TrimPrefix(r.Key, setPrefix), "/")
		if !named[digest] {
			ops = append(ops, store.Op{Key: r.Key, If: r.Revision})
		}
	}
	err = deleteAll(ctx, e.Store, ops)
	e.swept = err == nil
	return err
}

// collectGenerations that no group can be rolled back to and no machine names,
// and the versions of secrets that only they needed.
func (e *Engine) collectGenerations(ctx context.Context) error {
	named := map[inventory.Digest]bool{}
	e.mu.RLock()
	for _, history := range e.ran {
		for _, d := range history {
			named[d] = true
		}
	}
	for _, w := range e.wanted {
		named[w.Generation.Digest] = true
	}
	for _, r := range e.rolling {
		for _, t := range r.Machines {
			named[t.To] = true
		}
	}
	e.mu.RUnlock()
	for _, m := range e.list() {
		// Under its lock: a commit under way may just be naming one.
		m.mu.Lock()
		s := m.state
		m.mu.Unlock()
		named[s.Status.Running], named[s.Status.Wanted] = true, true
		if s.Intent != nil {
			named[s.Intent.Generation] = true
			if g := s.Intent.Gate; g != nil {
				named[g.Generation] = true // a gate reads by it, whatever is wanted by now
			}
		}
	}
	rows, _, err := e.generations.List(ctx)
	if err != nil {
		return err
	}
	var ops []store.Op
	gone := map[string]inventory.Digest{}
	e.mu.RLock()
	for d := range e.kept {
		if !named[d] {
			gone[d.Hex()] = d
		}
	}
	e.mu.RUnlock()
	for _, row := range rows {
		if _, ok := gone[row.Name]; ok {
			ops = append(ops, e.generations.DeleteOp(row.Name, row.Revision))
		}
	}
	if err := deleteAll(ctx, e.Store, ops); err != nil {
		return err
	}
	e.mu.Lock()
	for _, d := range gone {
		delete(e.kept, d)
	}
	needed := map[string]map[int]bool{}
	for _, gen := range e.kept {
		for name, version := range gen.Resolved.Secrets {
			if needed[name] == nil {
				needed[name] = map[int]bool{}
			}
			needed[name][version] = true
		}
	}
	e.mu.Unlock()
	return e.secrets.collect(ctx, func(name string, version int) bool { return needed[name][version] })
}

// collectBMCs ends our sessions with BMCs that nobody declares any more, and their
// records. Nobody waits for the BMCs.
func (e *Engine) collectBMCs(ctx context.Context) error {
	var urls []string
	for _, m := range e.Set().Machines {
		if m.BMC != nil {
			urls = append(urls, m.BMC.URL)
		}
	}
	run := context.WithoutCancel(ctx)
	e.spawn(func() {
		ctx, cancel := context.WithTimeout(run, powerTime)
		defer cancel()
		e.bmcs.Retain(ctx, urls)
	})
	return nil
}
