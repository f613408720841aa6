package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"recast/dhcp"
	"recast/image"
	"recast/inventory"
	"recast/web"
)

// surroundedWell is a host on which nothing is wrong.
func surroundedWell() surroundings {
	n := &inventory.Network{Name: "rack1", Subnet: netip.MustParsePrefix("10.20.0.0/24"), DHCP: inventory.DHCPAuthoritative}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	us := []dhcp.Owner{{PID: 7, Name: "recast"}}
	return surroundings{now: now, config: defaults(), running: true, status: web.StatusReply{Version: "test"}, root: true, setFrom: "in force",
		set: &inventory.Set{Networks: []*inventory.Network{n}}, ifaces: map[string]int{"eth0": 1500},
		places: []dhcp.Place{{Network: n, Iface: &dhcp.Interface{Name: "eth0", Up: true}, Server: netip.MustParseAddr("10.20.0.1")}},
		ports:  map[portKey][]dhcp.Owner{{"udp", 67}: us, {"udp", 69}: us, {"tcp", 8080}: us, {"tcp", 8443}: us},
		others: map[string][]dhcp.Foreign{"rack1": nil}, otherErr: map[string]error{}, managed: map[string]bool{"rack1": true}, rules: []ruleset{{}},
		freeBytes: 100 << 30, synced: true, version: "2.0.0+dfsg-5", ramdisks: []image.Ramdisk{{Arch: inventory.AMD64}},
		chain: []*x509.Certificate{{NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(2, 0, 0)}, {IsCA: true, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(20, 0, 0)}}}
}

func TestDoctorFindsNothingWhereNothingIsWrong(t *testing.T) {
	for _, k := range examine(surroundedWell()) {
		if k.State != stateOK {
			t.Errorf("%+v", k)
		}
	}
}

