package inventory

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Facts is what the ramdisk saw of a machine. Field names follow the Ironic
// inspector's inventory format.
type Facts struct {
	Hostname     string       `json:"hostname,omitempty"`
	CPU          CPUFacts     `json:"cpu"`
	Memory       MemoryFacts  `json:"memory"`
	Disks        []DiskFacts  `json:"disks"`
	Interfaces   []NICFacts   `json:"interfaces"`
	SystemVendor SystemVendor `json:"system_vendor"`
	Boot         BootFacts    `json:"boot"`
	// TPM is the version of its specification, "2" or "1"; "" where none is seen.
	TPM string `json:"tpm,omitempty"`
	// TPMError is why it cannot be used; "" it can, or nobody tried.
	TPMError string `json:"tpm_error,omitempty"`
	// MissingFirmware names files that network drivers asked for and did not find.
	MissingFirmware []string `json:"missing_firmware,omitempty"`
}

type CPUFacts struct {
	ModelName    string   `json:"model_name"`
	Frequency    string   `json:"frequency,omitempty"` // MHz
	Count        int      `json:"count"`
	Architecture string   `json:"architecture"` // as uname -m: x86_64, aarch64
	Flags        []string `json:"flags,omitempty"`
}

type MemoryFacts struct {
	Total      int64 `json:"total"`       // bytes the kernel sees
	PhysicalMB int64 `json:"physical_mb"` // installed, from SMBIOS; 0 unknown
}

// DiskFacts is one whole disk, never a partition.
type DiskFacts struct {
	Name               string `json:"name"` // /dev/sda
	Model              string `json:"model,omitempty"`
	Vendor             string `json:"vendor,omitempty"`
	Serial             string `json:"serial,omitempty"`
	WWN                string `json:"wwn,omitempty"`
	WWNWithExtension   string `json:"wwn_with_extension,omitempty"`
	WWNVendorExtension string `json:"wwn_vendor_extension,omitempty"`
	Size               int64  `json:"size"` // bytes
	Rotational         bool   `json:"rotational"`
	HCTL               string `json:"hctl,omitempty"`
	ByPath             string `json:"by_path,omitempty"`
	LogicalBlockSize   int    `json:"logical_block_size"`
	PhysicalBlockSize  int    `json:"physical_block_size,omitempty"`
	ReadOnly           bool   `json:"read_only,omitempty"`
	Removable          bool   `json:"removable,omitempty"`
	// Mounted or held (RAID, LVM) by the ramdisk: never written.
	InUse bool `json:"in_use,omitempty"`
	// Holds says in words what is on it ("gpt, 3 partitions: …", "data without a
	// known signature"); empty only where the probed regions read as all zeros.
	Holds string `json:"holds,omitempty"`
	// Recast is what our own config volume on this disk says, if there is one.
	Recast *Marker `json:"recast,omitempty"`
}

// Marker is the small JSON file ("recast.json") on the config volume by which a
// disk says what was written to it.
type Marker struct {
	Machine    string `json:"machine"`
	Generation Digest `json:"generation"`
	Rendered   Digest `json:"rendered"`
	Image      Digest `json:"image"`
	Attempt    int    `json:"attempt"`
	// Write names the one write that made this disk: no two have the same, in no
	// store.
	Write string `json:"write,omitempty"`
}

type NICFacts struct {
	Name        string     `json:"name"`
	MAC         MAC        `json:"mac_address"`
	IPv4        netip.Addr `json:"ipv4_address,omitzero"`
	IPv6        netip.Addr `json:"ipv6_address,omitzero"`
	HasCarrier  bool       `json:"has_carrier"`
	SpeedMbps   int        `json:"speed_mbps,omitempty"`
	Vendor      string     `json:"vendor,omitempty"`  // PCI vendor id, 0x8086
	Product     string     `json:"product,omitempty"` // PCI device id
	Driver      string     `json:"driver,omitempty"`
	LLDP        []LLDPTLV  `json:"lldp,omitempty"`
	BIOSDevName string     `json:"biosdevname,omitempty"`
}

// LLDPTLV is one raw TLV of the neighbour's announcement: type and hex value.
type LLDPTLV struct {
	Type  int    `json:"type"`
	Value string `json:"value"`
}

