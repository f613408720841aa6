package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"unicode/utf16"

	"recast/inventory"
	"recast/pack"
)

// markerFile is where a disk says what was written to it.
const markerFile = "recast.json"

// configLabels are the names of our own partition: with cloud-init's files in
// it, and without.
var configLabels = []string{"CIDATA", "RECAST"}

// ReadMarker looks for our config partition on a disk and reads what it says;
// nil where there is none. The disk is read only.
func ReadMarker(disk io.ReaderAt, size int64) (*inventory.Marker, error) {
	b, err := ReadConfigFile(disk, size, markerFile)
	if err != nil || b == nil {
		return nil, err
	}
	var m inventory.Marker
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", markerFile, err)
	}
	return &m, nil
}

// ReadConfigFile reads one file of our config partition on a disk; nil where
// the disk has no such partition or file.
func ReadConfigFile(disk io.ReaderAt, size int64, name string) ([]byte, error) {
	first := make([]byte, min(size, MiB))
	if _, err := disk.ReadAt(first, 0); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	first, _ = pack.Resumed(first)
	layout, _, err := pack.ParseLayout(first, size)
	if err != nil || layout.Scheme != pack.SchemeGPT {
		return nil, nil // no table, or one of somebody else's that is broken
	}
	for _, p := range layout.Partitions {
		if !slices.Contains(configLabels, p.Name) {
			continue
		}
		b, err := readFAT(io.NewSectionReader(disk, p.Start, p.End-p.Start), name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a CIDATA of somebody else's
		}
		if err != nil {
			return nil, fmt.Errorf("read %s on partition %q: %w", name, p.Name, err)
		}
		return b, nil
	}
	return nil, nil
}

// maxSmallFile bounds a file that is read from a volume.
const maxSmallFile = 64 << 10

// readFAT reads one file from the root of a FAT12 or FAT16 volume. Every number
// of the volume is checked against its size before it is believed.
func readFAT(r *io.SectionReader, name string) ([]byte, error) {
	boot := make([]byte, 512)
	if _, err := r.ReadAt(boot, 0); err != nil {
		return nil, err
	}
	u16 := func(at int) int64 { return int64(binary.LittleEndian.Uint16(boot[at:])) }
	sector, perCluster, reserved, fats := u16(11), int64(boot[13]), u16(14), int64(boot[16])
	entries, sectors, perFAT := u16(17), u16(19), u16(22)
	if sectors == 0 {
		sectors = int64(binary.LittleEndian.Uint32(boot[32:]))
	}
	if boot[510] != 0x55 || boot[511] != 0xaa || sector < 512 || sector > 4096 || sector&(sector-1) != 0 ||
		perCluster == 0 || fats == 0 || fats > 2 || perFAT == 0 || entries == 0 || reserved == 0 || sectors*sector > r.Size() {
		return nil, errors.New("it is no FAT12 or FAT16 volume")
	}
	root := (reserved + fats*perFAT) * sector
	data := root + (entries*32+sector-1)/sector*sector
	clusters := (sectors - data/sector) / perCluster
	if clusters < 1 || clusters >= 65525 {
		return nil, errors.New("it is no FAT12 or FAT16 volume")
	}
	table := make([]byte, perFAT*sector)
	if _, err := r.ReadAt(table, reserved*sector); err != nil {
		return nil, err
	}
	next := func(c int64) int64 {
		if clusters < 4085 {
			at := c * 3 / 2
			if at+1 >= int64(len(table)) {
				return 0
			}
			v := int64(binary.LittleEndian.Uint16(table[at:]))
			if c%2 == 1 {
				return v >> 4
			}
			return v & 0xfff
		}
		if 2*c+1 >= int64(len(table)) {
			return 0
		}
		return int64(binary.LittleEndian.Uint16(table[2*c:]))
	}
	dir := make([]byte, entries*32)
	if _, err := r.ReadAt(dir, root); err != nil {
		return nil, err
	}
	cluster, size, ok := findFAT(dir, name)
	if !ok {
		return nil, fs.ErrNotExist
	}
	if size > maxSmallFile {
		return nil, fmt.Errorf("it has %d bytes, more than %d", size, maxSmallFile)
	}
	out := make([]byte, 0, size)
	for int64(len(out)) < size {
		if cluster < 2 || cluster >= clusters+2 {
			return nil, errors.New("its chain of clusters is broken")
		}
		part := make([]byte, min(perCluster*sector, size-int64(len(out))))
		if _, err := r.ReadAt(part, data+(cluster-2)*perCluster*sector); err != nil {
			return nil, err
		}
		out = append(out, part...)
		cluster = next(cluster)
	}
	return out, nil
}

// findFAT finds a file by its long name in a root directory.
func findFAT(dir []byte, name string) (cluster, size int64, ok bool) {
	var long []uint16
	for ; len(dir) >= 32; dir = dir[32:] {
		e := dir[:32]
		switch {
		case e[0] == 0:
			return 0, 0, false
		case e[0] == 0xe5:
			long = nil
		case e[11] == 0x0f:
			var part []uint16
			for k := range 13 {
				at := 1 + 2*k
				if k >= 5 {
					at = 14 + 2*(k-5)
				}
				if k >= 11 {
					at = 28 + 2*(k-11)
				}
				if c := binary.LittleEndian.Uint16(e[at:]); c != 0 && c != 0xffff {
					part = append(part, c)
				}
			}
			long = append(part, long...)
		default:
			if e[11]&0x18 == 0 && string(utf16.Decode(long)) == name {
				return int64(binary.LittleEndian.Uint16(e[26:])), int64(binary.LittleEndian.Uint32(e[28:])), true
			}
			long = nil
		}
	}
	return 0, 0, false
}
