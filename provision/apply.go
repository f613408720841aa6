package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"recast/inventory"
	"recast/store"
	"recast/target"
)

const (
	setPrefix = "/recast/declared/sets/"
	// setPart bounds one record of a Set: etcd's request limit is 1.5 MiB.
	setPart = 512 << 10
)

// generationRecord keeps a generation for rollback.
type generationRecord struct {
	Canonical []byte    `json:"canonical"`
	Group     string    `json:"group"` // that first ran it
	At        time.Time `json:"at"`
}

// planRecord is a plan with what it was made from, so that apply can make it
// again and see whether an input moved.
type planRecord struct {
	Plan Plan `json:"plan"`
}

// currentName is the one record of the table of currentSet.
const currentName = "current"

// currentSet points at the applied Set.
type currentSet struct {
	Digest inventory.Digest `json:"digest"`
	Parts  int              `json:"parts"`
	Plan   inventory.Digest `json:"plan,omitempty"`
	By     string           `json:"by,omitempty"`
	At     time.Time        `json:"at"`
	// Ran are the generations that each group of the Set ran last, newest first,
	// its present one included: what it can be rolled back to.
	Ran map[string][]inventory.Digest `json:"ran,omitempty"`
}

// ErrPlanMoved: an input of the plan is not what it was.
var ErrPlanMoved = errors.New("the plan is out of date")

// ErrUnavailable: the store cannot write now; nothing was changed.
var ErrUnavailable = store.ErrUnavailable

// putSet writes a Set in parts under its digest. It is content: writing it
// twice is the same, and only the pointer makes it true.
func (e *Engine) putSet(ctx context.Context, raw []byte) (inventory.Digest, int, error) {
	digest := inventory.DigestOf(raw)
	n := 0
	for off := 0; off == 0 || off < len(raw); off += setPart {
		part, err := json.Marshal(raw[off:min(off+setPart, len(raw))])
		if err != nil {
			return "", 0, err
		}
		op := store.Op{Key: fmt.Sprintf("%s%s/%06d", setPrefix, digest.Hex(), n), Value: part, If: store.Any}
		if _, err := e.durable(ctx, op); err != nil {
			return "", 0, fmt.Errorf("store the candidate: %w", err)
		}
		n++
	}
	return digest, n, nil
}

func (e *Engine) getSet(ctx context.Context, digest inventory.Digest) (*inventory.Set, int, error) {
	parts, _, err := e.Store.List(ctx, setPrefix+digest.Hex()+"/")
	if err != nil {
		return nil, 0, fmt.Errorf("read the set %s: %w", digest.Short(), err)
	}
	var raw []byte
	for _, p := range parts {
		var b []byte
		if err := json.Unmarshal(p.Value, &b); err != nil {
			return nil, 0, fmt.Errorf("read the set %s: %w", digest.Short(), err)
		}
		raw = append(raw, b...)
	}
	if got := inventory.DigestOf(raw); got != digest {
		return nil, 0, fmt.Errorf("read the set %s: its parts hash to %s", digest.Short(), got.Short())
	}
	set, err := inventory.DecodeSet(raw)
	return set, len(parts), err
}

func (e *Engine) loadSet(ctx context.Context) error {
	set := inventory.EmptySet()
	cur, rev, err := e.current.Get(ctx, currentName)
	if errors.Is(err, store.ErrNotFound) {
		e.install(set, 0)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the applied set: %w", err)
	}
	if set, _, err = e.getSet(ctx, cur.Digest); err != nil {
		return err
	}
	e.mu.Lock()
	e.planInForce, e.ran = cur.Plan, cur.Ran
	e.mu.Unlock()
	e.install(set, rev)
	return nil
}

// install makes a Set the one in force, in memory.
func (e *Engine) install(set *inventory.Set, rev int64) {
	wanted, unresolved := e.resolveAll(set)
	e.mu.Lock()
	tell := e.networks
	if set == e.set {
		tell = nil // resolved anew, for a secret
	}
	e.set, e.setRev, e.wanted, e.unresolved = set, rev, wanted, unresolved
	e.mu.Unlock()
	if tell != nil {
		tell(set)
	}
	e.changes.send(AllMachines)
	e.nudge()
}

