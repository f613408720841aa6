package dhcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"recast/inventory"
	"recast/ipxe"
)

// brief6 renders an outcome in one line: what goes where, each identity
// association with its addresses and status, and what changes.
func brief6(t testing.TB, o outcome) string {
	t.Helper()
	var b strings.Builder
	if o.six == nil {
		fmt.Fprintf(&b, "silent: %s", o.silence)
	} else {
		m, _ := inner6(t, o.six.payload)
		b.WriteString(m.MessageType.String())
		if s := m.Options.Status(); s != nil {
			fmt.Fprintf(&b, " %s", s.StatusCode)
		}
		for _, opt := range m.Options.Options {
			var inner dhcpv6.Options
			var id [4]byte
			switch a := opt.(type) {
			case *dhcpv6.OptIANA:
				id, inner = a.IaId, a.Options.Options
			case *dhcpv6.OptIATA:
				id, inner = a.IaId, a.Options.Options
			case *dhcpv6.OptIAPD:
				id, inner = a.IaId, a.Options.Options
			default:
				continue
			}
			fmt.Fprintf(&b, " [%d", id[3])
			for _, o := range inner {
				switch o := o.(type) {
				case *dhcpv6.OptIAAddress:
					fmt.Fprintf(&b, " %s", o.IPv6Addr)
					if o.ValidLifetime == 0 {
						b.WriteString(" over")
					} else if o.ValidLifetime != time.Hour && o.ValidLifetime != strangersLease || o.PreferredLifetime != o.ValidLifetime {
						fmt.Fprintf(&b, " for %s", o.ValidLifetime)
					}
				case *dhcpv6.OptStatusCode:
					fmt.Fprintf(&b, " %s", o.StatusCode)
				}
			}
			b.WriteString("]")
		}
		if o.dest.to != netip.AddrPortFrom(privateAddr, 546) {
			fmt.Fprintf(&b, " to %s", o.dest.to)
		}
	}
	if o.offer.IsValid() {
		fmt.Fprintf(&b, "; offer %s", o.offer)
	}
	if o.lease != nil {
		fmt.Fprintf(&b, "; %s %s for %s", o.lease.State, o.lease.Addr, o.lease.Expires.Sub(epoch))
	}
	if o.drop.IsValid() {
		fmt.Fprintf(&b, "; drop %s", o.drop)
	}
	return b.String()
}

