package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// The benchmark's BMCs stand in processes of their own, so that the CPU time and the
// memory of the server are its own. The environment says how many one of them has.
const benchBMCs = "RECAST_BENCH_SERVE"

// benchFront is one virtual BMC as a server sees it.
type benchFront struct {
	URL string
	Pin inventory.Digest
}

// benchServe serves BMCs "FROM COUNT" until its input ends, then prints how many
// requests they had.
func benchServe(what string) error {
	var from, count int
	if _, err := fmt.Sscan(what, &from, &count); err != nil {
		return err
	}
	certificate, err := redfishCertificate()
	if err != nil {
		return err
	}
	bmcs := make([]*RedfishBMC, count)
	out := json.NewEncoder(os.Stdout)
	for i := range bmcs {
		n := from + i
		m := &SimMachine{Firmware: true}
		if err := m.PowerOn(context.Background()); err != nil {
			return err
		}
		// A subnet for each 250: what there is of limits per subnet is met as in a room.
		if bmcs[i], err = NewRedfish(RedfishOptions{Addr: fmt.Sprintf("127.1.%d.%d:0", n/250, 1+n%250), User: simUser, Password: simPassword, Machine: m,
			Certificate: certificate, UUID: fmt.Sprintf("5ca1ab1e-0000-4000-8000-%012x", n), Serial: fmt.Sprintf("SIM%06d", n)}); err != nil {
			return err
		}
		if err := out.Encode(benchFront{bmcs[i].URL(), bmcs[i].Pin()}); err != nil {
			return err
		}
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() { // each line asks for the counts so far
		c := benchCounts{}
		for _, b := range bmcs {
			for _, r := range b.Requests() {
				c.Requests++
				switch {
				case r.Verb == "login":
					c.Logins++
				case strings.Contains(r.Detail, "/Systems/1"):
					c.Looks++
				}
			}
			c.Streams += b.Subscribers()
		}
		if err := out.Encode(c); err != nil {
			return err
		}
	}
	return in.Err()
}

type benchCounts struct{ Requests, Logins, Looks, Streams int }

// benchFarm is processes with BMCs.
type benchFarm struct {
	fronts []benchFront
	in     []io.WriteCloser
	out    []*json.Decoder
}

func newBenchFarm(b *testing.B, count int) *benchFarm {
	b.Helper()
	const each = 2500
	f := &benchFarm{}
	for from := 0; from < count; from += each {
		c := exec.Command(os.Args[0])
		n := min(each, count-from)
		c.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", benchBMCs, from, n))
		c.Stderr = os.Stderr
		in, err := c.StdinPipe()
		simMust(b, err)
		out, err := c.StdoutPipe()
		simMust(b, err)
		simMust(b, c.Start())
		f.in, f.out = append(f.in, in), append(f.out, json.NewDecoder(bufio.NewReader(out)))
		b.Cleanup(func() {
			if err := errors.Join(in.Close(), c.Wait()); err != nil {
				b.Error(err)
			}
		})
		for range n {
			var one benchFront
			simMust(b, f.out[len(f.out)-1].Decode(&one))
			f.fronts = append(f.fronts, one)
		}
	}
	return f
}

func (f *benchFarm) counts(b *testing.B) (sum benchCounts) {
	b.Helper()
	for i := range f.in {
		var c benchCounts
		_, err := io.WriteString(f.in[i], "\n")
		simMust(b, errors.Join(err, f.out[i].Decode(&c)))
		sum.Requests, sum.Logins, sum.Looks, sum.Streams = sum.Requests+c.Requests, sum.Logins+c.Logins, sum.Looks+c.Looks, sum.Streams+c.Streams
	}
	return sum
}

// benchProcess reads what a process used: CPU time, and memory resident now.
func benchProcess(b *testing.B, pid int) (cpu time.Duration, rss int64) {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	simMust(b, err)
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	for _, i := range []int{11, 12} { // utime, stime in ticks of 10 ms
		n, err := strconv.ParseInt(f[i], 10, 64)
		simMust(b, err)
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	pages, err := strconv.ParseInt(f[21], 10, 64)
	simMust(b, err)
	return cpu, pages * int64(os.Getpagesize())
}

// BenchmarkWatch has a real server watch Redfish BMCs, each with its stream of events,
// and says what that costs it once each has been looked at. The rate of 10,000 in 300 s
// is kept with fewer: RECAST_BENCH_BMCS=10000 (make bench-watch) has them all.
func BenchmarkWatch(b *testing.B) {
	count := 1000
	if n, err := strconv.Atoi(os.Getenv("RECAST_BENCH_BMCS")); err == nil {
		count = n
	}
	every := time.Duration(count) * 30 * time.Millisecond
	most := count * 99 / 100 // on a busy host a look may time out, and its stream is closed
	for range b.N {
		farm := newBenchFarm(b, count)
		s := newSimServer(b, func(s *simServer) { s.settings = fmt.Sprintf("watchBMCs: %s\n", every) })
		_, empty := benchProcess(b, s.cmd.Process.Pid)
		s.setSecret(simSecret, simUser+":"+simPassword)
		image := s.addImage(SimImage(simImageSize, 7))
		var yaml strings.Builder
		yaml.WriteString(s.yaml(simDeclare{Image: image}))
		for i, f := range farm.fronts { // no group selects them: nothing waits for its turn
			fmt.Fprintf(&yaml, "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: w%05d, labels: {rack: other}}\nspec:\n  nics: [{mac: \"52:54:01:00:%02x:%02x\", network: sim}]\n  bmc: {url: %q, credentials: %s, pin: %q}\n",
				i, i>>8, i&255, f.URL, simSecret, f.Pin)
		}
		var p simPlan
		s.must(http.MethodPost, "/api/v1/plan", map[string]any{"files": []inventory.File{{Name: "watch.yaml", Data: []byte(yaml.String())}}}, &p)
		s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
		began := time.Now()
		s.await("each BMC has a session and a stream", 2*every+time.Minute, func() bool {
			time.Sleep(every / 20)
			return farm.counts(b).Streams >= most
		})
		b.Logf("each was looked at within %s", time.Since(began).Round(time.Second))
		was := farm.counts(b)
		cpu, _ := benchProcess(b, s.cmd.Process.Pid)
		began = time.Now()
		<-time.After(max(every/2, 30*time.Second)) // what is measured is this time
		now := farm.counts(b)
		after, rss := benchProcess(b, s.cmd.Process.Pid)
		took := time.Since(began)
		fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "fd"))
		simMust(b, err)
		if now.Logins-was.Logins > count-most || now.Streams < most {
			b.Errorf("%d new logins and %d streams of %d: sessions are not kept", now.Logins-was.Logins, now.Streams, count)
		}
		b.ReportMetric(float64(after-cpu)/float64(took)*100, "%-of-a-core")
		b.ReportMetric(float64(now.Looks-was.Looks)/took.Seconds(), "looks/s")
		b.ReportMetric(float64((after-cpu).Microseconds())/float64(now.Looks-was.Looks), "µs/look")
		b.ReportMetric(float64(rss)/1e6, "MB")
		b.ReportMetric(float64(rss-empty)/float64(count)/1e3, "KB/BMC")
		b.ReportMetric(float64(len(fds)), "fds")
		b.ReportMetric(0, "ns/op")
	}
}
