package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"recast/inventory"
	"recast/ipxe"
)

// FuzzPacket6 is FuzzPacket for DHCPv6.
func FuzzPacket6(f *testing.F) {
	captured := 0
	files, _ := filepath.Glob("testdata/*.pcap")
	for _, file := range files {
		for _, b := range frames(f, file) {
			if raw, _ := unframe6(b[14:]); len(raw) > 4 && binary.BigEndian.Uint16(b[14+42:]) == serverPort6 {
				captured++
				for k := range 8 {
					f.Add(raw, uint32(8*captured+k)*2654435761, "")
				}
			}
		}
	}
	if captured < 5 {
		f.Fatalf("%d captured messages", captured)
	}
	for i, p := range []dhcpv6.DHCPv6{
		message6(SOLICIT, wants(1), pxe6), message6(SOLICIT, wants(1), wants(2, "2001:db8:20::1:7"), rapid, ipxe6), message6(SOLICIT, wants(1), http6),
		message6(REQUEST6, toUs, wants(1, "2001:db8:20::15")), message6(RENEW, toUs, wants(1, "2001:db8:20::1:7", "2001:db8:99::1")), message6(REBIND, wants(1, "2001:db8:99::1")),
		message6(CONFIRM, wants(1, "2001:db8:20::15")), message6(RELEASE6, toUs, wants(1, "2001:db8:20::15")), message6(DECLINE6, toUs, wants(1, "2001:db8:20::1:7")),
		message6(INFORM6, pxe6), message6(SOLICIT, from6(duidUUID(make([]byte, 16)...)), raw6(dhcpv6.OptionIAPD, make([]byte, 12)...)), nested(3),
		message6(SOLICIT, wants(1, "2001:db8:30::7"), raw6(dhcpv6.OptionIATA, 0, 0, 0, 9)), message6(REQUEST6, toAnother, wants(1)),
		message6(REQUEST6, toUs, wants(1, "2001:db8:20::2")), message6(REBIND, wants(1, "2001:db8:20::15")),
		relayed6(message6(SOLICIT, from6(duidLLT(macStranger)), wants(1), raw6(dhcpv6.OptionFQDN, append([]byte{0, 4}, "web1\x00"...)...)), "2001:db8:20::fe", "fe80::5054:ff:fe00:5", interfaceID("a")),
		relayed6(message6(SOLICIT, from6(duidLL(macDeclared)), wants(1), pxe6), "2001:db8:30::fe", "fe80::1", interfaceID("")),
	} {
		for k := range 8 {
			f.Add(p.ToBytes(), uint32(8*i+k)*2654435761, []string{"", "snponly.efi"}[k%2])
		}
	}
	f.Add([]byte{12, 0}, uint32(0), "")
	second := func(s *inventory.Set) {
		s.Networks = append(s.Networks, &inventory.Network{Name: "rack2-v6", Subnet: netip.MustParsePrefix("2001:db8:30::/64"), DHCP: inventory.DHCPAuthoritative,
			Unknown: inventory.UnknownLocal, Pool: &inventory.AddrRange{First: netip.MustParseAddr("2001:db8:30::"), Last: netip.MustParseAddr("2001:db8:30::1")}})
	}
	configs := []*config{compile(rack6()), compile(rack6(second)), compile(rack6(unknown(inventory.UnknownIgnore), second)),
		compile(rack6(unknown(inventory.UnknownLocal), func(s *inventory.Set) { s.Networks[0].Pool, s.Networks[0].DNS = nil, nil })),
		compile(rack6(func(s *inventory.Set) {
			s.Networks[0].Pool = &inventory.AddrRange{First: netip.MustParseAddr("2001:db8:20::"), Last: netip.MustParseAddr("2001:db8:20::20")}
		}))}
	f.Fuzz(func(t *testing.T, raw []byte, n uint32, file string) {
		w := &world{n}
		whole := bytes.Clone(raw)
		from := pick(w, privateAddr, netip.MustParseAddr("fe80::5054:ff:fe00:5"), netip.MustParseAddr("2001:db8:20::fe"))
		r, err := decode6(raw, from, pick[inventory.MAC](w, macStranger, macDeclared, macPooled, ""))
		if !bytes.Equal(raw, whole) {
			t.Fatal("the reader's buffer was changed")
		}
		if err != nil {
			if bad := badPacket(""); !errors.As(err, &bad) {
				t.Fatalf("%v cannot be counted", err)
			}
			return
		}
		if len(r.six.relays) == 0 && !from.IsLinkLocalUnicast() {
			t.Fatalf("%x of %s is taken for a request", raw, from)
		}
		q := question{cfg: pick(w, configs...), req: r, server: ourAddr6, ours: []netip.Addr{ourAddr6}, duid: ourDUID, now: epoch}
		r.identify(q.cfg)
		if q.network, q.onLink = q.cfg.network(r, pick(w, q.cfg.networks[:1], q.cfg.networks), false); q.network == nil {
			return
		}
		tab := newTable()
		tab.loaded = pick(w, true, true, true, false)
		for _, before := range pick(w, worldTables6(r)...) {
			before(tab)
		}
		spec := pick(w, ipxe.Spec{Kind: ipxe.SpecRamdisk}, ipxe.Spec{Kind: ipxe.SpecLocal}, ipxe.Spec{Kind: ipxe.SpecRamdisk, SecureBoot: true})
		if q.boot.file, _ = (ipxe.Boot{}).Bootfile(r.client, spec, ourAddr6, 8080); file != "" && len(file) < 1024 && printable(file) {
			q.boot.file = file
		}
		o := exchange6(t, q, tab)
		if o.six == nil || r.mac == "" {
			return
		}
		switch {
		case r.six.kind == SOLICIT && o.offer.IsValid():
			life6(t, q, tab, o.offer)
		case r.six.kind == SOLICIT && o.lease != nil:
			life6(t, q, tab, o.lease.Addr)
		}
	})
}

