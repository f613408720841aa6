package dhcp

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkStorm is every client at once, through a relay: declared machines, until
// the last has its lease. The clients are perfdhcp's avalanche, or our own, which
// have room for all answers: what perfdhcp's socket has not (unread) begins again
// after a second or two.
func BenchmarkStorm(b *testing.B) {
	for _, clients := range []int{1000, 5000} {
		for _, by := range []struct {
			name string
			play func(b *testing.B, l *benchLink, clients int) time.Duration
		}{{"perfdhcp", avalanche}, {"own", stampede}} {
			var kea float64
			for _, of := range servers {
				if slow(of.name, clients) {
					continue
				}
				b.Run(fmt.Sprintf("%d/%s/%s", clients, by.name, of.name), func(b *testing.B) {
					var took time.Duration
					for range b.N {
						took += by.play(b, newBenchLink(b, of.start, clients), clients)
					}
					s := took.Seconds() / float64(b.N)
					b.ReportMetric(s, "s/storm")
					b.ReportMetric(0, "ns/op")
					if of.name == "kea" {
						kea = s
					} else if of.name == "ours" && kea > 0 {
						b.ReportMetric(s/kea, "x-kea")
					}
				})
			}
		}
	}
}

func stampede(b *testing.B, l *benchLink, clients int) time.Duration {
	return load{kind: 0x0a, of: clients, window: clients, n: clients, patience: time.Second}.run(b, l.relays[0]).took
}

func avalanche(b *testing.B, l *benchLink, clients int) time.Duration {
	if _, err := exec.LookPath("perfdhcp"); err != nil {
		b.Skip("needs perfdhcp (apt-get install kea-admin)")
	}
	l.relays[0].Close() // the port is perfdhcp's
	began := time.Now()
	out, err := l.relay.command("perfdhcp", "-4", "--scenario", "avalanche", "-R", fmt.Sprint(clients),
		"-b", "mac="+hwAddr(0x0a, 0).String(), "-l", "10.0.0.3", "10.0.0.2").CombinedOutput()
	if err != nil {
		b.Fatalf("perfdhcp: %v\n%s", err, out)
	}
	took := time.Since(began)
	// "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors …", and the numbers
	out, err = l.relay.command("grep", "^Udp: [0-9]", "/proc/net/snmp").CombinedOutput()
	if f := strings.Fields(string(out)); err == nil && len(f) > 5 {
		unread, _ := strconv.ParseFloat(f[5], 64)
		b.ReportMetric(unread, "unread")
	}
	return took
}

// BenchmarkStart is from the start of the process to its first answer, with so many
// reservations; MB is its resident memory then.
func BenchmarkStart(b *testing.B) {
	for _, machines := range []int{0, 100_000} {
		for _, of := range servers {
			b.Run(fmt.Sprintf("%d-reservations/%s", machines, of.name), func(b *testing.B) {
				var took time.Duration
				var rss float64
				for range b.N {
					l := newBenchLink(b, of.start, machines)
					took += l.took
					_, rss = cpuOf(b, l.server)
				}
				b.ReportMetric(took.Seconds()/float64(b.N), "s/start")
				b.ReportMetric(rss, "server-MB")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkOverload is open to the world: twice as many DISCOVERs a second as
// exchanges can be done, every one of another machine, none repeated. goodput is
// what is done of what could be.
func BenchmarkOverload(b *testing.B) {
	crowded(b, func(b *testing.B, l *benchLink) {
		closed := load{kind: 0x0a, of: 50_000, window: 256, n: 20_000}.run(b, l.relays[0])
		open := load{kind: 0x0a, from: 50_000, of: 50_000, rate: int(2 * closed.rate()), time: 2 * time.Second}.run(b, l.relays[0])
		b.ReportMetric(closed.rate(), "capacity/s")
		b.ReportMetric(float64(open.began)/open.took.Seconds(), "offered/s")
		b.ReportMetric(open.rate()/closed.rate(), "goodput")
	})
}

// BenchmarkFlood is what a thousand exchanges a second of declared machines wait
// for while strangers with 10,000 invented addresses ask as often in a second.
func BenchmarkFlood(b *testing.B) {
	crowded(b, func(b *testing.B, l *benchLink) {
		known := load{kind: 0x0a, of: 50_000, rate: 1000, time: 3 * time.Second}
		alone := known.run(b, l.relays[0])
		known.from = 50_000
		flooded := make(chan loaded)
		go func() {
			flooded <- load{kind: 0x1e, of: 10_000, rate: 10_000, time: 3 * time.Second, lure: true}.run(b, l.relays[1])
		}()
		beside := known.run(b, l.relays[0])
		b.ReportMetric(float64((<-flooded).began)/3, "strangers/s")
		b.ReportMetric(float64(alone.quantile(0.5).Microseconds()), "alone-p50-us")
		b.ReportMetric(float64(beside.quantile(0.5).Microseconds()), "flooded-p50-us")
		b.ReportMetric(float64(alone.quantile(0.99).Microseconds()), "alone-p99-us")
		b.ReportMetric(float64(beside.quantile(0.99).Microseconds()), "flooded-p99-us")
		b.ReportMetric(float64(beside.done)/float64(beside.began), "done")
	})
}

// crowded measures each server that bears 100,000 reservations, on a core of its own.
func crowded(b *testing.B, measure func(b *testing.B, l *benchLink)) {
	const machines = 100_000
	for _, of := range servers {
		if slow(of.name, machines) {
			continue
		}
		b.Run(of.name, func(b *testing.B) {
			l := newBenchLink(b, of.start, machines)
			apart(b, l.server.Pid)
			measure(b, l)
			b.ReportMetric(0, "ns/op")
		})
	}
}

// apart gives the server one core and the clients another, so that neither changes
// what the other can do.
func apart(b *testing.B, server int) {
	if runtime.NumCPU() < 2 {
		b.Skip("needs two cores")
	}
	var was unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		b.Fatal(err)
	}
	var cores [2]unix.CPUSet
	cores[0].Set(0)
	cores[1].Set(1)
	pin(b, server, cores[0])
	pin(b, os.Getpid(), cores[1])
	b.Cleanup(func() { pin(b, os.Getpid(), was) })
}

// pin keeps every thread of a process to a set of cores.
func pin(b *testing.B, pid int, set unix.CPUSet) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, t := range threads {
		id, _ := strconv.Atoi(t.Name())
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			b.Fatal(err)
		}
	}
}
