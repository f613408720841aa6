package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"recast/ipxe"
)

const (
	clientPort6 = 546
	serverPort6 = 547
)

// answer6 is the answer to a DHCPv6 message.
type answer6 struct {
	kind    dhcpv6.MessageType
	status  iana.StatusCode // why the client gets no address
	addr    netip.Addr      // the address that it gets
	options []byte          // behind one another, as they were added
	payload []byte          // the whole, once nothing is added any more
}

// reply6 decides the answer to a DHCPv6 message (RFC 8415 §18.3). A machine has
// one address here, as with DHCPv4: it is bound to the hardware address, and to no
// DUID and IAID, which firmware, iPXE, ramdisk and system each choose anew. The
// first IA_NA of a message has it; further ones, temporary addresses and prefixes
// get none.
func (q *question) reply6(t *table) outcome {
	m := q.req.six
	if m.serverID != nil && !bytes.Equal(m.serverID, q.duid) {
		return outcome{silence: "another server was chosen", forget: m.kind == dhcpv6.MessageTypeRequest}
	}
	if q.req.mac == "" && m.kind != dhcpv6.MessageTypeInformationRequest {
		o := silent("no hardware address")
		o.finding = fmt.Sprintf("network %q: relay %s does not tell the hardware address of a machine, which cannot be known otherwise: let it add option 79 (RFC 6939), or declare the machine's uuid", q.network.Name, m.from)
		return o
	}
	switch m.kind {
	case dhcpv6.MessageTypeSolicit:
		return q.solicit(t)
	case dhcpv6.MessageTypeRequest:
		return q.request6(t)
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		return q.renew6(t)
	case dhcpv6.MessageTypeConfirm:
		return q.confirm6()
	case dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeRelease:
		return q.giveBack6(t)
	case dhcpv6.MessageTypeInformationRequest:
		d := q.begin6(dhcpv6.MessageTypeReply)
		q.addNetwork6(d)
		q.addBoot6(d)
		return q.send6(d)
	}
	return silent(string(badType))
}

func (q *question) solicit(t *table) outcome {
	m := q.req.six
	if len(m.ias) == 0 {
		return silent("no address asked for")
	}
	a, finding := q.choose(t)
	kind := dhcpv6.MessageTypeAdvertise
	if m.rapid && a.IsValid() {
		kind = dhcpv6.MessageTypeReply
	}
	d := q.begin6(kind)
	switch {
	case !a.IsValid():
		d.refuse(m.ias, iana.StatusNoAddrsAvail)
	case m.rapid:
		d.option(dhcpv6.OptionRapidCommit)
		fallthrough
	default:
		d.grant(m.ias[0], a, q)
		d.refuse(m.ias[1:], iana.StatusNoAddrsAvail)
	}
	d.refuse(m.others, iana.StatusNoAddrsAvail)
	if kind == dhcpv6.MessageTypeAdvertise {
		// The highest preference: the client need not wait for other servers, which
		// an authoritative one does not have beside it.
		d.option(dhcpv6.OptionPreference, []byte{255})
	}
	q.addNetwork6(d)
	q.addBoot6(d)
	o := q.send6(d)
	o.finding = finding
	switch {
	case kind == dhcpv6.MessageTypeReply:
		q.bind(t, a, &o)
	case a.IsValid():
		o.offer = a
	}
	return o
}

func (q *question) request6(t *table) outcome {
	m := q.req.six
	d := q.begin6(dhcpv6.MessageTypeReply)
	if len(m.ias) == 0 {
		d.refuse(m.others, iana.StatusNoAddrsAvail)
		return q.send6(d)
	}
	a, finding := q.req.requested, ""
	switch {
	case a.IsValid() && !q.network.Subnet.Contains(a):
		d.refuse(m.ias, iana.StatusNotOnLink)
		return q.send6(d)
	case !q.allowed(t, a):
		a, finding = q.choose(t)
	}
	return q.bound6(t, d, a, finding)
}

// bound6 answers with the address, or that there is none.
func (q *question) bound6(t *table, d *answer6, a netip.Addr, finding string) outcome {
	m := q.req.six
	if a.IsValid() {
		d.grant(m.ias[0], a, q)
		d.refuse(m.ias[1:], iana.StatusNoAddrsAvail)
	} else {
		d.refuse(m.ias, iana.StatusNoAddrsAvail)
	}
	d.refuse(m.others, iana.StatusNoAddrsAvail)
	q.addNetwork6(d)
	q.addBoot6(d)
	o := q.send6(d)
	o.finding = finding
	if a.IsValid() {
		q.bind(t, a, &o)
	}
	return o
}

