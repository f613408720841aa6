package provision

import (
	"context"
	"fmt"
	"sort"
	"time"

	"recast/inventory"
)

// Rollback plans a Group's return to a kept generation; "" means the one before
// the present. The plan is applied like any other.
func (e *Engine) Rollback(ctx context.Context, group string, to inventory.Digest) (Plan, error) {
	set := e.Set()
	g := set.Group(group)
	if g == nil {
		return Plan{}, fmt.Errorf("roll back %q: no such group; recast get groups lists them", group)
	}
	if to == "" {
		var err error
		if to, err = e.previous(g); err != nil {
			return Plan{}, err
		}
	}
	if _, err := e.generation(to); err != nil {
		return Plan{}, fmt.Errorf("roll back %q: %w; recast get generations lists those that are", group, err)
	}
	raw, err := set.Encode()
	if err != nil {
		return Plan{}, err
	}
	candidate, err := inventory.DecodeSet(raw) // a copy: a Set is never edited
	if err != nil {
		return Plan{}, err
	}
	candidate.Group(group).Generation = to
	if raw, err = candidate.Encode(); err != nil {
		return Plan{}, err
	}
	if candidate, err = inventory.DecodeSet(raw); err != nil {
		return Plan{}, err
	}
	return e.planSet(ctx, candidate, nil)
}

// GenerationInfo is one kept generation.
type GenerationInfo struct {
	Digest   inventory.Digest   `json:"digest"`
	Group    string             `json:"group"`
	At       time.Time          `json:"at"`
	Resolved inventory.Resolved `json:"resolved"`
	Machines []string           `json:"machines,omitempty"` // that run it
}

// Generations kept, newest first.
func (e *Engine) Generations(ctx context.Context) ([]GenerationInfo, error) {
	rows, _, err := e.generations.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	running := map[inventory.Digest][]string{}
	for _, m := range e.list() {
		if d := m.snapshot().Status.Running; d != "" {
			running[d] = append(running[d], m.name)
		}
	}
	out := make([]GenerationInfo, 0, len(rows))
	for _, row := range rows {
		gen, err := inventory.DecodeGeneration(row.Value.Canonical)
		if err != nil {
			return nil, err
		}
		out = append(out, GenerationInfo{gen.Digest, row.Value.Group, row.Value.At, gen.Resolved, running[gen.Digest]})
	}
	sortByTime(out)
	return out, nil
}

// previous generation of a group: the newest other one that it ran.
func (e *Engine) previous(g *inventory.Group) (inventory.Digest, error) {
	now, err := e.resolver(e.Set()).generation(g)
	if err != nil {
		return "", err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, old := range e.ran[g.Name] {
		if old != now.Digest {
			return old, nil
		}
	}
	return "", fmt.Errorf("roll back %q: it has run no other generation", g.Name)
}

func sortByTime(g []GenerationInfo) {
	sort.Slice(g, func(i, j int) bool { return g[i].At.After(g[j].At) })
}
