package dhcp

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"recast/inventory"
)

const relayAddr6 = "2001:db8:20::fe"

func remoteID(s string) dhcpv6.Option {
	return &dhcpv6.OptRemoteID{EnterpriseNumber: 9, RemoteID: []byte(s)}
}

// behindPort6 declares a machine by its switch port on the IPv6 Network.
func behindPort6(p inventory.Port, mac inventory.MAC) func(*inventory.Set) {
	return func(s *inventory.Set) {
		s.Machines = append(s.Machines, &inventory.Machine{Name: "r1u07", NICs: []inventory.NIC{{MAC: mac, Port: &p, Network: "rack1-v6", IP6: netip.MustParseAddr("2001:db8:20::17")}}})
	}
}

// ask6 sends a message as the last relay does, or the client itself, and returns the
// address that it gets.
func (r *rig) ask6(p dhcpv6.DHCPv6, mac string) string {
	r.t.Helper()
	from, hw := privateAddr, inventory.MAC(mac)
	if p.IsRelay() {
		from, hw = netip.MustParseAddr(relayAddr6), ""
	}
	r.ourAddrs.Store(&[]netip.Addr{ourAddr, ourAddr6})
	r.receive6(r.t.Context(), r.link, p.ToBytes(), netip.AddrPortFrom(from, 10547), ourAddr6, hw)
	m, _ := inner6(r.t, r.get().raw)
	ia := m.Options.OneIANA()
	if ia == nil || ia.Options.OneAddress() == nil {
		return ""
	}
	return ia.Options.OneAddress().IPv6Addr.String()
}

func TestDHCPv6PortNamesAMachineBeforeItsHardwareAddressIsKnown(t *testing.T) {
	eth7 := inventory.Port{Circuit: "Ethernet1/7"}
	relay := netip.MustParseAddr(relayAddr6)
	asks := func(change ...change6) *dhcpv6.Message { return message6(SOLICIT, append(change, wants(1))...) }
	// As a switch relays: it says the port, and the address that it was asked from.
	at := func(m dhcpv6.DHCPv6, options ...dhcpv6.Option) dhcpv6.DHCPv6 {
		return relayed6(m, relayAddr6, privateAddr.String(), append(options, option79(macStranger))...)
	}
	for _, tt := range []struct {
		name string
		port inventory.Port
		ask  dhcpv6.DHCPv6
		ours bool
	}{
		{"its interface ID", eth7, at(asks(pxe6), interfaceID("Ethernet1/7")), true},
		{"and remote ID, without its enterprise", inventory.Port{Circuit: "Ethernet1/7", Remote: "sw1"}, at(asks(pxe6), interfaceID("Ethernet1/7"), remoteID("sw1")), true},
		{"and relay", inventory.Port{Circuit: "Ethernet1/7", Relay: relay}, at(asks(pxe6), interfaceID("Ethernet1/7"), remoteID("sw1")), true},
		{"an interface ID that is no text", inventory.Port{Circuit: "0x0000002a"}, at(asks(pxe6), interfaceID("\x00\x00\x00\x2a")), true},
		{"HTTP Boot", eth7, at(asks(http6), interfaceID("Ethernet1/7")), true},
		{"iPXE", eth7, at(asks(ipxe6), interfaceID("Ethernet1/7")), true},
		{"a switch without an address, behind a router", inventory.Port{Circuit: "Ethernet1/7", Relay: relay},
			relayed6(relayed6(asks(pxe6), "::", privateAddr.String(), interfaceID("Ethernet1/7"), option79(macStranger)), relayAddr6, "fe80::5", interfaceID("Vlan20")), true},
		{"the router's own interface", inventory.Port{Circuit: "Vlan20"},
			relayed6(relayed6(asks(pxe6), "::", privateAddr.String(), interfaceID("Ethernet1/7"), option79(macStranger)), relayAddr6, "fe80::5", interfaceID("Vlan20")), false},
		{"another interface ID", eth7, at(asks(pxe6), interfaceID("Ethernet1/8")), false},
		{"another switch", inventory.Port{Circuit: "Ethernet1/7", Remote: "sw1"}, at(asks(pxe6), interfaceID("Ethernet1/7"), remoteID("sw2")), false},
		{"no remote ID", inventory.Port{Circuit: "Ethernet1/7", Remote: "sw1"}, at(asks(pxe6), interfaceID("Ethernet1/7")), false},
		{"another relay", inventory.Port{Circuit: "Ethernet1/7", Relay: netip.MustParseAddr("2001:db8:20::fd")}, at(asks(pxe6), interfaceID("Ethernet1/7")), false},
		{"no interface ID", eth7, at(asks(pxe6), remoteID("Ethernet1/7")), false},
		{"an empty one", eth7, at(asks(pxe6), interfaceID("")), false},
		{"what does not boot", eth7, at(asks(), interfaceID("Ethernet1/7")), false},
		{"the client itself", eth7, asks(pxe6), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rack6(behindPort6(tt.port, "")))
			eventually(t, "the ports are read", r.ports.ready)
			if got := r.ask6(tt.ask, macStranger); got == "" || (got == "2001:db8:20::17") != tt.ours {
				t.Errorf("got %s", got)
			}
			if !tt.ours {
				return
			}
			// Its renewals may go past the relay, and the system boots nothing.
			if got := r.ask6(message6(SOLICIT, wants(1)), macStranger); got != "2001:db8:20::17" {
				t.Errorf("the system got %s", got)
			}
		})
	}
}

