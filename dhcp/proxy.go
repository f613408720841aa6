package dhcp

import (
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/ipxe"
)

// bootPort is the boot server's (PXE 2.1 §2.2.5): firmware that takes the offer
// for an invitation asks there once it has its address.
const bootPort = 4011

// proxy answers beside another server, which gives the addresses (PXE 2.1
// §2.2.3): only what firmware shall boot. Who shall boot nothing from the network
// hears nothing, and goes on with its own disk.
func (q *question) proxy() outcome {
	r := q.req
	kind := dhcpv4.MessageTypeOffer
	switch {
	case r.client.Loader == ipxe.LoaderOS:
		return silent("addresses are not ours")
	case q.asker.IsValid():
		if r.kind != dhcpv4.MessageTypeRequest && r.kind != dhcpv4.MessageTypeDiscover {
			return silent("not a question to a boot server")
		}
		if !q.asker.Addr().Is4() || q.asker.Addr().IsUnspecified() || q.asker.Port() == 0 {
			return silent("an asker without an address")
		}
		kind = dhcpv4.MessageTypeAck
	case r.kind != dhcpv4.MessageTypeDiscover:
		return silent("addresses are not ours")
	}
	if !canBoot(r.client.Loader, q.boot.file) {
		return silent("nothing to boot")
	}
	p := q.answer(kind)
	d := dest{to: broadcast} // the client has no address, and we give it none
	switch {
	case q.asker.IsValid():
		// To where it came from and nowhere else: whatever ciaddr says.
		d = dest{to: q.asker, bootServer: true}
		p.ClientIPAddr = bytes4(r.ciaddr)
	case r.giaddr.IsValid():
		d.to = netip.AddrPortFrom(r.giaddr, serverPort)
		p.Flags |= flagBroadcast
	default:
		p.Flags |= flagBroadcast
	}
	q.addBoot(p)
	q.fit(p)
	return outcome{packet: p, dest: d, detail: q.boot.file}
}
