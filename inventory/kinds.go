// Package inventory holds the vocabulary and the declared truth: what an
// operator writes, checked once and then carried as values that cannot be
// wrong, and the words that both ends of a wire share.
//
// It opens no socket and reads no clock.
package inventory

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// APIVersion is the only version of the declared documents.
const APIVersion = "recast/v1"

// Duration is a time.Duration written as Go writes it ("90s", "20m").
type Duration time.Duration

func (d Duration) String() string               { return time.Duration(d).String() }
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// DHCPMode says what recast does with DHCP on a Network.
type DHCPMode string

const (
	DHCPAuthoritative DHCPMode = "authoritative" // we own the subnet's addresses
	DHCPProxy         DHCPMode = "proxy"         // beside somebody else's server
	DHCPOff           DHCPMode = "off"
)

// UnknownMode says what an undeclared machine gets on a Network.
type UnknownMode string

const (
	UnknownIgnore   UnknownMode = "ignore"   // no answer at all (the default)
	UnknownLocal    UnknownMode = "local"    // an address and its local disk
	UnknownDiscover UnknownMode = "discover" // the ramdisk: inventory, then its disk
)

// Arch is a CPU architecture in Go's and Debian's spelling.
type Arch string

const (
	AMD64 Arch = "amd64"
	ARM64 Arch = "arm64"
)

// Firmware is how a machine boots. Unset means as last seen, else UEFI: a BMC
// wants to be told the real mode with the boot override.
type Firmware string

