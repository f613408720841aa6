package dhcp

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// nested is a message in so many relays.
func nested(n int) dhcpv6.DHCPv6 {
	var m dhcpv6.DHCPv6 = message6(SOLICIT, wants(1))
	for range n {
		m = relayed6(m, "2001:db8:20::fe", "fe80::1", option79(macDeclared))
	}
	return m
}

func TestMalformedDHCPv6IsDroppedWithItsReason(t *testing.T) {
	cut := func(m dhcpv6.DHCPv6, n int) []byte { b := m.ToBytes(); return b[:len(b)-n] }
	relay := func(options ...byte) []byte {
		return append(append([]byte{12, 0}, make([]byte, 32)...), options...)
	}
	for _, tt := range []struct {
		name string
		raw  []byte
		want badPacket
	}{
		{"nothing", nil, badShort},
		{"half a header", []byte{1, 2, 3}, badShort},
		{"an answer", message6(dhcpv6.MessageTypeReply).ToBytes(), badOp},
		{"a relay's answer", []byte{13, 0, 0, 0}, badOp},
		{"RECONFIGURE", []byte{10, 0, 0, 0}, badOp},
		{"no such type", []byte{99, 0, 0, 0}, badType},
		{"an option cut short", cut(message6(SOLICIT, wants(1)), 1), badOptions},
		{"half an option's header", append(message6(SOLICIT).ToBytes(), 0, 3, 0), badOptions},
		{"no client identifier", message6(SOLICIT, lacking(dhcpv6.OptionClientID), wants(1)).ToBytes(), badClientID},
		{"an empty client identifier", message6(SOLICIT, lacking(dhcpv6.OptionClientID), raw6(dhcpv6.OptionClientID), wants(1)).ToBytes(), badClientID},
		{"a client identifier too long", message6(SOLICIT, lacking(dhcpv6.OptionClientID), raw6(dhcpv6.OptionClientID, make([]byte, 131)...)).ToBytes(), badClientID},
		{"two client identifiers", message6(SOLICIT, raw6(dhcpv6.OptionClientID, 0, 3, 0, 1)).ToBytes(), badClientID},
		{"solicit with a server", message6(SOLICIT, toUs, wants(1)).ToBytes(), badServerID},
		{"confirm with a server", message6(CONFIRM, toUs, wants(1)).ToBytes(), badServerID},
		{"rebind with a server", message6(REBIND, toUs, wants(1)).ToBytes(), badServerID},
		{"request without a server", message6(REQUEST6, wants(1)).ToBytes(), badServerID},
		{"renew without a server", message6(RENEW, wants(1)).ToBytes(), badServerID},
		{"release without a server", message6(RELEASE6, wants(1)).ToBytes(), badServerID},
		{"decline without a server", message6(DECLINE6, wants(1)).ToBytes(), badServerID},
		{"two servers", message6(REQUEST6, toUs, toUs).ToBytes(), badServerID},
		{"stateless with an address", message6(INFORM6, wants(1)).ToBytes(), badIA},
		{"an identity association cut short", message6(SOLICIT, raw6(dhcpv6.OptionIANA, 0, 0, 0, 1)).ToBytes(), badIA},
		{"an address cut short", message6(SOLICIT, raw6(dhcpv6.OptionIANA, append(make([]byte, 12), 0, 5, 0, 3, 1, 2, 3)...)).ToBytes(), badIA},
		{"a relay cut short", relay()[:30], badShort},
		{"a relay with nothing in it", relay(), badRelay},
		{"a relay with an empty message", relay(0, 9, 0, 0), badRelay},
		{"a relay with two messages", relay(0, 9, 0, 1, 1, 0, 9, 0, 1, 1), badRelay},
		{"a relay with two interfaces", relay(0, 18, 0, 0, 0, 18, 0, 0), badOptions},
		{"too many hops", append([]byte{12, 9}, relay(0, 9, 0, 1, 1)[2:]...), badHops},
		{"a relay in each of ten", nested(10).ToBytes(), badHops},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := decode6(tt.raw, privateAddr, macDeclared); err != tt.want {
				t.Errorf("%v; want %v", err, tt.want)
			}
		})
	}
	if _, err := decode6(nested(9).ToBytes(), ourAddr6, ""); err != nil {
		t.Errorf("nine relays: %v", err)
	}
	// A sender of more than the link could be somebody far away whom our answer hits.
	if _, err := decode6(message6(SOLICIT).ToBytes(), netip.MustParseAddr("2001:db8::bad"), macDeclared); err != badSender {
		t.Errorf("a client's global address: %v", err)
	}
}

