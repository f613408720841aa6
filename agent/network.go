package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

const (
	// nicDeadline covers slow PCIe devices; carrierDeadline a switch port that
	// runs spanning tree (30 to 50 s) and a NIC that trains its link.
	nicDeadline     = 60 * time.Second
	carrierDeadline = 90 * time.Second
	dhcpDeadline    = 3 * time.Minute
)

// network brings the machine onto its network, by the IP that the server is
// reached by, and returns the interface with what it got. With a MAC it uses that interface, else
// the first with carrier that gets an address; with a VLAN the VLAN's of that one.
func network(ctx context.Context, h Hardware, m *modules, args Args, log func(string, ...any)) (string, held, error) {
	ask, name6 := dhcp, ""
	switch {
	case args.IP.IsValid():
		ask = args.static
	case overIPv6(args.URL):
		ask, name6 = dhcp6, "v6"
	}
	if args.VLAN != 0 {
		m.insert("8021q")
	}
	name, err := awaitNIC(ctx, h, m, args.MAC, log)
	if err != nil {
		return "", held{}, err
	}
	if name == "" && args.IP.IsValid() {
		return "", held{}, fmt.Errorf("no interface has the hardware address %s, for which the boot medium has an IP", args.MAC)
	}
	for _, nic := range h.nics() {
		if err := setUp(nic); err != nil {
			log("%s does not come up: %v", nic, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dhcpDeadline)
	defer cancel()
	var last error
	asked := map[string]bool{}
	carrier := time.Now().Add(carrierDeadline)
	for {
		candidates := []string{name}
		if name == "" {
			candidates = h.nics()
		}
		linked := false
		for _, nic := range candidates {
			if !h.nic(nic).HasCarrier {
				continue
			}
			linked = true
			if args.VLAN != 0 {
				if nic, last = addVLAN(nic, args.VLAN); last != nil {
					log("%v", last)
					continue
				}
			}
			if !asked[nic] && args.IP.IsValid() {
				log("%s has a link; its address comes from the boot medium", nic)
			} else if !asked[nic] {
				log("%s has a link; asking DHCP%s", nic, name6)
			}
			asked[nic] = true
			var has held
			if has, last = ask(ctx, nic); last == nil {
				log("%s has address %s", nic, address(nic, name6 != ""))
				return nic, has, nil
			}
			if ctx.Err() == nil {
				log("%s: %v", nic, last)
			}
		}
		switch {
		case ctx.Err() != nil && last != nil && args.IP.IsValid():
			return "", held{}, last
		case ctx.Err() != nil && last != nil:
			return "", held{}, fmt.Errorf("no address by DHCP%s in %s: %w; is the DHCP server on this network?", name6, dhcpDeadline, last)
		case !linked && time.Now().After(carrier):
			return "", held{}, fmt.Errorf("no link on %s in %s; check cable and switch port", strings.Join(candidates, ", "), carrierDeadline)
		case ctx.Err() != nil:
			return "", held{}, ctx.Err()
		}
		sleep(ctx, time.Second)
	}
}

// awaitNIC waits until the interface is there. Without a MAC, or when no such
// interface turns up, any will do ("").
func awaitNIC(ctx context.Context, h Hardware, m *modules, mac inventory.MAC, log func(string, ...any)) (string, error) {
	end := time.Now().Add(nicDeadline)
	for {
		m.coldplug("/sys/devices")
		nics := h.nics()
		for _, nic := range nics {
			if mac != "" && h.nic(nic).MAC == mac {
				return nic, nil
			}
		}
		if mac == "" && len(nics) > 0 {
			return "", nil
		}
		if time.Now().After(end) {
			if len(nics) == 0 {
				return "", errors.New("no network interface: the ramdisk has no driver for it, or its firmware is missing")
			}
			log("no interface has the address %s that this machine netbooted from; trying all", mac)
			return "", nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// dhcp gets an address for nic and sets it, with the default route.
func dhcp(ctx context.Context, nic string) (held, error) {
	client, err := client4(ctx, nic)
	if err != nil {
		return held{}, err
	}
	defer client.Close()
	lease, err := client.Request(ctx, dhcpv4.WithBroadcast(true), ourClass,
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionClasslessStaticRoute))
	if err != nil {
		return held{}, fmt.Errorf("ask DHCP: %w", err)
	}
	ack := lease.ACK
	addr, mask, err := given(ack)
	if err != nil {
		return held{}, fmt.Errorf("ask DHCP: %w", err)
	}
	if err := setAddress(nic, addr, mask); err != nil {
		return held{}, fmt.Errorf("set address %s on %s: %w", addr, nic, err)
	}
	for _, r := range routes(ack) {
		if err := setRoute(nic, r); err != nil {
			return held{}, fmt.Errorf("set route to %s by %s on %s: %w", r.To, r.Via, nic, err)
		}
	}
	return held4(nic, lease), nil
}

// static sets the address that the boot medium gave, for ever.
func (a Args) static(_ context.Context, nic string) (held, error) {
	if err := setAddress(nic, a.IP.Addr(), net.CIDRMask(a.IP.Bits(), 32)); err != nil {
		return held{}, fmt.Errorf("set address %s on %s: %w", a.IP, nic, err)
	}
	for _, r := range a.Routes {
		if err := setRoute(nic, r); err != nil {
			return held{}, fmt.Errorf("set route to %s by %s on %s: %w", r.To, r.Via, nic, err)
		}
	}
	return held{}, nil
}

var ourClass = dhcpv4.WithOption(dhcpv4.OptClassIdentifier("recast-agent"))

func client4(ctx context.Context, nic string) (*nclient4.Client, error) {
	i, err := net.InterfaceByName(nic)
	if err != nil {
		return nil, err
	}
	conn, err := broadcastConn(ctx, nic)
	if err != nil {
		return nil, err
	}
	client, err := nclient4.NewWithConn(conn, i.HardwareAddr, nclient4.WithTimeout(4*time.Second), nclient4.WithRetry(3))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask DHCP: %w", err)
	}
	return client, nil
}

// held4 is a lease that is renewed by broadcast: any server that knows it may answer.
func held4(nic string, lease *nclient4.Lease) held {
	return held{life: lease.ACK.IPAddressLeaseTime(0), renew: func(ctx context.Context) (held, error) {
		client, err := client4(ctx, nic)
		if err != nil {
			return held{}, err
		}
		defer client.Close()
		next, err := client.Renew(ctx, lease, ourClass)
		if nak := (*nclient4.ErrNak)(nil); errors.As(err, &nak) {
			return held{}, fmt.Errorf("%w: %w", errRefused, err)
		}
		if err != nil {
			return held{}, err
		}
		return held4(nic, next), nil
	}}
}

// given is the address of a lease, and its link.
func given(ack *dhcpv4.DHCPv4) (netip.Addr, net.IPMask, error) {
	addr, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	mask := ack.SubnetMask()
	if !ok || addr.IsUnspecified() || len(mask) != 4 {
		return addr, nil, errors.New("the answer has no address or no subnet mask")
	}
	return addr, mask, nil
}

// routes are those of a lease. Where it has classless ones its router counts for
// nothing (RFC 3442); those whose router is 0.0.0.0 come first, since others may
// lead through them.
func routes(ack *dhcpv4.DHCPv4) (all []inventory.Route) {
	for _, onLink := range []bool{true, false} {
		for _, r := range ack.ClasslessStaticRoute() {
			via, ok := netip.AddrFromSlice(r.Router.To4())
			to, ok2 := netip.AddrFromSlice(r.Dest.IP.To4())
			if bits, _ := r.Dest.Mask.Size(); ok && ok2 && via.IsUnspecified() == onLink {
				all = append(all, inventory.Route{To: netip.PrefixFrom(to, bits).Masked(), Via: via})
			}
		}
	}
	if all != nil {
		return all
	}
	if routers := ack.Router(); len(routers) > 0 {
		if gw, ok := netip.AddrFromSlice(routers[0].To4()); ok {
			all = append(all, inventory.Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: gw})
		}
	}
	return all
}

// broadcastConn is a UDP socket on the DHCP client's port that needs no address
// of its own: with the broadcast flag set the server answers to everybody
// (RFC 2131, section 4.1), so no packet socket is needed, which distribution
// kernels have as a module.
func broadcastConn(ctx context.Context, nic string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), nic))
		})
		return errors.Join(err, serr)
	}}
	conn, err := lc.ListenPacket(ctx, "udp4", ":68")
	if err != nil {
		return nil, fmt.Errorf("open DHCP socket on %s: %w", nic, err)
	}
	return conn, nil
}

