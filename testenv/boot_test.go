package testenv

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// bootRow is one way from firmware to the agent: an undeclared machine in a
// network that discovers must hand its inventory to the server.
type bootRow struct {
	name    string
	quick   bool // in every run; the others where RECAST_LONG is set
	machine RackMachine
	network bootNetwork
	once    BootOnce // zero: PXE
	// declared machines are told to be inspected; what follows is their spec's.
	declared string
	// prepare, when the server runs, gives more of that.
	prepare func(s *story) string
	expect  func(t *testing.T, b bootSeen)
}

// bootNetwork is what stands between machine and server.
type bootNetwork struct {
	segments []string // beside NetBridge; listened on too
	needs    []string // programs
	declare  string   // the operator's file
	arrange  func(s *story)
}

// bootSeen is how a machine came.
type bootSeen struct {
	mac     inventory.MAC // of the card that the inventory came over
	facts   inventory.Facts
	wire    []wireLine
	dir     string // the rack's
	console string // its file
}

// bootRows is the table: a row more is a way more.
var bootRows = []bootRow{
	{
		name:    "SeaBIOS and the iPXE of its card",
		machine: RackMachine{Firmware: FirmwareBIOS},
		network: bootDirect,
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "iPXE of the card", func(d *dhcpv4.DHCPv4) bool { return bootArch(d) == 0 && d.Options.Has(dhcpv4.GenericOptionCode(175)) })
			b.answered(t, rackServer.Addr(), "an address and the script", func(d *dhcpv4.DHCPv4) bool {
				return !d.YourIPAddr.IsUnspecified() && strings.HasPrefix(d.BootFileName, "http://10.77.0.1:8080/boot/script?")
			})
			b.files(t, nil, []string{"GET /boot/script", "GET /boot/ramdisk/vmlinuz", "GET /boot/ramdisk/initrd.img"})
		},
	},
	{
		name:    "OVMF by PXE and TFTP",
		machine: RackMachine{Firmware: FirmwareUEFI},
		network: bootDirect,
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "PXE of UEFI", bootPXE7)
			b.answered(t, rackServer.Addr(), "an address and the loader's name", func(d *dhcpv4.DHCPv4) bool {
				return !d.YourIPAddr.IsUnspecified() && d.BootFileName == "snponly.efi" && d.ClassIdentifier() == "PXEClient"
			})
			b.files(t, []string{"snponly.efi"}, []string{"GET /boot/script", "GET /boot/ramdisk/vmlinuz", "GET /boot/ramdisk/initrd.img"})
		},
	},
	{
		name:     "OVMF with Secure Boot by shim and GRUB",
		machine:  RackMachine{Firmware: FirmwareUEFI, SecureBoot: true},
		network:  bootDirect,
		declared: "secureBoot: true",
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "PXE of UEFI", bootPXE7)
			b.answered(t, rackServer.Addr(), "an address and the signed loader's name", func(d *dhcpv4.DHCPv4) bool {
				return !d.YourIPAddr.IsUnspecified() && d.BootFileName == "shimx64.efi"
			})
			for _, name := range []string{"shimx64.efi", "grubx64.efi", "grub/grub.cfg", "boot/ramdisk/vmlinuz", "boot/ramdisk/initrd.img"} {
				if !slices.ContainsFunc(b.wire, func(l wireLine) bool { return strings.Contains(l.TFTP, name) }) {
					t.Errorf("%s was not asked for by TFTP", name)
				}
			}
			if slices.ContainsFunc(b.wire, func(l wireLine) bool {
				return strings.Contains(l.TFTP+l.HTTP, "snponly.efi") || strings.Contains(l.TFTP+l.HTTP, "ipxe-amd64.efi")
			}) {
				t.Error("a loader that is not signed was asked for")
			}
			if !b.facts.Boot.SecureBoot {
				t.Errorf("the ramdisk says that Secure Boot is off: %+v", b.facts.Boot)
			}
		},
	},
	{
		name:     "OVMF with Secure Boot by PXE and an iPXE that the owner signed",
		machine:  RackMachine{Firmware: FirmwareUEFI, SecureBoot: true},
		network:  bootDirect,
		declared: "secureBoot: true",
		prepare:  ownLoader,
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "PXE of UEFI", bootPXE7)
			b.ownIPXE(t)
		},
	},
	{
		name:     "OVMF with Secure Boot by a shim and the iPXE beside it",
		machine:  RackMachine{Firmware: FirmwareUEFI, SecureBoot: true},
		network:  bootDirect,
		declared: "secureBoot: true",
		prepare:  shimmedLoader,
		expect: func(t *testing.T, b bootSeen) {
			all := b.loaded()
			for _, want := range []string{"/shimx64.efi", "/grubx64.efi", "/boot/script", "/boot/ramdisk/vmlinuz", "/boot/ramdisk/initrd.img"} {
				if !slices.ContainsFunc(all, func(p string) bool { return strings.HasSuffix(p, want) }) {
					t.Errorf("%s was not asked for: %q", want, all)
				}
			}
			if !b.facts.Boot.SecureBoot {
				t.Errorf("the ramdisk says that Secure Boot is off: %+v", b.facts.Boot)
			}
		},
	},
	{
		name:     "OVMF with Secure Boot by HTTP Boot and an iPXE that the owner signed",
		machine:  RackMachine{Firmware: FirmwareUEFI, SecureBoot: true, NetBoot: NetBootHTTP},
		network:  bootDirect,
		declared: "secureBoot: true",
		prepare:  ownLoader,
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "HTTP Boot", func(d *dhcpv4.DHCPv4) bool { return bootArch(d) == 16 })
			b.ownIPXE(t)
			if !b.facts.Boot.HTTPBoot {
				t.Errorf("the ramdisk does not say that it came by HTTP Boot: %+v", b.facts.Boot)
			}
		},
	},
	{
		name:     "OVMF with Secure Boot that trusts its owner alone, iPXE and ramdisk signed",
		machine:  RackMachine{Firmware: FirmwareUEFI, SecureBoot: true, NetBoot: NetBootHTTP},
		network:  bootNetwork{declare: bootDirect.declare, arrange: ownRamdisk},
		declared: "secureBoot: true",
		prepare:  ownKeys,
		expect: func(t *testing.T, b bootSeen) {
			all := b.loaded()
			for _, want := range []string{"/ipxe.efi", "/boot/script", "/boot/ramdisk/ramdisk.efi"} {
				if !slices.ContainsFunc(all, func(p string) bool { return strings.HasSuffix(p, want) }) {
					t.Errorf("%s was not asked for: %q", want, all)
				}
			}
			if slices.ContainsFunc(all, func(p string) bool { return strings.Contains(p, "vmlinuz") || strings.Contains(p, "shim") }) {
				t.Errorf("something was asked for that others signed: %q", all)
			}
			if !b.facts.Boot.SecureBoot || !b.facts.Boot.HTTPBoot {
				t.Errorf("the ramdisk says %+v", b.facts.Boot)
			}
		},
	},
	{
		name: "OVMF by HTTP Boot", quick: true,
		machine: RackMachine{Firmware: FirmwareUEFI, NetBoot: NetBootHTTP, TPM: true},
		network: bootDirect,
		expect: func(t *testing.T, b bootSeen) {
			if b.facts.TPM != "2" {
				t.Errorf("the ramdisk sees a TPM of version %q, want 2", b.facts.TPM)
			}
			b.asked(t, "HTTP Boot", func(d *dhcpv4.DHCPv4) bool {
				return bootArch(d) == 16 && strings.HasPrefix(d.ClassIdentifier(), "HTTPClient:Arch:00016")
			})
			b.answered(t, rackServer.Addr(), "an address and the loader's URL", func(d *dhcpv4.DHCPv4) bool {
				return !d.YourIPAddr.IsUnspecified() && d.ClassIdentifier() == "HTTPClient" && d.BootFileName == "http://10.77.0.1:8080/boot/loader/snponly.efi"
			})
			b.files(t, nil, []string{"HEAD /boot/loader/snponly.efi", "GET /boot/loader/snponly.efi", "GET /boot/script", "GET /boot/ramdisk/vmlinuz", "GET /boot/ramdisk/initrd.img"})
		},
	},
	{
		// What HttpBootUri says, whatever DHCP would name.
		name:    "OVMF by HTTP Boot from the BMC's address",
		machine: RackMachine{Firmware: FirmwareUEFI},
		network: bootDirect,
		once:    BootOnce{Device: BootHTTP, UEFI: true, URI: "http://10.77.0.1:8080/boot/loader/snponly.efi?from=bmc"},
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "HTTP Boot", func(d *dhcpv4.DHCPv4) bool { return bootArch(d) == 16 })
			b.files(t, nil, []string{"HEAD /boot/loader/snponly.efi", "GET /boot/loader/snponly.efi", "GET /boot/script", "GET /boot/ramdisk/vmlinuz", "GET /boot/ramdisk/initrd.img"})
			for _, l := range b.wire {
				if strings.Contains(l.HTTP, "/boot/loader/snponly.efi") && !strings.Contains(l.HTTP, "?from=bmc") {
					t.Errorf("asked for what DHCP names: %s", l.HTTP)
				}
			}
		},
	},
	{
		name: "SeaBIOS beside dnsmasq", quick: true,
		machine: RackMachine{Firmware: FirmwareBIOS},
		network: bootProxy,
		expect:  func(t *testing.T, b bootSeen) { b.beside(t, nil) },
	},
	{
		name:    "OVMF by PXE beside dnsmasq",
		machine: RackMachine{Firmware: FirmwareUEFI},
		network: bootProxy,
		expect:  func(t *testing.T, b bootSeen) { b.beside(t, []string{"snponly.efi"}) },
	},
	{
		name:    "OVMF by HTTP Boot beside dnsmasq",
		machine: RackMachine{Firmware: FirmwareUEFI, NetBoot: NetBootHTTP},
		network: bootProxy,
		expect: func(t *testing.T, b bootSeen) {
			b.beside(t, nil, "HEAD /boot/loader/snponly.efi", "GET /boot/loader/snponly.efi")
		},
	},
	{
		name:    "SeaBIOS through a relay",
		machine: RackMachine{Firmware: FirmwareBIOS, NICs: []RackNIC{{Segment: bootSegment}}},
		network: bootRelayed,
		expect:  func(t *testing.T, b bootSeen) { b.relayed(t, nil) },
	},
	{
		name:    "OVMF by PXE through a relay",
		machine: RackMachine{Firmware: FirmwareUEFI, NICs: []RackNIC{{Segment: bootSegment}}},
		network: bootRelayed,
		expect:  func(t *testing.T, b bootSeen) { b.relayed(t, []string{"snponly.efi"}) },
	},
	{
		name:    "SeaBIOS with two cards of which the second has the link",
		machine: RackMachine{Firmware: FirmwareBIOS, NICs: []RackNIC{{Down: true}, {}}},
		network: bootDirect,
		expect:  func(t *testing.T, b bootSeen) { b.bySecondCard(t) },
	},
	{
		name:    "OVMF with two cards of which the second has the link",
		machine: RackMachine{Firmware: FirmwareUEFI, NICs: []RackNIC{{Down: true}, {}}},
		network: bootDirect,
		expect:  func(t *testing.T, b bootSeen) { b.bySecondCard(t) },
	},
	{
		name:    "OVMF by PXE over IPv6",
		machine: RackMachine{Firmware: FirmwareUEFI, NetBoot: NetBootPXE6},
		network: bootIPv6,
		expect: func(t *testing.T, b bootSeen) {
			b.answered6(t, "tftp://["+bootServer6.Addr().String()+"]/snponly.efi")
			b.files(t, []string{"snponly.efi"}, bootRamdisk)
		},
	},
	{
		name:    "OVMF by HTTP Boot over IPv6",
		machine: RackMachine{Firmware: FirmwareUEFI, NetBoot: NetBootHTTP}, // IPv4 first, in vain
		network: bootIPv6,
		expect: func(t *testing.T, b bootSeen) {
			b.answered6(t, "http://["+bootServer6.Addr().String()+"]:8080/boot/loader/snponly.efi")
			b.files(t, nil, append([]string{"HEAD /boot/loader/snponly.efi", "GET /boot/loader/snponly.efi"}, bootRamdisk...))
		},
	},
	{
		name:    "OVMF by PXE in a VLAN of a trunk",
		machine: RackMachine{Firmware: FirmwareUEFI, NICs: []RackNIC{{Segment: bootSegment}}},
		network: bootVLAN,
		expect: func(t *testing.T, b bootSeen) {
			b.files(t, []string{"snponly.efi"}, bootRamdisk)
			b.tagged(t)
		},
	},
	{
		name:    "arm64 AAVMF by PXE and TFTP",
		machine: bootARM64,
		network: bootDirect,
		expect: func(t *testing.T, b bootSeen) {
			b.asked(t, "PXE of arm64", func(d *dhcpv4.DHCPv4) bool { return bootArch(d) == 11 })
			b.answered(t, rackServer.Addr(), "an address and the loader's name", func(d *dhcpv4.DHCPv4) bool {
				return !d.YourIPAddr.IsUnspecified() && d.BootFileName == "ipxe-arm64.efi" && d.ClassIdentifier() == "PXEClient"
			})
			b.files(t, []string{"ipxe-arm64.efi"}, []string{"GET /boot/script", "GET /boot/ramdisk/vmlinuz-arm64", "GET /boot/ramdisk/initrd-arm64.img"})
			if b.facts.CPU.Architecture != "aarch64" {
				t.Errorf("the inventory says %+v", b.facts.CPU)
			}
		},
	},
}

