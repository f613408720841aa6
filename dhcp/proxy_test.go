package dhcp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"

	"recast/inventory"
)

// beside makes the rack a Network whose addresses are another server's.
func beside(s *inventory.Set) {
	s.Networks[0].DHCP, s.Networks[0].Pool = inventory.DHCPProxy, nil
}

func asker(from string) func(*question) {
	return func(q *question) { q.asker = netip.MustParseAddrPort(from) }
}

func TestProxyNamesTheBootFileAndNoAddress(t *testing.T) {
	ignoring := rack(beside, unknown(inventory.UnknownIgnore))
	at4011 := []func(*question){asker("10.20.0.77:68")}
	for _, tt := range []struct {
		name   string
		set    *inventory.Set
		packet *dhcpv4.DHCPv4
		change []func(*question)
		want   string
	}{
		{"firmware asks everybody", nil, message(DISCOVER, macDeclared, pxe(0)), nil, "OFFER to 255.255.255.255:68"},
		{"HTTP Boot asks everybody", nil, message(DISCOVER, macDeclared, httpBoot(16)), nil, "OFFER to 255.255.255.255:68"},
		{"iPXE asks everybody", nil, message(DISCOVER, macDeclared, ipxeClient), nil, "OFFER to 255.255.255.255:68"},
		{"through a relay", nil, message(DISCOVER, macDeclared, pxe(0), giaddr("10.20.0.254")), nil, "OFFER to 10.20.0.254:67"},
		{"an operating system", nil, message(DISCOVER, macDeclared), nil, "silent: addresses are not ours"},
		{"a request is the other server's", nil, message(REQUEST, macDeclared, pxe(0), requested("10.20.0.77"), serverID("10.20.0.9")), nil, "silent: addresses are not ours"},
		{"a renewal too", nil, message(REQUEST, macDeclared, ciaddr("10.20.0.15")), nil, "silent: addresses are not ours"},
		{"and a wrong address is not refused", nil, message(REQUEST, macDeclared, pxe(0), requested("10.20.0.16")), nil, "silent: addresses are not ours"},
		{"decline", nil, message(DECLINE, macDeclared, pxe(0), requested("10.20.0.15")), nil, "silent: addresses are not ours"},
		{"release", nil, message(RELEASE, macDeclared, ciaddr("10.20.0.15")), nil, "silent: addresses are not ours"},
		{"inform", nil, message(INFORM, macDeclared, pxe(0), ciaddr("10.20.0.15")), nil, "silent: addresses are not ours"},
		{"an ignored stranger", ignoring, message(DISCOVER, macStranger, pxe(0)), nil, "silent: unknown machine"},
		{"nothing to boot", nil, message(DISCOVER, macDeclared, pxe(0)), []func(*question){func(q *question) { q.boot.file = "" }}, "silent: nothing to boot"},
		{"the boot server is asked", nil, message(REQUEST, macDeclared, pxe(0), ciaddr("10.20.0.77")), at4011, "ACK to 10.20.0.77:68"},
		{"from a port of its own", nil, message(REQUEST, macDeclared, pxe(7), ciaddr("10.20.0.77")), []func(*question){asker("10.20.0.77:4011")}, "ACK to 10.20.0.77:4011"},
		{"the answer is aimed at the asker alone", nil, message(REQUEST, macDeclared, pxe(7), ciaddr("10.20.0.99")), at4011, "ACK to 10.20.0.77:68"},
		{"iPXE asks the boot server", nil, message(REQUEST, macDeclared, ipxeClient, ciaddr("10.20.0.77")), at4011, "ACK to 10.20.0.77:68"},
		{"an asker without an address", nil, message(REQUEST, macDeclared, pxe(7)), []func(*question){asker("0.0.0.0:68")}, "silent: an asker without an address"},
		{"a release at the boot server", nil, message(RELEASE, macDeclared, pxe(7), ciaddr("10.20.0.77")), at4011, "silent: not a question to a boot server"},
		{"an ignored stranger at the boot server", ignoring, message(REQUEST, macStranger, pxe(0), ciaddr("10.20.0.77")), at4011, "silent: unknown machine"},
		{"no boot server where the addresses are ours", rack(), message(REQUEST, macDeclared, pxe(0), ciaddr("10.20.0.15")), at4011, "silent: not a boot server here"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := tt.set
			if set == nil {
				set = rack(beside)
			}
			o := ask(t, set, tt.packet, nil, append([]func(*question){booting}, tt.change...)...)
			if got := brief(o); got != tt.want {
				t.Fatalf("%s; want %s", got, tt.want)
			}
			if o.packet == nil {
				return
			}
			if o.dest.bootServer != (tt.change != nil) {
				t.Errorf("from the boot server port: %v", o.dest.bootServer)
			}
			if o.offer.IsValid() || o.lease != nil || addr4(o.packet.YourIPAddr).IsValid() {
				t.Errorf("an address: %s, %v", o.packet.Summary(), o.lease)
			}
		})
	}
}

