package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

const (
	// commitTimeout is how long one client waits for the store; it asks again
	// after four seconds.
	commitTimeout = 2 * time.Second
	// slotWait is how long a packet waits to be among those that wait for the
	// store: longer, and a store that hangs would hold up every worker.
	slotWait = 100 * time.Millisecond
	// storePause is how long a store that failed is left alone.
	storePause = time.Second
	// badEvery is the least time between two reports of bad packets.
	badEvery = 10 * time.Second
)

var (
	errBusy = errors.New("too many packets wait for the store")
	errAway = fmt.Errorf("%w: it is left alone for a moment", store.ErrUnavailable)
)

// guardPanic turns a panic into a counter and a log line: one packet must not
// stop the room.
func (s *Server) guardPanic(where string) {
	if r := recover(); r != nil {
		s.counters.mu.Lock()
		s.counters.s.Panics++
		s.counters.mu.Unlock()
		s.log().Error("panic while handling a packet", "where", where, "panic", r, "stack", string(debug.Stack()))
	}
}

// receive decodes one datagram and queues it. The bytes are the caller's again
// afterwards.
func (s *Server) receive(l *link, raw []byte, dst netip.Addr) {
	s.accept(l, raw, dst, netip.AddrPort{})
}

// accept is receive for both ports; asker is set for the boot server's.
func (s *Server) accept(l *link, raw []byte, dst netip.Addr, asker netip.AddrPort) {
	defer s.guardPanic("decode")
	s.counters.mu.Lock()
	s.counters.s.Received++
	s.counters.mu.Unlock()
	r, err := decode(raw)
	if err != nil {
		var bad badPacket
		errors.As(err, &bad)
		s.malformed(l, bad)
		return
	}
	s.enqueue(arrival{req: r, link: l, dst: dst, asker: asker, at: s.now()}, s.cfg.Load())
}

// malformed counts a packet that is not even looked at.
func (s *Server) malformed(l *link, bad badPacket) {
	s.counters.count(&s.counters.s.Malformed, string(bad))
	// Replies of other servers are no news: relays and proxies pass here.
	if bad != badOp {
		s.sawBad(l, bad)
	}
}

func (s *Server) enqueue(p arrival, cfg *config) {
	lane := laneRequest
	if p.req.kind == dhcpv4.MessageTypeDiscover {
		lane = laneStranger
		if _, ok := cfg.byMAC[p.req.mac]; ok {
			lane = laneDeclared
		} else if _, ok := s.ports.of(p.req.mac); ok {
			lane = laneDeclared
		}
	}
	if why := s.queue.push(p, lane); why != "" {
		s.counters.count(&s.counters.s.Silent, why)
	}
}

func (s *Server) sawBad(l *link, bad badPacket) {
	now := s.now().UnixNano()
	last := s.badSeen.Load()
	if now-last < int64(badEvery) || !s.badSeen.CompareAndSwap(last, now) {
		return
	}
	s.observe(inventory.Observation{Kind: inventory.SawBadPacket, Detail: string(bad), Error: fmt.Sprintf("malformed DHCP packet on %s: %s", l.state.Load().iface.Name, bad)})
}

// work is one worker: it ends when the queue is closed.
func (s *Server) work(ctx context.Context) {
	for {
		p, ok := s.queue.pop()
		if !ok {
			return
		}
		s.handle(ctx, p)
		s.queue.done(p)
	}
}

// handle answers one packet, or counts why not.
func (s *Server) handle(ctx context.Context, p arrival) {
	defer s.guardPanic("handle")
	r := p.req
	if r.kind == dhcpv4.MessageTypeDiscover && s.now().Sub(p.at) > stale {
		s.silent(r, nil, "stale")
		return
	}
	q, why := s.question(p)
	if why != "" {
		s.silent(r, q.network, why)
		return
	}
	if why := s.locate(ctx, &q); why != "" {
		s.silent(r, q.network, why)
		return
	}
	s.sawAsked(&q)
	if id := r.serverID; q.onLink && r.kind == dhcpv4.MessageTypeRequest && id.IsValid() && !q.isOurs(id) {
		p.link.doubt(q.network.Name)
	}
	if why := s.boot(ctx, &q); why != "" {
		s.silent(r, q.network, why)
		return
	}
	o, err := s.decide(ctx, q)
	if o.finding != "" {
		if s.findings.set("address/"+q.network.Name+"/"+string(r.mac), o.finding, s.now().Add(quarantine)) {
			s.log().Warn(o.finding)
		}
	}
	switch {
	case err != nil:
		s.silent(r, q.network, "store")
		s.log().Debug("withhold a lease", "network", q.network.Name, "mac", r.mac, "err", err)
		return
	case o.packet == nil && o.six == nil:
		s.silent(r, q.network, o.silence)
		return
	}
	if o.six != nil && o.lease != nil {
		s.noteClient(r, o.lease)
	}
	// Told before it is sent: the client's next packet must not overtake it.
	s.sawAnswered(&q, o, p.at)
	if err := p.link.wire.send(o.bytes(), q.server, o.dest); err != nil {
		s.counters.count(&s.counters.s.Silent, "send error")
		s.log().Warn("send", "network", q.network.Name, "mac", r.mac, "err", err)
		return
	}
	s.counters.count(&s.counters.s.Replies, o.kind())
	if s.debug(ctx) {
		s.log().Debug("reply", "type", o.kind(), "network", q.network.Name, "mac", r.mac, "address", o.addr(), "to", o.dest.to, "detail", o.detail, "trace", q.boot.trace)
	}
}

