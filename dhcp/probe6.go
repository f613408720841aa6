package dhcp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

// Of neighbour discovery (RFC 4861 §4.1, §4.2).
const (
	typeSolicitation  = 133
	typeAdvertisement = 134
	flagManaged       = 0x80
)

var allRouters = netip.MustParseAddr("ff02::2")

// probe6 sends one SOLICIT and one router solicitation out of an interface, twice.
// It calls found for each address that another server advertises to it, and
// managed for each router that sends hosts to DHCPv6, until the context ends. It
// sees what this machine itself sends, too: a router may run beside us.
func probe6(ctx context.Context, f Interface, duid []byte, found func(foreign), managed func()) error {
	if len(f.MAC) != 6 {
		<-ctx.Done() // loopback, tunnel: nobody else is there
		return nil
	}
	us, err := linkLocal(f)
	if err != nil {
		return err
	}
	pc, err := listenFrames(f, unix.ETH_P_ALL, answersFilter)
	if err != nil {
		return err
	}
	defer pc.Close()
	// What is sent by a socket says the protocol that this listens for.
	asks, err := listenFrames(f, unix.ETH_P_IPV6, []bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		return err
	}
	defer asks.Close()
	stop := context.AfterFunc(ctx, func() { _ = pc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var xid [3]byte
	if _, err := rand.Read(xid[:]); err != nil {
		return fmt.Errorf("make transaction id: %w", err)
	}
	out, err := net.ListenPacket("ip6:ipv6-icmp", us.WithZone(f.Name).String()) // the right to send as we like, and nothing to hear
	if err != nil {
		return fmt.Errorf("open ICMPv6 socket on %s: %w", f.Name, err)
	}
	defer out.Close()
	if err := muteICMP(out); err != nil {
		return fmt.Errorf("open ICMPv6 socket on %s: %w", f.Name, err)
	}
	ask := func() error {
		if _, err := asks.WriteTo(frame6(us, allAgents, clientPort6, serverPort6, solicitation6(xid, f.MAC)), groupHardware(allAgents)); err != nil {
			return fmt.Errorf("send SOLICIT on %s: %w", f.Name, err)
		}
		if _, err := out.WriteTo([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}, &net.IPAddr{IP: allRouters.AsSlice(), Zone: f.Name}); err != nil {
			return fmt.Errorf("send router solicitation on %s: %w", f.Name, err)
		}
		return nil
	}
	if err := ask(); err != nil {
		return err
	}
	again := time.AfterFunc(probeQuiet/2, func() { _ = ask() })
	defer again.Stop()

	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("wait for advertisements on %s: %w", f.Name, err)
		}
		if isManaged(buf[:n]) {
			managed()
		}
		if o, ok := foreignAdvertise(buf[:n], xid, duid); ok {
			if a, ok := from.(*packet.Addr); ok {
				o.mac = a.HardwareAddr
			}
			found(o)
		}
	}
}

// answersFilter passes UDP to port 546 and router advertisements on a datagram
// packet socket of all protocols.
var answersFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtProto},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 8},
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 5},
	bpf.LoadAbsolute{Off: 42, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: clientPort6, SkipTrue: 3},
	bpf.RetConstant{Val: 0xffff},
	bpf.LoadAbsolute{Off: 40, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeAdvertisement, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 0xffff},
}

// linkLocal is the interface's address for its link.
func linkLocal(f Interface) (netip.Addr, error) {
	addrs, err := (&net.Interface{Index: f.Index}).Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of %s: %w", f.Name, err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no IPv6 link-local address", f.Name)
}

// muteICMP makes a raw socket send as neighbour discovery must (hop limit 255), and
// keep nothing that comes in.
func muteICMP(c net.PacketConn) error {
	rc, err := c.(*net.IPConn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = rc.Control(func(fd uintptr) {
		none := unix.ICMPv6Filter{}
		for i := range none.Data {
			none.Data[i] = ^uint32(0)
		}
		failed = errors.Join(
			unix.SetsockoptICMPv6Filter(int(fd), unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &none),
			unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		)
	})
	return errors.Join(err, failed)
}

// groupHardware is where a group's packets go on Ethernet (RFC 2464 §7).
func groupHardware(a netip.Addr) *packet.Addr {
	b := a.As16()
	return &packet.Addr{HardwareAddr: append(net.HardwareAddr{0x33, 0x33}, b[12:]...)}
}

// solicitation6 is our own question.
func solicitation6(xid [3]byte, mac net.HardwareAddr) []byte {
	b := []byte{byte(dhcpv6.MessageTypeSolicit), xid[0], xid[1], xid[2]}
	ll := []byte{0, byte(dhcpv6.DUID_LL), 0, byte(iana.HWTypeEthernet)}
	b = appendOption6(b, dhcpv6.OptionClientID, ll, mac)
	b = appendOption6(b, dhcpv6.OptionElapsedTime, []byte{0, 0})
	return appendOption6(b, dhcpv6.OptionIANA, make([]byte, 12))
}

// foreignAdvertise reads another server's answer to our own question that has an
// address in it.
func foreignAdvertise(b []byte, xid [3]byte, duid []byte) (foreign, bool) {
	raw, from := unframe6(b)
	if len(raw) < 4 || dhcpv6.MessageType(raw[0]) != dhcpv6.MessageTypeAdvertise || [3]byte(raw[1:4]) != xid {
		return foreign{}, false
	}
	f := foreign{server: from}
	var id []byte
	err := walk6(raw[4:], func(code dhcpv6.OptionCode, v []byte) error {
		switch code {
		case dhcpv6.OptionServerID:
			id = v
		case dhcpv6.OptionIANA:
			a, err := decodeIA(code, v)
			if err == nil && len(a.addrs) > 0 {
				f.offer = a.addrs[0]
			}
		}
		return nil
	})
	// Servers that share a store are not strangers to each other.
	return f, err == nil && f.offer.IsValid() && !bytes.Equal(id, duid)
}

// isManaged reports a router advertisement that sends hosts to DHCPv6.
func isManaged(b []byte) bool {
	return len(b) >= 56 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_ICMPV6 && b[7] == 255 && b[40] == typeAdvertisement && b[45]&flagManaged != 0
}

// frame6 wraps a payload in IPv6 and UDP headers.
func frame6(src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	const ipLen, udpLen = 40, 8
	b := make([]byte, ipLen+udpLen+len(payload))
	ip, udp := b[:ipLen], b[ipLen:]
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	ip[6], ip[7] = unix.IPPROTO_UDP, 1
	s, d := src.As16(), dst.As16()
	copy(ip[8:], s[:])
	copy(ip[24:], d[:])
	binary.BigEndian.PutUint16(udp[0:], from)
	binary.BigEndian.PutUint16(udp[2:], to)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpLen:], payload)
	check := ^fold(sum(sum(uint32(unix.IPPROTO_UDP)+uint32(len(udp)), ip[8:]), udp))
	if check == 0 { // not allowed in IPv6 (RFC 8200 §8.1)
		check = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return b
}

func routerKey(n *inventory.Network) string { return "router/" + n.Name }

// noteRouters says what the lack of a router's word means, and returns the word.
func (s *Server) noteRouters(n *inventory.Network, iface string, managed bool) bool {
	if managed {
		s.findings.clear(routerKey(n))
		return true
	}
	text := fmt.Sprintf("network %q: no router on %s tells machines to ask DHCPv6 for an address: set the flag M (managed) in its advertisements (radvd: AdvManagedFlag on)", n.Name, iface)
	if s.findings.set(routerKey(n), text, time.Time{}) {
		s.log().Warn(text)
	}
	return false
}
