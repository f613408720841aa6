package dhcp

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"recast/inventory"
)

// Types by short names.
const (
	SOLICIT  = dhcpv6.MessageTypeSolicit
	REQUEST6 = dhcpv6.MessageTypeRequest
	RENEW    = dhcpv6.MessageTypeRenew
	REBIND   = dhcpv6.MessageTypeRebind
	CONFIRM  = dhcpv6.MessageTypeConfirm
	RELEASE6 = dhcpv6.MessageTypeRelease
	DECLINE6 = dhcpv6.MessageTypeDecline
	INFORM6  = dhcpv6.MessageTypeInformationRequest
)

const uuidDeclared = "4c4c4544-0042-3510-8052-b4c04f4a4e31"

var (
	ourAddr6 = netip.MustParseAddr("2001:db8:20::2")
	ourDUID  = serverDUID("epoch")
	// A link-local address that tells no hardware address.
	privateAddr = netip.MustParseAddr("fe80::1234:5678:9abc:def0")
)

// rack6 is the IPv6 Network of most tests.
func rack6(change ...func(*inventory.Set)) *inventory.Set {
	addr := netip.MustParseAddr
	set := &inventory.Set{
		Networks: []*inventory.Network{{
			Name: "rack1-v6", Subnet: netip.MustParsePrefix("2001:db8:20::/64"), DHCP: inventory.DHCPAuthoritative,
			Unknown: inventory.UnknownDiscover, DNS: []netip.Addr{addr("2001:db8::53")},
			Pool:      &inventory.AddrRange{First: addr("2001:db8:20::1:0"), Last: addr("2001:db8:20::1:ffff")},
			LeaseTime: inventory.Duration(time.Hour),
		}},
		Machines: []*inventory.Machine{
			{Name: "r1u05", UUID: uuidDeclared, NICs: []inventory.NIC{{MAC: macDeclared, Network: "rack1", IP: addr("10.20.0.15"), IP6: addr("2001:db8:20::15")}}},
			{Name: "r1u06", NICs: []inventory.NIC{{MAC: macPooled, Network: "rack1"}}},
		},
	}
	for _, f := range change {
		f(set)
	}
	return set
}

type change6 = func(*dhcpv6.Message)

func hardware(mac string) net.HardwareAddr {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	return hw
}

// message6 is a client's message, with a DUID that tells nothing.
func message6(kind dhcpv6.MessageType, change ...change6) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDEN{EnterpriseNumber: 43793, EnterpriseIdentifier: []byte{1, 2, 3, 4, 5, 6, 7, 8}}))
	for _, f := range change {
		f(m)
	}
	return m
}

func from6(d dhcpv6.DUID) change6 {
	return func(m *dhcpv6.Message) { m.UpdateOption(dhcpv6.OptClientID(d)) }
}
func duidLL(mac string) dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hardware(mac)}
}
func duidLLT(mac string) dhcpv6.DUID {
	return &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 77, LinkLayerAddr: hardware(mac)}
}
func duidUUID(b ...byte) dhcpv6.DUID { return &dhcpv6.DUIDUUID{UUID: [16]byte(b)} }

// wants adds an IA_NA, with the addresses that the client knows.
func wants(id byte, addrs ...string) change6 {
	return func(m *dhcpv6.Message) {
		a := &dhcpv6.OptIANA{IaId: [4]byte{3: id}}
		for _, s := range addrs {
			a.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(s), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
		}
		m.AddOption(a)
	}
}
func raw6(code dhcpv6.OptionCode, v ...byte) change6 {
	return func(m *dhcpv6.Message) { m.AddOption(&dhcpv6.OptionGeneric{OptionCode: code, OptionData: v}) }
}
func toUs(m *dhcpv6.Message) { raw6(dhcpv6.OptionServerID, ourDUID...)(m) }
func toAnother(m *dhcpv6.Message) {
	m.AddOption(dhcpv6.OptServerID(duidLL(macOther)))
}
func rapid(m *dhcpv6.Message) { raw6(dhcpv6.OptionRapidCommit)(m) }
func lacking(code dhcpv6.OptionCode) change6 {
	return func(m *dhcpv6.Message) { m.Options.Del(code) }
}

