package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"recast/inventory"
	"recast/provision"
	"recast/testenv"
)

// What lab up prints last is pasted: each line must be one that a shell and
// recast understand, and what sed looks for must be in the file.
func TestNextCommandsOfALabWorkAsPasted(t *testing.T) {
	for _, f := range []*labFlags{{defaultLabName, defaultLabRoot}, {"second", "/tmp/it's a lab"}} {
		bin := t.TempDir()
		self := filepath.Join(bin, "my tools", "recast")
		if err := os.Mkdir(filepath.Dir(self), 0o755); err != nil {
			t.Fatal(err)
		}
		// Stand-ins print each word that they got on a line of its own.
		script := "#!/bin/sh\nprintf '%s\\n' \"$0\" \"$@\" >>\"$WORDS\"\necho == >>\"$WORDS\"\n"
		for path, script := range map[string]string{self: script, filepath.Join(bin, "sed"): script, filepath.Join(bin, "sudo"): "#!/bin/sh\nexec \"$@\"\n"} {
			if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s := testenv.LabState{LabSettings: testenv.LabSettings{Recast: self}, Machines: []testenv.LabMachine{{Name: "m1"}}}
		lines := nextCommands(f, s)
		if len(lines) != 5 {
			t.Errorf("%d commands: %q", len(lines), lines)
		}
		for _, line := range lines {
			words := filepath.Join(t.TempDir(), "words")
			sh := exec.Command("/bin/sh", "-euc", line)
			sh.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "WORDS=" + words}
			if out, err := sh.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", line, err, out)
			}
			raw, err := os.ReadFile(words)
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range strings.Split(strings.TrimSuffix(string(raw), "==\n"), "==\n") {
				args := strings.Split(strings.TrimSuffix(call, "\n"), "\n")
				switch args[0] {
				case filepath.Join(bin, "sed"):
					if args[1] != "-i" || args[3] != testenv.LabYAML(f.dir()) {
						t.Errorf("%q", args)
					}
				case self:
					cmd, rest, err := newRoot().Find(args[1:])
					if err == nil {
						err = cmd.ParseFlags(rest)
					}
					if err == nil && cmd.Args != nil {
						err = cmd.Args(cmd, cmd.Flags().Args())
					}
					if err != nil || !cmd.Runnable() {
						t.Errorf("%q: %v", args, err)
					}
				default:
					t.Errorf("%q runs %q", line, args[0])
				}
			}
		}
	}
}

func TestLabSaysExactlyWhatIsMissing(t *testing.T) {
	if os.Geteuid() == 0 {
		// As nobody, by a process of its own.
		t.Setenv("PATH", t.TempDir())
	}
	text, code := recast(t, nil, "lab", "up", "--root", t.TempDir())
	if code != exitError || !strings.Contains(text, "a lab needs what is not here:\n") {
		t.Fatalf("%d %s", code, text)
	}
	if os.Geteuid() != 0 && !strings.Contains(text, "run it with sudo") {
		t.Errorf("%s", text)
	}
	if os.Geteuid() == 0 && !strings.Contains(text, "\n  mmdebstrap: apt-get install mmdebstrap") {
		t.Errorf("%s", text)
	}
	for flag, want := range map[string]string{"--os=windows": "want debian or tiny", "--name=../x": "bad name"} {
		if text, code := recast(t, nil, "lab", "up", flag); code != exitUsage || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", flag, code, text)
		}
	}
}

func views() (testenv.LabState, map[string]provision.View) {
	s := testenv.LabState{Machines: []testenv.LabMachine{{Name: "m1", Firmware: "bios", BMC: "ipmi"}, {Name: "m2", Firmware: "uefi", BMC: "redfish"}}}
	return s, map[string]provision.View{
		"m1": {Name: "m1", Status: provision.Status{Machine: "m1", Phase: provision.Deploying, Step: provision.StepWriting,
			Progress: &provision.Progress{Done: 1 << 29, Total: 1 << 30, Rate: 1 << 28}}},
		"m2": {Name: "m2", Waiting: "wave not open", Status: provision.Status{Machine: "m2", Phase: provision.Available}},
	}
}

func TestLabPictureStaysInPlace(t *testing.T) {
	s, v := views()
	var out bytes.Buffer
	n := draw(&out, s, v, 0, 3*time.Second, 100)
	first := out.String()
	if n != 3 || strings.Count(first, "\n") != 3 || strings.Contains(first, "\x1b[3A") ||
		!strings.Contains(first, "50% of 1.0 GiB, 256.0 MiB/s, 2s left") || !strings.Contains(first, "wave not open") {
		t.Errorf("%d %q", n, first)
	}
	out.Reset()
	if draw(&out, s, v, n, 4*time.Second, 100); !strings.HasPrefix(out.String(), "\x1b[3A") || strings.Count(out.String(), "\x1b[2K") != 3 {
		t.Errorf("%q", out.String())
	}
}