func TestDHCPv6TellsOfWrongCables(t *testing.T) {
	at := func(circuit, mac string) dhcpv6.DHCPv6 {
		return relayed6(message6(SOLICIT, pxe6, wants(1)), relayAddr6, privateAddr.String(), interfaceID(circuit), option79(mac))
	}
	r := newRig(t, rack6(behindPort6(inventory.Port{Circuit: "p7"}, macOther)))
	eventually(t, "the ports are read", r.ports.ready)
	if got := r.ask6(at("p9", macOther), ""); got != "2001:db8:20::17" {
		t.Errorf("got %s", got)
	}
	want := `network "rack1-v6": "r1u07" asks at {circuit: "p9", relay: 2001:db8:20::fe}, and is declared at {circuit: "p7"}; correct the cabling, or its port`
	if f := strings.Join(r.Findings(), "\n"); f != want {
		t.Errorf("findings %q; want %q", f, want)
	}
}

// A switch spells its ports for DHCPv6 in another way than for DHCPv4: who was
// learned on one Network of the link is known on the other.
func TestMachineLearnedByDHCPv4IsKnownToDHCPv6AtAPortOfAnotherSpelling(t *testing.T) {
	set := rack(behindPort(inventory.Port{Circuit: "p7"}, "10.20.0.17", ""))
	set.Machines[2].NICs[0].IP6 = netip.MustParseAddr("2001:db8:20::17")
	set.Networks = append(set.Networks, rack6().Networks[0])
	r := newRig(t, set)
	eventually(t, "the ports are read", r.ports.ready)
	if got := r.relayed(macStranger, pxe(7), atPort("p7")).YourIPAddr.String(); got != "10.20.0.17" {
		t.Fatalf("got %s", got)
	}
	six := relayed6(message6(SOLICIT, pxe6, wants(1)), relayAddr6, privateAddr.String(), interfaceID("Ethernet7"), option79(macStranger))
	if got := r.ask6(six, ""); got != "2001:db8:20::17" {
		t.Errorf("got %s", got)
	}
	// And declared by both, no cable is wrong for it.
	set.Machines[2].NICs[0].MAC = macStranger
	r = newRig(t, set)
	if got := r.ask6(six, ""); got != "2001:db8:20::17" || len(r.Findings()) > 0 {
		t.Errorf("got %s, findings %q", got, r.Findings())
	}
}

// Relays that say no hardware address stand before whole halls.
func TestDHCPv6ClientsWithoutAHardwareAddressAreCountedOneByOne(t *testing.T) {
	r := newRig(t, rack6())
	relay := netip.AddrPortFrom(netip.MustParseAddr(relayAddr6), 547)
	ask := func(id byte, xid int) string {
		r.t.Helper()
		m := message6(SOLICIT, wants(1), from6(&dhcpv6.DUIDEN{EnterpriseNumber: 43793, EnterpriseIdentifier: []byte{id, 0, 0}}))
		m.TransactionID = dhcpv6.TransactionID{0, byte(xid >> 8), byte(xid)}
		before := r.Stats().Silent["too many packets"]
		r.receive6(t.Context(), r.link, relayed6(m, relayAddr6, privateAddr.String()).ToBytes(), relay, ourAddr6, "")
		if r.Stats().Silent["too many packets"] > before {
			return "too many"
		}
		return ""
	}
	for xid := range perClient {
		if got := ask(1, xid); got != "" {
			t.Fatalf("message %d: %s", xid, got)
		}
	}
	if got := ask(1, perClient); got != "too many" {
		t.Errorf("one client has no end: %q", got)
	}
	if got := ask(2, perClient+1); got != "" {
		t.Errorf("another client: %s", got)
	}
}