var bootARM64 = RackMachine{Firmware: FirmwareUEFI, Arch: inventory.ARM64, Disks: []RackDisk{{Bus: BusVirtio}}}

const bootNetworkYAML = "apiVersion: recast/v1\nkind: Network\nmetadata: {name: lab}\nspec: {unknown: discover, "

// bootDirect has the machine on the server's own wire.
var bootDirect = bootNetwork{
	declare: bootNetworkYAML + "subnet: 10.77.0.0/24, dhcp: authoritative, pool: 10.77.0.100-10.77.0.199}\n",
}

// bootOther is who else is there: dnsmasq or the relay.
var bootOther = netip.MustParsePrefix("10.77.0.2/24")

// bootProxy has dnsmasq on the same wire, which gives the addresses and knows
// nothing of booting.
var bootProxy = bootNetwork{
	needs:   []string{"dnsmasq"},
	declare: bootNetworkYAML + "subnet: 10.77.0.0/24, dhcp: proxy}\n",
	arrange: func(s *story) {
		h := s.neighbour("dnsmasq", NeighbourLeg{NetBridge, bootOther})
		s.start(h, "dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--user=root", "--interface=eth0", "--no-ping", "--log-facility=-", "--log-dhcp",
			"--dhcp-range=10.77.0.200,10.77.0.219,1h", "--dhcp-leasefile="+filepath.Join(s.Options.Dir, bootLeases), "--pid-file=")
	},
}

