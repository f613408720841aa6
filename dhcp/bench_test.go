package dhcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// hall is a Network with many declared machines, 10.128.x.x with MACs 0a:…, and
// as large a pool for others.
func hall(machines int) *inventory.Set {
	n := &inventory.Network{Name: "hall", Subnet: netip.MustParsePrefix("10.0.0.0/8"), DHCP: inventory.DHCPAuthoritative, Force: true,
		Unknown: inventory.UnknownDiscover, LeaseTime: inventory.Duration(time.Hour), Gateway: netip.MustParseAddr("10.0.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Pool: &inventory.AddrRange{First: netip.MustParseAddr("10.64.0.0"), Last: netip.MustParseAddr("10.127.255.255")}}
	set := &inventory.Set{Networks: []*inventory.Network{n}}
	for i := range machines {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], 10<<24|128<<16|uint32(i)+1)
		set.Machines = append(set.Machines, &inventory.Machine{Name: fmt.Sprintf("m%06d", i),
			NICs: []inventory.NIC{{MAC: inventory.MACOf(hwAddr(0x0a, i)), Network: "hall", IP: netip.AddrFrom4(ip)}}})
	}
	return set
}

func hwAddr(kind byte, i int) net.HardwareAddr {
	return net.HardwareAddr{kind, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
}

// BenchmarkPacket is one packet from its bytes to the reply's bytes.
func BenchmarkPacket(b *testing.B) {
	set := hall(100_000)
	cfg := compile(set)
	server := netip.MustParseAddr("10.0.0.2")
	mac := hwAddr(0x0a, 77_777).String()
	for _, bb := range []struct {
		name string
		p    *dhcpv4.DHCPv4
	}{
		{"discover-reservation", message(DISCOVER, mac, pxe(7))},
		{"discover-ipxe", message(DISCOVER, mac, ipxeClient)},
		{"discover-pool", message(DISCOVER, "0e:00:00:00:00:01", pxe(7))},
		{"renew", message(REQUEST, mac, ciaddr("10.129.47.210"))},
	} {
		b.Run(bb.name, func(b *testing.B) {
			raw := bb.p.ToBytes()
			tab := newTable()
			tab.loaded = true
			b.ReportAllocs()
			var s Server
			s.init()
			for b.Loop() {
				r := s.requests.Get().(*request)
				if _, err := peek(raw); err != nil {
					b.Fatal(err)
				}
				r.raw = append(r.raw[:0], raw...)
				r.mac, r.question.declared = cfg.macOf([6]byte(raw[28:34]))
				if err := r.read(); err != nil {
					b.Fatal(err)
				}
				q := question{req: r, cfg: cfg, declared: r.question.declared, looked: true, network: cfg.networks[0], onLink: true, server: server, now: epoch, boot: boot{file: "ipxe-amd64.efi"}}
				o := reply(q, tab)
				if o.packet == nil {
					b.Fatal(o.silence)
				}
				if len(o.bytes(r)) < 300 {
					b.Fatal("short reply")
				}
				s.free(r)
			}
		})
	}
}

// nsThread is a thread in a network namespace of its own.
type nsThread chan func()

func newNSThread(b *testing.B) nsThread {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("needs %s (apt-get install iproute2 util-linux)", tool)
		}
	}
	th := make(nsThread)
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // the namespace goes with the thread
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range th {
			f()
		}
	}()
	if err := <-ready; err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { close(th) })
	return th
}

func (th nsThread) do(f func()) {
	done := make(chan struct{})
	th <- func() { defer close(done); f() }
	<-done
}

// link is a link with a server on it, in namespaces of their own, and the sockets
// of two relays on it.
type benchLink struct {
	server *os.Process
	relay  *netStation
	relays [2]*net.UDPConn
	took   time.Duration // until the first answer
}

// starter begins a DHCP server for that many declared machines.
type starter func(b *testing.B, th nsThread, machines int) *os.Process

func newBenchLink(b *testing.B, start starter, machines int) *benchLink {
	l := &benchLink{}
	th := newNSThread(b)
	th.do(func() {
		segment(b, "10.0.0.2/8")
		l.relay = newStation(b, "")
		for i, addr := range []string{"10.0.0.3", "10.0.0.4"} {
			l.relay.run("ip", "addr", "add", addr+"/8", "dev", "eth0")
			l.relays[i] = relaySocket(b, l.relay, addr)
		}
	})
	began := time.Now()
	l.server = start(b, th, machines)
	awaitServer(b, l.relays[0])
	l.took = time.Since(began)
	return l
}

