package provision

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"recast/bmc"
	"recast/inventory"
)

const (
	// lookTime is how long one look at a BMC may take.
	lookTime = 30 * time.Second
	// identityEvery is how often a BMC is asked which board it is on, which costs it
	// more than its power: none is replaced without the BMC being away meanwhile,
	// after which it is asked too.
	identityEvery = time.Hour
)

// nextLook spreads the looks: a tenth more or less than the interval, and the
// first anywhere in it, so that a restart of the server does not ask all at once.
func nextLook(now time.Time, every time.Duration, first bool, random float64) time.Time {
	if first {
		return now.Add(time.Duration(random * float64(every)))
	}
	return now.Add(time.Duration((0.9 + 0.2*random) * float64(every)))
}

const (
	// eventGap is the shortest time between two looks that events cause. It doubles
	// with each that shows nothing new, up to the interval of the watch: some BMCs
	// tell of every sensor.
	eventGap = 2 * time.Second
	// eventLate is when a BMC is looked at again whose event showed nothing: the state
	// it tells lags behind by up to 11 s.
	eventLate = 15 * time.Second
	// streamRetry doubles up to streamRetryMost after a stream that failed.
	streamRetry     = time.Minute
	streamRetryMost = time.Hour
	// noStream is when a BMC is asked again that has no events.
	noStream = 24 * time.Hour
)

// watched is one machine under the watch.
type watched struct {
	due     time.Time
	last    time.Time     // its last look began
	gap     time.Duration // of looks that events cause
	looking bool
	event   bool // the look was caused by one
	more    bool // one came while it was looked at
}

// told moves the next look to where an event wants it.
func (w *watched) told(now time.Time) {
	if w.looking {
		w.more = true
		return
	}
	at := now
	if soonest := w.last.Add(w.gap); soonest.After(at) {
		at = soonest
	}
	if at.Before(w.due) {
		w.due, w.event = at, true
	}
}

// saw takes what a look showed, and plans the next one.
func (w *watched) saw(now time.Time, every time.Duration, s sight, random float64) {
	w.due = nextLook(now, every, false, random)
	again := s.again
	switch {
	case s.changed:
		w.gap = eventGap
	case w.event:
		w.gap = min(2*w.gap, every)
		if late := now.Add(eventLate); w.gap < eventLate && (again.IsZero() || late.Before(again)) {
			again = late
		}
	default:
		w.gap = max(w.gap/2, eventGap)
	}
	if !again.IsZero() && again.Before(w.due) {
		w.due = again
	}
	more := w.more
	w.looking, w.event, w.more = false, false, false
	if more {
		w.told(now)
	}
}

// sight is what came of a look.
type sight struct {
	machine string
	failed  bool
	changed bool      // power or board
	again   time.Time // when to look again; zero in its turn
}

// stream is that of one BMC's events, whichever of its systems they are about.
type stream struct {
	cancel context.CancelFunc // nil: not open
	next   time.Time          // not opened before
	pause  time.Duration      // after the next failure
}

// ended plans when a stream is opened anew.
func (s *stream) ended(now time.Time, none bool) {
	s.cancel = nil
	if none {
		s.next = now.Add(noStream)
		return
	}
	s.pause = min(max(2*s.pause, streamRetry), streamRetryMost)
	s.next = now.Add(s.pause)
}

// heard is a word of the goroutine that holds a stream.
type heard struct {
	bmc         string
	over, none  bool // the stream is; there is none at all
	established bool // for so long that the next failure is a new one
}

// watch is the loop over all BMCs. One goroutine owns it.
type watch struct {
	*Engine
	machines map[string]*watched
	streams  map[string]*stream // by host:port
	set      *inventory.Set     // that behind is made of
	behind   map[string][]string
	sights   chan sight
	heard    chan heard
}

// watchBMCs looks at every machine's BMC once in a while, and at once where the BMC
// says that something happened, until ctx ends.
func (e *Engine) watchBMCs(ctx context.Context) {
	if e.WatchBMCs <= 0 {
		return
	}
	w := &watch{Engine: e, machines: map[string]*watched{}, streams: map[string]*stream{}, sights: make(chan sight), heard: make(chan heard)}
	tick := time.NewTicker(max(e.WatchBMCs/300, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return // streams end with ctx
		case <-tick.C:
			w.tick(ctx)
		case s := <-w.sights:
			w.saw(ctx, s)
		case h := <-w.heard:
			w.hear(ctx, h)
		}
	}
}

