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
	e.mu.RLock()
	names := sortedKeys(e.rolling)
	frozen := e.frozen.Reason
	e.mu.RUnlock()
	waiting := map[string]string{}
	for _, name := range names {
		e.mu.RLock()
		r, g := e.rolling[name], e.set.Group(name)
		e.mu.RUnlock()
		if g == nil || len(r.Machines) == 0 {
			continue
		}
		states := make(map[string]State, len(r.Machines))
		for m := range r.Machines {
			if known, ok := e.known(m); ok {
				states[m] = known.snapshot()
			}
		}
		a := admit(r, g.Rollout, states, frozen, func(m string) string { return e.blocked(r.Machines[m], m) })
		for m, why := range a.Waiting {
			waiting[m] = why
		}
		for _, m := range a.Start {
			if err := e.start(ctx, r, m); err != nil {
				waiting[m] = err.Error()
				e.Log.Warn("machine not started", "machine", m, "err", err)
			}
		}
		if a.Stopped != r.Stopped || len(a.Start) > 0 {
			r = e.markStarted(r, a)
			if err := e.saveRollout(ctx, r); err != nil {
				e.Log.Warn("rollout not recorded", "group", r.Group, "err", err)
			}
		}
	}
	e.mu.Lock()
	e.waiting = waiting
	e.mu.Unlock()
}

// markStarted copies the rollout with the turns that were given.
func (e *Engine) markStarted(r Rollout, a Admission) Rollout {
	machines := make(map[string]RolloutTarget, len(r.Machines))
	for name, t := range r.Machines {
		machines[name] = t
	}
	for _, name := range a.Start {
		t := machines[name]
		if m, ok := e.known(name); ok {
			if in := m.snapshot().Intent; in != nil && in.Plan == r.Plan {
				t.Started = true
			}
		}
		machines[name] = t
	}
	r.Machines, r.Stopped = machines, a.Stopped
	return r
}

// blocked is the last part of the admission check: things outside the rollout
// that forbid a start now.
func (e *Engine) blocked(t RolloutTarget, machine string) string {
	e.mu.RLock()
	w, ok := e.wanted[machine]
	decl := e.set.Machine(machine)
	e.mu.RUnlock()
	if !ok || decl == nil {
		return "it is not declared any more"
	}
	if w.Generation.Digest != t.To || w.Rendered.Digest != t.Rendered {
		return "its definition changed after the plan: recast plan again"
	}
	facts, ok := e.imageFacts(w.Generation.Resolved.Image.Digest)
	switch {
	case !ok:
		return fmt.Sprintf("image %s is not here: recast image add SOURCE", w.Generation.Resolved.Image.Digest.Short())
	case facts.Damaged != "":
		return "the image is damaged: " + facts.Damaged
	case e.Ramdisk(decl.Arch).Kernel == "":
		return fmt.Sprintf("there is no ramdisk for %s: recast ramdisk build", decl.Arch)
	}
	if err := e.Store.Writable(); err != nil {
		return "the store is read-only: " + err.Error()
	}
	return ""
}

func (e *Engine) start(ctx context.Context, r Rollout, name string) error {
	t := r.Machines[name]
	ev := Started{Purpose: PurposeDeploy, Generation: t.To, Rendered: t.Rendered,
		Epoch: e.Store.Epoch(), Erase: t.Erase, Plan: r.Plan, By: r.By}
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
		if err := e.handle(e.background(), m, Mended{}); err != nil {
			e.Log.Warn("machine not restarted", "machine", m.name, "err", err)
		}
	}
	e.nudge()
}
