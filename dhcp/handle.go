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
	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// badEvery is the least time between two reports of bad packets.
const badEvery = 10 * time.Second

// guardPanic turns a panic into a counter and a log line: one packet must not
// stop the room.
func (s *Server) guardPanic(where string, p arrival) {
	if r := recover(); r != nil {
		s.queue.done(p.flight)
		s.counters.mu.Lock()
		s.counters.s.Panics++
		s.counters.mu.Unlock()
		s.log().Error("panic while handling a packet", "where", where, "panic", r, "stack", string(debug.Stack()))
	}
}

// receive takes one datagram in and answers what waits. The bytes are the
// caller's again afterwards.
func (s *Server) receive(ctx context.Context, l *link, raw []byte, dst netip.Addr) {
	s.accept(l, raw, dst, netip.AddrPort{}, 0)
	s.drain(ctx, laneSize*lanes)
}

// accept queues one datagram of either port; asker is set for the boot server's,
// and of the other's senders the port alone counts.
func (s *Server) accept(l *link, raw []byte, dst netip.Addr, asker netip.AddrPort, from uint16) {
	defer s.guardPanic("queue", arrival{})
	s.counters.received()
	kind, err := peek(raw)
	if err != nil {
		s.malformed(l, err)
		return
	}
	r := s.requests.Get().(*request)
	r.raw = append(r.raw[:0], raw...)
	q := &r.question
	q.cfg, q.looked = s.cfg.Load(), true
	r.mac, q.declared = q.cfg.macOf([6]byte(raw[28:34]))
	r.kind = kind
	s.enqueue(arrival{req: r, link: l, dst: dst, asker: asker, from: from, at: s.now(),
		flight: flight{dhcpv4.TransactionID(raw[4:8]), r.mac, kind, asker.IsValid()}}, q.declared != nil)
}

// malformed counts a packet that is not even looked at.
func (s *Server) malformed(l *link, err error) {
	var bad badPacket
	errors.As(err, &bad)
	s.counters.count(&s.counters.s.Malformed, string(bad))
	// Replies of other servers are no news: relays and proxies pass here.
	if bad != badOp {
		s.sawBad(l, bad)
	}
}

// enqueue queues a packet of somebody who is declared, or not.
func (s *Server) enqueue(p arrival, known bool) {
	if !known {
		_, known = s.ports.of(p.flight.mac)
	}
	lane := laneStranger
	switch asks := p.flight.kind != dhcpv4.MessageTypeDiscover && p.flight.kind != 0; {
	case known && asks:
		lane = laneRequest
	case known:
		lane = laneDiscover
	case asks:
		lane = laneStrangerRequest
	}
	if why, dropped := s.queue.push(p, lane); why != "" {
		s.counters.count(&s.counters.s.Silent, why)
		s.free(dropped)
	}
}

// free gives a request's memory back.
func (s *Server) free(r *request) {
	if !r.again {
		return
	}
	*r = request{again: true, raw: r.raw[:0], out: r.out[:0],
		four: packet4{Options: r.four.Options.emptied()}, reply: packet4{Options: r.reply.Options.emptied()}}
	s.requests.Put(r)
}

func (s *Server) sawBad(l *link, bad badPacket) {
	now := s.now().UnixNano()
	last := s.badSeen.Load()
	if now-last < int64(badEvery) || !s.badSeen.CompareAndSwap(last, now) {
		return
	}
	s.observe(inventory.Observation{Kind: inventory.SawBadPacket, Detail: string(bad), Error: fmt.Sprintf("malformed DHCP packet on %s: %s", l.state.Load().iface.Name, bad)})
}

// drain answers up to n of the packets that wait, the most valuable first, and
// reports whether more may wait.
func (s *Server) drain(ctx context.Context, n int) (more bool) {
	for range n {
		p, ok := s.queue.pop()
		if !ok {
			return false
		}
		s.handle(ctx, p)
	}
	return true
}

// done ends the work on a packet.
func (s *Server) done(p arrival) {
	s.queue.done(p.flight)
	s.free(p.req)
}

// handle answers one packet, or counts why not. What has to wait for the store is
// left to a worker.
func (s *Server) handle(ctx context.Context, p arrival) {
	defer s.guardPanic("handle", p)
	r := p.req
	if r.six == nil {
		if err := r.read(); err != nil {
			s.malformed(p.link, err)
			s.done(p)
			return
		}
	}
	q := &r.question
	why := s.question(p, q)
	if why == "" && p.flight.kind == dhcpv4.MessageTypeDiscover && q.now.Sub(p.at) > stale {
		why = "stale"
	}
	if why != "" {
		s.refuse(p, why)
		return
	}
	switch why, learn := s.locate(q); {
	case why != "":
		s.refuse(p, why)
	case learn == nil:
		s.answer(ctx, p)
	default:
		s.learnLater(p, learn)
	}
}

// learnLater answers when it is stored who is asking.
func (s *Server) learnLater(p arrival, learn func(context.Context) string) {
	if !s.later(func(ctx context.Context) {
		defer s.guardPanic("learn", p)
		if why := learn(ctx); why != "" {
			s.refuse(p, why)
			return
		}
		s.answer(ctx, p)
	}) {
		s.refuse(p, "store")
	}
}