// bootLeases is dnsmasq's file.
const bootLeases = "dnsmasq.leases"

// The machines' segment behind the relay, and the relay's address on it.
const bootSegment = "br1"

var bootRelay = netip.MustParsePrefix("10.79.0.254/24")

// bootRelayed has the machine behind a router that relays by ISC's dhcrelay.
var bootRelayed = bootNetwork{
	needs:    []string{"dhcrelay"},
	segments: []string{bootSegment},
	declare:  bootNetworkYAML + "subnet: 10.79.0.0/24, gateway: 10.79.0.254, dhcp: authoritative, pool: 10.79.0.100-10.79.0.199}\n",
	arrange: func(s *story) {
		h := s.neighbour("relay", NeighbourLeg{NetBridge, bootOther}, NeighbourLeg{bootSegment, bootRelay})
		s.must(s.Net.ip("route add 10.79.0.0/24 via " + bootOther.Addr().String()))
		s.start(h, "dhcrelay", "-4", "-d", "--no-pid", "-a", "-id", "eth1", "-iu", "eth0", rackServer.Addr().String())
	},
}

// bootServer6 is our address where there is no IPv4 but the management's.
var bootServer6 = netip.MustParsePrefix("2001:db8:77::1/64")

// bootIPv6 has the machine on a wire with a router that sends hosts to DHCPv6.
var bootIPv6 = bootNetwork{
	needs:   []string{"radvd"},
	declare: bootNetworkYAML + "subnet: 2001:db8:77::/64, dhcp: authoritative, pool: 2001:db8:77::1:0-2001:db8:77::1:ffff}\n",
	arrange: func(s *story) {
		// The lab's own router, which knows of no DHCPv6, would be the first to answer.
		for _, end := range s.Net.adverts {
			end()
		}
		s.Net.adverts = nil
		s.must(s.Net.Do(func() error {
			for _, name := range []string{"all", NetBridge} {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0\n"), 0o644); err != nil {
					return err
				}
			}
			return nil
		}))
		s.must(s.Net.ip("address add " + bootServer6.String() + " dev " + NetBridge + " nodad"))
		h := s.neighbour("router", NeighbourLeg{NetBridge, netip.MustParsePrefix("2001:db8:77::fe/64")})
		// At once: its own would be tentative for a while.
		s.must((&Net{Name: h.Name}).ip("address add fe80::fe/64 dev eth0 nodad"))
		s.must(NetDo(h.Name, func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1\n"), 0o644)
		}))
		conf := filepath.Join(s.Options.Dir, "radvd.conf")
		s.must(os.WriteFile(conf, []byte("interface eth0 { AdvSendAdvert on; AdvManagedFlag on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; prefix 2001:db8:77::/64 { AdvAutonomous off; }; };\n"), 0o644))
		s.start(h, "radvd", "-n", "-C", conf, "-p", filepath.Join(s.Options.Dir, "radvd.pid"), "-m", "stderr")
	},
}

