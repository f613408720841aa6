package target

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
)

// file is one file in the root of a volume.
type file struct {
	name string
	data []byte
}

const (
	mib = 1 << 20
	// A sector of 4096 bytes can be mounted from disks with blocks of 512 and of
	// 4096 bytes; the kernel refuses sectors smaller than the disk's blocks.
	fatSector = 4096
	// maxFAT12 is the largest number of clusters that makes a volume FAT12.
	maxFAT12 = 4084
	// The whole root directory is one sector of entries.
	rootEntries = fatSector / 32
	// fatSerial is fixed, since a volume must not depend on when it was made.
	fatSerial = 0x52454341
	// fatDate is 1980-01-01, the zero of FAT's calendar.
	fatDate = 1<<5 | 1
)

// fat makes a FAT12 file system with the files in its root, in the given order,
// on the fewest whole MiB that hold them.
func fat(label string, files []file) ([]byte, error) {
	for size := mib; size <= 64*mib; size += mib {
		v := fatVolume{label: label, sectors: size / fatSector, perCluster: 1}
		if v.fits(files) {
			return v.build(files)
		}
	}
	return nil, fmt.Errorf("make config volume: the files do not fit 64 MiB")
}

type fatVolume struct {
	label      string
	sectors    int // of the whole volume
	perCluster int
	perFAT     int // sectors
	clusters   int
}

// fits chooses the geometry: boot sector, two FATs, root directory, clusters.
func (v *fatVolume) fits(files []file) bool {
	for ; ; v.perCluster *= 2 {
		v.perFAT = 1
		for {
			v.clusters = (v.sectors - 2 - 2*v.perFAT) / v.perCluster
			if need := ((v.clusters+2)*3/2 + fatSector) / fatSector; need > v.perFAT {
				v.perFAT = need
				continue
			}
			break
		}
		if v.clusters <= maxFAT12 {
			break
		}
	}
	need := 0
	for _, f := range files {
		need += v.clustersOf(len(f.data))
	}
	return need <= v.clusters
}

func (v *fatVolume) clustersOf(n int) int {
	size := v.perCluster * fatSector
	return (n + size - 1) / size
}

func (v *fatVolume) build(files []file) ([]byte, error) {
	b := make([]byte, v.sectors*fatSector)
	v.bootSector(b)
	table := make([]byte, v.perFAT*fatSector)
	set := func(cluster, value int) {
		at := cluster * 3 / 2
		if cluster%2 == 0 {
			table[at] = byte(value)
			table[at+1] = table[at+1]&0xf0 | byte(value>>8)
		} else {
			table[at] = table[at]&0x0f | byte(value<<4)
			table[at+1] = byte(value >> 4)
		}
	}
	set(0, 0xff8)
	set(1, 0xfff)

	root := dirEntry(padded(v.label, 11), 0x08, 0, 0) // the volume's label
	data := (2 + 2*v.perFAT) * fatSector
	next := 2
	for i, f := range files {
		first := 0
		if n := v.clustersOf(len(f.data)); n > 0 {
			first = next
			copy(b[data+(first-2)*v.perCluster*fatSector:], f.data)
			for ; n > 1; n-- {
				set(next, next+1)
				next++
			}
			set(next, 0xfff)
			next++
		}
		root = append(root, longName(f.name, i+1)...)
		root = append(root, dirEntry(shortName(f.name, i+1), 0x20, first, len(f.data))...)
	}
	if len(root) > rootEntries*32 {
		return nil, fmt.Errorf("make config volume: %d files do not fit its directory", len(files))
	}
	copy(b[fatSector:], table)
	copy(b[(1+v.perFAT)*fatSector:], table)
	copy(b[(1+2*v.perFAT)*fatSector:], root)
	return b, nil
}

func (v *fatVolume) bootSector(b []byte) {
	copy(b, "\xeb\x3c\x90recast  ")
	binary.LittleEndian.PutUint16(b[11:], fatSector)
	b[13] = byte(v.perCluster)
	binary.LittleEndian.PutUint16(b[14:], 1) // the boot sector
	b[16] = 2
	binary.LittleEndian.PutUint16(b[17:], rootEntries)
	binary.LittleEndian.PutUint16(b[19:], uint16(v.sectors)) // 64 MiB are 16384
	b[21] = 0xf8                                             // fixed disk
	binary.LittleEndian.PutUint16(b[22:], uint16(v.perFAT))
	binary.LittleEndian.PutUint16(b[24:], 63)
	binary.LittleEndian.PutUint16(b[26:], 255)
	b[36] = 0x80
	b[38] = 0x29
	binary.LittleEndian.PutUint32(b[39:], fatSerial)
	copy(b[43:], padded(v.label, 11))
	copy(b[54:], "FAT12   ")
	copy(b[62:], "\xf4\xeb\xfd") // hlt; jmp: nothing here boots
	b[510], b[511] = 0x55, 0xaa
}

func padded(s string, n int) string { return fmt.Sprintf("%-*s", n, strings.ToUpper(s)) }

// shortName is the 8.3 alias, unique by the file's number.
func shortName(name string, n int) string {
	base, ext, _ := strings.Cut(name, ".")
	keep := func(s string, n int) string {
		s = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
				return r
			}
			return -1
		}, strings.ToLower(s))
		return padded(s[:min(len(s), n)], n)
	}
	return fmt.Sprintf("%-8s%s", strings.TrimSpace(keep(base, 6))+fmt.Sprintf("~%d", n), keep(ext, 3))
}

func dirEntry(name string, attr byte, cluster, size int) []byte {
	e := make([]byte, 32)
	copy(e, strings.ToUpper(name))
	e[11] = attr
	for _, at := range []int{16, 18, 24} { // created, accessed, written
		binary.LittleEndian.PutUint16(e[at:], fatDate)
	}
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}

// longName is the entries that stand before the short one and carry the real
// name, last part first, 13 UTF-16 units each.
func longName(name string, n int) []byte {
	var sum byte
	for _, c := range []byte(strings.ToUpper(shortName(name, n))) {
		sum = sum>>1 | sum<<7
		sum += c
	}
	units := utf16.Encode([]rune(name))
	parts := (len(units) + 12) / 13
	if len(units)%13 != 0 {
		units = append(units, 0)
	}
	for len(units) < parts*13 {
		units = append(units, 0xffff)
	}
	var out []byte
	for p := parts; p > 0; p-- {
		e := make([]byte, 32)
		e[0] = byte(p)
		if p == parts {
			e[0] |= 0x40
		}
		e[11], e[13] = 0x0f, sum
		for k, u := range units[(p-1)*13 : p*13] {
			binary.LittleEndian.PutUint16(e[longNameOffset(k):], u)
		}
		out = append(out, e...)
	}
	return out
}

// longNameOffset is where the k-th unit of a long name's entry stands.
func longNameOffset(k int) int {
	switch {
	case k < 5:
		return 1 + 2*k
	case k < 11:
		return 14 + 2*(k-5)
	}
	return 28 + 2*(k-11)
}
