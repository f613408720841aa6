package dhcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
			for b.Loop() {
				r, err := decode(raw)
				if err != nil {
					b.Fatal(err)
				}
				q := question{req: r, cfg: cfg, network: cfg.networks[0], onLink: true, server: server, now: epoch, boot: boot{file: "ipxe-amd64.efi"}}
				o := reply(q, tab)
				if o.packet == nil {
					b.Fatal(o.silence)
				}
				if len(o.packet.ToBytes()) < 300 {
					b.Fatal("short reply")
				}
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
// two network namespaces, through a relay as perfdhcp plays it, with a durable
// store; window exchanges are under way at once.
func BenchmarkExchange(b *testing.B) {
	for _, bb := range []struct {
		name    string
		mac     byte
		declare int
	}{
		{"reservation", 0x0a, 100_000},
		{"pool", 0x0e, 0},
	} {
		b.Run(bb.name, func(b *testing.B) { benchmarkExchange(b, hall(bb.declare), bb.mac) })
	}
}

func benchmarkExchange(b *testing.B, set *inventory.Set, kind byte) {
	th := newNSThread(b)
	var relay *netStation
	th.do(func() {
		segment(b, "10.0.0.2/8")
		relay = newStation(b, "")
		relay.run("ip", "addr", "add", "10.0.0.3/8", "dev", "eth0")
	})
	db, err := store.OpenBolt(filepath.Join(b.TempDir(), "store.db"), store.BoltOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	s := &Server{Store: db, Booter: &booter{spec: ipxe.Spec{Kind: ipxe.SpecRamdisk}},
		Bootfile: func(ipxe.Client, ipxe.Spec, netip.Addr) (string, bool) { return "ipxe-amd64.efi", true },
		interfaces: func() (i []Interface, err error) {
			th.do(func() { i, err = Interfaces() })
			return i, err
		},
		listen: func(f Interface) (c *conn, err error) {
			th.do(func() { c, err = listen(f) })
			return c, err
		},
		probe: func(ctx context.Context, _ Interface, _ string, _ func(foreign)) error {
			<-ctx.Done()
			return nil
		},
	}
	if err := s.Update(set); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	eventually(b, "the server listens", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.links["br0"] != nil
	})
	var udp *net.UDPConn
	relay.enter(func() error {
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
		if _, err := udp.Write(p.ToBytes()); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	var before, after unix.Rusage
	lost := 0
	// The first packets are lost while ports come up and addresses are resolved.
	eventually(b, "the relay is answered", func() bool {
		send(message(DISCOVER, "0c:00:00:00:00:01", giaddr("10.0.0.3")))
		_ = udp.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := udp.Read(buf)
		return err == nil
	})
	b.ReportAllocs()
	b.ResetTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
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
				b.Fatalf("%v; stats %+v, findings %q", err, s.Stats(), s.Findings())
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
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := func(r unix.Rusage) float64 {
		return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e3
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "exch/s")
	b.ReportMetric((cpu(after)-cpu(before))/float64(b.N), "cpu-us/exch(both-ends)")
	b.ReportMetric(float64(lost)/float64(b.N), "lost/exch")
}
