package bmc_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"recast/bmc"
)

// fakeBMC starts pyghmi's simulator, which shares no code with our client and listens on
// all addresses where it is not told another one.
const fakeBMC = `import pyghmi.cmd.fakebmc, pyghmi.ipmi.private.serversession as s
s.IpmiServer.__init__.__defaults__ = s.IpmiServer.__init__.__defaults__[:-1] + ("127.0.0.1",)
pyghmi.cmd.fakebmc.main()`

// runFakeBMC runs it, and tells what its machine says. It knows suite 3 alone and one
// account, keeps of the boot flags the device only, and has no event log, no FRU and no GUID.
func runFakeBMC(t *testing.T) (target bmc.Target, said func() string) {
	t.Helper()
	const python = "/usr/bin/python3" // the one that Debian's packages are for
	if exec.Command(python, "-c", "import pyghmi.cmd.fakebmc").Run() != nil {
		t.Skip("needs fakebmc (apt-get install python3-pyghmi)")
	}
	port := freeUDPPort(t)
	name := filepath.Join(t.TempDir(), "said")
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	command := exec.Command(python, "-u", "-c", fakeBMC, "--port", fmt.Sprint(port))
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	said = func() string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			t.Logf("fakebmc: %s", said())
		}
	})
	target = bmc.InAHurry(bmc.Target{URL: fmt.Sprintf("ipmi://127.0.0.1:%d", port), User: "admin", Password: "password", CipherSuite: 3})
	// It answers no presence ping.
	bound := fmt.Sprintf(": 0100007F:%04X ", port)
	end, pause := time.Now().Add(20*time.Second), time.NewTicker(20*time.Millisecond)
	defer pause.Stop()
	for {
		sockets, err := os.ReadFile("/proc/net/udp")
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.Contains(string(sockets), bound):
			return target, said
		case time.Now().After(end):
			t.Fatal("fakebmc does not listen")
		}
		<-pause.C
	}
}

func startFakeBMC(t *testing.T) subject {
	target, said := runFakeBMC(t)
	return subject{client: dial(t, target), soft: true, cd: true, powered: func() bool { return strings.HasSuffix(said(), "powered on") }}
}

func TestFakeBMCSeesOneLoginOfAWrongPasswordAndVanishes(t *testing.T) {
	t.Parallel()
	target, said := runFakeBMC(t)
	wrong := target
	wrong.Password = "wrong"
	if _, err := bmc.Dial(within(t, 20*time.Second), wrong); err == nil || reasonWord(t, err) != "refused login" {
		t.Errorf("a wrong password: %v", err)
	}
	unknown := target
	unknown.User = "nobody"
	if _, err := bmc.Dial(within(t, 20*time.Second), unknown); err == nil || reasonWord(t, err) != "timeout" { // it drops him in silence
		t.Errorf("an unknown user: %v", err)
	}
	strong := target
	strong.CipherSuite = 17
	if _, err := bmc.Dial(within(t, 20*time.Second), strong); err == nil || reasonWord(t, err) != "timeout" {
		t.Errorf("a suite that it does not know: %v", err)
	}
	c := dial(t, target)
	if err := c.On(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	// Its reset is its end, and nobody answers.
	if err := c.(bmc.Resetter).ResetBMC(within(t, 3*time.Second)); bmc.OutcomeOf(err) != bmc.Unknown {
		t.Errorf("reset: %v", err)
	}
	if !strings.HasSuffix(said(), "BMC cold reset request") {
		t.Errorf("it said %q", said())
	}
	if state, err := c.Power(within(t, 20*time.Second)); state != bmc.PowerUnknown || reasonWord(t, err) != "unreachable" {
		t.Errorf("%q, %v", state, err)
	}
	if err := c.Off(within(t, 20*time.Second), true); err == nil {
		t.Error("off is done by nobody")
	}
}
