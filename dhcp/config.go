package dhcp

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// config is the declared truth as DHCP looks things up in it.
type config struct {
	options   map[*inventory.Network]*netOptions
	networks  []*inventory.Network // all but those with dhcp: off, by name
	byMAC     map[inventory.MAC]*declared
	byUUID    map[string][]inventory.MAC // the interfaces of a machine that declares one
	kept      map[string]uint64          // by Network: addresses of its pool that strangers do not get
	plugs     map[circuit][]plug
	plugByMAC map[inventory.MAC]inventory.Port // of interfaces declared with both
	reserved  map[netip.Addr]inventory.MAC     // "" for one that is known by its port
}

// declared is one NIC of a declared machine, or its BMC.
type declared struct {
	mac     inventory.MAC // as it stands in the index by it
	machine string
	bmc     bool
	network string
	ip, ip6 netip.Addr
}

// String names it for people.
func (d declared) String() string {
	if d.bmc {
		return fmt.Sprintf("the BMC of %q", d.machine)
	}
	return fmt.Sprintf("%q", d.machine)
}

func compile(set *inventory.Set) *config {
	machines := 0
	if set != nil {
		machines = len(set.Machines)
	}
	c := &config{options: map[*inventory.Network]*netOptions{}, byMAC: make(map[inventory.MAC]*declared, machines), byUUID: map[string][]inventory.MAC{}, kept: map[string]uint64{}, plugs: map[circuit][]plug{}, plugByMAC: map[inventory.MAC]inventory.Port{}, reserved: make(map[netip.Addr]inventory.MAC, machines)}
	if set == nil {
		return c
	}
	for _, n := range set.Networks {
		if n.DHCP == inventory.DHCPAuthoritative || n.DHCP == inventory.DHCPProxy {
			c.networks = append(c.networks, n)
			if n.Subnet.Addr().Is4() {
				c.options[n] = optionsOf(n)
			}
		}
	}
	wanting := map[string]uint64{} // by Network: interfaces without an address of their own there
	for _, m := range set.Machines {
		for _, nic := range m.NICs {
			d := declared{machine: m.Name, network: nic.Network, ip: nic.IP, ip6: nic.IP6}
			c.reserve(nic.MAC, d)
			if n := c.named(nic.Network); n != nil && !d.on(n).IsValid() {
				wanting[n.Name]++
			}
			if nic.MAC != "" && m.UUID != "" {
				c.byUUID[m.UUID] = append(c.byUUID[m.UUID], nic.MAC)
			}
			if nic.Port != nil {
				at := circuit{nic.Network, nic.Port.Circuit}
				c.plugs[at] = append(c.plugs[at], plug{d, *nic.Port, nic.MAC})
				if nic.MAC != "" {
					c.plugByMAC[nic.MAC] = *nic.Port
				}
			}
		}
		if b := m.BMC; b != nil && b.MAC != "" {
			c.reserve(b.MAC, declared{machine: m.Name, bmc: true, ip: b.IP, ip6: b.IP6})
		}
	}
	for _, n := range c.networks {
		c.kept[n.Name] = kept(n, wanting[n.Name])
	}
	return c
}

func (c *config) reserve(mac inventory.MAC, d declared) {
	if mac != "" {
		d.mac = mac
		c.byMAC[mac] = &d
	}
	for _, a := range []netip.Addr{d.ip, d.ip6} {
		if a.IsValid() {
			c.reserved[a] = mac
		}
	}
}

// macOf finds the hardware address as it is declared, or makes it; then there is no
// declaration.
func (c *config) macOf(hw [6]byte) (inventory.MAC, *declared) {
	var text [17]byte
	b := text[:0]
	for i, v := range hw {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, []byte{v})
	}
	if d, ok := c.byMAC[inventory.MAC(b)]; ok {
		return d.mac, d
	}
	return inventory.MAC(b), nil
}

// on is its address on a Network; invalid for none.
func (d declared) on(n *inventory.Network) netip.Addr {
	for _, a := range []netip.Addr{d.ip, d.ip6} {
		if a.IsValid() && n.Subnet.Contains(a) {
			return a
		}
	}
	return netip.Addr{}
}

// named is the Network of that name, nil where we serve none.
func (c *config) named(name string) *inventory.Network {
	for _, n := range c.networks {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// networkOf is the Network we serve whose subnet holds the address.
func (c *config) networkOf(a netip.Addr) *inventory.Network {
	for _, n := range c.networks {
		if a.IsValid() && n.Subnet.Contains(a) {
			return n
		}
	}
	return nil
}

// network is the Network a client is on: the one the relay selects, else the one
// that the client does (RFC 3527 §3: the relay's word is the stronger), else the
// relay's own; without a relay for a client that was unicast to us (its link may be behind a router) the one of
// its own address, else the one of the interface. The second result says that
// it is on the link the packet came in on.
func (c *config) network(r *request, local []*inventory.Network, unicast bool) (*inventory.Network, bool) {
	if r.giaddr.IsValid() {
		if r.link.IsValid() {
			return c.networkOf(r.link), false
		}
		if r.subnet.IsValid() {
			return c.networkOf(r.subnet), false
		}
		return c.networkOf(r.giaddr), false
	}
	if r.subnet.IsValid() {
		n := c.networkOf(r.subnet)
		return n, slices.Contains(local, n)
	}
	claimed := r.ciaddr
	if r.six != nil {
		claimed = r.requested
	}
	if claimed.IsValid() {
		for _, n := range local {
			if n.Subnet.Contains(claimed) {
				return n, true
			}
		}
	}
	if r.ciaddr.IsValid() {
		if n := c.networkOf(r.ciaddr); n != nil && unicast {
			return n, false
		}
	}
	// Several subnets on one link: a declared NIC says which is its own.
	if d, ok := c.byMAC[r.mac]; ok {
		for _, n := range local {
			if n.Name == d.network || d.on(n).IsValid() {
				return n, true
			}
		}
	}
	if len(local) == 0 {
		return nil, false
	}
	// A stranger keeps to the one it has an address of, else to one that takes strangers.
	for _, n := range local {
		if r.kind == dhcpv4.MessageTypeRequest && r.requested.IsValid() && n.Subnet.Contains(r.requested) {
			return n, true
		}
	}
	for _, n := range local {
		if n.Unknown == inventory.UnknownLocal || n.Unknown == inventory.UnknownDiscover {
			return n, true
		}
	}
	return local[0], true
}
