package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// MiB is the size of the two regions that the transaction writes last, and what
// the config partition is aligned to.
const MiB = 1 << 20

// Errors of CheckDisk that somebody decides on.
var (
	ErrDiskTooSmall = errors.New("disk is too small")
	ErrBlockSize    = errors.New("logical block sizes differ")
	ErrNoConfig     = errors.New("image cannot get a config partition")
)

// ConfigPart asks for a partition at the very end of the disk.
type ConfigPart struct {
	Size  int64  // bytes of the volume; the partition is rounded up to whole MiB
	Label string // GPT partition name
	GUID  GUID   // zero: derived from the disk's GUID
}

// Table is the partition table for one disk, as bytes: what has to be written
// there and what a read-back is compared with.
type Table struct {
	First []byte // the disk's first MiB; written last of all
	Last  []byte // the disk's last MiB, with the backup table
	// Digest is the SHA-256 over First and then Last.
	Digest Digest
	// ConfigStart and ConfigSize are the config partition in bytes; 0 without one.
	ConfigStart, ConfigSize int64
	// Chunks are those of the image that stand on this disk in another form:
	// chunk 0, the one that held the image's own backup table (zeros now, so
	// that nothing finds a second table), and any that reach into Last.
	Chunks map[int]TableChunk
}

// TableChunk is one chunk in both forms.
type TableChunk struct {
	Image, Disk []byte
	// Late chunks share bytes with First or Last: they are left out of the body
	// and written only when all of it was read back, chunk 0 last of all.
	Late bool
}

// CheckDisk says whether the image fits a disk of diskSize bytes, with room
// for config (nil for none). It needs no bytes of the image, so that a plan
// can ask it.
func (m *Manifest) CheckDisk(diskSize int64, blockSize int, config *ConfigPart) error {
	if blockSize != m.BlockSize {
		return fmt.Errorf("%w: the image is made for blocks of %d bytes, the disk has %d", ErrBlockSize, m.BlockSize, blockSize)
	}
	if diskSize%int64(blockSize) != 0 {
		return fmt.Errorf("%w: a disk of %d bytes is no whole number of blocks of %d bytes", ErrBlockSize, diskSize, blockSize)
	}
	if config != nil {
		if m.Layout.Scheme != SchemeGPT {
			return fmt.Errorf("%w: its partition table is %s; only images with a GPT get one", ErrNoConfig, schemeWord(m.Layout.Scheme))
		}
		if config.Size <= 0 {
			return fmt.Errorf("%w: a volume of %d bytes", ErrNoConfig, config.Size)
		}
	}
	if need := m.MinDiskSize(config); diskSize < need {
		with := ""
		if config != nil {
			with = " and its config partition"
		}
		return fmt.Errorf("%w: %d bytes, the image%s needs %d", ErrDiskTooSmall, diskSize, with, need)
	}
	return nil
}

// MinDiskSize is the smallest disk, in bytes, that takes the image and config
// (nil for none).
func (m *Manifest) MinDiskSize(config *ConfigPart) int64 {
	if config == nil {
		return max(m.Size, 2*MiB)
	}
	return alignUp(max(m.Size, MiB)) + alignUp(config.Size) + MiB
}

// RenderTable gives the partition table of the image as it shall stand on a
// disk of diskSize bytes: boot code and everything else in the first MiB is the
// image's, the primary GPT and the protective MBR know the disk's size, the
// backup stands at the disk's end, and config (nil for none) is the last
// partition, so that the gap before it stays free for the others to grow.
// An image with an MBR keeps its first MiB as it is.
//
// chunk returns the checked bytes of one chunk of the image; it is asked for
// chunk 0 and at most four near the image's end. The result depends on the
// arguments alone.
func RenderTable(m *Manifest, chunk func(i int) ([]byte, error), diskSize int64, blockSize int, config *ConfigPart) (*Table, error) {
	if err := m.CheckDisk(diskSize, blockSize, config); err != nil {
		return nil, fmt.Errorf("render the partition table: %w", err)
	}
	r := renderer{m: m, chunk: chunk, t: &Table{Chunks: map[int]TableChunk{}}}
	first, err := r.read(0, min(MiB, m.Size))
	if err != nil {
		return nil, fmt.Errorf("render the partition table: %w", err)
	}
	if m.Layout.Scheme == SchemeGPT {
		if err := r.renderGPT(first, diskSize, blockSize, config); err != nil {
			return nil, fmt.Errorf("render the partition table: %w", err)
		}
	}
	if r.t.First, err = r.wanted(0); err == nil {
		r.t.Last, err = r.wanted(diskSize - MiB)
	}
	if err == nil {
		err = r.chunks(diskSize)
	}
	if err != nil {
		return nil, fmt.Errorf("render the partition table: %w", err)
	}
	h := sha256.New()
	h.Write(r.t.First)
	h.Write(r.t.Last)
	h.Sum(r.t.Digest[:0])
	return r.t, nil
}

// renderer lays patches over the image's bytes.
type renderer struct {
	m       *Manifest
	chunk   func(i int) ([]byte, error)
	t       *Table
	patches []patch // later ones win
}

type patch struct {
	offset int64
	bytes  []byte
}