// renew6 answers a client that has an address: RENEW to us, REBIND to everybody.
func (q *question) renew6(t *table) outcome {
	m := q.req.six
	d := q.begin6(dhcpv6.MessageTypeReply)
	if len(m.ias) == 0 {
		return silent("no address asked for")
	}
	_, known := t.lease(q.network.Name, q.req.mac)
	own, _ := q.own()
	switch a := q.req.requested; {
	case q.allowed(t, a):
		// One that we have no record of is taken back, too: the client got it from us
		// before the lease table was lost.
		return q.bound6(t, d, a, "")
	case known || own.on(q.network).IsValid():
		// Its address is another now: that one is added, and the old taken away.
		if better, finding := q.choose(t); better.IsValid() {
			return q.bound6(t, d, better, finding)
		}
	}
	if slices.ContainsFunc(m.ias[0].addrs, func(a netip.Addr) bool { return !q.network.Subnet.Contains(a) }) {
		d.ia(m.ias[0], netip.Addr{}, q, m.ias[0].addrs...) // of another link: no longer valid (§18.3.4)
		d.status = iana.StatusNoBinding
		d.refuse(m.ias[1:], iana.StatusNoBinding)
	} else {
		d.refuse(m.ias, iana.StatusNoBinding)
	}
	d.refuse(m.others, iana.StatusNoBinding)
	return q.send6(d)
}

// confirm6 tells a client that has moved whether its addresses fit this link.
func (q *question) confirm6() outcome {
	m := q.req.six
	status, some := iana.StatusSuccess, false
	for _, a := range m.ias {
		for _, addr := range a.addrs {
			some = true
			if !q.network.Subnet.Contains(addr) {
				status = iana.StatusNotOnLink
			}
		}
	}
	if !some {
		return silent("no address asked for")
	}
	d := q.begin6(dhcpv6.MessageTypeReply)
	d.say(status)
	return q.send6(d)
}

// giveBack6 takes an address back, on RELEASE, or into quarantine, on DECLINE.
func (q *question) giveBack6(t *table) outcome {
	m := q.req.six
	d := q.begin6(dhcpv6.MessageTypeReply)
	d.say(iana.StatusSuccess)
	var done outcome
	for _, a := range m.ias {
		found := false
		for _, addr := range a.addrs {
			r := *q.req
			r.requested, r.ciaddr = addr, addr
			one := *q
			one.req = &r
			o := one.release(t)
			if m.kind == dhcpv6.MessageTypeDecline {
				o = one.decline(t)
			} else if r := t.byAddr[place{q.network.Name, addr}]; r != nil && r.client != "" && r.client != q.req.client6(a) {
				// edk2 tidies up after its own start while its PXE has the address already:
				// only who bound it last gives it back.
				found = o.drop.IsValid()
				continue
			}
			if o.lease != nil || o.drop.IsValid() {
				done, found = o, true
			}
		}
		if !found {
			d.refuse([]ia{a}, iana.StatusNoBinding)
		}
	}
	o := q.send6(d)
	o.lease, o.drop, o.forget, o.finding = done.lease, done.drop, true, done.finding
	if done.detail != "" {
		o.detail = done.detail
	}
	return o
}

// client6 is who asks for an identity association, as RFC 8415 has it.
func (r *request) client6(a ia) string { return string(r.six.clientID) + string(a.id[:]) }

// begin6 begins an answer: what every one carries.
func (q *question) begin6(kind dhcpv6.MessageType) *answer6 {
	d := &answer6{kind: kind}
	if id := q.req.six.clientID; id != nil {
		d.option(dhcpv6.OptionClientID, id)
	}
	d.option(dhcpv6.OptionServerID, q.duid)
	return d
}

// option adds one, its value from parts.
func (d *answer6) option(code dhcpv6.OptionCode, parts ...[]byte) {
	d.options = appendOption6(d.options, code, parts...)
}

func appendOption6(b []byte, code dhcpv6.OptionCode, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(code))
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

var statusTexts = map[iana.StatusCode]string{
	iana.StatusNoAddrsAvail:  "no address is free",
	iana.StatusNoBinding:     "no such address is this machine's",
	iana.StatusNotOnLink:     "not an address of this link",
	iana.StatusNoPrefixAvail: "no prefixes are given here",
}

func status6(b []byte, s iana.StatusCode) []byte {
	return appendOption6(b, dhcpv6.OptionStatusCode, binary.BigEndian.AppendUint16(nil, uint16(s)), []byte(statusTexts[s]))
}

// say adds a status of the whole message.
func (d *answer6) say(s iana.StatusCode) {
	d.options = status6(d.options, s)
	d.status = s
}

// refuse answers identity associations with a status and no address.
func (d *answer6) refuse(list []ia, s iana.StatusCode) {
	for _, a := range list {
		status := s
		if a.code == dhcpv6.OptionIAPD && s == iana.StatusNoAddrsAvail {
			status = iana.StatusNoPrefixAvail
		}
		if a.code == dhcpv6.OptionIANA && d.addr == (netip.Addr{}) {
			d.status = status
		}
		d.option(a.code, a.id[:], a.times(0, 0), status6(nil, status))
	}
}

