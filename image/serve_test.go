package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"recast/inventory"
)

func TestBlobsAreServedByRange(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	info := add(t, s, disk(t, 5, 1))
	if err := os.WriteFile(filepath.Join(dir, "blobs", inventory.DigestOf(nil).Hex()), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(filepath.Join(dir, "blobs", info.Pack.Hex()))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.StripPrefix("/images", s))
	defer server.Close()
	for name, c := range map[string]struct {
		method, path, header, value string
		status                      int
		body                        []byte
	}{
		"whole":             {"GET", "/" + info.Pack.Hex(), "", "", 200, packed},
		"head":              {"HEAD", "/" + info.Pack.Hex(), "", "", 200, nil},
		"range":             {"GET", "/" + info.Pack.Hex(), "Range", "bytes=100-299", 206, packed[100:300]},
		"end":               {"GET", "/" + info.Pack.Hex(), "Range", "bytes=-7", 206, packed[len(packed)-7:]},
		"past the end":      {"GET", "/" + info.Pack.Hex(), "Range", "bytes=999999999-", 416, nil},
		"known already":     {"GET", "/" + info.Pack.Hex(), "If-None-Match", `"` + info.Pack.Hex() + `"`, 304, nil},
		"range of another":  {"GET", "/" + info.Pack.Hex(), "If-Range", `"x"`, 200, packed},
		"unreferenced":      {"GET", "/" + inventory.DigestOf(nil).Hex(), "", "", 404, nil},
		"the image itself":  {"GET", "/" + info.Digest.Hex(), "", "", 404, nil},
		"a record":          {"GET", "/../images/" + info.Digest.Hex() + ".json", "", "", 404, nil},
		"the lock":          {"GET", "/../lock", "", "", 404, nil},
		"nothing":           {"GET", "/", "", "", 404, nil},
		"upper case":        {"GET", "/" + strings.ToUpper(info.Pack.Hex()), "", "", 404, nil},
		"a put":             {"PUT", "/" + info.Pack.Hex(), "", "", 405, nil},
		"a delete of a lot": {"DELETE", "/", "", "", 405, nil},
	} {
		req, err := http.NewRequest(c.method, server.URL+"/images"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.header != "" {
			req.Header.Set(c.header, c.value)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || c.body != nil && !bytes.Equal(body, c.body) {
			t.Errorf("%s: %s, %d bytes, %v", name, resp.Status, len(body), err)
		}
		if c.status == 200 || c.status == 206 {
			h := resp.Header
			if h.Get("Cache-Control") != "public, max-age=31536000, immutable" || h.Get("ETag") != `"`+info.Pack.Hex()+`"` ||
				h.Get("Accept-Ranges") != "bytes" || h.Get("Content-Type") != "application/zstd" || c.status == 200 && resp.ContentLength != info.PackSize {
				t.Errorf("%s: headers %v", name, h)
			}
		}
	}
	if err := s.Remove(info.Digest); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(server.URL + "/images/" + info.Pack.Hex())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("removed: %s", resp.Status)
	}
}

// The bytes must go from file to socket inside the kernel; a wrapped
// ResponseWriter would pass every other test and cost twice the CPU.
func TestBlobsAreSentBySendfile(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace (apt-get install strace)")
	}
	dir := t.TempDir()
	s := open(t, dir, Options{})
	info := add(t, s, disk(t, 5, 1))
	s.Close()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-e", "trace=sendfile", "-o", trace, os.Args[0], "-test.run=^TestServerForStrace$", "-test.v")
	cmd.Env = append(os.Environ(), "RECAST_TEST_STORE="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	url := ""
	lines := bufio.NewScanner(stdout)
	for url == "" && lines.Scan() {
		_, url, _ = strings.Cut(lines.Text(), "serving ")
	}
	if url == "" {
		cmd.Wait()
		t.Skip("needs strace that may trace (CAP_SYS_PTRACE)")
	}
	resp, err := http.Get(url + "/" + info.Pack.Hex())
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || n != info.PackSize {
		t.Errorf("%d bytes of %d, %v", n, info.PackSize, err)
	}
	stdin.Close()
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	var sent int64
	for line := range strings.Lines(string(out)) {
		if _, result, ok := strings.Cut(line, " = "); ok && (strings.Contains(line, "sendfile(") || strings.Contains(line, "sendfile resumed")) {
			var n int64
			if fmt.Sscan(result, &n); n > 0 {
				sent += n
			}
		}
	}
	// net/http may write the first 512 bytes itself.
	if sent < info.PackSize-4096 {
		t.Errorf("%d of %d bytes went by sendfile:\n%s", sent, info.PackSize, out)
	}
}

// TestServerForStrace is the process that TestBlobsAreSentBySendfile traces.
func TestServerForStrace(t *testing.T) {
	dir := os.Getenv("RECAST_TEST_STORE")
	if dir == "" {
		return
	}
	s := open(t, dir, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s}
	done := make(chan struct{})
	go func() { server.Serve(l); close(done) }()
	fmt.Printf("serving http://%s\n", l.Addr())
	io.Copy(io.Discard, os.Stdin)
	server.Close()
	<-done
}

// BenchmarkServeFrames asks for one frame after the other as agents do, one
// Range request each; the CPU seconds are those of both ends.
func BenchmarkServeFrames(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	info := add(b, s, disk(b, 5, 1))
	m, err := s.Manifest(info.Digest)
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(s)
	defer server.Close()
	c := m.Chunks[1]
	b.SetBytes(int64(c.Length))
	before := cpuTime(b)
	for b.Loop() {
		req, err := http.NewRequest("GET", server.URL+"/"+info.Pack.Hex(), nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", c.Offset, c.Offset+int64(c.Length)-1))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(c.Length) {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
	b.ReportMetric(float64(b.N)*float64(c.Length)/1e6/(cpuTime(b)-before).Seconds(), "MB/cpu-s(both-ends)")
}

// cpuTime is what this process has used of the processors.
func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
