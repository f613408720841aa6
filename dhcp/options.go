package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
)

const (
	// minDatagram is what every client takes (RFC 2131 §2), maxDatagram what
	// fits an Ethernet frame; both count the IP and UDP headers.
	minDatagram = 576
	maxDatagram = 1500
	ipUDPHeader = 28
)

// pxeVendor is option 43 for firmware: discovery control 8 ("use the file that
// was offered, ask nobody") and an immediate prompt. Without both, edk2 asks a
// boot server on port 4011 although it has the file (PXE 2.1 table 2-1).
var pxeVendor = []byte{6, 1, 8, 10, 4, 0, 'P', 'X', 'E'}

// The classes of replies. Replies share them and change none.
var classPXE, classHTTP = []byte("PXEClient"), []byte("HTTPClient")

// answer begins a reply: what every message type carries.
func (q *question) answer(kind dhcpv4.MessageType) *packet4 {
	r := q.req
	id := q.server
	if r.override.IsValid() {
		id = r.override
	}
	p := &packet4{}
	if r.again {
		p = &r.reply
	}
	*p = packet4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        r.HWType,
		ClientHWAddr:  r.ClientHWAddr,
		TransactionID: r.TransactionID,
		Flags:         r.Flags,
		GatewayIPAddr: bytes4(r.giaddr),
		Options:       p.Options.emptied(),
	}
	p.Options.Put(dhcpv4.OptionDHCPMessageType, []byte{byte(kind)})
	p.Options.Put(dhcpv4.OptionServerIdentifier, ip4(id))
	// RFC 6842: a client identifier is sent back. The relay's option goes back
	// byte for byte; the encoder puts it last (RFC 3046 §2.1). A switch that
	// adds it without a giaddr waits for it too. Who selects a subnet discards an
	// answer that does not repeat it (RFC 3011 §2).
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionSubnetSelection, dhcpv4.OptionRelayAgentInformation} {
		if r.Options.Has(code) {
			p.Options.Put(code, r.Options.Get(code))
		}
	}
	return p
}

// netOptions of a Network, encoded once. Replies share them and change none.
type netOptions struct {
	declared, stranger                   leaseOptions
	mask, router, dns, broadcast, routes []byte
}

type leaseOptions struct{ lease, renew, rebind []byte }

func leaseOptionsOf(d time.Duration) leaseOptions {
	return leaseOptions{seconds(d), seconds(d / 2), seconds(d / 8 * 7)}
}

func optionsOf(n *inventory.Network) *netOptions {
	o := &netOptions{declared: leaseOptionsOf(leaseTime(n)), stranger: leaseOptionsOf(strangersTime(n)),
		mask: net.CIDRMask(n.Subnet.Bits(), 32)}
	if n.Gateway.Is4() {
		o.router = ip4(n.Gateway)
	}
	o.routes = classless(n)
	for _, a := range n.DNS {
		if a.Is4() {
			o.dns = append(o.dns, ip4(a)...)
		}
	}
	if n.Subnet.Bits() < 31 {
		o.broadcast = ip4(lastAddr(n.Subnet))
	}
	return o
}

// addLease adds the times of an OFFER or ACK.
func (q *question) addLease(p *packet4) {
	o := &q.cfg.options[q.network].declared
	if _, known := q.own(); !known {
		o = &q.cfg.options[q.network].stranger
	}
	p.Options.Put(dhcpv4.OptionIPAddressLeaseTime, o.lease)
	p.Options.Put(dhcpv4.OptionRenewTimeValue, o.renew)
	p.Options.Put(dhcpv4.OptionRebindingTimeValue, o.rebind)
}

