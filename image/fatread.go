package image

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"

	"recast/inventory"
)

// fatVolume reads FAT12, FAT16 and FAT32 (Microsoft's FAT specification 1.03).
type fatVolume struct {
	r                io.ReaderAt
	bits             int
	cluster          int64 // bytes
	clusters         uint32
	table, data      int64 // byte offsets of the first FAT and of cluster 2
	rootAt, rootSize int64 // of a root with a place of its own
	rootCluster      uint32
}

func openFAT(r io.ReaderAt, size int64, b []byte) (*fatVolume, error) {
	le := binary.LittleEndian
	sector, per, reserved, tables := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	entries, sectors, length := int64(le.Uint16(b[17:])), int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	if length == 0 {
		length = int64(le.Uint32(b[36:]))
	}
	bad := errors.New("it holds no file system that recast knows: want ext2, ext3, ext4 or FAT")
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || reserved == 0 || tables == 0 || length == 0 || sectors*sector > size {
		return nil, bad
	}
	v := &fatVolume{r: r, cluster: per * sector, table: reserved * sector, rootAt: (reserved + tables*length) * sector, rootSize: entries * 32}
	v.data = v.rootAt + (v.rootSize+sector-1)/sector*sector
	count := (sectors*sector - v.data) / v.cluster
	switch {
	case count <= 0 || count >= 0x0ffffff5:
		return nil, bad
	case count < 4085:
		v.bits = 12
	case count < 65525:
		v.bits = 16
	default:
		v.bits, v.rootCluster = 32, le.Uint32(b[44:])
	}
	if v.clusters = uint32(count); length*sector*8 < (count+2)*int64(v.bits) || (v.bits == 32) != (entries == 0) {
		return nil, bad
	}
	return v, nil
}

func (v *fatVolume) root() (node, error) {
	if v.bits != 32 {
		return node{kind: nodeFolder, size: v.rootSize}, nil
	}
	return v.folder(v.rootCluster)
}

// folder has the size that its clusters say.
func (v *fatVolume) folder(first uint32) (node, error) {
	chain, err := v.chain(first, maxFolder/v.cluster+1)
	return node{kind: nodeFolder, at: first, size: int64(len(chain)) * v.cluster}, err
}

// next is the cluster behind one, false at the end of the file.
func (v *fatVolume) next(c uint32) (uint32, bool, error) {
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
func (v *fatVolume) chain(first uint32, most int64) (out []int64, err error) {
	for c, more := first, true; more; {
		if c < 2 || c >= v.clusters+2 || int64(len(out)) == most {
			return nil, errors.New("its clusters are damaged")
		}
		out = append(out, int64(c))
		if c, more, err = v.next(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (v *fatVolume) extents(n node) ([]inventory.Extent, error) {
	if n.at == 0 { // no file with bytes begins there, but the root does
		return []inventory.Extent{{Start: v.rootAt, Length: v.rootSize}}, nil
	}
	if n.size > maxFile {
		return nil, errors.New("it is too large")
	}
	chain, err := v.chain(n.at, n.size/v.cluster+2)
	if err != nil {
		return nil, err
	}
	out := blocksOf(chain, v.cluster)
	for i := range out {
		out[i].Start += v.data - 2*v.cluster
	}
	return out, nil
}

func (v *fatVolume) link(node) (string, error) { return "", errors.New("FAT has no links") }

func (v *fatVolume) entry(f node, name string) (node, error) {
	b, err := folder(v, v.r, f)
	if err != nil {
		return node{}, err
	}
	le := binary.LittleEndian
	var long []uint16
	for ; len(b) >= 32 && b[0] != 0; b = b[32:] {
		e := b[:32]
		if e[0] == 0xe5 {
			long = nil
			continue
		}
		if e[11]&0x3f == 0x0f { // a part of a long name, the last one first
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
		if e[11]&0x08 != 0 || !strings.EqualFold(full, name) && !strings.EqualFold(short, name) { // 8: the volume's label
			continue
		}
		first := uint32(le.Uint16(e[26:]))
		if v.bits == 32 {
			first |= uint32(le.Uint16(e[20:])) << 16
		}
		if e[11]&0x10 != 0 {
			return v.folder(first)
		}
		return node{kind: nodeFile, at: first, size: int64(le.Uint32(e[28:]))}, nil
	}
	return node{}, fs.ErrNotExist
}
