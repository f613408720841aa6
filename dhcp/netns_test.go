package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

const inNamespace = "RECAST_DHCP_NAMESPACE"

// tool is a program that tests run, and Debian's package of it.
type tool struct{ name, pkg string }

var tools = map[string]tool{
	"ip":               {"ip", "iproute2"},
	"nsenter":          {"nsenter", "util-linux"},
	"nft":              {"nft", "nftables"},
	"udhcpc":           {"udhcpc", "udhcpc"},
	"dhclient":         {"dhclient", "isc-dhcp-client"},
	"dhcpcd":           {"dhcpcd", "dhcpcd-base"},
	"systemd-networkd": {"/usr/lib/systemd/systemd-networkd", "systemd"},
	"dnsmasq":          {"dnsmasq", "dnsmasq-base"},
	"dhcrelay":         {"dhcrelay", "isc-dhcp-relay"},
	"nmap":             {"nmap", "nmap"},
	"radvd":            {"radvd", "radvd"},
	"tshark":           {"tshark", "tshark"},
	"perfdhcp":         {"perfdhcp", "kea-admin"},
}

// path of the program, "" where it is not there.
func (t tool) path() string {
	p, err := exec.LookPath(t.name)
	if err != nil {
		return ""
	}
	return p
}

// namespace runs the rest of the test in a child process with a network
// namespace of its own, which the kernel takes away with the process. It
// returns true in the child.
func namespace(t *testing.T, needed ...string) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, name := range append(needed, "ip", "nsenter") {
		if tools[name].path() == "" {
			t.Skipf("needs %s (apt-get install %s)", name, tools[name].pkg)
		}
	}
	t.Parallel() // the time goes into waiting for clients
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.timeout=100s", "-test.parallel=8")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// segment is a bridge with our address; stations hang on it.
func segment(t testing.TB, addr string) {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "br0", "type", "bridge")
	run(t, "ip", "addr", "add", addr, "dev", "br0")
	run(t, "ip", "link", "set", "br0", "up")
}

// netStation is a network namespace with one interface, eth0, on the bridge.
type netStation struct {
	t    testing.TB
	pid  int
	port string // of the bridge
}

var stations int

func newStation(t testing.TB, mac string) *netStation {
	t.Helper()
	s := &netStation{t: t}
	s.hold()
	stations++
	port := fmt.Sprintf("port%d", stations)
	s.port = port
	run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(s.pid))
	run(t, "ip", "link", "set", port, "master", "br0", "up")
	if mac != "" {
		s.run("ip", "link", "set", "eth0", "address", mac)
	}
	s.run("ip", "link", "set", "eth0", "up")
	return s
}

// hold makes the namespace.
func (s *netStation) hold() {
	s.t.Helper()
	hold := exec.CommandContext(s.t.Context(), "sleep", "1000")
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := hold.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = hold.Process.Kill(); _ = hold.Wait() })
	s.pid = hold.Process.Pid
}

func (s *netStation) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", s.pid)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (s *netStation) run(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start runs a command until the test ends.
func (s *netStation) start(args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := s.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // a child of its own may hold them
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", strings.Join(args, " "), out.String())
		}
	})
	return cmd
}

// enter runs f on a thread inside the station's namespace; what f opens stays there.
func (s *netStation) enter(f func() error) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() {
		// The thread goes back home and lives on: with it would die the processes
		// that were started from it (Pdeathsig).
		runtime.LockOSThread()
		done <- func() error {
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close()
			there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid))
			if err != nil {
				return err
			}
			defer there.Close()
			if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			err = f()
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
				return back
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
}

// serve runs a server as it runs for real, on a store of its own.
func serve(t *testing.T, set *inventory.Set, change ...func(*Server)) *Server {
	t.Helper()
	db, err := store.OpenBolt(filepath.Join(t.TempDir(), "store.db"), store.BoltOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Store: db, Booter: &booter{spec: ipxe.Spec{Kind: ipxe.SpecRamdisk}},
		Bootfile: func(c ipxe.Client, _ ipxe.Spec, server netip.Addr) (string, bool) {
			if c.Loader == ipxe.LoaderIPXE {
				return "http://" + server.String() + "/boot/script", true
			}
			if c.Loader == ipxe.LoaderHTTP {
				return "http://" + server.String() + "/snponly.efi", true
			}
			return "undionly.kpxe", true
		}}
	for _, f := range change {
		f(s)
	}
	if err := s.Update(set); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.Panics > 0 || t.Failed() {
			t.Errorf("stats %+v, findings %q", st, s.Findings())
		}
	})
	return s
}