// control runs f with a socket and a request for nic.
func control(nic string, f func(fd int, r *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(nic)
	if err != nil {
		return err
	}
	return f(fd, r)
}

func setUp(nic string) error   { return setFlags(nic, unix.IFF_UP, 0) }
func setDown(nic string) error { return setFlags(nic, 0, unix.IFF_UP) }

func setFlags(nic string, set, clear uint16) error {
	return control(nic, func(fd int, r *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
			return err
		}
		r.SetUint16(r.Uint16()&^clear | set)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	})
}

func setAddress(nic string, addr netip.Addr, mask net.IPMask) error {
	return control(nic, func(fd int, r *unix.Ifreq) error {
		if err := r.SetInet4Addr(addr.AsSlice()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, r); err != nil {
			return err
		}
		if err := r.SetInet4Addr(mask); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, r)
	})
}

// rtentry is struct rtentry of linux/route.h on 64-bit machines.
type rtentry struct {
	_                     uint64
	dst, gateway, genmask unix.RawSockaddrInet4
	flags                 uint16
	_                     int16
	_                     uint64
	_                     uint64 // tos, class and padding
	metric                int16
	dev                   *byte
	mtu, window           uint64
	irtt                  uint16
}

func setRoute(nic string, to inventory.Route) error {
	dev, err := unix.BytePtrFromString(nic)
	if err != nil {
		return err
	}
	inet := func(a [4]byte) unix.RawSockaddrInet4 {
		return unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a}
	}
	const up, gateway = 0x1, 0x2
	mask := [4]byte(net.CIDRMask(to.To.Bits(), 32))
	r := rtentry{dst: inet(to.To.Addr().As4()), genmask: inet(mask), gateway: inet(to.Via.As4()), flags: up, dev: dev}
	if !to.Via.IsUnspecified() {
		r.flags |= gateway
	}
	return control(nic, func(fd int, _ *unix.Ifreq) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r)))
		if errno != 0 && errno != unix.EEXIST {
			return errno
		}
		return nil
	})
}
