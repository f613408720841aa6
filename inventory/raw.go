package inventory

// The raw structs are the declared documents as they are written: every field
// still text, with its line. The decoder and the JSON Schema both read their
// tags, so that an editor and recast say the same.

type rawDocument[S any] struct {
	Line       int
	APIVersion text        `yaml:"apiVersion,required" enum:"recast/v1" doc:"version of the document's format"`
	Kind       text        `yaml:"kind,required" doc:"what the document declares"`
	Metadata   rawMetadata `yaml:"metadata,required"`
	Spec       S           `yaml:"spec,required"`
}

type rawMetadata struct {
	Line   int
	Name   text    `yaml:"name,required" form:"name" example:"\"rack1\"" doc:"unique within its kind: lower-case letters, digits and '-', at most 63"`
	Labels entries `yaml:"labels" doc:"labels a Group can select a Machine by"`
}

type rawNetwork struct {
	Line      int
	Subnet    text       `yaml:"subnet,required" form:"prefix" example:"10.20.0.0/24" doc:"the subnet, IPv4 or IPv6; a link that has both is two Networks"`
	DHCP      text       `yaml:"dhcp,required" enum:"authoritative|proxy|off" doc:"what recast does with DHCP here; no default"`
	Unknown   text       `yaml:"unknown" enum:"ignore|local|discover" doc:"what an undeclared machine gets: no answer (the default), its local disk, or the ramdisk for an inventory"`
	Pool      text       `yaml:"pool" form:"range" doc:"addresses for machines that declare none: first-last"`
	Gateway   text       `yaml:"gateway" form:"addr4" doc:"the default route; IPv6 routers announce themselves"`
	Routes    []rawRoute `yaml:"routes" doc:"what is reached by another router than the gateway"`
	DNS       []text     `yaml:"dns" form:"addr" doc:"name servers"`
	LeaseTime text       `yaml:"leaseTime" form:"duration" doc:"how long an address is promised; default 1h; undeclared machines get at most 15m of it"`
	Force     boolean    `yaml:"force" doc:"answer although another DHCP server was seen"`
	Listen    text       `yaml:"listen" doc:"the interface to serve on, where two have an address in the subnet"`
	VLAN      number     `yaml:"vlan" doc:"the tag that frames have at the machines; left out where their switch ports take it off"`
}

type rawRoute struct {
	Line int
	To   text `yaml:"to,required" form:"prefix" example:"10.30.0.0/16" doc:"the subnet that is reached"`
	Via  text `yaml:"via,required" form:"addr4" example:"10.20.0.254" doc:"the router's address in this Network's subnet"`
}

type rawImage struct {
	Line   int
	Type   text `yaml:"type,required" enum:"disk|kernel" doc:"a whole disk; kernel is not accepted yet"`
	Arch   text `yaml:"arch" enum:"amd64|arm64" doc:"CPU architecture; default amd64"`
	Digest text `yaml:"digest,required" form:"digest" example:"\"sha256:…\" as recast image add prints it" doc:"SHA-256 of the unpacked bytes"`
	Source text `yaml:"source" doc:"a file path or an https URL to fetch it from"`

	Immutable []word  `yaml:"immutable" doc:"partitions, by GPT name or number, whose bytes never change after the write, for boot.every: gate; all others are state"`
	Verity    entries `yaml:"verity" form:"partitions" doc:"partitions, by GPT name or number, that dm-verity protects, each with the one that holds its tree: a gate reads the tree alone, and the kernel checks the data by it"`
	State     []word  `yaml:"state" doc:"partitions, by GPT name or number, that boot.every: restore keeps; all others are put back at every boot; [] keeps none"`

	Boot rawImageBoot `yaml:"boot" doc:"what a gate starts by kexec, as the image's own boot loader would"`
}

type rawImageBoot struct {
	Line      int
	Partition word   `yaml:"partition,required" doc:"the partition that holds the files, as in immutable; ext2, ext3, ext4 or FAT"`
	Kernel    text   `yaml:"kernel,required" example:"/vmlinuz" doc:"path of the kernel in it; links are followed inside the partition"`
	Initrd    text   `yaml:"initrd" example:"/initrd.img" doc:"path of the ramdisk in it; left out: none"`
	Args      []text `yaml:"args" example:"root=PARTUUID=…" doc:"arguments of the kernel; without a console= the machine's own consoles are added"`
}

type rawDefinition struct {
	Line       int
	Image      text        `yaml:"image,required" form:"name" doc:"name of an Image"`
	Boot       rawBoot     `yaml:"boot" doc:"how a deployed machine boots"`
	KernelArgs []text      `yaml:"kernelArgs" doc:"arguments for a kernel image; an error on a disk image, which has them in its boot"`
	Disk       rawDisk     `yaml:"disk" doc:"which disk is written, and how"`
	Config     rawConfig   `yaml:"config" doc:"what the operating system is configured with"`
	Evidence   rawEvidence `yaml:"evidence" doc:"what proves that a machine runs this"`
	Health     rawHealth   `yaml:"health"`
	Identity   rawIdentity `yaml:"identity" doc:"how well it must be known which machine it is"`
	Deadlines  entries     `yaml:"deadlines" form:"deadlines" doc:"how long each step may take, where the default does not fit"`
	Attempts   number      `yaml:"attempts" doc:"tries before a machine is failed; default 2"`
}

