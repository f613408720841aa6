package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// Reader finds files on a volume of FAT12, FAT16 or FAT32 (Microsoft's FAT specification
// 1.03) that anybody may have made: no number of it is believed before it was compared
// with the volume's size.
type Reader struct {
	r                io.ReaderAt
	bits             int
	cluster          int64 // bytes
	clusters         uint32
	table, data      int64 // byte offsets of the first FAT and of cluster 2
	rootAt, rootSize int64 // of a root with a place of its own
	rootCluster      uint32
}

// Node is a file or a folder.
type Node struct {
	Folder bool
	Size   int64
	first  uint32 // cluster; 0 of a root with a place of its own, and of an empty file
}

// Span is a place on the volume.
type Span struct{ Start, Length int64 }

// maxFolder is one of some hundred thousand names.
const maxFolder = 32 << 20

// Open reads the boot sector.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	b := make([]byte, 512)
	if size < int64(len(b)) {
		return nil, errNoFAT
	}
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	sector, per, reserved, tables := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	entries, sectors, length := int64(le.Uint16(b[17:])), int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	if length == 0 {
		length = int64(le.Uint32(b[36:]))
	}
	if b[0] != 0xeb && b[0] != 0xe9 || b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || reserved == 0 || tables == 0 || length == 0 || sectors*sector > size {
		return nil, errNoFAT
	}
	v := &Reader{r: r, cluster: per * sector, table: reserved * sector, rootAt: (reserved + tables*length) * sector, rootSize: entries * 32}
	v.data = v.rootAt + (v.rootSize+sector-1)/sector*sector
	count := (sectors*sector - v.data) / v.cluster
	switch {
	case count <= 0 || count >= 0x0ffffff5:
		return nil, errNoFAT
	case count < 4085:
		v.bits = 12
	case count < 65525:
		v.bits = 16
	default:
		v.bits, v.rootCluster = 32, le.Uint32(b[44:])
	}
	if v.clusters = uint32(count); length*sector*8 < (count+2)*int64(v.bits) || (v.bits == 32) != (entries == 0) {
		return nil, errNoFAT
	}
	return v, nil
}

var (
	errNoFAT   = errors.New("it is no FAT volume")
	errDamaged = errors.New("its clusters are damaged")
)

// Root is its first folder.
func (v *Reader) Root() (Node, error) {
	if v.bits != 32 {
		return Node{Folder: true, Size: v.rootSize}, nil
	}
	return v.folder(v.rootCluster)
}

// folder has the size that its clusters say.
func (v *Reader) folder(first uint32) (Node, error) {
	chain, err := v.chain(first, maxFolder/v.cluster+1)
	return Node{Folder: true, first: first, Size: int64(len(chain)) * v.cluster}, err
}

// next is the cluster behind one, false at the end of the file.
func (v *Reader) next(c uint32) (uint32, bool, error) {
	b := make([]byte, 4)
	n, at := v.bits/8, int64(c)*int64(v.bits)/8
	if v.bits == 12 {
		n = 2
	}
	if _, err := v.r.ReadAt(b[:n], v.table+at); err != nil {
		return 0, false, err
	}
	to := binary.LittleEndian.Uint32(b)
	end := uint32(0x0ffffff8)
	switch {
	case v.bits == 12 && c%2 == 1:
		to, end = to>>4, 0xff8
	case v.bits == 12:
		to, end = to&0xfff, 0xff8
	case v.bits == 16:
		end = 0xfff8
	default:
		to &= 0x0fffffff
	}
	return to, to < end, nil
}

// chain lists the clusters of a file, at most so many.
func (v *Reader) chain(first uint32, most int64) (out []uint32, err error) {
	for c, more := first, true; more; {
		if c < 2 || c >= v.clusters+2 || int64(len(out)) == most {
			return nil, errDamaged
		}
		out = append(out, c)
		if c, more, err = v.next(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Spans are where a node lies, in order; the last may be longer than it is.
func (v *Reader) Spans(n Node) (out []Span, err error) {
	if n.first == 0 && n.Folder {
		return []Span{{v.rootAt, v.rootSize}}, nil
	}
	if n.Size == 0 {
		return nil, nil
	}
	chain, err := v.chain(n.first, n.Size/v.cluster+2)
	if err != nil {
		return nil, err
	}
	for _, c := range chain {
		at := v.data + int64(c-2)*v.cluster
		if k := len(out) - 1; k >= 0 && out[k].Start+out[k].Length == at {
			out[k].Length += v.cluster
			continue
		}
		out = append(out, Span{at, v.cluster})
	}
	return out, nil
}

func (v *Reader) read(n Node) ([]byte, error) {
	spans, err := v.Spans(n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, n.Size)
	for _, s := range spans {
		k := len(b)
		b = b[:min(int64(k)+s.Length, n.Size)]
		if _, err := v.r.ReadAt(b[k:], s.Start); err != nil {
			return nil, err
		}
	}
	if int64(len(b)) < n.Size {
		return nil, errDamaged
	}
	return b, nil
}

// ReadFile reads a file of the root that has so many bytes at most; fs.ErrNotExist.
func (v *Reader) ReadFile(name string, most int64) ([]byte, error) {
	root, err := v.Root()
	if err != nil {
		return nil, err
	}
	n, err := v.Entry(root, name)
	if err == nil && n.Folder {
		err = errors.New("it is a folder")
	}
	if err == nil && n.Size > most {
		err = fmt.Errorf("it has %d bytes, more than %d", n.Size, most)
	}
	if err != nil {
		return nil, err
	}
	return v.read(n)
}

// Entry of a folder, by its long name or its short one, as DOS compares them;
// fs.ErrNotExist.
func (v *Reader) Entry(folder Node, name string) (Node, error) {
	if folder.Size > maxFolder {
		return Node{}, fmt.Errorf("a folder of %d bytes", folder.Size)
	}
	b, err := v.read(folder)
	if err != nil {
		return Node{}, err
	}
	le := binary.LittleEndian
	var long []uint16
	for ; len(b) >= entrySize && b[0] != 0; b = b[entrySize:] {
		e := b[:entrySize]
		if e[0] == 0xe5 {
			long = nil
			continue
		}
		if e[11]&0x3f == attrLongName { // a part of a long name, the last one first
			if e[0]&0x40 != 0 || len(long) >= 20*13 { // no name has more parts
				long = nil
			}
			var part []uint16
			for _, span := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
				for at := span[0]; at < span[1]; at += 2 {
					part = append(part, le.Uint16(e[at:]))
				}
			}
			long = append(part, long...)
			continue
		}
		full := ""
		for i, c := range long {
			if c == 0 {
				long = long[:i]
				break
			}
		}
		full, long = string(utf16.Decode(long)), nil
		short := strings.TrimRight(string(e[:8]), " ")
		if tail := strings.TrimRight(string(e[8:11]), " "); tail != "" {
			short += "." + tail
		}
		if e[11]&attrLabel != 0 || !strings.EqualFold(full, name) && !strings.EqualFold(short, name) {
			continue
		}
		first := uint32(le.Uint16(e[26:]))
		if v.bits == 32 {
			first |= uint32(le.Uint16(e[20:])) << 16
		}
		if e[11]&attrFolder != 0 {
			return v.folder(first)
		}
		return Node{first: first, Size: int64(le.Uint32(e[28:]))}, nil
	}
	return Node{}, fs.ErrNotExist
}
