package dhcp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/store"
)

const relayAddr = "10.20.0.254"

// behindPort declares a machine by its switch port, with what is given.
func behindPort(p inventory.Port, ip string, mac inventory.MAC) func(*inventory.Set) {
	return func(s *inventory.Set) {
		nic := inventory.NIC{MAC: mac, Port: &p, Network: "rack1"}
		if ip != "" {
			nic.IP = netip.MustParseAddr(ip)
		}
		s.Machines = append(s.Machines, &inventory.Machine{Name: "r1u07", NICs: []inventory.NIC{nic}})
	}
}

// atPort is what a relay adds.
func atPort(id string, remote ...string) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		giaddr(relayAddr)(p)
		p.Options[82] = append([]byte{byte(subCircuit), byte(len(id))}, id...)
		for _, r := range remote {
			p.Options[82] = append(append(p.Options[82], byte(subRemote), byte(len(r))), r...)
		}
	}
}

// relayed is a whole exchange of a client behind a port.
func (r *rig) relayed(mac string, change ...func(*dhcpv4.DHCPv4)) sent {
	r.t.Helper()
	r.put(message(DISCOVER, mac, change...))
	offer := r.get()
	r.put(message(REQUEST, mac, append(change, requested(offer.YourIPAddr.String()), serverID("10.20.0.2"))...))
	ack := r.get()
	if ack.MessageType() != dhcpv4.MessageTypeAck {
		r.t.Fatalf("got %s", ack.Summary())
	}
	return ack
}

func (r *rig) machineOf(addr string) string {
	l, _ := r.LeaseByAddr(netip.MustParseAddr(addr))
	return l.Machine
}

