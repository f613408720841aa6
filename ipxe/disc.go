package ipxe

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"recast/fat"
	"recast/inventory"
)

// disc is an ISO 9660 image from which a machine without DHCP boots: a loader for
// BIOS, one for UEFI, and the script for both. It is a layout and not a file: the
// loaders are shared by all discs, and any part can be read at any time, in any
// pieces, with the same bytes.
type disc struct {
	extents []extent // in their order, without overlap; between them are zeros
	size    int64
	tag     string
}

type extent struct {
	at   int64
	data []byte
}

// Size in bytes.
func (d *disc) Size() int64 { return d.size }

// ETag is a strong one: the SHA-256 of the image.
func (d *disc) ETag() string { return d.tag }

// ReadAt implements io.ReaderAt.
func (d *disc) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read disc: negative offset %d", off)
	}
	if off >= d.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), d.size-off))
	clear(p[:n])
	first, _ := slices.BinarySearchFunc(d.extents, off, func(e extent, off int64) int {
		if e.at+int64(len(e.data)) <= off {
			return -1
		}
		return 1
	})
	for _, e := range d.extents[first:] {
		if e.at >= off+int64(n) {
			break
		}
		if e.at >= off {
			copy(p[e.at-off:n], e.data)
		} else {
			copy(p[:n], e.data[off-e.at:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

const (
	discSector = 2048
	// discVolume is the sector of the first descriptor (ECMA-119, 6.2.1).
	discVolume  = 16
	discBoot    = 17 // El Torito's descriptor has to be here
	discEnd     = 18
	discPathL   = 19
	discPathM   = 20
	discRoot    = 21
	discCatalog = 22
	discFiles   = 23
)

// discFile is one file in the root of a disc.
type discFile struct {
	name string // as ECMA-119 writes it: 8.3, upper case, with a version
	data []extent
	size int64
	at   uint32 // sector
}

func (f *discFile) sectors() int64 { return (f.size + discSector - 1) / discSector }

// The names by which the disc's GRUB knows what to start under BIOS; see setup.sh.
const (
	discKernel = "IPXE.KRN;1"
	discScript = "RECAST.IPX;1"
)

// disc makes the disc with a script for machines of an architecture; a loader that
// is missing leaves out its firmware. It fails where neither is there.
func (l *Loaders) disc(arch inventory.Arch, script string) (*disc, error) {
	return newDisc(script, l.discParts(arch, true), l.discParts(arch, false))
}

// DiscProblem says why a machine has nothing to start from a disc, "" it has.
func (l *Loaders) DiscProblem(m *inventory.Machine) string {
	name := l.discLack(m)
	if name == "" {
		return ""
	}
	return fmt.Sprintf("loader %q is missing: %s", name, LoaderCure(name))
}

// discLack names a loader without which a machine starts from no disc. Where its
// firmware is not declared, either will do.
func (l *Loaders) discLack(m *inventory.Machine) string {
	uefi, bios := l.absent(discLoader[m.Arch]), l.absent(LoaderCD, LoaderKernel)
	if m.Arch != inventory.AMD64 {
		bios = LoaderCD // there is one for no other processor
	}
	switch {
	case m.Firmware == inventory.BIOS:
		return bios
	case m.Firmware == inventory.UEFI || bios != "":
		return uefi
	}
	return ""
}

// discLoader is what UEFI starts from a disc: with drivers of its own, since the
// firmware opens no network card for what it loads from a drive.
var discLoader = map[inventory.Arch]string{inventory.AMD64: LoaderAMD64, inventory.ARM64: LoaderARM64}

// discPart is one file that makes a firmware start.
type discPart struct {
	name string
	data []byte
}

// discParts are the loaders of one firmware, none where one is missing.
func (l *Loaders) discParts(arch inventory.Arch, uefi bool) []discPart {
	names := []discPart{{name: LoaderCD}, {name: LoaderKernel}}
	if uefi {
		names = []discPart{{name: discLoader[arch]}}
	} else if arch != inventory.AMD64 {
		return nil
	}
	for i := range names {
		if names[i].data = l.memFS[names[i].name]; names[i].data == nil {
			return nil
		}
	}
	return names
}

// efiNames are what UEFI starts of a removable medium (UEFI 2.10, 3.5.1.1).
var efiNames = map[string]string{LoaderAMD64: "BOOTX64.EFI", LoaderARM64: "BOOTAA64.EFI"}

func newDisc(script string, uefi, bios []discPart) (*disc, error) {
	if len(uefi)+len(bios) == 0 {
		return nil, fmt.Errorf("make disc: no loader starts from one: %s", loaderCure)
	}
	var files []*discFile
	var boots []discEntry
	at := uint32(discFiles)
	add := func(f *discFile) *discFile {
		f.at = at
		at += uint32(f.sectors())
		files = append(files, f)
		return f
	}
	if len(bios) > 0 {
		grub := bios[0].data
		f := add(&discFile{name: "CD.IMG;1", size: int64(len(grub))})
		f.data = []extent{{0, bootInfo(grub, f.at)}, {64, grub[64:]}}
		// Its first sector loads the rest by the boot info.
		boots = append(boots, discEntry{platform: 0, count: 4, at: f.at})
		add(&discFile{name: discKernel, size: int64(len(bios[1].data)), data: []extent{{0, bios[1].data}}})
		add(&discFile{name: discScript, size: int64(len(script)), data: []extent{{0, []byte(script)}}})
	}
	if len(uefi) > 0 {
		volume, err := fat.New(fat.Shape{Label: "RECAST", Sector: 512, Cluster: discSector, Multiple: discSector}, []fat.File{
			{Name: "EFI/BOOT/" + efiNames[uefi[0].name], Data: uefi[0].data},
			// iPXE looks for its script beside itself, or in the root.
			{Name: "EFI/BOOT/" + AutoexecName, Data: []byte(script)},
			{Name: AutoexecName, Data: []byte(script)},
		})
		if err != nil {
			return nil, fmt.Errorf("make disc: %w", err)
		}
		f := add(&discFile{name: "EFI.IMG;1", size: volume.Size})
		for _, e := range volume.Extents {
			f.data = append(f.data, extent{e.At, e.Data})
		}
		entry := discEntry{platform: 0xef, at: f.at} // no count is up to the end of the disc
		if n := f.size / 512; n < 1<<16 {
			entry.count = uint16(n)
		}
		boots = append(boots, entry)
	}
	slices.SortFunc(files, func(a, b *discFile) int { return strings.Compare(a.name, b.name) })
	root := discDirectory(files)
	d := &disc{size: int64(at) * discSector}
	put := func(sector uint32, data []byte) {
		d.extents = append(d.extents, extent{int64(sector) * discSector, data})
	}
	put(discVolume, discDescriptor(at))
	put(discBoot, discBootRecord())
	put(discEnd, []byte("\xffCD001\x01"))
	put(discPathL, discPathTable(binary.LittleEndian))
	put(discPathM, discPathTable(binary.BigEndian))
	put(discRoot, root)
	put(discCatalog, discBootCatalog(boots))
	for _, f := range files {
		for _, e := range f.data {
			d.extents = append(d.extents, extent{int64(f.at)*discSector + e.at, e.data})
		}
	}
	slices.SortFunc(d.extents, func(a, b extent) int { return int(a.at - b.at) })
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(d, 0, d.size)); err != nil {
		return nil, fmt.Errorf("make disc: %w", err)
	}
	d.tag = `"` + hex.EncodeToString(h.Sum(nil)) + `"`
	return d, nil
}

// bothEndian is a number as ECMA-119 writes it, 7.3.3.
func bothEndian(n uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, n), n)
}

func bothEndian16(n uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, n), n)
}

