package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"recast/inventory"
)

// Debian's ovmf package, and qemu-efi-aarch64.
const (
	qemuOVMFCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	qemuOVMFVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	// With Microsoft's keys, and the code that keeps them from the system (SMM).
	qemuOVMFSecureCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	qemuOVMFSecureVars = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
	qemuAAVMFCode      = "/usr/share/AAVMF/AAVMF_CODE.fd"
	qemuAAVMFVars      = "/usr/share/AAVMF/AAVMF_VARS.fd"
)

// args is the command line for a start with the given boot override.
func (m *QEMU) args(boot BootDevice) ([]string, error) {
	memory, cpus := m.MemoryMB, m.CPUs
	if memory == 0 {
		memory = 1024
	}
	if cpus == 0 {
		cpus = 1
	}
	// Without graphics SeaBIOS, and what draws through it, speak on the serial port.
	machine, cpu, code, emptyVars := "q35,graphics=off", "max", qemuOVMFCode, qemuOVMFVars
	if m.Arch == inventory.ARM64 {
		// The pointer authentication of max is slow in emulation.
		machine, cpu, code, emptyVars = "virt", "cortex-a57", qemuAAVMFCode, qemuAAVMFVars
	}
	if m.SecureBoot {
		machine, code, emptyVars = machine+",smm=on", qemuOVMFSecureCode, qemuOVMFSecureVars
	}
	args := []string{
		"-name", qemuQuote(m.Name),
		"-nodefaults", "-no-user-config",
		"-machine", machine, "-display", "none", "-vga", "none",
		"-accel", "tcg,thread=multi", "-cpu", cpu,
		"-m", strconv.Itoa(memory), "-smp", strconv.Itoa(cpus),
		"-rtc", "base=utc",
		// Off means paused here, until the counters were read.
		"-no-shutdown",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=console,path=" + qemuConsole + ",server=on,wait=off,logfile=console.log,logappend=on",
		"-serial", "chardev:console",
		"-smbios", "type=1,manufacturer=recast,product=lab,serial=" + qemuQuote(m.Serial) + ",uuid=" + m.UUID,
		"-uuid", m.UUID,
	}
	if m.UEFI() {
		vars := filepath.Join(m.Dir, "vars.fd")
		if err := qemuCopyOnce(emptyVars, vars); err != nil {
			return nil, err
		}
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code,
			"-drive", "if=pflash,unit=1,format=raw,file=vars.fd",
		)
		netBoot := m.NetBoot
		if boot == BootHTTP {
			netBoot = NetBootHTTP // every card would try PXE first
			if err := m.armHTTP(vars); err != nil {
				return nil, err
			}
		}
		if m.SecureBoot {
			args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
		}
		if netBoot != NetBootPXE {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
		}
		if netBoot != NetBootPXE && netBoot != NetBootPXE6 {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
		}
	}
	if m.Arch == inventory.ARM64 {
		// Else the kernel has no random numbers for minutes. AAVMF hands it a seed of
		// these, as servers' firmware does of their own.
		args = append(args, "-device", "virtio-rng-pci")
	}
	if m.TPM {
		device := "tpm-tis"
		if m.Arch == inventory.ARM64 {
			device = "tpm-tis-device" // its bus is no ISA
		}
		args = append(args, "-chardev", "socket,id=chip,fd=4", "-tpmdev", "emulator,id=tpm,chardev=chip", "-device", device+",tpmdev=tpm")
	}
	if m.waits() {
		args = append(args, "-S") // until prepare
	}
	boot = m.order(boot)
	for i, d := range m.Disks {
		if m.faults.diskGone {
			break
		}
		disk, err := qemuDiskArgs(i, d, m.diskIndex(i, boot), m.shown(i))
		if err != nil {
			return nil, err
		}
		args = append(args, disk...)
	}
	if m.Drive {
		drive := "ide-cd,bus=ide.5" // the last port, so that up to five disks have theirs
		if m.Arch == inventory.ARM64 {
			args = append(args, "-device", "virtio-scsi-pci,id=cdbus")
			drive = "scsi-cd,bus=cdbus.0"
		}
		args = append(args, "-device", fmt.Sprintf("%s,id=%s,bootindex=%d", drive, qemuCDID, qemuCDIndex(boot)))
	}
	for i, n := range m.NICs {
		nic, err := qemuNICArgs(i, n, m.nicIndex(i, boot), m.UEFI())
		if err != nil {
			return nil, err
		}
		args = append(args, nic...)
	}
	return args, nil
}