func TestLabPictureIsNeverWiderThanTheTerminal(t *testing.T) {
	s, v := views()
	m := v["m1"]
	m.Status.Progress, m.Status.LastError = nil, strings.Repeat("ä very long reason ", 20)
	v["m1"] = m
	var out bytes.Buffer
	draw(&out, s, v, 0, time.Second, 60)
	for l := range strings.Lines(strings.ReplaceAll(out.String(), "\x1b[2K", "")) {
		if n := len([]rune(strings.TrimSuffix(l, "\n"))); n >= 60 {
			t.Errorf("%d columns: %q", n, l)
		}
	}
}

func TestLabLinesAreFew(t *testing.T) {
	_, v := views()
	var out bytes.Buffer
	last := map[string]string{}
	m := v["m1"]
	for done := int64(0); done <= 1<<30; done += 1 << 20 {
		m.Status.Progress = &provision.Progress{Done: done, Total: 1 << 30}
		printLine(&out, m, last)
	}
	if n := strings.Count(out.String(), "\n"); n != 11 {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("not plain: %q", out.String())
	}
}

// A lab that runs is watched; with other settings it is refused.
func TestRunningLabIsNotRebuiltWithOtherSettings(t *testing.T) {
	running := testenv.LabState{LabSettings: testenv.LabSettings{Name: "lab", OS: testenv.OSTiny, Image: inventory.DigestOf(nil)}}
	f := &labFlags{"second", "/tmp/labs"}
	if err := f.same(running, testenv.OSTiny, labShape{}, nil); err != nil {
		t.Error(err)
	}
	if err := f.same(running, testenv.OSDebian, labShape{}, nil); err == nil || !strings.Contains(err.Error(), "recast lab down --name second --root /tmp/labs ends it") || !strings.Contains(err.Error(), "--name") {
		t.Errorf("%v", err)
	}
}