// await waits until the Network on br0 is in a state.
func (s *Server) await(t *testing.T, state int32) {
	t.Helper()
	eventually(t, fmt.Sprintf("the network is in state %d", state), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		l := s.links["br0"]
		if l == nil {
			return false
		}
		ds := l.state.Load().duties
		return len(ds) > 0 && ds[0].state.Load() == state
	})
}

// script is what a client program calls with what it was given; it writes its
// environment down, and configures the interface.
func script(t *testing.T) (path, log string) {
	t.Helper()
	dir := t.TempDir()
	path, log = filepath.Join(dir, "script"), filepath.Join(dir, "log")
	text := `#!/bin/sh
{ echo "event=${1:-$reason}"; env; echo; } >> ` + log + `
case "${1:-$reason}" in
bound|renew) ip addr replace "$ip/24" dev "$interface" ;;
BOUND|RENEW|REBOOT) ip addr replace "$new_ip_address/24" dev "$interface" ;;
deconfig|PREINIT) ip addr flush dev "$interface" ;;
esac
`
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, log
}

func logged(t *testing.T, log, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the client logs %q", text), func() bool {
		b, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(b), text)
	})
}

func TestUdhcpcBindsRenewsAndReleases(t *testing.T) {
	if !namespace(t, "udhcpc") {
		return
	}
	segment(t, "10.20.0.2/24")
	s := serve(t, rack())
	s.await(t, dutyServing)
	st := newStation(t, macDeclared)
	path, log := script(t)
	client := st.start("udhcpc", "-f", "-i", "eth0", "-s", path, "-t", "20", "-T", "1", "-x", "hostname:web1")
	logged(t, log, "ip=10.20.0.15\n")
	for _, want := range []string{"event=bound", "router=10.20.0.1", "subnet=255.255.255.0", "dns=10.20.0.1 9.9.9.9", "lease=3600", "serverid=10.20.0.2"} {
		logged(t, log, want+"\n")
	}
	l, ok := s.LeaseByAddr(netip.MustParseAddr("10.20.0.15"))
	if !ok || l.Machine != "r1u05" || l.Hostname != "web1" {
		t.Errorf("lease %+v, %v", l, ok)
	}
	if err := client.Process.Signal(syscall.SIGUSR1); err != nil { // renew, by unicast from the address
		t.Fatal(err)
	}
	logged(t, log, "event=renew")
	if err := client.Process.Signal(syscall.SIGUSR2); err != nil { // release
		t.Fatal(err)
	}
	eventually(t, "the lease is gone", func() bool { return len(s.Leases()) == 0 })
	if st := s.Stats(); st.Replies["ACK"] < 2 || st.Replies["NAK"] > 0 || len(st.Malformed) > 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestDhclientGetsItsOldAddressAgainAndTakesANak(t *testing.T) {
	if !namespace(t, "dhclient") {
		return
	}
	segment(t, "10.20.0.2/24")
	set := rack()
	s := serve(t, set)
	s.await(t, dutyServing)
	st := newStation(t, macStranger)
	path, log := script(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "dhclient.conf")
	if err := os.WriteFile(conf, []byte("timeout 20;\nretry 1;\ninitial-interval 1;\nreboot 5;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// once runs dhclient until it says that it is bound, and stops it without a release.
	once := func(want, addr string) {
		t.Helper()
		if err := os.Truncate(log, 0); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		cmd := st.start("dhclient", "-4", "-1", "-d", "-cf", conf, "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "-sf", path, "eth0")
		logged(t, log, want)
		logged(t, log, "new_ip_address="+addr+"\n")
		// Its lease file is written after the script has run.
		logged(t, filepath.Join(dir, "leases"), "fixed-address "+addr)
		_ = cmd.Process.Kill()
	}
	const addr = "10.20.0.173" // its home in the pool
	once("event=BOUND\n", addr)
	once("event=REBOOT\n", addr) // INIT-REBOOT, acknowledged
	if st := s.Stats(); st.Replies["NAK"] > 0 {
		t.Errorf("stats %+v", st)
	}

	// Declared now, with another address: its old one is refused.
	set.Machines = append(set.Machines, &inventory.Machine{Name: "r1u07", NICs: []inventory.NIC{{MAC: macStranger, IP: netip.MustParseAddr("10.20.0.17")}}})
	if err := s.Update(set); err != nil {
		t.Fatal(err)
	}
	once("event=BOUND\n", "10.20.0.17")
	if st := s.Stats(); st.Replies["NAK"] != 1 {
		t.Errorf("stats %+v", st)
	}
	if l := s.Leases(); len(l) != 1 || l[0].Machine != "r1u07" {
		t.Errorf("leases %+v", l)
	}
}

func TestDnsmasqOnTheLinkKeepsUsSilent(t *testing.T) {
	if !namespace(t, "dnsmasq", "udhcpc") {
		return
	}
	segment(t, "10.20.0.2/24")
	other := newStation(t, "")
	other.run("ip", "addr", "add", "10.20.0.9/24", "dev", "eth0")
	// With its default settings: it pings an address before it offers it.
	dnsmasq := other.start("dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--user=root", "--interface=eth0",
		"--dhcp-range=10.20.0.50,10.20.0.60,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file=")
	seen := make(chan inventory.Observation, 100)
	s := serve(t, rack(), func(s *Server) {
		s.Observe = func(o inventory.Observation) {
			if o.Kind == inventory.SawForeign {
				seen <- o
			}
		}
		s.after = func(d time.Duration) <-chan time.Time { return time.After(d / 60) }
		first := true
		s.probe = func(ctx context.Context, f Interface, class string, found func(foreign)) error {
			if !first { // it remembers the ping, and the test need not wait for another
				short, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
				defer cancel()
				ctx = short
			}
			first = false
			return probe(ctx, f, class, found)
		}
	})
	s.await(t, dutySilent)
	if f := s.Findings(); len(f) != 1 || !strings.Contains(f[0], "another DHCP server, 10.20.0.9 (") || !strings.Contains(f[0], "answers on br0") {
		t.Errorf("findings %q", f)
	}
	if o := <-seen; o.Remote.String() != "10.20.0.9" || o.Network != "rack1" || o.MAC == "" {
		t.Errorf("observed %+v", o)
	}
	st := newStation(t, macDeclared)
	path, log := script(t)
	before := s.Stats().Replies["OFFER"] // dnsmasq's first offer comes late, after its ping
	st.run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "10", "-T", "3")
	logged(t, log, "serverid=10.20.0.9")
	if got := s.Stats(); got.Replies["OFFER"] != before || got.Silent["another DHCP server"] == 0 {
		t.Errorf("stats %+v", got)
	}
	// It goes away: we find out and answer.
	_ = dnsmasq.Process.Kill()
	eventually(t, "the network is served", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.links["br0"].state.Load().duties[0].state.Load() == dutyServing
	})
	st.run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "10", "-T", "1")
	logged(t, log, "serverid=10.20.0.2")
	if f := s.Findings(); len(f) != 0 {
		t.Errorf("findings %q", f)
	}
}

func TestPortThatIsTakenNamesItsOwner(t *testing.T) {
	if !namespace(t, "dnsmasq") {
		return
	}
	segment(t, "10.20.0.2/24")
	d := exec.CommandContext(t.Context(), "dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--user=root", "--interface=br0",
		"--dhcp-range=10.20.0.50,10.20.0.60,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file=")
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Process.Kill(); _ = d.Wait() }()
	eventually(t, "dnsmasq listens", func() bool { return PortOwner(67, 0) != "" })
	s := &Server{Store: newMemStore()}
	if err := s.Update(rack()); err != nil {
		t.Fatal(err)
	}
	err := s.Run(t.Context())
	want := fmt.Sprintf("listen on udp port 67 of br0: it is held by dnsmasq (pid %d): stop that DHCP server, or set dhcp: off for the network", d.Process.Pid)
	if err == nil || err.Error() != want {
		t.Errorf("Run = %v; want %s", err, want)
	}
}

