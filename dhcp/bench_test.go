package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
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
				r.mac, _ = cfg.macOf([6]byte(raw[28:34]))
				if err := r.read(); err != nil {
					b.Fatal(err)
				}
				q := question{req: r, cfg: cfg, network: cfg.networks[0], onLink: true, server: server, now: epoch, boot: boot{file: "ipxe-amd64.efi"}}
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

// BenchmarkExchange is DISCOVER, OFFER, REQUEST, ACK over a veth pair between
// two network namespaces, through a relay as perfdhcp plays it; window exchanges
// are under way at once. Ours has each new lease on the disk before the ACK. Kea,
// with the same generator, leaves its own to the page cache; where it is
// installed, x-kea is our rate over its, and cpu-x-kea our CPU time over its.
func BenchmarkExchange(b *testing.B) {
	kea := map[string]exchanged{}
	for _, bb := range []struct {
		name     string
		mac      byte
		machines int
		start    func(b *testing.B, th nsThread, machines int) *os.Process
	}{
		{"pool-kea", 0x0e, 0, startKea},
		{"pool", 0x0e, 0, startServer},
		{"reservation-kea", 0x0a, 100_000, startKea},
		{"reservation", 0x0a, 100_000, startServer},
	} {
		b.Run(bb.name, func(b *testing.B) {
			th := newNSThread(b)
			var relay *netStation
			th.do(func() {
				segment(b, "10.0.0.2/8")
				relay = newStation(b, "")
				relay.run("ip", "addr", "add", "10.0.0.3/8", "dev", "eth0")
			})
			e := exchange(b, relay, bb.start(b, th, bb.machines), bb.mac)
			b.ReportMetric(e.rate, "exch/s")
			b.ReportMetric(e.cpu, "server-cpu-us/exch")
			b.ReportMetric(e.lost, "lost/exch")
			b.ReportMetric(e.rss, "server-MB")
			if name, is := strings.CutSuffix(bb.name, "-kea"); is {
				kea[name] = e
			} else if k := kea[name]; k.rate > 0 {
				b.ReportMetric(e.rate/k.rate, "x-kea")
				b.ReportMetric(e.cpu/k.cpu, "cpu-x-kea")
			}
		})
	}
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

// serveBench serves until standard input ends.
func serveBench(machines int) error {
	db, err := store.OpenBolt("store.db", store.BoltOptions{})
	if err != nil {
		return err
	}
	defer db.Close()
	s := &Server{Store: db, Booter: &booter{spec: ipxe.Spec{Kind: ipxe.SpecRamdisk}},
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
func awaitServer(b *testing.B, relay *netStation) {
	var udp *net.UDPConn
	relay.enter(func() (err error) {
		udp, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 3), Port: 67}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 67})
		return err
	})
	defer udp.Close()
	eventually(b, "the relay is answered", func() bool {
		_, _ = udp.Write(message(DISCOVER, "0c:00:00:00:00:01", giaddr("10.0.0.3")).ToBytes()) // refused while it is not there
		_ = udp.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := udp.Read(make([]byte, 2048))
		return err == nil
	})
}

// exchange plays the clients, b.N times.
func exchange(b *testing.B, relay *netStation, server *os.Process, kind byte) exchanged {
	awaitServer(b, relay)
	var udp *net.UDPConn
	relay.enter(func() (err error) {
		udp, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 3), Port: 67}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 67})
		return err
	})
	defer udp.Close()
	_ = udp.SetReadBuffer(receiveBuffer)

	const window = 128
	first := func(i int) *dhcpv4.DHCPv4 {
		p := message(DISCOVER, hwAddr(kind, i%100_000).String(), giaddr("10.0.0.3"), pxe(7))
		binary.BigEndian.PutUint32(p.TransactionID[:], uint32(i)+1)
		return p
	}
	send := func(p *dhcpv4.DHCPv4) {
		// Refused while the server is not there yet.
		if _, err := udp.Write(p.ToBytes()); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	before, _ := cpuOf(b, server)
	b.ResetTimer()
	lost := 0
	open := map[int]bool{}
	next, finished := 0, 0
	for finished < b.N {
		for len(open) < window && next < b.N {
			open[next] = true
			send(first(next))
			next++
		}
		_ = udp.SetReadDeadline(time.Now().Add(time.Second))
		n, err := udp.Read(buf)
		if err != nil { // lost ones are tried again, and counted
			for i := range open {
				lost++
				send(first(i))
			}
			if lost > b.N+1000 {
				b.Fatalf("%v: %d of %d exchanges done", err, finished, b.N)
			}
			continue
		}
		r, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			b.Fatal(err)
		}
		i := int(binary.BigEndian.Uint32(r.TransactionID[:])) - 1
		switch {
		case !open[i]:
		case r.MessageType() == dhcpv4.MessageTypeOffer:
			p := first(i)
			p.Options[53] = []byte{byte(REQUEST)}
			p.Options[50], p.Options[54] = r.YourIPAddr.To4(), r.Options[54]
			send(p)
		case r.MessageType() == dhcpv4.MessageTypeAck:
			delete(open, i)
			finished++
		default:
			b.Fatal(r.Summary())
		}
	}
	b.StopTimer()
	n := float64(b.N)
	cpu, rss := cpuOf(b, server)
	return exchanged{rate: n / b.Elapsed().Seconds(), cpu: float64((cpu - before).Microseconds()) / n, lost: float64(lost) / n, rss: rss}
}
