package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"recast/inventory"
)

func TestQEMUArguments(t *testing.T) {
	for _, test := range []struct {
		name    string
		machine *QEMU
		boot    BootDevice
		want    []string // whole arguments
		not     []string // in no argument
	}{
		{
			name:    "disk before network",
			machine: &QEMU{Disks: []QEMUDisk{{Path: "/d0", Serial: "S,1"}}, NICs: []QEMUNIC{{MAC: "52:54:00:00:00:01", Tap: "tap0"}}},
			want: []string{
				"if=none,id=drive0,node-name=node0,format=raw,cache=writeback,discard=ignore,file=/d0",
				"ide-hd,bus=ide.0,id=disk0,drive=drive0,bootindex=50,serial=S,,1",
				"virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,bootindex=100",
				"tap,id=net0,ifname=tap0,script=no,downscript=no",
			},
			not: []string{"pflash", "romfile"},
		},
		{
			name:    "override",
			machine: &QEMU{Disks: []QEMUDisk{{Path: "/d0", Bus: BusVirtio, Discard: true}}, NICs: []QEMUNIC{{Model: NICE1000}}},
			boot:    BootPXE,
			want: []string{
				"if=none,id=drive0,node-name=node0,format=raw,cache=writeback,discard=unmap,file=/d0",
				"virtio-blk-pci,id=disk0,drive=drive0,bootindex=50",
				"e1000,id=nic0,netdev=net0,mac=,bootindex=1",
			},
		},
		{
			name: "every bus",
			machine: &QEMU{Disks: []QEMUDisk{{Path: "/a", Bus: BusNVMe, Serial: "N"}, {Path: "/b", Bus: BusSCSI},
				{Path: "/c", Bus: BusAHCI}}},
			boot: BootDisk,
			want: []string{
				"nvme,id=disk0,drive=drive0,bootindex=20,serial=N",
				"virtio-scsi-pci,id=scsi1", "scsi-hd,bus=scsi1.0,id=disk1,drive=drive1,bootindex=21",
				"ide-hd,bus=ide.2,id=disk2,drive=drive2,bootindex=22",
			},
		},
		{
			name:    "HTTP Boot with an unplugged card",
			machine: &QEMU{Firmware: FirmwareUEFI, NetBoot: NetBootHTTP, NICs: []QEMUNIC{{Down: true}}},
			want:    []string{"name=opt/org.tianocore/IPv4PXESupport,string=n", "name=opt/org.tianocore/IPv6PXESupport,string=n", "-S"},
		},
		{
			name:    "HTTP Boot once, from where DHCP says",
			machine: &QEMU{Firmware: FirmwareUEFI, NICs: []QEMUNIC{{}}},
			boot:    BootHTTP,
			want:    []string{"name=opt/org.tianocore/IPv4PXESupport,string=n", "virtio-net-pci,id=nic0,netdev=net0,mac=,bootindex=1,romfile="},
		},
		{
			name:    "a drive with a medium",
			machine: &QEMU{Drive: true, medium: bytesMedium{}},
			boot:    BootCD,
			want:    []string{"ide-cd,bus=ide.5,id=cd0,bootindex=10", "-S"},
		},
		{
			name:    "an empty drive on arm64",
			machine: &QEMU{Drive: true, Firmware: FirmwareUEFI, Arch: inventory.ARM64},
			want:    []string{"virtio-scsi-pci,id=cdbus", "scsi-cd,bus=cdbus.0,id=cd0,bootindex=200"},
			not:     []string{"-S"},
		},
		{
			name:    "PXE over IPv6",
			machine: &QEMU{Firmware: FirmwareUEFI, NetBoot: NetBootPXE6},
			want:    []string{"name=opt/org.tianocore/IPv4PXESupport,string=n"},
			not:     []string{"IPv6PXESupport", "-S"},
		},
		{
			name:    "a TPM, and a card without a ROM",
			machine: &QEMU{TPM: true, NICs: []QEMUNIC{{NoROM: true}}},
			want:    []string{"socket,id=chip,fd=4", "tpm-tis,tpmdev=tpm", "virtio-net-pci,id=nic0,netdev=net0,mac=,bootindex=100,romfile="},
		},
		{
			name:    "arm64",
			machine: &QEMU{Firmware: FirmwareUEFI, Arch: inventory.ARM64},
			want:    []string{"virt", "if=pflash,unit=0,format=raw,readonly=on,file=" + qemuAAVMFCode},
			not:     []string{"q35", "OVMF_"},
		},
	} {
		if test.machine.Dir = t.TempDir(); test.machine.UEFI() {
			if err := os.WriteFile(filepath.Join(test.machine.Dir, "vars.fd"), nil, 0o600); err != nil { // instead of a package's
				t.Fatal(err)
			}
		}
		t.Run(test.name, func(t *testing.T) {
			args, err := test.machine.args(test.boot)
			if err != nil {
				t.Fatal(err)
			}
			have := map[string]bool{}
			for _, a := range args {
				have[a] = true
			}
			for _, w := range test.want {
				if !have[w] {
					t.Errorf("no argument %q in %q", w, args)
				}
			}
			for _, n := range test.not {
				if strings.Contains(strings.Join(args, " "), n) {
					t.Errorf("%q in %q", n, args)
				}
			}
		})
	}
	for _, m := range []*QEMU{
		{Disks: []QEMUDisk{{Path: "/d", Bus: "floppy"}}},
		{Disks: []QEMUDisk{{Path: "/d", Bus: BusNVMe}}},
		{NICs: []QEMUNIC{{Model: "ne2000"}}},
	} {
		if _, err := m.args(BootNone); err == nil {
			t.Errorf("no error for %+v", m)
		}
	}
}
