package inventory

import (
	"errors"
	"strings"
	"testing"
)

func serverDisks() []DiskFacts {
	return []DiskFacts{
		{Name: "/dev/sda", Model: "ST4000NM0035  1V4", Vendor: "SEAGATE", Serial: "ZC1A", WWN: "0x5000c500a", WWNWithExtension: "0x5000c500a0001",
			Size: 4000787030016, Rotational: true, HCTL: "0:0:0:0", ByPath: "/dev/disk/by-path/pci-0000:00:1f.2-ata-1", LogicalBlockSize: 512},
		{Name: "/dev/sdb", Model: "ST4000NM0035  1V4", Vendor: "SEAGATE", Serial: "ZC1B", WWN: "0x5000c500b",
			Size: 4000787030016, Rotational: true, HCTL: "0:0:1:0", ByPath: "/dev/disk/by-path/pci-0000:00:1f.2-ata-2", LogicalBlockSize: 512},
		{Name: "/dev/nvme0n1", Model: "SAMSUNG MZQL2960HCJR", Serial: "S64F", WWN: "eui.3634", Size: 100 << 30, LogicalBlockSize: 512},
		{Name: "/dev/sdc", Model: "Virtual Floppy", Vendor: "AMI", Serial: "AAAA", Size: 120 << 30, Removable: true, LogicalBlockSize: 512},
		{Name: "/dev/md0", Serial: "raid", Size: 120 << 30, InUse: true, LogicalBlockSize: 512},
		{Name: "/dev/sdd", Serial: "locked", Size: 120 << 30, ReadOnly: true, LogicalBlockSize: 512},
		{Name: "/dev/sde", Serial: "dead", LogicalBlockSize: 512},
	}
}

func TestChooseByIronicsHints(t *testing.T) {
	const none, several = "none", "several"
	for _, tt := range []struct {
		hint, value string
		want        string // name, none or several
	}{
		{"serial", "ZC1A", "sda"}, {"serial", "zc1a", "sda"}, {"serial", "s== ZC1A", "sda"}, {"serial", "ZC1", none},
		{"serial", "s!= ZC1A", several}, {"serial", "<in> 64", "nvme0n1"}, {"serial", "<in> zc1", several},
		{"serial", "<or> ZC1B <or> other", "sdb"}, {"serial", "<or> ZC1B <or> ZC1A", several},
		{"serial", "s> ZC1A", "sdb"}, {"serial", "s>= ZC1A", several}, {"serial", "s< ZC1A", "nvme0n1"}, {"serial", "s<= S64F", "nvme0n1"},
		// Those that never fit would otherwise.
		{"serial", "AAAA", none}, {"serial", "raid", none}, {"serial", "locked", none}, {"serial", "dead", none},
		{"model", "ST4000NM0035 1V4", several}, {"model", "<all-in> mzql samsung", "nvme0n1"}, {"model", "<all-in> samsung seagate", none},
		{"model", "<in> SAMSUNG MZ", "nvme0n1"},
		{"vendor", "seagate", several},
		// The NVMe disk tells no vendor: not even "is not" fits.
		{"vendor", "s!= seagate", none},
		{"wwn", "0x5000c500b", "sdb"}, {"wwn_with_extension", "0x5000C500A0001", "sda"}, {"wwn_vendor_extension", "0x1", none},
		{"hctl", "0:0:1:0", "sdb"}, {"by_path", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "sda"}, {"name", "/dev/nvme0n1", "nvme0n1"},
		{"rotational", "false", "nvme0n1"}, {"rotational", "True", several},
		{"size", "100", "nvme0n1"}, {"size", "== 100", "nvme0n1"}, {"size", "== 100.0", "nvme0n1"}, {"size", "99", none},
		{"size", "= 100", several}, {"size", "= 101", several}, {"size", "<= 100", "nvme0n1"}, {"size", "< 100", none},
		{"size", ">= 100", several}, {"size", "> 100", several}, {"size", "!= 100", several}, {"size", "<or> 99 <or> 100", "nvme0n1"},
		{"size", "> 3726", several}, {"size", "> 3727", none},
	} {
		t.Run(tt.hint+" "+tt.value, func(t *testing.T) {
			d, err := Choose(DiskSelect{Hints: map[string]string{tt.hint: tt.value}}, serverDisks())
			got := strings.TrimPrefix(d.Name, "/dev/")
			var choice *ChoiceError
			if errors.As(err, &choice) {
				got = none
				if len(choice.Matched) > 1 {
					got = several
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("chose %s, want %s (%v)", got, tt.want, err)
			}
		})
	}
}

func TestChooseNeedsExactlyOneDiskThatFitsAllHints(t *testing.T) {
	disks := serverDisks()
	if d, err := Choose(DiskSelect{MinSize: 1 << 40, Hints: map[string]string{"hctl": "0:0:1:0"}}, disks); err != nil || d.Serial != "ZC1B" {
		t.Errorf("by size and hctl: %v %v", d, err)
	}
	if d, err := Choose(DiskSelect{MaxSize: 1 << 40}, disks); err != nil || d.Serial != "S64F" {
		t.Errorf("by largest size: %v %v", d, err)
	}
	_, err := Choose(DiskSelect{MinSize: 1 << 40}, disks)
	want := "2 disks fit the hints: sda serial ZC1A, sdb serial ZC1B; add a hint that only one of them fits, such as its serial"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = Choose(DiskSelect{MinSize: 1 << 40, Hints: map[string]string{"rotational": "false"}}, disks)
	want = "no disk fits the hints: sda serial ZC1A (rotational is true), sdb serial ZC1B (rotational is true), " +
		"nvme0n1 serial S64F (100.0 GiB is less than minSize 1.0 TiB), sdc serial AAAA (it is removable), " +
		"md0 serial raid (it is in use), sdd serial locked (it is read-only), sde serial dead (its size is not known)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err = Choose(DiskSelect{}, nil); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("no disk at all: %v", err)
	}
	// A hint that cannot be read, from a newer recast say, must not be ignored.
	for _, sel := range []DiskSelect{
		{Hints: map[string]string{"colour": "blue"}}, {Hints: map[string]string{"size": "big"}}, {Hints: map[string]string{"rotational": ""}},
	} {
		if d, err := Choose(sel, disks[:1]); err == nil {
			t.Errorf("%v chose %s", sel, d.Name)
		}
	}
}

