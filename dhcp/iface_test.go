package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

func iface(index int, name string, addrs ...string) Interface {
	i := Interface{Name: name, Index: index, Up: true, Loopback: name == "lo", MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)}}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
	}
	return i
}

func TestNetworkIsServedOnlyWhereOurAddressLies(t *testing.T) {
	network := func(name, subnet, listen string) *inventory.Network {
		return &inventory.Network{Name: name, Subnet: netip.MustParsePrefix(subnet), DHCP: inventory.DHCPAuthoritative, Listen: listen}
	}
	lo := iface(1, "lo", "127.0.0.1/8")
	for _, tt := range []struct {
		name     string
		networks []*inventory.Network
		ifaces   []Interface
		want     []string // network@interface as address, or the problem
		listen   []string
	}{
		{"one of three", []*inventory.Network{network("rack1", "10.20.0.0/24", "")},
			[]Interface{lo, iface(2, "eth0", "192.168.1.2/24"), iface(3, "eth1", "10.20.0.2/24")},
			[]string{"rack1@eth1 as 10.20.0.2"}, []string{"eth1"}},
		{"the second address of an interface", []*inventory.Network{network("rack1", "10.20.0.0/24", "")},
			[]Interface{iface(2, "eth0", "192.168.1.2/24", "10.20.0.3/24")},
			[]string{"rack1@eth0 as 10.20.0.3"}, []string{"eth0"}},
		{"a wider prefix does not count", []*inventory.Network{network("rack1", "10.20.0.0/24", "")},
			[]Interface{lo, iface(2, "eth0", "10.0.0.2/8")}, []string{"rack1 by relay"}, []string{"eth0"}},
		{"relays only", []*inventory.Network{network("rack1", "10.20.0.0/24", "")},
			[]Interface{lo, iface(2, "eth0", "192.168.1.2/24"), iface(3, "eth1")}, []string{"rack1 by relay"}, []string{"eth0"}},
		{"two networks on one link", []*inventory.Network{network("a", "10.20.0.0/24", ""), network("b", "10.21.0.0/24", "")},
			[]Interface{iface(2, "eth0", "10.20.0.2/24", "10.21.0.2/24")},
			[]string{"a@eth0 as 10.20.0.2", "b@eth0 as 10.21.0.2"}, []string{"eth0"}},
		{"two interfaces", []*inventory.Network{network("rack1", "10.20.0.0/24", "")},
			[]Interface{iface(2, "eth0", "10.20.0.2/24"), iface(3, "eth1", "10.20.0.3/24")},
			[]string{`network "rack1": interfaces eth0, eth1 all have an address in 10.20.0.0/24: write listen: eth0 (or another of them) in its spec`}, []string{"eth0", "eth1"}},
		{"two interfaces and listen", []*inventory.Network{network("rack1", "10.20.0.0/24", "eth1")},
			[]Interface{iface(2, "eth0", "10.20.0.2/24"), iface(3, "eth1", "10.20.0.3/24")}, []string{"rack1@eth1 as 10.20.0.3"}, []string{"eth1"}},
		{"listen on an interface without an address", []*inventory.Network{network("rack1", "10.20.0.0/24", "eth9")},
			[]Interface{iface(2, "eth0", "10.20.0.2/24")},
			[]string{`network "rack1": listen names the interface "eth9", which has no address in 10.20.0.0/24`}, []string{"eth0"}},
		{"nothing declared", nil, []Interface{iface(2, "eth0", "10.20.0.2/24")}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got, on []string
			sites := attach(tt.networks, tt.ifaces, nil)
			for _, s := range sites {
				switch {
				case s.problem != nil:
					got = append(got, s.problem.Error())
				case s.iface == nil:
					got = append(got, s.network.Name+" by relay")
				default:
					got = append(got, s.network.Name+"@"+s.iface.Name+" as "+s.server.String())
				}
			}
			for _, l := range listeners(sites, tt.ifaces, false) {
				on = append(on, l.iface.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("sites (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(tt.listen, on); diff != "" {
				t.Errorf("sockets (-want +got)\n%s", diff)
			}
		})
	}
}

func TestDescribeSaysWhatIsAnswered(t *testing.T) {
	eth := []Interface{iface(2, "eth0", "10.20.0.2/24")}
	for _, tt := range []struct {
		name string
		set  *inventory.Set
		want []string
	}{
		{"nothing", inventory.EmptySet(), []string{"dhcp: no Network with dhcp: authoritative or proxy is declared: nothing is answered"}},
		{"a network that is off", rack(func(s *inventory.Set) { s.Networks[0].DHCP = inventory.DHCPOff }),
			[]string{"dhcp: no Network with dhcp: authoritative or proxy is declared: nothing is answered"}},
		{"a rack", rack(), []string{`dhcp: network "rack1" (10.20.0.0/24) on eth0 as 10.20.0.2; 1 reserved addresses, pool of 100 addresses (10.20.0.100-10.20.0.199), leases of 1h0m0s (undeclared machines 15m0s); undeclared machines get an address and boot the ramdisk`}},
		{"strangers ignored, forced, elsewhere", rack(unknown(inventory.UnknownIgnore), func(s *inventory.Set) {
			s.Networks[0].Subnet, s.Networks[0].Pool, s.Networks[0].Force = netip.MustParsePrefix("10.21.0.0/24"), nil, true
		}), []string{`dhcp: network "rack1" (10.21.0.0/24) through relays only (no interface has an address in it); 0 reserved addresses, no pool, leases of 1h0m0s; undeclared machines get no answer; answers even beside another DHCP server (force)`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Describe(tt.set, eth)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if err := Problems(rack(), append(eth, iface(3, "eth1", "10.20.0.3/24"))); err == nil || !strings.Contains(err.Error(), "write listen: eth0") {
		t.Errorf("Problems = %v", err)
	}
	if err := Problems(rack(), eth); err != nil {
		t.Errorf("Problems = %v", err)
	}
}

func TestPortOwnerNamesTheProcess(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := PortOwner(c.LocalAddr().(*net.UDPAddr).Port, 0)
	if want := fmt.Sprintf("(pid %d)", os.Getpid()); !strings.Contains(got, want) {
		t.Errorf("portOwner = %q; want one with %s", got, want)
	}
}

// An address that somebody adds elsewhere stops nobody's boot.
func TestNetworkStaysOnItsInterfaceWhenAnotherGetsAnAddress(t *testing.T) {
	ifaces := []Interface{iface(2, "eth1", "10.20.0.2/24")}
	networks := compile(rack()).networks
	was := attach(networks, ifaces, nil)
	both := []Interface{iface(3, "eth0", "10.20.0.3/24"), ifaces[0]}
	for _, tt := range []struct {
		name   string
		ifaces []Interface
		want   string // interface as address
	}{
		{"another gets one", both, "eth1 as 10.20.0.2"},
		{"and its own gets a second, before it", []Interface{both[0], iface(2, "eth1", "10.20.0.9/24", "10.20.0.2/24")}, "eth1 as 10.20.0.2"},
		{"its own has gone", []Interface{both[0], iface(4, "eth2", "10.20.0.4/24")}, ""},
		{"its own has another address", []Interface{both[0], iface(2, "eth1", "10.20.0.9/24")}, ""},
	} {
		got := ""
		s := attach(networks, tt.ifaces, was)[0]
		if s.iface != nil {
			got = s.iface.Name + " as " + s.server.String()
		}
		if got != tt.want {
			t.Errorf("%s: on %s, want %s", tt.name, got, tt.want)
		}
		if s.problem == nil || !strings.Contains(s.problem.Error(), "all have an address in 10.20.0.0/24") || tt.want != "" && !strings.Contains(s.problem.Error(), "it goes on on eth1, until the next start; write listen: eth1") {
			t.Errorf("%s: problem %v", tt.name, s.problem)
		}
		if again := attach(networks, tt.ifaces, attach(networks, tt.ifaces, was))[0]; again.iface != s.iface {
			t.Errorf("%s: then on %v", tt.name, again.iface)
		}
	}
}
