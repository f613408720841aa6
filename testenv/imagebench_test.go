package testenv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"recast/agent"
	"recast/inventory"
)

// benchWrite names, in the environment, the job of a process that is the agent's
// side of BenchmarkImage: so its time on the CPU is counted as that of the others.
const benchWrite = "RECAST_BENCH_WRITE"

// benchWriteJob is what that process does.
func benchWriteJob(file string) error {
	var job inventory.Job
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &job)
	}
	if err != nil {
		return err
	}
	disk, err := agent.OpenDevice(job.Disk.Name, func() (inventory.DiskID, error) { return job.Disk, nil })
	if err != nil {
		return err
	}
	defer disk.Close()
	lease := agent.NewLease(nil)
	lease.Renew(time.Now(), 3600)
	_, err = agent.Write(context.Background(), agent.Work{Job: job, Disk: disk, Lease: lease})
	return err
}

// sent counts what a listener's connections send.
type sent struct {
	net.Listener
	n atomic.Int64
}

type sentConn struct {
	net.Conn
	n *atomic.Int64
}

func (l *sent) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return sentConn{c, &l.n}, err
}

// ReadFrom lets the kernel send a file by itself, as it does for a bare connection.
func (c sentConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.Conn.(io.ReaderFrom).ReadFrom(r)
	c.n.Add(n)
	return n, err
}

