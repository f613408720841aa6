package dhcp

import (
	"net/netip"
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
