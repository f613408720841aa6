package testenv

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// freeIPMI runs one of FreeIPMI's clients, which share no code with ipmitool.
func freeIPMI(t *testing.T, b *IPMIBMC, suite, name string, args ...string) string {
	t.Helper()
	tool, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s (apt-get install freeipmi-tools)", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	base := []string{"-D", "LAN_2_0", "-I", suite, "-h", b.Addr(), "-u", "admin", "-p", "secret", "-l", "ADMIN"}
	cmd := exec.CommandContext(ctx, tool, append(base, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %q", name, args, err, out)
	}
	return string(out)
}

func TestFreeIPMIReadsAndChanges(t *testing.T) {
	t.Parallel()
	for _, suite := range []string{"3", "17"} {
		t.Run("suite "+suite, func(t *testing.T) {
			machine := &SimMachine{}
			b := ipmiBMC(t, machine, IPMIOptions{Serial: "SN42", UUID: "01020304-0506-0708-090a-0b0c0d0e0f10", Faults: BMCFaults{Away: 100 * time.Millisecond}})
			cache := "--sdr-cache-directory=" + t.TempDir()
			for _, step := range []struct{ command, want string }{
				{"ipmipower --on", "ok"},
				{"ipmipower --stat", "on"},
				{"ipmipower --reset", "ok"},
				{"ipmipower --soft", "ok"},
				{"ipmipower --stat", "off"},
				{"ipmi-chassis --get-status", "System Power                        : off"},
				{"ipmi-chassis --chassis-identify=TURN-OFF", ""},
				{"ipmi-chassis-config --commit --key-pair=Chassis_Boot_Flags:Boot_Device=PXE", ""},
				{"ipmi-chassis-config --commit --key-pair=Chassis_Boot_Flags:BIOS_Boot_Type=EFI", ""},
				{"ipmi-chassis --get-boot-flags", "PXE"},
				{"bmc-info", "GUID : 01020304-0506-0708-090a-0b0c0d0e0f10"},
				{"bmc-info", "IPMI Version          : 2.0"},
				{"bmc-device --get-self-test-results", "No Error"},
				{"bmc-device --get-sel-time", "/"},
				{"ipmi-sel " + cache, "System Boot Initiated"},
				{"ipmi-sel --info", "Number of log entries"},
				{"ipmi-sel --clear " + cache, ""},
				{"ipmi-sel --info", "Number of log entries                  : 0"},
				{"ipmi-sensors " + cache, "Inlet Temp"},
				{"ipmi-fru " + cache, "SN42"},
				{"bmc-config --checkout --section=User2", "Username                                      admin"},
				{"bmc-device --cold-reset", ""},
			} {
				args := strings.Fields(step.command)
				if out := freeIPMI(t, b, suite, args[0], args[1:]...); !strings.Contains(out, step.want) {
					t.Fatalf("%s: %q lacks %q; %v", step.command, out, step.want, b.Requests())
				}
			}
			if got, want := machine.BootOnce(), (BootOnce{Device: BootPXE, UEFI: true}); got != want {
				t.Errorf("override %v, want %v", got, want)
			}
			if b.Done("restart-bmc") != 1 || b.Done("clear-log") != 1 || b.Done("reset") != 1 || b.Done("shutdown") != 1 {
				t.Errorf("not executed exactly once: %v", b.Requests())
			}
		})
	}
}

// TestIpmiutilReadsAndChanges needs a namespace: ipmiutil speaks to port 623 only.
func TestIpmiutilReadsAndChanges(t *testing.T) {
	tool, err := exec.LookPath("ipmiutil")
	if err != nil {
		t.Skip("needs ipmiutil (apt-get install ipmiutil)")
	}
	n := netnsForTest(t)
	var conn net.PacketConn
	if err := n.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", "10.77.0.1:623")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	machine := &SimMachine{}
	b := ipmiBMC(t, machine, IPMIOptions{Conn: conn, Serial: "SN42", Sessions: 15, // it closes few of its sessions
		Faults: BMCFaults{Away: 100 * time.Millisecond}})
	for _, step := range []struct{ command, want string }{
		{"health", "chassis_power       = off"},
		{"reset -u", "chassis_reset(1) ok"},
		{"sensor", "CPU Temp         = 30 OK   48.00 degrees C"},
		{"fru", "SN42"},
		{"reset -r", "chassis_reset(3) ok"},
		{"sel", "System Boot Initiated"},
		{"sel -d", "Log Cleared successfully"},
		{"sel", "Used=0"},
		{"lan", "(admin)"},
		{"reset -n", "IPMI_Reset ok"},
		{"reset -d", "chassis_reset(0) ok"},
		{"reset -p -u", "IPMI_Reset ok"},
		{"reset -k", "Cold_Reset to BMC ok"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		args := append(strings.Fields(step.command), "-N", "10.77.0.1", "-U", "admin", "-P", "secret", "-F", "lan2", "-J", "3", "-V", "4")
		cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.Name, tool}, args...)...)
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		cancel()
		if !strings.Contains(string(out), step.want) {
			t.Fatalf("ipmiutil %s: %v: %q lacks %q", step.command, err, out, step.want)
		}
	}
	starts := machine.Starts()
	if len(starts) != 3 || starts[2] != (BootOnce{Device: BootPXE}) {
		t.Errorf("starts %v: want the third from the network", starts)
	}
	for _, verb := range []string{"reset", "clear-log", "nmi", "power-off", "restart-bmc"} {
		if n := b.Done(verb); n != 1 {
			t.Errorf("%s was executed %d times, want once", verb, n)
		}
	}
}
