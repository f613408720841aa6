package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// batch packets are read at once, and a few answered before what came meanwhile
	// is read: so the choice of whom to leave out is ours and not that of the
	// kernel, whose buffer drops the newest, REQUESTs too.
	batch, few = 64, 16
	// maxPacket is more than any DHCP packet.
	maxPacket = 4096
)

// serve is the loop of one socket. It ends when the socket is closed.
func (s *Server) serve(ctx context.Context, l *link, udp *net.UDPConn, port uint16) {
	in := ipv4.NewPacketConn(udp)
	packets := make([]ipv4.Message, batch)
	for i := range packets {
		packets[i].Buffers, packets[i].OOB = [][]byte{make([]byte, maxPacket)}, make([]byte, 128)
	}
	flags := 0
	for {
		n, err := in.ReadBatch(packets, flags)
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed):
			s.drain(ctx, laneSize*lanes) // who pushes also pops
			return
		case errors.Is(err, unix.EAGAIN):
			n = 0
		default:
			n = 0
			// ENETDOWN and the like come and go with the interface.
			s.log().Debug("read", "interface", l.conn.iface.Name, "err", err)
			s.counters.count(&s.counters.s.Malformed, "read error")
		}
		for _, p := range packets[:n] {
			raw := p.Buffers[0][:p.N]
			if p.Flags&unix.MSG_TRUNC != 0 {
				raw = nil
			}
			var asker, src netip.AddrPort
			if from, ok := p.Addr.(*net.UDPAddr); ok {
				src = from.AddrPort()
			}
			if port == bootPort {
				asker = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
			}
			s.accept(l, raw, destination(p.OOB[:p.NN]), asker, src.Port())
		}
		if flags = 0; s.drain(ctx, few) {
			flags = unix.MSG_DONTWAIT
		}
	}
}
