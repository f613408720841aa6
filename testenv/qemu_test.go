package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// qemuForTest makes one machine on a Net of its own, with a copy of the image as disk.
func qemuForTest(t *testing.T, firmware QEMUFirmware, bus DiskBus) *QEMU {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64 (apt-get install qemu-system-x86)")
	}
	if _, err := os.Stat(qemuOVMFCode); err != nil && firmware == FirmwareUEFI {
		t.Skip("needs OVMF (apt-get install ovmf)")
	}
	n := netnsForTest(t)
	if err := n.AddTap("tap0"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk0.img")
	data, err := os.ReadFile(osForTest(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, data, 0o644); err != nil {
		t.Fatal(err)
	}
	m := &QEMU{
		Name: "m1", Firmware: firmware, MemoryMB: 512, Dir: dir, Net: n,
		UUID: "5a0fa2a1-3a33-4f1d-9d3c-000000000001", Serial: "RC,0001",
		Disks: []QEMUDisk{{Path: disk, Serial: "DISK-0001", Bus: bus}},
		NICs:  []QEMUNIC{{MAC: "52:54:00:00:00:05", Tap: "tap0"}},
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.PowerOff(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(m.ConsoleLog())
			t.Logf("console:\n%s", log)
		}
	})
	return m
}

// awaitConsole waits until the console said text n times in all.
func awaitConsole(t *testing.T, m *QEMU, text string, n int, within time.Duration) string {
	t.Helper()
	start := time.Now()
	for {
		log, err := os.ReadFile(m.ConsoleLog())
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Count(log, []byte(text)) >= n {
			t.Logf("%q after %v", text, time.Since(start).Round(time.Second/10))
			last := string(log[bytes.LastIndex(log, []byte(text)):])
			line, _, _ := strings.Cut(last, "\n")
			return strings.TrimSpace(line)
		}
		if time.Since(start) > within {
			t.Fatalf("%q was not on the console %d times within %v", text, n, within)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestTinyBootsFromDisk(t *testing.T) {
	for _, firmware := range []QEMUFirmware{FirmwareBIOS, FirmwareUEFI} {
		t.Run(string(firmware), func(t *testing.T) {
			m := qemuForTest(t, firmware, BusAHCI)
			if m.Powered() {
				t.Fatal("powered before PowerOn")
			}
			if err := m.PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
			line := awaitConsole(t, m, "recast-tiny: machine=", 1, 3*time.Minute)
			for _, want := range []string{"variant=test", fmt.Sprintf("firmware=%s", firmware)} {
				if !strings.Contains(line, want) {
					t.Errorf("%q does not hold %q", line, want)
				}
			}
		})
	}
}
