package dhcp

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

// Each client binds and renews; then our store is lost, and with it every lease and
// our name. Nobody answers RENEW any more, REBIND finds the new server, and every
// machine keeps its address. tshark has nothing to say against our part of it.
func TestClientsKeepTheirIPv6AddressThoughTheStoreIsLost(t *testing.T) {
	if !namespace(t, "dhclient", "dhcpcd", "systemd-networkd", "radvd", "tshark") {
		return
	}
	segment6(t, "2001:db8:20::2/64")
	clients := []struct {
		name    string
		prepare func(*dhcpClient)
	}{
		{"dhclient", func(c *dhcpClient) {
			path, _ := script6(c.t)
			conf := filepath.Join(c.dir, "conf")
			write(c.t, conf, "timeout 20;\nretry 1;\n")
			c.args = []string{"dhclient", "-6", "-d", "-cf", conf, "-lf", filepath.Join(c.dir, "leases"), "-pf", filepath.Join(c.dir, "pid"), "-sf", path, "eth0"}
		}},
		{"dhcpcd", func(c *dhcpClient) {
			conf := filepath.Join(c.dir, "dhcpcd.conf")
			write(c.t, conf, "noipv6rs\nslaac private\ninterface eth0\n  ia_na 7\n")
			c.args = c.alone(fmt.Sprintf("mkdir -p %[1]s/lib %[1]s/run /var/lib/dhcpcd /run/dhcpcd; mount --bind %[1]s/lib /var/lib/dhcpcd; mount --bind %[1]s/run /run/dhcpcd; chmod 755 %[1]s/lib; dhcpcd -6 -B -f %[2]s -c /bin/true eth0; exit", c.dir, conf))
		}},
		// It asks because the router says so.
		{"systemd-networkd", func(c *dhcpClient) {
			write(c.t, filepath.Join(c.dir, "eth0.network"), "[Match]\nName=eth0\n[Network]\nIPv6AcceptRA=yes\n")
			c.args = c.alone(fmt.Sprintf("mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /etc/systemd; mount -t sysfs -o ro sysfs /sys; mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp; cp %s/eth0.network /run/systemd/network/; %s; exit", c.dir, tools["systemd-networkd"].path()))
		}},
	}
	set := rack6(func(s *inventory.Set) {
		s.Networks[0].Force = true
		s.Networks[0].LeaseTime = inventory.Duration(16 * time.Second)
		s.Machines = nil
	})
	newStation6(t, "").radvd("on")
	sn := sniff(t)
	macs := map[inventory.MAC]string{}
	for i, tt := range clients {
		mac := inventory.MAC(fmt.Sprintf("52:54:00:00:06:%02x", i))
		macs[mac] = tt.name
		c := &dhcpClient{t: t, st: newStation6(t, mac.String()), dir: t.TempDir()}
		tt.prepare(c)
		c.start()
	}
	// leases waits until every client was seen to send a message, and is answered.
	leases := func(t *testing.T, s *Server, asks string) map[inventory.MAC]netip.Addr {
		t.Helper()
		held := map[inventory.MAC]netip.Addr{}
		for mac, name := range macs {
			sn.await(t, mac, asks)
			eventually(t, name+" has a lease", func() bool {
				for _, l := range s.Leases() {
					if l.MAC == mac {
						held[mac] = l.Addr
					}
				}
				return held[mac].IsValid()
			})
		}
		return held
	}
	var before, after map[inventory.MAC]netip.Addr
	t.Run("before", func(t *testing.T) { before = leases(t, serve6(t, set), "RENEW") })
	t.Run("after", func(t *testing.T) {
		s := serve6(t, set)
		after = leases(t, s, "REBIND")
		if st := s.Stats(); st.Silent["another server was chosen"] == 0 || len(st.Malformed) > 0 {
			t.Errorf("stats %+v", st)
		}
	})
	if diff := cmp.Diff(before, after, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
	sn.close()
	sn.judge(t, 3*len(clients))
}

// perfdhcp plays a relay before 200 machines that name themselves by DUID-LLT. It
// tells no hardware address, and all peer addresses are made of its own.
func TestPerfdhcpGetsEveryMachineItsOwnIPv6Address(t *testing.T) {
	if !namespace(t, "perfdhcp") {
		return
	}
	const machines = 200
	segment6(t, "2001:db8:20::2/64")
	set := rack6(func(s *inventory.Set) {
		s.Networks[0].Force = true
		s.Machines = nil
		for i := range machines {
			s.Machines = append(s.Machines, &inventory.Machine{Name: fmt.Sprintf("m%d", i), NICs: []inventory.NIC{{
				MAC: inventory.MAC(fmt.Sprintf("52:54:00:07:00:%02x", i)), IP6: netip.MustParseAddr(fmt.Sprintf("2001:db8:20::2:%x", i))}}})
		}
	})
	s := serve6(t, set)
	st := newStation6(t, "")
	st.run("ip", "addr", "add", "2001:db8:20::fe/64", "dev", "eth0", "nodad")
	out, err := st.command("perfdhcp", "-6", "-A", "1", "-r", "100", "-n", "400", "-R", fmt.Sprint(machines), "-b", "mac=52:54:00:07:00:00", "-W", "1000000", "-l", "eth0", "all").CombinedOutput()
	for _, want := range []string{"Malformed packets: 0", "rejected leases: 0", "non unique addresses: 0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("perfdhcp (%v) does not say %q:\n%s", err, want, out)
		}
	}
	leases := s.Leases()
	if len(leases) != machines {
		t.Errorf("%d machines have a lease", len(leases))
	}
	for _, l := range leases {
		if m := set.Machines[l.MAC.HardwareAddr()[5]]; l.Machine != m.Name || l.MAC != m.NICs[0].MAC || l.Addr != m.NICs[0].IP6 {
			t.Errorf("%+v", l)
		}
	}
	if st := s.Stats(); len(st.Malformed) > 0 {
		t.Errorf("stats %+v", st)
	}
}
