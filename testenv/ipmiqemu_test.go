package testenv

import (
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestIPMIBeforeARealMachine: what ipmitool asks for reaches firmware and a
// kernel, and what these say reaches ipmitool.
func TestIPMIBeforeARealMachine(t *testing.T) {
	if _, err := exec.LookPath("ipmitool"); err != nil {
		t.Skip("needs ipmitool (apt-get install ipmitool)")
	}
	m := qemuForTest(t, FirmwareBIOS, BusAHCI)
	b := ipmiBMC(t, m, IPMIOptions{UUID: m.UUID, Serial: m.Serial})
	host, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	p, cmd := atTerminal(t, strings.NewReplacer("HOST", host, "PORT", port).Replace(
		"ipmitool -I lanplus -H HOST -p PORT -U admin -P secret -C 17 sol activate"), 8*time.Minute)
	sees := func(text string, n int) {
		t.Helper()
		await(t, text, 3*time.Minute, func() bool { return p.times(text) >= n })
	}
	sees("SOL Session operational", 1)
	ipmiSays(t, b, strings.Fields("power on"))
	// The first words of a machine that starts are gone before its port is held.
	const firmware = "Booting from Hard Disk"
	sees(firmware, 1)
	sees("recast-tiny: machine=", 1)
	ipmiSays(t, b, strings.Fields("power diag"))
	sees("NMI received", 1)
	ipmiSays(t, b, strings.Fields("power reset"))
	sees("recast-tiny: machine=", 2)
	ipmiSays(t, b, strings.Fields("power soft"))
	await(t, "off after the button", time.Minute, func() bool {
		return strings.Contains(ipmiSays(t, b, strings.Fields("power status")), "is off")
	})
	// The machine's port was gone with its process; the console goes on.
	starts := p.times(firmware)
	ipmiSays(t, b, strings.Fields("power on"))
	sees(firmware, starts+1)
	ipmiSays(t, b, strings.Fields("power off"))
	ipmiSays(t, b, strings.Fields("sel elist"), "1 |", "Initiated by power up", "2 |", "NMI", "3 |", "Initiated by hard reset", "Power off/down")
	p.types(t, "~.")
	if err := cmd.Wait(); err != nil {
		t.Errorf("leave: %v", err)
	}
}
