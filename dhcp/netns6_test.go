package dhcp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// segment6 is segment with an IPv6 address, at once: nobody else has it.
func segment6(t testing.TB, addr string) {
	t.Helper()
	noDAD(t)
	segment(t, "192.168.50.1/24")
	run(t, "ip", "addr", "add", addr, "dev", "br0", "nodad")
	// Without a port the bridge has no carrier, and its addresses are not usable.
	newStation(t, "")
}

// noDAD spares what is made from now on the wait of duplicate address detection.
func noDAD(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
}

func newStation6(t testing.TB, mac string) *netStation {
	t.Helper()
	s := newStation(t, mac)
	eventually(t, "the station has a link-local address", func() bool {
		out, err := s.command("ip", "-6", "addr", "show", "dev", "eth0").CombinedOutput()
		return err == nil && strings.Contains(string(out), "fe80::") && !strings.Contains(string(out), "tentative")
	})
	return s
}

func serve6(t *testing.T, set *inventory.Set, change ...func(*Server)) *Server {
	t.Helper()
	s := serve(t, set, append([]func(*Server){func(s *Server) {
		s.Bootfile = func(c ipxe.Client, spec ipxe.Spec, server netip.Addr) (string, bool) {
			return ipxe.Boot{}.Bootfile(c, spec, server, 8080)
		}
	}}, change...)...)
	s.await6(t, dutyServing)
	return s
}

// await6 waits until the IPv6 Network on br0, where there is one, is in a state.
func (s *Server) await6(t *testing.T, state int32) {
	t.Helper()
	eventually(t, fmt.Sprintf("DHCPv6 is in state %d", state), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		l := s.links6["br0"]
		return l != nil && (len(l.state.Load().duties) == 0 || l.state.Load().duties[0].state.Load() == state)
	})
}

// script6 is what a client calls with what it was given.
func script6(t *testing.T) (path, log string) {
	t.Helper()
	dir := t.TempDir()
	path, log = filepath.Join(dir, "script"), filepath.Join(dir, "log")
	text := `#!/bin/sh
{ echo "event=$reason"; env; echo; } >> ` + log + `
case "$reason" in
BOUND6|RENEW6|REBIND6) ip -6 addr replace "$new_ip6_address/128" dev "$interface" nodad ;;
esac
`
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, log
}

// dhclient6 runs ISC's client with a DUID of its own making.
func dhclient6(t *testing.T, st *netStation, script, dir string, flags ...string) (stop func()) {
	t.Helper()
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, []byte("timeout 20;\nretry 1;\nsend dhcp6.fqdn 0 \"web1\";\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"dhclient", "-6", "-d", "-cf", conf, "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "-sf", script}, flags...)
	cmd := st.start(append(args, "eth0")...)
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