// class is a vendor class under Intel's number with the architecture beside it.
func class(name string, arch iana.Arch) change6 {
	return func(m *dhcpv6.Message) {
		m.AddOption(dhcpv6.OptClientArchType(arch))
		m.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: intel, Data: [][]byte{[]byte(name + ":Arch:00007:UNDI:003016")}})
	}
}
func pxe6(m *dhcpv6.Message)  { class("PXEClient", iana.EFI_X86_64)(m) }
func http6(m *dhcpv6.Message) { class("HTTPClient", iana.EFI_X86_64_HTTP)(m) }
func ipxe6(m *dhcpv6.Message) {
	pxe6(m)
	m.AddOption(&dhcpv6.OptUserClass{UserClasses: [][]byte{[]byte("iPXE")}})
}

// relayed wraps a message as a relay does.
func relayed6(m dhcpv6.DHCPv6, link, peer string, options ...dhcpv6.Option) *dhcpv6.RelayMessage {
	r, err := dhcpv6.EncapsulateRelay(m, dhcpv6.MessageTypeRelayForward, net.ParseIP(link), net.ParseIP(peer))
	if err != nil {
		panic(err)
	}
	for _, o := range options {
		r.AddOption(o)
	}
	return r
}
func option79(mac string) dhcpv6.Option {
	return dhcpv6.OptClientLinkLayerAddress(iana.HWTypeEthernet, hardware(mac))
}
func interfaceID(s string) dhcpv6.Option { return dhcpv6.OptInterfaceID([]byte(s)) }

// parse6 sends the message through the decoder, as the packet socket does.
func parse6(t testing.TB, p dhcpv6.DHCPv6, mac string, cfg *config) *request {
	t.Helper()
	from, hw := privateAddr, inventory.MAC(mac)
	if p.IsRelay() {
		from, hw = netip.MustParseAddr("2001:db8:99::1"), ""
	}
	r, err := decode6(p.ToBytes(), from, hw)
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	r.identify(cfg)
	return r
}

// ask6 runs reply on a message that came in on the rack's link.
func ask6(t testing.TB, set *inventory.Set, p dhcpv6.DHCPv6, mac string, before []func(*table), change ...func(*question)) outcome {
	t.Helper()
	tab := newTable()
	tab.loaded = true
	for _, f := range before {
		f(tab)
	}
	cfg := compile(set)
	q := question{req: parse6(t, p, mac, cfg), cfg: cfg, server: ourAddr6, ours: []netip.Addr{ourAddr6}, duid: ourDUID, now: epoch}
	q.network, q.onLink = cfg.network(q.req, cfg.networks[:1], false)
	if q.network == nil {
		return silent("no Network here")
	}
	for _, f := range change {
		f(&q)
	}
	return reply(q, tab)
}

// inner6 decodes a reply with the library, and takes the relays off.
func inner6(t testing.TB, payload []byte) (*dhcpv6.Message, []*dhcpv6.RelayMessage) {
	t.Helper()
	p, err := dhcpv6.FromBytes(payload)
	if err != nil {
		t.Fatalf("the reply does not decode: %v", err)
	}
	var relays []*dhcpv6.RelayMessage
	for p.IsRelay() {
		r := p.(*dhcpv6.RelayMessage)
		relays = append(relays, r)
		if p = r.Options.RelayMessage(); p == nil {
			t.Fatal("a RELAY-REPL with nothing in it")
		}
	}
	return p.(*dhcpv6.Message), relays
}

// leased6 puts a record of the IPv6 Network into the table.
func leased6(mac, addr string, left time.Duration, change ...func(*inventory.Lease)) func(*table) {
	return leased(mac, addr, left, append(slices.Clone(change), func(l *inventory.Lease) { l.Network = "rack1-v6" })...)
}
