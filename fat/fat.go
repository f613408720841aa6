// Package fat makes small FAT12 volumes, the same bytes for the same files whenever and
// wherever they are made, and finds files on FAT volumes of anybody.
package fat

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// File is one file of a volume. Its name is a path; the files of a folder stand
// together.
type File struct {
	Name string
	Data []byte
}

// Shape is what a volume is made to fit. All sizes are in bytes.
type Shape struct {
	Label string // at most 11 characters
	// Sector is 512, which firmware reads, or 4096: the kernel refuses sectors smaller
	// than the disk's blocks, and mounts larger ones.
	Sector int
	// Cluster is the smallest to be used, and the size of the root directory.
	Cluster int
	// Multiple is what the size of the volume is one of.
	Multiple int
}

// Volume is a layout, so that volumes can share the data of their files.
type Volume struct {
	Extents []Extent // in their order, without overlap; between them are zeros
	Size    int64
}

// Extent is what stands at a place of a volume.
type Extent struct {
	At   int64
	Data []byte
}

// Bytes are the whole volume.
func (v Volume) Bytes() []byte {
	b := make([]byte, v.Size)
	for _, e := range v.Extents {
		copy(b[e.At:], e.Data)
	}
	return b
}

const (
	maxSize = 64 << 20
	// maxClusters is the largest number that makes a volume FAT12.
	maxClusters = 4084
	entrySize   = 32
	// serial and date are fixed, since a volume must not depend on when it was made.
	serial = 0x52454341
	date   = 1<<5 | 1 // 1980-01-01, the zero of FAT's calendar

	attrLabel, attrFolder, attrFile, attrLongName = 0x08, 0x10, 0x20, 0x0f
)

// New makes the smallest volume that holds the files.
func New(s Shape, files []File) (Volume, error) {
	least := 1
	for _, f := range files {
		least += len(f.Data)
	}
	for size := roundUp(least, s.Multiple); size <= maxSize; size += s.Multiple {
		w := s.writer(size)
		root, err := w.folder(entry(padded(s.Label, 11), attrLabel, 0, 0), files, 0, s.Cluster)
		if err != nil {
			return Volume{}, err
		}
		if w.next > w.clusters+2 || w.root+s.Cluster > size {
			continue // it would have gone on behind the end
		}
		w.put(0, w.bootSector())
		for at := s.Sector; at < w.root; at += len(w.table) {
			w.put(at, w.table)
		}
		w.put(w.root, root)
		slices.SortFunc(w.extents, func(a, b Extent) int { return int(a.At - b.At) })
		return Volume{w.extents, int64(size)}, nil
	}
	return Volume{}, fmt.Errorf("the files do not fit %d MiB", maxSize>>20)
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }

// writer is a volume in the making.
type writer struct {
	shape    Shape
	size     int
	cluster  int // bytes
	clusters int
	root     int // where the root directory stands
	table    []byte
	next     int // free cluster; the first one is 2
	extents  []Extent
}

// writer chooses the geometry: boot sector, two tables, root directory, clusters.
func (s Shape) writer(size int) *writer {
	w := &writer{shape: s, size: size, next: 2}
	for w.cluster = s.Cluster; ; w.cluster *= 2 {
		for table := s.Sector; len(w.table) < table; table = ((w.clusters+2)*3/2 + s.Sector) / s.Sector * s.Sector {
			w.table = make([]byte, table)
			w.root = s.Sector + 2*table
			w.clusters = (size - w.root - s.Cluster) / w.cluster
		}
		if w.clusters <= maxClusters {
			break
		}
		w.table = nil
	}
	w.set(0, 0xff8)
	w.set(1, 0xfff)
	return w
}

// set says in the table what comes after a cluster.
func (w *writer) set(cluster, value int) {
	at := cluster * 3 / 2
	switch {
	case at+1 >= len(w.table):
	case cluster%2 == 0:
		w.table[at] = byte(value)
		w.table[at+1] = w.table[at+1]&0xf0 | byte(value>>8)
	default:
		w.table[at] = w.table[at]&0x0f | byte(value<<4)
		w.table[at+1] = byte(value >> 4)
	}
}

// take is the first of the clusters that hold so many bytes; 0 for none.
func (w *writer) take(size int) (first int) {
	if size == 0 {
		return 0
	}
	first = w.next
	w.next += roundUp(size, w.cluster) / w.cluster
	for c := first; c < w.next-1; c++ {
		w.set(c, c+1)
	}
	w.set(w.next-1, 0xfff)
	return first
}

func (w *writer) put(at int, data []byte) {
	w.extents = append(w.extents, Extent{int64(at), data})
}

// putCluster puts what begins with a cluster.
func (w *writer) putCluster(cluster int, data []byte) {
	w.put(w.root+w.shape.Cluster+(cluster-2)*w.cluster, data)
}