type rawBoot struct {
	Line  int
	Every text `yaml:"every" enum:"disk|gate|restore" doc:"disk: the firmware starts the disk (the default); gate: every boot goes through the ramdisk, which proves the image's immutable partitions first; restore: through the ramdisk, which first puts back all partitions but the image's state"`

	OnMismatch   text `yaml:"onMismatch" enum:"repair|report|hold|poweroff" doc:"what the gate does where they are not what was written; default hold"`
	RepairLimit  text `yaml:"repairLimit" form:"size" doc:"how much one repair of a gate may write; default 64MiB"`
	Handover     text `yaml:"handover" enum:"reboot|kexec" doc:"how the gate starts the system: kexec starts the kernel that the Image's boot names, without a restart (the default where it names one and the machine has no Secure Boot); reboot restarts the machine, which then boots its disk"`
	OnServerDown text `yaml:"onServerDown" enum:"lastGood|refuse" doc:"lastGood: a machine that does not reach recast starts its disk unproved, and it shows (the default); refuse: it does not start it (UEFI without Secure Boot)"`
}

type rawDisk struct {
	Line   int
	Select rawSelect `yaml:"select" doc:"hints that together must fit exactly one disk"`
	Wipe   text      `yaml:"wipe" enum:"table|discard" doc:"table: zero the disk's ends (the default); discard: the space outside the image too"`
}

// rawSelect has Ironic's root device hints and two sizes with units.
type rawSelect struct {
	Line               int
	MinSize            text   `yaml:"minSize" form:"size" doc:"smallest size that fits"`
	MaxSize            text   `yaml:"maxSize" form:"size" doc:"largest size that fits"`
	Model              scalar `yaml:"model" form:"hint"`
	Vendor             scalar `yaml:"vendor" form:"hint"`
	Serial             scalar `yaml:"serial" form:"hint"`
	WWN                scalar `yaml:"wwn" form:"hint"`
	WWNWithExtension   scalar `yaml:"wwn_with_extension" also:"wwnWithExtension" form:"hint"`
	WWNVendorExtension scalar `yaml:"wwn_vendor_extension" also:"wwnVendorExtension" form:"hint"`
	Size               scalar `yaml:"size" form:"hint" doc:"in GiB, with an operator: \">= 100\""`
	Rotational         scalar `yaml:"rotational" form:"hint" doc:"true for a spinning disk"`
	Name               scalar `yaml:"name" form:"hint" doc:"kernel name, /dev/sda: may change from boot to boot"`
	HCTL               scalar `yaml:"hctl" form:"hint" doc:"SCSI host:channel:target:lun"`
	ByPath             scalar `yaml:"by_path" also:"byPath" form:"hint" doc:"/dev/disk/by-path/…"`
}

type rawConfig struct {
	Line     int
	Format   text `yaml:"format" enum:"cloud-init|none" doc:"who reads userData"`
	UserData text `yaml:"userData" doc:"given to the machine as it is, after substitution; $${ is a literal ${"`
}

type rawEvidence struct {
	Line    int
	Minimum text `yaml:"minimum" enum:"declared|fetched|reported|read-back|measured|enforced" doc:"the weakest proof that counts; default reported"`
	MaxAge  text `yaml:"maxAge" form:"duration" doc:"how old it may be; older, a plan shows the machine as one to observe, and writes nothing for it; default any age"`
}

type rawHealth struct {
	Line     int
	Deadline text `yaml:"deadline" form:"duration" doc:"from the first disk boot to healthy; default 20m"`
}

type rawIdentity struct {
	Line    int
	Minimum text `yaml:"minimum" enum:"L0|L1" doc:"L0: its hardware address (the default); L1: what it boots by comes through its BMC, whose UUID or serial it has"`
}

type rawGroup struct {
	Line       int
	Select     entries    `yaml:"select,required" doc:"labels or location fields (site, rack, unit); all must match"`
	Definition text       `yaml:"definition,required" form:"name" doc:"name of the Definition its machines run"`
	Generation text       `yaml:"generation" form:"digest" doc:"pins a kept generation; a rollback writes it"`
	Rollout    rawRollout `yaml:"rollout"`
	Power      text       `yaml:"power" enum:"report|enforce" doc:"what follows where the watch sees an active machine off that recast did not switch off: report is a finding (the default); enforce switches it on again, three times a day at the most, and never one whose board was swapped"`
}

