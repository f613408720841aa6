package testenv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
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
	"recast/pack"
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
	disk, err := agent.OpenFile(job.Disk.Name, job.Disk)
	if err != nil {
		return err
	}
	lease := agent.NewLease(nil)
	lease.Renew(time.Now(), 3600)
	_, err = agent.Write(context.Background(), agent.Work{Job: job, Disk: disk, Lease: lease})
	return err
}

// benchPair is two disk images, a share of their files apart, each made anew.
type benchPair struct {
	dir  string // of everything; served
	size int64
	x    [2]*pack.Index
	jobs [2]inventory.JobImage // the second with index and difference
}

// name of image i's file; the others' files stand beside it.
func (p *benchPair) name(i int) string { return filepath.Join(p.dir, string(rune('A'+i))+".raw") }

// makeBenchPair packs up to so many MiB of this machine's own files twice.
func makeBenchPair(b *testing.B, dir string, mib int64) *benchPair {
	b.Helper()
	p := &benchPair{dir: dir, size: (mib*3/2 + 64) << 20}
	tree := filepath.Join(b.TempDir(), "tree")
	files := benchTree(b, tree, mib<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 2 {
		if i == 1 { // 3 % of the files change, 0.5 % go and come each
			for _, f := range files {
				switch n := rng.IntN(1000); {
				case n < 30:
					old := benchMust(os.ReadFile(f))(b)
					benchDo(b, os.WriteFile(f, append([]byte("changed\n"), old...), 0o644))
				case n < 35:
					benchDo(b, os.Remove(f))
				case n < 40:
					old := benchMust(os.ReadFile(f))(b)
					benchDo(b, os.WriteFile(f+".new", append([]byte("new\n"), old...), 0o644))
				}
			}
		}
		benchDisk(b, p.name(i), p.size, tree)
		f := benchMust(os.Open(p.name(i)))(b)
		temp := benchMust(os.Create(filepath.Join(dir, "pack")))(b)
		x, err := pack.Write(context.Background(), temp, f, pack.WriteOptions{})
		benchDo(b, err)
		benchDo(b, temp.Close())
		f.Close()
		benchDo(b, os.Rename(temp.Name(), filepath.Join(dir, x.Manifest.Pack.Hex())))
		p.x[i] = x
		p.jobs[i] = inventory.JobImage{
			Digest: inventory.NewDigest(x.Manifest.Digest), Size: x.Manifest.Size, Pack: inventory.NewDigest(x.Manifest.Pack),
			Manifest: p.serve(b, x.Manifest.Encode()),
		}
		benchRun(b, "zstd", "-q", "-3", "-T2", "-f", "-k", p.name(i))
	}
	m := p.x[1].Manifest
	packed := benchMust(os.Open(filepath.Join(dir, m.Pack.Hex())))(b)
	defer packed.Close()
	var diff bytes.Buffer
	start := time.Now()
	d, err := pack.WriteDifference(context.Background(), &diff, p.x[0], p.x[1], func(i int) ([]byte, error) { return m.ReadChunk(packed, i) })
	benchDo(b, err)
	p.jobs[1].Index = p.serve(b, p.x[1].Encode())
	p.jobs[1].Difference = &inventory.JobDifference{
		List: p.serve(b, d.Encode()), Pack: p.serve(b, diff.Bytes()), From: p.jobs[0].Digest, FromSize: p.jobs[0].Size,
	}
	data := 0
	for k := range p.x[1].Blocks() {
		if p.x[1].Sum(k) != (pack.BlockSum{}) {
			data++
		}
	}
	moves := pack.NewPlan(pack.Expect(p.x[0], p.x[1]), d, math.MaxInt32)
	b.Logf("%d files; image of %d MiB, %d MiB of it data, pack %d KiB; index %d KiB, difference %.1f %% of the blocks, %d KiB (%.1f %%), list %d KiB, made in %s; a re-image fetches %d KiB, writes %d MiB and keeps at most %d MiB aside",
		len(files), p.size>>20, data>>8, m.PackSize>>10, len(p.x[1].Encode())>>10,
		100*float64(len(d.Blocks))/float64(data), d.PackSize>>10, 100*float64(d.PackSize)/float64(m.PackSize), len(d.Encode())>>10, time.Since(start).Round(time.Millisecond),
		moves.Fetched>>10, moves.Written>>20, moves.Slots>>8)
	return p
}

func (p *benchPair) serve(b *testing.B, content []byte) inventory.Digest {
	d := inventory.DigestOf(content)
	benchDo(b, os.WriteFile(filepath.Join(p.dir, d.Hex()), content, 0o644))
	return d
}

// benchTree copies files of this machine to dir, at most so many bytes of them.
func benchTree(b *testing.B, dir string, most int64) (files []string) {
	b.Helper()
	var sum int64
	for _, root := range []string{"/usr/bin", "/usr/share", "/usr/lib"} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil
			}
			info, err := e.Info()
			if err != nil || info.Size() > most/20 || sum+info.Size() > most {
				return nil
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			to := filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			files, sum = append(files, to), sum+info.Size()
			return os.WriteFile(to, content, 0o644)
		})
		benchDo(b, err)
	}
	return files
}

