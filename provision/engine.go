package provision

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"recast/bmc"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// Config is what an Engine needs. Store, Images, KeyFile and Address are required.
type Config struct {
	Store  store.Store
	Images *image.Store
	// KeyFile opens the secrets in the store; made where it does not exist.
	KeyFile string
	// Address is the one of the server's own that the machines of a Network reach, false
	// where it has none.
	Address func(network string) (netip.Addr, bool)
	// OwnAddresses are all of the server's host, which no machine may have; nil none.
	OwnAddresses func() []netip.Addr
	// AgentPort and BootPort are where machines reach us: TLS, plain HTTP.
	AgentPort, BootPort int
	// SyslogPort is where machines may log to; 0 nowhere.
	SyslogPort int
	// Ramdisk finds the ramdisk of an architecture; a zero value means none.
	Ramdisk func(inventory.Arch) RamdiskFiles
	// Loader says why a machine has no loader to boot by, "" it has one; byHTTP: its
	// firmware asks by HTTP Boot alone. Nil never says so.
	Loader func(m *inventory.Machine, byHTTP bool) string
	// Towards is the address of ours that a host reaches, as a BMC that reads from us;
	// false where there is none. Nil means none.
	Towards func(host string) (netip.Addr, bool)
	// OnceLoader is the path of the loader of a machine that boots by HTTP Boot, below
	// a one-time token's; nil means recast's own.
	OnceLoader func(token string, m *inventory.Machine) (string, error)
	// Dial opens a BMC; nil means bmc.Dial.
	Dial func(context.Context, bmc.Target) (bmc.Client, error)
	// SoftOff is how long an operating system may take to shut down before power
	// is cut; 0 means 30 s, negative cuts at once.
	SoftOff time.Duration
	// WatchBMCs is how often each BMC is asked for its machine's power; 0 never.
	WatchBMCs time.Duration
	// Findings of the DHCP server, for Explain; nil none.
	Findings func() []string
	Log      *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Engine decides what every machine does next, and is the one writer of Status.
// Open it, then Run it; its other methods are for the web front and for the
// DHCP server's and script handler's questions.
type Engine struct {
	Config
	secrets   *Secrets
	authority *Authority
	key       Key

	statuses    store.Table[Status]
	intents     store.Table[Intent]
	rollouts    store.Table[Rollout]
	generations store.Table[generationRecord]
	plans       store.Table[planRecord]
	current     store.Table[currentSet]
	freezes     store.Table[Freeze]
	discovered  store.Table[Stray]
	leaseTable  store.Table[inventory.Lease] // only dhcp writes it
	portTable   store.Table[inventory.PortRecord]
	log         *auditLog

	// applyMu makes apply, rollback, freeze and the scheduler one at a time: each
	// reads what is applied and writes rollouts.
	applyMu sync.Mutex
	gateMu  sync.Mutex // over counting repairs and recording one
	proofs  once[json.RawMessage]
	kernels once[*inventory.JobKernel]
	swept   bool // every candidate is named by a plan; applyMu guards it
	// rests are the rollouts in which no machine waits, with what moved counted when
	// they were looked at; applyMu guards them.
	rests map[string]uint64

	mu     sync.RWMutex
	set    *inventory.Set
	setRev int64
	wanted map[string]Wanted
	// unresolved is why it cannot be told what a machine shall run.
	unresolved map[string]string
	// planInForce is the plan that was applied last; rolling are its rollouts.
	planInForce inventory.Digest
	ran         map[string][]inventory.Digest // generations by group, newest first
	kept        map[inventory.Digest]inventory.Generation
	machines    map[string]*machine
	rolling     map[string]Rollout
	waiting     map[string]Wait // machine → first failing reason
	strays      map[inventory.MAC]Stray
	strangers   strangers
	elsewhere   elsewhere
	leases      map[netip.Addr]inventory.Lease
	ports       learned
	frozen      Freeze
	networks    func(*inventory.Set) // told of every new Set

	wake    chan struct{} // schedule now
	changes *broadcast
	work    sync.WaitGroup
	missing map[between]bool // what was built for the machines that come later
	ended   bool             // Run waits for the last of work; nothing joins it any more
	runCtx  context.Context
	uuids   uuidIndex
	moment  moment // when boots are recorded
	bmcs    bmc.Fleet
	book    *bmcBook
	soon    lookSoon
}

// machine is the engine's memory of one machine. Its lock is held over a
// commit, so that events of one machine are taken one after the other.
type machine struct {
	name  string
	uuids *uuidIndex

	mu        sync.Mutex
	state     State // set by put alone
	statusRev int64
	intentRev int64
	history   history

	// shown is the state for whoever only looks. The boot path and all lists read
	// it, since mu is held over commits and a store may take its time.
	shown atomic.Pointer[State]
	moves atomic.Uint64 // how often it was changed in a way that may let others start

	offersDue atomic.Int64           // when its BMC may be asked again what it offers
	offersErr atomic.Pointer[string] // why it did not say

	bmcMu    sync.Mutex    // one conversation at a time about a machine's power
	boardDue time.Time     // under bmcMu: when to ask which board it is
	boardAt  string        // under bmcMu: the bmc.url that boardDue is about
	boardTry boardTry      // under bmcMu: what the board was compared for last
	asked    bmcNow        // under bmcMu; void once we did something
	booting  atomic.Bool   // what it asked to boot is being recorded
	orders   chan struct{} // closed and renewed when the agent's order may have changed
}

// Open reads everything into memory, so that the boot path never waits for the
// store.
func Open(ctx context.Context, c Config) (*Engine, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.SoftOff == 0 {
		c.SoftOff = 30 * time.Second
	}
	if c.Loader == nil {
		c.Loader = func(*inventory.Machine, bool) string { return "" }
	}
	if c.Towards == nil {
		c.Towards = func(string) (netip.Addr, bool) { return netip.Addr{}, false }
	}
	if c.OnceLoader == nil {
		c.OnceLoader = new(ipxe.Handler).OnceLoaderPath
	}
	if c.Ramdisk == nil {
		c.Ramdisk = func(inventory.Arch) RamdiskFiles { return RamdiskFiles{} }
	}
	e := &Engine{Config: c,
		statuses:    store.NewTable[Status](c.Store, "/recast/status/"),
		intents:     store.NewTable[Intent](c.Store, "/recast/intents/"),
		rollouts:    store.NewTable[Rollout](c.Store, "/recast/rollouts/"),
		generations: store.NewTable[generationRecord](c.Store, "/recast/generations/"),
		plans:       store.NewTable[planRecord](c.Store, "/recast/plans/"),
		current:     store.NewTable[currentSet](c.Store, "/recast/declared/"),
		freezes:     store.NewTable[Freeze](c.Store, "/recast/freeze/"),
		discovered:  store.NewTable[Stray](c.Store, "/recast/discovered/"),
		leaseTable:  store.NewTable[inventory.Lease](c.Store, inventory.LeasePrefix),
		portTable:   store.NewTable[inventory.PortRecord](c.Store, inventory.PortPrefix),
		log:         newAuditLog(c.Store),
		proofs:      once[json.RawMessage]{most: maxProofs},
		kept:        map[inventory.Digest]inventory.Generation{},
		machines:    map[string]*machine{},
		rests:       map[string]uint64{},
		uuids:       uuidIndex{byUUID: map[string][]string{}},
		rolling:     map[string]Rollout{},
		waiting:     map[string]Wait{},
		strays:      map[inventory.MAC]Stray{},
		leases:      map[netip.Addr]inventory.Lease{},
		ports:       learned{},
		missing:     map[between]bool{},
		wake:        make(chan struct{}, 1),
		changes:     newBroadcast(),
	}
	e.bmcs = bmc.Fleet{Dial: c.Dial, Log: c.Log, Memory: bmcSessions{e.bmcTable()}}
	e.book = newBMCBook(c.Store)
	var err error
	if err = errors.Join(e.bmcs.Recall(ctx), e.book.load(ctx)); err != nil {
		return nil, err
	}
	if e.secrets, err = OpenSecrets(ctx, c.Store, c.KeyFile); err != nil {
		return nil, err
	}
	if e.authority, err = openAuthority(ctx, e.secrets, c.Now()); err != nil {
		return nil, err
	}
	raw, err := e.secrets.internal(ctx, "tokens", c.Now(), func() ([]byte, error) {
		b := make([]byte, len(e.key))
		_, err := rand.Read(b)
		return b, err
	})
	if err != nil {
		return nil, err
	}
	copy(e.key[:], raw)
	e.secrets.inUse = e.secretUser
	return e, e.load(ctx)
}

// secretUser names who needs a secret by what is applied or under way, "" nobody.
func (e *Engine) secretUser(name string) string {
	for _, m := range e.list() {
		in := m.snapshot().Intent
		if in == nil || !in.Live {
			continue
		}
		if gen, err := e.generation(in.Generation); err == nil && gen.Resolved.Secrets[name] > 0 {
			return "the attempt under way on " + m.name
		}
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, m := range e.set.Machines {
		if m.BMC != nil && m.BMC.Credentials == name {
			return "machine " + m.Name
		}
		if w, ok := e.wanted[m.Name]; ok && w.Generation.Resolved.Secrets[name] > 0 {
			return "group " + w.Group.Name
		}
	}
	return ""
}

// machine finds the engine's memory of a machine, making it where there is none.
func (e *Engine) machine(name string) *machine {
	e.mu.RLock()
	m := e.machines[name]
	e.mu.RUnlock()
	if m != nil {
		return m
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if m = e.machines[name]; m == nil {
		m = &machine{name: name, uuids: &e.uuids, orders: make(chan struct{})}
		m.put(State{Status: Status{Machine: name, Phase: Available, Health: HealthUnknown}})
		e.machines[name] = m
	}
	return m
}

// known is like machine, but makes nothing.
func (e *Engine) known(name string) (*machine, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	m, ok := e.machines[name]
	return m, ok
}

// snapshot is the state as it was last committed, without waiting for a commit
// under way, and what was seen since. What its pointers lead to is never changed.
func (m *machine) snapshot() State {
	s := m.committed()
	if text, at := m.history.lastSeen(); at.After(s.Status.LastSeenAt) {
		s.Status.LastSeen, s.Status.LastSeenAt = text, at
	}
	return s
}

// committed is snapshot without what was seen since, which costs words: for the
// boot path.
func (m *machine) committed() State { return *m.shown.Load() }

// put is the only way to a new state. The lock is held.
func (m *machine) put(s State) {
	m.uuids.moved(m.name, m.state, s)
	if !sameTurn(m.state, s) {
		m.moves.Add(1)
	}
	m.state = s
	m.shown.Store(&s)
}

// Run works until the context ends: it takes up what was under way, watches the
// leases, moves deadlines and rollouts.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	e.runCtx = ctx
	e.mu.Unlock()
	defer func() {
		e.work.Wait()
		farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTime)
		defer cancel()
		if err := e.bmcs.Close(farewell); err != nil {
			e.Log.Warn("BMC sessions are left open", "err", err)
		}
	}()
	defer func() {
		e.mu.Lock()
		e.ended = true
		e.mu.Unlock()
	}()
	e.spawn(func() { e.watchLeases(ctx) })
	e.spawn(func() { e.watchPorts(ctx) })
	e.resume(ctx)
	e.sweepBMCs(ctx)
	e.finishRotations(ctx)
	e.spawn(func() { e.watchBMCs(ctx) })
	e.applyMu.Lock()
	e.collect(ctx) // what a crash left
	e.applyMu.Unlock()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		began := time.Now()
		e.tick(ctx)
		e.schedule(ctx)
		// Each commit wakes us, and a look at 10,000 machines takes a while: when all of
		// them come at once, most of the time is theirs.
		rest := time.NewTimer(min(9*time.Since(began), time.Second/2))
		select {
		case <-ctx.Done():
			rest.Stop()
			return nil
		case <-rest.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-e.wake:
		}
	}
}