// lookSoon are machines whose next look is not to wait for its turn.
type lookSoon struct {
	mu    sync.Mutex
	names []string
}

// soonEvery is between two looks that a changed credential causes: many BMCs share one,
// and a management network or its authentication server is behind them all.
const soonEvery = 20 * time.Millisecond

// askSoon has those machines' BMCs looked at soon, each at a time of its own.
func (e *Engine) askSoon(which func(*inventory.Machine) bool) {
	e.soon.mu.Lock()
	defer e.soon.mu.Unlock()
	for _, m := range e.Set().Machines {
		if m.BMC != nil && which(m) && !slices.Contains(e.soon.names, m.Name) {
			e.soon.names = append(e.soon.names, m.Name)
		}
	}
}

// hasten moves the looks forward that askSoon was told of.
func (w *watch) hasten(now time.Time) {
	w.soon.mu.Lock()
	names := w.soon.names
	w.soon.names = nil
	w.soon.mu.Unlock()
	within := min(w.WatchBMCs, time.Duration(len(names))*soonEvery)
	for _, name := range names {
		m := w.machines[name]
		switch at := nextLook(now, within, true, rand.Float64()); {
		case m == nil: // its first look is not planned yet, or it is not declared any more
			if decl := w.set.Machine(name); decl != nil && decl.BMC != nil {
				w.machines[name] = &watched{due: at, gap: eventGap}
			}
		case m.looking:
			m.more = true
		case at.Before(m.due):
			m.due = at
		}
	}
}

// tick begins the looks that are due.
func (w *watch) tick(ctx context.Context) {
	now := w.Now()
	w.follow()
	w.hasten(now)
	for _, decl := range w.set.Machines {
		if decl.BMC == nil {
			continue
		}
		m, known := w.machines[decl.Name]
		if !known {
			w.machines[decl.Name] = &watched{due: nextLook(now, w.WatchBMCs, true, rand.Float64()), gap: eventGap}
			continue
		}
		w.begin(ctx, decl.Name, m, now)
	}
}

func (w *watch) begin(ctx context.Context, name string, m *watched, now time.Time) {
	if m.looking || now.Before(m.due) {
		return
	}
	m.looking, m.last = true, now
	machine := w.machine(name)
	w.spawn(func() {
		s := w.look(ctx, machine)
		select {
		case w.sights <- s:
		case <-ctx.Done():
		}
	})
}

// follow takes a new Set: who is not declared any more is not watched, and no stream
// of a BMC that nobody declares stays open.
func (w *watch) follow() {
	set := w.Set()
	if set == w.set {
		return
	}
	w.set, w.behind = set, map[string][]string{}
	for _, m := range set.Machines {
		if m.BMC != nil {
			at := atBMC(m.BMC.URL)
			w.behind[at] = append(w.behind[at], m.Name)
		}
	}
	for name := range w.machines {
		if m := set.Machine(name); m == nil || m.BMC == nil {
			delete(w.machines, name)
		}
	}
	for at, s := range w.streams {
		if w.behind[at] == nil && s.cancel != nil {
			s.cancel() // its last word takes it out
		}
	}
}