// refuse ends the work on a packet that gets no answer.
func (s *Server) refuse(p arrival, why string) {
	s.silent(p.req, p.req.question.network, why)
	s.done(p)
}

// answer decides, now that it is known who asks where.
func (s *Server) answer(ctx context.Context, p arrival) {
	r := p.req
	q := &r.question
	s.sawAsked(q)
	if id := r.serverID; q.onLink && r.kind == dhcpv4.MessageTypeRequest && id.IsValid() && !q.isOurs(id) {
		p.link.doubt(q.network.Name)
	}
	if why := s.boot(ctx, q); why != "" {
		s.refuse(p, why)
		return
	}
	o, ops, must := s.decide(q)
	if len(ops) == 0 {
		s.finish(ctx, p, o, nil)
		return
	}
	s.settleLater(ctx, p, o, ops, must)
}

// settleLater answers when the decision is stored.
func (s *Server) settleLater(ctx context.Context, p arrival, o outcome, ops []store.Op, must bool) {
	q := &p.req.question
	if !s.later(func(ctx context.Context) {
		defer s.guardPanic("settle", p)
		o, err := s.settle(ctx, q, o, ops, must)
		s.finish(ctx, p, o, err)
	}) {
		s.finish(ctx, p, o, s.settled(q, &o, must, 0, errBusy))
	}
}

// finish sends the answer; err says that it must not be sent.
func (s *Server) finish(ctx context.Context, p arrival, o outcome, err error) {
	defer s.done(p)
	r := p.req
	q := &r.question
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
	s.sawAnswered(q, o, p.at)
	switch err := p.link.wire.send(o.bytes(r), q.server, o.dest); {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS): // a full buffer passes by itself
		s.counters.count(&s.counters.s.Silent, "no room to send")
		return
	case err != nil:
		s.cannotSend(p.link, o.dest.to.Addr(), err)
		return
	}
	s.sent(p.link, o.dest.to.Addr())
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
	if s.debug(context.Background()) {
		s.log().Debug("silent", "type", r.kind, "network", name, "mac", r.mac, "reason", why)
	}
}

// relayTold is how long a finding about a relay of no Network stands.
const relayTold = time.Hour

// question gathers what the answer depends on; the result is why there is none.
func (s *Server) question(p arrival, q *question) string {
	r := p.req
	was := *q
	*q = question{req: r, asker: p.asker, from: p.from, cfg: s.cfg.Load(), ours: *s.ourAddrs.Load(), duid: s.duid, now: s.now()}
	if was.cfg == q.cfg { // else the declarations are new
		q.declared, q.looked = was.declared, was.looked
	}
	for _, a := range q.ours {
		q.unicast = q.unicast || a == p.dst
	}
	if s.isPeer(r.Options.Get(dhcpv4.OptionClassIdentifier)) {
		return "probe of a peer"
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
		if r.giaddr.IsValid() {
			s.strangeRelay(q)
		}
		if r.giaddr.IsValid() && r.link.IsValid() && r.six == nil {
			return silenceSelected
		}
		if r.subnet.IsValid() {
			return silenceSubnet
		}
		return "no Network here"
	}
	r.client.Network = q.network.Name
	if q.unicast {
		q.server = p.dst
	}
	for _, d := range at.duties {
		serves := q.onLink && d.site.network.Name == q.network.Name
		// Whatever subnet a client selects, its own link may be another server's.
		if !serves && (!r.subnet.IsValid() || r.giaddr.IsValid()) {
			continue
		}
		switch d.state.Load() {
		case dutyProbing:
			return "looking for other servers"
		case dutySilent:
			return "another DHCP server"
		}
		if serves {
			q.server = d.site.server
		}
	}
	if addrs := at.iface.of(q.network); !q.server.IsValid() && len(addrs) > 0 {
		q.server = addrs[0].Addr()
	}
	if !q.server.IsValid() {
		return "no address of our own"
	}
	return ""
}

// strangeRelay tells of a relay whose machines nobody here answers: a rack whose subnet is
// declared wrong, or not yet, is otherwise silent. One in an hour, since anybody on a link
// can send such packets.
func (s *Server) strangeRelay(q *question) {
	r := q.req
	text := fmt.Sprintf("relay %s passes on requests, and lies in no Network with dhcp: authoritative or proxy", r.giaddr)
	if r.link.IsValid() {
		text = fmt.Sprintf("relay %s passes on requests for the link of %s, which lies in no Network with dhcp: authoritative or proxy", r.giaddr, r.link)
	}
	text += "; declare that Network and apply, or take this server out of the relay's list (ip helper-address)"
	if s.findings.add("relay", text, q.now, q.now.Add(relayTold)) {
		s.log().Warn(text)
	}
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
		if a := spec.Syslog; c.Loader == ipxe.LoaderIPXE && a.Port() == ipxe.SyslogPort && a.Addr().Is4() {
			q.boot.log = a.Addr()
		}
	}
	return ""
}