// worldTables6 are lease tables to a client.
func worldTables6(r *request) [][]func(*table) {
	const mine, others = "2001:db8:20::1:7", "2001:db8:20::1:8"
	mac := string(r.mac)
	if mac == "" {
		mac = macStranger
	}
	list := [][]func(*table){
		nil,
		{leased6(mac, mine, time.Hour)},
		{leased6(mac, mine, -time.Hour), leased6(macOther, others, time.Hour)},
		{leased6(macOther, "2001:db8:20::15", time.Hour)},
		{leased6(macOther, "2001:db8:20::15", time.Hour, declinedLease)},
	}
	if asked := r.requested; asked.IsValid() && asked.Zone() == "" {
		list = append(list,
			[]func(*table){leased6(mac, asked.String(), time.Hour)},
			[]func(*table){leased6(macOther, asked.String(), time.Hour)},
			[]func(*table){leased6(macOther, asked.String(), time.Hour, declinedLease)},
			[]func(*table){leased6(mac, asked.String(), time.Hour, declinedLease)})
	}
	return list
}

// exchange6 asks once, judges the answer, and brings the table up to date as the
// server does.
func exchange6(t *testing.T, q question, tab *table) outcome {
	t.Helper()
	holders := maps.Clone(tab.byAddr)
	o := reply(q, tab)
	judge6(t, q, holders, o)
	ops, _ := tab.prepare(&q, &o)
	if o.six == nil && len(ops) > 0 {
		t.Fatalf("a silence changes the table: %v", ops)
	}
	tab.committed(&q, &o, 7)
	return o
}

// life6 of a client that was told of an address.
func life6(t *testing.T, q question, tab *table, a netip.Addr) {
	t.Helper()
	next := func(kind dhcpv6.MessageType) outcome {
		t.Helper()
		r, m := *q.req, *q.req.six
		m.kind, m.rapid, m.serverID = kind, false, ourDUID
		if kind == REBIND {
			m.serverID = nil
		}
		m.ias = slices.Clone(m.ias)
		m.ias[0].addrs = []netip.Addr{a}
		r.six, r.requested = &m, a
		if r.kind = REQUEST; kind == RELEASE6 {
			r.kind = RELEASE
		}
		q.req = &r
		q.now = q.now.Add(time.Second)
		return exchange6(t, q, tab)
	}
	for _, kind := range []dhcpv6.MessageType{REQUEST6, RENEW, REBIND} {
		if o := next(kind); o.six == nil || o.six.addr != a || o.lease == nil || o.lease.Addr != a {
			t.Fatalf("%s of %s for %s: %+v", kind, q.req.mac, a, o)
		}
	}
	if o := next(RELEASE6); o.drop != a {
		t.Fatalf("%s gives back %s: %+v", q.req.mac, a, o)
	}
}