func (r *renderer) renderGPT(first []byte, diskSize int64, blockSize int, config *ConfigPart) error {
	g, err := parseGPT(first)
	if err != nil {
		return err
	}
	if g == nil || g.blockSize != blockSize {
		return fmt.Errorf("the image's first MiB holds no GPT for blocks of %d bytes, as the manifest says", blockSize)
	}
	if _, err := g.layout(r.m.Size); err != nil {
		return err
	}
	start, end := g.backup()
	r.patches = append(r.patches, patch{start, make([]byte, end-start)})

	bs, entryBlocks := uint64(blockSize), uint64(blocksFor(len(g.entries), blockSize))
	blocks := uint64(diskSize) / bs
	g.alternate = blocks - 1
	g.lastUsable = g.alternate - entryBlocks - 1
	if config != nil {
		end := (diskSize - MiB) / MiB * MiB
		r.t.ConfigSize = alignUp(config.Size)
		r.t.ConfigStart = end - r.t.ConfigSize
		id := config.GUID
		if id == (GUID{}) {
			id = deriveGUID(g.disk, "recast config partition")
		}
		if err := g.add(TypeBasicData, id, config.Label, r.t.ConfigStart, end); err != nil {
			return err
		}
	}
	entries := make([]byte, entryBlocks*bs)
	copy(entries, g.entries)
	start, _ = g.backup()
	r.patches = append(r.patches,
		patch{start, append(bytes.Clone(entries), g.backupHeader()...)},
		patch{int64(bs), g.primaryHeader()},
		patch{int64(g.entriesLBA) * int64(bs), g.entries})
	if mbr := protectiveMBR(first[:512], blocks); mbr != nil {
		r.patches = append(r.patches, patch{0, mbr})
	}
	return nil
}

// read returns the image's bytes from offset to end, which must lie in it.
func (r *renderer) read(offset, end int64) ([]byte, error) {
	b := make([]byte, end-offset)
	for i := int(offset / ChunkSize); int64(i)*ChunkSize < end; i++ {
		c, ok := r.t.Chunks[i]
		if !ok {
			data, err := r.chunk(i)
			if err != nil {
				return nil, fmt.Errorf("read chunk %d: %w", i, err)
			}
			if len(data) != r.m.ChunkLen(i) {
				return nil, fmt.Errorf("read chunk %d: %d bytes instead of %d", i, len(data), r.m.ChunkLen(i))
			}
			c = TableChunk{Image: bytes.Clone(data)}
			r.t.Chunks[i] = c
		}
		overlay(b, offset, patch{int64(i) * ChunkSize, c.Image})
	}
	return b, nil
}

// wanted is one MiB of the disk: the image's bytes, zeros behind them, patches on top.
func (r *renderer) wanted(offset int64) ([]byte, error) {
	b := make([]byte, MiB)
	if end := min(offset+MiB, r.m.Size); end > offset {
		have, err := r.read(offset, end)
		if err != nil {
			return nil, err
		}
		copy(b, have)
	}
	for _, p := range r.patches {
		overlay(b, offset, p)
	}
	return b, nil
}

// chunks fills the Disk form of every chunk that a patch or the last MiB touches.
func (r *renderer) chunks(diskSize int64) error {
	for _, p := range r.patches {
		if end := min(p.offset+int64(len(p.bytes)), r.m.Size); end > p.offset {
			if _, err := r.read(p.offset, end); err != nil {
				return err
			}
		}
	}
	for i, c := range r.t.Chunks {
		c.Disk = bytes.Clone(c.Image)
		c.Late = i == 0 || int64(i)*ChunkSize+int64(len(c.Image)) > diskSize-MiB
		for _, p := range r.patches {
			overlay(c.Disk, int64(i)*ChunkSize, p)
		}
		r.t.Chunks[i] = c
	}
	return nil
}

// overlay copies the part of p that lies in b, whose first byte is at offset.
func overlay(b []byte, offset int64, p patch) {
	from, to := max(offset, p.offset), min(offset+int64(len(b)), p.offset+int64(len(p.bytes)))
	if from < to {
		copy(b[from-offset:], p.bytes[from-p.offset:to-p.offset])
	}
}

// protectiveMBR sets the size of the one 0xEE entry (UEFI specification, table
// 5-4). A hybrid MBR is somebody's intention and stays: nil.
func protectiveMBR(mbr []byte, blocks uint64) []byte {
	out, found := bytes.Clone(mbr), -1
	for i := range 4 {
		switch out[446+16*i+4] {
		case 0:
		case 0xee:
			if found >= 0 {
				return nil
			}
			found = i
		default:
			return nil
		}
	}
	if found < 0 {
		return nil
	}
	binary.LittleEndian.PutUint32(out[446+16*found+12:], uint32(min(blocks-1, 0xffffffff)))
	return out
}

// deriveGUID makes a name-based GUID (the layout of RFC 9562 version 8, over SHA-256).
func deriveGUID(space GUID, name string) GUID {
	sum := sha256.Sum256(append(space[:], name...))
	g := GUID(sum[:])
	g[7] = g[7]&0x0f | 0x80 // version: the high nibble of the third field, little-endian on disk
	g[8] = g[8]&0x3f | 0x80
	return g
}

func alignUp(n int64) int64 { return (n + MiB - 1) / MiB * MiB }

func schemeWord(scheme string) string {
	if scheme == SchemeMBR {
		return "an MBR"
	}
	return "unknown"
}