// OnSet is told of the Set in force, now and whenever it changes.
func (e *Engine) OnSet(f func(*inventory.Set)) {
	e.mu.Lock()
	e.networks = f
	set := e.set
	e.mu.Unlock()
	f(set)
}

// Set in force.
func (e *Engine) Set() *inventory.Set {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.set
}

func (e *Engine) resolver(set *inventory.Set) *resolver {
	return &resolver{set: set, version: e.secrets.Version, kept: e.generation}
}

// resolveAll tells what every machine shall run, or why that cannot be told (a
// secret that is gone): then nothing is done to it, and all others go on.
func (e *Engine) resolveAll(set *inventory.Set) (map[string]Wanted, map[string]string) {
	r := e.resolver(set)
	out, unresolved := make(map[string]Wanted, len(set.Machines)), map[string]string{}
	for _, m := range set.Machines {
		w, ok, err := r.wanted(m)
		switch {
		case err != nil:
			unresolved[m.Name] = err.Error()
		case ok:
			out[m.Name] = w
		}
	}
	return out, unresolved
}

// generation that was kept.
func (e *Engine) generation(d inventory.Digest) (inventory.Generation, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	gen, ok := e.kept[d]
	if !ok {
		return gen, fmt.Errorf("generation %s is not kept here", d.Short())
	}
	return gen, nil
}

// Plan compares files with what is known and stores the candidate, valid but
// not applied. Problems in the files come back as inventory.Problems.
func (e *Engine) Plan(ctx context.Context, files []inventory.File, erase []string) (Plan, error) {
	set, err := inventory.Parse(files)
	if err != nil {
		return Plan{}, err
	}
	if problems := slices.Concat(e.checkSecrets(set), checkConfigs(set), e.checkAddresses(set)); len(problems) > 0 {
		return Plan{}, problems
	}
	return e.planSet(ctx, set, erase)
}

// checkSecrets reports every reference to a secret that is not set.
func (e *Engine) checkSecrets(set *inventory.Set) (problems inventory.Problems) {
	for _, ref := range set.SecretRefs() {
		if _, ok := e.secrets.Version(ref.Name); !ok {
			problems = append(problems, ref.Unknown())
		}
	}
	return problems
}

// checkConfigs asks what each operating system thinks of its configuration.
func checkConfigs(set *inventory.Set) (problems inventory.Problems) {
	for _, d := range set.Definitions {
		if err := target.Validate(d.Config); err != nil {
			problems = append(problems, set.ConfigProblem(d, err.Error()))
		}
	}
	return problems
}

// checkAddresses keeps machines and BMCs off the addresses of this server's host.
func (e *Engine) checkAddresses(set *inventory.Set) inventory.Problems {
	if e.OwnAddresses == nil {
		return nil
	}
	return set.AddressProblems(e.OwnAddresses(), "is this server's own address", "choose another address")
}

func (e *Engine) planSet(ctx context.Context, set *inventory.Set, erase []string) (Plan, error) {
	p, err := e.plan(set, erase)
	if err != nil {
		return p, err
	}
	e.measure(ctx, &p)
	if ctx.Err() != nil {
		return p, context.Cause(ctx) // the caller hung up
	}
	raw, err := set.Encode()
	if err != nil {
		return p, err
	}
	// What is collected must not be what has no name yet.
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	if _, _, err := e.putSet(ctx, raw); err != nil {
		return p, err
	}
	p.Created = e.Now()
	// The entries of a plan over a whole site do not fit one record, and apply
	// makes them again anyway.
	brief := p
	brief.Entries, brief.Changes = nil, nil
	op, err := e.plans.PutOp(p.Digest.Hex(), planRecord{Plan: brief}, store.Any)
	if err != nil {
		return p, err
	}
	if _, err := e.durable(ctx, op); err != nil {
		return p, fmt.Errorf("store the plan: %w", err)
	}
	e.collect(ctx)
	return p, nil
}

func (e *Engine) plan(set *inventory.Set, erase []string) (Plan, error) {
	e.mu.RLock()
	frozen := e.frozen
	applied := e.set
	e.mu.RUnlock()
	return plan(planInput{Candidate: set, Applied: applied, Wanted: e.resolver(set).wanted,
		State: func(name string) State {
			if m, ok := e.known(name); ok {
				return m.snapshot()
			}
			return State{Status: Status{Machine: name, Phase: Available}}
		},
		Image: e.imageFacts, ImageOf: e.imageOf, Difference: e.difference, Discovered: e.discoveredFacts, Loader: e.noLoader, Unified: e.noUnified, Gate: e.noGate(), Erase: erase, Frozen: frozen.Reason, Now: e.Now()})
}