// discDate is 2000-01-01 00:00 UTC, in directories (ECMA-119, 9.1.5): a disc must
// not depend on when it was made.
var discDate = []byte{100, 1, 1, 0, 0, 0, 0}

func discRecord(name string, at, size uint32, directory bool) []byte {
	length := 33 + len(name)
	length += length % 2
	r := make([]byte, length)
	r[0] = byte(length)
	copy(r[2:], bothEndian(at))
	copy(r[10:], bothEndian(size))
	copy(r[18:], discDate)
	if directory {
		r[25] = 2
	}
	copy(r[28:], bothEndian16(1))
	r[32] = byte(len(name))
	copy(r[33:], name)
	return r
}

func discDirectory(files []*discFile) []byte {
	b := discRecord("\x00", discRoot, discSector, true)
	b = append(b, discRecord("\x01", discRoot, discSector, true)...)
	for _, f := range files {
		b = append(b, discRecord(f.name, f.at, uint32(f.size), false)...)
	}
	return b // of four files at most: it fits one sector
}

func discPathTable(order binary.AppendByteOrder) []byte {
	b := order.AppendUint32([]byte{1, 0}, discRoot)
	return append(order.AppendUint16(b, 1), 0, 0)
}

// discDescriptor is the primary volume descriptor, ECMA-119 8.4.
func discDescriptor(sectors uint32) []byte {
	b := make([]byte, discSector)
	text := func(at, n int, s string) {
		for i := range n {
			b[at+i] = ' '
		}
		copy(b[at:at+n], s)
	}
	copy(b, "\x01CD001\x01")
	text(8, 32, "")
	text(40, 32, "RECAST")
	copy(b[80:], bothEndian(sectors))
	copy(b[120:], bothEndian16(1))
	copy(b[124:], bothEndian16(1))
	copy(b[128:], bothEndian16(discSector))
	copy(b[132:], bothEndian(10)) // length of the path table
	binary.LittleEndian.PutUint32(b[140:], discPathL)
	binary.BigEndian.PutUint32(b[148:], discPathM)
	copy(b[156:], discRecord("\x00", discRoot, discSector, true))
	text(190, 623, "")
	for _, at := range []int{813, 830, 847, 864} { // dates that are not given, 8.4.26.1
		copy(b[at:], "0000000000000000\x00")
	}
	b[881] = 1
	return b
}

