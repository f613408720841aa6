package dhcp

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// BenchmarkStorm is perfdhcp's avalanche: every client asks at once, through a
// relay, and backs off until it has a lease. Ours, declared machines, against
// Kea's with the same reservations: s is until the last one has its own.
func BenchmarkStorm(b *testing.B) {
	if _, err := exec.LookPath("perfdhcp"); err != nil {
		b.Skip("needs perfdhcp (apt-get install kea-admin)")
	}
	for _, clients := range []int{1000, 5000} {
		var kea float64
		for _, bb := range []struct {
			name  string
			start func(b *testing.B, th nsThread, machines int) *os.Process
		}{{"kea", startKea}, {"ours", startServer}} {
			b.Run(fmt.Sprintf("%d/%s", clients, bb.name), func(b *testing.B) {
				var took time.Duration
				for range b.N {
					took += storm(b, bb.start, clients)
				}
				s := took.Seconds() / float64(b.N)
				b.ReportMetric(s, "s/storm")
				b.ReportMetric(0, "ns/op")
				if bb.name == "kea" {
					kea = s
				} else if kea > 0 {
					b.ReportMetric(s/kea, "x-kea")
				}
			})
		}
	}
}

// storm is one run, with a server, a namespace and a store of its own.
func storm(b *testing.B, start func(b *testing.B, th nsThread, machines int) *os.Process, clients int) time.Duration {
	th := newNSThread(b)
	var relay *netStation
	th.do(func() {
		segment(b, "10.0.0.2/8")
		relay = newStation(b, "")
		relay.run("ip", "addr", "add", "10.0.0.3/8", "dev", "eth0")
	})
	start(b, th, clients)
	awaitServer(b, relay)
	began := time.Now()
	out, err := relay.command("perfdhcp", "-4", "--scenario", "avalanche", "-R", fmt.Sprint(clients),
		"-b", "mac="+hwAddr(0x0a, 0).String(), "-l", "10.0.0.3", "10.0.0.2").CombinedOutput()
	if err != nil {
		b.Fatalf("perfdhcp: %v\n%s", err, out)
	}
	return time.Since(began)
}
