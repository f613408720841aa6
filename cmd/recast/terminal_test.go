package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// eof is ctrl-D: the end of input at the start of a line, else the end of what
// was typed so far.
const eof = "\x04"

// pty is a terminal: what is written to the master is typed.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/ptmx (%v)", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skipf("needs a pseudo terminal (%v)", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestApplyOnATerminalShowsThePlanAndAsks(t *testing.T) {
	workplace(t)
	for _, line := range []string{"secret set rack1-bmc", "freeze"} {
		if text, code := recast(t, strings.NewReader("admin:pw"), strings.Fields(line)...); code != exitOK {
			t.Fatal(text)
		}
	}
	for _, c := range []struct {
		typed string
		code  int
		want  string
	}{
		{"no\n", exitError, "not applied"},
		{"y\n", exitError, "not applied"},
		{"\n", exitError, "not applied"},
		{eof, exitError, "not applied"},
		{"yes" + eof + eof, exitError, "not applied"}, // nobody pressed enter
		{"yes\n", exitOK, "Applied"},
	} {
		master, slave := pty(t)
		if _, err := master.WriteString(c.typed); err != nil {
			t.Fatal(err)
		}
		text, code := recast(t, slave, "apply", "site.yaml")
		if code != c.code || !strings.Contains(text, `Apply this plan? Only "yes" is a yes: `) || !strings.Contains(text, "\nPlan sha256:") || !strings.Contains(text, c.want) {
			t.Errorf("%q: %d %s", c.typed, code, text)
		}
	}
}

// Nothing but the serial itself, with enter behind it, erases a disk.
func TestWipeOnATerminalAsksForTheSerial(t *testing.T) {
	_, data := workplace(t)
	cycle := powerButtons(t, data)
	for _, line := range []string{"secret set rack1-bmc", "apply site.yaml --yes", "inspect r1u06"} {
		if text, code := recast(t, strings.NewReader("admin:pw"), strings.Fields(line)...); code != exitOK {
			t.Fatal(text)
		}
	}
	cycle("r1u06", "DISK-6")
	await(t, "the inventory", func() bool {
		text, _ := recast(t, nil, "get", "machines", "r1u06")
		return strings.Contains(text, "available")
	})
	wipe := func(typed string, hangup bool) (string, int) {
		t.Helper()
		master, slave := pty(t)
		if _, err := master.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		if hangup {
			master.Close()
		}
		return recast(t, slave, "wipe", "r1u06")
	}
	wiped := func() int {
		t.Helper()
		text, code := recast(t, nil, "get", "audit")
		if code != exitOK {
			t.Fatal(text)
		}
		return strings.Count(text, "wipe")
	}
	for _, c := range []struct {
		typed string
		code  int
		want  string
	}{
		{"DISK-5\n", exitRefused, `no disk is "DISK-5"`},
		{"disk-6\n", exitRefused, `no disk is "disk-6"`},
		{"yes\n", exitRefused, `no disk is "yes"`},
		{"\n", exitError, "not wiped"},
		{eof, exitError, "not wiped"},
		{"DISK-6" + eof + eof, exitError, "not wiped"}, // nobody pressed enter
	} {
		text, code := wipe(c.typed, false)
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%q: %d %s", c.typed, code, text)
		}
		for _, shown := range []string{"r1u06, available", "serial DISK-6", "EVERY BYTE of the disk will be zeroed", "Type the serial of the disk to erase: "} {
			if !strings.Contains(text, shown) {
				t.Errorf("%q: %q is not shown:\n%s", c.typed, shown, text)
			}
		}
	}
	// A terminal whose window is closed takes what was typed with it.
	if text, code := wipe("DISK-6", true); code == exitOK || strings.Contains(text, "will be wiped") {
		t.Errorf("hung up: %d %s", code, text)
	}
	if n := wiped(); n > 0 {
		t.Fatalf("%d wipes are in the audit log", n)
	}
	text, code := wipe("DISK-6\n", false)
	if code != exitOK || !strings.Contains(text, "r1u06: will be wiped: serial DISK-6") || wiped() != 1 {
		t.Errorf("%d %s", code, text)
	}
}