func TestDhclientBindsConfirmsRenewsAndReleasesIPv6(t *testing.T) {
	if !namespace(t, "dhclient") {
		return
	}
	segment6(t, "2001:db8:20::2/64")
	// T1 is a minute: the client renews in the test's time.
	s := serve6(t, rack6(func(set *inventory.Set) { set.Networks[0].LeaseTime = 4e9 }))
	st := newStation6(t, macDeclared)
	path, log := script6(t)
	dir := t.TempDir()
	stop := dhclient6(t, st, path, dir)
	logged(t, log, "event=BOUND6\n")
	logged(t, log, "new_ip6_address=2001:db8:20::15\n")
	logged(t, log, "new_dhcp6_name_servers=2001:db8::53\n")
	logged(t, log, "event=RENEW6\n")
	if l, ok := s.LeaseByAddr(netip.MustParseAddr("2001:db8:20::15")); !ok || l.Machine != "r1u05" || l.MAC != macDeclared {
		t.Errorf("lease %+v, %v", l, ok)
	}
	logged(t, filepath.Join(dir, "leases"), "iaaddr 2001:db8:20::15")
	stop()
	before := s.Stats().Replies["REPLY"]
	if err := os.Truncate(log, 0); err != nil {
		t.Fatal(err)
	}
	// It still has its lease: CONFIRM.
	stop = dhclient6(t, st, path, dir)
	logged(t, log, "new_ip6_address=2001:db8:20::15\n")
	if after := s.Stats().Replies["REPLY"]; after == before {
		t.Errorf("no REPLY to a CONFIRM")
	}
	stop()
	// -N forgets the lease's DUID and IAID: the address stays.
	if err := os.Remove(filepath.Join(dir, "leases")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(log, 0); err != nil {
		t.Fatal(err)
	}
	stop = dhclient6(t, st, path, dir, "-D", "LL")
	logged(t, log, "new_ip6_address=2001:db8:20::15\n")
	logged(t, filepath.Join(dir, "leases"), "iaaddr 2001:db8:20::15")
	stop()
	st.run("dhclient", "-6", "-r", "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "-sf", path, "eth0")
	eventually(t, "the lease is gone", func() bool { return len(s.Leases()) == 0 })
	if st := s.Stats(); len(st.Malformed) > 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestDhclientGetsNoPrefixAndNoTemporaryIPv6Address(t *testing.T) {
	if !namespace(t, "dhclient") {
		return
	}
	segment6(t, "2001:db8:20::2/64")
	s := serve6(t, rack6())
	st := newStation6(t, macStranger)
	path, log := script6(t)
	// Stateless first: no address is given, none is recorded.
	stop := dhclient6(t, st, path, t.TempDir(), "-S")
	logged(t, log, "new_dhcp6_name_servers=2001:db8::53\n")
	stop()
	if l := s.Leases(); len(l) > 0 {
		t.Errorf("leases %+v", l)
	}
	stop = dhclient6(t, st, path, t.TempDir(), "-N", "-T", "-P")
	logged(t, log, "new_ip6_address=2001:db8:20::1:1631\n")
	stop()
	if l := s.Leases(); len(l) != 1 {
		t.Errorf("leases %+v", l)
	}
}

// dhcpcd hides its hardware address in its link-local one and names itself by a
// DUID of another card.
func TestDhcpcdGetsTheMachinesIPv6Address(t *testing.T) {
	if !namespace(t, "dhcpcd") {
		return
	}
	segment6(t, "2001:db8:20::2/64")
	s := serve6(t, rack6())
	st := newStation6(t, macDeclared)
	dir := t.TempDir()
	conf, log := filepath.Join(dir, "conf"), filepath.Join(dir, "log")
	if err := os.WriteFile(conf, []byte("noipv6rs\nslaac private\noption rapid_commit\nlogfile "+log+"\ninterface eth0\n  ia_na 7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Its hooks would rewrite the host's /etc/resolv.conf: none runs. Its files stand in
	// fixed places: a mount namespace has them to itself. Its
	// helpers outlive it, but not the shell that their namespace begins with.
	st.start("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "mount -t tmpfs tmpfs /var/lib/dhcpcd && mount -t tmpfs tmpfs /run && dhcpcd -6 -B -d -c /bin/true -f "+conf+" eth0; exit")
	eventually(t, "dhcpcd sets the address", func() bool {
		out, err := st.command("ip", "-6", "addr", "show", "dev", "eth0").CombinedOutput()
		return err == nil && strings.Contains(string(out), "2001:db8:20::15/")
	})
	if st := s.Stats(); st.Replies["ADVERTISE"] > 0 || st.Replies["REPLY"] == 0 || len(st.Malformed) > 0 {
		t.Errorf("no rapid commit: %+v", st)
	}
}

func TestDhclientBehindDhcrelayGetsItsIPv6Address(t *testing.T) {
	if !namespace(t, "dhcrelay", "dhclient") {
		return
	}
	segment6(t, "2001:db8:99::1/64")
	s := serve6(t, rack6())
	relay := newStation6(t, "")
	relay.run("ip", "addr", "add", "2001:db8:99::2/64", "dev", "eth0", "nodad")
	relay.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
	run(t, "ip", "route", "add", "2001:db8:20::/64", "via", "2001:db8:99::2")
	client := newStation(t, "")
	client.run("ip", "link", "del", "eth0")
	client.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
	relay.run("ip", "link", "add", "access", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(client.pid))
	relay.run("ip", "addr", "add", "2001:db8:20::1/64", "dev", "access", "nodad")
	relay.run("ip", "link", "set", "access", "up")
	client.run("ip", "link", "set", "eth0", "address", macDeclared, "up")
	eventually(t, "the client has a link-local address", func() bool {
		out, _ := client.command("ip", "-6", "addr", "show", "dev", "eth0").CombinedOutput()
		return strings.Contains(string(out), "fe80::") && !strings.Contains(string(out), "tentative")
	})
	for _, upper := range []string{"2001:db8:99::1%eth0", "eth0"} { // to us, and to every server
		dhcrelay := relay.start("dhcrelay", "-6", "-d", "--no-pid", "-I", "-l", "access", "-u", upper)
		path, log := script6(t)
		stop := dhclient6(t, client, path, t.TempDir())
		logged(t, log, "new_ip6_address=2001:db8:20::15\n")
		stop()
		_ = dhcrelay.Process.Signal(syscall.SIGKILL)
		_ = dhcrelay.Wait()
	}
	if st := s.Stats(); len(st.Malformed) > 0 || st.Replies["REPLY"] < 2 {
		t.Errorf("%+v", st)
	}
}

// radvd runs a router's daemon in a station, which advertises the prefix.
func (s *netStation) radvd(managed string) (stop func()) {
	s.t.Helper()
	dir := s.t.TempDir()
	conf := filepath.Join(dir, "conf")
	text := "interface eth0 { AdvSendAdvert on; AdvManagedFlag " + managed + "; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; prefix 2001:db8:20::/64 { AdvAutonomous off; }; };\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	cmd := s.start("radvd", "-n", "-C", conf, "-p", filepath.Join(dir, "pid"), "-m", "stderr")
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

func (s *Server) finding(t *testing.T, text string, there bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("a finding about %q: %v", text, there), func() bool {
		return strings.Contains(strings.Join(s.Findings(), "\n"), text) == there
	})
}

// Machines ask DHCPv6 for an address only where a router says so: without its word
// nothing boots, and nothing tells why but we.
func TestFindingTellsThatNoRouterSendsMachinesToDHCPv6(t *testing.T) {
	if !namespace(t, "radvd") {
		return
	}
	segment6(t, "2001:db8:20::2/64")
	router := newStation6(t, "")
	stop := router.radvd("off")
	again := make(chan time.Time, 8)
	s := serve6(t, rack6(), func(s *Server) {
		s.after = func(d time.Duration) <-chan time.Time {
			if d == portsCollected {
				return nil // it is not the guard that waits so long
			}
			return again
		}
	})
	const finding = "no router on br0 tells machines to ask DHCPv6"
	s.finding(t, finding, true)
	stop()
	router.radvd("on")
	again <- epoch
	s.finding(t, finding, false)
}

// Another server of the addresses silences us where it was first.
func TestSilentBesideAnotherDHCPv6Server(t *testing.T) {
	if !namespace(t, "dnsmasq", "dhclient") {
		return
	}
	segment6(t, "2001:db8:20::2/64")
	other := newStation6(t, "")
	other.run("ip", "addr", "add", "2001:db8:20::3/64", "dev", "eth0", "nodad")
	other.start("dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--interface=eth0", "--bind-interfaces", "--user=root", "--dhcp-authoritative",
		"--dhcp-range=2001:db8:20::9:1,2001:db8:20::9:9,5m", "--leasefile-ro", "--log-facility=-", "--pid-file=")
	eventually(t, "dnsmasq listens", func() bool {
		out, err := other.command("ss", "-6nlu").CombinedOutput()
		return err == nil && strings.Contains(string(out), ":547")
	})
	s := serve(t, rack6())
	s.await6(t, dutySilent)
	s.finding(t, "another DHCP server, fe80::", true)
	s.finding(t, "stop it, or set dhcp: off or force: true", true)
	st := newStation6(t, macDeclared)
	path, log := script6(t)
	stop := dhclient6(t, st, path, t.TempDir())
	logged(t, log, "new_ip6_address=2001:db8:20::9:")
	stop()
	if st := s.Stats(); len(st.Replies) > 0 {
		t.Errorf("answered: %+v", st)
	}
}
