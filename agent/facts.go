package agent

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// Hardware is the machine that the agent runs on, as the kernel shows it.
type Hardware struct {
	// Root stands before /sys, /proc and /dev; "" is the running system.
	Root string
	// LLDP returns what was heard on an interface; nil for nothing.
	LLDP func(nic string) []inventory.LLDPTLV
}

var _ Machine = Hardware{}

// Facts reads what the machine is. It writes nothing and opens disks for
// reading only.
func (h Hardware) Facts(ctx context.Context) (inventory.Facts, error) {
	f := inventory.Facts{CPU: h.cpu(), Memory: h.memory(), SystemVendor: h.vendor(), Boot: h.boot(),
		TPM: h.read("/sys/class/tpm/tpm0/tpm_version_major")}
	f.Hostname = h.read("/proc/sys/kernel/hostname")
	if f.Hostname == "(none)" {
		f.Hostname = ""
	}
	for _, name := range h.disks() {
		if ctx.Err() != nil {
			return f, ctx.Err()
		}
		d := h.disk(name)
		h.probe(&d)
		f.Disks = append(f.Disks, d)
	}
	for _, name := range h.nics() {
		f.Interfaces = append(f.Interfaces, h.nic(name))
	}
	f.MissingFirmware = missingFirmware(kernelLog())
	return f, nil
}

// read is a small file without the white space at its ends; "" where it cannot be read.
func (h Hardware) read(path string) string {
	b, err := os.ReadFile(h.Root + path)
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), " \t\r\n\x00")
}

func (h Hardware) number(path string) int64 {
	n, _ := strconv.ParseInt(h.read(path), 10, 64)
	return n
}

func (h Hardware) list(dir string) []string {
	entries, _ := os.ReadDir(h.Root + dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

func (h Hardware) cpu() inventory.CPUFacts {
	c := inventory.CPUFacts{Architecture: machineWord()}
	s := bufio.NewScanner(strings.NewReader(h.read("/proc/cpuinfo")))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "processor":
			c.Count++
		case "model name":
			c.ModelName = value
		case "cpu MHz":
			c.Frequency = value
		case "flags", "Features":
			if c.Flags == nil {
				c.Flags = strings.Fields(value)
			}
		}
	}
	return c
}

func machineWord() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Machine[:])
}

func (h Hardware) memory() inventory.MemoryFacts {
	var m inventory.MemoryFacts
	for line := range strings.Lines(h.read("/proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			m.Total = kb << 10
		}
	}
	if table, err := os.ReadFile(h.Root + "/sys/firmware/dmi/tables/DMI"); err == nil {
		m.PhysicalMB = installedMiB(table)
	}
	return m
}

// usableSerial is "" for what firmware says instead of a serial number.
func usableSerial(s string) string {
	if !inventory.UsableSerial(s) {
		return ""
	}
	return s
}

func (h Hardware) vendor() inventory.SystemVendor {
	const dmi = "/sys/class/dmi/id/"
	return inventory.SystemVendor{
		ProductName: h.read(dmi + "product_name"), Manufacturer: h.read(dmi + "sys_vendor"),
		SerialNumber: usableSerial(h.read(dmi + "product_serial")), UUID: strings.ToLower(h.read(dmi + "product_uuid")),
		Firmware: inventory.FirmwareFacts{Vendor: h.read(dmi + "bios_vendor"), Version: h.read(dmi + "bios_version"), BuildDate: h.read(dmi + "bios_date")},
	}
}

func (h Hardware) boot() inventory.BootFacts {
	b := inventory.BootFacts{Mode: "bios"}
	if _, err := os.Stat(h.Root + "/sys/firmware/efi"); err == nil {
		b.Mode = "uefi"
		vars := VarFS(h.Root + EFIVars)
		v, err := vars.Get(secureBoot)
		b.SecureBoot = err == nil && len(v) > 0 && v[0] == 1
		b.HTTPBoot = byHTTPBoot(vars)
		again, _, err := labelled(vars, inventory.AgainLabel, anyOption)
		b.Again = err == nil && len(again) > 0
	}
	return b
}

// Variables are the firmware's; nil under BIOS.
func (h Hardware) Variables() Variables {
	if _, err := os.Stat(h.Root + "/sys/firmware/efi"); err != nil {
		return nil
	}
	return VarFS(h.Root + EFIVars)
}

// EFIVars is where a system has its efivarfs.
const EFIVars = "/sys/firmware/efi/efivars"

// notDisks are block devices that are no disks of the machine.
var notDisks = regexp.MustCompile(`^(loop|ram|zram|sr|fd|dm-|md|nbd|mmcblk\d+boot|mmcblk\d+rpmb|nvme\d+c\d+n)`)

func (h Hardware) disks() []string {
	return slices.DeleteFunc(h.list("/sys/block"), func(name string) bool {
		return notDisks.MatchString(name) || h.number("/sys/block/"+name+"/size") == 0
	})
}

