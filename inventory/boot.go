package inventory

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// Boot is how a machine is handed over from the network. It is no part of a
// generation: it changes the way to what runs, not what runs.
type Boot struct {
	// Via is how its BMC makes it boot: BootMedia, BootHTTP; "" is by the network.
	Via BootVia `json:"via,omitempty"`
	// Loader is what its firmware loads: LoaderSNPOnly, LoaderIPXE, or the digest
	// of an imported one; "" is the one that fits most machines.
	Loader string `json:"loader,omitempty"`
	// Local is how it starts its own disk; "" is by its firmware.
	Local LocalBoot `json:"local,omitempty"`
	// Console are the values of the ramdisk's console= arguments in order, the
	// last one being /dev/console; none means DefaultConsole.
	Console []string `json:"console,omitempty"`
	// Handover is HandoverReboot where no gate may start it by kexec; "" one may.
	Handover Handover `json:"handover,omitempty"`
}

// BootVia is what a BMC does so that its machine boots once from us.
type BootVia string

const (
	// BootNetwork: PXE or HTTP Boot, as DHCP says; whoever has the hardware address is
	// the machine (identity L0). Declared as the default, which is "" everywhere else.
	BootNetwork BootVia = "network"
	// BootHTTP: UEFI HTTP Boot from an address that the BMC is told, with a one-time
	// token in it. The machine's own address is DHCP's, anybody's.
	BootHTTP BootVia = "http"
	// BootMedia: a virtual CD that holds loader, address and nonce. No DHCP is needed.
	BootMedia BootVia = "media"
)

// Identity is how well it is known that who claims a machine is the machine.
type Identity string

const (
	// L0: a hardware address, and a nonce that anybody could ask for by it.
	L0 Identity = "L0"
	// L1: what the machine booted by came through its BMC, and the BMC says the same
	// UUID or serial as the machine.
	L1 Identity = "L1"
)

// Identity that a machine which boots so can have.
func (b Boot) Identity() Identity {
	if b.Via == "" {
		return L0
	}
	return L1
}

// The loaders that recast brings, by what drives the network card.
const (
	LoaderSNPOnly = "snponly" // the firmware; undionly under BIOS
	LoaderIPXE    = "ipxe"    // iPXE's own drivers
)

// LoaderDigest is the digest of an imported loader where one is declared.
func (b Boot) LoaderDigest() (Digest, bool) {
	d, err := ParseDigest(b.Loader)
	return d, err == nil
}

// LocalBoot is a way from the network to the machine's own disk. What works
// depends on the firmware.
type LocalBoot string

const (
	LocalExit    LocalBoot = "exit"     // the loader ends with an error: the firmware's next entry
	LocalSANBoot LocalBoot = "sanboot"  // iPXE starts the first disk itself
	LocalSilent  LocalBoot = "silent"   // firmware and loader get no DHCP answer
	LocalGRUB    LocalBoot = "grub"     // a GRUB from the network looks for the disk's own loader
	LocalHTTP404 LocalBoot = "http-404" // the boot file or script is "not found"
)

// DefaultConsole: both, since a machine without a serial port says nothing of it,
// and a server's screen is seldom looked at.
var DefaultConsole = map[Arch][]string{
	AMD64: {"tty0", "ttyS0,115200n8"},
	ARM64: {"tty0", "ttyAMA0"}, // as fast as the firmware left it
}

// Model is what machines of one build have in common. Parse puts it into the
// Machines that name it: a Set holds none.
type Model struct {
	Name string
	Boot Boot
}

// As the kernel's Documentation/admin-guide/serial-console.rst has them.
var consoleGrammar = regexp.MustCompile(`^(tty[0-9]{1,2}|(ttyS|ttyAMA|ttyUSB|hvc)[0-9]{1,2}(,[0-9]{3,7}([noe]([78]r?)?)?)?)$`)

// buildBoot checks how a machine boots by itself; what depends on the rest of a
// machine is checkBoot's.
func (s scope) buildBoot(raw rawMachineBoot) Boot {
	b := Boot{Via: BootVia(raw.Via.V), Loader: raw.Loader.V, Local: LocalBoot(raw.Local.V), Handover: Handover(raw.Handover.V)}
	if t := raw.Loader; t.given() && b.Loader != LoaderSNPOnly && b.Loader != LoaderIPXE {
		d, err := ParseDigest(t.V)
		if b.Loader = string(d); err != nil {
			s.problem(t.Line, "spec.boot.loader", fmt.Sprintf("unknown loader %q", t.V), "want snponly, ipxe, or the digest of an imported one as recast loader list prints it")
		}
	}
	for i, c := range raw.Console {
		if !consoleGrammar.MatchString(c.V) {
			s.problem(c.Line, "spec.boot.console["+strconv.Itoa(i)+"]", fmt.Sprintf("bad console %q", c.V), "want a device and its rate, such as tty0 or ttyS1,115200n8")
			continue
		}
		b.Console = append(b.Console, c.V)
	}
	return b
}

func (b *builder) buildModel(d *declared[rawModel]) {
	m := &Model{Name: d.Metadata.Name.V, Boot: d.buildBoot(d.Spec.Boot)}
	if d.named {
		b.model[m.Name] = m
	}
}