// rawClient is a client made by hand: it sends and sees whole frames.
type rawClient struct {
	t  testing.TB
	pc *packet.Conn
	hw net.HardwareAddr
}

func (s *netStation) raw(mac string) *rawClient {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &rawClient{t: s.t, hw: hw}
	s.enter(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c.pc, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_IP, nil)
		return err
	})
	s.t.Cleanup(func() { c.pc.Close() })
	return c
}

// ethernet is a frame with an IP packet.
func ethernet(dst, src net.HardwareAddr, ip []byte) []byte {
	b := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(b, unix.ETH_P_IP), ip...)
}

// exchange sends p and returns the reply with where it was sent to.
func (c *rawClient) exchange(p *dhcpv4.DHCPv4, from, to string) (*dhcpv4.DHCPv4, string) {
	c.t.Helper()
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	f := ethernet(all, c.hw, frame(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), p.ToBytes()))
	if err := c.pc.SetReadDeadline(time.Unix(1, 0)); err != nil {
		c.t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for tries := 0; ; {
		// The first frame is lost while the bridge's port comes up.
		n, _, err := c.pc.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if tries++; tries > 10 {
				return nil, ""
			}
			if _, err := c.pc.WriteTo(f, &packet.Addr{HardwareAddr: all}); err != nil {
				c.t.Fatal(err)
			}
			if err := c.pc.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
				c.t.Fatal(err)
			}
			continue
		}
		if err != nil {
			c.t.Fatal(err)
		}
		src, port, payload, ok := unframe(buf[14:n])
		if !ok || src.Port() != 67 {
			continue
		}
		r, err := dhcpv4.FromBytes(payload)
		if err != nil || r.TransactionID != p.TransactionID || r.OpCode != dhcpv4.OpcodeBootReply {
			continue
		}
		return r, fmt.Sprintf("%s:%d at %s from %s, %d bytes or more", netip.AddrFrom4([4]byte(buf[30:34])), port, net.HardwareAddr(buf[:6]), src, min(len(payload), 300))
	}
}