// Ctrl-C in lab up says what goes on, and how to go on.
func TestInterruptedLabSaysHowToGoOn(t *testing.T) {
	root := t.TempDir()
	f := &labFlags{"second", root}
	if err := f.interrupted(); !strings.Contains(err.Error(), "is not built yet; recast lab up --name second --root "+root+" begins again") {
		t.Error(err)
	}
	if err := f.none(); !strings.Contains(err.Error(), `there is no lab "second"; recast lab up --name second`) {
		t.Error(err)
	}
	other := &labFlags{"other", root}
	if err := os.MkdirAll(other.dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	// This process stands for the supervisor: its command line has to name the folder.
	sleep := exec.Command("/bin/sh", "-c", "read x", other.dir())
	if in, err := sleep.StdinPipe(); err != nil {
		t.Fatal(err)
	} else if err := sleep.Start(); err != nil {
		t.Fatal(err)
	} else {
		defer func() { _ = in.Close(); _ = sleep.Wait() }()
	}
	raw := fmt.Appendf(nil, `{"name":"other","os":"tiny","pid":%d}`, sleep.Process.Pid)
	if err := os.WriteFile(filepath.Join(other.dir(), "lab.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, "the supervisor", func() bool { _, alive, _ := testenv.ReadLab(other.dir()); return alive })
	if err := other.interrupted(); !strings.Contains(err.Error(), `lab "other" runs on; recast lab up --name other --root `+root+` --os tiny resumes, recast lab down --name other --root `+root+` clears it`) {
		t.Error(err)
	}
	if err := f.none(); !strings.Contains(err.Error(), "there is --name other") {
		t.Error(err)
	}
}

// Whoever is logged in nowhere asks the lab of this host.
func TestLabIsAskedWhereNoServerIsKnown(t *testing.T) {
	_, data := workplace(t)
	labs := t.TempDir()
	t.Setenv("RECAST_LABS", labs)
	c, err := readContext(filepath.Join(data, localContext))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("RECAST_DATA", t.TempDir())
	f := &labFlags{"lab", labs}
	if err := f.giveContext(c); err != nil {
		t.Fatal(err)
	}
	if text, code := recast(t, nil, "get", "machines"); code != exitOK || !strings.HasPrefix(text, "NAME") {
		t.Errorf("%d %s", code, text)
	}
	second := &labFlags{"second", labs}
	if err := second.giveContext(c); err != nil {
		t.Fatal(err)
	}
	if text, code := recast(t, nil, "get", "machines"); code != exitUsage || !strings.Contains(text, "2 labs are here: name one with --context lab or --context second") {
		t.Errorf("%d %s", code, text)
	}
	for _, context := range []string{second.contextFile(), "second", "lab"} {
		if text, code := recast(t, nil, "get", "machines", "--context", context); code != exitOK {
			t.Errorf("%s: %d %s", context, code, text)
		}
	}
	if text, code := recast(t, nil, "get", "machines", "--context", "third"); code != exitUsage || !strings.Contains(text, `no lab "third"`) {
		t.Errorf("%d %s", code, text)
	}
	// What lab up prints then names the lab.
	s := testenv.LabState{Operator: strings.TrimPrefix(c.URL, "https://"), Machines: []testenv.LabMachine{{Name: "m1"}}}
	for i, line := range nextCommands(second, s)[:4] {
		if strings.Count(line, " --context second ") != 1 {
			t.Errorf("command %d: %s", i, line)
		}
	}
	if err := os.RemoveAll(second.dir()); err != nil {
		t.Fatal(err)
	}
	for i, line := range nextCommands(f, s) {
		if strings.Contains(line, "--context") {
			t.Errorf("command %d: %s", i, line)
		}
	}
}

// A lab whose supervisor ended is neither running nor gone.
func TestLabWithoutItsSupervisorIsDown(t *testing.T) {
	f := &labFlags{"t", t.TempDir()}
	if err := os.MkdirAll(f.dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	raw := fmt.Appendf(nil, `{"name":"t","os":"tiny","pid":%d,"machines":[{"name":"m1"}]}`, ended.Process.Pid)
	if err := os.WriteFile(filepath.Join(f.dir(), "lab.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, output := range []string{"table", "json"} {
		text, code := recast(t, nil, "lab", "status", "--name", "t", "--root", f.root, "-o", output)
		for _, want := range []string{`lab "t" is down`, f.command("up") + " resumes it", f.command("down") + " clears it", "m1"} {
			if code != exitNoServer || !strings.Contains(text, want) {
				t.Errorf("%d, no %q in %s", code, want, text)
			}
		}
		if output == "json" && !strings.Contains(text, `"running": false`) {
			t.Errorf("%s", text)
		}
	}
	if err := f.interrupted(); !strings.Contains(err.Error(), `lab "t" is down; `+f.command("up")+" --os tiny resumes") {
		t.Error(err)
	}
}

// Only what the lab itself filled its disks with is erased unasked.
func TestLabErasesOnlyDisksThatNobodyWrote(t *testing.T) {
	dir := t.TempDir()
	var machines []testenv.LabMachine
	for name, fill := range map[string]byte{"fresh": 0xA5, "active": 0x55} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		machines = append(machines, testenv.LabMachine{Name: name, Disk: path})
	}
	erase, keep, err := labErase(machines)
	if err != nil || len(erase) != 1 || erase[0] != "fresh" || len(keep) != 1 || keep[0] != "active" {
		t.Errorf("erases %q, keeps %q (%v)", erase, keep, err)
	}
	if _, _, err := labErase([]testenv.LabMachine{{Name: "none", Disk: filepath.Join(dir, "none")}}); err == nil {
		t.Error("a disk that cannot be read is decided about")
	}
}

func TestProgressSaysWhatIsDoneWhereTheStepDoesNot(t *testing.T) {
	for want, p := range map[string]provision.Progress{
		"50% of 1.0 GiB, 256.0 MiB/s, 2s left": {Doing: inventory.AgentWriting, Done: 1 << 29, Total: 1 << 30, Rate: 1 << 28},
		"comparing 50% of 1.0 GiB":             {Doing: inventory.AgentComparing, Done: 1 << 29, Total: 1 << 30},
		"-":                                    {},
	} {
		if got := progressText(provision.Status{Step: provision.StepWriting, Progress: &p}, p.At); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What belongs to the caller of lab up is not where root writes, and a link in it
// gives nothing else away.
func TestLabGivesItsCallerNothingBehindALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := &labFlags{"lab", t.TempDir()}
	victim := filepath.Join(t.TempDir(), "shadow")
	if err := errors.Join(os.WriteFile(victim, nil, 0o600), os.MkdirAll(testenv.LabUser(f.dir()), 0o755),
		os.Symlink(victim, testenv.LabYAML(f.dir())), os.Symlink(victim, f.contextFile())); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SUDO_UID", "12345")
	t.Setenv("SUDO_GID", "12345")
	if err := f.giveToCaller(&client{ctx: clientContext{Token: "secret"}}); err != nil {
		t.Fatal(err)
	}
	owner := func(path string) uint32 {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	if raw, err := os.ReadFile(victim); err != nil || len(raw) != 0 || owner(victim) != 0 || owner(f.dir()) != 0 {
		t.Errorf("%q of %d, the lab's folder of %d (%v)", raw, owner(victim), owner(f.dir()), err)
	}
	if owner(f.contextFile()) != 12345 || owner(testenv.LabUser(f.dir())) != 12345 {
		t.Error("the caller cannot use what is his")
	}
	if err := errors.Join(os.Remove(testenv.LabYAML(f.dir())), os.Link(victim, testenv.LabYAML(f.dir()))); err != nil {
		t.Skip("needs hard links between temporary folders")
	}
	if err := f.giveToCaller(&client{ctx: clientContext{Token: "secret"}}); err == nil || owner(victim) != 0 {
		t.Errorf("behind a hard link: owner %d, %v", owner(victim), err)
	}
}