// servers are ours and its peers, which come first: ours is held against them.
var servers = []struct {
	name  string
	start starter
}{{"kea", startKea}, {"dnsmasq", startDnsmasq}, {"ours", startServer}}

// slow tells of a peer that needs half a minute to start with so many reservations,
// and then does 21 exchanges a second: BenchmarkStart shows it, the others leave it
// out.
func slow(server string, machines int) bool { return server == "dnsmasq" && machines > 1000 }

// BenchmarkExchange is DISCOVER, OFFER, REQUEST, ACK over a veth pair between
// two network namespaces, through a relay; 128 exchanges are under way at once.
// Ours has each new lease of a pool on the disk before the ACK. Kea leaves its own
// to the page cache. x-kea is our rate over its, and cpu-x-kea our CPU time over its.
func BenchmarkExchange(b *testing.B) {
	for _, bb := range []struct {
		name     string
		mac      byte
		machines int
		times    int // a client asks: firmware, iPXE, ramdisk and system one after the other
		loss     float64
	}{
		{"pool", 0x0e, 0, 1, 0},
		{"pool-beside-100000-reservations", 0x0e, 100_000, 1, 0},
		{"reservation", 0x0a, 100_000, 1, 0},
		{"reservation-four-times", 0x0a, 100_000, 4, 0},
		{"reservation-1-percent-lost", 0x0a, 100_000, 1, 0.01},
	} {
		var kea []exchanged
		for _, of := range servers {
			if slow(of.name, bb.machines) {
				continue
			}
			b.Run(bb.name+"/"+of.name, func(b *testing.B) {
				l := newBenchLink(b, of.start, bb.machines)
				before, _ := cpuOf(b, l.server)
				b.ResetTimer()
				r := load{kind: bb.mac, of: min(100_000, max(1, b.N/bb.times)), loss: bb.loss, window: 128, n: b.N}.run(b, l.relays[0])
				b.StopTimer()
				cpu, rss := cpuOf(b, l.server)
				e := exchanged{rate: r.rate(), cpu: float64((cpu - before).Microseconds()) / float64(b.N), lost: float64(r.again) / float64(b.N), rss: rss}
				b.ReportMetric(e.rate, "exch/s")
				b.ReportMetric(e.cpu, "server-cpu-us/exch")
				b.ReportMetric(e.lost, "again/exch")
				b.ReportMetric(e.rss, "server-MB")
				if of.name == "kea" && b.N > 1000 {
					kea = append(kea, e)
				} else if of.name == "ours" && len(kea) > 0 {
					b.ReportMetric(e.rate/median(kea, func(k exchanged) float64 { return k.rate }), "x-kea")
					b.ReportMetric(e.cpu/median(kea, func(k exchanged) float64 { return k.cpu }), "cpu-x-kea")
				}
			})
		}
	}
}

