package dhcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

// sight is a hardware address that spoke from a pool address.
type sight struct {
	mac   inventory.MAC
	until time.Time
}

// heard notes who spoke from an address. Only addresses of a pool that nobody
// holds are of interest: whoever speaks from one has it from elsewhere, and it is
// not given to anybody else for as long as a declined one. A reservation is not
// touched: a bridge or bond on the machine itself speaks with another hardware
// address, and a real conflict is found by the client (DECLINE). The lock is held.
func (t *table) heard(n *inventory.Network, a netip.Addr, mac inventory.MAC, now time.Time) (news bool) {
	if n.Pool == nil || !n.Pool.Contains(a) {
		return false
	}
	if h, held := t.holder(n.Name, a, now); held && !h.offerOnly {
		return false
	}
	p := place{n.Name, a}
	old := t.seen[p]
	t.seen[p] = sight{mac, now.Add(quarantine)}
	return old.mac != mac || !now.Before(old.until)
}

// inUse reports whether somebody else than the client was heard on an address.
func (t *table) inUse(network string, a netip.Addr, mac inventory.MAC, now time.Time) bool {
	s, ok := t.seen[place{network, a}]
	return ok && s.mac != mac && now.Before(s.until)
}

// listenARP hears who uses which address on a Network's link until the context
// ends. Without the right to open a packet socket, and behind relays, clients find
// conflicts themselves.
func listenARP(ctx context.Context, f Interface, heard func(netip.Addr, net.HardwareAddr)) error {
	if len(f.MAC) != 6 {
		return nil // loopback, tunnel: there is no ARP
	}
	pc, err := listenFrames(f, unix.ETH_P_ARP, []bpf.Instruction{bpf.RetConstant{Val: 128}})
	if err != nil {
		return err
	}
	defer pc.Close()
	stop := context.AfterFunc(ctx, func() { _ = pc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 128)
	for {
		n, _, err := pc.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("hear ARP on %s: %w", f.Name, err)
		}
		if a, hw, ok := arpSender(buf[:n]); ok {
			heard(a, hw)
		}
	}
}

// arpSender is who says that it has an address, in a request or a reply. One that
// only asks whether an address is free (RFC 5227) has none yet.
func arpSender(b []byte) (netip.Addr, net.HardwareAddr, bool) {
	// Ethernet, IPv4, their lengths, request or reply.
	if len(b) < 28 || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP || b[4] != 6 || b[5] != 4 || b[6] != 0 || b[7] < 1 || b[7] > 2 {
		return netip.Addr{}, nil, false
	}
	a, hw := netip.AddrFrom4([4]byte(b[14:18])), net.HardwareAddr(append([]byte{}, b[8:14]...))
	return a, hw, !a.IsUnspecified() && hw[0]&1 == 0
}

// hear is the part of a duty that listens for ARP.
func (s *Server) hear(ctx context.Context, d *duty) {
	name := d.site.network.Name
	for ctx.Err() == nil {
		err := s.arp(ctx, *d.site.iface, func(a netip.Addr, hw net.HardwareAddr) {
			// As it is declared now: the pool may have changed since.
			n := s.cfg.Load().named(name)
			if n == nil || slices.Contains(*s.ourAddrs.Load(), a) {
				return
			}
			s.table.mu.Lock()
			news := s.table.heard(n, a, inventory.MACOf(hw), s.now())
			s.table.mu.Unlock()
			if news {
				s.log().Info("an address of the pool is in use", "network", n.Name, "address", a, "mac", inventory.MACOf(hw))
			}
		})
		if err == nil {
			return
		}
		s.log().Debug("listen for ARP", "network", name, "err", err)
		select {
		case <-ctx.Done():
		case <-s.after(rescan):
		}
	}
}
