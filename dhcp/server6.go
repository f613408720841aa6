package dhcp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"recast/inventory"
)

// serverDUID is who we are to DHCPv6's clients (a DUID-UUID, RFC 6355): servers of
// one store are one, and a store that was restored is another, whose clients
// rebind.
func serverDUID(epoch string) []byte {
	h := sha256.Sum256([]byte("recast dhcpv6 " + epoch))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8: made as its maker likes (RFC 9562)
	return append(binary.BigEndian.AppendUint16(nil, uint16(dhcpv6.DUID_UUID)), h[:16]...)
}

// arrange6 makes the sockets of DHCPv6 fit, as arrange does for DHCPv4. s.mu is held.
func (s *Server) arrange6(listeners []listener, ours *[]netip.Addr) (errs []error) {
	want := map[string]listener{}
	for _, l := range listeners {
		want[l.iface.Name] = l
	}
	for _, name := range slices.Sorted(maps.Keys(s.links6)) {
		if w, ok := want[name]; !ok || w.iface.Index != s.links6[name].state.Load().iface.Index {
			s.links6[name].stop()
			delete(s.links6, name)
			s.log().Info("stop listening", "interface", name, "port", serverPort6)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, key := want[name], fmt.Sprintf("listen/%s/%d", name, serverPort6)
		l := s.links6[name]
		if l == nil {
			c, err := s.listen6(w.iface)
			if err != nil {
				s.findings.set(key, err.Error(), time.Time{})
				if len(w.sites) > 0 {
					errs = append(errs, err)
				}
				continue
			}
			s.findings.clear(key)
			l = &link{conn6: c, wire: c, cancel: map[string]context.CancelFunc{}}
			l.state.Store(&linkState{})
			s.links6[name] = l
			s.log().Info("listen", "interface", name, "port", serverPort6)
			s.assign(l, w)
			ctx := s.run
			l.reader.Go(func() { s.readClients6(ctx, l) })
			l.reader.Go(func() { s.readRelays6(ctx, l) })
		} else {
			s.assign(l, w)
		}
		for _, p := range w.iface.Addrs6 {
			*ours = append(*ours, p.Addr())
		}
	}
	return errs
}

// readClients6 is the loop of what clients on the link send to every server. It
// ends when the socket is closed.
func (s *Server) readClients6(ctx context.Context, l *link) {
	buf := make([]byte, 4096)
	for {
		raw, from, hw, err := l.conn6.readClient(buf)
		switch {
		case err == nil:
			s.receive6(ctx, l, raw, netip.AddrPortFrom(from, clientPort6), netip.Addr{}, hw)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			s.readError6(l, err)
		}
	}
}

// readRelays6 is the loop of what relays send.
func (s *Server) readRelays6(ctx context.Context, l *link) {
	buf, oob := make([]byte, 4096), make([]byte, 128)
	for {
		raw, from, dst, err := l.conn6.readRelay(buf, oob)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.readError6(l, err)
		case len(raw) > 0 && dhcpv6.MessageType(raw[0]) != dhcpv6.MessageTypeRelayForward:
			s.malformed(l, badUnicast)
		default:
			s.receive6(ctx, l, raw, from, dst, "")
		}
	}
}

func (s *Server) readError6(l *link, err error) {
	// ENETDOWN and the like come and go with the interface.
	s.log().Debug("read", "interface", l.conn6.iface.Name, "port", serverPort6, "err", err)
	s.counters.count(&s.counters.s.Malformed, "read error")
}

// receive6 decodes one message and answers what waits. The bytes are the caller's
// again afterwards.
func (s *Server) receive6(ctx context.Context, l *link, raw []byte, from netip.AddrPort, dst netip.Addr, hw inventory.MAC) {
	defer s.guardPanic("decode", arrival{})
	s.counters.received()
	r, err := decode6(raw, from.Addr(), hw)
	if err != nil {
		s.malformed(l, err)
		return
	}
	r.six.port = from.Port()
	cfg := s.cfg.Load()
	r.identify(cfg)
	_, known := cfg.byMAC[r.mac]
	who := r.mac
	if who == "" { // told apart by its identifier, which is no hardware address in writing
		who = inventory.MAC("duid " + string(r.six.clientID))
	}
	s.enqueue(arrival{req: r, link: l, dst: dst, at: s.now(),
		flight: flight{xid: r.TransactionID, mac: who, kind: r.kind}}, known)
	s.drain(ctx, laneSize*lanes)
}

// noteClient keeps who bound an address, in memory: after a restart everybody may
// give it back.
func (s *Server) noteClient(r *request, l *inventory.Lease) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if rec := s.table.byAddr[place{l.Network, l.Addr}]; rec != nil {
		rec.client = r.client6(r.six.ias[0])
	}
}