// benchDisk makes a disk image of one ext4 partition that holds the tree.
func benchDisk(b *testing.B, name string, size int64, tree string) {
	b.Helper()
	end := size - 4<<20
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"),
		[]pack.Partition{{Type: pack.TypeLinux.String(), GUID: "AAAAAAAA-2222-4333-8444-555555555555", Name: "root", Start: 1 << 20, End: end}})
	benchDo(b, err)
	f := benchMust(os.Create(name))(b)
	defer f.Close()
	benchDo(b, f.Truncate(size))
	_, err = f.WriteAt(first, 0)
	benchDo(b, err)
	_, err = f.WriteAt(last, size-1<<20)
	benchDo(b, err)
	cmd := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "1", "-U", "cccccccc-2222-4333-8444-555555555555",
		"-E", "offset=1048576,hash_seed=dddddddd-2222-4333-8444-555555555555,lazy_itable_init=0,lazy_journal_init=0,nodiscard",
		"-d", tree, name, fmt.Sprintf("%dk", (end-1<<20)>>10))
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
}

func benchDo(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func benchMust[T any](v T, err error) func(b *testing.B) T {
	return func(b *testing.B) T { b.Helper(); benchDo(b, err); return v }
}

func benchRun(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", name, err, out)
	}
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

func (c sentConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// BenchmarkImage holds the agent against what else writes an image to a disk,
// on one pair of images in one run: a first write to a blank disk and a
// re-image, over the loopback and over a link of 1 Gbit/s, in a namespace of its
// own. Each is run by a process of its own; the server's CPU is not counted.
// RECAST_BENCH_MIB is how much is in an image (640).
func BenchmarkImage(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for name, pkg := range map[string]string{"bmaptool": "bmap-tools", "casync": "casync", "curl": "curl", "zstd": "zstd", "mkfs.ext4": "e2fsprogs"} {
		if _, err := exec.LookPath(name); err != nil {
			b.Skipf("needs %s (apt-get install %s)", name, pkg)
		}
	}
	mib := int64(640)
	if n, err := strconv.ParseInt(os.Getenv("RECAST_BENCH_MIB"), 10, 64); err == nil {
		mib = n
	}
	dir := b.TempDir()
	p := makeBenchPair(b, dir, mib)
	for i := range 2 {
		benchRun(b, "bmaptool", "-q", "create", "-o", p.name(i)+".bmap", p.name(i))
		benchRun(b, "casync", "make", "--store="+filepath.Join(dir, "store"), p.name(i)+".caibx", p.name(i))
	}
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

	out := filepath.Join(dir, "disk")
	disk := inventory.DiskID{Name: out, Serial: "bench", Size: p.size + 1<<30, LogicalBlockSize: 512}
	recast := func(i int, index bool) []string {
		job := inventory.Job{Kind: inventory.JobWrite, Image: p.jobs[i], Disk: disk}
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
		for _, way := range []struct {
			name    string
			holds   int // the image that the disk holds before, -1 for none
			writes  int
			command []string
		}{
			{"first/recast", -1, 0, recast(0, false)},
			{"first/curl-zstd-dd", -1, 0, shell("curl -sf %s/A.raw.zst | zstd -dc | dd of=%s bs=4M conv=sparse,fsync,notrunc iflag=fullblock status=none", url, out)},
			{"first/bmaptool", -1, 0, shell("bmaptool -q copy --bmap %s.bmap %s/A.raw.zst %s", p.name(0), url, out)},
			{"first/casync", -1, 0, shell("casync extract --seed-output=no --store=%s/store %s.caibx %s; sync %[3]s", store, p.name(0), out)},
			{"reimage/recast", 0, 1, recast(1, true)},
			{"reimage/recast-whole", 0, 1, recast(1, false)},
			{"reimage/curl-zstd-dd", 0, 1, shell("curl -sf %s/B.raw.zst | zstd -dc | dd of=%s bs=4M conv=fsync,notrunc iflag=fullblock status=none", url, out)},
			{"reimage/bmaptool", 0, 1, shell("bmaptool -q copy --bmap %s.bmap %s/B.raw.zst %s", p.name(1), url, out)},
			{"reimage/casync", 0, 1, shell("casync extract --seed-output=no --store=%s/store --seed=%s %s.caibx %s; sync %[4]s", store, p.name(0), p.name(1), out)},
		} {
			b.Run(link+"/"+way.name, func(b *testing.B) {
				var cpu time.Duration
				var wire int64
				for b.Loop() {
					b.StopTimer()
					benchFill(b, out, disk.Size, way.holds, p)
					before := l.n.Load()
					var stderr bytes.Buffer
					cmd := exec.Command(way.command[0], way.command[1:]...)
					cmd.Stderr = &stderr
					b.StartTimer()
					benchDo(b, space.Start(cmd))
					err := cmd.Wait()
					b.StopTimer()
					if err != nil {
						b.Fatalf("%v: %s", err, stderr.Bytes())
					}
					benchSame(b, out, p.name(way.writes), p.size)
					cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
					wire += l.n.Load() - before
					b.StartTimer()
				}
				b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/op")
				b.ReportMetric(float64(wire)/(1<<20)/float64(b.N), "MiB/op")
			})
		}
	}
}

// benchFill makes the disk, blank or as image holds leaves it, on the medium
// and not in memory.
func benchFill(b *testing.B, name string, size int64, holds int, p *benchPair) {
	b.Helper()
	os.Remove(name)
	f := benchMust(os.Create(name))(b)
	defer f.Close()
	benchDo(b, f.Truncate(size))
	if holds >= 0 {
		from := benchMust(os.Open(p.name(holds)))(b)
		defer from.Close()
		_, err := io.Copy(f, from)
		benchDo(b, err)
	}
	benchDo(b, f.Sync())
	benchDo(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// benchSame compares all of the image but its table, which recast renders.
func benchSame(b *testing.B, disk, image string, size int64) {
	b.Helper()
	if strings.HasSuffix(b.Name(), "bmaptool") && strings.Contains(b.Name(), "reimage") {
		return // it writes what the image's file holds, and leaves the old where that has holes
	}
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
