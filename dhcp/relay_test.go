package dhcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"recast/inventory"
)

// RFC 3046 §2.2: what the relay added comes back as it was, whatever it says,
// and only where it came.
func TestRelayOptionIsEchoedByteExactAndLast(t *testing.T) {
	long := append([]byte{1, 250}, bytes.Repeat([]byte{0xfe}, 250)...)
	for _, tt := range []struct {
		name  string
		agent []byte
	}{
		{"a circuit", []byte{1, 4, 'p', '1', '/', '7'}},
		{"circuit and remote", []byte{1, 2, 0, 0, 2, 6, 1, 2, 3, 4, 5, 6}},
		{"bytes that look like padding and end", []byte{1, 4, 0, 255, 0, 255}},
		{"sub-options nobody knows", []byte{200, 1, 0, 150, 0}},
		{"sub-options that count wrong", []byte{1, 200, 3}},
		{"longer than one part", append(append([]byte{}, long...), long...)},
		{"empty", []byte{}},
		{"none", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range []*dhcpv4.DHCPv4{
				message(DISCOVER, macDeclared, pxe(0), giaddr("10.20.0.254")),
				message(REQUEST, macDeclared, requested("10.20.0.15"), giaddr("10.20.0.254")),
				message(REQUEST, macDeclared, requested("10.20.0.16"), giaddr("10.20.0.254")), // NAK
				message(DISCOVER, macDeclared),                                                // from a switch that relays nothing
			} {
				tail := []byte{255}
				if tt.agent != nil {
					p.Options[82] = tt.agent
					tail = append(encoded(82, tt.agent), 255)
				}
				o := ask(t, rack(), p, nil, booting)
				if o.packet == nil {
					t.Fatal(o.silence)
				}
				raw := o.raw
				back, err := dhcpv4.FromBytes(raw)
				if err != nil {
					t.Fatal(err)
				}
				if _, has := back.Options[82]; has != (tt.agent != nil) || !bytes.Equal(back.Options[82], tt.agent) {
					t.Errorf("%s: option 82 came back as %x; want %x", o.packet.MessageType(), back.Options[82], tt.agent)
				}
				if !bytes.HasSuffix(bytes.TrimRight(raw, "\x00"), tail) {
					t.Errorf("%s: it is not the last option", o.packet.MessageType())
				}
			}
		})
	}
}

// encoded is an option as it stands in a packet, in parts where it is long.
func encoded(code byte, v []byte) []byte {
	out := []byte{}
	for first := true; first || len(v) > 0; first = false {
		n := min(len(v), 255)
		out = append(append(out, code, byte(n)), v[:n]...)
		v = v[n:]
	}
	return out
}

// RFC 3527: the relay's own address need not lie in the client's subnet.
func TestLinkSelectionNamesTheSubnet(t *testing.T) {
	set := rack(func(s *inventory.Set) {
		s.Networks = append(s.Networks, &inventory.Network{Name: "rack2", Subnet: netip.MustParsePrefix("10.30.0.0/24"),
			DHCP: inventory.DHCPAuthoritative, Unknown: inventory.UnknownDiscover, LeaseTime: s.Networks[0].LeaseTime,
			Pool: &inventory.AddrRange{First: netip.MustParseAddr("10.30.0.100"), Last: netip.MustParseAddr("10.30.0.199")}})
	})
	for _, tt := range []struct {
		name  string
		agent []byte
		relay string
		want  string
	}{
		{"a subnet's address", []byte{5, 4, 10, 30, 0, 0}, "172.16.0.9", "OFFER 10.30.0.173 to 172.16.0.9:67"},
		{"a host's address", []byte{1, 1, 7, 5, 4, 10, 30, 0, 7}, "172.16.0.9", "OFFER 10.30.0.173 to 172.16.0.9:67"},
		{"another subnet than the relay's", []byte{5, 4, 10, 30, 0, 0}, "10.20.0.254", "OFFER 10.30.0.173 to 10.20.0.254:67"},
		{"a subnet nobody declared", []byte{5, 4, 10, 99, 0, 0}, "10.20.0.254", "silent: no Network here"},
		{"0.0.0.0 selects nothing", []byte{5, 4, 0, 0, 0, 0}, "10.20.0.254", "OFFER 10.20.0.173 to 10.20.0.254:67"},
		{"too short to mean one", []byte{5, 3, 10, 30, 0}, "10.20.0.254", "OFFER 10.20.0.173 to 10.20.0.254:67"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := brief(ask(t, set, message(DISCOVER, macStranger, giaddr(tt.relay), option(82, tt.agent...)), nil)); got != tt.want {
				t.Errorf("%s; want %s", got, tt.want)
			}
		})
	}
}

