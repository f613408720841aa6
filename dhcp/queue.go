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

// arrival is one decoded request with the circumstances it came in.
type arrival struct {
	req   *request
	link  *link
	dst   netip.Addr
	asker netip.AddrPort // who asked the boot server port
	at    time.Time
}

// flight names a packet while it is queued or worked on.
type flight struct {
	xid  dhcpv4.TransactionID
	mac  inventory.MAC
	kind dhcpv4.MessageType
	boot bool // to the boot server port
}

func (p *arrival) flight() flight {
	return flight{p.req.TransactionID, p.req.mac, p.req.kind, p.asker.IsValid()}
}

// Lanes, the most valuable first: a REQUEST finishes work that was begun, and
// declared machines never wait behind strangers.
const (
	laneRequest = iota
	laneDeclared
	laneStranger
	lanes
)

// queue is bounded, prefers what finishes an exchange, and drops the oldest of
// a full lane, whose client has waited longest and asks again first.
type queue struct {
	mu     sync.Mutex
	ready  sync.Cond
	lane   [lanes][]arrival
	flying map[flight]struct{}
	closed bool

	window time.Time
	counts map[inventory.MAC]uint16
}

func newQueue() *queue {
	q := &queue{flying: map[flight]struct{}{}, counts: map[inventory.MAC]uint16{}}
	q.ready.L = &q.mu
	return q
}

// push enqueues a packet. It returns why a packet was dropped, this or another
// one; "" for none.
func (q *queue) push(p arrival, lane int) (dropped string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return "closing"
	}
	if d := p.at.Sub(q.window); d >= time.Second || d < 0 {
		q.window = p.at
		clear(q.counts)
	}
	if n := q.counts[p.req.mac]; n >= perClient || n == 0 && len(q.counts) >= clientsCounted {
		return "too many packets"
	}
	q.counts[p.req.mac]++
	f := p.flight()
	if _, dup := q.flying[f]; dup {
		return "duplicate"
	}
	if len(q.lane[lane]) >= laneSize {
		delete(q.flying, q.lane[lane][0].flight())
		q.lane[lane] = q.lane[lane][1:]
		dropped = "queue full"
	}
	q.flying[f] = struct{}{}
	q.lane[lane] = append(q.lane[lane], p)
	q.ready.Signal()
	return dropped
}

// pop waits for the next packet; ok is false once the queue is closed.
func (q *queue) pop() (arrival, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed {
		for i := range q.lane {
			if len(q.lane[i]) > 0 {
				p := q.lane[i][0]
				q.lane[i][0] = arrival{}
				q.lane[i] = q.lane[i][1:]
				return p, true
			}
		}
		q.ready.Wait()
	}
	return arrival{}, false
}

// done ends a packet's flight.
func (q *queue) done(p arrival) {
	q.mu.Lock()
	delete(q.flying, p.flight())
	q.mu.Unlock()
}

// close ends the workers; what is still queued is left to the clients' retries.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.ready.Broadcast()
}