// discBootRecord is El Torito's, 1.0 figure 7.
func discBootRecord() []byte {
	b := make([]byte, discSector)
	copy(b, "\x00CD001\x01EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(b[71:], discCatalog)
	return b
}

// discEntry is one way to start the disc.
type discEntry struct {
	platform byte
	count    uint16 // of sectors of 512 bytes that the firmware loads
	at       uint32
}

func (e discEntry) record() []byte {
	r := make([]byte, 32)
	r[0] = 0x88 // bootable, without emulation
	binary.LittleEndian.PutUint16(r[6:], e.count)
	binary.LittleEndian.PutUint32(r[8:], e.at)
	return r
}

// discBootCatalog is El Torito's, 1.0 figures 2 to 5: the first entry is the
// default, another platform's follows in a section of its own.
func discBootCatalog(boots []discEntry) []byte {
	b := make([]byte, 32, 4*32)
	b[0], b[1], b[30], b[31] = 1, boots[0].platform, 0x55, 0xaa
	copy(b[4:], "recast")
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	binary.LittleEndian.PutUint16(b[28:], -sum) // its words add up to zero
	b = append(b, boots[0].record()...)
	for i, e := range boots[1:] {
		h := make([]byte, 32)
		h[0], h[1], h[2] = 0x90, e.platform, 1
		if i == len(boots)-2 {
			h[0] = 0x91 // the last one
		}
		b = append(append(b, h...), e.record()...)
	}
	return b
}

// bootInfo is the head of GRUB's image with the table by which its first sector
// finds the rest (mkisofs, -boot-info-table).
func bootInfo(image []byte, at uint32) []byte {
	b := slices.Clone(image[:64])
	le := binary.LittleEndian
	le.PutUint32(b[8:], discVolume)
	le.PutUint32(b[12:], at)
	le.PutUint32(b[16:], uint32(len(image)))
	var sum uint32
	rest := image[64:]
	for ; len(rest) >= 4; rest = rest[4:] {
		sum += le.Uint32(rest)
	}
	if len(rest) > 0 {
		sum += le.Uint32(append(slices.Clone(rest), 0, 0, 0)[:4])
	}
	le.PutUint32(b[20:], sum)
	clear(b[24:64])
	return b
}