func TestMachinesBootToTheAgent(t *testing.T) {
	for _, row := range bootRows {
		if !row.quick && os.Getenv("RECAST_LONG") == "" {
			continue // one of make test-boot
		}
		t.Run(row.name, func(t *testing.T) {
			for _, tool := range row.network.needs {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("needs %s (make setup)", tool)
				}
			}
			bootTo(t, row)
		})
	}
}

// bootWithin is what a machine may take from power to inventory.
const bootWithin = 5 * time.Minute

// bootTo plays one row.
func bootTo(t *testing.T, row bootRow) {
	row.machine.Name = "m1"
	s := newStory(t, storySetup{Machines: []RackMachine{row.machine}, DiskSize: 64 * osMiB, Segments: row.network.segments, Takes: bootWithin + time.Minute})
	if row.machine.Arch == inventory.ARM64 {
		e2eARM64(t, s.parts)
	}
	w := s.listenWire(append([]string{NetBridge}, row.network.segments...)...)
	defer func() {
		if t.Failed() {
			for _, l := range w.all() {
				t.Log(l)
			}
		}
	}()
	if row.network.arrange != nil {
		row.network.arrange(s)
	}
	s.serve()
	n := s.Node("m1")
	declare := row.network.declare
	if row.prepare != nil {
		row.declared += ", " + row.prepare(s)
	}
	if row.declared != "" {
		declare += fmt.Sprintf("---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: m1}\nspec: {firmware: %s, nics: [{mac: %q, network: lab}], %s}\n", n.Firmware, n.NICs[0].MAC, row.declared)
	}
	s.must(os.WriteFile(s.yaml, []byte(declare), 0o644))
	s.apply()
	if row.declared != "" {
		s.recast("inspect", "m1")
	}
	if row.once.Device == BootNone {
		row.once = BootOnce{Device: BootPXE, UEFI: n.UEFI()}
	}
	s.must(n.SetBootOnce(row.once))
	start := time.Now()
	s.must(n.PowerOn(t.Context()))
	var found []struct {
		MAC   inventory.MAC
		Facts inventory.Facts
	}
	// Watched on the wire first: to ask the server costs a process each time.
	s.until("it loads the ramdisk", bootWithin, func() bool {
		return slices.ContainsFunc(w.all(), func(l wireLine) bool {
			return strings.Contains(l.HTTP+l.TFTP, "/initrd") || strings.Contains(l.HTTP+l.TFTP, "/ramdisk.efi")
		})
	})
	s.until("its inventory is there", bootWithin, func() bool {
		if row.declared == "" {
			s.ask(&found, "get", "discovered")
			return len(found) > 0
		}
		var views []struct {
			Status struct{ Facts *inventory.Facts }
		}
		if s.ask(&views, "get", "machines", "m1"); len(views) != 1 || views[0].Status.Facts == nil {
			return false
		}
		found = append(found, struct {
			MAC   inventory.MAC
			Facts inventory.Facts
		}{inventory.MAC(n.NICs[0].MAC), *views[0].Status.Facts})
		return true
	})
	t.Logf("its inventory is there after %v", time.Since(start).Round(time.Second/10))
	if f := found[0].Facts; f.SystemVendor.SerialNumber != n.Serial || len(f.Interfaces) != len(n.NICs) || len(f.Disks) != 1 {
		t.Errorf("the inventory says %+v", f)
	}
	row.expect(t, bootSeen{mac: found[0].MAC, facts: found[0].Facts, wire: w.all(), dir: s.Options.Dir, console: n.ConsoleLog()})
}