func (h Hardware) disk(name string) inventory.DiskFacts {
	dir := "/sys/block/" + name
	d := inventory.DiskFacts{
		Name: "/dev/" + name, Size: h.number(dir+"/size") * 512, // the kernel counts in 512 whatever the disk does
		Model: h.read(dir + "/device/model"), Vendor: h.read(dir + "/device/vendor"),
		Rotational:       h.read(dir+"/queue/rotational") == "1",
		LogicalBlockSize: int(h.number(dir + "/queue/logical_block_size")), PhysicalBlockSize: int(h.number(dir + "/queue/physical_block_size")),
		ReadOnly: h.read(dir+"/ro") == "1", Removable: h.read(dir+"/removable") == "1",
		InUse: h.inUse(name),
	}
	target, _ := filepath.EvalSymlinks(h.Root + dir)
	d.HCTL = hctl(target)
	d.ByPath = byPath(target, h.ataPort(target))
	if strings.HasPrefix(d.Vendor, "0x") {
		d.Vendor = "" // virtio's device/vendor is a number of the bus
	}
	d.Serial = firstOf(
		func() string { return h.read(dir + "/serial") },        // virtio-blk
		func() string { return h.read(dir + "/device/serial") }, // nvme, mmc
		func() string { return vpdSerial(h.raw(dir + "/device/vpd_pg80")) },
		func() string { return ataSerial(h.Root + d.Name) },
	)
	wwid := firstOf(func() string { return h.read(dir + "/wwid") }, func() string { return h.read(dir + "/device/wwid") })
	d.WWN, d.WWNWithExtension, d.WWNVendorExtension = wwn(wwid)
	return d
}

func firstOf(sources ...func() string) string {
	for _, s := range sources {
		if v := printable(strings.TrimSpace(s())); v != "" {
			return v
		}
	}
	return ""
}

func (h Hardware) raw(path string) []byte {
	b, _ := os.ReadFile(h.Root + path)
	return b
}

// vpdSerial reads the unit serial number page (SPC-4, 7.8.15).
func vpdSerial(page []byte) string {
	if len(page) < 4 || page[1] != 0x80 {
		return ""
	}
	n := int(page[2])<<8 | int(page[3])
	return strings.Trim(string(page[4:min(4+n, len(page))]), " \x00")
}

// ataSerial asks an ATA disk to identify itself: words 10 to 19.
func ataSerial(dev string) string {
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	var id [512]byte
	if ioctlPtr(f, 0x030d /* HDIO_GET_IDENTITY */, unsafe.Pointer(&id)) != nil {
		return ""
	}
	return strings.Trim(string(id[20:40]), " \x00")
}

// wwn splits the kernel's wwid as udev does: an NAA name of 64 bits, or of 128
// whose second half is the vendor's; NVMe's own names stay as they are. Names
// made of vendor and model (t10.) are no WWN.
func wwn(wwid string) (name, withExtension, extension string) {
	if hex, ok := strings.CutPrefix(wwid, "naa."); ok {
		switch len(hex) {
		case 16:
			return "0x" + hex, "0x" + hex, ""
		case 32:
			return "0x" + hex[:16], "0x" + hex, "0x" + hex[16:]
		}
		return "", "", ""
	}
	if strings.HasPrefix(wwid, "eui.") || strings.HasPrefix(wwid, "uuid.") || strings.HasPrefix(wwid, "nvme.") {
		return wwid, wwid, ""
	}
	return "", "", ""
}

var hctlPart = regexp.MustCompile(`/(\d+:\d+:\d+:\d+)/block/`)

func hctl(sysPath string) string {
	if m := hctlPart.FindStringSubmatch(sysPath); m != nil {
		return m[1]
	}
	return ""
}

var (
	pciPart  = regexp.MustCompile(`/([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/`)
	ataPart  = regexp.MustCompile(`/ata(\d+)/`)
	nvmePart = regexp.MustCompile(`/nvme\d+n(\d+)$`)
)

// byPath is the name that udev gives the disk by where it is plugged in, for
// the buses that a server boots from.
func byPath(sysPath, ataPort string) string {
	pci := pciPart.FindAllStringSubmatch(sysPath+"/", -1)
	if len(pci) == 0 {
		return ""
	}
	name := "/dev/disk/by-path/pci-" + pci[len(pci)-1][1]
	switch {
	case nvmePart.MatchString(sysPath):
		return name + "-nvme-" + nvmePart.FindStringSubmatch(sysPath)[1]
	case ataPort != "":
		return name + "-ata-" + ataPort
	case strings.Contains(sysPath, "/usb"):
		return "" // its place says nothing of the disk
	case hctl(sysPath) != "":
		return name + "-scsi-" + hctl(sysPath)
	}
	return name
}

// ataPort is the number of the disk's port on its controller; the kernel's own
// number runs through all controllers.
func (h Hardware) ataPort(sysPath string) string {
	m := ataPart.FindStringSubmatch(sysPath)
	if m == nil {
		return ""
	}
	return h.read("/sys/class/ata_port/ata" + m[1] + "/port_no")
}