// What we have no use for may hold anything.
func TestForeignOptionsOfDHCPv6DoNoHarm(t *testing.T) {
	m := message6(SOLICIT, wants(1), raw6(dhcpv6.OptionFQDN, 0, 200, 'x'), raw6(dhcpv6.OptionORO, 1), raw6(dhcpv6.OptionElapsedTime),
		raw6(dhcpv6.OptionUserClass, 0, 9, 'i'), raw6(dhcpv6.OptionVendorClass, 0), raw6(dhcpv6.OptionClientArchType, 7), raw6(dhcpv6.OptionNII), raw6(dhcpv6.OptionNTPServer, 1, 2))
	r := parse6(t, m, macDeclared, compile(rack6()))
	if r.hostname != "" || r.client.Loader != "os" || len(r.six.ias) != 1 {
		t.Errorf("%+v", r)
	}
}

// FuzzPacket6 drives bytes through everything between the socket and the wire.
func FuzzPacket6(f *testing.F) {
	for _, p := range []dhcpv6.DHCPv6{
		message6(SOLICIT, wants(1), pxe6), message6(SOLICIT, wants(1), wants(2, "2001:db8:20::1:7"), rapid, ipxe6), message6(SOLICIT, wants(1), http6),
		message6(REQUEST6, toUs, wants(1, "2001:db8:20::15")), message6(RENEW, toUs, wants(1, "2001:db8:20::1:7", "2001:db8:99::1")), message6(REBIND, wants(1, "2001:db8:99::1")),
		message6(CONFIRM, wants(1, "2001:db8:20::15")), message6(RELEASE6, toUs, wants(1, "2001:db8:20::15")), message6(DECLINE6, toUs, wants(1, "2001:db8:20::15")),
		message6(INFORM6, pxe6), message6(SOLICIT, from6(duidUUID(make([]byte, 16)...)), raw6(dhcpv6.OptionIAPD, make([]byte, 12)...)), nested(3),
		relayed6(message6(SOLICIT, from6(duidLLT(macStranger)), wants(1), raw6(dhcpv6.OptionFQDN, append([]byte{0, 4}, "web1\x00"...)...)), "2001:db8:20::fe", "fe80::5054:ff:fe00:5", interfaceID("a")),
	} {
		f.Add(p.ToBytes())
	}
	f.Add([]byte{12, 0})
	cfg := compile(rack6())
	n := cfg.networks[0]
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decode6(raw, privateAddr, macStranger)
		if err != nil {
			return
		}
		r.identify(cfg)
		tab := newTable()
		tab.loaded = true
		leased6(macStranger, "2001:db8:20::1:7", 1e9)(tab)
		q := question{req: r, cfg: cfg, server: ourAddr6, duid: ourDUID, now: epoch, boot: boot{file: "tftp://[2001:db8:20::2]/snponly.efi"}}
		if q.network, q.onLink = cfg.network(r, cfg.networks, false); q.network == nil {
			return
		}
		o := reply(q, tab)
		if (o.six == nil) == (o.silence == "") {
			t.Fatalf("neither an answer nor a reason: %+v", o)
		}
		if o.lease != nil && (o.lease.MAC != r.mac || r.mac == "" || !n.Subnet.Contains(o.lease.Addr)) {
			t.Fatalf("a lease for somebody else: %+v", o.lease)
		}
		ops, _ := tab.prepare(&q, &o)
		if o.six == nil {
			if len(ops) > 0 {
				t.Fatalf("a silence changes the table: %v", ops)
			}
			return
		}
		m, relays := inner6(t, o.six.payload)
		if len(relays) != len(r.six.relays) || m.TransactionID != dhcpv6.TransactionID(r.TransactionID[1:]) || !o.dest.to.IsValid() {
			t.Fatalf("a reply to somebody else: %s", m.Summary())
		}
		for i, relay := range relays {
			was := r.six.relays[i]
			if !bytes.Equal(relay.Options.InterfaceID(), was.interfaceID) || relay.HopCount != was.hops {
				t.Fatalf("relay %d is answered with %s", i, relay.Summary())
			}
		}
		if id := r.six.clientID; id != nil && !bytes.Equal(m.Options.ClientID().ToBytes(), id) {
			t.Fatal("another client's identifier")
		}
		given := map[string]bool{}
		for _, a := range m.Options.IANA() {
			if !slices.ContainsFunc(r.six.ias, func(asked ia) bool { return asked.id == a.IaId }) {
				t.Fatalf("an identity association that nobody asked for: %s", a)
			}
			for _, x := range a.Options.Addresses() {
				if x.ValidLifetime == 0 {
					continue
				}
				given[x.IPv6Addr.String()] = true
				if addr, _ := netip.AddrFromSlice(x.IPv6Addr); !n.Subnet.Contains(addr) || m.MessageType == dhcpv6.MessageTypeReply && (o.lease == nil || o.lease.Addr != addr) {
					t.Fatalf("gave %s without a lease of it", x.IPv6Addr)
				}
			}
		}
		if len(given) > 1 {
			t.Fatalf("gave %v", given)
		}
		if strings.Contains(string(o.six.payload), "tftp://") && r.client.Loader != "firmware" && r.client.Loader != "ipxe" {
			t.Fatalf("a boot file for %s", r.client.Loader)
		}
	})
}

