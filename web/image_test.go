package web

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"recast/image"
	"recast/inventory"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// source streams without a length, as a pipe does.
type source struct{ io.Reader }

func TestImageIsStreamedInAndItsDigestComesBack(t *testing.T) {
	s := newSite(t)
	raw := disk(t, 5, 1)
	for name, body := range map[string][]byte{"raw": raw, "gzip": gzipped(t, raw)} {
		var info image.Info
		s.ok(t, "POST", apiRoot+"/images?source=os.img&digest="+inventory.DigestOf(raw).String(), source{bytes.NewReader(body)}, &info)
		if info.Digest != inventory.DigestOf(raw) || info.Size != int64(len(raw)) || info.Source != "os.img" {
			t.Errorf("%s: %+v", name, info)
		}
	}
	file := filepath.Join(t.TempDir(), "there.img")
	if err := os.WriteFile(file, disk(t, 4, 2), 0o644); err != nil {
		t.Fatal(err)
	}
	var info image.Info
	s.ok(t, "POST", apiRoot+"/images", ImageSource{Source: file}, &info)
	if info.Source != file {
		t.Errorf("%+v", info)
	}
}

func TestBadImageIsRefusedInOneLineThatNamesTheByteOrTheLimit(t *testing.T) {
	s := newSite(t)
	s.ImageMaxSize = 8 << 20
	raw := disk(t, 5, 1)
	packed := gzipped(t, raw)
	corrupt := bytes.Clone(packed)
	corrupt[len(corrupt)/2] ^= 0xff
	zeros := gzipped(t, append(disk(t, 5, 1), make([]byte, 32<<20)...))
	for name, c := range map[string]struct {
		query string
		body  []byte
		code  int
		want  string
	}{
		"truncated gzip": {"", packed[:len(packed)-100], 422, fmt.Sprintf("the source ends at byte %d", len(packed)-100)},
		"corrupt gzip":   {"", corrupt, 422, "corrupt before byte"},
		"truncated raw":  {"", raw[:4<<20], 422, "image is truncated"},
		"unknown":        {"", bytes.Repeat([]byte{0xa5, 0, 1}, 10000), 422, "neither a GPT nor an MBR at its start"},
		"text":           {"", []byte("hello, this is no image\n"), 422, `not a disk image but text, which begins "hello`},
		"qcow2":          {"", append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 70000)...), 422, "qemu-img convert -O raw"},
		"empty":          {"", nil, 422, "the source is empty"},
		"another digest": {"?digest=sha256:" + strings.Repeat("1", 64), raw, 422, "digests differ"},
		"bad digest":     {"?digest=sha256:1", raw, 400, "digest"},
		"oversized":      {"", disk(t, 9, 1), 422, "8388608"},
		"a bomb":         {"", zeros, 422, "8388608"},
	} {
		code, text, h := s.send(t, "POST", apiRoot+"/images"+c.query, operatorToken, source{bytes.NewReader(c.body)})
		p := checkProblem(t, name, code, text, h)
		if code != c.code || !strings.Contains(p.Detail, c.want) {
			t.Errorf("%s: %d %s", name, code, p.Detail)
		}
	}
	for name, c := range map[string]struct {
		body ImageSource
		want string
	}{
		"no such file": {ImageSource{Source: "/no/such.img"}, "no such file"},
		"no https":     {ImageSource{Source: "http://example.invalid/x"}, "https"},
		"nothing":      {ImageSource{}, ""},
	} {
		code, text, h := s.send(t, "POST", apiRoot+"/images", operatorToken, c.body)
		p := checkProblem(t, name, code, text, h)
		if code/100 != 4 || !strings.Contains(p.Detail, c.want) {
			t.Errorf("%s: %d %s", name, code, p.Detail)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "images", "blobs")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if list := s.Images.List(); len(list) > 0 {
		t.Errorf("listed: %+v", list)
	}
}

func TestImageThatIsNeededIsNotRemoved(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	code, text, h := s.send(t, "DELETE", apiRoot+"/images/"+s.image.Digest.String(), operatorToken, nil)
	if p := checkProblem(t, "remove", code, text, h); code != http.StatusConflict || !strings.Contains(p.Detail, "image os needs it") {
		t.Errorf("%d %s", code, text)
	}
	var other image.Info
	s.ok(t, "POST", apiRoot+"/images", bytes.NewReader(disk(t, 4, 2)), &other)
	s.ok(t, "DELETE", apiRoot+"/images/"+other.Digest.String(), nil, nil)
	if code, text, _ := s.send(t, "DELETE", apiRoot+"/images/"+other.Digest.String(), operatorToken, nil); code != http.StatusNotFound {
		t.Errorf("again: %d %s", code, text)
	}
}

func TestDamagedImageIsSaidSo(t *testing.T) {
	s := newSite(t)
	s.addImage(t)
	pack := filepath.Join(s.dir, "images", "blobs", s.image.Pack.Hex())
	raw, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(pack, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var info image.Info
	s.ok(t, "POST", apiRoot+"/images/"+s.image.Digest.String()+"/verify", nil, &info)
	if !strings.Contains(info.Damaged, "frame") {
		t.Errorf("%+v", info)
	}
}

// The bytes must go from file to socket inside the kernel through the whole
// front: any wrapper around the ResponseWriter would pass every other test and
// cost twice the CPU.
func TestImagesAreSentBySendfileThroughTheFront(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace (apt-get install strace)")
	}
	dir := t.TempDir()
	store, err := image.Open(dir, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := store.Add(t.Context(), bytes.NewReader(disk(t, 5, 1)), image.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	store.Close()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-e", "trace=sendfile", "-o", trace, os.Args[0], "-test.run=^TestBootForStrace$", "-test.v")
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
	resp, err := http.Get(url + ImagesPath + info.Pack.Hex())
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

// TestBootForStrace is the process that the test above traces.
func TestBootForStrace(t *testing.T) {
	dir := os.Getenv("RECAST_TEST_STORE")
	if dir == "" {
		return
	}
	store, err := image.Open(dir, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := (&Server{Images: store, Ramdisk: http.Dir(dir)}).BootHTTP()
	done := make(chan struct{})
	go func() { server.Serve(l); close(done) }()
	fmt.Printf("serving http://%s\n", l.Addr())
	io.Copy(io.Discard, os.Stdin)
	server.Close()
	<-done
}