// What firmware needs of a proxy, and nothing that is the other server's to say.
// Options 43.6 and 43.10 keep edk2 from asking port 4011 once more.
func TestProxyOfferHoldsBootOptionsOnly(t *testing.T) {
	const uuid = "97=0033221100554477668899aabbccddeeff"
	const script = "http://10.20.0.2:8080/boot/script"
	for _, tt := range []struct {
		name   string
		packet *dhcpv4.DHCPv4
		change []func(*question)
		file   string
		want   []string
	}{
		{"PXE", message(DISCOVER, macDeclared, pxe(7)), nil, "snponly.efi", []string{`siaddr=10.20.0.2 file="snponly.efi"`,
			"43=0601080a0400505845ff", "53=02", "54=0a140002", "60=505845436c69656e74", "66=31302e32302e302e32", "67=736e706f6e6c792e656669", uuid}},
		{"PXE at the boot server", message(REQUEST, macDeclared, pxe(7), ciaddr("10.20.0.77")), []func(*question){asker("10.20.0.77:68")}, "snponly.efi", []string{`siaddr=10.20.0.2 file="snponly.efi"`,
			"43=0601080a0400505845ff", "53=05", "54=0a140002", "60=505845436c69656e74", "66=31302e32302e302e32", "67=736e706f6e6c792e656669", uuid}},
		{"iPXE", message(DISCOVER, macDeclared, ipxeClient), nil, script, []string{`siaddr=10.20.0.2 file="` + script + `"`,
			"43=0601080a0400505845ff", "53=02", "54=0a140002", "60=505845436c69656e74", "66=31302e32302e302e32", "67=687474703a2f2f31302e32302e302e323a383038302f626f6f742f736372697074", uuid}},
		{"HTTP Boot", message(DISCOVER, macDeclared, httpBoot(16)), nil, "http://10.20.0.2/x", []string{`siaddr=0.0.0.0 file="http://10.20.0.2/x"`,
			"53=02", "54=0a140002", "60=48545450436c69656e74", "67=687474703a2f2f31302e32302e302e322f78", uuid}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(beside), tt.packet, nil, append(tt.change, func(q *question) { q.boot.file = tt.file })...)
			if o.packet == nil {
				t.Fatal(o.silence)
			}
			if diff := cmp.Diff(tt.want, dump(o.packet)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if o.packet.TransactionID != tt.packet.TransactionID {
				t.Error("another transaction")
			}
		})
	}
}

func TestProxyWritesNoLeaseAndSaysSo(t *testing.T) {
	set := rack(beside)
	r := newRig(t, set)
	r.put(message(DISCOVER, macDeclared, pxe(0)))
	if got := r.get(); got.BootFileName != "undionly.kpxe" || got.YourIPAddr.String() != "0.0.0.0" {
		t.Errorf("got %s", got.Summary())
	}
	if why := r.silence(message(REQUEST, macDeclared, pxe(0), requested("10.20.0.77"), serverID("10.20.0.9"))); why != "addresses are not ours" {
		t.Errorf("silent for %q", why)
	}
	r.accept(r.link, message(REQUEST, macDeclared, pxe(0), ciaddr("10.20.0.77")).ToBytes(), ourAddr, netip.MustParseAddrPort("10.20.0.77:68"), 68)
	r.drain(t.Context(), 1)
	if got := r.get(); got.MessageType() != dhcpv4.MessageTypeAck || !got.to.bootServer || got.from != ourAddr {
		t.Errorf("got %s to %+v", got.Summary(), got.to)
	}
	if n := len(r.mem.leases(t)); n != 0 {
		t.Errorf("%d leases", n)
	}
	eth := []Interface{iface(2, "eth0", "10.20.0.2/24")}
	want := []string{`dhcp: network "rack1" (10.20.0.0/24) on eth0 as 10.20.0.2; proxy: names boot files only (ports 67 and 4011), its addresses are not ours; undeclared machines boot the ramdisk`}
	if diff := cmp.Diff(want, Describe(set, eth)); diff != "" {
		t.Error(diff)
	}
}

