package dhcp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// dhcpClient is one program through its life.
type dhcpClient struct {
	t    *testing.T
	nic  inventory.NIC
	st   *netStation
	dir  string
	args []string
	cmd  *exec.Cmd
	file string // that says the lease, once it is there to be found again; "" none
}

func (c *dhcpClient) start() { c.cmd = c.st.start(c.args...) }

// restart is one after a power cut: it says nothing to anybody.
func (c *dhcpClient) restart() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.st.run("ip", "addr", "flush", "dev", "eth0")
	c.start()
}

// replug pulls its cable for a moment.
func (c *dhcpClient) replug() {
	run(c.t, "ip", "link", "set", c.st.port, "down")
	eventually(c.t, "it has lost its address", func() bool {
		return !strings.Contains(c.st.run("ip", "-4", "addr", "show", "dev", "eth0"), "inet ")
	})
	run(c.t, "ip", "link", "set", c.st.port, "up")
}

// Each client goes through all states of RFC 2131: first boot, reboot, renewal
// and, once the server cannot be reached by unicast, rebinding. The address stays,
// and tshark has nothing to say against our part of it.
func TestClientsKeepTheirAddressThroughTheirWholeLife(t *testing.T) {
	if !namespace(t, "dhclient", "udhcpc", "dhcpcd", "systemd-networkd", "nft", "tshark") {
		return
	}
	segment(t, "10.20.0.2/24")
	clients := []struct {
		name    string
		reboot  func(*dhcpClient)
		prepare func(*dhcpClient)
	}{
		{"dhclient", (*dhcpClient).restart, func(c *dhcpClient) {
			path, _ := script(c.t)
			conf := filepath.Join(c.dir, "dhclient.conf")
			c.file = filepath.Join(c.dir, "leases") // written after the script has run
			write(c.t, conf, "timeout 20;\nretry 1;\ninitial-interval 1;\nbackoff-cutoff 1;\nreboot 10;\n")
			c.args = []string{"dhclient", "-4", "-d", "-cf", conf, "-lf", c.file, "-pf", filepath.Join(c.dir, "pid"), "-sf", path, "eth0"}
		}},
		// Busybox never sends INIT-REBOOT.
		{"udhcpc", nil, func(c *dhcpClient) {
			path, _ := script(c.t)
			c.args = []string{"udhcpc", "-f", "-i", "eth0", "-s", path, "-t", "20", "-T", "1"}
		}},
		{"dhcpcd", (*dhcpClient).restart, func(c *dhcpClient) {
			conf := filepath.Join(c.dir, "dhcpcd.conf")
			write(c.t, conf, "ipv4only\nnoarp\nnoipv4ll\ntimeout 0\n")
			// Its database and sockets are its own, for both of its lives.
			c.args = c.alone(fmt.Sprintf("mkdir -p %[1]s/lib %[1]s/run /var/lib/dhcpcd /run/dhcpcd; mount --bind %[1]s/lib /var/lib/dhcpcd; mount --bind %[1]s/run /run/dhcpcd; rm -f /run/dhcpcd/*; chmod 755 %[1]s/lib; exec dhcpcd -B -f %[2]s -c /bin/true eth0", c.dir, conf))
		}},
		// It asks for its old address when the cable comes back.
		{"systemd-networkd", (*dhcpClient).replug, func(c *dhcpClient) {
			write(c.t, filepath.Join(c.dir, "eth0.network"), "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n[DHCPv4]\nClientIdentifier=duid\n")
			// Without udev it takes interfaces as they are where /sys is read-only, and it
			// reads no configuration but this.
			c.args = c.alone(fmt.Sprintf("mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /etc/systemd; mount -t sysfs -o ro sysfs /sys; mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp; cp %s/eth0.network /run/systemd/network/; %s; exit", c.dir, tools["systemd-networkd"].path()))
		}},
	}
	set := rack(func(s *inventory.Set) {
		s.Networks[0].Force = true
		s.Networks[0].LeaseTime = inventory.Duration(12 * time.Second)
		s.Machines = nil
		for i, c := range clients {
			s.Machines = append(s.Machines, &inventory.Machine{Name: c.name, NICs: []inventory.NIC{{
				MAC: inventory.MAC(fmt.Sprintf("52:54:00:00:02:%02x", i)), Network: "rack1", IP: netip.AddrFrom4([4]byte{10, 20, 0, byte(20 + i)})}}})
		}
	})
	s := serve(t, set)
	s.await(t, dutyServing)
	sn := sniff(t)
	t.Run("clients", func(t *testing.T) {
		for i, tt := range clients {
			nic := set.Machines[i].NICs[0]
			c := &dhcpClient{t: t, st: newStation(t, nic.MAC.String()), dir: t.TempDir(), nic: nic}
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				c.t, c.st.t = t, t
				tt.prepare(c)
				c.live(sn, tt.reboot)
			})
		}
	})
	if l := s.Leases(); len(l) != len(clients) {
		t.Errorf("leases %+v", l)
	}
	if st := s.Stats(); st.Replies["NAK"] > 0 || len(st.Malformed) > 0 {
		t.Errorf("stats %+v", st)
	}
	sn.close()
	sn.judge(t, 4*len(clients))
}

