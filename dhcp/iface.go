package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"recast/inventory"
)

// Interface is one network interface of this machine with its IPv4 addresses, and
// its IPv6 addresses of more than the link.
type Interface struct {
	Name     string
	Index    int
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix
	Addrs6   []netip.Prefix
	Up       bool
	Loopback bool
}

// Interfaces lists this machine's interfaces.
func Interfaces() ([]Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []Interface
	for _, n := range list {
		i := Interface{Name: n.Name, Index: n.Index, MAC: n.HardwareAddr,
			Up: n.Flags&net.FlagUp != 0, Loopback: n.Flags&net.FlagLoopback != 0}
		addrs, err := n.Addrs()
		if err != nil {
			continue // it went away
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			switch {
			case err != nil:
			case p.Addr().Is4():
				i.Addrs = append(i.Addrs, p)
			case p.Addr().IsGlobalUnicast():
				i.Addrs6 = append(i.Addrs6, p)
			}
		}
		out = append(out, i)
	}
	return out, nil
}

// of are the interface's addresses of a Network's family.
func (f *Interface) of(n *inventory.Network) []netip.Prefix {
	if n.Subnet.Addr().Is6() {
		return f.Addrs6
	}
	return f.Addrs
}

// site is where a Network is served.
type site struct {
	network *inventory.Network
	iface   *Interface // nil: reached through relays only
	server  netip.Addr // our address on it
	problem error      // why it is not served on an interface although it might be
}

// attach finds the interface of each served Network: the one whose own
// address lies in its subnet. Two of them need the Network's listen; one that is
// served from one of them already (was) stays there until it is written.
func attach(networks []*inventory.Network, ifaces []Interface, was []site) []site {
	var sites []site
	for _, n := range networks {
		s := site{network: n}
		var names []string
		for i := range ifaces {
			f := &ifaces[i]
			addrs := f.of(n)
			k := slices.IndexFunc(addrs, func(p netip.Prefix) bool { return n.Subnet.Contains(p.Addr()) })
			if k < 0 || n.Listen != "" && n.Listen != f.Name {
				continue
			}
			names = append(names, f.Name)
			s.iface, s.server = f, addrs[k].Addr()
		}
		switch {
		case len(names) > 1:
			first, now := names[0], ""
			if s.iface, s.server = stays(n, ifaces, was); s.iface != nil {
				first, now = s.iface.Name, fmt.Sprintf("it goes on on %s, until the next start; ", s.iface.Name)
			}
			s.problem = fmt.Errorf("network %q: interfaces %s all have an address in %s: %swrite listen: %s (or another of them) in its spec",
				n.Name, strings.Join(names, ", "), n.Subnet, now, first)
		case len(names) == 0 && n.Listen != "":
			s.problem = fmt.Errorf("network %q: listen names the interface %q, which has no address in %s", n.Name, n.Listen, n.Subnet)
		}
		sites = append(sites, s)
	}
	return sites
}

// stays is the interface that a Network was served from, if it still has the address.
func stays(n *inventory.Network, ifaces []Interface, was []site) (*Interface, netip.Addr) {
	for _, s := range was {
		if s.network.Name != n.Name || s.iface == nil || !n.Subnet.Contains(s.server) {
			continue
		}
		for i := range ifaces {
			f := &ifaces[i]
			if f.Name == s.iface.Name && slices.ContainsFunc(f.of(n), func(p netip.Prefix) bool { return p.Addr() == s.server }) {
				return f, s.server
			}
		}
	}
	return nil, netip.Addr{}
}

// listener is one interface to listen on and the Networks on its link.
type listener struct {
	iface Interface
	sites []site
}

// listeners are the interfaces that need a socket of one family: those of
// Networks, and while a Network is reached through relays, every other one a relay
// may send to.
func listeners(sites []site, ifaces []Interface, v6 bool) []listener {
	sites = slices.DeleteFunc(slices.Clone(sites), func(s site) bool { return s.network.Subnet.Addr().Is6() != v6 })
	relayed := slices.ContainsFunc(sites, func(s site) bool { return s.iface == nil })
	var out []listener
	for _, f := range ifaces {
		addrs := f.Addrs
		if v6 {
			addrs = f.Addrs6
		}
		l := listener{iface: f}
		for _, s := range sites {
			if s.iface != nil && s.iface.Index == f.Index {
				l.sites = append(l.sites, s)
			}
		}
		if len(l.sites) > 0 || relayed && f.Up && !f.Loopback && len(addrs) > 0 {
			out = append(out, l)
		}
	}
	return out
}

// Describe says, a line per Network, where DHCP listens and what it will
// answer. It is what a server prints at its start.
func Describe(set *inventory.Set, ifaces []Interface) []string {
	cfg := compile(set)
	if len(cfg.networks) == 0 {
		return []string{"dhcp: no Network with dhcp: authoritative or proxy is declared: nothing is answered"}
	}
	var out []string
	for _, s := range attach(cfg.networks, ifaces, nil) {
		n := s.network
		where := "through relays only (no interface has an address in it)"
		if s.iface != nil {
			where = fmt.Sprintf("on %s as %s", s.iface.Name, s.server)
		}
		if s.problem != nil {
			where = "through relays only: " + s.problem.Error()
		}
		if n.DHCP == inventory.DHCPProxy {
			unknown := "undeclared machines get no answer"
			if n.Unknown == inventory.UnknownDiscover {
				unknown = "undeclared machines boot the ramdisk"
			}
			out = append(out, fmt.Sprintf("dhcp: network %q (%s) %s; proxy: names boot files only (ports %d and %d), its addresses are not ours; %s", n.Name, n.Subnet, where, serverPort, bootPort, unknown))
			continue
		}
		reserved := 0
		for a := range cfg.reserved {
			if n.Subnet.Contains(a) {
				reserved++
			}
		}
		pool := "no pool"
		if c := slots(n.Pool); c > 0 {
			pool = fmt.Sprintf("pool of %d addresses (%s-%s)", c, n.Pool.First, n.Pool.Last)
		}
		unknown := "undeclared machines get no answer"
		switch n.Unknown {
		case inventory.UnknownLocal:
			unknown = "undeclared machines get an address and boot their own disk"
		case inventory.UnknownDiscover:
			unknown = "undeclared machines get an address and boot the ramdisk"
		}
		lease := leaseTime(n).String()
		if short := strangersTime(n); short < leaseTime(n) && (n.Unknown == inventory.UnknownLocal || n.Unknown == inventory.UnknownDiscover) {
			lease += fmt.Sprintf(" (undeclared machines %s)", short)
		}
		line := fmt.Sprintf("dhcp: network %q (%s) %s; %d reserved addresses, %s, leases of %s; %s", n.Name, n.Subnet, where, reserved, pool, lease, unknown)
		if n.Force {
			line += "; answers even beside another DHCP server (force)"
		}
		out = append(out, line)
	}
	return out
}

// Problems joins what keeps a Network from being served on an interface.
func Problems(set *inventory.Set, ifaces []Interface) error {
	var errs []error
	for _, s := range attach(compile(set).networks, ifaces, nil) {
		errs = append(errs, s.problem)
	}
	return errors.Join(errs...)
}
