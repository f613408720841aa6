package provision

import (
	"context"
	"fmt"

	"recast/inventory"
)

// Freeze stops every start.
type Freeze struct {
	Reason string `json:"reason"`
	By     string `json:"by,omitempty"`
}

// schedule starts what the rollouts admit.
func (e *Engine) schedule(ctx context.Context) {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	e.mu.RLock()
	names := sortedKeys(e.rolling)
	frozen := e.frozen.Reason
	e.mu.RUnlock()
	waiting := map[string]Wait{}
	for _, name := range names {
		e.mu.RLock()
		r, g := e.rolling[name], e.set.Group(name)
		e.mu.RUnlock()
		if g == nil || len(r.Machines) == 0 {
			continue
		}
		moved := e.moved(r)
		if rest, ok := e.rests[name]; ok && rest == moved {
			continue // of 10,000 machines most have had their turn
		}
		states := make(map[string]State, len(r.Machines))
		for m := range r.Machines {
			if known, ok := e.known(m); ok {
				states[m] = known.committed()
			}
		}
		r, found := r.outcomes(states)
		a := admit(r, g.Rollout, states, frozen, func(m string) Wait { return e.blocked(r, m) })
		for m, why := range a.Waiting {
			waiting[m] = why
		}
		var started []string
		for _, m := range a.Start {
			if err := e.start(ctx, r, m); err != nil {
				waiting[m] = Wait{Why: err.Error(), Next: "it is tried again by itself"}
				e.Log.Warn("machine not started", "machine", m, "err", err)
				continue
			}
			started = append(started, m)
		}
		if a.Stopped != r.Stopped || len(started) > 0 || found {
			r = r.marked(started, true)
			r.Stopped = a.Stopped
			if err := e.saveRollout(ctx, r); err != nil {
				e.Log.Warn("rollout not recorded", "group", r.Group, "err", err)
				continue
			}
		}
		if len(a.Start)+len(a.Waiting) == 0 {
			e.rests[name] = moved
		}
	}
	e.mu.Lock()
	e.waiting = waiting
	e.mu.Unlock()
}

// moved counts the changes of a rollout's machines; none goes back, so that the
// same count says that none moved.
func (e *Engine) moved(r Rollout) (n uint64) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for name := range r.Machines {
		if m := e.machines[name]; m != nil {
			n += m.moves.Load()
		}
	}
	return n
}

// marked is a copy in which the machines had their turn, or have it before them.
func (r Rollout) marked(names []string, started bool) Rollout {
	return r.changed(names, func(_ string, t *RolloutTarget) {
		t.Started, t.Again, t.Failed, t.Aborted = started, !started, false, ""
	})
}

// outcomes is a copy that remembers whose turns have failed or were aborted; found
// tells of new ones. A later look at such a machine forgets neither.
func (r Rollout) outcomes(states map[string]State) (out Rollout, found bool) {
	var names, back []string
	for name, t := range r.Machines {
		s := states[name]
		if t.heldBack(s, r.Plan) {
			back = append(back, name)
			continue
		}
		if !t.Failed && t.state(s) == targetFailed || t.Aborted != t.abortedBy(s, r.Plan) {
			names = append(names, name)
		}
	}
	if len(names)+len(back) == 0 {
		return r, false
	}
	r = r.changed(back, func(_ string, t *RolloutTarget) { t.Started = false })
	return r.changed(names, func(name string, t *RolloutTarget) {
		t.Failed = t.Failed || t.state(states[name]) == targetFailed
		t.Aborted = t.abortedBy(states[name], r.Plan)
	}), true
}

// changed is a copy in which the targets of some machines are changed.
func (r Rollout) changed(names []string, change func(string, *RolloutTarget)) Rollout {
	machines := make(map[string]RolloutTarget, len(r.Machines))
	for name, t := range r.Machines {
		machines[name] = t
	}
	for _, name := range names {
		t := machines[name]
		change(name, &t)
		machines[name] = t
	}
	r.Machines = machines
	return r
}

