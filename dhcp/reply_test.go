package dhcp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// Types by short names.
const (
	DISCOVER = dhcpv4.MessageTypeDiscover
	REQUEST  = dhcpv4.MessageTypeRequest
	DECLINE  = dhcpv4.MessageTypeDecline
	RELEASE  = dhcpv4.MessageTypeRelease
	INFORM   = dhcpv4.MessageTypeInform
)

// leased puts a record into the table.
func leased(mac, addr string, left time.Duration, change ...func(*inventory.Lease)) func(*table) {
	return func(t *table) {
		l := inventory.Lease{Network: "rack1", Addr: netip.MustParseAddr(addr), MAC: inventory.MAC(mac),
			State: inventory.LeaseBound, Expires: epoch.Add(left)}
		for _, f := range change {
			f(&l)
		}
		t.put(l, 1)
	}
}

func declinedLease(l *inventory.Lease) { l.State = inventory.LeaseDeclined }
func ofMachine(name string) func(*inventory.Lease) {
	return func(l *inventory.Lease) { l.Machine = name }
}
func offeredTo(mac, addr string) func(*table) {
	return func(t *table) {
		t.hold("rack1", inventory.MAC(mac), false, netip.MustParseAddr(addr), epoch.Add(offerHold))
	}
}

// ask runs reply on a packet that came in on the rack's link.
func ask(t testing.TB, set *inventory.Set, p *dhcpv4.DHCPv4, before []func(*table), change ...func(*question)) answered {
	t.Helper()
	tab := newTable()
	tab.loaded = true
	for _, f := range before {
		f(tab)
	}
	cfg := compile(set)
	q := question{req: parse(t, p), cfg: cfg, server: ourAddr, ours: []netip.Addr{ourAddr}, now: epoch}
	q.network, q.onLink = cfg.network(q.req, cfg.networks[:1], q.unicast)
	if q.network == nil {
		return answered{outcome: silent("no Network here")}
	}
	for _, f := range change {
		f(&q)
	}
	return wired(t, reply(q, tab))
}

// answered is an outcome with its packet as the library reads it off the wire.
type answered struct {
	outcome
	packet *dhcpv4.DHCPv4
	raw    []byte
}

