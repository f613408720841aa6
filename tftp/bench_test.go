package tftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// benchServers are what a rack may be given, each with the address it has here:
// on loopback, and dnsmasq can only have TFTP's own port.
var benchServers = []struct {
	name, addr string
	tool       tool
	args       string // DIR is filled in
}{
	{"dnsmasq", "127.69.0.3:69", tool{"dnsmasq", "dnsmasq-base"}, "-k --port=0 -C /dev/null --enable-tftp --tftp-root=DIR --tftp-max=1000 --user=root --listen-address=127.69.0.3 --bind-interfaces --pid-file --quiet-tftp"},
	{"hpa", "127.69.0.2:69", tool{"in.tftpd", "tftpd-hpa"}, "-L -a 127.69.0.2:69 -s DIR"},
	{"recast", "127.69.0.1:69", tool{os.Args[0], "recast"}, "-test.run=^TestServeForTheBenchmark$"},
}

const serveFor = "RECAST_TFTP_SERVE" // address and folder

// TestServeForTheBenchmark is the server's process.
func TestServeForTheBenchmark(t *testing.T) {
	addr, dir, ok := strings.Cut(os.Getenv(serveFor), " ")
	if !ok {
		return // nobody asked
	}
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	s := &Server{Addr: addr, Files: os.DirFS(dir), Limits: Limits{Rate: 1e9, Burst: 1 << 30, PerSource: 1 << 20}}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkServers holds servers against each other: a boot loader fetched by
// many machines, and a kernel with its ramdisk, beyond where the count of blocks
// begins again, by a few. Read the ratios. Windows, as edk2 asks for them, none
// of the others has.
func BenchmarkServers(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := b.TempDir()
	files := map[string][]byte{}
	for name, size := range map[string]int{"loader": 1 << 20, "kernel": 100 << 20} {
		files[name] = make([]byte, size)
		rand.Read(files[name])
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o644); err != nil {
			b.Fatal(err)
		}
	}
	type result struct{ cpu, rate float64 }
	results := map[string]result{}
	for _, load := range []struct {
		name    string
		file    string
		clients int
		options []string
	}{
		{"loader", "loader", 50, nil},                                    // iPXE
		{"loader-timeout", "loader", 50, []string{"timeout", "5"}},       // curl, U-Boot: in lock-step without the library
		{"loader-windowsize", "loader", 50, []string{"windowsize", "4"}}, // edk2
		{"kernel", "kernel", 2, nil},                                     // GRUB
		{"kernel-windowsize", "kernel", 2, []string{"windowsize", "4"}},
	} {
		for _, server := range benchServers {
			if load.options != nil && server.name != "recast" {
				continue
			}
			b.Run(load.name+"/"+server.name, func(b *testing.B) {
				if server.name != "recast" {
					server.tool.need(b)
				}
				process := startBench(b, server.addr, dir, server.tool.name, server.args)
				request := rrq(load.file, append([]string{"blksize", "1428", "tsize", "0"}, load.options...)...)
				b.SetBytes(int64(len(files[load.file])))
				before := cpuOf(b, process)
				b.ResetTimer()
				work := make(chan int)
				var all sync.WaitGroup
				for range load.clients {
					all.Go(func() {
						for range work {
							got, err := fetchOnce(server.addr, request)
							if err != nil || !bytes.Equal(got, files[load.file]) {
								b.Errorf("fetched %d bytes that differ: %v", len(got), err)
							}
						}
					})
				}
				for i := range b.N {
					work <- i
				}
				close(work)
				all.Wait()
				b.StopTimer()
				bytes := float64(b.N) * float64(len(files[load.file]))
				r := result{(cpuOf(b, process) - before).Seconds() / bytes * 1e9, bytes / b.Elapsed().Seconds()}
				b.ReportMetric(0, "ns/op")
				if server.name != "hpa" { // which forgets its children's
					b.ReportMetric(r.cpu, "server-cpu-s/GB")
				}
				results[load.file+server.name] = r
				if server.name == "recast" {
					if o := results[load.file+"dnsmasq"]; o.cpu > 0 {
						b.ReportMetric(r.cpu/o.cpu, "cpu-x-dnsmasq")
						b.ReportMetric(r.rate/o.rate, "rate-x-dnsmasq")
					}
					if o := results[load.file+"hpa"]; o.rate > 0 {
						b.ReportMetric(r.rate/o.rate, "rate-x-hpa")
					}
				}
			})
		}
	}
}

func fetchOnce(addr, request string) ([]byte, error) {
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp4", loopback())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return fetch(c, to, request)
}

// startBench starts a server and waits until it answers.
func startBench(b *testing.B, addr, dir, name, args string) int {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	cmd := exec.CommandContext(ctx, name, strings.Fields(strings.ReplaceAll(args, "DIR", dir))...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Env = append(os.Environ(), serveFor+"="+addr+" "+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if b.Failed() {
			b.Logf("%s:\n%s", name, out.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := fetchOnce(addr, rrq("loader", "blksize", "1428")); err == nil {
			return cmd.Process.Pid
		} else if time.Now().After(deadline) {
			b.Fatalf("%s does not answer: %v\n%s", name, err, out.String())
		}
	}
}

// cpuOf a process so far, and of its children that ended.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	// Behind the name, which may hold anything: state is field 3.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