// RFC 3011: a client may select the subnet, unless its relay does (RFC 3527 §3). It
// discards what does not repeat its option.
func TestSubnetSelectionNamesTheSubnetUnlessTheRelayDoes(t *testing.T) {
	set := rack(func(s *inventory.Set) {
		for i, subnet := range []string{"10.30.0", "10.40.0"} {
			s.Networks = append(s.Networks, &inventory.Network{Name: fmt.Sprintf("rack%d", i+2), Subnet: netip.MustParsePrefix(subnet + ".0/24"),
				DHCP: inventory.DHCPAuthoritative, Unknown: inventory.UnknownDiscover, LeaseTime: s.Networks[0].LeaseTime,
				Pool: &inventory.AddrRange{First: netip.MustParseAddr(subnet + ".100"), Last: netip.MustParseAddr(subnet + ".199")}})
		}
	})
	selects := func(b ...byte) func(*dhcpv4.DHCPv4) { return option(118, b...) }
	for _, tt := range []struct {
		name   string
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{"on our link", message(DISCOVER, macStranger, wantsBroadcast, selects(10, 30, 0, 0)), "OFFER 10.30.0.173 to 255.255.255.255:68"},
		{"request", message(REQUEST, macStranger, wantsBroadcast, requested("10.30.0.173"), serverID("10.20.0.2"), selects(10, 30, 0, 0)), "ACK 10.30.0.173 to 255.255.255.255:68; bound 10.30.0.173 for 15m0s"},
		{"request of another's", message(REQUEST, macStranger, requested("10.30.0.9"), serverID("10.20.0.2"), selects(10, 30, 0, 0)), "NAK to 255.255.255.255:68"},
		{"behind a relay", message(DISCOVER, macStranger, giaddr("10.20.0.254"), selects(10, 30, 0, 0)), "OFFER 10.30.0.173 to 10.20.0.254:67"},
		{"behind a relay that selects too", message(DISCOVER, macStranger, giaddr("10.20.0.254"), selects(10, 30, 0, 0), option(82, 5, 4, 10, 40, 0, 0)), "OFFER 10.40.0.173 to 10.20.0.254:67"},
		{"a subnet nobody declared", message(DISCOVER, macStranger, selects(10, 99, 0, 0)), "silent: no Network here"},
		{"0.0.0.0 selects nothing", message(DISCOVER, macStranger, wantsBroadcast, selects(0, 0, 0, 0)), "OFFER 10.20.0.173 to 255.255.255.255:68"},
		{"too short to mean one", message(DISCOVER, macStranger, wantsBroadcast, selects(10, 30)), "OFFER 10.20.0.173 to 255.255.255.255:68"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ask(t, set, tt.packet, nil)
			if brief(got) != tt.want {
				t.Errorf("%s; want %s", brief(got), tt.want)
			}
			if got.packet != nil && !bytes.Equal(got.packet.Options[118], tt.packet.Options[118]) {
				t.Errorf("118 comes back as %x", got.packet.Options[118])
			}
		})
	}
	r := newRig(t, set)
	if why := r.silence(message(DISCOVER, macStranger, selects(10, 99, 0, 0))); why != silenceSubnet {
		t.Errorf("silent for %q", why)
	}
	r.link.state.Load().duties[0].state.Store(dutySilent)
	if why := r.silence(message(DISCOVER, macStranger, selects(10, 30, 0, 0))); why != "another DHCP server" {
		t.Errorf("silent for %q", why)
	}
}

// RFC 5107: the relay wants all the client's packets, renewals too, so the
// client must take it for the server.
func TestServerIdentifierOverrideMakesTheRelayTheServer(t *testing.T) {
	const relay = "10.20.0.254"
	override := option(82, 1, 1, 7, 11, 4, 10, 20, 0, 254)
	for _, tt := range []struct {
		name   string
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{"discover", message(DISCOVER, macDeclared, giaddr(relay), override), "OFFER 10.20.0.15 to 10.20.0.254:67"},
		{"selecting by the relay's name", message(REQUEST, macDeclared, giaddr(relay), override, requested("10.20.0.15"), serverID(relay)), "ACK 10.20.0.15 to 10.20.0.254:67; bound 10.20.0.15 for 1h0m0s"},
		{"renewing through the relay", message(REQUEST, macDeclared, giaddr(relay), override, ciaddr("10.20.0.15")), "ACK 10.20.0.15 to 10.20.0.254:67; bound 10.20.0.15 for 1h0m0s"},
		{"refused", message(REQUEST, macDeclared, giaddr(relay), override, requested("10.20.0.16"), serverID(relay)), "NAK to 10.20.0.254:67"},
		{"release to the relay", message(RELEASE, macDeclared, giaddr(relay), override, ciaddr("10.20.0.15"), serverID(relay)), "silent: released; drop 10.20.0.15"},
		{"the relay's name without its option", message(REQUEST, macDeclared, giaddr(relay), requested("10.20.0.15"), serverID(relay)), "silent: another server was chosen"},
		{"another server's name", message(REQUEST, macDeclared, giaddr(relay), override, requested("10.20.0.15"), serverID("10.20.0.3")), "silent: another server was chosen"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before []func(*table)
			if tt.packet.MessageType() == RELEASE {
				before = append(before, leased(macDeclared, "10.20.0.15", 1e9))
			}
			o := ask(t, rack(), tt.packet, before)
			if got := brief(o); got != tt.want {
				t.Fatalf("%s; want %s", got, tt.want)
			}
			if o.packet != nil && o.packet.ServerIdentifier().String() != relay {
				t.Errorf("server identifier %s; want the relay's", o.packet.ServerIdentifier())
			}
		})
	}
}