type SystemVendor struct {
	ProductName  string        `json:"product_name,omitempty"`
	SerialNumber string        `json:"serial_number,omitempty"`
	Manufacturer string        `json:"manufacturer,omitempty"`
	UUID         string        `json:"uuid,omitempty"` // lower case, as SMBIOS prints it
	Firmware     FirmwareFacts `json:"firmware"`
}

type FirmwareFacts struct {
	Vendor    string `json:"vendor,omitempty"`
	Version   string `json:"version,omitempty"`
	BuildDate string `json:"build_date,omitempty"`
}

type BootFacts struct {
	Mode         string `json:"current_boot_mode"` // bios | uefi
	PXEInterface MAC    `json:"pxe_interface,omitempty"`
	SecureBoot   bool   `json:"secure_boot,omitempty"`
	// HTTPBoot: its firmware's entry for UEFI HTTP Boot started it.
	HTTPBoot bool `json:"http_boot,omitempty"`
	// Again: its firmware has an entry of ours that starts it over; see EFIEntry.
	Again bool `json:"again,omitempty"`
}

// DiskID pins one physical disk. Two DiskIDs name the same disk when every
// field that is set in the wanted one is equal in the seen one.
type DiskID struct {
	Name             string `json:"name"` // where it was seen; not identity
	WWN              string `json:"wwn,omitempty"`
	Serial           string `json:"serial,omitempty"`
	ByPath           string `json:"byPath,omitempty"` // set only for a disk with neither WWN nor serial
	Size             int64  `json:"size"`
	LogicalBlockSize int    `json:"logicalBlockSize"`
}

// TraceHeader names, in an agent's requests, the attempt that they belong to. It
// is for logs and believed by nobody.
const TraceHeader = "Recast-Trace"

// Claim is an armed machine's first word to the agent API.
type Claim struct {
	Nonce  string `json:"nonce"`
	MAC    MAC    `json:"mac"` // of the interface it netbooted from
	UUID   string `json:"uuid,omitempty"`
	Serial string `json:"serial,omitempty"`
	// BootID is random per start of the agent.
	BootID string `json:"bootID"`
	// Agent is the version of the agent.
	Agent string `json:"agent,omitempty"`
}

// ClaimReply carries the bearer token of this boot and its lease.
type ClaimReply struct {
	Machine string `json:"machine"`
	Token   string `json:"token"`
	// LeaseSeconds from the agent's sending of the claim or report it answers:
	// past it the agent must not touch a disk.
	LeaseSeconds int `json:"leaseSeconds"`
}

// OrderKind is what the agent shall do next.
type OrderKind string

const (
	OrderWait     OrderKind = "wait"     // ask again: the reply was a long poll that ran out
	OrderWrite    OrderKind = "write"    // do Job, which writes an image
	OrderWipe     OrderKind = "wipe"     // do Job, which leaves zeros
	OrderGate     OrderKind = "gate"     // do Job, which reads regions and compares them
	OrderRepair   OrderKind = "repair"   // do Job, which writes what of them differs
	OrderKexec    OrderKind = "kexec"    // do Job, which loads the system's kernel; then start it
	OrderLocal    OrderKind = "local"    // reboot; the answer will be the local disk
	OrderReboot   OrderKind = "reboot"   // reboot and ask again from the start
	OrderPowerOff OrderKind = "poweroff" // power off
)

// Order is the answer to an inventory or to a poll.
type Order struct {
	Kind   OrderKind `json:"kind"`
	Reason string    `json:"reason,omitempty"` // for the console
	Job    *Job      `json:"job,omitempty"`    // with the orders to do one only
	// FreeDisk, with OrderLocal: a boot order that ends with our entry that starts the
	// machine over leads to its disk again.
	FreeDisk bool `json:"freeDisk,omitempty"`
	// LeaseSeconds renews the lease, as in ClaimReply; 0 leaves it.
	LeaseSeconds int `json:"leaseSeconds,omitempty"`
}

// JobKind is what a job does to the disk. An order and its job say the same, so
// that neither an old agent nor a mixed-up answer takes one for the other.
type JobKind string