func (e *Engine) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// resume repeats the BMC action of every step that a crash may have cut off;
// each is safe to repeat.
func (e *Engine) resume(ctx context.Context) {
	for _, m := range e.list() {
		m.mu.Lock()
		e.repeat(ctx, m)
		image := m.state.Status.FailedImage
		m.mu.Unlock()
		if image != "" {
			e.Mend(image) // it may have been mended while nobody listened
		}
	}
}

// repeat the BMC action of the machine's step. Its lock is held.
func (e *Engine) repeat(ctx context.Context, m *machine) {
	if a := dueAction(m.state.Status); a != "" && Busy(m.state.Status.Phase) && e.hasBMC(m.name) {
		e.act(ctx, m, a)
	}
}

func (e *Engine) list() []*machine {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := make([]*machine, 0, len(e.machines))
	for _, name := range sortedKeys(e.machines) {
		out = append(out, e.machines[name])
	}
	return out
}

// wants tells whether the applied Set wants this generation of a machine.
func (e *Engine) wants(machine string, gen, rendered inventory.Digest) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	w, ok := e.wanted[machine]
	return ok && w.Generation.Digest == gen && w.Rendered.Digest == rendered
}

func (e *Engine) tick(ctx context.Context) {
	now := e.Now()
	e.mu.RLock()
	machines := slices.Collect(maps.Values(e.machines))
	e.mu.RUnlock()
	for _, m := range machines {
		st := &m.shown.Load().Status // a commit under way is waited for by handle, where it matters
		due := Busy(st.Phase) && !st.Deadline.IsZero() && !now.Before(st.Deadline) || gateLate(st, now)
		over := e.lifts(st.Hold)
		back := untouched(st) && st.Hold == nil && e.wants(m.name, st.Running, st.RunningRendered)
		if back {
			if err := e.handle(ctx, m, Reverted{}); err != nil {
				e.Log.Warn("machine not taken as it is", "machine", m.name, "err", err)
			}
		}
		if due {
			if err := e.handle(ctx, m, Ticked{}); err != nil {
				e.Log.Warn("deadline not recorded", "machine", m.name, "err", err)
			}
		}
		if over != "" {
			_ = e.lift(ctx, m.name, over)
		}
	}
}

