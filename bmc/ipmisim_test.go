package bmc_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"recast/bmc"
)

// ipmiSimChassis is the chassis script of ipmi_sim: files are the machine. It
// is called "<device> get power|boot" and prints name:value, or
// "<device> set power 0|1", "set boot none|pxe|default", "set shutdown 1".
const ipmiSimChassis = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
shift
verb=$1; shift
while [ $# -gt 0 ]; do
  case "$verb $1" in
    "get power") echo "power:$(cat power)"; shift;;
    "get boot") echo "boot:$(cat boot)"; shift;;
    "set power") echo "$2" >power; shift 2;;
    "set boot") echo "$2" >boot; shift 2;;
    "set shutdown") echo 0 >power; shift 2;;
    *) exit 1;;
  esac
done
`

// startIPMISim runs Debian's simulator, which shares no code with our client.
// It knows suite 3 but not 17, drops the mode and the valid bit of the boot
// flags, and its machine has no firmware that would consume them.
func startIPMISim(t *testing.T) subject {
	dir, port := runIPMISim(t, ipmiSimChassis, "")
	c := dial(t, bmc.Target{URL: fmt.Sprintf("ipmi://127.0.0.1:%d", port), User: user, Password: password, CipherSuite: 3})
	powered := func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "power"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text)) == "1"
	}
	return subject{client: c, powered: powered, soft: true}
}

// runIPMISim starts it before a machine that is this script, with one more line of its
// configuration.
func runIPMISim(t *testing.T, chassis, more string) (dir string, port int) {
	t.Helper()
	sim, err := exec.LookPath("ipmi_sim")
	if err != nil {
		t.Skip("needs ipmi_sim (apt-get install openipmi)")
	}
	dir, port = t.TempDir(), freeUDPPort(t)
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("chassis.sh", chassis, 0o755)
	write("power", "0\n", 0o644)
	write("boot", "none\n", 0o644)
	// Without a guid it offers no RMCP+.
	write("lan.conf", fmt.Sprintf(`name "recast"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "%s m0"
  startnow false
  %s
  user 2 true "%s" "%s" admin 10 none md2 md5 straight
`, port, filepath.Join(dir, "chassis.sh"), more, user, password), 0o644)
	write("sim.emu", `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`, 0o644)
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	command := exec.Command(sim, "-n", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", filepath.Join(dir, "state"))
	command.Dir, command.Stdout, command.Stderr = dir, &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			t.Logf("ipmi_sim: %s", out.String())
		}
	})
	awaitUDP(t, port)
	return dir, port
}

func freeUDPPort(t *testing.T) int {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).Port
}

// awaitUDP pings (RMCP presence, ASF) until something answers.
func awaitUDP(t *testing.T, port int) {
	t.Helper()
	conn, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ping := []byte{0x06, 0, 0xff, 0x06, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0}
	end := time.Now().Add(15 * time.Second)
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for time.Now().Before(end) {
		_, _ = conn.Write(ping)
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 64)); err == nil {
			return
		}
		<-pause.C
	}
	t.Fatal("ipmi_sim does not answer")
}
