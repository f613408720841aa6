package testenv

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// ipmiBMC starts a virtual BMC before a machine of the test's own.
func ipmiBMC(t *testing.T, machine Machine, o IPMIOptions) *IPMIBMC {
	t.Helper()
	o.Machine, o.User, o.Password = machine, "admin", "secret"
	b, err := NewIPMI(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// ipmiTool runs Debian's client, which shares no code with the server.
func ipmiTool(t *testing.T, b *IPMIBMC, suite, password string, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("ipmitool")
	if err != nil {
		t.Skip("needs ipmitool (apt-get install ipmitool)")
	}
	host, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	base := []string{"-I", "lanplus", "-H", host, "-p", port, "-U", "admin", "-P", password, "-C", suite, "-N", "1", "-R", "2"}
	out, err := exec.CommandContext(ctx, tool, append(base, args...)...).CombinedOutput()
	return string(out), err
}

func TestIpmitoolSwitchesTheMachine(t *testing.T) {
	for _, suite := range []string{"17", "3"} {
		t.Run("suite "+suite, func(t *testing.T) {
			machine := &SimMachine{Firmware: true}
			b := ipmiBMC(t, machine, IPMIOptions{})
			run := func(want string, args ...string) {
				t.Helper()
				out, err := ipmiTool(t, b, suite, "secret", args...)
				if err != nil || !strings.Contains(out, want) {
					t.Fatalf("ipmitool %v: %v, output %q lacks %q", args, err, out, want)
				}
			}
			run("IP Address              : 127.0.0.1", "lan", "print", "1")
			run("Chassis Power is off", "chassis", "power", "status")
			run("Set Boot Device to pxe", "chassis", "bootdev", "pxe", "options=efiboot")
			run("Boot Flag Valid", "chassis", "bootparam", "get", "5")
			run("BIOS EFI boot", "chassis", "bootparam", "get", "5")
			run("Force PXE", "chassis", "bootparam", "get", "5")
			if got, want := machine.BootOnce(), (BootOnce{Device: BootPXE, UEFI: true}); got != want {
				t.Fatalf("override %v, want %v", got, want)
			}
			run("Up/On", "chassis", "power", "on")
			run("Chassis Power is on", "chassis", "power", "status")
			run("Boot Flag Invalid", "chassis", "bootparam", "get", "5")
			run("Reset", "chassis", "power", "reset")
			run("Down/Off", "chassis", "power", "off")
			starts := machine.Starts()
			if len(starts) != 2 || starts[0] != (BootOnce{Device: BootPXE, UEFI: true}) || starts[1] != (BootOnce{}) {
				t.Fatalf("starts %v: want pxe once, then the machine's own order", starts)
			}
			if out, err := ipmiTool(t, b, suite, "secret", "chassis", "power", "cycle"); err == nil {
				t.Errorf("a cycle of a machine that is off went through: %q", out)
			}
			run("Up/On", "chassis", "power", "on")
		})
	}
}

func TestIpmitoolIsRefusedWithAWrongPassword(t *testing.T) {
	b := ipmiBMC(t, &SimMachine{}, IPMIOptions{})
	out, err := ipmiTool(t, b, "17", "wrong", "chassis", "power", "on")
	if err == nil {
		t.Fatalf("went through: %q", out)
	}
	if b.Done("power-on") != 0 {
		t.Error("the machine was switched")
	}
	if b.Count("login") == 0 {
		t.Error("the login was not recorded")
	}
}

func TestOnlyOfferedSuitesAreAccepted(t *testing.T) {
	b := ipmiBMC(t, &SimMachine{}, IPMIOptions{Suites: []int{17}})
	if out, err := ipmiTool(t, b, "3", "secret", "chassis", "power", "status"); err == nil {
		t.Errorf("suite 3 was accepted: %q", out)
	}
	if out, err := ipmiTool(t, b, "17", "secret", "chassis", "power", "status"); err != nil {
		t.Errorf("suite 17: %v: %q", err, out)
	}
	// Suite 0 is the one without authentication.
	if out, err := ipmiTool(t, b, "0", "secret", "chassis", "power", "on"); err == nil {
		t.Errorf("suite 0 was accepted: %q", out)
	}
}

func TestIpmitoolSeesFaults(t *testing.T) {
	t.Run("ignored power", func(t *testing.T) {
		b := ipmiBMC(t, &SimMachine{}, IPMIOptions{Faults: BMCFaults{IgnorePower: true}})
		if out, err := ipmiTool(t, b, "17", "secret", "chassis", "power", "on"); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		out, _ := ipmiTool(t, b, "17", "secret", "chassis", "power", "status")
		if !strings.Contains(out, "is off") {
			t.Errorf("status %q, want off", out)
		}
	})
	t.Run("expired override", func(t *testing.T) {
		machine := &SimMachine{}
		b := ipmiBMC(t, machine, IPMIOptions{Faults: BMCFaults{BootExpiry: time.Nanosecond, RejectParam3: true}})
		if out, err := ipmiTool(t, b, "17", "secret", "raw", "0x00", "0x08", "0x05", "0x80", "0x04", "0", "0", "0"); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		out, _ := ipmiTool(t, b, "17", "secret", "chassis", "bootparam", "get", "5")
		if !strings.Contains(out, "Boot Flag Invalid") {
			t.Errorf("override outlived its time: %q", out)
		}
	})
}

func TestFreeIPMISwitchesTheMachine(t *testing.T) {
	tool, err := exec.LookPath("ipmipower")
	if err != nil {
		t.Skip("needs ipmipower (apt-get install freeipmi-tools)")
	}
	machine := &SimMachine{}
	b := ipmiBMC(t, machine, IPMIOptions{})
	for _, suite := range []string{"3", "17"} {
		for _, step := range []struct{ arg, want string }{
			{"--stat", "off"}, {"--on", "ok"}, {"--stat", "on"}, {"--off", "ok"}, {"--stat", "off"},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			out, err := exec.CommandContext(ctx, tool, "-D", "LAN_2_0", "-I", suite, "-h", b.Addr(),
				"-u", "admin", "-p", "secret", "-l", "ADMIN", step.arg).CombinedOutput()
			cancel()
			if err != nil || !strings.Contains(string(out), step.want) {
				t.Fatalf("ipmipower -I %s %s: %v: %q, want %q", suite, step.arg, err, out, step.want)
			}
		}
	}
	if n := len(machine.Starts()); n != 2 {
		t.Errorf("%d starts, want 2", n)
	}
}

func FuzzIPMILogin(f *testing.F) {
	f.Add([]byte{6, 0, 0xff, 7, 6, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0})
	f.Add([]byte{6, 0, 0xff, 7, 6, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	b, err := NewIPMI(IPMIOptions{Machine: &SimMachine{}, User: "admin", Password: "secret"})
	if err != nil {
		f.Fatal(err)
	}
	defer b.Close()
	f.Fuzz(func(t *testing.T, p []byte) {
		b.conn.hear(p)
		b.conn.say(p, "somebody")
		b.conn.hear(p)
		if _, _, body, ok := ipmiPlus(p); ok {
			if user, ok := ipmiLogin(body); ok && len(user) > 255 {
				t.Errorf("user of %d bytes", len(user))
			}
		}
	})
}
