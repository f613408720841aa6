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
func dhcp6(ctx context.Context, nic string) (held, error) {
	client, err := client6(ctx, nic)
	if err != nil {
		return held{}, err
	}
	defer client.Close()
	reply, err := client.RapidSolicit(ctx)
	if err != nil {
		return held{}, fmt.Errorf("ask DHCPv6: %w", err)
	}
	addr, err := given6(reply)
	if err != nil {
		return held{}, fmt.Errorf("ask DHCPv6: %w", err)
	}
	if err := changeAddress6(nic, unix.SIOCSIFADDR, addr); err != nil {
		return held{}, fmt.Errorf("set address %s on %s: %w", addr, nic, err)
	}
	return held6(nic, reply), nil
}

// held6 is a lease that is renewed at the server that gave it. One that is refused
// is taken off the interface.
func held6(nic string, reply *dhcpv6.Message) held {
	ia := reply.Options.OneIANA()
	addr, _ := given6(reply)
	return held{life: ia.Options.OneAddress().ValidLifetime, renew: func(ctx context.Context) (held, error) {
		client, err := client6(ctx, nic)
		if err != nil {
			return held{}, err
		}
		defer client.Close()
		ask, err := dhcpv6.NewMessage(dhcpv6.WithClientID(reply.Options.ClientID()), dhcpv6.WithServerID(reply.Options.ServerID()), dhcpv6.WithOption(ia))
		if err != nil {
			return held{}, err
		}
		ask.MessageType = dhcpv6.MessageTypeRenew
		next, err := client.SendAndRead(ctx, client.RemoteAddr(), ask, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
		if err != nil {
			return held{}, err
		}
		if again := next.Options.OneIANA(); again != nil {
			for _, o := range again.Options.Addresses() {
				if a, _ := netip.AddrFromSlice(o.IPv6Addr); a == addr && o.ValidLifetime > 0 {
					again.Options.Options = dhcpv6.Options{o}
					return held6(nic, next), nil
				}
			}
		}
		if err := changeAddress6(nic, unix.SIOCDIFADDR, addr); err != nil {
			return held{}, fmt.Errorf("take address %s off %s: %w", addr, nic, err)
		}
		return held{}, errRefused
	}}
}

func client6(ctx context.Context, nic string) (*nclient6.Client, error) {
	i, err := net.InterfaceByName(nic)
	if err != nil {
		return nil, err
	}
	var conn net.PacketConn
	for end := time.Now().Add(linkLocalDeadline); ; {
		if conn, err = nclient6.NewIPv6UDPConn(nic, 546); err == nil {
			break
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("ask DHCPv6: no link-local address in %s: %w", linkLocalDeadline, err)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	client, err := nclient6.NewWithConn(conn, i.HardwareAddr, nclient6.WithTimeout(4*time.Second), nclient6.WithRetry(3))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask DHCPv6: %w", err)
	}
	return client, nil
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

// changeAddress6 gives the interface an address of its own (SIOCSIFADDR), which says
// nothing of its link (RFC 8415 section 18.2.10.1), or takes it off (SIOCDIFADDR).
func changeAddress6(nic string, how uintptr, addr netip.Addr) error {
	i, err := net.InterfaceByName(nic)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := in6Ifreq{addr: addr.As16(), prefixLen: 128, index: int32(i.Index)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), how, uintptr(unsafe.Pointer(&r)))
	if errno != 0 && errno != unix.EEXIST && errno != unix.EADDRNOTAVAIL {
		return errno
	}
	return nil
}