// atBMC is host:port of a BMC, behind which several systems may be.
func atBMC(url string) string {
	_, host, port, err := bmc.Address(url)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// saw takes what a look showed. A BMC that answered may tell of events from now on;
// one that does not answer while it does may have room for one of the two.
func (w *watch) saw(ctx context.Context, s sight) {
	now := w.Now()
	if m := w.machines[s.machine]; m != nil {
		m.saw(now, w.WatchBMCs, s, rand.Float64())
	}
	decl := w.Set().Machine(s.machine)
	if decl == nil || decl.BMC == nil {
		return
	}
	at := atBMC(decl.BMC.URL)
	open := w.streams[at]
	switch {
	case open == nil && !s.failed:
		open = &stream{}
		w.streams[at] = open
		fallthrough
	case open != nil && open.cancel == nil && !s.failed && !now.Before(open.next):
		listen, cancel := context.WithCancel(ctx)
		open.cancel = cancel
		w.spawn(func() {
			defer cancel()
			w.listen(listen, ctx, s.machine, at)
		})
	case open != nil && open.cancel != nil && s.failed:
		open.cancel()
	}
}

// hear takes a word of a stream.
func (w *watch) hear(ctx context.Context, h heard) {
	now := w.Now()
	s := w.streams[h.bmc]
	switch {
	case s == nil:
	case h.over && w.behind[h.bmc] == nil:
		delete(w.streams, h.bmc)
	case h.over:
		if h.established {
			s.pause = 0
		}
		s.ended(now, h.none)
	default:
		for _, name := range w.behind[h.bmc] {
			if m := w.machines[name]; m != nil {
				m.told(now)
				w.begin(ctx, name, m, now)
			}
		}
	}
}

// listen holds one stream of events until it ends.
func (w *watch) listen(ctx, run context.Context, machine, at string) {
	say := func(h heard) {
		h.bmc = at
		select {
		case w.heard <- h:
		case <-run.Done():
		}
	}
	began := w.Now()
	last := heard{over: true}
	defer func() { say(last) }()
	var events bmc.EventStream
	opening, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	err := w.withBMC(opening, machine, func(ctx context.Context, c bmc.Client) (err error) {
		t, ok := c.(bmc.EventSource)
		if !ok {
			return bmc.ErrUnsupported
		}
		events, err = t.Listen(ctx)
		return err
	})
	if err != nil {
		last.none = errors.Is(err, bmc.ErrUnsupported)
		w.Log.Debug("no events of a BMC", "machine", machine, "err", err)
		return
	}
	defer events.Close()
	for err == nil {
		if err = events.Next(ctx); err == nil {
			say(heard{})
		}
	}
	last.established = w.Now().Sub(began) > streamRetryMost
	w.Log.Debug("a BMC tells of no more events", "machine", machine, "err", err)
}

// look asks a BMC for power and, now and then, for its board. It changes nothing
// there, and leaves alone whom the engine is talking to.
func (e *Engine) look(ctx context.Context, m *machine) (s sight) {
	s.machine = m.name
	if Busy(m.snapshot().Status.Phase) || !m.bmcMu.TryLock() {
		return s
	}
	defer m.bmcMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var ev Looked
	err := e.withDeclared(ctx, m.name, func(ctx context.Context, decl *inventory.Machine, c bmc.Client) error {
		st := m.snapshot().Status
		if m.boardAt != decl.BMC.URL || st.FactsAt.After(m.boardDue.Add(-identityEvery)) {
			// Two URLs may have changed places, or the machine has said what it is.
			m.boardAt, m.boardDue = decl.BMC.URL, time.Time{}
		}
		var err error
		if ev.Power, err = c.Power(ctx); err != nil {
			return err
		}
		d, ok := c.(bmc.Describer)
		if !ok || e.Now().Before(m.boardDue) && string(ev.Power) == st.Power {
			return nil
		}
		if id, err := d.Identity(ctx); err == nil { // without it the power is still told
			board := boardOf(id, decl.BMC.URL)
			ev.Board, ev.Owner = &board, e.boardOwner(m.name, board)
			m.boardDue = e.Now().Add(identityEvery)
		}
		return nil
	})
	if err != nil {
		m.boardDue = time.Time{}
		e.Log.Debug("look at a BMC", "machine", m.name, "err", err)
		s.failed = true
		return s
	}
	before := m.snapshot().Status
	if err := e.handle(ctx, m, ev); err != nil {
		e.Log.Warn("look at a BMC not recorded", "machine", m.name, "err", err)
		return s
	}
	after := m.snapshot().Status
	s.changed = before.Power != after.Power || !slices.Equal(before.Findings, after.Findings)
	if due := restoreDue(after); after.Health == Missing && e.params(m.name).Enforce && e.Now().Before(due) {
		s.again = due
	}
	return s
}