// addNetwork adds what a client needs on its subnet, asked for or not: boot
// ROMs forget to ask and fail without.
func (q *question) addNetwork(p *packet4) {
	o := q.cfg.options[q.network]
	p.Options.Put(dhcpv4.OptionSubnetMask, o.mask)
	if o.router != nil {
		p.Options.Put(dhcpv4.OptionRouter, o.router)
	}
	if o.dns != nil {
		p.Options.Put(dhcpv4.OptionDomainNameServer, o.dns)
	}
	if o.broadcast != nil {
		p.Options.Put(dhcpv4.OptionBroadcastAddress, o.broadcast)
	}
	if q.network.VLAN != 0 && q.req.client.Loader == ipxe.LoaderIPXE {
		p.Options.Put(dhcpv4.OptionInterfaceMTU, mtuTagged)
	}
	// Whoever does not ask for routes has the router.
	if code := q.routesCode(); o.routes != nil && code != nil {
		p.Options.Put(code, o.routes)
	}
}

// mtuTagged leaves room for the tag in a frame without one: the firmware's drivers
// that iPXE works through take no larger one, OVMF's of virtio among them, and a
// kernel by HTTP then stands at its first bytes. edk2's own PXE does likewise.
var mtuTagged = []byte{1496 >> 8, 1496 & 0xff}

// optMSRoutes is option 121 as Microsoft's clients knew it before it had a number.
const optMSRoutes = dhcpv4.GenericOptionCode(249)

// routesCode is the option that the client asks for its routes by; nil: by none.
func (q *question) routesCode() dhcpv4.OptionCode {
	asked := q.req.Options.Get(dhcpv4.OptionParameterRequestList)
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClasslessStaticRoute, optMSRoutes} {
		if bytes.IndexByte(asked, code.Code()) >= 0 {
			return code
		}
	}
	return nil
}

// classless encodes a Network's routes (RFC 3442), nil where it declares none. Who
// takes them disregards the router option, so the default route is among them.
func classless(n *inventory.Network) []byte {
	if len(n.Routes) == 0 {
		return nil
	}
	var b []byte
	for _, r := range n.Routes {
		to := r.To.Addr().As4()
		b = append(b, byte(r.To.Bits()))
		b = append(b, to[:(r.To.Bits()+7)/8]...)
		b = append(b, ip4(r.Via)...)
	}
	if n.Gateway.Is4() {
		b = append(append(b, 0), ip4(n.Gateway)...)
	}
	return b
}

// addBoot adds the boot file in the form the client understands.
func (q *question) addBoot(p *packet4) {
	c := q.req.client
	if c.Loader != ipxe.LoaderOS {
		if v := q.req.Options.Get(optUUID); v != nil {
			p.Options.Put(optUUID, v)
		}
	}
	if !canBoot(c.Loader, q.boot.file) {
		return
	}
	// PXE ROMs read the header's field, others the options; iPXE's URL may be
	// longer than the field's 127 bytes.
	if len(q.boot.file) < 128 {
		p.BootFileName = q.boot.file
	}
	p.Options.Put(dhcpv4.OptionBootfileName, []byte(q.boot.file))
	if c.Loader == ipxe.LoaderHTTP {
		// The URL says where; without this class the firmware takes an address from
		// the offer and no boot file (UEFI §24.7).
		p.Options.Put(dhcpv4.OptionClassIdentifier, classHTTP)
		return
	}
	if q.boot.log.IsValid() {
		// iPXE's setting "syslog" is option 7.
		p.Options.Put(dhcpv4.OptionLogServer, ip4(q.boot.log))
	}
	p.ServerIPAddr = bytes4(q.server)
	p.Options.Put(dhcpv4.OptionTFTPServerName, q.server.AppendTo(make([]byte, 0, 16)))
	if c.Loader == ipxe.LoaderIPXE && q.network.DHCP != inventory.DHCPProxy {
		// Else it waits two seconds for a ProxyDHCP server.
		p.Options.Put(optEncap, appendTrace([]byte{optNoProxy, 1, 1}, q.boot.trace))
		return
	}
	// Firmware takes the offer for a PXE one, and iPXE for a proxy's, only with
	// this class in it.
	p.Options.Put(dhcpv4.OptionClassIdentifier, classPXE)
	p.Options.Put(dhcpv4.OptionVendorSpecificInformation, append(appendTrace(append(make([]byte, 0, 32), pxeVendor...), q.boot.trace), 255))
}

