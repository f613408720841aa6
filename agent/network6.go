package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"
	"unsafe"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"golang.org/x/sys/unix"
)

// overIPv6 tells whether the server is reached by IPv6: its address in the boot
// script is the one by which this machine came.
func overIPv6(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return err == nil && a.Is6() && !a.Is4In6()
}

// linkLocalDeadline covers duplicate address detection, which takes a second.
const linkLocalDeadline = 10 * time.Second

// dhcp6 gets an IPv6 address for nic and sets it. The routes come from the router's
// advertisements, which the kernel follows by itself.
func dhcp6(ctx context.Context, nic string) error {
	i, err := net.InterfaceByName(nic)
	if err != nil {
		return err
	}
	var conn net.PacketConn
	for end := time.Now().Add(linkLocalDeadline); ; {
		if conn, err = nclient6.NewIPv6UDPConn(nic, 546); err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("ask DHCPv6: no link-local address in %s: %w", linkLocalDeadline, err)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	client, err := nclient6.NewWithConn(conn, i.HardwareAddr, nclient6.WithTimeout(4*time.Second), nclient6.WithRetry(3))
	if err != nil {
		conn.Close()
		return fmt.Errorf("ask DHCPv6: %w", err)
	}
	defer client.Close()
	reply, err := client.RapidSolicit(ctx)
	if err != nil {
		return fmt.Errorf("ask DHCPv6: %w", err)
	}
	addr, err := given6(reply)
	if err != nil {
		return fmt.Errorf("ask DHCPv6: %w", err)
	}
	if err := setAddress6(i.Index, addr); err != nil {
		return fmt.Errorf("set address %s on %s: %w", addr, nic, err)
	}
	return nil
}

// given6 is the address of a lease.
func given6(reply *dhcpv6.Message) (netip.Addr, error) {
	ia := reply.Options.OneIANA()
	if ia == nil || ia.Options.OneAddress() == nil {
		return netip.Addr{}, errors.New("the answer has no address")
	}
	addr, ok := netip.AddrFromSlice(ia.Options.OneAddress().IPv6Addr)
	if !ok || !addr.Is6() || !addr.IsGlobalUnicast() {
		return addr, fmt.Errorf("%s is no address for a host", addr)
	}
	return addr, nil
}

// in6Ifreq is struct in6_ifreq of linux/ipv6.h.
type in6Ifreq struct {
	addr      [16]byte
	prefixLen uint32
	index     int32
}

// setAddress6 gives the interface an address of its own, which says nothing of
// its link (RFC 8415 section 18.2.10.1).
func setAddress6(index int, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := in6Ifreq{addr: addr.As16(), prefixLen: 128, index: int32(index)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&r)))
	if errno != 0 && errno != unix.EEXIST {
		return errno
	}
	return nil
}