// offers are the answers of several servers to one broadcast, by sender.
func (c *rawClient) offers(p *dhcpv4.DHCPv4, want int) map[string]*dhcpv4.DHCPv4 {
	c.t.Helper()
	return c.offersBy(p, want, func(src netip.AddrPort, _ *dhcpv4.DHCPv4) string { return src.String() })
}

// offersBy asks as slowly as firmware does.
func (c *rawClient) offersBy(p *dhcpv4.DHCPv4, want int, key func(netip.AddrPort, *dhcpv4.DHCPv4) string) map[string]*dhcpv4.DHCPv4 {
	c.t.Helper()
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	f := ethernet(all, c.hw, frame(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), p.ToBytes()))
	got, buf := map[string]*dhcpv4.DHCPv4{}, make([]byte, 2048)
	for range 20 {
		if _, err := c.pc.WriteTo(f, &packet.Addr{HardwareAddr: all}); err != nil {
			c.t.Fatal(err)
		}
		if err := c.pc.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			c.t.Fatal(err)
		}
		for len(got) < want {
			n, _, err := c.pc.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				c.t.Fatal(err)
			}
			src, port, payload, ok := unframe(buf[14:n])
			if !ok || src.Port() != serverPort || port != clientPort {
				continue
			}
			if r, err := dhcpv4.FromBytes(payload); err == nil && r.TransactionID == p.TransactionID {
				got[key(src, r)] = r
			}
		}
		if len(got) >= want {
			break
		}
	}
	return got
}

// Both servers on one link: dnsmasq gives the address, we the boot file, on
// both ports; the address server's own clients notice nothing of us.
func TestProxyBesideDnsmasq(t *testing.T) {
	if !namespace(t, "dnsmasq", "udhcpc") {
		return
	}
	segment(t, "10.20.0.2/24")
	other := newStation(t, "")
	other.run("ip", "addr", "add", "10.20.0.9/24", "dev", "eth0")
	other.start("dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--user=root", "--interface=eth0", "--no-ping",
		"--dhcp-range=10.20.0.50,10.20.0.60,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file=")
	set := rack(beside)
	s := serve(t, set)
	s.await(t, dutyServing)

	st := newStation(t, macDeclared)
	c := st.raw(macDeclared)
	for i, client := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		file   string
	}{{"firmware", pxe(0), "undionly.kpxe"}, {"iPXE", ipxeClient, "http://10.20.0.2/boot/script"}, {"HTTP Boot", httpBoot(16), "http://10.20.0.2/snponly.efi"}} {
		p := message(DISCOVER, macDeclared, client.change, wantsBroadcast)
		p.TransactionID = dhcpv4.TransactionID{8, 8, 8, byte(i)}
		offers := c.offers(p, 2)
		theirs, ours := offers["10.20.0.9:67"], offers["10.20.0.2:67"]
		if theirs == nil || ours == nil {
			t.Fatalf("%s: offers of %v", client.name, offers)
		}
		if a := addr4(theirs.YourIPAddr); !a.IsValid() || theirs.BootFileName != "" {
			t.Errorf("%s: the address server says %s", client.name, theirs.Summary())
		}
		if a := addr4(ours.YourIPAddr); a.IsValid() || ours.BootFileName != client.file || !bytes.Equal(ours.Options[60], p.Options[60][:bytes.IndexByte(p.Options[60], ':')]) {
			t.Errorf("%s: we say %s", client.name, ours.Summary())
		}
		if client.name == "HTTP Boot" {
			continue // it fetches the URL, and asks no boot server
		}
		// The boot server, asked by unicast from the new address.
		addr := theirs.YourIPAddr.String()
		st.run("ip", "addr", "replace", addr+"/24", "dev", "eth0")
		var pc net.PacketConn
		st.enter(func() (err error) {
			pc, err = net.ListenPacket("udp4", addr+":68")
			return err
		})
		req := message(REQUEST, macDeclared, client.change, ciaddr(addr))
		req.TransactionID = p.TransactionID
		if _, err := pc.WriteTo(req.ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 20, 0, 2), Port: 4011}); err != nil {
			t.Fatal(err)
		}
		if err := pc.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			t.Fatalf("%s: %v", client.name, err)
		}
		ack, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != "10.20.0.2:4011" || ack.MessageType() != dhcpv4.MessageTypeAck || ack.TransactionID != p.TransactionID || ack.BootFileName != client.file {
			t.Errorf("%s: from %s: %s", client.name, from, ack.Summary())
		}
		pc.Close()
		st.run("ip", "addr", "flush", "dev", "eth0")
	}

	path, log := script(t)
	st.run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "10", "-T", "3")
	logged(t, log, "serverid=10.20.0.9")
	if f := s.Findings(); len(f) != 0 {
		t.Errorf("findings %q", f)
	}
	if l := s.Leases(); len(l) != 0 {
		t.Errorf("leases %+v", l)
	}
	// With the addresses ours again the boot server's port is closed.
	if err := s.Update(rack(func(s *inventory.Set) { s.Networks[0].Force = true })); err != nil {
		t.Fatal(err)
	}
	eventually(t, "port 4011 is free", func() bool { return PortOwner(bootPort, 0) == "" })
}