func TestDHCPv6ReplyByMessageAndState(t *testing.T) {
	const (
		own    = "2001:db8:20::15"
		pooled = "2001:db8:20::1:1631" // macStranger's home in the pool: a change of it would move every stranger
		other  = "2001:db8:20::1:7"
		away   = "2001:db8:99::7"
	)
	bound := func(a string) string { return "; bound " + a + " for 1h0m0s" }
	tests := []struct {
		name   string
		set    *inventory.Set
		before []func(*table)
		mac    string
		packet dhcpv6.DHCPv6
		want   string
	}{
		{"solicit of a reservation", nil, nil, macDeclared, message6(SOLICIT, wants(1)), "ADVERTISE [1 " + own + "]; offer " + own},
		{"a reservation ignores what is asked for", nil, nil, macDeclared, message6(SOLICIT, wants(1, other)), "ADVERTISE [1 " + own + "]; offer " + own},
		{"solicit of a stranger", nil, nil, macStranger, message6(SOLICIT, wants(1)), "ADVERTISE [1 " + pooled + "]; offer " + pooled},
		{"a stranger's wish inside the pool", nil, nil, macStranger, message6(SOLICIT, wants(1, other)), "ADVERTISE [1 " + other + "]; offer " + other},
		{"a stranger asks for a reserved address", nil, nil, macStranger, message6(SOLICIT, wants(1, own)), "ADVERTISE [1 " + pooled + "]; offer " + pooled},
		{"a stranger keeps its lease", nil, []func(*table){leased6(macStranger, other, time.Minute)}, macStranger, message6(SOLICIT, wants(1)), "ADVERTISE [1 " + other + "]; offer " + other},
		{"an expired lease comes back to its owner", nil, []func(*table){leased6(macStranger, other, -time.Hour)}, macStranger, message6(SOLICIT, wants(1)), "ADVERTISE [1 " + other + "]; offer " + other},
		{"a stranger where strangers are ignored", rack6(unknown(inventory.UnknownIgnore)), nil, macStranger, message6(SOLICIT, wants(1)), "silent: unknown machine"},
		{"a machine has one address, whatever it counts", nil, nil, macDeclared, message6(SOLICIT, wants(1), wants(2)), "ADVERTISE [1 " + own + "] [2 NoAddrsAvail]; offer " + own},
		{"no pool, no reservation", rack6(func(s *inventory.Set) { s.Networks[0].Pool = nil }), nil, macPooled, message6(SOLICIT, wants(1)), "ADVERTISE [1 NoAddrsAvail]"},
		{"a solicit for nothing", nil, nil, macDeclared, message6(SOLICIT), "silent: no address asked for"},
		{"prefixes and temporary addresses are not given", nil, nil, macDeclared,
			message6(SOLICIT, wants(1), raw6(dhcpv6.OptionIAPD, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0), raw6(dhcpv6.OptionIATA, 0, 0, 0, 8)),
			"ADVERTISE [1 " + own + "] [7 NoPrefixAvail] [8 NoAddrsAvail]; offer " + own},
		{"rapid commit", nil, nil, macDeclared, message6(SOLICIT, wants(1), rapid), "REPLY [1 " + own + "]" + bound(own)},
		{"rapid commit without an address is an advertisement", rack6(func(s *inventory.Set) { s.Networks[0].Pool = nil }), nil, macPooled, message6(SOLICIT, wants(1), rapid), "ADVERTISE [1 NoAddrsAvail]"},
		{"a reservation in use by a stranger's device", nil, []func(*table){leased6(macDeclared, own, time.Minute, declinedLease)}, macDeclared, message6(SOLICIT, wants(1)),
			"ADVERTISE [1 2001:db8:20::1:45b8]; offer 2001:db8:20::1:45b8"},

		{"request", nil, nil, macDeclared, message6(REQUEST6, toUs, wants(1, own)), "REPLY [1 " + own + "]" + bound(own)},
		{"request to another server", nil, nil, macDeclared, message6(REQUEST6, toAnother, wants(1, own)), "silent: another server was chosen"},
		{"request without a wish", nil, nil, macDeclared, message6(REQUEST6, toUs, wants(1)), "REPLY [1 " + own + "]" + bound(own)},
		{"request of an address of another link", nil, nil, macDeclared, message6(REQUEST6, toUs, wants(1, away)), "REPLY [1 NotOnLink]"},
		{"request of what another holds", nil, []func(*table){leased6(macOther, other, time.Minute)}, macStranger, message6(REQUEST6, toUs, wants(1, other)), "REPLY [1 " + pooled + "]" + bound(pooled)},
		{"request of what is reserved otherwise", nil, nil, macDeclared, message6(REQUEST6, toUs, wants(1, other)), "REPLY [1 " + own + "]" + bound(own)},
		{"request with no address left", rack6(func(s *inventory.Set) { s.Networks[0].Pool = nil }), nil, macPooled, message6(REQUEST6, toUs, wants(1)), "REPLY [1 NoAddrsAvail]"},

		{"renew", nil, []func(*table){leased6(macStranger, other, time.Minute)}, macStranger, message6(RENEW, toUs, wants(1, other)), "REPLY [1 " + other + "]" + bound(other)},
		{"renew of a lease we lost", nil, nil, macStranger, message6(RENEW, toUs, wants(1, other)), "REPLY [1 " + other + "]" + bound(other)},
		{"renew with another server", nil, nil, macStranger, message6(RENEW, toAnother, wants(1, other)), "silent: another server was chosen"},
		{"renew of what another holds", nil, []func(*table){leased6(macOther, other, time.Minute)}, macStranger, message6(RENEW, toUs, wants(1, other)), "REPLY [1 NoBinding]"},
		{"renew by a machine that is declared now", nil, []func(*table){leased6(macDeclared, other, time.Minute)}, macDeclared, message6(RENEW, toUs, wants(1, other)),
			"REPLY [1 " + own + " " + other + " over]" + bound(own) + "; drop " + other},
		{"renew by two identity associations", nil, nil, macDeclared, message6(RENEW, toUs, wants(1, own), wants(2, other)), "REPLY [1 " + own + "] [2 NoAddrsAvail]" + bound(own)},
		{"rebind", nil, []func(*table){leased6(macStranger, other, time.Minute)}, macStranger, message6(REBIND, wants(1, other)), "REPLY [1 " + other + "]" + bound(other)},
		{"rebind of a stranger from another link", nil, nil, macStranger, message6(REBIND, wants(1, away)), "REPLY [1 " + away + " over]"},
		{"rebind of a machine from another link", nil, nil, macDeclared, message6(REBIND, wants(1, away)), "REPLY [1 " + own + " " + away + " over]" + bound(own)},

		{"confirm", nil, nil, macStranger, message6(CONFIRM, wants(1, other)), "REPLY Success"},
		{"confirm of an address of another link", nil, nil, macStranger, message6(CONFIRM, wants(1, other), wants(2, away)), "REPLY NotOnLink"},
		{"confirm of nothing", nil, nil, macStranger, message6(CONFIRM, wants(1)), "silent: no address asked for"},

		{"release", nil, []func(*table){leased6(macStranger, other, time.Minute)}, macStranger, message6(RELEASE6, toUs, wants(1, other)), "REPLY Success; drop " + other},
		{"release of what is another's", nil, []func(*table){leased6(macOther, other, time.Minute)}, macStranger, message6(RELEASE6, toUs, wants(1, other)), "REPLY Success [1 NoBinding]"},
		{"release by who bound it last", nil, []func(*table){leased6(macStranger, other, time.Minute), boundBy(message6(RENEW, wants(1)), other)}, macStranger, message6(RELEASE6, toUs, wants(1, other)), "REPLY Success; drop " + other},
		{"release by the firmware of an address that its PXE has meanwhile", nil, []func(*table){leased6(macStranger, other, time.Minute), boundBy(message6(RENEW, wants(2)), other)}, macStranger, message6(RELEASE6, toUs, wants(1, other)), "REPLY Success"},
		{"release to another server", nil, []func(*table){leased6(macStranger, other, time.Minute)}, macStranger, message6(RELEASE6, toAnother, wants(1, other)), "silent: another server was chosen"},
		{"decline", nil, []func(*table){leased6(macStranger, other, time.Minute)}, macStranger, message6(DECLINE6, toUs, wants(1, other)), "REPLY Success; declined " + other + " for 10m0s"},
		{"decline of a reservation", nil, nil, macDeclared, message6(DECLINE6, toUs, wants(1, own)), "REPLY Success; declined " + own + " for 10m0s"},
		{"decline of what is another's", nil, []func(*table){leased6(macOther, other, time.Minute)}, macStranger, message6(DECLINE6, toUs, wants(1, other)), "REPLY Success [1 NoBinding]"},

		{"stateless", nil, nil, macDeclared, message6(INFORM6), "REPLY"},
		{"stateless without a name", nil, nil, macDeclared, message6(INFORM6, lacking(dhcpv6.OptionClientID)), "REPLY"},
		{"stateless to another server", nil, nil, macDeclared, message6(INFORM6, toAnother), "silent: another server was chosen"},

		{"through a relay", nil, nil, "", relayed6(message6(SOLICIT, wants(1)), "2001:db8:20::fe", privateAddr.String(), option79(macDeclared)), "ADVERTISE [1 " + own + "] to [2001:db8:99::1]:547; offer " + own},
		{"through a relay of a subnet nobody declared", nil, nil, "", relayed6(message6(SOLICIT, wants(1)), "2001:db8:66::fe", privateAddr.String(), option79(macDeclared)), "silent: no Network here"},
		{"through a relay that tells too little", nil, nil, "", relayed6(message6(SOLICIT, wants(1)), "2001:db8:20::fe", privateAddr.String()), "silent: no hardware address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := tt.set
			if set == nil {
				set = rack6()
			}
			want := tt.want
			if tt.mac == macStranger {
				want = strings.Replace(want, "for 1h0m0s", "for 15m0s", 1)
			}
			if got := brief6(t, ask6(t, set, tt.packet, tt.mac, tt.before)); got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

// boundBy notes who sent a message as who bound the address.
func boundBy(m *dhcpv6.Message, addr string) func(*table) {
	return func(t *table) {
		id := m.Options.OneIANA().IaId
		t.byAddr[place{"rack1-v6", netip.MustParseAddr(addr)}].client = string(m.Options.ClientID().ToBytes()) + string(id[:])
	}
}

// What every answer carries, byte for byte where a client compares.
func TestDHCPv6RepliesCarryWhatClientsCheck(t *testing.T) {
	id := raw6(dhcpv6.OptionFQDN, append([]byte{0, 4}, "web1\x07example\x00"...)...)
	asked := message6(SOLICIT, wants(9), id)
	o := ask6(t, rack6(), asked, macDeclared, nil)
	m, _ := inner6(t, o.six.payload)
	if m.TransactionID != asked.TransactionID {
		t.Errorf("transaction %v", m.TransactionID)
	}
	if !m.Options.ClientID().Equal(asked.Options.ClientID()) || !bytes.Equal(m.Options.ServerID().ToBytes(), ourDUID) {
		t.Errorf("client %s, server %s", m.Options.ClientID(), m.Options.ServerID())
	}
	if m.Options.Preference() != 255 {
		t.Error("the client would wait for other servers")
	}
	if d := m.Options.DNS(); len(d) != 1 || d[0].String() != "2001:db8::53" {
		t.Errorf("name servers %v", d)
	}
	a := m.Options.OneIANA()
	if a.T1 != 30*time.Minute || a.T2 != 48*time.Minute || a.IaId != [4]byte{3: 9} {
		t.Errorf("%+v", a)
	}
	if o := ask6(t, rack6(), message6(REQUEST6, toUs, wants(9), id), macDeclared, nil); o.lease.Hostname != "web1.example" || o.lease.Machine != "r1u05" {
		t.Errorf("lease %+v", o.lease)
	}
}

// Firmware, iPXE, ramdisk and system name themselves and their interfaces anew; the
// address stays.
func TestOneIPv6AddressWhateverTheMachineCallsItself(t *testing.T) {
	for _, mac := range []string{macDeclared, macPooled, macStranger} {
		var first netip.Addr
		for i, m := range []*dhcpv6.Message{
			message6(SOLICIT, from6(duidUUID(0x4c, 0x4c, 0x45, 0x44, 0, 0x42, 0x35, 0x10, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4a, 0x4e, 0x31)), wants(1), pxe6),
			message6(SOLICIT, from6(duidUUID(0x44, 0x45, 0x4c, 0x4c, 0x42, 0, 0x10, 0x35, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4a, 0x4e, 0x31)), wants(2), ipxe6),
			message6(SOLICIT, from6(duidLL(macOther)), wants(3)),
			message6(SOLICIT, from6(duidLLT(macOther)), wants(4)),
			message6(SOLICIT, wants(5)),
		} {
			o := ask6(t, rack6(), m, mac, nil)
			if i == 0 {
				first = o.offer
			}
			if !o.offer.IsValid() || o.offer != first {
				t.Errorf("%s: offer %d is %s, the first was %s", mac, i, o.offer, first)
			}
		}
	}
}

// Through relays the hardware address comes from who knows it best.
func TestMachineBehindARelayIsKnown(t *testing.T) {
	const eui = "fe80::5054:ff:fe00:5" // of macDeclared
	smbios := duidUUID(0x44, 0x45, 0x4c, 0x4c, 0x42, 0, 0x10, 0x35, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4a, 0x4e, 0x31)
	network := duidUUID(0x4c, 0x4c, 0x45, 0x44, 0, 0x42, 0x35, 0x10, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4a, 0x4e, 0x31)
	private := privateAddr.String()
	for _, tt := range []struct {
		name string
		p    dhcpv6.DHCPv6
		want inventory.MAC
	}{
		{"option 79 before all else", relayed6(message6(SOLICIT, from6(duidLL(macOther))), "2001:db8:20::fe", eui, option79(macStranger)), macStranger},
		{"option 79 of the relay nearest to the client", relayed6(relayed6(message6(SOLICIT), "2001:db8:20::fe", private, option79(macDeclared)), "::", "fe80::9", option79(macOther)), macDeclared},
		{"the address it was made from", relayed6(message6(SOLICIT), "2001:db8:20::fe", eui), macDeclared},
		{"the address before the DUID of another card", relayed6(message6(SOLICIT, from6(duidLLT(macOther))), "2001:db8:20::fe", eui), macDeclared},
		{"a declared card in the DUID before an address of nobody", relayed6(message6(SOLICIT, from6(duidLLT(macDeclared))), "2001:db8:20::fe", "fe80::5054:ff:fe00:99"), macDeclared},
		{"DUID-LL", relayed6(message6(SOLICIT, from6(duidLL(macDeclared))), "2001:db8:20::fe", private), macDeclared},
		{"DUID-LLT", relayed6(message6(SOLICIT, from6(duidLLT(macStranger))), "2001:db8:20::fe", private), macStranger},
		{"DUID-UUID in network order", relayed6(message6(SOLICIT, from6(network)), "2001:db8:20::fe", private), macDeclared},
		{"DUID-UUID as SMBIOS has it", relayed6(message6(SOLICIT, from6(smbios)), "2001:db8:20::fe", private), macDeclared},
		{"DUID-UUID of zeros", relayed6(message6(SOLICIT, from6(duidUUID(make([]byte, 16)...))), "2001:db8:20::fe", private), ""},
		{"DUID-EN", relayed6(message6(SOLICIT), "2001:db8:20::fe", private), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parse6(t, tt.p, "", compile(rack6())).mac; got != tt.want {
				t.Errorf("hardware address %q; want %q", got, tt.want)
			}
		})
	}
	// Two cards, one UUID: the one of the relay's network is meant.
	set := rack6(func(s *inventory.Set) {
		s.Machines[0].NICs = append([]inventory.NIC{{MAC: macOther, IP6: netip.MustParseAddr("2001:db8:30::15")}}, s.Machines[0].NICs...)
	})
	r := parse6(t, relayed6(message6(SOLICIT, from6(smbios)), "2001:db8:20::fe", private), "", compile(set))
	if r.mac != macDeclared || r.client.UUID != uuidDeclared {
		t.Errorf("%s, uuid %s", r.mac, r.client.UUID)
	}
}

// The reply goes back through the same relays, each with what it said.
func TestRelaysAreAnsweredInTheirOrder(t *testing.T) {
	const private = "fe80::1234:5678:9abc:def0"
	p := relayed6(relayed6(relayed6(message6(SOLICIT, wants(1)), "2001:db8:20::fe", private, option79(macDeclared), interfaceID("ge-0/0/7\x00\xff")),
		"::", "2001:db8:20::fe"), "2001:db8:40::1", "fe80::7", interfaceID("outer"))
	o := ask6(t, rack6(), p, "", nil)
	if want := netip.MustParseAddrPort("[2001:db8:99::1]:547"); o.dest.to != want {
		t.Errorf("to %s", o.dest.to)
	}
	m, relays := inner6(t, o.six.payload)
	var got []string
	for _, r := range relays {
		got = append(got, fmt.Sprintf("%s %d %s %s %q %v", r.MessageType, r.HopCount, r.LinkAddr, r.PeerAddr, r.Options.InterfaceID(), r.Options.GetOne(dhcpv6.OptionInterfaceID) != nil))
	}
	if diff := cmp.Diff([]string{
		`RELAY-REPL 2 2001:db8:40::1 fe80::7 "outer" true`,
		`RELAY-REPL 1 :: 2001:db8:20::fe "" false`,
		`RELAY-REPL 0 2001:db8:20::fe fe80::1234:5678:9abc:def0 "ge-0/0/7\x00\xff" true`,
	}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if m.MessageType != dhcpv6.MessageTypeAdvertise {
		t.Error(m.Summary())
	}
}

// Each client gets the boot file in the one form that it takes: HTTP Boot only ever a
// URL by HTTP, with its class; PXE a URL by TFTP; a system nothing.
func TestDHCPv6BootOptionsPerClient(t *testing.T) {
	boot6 := func(c ipxe.Client) string {
		file, _ := ipxe.Boot{}.Bootfile(c, ipxe.Spec{Kind: ipxe.SpecRamdisk}, ourAddr6, 8080)
		return file
	}
	const base = "http://[2001:db8:20::2]:8080"
	for _, tt := range []struct {
		name       string
		packet     *dhcpv6.Message
		file       string // "" as ipxe names it
		url, class string
	}{
		{"PXE", message6(SOLICIT, wants(1), pxe6), "", "tftp://[2001:db8:20::2]/snponly.efi", ""},
		{"PXE that says its class alone", message6(SOLICIT, wants(1), func(m *dhcpv6.Message) {
			m.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: intel, Data: [][]byte{[]byte("PXEClient:Arch:00011:UNDI:003000")}})
		}), "", "tftp://[2001:db8:20::2]/ipxe-arm64.efi", ""},
		{"PXE that says its architecture alone", message6(SOLICIT, wants(1), raw6(dhcpv6.OptionClientArchType, 0, 7)), "", "tftp://[2001:db8:20::2]/snponly.efi", ""},
		{"HTTP Boot", message6(SOLICIT, wants(1), http6), "", base + "/boot/loader/snponly.efi", "HTTPClient"},
		{"iPXE", message6(SOLICIT, wants(1), ipxe6), "", base + "/boot/script?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}", ""},
		{"a system", message6(SOLICIT, wants(1)), "tftp://[2001:db8:20::2]/snponly.efi", "", ""},
		{"PXE is not given a URL by HTTP", message6(SOLICIT, wants(1), pxe6), base + "/x", "", ""},
		{"HTTP Boot is not given a name", message6(SOLICIT, wants(1), http6), "snponly.efi", "", ""},
		{"HTTP Boot is not given a URL by TFTP", message6(SOLICIT, wants(1), http6), "tftp://[::1]/x", "", ""},
		{"PXE without an address", message6(INFORM6, pxe6), "", "tftp://[2001:db8:20::2]/snponly.efi", ""},
		{"PXE that takes the address", message6(REQUEST6, toUs, wants(1), pxe6), "", "tftp://[2001:db8:20::2]/snponly.efi", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask6(t, rack6(), tt.packet, macDeclared, nil, func(q *question) {
				if q.boot.file = tt.file; tt.file == "" {
					q.boot.file = boot6(q.req.client)
				}
			})
			m, _ := inner6(t, o.six.payload)
			class := ""
			if v := m.Options.VendorClass(intel); v != nil {
				class = string(v[0])
			}
			if got := m.Options.BootFileURL(); got != tt.url || class != tt.class {
				t.Errorf("url %q, class %q; want %q, %q", got, class, tt.url, tt.class)
			}
			if m.Options.GetOne(dhcpv6.OptionBootfileParam) != nil {
				t.Error("option 60 is there, for which edk2 drops the answer")
			}
		})
	}
	if c := parse6(t, message6(SOLICIT, class("PXEClient", iana.EFI_BC), ipxe6), macDeclared, compile(rack6())).client; c.Loader != ipxe.LoaderIPXE || c.MAC != macDeclared {
		t.Errorf("%+v", c)
	}
}