const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// AddrRange is an inclusive range of addresses of one family.
type AddrRange struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Contains reports whether a lies in the range, both ends included.
func (r AddrRange) Contains(a netip.Addr) bool {
	return a.IsValid() && r.First.IsValid() && a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Network is a subnet, IPv4 or IPv6, as DHCP serves it.
type Network struct {
	Name      string       `json:"name"`
	Subnet    netip.Prefix `json:"subnet"`
	DHCP      DHCPMode     `json:"dhcp"`
	Unknown   UnknownMode  `json:"unknown"`
	Pool      *AddrRange   `json:"pool,omitempty"`
	Gateway   netip.Addr   `json:"gateway,omitzero"`
	Routes    []Route      `json:"routes,omitempty"`
	DNS       []netip.Addr `json:"dns,omitempty"`
	LeaseTime Duration     `json:"leaseTime"`
	// Force answers although another DHCP server was seen on the segment.
	Force bool `json:"force,omitempty"`
	// Listen names the interface where two interfaces have an address in Subnet.
	Listen string `json:"listen,omitempty"`
	// VLAN is the tag that frames have at the machines: their firmware, loader,
	// ramdisk and system add it. 0: none, or their switch ports do.
	VLAN int `json:"vlan,omitempty"`
}

// Route is a subnet that is reached by another router than the gateway.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// ImageType tells a whole disk from a kernel with its ramdisks.
type ImageType string

const (
	ImageDisk   ImageType = "disk"
	ImageKernel ImageType = "kernel"
)

// Image is bytes with a digest. Digest is the SHA-256 of the unpacked bytes,
// whatever compression they arrive in.
type Image struct {
	Name   string    `json:"name"`
	Type   ImageType `json:"type"`
	Arch   Arch      `json:"arch"`
	Digest Digest    `json:"digest"`
	// Source is a file path or https URL it can be fetched from; may be empty
	// for an image that was added by hand.
	Source string `json:"source,omitempty"`
	// Immutable are the partitions, by GPT name or number, whose bytes never change
	// after the write: what a gate proves. All others are state, which it neither
	// reads nor writes.
	Immutable []string `json:"immutable,omitempty"`
	// Verity are the partitions that dm-verity protects, each with the one that holds its
	// tree, by GPT name or number: a gate proves the tree as if it were immutable, and by it
	// the kernel every block of the data as it reads it.
	Verity map[string]string `json:"verity,omitempty"`
	// State are the partitions that every: restore keeps, by GPT name or number; all
	// others it puts back. Nil: it is not said, as it is by a list that is empty.
	State []string `json:"state,omitzero"`
	// Boot is what a gate starts by kexec; nil: nothing is known of its kernel.
	Boot *ImageBoot `json:"boot,omitempty"`
}

// ImageBoot says where in an image stands what its boot loader starts.
type ImageBoot struct {
	Partition string   `json:"partition"` // one of Immutable
	Kernel    string   `json:"kernel"`    // paths in it
	Initrd    string   `json:"initrd,omitempty"`
	Args      []string `json:"args,omitempty"`
}

// Handover is how a gate starts the system that it has proved.
type Handover string

const (
	HandoverAny    Handover = ""       // by kexec where that can be, else by a restart
	HandoverReboot Handover = "reboot" // the machine restarts and boots its disk
	HandoverKexec  Handover = "kexec"  // the ramdisk's kernel starts the system's
)

// BootEvery says how a deployed machine boots from then on.
type BootEvery string

const (
	BootDisk    BootEvery = "disk"    // firmware starts the disk
	BootGate    BootEvery = "gate"    // every boot proves the disk first
	BootRestore BootEvery = "restore" // every boot puts back what is not state first
)

// Gated tells whether every boot goes through the ramdisk.
func (e BootEvery) Gated() bool { return e == BootGate || e == BootRestore }

// OnMismatch says what a gate does with a machine whose disk is not what was
// written.
type OnMismatch string

const (
	MismatchRepair   OnMismatch = "repair"   // write the blocks that differ, then start it
	MismatchReport   OnMismatch = "report"   // start it all the same, and say so
	MismatchHold     OnMismatch = "hold"     // keep it in the ramdisk until it is released (the default)
	MismatchPowerOff OnMismatch = "poweroff" // hold it, and switch it off
	// MismatchRestore is what every: restore does, and nothing else: MismatchRepair of
	// however much differs, however often, since its system writes to its own disk.
	MismatchRestore OnMismatch = "restore"
)

// Gate says how every boot is proved.
type Gate struct {
	OnMismatch OnMismatch `json:"onMismatch"`
	// RepairLimit is how much of a disk one repair may write, bytes; with
	// MismatchRestore that are the regions themselves, and a Definition says 0.
	RepairLimit int64 `json:"repairLimit"`
	// Handover as declared.
	Handover Handover `json:"handover,omitempty"`
	// Refuse: a machine that does not reach recast does not start its disk.
	Refuse bool `json:"refuse,omitempty"`
}

// Writes tells whether it may write to the disk.
func (g Gate) Writes() bool { return g.OnMismatch == MismatchRepair || g.OnMismatch == MismatchRestore }

// DefaultRepairLimit is far more than a disk loses and far less than an image.
const DefaultRepairLimit = 64 << 20

// EvidenceLevel is how we know what a machine runs, weakest first.
type EvidenceLevel int

const (
	E0 EvidenceLevel = iota // declared
	E1                      // fetched: our own log
	E2                      // reported by the machine
	E3                      // read back from disk by the ramdisk
	E4                      // measured by a TPM
	E5                      // enforced
)

var evidenceNames = [...]string{"declared", "fetched", "reported", "read-back", "measured", "enforced"}

// String is the declared word: "declared", "fetched", "reported",
// "read-back", "measured", "enforced".
func (e EvidenceLevel) String() string {
	if e < 0 || int(e) >= len(evidenceNames) {
		return "unknown"
	}
	return evidenceNames[e]
}

func (e EvidenceLevel) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText accepts the declared words.
func (e *EvidenceLevel) UnmarshalText(text []byte) error {
	for i, n := range evidenceNames {
		if n == string(text) {
			*e = EvidenceLevel(i)
			return nil
		}
	}
	return fmt.Errorf("parse evidence level %q: want one of %s", text, strings.Join(evidenceNames[:], ", "))
}

// ConfigFormat names who reads the configuration on the machine.
type ConfigFormat string

const (
	ConfigNone      ConfigFormat = "none"
	ConfigCloudInit ConfigFormat = "cloud-init"
)

// Config is what the operating system is configured with. UserData keeps its
// substitutions (${machine.name}) unresolved here.
type Config struct {
	Format   ConfigFormat `json:"format"`
	UserData string       `json:"userData,omitempty"`
}

// DiskSelect are the hints that choose the disk to write; see Choose.
type DiskSelect struct {
	// Hints by Ironic's names (model, vendor, serial, wwn, wwn_with_extension,
	// wwn_vendor_extension, size, rotational, name, hctl, by_path) with
	// Ironic's operators in the value.
	Hints map[string]string `json:"hints,omitempty"`
	// MinSize and MaxSize in bytes; 0 means no bound.
	MinSize int64 `json:"minSize,omitempty"`
	MaxSize int64 `json:"maxSize,omitempty"`
}

// WipeMode says what happens to the disk outside the image before writing.
type WipeMode string

const (
	WipeTable   WipeMode = "table"   // first and last MiB (the default)
	WipeDiscard WipeMode = "discard" // the space outside the image is discarded too
)

// Definition is what a machine runs.
type Definition struct {
	Name       string        `json:"name"`
	Image      string        `json:"image"`
	Every      BootEvery     `json:"every"`
	Gate       *Gate         `json:"gate,omitempty"` // with BootGate and BootRestore
	KernelArgs []string      `json:"kernelArgs,omitempty"`
	Select     DiskSelect    `json:"select"`
	Wipe       WipeMode      `json:"wipe"`
	Config     Config        `json:"config"`
	Evidence   EvidenceLevel `json:"evidence"`

	// The rest steers the way there and is no part of the generation.

	HealthDeadline Duration `json:"healthDeadline"`
	// EvidenceAge is how old evidence may be; 0: of any age.
	EvidenceAge Duration `json:"evidenceAge,omitempty"`
	// Deadlines per step of deploying, defaults filled in (see DefaultDeadlines).
	Deadlines map[string]Duration `json:"deadlines"`
	// Attempts before a machine is failed.
	Attempts int `json:"attempts"`
	// Identity is the least that a claim must have; "" L0.
	Identity Identity `json:"identity,omitempty"`
}

// Rollout says how a change travels through a Group.
type Rollout struct {
	// Canary machines go first and must be active before the rest; 0 for none.
	Canary int `json:"canary"`
	// MaxUnavailable machines may be away at once. Percent counts of the group,
	// rounded down but at least 1.
	MaxUnavailable IntOrPercent `json:"maxUnavailable"`
	// MaxFailures failed machines stop further starts.
	MaxFailures IntOrPercent `json:"maxFailures"`
}

// IntOrPercent is a count ("3") or a share of the group ("25%").
type IntOrPercent struct {
	Value   int  `json:"value"`
	Percent bool `json:"percent,omitempty"`
}

// Of resolves against the size of the group. A percentage is rounded down.
func (v IntOrPercent) Of(n int) int {
	if v.Percent {
		return n * v.Value / 100
	}
	return v.Value
}

// Group binds machines, by their labels and location, to a Definition.
type Group struct {
	Name string `json:"name"`
	// Select maps label or location field (site, rack, unit) to the wanted value; all must match.
	Select     map[string]string `json:"select"`
	Definition string            `json:"definition"`
	// Generation pins a kept generation instead of the Definition's newest:
	// this is what a rollback writes.
	Generation Digest  `json:"generation,omitempty"`
	Rollout    Rollout `json:"rollout"`
	// Power says what follows where an active machine is seen off that recast did not
	// switch off.
	Power PowerPolicy `json:"power,omitempty"`
}

// PowerPolicy of a Group.
type PowerPolicy string

const (
	PowerReport  PowerPolicy = ""        // a finding
	PowerEnforce PowerPolicy = "enforce" // it is switched on again
)

// Location is where a machine stands.
type Location struct {
	Site string `json:"site,omitempty"`
	Rack string `json:"rack,omitempty"`
	Unit int    `json:"unit,omitempty"`
}

// NIC is one declared network interface. Without a MAC it is known by its Port.
type NIC struct {
	MAC     MAC        `json:"mac"`
	Port    *Port      `json:"port,omitempty"`
	Network string     `json:"network,omitempty"`
	IP      netip.Addr `json:"ip,omitzero"`
	IP6     netip.Addr `json:"ip6,omitzero"`

	// Of its Network: the tag of its frames, and the routes that no DHCP of ours gives.
	VLAN   int     `json:"vlan,omitempty"`
	Routes []Route `json:"routes,omitempty"`
	// Static is its address where no DHCP gives it; nil: one does.
	Static *Static `json:"static,omitempty"`
}

// Static is an interface's configuration without DHCP.
type Static struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	DNS     []netip.Addr `json:"dns,omitempty"`
}

