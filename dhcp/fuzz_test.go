package dhcp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
)

// world is where a fuzzed packet arrives: what is declared, what the lease table
// holds, who asks and what there is to boot, each a digit of one number.
type world struct{ n uint32 }

// pick takes the next digit.
func pick[T any](w *world, from ...T) T {
	i := w.n % uint32(len(from))
	w.n /= uint32(len(from))
	return from[i]
}

func second(s *inventory.Set) {
	s.Networks = append(s.Networks, &inventory.Network{Name: "rack2", Subnet: netip.MustParsePrefix("10.30.0.0/24"),
		DHCP: inventory.DHCPAuthoritative, Unknown: inventory.UnknownDiscover,
		Pool: &inventory.AddrRange{First: netip.MustParseAddr("10.30.0.100"), Last: netip.MustParseAddr("10.30.0.199")}})
}

func poolOf(first, last string) func(*inventory.Set) {
	return func(s *inventory.Set) {
		s.Networks[0].Pool = &inventory.AddrRange{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
	}
}

// configs4 are the declared truths of the worlds: those that give addresses, and
// those that stand beside somebody who does.
func configs4() []*config {
	return []*config{compile(rack()), compile(rack(beside)), compile(rack(unknown(inventory.UnknownLocal))), compile(rack(unknown(inventory.UnknownIgnore))),
		compile(rack(second, withDNS(60))), compile(rack(poolOf("10.20.0.0", "10.20.0.3"))), compile(rack(poolOf("10.20.0.1", "10.20.0.20"))), compile(rack(func(s *inventory.Set) { s.Networks[0].Pool = nil })),
		compile(rack(beside, unknown(inventory.UnknownIgnore), second))}
}

// FuzzPacket drives bytes through everything between the socket and the wire, in
// every world, and a client that takes its offer through its whole life.
func FuzzPacket(f *testing.F) {
	seeds := captured(f)
	for _, p := range []*dhcpv4.DHCPv4{
		message(DISCOVER, macDeclared), message(DISCOVER, macStranger, ipxeClient), message(DISCOVER, macStranger, pxe(0), wantsBroadcast),
		message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2")), message(REQUEST, macStranger, ciaddr("10.20.0.130")),
		message(REQUEST, macStranger, requested("10.20.0.130")), message(REQUEST, macDeclared, requested("10.20.0.16"), giaddr("10.20.0.254")),
		message(REQUEST, macDeclared, requested("10.20.0.15"), giaddr("10.20.0.254"), option(82, 1, 2, 3, 4), option(61, 1, 2)),
		message(DISCOVER, macStranger, giaddr("172.16.0.1"), option(82, 5, 4, 10, 30, 0, 0, 11, 4, 10, 20, 0, 9)), message(DISCOVER, macDeclared, pxe(7), atPort("Ethernet1/7", "sw1")),
		message(DISCOVER, macDeclared, giaddr("10.20.0.254"), option(82, 1, 1, '7', 19, 0)),
		message(DECLINE, macDeclared, requested("10.20.0.15")), message(RELEASE, macStranger, ciaddr("10.20.0.130")),
		message(INFORM, macDeclared, ciaddr("10.20.0.50")), message(DISCOVER, macDeclared, option(52, 3), option(57, 2, 64)), message(DISCOVER, macDeclared, option(57, 5, 0xdc), option(55, 1, 3, 121)),
		message(DISCOVER, macDeclared, httpBoot(16)), message(DISCOVER, macDeclared, raspberryPi(4)), message(DISCOVER, macDeclared, onie),
		message(DISCOVER, macDeclared, option(61, make([]byte, 250)...), option(82, make([]byte, 200)...), giaddr("10.20.0.254")),
		message(DISCOVER, macStranger, ciaddr("10.20.0.77")), message(DISCOVER, macStranger, requested("10.20.0.15")), message(DISCOVER, macStranger, requested("10.20.0.131")),
		message(REQUEST, macStranger, requested("10.20.0.15"), serverID("10.20.0.2")), message(REQUEST, macStranger, ciaddr("10.20.0.15"), giaddr("10.20.0.254")),
		message(DISCOVER, macDeclared, pxe(7), option(61, make([]byte, 255)...), option(97, make([]byte, 17)...)),
		message(REQUEST, macDeclared, requested("10.20.0.15"), func(p *dhcpv4.DHCPv4) { p.BootFileName = "\x0c\x04web1\xff" }, option(52, 1)),
	} {
		seeds = append(seeds, p.ToBytes())
	}
	for i, p := range seeds {
		for k := range 8 { // worlds far from each other
			f.Add(p, uint32(8*i+k)*2654435761, []string{"", "http://10.20.0.2/" + strings.Repeat("x", 200)}[k%2])
		}
	}
	f.Add([]byte{1}, uint32(0), "ipxe.efi")
	configs := configs4()
	f.Fuzz(func(t *testing.T, raw []byte, n uint32, file string) {
		w := &world{n}
		if mac := pick(w, "", macDeclared, macPooled, macStranger); mac != "" && len(raw) >= 34 {
			copy(raw[28:], hardware(mac))
		}
		whole := bytes.Clone(raw)
		agrees(t, raw)
		r, err := decode(raw)
		if !bytes.Equal(raw, whole) {
			t.Fatal("the reader's buffer was changed")
		}
		if err != nil {
			if bad := badPacket(""); !errors.As(err, &bad) {
				t.Fatalf("%v cannot be counted", err)
			}
			return
		}
		// What is no request of a client's has no answer.
		if len(raw) < 240 || raw[0] != 1 || raw[1] != 1 || raw[2] != 6 || raw[28]&1 != 0 {
			t.Fatalf("%x is taken for a request", raw)
		}
		q := question{req: r, cfg: pick(w, configs...), server: ourAddr, ours: []netip.Addr{ourAddr}, now: epoch, unicast: pick(w, false, true)}
		local := pick(w, q.cfg.networks[:1], q.cfg.networks)
		if q.network, q.onLink = q.cfg.network(r, local, q.unicast); q.network == nil {
			return
		}
		q.asker = pick(w, netip.AddrPort{}, netip.AddrPort{}, netip.AddrPort{}, netip.MustParseAddrPort("10.20.0.77:68"))
		q.from = pick(w, 0, serverPort, uint16(40067))
		tab := newTable()
		tab.loaded = pick(w, true, true, true, false)
		for _, before := range pick(w, worldTables(r)...) {
			before(tab)
		}
		spec := pick(w, ipxe.Spec{Kind: ipxe.SpecRamdisk}, ipxe.Spec{Kind: ipxe.SpecLocal}, ipxe.Spec{Kind: ipxe.SpecLocal, Local: inventory.LocalHTTP404},
			ipxe.Spec{Kind: ipxe.SpecRamdisk, SecureBoot: true}, ipxe.Spec{Kind: ipxe.SpecLocal, Local: inventory.LocalGRUB}, ipxe.Spec{Kind: ipxe.SpecIgnore})
		q.boot.trace = pick(w, "", "1d44f94068682d44")
		if q.boot.file, _ = (ipxe.Boot{}).Bootfile(r.client, spec, ourAddr, 8080); file != "" && len(file) < 256 && printable(file) {
			q.boot.file = file // whatever it is: the wrong kind must not get it
		}
		o := exchange4(t, q, tab)
		if r.kind == DISCOVER && o.packet != nil && o.offer.IsValid() {
			life(t, q, tab, o.offer)
		}
	})
}

// printable is what a loader's name and a URL are.
func printable(file string) bool {
	return !strings.ContainsFunc(file, func(r rune) bool { return r <= ' ' || r > '~' })
}

// worldTables are lease tables to a client.
func worldTables(r *request) [][]func(*table) {
	const mine, others = "10.20.0.130", "10.20.0.131"
	mac := string(r.mac)
	asked := r.requested
	if !asked.IsValid() {
		asked = r.ciaddr
	}
	list := [][]func(*table){
		nil,
		{leased(mac, mine, time.Hour)},
		{leased(mac, mine, -time.Hour), leased(macOther, others, time.Hour)},
		{leased(macOther, "10.20.0.15", time.Hour)},
		{leased(macOther, "10.20.0.15", time.Hour, declinedLease)},
		{leased(mac, mine, time.Hour, declinedLease)},
		{offeredTo(mac, mine), offeredTo(macOther, others)},
		{leased(macOther, "10.20.0.2", time.Hour), leased(macOther, "10.20.0.3", time.Hour)},
	}
	if asked.Is4() {
		list = append(list,
			[]func(*table){leased(mac, asked.String(), time.Hour)},
			[]func(*table){leased(macOther, asked.String(), time.Hour)},
			[]func(*table){leased(macOther, asked.String(), time.Hour, declinedLease)},
			[]func(*table){leased(mac, asked.String(), time.Hour, declinedLease)},
			[]func(*table){offeredTo(macOther, asked.String())},
			[]func(*table){func(t *table) { t.heard(rack().Networks[0], asked, macOther, epoch) }})
	}
	return list
}

// exchange4 asks once, judges the answer, and brings the table up to date as the
// server does.
func exchange4(t *testing.T, q question, tab *table) answered {
	t.Helper()
	holders := maps.Clone(tab.byAddr)
	o := reply(q, tab)
	judge4(t, q, holders, wired(t, o))
	tab.prepare(&q, &o)
	tab.committed(&q, &o, 7)
	return wired(t, o)
}

// life of a client that was offered an address: it takes it, renews it, comes back
// to it after a restart, and gives it back.
func life(t *testing.T, q question, tab *table, a netip.Addr) {
	t.Helper()
	next := func(kind dhcpv4.MessageType, requested, ciaddr, server netip.Addr) answered {
		t.Helper()
		r := *q.req
		p := *r.packet4
		r.packet4, p.Options = &p, slices.Clone(p.Options)
		p.ClientIPAddr = bytes4(ciaddr)
		p.Options.Put(dhcpv4.OptionDHCPMessageType, []byte{byte(kind)})
		r.kind, r.requested, r.ciaddr, r.serverID = kind, requested, ciaddr, server
		q.req = &r
		q.now = q.now.Add(time.Second)
		return exchange4(t, q, tab)
	}
	none := netip.Addr{}
	for _, step := range []struct {
		what                      string
		requested, ciaddr, server netip.Addr
	}{{"take what it was offered", a, none, ourAddr}, {"renew", none, a, none}, {"come back to", a, none, none}} {
		if o := next(REQUEST, step.requested, step.ciaddr, step.server); o.packet == nil || o.lease == nil || o.lease.Addr != a {
			t.Fatalf("%s may not %s: %s: %s", q.req.mac, step.what, a, brief(o))
		}
	}
	if o := next(RELEASE, none, a, none); o.drop != a {
		t.Fatalf("%s gives back %s: %s", q.req.mac, a, brief(o))
	}
	if _, held := tab.holder(q.network.Name, a, q.now); held {
		t.Fatalf("%s is held after it was given back", a)
	}
}

// judge4 holds an answer to what the RFCs and the firmware want of every one.
func judge4(t *testing.T, q question, holders map[place]*record, o answered) {
	t.Helper()
	r, n := q.req, q.network
	_, known := q.own()
	if (o.packet == nil) == (o.silence == "") || o.six != nil {
		t.Fatalf("neither an answer nor a reason: %+v", o)
	}
	if l := o.lease; l != nil && (l.MAC != r.mac || l.Network != n.Name || !n.Subnet.Contains(l.Addr) || (l.State == inventory.LeaseBound) != (o.packet != nil)) {
		t.Fatalf("a lease for somebody else: %+v", l)
	}
	if !known && n.Unknown == inventory.UnknownIgnore && (o.packet != nil || o.lease != nil) {
		t.Fatalf("an answer to a stranger: %s", brief(o))
	}
	if o.packet == nil {
		return
	}
	raw := o.bytes(r)
	out, err := dhcpv4.FromBytes(raw)
	if err != nil {
		t.Fatalf("the reply does not decode: %v", err)
	}
	last := lastOption(t, raw[240:])
	if agent, has := r.Options.Get(dhcpv4.GenericOptionCode(82)), r.Options.Has(dhcpv4.GenericOptionCode(82)); has && (!bytes.Equal(agent, out.Options[82]) || last != 82) {
		t.Fatalf("the relay's option came back as %x, before option %d; it was %x", out.Options[82], last, agent)
	} else if !has && out.Options.Has(dhcpv4.OptionRelayAgentInformation) {
		t.Fatal("a relay's option that no relay sent")
	}
	overloaded := out.Options.Has(dhcpv4.OptionOptionOverload)
	if overloaded && r.client.Loader != ipxe.LoaderOS {
		t.Fatal("options in fields where a boot ROM does not look")
	}
	unfolded(t, out, raw)
	kind, yiaddr := out.MessageType(), addr4(out.YourIPAddr)

	if out.OpCode != dhcpv4.OpcodeBootReply || out.TransactionID != r.TransactionID || out.HWType != 1 || inventory.MACOf(out.ClientHWAddr) != r.mac || addr4(out.GatewayIPAddr) != r.giaddr || out.HopCount != 0 {
		t.Fatalf("a reply to somebody else: %s", out.Summary())
	}
	if out.Flags != r.Flags && !(out.Flags == r.Flags|0x8000 && (kind == dhcpv4.MessageTypeNak || n.DHCP == inventory.DHCPProxy)) {
		t.Fatalf("flags %04x came back as %04x in a %s", r.Flags, out.Flags, kind)
	}
	if kind == dhcpv4.MessageTypeNak && r.giaddr.IsValid() && !out.IsBroadcast() {
		t.Fatal("a NAK that the relay would send to an address which the client does not have")
	}
	if id, has := r.Options.Get(dhcpv4.GenericOptionCode(61)), r.Options.Has(dhcpv4.GenericOptionCode(61)); has && !bytes.Equal(id, out.Options[61]) {
		t.Fatalf("client identifier %x came back as %x", id, out.Options[61])
	}
	if id := identifier(out); id != ourAddr && id != r.override {
		t.Fatalf("server identifier %s", id)
	}
	answers := map[dhcpv4.MessageType][]dhcpv4.MessageType{
		DISCOVER: {dhcpv4.MessageTypeOffer}, REQUEST: {dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak}, INFORM: {dhcpv4.MessageTypeAck}}[r.kind]
	if q.asker.IsValid() {
		answers = []dhcpv4.MessageType{dhcpv4.MessageTypeAck} // the boot server's
	}
	if !slices.Contains(answers, kind) {
		t.Fatalf("%s is answered with %s", r.kind, kind)
	}

	gives := n.DHCP == inventory.DHCPAuthoritative && r.kind != INFORM && kind != dhcpv4.MessageTypeNak
	if yiaddr.IsValid() != gives || out.Options.Has(dhcpv4.OptionIPAddressLeaseTime) != gives {
		t.Fatalf("%s of a %s Network to a %s gives %s for %s", kind, n.DHCP, r.kind, yiaddr, out.IPAddressLeaseTime(0))
	}
	if gives {
		reserved, isReserved := q.cfg.reserved[yiaddr]
		h := holders[place{n.Name, yiaddr}]
		switch {
		case !n.Subnet.Contains(yiaddr) || yiaddr == n.Gateway || yiaddr == ourAddr || yiaddr == n.Subnet.Masked().Addr() || yiaddr == lastAddr(n.Subnet):
			t.Fatalf("gave %s of %s", yiaddr, n.Subnet)
		case isReserved && reserved != r.mac:
			t.Fatalf("gave %s, which is reserved for %s, to %s", yiaddr, reserved, r.mac)
		case h != nil && q.now.Before(h.Expires) && (h.MAC != r.mac || h.State == inventory.LeaseDeclined):
			t.Fatalf("gave %s, which is %s to %s, to %s", yiaddr, h.State, h.MAC, r.mac)
		case kind == dhcpv4.MessageTypeAck && (o.lease == nil || o.lease.Addr != yiaddr), kind == dhcpv4.MessageTypeOffer && (o.lease != nil || o.offer != yiaddr):
			t.Fatalf("%s of %s, kept %s, leased %+v", kind, yiaddr, o.offer, o.lease)
		case !out.Options.Has(dhcpv4.OptionSubnetMask):
			t.Fatal("an address without a subnet mask")
		}
	} else if o.lease != nil || o.offer.IsValid() {
		t.Fatalf("%s keeps an address that it does not tell: %s", kind, brief(o))
	}

	judgeBoot4(t, q, out)
	judgeDest4(t, q, o, kind, yiaddr)
	judgeSize4(t, q, out, len(raw), overloaded)
}

// judgeBoot4: each kind of client gets the form of boot file that it understands,
// or none.
func judgeBoot4(t *testing.T, q question, out *dhcpv4.DHCPv4) {
	t.Helper()
	files := []string{out.BootFileName, string(out.Options[67])}
	class, agreed := string(out.Options[60]), files[0] == files[1] || files[0] == "" || files[1] == ""
	file := files[0] + files[1]
	isURL := strings.Contains(file, "://")
	switch loader := q.req.client.Loader; {
	case !agreed:
		t.Fatalf("two boot files: %q", files)
	case file == "" && class != "":
		t.Fatalf("class %q without a boot file", class)
	case file == "":
	case out.MessageType() == dhcpv4.MessageTypeNak || loader == ipxe.LoaderOS:
		t.Fatalf("%s tells %s to boot %q", out.MessageType(), loader, file)
	case loader == ipxe.LoaderHTTP && (!isURL || class != "HTTPClient"):
		t.Fatalf("HTTP Boot gets %q of class %q", file, class)
	case loader == ipxe.LoaderFirmware && (isURL || class != "PXEClient" || addr4(out.ServerIPAddr) != ourAddr || len(out.Options[43]) == 0):
		t.Fatalf("PXE gets %q of class %q from %s", file, class, out.ServerIPAddr)
	}
}

// judgeDest4 is RFC 2131 §4.1: a reply goes to where the client hears it, and to
// nobody whose address it has only named.
func judgeDest4(t *testing.T, q question, o answered, kind dhcpv4.MessageType, yiaddr netip.Addr) {
	t.Helper()
	r := q.req
	to := o.dest.to
	ok := false
	switch {
	case q.asker.IsValid():
		ok = to == q.asker && o.dest.bootServer && o.dest.hw == nil
	case r.kind == INFORM:
		ok = to == netip.AddrPortFrom(r.ciaddr, clientPort)
	case r.giaddr.IsValid():
		// Another port only where a relay says that it has one (RFC 8357).
		ok = to.Addr() == r.giaddr && o.dest.hw == nil && (to.Port() == serverPort || to.Port() == q.from && bytes.Contains(r.Options.Get(dhcpv4.GenericOptionCode(82)), []byte{byte(subRelayPort)}))
	case kind == dhcpv4.MessageTypeNak:
		ok = to == broadcast || !q.onLink && to == netip.AddrPortFrom(r.ciaddr, clientPort)
	case to == broadcast:
		ok = o.packet.IsBroadcast() && o.dest.hw == nil
	default:
		ok = to == netip.AddrPortFrom(yiaddr, clientPort) && (bytes.Equal(o.dest.hw, r.ClientHWAddr) || r.ciaddr == yiaddr)
	}
	if !ok {
		t.Fatalf("%s for %s, giaddr %s, ciaddr %s, asked from %s, goes to %+v", kind, yiaddr, r.giaddr, r.ciaddr, q.asker, o.dest)
	}
}

// judgeSize4: no larger than the client takes, unless all that it can do without is
// left out already.
func judgeSize4(t *testing.T, q question, out *dhcpv4.DHCPv4, n int, overloaded bool) {
	t.Helper()
	r := q.req
	limit := 576
	if v := r.Options.Get(dhcpv4.GenericOptionCode(57)); len(v) == 2 {
		limit = min(max(int(binary.BigEndian.Uint16(v)), 576), 1500)
	}
	if agent, has := r.Options.Get(dhcpv4.GenericOptionCode(82)), r.Options.Has(dhcpv4.GenericOptionCode(82)); has && r.giaddr.IsValid() {
		limit = min(limit+len(agent)+2*max(1, (len(agent)+254)/255), 1500)
	}
	if n < 300 {
		t.Fatalf("%d bytes: shorter than a BOOTP packet", n)
	}
	if n+28 <= limit || n == 300 {
		return
	}
	for _, code := range []uint8{28, 58, 59, 66, 97, 6} {
		if _, has := out.Options[code]; has && !overloaded {
			t.Fatalf("%d bytes with headers, of which the client takes %d, and option %d in it", n+28, limit, code)
		}
	}
}

// lastOption walks options as the wire has them: no code comes back after another,
// and behind the end there is nothing. It returns the last one.
func lastOption(t *testing.T, b []byte) (last uint8) {
	t.Helper()
	seen := map[uint8]bool{}
	for len(b) > 0 && b[0] != 255 {
		code := b[0]
		if code == 0 || len(b) < 2 || len(b) < 2+int(b[1]) || seen[code] && code != last {
			t.Fatalf("options end in %x after %d", b, last)
		}
		seen[code], last = true, code
		b = b[2+int(b[1]):]
	}
	if len(b) == 0 || !bytes.Equal(b[1:], make([]byte, len(b)-1)) {
		t.Fatalf("options have no end: %x", b)
	}
	return last
}

// FuzzFrames drives bytes from packet sockets through their readers, and a payload
// through our own frames and back.
func FuzzFrames(f *testing.F) {
	arp, _ := hex.DecodeString("0001080006040001525400000099" + "0a140082" + "0000000000000a140001")
	f.Add(arp)
	f.Add(foreignFrame(func(*dhcpv4.DHCPv4) {}))
	f.Add(advertisement(toAnother, wants(1, "2001:db8:20::9")))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 12, 17, 1}, make([]byte, 44)...))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 16, 58, 255}, append(make([]byte, 32), 134, 0, 0, 0, 64, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)...)) // a router's
	f.Add([]byte{0x45})
	files, _ := filepath.Glob("testdata/*.pcap")
	for _, file := range files {
		for _, b := range frames(f, file) {
			f.Add(b[14:])
		}
	}
	xid4, xid6 := dhcpv4.TransactionID{9, 9, 9, 9}, [3]byte{1, 2, 3}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := bytes.Clone(b)
		if a, hw, ok := arpSender(b); ok && (!a.Is4() || a.IsUnspecified() || len(hw) != 6 || hw[0]&1 != 0) {
			t.Errorf("%s has %s", hw, a)
		}
		if from, _, payload, ok := unframe(b); ok && (!from.Addr().Is4() || len(payload) > len(b)-28 || !bytes.Contains(b, payload)) {
			t.Errorf("%d bytes from %s in %d", len(payload), from, len(b))
		}
		if payload, from := unframe6(b); payload != nil && (!from.Is6() || len(payload) > len(b)-48 || !bytes.Contains(b, payload)) {
			t.Errorf("%d bytes from %s in %d", len(payload), from, len(b))
		}
		if o, ok := foreignOffer(b, xid4); ok && (!o.server.IsValid() || !o.offer.IsValid()) {
			t.Errorf("an offer without server or address: %+v", o)
		}
		if o, ok := foreignAdvertise(b, xid6, ourDUID); ok && (!o.server.IsValid() || !o.offer.IsValid()) {
			t.Errorf("an offer without server or address: %+v", o)
		}
		if isManaged(b) && (len(b) < 56 || b[7] != 255) {
			t.Errorf("a router's word from afar: %x", b)
		}
		if !bytes.Equal(b, whole) {
			t.Error("the reader's buffer was changed")
		}
		if len(b) < 20 || len(b) > 60000 {
			return
		}
		src, dst, payload := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), 67), netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), binary.BigEndian.Uint16(b[8:])), b[10:]
		packet := frame(src, dst, payload)
		if from, port, got, ok := unframe(packet); !ok || from != src || port != dst.Port() || !bytes.Equal(got, payload) {
			t.Errorf("%x comes back as %x from %s to port %d", payload, got, from, port)
		}
		if c := fold(sum(0, packet[:20])); c != 0xffff {
			t.Errorf("checksum of the IP header: %04x", c)
		}
		if c := fold(sum(sum(17+uint32(len(packet)-20), packet[12:20]), packet[20:])); c != 0xffff || binary.BigEndian.Uint16(packet[26:]) == 0 {
			t.Errorf("checksum of UDP: %04x", c)
		}
		src6, dst6 := netip.AddrFrom16([16]byte(b)), allAgents
		packet = frame6(src6, dst6, serverPort6, clientPort6, payload)
		if got, from := unframe6(packet); from != src6 || !bytes.Equal(got, payload) {
			t.Errorf("%x comes back as %x from %s", payload, got, from)
		}
	})
}
