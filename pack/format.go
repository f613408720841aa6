package pack

import "fmt"

// FormatGPT renders the first and the last MiB of an empty disk of size bytes
// with a GPT that holds parts: Type, GUID, Name, Start and End are taken from
// each, numbers follow their order. It makes images where no sgdisk is at hand.
func FormatGPT(size int64, blockSize int, disk GUID, parts []Partition) (first, last []byte, err error) {
	if blockSize != 512 && blockSize != 4096 || size%int64(blockSize) != 0 || size < 2*MiB {
		return nil, nil, fmt.Errorf("format a GPT: no disk of %d bytes in blocks of %d", size, blockSize)
	}
	bs := int64(blockSize)
	g := &gpt{
		blockSize: blockSize, disk: disk, alternate: uint64(size/bs) - 1, entriesLBA: 2,
		entrySize: gptEntrySize, entries: make([]byte, gptEntries*gptEntrySize),
	}
	n := uint64(blocksFor(len(g.entries), blockSize))
	g.firstUsable, g.lastUsable = 2+n, g.alternate-n-1
	for _, p := range parts {
		typ, err := ParseGUID(p.Type)
		if err != nil {
			return nil, nil, fmt.Errorf("format a GPT: %w", err)
		}
		id, err := ParseGUID(p.GUID)
		if err != nil {
			return nil, nil, fmt.Errorf("format a GPT: %w", err)
		}
		if p.Start%bs != 0 || p.End%bs != 0 {
			return nil, nil, fmt.Errorf("format a GPT: partition %q does not begin and end with a block", p.Name)
		}
		if err := g.add(typ, id, p.Name, p.Start, p.End); err != nil {
			return nil, nil, fmt.Errorf("format a GPT: %w", err)
		}
	}
	if _, err := g.layout(size); err != nil {
		return nil, nil, fmt.Errorf("format a GPT: %w", err)
	}
	first, last = make([]byte, MiB), make([]byte, MiB)
	mbr := first[446:]
	mbr[2], mbr[4], mbr[5], mbr[6], mbr[7], mbr[8] = 2, 0xee, 0xff, 0xff, 0xff, 1
	first[510], first[511] = 0x55, 0xaa
	copy(first, protectiveMBR(first[:512], uint64(size/bs)))
	copy(first[bs:], g.primaryHeader())
	copy(first[2*bs:], g.entries)
	start, end := g.backup()
	copy(last[MiB-(size-start):], g.entries)
	copy(last[MiB-(size-end)-bs:], g.backupHeader())
	return first, last, nil
}