const (
	JobWrite JobKind = "write" // Image and Config
	JobWipe  JobKind = "wipe"  // zeros; nothing but Disk and Quick is set
	// Of Image these take what they need to know its bytes in Regions; nothing else of
	// the disk is compared, and nothing else is written.
	JobGate   JobKind = "gate"   // compare
	JobRepair JobKind = "repair" // compare, write at most Limit bytes, compare again
	JobKexec  JobKind = "kexec"  // load Kernel from Disk; nothing is written
)

// Job is a write intent as the agent gets it: everything it needs and nothing
// it has to choose. It holds no secret.
type Job struct {
	Kind       JobKind `json:"kind"`
	Machine    string  `json:"machine"`
	Generation Digest  `json:"generation"`
	Rendered   Digest  `json:"rendered"`
	Epoch      string  `json:"epoch"`
	Fence      int64   `json:"fence"`
	Attempt    int     `json:"attempt"`

	Disk  DiskID   `json:"disk"`
	Image JobImage `json:"image"`
	// Config is fetched with the token from /agent/v1/config and written to the
	// end of the disk as its own partition; nil for none.
	Config *JobConfig `json:"config,omitempty"`
	Wipe   WipeMode   `json:"wipe"`
	// Proof is the pack.Proof of Regions, as JSON: with it a disk is proved without a byte
	// of Image; nil where it would be too long.
	Proof json.RawMessage `json:"proof,omitempty"`
	// EFI is the boot entry to create on a UEFI machine; ignored under BIOS. A gate's job
	// has it where the boot order is to lead to the network alone.
	EFI *EFIEntry `json:"efi,omitempty"`
	// Quick, with JobWipe: zero only what makes the disk look used.
	Quick bool `json:"quick,omitempty"`
	// Regions are compared by JobGate and JobRepair, and Limit is what a repair may
	// write, in bytes; beyond it JobGate counts no more.
	Regions []Region `json:"regions,omitempty"`
	Limit   int64    `json:"limit,omitempty"`
	// Quote is the nonce for the TPM's word, once the disk was read back as it shall be;
	// "": none is asked for.
	Quote string `json:"quote,omitempty"`
	// Kernel is what JobKexec loads.
	Kernel *JobKernel `json:"kernel,omitempty"`
}

// JobKernel is a system that is started by kexec: files of the image, in regions that
// were proved.
type JobKernel struct {
	Kernel DiskFile  `json:"kernel"`
	Initrd *DiskFile `json:"initrd,omitempty"`
	Args   string    `json:"args"`
}

// DiskFile is a file of an image by where its bytes stand, so that who reads it from a
// disk needs to know no file system, and by what they are.
type DiskFile struct {
	Path    string   `json:"path"` // as declared
	Size    int64    `json:"size"`
	Digest  Digest   `json:"digest"`
	Extents []Extent `json:"extents"` // in order; of Size together
}

// Extent is a piece of a file, in bytes from the beginning of the image; it stands at the
// same place on the disk. Where Start is ZeroExtent it stands nowhere, and is zeros.
type Extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
}

// ZeroExtent is the Start of a hole.
const ZeroExtent = -1

