package testenv

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"recast/inventory"
	"recast/target"
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
	if err := n.AddTap("tap0", NetBridge); err != nil {
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

// awaitConsole waits until the console said text n times in all, and is the rest of
// the last line with it, which it waits for a second at most: a prompt has no end.
func awaitConsole(t *testing.T, m *QEMU, text string, n int, within time.Duration) string {
	t.Helper()
	start := time.Now()
	var said time.Time
	for {
		log, err := os.ReadFile(m.ConsoleLog())
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Count(log, []byte(text)) >= n {
			if said.IsZero() {
				said = time.Now()
			}
			last := string(log[bytes.LastIndex(log, []byte(text)):])
			if line, _, whole := strings.Cut(last, "\n"); whole || time.Since(said) > time.Second {
				t.Logf("%q after %v", text, said.Sub(start).Round(time.Second/10))
				return strings.TrimSpace(line)
			}
		} else if time.Since(start) > within {
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
			running, err := m.BlockStats(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// Most of the image was read, and a read-only root writes nothing.
			if s := running[0]; s.ReadBytes < 8*osMiB || s.WriteBytes != 0 {
				t.Errorf("disk counters %+v, want 8 MiB read or more, and nothing written", s)
			}
			if err := m.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			await(t, "power off after the button", time.Minute, func() bool { return !m.Powered() })
			off, err := m.BlockStats(t.Context())
			if err != nil || off[0].ReadBytes < running[0].ReadBytes {
				t.Errorf("counters of a machine that went off by itself: %+v, %v; want at least %+v", off, err, running)
			}
			if err := m.Reset(t.Context()); err == nil {
				t.Error("reset of a machine that is off: no error")
			}
			if err := m.Shutdown(t.Context()); err != nil {
				t.Errorf("shutdown of a machine that is off: %v", err)
			}
			if err := m.PowerOff(t.Context()); err != nil {
				t.Errorf("power off of a machine that is off: %v", err)
			}
		})
	}
}

// TestTinyReadsItsConfigVolume puts a rendered volume where the ramdisk puts it:
// in a partition of its own at the end of a larger disk.
func TestTinyReadsItsConfigVolume(t *testing.T) {
	m := qemuForTest(t, FirmwareBIOS, BusVirtio)
	generation := inventory.DigestOf([]byte("generation"))
	volume, err := target.Render(target.Input{
		Rendered: inventory.Rendered{Machine: "r1u05", Generation: generation, Digest: inventory.DigestOf([]byte("rendered")),
			UserData: "#!/bin/sh\necho user data on $(hostname)\n"},
		Format: inventory.ConfigCloudInit, Image: osForTest(t).Digest, Attempt: 1,
		Machine: &inventory.Machine{Name: "r1u05", NICs: []inventory.NIC{{MAC: "52:54:00:00:00:05"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	disk := m.Disks[0].Path
	const size = 128 * osMiB
	start := int64(size - osMiB - len(volume.Bytes))
	if err := os.Truncate(disk, size); err != nil {
		t.Fatal(err)
	}
	if err := osRun(t.Context(), "sgdisk", "-e", fmt.Sprintf("--new=4:%d:%d", start/osSector, (start+int64(len(volume.Bytes)))/osSector-1),
		"--typecode=4:0700", "--change-name=4:"+volume.Label, disk); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(volume.Bytes, start); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	line := awaitConsole(t, m, "recast-tiny: machine=", 1, 3*time.Minute)
	for _, want := range []string{"machine=r1u05 ", "generation=" + generation.String() + " ", "hostname=r1u05 "} {
		if !strings.Contains(line, want) {
			t.Errorf("%q does not hold %q", line, want)
		}
	}
	awaitConsole(t, m, "user data on r1u05", 1, 2*time.Minute)
}

// await waits for a condition that nobody announces.
func await(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > within {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%s after %v", what, time.Since(start).Round(time.Second/10))
}

// pxeCount counts the DISCOVERs that firmware sends on the Net; the installed
// system's name another vendor class.
func pxeCount(t *testing.T, n *Net) *atomic.Int32 {
	t.Helper()
	var conn net.PacketConn
	if err := n.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", ":67")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var count atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 2048)
		for {
			size, _, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if bytes.Contains(packet[:size], []byte("PXEClient")) {
				count.Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &count
}

func TestBootOnceGoesToTheNetworkOnce(t *testing.T) {
	for _, firmware := range []QEMUFirmware{FirmwareBIOS, FirmwareUEFI} {
		t.Run(string(firmware), func(t *testing.T) {
			m := qemuForTest(t, firmware, BusAHCI)
			pxe := pxeCount(t, m.Net)
			ctx := t.Context()
			network := BootOnce{Device: BootPXE, UEFI: m.UEFI()}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}

			// Stored while off, consumed by the power.
			must(m.SetBootOnce(network))
			if got := m.BootOnce(); got != network {
				t.Fatalf("override %v, want %v", got, network)
			}
			must(m.PowerOn(ctx))
			if got := m.BootOnce(); got != (BootOnce{}) {
				t.Fatalf("override after power on: %v, want none", got)
			}
			await(t, "network boot after power on", time.Minute, func() bool { return pxe.Load() > 0 })

			// The start after it follows the machine's own order.
			must(m.Reset(ctx))
			before := pxe.Load()
			awaitConsole(t, m, "recast-tiny: machine=", 1, 2*time.Minute)
			if pxe.Load() != before {
				t.Errorf("the start after the override went to the network")
			}

			// Stored while running, consumed by the reset.
			must(m.SetBootOnce(network))
			must(m.Reset(ctx))
			if got := m.BootOnce(); got != (BootOnce{}) {
				t.Errorf("override after reset: %v, want none", got)
			}
			await(t, "network boot after reset", time.Minute, func() bool { return pxe.Load() > before })

			// UEFI firmware lacks the other mode: consumed, not obeyed. A BIOS does not
			// look at the mode, and gets none here.
			if m.UEFI() {
				must(m.SetBootOnce(BootOnce{Device: BootPXE}))
			}
			must(m.Reset(ctx))
			if got := m.BootOnce(); got != (BootOnce{}) {
				t.Errorf("override after another reset: %v, want none", got)
			}
			before = pxe.Load()
			awaitConsole(t, m, "recast-tiny: machine=", 2, 2*time.Minute)
			if pxe.Load() != before {
				t.Errorf("the start went to the network without an override that it may obey")
			}
		})
	}
}
