package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
	"recast/pack"
	"recast/testenv"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain lets the test binary be recast itself, for the tests that need a
// process of their own.
func TestMain(m *testing.M) {
	if os.Getenv("RECAST_TEST_MAIN") != "" {
		if dir := os.Getenv(benchProbe); dir != "" {
			answerProbes(dir)
		}
		main()
	}
	os.Exit(m.Run())
}

// disk is a GPT image of n MiB; seed makes it another one.
func disk(t testing.TB, n int, seed uint64) []byte {
	t.Helper()
	size := int64(n) * pack.MiB
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"), []pack.Partition{{
		Type: pack.TypeLinux.String(), GUID: "AAAAAAAA-2222-4333-8444-555555555555", Name: "root",
		Start: pack.MiB, End: size - pack.MiB}})
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	copy(img[size-pack.MiB:], last)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := pack.MiB; i < 2*pack.MiB; i++ {
		img[i] = byte(rng.Uint32())
	}
	return img
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// child is a recast process.
type child struct {
	*exec.Cmd
	log  string // file of its standard error
	done chan struct{}
	err  error
}

// startServer runs recast serve on loopback with its data in dir, and waits
// until its context file is there.
func startServer(t testing.TB, dir string, more ...string) *child {
	t.Helper()
	c := launchServer(t, dir, more...)
	c.serves(t, dir)
	return c
}

// serves waits until the server's context file is there.
func (c *child) serves(t testing.TB, dir string) {
	t.Helper()
	await(t, "the server's context", func() bool {
		select {
		case <-c.done:
			t.Fatalf("the server ended: %v\n%s", c.err, c.text(t))
		default:
		}
		_, err := os.Stat(filepath.Join(dir, localContext))
		return err == nil
	})
}

// launchServer is startServer without the wait.
func launchServer(t testing.TB, dir string, more ...string) *child {
	t.Helper()
	config := filepath.Join(dir, "recast.yaml")
	if _, err := os.Stat(config); err != nil {
		text := fmt.Sprintf("boot: 127.0.0.1:%d\nagent: 127.0.0.1:%d\n", freePort(t), freePort(t))
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, localContext)); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	log, err := os.CreateTemp(dir, "server-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := &child{Cmd: exec.Command(os.Args[0], append([]string{"serve", "--config", config, "--data", dir}, more...)...), log: log.Name(), done: make(chan struct{})}
	c.Env = append(os.Environ(), "RECAST_TEST_MAIN=1")
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.err = c.Wait(); close(c.done) }()
	t.Cleanup(func() { c.stop(t, syscall.SIGKILL) })
	return c
}

func (c *child) text(t testing.TB) string {
	t.Helper()
	raw, err := os.ReadFile(c.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// stop ends the process and gives how it ended.
func (c *child) stop(t testing.TB, sig os.Signal) error {
	t.Helper()
	_ = c.Process.Signal(sig)
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		_ = c.Process.Kill()
		<-c.done
		t.Errorf("the server did not end by %v:\n%s", sig, c.text(t))
	}
	return c.err
}

func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: it did not come", what)
		}
	}
}

// recast runs one command in this process and gives what a person sees.
func recast(t testing.TB, stdin io.Reader, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(stdin)
	code := exitCode(cmd.ExecuteContext(ctx), &out)
	return out.String(), code
}

