package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sshBMC is a Redfish BMC with a console by SSH.
func sshBMC(t *testing.T, m Machine, o RedfishOptions) (b *RedfishBMC, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Machine, o.SSH, o.User, o.Password = m, l, "admin", "secret"
	if b, err = NewRedfish(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// TestOpenSSHOpensTheConsole: what is typed there reaches the machine, what that says
// is shown, and the host key is the one that the BMC is declared with.
func TestOpenSSHOpensTheConsole(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"ssh", "ssh-keyscan", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (apt-get install openssh-client)", tool)
		}
	}
	machine := &SimMachine{}
	b, port := sshBMC(t, machine, RedfishOptions{})
	dir := t.TempDir()
	known, askpass := filepath.Join(dir, "known_hosts"), filepath.Join(dir, "askpass")
	keys, err := exec.CommandContext(t.Context(), "ssh-keyscan", "-p", port, "127.0.0.1").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{known: string(keys), askpass: "#!/bin/sh\necho secret\n"} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	shown, err := exec.CommandContext(t.Context(), "ssh-keygen", "-lf", known).Output()
	if err != nil || !strings.Contains(string(shown), " "+b.HostKey()+" ") {
		t.Errorf("ssh-keygen shows %q, %v; want %s", shown, err, b.HostKey())
	}
	p, cmd := atTerminal(t, fmt.Sprintf("env SSH_ASKPASS=%s SSH_ASKPASS_REQUIRE=force ssh -F none -tt -o UserKnownHostsFile=%s -p %s admin@127.0.0.1", askpass, known, port), time.Minute)
	await(t, "the machine is heard", 20*time.Second, func() bool {
		machine.Port.Say("GRUB loading\r\n")
		return p.sees("GRUB loading")
	})
	p.types(t, "typed by hand\r")
	await(t, "the machine hears what is typed", 10*time.Second, func() bool { return p.sees("typed by hand") })
	p.types(t, "~B")
	await(t, "a break", 10*time.Second, func() bool { return machine.Port.Breaks() == 1 })
	p.types(t, "\r~.")
	_ = cmd.Wait() // ssh ends with 255 there
	if n := b.Count("login"); n != 1 {
		t.Errorf("%d logins", n)
	}
}