func (c sentConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// BenchmarkImage holds the agent against what else writes an image to a disk,
// on one pair of images in one run: a first write to a blank disk and a
// re-image, over the loopback and over a link of 1 Gbit/s, in a namespace of its
// own. Each is run by a process of its own; the server's CPU is not counted.
//
// The disk is a loop device over a file that has its place on this machine's disk,
// past the page cache of what is below (direct-io): reads and writes are the disk's
// own, and it has a cache in memory for those who use one. The images come from the
// server's memory.
//
// x-PEER is the peer's time over ours, cpu-x-PEER its CPU time over ours.
// RECAST_BENCH_MIB is how much is in an image of this machine's files, instead of
// Debian's; RECAST_BENCH_DIR keeps the pair for the next run.
func BenchmarkImage(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for name, pkg := range map[string]string{"bmaptool": "bmap-tools", "casync": "casync", "curl": "curl", "zstd": "zstd", "mkfs.ext4": "e2fsprogs"} {
		if _, err := exec.LookPath(name); err != nil {
			b.Skipf("needs %s (apt-get install %s)", name, pkg)
		}
	}
	mib, _ := strconv.ParseInt(os.Getenv("RECAST_BENCH_MIB"), 10, 64)
	dir := os.Getenv("RECAST_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	p := readBenchPair(b, dir, mib)
	b.Log(p.What)
	const addr = "10.99.7.1"
	space, err := NewNet(fmt.Sprintf("recast-bench-%d", os.Getpid()), netip.MustParsePrefix(addr+"/24"))
	benchDo(b, err)
	defer space.Close()
	l := &sent{}
	benchDo(b, space.Do(func() (err error) {
		l.Listener, err = net.Listen("tcp", addr+":80")
		return err
	}))
	server := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go server.Serve(l)
	defer server.Close()
	url := "http://" + addr

	disk := inventory.DiskID{Serial: "bench", Size: max(p.Size[0], p.Size[1]) + 1<<30, LogicalBlockSize: 512}
	disk.Name = benchLoop(b, filepath.Join(b.TempDir(), "disk"), disk.Size)
	recast := func(i int, index bool) []string {
		job := inventory.Job{Kind: inventory.JobWrite, Image: p.Jobs[i], Disk: disk}
		job.Image.URLs = []string{url}
		if !index {
			job.Image.Index, job.Image.Difference = "", nil
		}
		file := filepath.Join(dir, fmt.Sprintf("job%d%t", i, index))
		benchDo(b, os.WriteFile(file, benchMust(json.Marshal(job))(b), 0o644))
		return []string{"env", benchWrite + "=" + file, os.Args[0]}
	}
	shell := func(line string, args ...any) []string {
		return []string{"bash", "-ec", "set -o pipefail; " + fmt.Sprintf(line, args...)}
	}
	type cost struct{ time, cpu float64 }
	for _, link := range []string{"loopback", "1Gbit"} {
		store := dir // casync is slow over HTTP as such: it is spared that where the link is not the question
		if link == "1Gbit" {
			benchDo(b, space.ip("link set lo mtu 1500"))
			benchDo(b, space.Do(func() error {
				if out, err := exec.Command("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "100ms").CombinedOutput(); err != nil {
					return fmt.Errorf("tc: %w: %s", err, out)
				}
				return nil
			}))
			store = url
		}
		var costs map[string]cost // of those before
		for _, way := range []struct {
			name    string
			holds   int // the image that the disk holds before, -1 for none
			writes  int
			command []string
		}{
			{"first/curl-zstd-dd", -1, 0, shell("curl -sf %s/A.raw.zst | zstd -dc | dd of=%s bs=4M conv=sparse,fsync,notrunc iflag=fullblock status=none", url, disk.Name)},
			{"first/bmaptool", -1, 0, shell("bmaptool -q copy --bmap %s.bmap %s/A.raw.zst %s", p.name(0), url, disk.Name)},
			{"first/casync", -1, 0, shell("casync extract --seed-output=no --store=%s/store %s.caibx %s; sync %[3]s", store, p.name(0), disk.Name)},
			{"first/recast", -1, 0, recast(0, false)},
			{"reimage/curl-zstd-dd", 0, 1, shell("curl -sf %s/B.raw.zst | zstd -dc | dd of=%s bs=4M conv=fsync,notrunc iflag=fullblock status=none", url, disk.Name)},
			{"reimage/bmaptool", 0, 1, shell("bmaptool -q copy --bmap %s.bmap %s/B.raw.zst %s", p.name(1), url, disk.Name)},
			{"reimage/casync", 0, 1, shell("casync extract --seed-output=no --store=%s/store --seed=%s %s.caibx %s; sync %[4]s", store, p.name(0), p.name(1), disk.Name)},
			{"reimage/recast-whole", 0, 1, recast(1, false)},
			{"reimage/recast", 0, 1, recast(1, true)},
		} {
			what, who, _ := strings.Cut(way.name, "/")
			if who == "curl-zstd-dd" {
				costs = map[string]cost{}
			}
			b.Run(link+"/"+way.name, func(b *testing.B) {
				var took, cpu time.Duration
				var wire int64
				for b.Loop() {
					b.StopTimer()
					benchFill(b, disk.Name, way.holds, p)
					before := l.n.Load()
					var stderr bytes.Buffer
					cmd := exec.Command(way.command[0], way.command[1:]...)
					cmd.Stderr = &stderr
					start := time.Now()
					b.StartTimer()
					benchDo(b, space.Start(cmd))
					err := cmd.Wait()
					b.StopTimer()
					took += time.Since(start)
					if err != nil {
						b.Fatalf("%v: %s", err, stderr.Bytes())
					}
					if who != "bmaptool" || what != "reimage" { // it leaves the old where the image's file has holes
						benchSame(b, disk.Name, p.name(way.writes), p.Size[way.writes])
					}
					cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
					wire += l.n.Load() - before
					b.StartTimer()
				}
				n := float64(b.N)
				costs[who] = cost{took.Seconds() / n, cpu.Seconds() / n}
				b.ReportMetric(cpu.Seconds()/n, "cpu-s/op")
				b.ReportMetric(float64(wire)/(1<<20)/n, "MiB/op")
				if who != "recast" {
					return
				}
				for peer, c := range costs {
					if peer != who {
						b.ReportMetric(c.time/costs[who].time, "x-"+peer)
						b.ReportMetric(c.cpu/costs[who].cpu, "cpu-x-"+peer)
					}
				}
			})
		}
	}
}

// benchLoop makes a disk of a file.
func benchLoop(b *testing.B, file string, size int64) string {
	b.Helper()
	benchRun(b, "fallocate", "-l", strconv.FormatInt(size, 10), file)
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		b.Skipf("needs a loop device: %v", err)
	}
	name := strings.TrimSpace(string(out))
	b.Cleanup(func() { benchRun(b, "losetup", "--detach", name) })
	return name
}

// benchFill makes the disk, blank or as image holds leaves it, on the medium
// and not in memory.
func benchFill(b *testing.B, name string, holds int, p *benchPair) {
	b.Helper()
	benchRun(b, "blkdiscard", "--zeroout", name)
	if holds >= 0 {
		benchRun(b, "dd", "if="+p.name(holds), "of="+name, "bs=1M", "oflag=direct", "conv=sparse,notrunc,fsync", "status=none")
	}
	unix.Sync() // nobody waits for what another left
	benchRun(b, "blockdev", "--flushbufs", name)
}

// benchSame compares all of the image but its table, which recast renders.
func benchSame(b *testing.B, disk, image string, size int64) {
	b.Helper()
	benchRun(b, "blockdev", "--flushbufs", disk)
	x, y := benchMust(os.Open(disk))(b), benchMust(os.Open(image))(b)
	defer x.Close()
	defer y.Close()
	section := func(f *os.File) *bufio.Reader {
		return bufio.NewReaderSize(io.NewSectionReader(f, 1<<20, size-3<<20), 1<<20)
	}
	rx, ry := section(x), section(y)
	bx, by := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(1 << 20); ; at += int64(len(bx)) {
		n, err := io.ReadFull(rx, bx)
		m, _ := io.ReadFull(ry, by)
		if n != m || !bytes.Equal(bx[:n], by[:m]) {
			b.Fatalf("the disk is not the image, in the MiB at byte %d", at)
		}
		if err != nil {
			return
		}
	}
}
