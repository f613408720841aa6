package dhcp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"

	"recast/inventory"
)

// Foreign is a DHCP server that answered a probe.
type Foreign struct {
	Server netip.Addr       `json:"server"`
	MAC    net.HardwareAddr `json:"-"`
	Offer  netip.Addr       `json:"offer"` // the address it offered; nobody takes it
}

// LookForOthers sends one DISCOVER on a Network's interface (one SOLICIT and router
// solicitation where it is IPv6), repeated once, and lists who offers an address
// until the context ends. A recast server with that epoch of the store keeps still;
// "" is no server's. managed tells that hosts are sent to DHCP, which in IPv6 a
// router does.
func LookForOthers(ctx context.Context, p Place, epoch string) (out []Foreign, managed bool, err error) {
	found := func(o foreign) {
		for _, have := range out {
			if have.Server == o.server {
				return
			}
		}
		out = append(out, Foreign{Server: o.server, MAC: o.mac, Offer: o.offer})
	}
	if p.Network.Subnet.Addr().Is6() {
		err = probe6(ctx, *p.Iface, serverDUID(epoch), found, func() { managed = true })
		return out, managed, err
	}
	err = probe(ctx, *p.Iface, probeClass(epoch), found)
	return out, true, err
}

// probeClass marks our own DISCOVERs, so that servers that share a store do not
// take each other for strangers.
func probeClass(epoch string) string {
	h := sha256.Sum256([]byte(epoch))
	return probeMark + hex.EncodeToString(h[:6])
}

// Place is where a Network is served.
type Place struct {
	Network *inventory.Network
	Iface   *Interface // nil: reached through relays only
	Server  netip.Addr // our address on it
	Problem error      // why it is not served on an interface although it might be
}

// Places of the Networks with DHCP among these interfaces.
func Places(set *inventory.Set, ifaces []Interface) []Place {
	var out []Place
	for _, s := range attach(compile(set).networks, ifaces, nil) {
		out = append(out, Place{s.network, s.iface, s.server, s.problem})
	}
	return out
}