func (c *dhcpClient) live(sn *sniffer, reboot func(*dhcpClient)) {
	c.t.Helper()
	hasAddress := func() {
		c.t.Helper()
		eventually(c.t, "the interface has its address", func() bool {
			return strings.Contains(c.st.run("ip", "-4", "addr", "show", "dev", "eth0"), "inet "+c.nic.IP.String()+"/24")
		})
	}
	// reaches waits until the client asks in a state, and is answered.
	reaches := func(state string, act func()) {
		c.t.Helper()
		before := sn.count(c.nic.MAC, "ACK")
		act()
		sn.await(c.t, c.nic.MAC, state)
		eventually(c.t, "it is acknowledged", func() bool { return sn.count(c.nic.MAC, "ACK") > before })
		hasAddress()
	}
	reaches("SELECTING", c.start)
	if c.file != "" {
		logged(c.t, c.file, "fixed-address "+c.nic.IP.String())
	}
	if reboot != nil {
		reaches("INIT-REBOOT", func() { reboot(c) })
	}
	reaches("RENEWING", func() {})
	reaches("REBINDING", func() {
		c.st.run("nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }; add rule ip t o ip daddr 10.20.0.2 udp dport 67 drop")
	})
}

// alone runs a shell command with mounts of its own, and ends all it starts, with the
// shell: whoever changes its user, as networkd does, is not ended with unshare.
func (c *dhcpClient) alone(command string) []string {
	return []string{"unshare", "-m", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-ec", command}
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Whoever asks for routes is told all of them, the default one among them, and reads
// them as we mean them.
func TestRealClientsReadTheRoutes(t *testing.T) {
	if !namespace(t, "dhclient", "udhcpc") {
		return
	}
	segment(t, "10.20.0.2/24")
	s := serve(t, rack(func(s *inventory.Set) {
		s.Networks[0].Force = true
		s.Networks[0].Routes = []inventory.Route{{To: netip.MustParsePrefix("10.30.0.0/15"), Via: netip.MustParseAddr("10.20.0.254")}}
	}))
	s.await(t, dutyServing)
	for _, tt := range []struct {
		name, mac, want string
		args            func(dir, script string) []string
	}{
		{"udhcpc", macDeclared, "staticroutes=10.30.0.0/15 10.20.0.254 0.0.0.0/0 10.20.0.1\n", func(_, script string) []string {
			return []string{"udhcpc", "-f", "-i", "eth0", "-s", script, "-t", "20", "-T", "1", "-O", "staticroutes"}
		}},
		{"dhclient", macStranger, "new_routes121=15 10 30 10 20 0 254 0 10 20 0 1\n", func(dir, script string) []string {
			conf := filepath.Join(dir, "dhclient.conf")
			write(t, conf, "timeout 20;\nretry 1;\ninitial-interval 1;\noption routes121 code 121 = array of unsigned integer 8;\nrequest subnet-mask, routers, routes121;\n")
			return []string{"dhclient", "-4", "-1", "-d", "-cf", conf, "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "-sf", script, "eth0"}
		}},
	} {
		path, log := script(t)
		newStation(t, tt.mac).start(tt.args(t.TempDir(), path)...)
		logged(t, log, tt.want)
	}
}

// What a network engineer asks first sees one server, ours, and all it says.
func TestNmapFindsOurServerAlone(t *testing.T) {
	if !namespace(t, "nmap") {
		return
	}
	segment(t, "10.20.0.2/24")
	s := serve(t, rack(func(s *inventory.Set) { s.Networks[0].Force = true }))
	s.await(t, dutyServing)
	st := newStation(t, macDeclared)
	st.run("ip", "link", "set", "lo", "up")
	// It sends as any program does, from an address of its machine.
	st.run("ip", "addr", "add", "10.20.0.200/24", "dev", "eth0")
	st.run("ip", "route", "add", "255.255.255.255", "dev", "eth0")
	var out string
	eventually(t, "nmap has an answer", func() bool {
		b, err := st.command("nmap", "-n", "-e", "eth0", "--script", "broadcast-dhcp-discover", "--script-args", "broadcast-dhcp-discover.mac=525400000005,broadcast-dhcp-discover.timeout=3s").CombinedOutput()
		out = string(b)
		return err == nil && strings.Contains(out, "DHCP Message Type: DHCPOFFER")
	})
	for _, want := range []string{`Response 1 of 1`, `IP Offered: 10.20.0.15`, `Server Identifier: 10.20.0.2`, `Subnet Mask: 255.255.255.0`, `Router: 10.20.0.1`, `Domain Name Server: 10.20.0.1, 9.9.9.9`, `IP Address Lease Time: 1h00m00s`} {
		if !strings.Contains(out, want) {
			t.Errorf("nmap does not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(regexp.MustCompile(`(?m)^\s*$\n`).ReplaceAllString(out, ""))
	}
	if _, ok := s.LeaseByAddr(netip.MustParseAddr("10.20.0.15")); ok {
		t.Error("a DISCOVER alone made a lease")
	}
}