func (e *Engine) imageFacts(d inventory.Digest) (ImageFacts, bool) {
	info, err := e.Images.Info(d)
	if err != nil {
		return ImageFacts{}, false
	}
	return ImageFacts{Size: info.Size, Pack: info.PackSize, Index: info.IndexSize, BlockSize: info.BlockSize, Damaged: info.Damaged}, true
}

// Apply makes the candidate of a plan the truth and lets its machines start in
// their waves. It fails with ErrPlanMoved when any input moved since.
func (e *Engine) Apply(ctx context.Context, digest inventory.Digest, who string) (Plan, error) {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	rec, _, err := e.plans.Get(ctx, digest.Hex())
	if errors.Is(err, store.ErrNotFound) {
		return Plan{}, fmt.Errorf("apply %s: %w, or it was never made here: make one with recast plan PATH", digest.Short(), ErrPlanMoved)
	}
	if err != nil {
		return Plan{}, fmt.Errorf("read the plan: %w", err)
	}
	set, parts, err := e.getSet(ctx, rec.Plan.Candidate)
	if err != nil {
		return Plan{}, err
	}
	p, err := e.plan(set, rec.Plan.Erase)
	if err != nil {
		return Plan{}, err
	}
	if p.Digest != digest {
		return p, fmt.Errorf("apply %s: %w: now it would be %s; look at it with recast plan PATH", digest.Short(), ErrPlanMoved, p.Digest.Short())
	}
	ran, err := e.storeGenerations(ctx, set)
	if err != nil {
		return p, err
	}
	now := e.Now()
	// Before the pointer, which makes them true all at once.
	rolling := e.newRollouts(p, who, now)
	for _, name := range sortedKeys(rolling) {
		if err := e.putRollout(ctx, rolling[name]); err != nil {
			return p, err
		}
	}
	e.mu.RLock()
	rev := e.setRev
	history := ranNow(e.ran, ran)
	e.mu.RUnlock()
	cur, err := e.current.PutOp(currentName, currentSet{Digest: p.Candidate, Parts: parts, Plan: digest, By: who, At: now, Ran: history}, rev)
	if err != nil {
		return p, err
	}
	audit, err := e.audit(ctx, AuditEntry{Who: who, What: "apply", Plan: digest, Set: p.Candidate, Erase: rec.Plan.Erase, Generations: ran, At: now})
	if err != nil {
		return p, err
	}
	newRev, err := e.durable(ctx, cur, audit)
	if err != nil {
		// It may have happened, or somebody else's did: the store knows.
		if again := errors.Join(e.loadSet(ctx), e.loadRollouts(ctx)); again != nil {
			e.Log.Warn("applied set not read again", "err", again)
		}
		if errors.Is(err, store.ErrConflict) {
			return p, fmt.Errorf("apply %s: %w: somebody else applied in the meantime", digest.Short(), ErrPlanMoved)
		}
		return p, fmt.Errorf("apply: %w", err)
	}
	e.mu.Lock()
	e.rolling, e.planInForce, e.ran = rolling, digest, history
	e.mu.Unlock()
	clear(e.rests)
	e.install(set, newRev)
	e.collect(ctx)
	return p, nil
}

// storeGenerations of every group, for rollback, and name them.
func (e *Engine) storeGenerations(ctx context.Context, set *inventory.Set) (map[string]inventory.Digest, error) {
	ran := map[string]inventory.Digest{}
	r := e.resolver(set)
	for _, g := range set.Groups {
		gen, err := r.generation(g)
		if err != nil {
			return nil, err
		}
		ran[g.Name] = gen.Digest
		e.mu.RLock()
		_, have := e.kept[gen.Digest]
		e.mu.RUnlock()
		if have {
			continue
		}
		op, err := e.generations.PutOp(gen.Digest.Hex(), generationRecord{Canonical: gen.Canonical, Group: g.Name, At: e.Now()}, store.Any)
		if err != nil {
			return nil, err
		}
		if _, err := e.durable(ctx, op); err != nil {
			return nil, fmt.Errorf("keep generation %s: %w", gen.Digest.Short(), err)
		}
		e.mu.Lock()
		e.kept[gen.Digest] = gen
		e.mu.Unlock()
	}
	return ran, nil
}