// Copy writes the file's bytes, as the disk has them, to w.
func (f DiskFile) Copy(w io.Writer, disk io.ReaderAt) (int64, error) {
	var done int64
	for _, e := range f.Extents {
		from := io.Reader(zeros{})
		if e.Start != ZeroExtent {
			from = io.NewSectionReader(disk, e.Start, e.Length)
		}
		n, err := io.CopyN(w, from, e.Length)
		if done += n; err != nil {
			return done, err
		}
	}
	if done != f.Size {
		return done, fmt.Errorf("its pieces have %d bytes, and it has %d", done, f.Size)
	}
	return done, nil
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Region is a partition of an image, in bytes from its beginning; it
// stands at the same place on the disk.
type Region struct {
	Name  string `json:"name"` // as declared: GPT name or number
	Start int64  `json:"start"`
	End   int64  `json:"end"`
}

// Verdict is what a gate read of a disk.
type Verdict struct {
	// Table says what of the partition table means something else than the image's; ""
	// nothing.
	Table string `json:"table,omitempty"`
	// Suspended tells that a repair has taken the table out of force and did not end.
	Suspended bool            `json:"suspended,omitempty"`
	Regions   []RegionVerdict `json:"regions"` // as in the job
}

// RegionVerdict is what was read of one region. Read and Want are SHA-256 over the
// SHA-256 of each MiB of the image, or of the part of it that lies in the region: of
// what the disk gave, and of what the image has there.
type RegionVerdict struct {
	Name string `json:"name"`
	Read Digest `json:"read"`
	// Want is "" where it was not fetched, since more differs than a repair may write.
	Want Digest `json:"want,omitempty"`
	// Blocks of 4 KiB that differ, at least so many where Want is ""; First is where
	// the first of them lies in the region, in bytes.
	Blocks int64 `json:"blocks,omitempty"`
	First  int64 `json:"first,omitempty"`
}

// GateBlock is the unit in which a gate counts and writes, bytes.
const GateBlock = 4096

// Matches tells that everything is what was written.
func (v Verdict) Matches() bool {
	for _, r := range v.Regions {
		if r.Blocks != 0 || r.Read != r.Want || r.Read == "" {
			return false
		}
	}
	return v.Table == "" && !v.Suspended && len(v.Regions) > 0
}

// Blocks of all regions that differ.
func (v Verdict) Blocks() (n int64) {
	for _, r := range v.Regions {
		n += r.Blocks
	}
	return n
}

// About tells whether the verdict is about these regions, in their order.
func (v Verdict) About(regions []Region) bool {
	if len(v.Regions) != len(regions) {
		return false
	}
	for i, r := range regions {
		if v.Regions[i].Name != r.Name {
			return false
		}
	}
	return true
}

// JobImage says where the bytes are. URLs are tried in order; each is plain
// HTTP, since every byte is checked.
type JobImage struct {
	Digest   Digest   `json:"digest"`   // of the unpacked image
	Size     int64    `json:"size"`     // of the unpacked image, bytes
	Manifest Digest   `json:"manifest"` // of the manifest file
	Pack     Digest   `json:"pack"`     // of the pack file
	URLs     []string `json:"urls"`     // bases: GET base/<digest hex> serves each file named here
	// Index of the image's blocks, by which the agent finds on the disk what moved;
	// "" for none: then it looks for whole chunks in their places.
	Index Digest `json:"index,omitzero"`
	// Difference to the image that the disk is believed to hold; nil for none. It
	// needs Index. A disk that holds something else only fetches more.
	Difference *JobDifference `json:"difference,omitempty"`
}

// JobDifference names the files of a difference between two images.
type JobDifference struct {
	List     Digest `json:"list"`     // of the list: which blocks it holds
	Pack     Digest `json:"pack"`     // of their bytes
	From     Digest `json:"from"`     // image that holds the others
	FromSize int64  `json:"fromSize"` // of that image, unpacked, bytes: how far the disk is looked at
}

// JobConfig is a ready-made volume (vfat or iso9660) with its digest.
type JobConfig struct {
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"`
	Label  string `json:"label"` // GPT partition name and volume label: CIDATA
}

// BootLabel is the description of the boot entries that are ours.
const BootLabel = "recast"

// EFIEntry is a boot entry: a label and a loader path on the EFI system partition.
type EFIEntry struct {
	Label  string `json:"label"`
	Loader string `json:"loader"` // \EFI\BOOT\BOOTX64.EFI
	// Second: behind the entry that the ramdisk came by, which goes on to be the first.
	Second bool `json:"second,omitempty"`
	// Again, where it is set, is the order's last entry, behind network entries alone; the
	// disk's own is outside of the order then.
	Again *EFIProgram `json:"again,omitempty"`
}

// AgainLabel is the description of the entry that starts a machine over.
const AgainLabel = "recast again"

// EFIProgram is a program on the config volume.
type EFIProgram struct {
	File   string `json:"file"` // in the volume's root, \NAME
	Digest Digest `json:"digest"`
}

// Name of its file.
func (p EFIProgram) Name() string { return strings.TrimPrefix(p.File, `\`) }

// AgentStep is where the agent is. The words double as steps of deploying.
type AgentStep string

const (
	AgentInspecting AgentStep = "inspecting"
	AgentComparing  AgentStep = "comparing"
	AgentWriting    AgentStep = "writing"
	AgentVerifying  AgentStep = "verifying"
	AgentConfigure  AgentStep = "configuring"
	AgentProving    AgentStep = "proving"   // of a gate
	AgentRepairing  AgentStep = "repairing" // likewise
	AgentLoading    AgentStep = "loading"   // of a system's kernel, to start it by kexec
	AgentDone       AgentStep = "done"
	AgentFailed     AgentStep = "failed"
)

// Report is the agent's word on its job: every second while it works, and once
// with AgentDone or AgentFailed.
type Report struct {
	BootID  string    `json:"bootID"`
	Fence   int64     `json:"fence"`
	Attempt int       `json:"attempt"`
	Seq     int64     `json:"seq"` // rises by one with each report
	Step    AgentStep `json:"step"`
	// Done and Total count bytes in this step: of the unpacked image, or of the
	// disk that is wiped.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	// Fetched counts bytes over the wire, Written bytes given to the disk.
	Fetched int64 `json:"fetched"`
	Written int64 `json:"written"`
	// Erased is set from the moment the first byte of the disk was changed.
	Erased bool   `json:"erased,omitempty"`
	Error  string `json:"error,omitempty"` // with AgentFailed
	// BadFrame names a frame of the pack that did not match the manifest twice;
	// -1 stands for the manifest itself. Nil for none.
	BadFrame *int `json:"badFrame,omitempty"`
	// ReadBack is the digest over the declared image as read from the disk
	// after the flush, with AgentDone.
	ReadBack Digest `json:"readBack,omitempty"`
	// Table is the digest of the first and last MiB as read back, which must be
	// those that were rendered.
	Table Digest `json:"table,omitempty"`
	// BootOrder is the firmware's variable of that name as read back after our
	// entry was set, in hex; "" under BIOS. BootEntry is why none was set, or after a wipe removed.
	BootOrder string `json:"bootOrder,omitempty"`
	BootEntry string `json:"bootEntry,omitempty"`
	// Blank is how many bytes of the disk were read back as zeros after the flush,
	// with AgentDone of a wipe.
	Blank int64 `json:"blank,omitempty"`
	// Verdict of a gate, with AgentDone; after a repair it is that of the second look.
	Verdict *Verdict `json:"verdict,omitempty"`
	// Unguarded is why the firmware, by the order that it came with, would have started a
	// disk without a gate; "" it would not, where BootOrder is told.
	Unguarded string `json:"unguarded,omitempty"`
	// Quote that the job asked for, with AgentDone.
	Quote *TPMQuote `json:"quote,omitempty"`
}

// ReportReply renews the lease, or stops the agent.
type ReportReply struct {
	Abort        bool   `json:"abort,omitempty"`
	Reason       string `json:"reason,omitempty"`
	LeaseSeconds int    `json:"leaseSeconds"`
}

// BootReport is what the installed system says of itself, once per boot, with a
// token that can do nothing else.
type BootReport struct {
	// What the disk was written with; the token speaks for exactly this.
	Machine    string `json:"machine"`
	Generation Digest `json:"generation"`
	Rendered   Digest `json:"rendered"`
	Write      string `json:"write"`  // as in Marker
	BootID     string `json:"bootID"` // /proc/sys/kernel/random/boot_id
	Hostname   string `json:"hostname,omitempty"`
	// The firmware's variables of these names, in hex; "" where they cannot be read.
	BootOrder   string `json:"bootOrder,omitempty"`
	BootCurrent string `json:"bootCurrent,omitempty"`
	SecureBoot  string `json:"secureBoot,omitempty"`
}

// LeaseState of an address.
type LeaseState string

const (
	LeaseBound    LeaseState = "bound"
	LeaseDeclined LeaseState = "declined" // quarantined: somebody else answers on it
)

// LeasePrefix is where the lease records stand: LeasePrefix + network + "/" +
// address. Only dhcp writes them; the engine reads them to join an address to
// a machine.
const LeasePrefix = "/recast/leases/"

// Lease is one address promised to one hardware address. It is durable before
// the ACK that promises it leaves.
type Lease struct {
	Network  string     `json:"network"`
	Addr     netip.Addr `json:"addr"`
	MAC      MAC        `json:"mac"`
	Machine  string     `json:"machine,omitempty"` // declared machine, "" a stranger
	BMC      bool       `json:"bmc,omitempty"`     // its BMC has the address, not the machine
	Hostname string     `json:"hostname,omitempty"`
	Port     *Port      `json:"port,omitempty"` // where the relay last saw it
	State    LeaseState `json:"state"`
	Expires  time.Time  `json:"expires"`
}
