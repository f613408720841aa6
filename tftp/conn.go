package tftp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds the requests of a few thousand machines that are switched
// on at once while the server is stalled; the system's default holds 160.
const receiveBuffer = 4 << 20

// counters counts what was dropped, by reason.
type counters struct {
	mu sync.Mutex
	n  map[refusal]int64
}

func (c *counters) add(err error) {
	var why refusal
	if !errors.As(err, &why) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[refusal]int64{}
	}
	c.n[why]++
}

func (c *counters) snapshot() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]int64, len(c.n))
	for k, v := range c.n {
		out[string(k)] = v
	}
	return out
}

// listen opens the socket of an address such as "10.20.0.1:69"; one without a host
// (":69") hears IPv4 and IPv6.
func listen(addr string) (*net.UDPConn, error) {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("open TFTP socket: %w", err)
	}
	c := pc.(*net.UDPConn)
	if err := prepare(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// prepare asks for the receive buffer (without the privilege the kernel grants
// what net.core.rmem_max allows) and for the address that each request was sent
// to.
func prepare(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("prepare TFTP socket: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
		failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1) // on a socket of both families, too
		if family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && family == unix.AF_INET6 {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1))
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("prepare TFTP socket: %w", err)
	}
	return nil
}

// destination is the address of ours that a packet was sent to; invalid for a
// broadcast, which nobody answers (RFC 1123 section 4.2.3.5).
func destination(oob []byte) netip.Addr {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range msgs {
		// struct in_pktinfo: interface, our address for it, the header's address.
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo &&
			[4]byte(m.Data[4:8]) == [4]byte(m.Data[8:12]) {
			return netip.AddrFrom4([4]byte(m.Data[8:12]))
		}
		// struct in6_pktinfo: the header's address, interface.
		if m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo {
			if a := netip.AddrFrom16([16]byte(m.Data)); !a.Is4In6() && !a.IsMulticast() {
				return a
			}
		}
	}
	return netip.Addr{}
}

// room is how large a block may be on the way from an address of ours to a
// client without being cut into fragments, which firmware may not put together.
func room(from netip.Addr, to netip.AddrPort) int {
	headers, level, option := 20+8+4, unix.SOL_IP, unix.IP_MTU // IPv4, UDP, TFTP
	if from.Is6() {
		headers, level, option = 40+8+4, unix.SOL_IPV6, unix.IPV6_MTU
	}
	mtu := 1500
	// What the kernel knows of a path it tells of a connected socket.
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
	if err == nil {
		defer c.Close()
		if raw, err := c.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if n, err := unix.GetsockoptInt(int(fd), level, option); err == nil {
					mtu = min(mtu, n)
				}
			})
		}
	}
	return max(mtu-headers, plainBlock)
}
