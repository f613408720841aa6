package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

// ErrTruncated is wrapped where a partition table names bytes past the image's end.
var ErrTruncated = errors.New("image is truncated")

// Schemes of a Layout.
const (
	SchemeGPT  = "gpt"
	SchemeMBR  = "mbr"
	SchemeNone = "none" // neither: not a disk image, as far as we can tell
)

// Layout says in words what the image's partition table holds.
type Layout struct {
	Scheme     string      `json:"scheme"`
	GUID       string      `json:"guid,omitempty"` // of the disk, GPT only
	Partitions []Partition `json:"partitions,omitempty"`
}

// Partition is one entry of a table, in bytes.
type Partition struct {
	Number     int    `json:"number"`
	Type       string `json:"type"`           // GUID, or the MBR's type as 0x83
	GUID       string `json:"guid,omitempty"` // GPT only
	Name       string `json:"name,omitempty"` // GPT only
	Start      int64  `json:"start"`
	End        int64  `json:"end"` // first byte past it
	Attributes uint64 `json:"attributes,omitempty"`
}

func (l *Layout) check(size int64) error {
	switch l.Scheme {
	case SchemeGPT, SchemeMBR, SchemeNone:
	default:
		return fmt.Errorf("layout scheme %q, want %q, %q or %q", l.Scheme, SchemeGPT, SchemeMBR, SchemeNone)
	}
	for _, p := range l.Partitions {
		if p.Number < 1 || p.Start < 0 || p.End <= p.Start || p.End > size {
			return fmt.Errorf("partition %d from byte %d to %d does not lie in an image of %d bytes", p.Number, p.Start, p.End, size)
		}
	}
	return nil
}

const (
	gptSignature  = "EFI PART"
	gptHeaderSize = 92
	gptEntrySize  = 128
	gptEntries    = 128 // what every tool makes; an image may bring more
)

// gpt is a parsed primary table, in blocks.
type gpt struct {
	blockSize   int
	disk        GUID
	alternate   uint64 // block of the backup header
	firstUsable uint64
	lastUsable  uint64
	entriesLBA  uint64
	entrySize   int
	entries     []byte
}

// ParseLayout reads the partition table from the first MiB of an image of size
// bytes (all of it, if it is smaller) and tells the logical block size that the
// image was made for: where a GPT header stands, else 512.
func ParseLayout(first []byte, size int64) (Layout, int, error) {
	g, err := parseGPT(first)
	if err != nil {
		return Layout{}, 0, err
	}
	if g != nil {
		l, err := g.layout(size)
		return l, g.blockSize, err
	}
	if parts, ok := parseMBR(first); ok {
		for _, p := range parts {
			if p.End > size {
				return Layout{}, 0, fmt.Errorf("MBR partition %d ends at byte %d, the image at byte %d: %w", p.Number, p.End, size, ErrTruncated)
			}
		}
		return Layout{Scheme: SchemeMBR, Partitions: parts}, 512, nil
	}
	return Layout{Scheme: SchemeNone}, 512, nil
}

// parseGPT finds the primary header at block 1 of either block size; nil for no GPT.
func parseGPT(first []byte) (*gpt, error) {
	var firstErr error
	for _, bs := range []int{512, 4096} {
		if len(first) < 2*bs || string(first[bs:bs+8]) != gptSignature {
			continue
		}
		g, err := parseGPTAt(first, bs)
		if err == nil {
			return g, nil
		}
		if firstErr == nil {
			firstErr = fmt.Errorf("parse the GPT at byte %d: %w", bs, err)
		}
	}
	return nil, firstErr
}