// workplace is a folder with the files of testdata/site and an image, a server
// whose local context is found, and no context of a user's.
func workplace(t testing.TB) (server *child, data string) {
	t.Helper()
	dir, data := t.TempDir(), t.TempDir()
	img := disk(t, 5, 1)
	site, err := os.ReadFile("testdata/site/site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"disk.img": img, "site.yaml": bytes.ReplaceAll(site, []byte("IMAGE"), []byte(inventory.DigestOf(img)))} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The agent of a simulated machine is this process; only the fetch is real.
	if err := os.Mkdir(filepath.Join(data, "ramdisk"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(data, "ramdisk", name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("RECAST_DATA", data)
	t.Setenv("RECAST_CONFIG_DIR", filepath.Join(dir, "config"))
	t.Setenv("RECAST_CONTEXT", "")
	server = startServer(t, data)
	t.Chdir(dir)
	return server, data
}

// What differs from run to run, and what stands for it.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{regexp.MustCompile(`(?m)^(  )\d\d:\d\d:\d\dZ  `), "${1}TIME  "},
	{regexp.MustCompile(`\b\d+(ms|s|m\d+s) ago`), "AGE ago"},
	{regexp.MustCompile(`\bfor \d+s\b`), "for AGE"},
	{regexp.MustCompile(`(\(\d+ B), in \d+ms`), "$1"}, // told where it took one at all
	{regexp.MustCompile(`127\.0\.0\.1:\d{4,5}`), "SERVER"},
	{regexp.MustCompile(`/tmp/\S*/00\d/`), "DIR/"},
	{regexp.MustCompile(`by [^ @]+@127\.0\.0\.1`), "by WHO"},
	{regexp.MustCompile(`[^ @]+@127\.0\.0\.1`), "WHO"},
	{regexp.MustCompile(`recast serve@\S+`), "recast serve@HOST"},
	{regexp.MustCompile(`(?m)[ ]+$`), ""},
	{regexp.MustCompile(`([^ \n]) {2,}`), "$1  "},
}

var anyDigest = regexp.MustCompile(`\b([0-9a-f]{12})([0-9a-f]{52})?\b`)

// plain replaces what varies. A digest, whole or short, is called by the order
// in which it was first shown, so that the same one has the same name.
func plain(text string, digests map[string]int) string {
	for _, v := range varying {
		text = v.pattern.ReplaceAllString(text, v.with)
	}
	return anyDigest.ReplaceAllStringFunc(text, func(d string) string {
		if digests[d[:12]] == 0 {
			digests[d[:12]] = len(digests) + 1
		}
		return fmt.Sprintf("#%d", digests[d[:12]])
	})
}

// A session is a file of commands, each with what a person sees. Beside recast
// it knows "edit FILE OLD NEW", and "cycle MACHINE SERIAL", which is a person at
// the power button of a simulated machine with one disk. A command that only looks is repeated until it
// shows what it should, since the engine works meanwhile.
func TestSessions(t *testing.T) {
	files, err := filepath.Glob("testdata/sessions/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d sessions, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			golden, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			_, data := workplace(t)
			cycle := powerButtons(t, data)
			var got strings.Builder
			digests := map[string]int{}
			astray := false // nothing behind it is worth waiting for
			for _, step := range regexp.MustCompile(`(?m)^(\$ |# ).*\n`).FindAllString(string(raw), -1) {
				if strings.HasPrefix(step, "#") {
					got.WriteString(step)
					continue
				}
				want := string(raw)
				shown := runStep(t, strings.TrimSpace(step[2:]), cycle, digests, func(shown string) bool {
					return *update || astray || strings.HasPrefix(want[min(len(got.String()), len(want)):], step+shown)
				})
				got.WriteString(step + shown)
				astray = !strings.HasPrefix(want, got.String())
			}
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(raw), got.String()); d != "" {
				t.Errorf("the session went another way (-want +got); where that is meant: go test ./cmd/recast -run TestSessions -update\n%s", d)
			}
		})
	}
}

var quoted = regexp.MustCompile(`'[^']*'|\S+`)

// powerButtons of simulated machines: the first push makes the machine.
func powerButtons(t *testing.T, data string) (cycle func(name, serial string)) {
	t.Helper()
	config, err := os.ReadFile(filepath.Join(data, "recast.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	boot := regexp.MustCompile(`boot: (\S+)`).FindSubmatch(config)[1]
	machines := map[string]*testenv.Simulated{}
	return func(name, serial string) {
		t.Helper()
		m := machines[name]
		if m == nil {
			m, err = testenv.NewSimulated(testenv.SimulatedOptions{Name: name, Dir: t.TempDir(), MAC: inventory.MAC("52:54:00:00:00:" + name[len(name)-2:]),
				UUID: "7265636a-7374-4c61-8b00-0000000000" + name[len(name)-2:], Serial: "SN-" + name, Server: string(boot), Fill: 0xA5,
				Disks: []inventory.DiskID{{Serial: serial, Size: 16 << 20}}, Log: t.Logf})
			if err != nil {
				t.Fatal(err)
			}
			machines[name] = m
			t.Cleanup(func() {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		if err := errors.Join(m.PowerOff(t.Context()), m.PowerOn(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

func runStep(t *testing.T, line string, cycle func(name, serial string), digests map[string]int, right func(string) bool) string {
	t.Helper()
	line, stdin, _ := strings.Cut(line, " <<< ")
	words := quoted.FindAllString(line, -1)
	for i := range words {
		words[i] = strings.Trim(words[i], "'")
	}
	switch words[0] {
	case "edit":
		raw, err := os.ReadFile(words[1])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(raw, []byte(words[2])) {
			t.Fatalf("%s: there is no %q", line, words[2])
		}
		if err := os.WriteFile(words[1], bytes.Replace(raw, []byte(words[2]), []byte(words[3]), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		return ""
	case "cycle":
		cycle(words[1], words[2])
		return ""
	case "recast":
	default:
		t.Fatalf("unknown command %q", line)
	}
	looks := len(words) > 1 && (words[1] == "get" || words[1] == "explain" || words[1] == "describe")
	if looks && *update {
		time.Sleep(1500 * time.Millisecond) // only who writes the file waits: until the engine has looked
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		text, code := recast(t, strings.NewReader(stdin+"\n"), words[1:]...)
		text = plain(text, digests)
		if code != exitOK {
			text += fmt.Sprintf("exit %d\n", code)
		}
		if !looks || right(text) || time.Now().After(deadline) {
			return text
		}
		time.Sleep(20 * time.Millisecond)
	}
}