// A lost lease table or a table not read yet gives nobody somebody else's address.
func TestIPv6PoolWaitsForTheLeases(t *testing.T) {
	unread := func(tab *table) { tab.loaded = false }
	if got := brief6(t, ask6(t, rack6(), message6(SOLICIT, wants(1)), macStranger, []func(*table){unread})); got != "silent: leases not read yet" {
		t.Error(got)
	}
	if got := brief6(t, ask6(t, rack6(), message6(SOLICIT, wants(1)), macDeclared, []func(*table){unread})); !strings.HasPrefix(got, "ADVERTISE [1 2001:db8:20::15]") {
		t.Error(got)
	}
}

func TestLargeIPv6PoolsCountRight(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		first, last string
		n, i        uint64
		at          string
	}{
		{"10.0.0.250", "10.0.1.5", 12, 11, "10.0.1.5"},
		{"2001:db8::1", "2001:db8::1", 1, 0, "2001:db8::1"},
		{"2001:db8::ffff:ffff:ffff:fff0", "2001:db8:0:1::f", 32, 31, "2001:db8:0:1::f"},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:fffe", maxSlots, 1 << 40, "2001:db8::100:0:1"},
		{"2001:db8::9", "2001:db8::1", 0, 0, ""},
		{"10.0.0.1", "2001:db8::1", 0, 0, ""},
	} {
		p := &inventory.AddrRange{First: addr(tt.first), Last: addr(tt.last)}
		if n := slots(p); n != tt.n {
			t.Errorf("%s-%s has %d; want %d", tt.first, tt.last, n, tt.n)
		}
		if tt.at != "" && slot(p, tt.i) != addr(tt.at) {
			t.Errorf("%s + %d = %s; want %s", tt.first, tt.i, slot(p, tt.i), tt.at)
		}
	}
}

