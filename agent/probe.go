package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"recast/pack"
)

// signature is a file system or other content by its magic bytes.
type signature struct {
	name  string
	at    int64
	magic string
}

// signatures as libblkid knows them; those that a whole disk or a partition of
// it may begin with.
var signatures = []signature{
	{"xfs", 0, "XFSB"},
	{"btrfs", 65600, "_BHRfS_M"},
	{"ext2/3/4", 1080, "\x53\xef"},
	{"swap", 4086, "SWAPSPACE2"},
	{"LVM", 536, "LVM2 001"},
	{"LVM", 24, "LVM2 001"},
	{"LUKS", 0, "LUKS\xba\xbe"},
	{"Linux RAID", 4096, "\xfc\x4e\x2b\xa9"},
	{"Linux RAID", 0, "\xfc\x4e\x2b\xa9"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"vfat", 82, "FAT32   "},
	{"vfat", 54, "FAT1"},
	{"iso9660", 32769, "CD001"},
	{"squashfs", 0, "hsqs"},
	{"zfs", 131072 + 1024, "\x0c\xb1\xba\x00"},
	{"bluestore", 0, "bluestore block device"},
}

// Holds says in words what is on a disk. It is empty only when the first and
// the last MiB read as zeros: any doubt is "data without a known signature".
func Holds(disk io.ReaderAt, size int64) (string, error) {
	first, last := make([]byte, min(size, MiB)), make([]byte, min(size, MiB))
	if _, err := disk.ReadAt(first, 0); err != nil {
		return "", err
	}
	if _, err := disk.ReadAt(last, size-int64(len(last))); err != nil {
		return "", err
	}
	first, suspended := pack.Resumed(first)
	if layout, _, err := pack.ParseLayout(first, size); err == nil {
		switch {
		case suspended:
			return describeTable("gpt", layout, disk) + ", suspended by a repair that did not end", nil
		case layout.Scheme == pack.SchemeGPT:
			return describeTable("gpt", layout, disk), nil
		case layout.Scheme == pack.SchemeMBR && len(layout.Partitions) > 0:
			return describeTable("mbr", layout, disk), nil
		}
	} else {
		return "partition table that does not fit the disk: " + printable(err.Error()), nil
	}
	if name := sign(first); name != "" {
		return name + " without a partition table", nil
	}
	if bytes.Equal(backupMagic(last), []byte("EFI PART")) {
		return "gpt, only its backup table is left", nil
	}
	if len(bytes.Trim(first, "\x00")) == 0 && len(bytes.Trim(last, "\x00")) == 0 {
		return "", nil
	}
	return "data without a known signature", nil
}

// backupMagic is where a backup GPT header stands: the last block, of either size.
func backupMagic(last []byte) []byte {
	for _, block := range []int{512, 4096} {
		if len(last) >= block && bytes.HasPrefix(last[len(last)-block:], []byte("EFI PART")) {
			return []byte("EFI PART")
		}
	}
	return nil
}

func sign(b []byte) string {
	for _, s := range signatures {
		if end := s.at + int64(len(s.magic)); end <= int64(len(b)) && string(b[s.at:end]) == s.magic {
			return s.name
		}
	}
	return ""
}

func describeTable(scheme string, layout pack.Layout, disk io.ReaderAt) string {
	if len(layout.Partitions) == 0 {
		return scheme + ", no partitions"
	}
	var parts []string
	for _, p := range layout.Partitions {
		if len(parts) == 8 {
			parts = append(parts, "…")
			break
		}
		head := make([]byte, min(p.End-p.Start, 256<<10))
		what := "?"
		if _, err := disk.ReadAt(head, p.Start); err == nil {
			if what = sign(head); what == "" {
				what = "no known signature"
			}
		}
		name := p.Name
		if name == "" {
			name = fmt.Sprintf("%d", p.Number)
		}
		parts = append(parts, printable(fmt.Sprintf("%s (%s, %s)", name, what, humanSize(p.End-p.Start))))
	}
	word := "partitions"
	if len(layout.Partitions) == 1 {
		word = "partition"
	}
	return fmt.Sprintf("%s, %d %s: %s", scheme, len(layout.Partitions), word, strings.Join(parts, ", "))
}

func humanSize(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {MiB, "MiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d KiB", n/1024)
}

// installedMiB sums the memory devices of an SMBIOS table (type 17), in MiB; 0
// when it says nothing.
func installedMiB(table []byte) int64 {
	var total int64
	for len(table) >= 4 {
		kind, length := table[0], int(table[1])
		if length < 4 || length > len(table) {
			break
		}
		if kind == 17 && length >= 14 {
			switch size := binary.LittleEndian.Uint16(table[12:]); {
			case size == 0xffff || size == 0:
			case size == 0x7fff && length >= 32:
				total += int64(binary.LittleEndian.Uint32(table[28:]) & 0x7fffffff)
			case size&0x8000 != 0:
				total += int64(size&0x7fff) / 1024
			default:
				total += int64(size)
			}
		}
		end := bytes.Index(table[length:], []byte{0, 0}) // behind the strings
		if end < 0 {
			break
		}
		table = table[length+end+2:]
	}
	return total
}
