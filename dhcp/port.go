package dhcp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// cableTold is how long a finding about a switch port stands without being seen
// again: only booting machines show their port.
const cableTold = time.Hour

// portsCollected is how often records of ports are looked through.
const portsCollected = time.Hour

// circuit finds the few declared ports a packet may have come from.
type circuit struct{ network, id string }

// plug is a declared interface with its switch port.
type plug struct {
	declared
	port inventory.Port
	mac  inventory.MAC // "" where the port names the machine
}

// plugAt is what is declared at the port a packet came from. The set refuses two
// that one packet could match.
func (c *config) plugAt(network string, seen inventory.Port) (plug, bool) {
	for _, p := range c.plugs[circuit{network, seen.Circuit}] {
		if p.port.Matches(seen) {
			return p, true
		}
	}
	return plug{}, false
}

// plugOf is the declared port a record was made for.
func (c *config) plugOf(r inventory.PortRecord) (plug, bool) {
	for _, p := range c.plugs[circuit{r.Network, r.Port.Circuit}] {
		if p.port == r.Port && p.mac == "" {
			return p, true
		}
	}
	return plug{}, false
}

// portRecords know how a learned port stands in the store.
var portRecords = store.NewTable[inventory.PortRecord](nil, inventory.PortPrefix)

func portName(network string, p inventory.Port) string { return network + "/" + p.Key() }

// socket is a declared port of a Network.
type socket struct {
	network string
	port    inventory.Port
}

type learnedPort struct {
	inventory.PortRecord
	rev  int64
	seen int // the watch's round
}

// ports is the in-memory index of who was found behind declared ports.
type ports struct {
	mu     sync.RWMutex
	at     map[socket]learnedPort
	byMAC  map[inventory.MAC]socket
	byKey  map[string]socket
	round  int
	loaded bool
}

func newPorts() *ports {
	return &ports{at: map[socket]learnedPort{}, byMAC: map[inventory.MAC]socket{}, byKey: map[string]socket{}}
}

// of is the record of a hardware address.
func (p *ports) of(mac inventory.MAC) (learnedPort, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	s, ok := p.byMAC[mac]
	return p.at[s], ok
}

func (p *ports) get(s socket) (learnedPort, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	r, ok := p.at[s]
	return r, ok
}

func (p *ports) ready() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.loaded
}

// put installs a record, unless a newer one is there. mu is held.
func (p *ports) put(r inventory.PortRecord, rev int64) {
	s := socket{r.Network, r.Port}
	if old, ok := p.at[s]; ok {
		if old.rev > rev {
			return
		}
		if p.byMAC[old.MAC] == s {
			delete(p.byMAC, old.MAC)
		}
	}
	p.at[s] = learnedPort{r, rev, p.round}
	p.byMAC[r.MAC] = s
	p.byKey[portRecords.Key(portName(r.Network, r.Port))] = s
}

func (p *ports) remove(s socket) {
	r, ok := p.at[s]
	if !ok {
		return
	}
	delete(p.at, s)
	delete(p.byKey, portRecords.Key(portName(s.network, s.port)))
	if p.byMAC[r.MAC] == s {
		delete(p.byMAC, r.MAC)
	}
}

func (p *ports) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
}

// apply takes over one event of the watch, our own commits included.
func (p *ports) apply(e store.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Synced {
		for s, r := range p.at {
			if r.seen != p.round && r.rev <= e.Revision {
				p.remove(s)
			}
		}
		p.loaded = true
		return nil
	}
	if e.Deleted {
		if s, ok := p.byKey[e.Key]; ok && p.at[s].rev < e.Revision {
			p.remove(s)
		}
		return nil
	}
	r, err := portRecords.Decode(e.Record)
	if err != nil {
		return fmt.Errorf("read learned port: %w", err)
	}
	p.put(r, e.Revision)
	if s := (socket{r.Network, r.Port}); p.at[s].rev == e.Revision {
		l := p.at[s]
		l.seen = p.round
		p.at[s] = l
	}
	return nil
}

// locate finds out who an undeclared hardware address is by the switch port its
// packet came through. The first one that asks to boot there is the machine that
// is declared at the port; the record is durable before it gets an answer. From
// then on the address names the machine by itself: renewals go past the relay.
// The result is why there is no answer, or what to do first, which takes a write.
//
// A port gives its machine to one address only. Another one that asks there is
// a stranger, until the first has been without a lease: then it has been
// replaced. What does not boot from the network (the BMC that shares the port)
// takes no port.
func (s *Server) locate(q *question) (why string, learn func(context.Context) string) {
	r, n := q.req, q.network
	if r.mac == "" {
		return "", nil // of DHCPv6 alone, where no relay tells it
	}
	at, there := q.cfg.plugAt(n.Name, r.port)
	if d := q.byMAC(); d != nil {
		s.checkCable(q, *d, at, there)
		return "", nil
	}
	if n.DHCP != inventory.DHCPAuthoritative {
		return "", nil
	}
	have, known := s.ports.of(r.mac)
	if known {
		p, ok := q.cfg.plugOf(have.PortRecord)
		// The link's other Network, of the other family, spells ports in its own way: who
		// was learned in one is known in both.
		family := n.Subnet.Addr().Is6()
		elsewhere := q.cfg.named(have.Network)
		other := elsewhere != nil && elsewhere.Subnet.Addr().Is6() != family
		if ok && (r.port.Circuit == "" || other || there && p.port == at.port && have.Network == n.Name) {
			q.port = p.declared
			return "", nil
		}
	}
	boots := r.client.Loader != ipxe.LoaderOS && (r.kind == dhcpv4.MessageTypeDiscover || r.kind == dhcpv4.MessageTypeRequest)
	if !there || !boots {
		return "", nil
	}
	if at.mac != "" {
		s.found(q, "port", fmt.Sprintf("network %q: %s asks to boot at %s, the port of %s, which is declared with %s; correct its mac, or the cabling",
			n.Name, r.mac, at.port, at.declared, at.mac))
		return "", nil
	}
	if !s.ports.ready() {
		return silenceUnloaded, nil
	}
	holder, held := s.ports.get(socket{n.Name, at.port})
	if held && s.present(q, holder.PortRecord) {
		s.found(q, "port", fmt.Sprintf("network %q: %s asks to boot at %s, where %s is %s already; declare the mac of each, or wait until the lease of the first has run out",
			n.Name, r.mac, at.port, holder.MAC, at.declared))
		return "", nil
	}
	return "", func(ctx context.Context) string { return s.learn(ctx, q, at, holder) }
}

