package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"recast/inventory"
	"recast/store"
)

// dying takes commits until its time has come, and none after that, as a process
// that was killed.
type dying struct {
	store.Store
	left atomic.Int64 // below 0: for ever
}

func (d *dying) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if d.left.Load() >= 0 && d.left.Add(-1) < 0 {
		d.left.Store(0)
		return 0, fmt.Errorf("%w: it was killed", store.ErrUnavailable)
	}
	return d.Store.Commit(ctx, ops...)
}

// version n of the site's definition.
func (s *site) version(n int) string {
	return strings.Replace(s.yaml(true), "hostname: x", fmt.Sprintf("hostname: x%d", n), 1)
}

// count the records under a prefix.
func (s *site) count(prefix string) int {
	s.t.Helper()
	records, _, err := s.store.List(s.t.Context(), prefix)
	if err != nil {
		s.t.Fatal(err)
	}
	return len(records)
}

func TestWhatNothingNamesIsCollected(t *testing.T) {
	s := newSite(t, 1)
	ctx := t.Context()
	s.apply(s.version(0), "m1")
	s.await("m1", Deploying, StepBooting) // an intent names the first generation
	first := s.wanted["m1"].Generation.Digest
	if err := s.Freeze(ctx, "ann", "wait"); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"one", "two", "three"} {
		if _, err := s.SetSecret(ctx, "pw", []byte(v), "ann"); err != nil {
			t.Fatal(err)
		}
	}
	const applies = keepGenerations + 4
	for n := range applies {
		s.apply(s.version(n + 1))
	}
	check := func() {
		t.Helper()
		gens, err := s.Generations(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// The last ones of the group, and the one that the machine is written with.
		if len(gens) != keepGenerations+1 || !slices.ContainsFunc(gens, func(g GenerationInfo) bool { return g.Digest == first }) {
			t.Errorf("%d generations are kept", len(gens))
		}
		if n := s.count(setPrefix); n != 1 {
			t.Errorf("%d parts of Sets are kept, the Set in force has one", n)
		}
		if n := s.count("/recast/plans/"); n != 0 {
			t.Errorf("%d plans are kept that no apply can take", n)
		}
		if n := s.count("/recast/rollouts/"); n != 1 {
			t.Errorf("%d rollouts are kept, one is in force", n)
		}
		if _, err := s.Secrets().GetVersion(ctx, "pw", 1); err == nil {
			t.Error("a version of a secret is kept that nothing names")
		}
		if b, err := s.Secrets().GetVersion(ctx, "pw", 3); err != nil || string(b) != "three" {
			t.Errorf("the newest version is %q, %v", b, err)
		}
	}
	check()
	s.restart()
	check()

	// Every generation that is listed can be rolled back to, by number of steps too.
	p, err := s.Rollback(ctx, "g", "")
	if err != nil || len(p.Changes) == 0 {
		t.Fatalf("roll back: %+v, %v", p, err)
	}
	if _, err := s.Apply(ctx, p.Digest, "ann"); err != nil {
		t.Fatal(err)
	}
	gens, err := s.Generations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gens {
		if _, err := s.Rollback(ctx, "g", g.Digest); err != nil {
			t.Errorf("roll back to a kept one: %v", err)
		}
	}
	if err := s.RemoveImage(ctx, s.image, "ann"); !errors.Is(err, ErrInUse) {
		t.Errorf("remove the image in force: %v", err)
	}

	// Plans that are never applied.
	for n := range 3 * keepPlans {
		if _, err := s.Plan(ctx, []inventory.File{{Name: "f", Data: []byte(s.version(100 + n))}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n, sets := s.count("/recast/plans/"), s.count(setPrefix); n >= 2*keepPlans || sets > n+1 {
		t.Errorf("%d plans and %d parts of Sets are kept", n, sets)
	}
}

// TestACrashWhileCollectingLosesNothingThatIsNamed kills the server after each
// commit of an apply in turn.
func TestACrashWhileCollectingLosesNothingThatIsNamed(t *testing.T) {
	s := newSite(t, 1)
	ctx := t.Context()
	if err := s.Freeze(ctx, "ann", "wait"); err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; n < keepGenerations+1; n++ {
		s.apply(s.version(n))
	}
	for killed := int64(0); ; killed++ {
		n++
		d := &dying{Store: s.store.Store}
		d.left.Store(killed)
		s.store.Store = d
		files := []inventory.File{{Name: "f", Data: []byte(s.version(n))}}
		p, err := s.Plan(ctx, files, nil)
		if err == nil {
			_, err = s.Apply(ctx, p.Digest, "ann")
		}
		done := d.left.Load() > 0
		s.restart()
		for group, history := range s.ran {
			if len(history) != keepGenerations {
				t.Fatalf("killed after %d commits: %q has %d generations", killed, group, len(history))
			}
			for _, g := range history {
				if _, err := s.generation(g); err != nil {
					t.Fatalf("killed after %d commits: %v", killed, err)
				}
			}
		}
		if _, ok := s.wanted["m1"]; !ok {
			t.Fatalf("killed after %d commits: nobody knows what m1 shall run", killed)
		}
		// What it left is collected: by the start, or by the next apply.
		s.apply(s.version(n + 1000))
		if gens, sets, plans := s.count("/recast/generations/"), s.count(setPrefix), s.count("/recast/plans/"); gens != keepGenerations || sets != 1 || plans != 0 {
			t.Fatalf("killed after %d commits (%v): %d generations, %d parts of Sets, %d plans", killed, err, gens, sets, plans)
		}
		if done {
			if err != nil {
				t.Fatal(err)
			}
			if killed < 6 {
				t.Fatalf("an apply took %d commits", killed)
			}
			return
		}
	}
}

// TestNothingIsCollectedByAnOldMemory: an apply whose answer was lost stands in
// the store, and the engine could not read that.
func TestNothingIsCollectedByAnOldMemory(t *testing.T) {
	s := newSite(t, 1)
	ctx := t.Context()
	if err := s.Freeze(ctx, "ann", "wait"); err != nil { // no machine's commits in between
		t.Fatal(err)
	}
	s.apply(s.version(0))
	p := s.planOf(s.version(1))
	auditEnd := s.count(auditPrefix) // the log's end is known, so that it need not be read
	s.store.lose.Store(3)            // the generation, the rollout, what makes them true
	s.store.onLoss = func() { s.store.deaf.Store(true) }
	if _, err := s.Apply(ctx, p.Digest, "ann"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("apply: %v", err)
	}
	s.store.deaf.Store(false)
	if s.count(auditPrefix) != auditEnd+1 {
		t.Fatal("another commit was lost than that of the apply")
	}
	s.planOf(s.version(2)) // collects
	s.restart()
	if now := s.inForce(); now != p.Digest {
		t.Errorf("plan %s is in force, want %s", now.Short(), p.Digest.Short())
	}
	if r := s.rolling["g"]; len(r.Machines) != 1 {
		t.Errorf("its rollout is gone: %+v", r)
	}
	if _, err := s.generation(s.wanted["m1"].Generation.Digest); err != nil {
		t.Error(err)
	}
}
