package bmc_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"recast/bmc"
)

// ipmiSimQEMU is a chassis script whose machine is a real one: on starts QEMU, off ends
// it. A start takes the override, as firmware does. Without a disk there is no start.
const ipmiSimQEMU = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
shift
verb=$1; shift
alive() { [ -s pid ] && grep -q '^State:.[^ZX]' "/proc/$(cat pid)/status" 2>/dev/null; }
while [ $# -gt 0 ]; do
  case "$verb $1" in
    "get power") if alive; then echo power:1; else echo power:0; fi; shift;;
    "get boot") echo "boot:$(cat boot)"; shift;;
    "set power")
      if [ "$2" = 0 ]; then alive && kill -9 "$(cat pid)"; rm -f pid
      elif ! alive; then
        order=c; [ "$(cat boot)" != pxe ] || order=n
        echo none >boot; echo >>starts
        qemu-system-x86_64 -nodefaults -no-user-config -machine pc,graphics=off -accel tcg -m 64 -display none -vga none \
          -serial file:console -drive if=ide,format=raw,file=disk -netdev user,id=n,restrict=on -device virtio-net-pci,netdev=n \
          -boot order=$order -pidfile pid -daemonize >/dev/null 2>&1 </dev/null
      fi
      shift 2;;
    "set boot") echo "$2" >boot; shift 2;;
    "set shutdown") shift 2;;
    *) exit 1;;
  esac
done
`

// TestIPMISimBeforeARealMachine: our client, a BMC that shares no code with it, and a
// machine whose own firmware tells from what it was started.
func TestIPMISimBeforeARealMachine(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64 (apt-get install qemu-system-x86)")
	}
	dir, port := runIPMISim(t, ipmiSimQEMU, "")
	pid := func() int {
		text, _ := os.ReadFile(filepath.Join(dir, "pid"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	runs := func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid()))
		return err == nil && !strings.Contains(string(status), "State:\tZ") // nobody may have asked for its end
	}
	t.Cleanup(func() {
		if runs() {
			_ = syscall.Kill(pid(), syscall.SIGKILL)
		}
	})
	starts := func() int {
		text, _ := os.ReadFile(filepath.Join(dir, "starts"))
		return len(text)
	}
	// A disk that starts, and does nothing more: cli; hlt; jmp back.
	disk := make([]byte, 1<<20)
	copy(disk, []byte{0xfa, 0xf4, 0xeb, 0xfd})
	disk[510], disk[511] = 0x55, 0xaa
	putDisk := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "disk"), disk, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, bmc.Target{URL: fmt.Sprintf("ipmi://127.0.0.1:%d", port), User: user, Password: password, CipherSuite: 3})
	power := func(want bmc.PowerState) {
		t.Helper()
		if got, err := c.Power(within(t, time.Minute)); err != nil || got != want {
			t.Errorf("power %q, %v; want %q", got, err, want)
		}
	}
	await := func(what string, done func() bool) {
		t.Helper()
		end, pause := time.Now().Add(2*time.Minute), time.NewTicker(100*time.Millisecond)
		defer pause.Stop()
		for !done() {
			if <-pause.C; time.Now().After(end) {
				said, _ := os.ReadFile(filepath.Join(dir, "console"))
				t.Fatalf("no %s; the machine said %q", what, said)
			}
		}
	}
	says := func(text string) {
		t.Helper()
		await(text, func() bool {
			said, _ := os.ReadFile(filepath.Join(dir, "console"))
			return strings.Contains(string(said), text)
		})
	}

	power(bmc.PowerOff)
	if err := c.On(within(t, 8*time.Second)); !errors.Is(err, bmc.ErrUnverified) || runs() || starts() != 1 {
		t.Fatalf("on without a disk: %v, runs %v, %d starts; want ErrUnverified and one try", err, runs(), starts())
	}
	putDisk()
	if err := c.On(within(t, time.Minute)); err != nil || !runs() {
		t.Fatalf("on: %v, runs %v", err, runs())
	}
	says("Booting from Hard Disk")
	if err := c.Off(within(t, 5*time.Second), false); !errors.Is(err, bmc.ErrUnverified) || !runs() {
		t.Errorf("a system that is deaf to its button: %v, runs %v", err, runs())
	}
	if err := c.Off(within(t, time.Minute), true); err != nil || runs() {
		t.Fatalf("off: %v, runs %v", err, runs())
	}
	if err := c.SetNextBoot(within(t, time.Minute), bmc.NextBoot{Device: bmc.BootNetwork}); err != nil {
		t.Fatal(err)
	}
	if err := c.On(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	says("iPXE")
	if err := syscall.Kill(pid(), syscall.SIGKILL); err != nil { // behind everybody's back
		t.Fatal(err)
	}
	await("end", func() bool { return !runs() })
	power(bmc.PowerOff)
	if err := c.On(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	says("Booting from Hard Disk") // the override was for one start
	if starts() != 4 {
		t.Errorf("%d starts, want 4: one without a disk, and three", starts())
	}
}