// behindRelay is a server, a router on its segment, and a client whose only way
// is the router's port named access.
func behindRelay(t *testing.T, set *inventory.Set, mac string) (s *Server, relay, client *netStation) {
	t.Helper()
	segment(t, "192.168.50.1/24")
	s = serve(t, set)
	relay = newStation(t, "")
	relay.run("ip", "addr", "add", "192.168.50.2/24", "dev", "eth0")
	relay.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	run(t, "ip", "route", "add", "10.20.0.0/24", "via", "192.168.50.2")
	client = newStation(t, "")
	client.run("ip", "link", "del", "eth0")
	relay.run("ip", "link", "add", "access", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(client.pid))
	relay.run("ip", "addr", "add", "10.20.0.1/24", "dev", "access")
	relay.run("ip", "link", "set", "access", "up")
	client.run("ip", "link", "set", "eth0", "address", mac, "up")
	eventually(t, "a socket is open", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.links) > 0 })
	return s, relay, client
}

// The relay of ISC takes its option out again only where it comes back as it
// was, and drops the reply otherwise.
func TestUdhcpcBehindDhcrelayBindsAndRenews(t *testing.T) {
	if !namespace(t, "dhcrelay", "udhcpc") {
		return
	}
	s, relay, client := behindRelay(t, rack(), macDeclared)
	for _, tt := range []struct {
		name  string
		flags []string
	}{
		{"link selection", []string{"-a", "-U", "eth0"}},
		{"option 82", []string{"-a", "-iu", "eth0"}},
		{"no option", []string{"-iu", "eth0"}},
	} {
		args := append([]string{"dhcrelay", "-4", "-d", "--no-pid", "-c", "10"}, tt.flags...)
		dhcrelay := relay.start(append(args, "-id", "access", "192.168.50.1")...)
		path, log := script(t)
		udhcpc := client.start("udhcpc", "-f", "-i", "eth0", "-s", path, "-t", "20", "-T", "1", "-O", "82")
		logged(t, log, "event=bound")
		logged(t, log, "ip=10.20.0.15\n")
		logged(t, log, "serverid=192.168.50.1\n")
		eventually(t, "the client has its address", func() bool { // set after the script has logged
			return client.command("ip", "route", "replace", "default", "via", "10.20.0.1").Run() == nil
		})
		before := s.Stats().Replies["ACK"]
		if err := udhcpc.Process.Signal(syscall.SIGUSR1); err != nil { // renew: through the router, not the relay
			t.Fatal(err)
		}
		logged(t, log, "event=renew")
		// Counted after it is sent: the client may be quicker.
		eventually(t, "the renewal is counted", func() bool { return s.Stats().Replies["ACK"] > before })
		if st := s.Stats(); st.Replies["NAK"] > 0 || len(st.Malformed) > 0 {
			t.Errorf("%s: %+v", tt.name, st)
		}
		_, _ = udhcpc.Process.Kill(), dhcrelay.Process.Kill()
		_, _ = udhcpc.Wait(), dhcrelay.Wait()
	}
}