// inUse says whether the ramdisk itself uses the disk or a part of it.
func (h Hardware) inUse(name string) bool {
	holders := [][]string{h.list("/sys/block/" + name + "/holders")}
	for _, part := range h.list("/sys/block/" + name) {
		if strings.HasPrefix(part, name) {
			holders = append(holders, h.list("/sys/block/"+name+"/"+part+"/holders"))
		}
	}
	for _, l := range holders {
		if len(l) > 0 {
			return true
		}
	}
	for _, table := range []string{"/proc/mounts", "/proc/swaps"} {
		for line := range strings.Lines(h.read(table)) {
			if strings.HasPrefix(line, "/dev/"+name) {
				return true
			}
		}
	}
	return false
}

// probe looks at what the disk holds. A disk that cannot be read is said to
// hold something: it must not be taken for a blank one.
func (h Hardware) probe(d *inventory.DiskFacts) {
	f, err := os.Open(h.Root + d.Name)
	if err != nil {
		d.Holds = "cannot be read: " + printable(err.Error())
		return
	}
	defer f.Close()
	if d.Holds, err = Holds(f, d.Size); err != nil {
		d.Holds = "cannot be read: " + printable(err.Error())
		return
	}
	d.Recast, _ = ReadMarker(f, d.Size) // a broken marker is no marker; Holds tells of the partition
}

// OpenDisk opens the one disk that the job names.
func (h Hardware) OpenDisk(_ context.Context, want inventory.DiskID) (Disk, error) {
	var found []string
	var last error
	for _, name := range h.disks() {
		if err := SameDisk(want, identity(h.disk(name))); err == nil {
			found = append(found, name)
		} else {
			last = err
		}
	}
	switch {
	case len(found) > 1:
		return nil, fmt.Errorf("open disk: %s all look like the job's disk (%s %s)", strings.Join(found, ", "), want.WWN, want.Serial)
	case len(found) == 0 && last != nil:
		return nil, fmt.Errorf("open disk: the job's disk (%s %s) is not here: %w", want.WWN, want.Serial, last)
	case len(found) == 0:
		return nil, fmt.Errorf("open disk: the machine has no disk")
	}
	d := h.disk(found[0])
	if d.InUse {
		return nil, fmt.Errorf("open disk: %s is in use", d.Name)
	}
	return OpenDevice(h.Root+d.Name, func() (inventory.DiskID, error) { return identity(h.disk(found[0])), nil })
}

func identity(d inventory.DiskFacts) inventory.DiskID {
	return inventory.DiskID{Name: d.Name, WWN: d.WWN, Serial: d.Serial, ByPath: d.ByPath, Size: d.Size, LogicalBlockSize: d.LogicalBlockSize}
}

// nics are the physical interfaces: those with a device behind them.
func (h Hardware) nics() []string {
	return slices.DeleteFunc(h.list("/sys/class/net"), func(name string) bool {
		_, err := os.Stat(h.Root + "/sys/class/net/" + name + "/device")
		return err != nil
	})
}

func (h Hardware) nic(name string) inventory.NICFacts {
	dir := "/sys/class/net/" + name
	n := inventory.NICFacts{
		Name: name, HasCarrier: h.read(dir+"/carrier") == "1",
		Vendor: h.read(dir + "/device/vendor"), Product: h.read(dir + "/device/device"),
		BIOSDevName: h.read(dir + "/device/label"),
	}
	n.MAC, _ = inventory.ParseMAC(h.read(dir + "/address"))
	if speed := h.number(dir + "/speed"); speed > 0 {
		n.SpeedMbps = int(speed)
	}
	if driver, err := os.Readlink(h.Root + dir + "/device/driver"); err == nil {
		n.Driver = filepath.Base(driver)
	}
	if strings.HasPrefix(n.Driver, "virtio") {
		// The ids of the bus below are those of the card.
		n.Vendor, n.Product = h.read(dir+"/device/../vendor"), h.read(dir+"/device/../device")
	}
	if h.Root == "" {
		n.IPv4, n.IPv6 = address(name, false), address(name, true)
		for _, vlan := range h.list("/sys/class/net") {
			if strings.HasPrefix(vlan, name+".") { // see addVLAN
				n.IPv4, n.IPv6 = cmp.Or(n.IPv4, address(vlan, false)), cmp.Or(n.IPv6, address(vlan, true))
			}
		}
	}
	if h.LLDP != nil {
		n.LLDP = h.LLDP(name)
	}
	return n
}

// address of the interface, of more than its link.
func address(nic string, v6 bool) netip.Addr {
	i, err := net.InterfaceByName(nic)
	if err != nil {
		return netip.Addr{}
	}
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() == v6 && (!v6 || p.Addr().IsGlobalUnicast()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// kernelLog is the kernel's ring buffer; "" where it may not be read.
func kernelLog() string {
	b := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

var firmwareLine = regexp.MustCompile(`(?:Direct firmware load for|[Ff]ailed to load(?: firmware)?) (\S+) failed with error -2`)

// missingFirmware names the files that drivers asked for and did not find.
func missingFirmware(log string) []string {
	var names []string
	for _, m := range firmwareLine.FindAllStringSubmatch(log, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}