func TestRepliesOnTheWireGoWhereRFC2131Says(t *testing.T) {
	if !namespace(t) {
		return
	}
	segment(t, "10.20.0.2/24")
	s := serve(t, rack(func(s *inventory.Set) { s.Networks[0].Force = true }))
	s.await(t, dutyServing)
	st := newStation(t, macDeclared)
	st.run("ip", "addr", "add", "10.20.0.15/24", "dev", "eth0") // answers ARP for the unicast cases
	st.run("ip", "addr", "add", "10.20.0.254/24", "dev", "eth0")
	c := st.raw(macDeclared)
	const all = "ff:ff:ff:ff:ff:ff"
	for i, tt := range []struct {
		name, from, to string
		p              *dhcpv4.DHCPv4
		want           string
	}{
		{"offer to the hardware address, no ARP", "0.0.0.0:68", "255.255.255.255:67", message(DISCOVER, macDeclared, pxe(0)), "OFFER 10.20.0.15:68 at " + macDeclared},
		{"offer by broadcast", "0.0.0.0:68", "255.255.255.255:67", message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 255.255.255.255:68 at " + all},
		{"nak by broadcast", "0.0.0.0:68", "255.255.255.255:67", message(REQUEST, macDeclared, requested("10.20.0.99"), serverID("10.20.0.2")), "NAK 255.255.255.255:68 at " + all},
		{"ack of a renewal", "10.20.0.15:68", "10.20.0.2:67", message(REQUEST, macDeclared, ciaddr("10.20.0.15")), "ACK 10.20.0.15:68 at " + macDeclared},
		{"to the relay", "10.20.0.254:67", "10.20.0.2:67", message(DISCOVER, "52:54:00:00:00:77", giaddr("10.20.0.254"), option(82, 1, 2, 3, 4)), "OFFER 10.20.0.254:67 at " + macDeclared},
		{"inform", "10.20.0.15:68", "255.255.255.255:67", message(INFORM, macDeclared, ciaddr("10.20.0.15")), "ACK 10.20.0.15:68 at " + macDeclared},
	} {
		tt.p.TransactionID = dhcpv4.TransactionID{7, 7, 7, byte(i)}
		r, where := c.exchange(tt.p, tt.from, tt.to)
		if r == nil {
			t.Fatalf("%s: no reply", tt.name)
		}
		if got, want := r.MessageType().String()+" "+where, tt.want+" from 10.20.0.2:67, 300 bytes or more"; got != want {
			t.Errorf("%s: %s; want %s", tt.name, got, want)
		}
	}
}

// A relayed Network needs no interface of its own; the relay here is made by hand.
func TestRelayedNetworkIsServedOverAnyInterface(t *testing.T) {
	if !namespace(t) {
		return
	}
	segment(t, "192.168.50.1/24")
	s := serve(t, rack())
	relay := newStation(t, "")
	relay.run("ip", "addr", "add", "192.168.50.2/24", "dev", "eth0")
	relay.run("ip", "link", "set", "lo", "up")
	relay.run("ip", "addr", "add", "10.20.0.1/32", "dev", "lo")
	run(t, "ip", "route", "add", "10.20.0.0/24", "via", "192.168.50.2")
	eventually(t, "a socket is open", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.links) > 0 })
	var pc net.PacketConn
	relay.enter(func() (err error) {
		pc, err = net.ListenPacket("udp4", "0.0.0.0:67")
		return err
	})
	defer pc.Close()
	xid := byte(0)
	ask := func(p *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		xid++
		p.HopCount, p.TransactionID = 1, dhcpv4.TransactionID{3, 3, 3, xid}
		if _, err := pc.WriteTo(p.ToBytes(), &net.UDPAddr{IP: net.IPv4(192, 168, 50, 1), Port: 67}); err != nil {
			t.Fatal(err)
		}
		if err := pc.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		n, _, err := pc.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		r, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	agent := option(82, 1, 4, 'p', '1', '/', '7', 9, 3, 0, 0xff, 0)
	offer := ask(message(DISCOVER, macDeclared, giaddr("10.20.0.1"), agent, pxe(7)))
	if offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "10.20.0.15" || offer.ServerIdentifier().String() != "192.168.50.1" ||
		!bytes.Equal(offer.Options[82], []byte{1, 4, 'p', '1', '/', '7', 9, 3, 0, 0xff, 0}) || offer.BootFileName != "undionly.kpxe" {
		t.Errorf("offer %s", offer.Summary())
	}
	ack := ask(message(REQUEST, macDeclared, giaddr("10.20.0.1"), agent, requested("10.20.0.15"), serverID("192.168.50.1")))
	if ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("ack %s", ack.Summary())
	}
	nak := ask(message(REQUEST, macDeclared, giaddr("10.20.0.1"), agent, requested("10.20.0.77"), serverID("192.168.50.1")))
	if nak.MessageType() != dhcpv4.MessageTypeNak || !nak.IsBroadcast() {
		t.Errorf("nak %s", nak.Summary())
	}
}