// params of a machine's definition, with the defaults where none is left.
func (e *Engine) params(name string) Params {
	p := Params{HasBMC: e.hasBMC(name), Attempts: 2}
	if decl := e.Set().Machine(name); decl != nil {
		p.Via, p.Declared = decl.Boot.Via, Board{UUID: decl.UUID, Serial: decl.Serial}
		switch {
		case decl.SecureBoot:
			p.Restart = "it is declared secureBoot: true"
		case decl.Boot.Handover == inventory.HandoverReboot:
			p.Restart = "its boot.handover is reboot"
		}
	}
	e.mu.RLock()
	w, ok := e.wanted[name]
	p.Enforce = ok && w.Group.Power == inventory.PowerEnforce && e.frozen == Freeze{}
	e.mu.RUnlock()
	if ok && w.Definition != nil {
		p.Attempts, p.Deadlines = max(1, w.Definition.Attempts), w.Definition.Deadlines
		p.Health = time.Duration(w.Definition.HealthDeadline)
		p.Reports = w.Generation.Resolved.Config.Format != inventory.ConfigNone
	}
	return p
}

func (e *Engine) hasBMC(name string) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.set == nil {
		return false
	}
	m := e.set.Machine(name)
	return m != nil && m.BMC != nil
}

// handle takes one event: decide, make durable, remember, act. When it returns
// an error nothing has changed.
func (e *Engine) handle(ctx context.Context, m *machine, ev Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.handleLocked(ctx, m, ev)
}