// judge6 holds an answer to what RFC 8415 and the firmware want of every one.
func judge6(t *testing.T, q question, holders map[place]*record, o outcome) {
	t.Helper()
	r, n := q.req, q.network
	_, known := q.own()
	if (o.six == nil) == (o.silence == "") || o.packet != nil {
		t.Fatalf("neither an answer nor a reason: %+v", o)
	}
	if o.lease != nil && (o.lease.MAC != r.mac || r.mac == "" || !n.Subnet.Contains(o.lease.Addr) || o.lease.Network != n.Name) {
		t.Fatalf("a lease for somebody else: %+v", o.lease)
	}
	if !known && n.Unknown == inventory.UnknownIgnore && (o.six != nil || o.lease != nil) {
		t.Fatalf("an answer to a stranger: %+v", o)
	}
	if o.six == nil {
		return
	}
	// To us a DUID is bytes (RFC 8415 §11), to the library that judges it is not.
	if _, err := dhcpv6.DUIDFromBytes(r.six.clientID); err != nil && r.six.clientID != nil {
		return
	}
	m, relays := inner6(t, o.bytes(r))
	if len(relays) != len(r.six.relays) || m.TransactionID != dhcpv6.TransactionID(r.TransactionID[1:]) {
		t.Fatalf("a reply to somebody else: %s", m.Summary())
	}
	for i, relay := range relays {
		was := r.six.relays[i]
		link, _ := netip.AddrFromSlice(relay.LinkAddr)
		peer, _ := netip.AddrFromSlice(relay.PeerAddr)
		if !bytes.Equal(relay.Options.InterfaceID(), was.interfaceID) || relay.HopCount != was.hops || link != was.link || peer != was.peer ||
			relay.MessageType != dhcpv6.MessageTypeRelayReply {
			t.Fatalf("relay %d is answered with %s", i, relay.Summary())
		}
	}
	to := netip.AddrPortFrom(r.six.from, clientPort6)
	if len(relays) > 0 {
		to = netip.AddrPortFrom(r.six.from, serverPort6)
	}
	if o.dest.to != to {
		t.Fatalf("an answer to %s goes to %s", to, o.dest.to)
	}
	if id := r.six.clientID; id != nil && !bytes.Equal(m.Options.ClientID().ToBytes(), id) {
		t.Fatal("another client's identifier")
	}
	if !bytes.Equal(m.Options.ServerID().ToBytes(), ourDUID) {
		t.Fatal("another server's identifier")
	}
	want := dhcpv6.MessageTypeReply
	rapid := r.six.kind == SOLICIT && m.GetOneOption(dhcpv6.OptionRapidCommit) != nil
	if r.six.kind == SOLICIT && !rapid {
		want = dhcpv6.MessageTypeAdvertise
	}
	if m.MessageType != want || rapid && !r.six.rapid {
		t.Fatalf("%s is answered with %s", r.six.kind, m.MessageType)
	}
	given := map[netip.Addr]bool{}
	for _, a := range m.Options.IANA() {
		if !slices.ContainsFunc(r.six.ias, func(asked ia) bool { return asked.id == a.IaId }) {
			t.Fatalf("an identity association that nobody asked for: %s", a)
		}
		if a.T1 > a.T2 {
			t.Fatalf("T1 %s after T2 %s", a.T1, a.T2)
		}
		for _, x := range a.Options.Addresses() {
			addr, _ := netip.AddrFromSlice(x.IPv6Addr)
			if x.PreferredLifetime > x.ValidLifetime {
				t.Fatalf("%s is preferred longer than it is valid", addr)
			}
			if x.ValidLifetime > 0 {
				given[addr] = true
			}
		}
	}
	if len(given) > 1 {
		t.Fatalf("gave %v", given)
	}
	for addr := range given {
		reserved, isReserved := q.cfg.reserved[addr]
		h := holders[place{n.Name, addr}]
		switch {
		case !n.Subnet.Contains(addr) || addr == ourAddr6 || addr == n.Subnet.Masked().Addr():
			t.Fatalf("gave %s of %s", addr, n.Subnet)
		case isReserved && reserved != r.mac:
			t.Fatalf("gave %s, which is reserved for %s, to %s", addr, reserved, r.mac)
		case h != nil && q.now.Before(h.Expires) && (h.MAC != r.mac || h.State == inventory.LeaseDeclined):
			t.Fatalf("gave %s, which is %s to %s, to %s", addr, h.State, h.MAC, r.mac)
		case want == dhcpv6.MessageTypeReply && (o.lease == nil || o.lease.Addr != addr), want == dhcpv6.MessageTypeAdvertise && (o.offer != addr || o.lease != nil):
			t.Fatalf("%s of %s, kept %s, leased %+v", want, addr, o.offer, o.lease)
		}
	}
	if o.lease != nil && o.lease.State == inventory.LeaseBound && !given[o.lease.Addr] {
		t.Fatalf("%s is leased and not told", o.lease.Addr)
	}
	file := m.Options.BootFileURL()
	switch r.client.Loader {
	case ipxe.LoaderFirmware:
		if file != "" && !strings.HasPrefix(file, "tftp://") {
			t.Fatalf("PXE gets %q", file)
		}
	case ipxe.LoaderHTTP:
		if file != "" && !strings.HasPrefix(file, "http://") && !strings.HasPrefix(file, "https://") || (file != "") != (m.GetOneOption(dhcpv6.OptionVendorClass) != nil) {
			t.Fatalf("HTTP Boot gets %q", file)
		}
	case ipxe.LoaderIPXE:
	default:
		if file != "" {
			t.Fatalf("%s gets %q", r.client.Loader, file)
		}
	}
}