func parseGPTAt(first []byte, bs int) (*gpt, error) {
	h := first[bs : 2*bs]
	le := binary.LittleEndian
	size := le.Uint32(h[12:])
	if size < gptHeaderSize || size > uint32(bs) {
		return nil, fmt.Errorf("header size %d, want %d to %d", size, gptHeaderSize, bs)
	}
	if want, got := le.Uint32(h[16:]), headerCRC(h[:size]); want != got {
		return nil, fmt.Errorf("header checksum %08x, want %08x", got, want)
	}
	if lba := le.Uint64(h[24:]); lba != 1 {
		return nil, fmt.Errorf("header says it stands at block %d", lba)
	}
	count, entrySize := le.Uint32(h[80:]), le.Uint32(h[84:])
	if entrySize < gptEntrySize || entrySize > 4096 || entrySize&(entrySize-1) != 0 || count == 0 || count > ChunkSize/entrySize {
		return nil, fmt.Errorf("%d entries of %d bytes", count, entrySize)
	}
	g := &gpt{
		blockSize: bs, disk: GUID(h[56:]),
		alternate: le.Uint64(h[32:]), firstUsable: le.Uint64(h[40:]), lastUsable: le.Uint64(h[48:]),
		entriesLBA: le.Uint64(h[72:]), entrySize: int(entrySize),
	}
	n := int(count) * int(entrySize)
	if g.entriesLBA < 2 || g.entriesLBA > uint64(len(first)/bs) || int(g.entriesLBA)*bs+n > len(first) {
		return nil, fmt.Errorf("entries at block %d, %d bytes, do not lie in the first MiB", g.entriesLBA, n)
	}
	g.entries = bytes.Clone(first[int(g.entriesLBA)*bs:][:n])
	if want, got := le.Uint32(h[88:]), crc32.ChecksumIEEE(g.entries); want != got {
		return nil, fmt.Errorf("entries checksum %08x, want %08x", got, want)
	}
	blocks := uint64(MaxImageSize / bs)
	if g.alternate < 2 || g.alternate > blocks || g.firstUsable > g.lastUsable || g.lastUsable >= g.alternate ||
		g.firstUsable < g.entriesLBA+uint64(blocksFor(n, bs)) {
		return nil, fmt.Errorf("usable blocks %d to %d, entries at %d, backup header at %d contradict each other",
			g.firstUsable, g.lastUsable, g.entriesLBA, g.alternate)
	}
	return g, nil
}

// layout lists the entries and checks that they lie in an image of size bytes.
func (g *gpt) layout(size int64) (Layout, error) {
	bs := int64(g.blockSize)
	if size%bs != 0 {
		return Layout{}, fmt.Errorf("image of %d bytes is no whole number of %d-byte blocks: %w", size, bs, ErrTruncated)
	}
	if end := (int64(g.alternate) + 1) * bs; end > size {
		return Layout{}, fmt.Errorf("GPT says that the image ends at byte %d, it ends at byte %d: %w", end, size, ErrTruncated)
	}
	backup, _ := g.backup()
	l := Layout{Scheme: SchemeGPT, GUID: g.disk.String()}
	le := binary.LittleEndian
	for i := range len(g.entries) / g.entrySize {
		e := g.entries[i*g.entrySize:][:g.entrySize]
		if GUID(e) == (GUID{}) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first < g.firstUsable || last > g.lastUsable || first > last {
			return Layout{}, fmt.Errorf("GPT partition %d takes blocks %d to %d, outside the usable %d to %d", i+1, first, last, g.firstUsable, g.lastUsable)
		}
		p := Partition{
			Number: i + 1, Type: GUID(e).String(), GUID: GUID(e[16:]).String(), Name: entryName(e),
			Start: int64(first) * bs, End: (int64(last) + 1) * bs, Attributes: le.Uint64(e[48:]),
		}
		if p.End > backup {
			return Layout{}, fmt.Errorf("GPT partition %d ends at byte %d, inside the backup table at byte %d", p.Number, p.End, backup)
		}
		for _, q := range l.Partitions {
			if p.Start < q.End && q.Start < p.End {
				return Layout{}, fmt.Errorf("GPT partitions %d and %d overlap", q.Number, p.Number)
			}
		}
		l.Partitions = append(l.Partitions, p)
	}
	return l, nil
}

