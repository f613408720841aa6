package bmc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

// newSSH is a Redfish BMC with a console by SSH, and a target that trusts it.
func newSSH(t *testing.T, o testenv.RedfishOptions) (*testenv.RedfishBMC, *testenv.SimMachine, bmc.Target) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	machine := &testenv.SimMachine{Firmware: true}
	o.Machine, o.SSH = machine, l
	b := newRedfish(t, o)
	target := redfishTarget(b)
	target.HostKey = b.HostKey()
	return b, machine, target
}

func TestConsoleBySSH(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]testenv.RedfishOptions{
		"a port of its own":              {},
		"behind a command":               {SSHCommand: "start /system1/sol1"},
		"as older managers of Dell tell": {OldConsole: true, Manufacturer: "Dell Inc.", SSHCommand: "console com2"},
		"as older managers of HPE tell":  {OldConsole: true, Manufacturer: "HPE", SSHCommand: "vsp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, machine, target := newSSH(t, o)
			f := newConsoleFleet(t)
			c, h := openConsole(t, f, target, bmc.ConsoleOptions{})
			if c.Way() != "SSH" {
				t.Errorf("way %q", c.Way())
			}
			long := strings.Repeat("0123456789abcdef", 400) + "END"
			// What is typed before the port is held is lost, as on a cable.
			h.await(t, 10*time.Second, "an echo", func(text []byte, _ error) bool {
				if !strings.Contains(string(text), "ready?") {
					_, _ = c.Write([]byte("ready?"))
					return false
				}
				return true
			})
			if _, err := c.Write([]byte(long)); err != nil {
				t.Fatal(err)
			}
			h.awaitText(t, long)
			machine.Port.Say("login: ")
			h.awaitText(t, "login: ")
			if err := c.Break(); err != nil || machine.Port.Breaks() != 1 {
				t.Errorf("%d breaks, %v", machine.Port.Breaks(), err)
			}
			if other, err := f.Console(within(t, 10*time.Second), target, bmc.ConsoleOptions{}); !errors.Is(err, bmc.ErrBusy) {
				t.Errorf("a second console: %v, %v; want ErrBusy", other, err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			h.await(t, 5*time.Second, "the end", func(_ []byte, err error) bool { return errors.Is(err, io.EOF) })
		})
	}
}

func TestConsoleBySSHEndsWithItsBMC(t *testing.T) {
	t.Parallel()
	b, _, target := newSSH(t, testenv.RedfishOptions{})
	_, h := openConsole(t, newConsoleFleet(t), target, bmc.ConsoleOptions{})
	b.Restart()
	h.await(t, 20*time.Second, "the end", func(_ []byte, err error) bool { return errors.Is(err, bmc.ErrUnreachable) })
}

func TestConsoleBySSHShowsItsPasswordToThePinnedKeyAlone(t *testing.T) {
	t.Parallel()
	b, _, target := newSSH(t, testenv.RedfishOptions{})
	f := newConsoleFleet(t)
	const other = "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"
	for pinned, want := range map[string]string{"": "set bmc.hostKey to it", other: "not the pinned one"} {
		target.HostKey = pinned
		c, err := f.Console(within(t, 20*time.Second), target, bmc.ConsoleOptions{})
		var key *bmc.HostKeyError
		if !errors.As(err, &key) || !errors.Is(err, bmc.ErrPin) || len(key.Seen) != 1 || key.Seen[0] != b.HostKey() || !strings.Contains(err.Error(), want) {
			t.Errorf("pinned %q: %v, %v", pinned, c, err)
		}
	}
	if n := b.Count("login"); n != 1 { // to the tree
		t.Errorf("%d logins, want 1", n)
	}
}

func TestConsoleBySSHWithARefusedPasswordCostsOneLogin(t *testing.T) {
	t.Parallel()
	b, _, target := newSSH(t, testenv.RedfishOptions{})
	f := newConsoleFleet(t)
	if err := f.Do(within(t, 10*time.Second), target, func(context.Context, bmc.Client) error { return nil }); err != nil {
		t.Fatal(err)
	}
	b.SetFaults(func(f *testenv.BMCFaults) { f.RefuseAuth = true })
	for range 3 {
		if c, err := f.Console(within(t, 10*time.Second), target, bmc.ConsoleOptions{}); !errors.Is(err, bmc.ErrAuth) {
			t.Errorf("%v, %v; want ErrAuth", c, err)
		}
	}
	if n := b.Count("login"); n != 2 {
		t.Errorf("%d logins, want one to the tree and one by SSH", n)
	}
}

func TestConsoleThatRedfishTellsNothingOfIsUnsupported(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	if c, err := newConsoleFleet(t).Console(within(t, 10*time.Second), redfishTarget(b), bmc.ConsoleOptions{}); !errors.Is(err, bmc.ErrUnsupported) {
		t.Errorf("%v, %v; want ErrUnsupported", c, err)
	}
}
