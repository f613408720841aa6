package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/store"
	"recast/web"
)

// every command that a person can find, in the order of the help.
func every(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		if !c.Hidden && c.Name() != "help" {
			all = append(all, every(c)...)
		}
	}
	return all
}

// The help is what the docs are made of: one file holds all of it.
func TestHelpIsTheCommittedOne(t *testing.T) {
	root := newRoot()
	root.InitDefaultHelpCmd()
	var got strings.Builder
	for _, c := range every(root) {
		var out bytes.Buffer
		help := newRoot()
		help.SetOut(&out)
		help.SetArgs(append(strings.Fields(c.CommandPath())[1:], "--help"))
		if err := help.Execute(); err != nil {
			t.Fatal(c.CommandPath(), err)
		}
		fmt.Fprintf(&got, "$ %s --help\n%s\n", c.CommandPath(), &out)
		if c.Long == "" && c.Name() != "recast" {
			t.Errorf("%s has no long help", c.CommandPath())
		}
		for l := range strings.Lines(c.Long) {
			if len([]rune(strings.TrimSpace(l))) > 100 {
				t.Errorf("%s: a line of its help is too long: %q", c.CommandPath(), l)
			}
		}
	}
	golden := filepath.Join("testdata", "help.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("the help changed; where that is meant: go test ./cmd/recast -run Help -update\n%s", d)
	}
}

// Every example is a command line that parses.
func TestExamplesParse(t *testing.T) {
	n := 0
	for _, c := range every(newRoot()) {
		for l := range strings.Lines(c.Example) {
			at := example.FindStringIndex(l)
			if at == nil {
				continue
			}
			text := l[at[1]:]
			text, _, _ = strings.Cut(text, " |")
			text, _, _ = strings.Cut(text, ";")
			text, _, _ = strings.Cut(text, " >")
			parses(t, text)
			n++
		}
	}
	if n < 20 {
		t.Errorf("only %d examples", n)
	}
}

// example is where the command's own words begin.
var example = regexp.MustCompile(`(^|&& |\| )\s*recast `)