// neighbour adds a host that goes with the test.
func (s *story) neighbour(name string, legs ...NeighbourLeg) *Neighbour {
	s.t.Helper()
	h, err := s.Net.AddNeighbour(name, legs...)
	s.must(err)
	s.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return h
}

// start runs a program on a neighbour until the test ends; what it says is shown
// where the test fails.
func (s *story) start(h *Neighbour, name string, args ...string) {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.Options.Dir, name+".log"))
	s.must(err)
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	s.must(h.Start(cmd))
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if s.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.t.Logf("%s said:\n%s", name, text)
		}
	})
}

// bootArch is option 93.
func bootArch(d *dhcpv4.DHCPv4) int {
	if list := d.ClientArch(); len(list) > 0 {
		return int(list[0])
	}
	return -1
}

func bootPXE7(d *dhcpv4.DHCPv4) bool {
	return bootArch(d) == 7 && strings.HasPrefix(d.ClassIdentifier(), "PXEClient:Arch:00007")
}

// asked checks that the machine said this in a DISCOVER.
func (b bootSeen) asked(t *testing.T, what string, ok func(*dhcpv4.DHCPv4) bool) {
	t.Helper()
	if !slices.ContainsFunc(b.wire, func(l wireLine) bool {
		return l.DHCP != nil && l.DHCP.MessageType() == dhcpv4.MessageTypeDiscover && inventory.MACOf(l.DHCP.ClientHWAddr) == b.mac && ok(l.DHCP)
	}) {
		t.Errorf("no DISCOVER of %s is from %s", b.mac, what)
	}
}