// What ISC's relay calls the port is the interface's name. The machine is named by
// it before anybody knew its hardware address, its system afterwards, and a board
// put in its place only once it is gone.
func TestMachineBehindDhcrelayIsNamedByItsPort(t *testing.T) {
	if !namespace(t, "dhcrelay", "udhcpc") {
		return
	}
	set := rack(unknown(inventory.UnknownIgnore), behindPort(inventory.Port{Circuit: "access", Relay: netip.MustParseAddr("10.20.0.1")}, "10.20.0.17", ""))
	s, relay, client := behindRelay(t, set, macStranger)
	relay.start("dhcrelay", "-4", "-d", "--no-pid", "-c", "10", "-a", "-iu", "eth0", "-id", "access", "192.168.50.1")
	path, log := script(t)
	firmware := []string{"udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "20", "-T", "1", "-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007"}
	client.run(firmware...)
	logged(t, log, "ip=10.20.0.17\n")
	l, ok := s.LeaseByAddr(netip.MustParseAddr("10.20.0.17"))
	if !ok || l.Machine != "r1u07" || l.Port == nil || l.Port.String() != `{circuit: "access", relay: 10.20.0.1}` {
		t.Errorf("lease %+v", l)
	}
	if err := os.Truncate(log, 0); err != nil {
		t.Fatal(err)
	}
	client.run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "20", "-T", "1") // its system
	logged(t, log, "ip=10.20.0.17\n")

	client.run("ip", "link", "set", "eth0", "down")
	client.run("ip", "link", "set", "eth0", "address", macOther, "up")
	if out, err := client.command(append(firmware, "-t", "2")...).CombinedOutput(); err == nil {
		t.Errorf("another board has an address while the first has a lease:\n%s", out)
	}
	if f := s.Findings(); len(f) != 1 || !strings.Contains(f[0], macOther+` asks to boot at {circuit: "access", relay: 10.20.0.1}, where `+macStranger+` is "r1u07" already`) {
		t.Errorf("findings %q", f)
	}
	if st := s.Stats(); len(st.Malformed) > 0 || st.Silent["unknown machine"] == 0 {
		t.Errorf("stats %+v", st)
	}
}

// RFC 8357: a relay that shares its host's ports with others says so, and is
// answered where it asked from, with what it said in the answer.
func TestRelayIsAnsweredAtThePortItAskedFromWhereItSaysSo(t *testing.T) {
	from := func(q *question) { q.from = 40067 }
	own := func(p *dhcpv4.DHCPv4) { giaddr("10.20.0.254")(p); p.Options[82] = []byte{1, 1, '7', 19, 0} }
	for _, tt := range []struct {
		name string
		p    *dhcpv4.DHCPv4
		from []func(*question)
		want string
	}{
		{"it says so", message(DISCOVER, macDeclared, own), []func(*question){from}, "10.20.0.254:40067"},
		{"refused", message(REQUEST, macDeclared, requested("10.20.0.16"), own), []func(*question){from}, "10.20.0.254:40067"},
		{"it does not", message(DISCOVER, macDeclared, giaddr("10.20.0.254")), []func(*question){from}, "10.20.0.254:67"},
		{"its port is not known", message(DISCOVER, macDeclared, own), nil, "10.20.0.254:67"},
		{"a switch that relays nothing", message(DISCOVER, macDeclared, own, giaddr("0.0.0.0")), []func(*question){from}, "10.20.0.15:68"},
	} {
		o := ask(t, rack(), tt.p, nil, tt.from...)
		if got := o.dest.to.String(); got != tt.want || !bytes.Equal(o.packet.Options[82], tt.p.Options[82]) {
			t.Errorf("%s: to %s with %x; want %s", tt.name, got, o.packet.Options[82], tt.want)
		}
	}

	relayPort := func(b ...byte) dhcpv6.Option {
		return &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRelayPort, OptionData: b}
	}
	in := message6(SOLICIT, wants(1))
	for _, tt := range []struct {
		name  string
		p     dhcpv6.DHCPv6
		want  string
		ports []string // of the relays, outermost first
	}{
		{"DHCPv6", relayed6(in, relayAddr6, privateAddr.String(), option79(macStranger), relayPort(0, 0)), "[2001:db8:99::1]:40547", []string{"0000"}},
		{"the inner of two", relayed6(relayed6(in, relayAddr6, privateAddr.String(), option79(macStranger), relayPort(0, 0)), "::", "fe80::5"), "[2001:db8:99::1]:547", []string{"", "0000"}},
		{"both", relayed6(relayed6(in, relayAddr6, privateAddr.String(), option79(macStranger), relayPort(0, 0)), "::", "fe80::5", relayPort(0x9c, 0x41)), "[2001:db8:99::1]:40547", []string{"9c41", "0000"}},
		{"neither", relayed6(in, relayAddr6, privateAddr.String(), option79(macStranger)), "[2001:db8:99::1]:547", []string{""}},
	} {
		o := ask6(t, rack6(), tt.p, "", nil, func(q *question) { q.req.six.port = 40547 })
		if o.six == nil {
			t.Fatalf("%s: %s", tt.name, o.silence)
		}
		if got := o.dest.to.String(); got != tt.want {
			t.Errorf("%s: to %s; want %s", tt.name, got, tt.want)
		}
		_, relays := inner6(t, o.six.payload)
		for i, r := range relays {
			got := ""
			if opt := r.Options.GetOne(dhcpv6.OptionRelayPort); opt != nil {
				got = fmt.Sprintf("%x", opt.ToBytes())
			}
			if got != tt.ports[i] {
				t.Errorf("%s: relay %d gets option 135 with %q; want %q", tt.name, i, got, tt.ports[i])
			}
		}
	}
}