// The relay asks both servers, the address server and us. Firmware gets both
// offers through it, and asks our boot server past it.
func TestProxyBehindDhcrelayBesideDnsmasq(t *testing.T) {
	if !namespace(t, "dhcrelay", "dnsmasq") {
		return
	}
	s, relay, client := behindRelay(t, rack(beside), macDeclared)
	other := newStation(t, "")
	other.run("ip", "addr", "add", "192.168.50.9/24", "dev", "eth0")
	other.run("ip", "route", "add", "10.20.0.0/24", "via", "192.168.50.2")
	other.start("dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--user=root", "--interface=eth0", "--no-ping",
		"--dhcp-range=10.20.0.50,10.20.0.60,255.255.255.0,1h", "--dhcp-option=3,10.20.0.1", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file=")
	relay.start("dhcrelay", "-4", "-d", "--no-pid", "-c", "10", "-a", "-iu", "eth0", "-id", "access", "192.168.50.1", "192.168.50.9")

	c := client.raw(macDeclared)
	offersOf := func(xid byte, change func(*dhcpv4.DHCPv4), file string) *dhcpv4.DHCPv4 {
		t.Helper()
		p := message(DISCOVER, macDeclared, change, wantsBroadcast)
		p.TransactionID = dhcpv4.TransactionID{6, 6, 6, xid}
		offers := c.offersBy(p, 2, func(_ netip.AddrPort, r *dhcpv4.DHCPv4) string { return identifier(r).String() })
		theirs, ours := offers["192.168.50.9"], offers["192.168.50.1"]
		if theirs == nil || ours == nil {
			t.Fatalf("offers of %v", offers)
		}
		if !addr4(theirs.YourIPAddr).IsValid() || theirs.BootFileName != "" {
			t.Errorf("the address server says %s", theirs.Summary())
		}
		if addr4(ours.YourIPAddr).IsValid() || ours.BootFileName != file || ours.Options.Has(dhcpv4.OptionRelayAgentInformation) {
			t.Errorf("we say %s; want %s", ours.Summary(), file)
		}
		return theirs
	}
	offersOf(1, httpBoot(16), "http://192.168.50.1/snponly.efi")
	addr := offersOf(2, pxe(0), "undionly.kpxe").YourIPAddr.String()

	client.run("ip", "addr", "replace", addr+"/24", "dev", "eth0")
	client.run("ip", "route", "replace", "default", "via", "10.20.0.1")
	var pc net.PacketConn
	client.enter(func() (err error) {
		pc, err = net.ListenPacket("udp4", addr+":68")
		return err
	})
	defer pc.Close()
	req := message(REQUEST, macDeclared, pxe(0), ciaddr(addr))
	if _, err := pc.WriteTo(req.ToBytes(), &net.UDPAddr{IP: net.IPv4(192, 168, 50, 1), Port: 4011}); err != nil {
		t.Fatal(err)
	}
	if err := pc.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, from, err := pc.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	ack, err := dhcpv4.FromBytes(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	if from.String() != "192.168.50.1:4011" || ack.MessageType() != dhcpv4.MessageTypeAck || ack.BootFileName != "undionly.kpxe" {
		t.Errorf("from %s: %s", from, ack.Summary())
	}
	if l := s.Leases(); len(l) != 0 {
		t.Errorf("leases %+v", l)
	}
	// With the addresses ours again nobody is asked past the relay.
	if err := s.Update(rack()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "port 4011 is free", func() bool { return PortOwner(bootPort, 0) == "" })
}
