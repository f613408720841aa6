package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"

	"recast/inventory"
)

// ext reads ext2, ext3 and ext4 as the kernel's Documentation/filesystems/ext4 lays
// them out.
type ext struct {
	r              io.ReaderAt
	size           int64 // of the volume
	block          int64
	blocks         int64
	descriptors    int64 // byte offset of the group descriptors
	descriptorSize int64
	inodeSize      int64
	inodes         uint32
	inodesPerGroup uint32
	fileType       bool // folders hold one byte of type behind one of length
}

const (
	extFileType = 0x2
	extRecover  = 0x4
	ext64bit    = 0x80
	// extKnown are the incompatible features that change nothing here, or that are
	// handled: filetype, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
	// inline_data (by inode), encrypt (by inode).
	extKnown = extFileType | 0x40 | ext64bit | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000

	extInodeExtents   = 0x80000
	extInodeEncrypted = 0x800
	extInodeInline    = 0x10000000

	extRootInode = 2
)

func openExt(r io.ReaderAt, size int64, sb []byte) (*ext, error) {
	le := binary.LittleEndian
	v := &ext{r: r, size: size, inodes: le.Uint32(sb), inodesPerGroup: le.Uint32(sb[0x28:]), inodeSize: 128, descriptorSize: 32}
	shift := le.Uint32(sb[0x18:])
	if shift > 5 {
		return nil, fmt.Errorf("its ext file system has blocks of 2^%d bytes, and recast reads up to 32 KiB", shift+10)
	}
	v.block = 1024 << shift
	v.blocks = int64(le.Uint32(sb[4:]))
	features := uint32(0)
	if le.Uint32(sb[0x4c:]) > 0 { // revision 0 has none of these
		features, v.inodeSize = le.Uint32(sb[0x60:]), int64(le.Uint16(sb[0x58:]))
	}
	switch {
	case features&extRecover != 0:
		return nil, errors.New("its ext file system was not unmounted cleanly, so that what it holds stands in its journal: mount and unmount it, and add the image again")
	case features&^extKnown != 0:
		return nil, fmt.Errorf("its ext file system has features that recast does not read (incompat 0x%x)", features&^extKnown)
	}
	if features&ext64bit != 0 {
		v.descriptorSize = int64(le.Uint16(sb[0xfe:]))
		v.blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	v.fileType = features&extFileType != 0
	v.descriptors = (int64(le.Uint32(sb[0x14:])) + 1) * v.block
	if v.inodesPerGroup == 0 || v.inodeSize < 128 || v.inodeSize > v.block || v.descriptorSize < 32 || v.descriptorSize > v.block || v.blocks <= 0 || v.blocks > size/v.block {
		return nil, errors.New("its ext file system contradicts itself, or is larger than the partition")
	}
	return v, nil
}

func (v *ext) root() (node, error) { return v.inode(extRootInode) }

func (v *ext) inode(n uint32) (node, error) {
	if n == 0 || n > v.inodes {
		return node{}, fmt.Errorf("there is no inode %d", n)
	}
	le := binary.LittleEndian
	group, index := int64((n-1)/v.inodesPerGroup), int64((n-1)%v.inodesPerGroup)
	d := make([]byte, v.descriptorSize)
	if _, err := v.r.ReadAt(d, v.descriptors+group*v.descriptorSize); err != nil {
		return node{}, fmt.Errorf("read the descriptor of inode %d: %w", n, err)
	}
	table := int64(le.Uint32(d[8:]))
	if v.descriptorSize >= 64 {
		table |= int64(le.Uint32(d[0x28:])) << 32
	}
	if table <= 0 || table >= v.blocks {
		return node{}, fmt.Errorf("the table of inode %d lies at block %d of %d", n, table, v.blocks)
	}
	raw := make([]byte, 128)
	if _, err := v.r.ReadAt(raw, table*v.block+index*v.inodeSize); err != nil {
		return node{}, fmt.Errorf("read inode %d: %w", n, err)
	}
	out := node{raw: raw, size: int64(le.Uint32(raw[4:]))}
	switch le.Uint16(raw) & 0xf000 {
	case 0x8000:
		out.kind = nodeFile
	case 0x4000:
		out.kind = nodeFolder
	case 0xa000:
		out.kind = nodeLink
	}
	if out.kind == nodeFile {
		out.size |= int64(le.Uint32(raw[0x6c:])) << 32
	}
	if out.size < 0 {
		return node{}, fmt.Errorf("inode %d has no size", n)
	}
	return out, nil
}

func (n node) extFlags() uint32 { return binary.LittleEndian.Uint32(n.raw[0x20:]) }

// entry goes through the folder from its beginning: the blocks of its hash tree look
// like unused entries.
func (v *ext) entry(f node, name string) (node, error) {
	b, err := folder(v, v.r, f)
	if err != nil {
		return node{}, err
	}
	le := binary.LittleEndian
	for off := 0; off+8 <= len(b); {
		length, named := int(le.Uint16(b[off+4:])), int(le.Uint16(b[off+6:]))
		if v.fileType {
			named = int(b[off+6])
		}
		if length < 8 || length%4 != 0 || off+length > len(b) || named > length-8 {
			return node{}, errors.New("its folder is damaged")
		}
		if inode := le.Uint32(b[off:]); inode != 0 && string(b[off+8:off+8+named]) == name {
			return v.inode(inode)
		}
		off += length
	}
	return node{}, fs.ErrNotExist
}

func (v *ext) link(n node) (string, error) {
	if n.size > 4096 {
		return "", errors.New("it is too long")
	}
	// A short one stands in the inode in the place of its blocks.
	if n.size < 60 && n.extFlags()&(extInodeExtents|extInodeInline) == 0 {
		return string(n.raw[0x28 : 0x28+n.size]), nil
	}
	b, err := folder(v, v.r, n)
	return string(b), err
}

func (v *ext) extents(n node) ([]inventory.Extent, error) {
	switch flags := n.extFlags(); {
	case flags&extInodeInline != 0:
		return nil, errors.New("its bytes stand in its inode, which recast does not read: make the file system without inline_data")
	case flags&extInodeEncrypted != 0:
		return nil, errors.New("it is encrypted")
	case flags&extInodeExtents == 0:
		return v.mapped(n)
	}
	var list []extLeaf
	nodes := 0
	if err := v.tree(n.raw[0x28:0x64], 5, &list, &nodes); err != nil {
		return nil, err
	}
	sort.Slice(list, func(i, j int) bool { return list[i].logical < list[j].logical })
	var out []inventory.Extent
	next, end := int64(0), (n.size+v.block-1)/v.block
	hole := func(to int64) {
		if to > next {
			out = append(out, inventory.Extent{Start: inventory.ZeroExtent, Length: (to - next) * v.block})
			next = to
		}
	}
	for _, l := range list {
		if l.logical < next {
			return nil, errors.New("its extents overlap")
		}
		if l.logical >= end {
			break // set aside behind its end
		}
		hole(l.logical)
		e := inventory.Extent{Start: l.start * v.block, Length: l.blocks * v.block}
		if l.unwritten {
			e.Start = inventory.ZeroExtent
		}
		out = append(out, e)
		next += l.blocks
	}
	hole(end)
	return out, nil
}

type extLeaf struct {
	logical, start, blocks int64
	unwritten              bool
}

// tree reads one node of an extent tree, and those below it. Nodes without leaves that
// share those below them would be billions of reads, so that nodes are counted too.
func (v *ext) tree(b []byte, depth int, list *[]extLeaf, nodes *int) error {
	le := binary.LittleEndian
	n, level := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != 0xf30a || 12+12*n > len(b) || level > depth {
		return errors.New("its extents are damaged")
	}
	for i := range n {
		e := b[12+12*i:][:12]
		if level == 0 {
			l := extLeaf{logical: int64(le.Uint32(e)), blocks: int64(le.Uint16(e[4:])), start: int64(le.Uint16(e[6:]))<<32 | int64(le.Uint32(e[8:]))}
			if l.blocks > 32768 {
				l.blocks, l.unwritten = l.blocks-32768, true
			}
			if l.blocks == 0 || l.start <= 0 || l.start+l.blocks > v.blocks {
				return errors.New("an extent lies outside its file system")
			}
			if len(*list) == 16*maxExtents {
				return errors.New("it lies in too many pieces")
			}
			*list = append(*list, l)
			continue
		}
		at := int64(le.Uint16(e[8:]))<<32 | int64(le.Uint32(e[4:]))
		if at <= 0 || at >= v.blocks {
			return errors.New("its extents are damaged")
		}
		if *nodes++; *nodes > 16*maxExtents {
			return errors.New("it lies in too many pieces")
		}
		below := make([]byte, v.block)
		if _, err := v.r.ReadAt(below, at*v.block); err != nil {
			return err
		}
		if err := v.tree(below, level-1, list, nodes); err != nil {
			return err
		}
	}
	return nil
}

// mapped reads the blocks of a file of ext2 and ext3: twelve, then three trees of one,
// two and three levels.
func (v *ext) mapped(n node) ([]inventory.Extent, error) {
	le := binary.LittleEndian
	if n.size > maxFile {
		return nil, errors.New("it is too large")
	}
	want := int((n.size + v.block - 1) / v.block)
	var numbers []int64
	var tree func(at int64, levels int) error
	tree = func(at int64, levels int) error {
		if at >= v.blocks {
			return errors.New("a block lies outside its file system")
		}
		if levels == 0 {
			numbers = append(numbers, at)
			return nil
		}
		below := make([]byte, v.block) // that of a hole: zeros
		if at != 0 {
			if _, err := v.r.ReadAt(below, at*v.block); err != nil {
				return err
			}
		}
		for ; len(below) > 0 && len(numbers) < want; below = below[4:] {
			if err := tree(int64(le.Uint32(below)), levels-1); err != nil {
				return err
			}
		}
		return nil
	}
	for i := 0; i < 15 && len(numbers) < want; i++ {
		if err := tree(int64(le.Uint32(n.raw[0x28+4*i:])), max(0, i-11)); err != nil {
			return nil, err
		}
	}
	return blocksOf(numbers, v.block), nil
}