func TestDoctorFindsWhatIsWrong(t *testing.T) {
	other := dhcp.Owner{PID: 9, Name: "in.tftpd"}
	foreign := []dhcp.Foreign{{Server: netip.MustParseAddr("10.20.0.9"), MAC: net.HardwareAddr{82, 84, 0, 0, 0, 9}, Offer: netip.MustParseAddr("10.20.0.77")}}
	for _, c := range []struct {
		name   string
		change func(*surroundings)
		check  string
		state  string
		text   string
		next   string
	}{
		{"a foreign TFTP server", func(f *surroundings) { f.ports[portKey{"udp", 69}] = []dhcp.Owner{other} }, "udp 69", stateFail, "held by in.tftpd (pid 9)", "stop it"},
		{"a foreign TFTP server before ours", func(f *surroundings) { f.running, f.ports[portKey{"udp", 69}] = false, []dhcp.Owner{other} }, "udp 69", stateFail, "held by in.tftpd", "stop it"},
		{"a DHCP server beside ours", func(f *surroundings) {
			f.ports[portKey{"udp", 67}] = append(f.ports[portKey{"udp", 67}], dhcp.Owner{PID: 8, Name: "dnsmasq"})
		}, "udp 67", stateWarn, "and by dnsmasq (pid 8)", ""},
		{"a server on another address", func(f *surroundings) {
			f.running, f.ports[portKey{"udp", 67}] = false, []dhcp.Owner{{PID: 8, Name: "dnsmasq", Addr: netip.MustParseAddr("192.168.122.1")}}
		}, "udp 67", stateOK, "free here; held by dnsmasq (pid 8), on 192.168.122.1 alone", ""},
		{"nobody listens", func(f *surroundings) { f.ports[portKey{"tcp", 8080}] = nil }, "tcp 8080", stateFail, "nobody listens", "log"},
		{"free before the start", func(f *surroundings) { f.running, f.ports[portKey{"tcp", 8080}] = false, nil }, "tcp 8080", stateOK, "free", ""},
		{"proxy needs 4011", func(f *surroundings) {
			f.places[0].Network.DHCP = inventory.DHCPProxy
			f.ports[portKey{"udp", 4011}] = []dhcp.Owner{other}
		}, "udp 4011", stateFail, "held by in.tftpd", ""},
		{"another user's", func(f *surroundings) { f.running, f.ports[portKey{"tcp", 8443}] = false, []dhcp.Owner{{}} }, "tcp 8443", stateFail, "only root may see", ""},
		{"the server is down", func(f *surroundings) { f.running, f.ports = false, nil }, "server", stateSkip, "does not run", "recast serve"},
		{"a server with its data elsewhere", func(f *surroundings) { f.running = false }, "server", stateWarn, "recast (pid 7) runs, and its data do not stand in /var/lib/recast", "--data"},
		{"the server does not answer", func(f *surroundings) { f.running, f.held, f.statusErr = false, true, errors.New("connection refused") }, "server", stateFail, "it runs, and its API does not answer: connection refused", "its log"},
		{"read-only", func(f *surroundings) { f.status.ReadOnly = "no space left" }, "server", stateFail, "no space left", ""},
		{"frozen", func(f *surroundings) { f.status.Frozen.By = "ann" }, "server", stateWarn, "frozen", "unfreeze"},
		{"a finding", func(f *surroundings) { f.status.Findings = []string{"address 10.20.0.7 is in use"} }, "finding", stateWarn, "in use", ""},
		{"another DHCP server", func(f *surroundings) { f.others["rack1"] = foreign }, "other dhcp", stateFail, "10.20.0.9 (52:54:00:00:00:09), which offered 10.20.0.77", "dhcp: proxy"},
		{"another DHCP server, forced", func(f *surroundings) { f.others["rack1"], f.places[0].Network.Force = foreign, true }, "other dhcp", stateWarn, "10.20.0.9", ""},
		{"the other server of proxy", func(f *surroundings) { f.others["rack1"], f.places[0].Network.DHCP = foreign, inventory.DHCPProxy }, "other dhcp", stateOK, "10.20.0.9", ""},
		{"proxy alone", func(f *surroundings) { f.places[0].Network.DHCP = inventory.DHCPProxy }, "other dhcp", stateFail, "no other server gives addresses", ""},
		{"not probed", func(f *surroundings) { delete(f.others, "rack1") }, "other dhcp", stateSkip, "nobody was asked", "root"},
		{"probe fails", func(f *surroundings) { f.otherErr["rack1"] = errors.New("no packet socket") }, "other dhcp", stateSkip, "no packet socket", ""},
		{"no router sends hosts to DHCPv6", func(f *surroundings) {
			f.places[0].Network.Subnet, f.managed["rack1"] = netip.MustParsePrefix("fd00:20::/64"), false
		}, "routers", stateWarn, "no router", "managed"},
		{"DHCPv6's port", func(f *surroundings) {
			f.places[0].Network.Subnet = netip.MustParsePrefix("fd00:20::/64")
			f.ports[portKey{"udp", 547}] = []dhcp.Owner{other}
		}, "udp 547", stateFail, "DHCPv6: held by in.tftpd", "stop it"},
		{"relay missing", func(f *surroundings) { f.places[0].Iface = nil }, "net rack1", stateWarn, "no relay has passed on a packet", "ip helper-address"},
		{"relay works", func(f *surroundings) {
			f.places[0].Iface, f.status.Relayed = nil, map[string]uint64{"rack1": 4}
		}, "net rack1", stateOK, "4 packets", ""},
		{"no interface, and no server", func(f *surroundings) { f.running, f.places[0].Iface = false, nil }, "net rack1", stateWarn, "no interface has an address in 10.20.0.0/24", ""},
		{"two interfaces", func(f *surroundings) { f.places[0].Problem = errors.New("write listen: eth0") }, "net rack1", stateFail, "write listen", ""},
		{"interface down", func(f *surroundings) { f.places[0].Iface.Up = false }, "net rack1", stateFail, "eth0 is down", "ip link set eth0 up"},
		{"small MTU", func(f *surroundings) { f.ifaces["eth0"] = 1400 }, "mtu", stateWarn, "1400 of eth0", "mtu 1500"},
		{"no Network", func(f *surroundings) { f.places = nil }, "networks", stateWarn, "none is served", "declare"},
		{"unknown Networks", func(f *surroundings) { f.set, f.places = nil, nil }, "networks", stateSkip, "none is known", "recast doctor PATH"},
		{"a rule that drops", func(f *surroundings) {
			f.rules = []ruleset{parseIptables("ip", ":INPUT ACCEPT\n-A INPUT -p udp --dport 69 -j DROP\n")}
		}, "firewall", stateFail, "drops udp port 69 (TFTP) on eth0: iptables INPUT", "allow udp port 69"},
		{"a rule that may drop", func(f *surroundings) {
			f.rules = []ruleset{parseIptables("ip", ":INPUT DROP\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\n")}
		}, "firewall", stateWarn, "may drop udp port 67", ""},
		{"IPv6 dropped", func(f *surroundings) {
			f.places[0].Network.Subnet = netip.MustParsePrefix("2001:db8::/64")
			f.ports[portKey{"udp", 547}] = f.ports[portKey{"udp", 67}]
			f.rules = []ruleset{parseIptables("ip6", ":INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -p udp -m udp --dport 69 -j ACCEPT\n-A INPUT -p tcp -j ACCEPT\n")}
		}, "firewall", stateFail, "it drops udp port 547 over IPv6 (DHCPv6) on eth0: the policy of ip6tables INPUT", "allow udp port 547"},
		{"IPv6 neighbours dropped", func(f *surroundings) {
			f.places[0].Network.Subnet = netip.MustParsePrefix("2001:db8::/64")
			f.rules = []ruleset{parseIptables("ip6", ":INPUT DROP [0:0]\n-A INPUT -p udp -j ACCEPT\n-A INPUT -p tcp -j ACCEPT\n")}
		}, "firewall", stateFail, "it drops neighbour solicitations (who has the server's address) on eth0", "allow"},
		{"rules unreadable", func(f *surroundings) { f.rulesErr, f.root = errors.New("not permitted"), false }, "firewall", stateSkip, "not permitted", "root"},
		{"disk nearly full", func(f *surroundings) { f.freeBytes = 100 << 20 }, "space", stateFail, "100.0 MiB free", "make room"},
		{"disk rather full", func(f *surroundings) { f.freeBytes = 1 << 30 }, "space", stateWarn, "1.0 GiB free", ""},
		{"clock of 1970", func(f *surroundings) { f.now = time.Unix(0, 0) }, "clock", stateFail, "1970", "NTP"},
		{"clock alone", func(f *surroundings) { f.synced = false }, "clock", stateWarn, "not synchronised", "NTP"},
		{"loaders missing", func(f *surroundings) { f.loaders = errors.New("undionly.kpxe is missing") }, "loaders", stateWarn, "undionly.kpxe", ""},
		{"old loaders", func(f *surroundings) { f.version = "1.0.0+git-20190125" }, "loaders", stateWarn, "before 2.0", "setup.sh"},
		{"a GRUB missing", func(f *surroundings) { f.lacking = map[string][]string{"local.pxe": {"n1", "n2"}} }, "loaders", stateFail, "local.pxe is missing: machines that are declared to start their own disk by it (boot.local): n1, n2", "setup.sh loaders"},
		{"a disc's loader missing", func(f *surroundings) { f.lacking = map[string][]string{"cd.img": {"n1"}} }, "loaders", stateFail, "cd.img is missing: machines that are declared to start from a virtual medium (boot.via: media): n1", "setup.sh loaders"},
		{"a shim missing", func(f *surroundings) { f.lacking = map[string][]string{"shimx64.efi": {"n1"}} }, "loaders", stateFail, "secureBoot", "shim-signed"},
		{"no ramdisk", func(f *surroundings) { f.ramdisk = fmt.Errorf("open: %w", fs.ErrNotExist) }, "ramdisk", stateWarn, "/var/lib/recast/ramdisk holds none", "recast ramdisk build"},
		{"a damaged ramdisk", func(f *surroundings) { f.ramdisk = errors.New("vmlinuz is not the file that was built") }, "ramdisk", stateFail, "not the file that was built", ""},
		{"certificate ended", func(f *surroundings) { f.chain[0].NotAfter = f.now.Add(-time.Hour) }, "certificate", stateFail, "the server's ended", "restart"},
		{"CA ends soon", func(f *surroundings) { f.chain[1].NotAfter = f.now.AddDate(0, 6, 0) }, "certificate", stateWarn, "the CA's ends", "written anew"},
		{"certificate of tomorrow", func(f *surroundings) { f.chain[0].NotBefore = f.now.Add(time.Hour) }, "certificate", stateFail, "valid from", "clock"},
	} {
		f := surroundedWell()
		c.change(&f)
		found := false
		for _, k := range examine(f) {
			found = found || k.Check == c.check && k.State == c.state && strings.Contains(k.Text, c.text) && strings.Contains(k.Next, c.next)
		}
		if !found {
			t.Errorf("%s: no %s %s with %q and %q in %+v", c.name, c.state, c.check, c.text, c.next, examine(f))
		}
	}
}