func wired(t testing.TB, o outcome) answered {
	t.Helper()
	a := answered{outcome: o}
	if o.packet != nil {
		var err error
		a.raw = appendPacket(nil, o.packet)
		if a.packet, err = dhcpv4.FromBytes(a.raw); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// brief renders an outcome in one line: what goes where, and what changes.
func brief(o answered) string {
	var b strings.Builder
	if o.packet == nil {
		fmt.Fprintf(&b, "silent: %s", o.silence)
	} else {
		fmt.Fprintf(&b, "%s", o.packet.MessageType())
		if a := addr4(o.packet.YourIPAddr); a.IsValid() {
			fmt.Fprintf(&b, " %s", a)
		}
		fmt.Fprintf(&b, " to %s", o.dest.to)
		if o.dest.hw != nil {
			fmt.Fprintf(&b, " at %s", o.dest.hw)
		}
	}
	if o.lease != nil {
		fmt.Fprintf(&b, "; %s %s for %s", o.lease.State, o.lease.Addr, o.lease.Expires.Sub(epoch))
	}
	if o.drop.IsValid() {
		fmt.Fprintf(&b, "; drop %s", o.drop)
	}
	return b.String()
}

func TestReplyByMessageAndState(t *testing.T) {
	const at = " at " + macDeclared
	tests := []struct {
		name   string
		set    *inventory.Set
		before []func(*table)
		packet *dhcpv4.DHCPv4
		want   string
	}{
		// DISCOVER. Pool addresses follow from the hash of the hardware address: a
		// change of it would move every stranger.
		{"discover of a reservation", nil, nil, message(DISCOVER, macDeclared), "OFFER 10.20.0.15 to 10.20.0.15:68" + at},
		{"discover with the broadcast flag", nil, nil, message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.15 to 255.255.255.255:68"},
		{"discover through a relay", nil, nil, message(DISCOVER, macDeclared, giaddr("10.20.0.254")), "OFFER 10.20.0.15 to 10.20.0.254:67"},
		{"discover that claims an address is not aimed there", nil, nil, message(DISCOVER, macDeclared, ciaddr("10.20.0.77")), "OFFER 10.20.0.15 to 10.20.0.15:68" + at},
		{"discover through a relay of a subnet nobody declared", nil, nil, message(DISCOVER, macDeclared, giaddr("192.168.9.1")), "silent: no Network here"},
		{"a reservation ignores what is asked for", nil, nil, message(DISCOVER, macDeclared, requested("10.20.0.150")), "OFFER 10.20.0.15 to 10.20.0.15:68" + at},
		{"a stranger's wish inside the pool", nil, nil, message(DISCOVER, macStranger, requested("10.20.0.150"), wantsBroadcast), "OFFER 10.20.0.150 to 255.255.255.255:68"},
		{"a stranger asks for a reserved address", nil, nil, message(DISCOVER, macStranger, requested("10.20.0.15"), wantsBroadcast), "OFFER 10.20.0.173 to 255.255.255.255:68"},
		{"a stranger keeps its lease", nil, []func(*table){leased(macStranger, "10.20.0.120", time.Minute)}, message(DISCOVER, macStranger, wantsBroadcast), "OFFER 10.20.0.120 to 255.255.255.255:68"},
		{"an expired lease comes back to its owner", nil, []func(*table){leased(macStranger, "10.20.0.120", -time.Hour)}, message(DISCOVER, macStranger, wantsBroadcast), "OFFER 10.20.0.120 to 255.255.255.255:68"},
		{"an offer is kept", nil, []func(*table){offeredTo(macStranger, "10.20.0.121")}, message(DISCOVER, macStranger, wantsBroadcast), "OFFER 10.20.0.121 to 255.255.255.255:68"},
		{"a stranger where strangers are ignored", rack(unknown(inventory.UnknownIgnore)), nil, message(DISCOVER, macStranger), "silent: unknown machine"},
		{"a stranger where nothing is said", rack(unknown("")), nil, message(DISCOVER, macStranger), "silent: unknown machine"},
		{"a stranger where strangers boot their disk", rack(unknown(inventory.UnknownLocal)), nil, message(DISCOVER, macStranger, wantsBroadcast), "OFFER 10.20.0.173 to 255.255.255.255:68"},
		{"no pool, no reservation", rack(func(s *inventory.Set) { s.Networks[0].Pool = nil }), nil, message(DISCOVER, macPooled), "silent: no free address"},
		{"a reservation in use by a stranger's device", nil, []func(*table){leased(macDeclared, "10.20.0.15", time.Minute, declinedLease)}, message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.160 to 255.255.255.255:68"},
		{"a quarantine that is over", nil, []func(*table){leased(macDeclared, "10.20.0.15", -time.Second, declinedLease)}, message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.15 to 255.255.255.255:68"},
		{"a reservation still leased to another", nil, []func(*table){leased(macOther, "10.20.0.15", time.Minute)}, message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.160 to 255.255.255.255:68"},
		{"a replaced network card", nil, []func(*table){leased(macOther, "10.20.0.15", time.Minute, ofMachine("r1u05"))}, message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.15 to 255.255.255.255:68"},

		// REQUEST, SELECTING
		{"selecting", nil, nil, message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2")), "ACK 10.20.0.15 to 10.20.0.15:68" + at + "; bound 10.20.0.15 for 1h0m0s"},
		{"selecting another server", nil, nil, message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.3")), "silent: another server was chosen"},
		{"selecting what is reserved otherwise", nil, nil, message(REQUEST, macDeclared, requested("10.20.0.150"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"selecting outside the subnet", nil, nil, message(REQUEST, macDeclared, requested("192.168.1.5"), serverID("10.20.0.2")), "silent: address outside the subnet"},
		{"selecting after the offer was forgotten", nil, nil, message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.2"), wantsBroadcast), "ACK 10.20.0.130 to 255.255.255.255:68; bound 10.20.0.130 for 15m0s"},
		{"selecting what another holds", nil, []func(*table){leased(macOther, "10.20.0.130", time.Minute)}, message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"selecting what was offered to another", nil, []func(*table){offeredTo(macOther, "10.20.0.130")}, message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"selecting moves the station", nil, []func(*table){leased(macDeclared, "10.20.0.120", time.Minute)}, message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2"), wantsBroadcast), "ACK 10.20.0.15 to 255.255.255.255:68; bound 10.20.0.15 for 1h0m0s; drop 10.20.0.120"},
		{"selecting through a relay, refused", nil, nil, message(REQUEST, macDeclared, requested("10.20.0.150"), serverID("10.20.0.2"), giaddr("10.20.0.254")), "NAK to 10.20.0.254:67"},
		{"selecting the gateway", nil, nil, message(REQUEST, macStranger, requested("10.20.0.1"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"selecting as an ignored stranger", rack(unknown(inventory.UnknownIgnore)), nil, message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.2")), "silent: unknown machine"},

		// REQUEST, INIT-REBOOT
		{"init-reboot of a reservation", nil, nil, message(REQUEST, macDeclared, requested("10.20.0.15")), "ACK 10.20.0.15 to 10.20.0.15:68" + at + "; bound 10.20.0.15 for 1h0m0s"},
		{"init-reboot with a wrong address of ours", nil, nil, message(REQUEST, macDeclared, requested("10.20.0.16")), "NAK to 255.255.255.255:68"},
		{"init-reboot with an address from elsewhere", nil, nil, message(REQUEST, macDeclared, requested("192.168.1.5")), "silent: address outside the subnet"},
		{"init-reboot without any record", nil, nil, message(REQUEST, macStranger, requested("10.20.0.130")), "silent: no record of this address"},
		{"init-reboot of a lease", nil, []func(*table){leased(macStranger, "10.20.0.130", time.Minute)}, message(REQUEST, macStranger, requested("10.20.0.130"), wantsBroadcast), "ACK 10.20.0.130 to 255.255.255.255:68; bound 10.20.0.130 for 15m0s"},
		{"init-reboot of an expired lease", nil, []func(*table){leased(macStranger, "10.20.0.130", -time.Minute)}, message(REQUEST, macStranger, requested("10.20.0.130"), wantsBroadcast), "ACK 10.20.0.130 to 255.255.255.255:68; bound 10.20.0.130 for 15m0s"},
		{"init-reboot of another one's lease", nil, []func(*table){leased(macOther, "10.20.0.130", time.Minute)}, message(REQUEST, macStranger, requested("10.20.0.130")), "NAK to 255.255.255.255:68"},
		{"init-reboot of a declined address", nil, []func(*table){leased(macOther, "10.20.0.130", time.Minute, declinedLease)}, message(REQUEST, macStranger, requested("10.20.0.130")), "NAK to 255.255.255.255:68"},
		{"init-reboot of the wrong one of our leases", nil, []func(*table){leased(macStranger, "10.20.0.131", time.Minute)}, message(REQUEST, macStranger, requested("10.20.0.130")), "NAK to 255.255.255.255:68"},
		{"init-reboot of another one's reservation", nil, nil, message(REQUEST, macStranger, requested("10.20.0.15")), "NAK to 255.255.255.255:68"},

		// REQUEST, RENEWING and REBINDING
		{"renewing", nil, []func(*table){leased(macStranger, "10.20.0.130", time.Minute)}, message(REQUEST, macStranger, ciaddr("10.20.0.130")), "ACK 10.20.0.130 to 10.20.0.130:68; bound 10.20.0.130 for 15m0s"},
		{"renewing after the lease table was lost", nil, nil, message(REQUEST, macStranger, ciaddr("10.20.0.130")), "ACK 10.20.0.130 to 10.20.0.130:68; bound 10.20.0.130 for 15m0s"},
		{"renewing an address outside pool and records", nil, nil, message(REQUEST, macStranger, ciaddr("10.20.0.50")), "silent: no record of this address"},
		{"renewing a pool address after being declared", nil, []func(*table){leased(macDeclared, "10.20.0.130", time.Minute)}, message(REQUEST, macDeclared, ciaddr("10.20.0.130")), "NAK to 255.255.255.255:68"},
		{"renewing what another holds", nil, []func(*table){leased(macOther, "10.20.0.130", time.Minute)}, message(REQUEST, macStranger, ciaddr("10.20.0.130")), "NAK to 255.255.255.255:68"},
		{"renewing an address of another network", nil, nil, message(REQUEST, macDeclared, ciaddr("192.168.1.5")), "silent: address outside the subnet"},
		{"rebinding through a relay", nil, nil, message(REQUEST, macDeclared, ciaddr("10.20.0.15"), giaddr("10.20.0.254")), "ACK 10.20.0.15 to 10.20.0.254:67; bound 10.20.0.15 for 1h0m0s"},
		{"renewing with another server's identifier", nil, nil, message(REQUEST, macDeclared, ciaddr("10.20.0.15"), serverID("10.20.0.3")), "silent: another server was chosen"},
		{"request that says nothing", nil, nil, message(REQUEST, macDeclared), "silent: request without an address"},
		{"request that names only us", nil, nil, message(REQUEST, macDeclared, serverID("10.20.0.2")), "silent: request without an address"},

		// DECLINE, RELEASE, INFORM
		{"decline of a lease", nil, []func(*table){leased(macStranger, "10.20.0.130", time.Minute)}, message(DECLINE, macStranger, requested("10.20.0.130"), serverID("10.20.0.2")), "silent: declined; declined 10.20.0.130 for 10m0s"},
		{"decline of an offer", nil, []func(*table){offeredTo(macStranger, "10.20.0.130")}, message(DECLINE, macStranger, requested("10.20.0.130")), "silent: declined; declined 10.20.0.130 for 10m0s"},
		{"decline of a reservation", nil, nil, message(DECLINE, macDeclared, requested("10.20.0.15")), "silent: declined; declined 10.20.0.15 for 10m0s"},
		{"decline of another one's lease", nil, []func(*table){leased(macOther, "10.20.0.130", time.Minute)}, message(DECLINE, macStranger, requested("10.20.0.130")), "silent: not its address"},
		{"decline of a free address", nil, nil, message(DECLINE, macStranger, requested("10.20.0.130")), "silent: not its address"},
		{"decline to another server", nil, []func(*table){leased(macStranger, "10.20.0.130", time.Minute)}, message(DECLINE, macStranger, requested("10.20.0.130"), serverID("10.20.0.3")), "silent: another server was chosen"},
		{"decline of nothing", nil, nil, message(DECLINE, macStranger), "silent: not its address"},
		{"release", nil, []func(*table){leased(macStranger, "10.20.0.130", time.Minute)}, message(RELEASE, macStranger, ciaddr("10.20.0.130"), serverID("10.20.0.2")), "silent: released; drop 10.20.0.130"},
		{"release of another one's lease", nil, []func(*table){leased(macOther, "10.20.0.130", time.Minute)}, message(RELEASE, macStranger, ciaddr("10.20.0.130")), "silent: not its address"},
		{"release to another server", nil, []func(*table){leased(macStranger, "10.20.0.130", time.Minute)}, message(RELEASE, macStranger, ciaddr("10.20.0.130"), serverID("10.20.0.3")), "silent: another server was chosen"},
		{"inform", nil, nil, message(INFORM, macDeclared, ciaddr("10.20.0.50")), "ACK to 10.20.0.50:68"},
		{"inform without an address", nil, nil, message(INFORM, macDeclared), "silent: inform without an address of the subnet"},
		{"inform from elsewhere", nil, nil, message(INFORM, macDeclared, ciaddr("192.168.1.5")), "silent: inform without an address of the subnet"},
		{"inform of an ignored stranger", rack(unknown(inventory.UnknownIgnore)), nil, message(INFORM, macStranger, ciaddr("10.20.0.50")), "silent: unknown machine"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := tt.set
			if set == nil {
				set = rack()
			}
			if diff := cmp.Diff(tt.want, brief(ask(t, set, tt.packet, tt.before))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A renewal of a relayed machine is unicast to us without a relay; what it gets
// must go to it, not to our own link.
func TestRelayedMachinesRenewDirectly(t *testing.T) {
	set := rack(func(s *inventory.Set) {
		s.Networks = append(s.Networks, &inventory.Network{Name: "rack2", Subnet: netip.MustParsePrefix("10.30.0.0/24"),
			DHCP: inventory.DHCPAuthoritative, Unknown: inventory.UnknownDiscover,
			Pool: &inventory.AddrRange{First: netip.MustParseAddr("10.30.0.100"), Last: netip.MustParseAddr("10.30.0.199")}})
	})
	cfg := compile(set)
	for _, tt := range []struct {
		name    string
		packet  *dhcpv4.DHCPv4
		unicast bool
		network string
		onLink  bool
	}{
		{"unicast renewal of the other subnet", message(REQUEST, macStranger, ciaddr("10.30.0.101")), true, "rack2", false},
		{"broadcast of the other subnet's address", message(REQUEST, macStranger, ciaddr("10.30.0.101")), false, "rack1", true},
		{"relay", message(DISCOVER, macStranger, giaddr("10.30.0.1")), true, "rack2", false},
		{"relay with link selection", message(DISCOVER, macStranger, giaddr("172.16.0.1"), option(82, 5, 4, 10, 30, 0, 0)), true, "rack2", false},
		{"link selection of a subnet nobody declared", message(DISCOVER, macStranger, giaddr("10.30.0.1"), option(82, 5, 4, 172, 16, 0, 0)), true, "", false},
		{"plain discover", message(DISCOVER, macStranger), false, "rack1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, onLink := cfg.network(parse(t, tt.packet), cfg.networks[:1], tt.unicast)
			name := ""
			if n != nil {
				name = n.Name
			}
			if name != tt.network || onLink != tt.onLink {
				t.Errorf("network %q, on link %v; want %q, %v", name, onLink, tt.network, tt.onLink)
			}
		})
	}
	o := ask(t, set, message(REQUEST, macStranger, ciaddr("10.30.0.5")), []func(*table){func(tab *table) {
		tab.put(inventory.Lease{Network: "rack2", Addr: netip.MustParseAddr("10.30.0.5"), MAC: macOther, State: inventory.LeaseBound, Expires: epoch.Add(time.Hour)}, 1)
	}}, func(q *question) {
		q.unicast = true
		q.network, q.onLink = q.cfg.network(q.req, q.cfg.networks[:1], true)
	})
	if got, want := brief(o), "NAK to 10.30.0.5:68"; got != want {
		t.Errorf("%s; want %s", got, want)
	}
}

// Two subnets on one wire, the first by name for BMCs alone: it must not take the
// strangers from the second.
func TestStrangerOnALinkOfSeveralNetworksGetsTheOneThatTakesStrangers(t *testing.T) {
	cfg := compile(rack(func(s *inventory.Set) {
		s.Networks = []*inventory.Network{{Name: "bmcs", Subnet: netip.MustParsePrefix("10.21.0.0/24"), DHCP: inventory.DHCPAuthoritative}, s.Networks[0],
			{Name: "rack2", Subnet: netip.MustParsePrefix("10.22.0.0/24"), DHCP: inventory.DHCPAuthoritative, Unknown: inventory.UnknownLocal}}
		s.Machines[1].NICs = []inventory.NIC{{MAC: macOther, Network: "bmcs"}}
	}))
	for _, tt := range []struct {
		name   string
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{"a stranger", message(DISCOVER, macStranger), "rack1"},
		{"a stranger with an address of another", message(REQUEST, macStranger, requested("10.22.0.100")), "rack2"},
		{"a stranger with an address of the BMCs'", message(REQUEST, macStranger, requested("10.21.0.100")), "bmcs"},
		{"a stranger from elsewhere", message(REQUEST, macStranger, requested("192.0.2.1")), "rack1"},
		{"who is declared there", message(DISCOVER, macOther), "bmcs"},
		{"who is declared there, with an address of another", message(REQUEST, macOther, requested("10.20.0.100")), "bmcs"},
	} {
		if n, _ := cfg.network(parse(t, tt.packet), cfg.networks, false); n.Name != tt.want {
			t.Errorf("%s: %s; want %s", tt.name, n.Name, tt.want)
		}
	}
}

func TestWithoutTheLeasesOnlyDeclaredAddressesAreGiven(t *testing.T) {
	unloaded := []func(*table){func(tab *table) { tab.loaded = false }}
	for _, tt := range []struct {
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.15 to 255.255.255.255:68"},
		{message(DISCOVER, macStranger), "silent: leases not read yet"},
		{message(DISCOVER, macPooled), "silent: leases not read yet"},
		{message(REQUEST, macStranger, ciaddr("10.20.0.130")), "silent: leases not read yet"},
	} {
		if got := brief(ask(t, rack(), tt.packet, unloaded)); got != tt.want {
			t.Errorf("%s; want %s", got, tt.want)
		}
	}
}

// dump lists every option of a reply for comparison.
func dump(p *dhcpv4.DHCPv4) []string {
	out := []string{fmt.Sprintf("siaddr=%s file=%q", net.IP(ip4(addr4(p.ServerIPAddr))), p.BootFileName)}
	for code := range 255 {
		if v, ok := p.Options[uint8(code)]; ok {
			out = append(out, fmt.Sprintf("%d=%x", code, v))
		}
	}
	return out
}

func TestOptionsOfAnOffer(t *testing.T) {
	common := []string{"1=ffffff00", "3=0a140001", "6=0a14000109090909", "28=0a1400ff", "51=00000e10", "53=02", "54=0a140002", "58=00000708", "59=00000c4e"}
	uuid := "97=0033221100554477668899aabbccddeeff"
	with := func(head string, more ...string) []string {
		all := append(append([]string{}, common...), more...)
		byCode := func(s string) int { var n int; fmt.Sscanf(s, "%d=", &n); return n }
		for i := range all {
			for j := i + 1; j < len(all); j++ {
				if byCode(all[j]) < byCode(all[i]) {
					all[i], all[j] = all[j], all[i]
				}
			}
		}
		return append([]string{head}, all...)
	}
	hx := func(s string) string { return fmt.Sprintf("%x", s) }
	vendor := fmt.Sprintf("43=%x", []byte{6, 1, 8, 10, 4, 0, 'P', 'X', 'E', 255})
	const none = `siaddr=0.0.0.0 file=""`
	tests := []struct {
		name   string
		packet *dhcpv4.DHCPv4
		file   string
		want   []string
	}{
		{"an operating system", message(DISCOVER, macDeclared), "undionly.kpxe", with(none)},
		{"BIOS firmware", message(DISCOVER, macDeclared, pxe(0)), "undionly.kpxe",
			with(`siaddr=10.20.0.2 file="undionly.kpxe"`, vendor, "60="+hx("PXEClient"), "66="+hx("10.20.0.2"), "67="+hx("undionly.kpxe"), uuid)},
		{"UEFI firmware", message(DISCOVER, macDeclared, pxe(7)), "ipxe-amd64.efi",
			with(`siaddr=10.20.0.2 file="ipxe-amd64.efi"`, vendor, "60="+hx("PXEClient"), "66="+hx("10.20.0.2"), "67="+hx("ipxe-amd64.efi"), uuid)},
		{"firmware without 93, 94 and 97", message(DISCOVER, macDeclared, option(60, []byte("PXEClient:Arch:00000:UNDI:002001")...)), "undionly.kpxe",
			with(`siaddr=10.20.0.2 file="undionly.kpxe"`, vendor, "60="+hx("PXEClient"), "66="+hx("10.20.0.2"), "67="+hx("undionly.kpxe"))},
		{"firmware without a boot file", message(DISCOVER, macDeclared, pxe(7)), "", with(none, uuid)},
		{"firmware never gets a URL", message(DISCOVER, macDeclared, pxe(7)), "http://10.20.0.2/boot", with(none, uuid)},
		{"iPXE", message(DISCOVER, macDeclared, ipxeClient), "http://10.20.0.2:8080/boot/script",
			with(`siaddr=10.20.0.2 file="http://10.20.0.2:8080/boot/script"`, "66="+hx("10.20.0.2"), "67="+hx("http://10.20.0.2:8080/boot/script"), uuid, "175=b00101")},
		{"iPXE with a URL longer than the header's field", message(DISCOVER, macDeclared, ipxeClient), "http://h/" + strings.Repeat("x", 130),
			with(`siaddr=10.20.0.2 file=""`, "66="+hx("10.20.0.2"), "67="+hx("http://h/"+strings.Repeat("x", 130)), uuid, "175=b00101")},
		{"HTTP boot never gets a TFTP name", message(DISCOVER, macDeclared, option(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), option(93, 0, 16)), "ipxe-amd64.efi", with(none)},
		{"client identifier and relay option come back", message(DISCOVER, macDeclared, option(61, 1, 2, 3), option(82, 1, 3, 'a', 'b', 0), giaddr("10.20.0.254")), "",
			with(none, "61=010203", "82=0103616200")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), tt.packet, nil, func(q *question) { q.boot.file = tt.file })
			if o.packet == nil {
				t.Fatal(o.silence)
			}
			if diff := cmp.Diff(tt.want, dump(o.packet)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestFieldsOfReplies(t *testing.T) {
	mk := func(kind dhcpv4.MessageType, more ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
		return message(kind, macDeclared, append(more, func(p *dhcpv4.DHCPv4) { p.NumSeconds, p.HopCount = 30, 2 })...)
	}
	tests := []struct {
		name                          string
		packet                        *dhcpv4.DHCPv4
		ciaddr, yiaddr, giaddr, flags string
		lease                         bool
	}{
		{"offer", mk(DISCOVER, ciaddr("10.20.0.15")), "0.0.0.0", "10.20.0.15", "0.0.0.0", "0000", true},
		{"ack of a renewal", mk(REQUEST, ciaddr("10.20.0.15")), "10.20.0.15", "10.20.0.15", "0.0.0.0", "0000", true},
		{"ack through a relay", mk(REQUEST, requested("10.20.0.15"), giaddr("10.20.0.254"), wantsBroadcast), "0.0.0.0", "10.20.0.15", "10.20.0.254", "8000", true},
		{"nak through a relay is to be broadcast", mk(REQUEST, requested("10.20.0.16"), giaddr("10.20.0.254")), "0.0.0.0", "0.0.0.0", "10.20.0.254", "8000", false},
		{"nak of a renewal", mk(REQUEST, ciaddr("10.20.0.16")), "0.0.0.0", "0.0.0.0", "0.0.0.0", "0000", false},
		{"ack of an inform", mk(INFORM, ciaddr("10.20.0.15")), "10.20.0.15", "0.0.0.0", "0.0.0.0", "0000", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), tt.packet, nil)
			if o.packet == nil {
				t.Fatal(o.silence)
			}
			p, err := dhcpv4.FromBytes(o.raw)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%s %s %s %04x", p.ClientIPAddr, p.YourIPAddr, p.GatewayIPAddr, p.Flags)
			if want := fmt.Sprintf("%s %s %s %s", tt.ciaddr, tt.yiaddr, tt.giaddr, tt.flags); got != want {
				t.Errorf("ciaddr yiaddr giaddr flags = %s; want %s", got, want)
			}
			if p.OpCode != dhcpv4.OpcodeBootReply || p.HopCount != 0 || p.NumSeconds != 0 || p.TransactionID != tt.packet.TransactionID || p.ClientHWAddr.String() != macDeclared {
				t.Errorf("wrong header: %s", p.Summary())
			}
			for _, code := range []uint8{51, 58, 59} {
				if _, ok := p.Options[code]; ok != tt.lease {
					t.Errorf("option %d present: %v; want %v", code, ok, tt.lease)
				}
			}
			if !p.ServerIdentifier().Equal(net.IP(ip4(ourAddr))) {
				t.Errorf("server identifier %s", p.ServerIdentifier())
			}
		})
	}
}

func TestReplyFitsWhatTheClientTakes(t *testing.T) {
	many := func(s *inventory.Set) {
		for i := range 40 {
			s.Networks[0].DNS = append(s.Networks[0].DNS, netip.AddrFrom4([4]byte{10, 9, 9, byte(i)}))
		}
	}
	long := option(61, bytes.Repeat([]byte{7}, 100)...)
	for _, tt := range []struct {
		name  string
		more  []func(*dhcpv4.DHCPv4)
		limit int
		has67 bool
		hasNS bool
	}{
		{"a client that says nothing", []func(*dhcpv4.DHCPv4){pxe(0), long}, 548, false, false},
		{"a client that says too little", []func(*dhcpv4.DHCPv4){pxe(0), long, option(57, 0, 100)}, 548, false, false},
		{"edk2", []func(*dhcpv4.DHCPv4){pxe(7), long, option(57, 5, 0xb8)}, 1464 - 28, true, true},
		{"a client that boasts", []func(*dhcpv4.DHCPv4){pxe(7), long, option(57, 0xff, 0xff)}, 1500 - 28, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(many), message(DISCOVER, macDeclared, tt.more...), nil, func(q *question) { q.boot.file = "undionly.kpxe" })
			if n := len(o.raw); n > tt.limit {
				t.Errorf("%d bytes; want at most %d", n, tt.limit)
			}
			if _, ok := o.packet.Options[67]; ok != tt.has67 {
				t.Errorf("option 67 present: %v", ok)
			}
			if _, ok := o.packet.Options[6]; ok != tt.hasNS {
				t.Errorf("option 6 present: %v", ok)
			}
			if o.packet.BootFileName != "undionly.kpxe" {
				t.Errorf("the header lost the boot file")
			}
			for _, must := range []uint8{1, 3, 43, 51, 53, 54, 60, 61} {
				if _, ok := o.packet.Options[must]; !ok {
					t.Errorf("option %d is missing", must)
				}
			}
		})
	}
}

func TestLostLeaseTableChangesNoAddress(t *testing.T) {
	set := rack()
	cfg := compile(set)
	give := func(macs []string) map[string]netip.Addr {
		tab := newTable()
		tab.loaded = true
		got := map[string]netip.Addr{}
		for _, mac := range macs {
			q := question{req: parse(t, message(DISCOVER, mac)), cfg: cfg, network: cfg.networks[0], onLink: true, server: ourAddr, now: epoch}
			o := reply(q, tab)
			tab.prepare(&q, &o)
			got[mac] = o.offer
		}
		return got
	}
	var macs []string
	for i := range 99 { // all but the one that is kept for a declared machine
		macs = append(macs, fmt.Sprintf("52:54:00:00:01:%02x", i))
	}
	first := give(macs)
	seen := map[netip.Addr]string{}
	for mac, a := range first {
		if other, twice := seen[a]; twice || !cfg.networks[0].Pool.Contains(a) {
			t.Errorf("%s for %s (and %q)", a, mac, other)
		}
		seen[a] = mac
	}
	if diff := cmp.Diff(first, give(macs), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-first +second)\n%s", diff)
	}
	// A full pool: nothing is given twice, and a declared machine takes over
	// what a stranger was only offered.
	tab := newTable()
	tab.loaded = true
	for i := range 100 {
		offeredTo(fmt.Sprintf("52:54:00:00:02:%02x", i), fmt.Sprintf("10.20.0.%d", 100+i))(tab)
	}
	q := question{req: parse(t, message(DISCOVER, macStranger)), cfg: cfg, network: cfg.networks[0], server: ourAddr, now: epoch}
	o := reply(q, tab)
	if o.silence != silenceExhausted || !strings.Contains(o.finding, "every address of the pool 10.20.0.100-10.20.0.199 is taken") {
		t.Errorf("%s, finding %q", brief(wired(t, o)), o.finding)
	}
	q.req = parse(t, message(DISCOVER, macPooled))
	if o := reply(q, tab); !o.offer.IsValid() {
		t.Errorf("a declared machine waits behind strangers' offers: %s", brief(wired(t, o)))
	}
}

func TestPoolNeverGivesSpecialAddresses(t *testing.T) {
	set := rack(func(s *inventory.Set) {
		s.Networks[0].Subnet = netip.MustParsePrefix("10.20.0.0/29")
		s.Networks[0].Pool = &inventory.AddrRange{First: netip.MustParseAddr("10.20.0.0"), Last: netip.MustParseAddr("10.20.0.9")}
		s.Machines[0].NICs[0].IP = netip.MustParseAddr("10.20.0.3")
	})
	cfg := compile(set)
	tab := newTable()
	tab.loaded = true
	var got []string
	for i := range 10 {
		q := question{req: parse(t, message(DISCOVER, fmt.Sprintf("52:54:00:00:01:%02x", i))), cfg: cfg, network: cfg.networks[0], server: ourAddr, now: epoch}
		o := reply(q, tab)
		tab.prepare(&q, &o)
		if o.offer.IsValid() {
			got = append(got, o.offer.String())
		}
	}
	// .0 is the subnet, .1 the gateway, .2 we, .3 reserved, .7 the broadcast.
	if len(got) != 3 || strings.Contains(strings.Join(got, " ")+" ", "10.20.0.0 ") {
		t.Errorf("gave %v; want .4, .5 and .6 in some order", got)
	}
	for _, a := range got {
		if a != "10.20.0.4" && a != "10.20.0.5" && a != "10.20.0.6" {
			t.Errorf("gave %s", a)
		}
	}
}

func TestHostnameOfTheSystemSurvivesFirmware(t *testing.T) {
	o := ask(t, rack(), message(REQUEST, macDeclared, requested("10.20.0.15")), []func(*table){
		leased(macDeclared, "10.20.0.15", time.Hour, func(l *inventory.Lease) { l.Hostname = "web1" })})
	if o.lease == nil || o.lease.Hostname != "web1" || o.lease.Machine != "r1u05" {
		t.Errorf("lease %+v", o.lease)
	}
}

// A declared address may be ours: the interface was given another one since, or
// the files were applied where nobody knew. Two hosts on it and neither is reached.
func TestOurOwnAddressIsNobodysReservation(t *testing.T) {
	ours := func(s *inventory.Set) { s.Machines[0].NICs[0].IP = ourAddr }
	bmc := func(s *inventory.Set) {
		withBMC(s)
		s.Machines[0].BMC.IP = ourAddr
	}
	unloaded := func(t *table) { t.loaded = false }
	had := leased(macDeclared, ourAddr.String(), time.Minute, ofMachine("r1u05"))
	for _, tt := range []struct {
		name, who string
		set       *inventory.Set
		before    []func(*table)
		packet    *dhcpv4.DHCPv4
		want      string
	}{
		{"discover", `"r1u05"`, rack(ours), nil, message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.160 to 255.255.255.255:68"},
		{"discover of one that had it", `"r1u05"`, rack(ours), []func(*table){had}, message(DISCOVER, macDeclared, requested("10.20.0.2"), wantsBroadcast), "OFFER 10.20.0.160 to 255.255.255.255:68"},
		{"discover of a BMC", `the BMC of "r1u05"`, rack(bmc), nil, message(DISCOVER, macBMC, wantsBroadcast), "OFFER 10.20.0.151 to 255.255.255.255:68"},
		{"request", "", rack(ours), nil, message(REQUEST, macDeclared, requested("10.20.0.2"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"renewal", "", rack(ours), []func(*table){had}, message(REQUEST, macDeclared, ciaddr("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"before the leases are read", "", rack(ours), []func(*table){unloaded}, message(DISCOVER, macDeclared), "silent: " + silenceUnloaded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, tt.set, tt.packet, tt.before)
			if got := brief(o); got != tt.want {
				t.Errorf("%s; want %s", got, tt.want)
			}
			want := ""
			if tt.who != "" {
				want = `network "rack1": 10.20.0.2, reserved for ` + tt.who + `, is this server's own address, which nobody gets: give it another in its file and apply`
			}
			if o.finding != want {
				t.Errorf("finding %q; want %q", o.finding, want)
			}
		})
	}
}

// RFC 3442: who takes option 121 disregards the router, so the default route is in
// it too. Firmware does not ask, and gets the router alone.
func TestRoutesGoToWhoAsksForThemWithTheDefaultRouteAmongThem(t *testing.T) {
	routed := func(s *inventory.Set) {
		for _, r := range []struct{ to, via string }{
			{"10.0.0.0/8", "10.20.0.254"}, {"192.168.7.0/25", "10.20.0.253"}, {"172.16.0.0/12", "10.20.0.252"}, {"10.99.1.2/32", "10.20.0.251"},
		} {
			s.Networks[0].Routes = append(s.Networks[0].Routes, inventory.Route{To: netip.MustParsePrefix(r.to), Via: netip.MustParseAddr(r.via)})
		}
	}
	want := []byte{
		8, 10, 10, 20, 0, 254,
		25, 192, 168, 7, 0, 10, 20, 0, 253,
		12, 172, 16, 10, 20, 0, 252,
		32, 10, 99, 1, 2, 10, 20, 0, 251,
		0, 10, 20, 0, 1,
	}
	noGateway := func(s *inventory.Set) { routed(s); s.Networks[0].Gateway = netip.Addr{} }
	for _, tt := range []struct {
		name  string
		set   func(*inventory.Set)
		asked []byte
		code  uint8
		want  []byte
	}{
		{"asks for 121", routed, []byte{1, 3, 121}, 121, want},
		{"asks for both", routed, []byte{249, 1, 3, 121}, 121, want},
		{"asks for 249 alone", routed, []byte{1, 249, 3}, 249, want},
		{"without a gateway", noGateway, []byte{121}, 121, want[:len(want)-5]},
		{"does not ask", routed, []byte{1, 3}, 0, nil},
		{"asks for nothing", routed, nil, 0, nil},
		{"there are none", func(*inventory.Set) {}, []byte{1, 3, 121, 249}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range []*dhcpv4.DHCPv4{
				message(DISCOVER, macDeclared), message(REQUEST, macDeclared, requested("10.20.0.15")), message(dhcpv4.MessageTypeInform, macDeclared, ciaddr("10.20.0.15")),
			} {
				if tt.asked != nil {
					p.Options[55] = tt.asked
				}
				o := ask(t, rack(tt.set), p, nil)
				if o.packet == nil {
					t.Fatal(o.silence)
				}
				for _, code := range []uint8{121, 249} {
					var only []byte
					if code == tt.code {
						only = tt.want
					}
					if got := o.packet.Options[code]; !bytes.Equal(got, only) {
						t.Errorf("%s: option %d is %v; want %v", o.packet.MessageType(), code, got, only)
					}
				}
				if has := o.packet.Options[3] != nil; has != (rack(tt.set).Networks[0].Gateway.IsValid()) {
					t.Errorf("%s: router %v", o.packet.MessageType(), has)
				}
			}
		})
	}
}

// As many routes as may be declared fit the smallest reply beside all else that a
// system asks for.
func TestMostRoutesFitTheSmallestReply(t *testing.T) {
	set := rack(func(s *inventory.Set) {
		for i := range 16 {
			s.Networks[0].Routes = append(s.Networks[0].Routes, inventory.Route{To: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 30, 0, byte(i)}), 32), Via: netip.MustParseAddr("10.20.0.254")})
		}
	})
	p := message(REQUEST, macDeclared, requested("10.20.0.15"), option(55, 1, 3, 6, 121), option(61, bytes.Repeat([]byte{7}, 40)...))
	o := ask(t, set, p, nil)
	if b := o.raw; len(b) > minDatagram-ipUDPHeader || len(o.packet.Options[121]) != 16*9+5 || o.packet.Options[51] == nil || o.packet.Options[3] == nil || o.packet.Options[6] == nil {
		t.Errorf("%d bytes: %s", len(b), o.packet.Summary())
	}
}

// Through a firmware's driver iPXE gets no frame that a tag makes longer than 1514
// bytes: where machines tag frames themselves, its are shorter.
func TestIPXEInAVLANLeavesRoomForTheTag(t *testing.T) {
	tagged := func(s *inventory.Set) { s.Networks[0].VLAN = 100 }
	for _, tt := range []struct {
		name   string
		set    *inventory.Set
		client func(*dhcpv4.DHCPv4)
		want   []byte
	}{
		{"iPXE in a VLAN", rack(tagged), ipxeClient, []byte{0x05, 0xd8}},
		{"iPXE in none", rack(), ipxeClient, nil},
		{"firmware, which does so by itself", rack(tagged), pxe(7), nil},
		{"a system, whose drivers know tags", rack(tagged), func(*dhcpv4.DHCPv4) {}, nil},
	} {
		o := ask(t, tt.set, message(DISCOVER, macDeclared, tt.client), nil, booting)
		if got := o.packet.Options[26]; !bytes.Equal(got, tt.want) {
			t.Errorf("%s: option 26 is %v; want %v", tt.name, got, tt.want)
		}
	}
}
