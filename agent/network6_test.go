package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
	"time"
)

const inNamespace = "RECAST_AGENT_NAMESPACE"

// The ramdisk of a machine that came by IPv6 gets its address by DHCPv6, though
// its link-local address is tentative at first. It renews that, and IPv4's.
func TestDHCPGivesTheRamdiskItsAddressAndRenewsIt(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		for tool, pkg := range map[string]string{"ip": "iproute2", "nsenter": "util-linux", "dnsmasq": "dnsmasq-base"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("needs %s (apt-get install %s)", tool, pkg)
			}
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Errorf("in the namespace: %v\n%s", err, out)
		}
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	// The server's side of the cable is the namespace of a sleeping process.
	hold := exec.Command("sleep", "1000")
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hold.Process.Kill(); _ = hold.Wait() }()
	pid := fmt.Sprint(hold.Process.Pid)
	there := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/proc/" + pid + "/ns/net"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	for _, cmd := range []*exec.Cmd{
		exec.Command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire", "netns", pid),
		there("ip", "addr", "add", "2001:db8:20::2/64", "dev", "wire", "nodad"),
		there("ip", "addr", "add", "10.20.0.2/24", "dev", "wire"),
		there("ip", "link", "set", "wire", "up"),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	if err := setUp("eth0"); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	server := there("dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--interface=wire", "--bind-interfaces", "--user=root", "--dhcp-authoritative",
		"--dhcp-range=2001:db8:20::9:1,2001:db8:20::9:1,5m", "--dhcp-range=10.20.0.90,10.20.0.90,6m", "--leasefile-ro", "--log-facility=-", "--pid-file=")
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("dnsmasq said:\n%s", said.String())
		}
	}()
	has, err := dhcp6(ctx, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got := address("eth0", true).String(); got != "2001:db8:20::9:1" {
		t.Errorf("the interface has %s", got)
	}
	if a := address("eth0", false); a.IsValid() {
		t.Errorf("and %s", a)
	}
	has4, err := dhcp(ctx, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // what was renewed can be renewed
		if has, err = has.renew(ctx); err != nil || has.life != 5*time.Minute {
			t.Fatalf("DHCPv6 renews for %s: %v", has.life, err)
		}
		if has4, err = has4.renew(ctx); err != nil || has4.life != 6*time.Minute {
			t.Fatalf("DHCP renews for %s: %v", has4.life, err)
		}
	}
}

func TestTheServersAddressSaysByWhichIPTheRamdiskGoes(t *testing.T) {
	for url, want := range map[string]bool{
		"https://10.20.0.1:8443": false, "https://[2001:db8:20::2]:8443": true, "https://recast.example:8443": false, "https://[::ffff:10.20.0.1]:8443": false, "": false,
	} {
		if got := overIPv6(url); got != want {
			t.Errorf("%s: %v", url, got)
		}
	}
}