// times are the fields that only IA_NA and IA_PD have.
func (a ia) times(t1, t2 uint32) []byte {
	if a.code == dhcpv6.OptionIATA {
		return nil
	}
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, t1), t2)
}

// grant gives the address to an identity association, and takes away what else
// it holds.
func (d *answer6) grant(to ia, a netip.Addr, q *question) {
	d.addr = a
	var old []netip.Addr
	if k := q.req.six.kind; k == dhcpv6.MessageTypeRenew || k == dhcpv6.MessageTypeRebind {
		old = slices.DeleteFunc(slices.Clone(to.addrs), func(had netip.Addr) bool { return had == a })
	}
	d.ia(to, a, q, old...)
}

// ia adds an identity association with one address that is valid, where there is
// one, and others that no longer are.
func (d *answer6) ia(to ia, a netip.Addr, q *question, old ...netip.Addr) {
	life := binary.BigEndian.Uint32(seconds(q.leaseTime()))
	var inner []byte
	add := func(a netip.Addr, life uint32) {
		lifetime := binary.BigEndian.AppendUint32(nil, life)
		inner = appendOption6(inner, dhcpv6.OptionIAAddr, a.AsSlice(), lifetime, lifetime) // preferred, valid
	}
	var t1, t2 uint32
	if a.IsValid() {
		add(a, life)
		t1, t2 = life/2, life-life/5 // §21.4
	}
	for _, o := range old {
		add(o, 0)
	}
	d.option(to.code, to.id[:], to.times(t1, t2), inner)
}

// addNetwork6 adds what a client needs beside an address; its router tells it the
// rest.
func (q *question) addNetwork6(d *answer6) {
	var dns []byte
	for _, a := range q.network.DNS {
		if a.Is6() {
			dns = append(dns, a.AsSlice()...)
		}
	}
	if len(dns) > 0 {
		d.option(dhcpv6.OptionDNSRecursiveNameServer, dns)
	}
}

// addBoot6 adds the boot file's URL (RFC 5970) in the form the client understands.
// The boot file's parameters (60) stay out: there are none, and edk2 drops an
// answer whose option 60 it does not like.
func (q *question) addBoot6(d *answer6) {
	if !canBoot6(q.req.client.Loader, q.boot.file) {
		return
	}
	d.option(dhcpv6.OptionBootfileURL, []byte(q.boot.file))
	if q.req.client.Loader == ipxe.LoaderHTTP {
		// Without this class it takes the address and no boot file (UEFI §24.7).
		const class = "HTTPClient"
		v := binary.BigEndian.AppendUint32(nil, intel)
		v = binary.BigEndian.AppendUint16(v, uint16(len(class)))
		d.option(dhcpv6.OptionVendorClass, v, []byte(class))
	}
}

// canBoot6 is canBoot where every boot file is a URL: firmware loads by TFTP, HTTP
// Boot by HTTP alone.
func canBoot6(loader ipxe.LoaderKind, file string) bool {
	switch loader {
	case ipxe.LoaderFirmware:
		return strings.HasPrefix(file, "tftp://")
	case ipxe.LoaderHTTP:
		return strings.HasPrefix(file, "http://") || strings.HasPrefix(file, "https://")
	case ipxe.LoaderIPXE:
		return file != ""
	}
	return false
}

// send6 wraps the answer in the relays that it goes back through (§19.3): to the
// last of them, or to the client itself.
func (q *question) send6(d *answer6) outcome {
	m := q.req.six
	xid := q.req.TransactionID
	b := append([]byte{byte(d.kind), xid[1], xid[2], xid[3]}, d.options...)
	for _, r := range slices.Backward(m.relays) {
		link, peer := r.link.As16(), r.peer.As16()
		outer := slices.Concat([]byte{byte(dhcpv6.MessageTypeRelayReply), r.hops}, link[:], peer[:])
		if r.interfaceID != nil {
			outer = appendOption6(outer, dhcpv6.OptionInterfaceID, r.interfaceID)
		}
		if r.sourcePort != nil {
			outer = appendOption6(outer, dhcpv6.OptionRelayPort, r.sourcePort)
		}
		b = appendOption6(outer, dhcpv6.OptionRelayMsg, b)
	}
	to := netip.AddrPortFrom(m.peer, clientPort6)
	if len(m.relays) > 0 {
		to = netip.AddrPortFrom(m.from, serverPort6)
		if m.relays[0].sourcePort != nil && m.port != 0 {
			to = netip.AddrPortFrom(m.from, m.port)
		}
	}
	d.payload = b
	return outcome{six: d, dest: dest{to: to}, detail: q.boot.file}
}