// backup is the range in bytes that a table's backup takes: the entries, then
// the header in the alternate block.
func (g *gpt) backup() (start, end int64) {
	bs := int64(g.blockSize)
	return (int64(g.alternate) - int64(blocksFor(len(g.entries), g.blockSize))) * bs, (int64(g.alternate) + 1) * bs
}

// primaryHeader and backupHeader are one block each.
func (g *gpt) primaryHeader() []byte { return g.header(1, g.alternate, g.entriesLBA) }

func (g *gpt) backupHeader() []byte {
	return g.header(g.alternate, 1, g.alternate-uint64(blocksFor(len(g.entries), g.blockSize)))
}

func (g *gpt) header(here, other, entries uint64) []byte {
	h := make([]byte, g.blockSize)
	le := binary.LittleEndian
	copy(h, gptSignature)
	le.PutUint32(h[8:], 0x00010000)
	le.PutUint32(h[12:], gptHeaderSize)
	le.PutUint64(h[24:], here)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[40:], g.firstUsable)
	le.PutUint64(h[48:], g.lastUsable)
	copy(h[56:], g.disk[:])
	le.PutUint64(h[72:], entries)
	le.PutUint32(h[80:], uint32(len(g.entries)/g.entrySize))
	le.PutUint32(h[84:], uint32(g.entrySize))
	le.PutUint32(h[88:], crc32.ChecksumIEEE(g.entries))
	le.PutUint32(h[16:], headerCRC(h[:gptHeaderSize]))
	return h
}

// headerCRC is taken with the checksum's own field as zero.
func headerCRC(h []byte) uint32 {
	c := bytes.Clone(h)
	clear(c[16:20])
	return crc32.ChecksumIEEE(c)
}

// add puts a partition into the first free entry behind the last used one, or
// into any free one: the numbers of the others stay what they are.
func (g *gpt) add(typ, id GUID, name string, start, end int64) error {
	n, free, after := len(g.entries)/g.entrySize, -1, -1
	for i := range n {
		switch used := GUID(g.entries[i*g.entrySize:]) != (GUID{}); {
		case used:
			after = -1
		case free < 0:
			free, after = i, i
		case after < 0:
			after = i
		}
	}
	if after >= 0 {
		free = after
	}
	if free < 0 {
		return fmt.Errorf("all %d entries of the partition table are taken", n)
	}
	wide := utf16.Encode([]rune(name))
	if len(wide) > 36 {
		return fmt.Errorf("partition name %q is longer than 36 characters", name)
	}
	e := g.entries[free*g.entrySize:][:g.entrySize]
	clear(e)
	le := binary.LittleEndian
	copy(e, typ[:])
	copy(e[16:], id[:])
	le.PutUint64(e[32:], uint64(start)/uint64(g.blockSize))
	le.PutUint64(e[40:], uint64(end)/uint64(g.blockSize)-1)
	for i, c := range wide {
		le.PutUint16(e[56+2*i:], c)
	}
	return nil
}

func entryName(e []byte) string {
	var wide []uint16
	for b := e[56:gptEntrySize]; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		wide = append(wide, c)
	}
	return string(utf16.Decode(wide))
}

// parseMBR lists the four primary entries; false without the boot signature or
// when no entry makes sense as one.
func parseMBR(first []byte) ([]Partition, bool) {
	if len(first) < 512 || first[510] != 0x55 || first[511] != 0xaa {
		return nil, false
	}
	var parts []Partition
	for i := range 4 {
		e := first[446+16*i:][:16]
		start, n := int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
		if e[0]&0x7f != 0 { // status is 0x80 or 0x00: a FAT volume's boot code otherwise
			return nil, false
		}
		if e[4] == 0 || n == 0 {
			continue
		}
		parts = append(parts, Partition{
			Number: i + 1, Type: fmt.Sprintf("0x%02x", e[4]), Start: start * 512, End: (start + n) * 512,
		})
	}
	return parts, len(parts) > 0
}

func blocksFor(n, bs int) int { return (n + bs - 1) / bs }