// learn records the address behind a port.
func (s *Server) learn(ctx context.Context, q *question, at plug, holder learnedPort) string {
	rec := inventory.PortRecord{Network: q.network.Name, Port: at.port, MAC: q.req.mac, Since: q.now}
	op, err := portRecords.PutOp(portName(rec.Network, rec.Port), rec, holder.rev)
	if err != nil {
		panic(err) // strings and times only
	}
	ops := []store.Op{op}
	moved, elsewhere := s.ports.of(rec.MAC)
	if elsewhere {
		ops = append(ops, portRecords.DeleteOp(portName(moved.Network, moved.Port), moved.rev))
	}
	rev, err := s.commit(ctx, ops)
	switch {
	case errors.Is(err, store.ErrConflict):
		return "port taken meanwhile"
	case err != nil:
		return "store"
	}
	s.ports.mu.Lock()
	if elsewhere {
		s.ports.remove(socket{moved.Network, moved.Port})
	}
	s.ports.put(rec, rev)
	s.ports.mu.Unlock()
	s.log().Info("learn who is behind a port", "network", rec.Network, "port", rec.Port, "machine", at.machine, "mac", rec.MAC)
	q.port = at.declared
	return ""
}

// present reports whether the address behind a port may still be there.
func (s *Server) present(q *question, r inventory.PortRecord) bool {
	if q.now.Before(r.Since.Add(leaseTime(q.network))) {
		return true // it was found a moment ago, and is booting
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	l, ok := s.table.lease(q.network.Name, r.MAC)
	return ok && q.now.Before(l.Expires)
}

// collectPorts takes away, every hour, the records of ports that nobody declares any
// more.
func (s *Server) collectPorts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.after(portsCollected):
			s.dropPorts(ctx)
		}
	}
}

// dropPorts deletes the records of ports that no interface is named by, once their
// address is without a lease: until then the declaration may come back, and the
// machine, which renews past the relay, is the one it was.
func (s *Server) dropPorts(ctx context.Context) {
	cfg, now := s.cfg.Load(), s.now()
	s.ports.mu.RLock()
	var gone []learnedPort
	for _, r := range s.ports.at {
		if _, declared := cfg.plugOf(r.PortRecord); !declared {
			gone = append(gone, r)
		}
	}
	s.ports.mu.RUnlock()
	for _, r := range gone {
		s.table.mu.Lock()
		l, leased := s.table.lease(r.Network, r.MAC)
		leased = leased && now.Before(l.Expires)
		s.table.mu.Unlock()
		if leased {
			continue
		}
		rev, err := s.Store.Commit(ctx, portRecords.DeleteOp(portName(r.Network, r.Port), r.rev))
		if err != nil {
			s.log().Debug("delete the record of a port", "network", r.Network, "port", r.Port, "err", err)
			continue // in an hour again
		}
		s.log().Info("forget who was behind a port that is no longer declared", "network", r.Network, "port", r.Port, "mac", r.MAC)
		s.ports.mu.Lock()
		if at := (socket{r.Network, r.Port}); s.ports.at[at].rev < rev {
			s.ports.remove(at)
		}
		s.ports.mu.Unlock()
	}
}

// checkCable compares the port that a declared address asked from with the one
// that is declared.
func (s *Server) checkCable(q *question, d declared, at plug, there bool) {
	seen := q.req.port
	if seen.Circuit == "" || d.bmc {
		return
	}
	key := "cable/" + d.machine
	if there && at.machine != d.machine {
		s.found(q, key, fmt.Sprintf("network %q: %s asks at %s, the port of %s; correct the cabling, or their ports", q.network.Name, d, seen, at.declared))
		return
	}
	if p, ok := q.cfg.plugByMAC[q.req.mac]; ok && d.network == q.network.Name && !p.Matches(seen) {
		s.found(q, key, fmt.Sprintf("network %q: %s asks at %s, and is declared at %s; correct the cabling, or its port", q.network.Name, d, seen, p))
		return
	}
	s.findings.clear(key)
}

// found tells of a port what stands for an hour after it was last seen.
func (s *Server) found(q *question, key, text string) {
	if key == "port" {
		key += "/" + q.network.Name + "/" + string(q.req.mac)
	}
	if s.findings.set(key, text, q.now.Add(cableTold)) {
		s.log().Warn(text)
	}
}

func samePort(a, b *inventory.Port) bool {
	return a == b || a != nil && b != nil && *a == *b
}