const inNamespace = "RECAST_CMD_NAMESPACE"

// namespace runs the rest of the test in a child process with a network namespace
// of its own, where it returns true.
func namespace(t *testing.T, tools map[string]string) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (apt-get install %s)", tool, pkg)
		}
	}
	t.Parallel() // the time goes into waiting
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.timeout=100s")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}

func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// background runs a command until the test ends.
func background(t testing.TB, ns int, name string, args ...string) *exec.Cmd {
	t.Helper()
	if ns != 0 {
		args = append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", ns), name}, args...)
		name = "nsenter"
	}
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// On one wire: our address, and a real DHCP server of somebody else's. A real
// process holds port 69, and a real rule drops it. Without the server, with it,
// and once all is mended.
func TestDoctorInARealNetwork(t *testing.T) {
	if !namespace(t, map[string]string{"ip": "iproute2", "nsenter": "util-linux", "nft": "nftables", "dnsmasq": "dnsmasq-base"}) {
		return
	}
	data := t.TempDir()
	site := filepath.Join(data, "net.yaml")
	if err := os.WriteFile(site, []byte("apiVersion: recast/v1\nkind: Network\nmetadata: {name: rack1}\nspec: {subnet: 10.20.0.0/24, dhcp: authoritative, pool: 10.20.0.100-10.20.0.110}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(data, "recast.yaml")
	if err := os.WriteFile(config, []byte("boot: 0.0.0.0:8080\nagent: 0.0.0.0:8443\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "ip", "link", "set", "lo", "up")
	station := exec.Command("sleep", "100")
	station.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := station.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = station.Process.Kill(); _ = station.Wait() })
	pid := station.Process.Pid
	tool(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(pid))
	tool(t, "ip", "addr", "add", "10.20.0.1/24", "dev", "eth0")
	tool(t, "ip", "link", "set", "eth0", "up", "mtu", "1400")
	inStation := func(args ...string) {
		t.Helper()
		tool(t, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid)}, args...)...)
	}
	inStation("ip", "addr", "add", "10.20.0.9/24", "dev", "eth0")
	inStation("ip", "link", "set", "eth0", "up")
	rogue := background(t, pid, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces",
		"--dhcp-range=10.20.0.70,10.20.0.79", "--no-ping", "--leasefile-ro", "--user=root", "--pid-file=")
	tftpd := background(t, 0, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--enable-tftp", "--tftp-root=/var/empty-none", "--tftp-no-fail", "--listen-address=10.20.0.1", "--bind-interfaces", "--user=root", "--pid-file=")
	await(t, "dnsmasq on port 69", func() bool { return len(dhcp.PortOwners("udp", 69)) > 0 })
	tool(t, "nft", "add", "table", "inet", "wall")
	tool(t, "nft", "add", "chain", "inet", "wall", "input", "{ type filter hook input priority 0; policy accept; }")
	tool(t, "nft", "add", "rule", "inet", "wall", "input", "udp", "dport", "69", "drop")

	look := func(wantCode int, want map[string]string, args ...string) {
		t.Helper()
		text, code := recast(t, nil, append([]string{"doctor", "--config", config, "--data", data, "-o", "json"}, args...)...)
		body, _, _ := strings.Cut(text, "\nrecast")
		body = body[:strings.LastIndex(body, "]")+1]
		var checks []check
		if err := json.Unmarshal([]byte(body), &checks); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		if code != wantCode {
			t.Errorf("exit code %d, want %d:\n%s", code, wantCode, text)
		}
		for name, has := range want {
			found := false
			for _, k := range checks {
				found = found || k.Check == name && strings.Contains(k.State+": "+k.Text, has)
			}
			if !found {
				t.Errorf("no %s with %q in\n%s", name, has, text)
			}
		}
	}
	broken := map[string]string{
		"server":     "skip: it does not run",
		"udp 69":     fmt.Sprintf("fail: TFTP: held by dnsmasq (pid %d)", tftpd.Process.Pid),
		"udp 67":     "ok: DHCP: free",
		"other dhcp": "fail: eth0: 10.20.0.9 (",
		"firewall":   "fail: it drops udp port 69 (TFTP) on eth0: nft inet wall input: udp dport 69 drop",
		"mtu":        "warn: 1400 of eth0",
	}
	look(exitError, broken, site)
	if text, _ := recast(t, nil, "doctor", "--config", config, "--data", data, "--no-probe", site); !strings.Contains(text, "FAIL  udp 69 ") || !strings.Contains(text, "skip  other dhcp ") {
		t.Errorf("the lines for people:\n%s", text)
	}

	// Mended, and with a server that has never served: what it serves is in its store.
	end := func(c *exec.Cmd) {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	end(rogue)
	tool(t, "nft", "delete", "table", "inet", "wall")
	tool(t, "ip", "link", "set", "eth0", "mtu", "1500")
	t.Setenv("RECAST_DATA", data)
	t.Setenv("RECAST_CONFIG_DIR", t.TempDir())
	t.Setenv("RECAST_CONTEXT", "")
	server := startServer(t, data)
	if text, code := recast(t, nil, "apply", site, "--yes"); code != exitOK {
		t.Fatal(text)
	}
	await(t, "DHCP", func() bool { return len(dhcp.PortOwners("udp", 67)) > 0 })
	// The server goes on without TFTP, says who has its port, and takes it once it is free.
	noTFTP := fmt.Sprintf("TFTP is not served: listen udp :69: bind: address already in use: it is held by dnsmasq (pid %d): stop that TFTP server", tftpd.Process.Pid)
	await(t, "the finding that TFTP is not served", func() bool {
		text, _ := recast(t, nil, "doctor", "--no-probe") // RECAST_DATA leads to it
		return strings.Contains(text, noTFTP)
	})
	end(tftpd)
	await(t, "TFTP", func() bool { return dhcp.PortOwner(69, tftpd.Process.Pid) != "" })
	if text, _ := recast(t, nil, "doctor", "--config", config, "--data", data, "--no-probe"); strings.Contains(text, "TFTP is not served") {
		t.Errorf("TFTP is served, and the finding stands:\n%s", text)
	}
	look(exitOK, map[string]string{
		"server":      "ok: it runs",
		"udp 67":      fmt.Sprintf("ok: DHCP: held by recast.test (pid %d)", server.Process.Pid),
		"udp 69":      fmt.Sprintf("(pid %d)", server.Process.Pid),
		"tcp 8080":    fmt.Sprintf("(pid %d)", server.Process.Pid),
		"other dhcp":  "ok: eth0: no other server answered",
		"firewall":    "ok: ",
		"mtu":         "ok: 1500 on eth0",
		"certificate": "ok: the CA's ends",
	})
	if err := server.stop(t, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	look(exitOK, map[string]string{"server": "skip: it does not run", "net rack1": "ok: dhcp: authoritative on eth0 as 10.20.0.1", "udp 67": "ok: DHCP: free"})
}
