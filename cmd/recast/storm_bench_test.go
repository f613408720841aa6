package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/ipxe"
	"recast/web"
)

const (
	stormMachines = 10_000
	stormRate     = 5_000 // scripts a second
	stormSeconds  = 4
	stormFetchers = 16
	stormAsking   = stormMachines - 500 // the last have places, or claim
)

// stormAddr of machine i, on loopback, where Linux lets a client have any.
func stormAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 16 + byte(i>>16), byte(i >> 8), byte(i)})
}

func stormMAC(i int) string {
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i))
}

func stormUUID(i int) string { return fmt.Sprintf("4c4c4544-0000-2010-8020-%012x", i) }

// stormSite declares machines without a BMC, which are armed once they are applied.
func stormSite(n int, image inventory.Digest) []byte {
	const rack = 40
	var b bytes.Buffer
	fmt.Fprintf(&b, `apiVersion: recast/v1
kind: Network
metadata: {name: loop}
spec: {subnet: 127.0.0.0/8, dhcp: "off"}
---
apiVersion: recast/v1
kind: Image
metadata: {name: os}
spec: {type: disk, arch: amd64, digest: %q}
---
apiVersion: recast/v1
kind: Definition
metadata: {name: compute}
spec: {image: os, disk: {select: {minSize: 8GiB}}, config: {format: cloud-init, userData: "#cloud-config\nhostname: x\n"}}
`, image)
	for i := range n {
		if i%rack == 0 {
			fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Group\nmetadata: {name: rack%d}\nspec: {select: {rack: r%d}, definition: compute, rollout: {maxUnavailable: 100%%, maxFailures: 100%%}}\n", i/rack, i/rack)
		}
		fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: m%05d}\nspec:\n  location: {rack: r%d, unit: %d}\n  nics: [{mac: %q, network: loop, ip: %s}]\n",
			i, i/rack, i%rack+1, stormMAC(i), stormAddr(i))
	}
	return b.Bytes()
}

// onCPU runs f on a thread bound to one CPU, which the processes that f starts
// are bound to as well.
func onCPU(b testing.TB, cpu int, f func()) {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	one.Set(cpu)
	if err := errors.Join(unix.SchedGetaffinity(0, &before), unix.SchedSetaffinity(0, &one)); err != nil {
		b.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &before)
	f()
}

// twoCPUs gives the server one and binds this process to another.
func twoCPUs(b *testing.B) (server int) {
	b.Helper()
	var have unix.CPUSet
	if err := unix.SchedGetaffinity(0, &have); err != nil {
		b.Fatal(err)
	}
	var cpus []int
	for i := range 1024 {
		if have.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	if len(cpus) < 2 {
		b.Skip("needs two CPUs")
	}
	bind := func(set *unix.CPUSet) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			b.Fatal(err)
		}
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.SchedSetaffinity(tid, set) // a thread may have ended
			}
		}
	}
	var one unix.CPUSet
	one.Set(cpus[0])
	bind(&one)
	procs, gc := runtime.GOMAXPROCS(1), debug.SetGCPercent(-1)
	b.Cleanup(func() { bind(&have); runtime.GOMAXPROCS(procs); debug.SetGCPercent(gc) })
	return cpus[1]
}

// benchProbe names a folder in which a recast that is measured writes, each time
// it gets SIGUSR1, how much it has allocated so far; between the first two it
// profiles itself.
const benchProbe = "RECAST_BENCH_PROBE"

type probed struct{ Mallocs, Bytes uint64 }