// rolloutOf finds the rollout that a machine stands in, unless it was wiped since.
func (e *Engine) rolloutOf(name string) (r Rollout, ok bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if g := e.set.GroupOf(name); g != nil {
		r = e.rolling[g.Name]
	}
	t, ok := r.Machines[name]
	return r, ok && !t.Out
}

// again gives a machine another turn in its rollout, if it stands in one.
// applyMu is held.
func (e *Engine) again(ctx context.Context, name string) error {
	r, ok := e.rolloutOf(name)
	if !ok {
		return nil
	}
	r = r.marked([]string{name}, false)
	r.Stopped = ""
	return e.saveRollout(ctx, r)
}

// blocked is the last part of the admission check: things outside the rollout
// that forbid a start now.
func (e *Engine) blocked(r Rollout, machine string) Wait {
	t := r.Machines[machine]
	e.mu.RLock()
	w, ok := e.wanted[machine]
	why := e.unresolved[machine]
	decl := e.set.Machine(machine)
	e.mu.RUnlock()
	switch {
	case why != "":
		return unresolvedWait(why)
	case !ok || decl == nil:
		return Wait{"it is not declared any more", undeclaredNext}
	case w.Group.Name != r.Group:
		return Wait{fmt.Sprintf("it is in group %q now", w.Group.Name), planNext}
	}
	if w.Generation.Digest != t.To || w.Rendered.Digest != t.Rendered {
		return Wait{"its definition changed after the plan", planNext}
	}
	facts, ok := e.imageFacts(w.Generation.Resolved.Image.Digest)
	if wait := imageWait(w.Generation.Resolved.Image.Digest, facts, ok); wait != (Wait{}) {
		return wait
	}
	if e.Ramdisk(decl.Arch).Kernel == "" {
		return Wait{fmt.Sprintf("there is no ramdisk for %s", decl.Arch), "recast ramdisk build, on the server"}
	}
	if why := e.noLoader(decl); why != "" {
		return Wait{why, "it then goes on by itself"}
	}
	if wait := e.bootWayNow(decl, w); wait != (Wait{}) {
		return wait
	}
	if err := e.Store.Writable(); err != nil {
		return Wait{"the store is read-only: " + err.Error(), "free its disk, or bring its cluster back: it then goes on by itself"}
	}
	return Wait{}
}

// What ends the waits that the declarations cause.
const (
	planNext       = "recast plan PATH, and apply that"
	undeclaredNext = "add it to the files and apply; its disk is left alone"
)

// unresolvedWait is for a group whose generation cannot be made, as with a
// secret that was removed.
func unresolvedWait(why string) Wait {
	return Wait{why, "mend that; recast plan PATH shows whether it is"}
}

func (e *Engine) start(ctx context.Context, r Rollout, name string) error {
	t := r.Machines[name]
	ev := Started{Purpose: PurposeDeploy, Generation: t.To, Rendered: t.Rendered,
		Epoch: e.Store.Epoch(), Erase: t.Erase, Consent: t.Consent, Plan: r.Plan, By: r.By}
	return e.handle(ctx, e.machine(name), ev)
}

// Mend lets the machines that failed for an image begin again once it is whole.
// Wire it to the image store's OnChange.
func (e *Engine) Mend(d inventory.Digest) {
	f, ok := e.imageFacts(d)
	if !ok || f.Damaged != "" {
		return
	}
	for _, m := range e.list() {
		s := m.snapshot()
		if s.Status.Phase != Failed || s.Status.FailedImage != d {
			continue
		}
		ctx := e.background()
		e.applyMu.Lock()
		err := e.again(ctx, m.name) // first: a crash now must not cost it its turn
		e.applyMu.Unlock()
		if err == nil {
			err = e.handle(ctx, m, Mended{})
		}
		if err != nil {
			e.Log.Warn("machine not restarted", "machine", m.name, "err", err)
		}
	}
	e.nudge()
}