// answered checks that a server offered this to the machine.
func (b bootSeen) answered(t *testing.T, server netip.Addr, what string, ok func(*dhcpv4.DHCPv4) bool) {
	t.Helper()
	if !slices.ContainsFunc(b.offers(server), ok) {
		t.Errorf("no OFFER of %s to %s holds %s", server, b.mac, what)
	}
}

// answered6 checks that a DHCPv6 REPLY held the URL, and that nobody spoke DHCPv4.
func (b bootSeen) answered6(t *testing.T, url string) {
	t.Helper()
	const reply = 7
	if !slices.ContainsFunc(b.wire, func(l wireLine) bool {
		return l.From.Port() == 547 && len(l.UDP) > 4 && l.UDP[0] == reply && strings.Contains(string(l.UDP), url)
	}) {
		t.Errorf("no REPLY holds %s", url)
	}
	if offers := b.offers(rackServer.Addr()); len(offers) > 0 {
		t.Errorf("answered by DHCPv4: %v", offers)
	}
}

// offers and acknowledgements of one server.
func (b bootSeen) offers(server netip.Addr) (all []*dhcpv4.DHCPv4) {
	for _, l := range b.wire {
		if l.DHCP != nil && l.DHCP.OpCode == dhcpv4.OpcodeBootReply && inventory.MACOf(l.DHCP.ClientHWAddr) == b.mac &&
			l.DHCP.ServerIdentifier().Equal(server.AsSlice()) {
			all = append(all, l.DHCP)
		}
	}
	return all
}