func answerProbes(dir string) {
	ask := make(chan os.Signal, 1)
	signal.Notify(ask, syscall.SIGUSR1)
	go func() {
		for i := 0; ; i++ {
			<-ask
			if i == 0 {
				if f, err := os.Create(filepath.Join(dir, "cpu.pprof")); err == nil {
					_ = pprof.StartCPUProfile(f)
				}
			} else {
				pprof.StopCPUProfile()
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			raw, _ := json.Marshal(probed{m.Mallocs, m.TotalAlloc})
			name := filepath.Join(dir, fmt.Sprintf("probe-%d", i))
			_ = os.WriteFile(name+".new", raw, 0o600)
			_ = os.Rename(name+".new", name)
		}
	}()
}

// stormServer is recast serve, or nginx, on a CPU of its own.
type stormServer struct {
	*child
	boot, api string // listeners
	pack      inventory.Digest
	packSize  int64
	probes    string // see benchProbe
	asked     int
}

// newStormServer has every machine armed, and an image and a ramdisk of that many MiB.
// With a cpu below 0 it runs on any.
func newStormServer(b testing.TB, cpu, machines, turns, size int) *stormServer {
	b.Helper()
	dir, data := b.TempDir(), b.TempDir()
	s := &stormServer{probes: b.TempDir(), boot: fmt.Sprintf("127.0.0.1:%d", freePort(b)), api: fmt.Sprintf("127.0.0.1:%d", freePort(b))}
	if keep := os.Getenv(benchProbe); keep != "" {
		s.probes = filepath.Join(keep, b.Name())
		if err := os.MkdirAll(s.probes, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	b.Setenv(benchProbe, s.probes)
	b.Setenv("RECAST_DATA", data)
	b.Setenv("RECAST_CONFIG_DIR", filepath.Join(dir, "config"))
	b.Setenv("RECAST_CONTEXT", "")
	img := disk(b, size, 1)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(img[1<<20 : (size-1)<<20]) // so that its pack is as large
	for name, raw := range map[string][]byte{
		filepath.Join(data, "recast.yaml"):           fmt.Appendf(nil, "boot: %s\nagent: %s\nsyslog: \"\"\nturns: %d\nlog: {level: warn}\n", s.boot, s.api, turns),
		filepath.Join(data, "ramdisk", "vmlinuz"):    img[:1<<20],
		filepath.Join(data, "ramdisk", "initrd.img"): img,
		filepath.Join(dir, "disk.img"):               img,
		filepath.Join(dir, "site.yaml"):              stormSite(machines, inventory.DigestOf(img)),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, raw, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	if cpu < 0 {
		s.child = startServer(b, data)
	} else {
		onCPU(b, cpu, func() { s.child = startServer(b, data) })
	}
	ok := func(args ...string) string {
		b.Helper()
		text, code := recast(b, strings.NewReader(""), args...)
		if code != exitOK {
			b.Fatalf("%q: %d %.2000s", args, code, text)
		}
		return text
	}
	ok("image", "add", filepath.Join(dir, "disk.img"))
	blobs, err := filepath.Glob(filepath.Join(data, "images", "blobs", "*"))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range blobs {
		if info, err := os.Stat(name); err == nil && info.Size() > s.packSize {
			s.packSize = info.Size()
			if s.pack, err = inventory.ParseDigest("sha256:" + filepath.Base(name)); err != nil {
				b.Fatal(err)
			}
		}
	}
	ok("apply", filepath.Join(dir, "site.yaml"), "--yes")
	await(b, "every machine armed", func() bool {
		return strings.Count(ok("get", "machines"), "awaiting-operator") == machines
	})
	return s
}

// probe asks the server what it has allocated.
func (s *stormServer) probe(b *testing.B) (p probed) {
	b.Helper()
	if s.probes == "" {
		return p // nginx does not count
	}
	if err := s.Process.Signal(syscall.SIGUSR1); err != nil {
		b.Fatal(err)
	}
	name := filepath.Join(s.probes, fmt.Sprintf("probe-%d", s.asked))
	s.asked++
	await(b, "the server's answer to a probe", func() bool {
		raw, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		if err := json.Unmarshal(raw, &p); err != nil {
			b.Fatal(err)
		}
		return os.Remove(name) == nil
	})
	return p
}

// cpuTime of a process.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// askAs fetches path as machine i does: by a connection of its own, in iPXE's words.
func askAs(i int, server, path string, buf []byte) (body []byte, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: stormAddr(i).AsSlice()}, Timeout: time.Minute, KeepAlive: -1}
	c, err := d.Dial("tcp4", server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	req := fmt.Appendf(buf[:0], "GET %s HTTP/1.1\r\nConnection: keep-alive\r\nUser-Agent: iPXE/1.0.0+git-20190125.36a4c85-5.1\r\nHost: %s\r\n\r\n", path, server)
	if _, err := c.Write(req); err != nil {
		return nil, err
	}
	return readAnswer(c, buf)
}

// readAnswer reads a short answer whole.
func readAnswer(c io.Reader, buf []byte) (body []byte, err error) {
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		head, rest, whole := bytes.Cut(buf[:n], []byte("\r\n\r\n"))
		if whole {
			if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
				return nil, fmt.Errorf("answered %.40q", head)
			}
			length := 0
			if _, v, ok := bytes.Cut(head, []byte("Content-Length: ")); ok {
				v, _, _ := bytes.Cut(v, []byte("\r"))
				length, _ = strconv.Atoi(string(v))
			}
			if length > 0 && len(rest) >= length {
				return rest[:length], nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%d bytes: %w", n, err)
		}
	}
}

func scriptOf(i int) string {
	return ipxe.ScriptPath + "?mac=" + strings.ReplaceAll(stormMAC(i), ":", "-") + "&uuid=" + stormUUID(i) + "&serial=S" + strconv.Itoa(i) + "&arch=x86_64.efi&try=0"
}

// asked is how a run of requests went.
type asked struct {
	n    int
	took time.Duration
	late []time.Duration // from when each was due until its answer, in order
}

func (a asked) at(share float64) time.Duration { return a.late[int(float64(len(a.late)-1)*share)] }

// ask has machines ask for a script, one after the other from first on; each
// answer must hold what. With a rate each is due at its time, whatever became of
// the one before; with none, 64 ask at a time, as fast as they are answered.
func ask(b *testing.B, server string, path func(int) string, what string, first, n int, rate float64) asked {
	b.Helper()
	workers := 64
	if rate > 0 {
		workers = 1024
	}
	type due struct {
		i  int
		at time.Time
	}
	queue := make(chan due, n)
	a := asked{n: n, late: make([]time.Duration, 0, n)}
	var mu sync.Mutex
	var failed error
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			buf := make([]byte, 8<<10)
			for d := range queue {
				if d.at.IsZero() {
					d.at = time.Now()
				}
				body, err := askAs(d.i, server, path(d.i), buf)
				late := time.Since(d.at)
				if err == nil && !bytes.Contains(body, []byte(what)) {
					err = fmt.Errorf("%q is not in %.300q", what, body)
				}
				mu.Lock()
				a.late = append(a.late, late)
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	start := time.Now()
	for i := range n {
		d := due{i: first + i%stormAsking}
		if rate > 0 {
			d.at = start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
			if wait := time.Until(d.at); wait > 0 {
				time.Sleep(wait)
			}
		}
		queue <- d
	}
	close(queue)
	work.Wait()
	a.took = time.Since(start)
	if failed != nil {
		b.Fatalf("%.1000s", failed)
	}
	slices.Sort(a.late)
	return a
}

// fetchers take files at full rate until they are stopped, which gives the bytes
// that came. The kernel drops these unread, so that the rate is the server's.
func fetchers(b *testing.B, server string, n int, request func(fetcher, turn int) string) (stop func() float64) {
	b.Helper()
	var bytesIn atomic.Int64
	ended := make(chan struct{})
	var work sync.WaitGroup
	fetch := func(f int) error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: stormAddr(f).AsSlice()}}
		conn, err := d.Dial("tcp4", server)
		if err != nil {
			return err
		}
		c := conn.(*net.TCPConn)
		defer c.Close()
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		buf, drop := make([]byte, 4<<10), make([]byte, 1<<20)
		for turn := 0; ; turn++ {
			select {
			case <-ended:
				return nil
			default:
			}
			if _, err := io.WriteString(c, request(f, turn)); err != nil {
				return err
			}
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			head, rest, _ := bytes.Cut(buf[:n], []byte("\r\n\r\n"))
			_, v, _ := bytes.Cut(head, []byte("Content-Length: "))
			v, _, _ = bytes.Cut(v, []byte("\r"))
			length, err := strconv.Atoi(string(v))
			if err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 20")) {
				return fmt.Errorf("answered %q", head)
			}
			for left := length - len(rest); left > 0; {
				var m int
				var fail error
				if err := raw.Read(func(fd uintptr) bool {
					m, _, fail = unix.Recvfrom(int(fd), drop[:min(left, len(drop))], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
					return !errors.Is(fail, unix.EAGAIN)
				}); err != nil || fail != nil || m == 0 {
					return errors.Join(err, fail, fmt.Errorf("%d bytes are missing", left))
				}
				left -= m
				bytesIn.Add(int64(m))
			}
		}
	}
	failed := make(chan error, n)
	for f := range n {
		work.Go(func() { failed <- fetch(f) })
	}
	start, before := time.Now(), bytesIn.Load()
	return func() float64 {
		rate := float64(bytesIn.Load()-before) / time.Since(start).Seconds()
		close(ended)
		work.Wait()
		close(failed)
		for err := range failed {
			if err != nil {
				b.Fatal(err)
			}
		}
		return rate
	}
}