// A machine's timeline tells of DHCPv6 what it tells of DHCPv4.
func TestObservationsOfDHCPv6StandForThoseOfDHCPv4(t *testing.T) {
	var got []string
	s := &Server{Observe: func(o inventory.Observation) {
		got = append(got, fmt.Sprintf("%s %s %s: %s of %v by %v", o.Kind, o.V6, o.MAC, o.Detail, o.Remote, o.Server))
	}}
	s.init()
	for _, m := range []*dhcpv6.Message{
		message6(SOLICIT, wants(1), pxe6), message6(REQUEST6, toUs, wants(1), pxe6), message6(REQUEST6, toUs, wants(1, "2001:db8:99::1")),
		message6(RENEW, toUs, wants(1, "2001:db8:20::15")), message6(INFORM6, http6),
	} {
		var asked question
		o := ask6(t, rack6(), m, macDeclared, nil, func(q *question) { asked = *q })
		s.sawAsked(&asked)
		s.sawAnswered(&asked, o, epoch)
	}
	const none = "invalid IP"
	if diff := cmp.Diff([]string{
		"dhcp-discover SOLICIT 52:54:00:00:00:05: firmware, architecture 7 of " + none + " by " + none,
		"dhcp-offer ADVERTISE 52:54:00:00:00:05:  of 2001:db8:20::15 by 2001:db8:20::2",
		"dhcp-request REQUEST 52:54:00:00:00:05: firmware, architecture 7 of " + none + " by " + none,
		"dhcp-ack REPLY 52:54:00:00:00:05:  of 2001:db8:20::15 by 2001:db8:20::2",
		"dhcp-request REQUEST 52:54:00:00:00:05: os of " + none + " by " + none,
		"dhcp-nak REPLY 52:54:00:00:00:05: NotOnLink of " + none + " by 2001:db8:20::2",
		"dhcp-request RENEW 52:54:00:00:00:05: os of " + none + " by " + none,
		"dhcp-ack REPLY 52:54:00:00:00:05:  of 2001:db8:20::15 by 2001:db8:20::2",
		"dhcp-request INFORMATION-REQUEST 52:54:00:00:00:05: http, architecture 16 of " + none + " by " + none,
		"dhcp-ack REPLY 52:54:00:00:00:05:  of " + none + " by 2001:db8:20::2",
	}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
