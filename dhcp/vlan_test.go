package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/testenv"
)

// tag puts a VLAN's number into a frame.
func tag(vlan uint16, frame []byte) []byte {
	b := binary.BigEndian.AppendUint16(slices.Clone(frame[:12]), unix.ETH_P_8021Q)
	return append(binary.BigEndian.AppendUint16(b, vlan), frame[12:]...)
}

// The kernel shows a packet socket the frames of every VLAN, without their tag.
func TestPacketSocketsHearNoOtherVLAN(t *testing.T) {
	if !namespace(t) {
		return
	}
	tap, err := testenv.NewTap("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	run(t, "ip", "link", "set", "eth0", "up")
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	f := Interface{Name: "eth0", Index: eth.Index, MAC: eth.HardwareAddr}
	everybody, other := net.HardwareAddr{255, 255, 255, 255, 255, 255}, net.HardwareAddr{2, 0, 0, 0, 0, 9}
	link := netip.MustParseAddr("fe80::9")
	ether := func(to net.HardwareAddr, protocol uint16, payload []byte) []byte {
		b := slices.Concat(to, other)
		return append(binary.BigEndian.AppendUint16(b, protocol), payload...)
	}
	offer := frame(netip.MustParseAddrPort("10.20.0.9:67"), netip.MustParseAddrPort("255.255.255.255:68"), make([]byte, 240))
	for _, row := range []struct {
		name     string
		protocol int
		filter   []bpf.Instruction
		to       net.HardwareAddr
		ether    uint16
		payload  []byte
	}{
		{"ARP", unix.ETH_P_ARP, []bpf.Instruction{bpf.RetConstant{Val: 128}}, everybody, unix.ETH_P_ARP, make([]byte, 28)},
		{"an offer to our question", unix.ETH_P_IP, clientPortFilter, f.MAC, unix.ETH_P_IP, offer},
		{"a client of DHCPv6", unix.ETH_P_IPV6, agentsFilter, groupHardware(allAgents).HardwareAddr, unix.ETH_P_IPV6, frame6(link, allAgents, clientPort6, serverPort6, []byte{1, 2, 3, 4})},
		{"an answer of DHCPv6", unix.ETH_P_ALL, answersFilter, f.MAC, unix.ETH_P_IPV6, frame6(link, link, serverPort6, clientPort6, []byte{2, 2, 3, 4})},
	} {
		t.Run(row.name, func(t *testing.T) {
			pc, err := listenFrames(f, row.protocol, row.filter)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			mark := func(n byte, to net.HardwareAddr) []byte {
				b := ether(to, row.ether, row.payload)
				b[len(b)-1] = n
				return b
			}
			const last = 5
			for _, b := range [][]byte{
				tag(100, mark(1, row.to)),
				tag(7<<13, mark(2, row.to)), // a priority, and no VLAN
				tag(4094, mark(3, row.to)),
				mark(4, other), // for another host
				mark(last, row.to),
			} {
				if _, err := tap.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			_ = pc.SetReadDeadline(time.Now().Add(20 * time.Second))
			var heard []byte
			for buf := make([]byte, 2048); !bytes.Contains(heard, []byte{last}); {
				n, _, err := pc.ReadFrom(buf)
				if err != nil {
					t.Fatal(err)
				}
				heard = append(heard, buf[n-1])
			}
			if want := []byte{2, last}; !bytes.Equal(heard, want) {
				t.Errorf("frames %v were heard; want %v", heard, want)
			}
		})
	}
}

// vlanLink is our card on a trunk, and what the kernel's sub-interfaces of it would
// be, each with the Network that is served there.
var vlanLink = []struct {
	iface string
	vlan  uint16
	net   int // of its addresses
}{{"eth0", 1, 20}, {"eth0.100", 100, 21}, {"eth0.200", 200, 22}}

func TestEachVLANIsServedByItsOwnNetwork(t *testing.T) {
	if !namespace(t, "udhcpc", "dhclient") {
		return
	}
	noDAD(t)
	run(t, "ip", "link", "set", "lo", "up")
	var sw testenv.Switch
	t.Cleanup(func() { _ = sw.Close() })
	plug := func(name string, c testenv.PortConfig) {
		t.Helper()
		tap, err := testenv.NewTap(name)
		if err != nil {
			t.Fatal(err)
		}
		sw.Plug(tap, c)
	}
	set := &inventory.Set{}
	for _, l := range vlanLink {
		c := testenv.PortConfig{Access: l.vlan}
		if l.iface == "eth0" {
			c.Trunk = []uint16{100, 200} // the card sees them all
		}
		plug(l.iface, c)
		run(t, "ip", "addr", "add", fmt.Sprintf("10.%d.0.2/24", l.net), "dev", l.iface)
		run(t, "ip", "addr", "add", fmt.Sprintf("2001:db8:%d::2/64", l.net), "dev", l.iface, "nodad")
		run(t, "ip", "link", "set", l.iface, "up")
		for _, n := range []struct{ name, subnet, first, last string }{
			{"ipv4-", "10.%d.0.0/24", "10.%d.0.100", "10.%d.0.199"},
			{"ipv6-", "2001:db8:%d::/64", "2001:db8:%d::1:0", "2001:db8:%d::1:ffff"},
		} {
			of := func(s string) string { return fmt.Sprintf(s, l.net) }
			set.Networks = append(set.Networks, &inventory.Network{
				Name: n.name + l.iface, Subnet: netip.MustParsePrefix(of(n.subnet)), DHCP: inventory.DHCPAuthoritative,
				Unknown: inventory.UnknownDiscover, LeaseTime: inventory.Duration(time.Hour),
				Pool: &inventory.AddrRange{First: netip.MustParseAddr(of(n.first)), Last: netip.MustParseAddr(of(n.last))},
			})
		}
	}
	var mu sync.Mutex
	asked := map[inventory.MAC][]string{} // the Networks that took a question for theirs
	s := serve(t, set, func(s *Server) {
		s.Observe = func(o inventory.Observation) {
			mu.Lock()
			defer mu.Unlock()
			if o.MAC != "" && !slices.Contains(asked[o.MAC], o.Network) {
				asked[o.MAC] = append(asked[o.MAC], o.Network)
			}
		}
	})
	eventually(t, "all six Networks are served", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		serving := 0
		for _, links := range []map[string]*link{s.links, s.links6} {
			for _, l := range links {
				for _, d := range l.state.Load().duties {
					if d.state.Load() == dutyServing {
						serving++
					}
				}
			}
		}
		return serving == len(set.Networks)
	})

	// Somebody in VLAN 100 speaks from an address of the pool without a tag, which
	// is none of it; and then somebody of the native VLAN from the next.
	speaker := newHost(t)
	speaker.plug(&sw, testenv.PortConfig{Access: 1, Trunk: []uint16{100}})
	arp := func(a string) []byte {
		hw := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		b := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, hw, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, hw)
		ip := netip.MustParseAddr(a).AsSlice()
		return slices.Concat(b, ip, make([]byte, 6), ip)
	}
	speaker.enter(func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		pc, err := packet.Listen(eth, packet.Raw, unix.ETH_P_ARP, nil)
		if err != nil {
			return err
		}
		defer pc.Close()
		to := &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}
		_, err = pc.WriteTo(tag(100, arp("10.20.0.110")), to)
		_, err2 := pc.WriteTo(arp("10.20.0.111"), to)
		return errors.Join(err, err2)
	})
	seen := func(a string) bool {
		s.table.mu.Lock()
		defer s.table.mu.Unlock()
		_, ok := s.table.seen[place{"ipv4-eth0", netip.MustParseAddr(a)}]
		return ok
	}
	eventually(t, "who speaks in the native VLAN is heard", func() bool { return seen("10.20.0.111") })
	if seen("10.20.0.110") {
		t.Error("an address of VLAN 100 was taken for one of the native VLAN")
	}

	type client struct {
		*netStation
		log6 string
	}
	var clients []client
	for i, l := range vlanLink {
		c := client{netStation: newHost(t)}
		c.plug(&sw, testenv.PortConfig{Access: l.vlan})
		c.run("ip", "link", "set", "eth0", "address", fmt.Sprintf("52:54:00:00:09:0%d", i))
		eventually(t, "the station has a link-local address", func() bool {
			out, _ := c.command("ip", "-6", "addr", "show", "dev", "eth0").CombinedOutput()
			return strings.Contains(string(out), "fe80::") && !strings.Contains(string(out), "tentative")
		})
		var path string
		path, c.log6 = script6(t)
		dhclient6(t, c.netStation, path, t.TempDir())
		clients = append(clients, c)
	}
	for i, c := range clients {
		net := vlanLink[i].net
		logged(t, c.log6, fmt.Sprintf("new_ip6_address=2001:db8:%d::1:", net))
		path, log := script(t) // which takes away every address first
		c.start("udhcpc", "-f", "-i", "eth0", "-s", path, "-t", "20", "-T", "1")
		logged(t, log, fmt.Sprintf("ip=10.%d.0.", net))
	}
	if leases := s.Leases(); len(leases) != len(set.Networks) {
		t.Errorf("leases %+v", leases)
	}
	mu.Lock()
	defer mu.Unlock()
	for i, l := range vlanLink {
		mac := inventory.MAC(fmt.Sprintf("52:54:00:00:09:0%d", i))
		slices.Sort(asked[mac])
		if want := []string{"ipv4-" + l.iface, "ipv6-" + l.iface}; !slices.Equal(asked[mac], want) {
			t.Errorf("%s in VLAN %d was heard by %q; want %q", mac, l.vlan, asked[mac], want)
		}
	}
}

// newHost is a station without a cable.
func newHost(t testing.TB) *netStation {
	t.Helper()
	s := &netStation{t: t}
	s.hold()
	s.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
	return s
}

// plug connects the station's eth0 to a port of the switch.
func (s *netStation) plug(sw *testenv.Switch, c testenv.PortConfig) {
	s.t.Helper()
	var tap *os.File
	s.enter(func() (err error) {
		tap, err = testenv.NewTap("eth0")
		return err
	})
	sw.Plug(tap, c)
	s.run("ip", "link", "set", "eth0", "up")
}