// Update opens and closes sockets; what did not change is not disturbed.
func TestUpdateOpensAndClosesSockets(t *testing.T) {
	if !namespace(t) {
		return
	}
	segment(t, "10.20.0.2/24")
	run(t, "ip", "link", "add", "br1", "type", "bridge")
	run(t, "ip", "addr", "add", "10.30.0.2/24", "dev", "br1")
	run(t, "ip", "link", "set", "br1", "up")
	s := serve(t, inventory.EmptySet())
	names := func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		var out []string
		for _, n := range []string{"br0", "br1"} {
			if s.links[n] != nil {
				out = append(out, n)
			}
		}
		return strings.Join(out, " ")
	}
	step := func(set *inventory.Set, want string) {
		t.Helper()
		if err := s.Update(set); err != nil {
			t.Fatal(err)
		}
		if got := names(); got != want {
			t.Errorf("listens on %q; want %q", got, want)
		}
		free := PortOwner(67, 0) == ""
		if free != (want == "") {
			t.Errorf("port 67 held: %v", !free)
		}
	}
	eventually(t, "the server runs", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.run != nil })
	if got := names(); got != "" {
		t.Errorf("nothing declared, but it listens on %q", got)
	}
	two := func(s *inventory.Set) {
		s.Networks = append(s.Networks, &inventory.Network{Name: "rack2", Subnet: netip.MustParsePrefix("10.30.0.0/24"), DHCP: inventory.DHCPAuthoritative})
	}
	step(rack(), "br0")
	s.await(t, dutyServing)
	step(rack(two), "br0 br1")
	s.await(t, dutyServing) // at once: it was not probed again
	if st := s.links["br0"].state.Load().duties[0].state.Load(); st != dutyServing {
		t.Errorf("state %d after an unrelated change", st)
	}
	step(rack(func(s *inventory.Set) { s.Networks[0].DHCP = inventory.DHCPOff }), "")
	step(rack(), "br0")
}

