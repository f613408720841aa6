package ipxe

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Turns bounds how many machines fetch a kernel and ramdisk at once, so that a
// room that comes back after a power failure gets each machine its ramdisk in a
// time that can be foreseen, instead of all of them a share so small that they
// time out. One rule: who asks while a place is free has it; the rest is told
// when to ask again, and asks the more often the longer it has waited.
//
// A place is taken by the script that starts the ramdisk, and given back when the
// ramdisk was sent whole or nothing was heard of the machine for turnTime.
type Turns struct {
	// Max places; 0 means 64, below 0 no bound. 64 fetches of 60 MB take three
	// seconds of a 10 GbE port, half a minute of a 1 GbE one.
	Max int

	mu      sync.Mutex
	places  map[netip.Addr]place
	waiting map[netip.Addr]wait
	swept   time.Time
	took    time.Duration // a fetch, as the last ones went
	seed    maphash.Seed
}

type place struct{ since, last time.Time }
type wait struct{ since, until time.Time }

const (
	defaultTurns = 64
	turnTime     = 2 * time.Minute
	minTurnWait  = 2 * time.Second
	maxTurnWait  = time.Minute
	// turnGrace: who has not asked this long after it was told to has gone.
	turnGrace = 30 * time.Second
	// maxWaiting bounds the memory that invented addresses take.
	maxWaiting = 1 << 18
)

// Ask for a place. Without one: how many others wait, and when to ask again.
func (t *Turns) Ask(who netip.Addr, now time.Time) (again time.Duration, waiting int, ok bool) {
	limit := t.limit()
	if limit < 0 || !who.IsValid() {
		return 0, 0, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.places == nil {
		t.places, t.waiting, t.took, t.seed = map[netip.Addr]place{}, map[netip.Addr]wait{}, 3*time.Second, maphash.MakeSeed()
	}
	t.sweep(now)
	if p, has := t.places[who]; has {
		// It asks again because something failed: its place is as long as before.
		t.places[who] = place{p.since, now}
		return 0, 0, true
	}
	w, waits := t.waiting[who]
	if len(t.places) < limit {
		delete(t.waiting, who)
		t.places[who] = place{now, now}
		return 0, len(t.waiting), true
	}
	if !waits {
		w.since = now
	}
	waiting = len(t.waiting)
	if waits {
		waiting--
	}
	// Until everybody who waits now was served. Three questions for each place that
	// becomes free leave none idle for long; who has waited asks sooner.
	left := time.Duration(waiting/limit+1) * t.took
	again = time.Duration(float64(left/3) * float64(left) / float64(left+now.Sub(w.since)))
	again = min(max(again, minTurnWait), maxTurnWait)
	// Spread, or all would come back in one instant.
	again += time.Duration(maphash.Comparable(t.seed, who) % uint64(again/4+1))
	again = again.Round(time.Second)
	if waits || len(t.waiting) < maxWaiting {
		w.until = now.Add(again)
		t.waiting[who] = w
	}
	return again, waiting, false
}

// Fetching tells that a machine is at it; its place is kept.
func (t *Turns) Fetching(who netip.Addr, now time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.places[who]; ok {
		t.places[who] = place{p.since, now}
	}
}

// Done gives a machine's place back: it has all that it needs.
func (t *Turns) Done(who netip.Addr, now time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.places[who]
	if !ok {
		return
	}
	delete(t.places, who)
	// A moving average over some eight fetches.
	t.took += (now.Sub(p.since) - t.took) / 8
}

// Count of places taken and of machines that wait.
func (t *Turns) Count() (taken, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.places), len(t.waiting)
}

// sweep forgets who is not heard of any more, once a second at the most.
func (t *Turns) sweep(now time.Time) {
	if d := now.Sub(t.swept); d >= 0 && d < time.Second {
		return
	}
	t.swept = now
	for who, p := range t.places {
		if now.Sub(p.last) > turnTime {
			delete(t.places, who)
		}
	}
	for who, w := range t.waiting {
		if now.Sub(w.until) > turnGrace {
			delete(t.waiting, who)
		}
	}
}

func (t *Turns) limit() int {
	if t == nil {
		return -1
	}
	if t.Max == 0 {
		return defaultTurns
	}
	return t.Max
}