// appendTrace adds the attempt's trace to a list of sub-options: what a capture of
// packets is joined to the logs by. The number is free in option 175, and in
// option 43 among those that PXE 2.1 (table 2-1) leaves to boot loaders.
func appendTrace(to []byte, trace string) []byte {
	if trace == "" {
		return to
	}
	return append(append(to, subTrace, byte(len(trace))), trace...)
}

// fit makes the reply as small as the client wants it: 576 bytes unless it asks
// for more (option 57). First an operating system gets options in the header's
// fields that it has no other use for; boot ROMs do not look for them there.
// Then optional ones are left out, what the header says already first; what the
// protocol needs stays.
func (q *question) fit(p *packet4) {
	limit := minDatagram
	if v := q.req.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		limit = min(max(int(binary.BigEndian.Uint16(v)), minDatagram), maxDatagram)
	}
	if agent := p.Options.Get(dhcpv4.OptionRelayAgentInformation); q.req.giaddr.IsValid() && agent != nil {
		// The relay takes its option out before the client sees the reply.
		limit = min(limit+optionSize(agent), maxDatagram)
	}
	limit -= ipUDPHeader
	if size(p) > limit && q.req.client.Loader == ipxe.LoaderOS {
		overload(p)
	}
	spare := []dhcpv4.OptionCode{
		dhcpv4.OptionBroadcastAddress, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
		dhcpv4.OptionLogServer, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName, optUUID, dhcpv4.OptionDomainNameServer,
	}
	for _, code := range spare {
		if size(p) <= limit {
			return
		}
		if code == dhcpv4.OptionBootfileName && p.BootFileName == "" {
			continue
		}
		p.Options.Del(code)
	}
}

// overload moves options into the file and sname fields (RFC 2132 §9.3). They
// go whole, so that a client need not join the parts of one.
func overload(p *packet4) {
	file, sname := make([]byte, 0, 127), make([]byte, 0, 63) // the encoder ends both with a zero
	for _, code := range []dhcpv4.OptionCode{
		dhcpv4.OptionDomainNameServer, dhcpv4.OptionRouter, dhcpv4.OptionSubnetMask, dhcpv4.OptionBroadcastAddress,
		dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
	} {
		v := p.Options.Get(code)
		if v == nil {
			continue
		}
		field := &file
		if len(file)+2+len(v) >= cap(file) {
			field = &sname
		}
		if len(*field)+2+len(v) >= cap(*field) { // the end mark
			continue
		}
		*field = append(append(*field, code.Code(), byte(len(v))), v...)
		p.Options.Del(code)
	}
	how := byte(0)
	if len(file) > 0 {
		p.BootFileName, how = string(append(file, 255)), how|1
	}
	if len(sname) > 0 {
		p.ServerHostName, how = string(append(sname, 255)), how|2
	}
	if how > 0 {
		p.Options.Put(dhcpv4.OptionOptionOverload, []byte{how})
	}
}

// size of the encoded reply before padding.
func size(p *packet4) int {
	n := 240 + 1
	for _, o := range p.Options {
		n += optionSize(o.value)
	}
	return n
}

// optionSize is an option's with its code and length, once for every part.
func optionSize(v []byte) int { return len(v) + 2*max(1, (len(v)+254)/255) }

func seconds(d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(min(d/time.Second, 0xffffffff)))
}

// identifier reads a server identifier out of a foreign reply.
func identifier(p *dhcpv4.DHCPv4) netip.Addr {
	return addr4(p.Options.Get(dhcpv4.OptionServerIdentifier))
}
