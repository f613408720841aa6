package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

// The groups that clients and relays send to (RFC 8415 §7.1).
var (
	allAgents  = netip.MustParseAddr("ff02::1:2")
	allServers = netip.MustParseAddr("ff05::1:3")
)

// conn6 is what one interface needs for DHCPv6. Clients are heard on a packet
// socket: it alone tells their hardware address, which is what they are known by.
type conn6 struct {
	iface   Interface
	clients *packet.Conn
	udp     *net.UDPConn // hears relays, and sends all replies
	group   int          // a socket without a port, for the membership alone
}

func listen6(f Interface) (_ *conn6, err error) {
	c := &conn6{iface: f, group: -1}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) {
			s := int(fd)
			err = errors.Join(
				unix.SetsockoptString(s, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, f.Name),
				unix.SetsockoptInt(s, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1),
				// What was joined elsewhere is not for this socket.
				unix.SetsockoptInt(s, unix.SOL_IPV6, unix.IPV6_MULTICAST_ALL, 0),
				join6(s, allServers, f.Index),
			)
			enlarge(s)
			enlargeSend(s)
		})
		return errors.Join(cerr, err)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp6", fmt.Sprintf("[::]:%d", serverPort6))
	if err != nil {
		return nil, listenError(f.Name, serverPort6, err)
	}
	c.udp = pc.(*net.UDPConn)
	if c.group, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open socket on %s: %w", f.Name, err)
	}
	if err := join6(c.group, allAgents, f.Index); err != nil {
		return nil, fmt.Errorf("join %s on %s: %w", allAgents, f.Name, err)
	}
	if c.clients, err = listenFrames(f, unix.ETH_P_IPV6, agentsFilter); err != nil {
		return nil, err
	}
	if rc, err := c.clients.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { enlarge(int(fd)) })
	}
	return c, nil
}

// agentsFilter passes UDP to port 547 of allAgents on a datagram packet socket,
// where the packet begins with the IP header. Clients send neither fragments nor
// extension headers.
var agentsFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 7},
	bpf.LoadAbsolute{Off: 24, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0xff020000, SkipTrue: 5},
	bpf.LoadAbsolute{Off: 36, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x00010002, SkipTrue: 3},
	bpf.LoadAbsolute{Off: 42, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort6, SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

func join6(fd int, group netip.Addr, index int) error {
	return unix.SetsockoptIPv6Mreq(fd, unix.SOL_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(index)})
}

func (c *conn6) close() {
	if c.udp != nil {
		_ = c.udp.Close()
	}
	if c.clients != nil {
		_ = c.clients.Close()
	}
	if c.group >= 0 {
		_ = unix.Close(c.group)
	}
}

// readClient returns what one client on the link sent to every server. Nothing but
// the header's length is checked of a packet cut short: its message is malformed.
func (c *conn6) readClient(buf []byte) (raw []byte, from netip.Addr, hw inventory.MAC, err error) {
	n, addr, err := c.clients.ReadFrom(buf)
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADF) {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, from, "", err
	}
	if a, ok := addr.(*packet.Addr); ok {
		hw = stationAddr(a.HardwareAddr)
	}
	raw, from = unframe6(buf[:n])
	return raw, from, hw, nil
}

// unframe6 is the payload of an IPv6 UDP packet and its sender; nil for anything else.
func unframe6(b []byte) (payload []byte, from netip.Addr) {
	const ipLen, udpLen = 40, 8
	if len(b) < ipLen+udpLen || b[0]>>4 != 6 || b[6] != unix.IPPROTO_UDP {
		return nil, from
	}
	from = netip.AddrFrom16([16]byte(b[8:24]))
	udp := b[ipLen:]
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < udpLen || n > len(udp) {
		return nil, from
	}
	return udp[udpLen:n], from
}

// readRelay returns what came by the UDP socket, and the address of ours it was
// sent to.
func (c *conn6) readRelay(buf, oob []byte) (raw []byte, from netip.AddrPort, dst netip.Addr, err error) {
	n, m, flags, src, err := c.udp.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		return nil, from, dst, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		n = 0 // larger than any DHCP packet
	}
	return buf[:n], netip.AddrPortFrom(src.Addr().WithZone(""), src.Port()), destination(oob[:m]), nil
}

// send sends a reply; one to a relay comes from the address that it asked.
func (c *conn6) send(payload []byte, from netip.Addr, to dest) error {
	addr := &unix.SockaddrInet6{Port: int(to.to.Port()), Addr: to.to.Addr().As16()}
	var oob []byte
	if to.to.Addr().IsLinkLocalUnicast() {
		addr.ZoneId = uint32(c.iface.Index)
	} else {
		oob = sourceAddr6(from)
	}
	if err := sendNow(c.udp, payload, oob, addr); err != nil {
		return fmt.Errorf("send reply to %s on %s: %w", to.to, c.iface.Name, err)
	}
	return nil
}

// sourceAddr6 is sourceAddr for IPv6.
func sourceAddr6(from netip.Addr) []byte {
	if !from.Is6() {
		return nil
	}
	b := make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	a := from.As16()
	copy(b[unix.CmsgLen(0):], a[:])
	return b
}