// folder puts files and gives the entries of their folder, which itself begins with
// the cluster own, 0 for the root's.
func (w *writer) folder(entries []byte, files []File, own, most int) ([]byte, error) {
	for aliases := 0; len(files) > 0; {
		f, size, attr := files[0], len(files[0].Data), byte(attrFile)
		name, _, isFolder := strings.Cut(f.Name, "/")
		var inside []File
		if isFolder {
			for len(files) > 0 && strings.HasPrefix(files[0].Name, name+"/") {
				inside = append(inside, File{files[0].Name[len(name)+1:], files[0].Data})
				files = files[1:]
			}
			size, attr = w.cluster, attrFolder
		} else {
			files = files[1:]
		}
		first := w.take(size)
		if isFolder {
			list := append(entry(padded(".", 11), attrFolder, first, 0), entry(padded("..", 11), attrFolder, own, 0)...)
			list, err := w.folder(list, inside, first, w.cluster)
			if err != nil {
				return nil, err
			}
			w.putCluster(first, list)
			size = 0 // as folders have it
		} else if first > 0 {
			w.putCluster(first, f.Data)
		}
		short := shortName(name)
		if short == "" {
			aliases++
			short = alias(name, aliases)
			entries = append(entries, longName(name, short)...)
		}
		entries = append(entries, entry(short, attr, first, size)...)
	}
	if len(entries) > most {
		return nil, fmt.Errorf("%d files do not fit a directory of %d bytes", len(entries)/entrySize, most)
	}
	return entries, nil
}

func (w *writer) bootSector() []byte {
	le := binary.LittleEndian
	b := make([]byte, 512)
	copy(b, "\xeb\x3c\x90recast  ")
	le.PutUint16(b[11:], uint16(w.shape.Sector))
	b[13] = byte(w.cluster / w.shape.Sector)
	le.PutUint16(b[14:], 1) // the boot sector
	b[16] = 2               // tables
	le.PutUint16(b[17:], uint16(w.shape.Cluster/entrySize))
	if n := w.size / w.shape.Sector; n < 1<<16 {
		le.PutUint16(b[19:], uint16(n))
	} else {
		le.PutUint32(b[32:], uint32(n))
	}
	b[21] = 0xf8 // no floppy
	le.PutUint16(b[22:], uint16(len(w.table)/w.shape.Sector))
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	b[36], b[38] = 0x80, 0x29
	le.PutUint32(b[39:], serial)
	copy(b[43:], padded(w.shape.Label, 11))
	copy(b[54:], "FAT12   ")
	copy(b[62:], "\xf4\xeb\xfd") // hlt; jmp: nothing here boots
	b[510], b[511] = 0x55, 0xaa
	return b
}

func padded(s string, n int) string { return fmt.Sprintf("%-*s", n, strings.ToUpper(s)) }

// shortName is a name as a directory has it; "" where it is none of 8.3 upper-case
// characters.
func shortName(name string) string {
	base, ext, _ := strings.Cut(name, ".")
	plain := func(r rune) bool { return r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' }
	if base == "" || len(base) > 8 || len(ext) > 3 || strings.ContainsFunc(base+ext, func(r rune) bool { return !plain(r) }) {
		return ""
	}
	return padded(base, 8) + padded(ext, 3)
}

// alias is the short name of a file with another one, unique by its number.
func alias(name string, n int) string {
	base, ext, _ := strings.Cut(name, ".")
	keep := func(s string, n int) string {
		s = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
				return r
			}
			return -1
		}, strings.ToLower(s))
		return s[:min(len(s), n)]
	}
	return padded(fmt.Sprintf("%s~%d", keep(base, 6), n), 8) + padded(keep(ext, 3), 3)
}

func entry(name string, attr byte, cluster, size int) []byte {
	e := make([]byte, entrySize)
	copy(e, name)
	e[11] = attr
	for _, at := range []int{16, 18, 24} { // created, accessed, written
		binary.LittleEndian.PutUint16(e[at:], date)
	}
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}

// longName is the entries that stand before the short one and carry the real name,
// last part first, 13 UTF-16 units each.
func longName(name, short string) []byte {
	var sum byte
	for _, c := range []byte(short) {
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
		e := make([]byte, entrySize)
		e[0] = byte(p)
		if p == parts {
			e[0] |= 0x40
		}
		e[11], e[13] = attrLongName, sum
		for k, u := range units[(p-1)*13 : p*13] {
			at := 1 + 2*k
			if k >= 5 {
				at = 14 + 2*(k-5)
			}
			if k >= 11 {
				at = 28 + 2*(k-11)
			}
			binary.LittleEndian.PutUint16(e[at:], u)
		}
		out = append(out, e...)
	}
	return out
}