// BMCRef says where a machine's BMC is. Credentials names a secret whose value
// is "user:password".
type BMCRef struct {
	URL         string `json:"url"` // redfish://host[:port][/systems/ID] or ipmi://host[:port]
	Credentials string `json:"credentials"`
	// Pin is the SHA-256 of the BMC's TLS certificate (Redfish only).
	Pin Digest `json:"pin,omitempty"`
	// HostKey is the fingerprint of the BMC's SSH host key, for its console (Redfish only).
	HostKey string `json:"hostKey,omitempty"`
	// CipherSuite for IPMI: 17 (default), or 3 where the operator opts in.
	CipherSuite int `json:"cipherSuite,omitempty"`
	// MAC with IP, IP6 or both is its DHCP reservation, in authoritative Networks.
	MAC MAC        `json:"mac,omitempty"`
	IP  netip.Addr `json:"ip,omitzero"`
	IP6 netip.Addr `json:"ip6,omitzero"`
}

// Machine is one declared server. It holds nothing observed.
type Machine struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Location  Location          `json:"location,omitzero"`
	Arch      Arch              `json:"arch"`
	Firmware  Firmware          `json:"firmware,omitempty"`
	NICs      []NIC             `json:"nics"`
	BMC       *BMCRef           `json:"bmc,omitempty"`
	Serial    string            `json:"serial,omitempty"` // where declared, must match SMBIOS
	UUID      string            `json:"uuid,omitempty"`   // likewise
	Protected bool              `json:"protected,omitempty"`
	// Boot is its own word with what its Model says added.
	Boot       Boot `json:"boot,omitzero"`
	SecureBoot bool `json:"secureBoot,omitempty"`
}

// Selects reports whether every wanted label or location field of the group is
// what the machine declares.
func (g *Group) Selects(m *Machine) bool {
	for key, want := range g.Select {
		if m.Field(key) != want {
			return false
		}
	}
	return len(g.Select) > 0
}

// Field is a label, or the location field of that name where no label has it.
func (m *Machine) Field(key string) string {
	if v, ok := m.Labels[key]; ok {
		return v
	}
	switch key {
	case "site":
		return m.Location.Site
	case "rack":
		return m.Location.Rack
	case "unit":
		if m.Location.Unit != 0 {
			return strconv.Itoa(m.Location.Unit)
		}
	}
	return ""
}