// newRollouts is what a plan starts, by group. A plan replaces every rollout
// before it, with whatever was allowed there and had not happened yet; only what
// is under way is taken over.
func (e *Engine) newRollouts(p Plan, who string, now time.Time) map[string]Rollout {
	erase := map[string]bool{}
	for _, name := range p.Erase {
		erase[name] = true
	}
	groups := map[string]Rollout{}
	put := func(en Entry, t RolloutTarget) {
		r, ok := groups[en.Group]
		if !ok {
			r = Rollout{Group: en.Group, Plan: p.Digest, By: who, At: now, Machines: map[string]RolloutTarget{}}
		}
		r.Machines[en.Machine] = t
		groups[en.Group] = r
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, en := range p.Entries {
		switch {
		case en.Blocked != "":
		case en.Kind == EntryObserve:
			if t, ok := e.rolling[en.Group].Machines[en.Machine]; ok && t.Started && t.To == en.To && t.Rendered == en.ToRendered {
				put(en, t)
			}
		default:
			t := RolloutTarget{Kind: en.Kind, To: en.To, Rendered: en.ToRendered, Erase: erase[en.Machine]}
			if t.Erase && en.disk != nil {
				t.Consent = &Consent{Disk: *en.disk, Holds: en.Holds}
			}
			put(en, t)
		}
	}
	return groups
}

// rolloutPart is how many machines of a rollout stand in one record, some 500
// bytes each.
const rolloutPart = 2000

// putRollout makes a rollout durable, and nothing else. The plan stands in its
// records' names, so that they can be written before the plan is in force.
func (e *Engine) putRollout(ctx context.Context, r Rollout) error {
	names := sortedKeys(r.Machines)
	for n := 0; n == 0 || n*rolloutPart < len(names); n++ {
		part := r
		part.Machines = map[string]RolloutTarget{}
		for _, name := range names[n*rolloutPart : min((n+1)*rolloutPart, len(names))] {
			part.Machines[name] = r.Machines[name]
		}
		op, err := e.rollouts.PutOp(fmt.Sprintf("%s.%s.%03d", r.Plan.Hex()[:16], r.Group, n), part, store.Any)
		if err != nil {
			return err
		}
		if _, err := e.durable(ctx, op); err != nil {
			return fmt.Errorf("record the rollout of %q: %w", r.Group, err)
		}
	}
	return nil
}

// saveRollout records where a rollout has come to. applyMu is held.
func (e *Engine) saveRollout(ctx context.Context, r Rollout) error {
	if err := e.putRollout(ctx, r); err != nil {
		return err
	}
	e.mu.Lock()
	e.rolling[r.Group] = r
	e.mu.Unlock()
	delete(e.rests, r.Group)
	return nil
}

// loadRollouts takes those of the plan in force; others permit nothing.
func (e *Engine) loadRollouts(ctx context.Context) error {
	rows, _, err := e.rollouts.List(ctx)
	if err != nil {
		return fmt.Errorf("list rollouts: %w", err)
	}
	rolling := map[string]Rollout{}
	for _, row := range rows {
		r := row.Value
		have, ok := rolling[r.Group]
		switch {
		case r.Plan != e.inForce() || ok && r.At.Before(have.At):
		case !ok || r.At.After(have.At):
			rolling[r.Group] = r
		default: // another part
			for name, t := range r.Machines {
				have.Machines[name] = t
			}
		}
	}
	e.mu.Lock()
	e.rolling = rolling
	e.mu.Unlock()
	clear(e.rests)
	return nil
}

// inForce is the plan that was applied last.
func (e *Engine) inForce() inventory.Digest {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.planInForce
}

// AppliedSet reads the Set in force from a store that no Engine has open.
func AppliedSet(ctx context.Context, st store.Store) (*inventory.Set, error) {
	e := &Engine{Config: Config{Store: st}, current: store.NewTable[currentSet](st, "/recast/declared/")}
	cur, _, err := e.current.Get(ctx, currentName)
	if errors.Is(err, store.ErrNotFound) {
		return inventory.EmptySet(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the applied set: %w", err)
	}
	set, _, err := e.getSet(ctx, cur.Digest)
	return set, err
}
