package ipxe

import (
	"encoding/binary"
	"errors"
	"unicode/utf16"
)

// esp is the FAT12 volume that UEFI starts a disc from. Like Disc it is a layout.
type esp struct {
	extents []extent
	size    int64
}

const (
	espSector = 512
	// espRoot is how many entries the root directory has.
	espRoot = 64
	// espClusters is the largest number that makes a volume FAT12.
	espClusters = 4084
	espDate     = 1<<5 | 1 // 1980-01-01, the zero of FAT's calendar
)

// newESP holds the loader by the name that firmware looks for, and the script where
// iPXE looks for one: beside itself, or in the root.
func newESP(name string, loader, script []byte) (esp, error) {
	for cluster := 2048; cluster <= 32768; cluster *= 2 {
		of := func(n int) int { return (n + cluster - 1) / cluster }
		clusters := 2 + of(len(loader)) + 2*of(len(script)) // two directories
		if clusters <= espClusters {
			return buildESP(name, loader, script, cluster, clusters), nil
		}
	}
	return esp{}, errors.New("the loader does not fit the volume of a disc")
}

func buildESP(name string, loader, script []byte, cluster, clusters int) esp {
	perFAT := ((clusters+2)*3/2 + espSector) / espSector
	rootAt := (1 + 2*perFAT) * espSector
	dataAt := rootAt + espRoot*32
	sectors := (dataAt + clusters*cluster) / espSector
	sectors = (sectors + 3) &^ 3 // whole sectors of the disc

	table := make([]byte, perFAT*espSector)
	set := func(c, value int) {
		at := c * 3 / 2
		if c%2 == 0 {
			table[at] = byte(value)
			table[at+1] = table[at+1]&0xf0 | byte(value>>8)
		} else {
			table[at] = table[at]&0x0f | byte(value<<4)
			table[at+1] = byte(value >> 4)
		}
	}
	set(0, 0xff8)
	set(1, 0xfff)
	v := esp{size: int64(sectors) * espSector}
	next := 2
	place := func(data []byte, n int) (first int) {
		if n == 0 {
			return 0
		}
		first = next
		v.extents = append(v.extents, extent{int64(dataAt + (first-2)*cluster), data})
		for ; n > 1; n-- {
			set(next, next+1)
			next++
		}
		set(next, 0xfff)
		next++
		return first
	}
	file := func(data []byte) int { return place(data, (len(data)+cluster-1)/cluster) }

	const efi, boot = 2, 3
	autoexec := func(at int) []byte {
		return append(espLongName(AutoexecName, "AUTOEX~1IPX"), espEntry("AUTOEX~1IPX", 0x20, at, len(script))...)
	}
	efiDir := espEntry(".          ", 0x10, efi, 0)
	efiDir = append(efiDir, espEntry("..         ", 0x10, 0, 0)...)
	efiDir = append(efiDir, espEntry("BOOT       ", 0x10, boot, 0)...)
	place(efiDir, 1)
	bootDir := espEntry(".          ", 0x10, boot, 0)
	bootDir = append(bootDir, espEntry("..         ", 0x10, efi, 0)...)
	at := len(v.extents)
	place(nil, 1)
	bootDir = append(bootDir, espEntry(espShort(name), 0x20, file(loader), len(loader))...)
	bootDir = append(bootDir, autoexec(file(script))...)
	v.extents[at].data = bootDir
	root := espEntry("RECAST     ", 0x08, 0, 0) // the volume's label
	root = append(root, espEntry("EFI        ", 0x10, efi, 0)...)
	root = append(root, autoexec(file(script))...)

	v.extents = append([]extent{
		{0, espBootSector(sectors, cluster/espSector, perFAT)},
		{espSector, table}, {int64(1+perFAT) * espSector, table},
		{int64(rootAt), root},
	}, v.extents...)
	return v
}

func espBootSector(sectors, perCluster, perFAT int) []byte {
	le := binary.LittleEndian
	b := make([]byte, espSector)
	copy(b, "\xeb\x3c\x90recast  ")
	le.PutUint16(b[11:], espSector)
	b[13] = byte(perCluster)
	le.PutUint16(b[14:], 1) // the boot sector
	b[16] = 2
	le.PutUint16(b[17:], espRoot)
	if sectors < 1<<16 {
		le.PutUint16(b[19:], uint16(sectors))
	} else {
		le.PutUint32(b[32:], uint32(sectors))
	}
	b[21] = 0xf8 // no floppy
	le.PutUint16(b[22:], uint16(perFAT))
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	b[36], b[38] = 0x80, 0x29
	le.PutUint32(b[39:], 0x52454341)
	copy(b[43:], "RECAST     FAT12   ")
	copy(b[62:], "\xf4\xeb\xfd") // hlt; jmp: nothing here boots
	b[510], b[511] = 0x55, 0xaa
	return b
}

// espShort is NAME.EXT as a directory has it.
func espShort(name string) string {
	b := []byte("           ")
	at := 0
	for _, c := range []byte(name) {
		if c == '.' {
			at = 8
			continue
		}
		b[at] = c
		at++
	}
	return string(b)
}

func espEntry(name string, attr byte, cluster, size int) []byte {
	e := make([]byte, 32)
	copy(e, name)
	e[11] = attr
	for _, at := range []int{16, 18, 24} { // created, accessed, written
		binary.LittleEndian.PutUint16(e[at:], espDate)
	}
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}

// espLongName is one entry's worth of a name of 13 characters at most, which stands
// before its short one.
func espLongName(name, short string) []byte {
	var sum byte
	for _, c := range []byte(short) {
		sum = sum>>1 | sum<<7
		sum += c
	}
	e := make([]byte, 32)
	e[0], e[11], e[13] = 0x41, 0x0f, sum
	units := utf16.Encode([]rune(name))
	if len(units) < 13 {
		units = append(units, 0)
	}
	for k := range 13 {
		unit := uint16(0xffff)
		if k < len(units) {
			unit = units[k]
		}
		at := 1 + 2*k
		if k >= 5 {
			at = 14 + 2*(k-5)
		}
		if k >= 11 {
			at = 28 + 2*(k-11)
		}
		binary.LittleEndian.PutUint16(e[at:], unit)
	}
	return e
}