// debug tells whether somebody reads what is said of every packet.
func (s *Server) debug(ctx context.Context) bool { return s.log().Enabled(ctx, slog.LevelDebug) }

func (s *Server) silent(r *request, n *inventory.Network, why string) {
	s.counters.count(&s.counters.s.Silent, why)
	name := ""
	if n != nil {
		name = n.Name
	}
	s.sawSilence(r, name, why)
	s.log().Debug("silent", "type", r.kind, "network", name, "mac", r.mac, "reason", why)
}

// question gathers what the answer depends on; the second result is why there
// is none.
func (s *Server) question(p arrival) (question, string) {
	r := p.req
	q := question{req: r, asker: p.asker, cfg: s.cfg.Load(), ours: *s.ourAddrs.Load(), duid: s.duid, now: s.now()}
	for _, a := range q.ours {
		q.unicast = q.unicast || a == p.dst
	}
	if s.isPeer(r.Options.Get(dhcpv4.OptionClassIdentifier)) {
		return q, "probe of a peer"
	}
	at := p.link.state.Load()
	local := make([]*inventory.Network, 0, 2)
	for _, d := range at.duties {
		// The declared Network may have changed since the guard began.
		for _, n := range q.cfg.networks {
			if n.Name == d.site.network.Name {
				local = append(local, n)
			}
		}
	}
	q.network, q.onLink = q.cfg.network(r, local, q.unicast)
	if q.network == nil {
		return q, "no Network here"
	}
	r.client.Network = q.network.Name
	if q.unicast {
		q.server = p.dst
	}
	for _, d := range at.duties {
		if !q.onLink || d.site.network.Name != q.network.Name {
			continue
		}
		switch d.state.Load() {
		case dutyProbing:
			return q, "looking for other servers"
		case dutySilent:
			return q, "another DHCP server"
		}
		q.server = d.site.server
	}
	if addrs := at.iface.of(q.network); !q.server.IsValid() && len(addrs) > 0 {
		q.server = addrs[0].Addr()
	}
	if !q.server.IsValid() {
		return q, "no address of our own"
	}
	return q, ""
}

// boot asks what the client may boot, if it boots and may. The result is why
// there is no answer at all.
func (s *Server) boot(ctx context.Context, q *question) string {
	c := q.req.client
	switch q.req.kind {
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest:
	default:
		// DHCPv6 without addresses (INFORMATION-REQUEST) tells of boot files too.
		if q.req.six == nil || q.req.kind != dhcpv4.MessageTypeInform {
			return ""
		}
	}
	if c.Loader == ipxe.LoaderOS || s.Booter == nil || s.Bootfile == nil {
		return ""
	}
	c.Machine = q.port.machine
	if d, known := q.own(); d.bmc || !known && q.network.Unknown != inventory.UnknownDiscover {
		return ""
	}
	spec, err := s.Booter.BootSpec(ctx, c)
	if err != nil {
		s.log().Warn("ask what to boot", "mac", c.MAC, "err", err)
		return "no boot answer"
	}
	if spec.Kind == ipxe.SpecIgnore {
		return "ignored: " + string(ipxe.SpecIgnore)
	}
	if file, ok := s.Bootfile(c, spec, q.server); ok {
		q.boot = boot{file: file, trace: spec.Trace}
	}
	return ""
}

// decide takes the decision and makes it durable. A record that somebody else
// changed in between is read again and the decision taken anew.
func (s *Server) decide(ctx context.Context, q question) (outcome, error) {
	for try := 0; ; try++ {
		s.table.mu.Lock()
		o := reply(q, s.table)
		ops, must := s.table.prepare(&q, &o)
		s.table.mu.Unlock()
		if len(ops) == 0 {
			return o, nil
		}
		rev, err := s.commit(ctx, ops)
		conflict := errors.Is(err, store.ErrConflict)
		s.table.mu.Lock()
		if o.lease != nil {
			delete(s.table.writing, place{o.lease.Network, o.lease.Addr})
		}
		switch {
		case err == nil:
			s.table.committed(&q, &o, rev)
		case !must && !conflict && !errors.Is(err, errBusy):
			// The address is durably this machine's already; only the new expiry is not.
			s.table.extend(&o)
			err = nil
		}
		s.table.mu.Unlock()
		if !conflict || try == 2 {
			return o, err
		}
		s.reread(ctx, ops)
	}
}