// median of one figure.
func median(runs []exchanged, of func(exchanged) float64) float64 {
	var v []float64
	for _, r := range runs {
		v = append(v, of(r))
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// exchanged is what a run came to: exchanges a second, microseconds of the
// server's CPU for each, how many of each had to be begun again, and what the
// server had in memory at its end.
type exchanged struct{ rate, cpu, lost, rss float64 }

// benchServer makes the test binary a server, so that what it costs is not
// mixed with what the clients do; its value is the number of machines.
const benchServer = "RECAST_DHCP_BENCH"

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(benchServer)); err == nil {
		if err := serveBench(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// ramdisks boots every machine.
type ramdisks struct{}

func (ramdisks) BootSpec(context.Context, ipxe.Client) (ipxe.Spec, error) {
	return ipxe.Spec{Kind: ipxe.SpecRamdisk}, nil
}

// serveBench serves until standard input ends.
func serveBench(machines int) error {
	db, err := store.OpenBolt("store.db", store.BoltOptions{})
	if err != nil {
		return err
	}
	defer db.Close()
	s := &Server{Store: db, Booter: ramdisks{},
		Bootfile: func(ipxe.Client, ipxe.Spec, netip.Addr) (string, bool) { return "ipxe-amd64.efi", true },
		probe: func(ctx context.Context, _ Interface, _ string, _ func(foreign)) error {
			<-ctx.Done()
			return nil
		},
	}
	if err := s.Update(hall(machines)); err != nil {
		return err
	}
	if path := os.Getenv(benchServer + "_PROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return s.Run(ctx)
}

func startServer(b *testing.B, th nsThread, machines int) *os.Process {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir, cmd.Stderr = b.TempDir(), os.Stderr
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", benchServer, machines))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	th.do(func() { err = cmd.Start() })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return cmd.Process
}

// startKea runs Kea with its default store, a file that it appends to.
func startKea(b *testing.B, th nsThread, machines int) *os.Process {
	if _, err := exec.LookPath("kea-dhcp4"); err != nil {
		b.Skip("needs kea-dhcp4 (apt-get install kea-dhcp4-server)")
	}
	dir := b.TempDir()
	config := filepath.Join(dir, "kea.conf")
	var reservations strings.Builder
	for i, m := range hall(machines).Machines {
		if i > 0 {
			reservations.WriteString(",\n")
		}
		fmt.Fprintf(&reservations, `{"hw-address": "%s", "ip-address": "%s"}`, m.NICs[0].MAC, m.NICs[0].IP)
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"Dhcp4": {
		"interfaces-config": {"interfaces": ["br0"], "dhcp-socket-type": "udp"}, "valid-lifetime": 3600,
		"lease-database": {"type": "memfile", "persist": true, "lfc-interval": 0, "name": "%s/leases.csv"},
		"option-data": [{"name": "routers", "data": "10.0.0.1"}, {"name": "domain-name-servers", "data": "10.0.0.1"}],
		"next-server": "10.0.0.2", "boot-file-name": "ipxe-amd64.efi",
		"subnet4": [{"id": 1, "subnet": "10.0.0.0/8", "pools": [{"pool": "10.64.0.0-10.127.255.255"}],
			"reservations-out-of-pool": true, "reservations": [%s]}],
		"loggers": [{"name": "kea-dhcp4", "severity": "WARN", "output_options": [{"output": "stderr"}]}]}}`, dir, reservations.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("kea-dhcp4", "-c", config)
	cmd.Env = append(os.Environ(), "KEA_LOCKFILE_DIR="+dir, "KEA_PIDFILE_DIR="+dir)
	var err error
	th.do(func() { err = cmd.Start() })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process
}

// startDnsmasq runs dnsmasq with its leases in a file, which it writes anew as a
// whole after a change.
func startDnsmasq(b *testing.B, th nsThread, machines int) *os.Process {
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		b.Skip("needs dnsmasq (apt-get install dnsmasq-base)")
	}
	dir := b.TempDir()
	var hosts strings.Builder
	for _, m := range hall(machines).Machines {
		fmt.Fprintf(&hosts, "%s,%s\n", m.NICs[0].MAC, m.NICs[0].IP)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--log-facility=-", "--quiet-dhcp",
		"--interface=br0", "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--dhcp-range=10.64.0.0,10.127.255.255,255.0.0.0,1h",
		"--dhcp-lease-max=1000000", "--dhcp-leasefile="+filepath.Join(dir, "leases"), "--dhcp-hostsfile="+filepath.Join(dir, "hosts"),
		"--dhcp-boot=ipxe-amd64.efi,,10.0.0.2", "--pid-file=")
	var err error
	th.do(func() { err = cmd.Start() })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process
}

// cpuOf a process so far, and its resident memory in MB.
func cpuOf(b *testing.B, p *os.Process) (cpu time.Duration, rss float64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(rest) // from the state, the third field, on
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	pages, _ := strconv.Atoi(f[21])
	return time.Duration(user+system) * 10 * time.Millisecond, float64(pages*os.Getpagesize()) / 1e6 // USER_HZ is 100
}

// awaitServer sends a DISCOVER until one is answered: the first are lost while
// ports come up and addresses are resolved.
func awaitServer(b *testing.B, udp *net.UDPConn) {
	for answered, deadline := false, time.Now().Add(5*time.Minute); !answered; {
		if time.Now().After(deadline) {
			b.Fatal("the relay is not answered")
		}
		_, _ = udp.Write(message(DISCOVER, "0c:00:00:00:00:01", giaddr(udp.LocalAddr().(*net.UDPAddr).IP.String())).ToBytes()) // refused while it is not there
		_ = udp.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := udp.Read(make([]byte, 2048))
		answered = err == nil
	}
}