// A real client finds the options that had to go into the header's fields.
func TestDhclientReadsAnOverloadedReply(t *testing.T) {
	if !namespace(t, "dhclient") {
		return
	}
	segment(t, "10.20.0.2/24")
	s := serve(t, rack(withDNS(25), func(s *inventory.Set) { s.Networks[0].Force = true }))
	s.await(t, dutyServing)
	st := newStation(t, macDeclared)
	path, log := script(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "dhclient.conf")
	// With its identifier sent back there is no room for the rest.
	write(t, conf, "timeout 20;\nretry 1;\ninitial-interval 1;\nsend dhcp-client-identifier \""+strings.Repeat("x", 180)+"\";\n")
	c := st.raw(macDeclared)
	offer, _ := c.exchange(message(DISCOVER, macDeclared, wantsBroadcast, option(61, bytes.Repeat([]byte("x"), 181)...)), "0.0.0.0:68", "255.255.255.255:67")
	if offer == nil || !offer.Options.Has(dhcpv4.OptionOptionOverload) {
		t.Fatalf("the offer is not overloaded: %v", offer)
	}
	st.start("dhclient", "-4", "-1", "-d", "-cf", conf, "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "-sf", path, "eth0")
	logged(t, log, "event=BOUND\n")
	for _, want := range []string{"new_ip_address=10.20.0.15", "new_subnet_mask=255.255.255.0", "new_routers=10.20.0.1", "new_broadcast_address=10.20.0.255", "new_dhcp_lease_time=3600"} {
		logged(t, log, want+"\n")
	}
	b, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(b), "10.9.9.25") {
		t.Errorf("not all name servers arrived (%v)", err)
	}
}

// A server that turns up later is found by the first client that takes its offer,
// not only by the next probe. We go on: whoever comes later cannot switch us off.
func TestServerThatTurnsUpWhileWeServeIsNamed(t *testing.T) {
	if !namespace(t, "dnsmasq", "udhcpc") {
		return
	}
	segment(t, "10.20.0.2/24")
	seen := make(chan inventory.Observation, 100)
	s := serve(t, rack(), func(s *Server) {
		s.Observe = func(o inventory.Observation) {
			if o.Kind == inventory.SawForeign {
				seen <- o
			}
		}
		s.after = func(d time.Duration) <-chan time.Time {
			if d > probeRest {
				return nil // the next probe is never due
			}
			return time.After(d / 60)
		}
		s.probe = func(ctx context.Context, f Interface, class string, found func(foreign)) error {
			ctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond) // nobody here pings first
			defer cancel()
			return probe(ctx, f, class, found)
		}
	})
	s.await(t, dutyServing)
	eventually(t, "the first probe is over", func() bool { return len(s.Findings()) == 0 })
	other := newStation(t, "52:54:00:00:09:09")
	other.run("ip", "addr", "add", "10.20.0.9/24", "dev", "eth0")
	dnsmasq := other.start("dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--user=root", "--interface=eth0", "--no-ping", "--dhcp-authoritative",
		"--dhcp-range=10.20.0.50,10.20.0.60,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file=")
	c := newStation(t, macStranger).raw(macStranger)
	offer := c.offers(message(DISCOVER, macStranger, wantsBroadcast), 2)["10.20.0.9:67"]
	if offer == nil {
		t.Fatal("dnsmasq offers nothing")
	}
	takes := message(REQUEST, macStranger, wantsBroadcast, requested(offer.YourIPAddr.String()), serverID("10.20.0.9"))
	takes.TransactionID = dhcpv4.TransactionID{4, 4, 4, 4}
	if ack, _ := c.exchange(takes, "0.0.0.0:68", "255.255.255.255:67"); ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatal("dnsmasq acknowledges nothing")
	}
	want := `network "rack1": another DHCP server, 10.20.0.9 (52:54:00:00:09:09), answers on br0 beside us; stop it`
	eventually(t, "it is found", func() bool { return strings.Join(s.Findings(), "\n") == want })
	if o := <-seen; o.Remote.String() != "10.20.0.9" || o.MAC != "52:54:00:00:09:09" || o.Network != "rack1" {
		t.Errorf("observed %+v", o)
	}
	_ = dnsmasq.Process.Kill()
	_ = dnsmasq.Wait()
	path, log := script(t)
	newStation(t, macDeclared).run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "10", "-T", "1")
	logged(t, log, "serverid=10.20.0.2")
	// A client that still believes in it brings the next probe, which finds it gone.
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	f := ethernet(all, c.hw, frame(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), takes.ToBytes()))
	var last time.Time
	eventually(t, "the finding is gone", func() bool {
		if now := time.Now(); now.Sub(last) > time.Second/5 {
			last = now
			if _, err := c.pc.WriteTo(f, &packet.Addr{HardwareAddr: all}); err != nil {
				t.Fatal(err)
			}
		}
		return len(s.Findings()) == 0
	})
}