// prepare marks in the index what the outcome decides and returns the writes it
// needs. must says that the answer depends on them. The lock is held.
func (t *table) prepare(q *question, o *outcome) (ops []store.Op, must bool) {
	name, mac := q.network.Name, q.req.mac
	own, known := q.own()
	if o.offer.IsValid() {
		t.hold(name, mac, known, o.offer, q.now.Add(offerHold))
	}
	if o.forget {
		t.forgetOffer(station{name, mac})
	}
	if o.silence == silenceExhausted && q.now.Sub(t.full[name]) >= fullPause {
		t.full[name] = q.now
	}
	if o.drop.IsValid() {
		if r := t.byAddr[place{name, o.drop}]; r != nil && r.rev > 0 {
			ops = append(ops, leaseRecords.DeleteOp(leaseName(name, o.drop), r.rev))
		} else {
			t.remove(name, o.drop)
		}
	}
	if o.lease == nil {
		return ops, false
	}
	l := *o.lease
	r := t.byAddr[place{name, l.Addr}]
	var rev int64
	same := false
	if r != nil {
		rev = r.rev
		same = rev > 0 && r.MAC == l.MAC && r.State == l.State
	}
	switch l.State {
	case inventory.LeaseDeclined:
		// In force at once, whatever the store says.
		t.put(l, 0)
	case inventory.LeaseBound:
		if same && len(ops) == 0 && r.Machine == l.Machine && r.BMC == l.BMC && r.Hostname == l.Hostname && samePort(r.Port, l.Port) && !r.stored.Before(l.Expires) {
			if r.Expires.Before(l.Expires) {
				r.Expires = l.Expires
			}
			t.forgetOffer(station{name, mac})
			return nil, false
		}
		// A little more than promised, so that firmware, iPXE, ramdisk and system,
		// one after the other, need one write.
		l.Expires = l.Expires.Add(q.leaseTime() / 8)
		if own.on(q.network) == l.Addr && len(ops) == 0 {
			t.later(l)
			t.forgetOffer(station{name, mac})
			return nil, false
		}
		// Nobody else is given the address while it is being written.
		t.hold(name, mac, known, l.Addr, q.now.Add(offerHold))
		must = !same && own.on(q.network) != l.Addr
	}
	op, err := leaseRecords.PutOp(leaseName(name, l.Addr), l, rev)
	if err != nil {
		panic(err) // strings and times only
	}
	t.writing[place{name, l.Addr}] = written{l, op.Value}
	return append(ops, op), must
}

// committed installs what is now durable. The lock is held.
func (t *table) committed(q *question, o *outcome, rev int64) {
	name := q.network.Name
	if o.drop.IsValid() {
		t.remove(name, o.drop)
	}
	if o.lease == nil {
		return
	}
	l := *o.lease
	if l.State == inventory.LeaseBound {
		l.Expires = l.Expires.Add(q.leaseTime() / 8)
		t.forgetOffer(station{name, l.MAC})
	}
	if r := t.byAddr[place{name, l.Addr}]; r != nil && r.rev > rev {
		return // the watch has brought something newer
	}
	t.put(l, rev)
}

// extend keeps a lease in memory that the store could not take. The lock is held.
func (t *table) extend(o *outcome) {
	if o.lease != nil {
		t.put(*o.lease, 0)
		t.forgetOffer(station{o.lease.Network, o.lease.MAC})
	}
}

// commit writes, unless the store has just failed or too many wait for it.
func (s *Server) commit(ctx context.Context, ops []store.Op) (int64, error) {
	now := s.now().UnixNano()
	if until := s.storeRetry.Load(); until != 0 {
		// One packet a pause tries the store again; the rest do not wait.
		if now < until || !s.storeRetry.CompareAndSwap(until, now+int64(storePause)) {
			return 0, errAway
		}
	}
	if !s.takeSlot() {
		return 0, errBusy
	}
	defer func() { <-s.commits }()
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	rev, err := s.Store.Commit(ctx, ops...)
	switch {
	case err == nil, errors.Is(err, store.ErrConflict):
		if s.storeRetry.Swap(0) != 0 {
			s.findings.clear("store")
			s.log().Info("the store takes leases again")
		}
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
	default:
		s.storeRetry.Store(s.now().Add(storePause).UnixNano())
		text := fmt.Sprintf("dhcp: leases cannot be stored (%v): machines that have one are served, new pool addresses are not given out", err)
		if s.findings.set("store", text, time.Time{}) {
			s.log().Warn(text)
		}
	}
	return rev, err
}

// takeSlot waits a moment for one of the places before the store.
func (s *Server) takeSlot() bool {
	select {
	case s.commits <- struct{}{}:
		return true
	default:
	}
	patience := time.NewTimer(slotWait)
	defer patience.Stop()
	select {
	case s.commits <- struct{}{}:
		return true
	case <-patience.C:
		return false
	}
}

// reread brings the index up to date after a conflict.
func (s *Server) reread(ctx context.Context, ops []store.Op) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	for _, op := range ops {
		rec, err := s.Store.Get(ctx, op.Key)
		switch {
		case err == nil:
			if err := s.table.apply(store.Event{Record: rec}); err != nil {
				s.log().Warn("skip a lease record", "err", err)
			}
		case errors.Is(err, store.ErrNotFound):
			if p, err := parseLeaseKey(op.Key); err == nil {
				s.table.mu.Lock()
				s.table.remove(p.network, p.addr)
				s.table.mu.Unlock()
			}
		}
	}
}