func TestDiskIdentity(t *testing.T) {
	disks := serverDisks()
	id, err := disks[0].ID()
	if err != nil || id.WWN != "0x5000c500a" || id.Serial != "ZC1A" || id.ByPath != "" {
		t.Fatalf("%+v %v", id, err)
	}
	renamed := disks[0]
	renamed.Name, renamed.HCTL, renamed.ByPath = "/dev/sdb", "0:0:5:0", "elsewhere"
	if err := id.Matches(renamed); err != nil {
		t.Errorf("the same disk in another slot: %v", err)
	}
	for want, change := range map[string]func(*DiskFacts){
		`wwn is "0x1"`:                   func(d *DiskFacts) { d.WWN = "0x1" },
		`wwn is ""`:                      func(d *DiskFacts) { d.WWN = "" },
		`serial is "ZC1B"`:               func(d *DiskFacts) { d.Serial = "ZC1B" },
		"size is 5 bytes":                func(d *DiskFacts) { d.Size = 5 },
		"logical block size is 4096":     func(d *DiskFacts) { d.LogicalBlockSize = 4096 },
		`want "ZC1A"`:                    func(d *DiskFacts) { d.Serial = "" },
		`the wwn is "x", want "0x5000c5`: func(d *DiskFacts) { d.WWN, d.Serial, d.Size = "x", "y", 1 },
	} {
		d := disks[0]
		change(&d)
		if err := id.Matches(d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	bare := DiskFacts{Name: "/dev/vda", ByPath: "/dev/disk/by-path/virtio-1", Size: 1 << 30, LogicalBlockSize: 512}
	id, err = bare.ID()
	if err != nil || id.ByPath != bare.ByPath {
		t.Fatalf("%+v %v", id, err)
	}
	if err := id.Matches(bare); err != nil {
		t.Error(err)
	}
	// A slot is no identity once another disk sits in it.
	other := bare
	other.Serial = "new"
	if err := id.Matches(other); err == nil || !strings.Contains(err.Error(), "another disk") {
		t.Errorf("another disk in the slot: %v", err)
	}
	for _, d := range []DiskFacts{{Name: "/dev/vda", Size: 1, LogicalBlockSize: 512}, {Name: "/dev/vda", Serial: "a", LogicalBlockSize: 512}, {Name: "/dev/vda", Serial: "a", Size: 1}} {
		if id, err := d.ID(); err == nil {
			t.Errorf("%+v was identified as %+v", d, id)
		}
	}
	if err := (DiskID{Size: 1, LogicalBlockSize: 512}).Matches(DiskFacts{Size: 1, LogicalBlockSize: 512}); err == nil {
		t.Error("an identity that pins nothing matches")
	}
}

// Whatever an operator writes is refused or decides the same way twice, and no
// hint ever lets a disk through that must not be written.
func FuzzHint(f *testing.F) {
	for _, s := range []string{">= 100", "<or> a <or> b", "<all-in> a b", "s!= x", "<in> y", "= 1e3", "true", "==", "<range-in> [1 2]"} {
		for _, name := range []string{"size", "model", "rotational"} {
			f.Add(name, s)
		}
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		h, err := parseHint(name, value)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("an error of several lines: %q", err)
			}
			return
		}
		for _, d := range serverDisks() {
			h.fits(d)
		}
		if d, err := Choose(DiskSelect{Hints: map[string]string{name: value}}, serverDisks()); err == nil && (d.InUse || d.Removable || d.ReadOnly || d.Size == 0) {
			t.Fatalf("%s %q chose %s", name, value, d.Name)
		}
	})
}
