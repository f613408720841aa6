package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

func TestServerSaysWhatItListensOnAndAnswers(t *testing.T) {
	server, data := workplace(t)
	await(t, "the last line of its start", func() bool { return strings.Contains(server.text(t), "msg=serving ") })
	log := server.text(t)
	for _, want := range []string{
		"listening for=\"agents and operators\" addr=127.0.0.1:", "listening for=\"machines (scripts, ramdisk, images)\" addr=127.0.0.1:",
		"no Network with dhcp: authoritative or proxy is declared: nothing is answered", "token=" + filepath.Join(data, "operator.token"), "ca=sha256:",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	token, err := os.ReadFile(filepath.Join(data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log, strings.TrimSpace(string(token))) {
		t.Error("the log shows the token")
	}
	for _, name := range []string{"operator.token", "key.age", localContext} {
		if st, err := os.Stat(filepath.Join(data, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
}

func TestCommandsOfTheServersHostFindItsData(t *testing.T) {
	config := filepath.Join(t.TempDir(), "recast.yaml")
	if err := os.WriteFile(config, []byte("data: /named\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ env, args, want string }{
		{"", "", defaultData},
		{"/env", "", "/env"},
		{"/env", "--data /flag", "/flag"},
		{"/env", "--config " + config, "/named"},
		{"", "--config " + config + " --data /flag", "/flag"},
	} {
		t.Setenv("RECAST_DATA", tt.env)
		text, code := recast(t, nil, append([]string{"serve", "--print-config"}, strings.Fields(tt.args)...)...)
		if code != exitOK || !strings.HasPrefix(text, "data: "+tt.want+"\n") {
			t.Errorf("RECAST_DATA=%s serve %s: %d %s", tt.env, tt.args, code, text)
		}
	}
	t.Setenv("RECAST_DATA", "/env/of/nothing")
	if text, code := recast(t, nil, "store", "backup", filepath.Join(t.TempDir(), "x")); code != exitError || !strings.Contains(text, "/env/of/nothing/recast.db") {
		t.Errorf("%d %s", code, text)
	}
}

func TestSecondServerOnTheSameDataIsRefused(t *testing.T) {
	_, data := workplace(t)
	text, code := recast(t, nil, "serve", "--data", data, "--config", filepath.Join(data, "recast.yaml"))
	if code != exitError || !strings.Contains(text, "recast.db") || strings.Count(strings.TrimSpace(text), "\n") > 0 {
		t.Errorf("%d %s", code, text)
	}
	text, code = recast(t, nil, "store", "backup", filepath.Join(t.TempDir(), "x"), "--data", data)
	if code != exitError || !strings.Contains(text, "recast.db") {
		t.Errorf("%d %s", code, text)
	}
}

func TestHangupReadsTheLogLevelAgain(t *testing.T) {
	server, data := workplace(t)
	config := filepath.Join(data, "recast.yaml")
	raw, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	hup := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(config, append(bytes.Clone(raw), text...), 0o644); err != nil {
			t.Fatal(err)
		}
		before := len(server.text(t))
		if err := server.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, want, func() bool { return strings.Contains(server.text(t)[before:], want) })
	}
	hup("log: {level: debug}\n", "level=DEBUG")
	hup("log: {levle: info}\n", "the configuration in force stays")
	hup("softOff: 1m\n", "needs a restart")
	if err := server.stop(t, syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, server.text(t))
	}
}

// An upload under way when SIGTERM comes is finished; a watch is not waited for.
func TestTermLetsTransfersFinish(t *testing.T) {
	server, data := workplace(t)
	cc, err := readContext(filepath.Join(data, localContext))
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(cc)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := c.do(t.Context(), http.MethodGet, "/api/v1/watch", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	img := disk(t, 5, 9)
	r, w := io.Pipe()
	type answer struct {
		body string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		resp, err := c.do(t.Context(), http.MethodPost, "/api/v1/images", r, "application/octet-stream")
		if err != nil {
			answered <- answer{err: err}
			return
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		answered <- answer{string(raw), err}
	}()
	if _, err := w.Write(img[:3<<20]); err != nil {
		t.Fatal(err)
	}
	await(t, "the upload under way", func() bool { // not in the sockets' buffers
		parts, _ := filepath.Glob(filepath.Join(data, "images", "*", "tmp-*"))
		return len(parts) > 0
	})
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(t, "the server stopping", func() bool { return strings.Contains(server.text(t), "transfers may finish") })
	if _, err := w.Write(img[3<<20:]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if a := <-answered; a.err != nil || !strings.Contains(a.body, string(inventory.DigestOf(img))) {
		t.Errorf("the upload: %+v", a)
	}
	if err := server.stop(t, syscall.SIGTERM); err != nil {
		t.Errorf("%v\n%s", err, server.text(t))
	}
}

func TestServersChainHoldsItsCAForEveryName(t *testing.T) {
	_, data := workplace(t)
	cc, err := readContext(filepath.Join(data, localContext))
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(cc.URL, "https://")
	_, port, _ := strings.Cut(addr, ":")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cc.CAPEM))
	for _, name := range []string{"127.0.0.1", "localhost"} {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{RootCAs: pool, ServerName: name, MaxVersion: tls.VersionTLS13})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		chain := conn.ConnectionState().PeerCertificates
		if last := chain[len(chain)-1]; inventory.DigestOf(last.Raw) != cc.CADigest || !last.IsCA {
			t.Errorf("%s: the chain ends with %s", name, last.Subject)
		}
		conn.Close()
	}
	if _, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}

// With its disk full a server says read-only and keeps answering machines; with
// room again it recovers by itself.
func TestFullDiskLeavesMachinesServed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	data := t.TempDir()
	if err := unix.Mount("recast-test", data, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("needs root that may mount (%v)", err)
	}
	// Before the server's own clean-up, which runs later than this one's registration.
	t.Cleanup(func() { unix.Unmount(data, unix.MNT_DETACH) })
	t.Setenv("RECAST_DATA", data)
	t.Setenv("RECAST_CONFIG_DIR", t.TempDir())
	t.Setenv("RECAST_CONTEXT", "")
	if err := os.MkdirAll(filepath.Join(data, "ramdisk"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(data, "ramdisk", name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	server := startServer(t, data)
	site := filepath.Join(t.TempDir(), "site.yaml")
	raw, err := os.ReadFile("testdata/site/site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	img := disk(t, 5, 1)
	if err := os.WriteFile(site, bytes.ReplaceAll(raw, []byte("IMAGE"), []byte(inventory.DigestOf(img))), 0o644); err != nil {
		t.Fatal(err)
	}
	ok := func(stdin string, args ...string) {
		t.Helper()
		if text, code := recast(t, strings.NewReader(stdin), args...); code != exitOK {
			t.Fatalf("%q: %d %s", args, code, text)
		}
	}
	ok(string(img), "image", "add", "-")
	ok("admin:pw", "secret", "set", "rack1-bmc")
	ok("", "freeze")
	ok("", "apply", site, "--yes")

	boot := bootURL(t, data)
	served := func(when string) {
		t.Helper()
		for path, want := range map[string]string{
			"/boot/script?mac=52:54:00:00:00:05&arch=x86_64.efi": "#!ipxe", "/boot/ramdisk/vmlinuz": "vmlinuz", "/boot/autoexec.ipxe": "#!ipxe",
		} {
			resp, err := http.Get(boot + path)
			if err != nil {
				t.Fatal(when, err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(string(text), want) {
				t.Errorf("%s: %s: %s %.60q %v", when, path, resp.Status, text, err)
			}
		}
		if text, code := recast(t, nil, "get", "machines"); code != exitOK || !strings.Contains(text, "r1u06") {
			t.Errorf("%s: get: %d %s", when, code, text)
		}
	}
	served("with room")
	ballast := filepath.Join(data, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; size /= 2 {
		for b := make([]byte, size); err == nil; {
			_, err = f.Write(b)
		}
		err = nil
	}
	f.Close()
	// The file grows a page at a time, so some writes still find room in it.
	text, code := "", exitOK
	for i := 0; code == exitOK && i < 2000; i++ {
		text, code = recast(t, strings.NewReader(strings.Repeat("x", 60000)), "secret", "set", fmt.Sprintf("fill-%d", i))
	}
	if code != exitError || !strings.Contains(text, "cannot write") && !strings.Contains(text, "no space") {
		t.Errorf("%d %s", code, text)
	}
	served("with its disk full")
	if text, _ := recast(t, nil, "version"); !strings.Contains(text, "read-only") {
		t.Errorf("version: %s", text)
	}
	if text, code := recast(t, bytes.NewReader(disk(t, 5, 2)), "image", "add", "-"); code != exitError || !strings.Contains(text, "no space") {
		t.Errorf("image add: %d %s", code, text)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	await(t, "recovery", func() bool {
		_, code := recast(t, nil, "freeze")
		return code == exitOK
	})
	served("with room again")
	if err := server.stop(t, syscall.SIGTERM); err != nil {
		t.Errorf("%v\n%s", err, server.text(t))
	}
	if strings.Contains(server.text(t), "panic") {
		t.Errorf("it panicked:\n%s", server.text(t))
	}
}

// Whatever port it comes to, an operator finds it by its reason.
func TestWhatIsMalformedIsCountedByReason(t *testing.T) {
	_, data := workplace(t)
	for range 2 {
		r, err := http.Get(bootURL(t, data) + "/boot/script?mac=zz")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusBadRequest {
			t.Fatal(r.Status)
		}
	}
	// A BMC that talks of something else.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "SSH-2.0-dropbear\r\n")
			_, _ = conn.Read(make([]byte, 1<<10))
			_ = conn.Close()
		}
	}()
	defer func() { _ = l.Close(); <-ended }()
	for _, line := range []string{"edit site.yaml 127.0.0.1:1 " + l.Addr().String(), "recast secret set rack1-bmc <<< admin:pw", "recast freeze", "recast apply site.yaml --yes"} {
		runStep(t, line, nil, map[string]int{}, func(string) bool { return true })
	}
	if text, code := recast(t, nil, "power", "status", "r1u05"); code == exitOK {
		t.Errorf("power: %s", text)
	}
	cc, err := readContext(filepath.Join(data, localContext))
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(cc)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.call(t.Context(), http.MethodPost, "/agent/v1/claim", "no object", nil); err == nil {
		t.Error("a string was taken for a claim")
	}

	network, code := recast(t, nil, "describe", "network", "loop")
	if code != exitOK || !strings.Contains(network, "2 on all networks since the server's start: boot HTTP: 400 Bad Request\n") || strings.Contains(network, "API") || strings.Contains(network, "BMC") {
		t.Errorf("%d %s", code, network)
	}
	text, code := recast(t, nil, "version")
	for _, want := range []string{"2, boot HTTP: 400 Bad Request", "1, agent API: 400 Bad Request", "BMC: Redfish: neither TLS nor HTTP"} {
		if code != exitOK || !strings.Contains(text, want+"\n") {
			t.Errorf("no %q: %d %s", want, code, text)
		}
	}
}

// bootURL of the server whose data are in that folder.
func bootURL(t *testing.T, data string) string {
	t.Helper()
	c, err := readConfig(filepath.Join(data, "recast.yaml"), true)
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + c.Boot
}

// What was looked at is what is applied, or nothing is.
func TestOutdatedPlanIsRefused(t *testing.T) {
	workplace(t)
	digests := map[string]int{}
	for _, line := range []string{"recast secret set rack1-bmc <<< admin:pw", "recast freeze", "recast apply site.yaml --yes"} {
		runStep(t, line, nil, digests, func(string) bool { return true })
	}
	var plans []string
	for _, name := range []string{"r1u07", "r1u08"} {
		raw, err := os.ReadFile("site.yaml")
		if err != nil {
			t.Fatal(err)
		}
		file := name + ".yaml"
		if err := os.WriteFile(file, bytes.Replace(raw, []byte("r1u06"), []byte(name), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		text, code := recast(t, nil, "plan", file, "-o", "json")
		var p struct{ Digest string }
		if err := json.Unmarshal([]byte(text), &p); err != nil || code != exitOK {
			t.Fatalf("%d %v %s", code, err, text)
		}
		plans = append(plans, p.Digest)
	}
	if text, code := recast(t, nil, "apply", "--plan", plans[1]); code != exitOK {
		t.Fatalf("%d %s", code, text)
	}
	text, code := recast(t, nil, "apply", "--plan", plans[0])
	if code != exitRefused || !strings.Contains(text, "the plan is out of date") || !strings.Contains(text, "recast plan PATH") {
		t.Errorf("%d %s", code, text)
	}
	if text, _ := recast(t, nil, "get", "machines"); !strings.Contains(text, "r1u08") || strings.Contains(text, "r1u07") {
		t.Errorf("%s", text)
	}
}

func TestLoginPinsTheCAAndHidesTheToken(t *testing.T) {
	_, data := workplace(t)
	cc, err := readContext(filepath.Join(data, localContext))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("RECAST_DATA", t.TempDir()) // from here on nothing is known
	token := filepath.Join(data, "operator.token")
	login := func(want int, stdin io.Reader, args ...string) string {
		t.Helper()
		text, code := recast(t, stdin, append([]string{"login", cc.URL}, args...)...)
		if code != want {
			t.Errorf("login %q: %d %s", args, code, text)
		}
		if strings.Contains(text, cc.Token) {
			t.Errorf("login %q shows the token", args)
		}
		return text
	}
	if text := login(exitUsage, strings.NewReader("")); !strings.Contains(text, "--fingerprint "+cc.CADigest.String()) {
		t.Errorf("%s", text)
	}
	login(exitRefused, strings.NewReader(""), "--fingerprint", "sha256:"+strings.Repeat("0", 64), "--token-file", token)
	login(exitRefused, strings.NewReader("wrong"), "--fingerprint", cc.CADigest.String())
	if _, err := os.Stat(filepath.Join(os.Getenv("RECAST_CONFIG_DIR"), "default.json")); !os.IsNotExist(err) {
		t.Errorf("a failed login left a context: %v", err)
	}
	login(exitOK, strings.NewReader(cc.Token+"\n"), "--fingerprint", cc.CADigest.String())
	login(exitOK, nil, "--fingerprint", cc.CADigest.Hex(), "--token-file", token, "--name", "second")
	if text, code := recast(t, nil, "get", "machines"); code != exitOK {
		t.Errorf("%d %s", code, text)
	}
	if text, _ := recast(t, nil, "login", "--list"); !strings.Contains(text, "*        second   https://127.0.0.1") || !strings.Contains(text, "         default  https://") {
		t.Errorf("%q", text)
	}
	if text, code := recast(t, nil, "login", "--use", "default"); code != exitOK || !strings.Contains(text, `"default" is the current one`) {
		t.Errorf("%d %s", code, text)
	}
	if st, err := os.Stat(filepath.Join(os.Getenv("RECAST_CONFIG_DIR"), "default.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}

	// On a terminal: the question, then the token without echo.
	master, slave := pty(t)
	shown := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		b := make([]byte, 256)
		for {
			n, err := master.Read(b)
			all.Write(b[:n])
			if err != nil {
				shown <- all.String()
				return
			}
		}
	}()
	if _, err := master.WriteString("yes\n"); err != nil {
		t.Fatal(err)
	}
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		// Only once the echo is off, as a person would after the prompt.
		await(t, "the echo to go off", func() bool {
			tio, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			return err == nil && tio.Lflag&unix.ECHO == 0
		})
		master.WriteString(cc.Token + "\n")
	}()
	login(exitOK, slave, "--name", "third")
	<-typed
	slave.Close()
	master.SetReadDeadline(time.Now().Add(time.Second))
	master.Close()
	if text := <-shown; strings.Contains(text, cc.Token) {
		t.Errorf("the terminal shows the token: %q", text)
	}

	// Another server, or somebody in between, is not believed.
	elsewhere := t.TempDir()
	startServer(t, elsewhere)
	other, err := readContext(filepath.Join(elsewhere, localContext))
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]string{"the CA of another server": other.CAPEM, "no certificate": "nothing"} {
		wrong := cc
		wrong.CAPEM = ca
		file := filepath.Join(t.TempDir(), "wrong.json")
		if err := saveContext(file, wrong); err != nil {
			t.Fatal(err)
		}
		if text, code := recast(t, nil, "--context", file, "get", "machines"); code == exitOK || !strings.Contains(text, "recast login https://") {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
}

// A watch comes back to a server that was restarted, and says so.
func TestWatchReconnects(t *testing.T) {
	server, data := workplace(t)
	for _, line := range []string{"secret set rack1-bmc", "image add disk.img", "freeze", "apply site.yaml --yes"} {
		if text, code := recast(t, strings.NewReader("admin:x"), strings.Fields(line)...); code != exitOK {
			t.Fatalf("%s: %s", line, text)
		}
	}
	// The port has to stay: agents and operators find the server by it.
	ctx, cancel := context.WithCancel(context.Background())
	out := &syncBuffer{}
	cmd := newRoot()
	cmd.SetArgs([]string{"get", "machines", "--watch"})
	cmd.SetOut(out)
	cmd.SetErr(out)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ctrl-C is no error: %v", err)
		}
	}()
	await(t, "the machines", func() bool { return strings.Contains(out.String(), "r1u06") })
	if err := server.stop(t, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	await(t, "that it reconnects", func() bool { return strings.Contains(out.String(), "; reconnecting, ctrl-C ends it\n") })
	startServer(t, data)
	await(t, "that it is back", func() bool { return strings.Contains(out.String(), "the server is back\n") })
	if n := strings.Count(out.String(), "reconnecting"); n != 1 {
		t.Errorf("it says %d times that it reconnects:\n%s", n, out)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Ctrl-C ends a command that waits for input which does not come.
func TestInterruptEndsWhatWaitsForInput(t *testing.T) {
	workplace(t)
	for _, args := range []string{"plan -", "secret set x"} {
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe() // nothing is ever written
		cmd := newRoot()
		cmd.SetArgs(strings.Fields(args))
		cmd.SetIn(r)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		ended := make(chan error, 1)
		go func() { ended <- cmd.ExecuteContext(ctx) }()
		cancel()
		select {
		case err := <-ended:
			var out bytes.Buffer
			if code := exitCode(err, &out); code != exitError || !strings.HasPrefix(out.String(), "recast: interrupted") {
				t.Errorf("%s: %d %s", args, code, &out)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it waits on", args)
		}
		_ = w.Close()
	}
}

// A cluster may be away when the server starts.
func TestAServerThatWaitsForItsStoreSaysSoAndStopsQuietly(t *testing.T) {
	dir := t.TempDir()
	config := fmt.Sprintf("boot: 127.0.0.1:%d\nagent: 127.0.0.1:%d\nstore: {endpoints: [\"http://127.0.0.1:%d\"]}\n", freePort(t), freePort(t), freePort(t))
	if err := os.WriteFile(filepath.Join(dir, "recast.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	c := launchServer(t, dir)
	await(t, "a word of the store", func() bool { return strings.Contains(c.text(t), "opening the store") })
	if err := c.stop(t, syscall.SIGTERM); err != nil || strings.Contains(c.text(t), "recast:") {
		t.Errorf("it ended with %v and says\n%s", err, c.text(t))
	}
}