func TestPortNamesAMachineBeforeItsHardwareAddressIsKnown(t *testing.T) {
	eth7 := inventory.Port{Circuit: "Ethernet1/7"}
	for _, tt := range []struct {
		name string
		port inventory.Port
		ask  []func(*dhcpv4.DHCPv4)
		want string // the machine, "" a stranger
	}{
		{"its circuit", eth7, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7")}, "r1u07"},
		{"circuit and remote", inventory.Port{Circuit: "Ethernet1/7", Remote: "sw1"}, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7", "sw1")}, "r1u07"},
		{"and relay", inventory.Port{Circuit: "Ethernet1/7", Relay: netip.MustParseAddr(relayAddr)}, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7", "sw1")}, "r1u07"},
		{"a circuit that is no text", inventory.Port{Circuit: "0x00040065010f"}, []func(*dhcpv4.DHCPv4){pxe(7), atPort("\x00\x04\x00\x65\x01\x0f")}, "r1u07"},
		{"a switch that adds it and relays nothing", eth7, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7"), giaddr("0.0.0.0")}, "r1u07"},
		{"HTTP Boot", eth7, []func(*dhcpv4.DHCPv4){httpBoot(16), atPort("Ethernet1/7")}, "r1u07"},
		{"iPXE", eth7, []func(*dhcpv4.DHCPv4){ipxeClient, atPort("Ethernet1/7")}, "r1u07"},
		{"another circuit", eth7, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/8")}, ""},
		{"another switch", inventory.Port{Circuit: "Ethernet1/7", Remote: "sw1"}, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7", "sw2")}, ""},
		{"a switch without a name", inventory.Port{Circuit: "Ethernet1/7", Remote: "sw1"}, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7")}, ""},
		{"another relay", inventory.Port{Circuit: "Ethernet1/7", Relay: netip.MustParseAddr("10.20.0.253")}, []func(*dhcpv4.DHCPv4){pxe(7), atPort("Ethernet1/7")}, ""},
		{"no option 82", eth7, []func(*dhcpv4.DHCPv4){pxe(7), giaddr(relayAddr)}, ""},
		{"an empty circuit", eth7, []func(*dhcpv4.DHCPv4){pxe(7), atPort("")}, ""},
		{"what does not boot, such as a BMC on the same port", eth7, []func(*dhcpv4.DHCPv4){atPort("Ethernet1/7")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rack(behindPort(tt.port, "10.20.0.17", "")))
			ack := r.relayed(macStranger, tt.ask...)
			addr := ack.YourIPAddr.String()
			if (addr == "10.20.0.17") != (tt.want != "") || r.machineOf(addr) != tt.want {
				t.Errorf("got %s as %q; want %q", addr, r.machineOf(addr), tt.want)
			}
			if asked := r.boot.asked; len(asked) > 0 && asked[0].Machine != tt.want {
				t.Errorf("the booter was asked for %q; want %q", asked[0].Machine, tt.want)
			}
		})
	}
}

// The system that comes after the firmware, its renewals past the relay, and
// another server process know the machine by the address that was learned.
func TestLearnedAddressNamesTheMachineFromThenOn(t *testing.T) {
	set := rack(unknown(inventory.UnknownIgnore), behindPort(inventory.Port{Circuit: "p7"}, "", ""))
	r := newRig(t, set)
	addr := r.relayed(macStranger, pxe(7), atPort("p7")).YourIPAddr.String()
	if got := r.relayed(macStranger, atPort("p7")).YourIPAddr.String(); got != addr {
		t.Errorf("the system got %s, the firmware %s", got, addr)
	}
	r.put(message(REQUEST, macStranger, ciaddr(addr)))
	if got := r.get(); got.MessageType() != dhcpv4.MessageTypeAck || r.machineOf(addr) != "r1u07" {
		t.Errorf("renewal: %s, leased to %q", got.Summary(), r.machineOf(addr))
	}
	if p := r.mem.leases(t)["rack1/"+addr].Port; p == nil || p.String() != `{circuit: "p7", relay: 10.20.0.254}` {
		t.Errorf("the lease shows the port %v", p)
	}
	r.put(message(RELEASE, macStranger, ciaddr(addr), serverID("10.20.0.2")))
	eventually(t, "the lease is gone", func() bool { return len(r.mem.leases(t)) == 0 })
	if got := r.relayed(macStranger, atPort("p7")).YourIPAddr.String(); r.machineOf(got) != "r1u07" {
		t.Errorf("after a release it is leased to %q", r.machineOf(got))
	}

	again := newRig(t, set, func(n *rig) { n.mem = r.mem; n.Store = r.mem })
	eventually(t, "the ports are read", again.ports.ready)
	if got := again.relayed(macStranger); again.machineOf(got.YourIPAddr.String()) != "r1u07" {
		t.Errorf("another process leases %s to %q", got.YourIPAddr, again.machineOf(got.YourIPAddr.String()))
	}
}

func TestPortNamesOneOfTwoAddressesUntilItsLeaseHasRunOut(t *testing.T) {
	r := newRig(t, rack(behindPort(inventory.Port{Circuit: "p7"}, "10.20.0.17", "")))
	boots := []func(*dhcpv4.DHCPv4){pxe(7), atPort("p7")}
	if got := r.relayed(macStranger, boots...).YourIPAddr.String(); got != "10.20.0.17" {
		t.Fatalf("the first got %s", got)
	}
	second := r.relayed(macOther, boots...).YourIPAddr.String()
	if second == "10.20.0.17" || r.machineOf(second) != "" {
		t.Errorf("the second got %s as %q", second, r.machineOf(second))
	}
	want := `network "rack1": 52:54:00:00:00:98 asks to boot at {circuit: "p7"}, where 52:54:00:00:00:99 is "r1u07" already; declare the mac of each, or wait until the lease of the first has run out`
	if f := r.Findings(); len(f) != 1 || f[0] != want {
		t.Errorf("findings %q; want %q", f, want)
	}
	r.pass(50 * time.Minute)
	r.put(message(REQUEST, macStranger, ciaddr("10.20.0.17"))) // the first renews
	r.get()
	r.pass(50 * time.Minute)
	if got := r.relayed(macOther, boots...).YourIPAddr.String(); got == "10.20.0.17" {
		t.Errorf("the second got %s while the first has it", got)
	}
	r.pass(2 * time.Hour) // the first is gone: another board stands in its place
	if got := r.relayed(macOther, boots...).YourIPAddr.String(); got != "10.20.0.17" || r.machineOf(got) != "r1u07" {
		t.Errorf("the replacement got %s as %q", got, r.machineOf(got))
	}
	// The first one comes back: it is the stranger now.
	if got := r.relayed(macStranger, boots...).YourIPAddr.String(); got == "10.20.0.17" {
		t.Errorf("the first got %s again", got)
	}
}

func TestMachineThatMovesTakesItsNewPortAndLeavesTheOld(t *testing.T) {
	r := newRig(t, rack(behindPort(inventory.Port{Circuit: "p7"}, "10.20.0.17", ""), func(s *inventory.Set) {
		s.Machines = append(s.Machines, &inventory.Machine{Name: "r1u08", NICs: []inventory.NIC{{Port: &inventory.Port{Circuit: "p8"}, Network: "rack1", IP: netip.MustParseAddr("10.20.0.18")}}})
	}))
	if got := r.relayed(macStranger, pxe(7), atPort("p7")).YourIPAddr.String(); got != "10.20.0.17" {
		t.Fatalf("got %s", got)
	}
	if got := r.relayed(macStranger, pxe(7), atPort("p9")).YourIPAddr.String(); r.machineOf(got) != "" {
		t.Errorf("at a port that nobody declares it is %q", r.machineOf(got))
	}
	if got := r.relayed(macStranger, pxe(7), atPort("p8")).YourIPAddr.String(); got != "10.20.0.18" || r.machineOf(got) != "r1u08" {
		t.Errorf("got %s as %q", got, r.machineOf(got))
	}
	if got := r.relayed(macOther, pxe(7), atPort("p7")).YourIPAddr.String(); got != "10.20.0.17" || r.machineOf(got) != "r1u07" {
		t.Errorf("the one in its old place got %s as %q", got, r.machineOf(got))
	}
}

func TestDeclaredAddressIsStrongerThanAPortAndTellsOfWrongCables(t *testing.T) {
	p7 := inventory.Port{Circuit: "p7"}
	for _, tt := range []struct {
		name    string
		set     *inventory.Set
		mac     string
		circuit string
		machine string
		finding string
	}{
		{"both declared, at its port", rack(behindPort(p7, "10.20.0.17", macOther)), macOther, "p7", "r1u07", ""},
		{"both declared, elsewhere", rack(behindPort(p7, "10.20.0.17", macOther)), macOther, "p9", "r1u07",
			`network "rack1": "r1u07" asks at {circuit: "p9", relay: 10.20.0.254}, and is declared at {circuit: "p7"}; correct the cabling, or its port`},
		{"a stranger at the port of a declared address", rack(behindPort(p7, "10.20.0.17", macOther)), macStranger, "p7", "",
			`network "rack1": 52:54:00:00:00:99 asks to boot at {circuit: "p7"}, the port of "r1u07", which is declared with 52:54:00:00:00:98; correct its mac, or the cabling`},
		{"a declared address at another machine's port", rack(behindPort(p7, "10.20.0.17", "")), macDeclared, "p7", "r1u05",
			`network "rack1": "r1u05" asks at {circuit: "p7", relay: 10.20.0.254}, the port of "r1u07"; correct the cabling, or their ports`},
		{"its BMC at its port", rack(behindPort(p7, "10.20.0.17", ""), func(s *inventory.Set) {
			s.Machines[2].BMC = &inventory.BMCRef{MAC: macBMC, IP: netip.MustParseAddr("10.20.0.75")}
		}), macBMC, "p7", "r1u07", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.set)
			addr := r.relayed(tt.mac, pxe(7), atPort(tt.circuit)).YourIPAddr.String()
			if got := r.machineOf(addr); got != tt.machine {
				t.Errorf("%s is leased to %q; want %q", addr, got, tt.machine)
			}
			if f := strings.Join(r.Findings(), "\n"); f != tt.finding {
				t.Errorf("findings %q; want %q", f, tt.finding)
			}
		})
	}
}

// Who is behind a port is durable before the machine is answered: a store that
// does not take it gives no answer, and a record that somebody else made first
// is believed.
func TestPortIsLearnedDurablyOrNotAtAll(t *testing.T) {
	r := newRig(t, rack(behindPort(inventory.Port{Circuit: "p7"}, "10.20.0.17", "")))
	r.mem.setFail(store.ErrUnavailable)
	if why := r.silence(message(DISCOVER, macStranger, pxe(7), atPort("p7"))); why != "store" {
		t.Errorf("silent for %q", why)
	}
	r.mem.setFail(nil)
	r.pass(2 * storePause)
	// Another server learns first: our commit finds its record.
	r.mem.mu.Lock()
	r.mem.before = func() {
		rec := inventory.PortRecord{Network: "rack1", Port: inventory.Port{Circuit: "p7"}, MAC: macOther, Since: r.now()}
		op, err := portRecords.PutOp(portName("rack1", rec.Port), rec, 0)
		if err != nil {
			t.Error(err)
		}
		if _, err := r.mem.Commit(t.Context(), op); err != nil {
			t.Error(err)
		}
	}
	r.mem.mu.Unlock()
	if why := r.silence(message(DISCOVER, macStranger, pxe(7), atPort("p7"))); why != "port taken meanwhile" {
		t.Errorf("silent for %q", why)
	}
	eventually(t, "the other's record is read", func() bool { _, ok := r.ports.of(macOther); return ok })
	if got := r.relayed(macOther, pxe(7), atPort("p7")).YourIPAddr.String(); got != "10.20.0.17" {
		t.Errorf("got %s", got)
	}
}

// A record outlives its declaration for as long as the machine has its lease: who
// takes a file back an hour later finds the machine as it was.
func TestRecordOfAPortThatIsNoLongerDeclaredIsCollectedAfterItsLease(t *testing.T) {
	p7, p8 := inventory.Port{Circuit: "p7"}, inventory.Port{Circuit: "p8"}
	set := rack(behindPort(p7, "10.20.0.17", ""), func(s *inventory.Set) {
		s.Machines = append(s.Machines, &inventory.Machine{Name: "r1u08", NICs: []inventory.NIC{{Port: &p8, Network: "rack1", IP: netip.MustParseAddr("10.20.0.18")}}})
	})
	r := newRig(t, set)
	eventually(t, "the ports are read", r.ports.ready)
	r.relayed(macStranger, pxe(7), atPort("p7"))
	r.relayed(macOther, pxe(7), atPort("p8"))
	records := func() (n int) {
		rows, _, err := r.mem.List(t.Context(), inventory.PortPrefix)
		if err != nil {
			t.Fatal(err)
		}
		return len(rows)
	}
	without := *set
	without.Machines = append(slices.Clone(set.Machines[:2]), set.Machines[3])
	if err := r.Update(&without); err != nil {
		t.Fatal(err)
	}
	r.dropPorts(t.Context())
	if n := records(); n != 2 {
		t.Errorf("%d records while both have their lease; want 2", n)
	}
	r.pass(2 * time.Hour)
	r.mem.setFail(store.ErrUnavailable)
	r.dropPorts(t.Context())
	r.mem.setFail(nil)
	if _, known := r.ports.of(macStranger); !known {
		t.Error("a record that the store still has is forgotten")
	}
	r.dropPorts(t.Context())
	_, gone := r.ports.of(macStranger)
	if _, kept := r.ports.of(macOther); records() != 1 || gone || !kept {
		t.Errorf("%d records; known are r1u07 %v, r1u08 %v; want the declared one alone", records(), gone, kept)
	}
	// Declared again, the port is free for whoever asks there next.
	if err := r.Update(set); err != nil {
		t.Fatal(err)
	}
	if got := r.relayed(macBMC, pxe(7), atPort("p7")).YourIPAddr.String(); got != "10.20.0.17" {
		t.Errorf("got %s", got)
	}
}