// loaded are the paths of what the machine fetched, by HTTP and by TFTP.
func (b bootSeen) loaded() (all []string) {
	for _, l := range b.wire {
		path, _, _ := strings.Cut(strings.TrimPrefix(l.HTTP, "GET "), "?")
		for _, p := range []string{path, l.TFTP} {
			if p != "" && !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// ownIPXE checks that an imported iPXE came with its autoexec.ipxe, that the firmware
// did not know the kernel, and that the shim which does was fetched for it.
func (b bootSeen) ownIPXE(t *testing.T) {
	t.Helper()
	all := b.loaded()
	for _, want := range []string{"/ipxe.efi", "/autoexec.ipxe", "/boot/script", "/boot/ramdisk/vmlinuz", "/boot/ramdisk/initrd.img", "/boot/loader/shimx64.efi"} {
		if !slices.ContainsFunc(all, func(p string) bool { return strings.HasSuffix(p, want) }) {
			t.Errorf("%s was not asked for: %q", want, all)
		}
	}
	if slices.ContainsFunc(all, func(p string) bool { return strings.Contains(p, "snponly") || strings.Contains(p, "grub") }) {
		t.Errorf("a loader of ours was asked for: %q", all)
	}
	if !b.facts.Boot.SecureBoot {
		t.Errorf("the ramdisk says that Secure Boot is off: %+v", b.facts.Boot)
	}
}

// files checks what the machine loaded: which by TFTP, and which by HTTP in this
// order. What a loader asks beside them, autoexec.ipxe, is its own affair.
func (b bootSeen) files(t *testing.T, tftp, http []string) {
	t.Helper()
	var byTFTP, byHTTP []string
	for _, l := range b.wire {
		if l.Bridge != NetBridge {
			continue // the same once more
		}
		path, _, _ := strings.Cut(l.HTTP, "?")
		for _, seen := range []struct {
			list *[]string
			what string
		}{{&byTFTP, l.TFTP}, {&byHTTP, path}} {
			if seen.what != "" && !strings.HasSuffix(seen.what, "autoexec.ipxe") && !slices.Contains(*seen.list, seen.what) {
				*seen.list = append(*seen.list, seen.what)
			}
		}
	}
	if !slices.Equal(byTFTP, tftp) {
		t.Errorf("it loaded by TFTP %q; want %q", byTFTP, tftp)
	}
	if !slices.Equal(byHTTP, http) {
		t.Errorf("it asked by HTTP %q; want %q", byHTTP, http)
	}
}

var bootRamdisk = []string{"GET /boot/script", "GET /boot/ramdisk/vmlinuz", "GET /boot/ramdisk/initrd.img"}

// beside checks that dnsmasq gave every address and no boot file, and we the
// other way round.
func (b bootSeen) beside(t *testing.T, tftp []string, first ...string) {
	t.Helper()
	addresses, boots := b.offers(bootOther.Addr()), b.offers(rackServer.Addr())
	if len(addresses) == 0 || len(boots) == 0 {
		t.Errorf("dnsmasq answered %d times, recast %d times", len(addresses), len(boots))
	}
	for _, d := range addresses {
		if d.YourIPAddr.IsUnspecified() || d.BootFileName != "" || d.Options.Has(dhcpv4.OptionBootfileName) {
			t.Errorf("dnsmasq said %s", d.Summary())
		}
	}
	for _, d := range boots {
		if !d.YourIPAddr.IsUnspecified() || d.BootFileName == "" {
			t.Errorf("recast said %s", d.Summary())
		}
	}
	leases, err := os.ReadFile(filepath.Join(b.dir, bootLeases))
	if err != nil || !strings.Contains(string(leases), b.mac.String()) {
		t.Errorf("dnsmasq's leases: %q, %v", leases, err)
	}
	b.files(t, tftp, append(first, bootRamdisk...))
}

// relayed checks that every question came to the server by the relay, with its
// address, and every answer went back to it.
func (b bootSeen) relayed(t *testing.T, tftp []string) {
	t.Helper()
	asked := 0
	for _, l := range b.wire {
		if l.Bridge != NetBridge || l.DHCP == nil || inventory.MACOf(l.DHCP.ClientHWAddr) != b.mac {
			continue
		}
		want := fmt.Sprintf("%s > %s", netip.AddrPortFrom(bootOther.Addr(), 67), netip.AddrPortFrom(rackServer.Addr(), 67))
		if l.DHCP.OpCode == dhcpv4.OpcodeBootReply {
			want = fmt.Sprintf("%s > %s", netip.AddrPortFrom(rackServer.Addr(), 67), netip.AddrPortFrom(bootRelay.Addr(), 67))
		} else {
			asked++
		}
		if got := fmt.Sprintf("%s > %s", l.From, l.To); got != want || !l.DHCP.GatewayIPAddr.Equal(bootRelay.Addr().AsSlice()) || l.DHCP.RelayAgentInfo() == nil {
			t.Errorf("%s; want %s with the relay's address and option 82", l, want)
		}
	}
	if asked == 0 {
		t.Error("the relay asked the server nothing")
	}
	b.answered(t, rackServer.Addr(), "an address of its segment", func(d *dhcpv4.DHCPv4) bool {
		a, _ := netip.AddrFromSlice(d.YourIPAddr.To4())
		return bootRelay.Contains(a) && d.BootFileName != ""
	})
	b.files(t, tftp, bootRamdisk)
}

// bySecondCard checks that the first card said nothing, in the firmware and later.
func (b bootSeen) bySecondCard(t *testing.T) {
	t.Helper()
	const first, second = "52:54:00:77:00:0b", "52:54:00:77:01:0b"
	if b.mac != second {
		t.Errorf("the inventory came from %s; want %s", b.mac, second)
	}
	for _, l := range b.wire {
		if l.Src == first || l.DHCP != nil && l.DHCP.ClientHWAddr.String() == first {
			t.Errorf("the card without a link said %s", l)
		}
	}
	b.asked(t, "its firmware", func(d *dhcpv4.DHCPv4) bool { return bootArch(d) >= 0 })
	for _, i := range b.facts.Interfaces {
		if i.HasCarrier != (i.MAC == second) {
			t.Errorf("the inventory says %+v", i)
		}
	}
}