// over is the machine's own word, else the model's.
func (b Boot) over(model Boot) Boot {
	if b.Via == "" {
		b.Via = model.Via
	}
	if b.Loader == "" {
		b.Loader = model.Loader
	}
	if b.Local == "" {
		b.Local = model.Local
	}
	if b.Console == nil {
		b.Console = model.Console
	}
	if b.Handover == "" {
		b.Handover = model.Handover
	}
	return b
}

// checkBoot checks how a machine boots against what it is.
func (s scope) checkBoot(m *Machine, raw rawMachine) {
	at := func(t text) int { return max(t.Line, raw.Model.Line) }
	_, imported := m.Boot.LoaderDigest()
	if m.Boot.Via == BootNetwork {
		m.Boot.Via = "" // whatever the model says
	}
	s.checkVia(m, raw, at(raw.Boot.Via))
	if m.Arch != AMD64 && m.Boot.Loader == LoaderSNPOnly {
		s.problem(at(raw.Boot.Loader), "spec.boot.loader", fmt.Sprintf("there is no snponly for %s", m.Arch), "leave it out, or import one: recast loader import")
	}
	if m.Arch != AMD64 && m.Boot.Local == LocalGRUB {
		s.problem(at(raw.Boot.Local), "spec.boot.local", fmt.Sprintf("there is no GRUB for %s", m.Arch), "want one of exit, sanboot, silent, http-404")
	}
	if !m.SecureBoot {
		return
	}
	line := raw.SecureBoot.Line
	if m.Firmware == BIOS {
		s.problem(line, "spec.secureBoot", "a BIOS has no Secure Boot", "want firmware: uefi, or remove it")
	}
	if m.Arch != AMD64 && !imported {
		s.problem(line, "spec.secureBoot", fmt.Sprintf("there is no signed loader for %s", m.Arch), "import one (recast loader import) and name its digest in boot.loader")
	}
	if l := m.Boot.Loader; l != "" && !imported {
		s.problem(at(raw.Boot.Loader), "spec.boot.loader", fmt.Sprintf("the %s that recast brings is not signed, and with secureBoot only signed loaders are offered", l),
			"leave it out, which is Debian's shim and GRUB, or name an imported one by its digest")
	}
	if m.Boot.Local == LocalSANBoot && !imported {
		s.problem(at(raw.Boot.Local), "spec.boot.local", "sanboot is iPXE's, and with secureBoot the machine gets GRUB", "want one of exit, silent, grub, http-404")
	}
	for i, nic := range raw.NICs {
		if n := s.b.network[nic.Network.V]; n != nil && n.DHCP == DHCPProxy {
			s.problem(nic.Network.Line, "spec.nics["+strconv.Itoa(i)+"].network",
				fmt.Sprintf("network %q has dhcp: proxy, where shim and GRUB take the other server for ours", n.Name),
				"want a Network with dhcp: authoritative for a machine with secureBoot")
		} else if n != nil && n.VLAN != 0 && !imported {
			s.problem(nic.Network.Line, "spec.nics["+strconv.Itoa(i)+"].network",
				fmt.Sprintf("network %q has vlan: %d, and Debian's signed GRUB sends no tags", n.Name, n.VLAN),
				"give the switch port that VLAN without a tag and the machine another Network, or name an imported loader by its digest")
		}
	}
}

// checkVia checks what a boot through the BMC needs, and gives the interface that it
// goes by its address where nobody else does.
func (s scope) checkVia(m *Machine, raw rawMachine, line int) {
	via := m.Boot.Via
	if via == "" {
		return
	}
	problem := func(what, next string) { s.problem(line, "spec.boot.via", what, next) }
	_, imported := m.Boot.LoaderDigest()
	switch {
	case raw.BMC.Line == 0:
		problem(fmt.Sprintf("via: %s is done by the BMC, and the machine declares none", via), "declare its bmc, or leave via out")
	case m.BMC != nil && strings.HasPrefix(m.BMC.URL, "ipmi:"):
		problem(fmt.Sprintf("via: %s needs Redfish, and its bmc is reached by IPMI", via), "want a bmc.url of redfish://…, or leave via out")
	case via == BootHTTP && m.Firmware == BIOS:
		problem("a BIOS has no HTTP Boot", "want via: media, or firmware: uefi")
	case via == BootHTTP && m.SecureBoot && !imported, via == BootMedia && m.SecureBoot:
		problem(fmt.Sprintf("what recast brings for via: %s is not signed, and with secureBoot only signed loaders are offered", via), "leave via out; via: http can also be had by an imported loader (boot.loader)")
	case via == BootMedia && imported:
		problem("the medium holds recast's own iPXE, not an imported loader", "leave boot.loader out")
	}
	if via != BootMedia || len(m.NICs) == 0 {
		return
	}
	nic := &m.NICs[0]
	n := s.b.network[nic.Network]
	switch {
	case nic.MAC == "" || !nic.IP.IsValid() || n == nil:
		problem("a machine without DHCP needs its address on the medium", "give its first interface mac, network and ip")
	case n.DHCP == DHCPOff:
		nic.Static = &Static{Address: netip.PrefixFrom(nic.IP, n.Subnet.Bits()), Gateway: n.Gateway, DNS: n.DNS}
	}
}

// ConsoleArgs are the kernel's arguments for the consoles.
func (b Boot) ConsoleArgs(a Arch) []string {
	list := b.Console
	if len(list) == 0 {
		list = DefaultConsole[a]
	}
	args := make([]string, len(list))
	for i, c := range list {
		args[i] = "console=" + c
	}
	return args
}