// FuzzUnframe6 drives bytes through the packet socket's reader.
func FuzzUnframe6(f *testing.F) {
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 12, 17, 1}, make([]byte, 44)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if payload, from := unframe6(b); payload != nil && (!from.IsValid() || len(payload) > len(b)-48) {
			t.Fatalf("%d bytes from %s", len(payload), from)
		}
	})
}

// advertisement is another server's answer to a probe, as a packet socket gives it.
func advertisement(change ...change6) []byte {
	m := message6(dhcpv6.MessageTypeAdvertise, change...)
	return frame6(netip.MustParseAddr("fe80::9"), privateAddr, serverPort6, clientPort6, m.ToBytes())
}

func TestOnlyAnotherServersAddressIsForeign(t *testing.T) {
	xid := [3]byte{1, 2, 3}
	for _, tt := range []struct {
		name string
		raw  []byte
		want bool
	}{
		{"another server with an address", advertisement(toAnother, wants(1, "2001:db8:20::9")), true},
		{"a server of our store", advertisement(toUs, wants(1, "2001:db8:20::9")), false},
		{"another server without an address", advertisement(toAnother, wants(1)), false},
		{"the answer to somebody else", advertisement(toAnother, wants(1, "2001:db8:20::9"), func(m *dhcpv6.Message) { m.TransactionID[0] = 9 }), false},
		{"a reply", advertisement(toAnother, wants(1, "2001:db8:20::9"), func(m *dhcpv6.Message) { m.MessageType = dhcpv6.MessageTypeReply }), false},
	} {
		if o, got := foreignAdvertise(tt.raw, xid, ourDUID); got != tt.want || got && (o.server.String() != "fe80::9" || o.offer.String() != "2001:db8:20::9") {
			t.Errorf("%s: %+v, %v", tt.name, o, got)
		}
	}
}

// FuzzForeignAdvertise drives bytes from a packet socket through the probe's reader.
func FuzzForeignAdvertise(f *testing.F) {
	f.Add(advertisement(toAnother, wants(1, "2001:db8:20::9")))
	f.Add([]byte{0x60})
	f.Fuzz(func(t *testing.T, raw []byte) {
		isManaged(raw)
		if o, ok := foreignAdvertise(raw, [3]byte{1, 2, 3}, ourDUID); ok && (!o.server.IsValid() || !o.offer.IsValid()) {
			t.Fatalf("an offer without server or address: %+v", o)
		}
	})
}