type rawRollout struct {
	Line           int
	Canary         number `yaml:"canary" doc:"machines that go first and must be active before the rest; default 0"`
	MaxUnavailable scalar `yaml:"maxUnavailable" form:"share" doc:"machines that may be away at once, a count or a percentage; default 25%"`
	MaxFailures    scalar `yaml:"maxFailures" form:"share" doc:"failed machines that stop further starts, a count or a percentage; default 1"`
}

type rawMachine struct {
	Line       int
	Location   rawLocation    `yaml:"location"`
	Arch       text           `yaml:"arch" enum:"amd64|arm64" doc:"CPU architecture; default amd64"`
	Firmware   text           `yaml:"firmware" enum:"bios|uefi" doc:"how it boots; default as the ramdisk last saw, else uefi"`
	NICs       []rawNIC       `yaml:"nics,required" doc:"network interfaces; at least one"`
	BMC        rawBMC         `yaml:"bmc" doc:"board management controller; without one a person switches the power"`
	Serial     text           `yaml:"serial" doc:"must be what the machine itself says (SMBIOS)"`
	UUID       text           `yaml:"uuid" form:"uuid" doc:"must be what the machine itself says (SMBIOS)"`
	Protected  boolean        `yaml:"protected" doc:"blocks every plan that would erase it"`
	Model      text           `yaml:"model" form:"name" doc:"name of the Model whose boot it takes where it says nothing itself"`
	Boot       rawMachineBoot `yaml:"boot" doc:"how it boots from the network"`
	SecureBoot boolean        `yaml:"secureBoot" doc:"its firmware starts signed loaders only: no other is ever offered to it"`
}

type rawModel struct {
	Line int
	Boot rawMachineBoot `yaml:"boot,required" doc:"how machines of this build boot from the network"`
}

type rawMachineBoot struct {
	Line    int
	Via     text   `yaml:"via" enum:"network|http|media" doc:"how its BMC makes it boot: from the network, as DHCP says (the default); by UEFI HTTP Boot from an address with a one-time token; or from a virtual CD that holds its address too, without any DHCP"`
	Loader  text   `yaml:"loader" doc:"snponly: the firmware drives the network card (the default); ipxe: iPXE's own drivers; or the digest of an imported loader"`
	Local   text   `yaml:"local" enum:"exit|sanboot|silent|grub|http-404" doc:"how it starts its own disk; default sanboot under BIOS, exit under UEFI"`
	Console []text `yaml:"console" example:"ttyS1,115200n8" doc:"consoles of the ramdisk's kernel, the last one for its messages; default tty0 and ttyS0,115200n8"`

	Handover text `yaml:"handover" enum:"reboot" doc:"reboot: a gate restarts it, whatever its Definition says, for hardware that a second kernel does not start on"`
}

type rawLocation struct {
	Line int
	Site text   `yaml:"site" form:"label"`
	Rack text   `yaml:"rack" form:"label"`
	Unit number `yaml:"unit" doc:"from 1"`
}

type rawNIC struct {
	Line    int
	MAC     text    `yaml:"mac" form:"mac" doc:"hardware address; may be left out where port is given"`
	Port    rawPort `yaml:"port" doc:"the switch port it is plugged into, as the relay names it (DHCP option 82, DHCPv6 options 18 and 37)"`
	Network text    `yaml:"network" form:"name" doc:"name of the Network it is on"`
	IP      text    `yaml:"ip" form:"addr4" doc:"its reserved IPv4 address, in that Network"`
	IP6     text    `yaml:"ip6" form:"addr6" doc:"its reserved IPv6 address, in the IPv6 Network that holds it"`
}

type rawPort struct {
	Line    int
	Circuit text `yaml:"circuit,required" example:"Ethernet1/7" doc:"the port: the relay's circuit ID or interface ID, as text or in hex (0x…)"`
	Remote  text `yaml:"remote" doc:"the switch: the relay's remote ID, as text or in hex (0x…)"`
	Relay   text `yaml:"relay" form:"addr" doc:"the relay's address on the machine's subnet"`
}

type rawBMC struct {
	Line        int
	URL         text   `yaml:"url,required" form:"bmc" example:"redfish://10.30.0.15" doc:"redfish://host[:port][/systems/ID] or ipmi://host[:port]"`
	Credentials text   `yaml:"credentials,required" form:"name" doc:"name of the secret with user:password"`
	Pin         text   `yaml:"pin" form:"digest" doc:"SHA-256 of its TLS certificate (redfish)"`
	HostKey     text   `yaml:"hostKey" form:"hostKey" example:"SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8" doc:"fingerprint of its SSH host key, for its console by SSH (redfish)"`
	CipherSuite number `yaml:"cipherSuite" doc:"IPMI: 17 (the default), or 3"`
	MAC         text   `yaml:"mac" form:"mac" doc:"its hardware address, where DHCP gives it its address"`
	IP          text   `yaml:"ip" form:"addr4" doc:"the IPv4 address reserved for it, in an authoritative Network"`
	IP6         text   `yaml:"ip6" form:"addr6" doc:"the IPv6 address, likewise"`
}