// files is what machines and agents fetch at the same time: ramdisks whole, and
// frames of an image's pack.
func (s *stormServer) files(f, turn int) string {
	if f%2 == 0 {
		return fmt.Sprintf("GET %sinitrd.img HTTP/1.1\r\nHost: x\r\n\r\n", web.RamdiskPath)
	}
	at := int64(turn) << 20 % (s.packSize - 1<<20)
	return fmt.Sprintf("GET %s%s HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n", web.ImagesPath, s.pack.Hex(), at, at+1<<20-1)
}

var nonceIn = regexp.MustCompile(`recast\.nonce=(\S+)`)

// rests waits until the server has put on record what it was asked, so that the next
// figures are of what they say.
func (s *stormServer) rests(b *testing.B) {
	b.Helper()
	last, since := time.Duration(-1), time.Now()
	await(b, "the server at rest", func() bool {
		if now := cpuTime(b, s.Process.Pid); now-last > 20*time.Millisecond {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
}

// claims has machines from first on claim, ten a second, and gives how long each
// took with its TLS handshake, in order.
func (s *stormServer) claims(b *testing.B, first int, stop <-chan struct{}) (late []time.Duration) {
	buf := make([]byte, 8<<10)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := first; ; i++ {
		select {
		case <-stop:
			slices.Sort(late)
			return late
		case <-tick.C:
		}
		took, err := s.claim(i, buf)
		if err != nil {
			b.Errorf("machine %d claims: %v", i, err)
			return late
		}
		late = append(late, took)
	}
}

// claim boots machine i up to its claim, and gives how long that took.
func (s *stormServer) claim(i int, buf []byte) (time.Duration, error) {
	body, err := askAs(i, s.boot, scriptOf(i), buf)
	if err != nil {
		return 0, err
	}
	nonce := nonceIn.FindSubmatch(body)
	if nonce == nil {
		return 0, fmt.Errorf("its script is %.300q", body)
	}
	claim, err := json.Marshal(inventory.Claim{Nonce: string(nonce[1]), MAC: inventory.MAC(stormMAC(i)), BootID: "b", UUID: stormUUID(i)})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	c, err := tls.DialWithDialer(&net.Dialer{LocalAddr: &net.TCPAddr{IP: stormAddr(i).AsSlice()}, Timeout: 30 * time.Second}, "tcp4", s.api,
		&tls.Config{InsecureSkipVerify: true}) // nothing here depends on who answers
	if err != nil {
		return 0, err
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /agent/v1/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(claim), claim)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s", resp.Status)
	}
	return time.Since(start), err
}

// BenchmarkStorm is recast serve as a process on one CPU with 10,000 armed machines
// that ask for their boot scripts, each by a connection of its own and in iPXE's
// words, played on another CPU. What they ask is put on record twice in an attempt:
// for the first time ("first-"), at 5,000 a second while 16 others fetch ramdisks and
// images at full rate, and once more ("recorded-"). us, allocs and B of a script are
// the server's in a closed loop of 64; the latencies are at 5,000 a second, from when
// each was due. "both-" is like "first-" with nothing to record, and ten machines a
// second claim, TLS handshake included; images-MB/s is without scripts. nginx gives
// files of the same size.
func BenchmarkStorm(b *testing.B) {
	b.Run("scripts", func(b *testing.B) { newStormServer(b, twoCPUs(b), stormMachines, 0, 64).storm(b, stormArmed) })
	b.Run("not-your-turn", func(b *testing.B) {
		s := newStormServer(b, twoCPUs(b), stormMachines, 64, 64)
		ask(b, s.boot, scriptOf, stormArmed, stormMachines-64, 64, 0) // who has the places
		s.storm(b, "waits for its turn")
	})
	b.Run("nginx", func(b *testing.B) { startNginx(b).storm(b, stormArmed) })
}

// stormArmed is in the script of an armed machine, and nowhere else.
const stormArmed = "recast.nonce="

func (s *stormServer) storm(b *testing.B, what string) {
	turn := 0
	for b.Loop() {
		if turn++; turn > 1 {
			b.Fatal("a second turn is another storm: -benchtime 1x")
		}
		metric := func(unit string, v float64) {
			if unit = strings.TrimPrefix(unit, "-"); v > 0 {
				b.ReportMetric(v, unit)
			}
		}
		// What each costs, all the server's time being theirs.
		cost := func(prefix string) {
			p0, c0 := s.probe(b), cpuTime(b, s.Process.Pid)
			a := ask(b, s.boot, scriptOf, what, 0, stormAsking, 0)
			p1, c1 := s.probe(b), cpuTime(b, s.Process.Pid)
			n := float64(a.n)
			metric(prefix+"-scripts/s", n/a.took.Seconds())
			metric(prefix+"-us/script", float64((c1-c0).Microseconds())/n)
			metric(prefix+"-allocs/script", float64(p1.Mallocs-p0.Mallocs)/n)
			metric(prefix+"-B/script", float64(p1.Bytes-p0.Bytes)/n)
		}
		images := fetchers(b, s.boot, stormFetchers, s.files)
		a := ask(b, s.boot, scriptOf, what, 0, stormAsking, stormRate)
		metric("first-MB/s", images()/1e6)
		a.report(metric, "first-")
		cost("recorded")
		cost("")
		s.rests(b)
		a = ask(b, s.boot, scriptOf, what, 0, stormRate*stormSeconds, stormRate)
		a.report(metric, "")
		images = fetchers(b, s.boot, stormFetchers, s.files)
		<-time.After(stormSeconds * time.Second / 2)
		metric("images-MB/s", images()/1e6)

		s.rests(b)
		images = fetchers(b, s.boot, stormFetchers, s.files)
		stop := make(chan struct{})
		late := make(chan []time.Duration, 1)
		go func() {
			var l []time.Duration
			if s.api != "" && what == stormArmed {
				l = s.claims(b, stormAsking, stop)
			}
			late <- l
		}()
		a = ask(b, s.boot, scriptOf, what, 0, stormRate*stormSeconds, stormRate)
		metric("both-MB/s", images()/1e6)
		close(stop)
		a.report(metric, "both-")
		metric("both-scripts/s", float64(a.n)/a.took.Seconds())
		if l := <-late; len(l) > 0 {
			metric("claim-p50-ms", milliseconds(l[len(l)/2]))
			metric("claim-max-ms", milliseconds(l[len(l)-1]))
		}
		metric("server-MiB", resident(b, s.Process.Pid)/(1<<20))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (a asked) report(metric func(string, float64), prefix string) {
	metric(prefix+"p50-ms", milliseconds(a.at(.5)))
	metric(prefix+"p99-ms", milliseconds(a.at(.99)))
	metric(prefix+"max-ms", milliseconds(a.at(1)))
}

// startNginx is the same with files in the place of scripts.
func startNginx(b *testing.B) *stormServer {
	if _, err := exec.LookPath("nginx"); err != nil {
		b.Skip("needs nginx (apt-get install nginx-light)")
	}
	cpu := twoCPUs(b)
	dir := b.TempDir()
	s := &stormServer{boot: fmt.Sprintf("127.0.0.1:%d", freePort(b)), pack: inventory.DigestOf(nil), packSize: 64 << 20}
	for name, raw := range map[string][]byte{
		web.RamdiskPath + "initrd.img": make([]byte, 64<<20),
		web.ImagesPath + s.pack.Hex():  make([]byte, 64<<20),
		ipxe.ScriptPath:                append([]byte(stormArmed), bytes.Repeat([]byte("x"), 1000)...), // about as large as a script
		"/conf": fmt.Appendf(nil, "daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log stderr error;\n"+
			"events { worker_connections 4096; multi_accept on; }\n"+
			"http { access_log off; sendfile on; tcp_nopush on; server { listen %[2]s backlog=4096; root %[1]s; } }\n", dir, s.boot),
	} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, raw, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", filepath.Join(dir, "conf"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	onCPU(b, cpu, func() { err = cmd.Start() })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s.child = &child{Cmd: cmd}
	await(b, "nginx", func() bool {
		_, err := askAs(1, s.boot, scriptOf(1), make([]byte, 8<<10))
		return err == nil
	})
	return s
}
