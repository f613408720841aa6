package dhcp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds a boot storm while the process is stalled for a moment:
// the kernel's default of 208 KiB overflows after 160 packets.
const receiveBuffer = 4 << 20

// sendBuffer is that of answers to neighbours who are looked for; see enlargeSend.
const sendBuffer = 4 << 20

// wire sends a reply out of one interface.
type wire interface {
	send(payload []byte, from netip.Addr, to dest) error
}

// conn is the UDP socket of one interface, and the packet socket beside it.
type conn struct {
	udp   *net.UDPConn
	boot  *net.UDPConn // on the boot server port, nil where it is not served
	iface Interface

	mu  sync.RWMutex // raw is not closed while a worker sends on it
	raw int          // packet socket, -1 without the right to open one
}

// listen binds port 67 to one interface. SO_REUSEPORT is left out on purpose:
// with it a second DHCP server on this machine would share the port unnoticed.
func listen(f Interface) (*conn, error) {
	udp, err := bind(f, serverPort)
	if err != nil {
		return nil, err
	}
	c := &conn{udp: udp, iface: f}
	// Protocol 0: this socket only sends.
	if c.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		c.raw = -1
	}
	return c, nil
}

func bind(f Interface, port uint16) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) {
			s := int(fd)
			err = errors.Join(
				unix.SetsockoptString(s, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, f.Name),
				unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_PKTINFO, 1),
			)
			enlarge(s)
			enlargeSend(s)
		})
		return errors.Join(cerr, err)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, listenError(f.Name, port, err)
	}
	return pc.(*net.UDPConn), nil
}

// enlarge asks for the receive buffer: the forced form needs a capability, the
// plain one stops at net.core.rmem_max.
func enlarge(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
}

// enlargeSend does likewise for what is sent: the kernel keeps it for the three
// seconds in which it looks for a neighbour that does not answer, and its default
// is full with 170 of these.
func enlargeSend(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
}

// serveBoot opens the boot server port, or closes it.
func (c *conn) serveBoot(on bool) (opened *net.UDPConn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !on && c.boot != nil:
		_ = c.boot.Close()
		c.boot = nil
	case on && c.boot == nil:
		if c.boot, err = bind(c.iface, bootPort); err != nil {
			c.boot = nil
			return nil, err
		}
		return c.boot, nil
	}
	return nil, nil
}

func listenError(iface string, port uint16, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		owner := PortOwner(int(port), os.Getpid())
		if owner == "" {
			owner = fmt.Sprintf("another process (\"ss -ulnp sport = %d\" names it)", port)
		}
		return fmt.Errorf("listen on udp port %d of %s: it is held by %s: stop that DHCP server, or set dhcp: off for the network", port, iface, owner)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("listen on udp port %d of %s: %w: run as root, or with CAP_NET_BIND_SERVICE, CAP_NET_RAW and CAP_NET_ADMIN", port, iface, err)
	}
	return fmt.Errorf("listen on udp port %d of %s: %w", port, iface, err)
}

func (c *conn) close() {
	_ = c.udp.Close()
	_, _ = c.serveBoot(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw >= 0 {
		_ = unix.Close(c.raw)
		c.raw = -1
	}
}

// destination reads the header's address from the packet information.
func destination(oob []byte) netip.Addr {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		switch {
		case err != nil:
			return netip.Addr{}
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(data[8:12]))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(data[:16]))
		}
		oob = rest
	}
	return netip.Addr{}
}

// send sends a reply from our address. One that goes to a hardware address
// falls back to broadcast, which every client must take (RFC 2131 §4.1).
func (c *conn) send(payload []byte, from netip.Addr, to dest) error {
	if to.hw != nil {
		if c.sendRaw(frame(netip.AddrPortFrom(from, serverPort), to.to, payload), to.hw) == nil {
			return nil
		}
		to.to = broadcast
	}
	udp := c.udp
	if to.bootServer {
		c.mu.RLock()
		defer c.mu.RUnlock()
		if udp = c.boot; udp == nil {
			return fmt.Errorf("send reply to %s on %s: %w", to.to, c.iface.Name, net.ErrClosed)
		}
	}
	err := sendNow(udp, payload, sourceAddr(from), &unix.SockaddrInet4{Port: int(to.to.Port()), Addr: to.to.Addr().Unmap().As4()})
	if err != nil {
		return fmt.Errorf("send reply to %s on %s: %w", to.to, c.iface.Name, err)
	}
	return nil
}

// sendNow sends one datagram, or says at once that there is no room for it: who sends
// is who reads, and does not wait for neighbours that do not answer.
func sendNow(udp *net.UDPConn, payload, oob []byte, to unix.Sockaddr) error {
	rc, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = rc.Write(func(fd uintptr) bool {
		failed = unix.EINTR
		for failed == unix.EINTR {
			failed = unix.Sendmsg(int(fd), payload, oob, to, unix.MSG_DONTWAIT)
		}
		return true
	})
	return cmp.Or(err, failed)
}

func (c *conn) sendRaw(packet []byte, hw net.HardwareAddr) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.raw < 0 || len(hw) != 6 {
		return unix.EBADF
	}
	sll := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: c.iface.Index, Halen: 6}
	copy(sll.Addr[:], hw)
	return unix.Sendto(c.raw, packet, 0, sll)
}

// sourceAddr is a control message that makes the kernel send from one of
// several addresses of the interface.
func sourceAddr(from netip.Addr) []byte {
	if !from.Is4() {
		return nil
	}
	b := make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	a := from.As4()
	copy(b[unix.CmsgLen(0)+4:], a[:])
	return b
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
