package testenv

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// netnsForTest makes a Net that ends with the test.
func netnsForTest(t *testing.T) *Net {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (apt-get install iproute2)")
	}
	n, err := NewNet(fmt.Sprintf("recast-test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6), netip.MustParsePrefix("10.77.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestNetIsSeparateFromTheHost(t *testing.T) {
	n := netnsForTest(t)
	if err := n.AddTap("tap0", NetBridge); err != nil {
		t.Fatal(err)
	}
	if err := n.AddAddr(netip.MustParseAddr("10.78.0.2")); err != nil {
		t.Fatal(err)
	}
	var inside []net.Interface
	var l net.Listener
	err := n.Do(func() (err error) {
		if inside, err = net.Interfaces(); err != nil {
			return err
		}
		l, err = net.Listen("tcp4", "10.78.0.2:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var names []string
	for _, i := range inside {
		names = append(names, i.Name)
	}
	if got := strings.Join(names, " "); got != "lo br0 tap0" {
		t.Errorf("interfaces inside: %q, want lo br0 tap0", got)
	}
	if _, err := net.InterfaceByName("tap0"); err == nil {
		t.Error("tap0 is visible outside the namespace")
	}
	if c, err := net.DialTimeout("tcp4", l.Addr().String(), 200*time.Millisecond); err == nil {
		c.Close()
		t.Error("a listener inside is reachable from the host")
	}
	if err := n.Do(func() error {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		t.Errorf("dial inside: %v", err)
	}
}

func TestCloseEndsProcessesAndNamespace(t *testing.T) {
	n := netnsForTest(t)
	cmd := exec.Command("sleep", "600")
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	pids, err := netnsPIDs(n.Name)
	if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Fatalf("processes inside: %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself, want it killed")
	}
	if names, err := Nets(n.Name); err != nil || len(names) != 0 {
		t.Errorf("namespaces left: %v, %v", names, err)
	}
	if err := n.Start(exec.Command("sleep", "600")); err == nil {
		t.Error("Start on a closed Net: no error")
	}
	if err := RemoveNet(n.Name); err != nil {
		t.Errorf("RemoveNet of what is gone: %v", err)
	}
}

// TestChildDiesWithItsParent runs this test binary as a parent that starts a
// child in a namespace, kills it, and looks for the child.
func TestChildDiesWithItsParent(t *testing.T) {
	if name := os.Getenv("RECAST_TEST_NETNS_PARENT"); name != "" {
		n, err := NewNet(name, netip.MustParsePrefix("10.77.0.1/24"))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.AddTap("tap0", NetBridge); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "600")
		if err := n.Start(cmd); err != nil {
			t.Fatal(err)
		}
		fmt.Println("started", cmd.Process.Pid)
		select {}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	name := fmt.Sprintf("recast-test-%d-parent", os.Getpid())
	t.Cleanup(func() { _ = RemoveNet(name) })
	parent := exec.Command(os.Args[0], "-test.run=^TestChildDiesWithItsParent$")
	parent.Env = append(os.Environ(), "RECAST_TEST_NETNS_PARENT="+name)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "started %d", &child); err == nil {
			break
		}
	}
	if child == 0 {
		t.Fatal("the parent did not start its child")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	await(t, "the child of a parent that was killed is gone", 5*time.Second, func() bool { return netnsDead(child) })
	if names, _ := Nets(name); len(names) != 1 {
		t.Fatalf("namespaces after the kill: %v, want the one that was left", names)
	}
	if err := RemoveNet(name); err != nil {
		t.Fatal(err)
	}
	if names, _ := Nets(name); len(names) != 0 {
		t.Errorf("namespaces after RemoveNet: %v", names)
	}
}

// The kernel's own IPv6 judges the answer: it drops one with a wrong checksum,
// hop limit or sender.
func TestNetAnswersRouterSolicitations(t *testing.T) {
	n := netnsForTest(t)
	host := n.Name + "-host"
	for _, args := range [][]string{
		{"netns", "add", host},
		{"-n", n.Name, "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", host},
		{"-n", n.Name, "link", "set", "veth0", "master", NetBridge, "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v: %s", args, err, out)
		}
		if args[0] == "netns" {
			t.Cleanup(func() {
				if err := RemoveNet(host); err != nil {
					t.Error(err)
				}
			})
		}
	}
	hops := func() (got string) {
		err := NetDo(host, func() error {
			raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/hop_limit")
			got = strings.TrimSpace(string(raw))
			return err
		})
		if err != nil {
			t.Skipf("needs IPv6 in the kernel (%v)", err)
		}
		return got
	}
	if got := hops(); got == fmt.Sprint(advertHopLimit) {
		t.Fatalf("hop limit %s before anything was answered", got)
	}
	if out, err := exec.Command("ip", "-n", host, "link", "set", "eth0", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	await(t, "the advertised hop limit", 20*time.Second, func() bool { return hops() == fmt.Sprint(advertHopLimit) })
}
