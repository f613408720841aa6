package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/testenv"
)

func TestTildeIsAnEscapeAtTheBeginningOfALine(t *testing.T) {
	for _, c := range []struct {
		typed []string
		want  string
	}{
		{[]string{"ls ~/x\r"}, "ls ~/x\r"},
		{[]string{"~."}, "<leave>"},
		{[]string{"ab\r~."}, "ab\r<leave>"},
		{[]string{"ab\r", "~", "."}, "ab\r<leave>"},
		{[]string{"~t", "x"}, "<take>x"},
		{[]string{"a\r~B"}, "a\r<break>"},
		{[]string{"~?~?x~."}, "<help><help>x~."},
		{[]string{"~~."}, "~."},
		{[]string{"~", "~", "\r", "~x"}, "~\r~x"},
		{[]string{"a~."}, "a~."},
		{[]string{"~/bin\r~."}, "~/bin\r<leave>"},
	} {
		e, got := consoleEscape{start: true}, ""
		for _, typed := range c.typed {
			for _, k := range e.read([]byte(typed)) {
				switch {
				case k.leave:
					got += "<leave>"
				case k.help:
					got += "<help>"
				case k.take:
					got += "<take>"
				case k.brk:
					got += "<break>"
				default:
					got += string(k.text)
				}
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", c.typed, d)
		}
	}
}

// running is a command under way.
type running struct {
	mu   sync.Mutex
	out  bytes.Buffer
	code int
	done chan struct{}
}

func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

func (r *running) shows(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(r.out.String(), text)
}

// begin starts a command; it is interrupted with the test.
func begin(t *testing.T, stdin io.Reader, args ...string) *running {
	t.Helper()
	r := &running{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(r)
	cmd.SetErr(r)
	cmd.SetIn(stdin)
	go func() {
		defer close(r.done)
		r.code = exitCode(cmd.ExecuteContext(ctx), r)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
		if t.Failed() {
			t.Logf("recast %s:\n%s", strings.Join(args, " "), r.out.String())
		}
	})
	return r
}

const consoleSite = `apiVersion: recast/v1
kind: Network
metadata: {name: loop}
spec: {subnet: 127.0.0.0/24, dhcp: "off"}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: m1}
spec:
  nics: [{mac: "52:54:00:00:00:05", network: loop, ip: 127.0.0.15}]
  bmc: {url: "ipmi://BMC", credentials: rack1-bmc}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: m2}
spec:
  nics: [{mac: "52:54:00:00:00:06", network: loop, ip: 127.0.0.16}]
`

// consolePlace is a server with one machine that has a console.
func consolePlace(t *testing.T) (server *child, data string, machine *testenv.SimMachine) {
	t.Helper()
	machine = &testenv.SimMachine{}
	b, err := testenv.NewIPMI(testenv.IPMIOptions{User: "admin", Password: "pw", Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	data = t.TempDir()
	site := filepath.Join(data, "site.yaml")
	if err := os.WriteFile(site, []byte(strings.ReplaceAll(consoleSite, "BMC", b.Addr())), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RECAST_DATA", data)
	t.Setenv("RECAST_CONFIG_DIR", t.TempDir())
	t.Setenv("RECAST_CONTEXT", "")
	server = startServer(t, data)
	for _, line := range []string{"secret set rack1-bmc", "apply " + site + " --yes"} {
		if text, code := recast(t, strings.NewReader("admin:pw"), strings.Fields(line)...); code != exitOK {
			t.Fatal(text)
		}
	}
	return server, data, machine
}

func TestConsoleIsWatchedByManyAndTypedToByOne(t *testing.T) {
	server, data, machine := consolePlace(t)
	master, slave := pty(t)
	ann := begin(t, slave, "console", "m1")
	await(t, "the line", func() bool { return ann.shows("the console of m1, by IPMI; ~. leaves") })
	machine.Port.Say("login: ")
	await(t, "what the machine says", func() bool { return ann.shows("login: ") })
	typed := func(text string) {
		t.Helper()
		if _, err := master.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	typed("root\r") // the machine echoes
	await(t, "what was typed", func() bool {
		return ann.shows("login: \r\n[recast: the keyboard is yours]\r\nroot\r\n") || ann.shows("root\r\n")
	})
	typed("~B")
	await(t, "a break", func() bool { return machine.Port.Breaks() == 1 })

	// One more watches, from a pipe, and sees what was before.
	bob := begin(t, strings.NewReader(""), "console", "m1")
	await(t, "the scrollback", func() bool { return bob.shows("login: ") && bob.shows("root") && bob.shows("has the keyboard]") })
	// A third may not type while ann does, but can take the keyboard.
	eve := begin(t, strings.NewReader("halt\n"), "console", "m1", "--write")
	<-eve.done
	if eve.code != exitRefused || !eve.shows("somebody else has the keyboard") {
		t.Errorf("eve typed: %d", eve.code)
	}
	eve = begin(t, strings.NewReader("uptime\n"), "console", "m1", "--write", "--take")
	for _, r := range []*running{ann, bob, eve} {
		await(t, "what eve typed", func() bool { return r.shows("uptime\r\n") })
	}
	typed("x")
	await(t, "that ann is told", func() bool { return ann.shows("not typed: somebody else has the keyboard") })
	typed("\r~t")
	await(t, "the keyboard taken back", func() bool {
		ann.mu.Lock()
		defer ann.mu.Unlock()
		return strings.Count(ann.out.String(), "the keyboard is yours") == 2
	})
	typed("date\r")
	await(t, "what ann typed", func() bool { return bob.shows("date\r\n") })

	machine.Port.Say("db password: hunter2\r\nrecast.nonce=canary quiet\r\n")
	await(t, "what is overwritten", func() bool { return bob.shows("db password: *******") && bob.shows("recast.nonce=****** quiet") })
	typed("\r~.")
	<-ann.done
	if ann.code != exitOK || !ann.shows("left the console of m1") {
		t.Errorf("ann left: %d", ann.code)
	}

	// A server that is killed keeps what was said, and its watchers come back.
	server.stop(t, syscall.SIGKILL)
	await(t, "that bob is told", func() bool { return bob.shows("reconnecting") })
	startServer(t, data)
	await(t, "that bob is back", func() bool { return bob.shows("the server is back") })
	text, code := recast(t, nil, "console", "m1", "--log")
	if code != exitOK || !strings.Contains(text, "login: ") || !strings.Contains(text, "date\r\n") || strings.Contains(text, "hunter2") || strings.Contains(text, "canary") {
		t.Errorf("%d %s", code, text)
	}
	if text, _ = recast(t, nil, "get", "audit"); strings.Count(text, "console: keyboard taken") != 3 || !strings.Contains(text, "console: break sent") {
		t.Errorf("audit: %s", text)
	}
}

func TestConsoleSaysWhyThereIsNone(t *testing.T) {
	consolePlace(t)
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"console m2", exitRefused, "console m2: it has no BMC"},
		{"console m3", exitRefused, `no machine "m3"`},
		{"console m1 --watch --write", exitUsage, "types nothing"},
		{"console m1 --for 0s", exitUsage, "want more than 0"},
		{"console m2 --log", exitOK, ""},
		{"console m1 --for 300ms", exitOK, ""},
	} {
		text, code := recast(t, strings.NewReader(""), strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s", c.line, code, text)
		}
	}
}