// qemuDiscard is what becomes of the machine's discards.
func qemuDiscard(d QEMUDisk) string {
	if d.Discard {
		return "unmap"
	}
	return "ignore"
}

// qemuDiskArgs: a size other than 0 is less than the file's, and all that is shown.
func qemuDiskArgs(i int, d QEMUDisk, bootIndex int, size int64) ([]string, error) {
	path, err := filepath.Abs(d.Path)
	if err != nil {
		return nil, fmt.Errorf("find disk %q: %w", d.Path, err)
	}
	drive := fmt.Sprintf("if=none,id=%s,node-name=%s,format=raw,cache=writeback,discard=%s,file=%s", qemuDriveID(i), qemuNodeID(i), qemuDiscard(d), qemuQuote(path))
	if size > 0 {
		drive += fmt.Sprintf(",size=%d", size)
	}
	args := []string{"-drive", drive}
	var device string
	switch d.Bus {
	case "", BusAHCI:
		device = fmt.Sprintf("ide-hd,bus=ide.%d", i) // the AHCI controller of the q35 has six ports
	case BusVirtio:
		device = "virtio-blk-pci"
	case BusNVMe:
		device = "nvme"
	case BusSCSI:
		args = append(args, "-device", "virtio-scsi-pci,id=scsi"+strconv.Itoa(i))
		device = fmt.Sprintf("scsi-hd,bus=scsi%d.0", i)
	default:
		return nil, fmt.Errorf("attach disk %q: unknown bus %q, want ahci, virtio, nvme or scsi", d.Path, d.Bus)
	}
	device += fmt.Sprintf(",id=%s,drive=%s,bootindex=%d", qemuDiskID(i), qemuDriveID(i), bootIndex)
	if d.Serial != "" {
		device += ",serial=" + qemuQuote(d.Serial)
	} else if d.Bus == BusNVMe {
		return nil, errors.New("attach disk: NVMe needs a serial")
	}
	return append(args, "-device", device), nil
}

func qemuNICArgs(i int, n QEMUNIC, bootIndex int, uefi bool) ([]string, error) {
	var device string
	switch n.Model {
	case "", NICVirtio:
		device = "virtio-net-pci"
	case NICE1000:
		device = "e1000"
	default:
		return nil, fmt.Errorf("attach network card %s: unknown model %q, want virtio or e1000", n.MAC, n.Model)
	}
	device += fmt.Sprintf(",id=%s,netdev=net%d,mac=%s,bootindex=%d", qemuNICID(i), i, n.MAC, bootIndex)
	if uefi || n.NoROM {
		// QEMU's cards carry an iPXE that would take over from the firmware's PXE.
		// SeaBIOS has no network stack and needs it.
		device += ",romfile="
	}
	return []string{
		"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, n.Tap),
		"-device", device,
	}, nil
}

// qemuQuote doubles the commas, which end a value in QEMU's options.
func qemuQuote(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// qemuCopyOnce gives a machine firmware variables of its own, which it keeps.
func qemuCopyOnce(from, to string) error {
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy firmware variables: %w", err)
	}
	if err := os.WriteFile(to+".new", data, 0o644); err != nil {
		return fmt.Errorf("copy firmware variables: %w", err)
	}
	return os.Rename(to+".new", to)
}