// parses holds a command line to the commands, without running it.
func parses(t *testing.T, line string) {
	t.Helper()
	var words []string
	for _, w := range quoted.FindAllString(line, -1) {
		words = append(words, strings.Trim(w, "'"))
	}
	root := newRoot()
	cmd, rest, err := root.Find(words)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil && !cmd.Runnable() {
		err = errors.New("it does nothing")
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil {
		t.Errorf("recast %s: %v", line, err)
	}
}

func TestErrorsSayWhatToTryNext(t *testing.T) {
	_, data := workplace(t)
	for _, c := range []struct {
		args  string
		stdin string
		code  int
		want  string
	}{
		{"frobnicate", "", exitUsage, `unknown command "frobnicate" for "recast"`},
		{"freze", "", exitUsage, `unknown command "freze" for "recast"; did you mean "freeze"?`},
		{"completion bsh", "", exitUsage, `unknown command "bsh" for "recast completion"; did you mean "bash"?`},
		{"get machine --wach", "", exitUsage, "unknown flag: --wach; did you mean --watch? see: recast get --help"},
		{"power r1u05 on", "", exitUsage, `unknown command "r1u05" for "recast power"; want one of cycle, off, on, status`},
		{"power on", "", exitUsage, "power on: want MACHINE..., got nothing"},
		{"power on r1u05 --soft", "", exitUsage, "unknown flag: --soft"},
		{"power on r1u05 --rack r1", "", exitUsage, "power on: name machines or a --rack, not both"},
		{"get audit a", "", exitRefused, "recast get audit lists what there is"},
		{"apply empty", "", exitError, "there is no \"empty\" here; want a file, a folder of *.yaml files, or -"},
		{"image frobnicate", "", exitUsage, "want one of add, list, remove, verify"},
		{"image ad", "", exitUsage, `did you mean "add"?`},
		{"get", "", exitUsage, "get: want KIND [NAME], got nothing; see: recast get --help"},
		{"get machine --frob", "", exitUsage, "unknown flag: --frob; see: recast get --help"},
		{"get machin", "", exitUsage, `did you mean "machines"?`},
		{"get machines nobody", "", exitRefused, "recast get machines lists what there is"},
		{"get machines -o xml", "", exitUsage, "want table, wide, json or yaml"},
		{"get networks --watch", "", exitUsage, "only machines can be watched"},
		{"describe rack r1", "", exitUsage, "unknown kind"},
		{"describe nobody", "", exitRefused, "recast get machines lists them"},
		{"describe network nobody", "", exitRefused, "recast get networks lists what there is"},
		{"describe network", "", exitUsage, "describe network: name one; recast get networks lists them"},
		{"describe discovered 52:54:00:00:00:99", "", exitRefused, "recast get discovered lists what there is"},
		{"explain network x", "", exitUsage, "recast explain --help"},
		{"plan nowhere.yaml", "", exitError, "nowhere.yaml"},
		{"plan", "", exitUsage, "see: recast plan --help"},
		{"apply", "", exitUsage, "want files, or --plan DIGEST"},
		{"apply --plan 12", "", exitUsage, "digest"},
		{"plan site.yaml --erase nobody", "", exitRefused, "recast secret set rack1-bmc"},
		{"secret set x", "", exitError, "give its value on standard input"},
		{"secret set Bad_Name", "v", exitRefused, "lower-case letters"},
		{"secret remove x", "", exitRefused, "recast secret list"},
		{"image add nowhere.img", "", exitError, "nowhere.img"},
		{"image add .", "", exitError, "give the image file in it"},
		{"image add site.yaml", "", exitRefused, "not a disk image but text"},
		{"image add http://example.invalid/x", "", exitRefused, "https"},
		{"image add disk.img --digest sha256:12", "", exitUsage, "digest"},
		{"get discovered 52:54:00:00:00:99 -o wide", "", exitRefused, "recast get discovered lists what there is"},
		{"explain r1u05 --lines -4", "", exitUsage, "explain --lines -4: want 0 or more"},
		{"hold r1u05 --for -5m", "", exitUsage, "hold --for -5m0s: want more than 0"},
		{"hold r1u05 --for 0s", "", exitUsage, "want more than 0"},
		{"plan site.yaml --erase=", "", exitUsage, "--erase: an empty name"},
		{"apply site.yaml --erase r1u05, --yes", "", exitUsage, "--erase: an empty name"},
		{"rollback rack1-compute --to ffff", "", exitRefused, `generation "ffff": there is none; recast get generations`},
		{"image verify ffff", "", exitRefused, "recast get images lists them"},
		{"image verify ff", "", exitError, "at least 4 digits"},
		{"--context nobody get machines", "", exitUsage, "recast login --list"},
		{"--context ./nowhere.json get machines", "", exitUsage, "nowhere.json"},
		{"login", "", exitUsage, "recast login --help"},
		{"login http://x", "", exitUsage, "want https://host:port"},
		{"login https://127.0.0.1:1", "", exitNoServer, "is the server running?"},
		{"login --use nobody", "", exitUsage, "recast login --list"},
		{"serve --config nowhere.yaml", "", exitUsage, "nowhere.yaml"},
		{"store backup x --data " + data, "", exitError, "stop"},
		{"store restore nowhere", "", exitError, "nowhere"},
		{"store copy nowhere.db else.db", "", exitError, "nowhere.db"},
		{"store", "", exitOK, "Available Commands"},
		{"ramdisk build", "", exitUsage, "--kernel"},
		{"lab status --root nowhere", "", exitError, "recast lab up"},
		{"help exit-codes", "", exitOK, "Scripts may rely on these exit codes"},
	} {
		text, code := recast(t, strings.NewReader(c.stdin), strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("recast %s: exit %d, want %d with %q:\n%s", c.args, code, c.code, c.want, text)
		}
		if strings.Contains(text, "\n\n") && code != exitOK {
			t.Errorf("recast %s: more than a line:\n%s", c.args, text)
		}
	}
}

func TestNoServerIsSaidSo(t *testing.T) {
	t.Setenv("RECAST_LABS", t.TempDir())
	t.Setenv("RECAST_DATA", t.TempDir())
	t.Setenv("RECAST_CONFIG_DIR", t.TempDir())
	t.Setenv("RECAST_CONTEXT", "")
	text, code := recast(t, strings.NewReader(""), "get", "machines")
	if code != exitUsage || !strings.Contains(text, "recast login URL") {
		t.Errorf("%d %s", code, text)
	}
	if text, code := recast(t, strings.NewReader(""), "version"); code != exitOK || text != "recast dev\n" {
		t.Errorf("%d %s", code, text)
	}
}

func TestCompletionNamesMachines(t *testing.T) {
	workplace(t)
	for _, line := range []string{"secret set rack1-bmc", "image add disk.img", "freeze", "apply site.yaml --yes"} {
		if text, code := recast(t, strings.NewReader("admin:pw"), strings.Fields(line)...); code != exitOK {
			t.Fatalf("%s: %s", line, text)
		}
	}
	for line, want := range map[string]string{
		"hold ":              "r1u05 r1u06",
		"hold r1u05 ":        "r1u06",
		"describe network ":  "loop",
		"get group ":         "rack1",
		"get mach":           "machines",
		"rollback ":          "rack1",
		"power on r1u06 ":    "r1u05",
		"explain r1u0":       "r1u05 r1u06",
		"describe r1u06":     "r1u06",
		"get definition com": "compute",
	} {
		words := strings.Split(line, " ")
		text, _ := recast(t, strings.NewReader(""), append([]string{"__complete"}, words...)...)
		for _, w := range strings.Fields(want) {
			if !strings.Contains("\n"+text, "\n"+w+"\n") {
				t.Errorf("%q: no %q in %q", line, w, text)
			}
		}
		if line == "hold r1u05 " && strings.Contains(text, "r1u05") {
			t.Errorf("%q names it again: %q", line, text)
		}
	}
	if text, code := recast(t, nil, "completion", "bash"); code != exitOK || !strings.Contains(text, "__complete") {
		t.Errorf("completion: %d, %d bytes", code, len(text))
	}
}

func TestStoreIsBackedUpRestoredAndCopied(t *testing.T) {
	dir := t.TempDir()
	data, other := filepath.Join(dir, "data"), filepath.Join(dir, "other")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenBolt(filepath.Join(data, "recast.db"), store.BoltOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), store.Op{Key: "/a", Value: []byte("1")}, store.Op{Key: "/b", Value: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	epoch := s.Epoch()
	backup := filepath.Join(dir, "backup")
	run := func(want int, args ...string) string {
		t.Helper()
		text, code := recast(t, strings.NewReader(""), append([]string{"store"}, args...)...)
		if code != want {
			t.Errorf("store %q: %d %s", args, code, text)
		}
		return text
	}
	// A server holds the file.
	run(exitError, "backup", backup, "--data", data)
	if _, err := os.Stat(backup); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if text := run(exitOK, "backup", backup, "--data", data); text != "2 records\n" {
		t.Errorf("%q", text)
	}
	if st, err := os.Stat(backup); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if text := run(exitError, "backup", backup, "--data", data); !strings.Contains(text, "does not exist yet") {
		t.Errorf("%q", text)
	}
	run(exitOK, "restore", backup, "--data", other)
	if text := run(exitError, "restore", backup, "--data", other); !strings.Contains(text, "move it away first") {
		t.Errorf("%q", text)
	}
	copied := filepath.Join(dir, "copied.db")
	run(exitOK, "copy", filepath.Join(other, "recast.db"), copied)
	for _, file := range []string{filepath.Join(other, "recast.db"), copied} {
		s, err := store.OpenBolt(file, store.BoltOptions{MustExist: true})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(t.Context(), "/b")
		if err != nil || string(r.Value) != "2" || s.Epoch() == epoch {
			t.Errorf("%s: %v %v epoch %s", file, r, err, s.Epoch())
		}
		log, _, err := s.List(t.Context(), "/recast/audit/")
		if err != nil || len(log) == 0 || !strings.Contains(string(log[0].Value), `"what":"store restore"`) {
			t.Errorf("%s: the audit log is %v, %v", file, log, err)
		}
		s.Close()
	}
}

func TestConfigurationIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"dat: /x":                         `recast.yaml:1: dat: unknown field; did you mean "data"?`,
		"boot: :80\nimages: {maxsise: 1}": `recast.yaml:2: images.maxsise: unknown field; did you mean "maxSize"?`,
		"images: {maxSize: 64}":           `recast.yaml:1: images.maxSize: bad value "64"; want a size such as 64GiB`,
		"softOff: 30":                     `recast.yaml:1: softOff: bad value "30"; want a duration such as 30s or 2m`,
		"watchBMCs: 1s":                   `recast.yaml:1: watchBMCs: 1s is out of bounds; want 10s to 24h, or 0s for never`,
		"softOff: 2h":                     `recast.yaml:1: softOff: 2h0m0s is out of bounds; want 0s to 1h`,
		"boot: 8080":                      `recast.yaml:1: boot: address "8080": want [host]:port`,
		"agent: :99999":                   `recast.yaml:1: agent: address ":99999": the port must be 1-65535`,
		"agent: :8080":                    `recast.yaml:1: agent: boot and agent are both ":8080"; give them two ports`,
		"log: {level: loud}":              `recast.yaml:1: log.level: unknown level "loud"; want debug, info, warn or error`,
		"data: /a\ndata: /b":              `recast.yaml:2: data: it is set twice; remove this or line 1`,
		"data: here":                      `recast.yaml:1: data: "here" is no absolute path; name a folder, such as /var/lib/recast`,
		"- a":                             `recast.yaml:1: want fields with values here`,
		"store: {endpoints: x}":           `recast.yaml:1: store.endpoints: bad value "x"; want a list of texts`,
		"a: 1\nb: 2":                      "recast.yaml:1: a: unknown field; ",
	} {
		_, err := parseConfig("recast.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
	c, err := parseConfig("recast.yaml", []byte("images: {maxSize: 1.5TiB}\nsoftOff: 1m\nstore: {endpoints: [\"https://a:2379\"]}\nlog:\n"))
	if err != nil || c.Images.MaxSize != 3<<39 || c.SoftOff != time.Minute || len(c.Store.Endpoints) != 1 || c.Log.Level != "info" {
		t.Errorf("%+v %v", c, err)
	}
	if c, err := parseConfig("recast.yaml", nil); err != nil || c.Data != defaultData {
		t.Errorf("%+v %v", c, err)
	}
}

// What --print-config shows is a configuration.
func TestPrintedConfigurationReadsBack(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "recast.yaml")
	if err := os.WriteFile(file, []byte("images: {maxSize: 100GiB}\ndata: /srv/x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	text, code := recast(t, nil, "serve", "--config", file, "--print-config")
	if code != exitOK || !strings.Contains(text, "maxSize: 100GiB") {
		t.Fatalf("%d %s", code, text)
	}
	first, err := readConfig(file, true)
	if err != nil {
		t.Fatal(err)
	}
	second, err := parseConfig("printed", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	second.Store.Endpoints = nil // an empty list, printed
	if d := cmp.Diff(first, second); d != "" {
		t.Error(d)
	}
}

func TestImageProgressSaysBytesRateAndTimeLeft(t *testing.T) {
	for _, c := range []struct {
		n, total int64
		took     time.Duration
		want     string
	}{
		{1 << 20, 0, 0, "1.0 MiB"},
		{1 << 30, 4 << 30, 10 * time.Second, "25% of 4.0 GiB, 102.4 MiB/s, 30s left"},
		{4 << 30, 4 << 30, 10 * time.Second, "100% of 4.0 GiB, 409.6 MiB/s"},
		{3 << 20, 0, 2 * time.Second, "3.0 MiB, 1.5 MiB/s"},
	} {
		if got := progressLine(c.n, c.total, c.took); got != c.want {
			t.Errorf("%d of %d in %s: %q, want %q", c.n, c.total, c.took, got, c.want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("images: {maxSize: 100GiB}\nlog: {level: debug}\n"))
	f.Add([]byte("store:\n  endpoints: [a, *b]\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := parseConfig("fuzz", raw)
		if err != nil {
			if _, ok := inventory.ProblemsOf(err); !ok {
				t.Errorf("no list of problems: %v", err)
			}
		}
	})
}

// README is the first thing that people paste from: its commands parse, it names
// every verb, and its exit codes are those of the help.
func TestReadmeIsTrue(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	text, n := string(raw), 0
	for _, m := range regexp.MustCompile(`(?m)^(?:\$ |sudo )(?:bin/)?recast ([^#<\n]*)`).FindAllStringSubmatch(text, -1) {
		parses(t, strings.TrimSpace(m[1]))
		n++
	}
	if n < 7 {
		t.Errorf("only %d commands", n)
	}
	for _, m := range regexp.MustCompile("`(?:sudo )?(?:bin/)?recast ([^`]*)`").FindAllStringSubmatch(text, -1) {
		parses(t, strings.Join(strings.Fields(m[1]), " "))
	}
	for _, c := range newRoot().Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && !strings.Contains(text, "`"+c.Name()+"`") {
			t.Errorf("README does not name %s", c.Name())
		}
	}
	codes := newExitCodes().Long
	for _, m := range regexp.MustCompile(`(?m)^\| (\d) \| (.*) \|$`).FindAllStringSubmatch(text, -1) {
		if want := m[1] + "  " + strings.ReplaceAll(m[2], "`", ""); !strings.Contains(codes, want) {
			t.Errorf("README says %q, recast help exit-codes does not", want)
		}
	}
	if !strings.Contains(text, fmt.Sprintf("| %d | no server answers |", exitNoServer)) {
		t.Error("README does not say every exit code")
	}
}

func TestANetworkIsDescribedWithItsMalformedPackets(t *testing.T) {
	var out bytes.Buffer
	printNetwork(&out, &inventory.Network{Name: "rack1"}, nil, web.StatusReply{Malformed: map[string]uint64{"DHCP: short": 1, "DHCP: options": 3}})
	_, got, _ := strings.Cut(out.String(), "Malformed:")
	if want := "        3 on all networks since the server's start: DHCP: options\n" +
		"Malformed:        1 on all networks since the server's start: DHCP: short\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestANetworkIsDescribedWithItsOwnFindings(t *testing.T) {
	var out bytes.Buffer
	printNetwork(&out, &inventory.Network{Name: "rack1"}, nil, web.StatusReply{Findings: []string{`network "rack1": a`, `network "rack1-v6": b`, "dhcp: c"}})
	if got := out.String(); !strings.Contains(got, "rack1\": a") || strings.Contains(got, "rack1-v6") || !strings.Contains(got, "dhcp: c") {
		t.Error(got)
	}
}

// What a reader in another zone, and one who greps logs, must not guess.
func TestTimesNameTheirZone(t *testing.T) {
	at := time.Date(2026, 3, 1, 0, 30, 0, 0, time.FixedZone("", 3600))
	if got := clock(at) + " " + dateClock(at); got != "23:30:00Z 2026-02-28 23:30:00Z" {
		t.Error(got)
	}
}
