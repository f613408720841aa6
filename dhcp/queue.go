package dhcp

import (
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

const (
	// laneSize packets wait per lane; at 5000 exchanges a second it is a fifth
	// of a second, after which a client's retry is worth more than its first try.
	laneSize = 1024
	// stale DISCOVERs are not answered: the client has asked again by then.
	stale = 3 * time.Second
	// perClient packets a second are looked at; firmware in a tight loop, or a
	// broken client, stays below a share that others feel.
	perClient = 20
	// clientsCounted bounds the memory a flood of invented addresses takes.
	clientsCounted = 1 << 16
)

// arrival is one request with the circumstances it came in. That of IPv4 is
// decoded when its turn comes.
type arrival struct {
	req    *request
	flight flight
	link   *link
	dst    netip.Addr
	asker  netip.AddrPort // who asked the boot server port
	from   uint16         // the port it came from
	at     time.Time
}

// flight names a packet while it is queued or worked on.
type flight struct {
	xid  dhcpv4.TransactionID
	mac  inventory.MAC // or what stands for it; see receive6
	kind dhcpv4.MessageType
	boot bool // to the boot server port
}

// Lanes, the most valuable first: declared machines never wait behind strangers,
// and a REQUEST finishes work that was begun.
const (
	laneRequest = iota
	laneDiscover
	laneStrangerRequest
	laneStranger
	lanes
)

// queue is bounded, prefers what finishes an exchange, and drops the oldest of
// a full lane, whose client has waited longest and asks again first. Who pushes
// also pops until it is empty.
type queue struct {
	mu     sync.Mutex
	lane   [lanes]ring
	flying map[flight]struct{}

	window time.Time
	counts map[inventory.MAC]uint16
}

// ring holds a lane's packets, oldest first, in as many places as were ever needed.
type ring struct {
	at   []arrival
	from int
	n    int
}

func (r *ring) push(p arrival) {
	if r.n == len(r.at) {
		at := make([]arrival, max(64, 2*len(r.at)))
		for i := range r.n {
			at[i] = r.at[(r.from+i)%len(r.at)]
		}
		r.at, r.from = at, 0
	}
	r.at[(r.from+r.n)%len(r.at)] = p
	r.n++
}

func (r *ring) pop() arrival {
	p := r.at[r.from]
	r.at[r.from] = arrival{}
	r.from = (r.from + 1) % len(r.at)
	r.n--
	return p
}

func newQueue() *queue {
	return &queue{flying: map[flight]struct{}{}, counts: map[inventory.MAC]uint16{}}
}

// push enqueues a packet. It returns why a packet was dropped, and which: this or
// an older one; "" for none.
func (q *queue) push(p arrival, lane int) (why string, dropped *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d := p.at.Sub(q.window); d >= time.Second || d < 0 {
		q.window = p.at
		clear(q.counts)
	}
	mac := p.flight.mac
	if n := q.counts[mac]; n >= perClient || n == 0 && lane >= laneStrangerRequest && len(q.counts) >= clientsCounted {
		return "too many packets", p.req
	}
	q.counts[mac]++
	if _, dup := q.flying[p.flight]; dup {
		return "duplicate", p.req
	}
	l := &q.lane[lane]
	if l.n >= laneSize {
		old := l.pop()
		delete(q.flying, old.flight)
		why, dropped = "queue full", old.req
	}
	q.flying[p.flight] = struct{}{}
	l.push(p)
	return why, dropped
}

// pop takes the most valuable packet; ok is false where there is none.
func (q *queue) pop() (p arrival, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.lane {
		if q.lane[i].n > 0 {
			return q.lane[i].pop(), true
		}
	}
	return arrival{}, false
}

// done ends a packet's flight.
func (q *queue) done(f flight) {
	q.mu.Lock()
	delete(q.flying, f)
	q.mu.Unlock()
}
