package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// probeRack is a machine whose disk of 16 MiB probes itself; see testdata/diskprobe.s.
func probeRack(t *testing.T) (*Rack, *QEMU) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range []string{"qemu-system-x86_64", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs " + program + " (make setup)")
		}
	}
	r, err := NewRack(t.Context(), RackOptions{Name: fmt.Sprintf("probe-%d-%d", os.Getpid(), e2eNumber.Add(1)), Dir: t.TempDir(), Machines: []RackMachine{
		{Name: "m1", Firmware: FirmwareBIOS, BMC: BMCNone, MemoryMB: 64, Disks: []RackDisk{{Size: 16 * osMiB}}, NICs: []RackNIC{{NoROM: true}}}}})
	simMust(t, err)
	t.Cleanup(func() { simMust(t, r.Close()) })
	m := r.Node("m1").QEMU
	probe, err := os.ReadFile("testdata/diskprobe.bin")
	simMust(t, err)
	f, err := os.OpenFile(m.Disks[0].Path, os.O_WRONLY, 0)
	simMust(t, err)
	_, err = f.WriteAt(probe, 0)
	simMust(t, err)
	simMust(t, f.Close())
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(m.ConsoleLog())
			t.Logf("console:\n%s", log)
		}
	})
	return r, m
}

func TestQEMUMachineGoesWrongByName(t *testing.T) {
	r, m := probeRack(t)
	ctx := t.Context()
	const good = "[P wrwrwrwrwrwrwrwrwrwrwrwrwrwrwr]"
	console := func() []byte {
		b, err := os.ReadFile(m.ConsoleLog())
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		// SeaBIOS says the end of its own line when it finds the time.
		return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("."), nil), []byte("\r\n"), nil)
	}
	var from int
	mark := func() { from = len(console()) }
	says := func(want string) {
		t.Helper()
		await(t, want, time.Minute, func() bool { return bytes.Contains(console()[from:], []byte(want)) })
	}
	have := func(faults ...string) {
		t.Helper()
		var all []Fault
		for _, text := range faults {
			f, err := ParseFault(text)
			simMust(t, err)
			all = append(all, f)
		}
		simMust(t, r.SetFaults("m1", all))
	}
	key := func() { // what waits for it restarts from inside
		t.Helper()
		c, err := m.DialConsole(ctx)
		simMust(t, err)
		_, err = c.Write([]byte("x"))
		simMust(t, err)
		simMust(t, c.Close())
	}
	ask := func(command string) string {
		m.mu.Lock()
		defer m.mu.Unlock()
		var answer map[string]any
		simMust(t, m.run.qmp.execute(ctx, command, nil, &answer))
		return fmt.Sprint(answer)
	}
	simMust(t, m.PowerOn(ctx))
	says(good)

	// What a disk does changes at once.
	for _, c := range []struct{ fault, want string }{
		{"disk-error=8MiB", "[P wrwrwrwrwrwrwrWrWrWrWrWrWrWrWr]"},
		{"disk-read-error=4MiB", "[P wrwrwrwRwRwRwRwRwRwRwRwRwRwRwR]"},
	} {
		have(c.fault)
		mark()
		key()
		says(c.want)
	}
	have("disk-gone")
	mark()
	key()
	says("could not read the boot disk")
	have()
	mark()
	simMust(t, m.Reset(ctx))
	says(good)

	// What it shows of itself changes with a start.
	have("disk-gone")
	mark()
	simMust(t, m.Reset(ctx))
	says("No bootable device")
	if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.run.cmd.Process.Pid)); err != nil || bytes.Contains(args, []byte("disk0")) {
		t.Errorf("the disk is there: %q, %v", args, err)
	}
	simMust(t, m.SetBootOnce(BootOnce{Device: BootPXE})) // nothing breaks where there is no disk to order
	have("disk-size=6MiB", "disk-error=4MiB")
	mark()
	simMust(t, m.Reset(ctx))
	says("[F wrwrwrWrWrWRWRWRWRWRWRWRWRWRWR]")
	have()
	mark()
	simMust(t, m.Reset(ctx))
	says(good)

	// In mid-write.
	have("power-cut=2KiB")
	mark()
	key()
	await(t, "the power is cut", time.Minute, func() bool { return !m.Powered() })
	if said := string(console()[from:]); !strings.HasSuffix(said, "[P wrwrwr") {
		t.Errorf("the power was cut after %q, want it at the fourth write", said)
	}
	have("reset=2KiB")
	mark()
	simMust(t, m.PowerOn(ctx))
	says(good)
	if said := string(console()[from:]); strings.Count(said, "[P wrwrwr") != 2 || strings.Count(said, good) != 1 {
		t.Errorf("want a start that is cut short, and one more: %s", said)
	}

	// The processor stands still.
	have("restart-hangs=1")
	await(t, "it hangs at a restart", time.Minute, func() bool {
		if strings.Contains(ask("query-status"), "running:false") {
			return true
		}
		key() // one right after a start is still that start
		return false
	})
	mark()
	simMust(t, m.Reset(ctx))
	says(good)
	have("no-boot")
	mark()
	simMust(t, m.Reset(ctx))
	simMust(t, m.PowerOff(ctx))
	simMust(t, m.PowerOn(ctx))
	if status := ask("query-status"); !strings.Contains(status, "running:false") || !m.Powered() || len(console()) != from {
		t.Errorf("a machine that never boots is %s, and says %q", status, console()[from:])
	}
	have()
	simMust(t, m.Reset(ctx))
	says(good)

	own := ask("query-uuid")
	have("swapped-board")
	if m.Powered() {
		t.Error("the board of a machine that is on was swapped")
	}
	simMust(t, m.PowerOn(ctx))
	other := ask("query-uuid")
	have("swapped-board", "link-loss=1")
	if other == own || !m.Powered() {
		t.Errorf("the boards say %s and %s; on: %t", own, other, m.Powered())
	}
	have()
	simMust(t, m.PowerOn(ctx))
	if again := ask("query-uuid"); again != own {
		t.Errorf("its own board says %s, then %s", own, again)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	simMust(t, m.PowerOff(short))
}