func (e *Engine) handleLocked(ctx context.Context, m *machine, ev Event) error {
	return e.handleWith(ctx, m, ev, nil)
}

// handleWith takes an event and commits with it what somebody said: lines of the
// timeline, and writes.
func (e *Engine) handleWith(ctx context.Context, m *machine, ev Event, said []TimelineEntry, more ...store.Op) error {
	if _, start := ev.(Started); start && m.state.Status.Hold != nil { // placed after whoever starts it looked
		h := m.state.Status.Hold
		return fmt.Errorf("start %q: held by %s: %s; recast release %s", m.name, h.Owner, h.Reason, m.name)
	}
	now := e.Now()
	next, actions, lines, err := Step(e.params(m.name), m.snapshot(), now, ev)
	var bug *ImpossibleError
	if errors.As(err, &bug) {
		e.Log.Error("impossible transition refused", "machine", m.name, "err", err)
		return err
	}
	if err != nil {
		return err
	}
	lines = append(said, lines...)
	if len(lines) == 0 && len(more) == 0 && len(actions) == 0 && sameDurable(m.state, next) {
		m.put(next) // at the most progress moved, and only memory needs to know
		e.changes.send(m.name)
		return nil
	}
	if err := e.commit(ctx, m, next, lines, more...); err != nil {
		return err
	}
	for _, l := range lines {
		if l.Kind == "phase" || l.Kind == "error" || l.Kind == "finding" {
			e.Log.Info(l.Text, "machine", m.name, "kind", l.Kind, "phase", next.Status.Phase, "step", next.Status.Step, "trace", e.key.Trace(next))
		}
	}
	for _, a := range actions {
		e.act(e.background(), m, a)
	}
	return nil
}

// spawn runs work that Run waits for. Once Run has ended there is no such work:
// what is cut off is taken up at the next start.
func (e *Engine) spawn(f func()) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if !e.ended {
		e.work.Go(f)
	}
}

// background is the context of work that outlives the request that caused it.
func (e *Engine) background() context.Context {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.runCtx == nil {
		return context.Background()
	}
	return e.runCtx
}
