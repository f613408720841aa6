package pack

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Find gives the partition of that GPT name or number. A name that two have names
// none of them.
func (l *Layout) Find(name string) (Partition, error) {
	var found []Partition
	n, err := strconv.Atoi(name)
	for _, p := range l.Partitions {
		if err == nil && p.Number == n || err != nil && p.Name == name {
			found = append(found, p)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if len(found) > 1 {
		return Partition{}, fmt.Errorf("%d partitions have the name %q: name it by its number", len(found), name)
	}
	var has []string
	for _, p := range l.Partitions {
		has = append(has, strings.TrimSuffix(fmt.Sprintf("%d %q", p.Number, p.Name), ` ""`))
	}
	if len(has) == 0 {
		return Partition{}, fmt.Errorf("there is no partition %q: its table (%s) has none", name, l.Scheme)
	}
	return Partition{}, fmt.Errorf("there is no partition %q: it has %s", name, strings.Join(has, ", "))
}

// FindAll gives the partitions of those names or numbers, no two of which are one.
func (l *Layout) FindAll(names []string) (list []Partition, err error) {
	known := map[int]string{}
	for _, name := range names {
		p, err := l.Find(name)
		if err != nil {
			return nil, err
		}
		if other, twice := known[p.Number]; twice {
			return nil, fmt.Errorf("%q and %q are both partition %d", other, name, p.Number)
		}
		known[p.Number] = name
		list = append(list, p)
	}
	return list, nil
}

// Others names all partitions but those, by name or, where that names none or several,
// by number.
func (l *Layout) Others(names []string) (others []string, err error) {
	left, err := l.FindAll(names)
	if err != nil {
		return nil, err
	}
	for _, p := range l.Partitions {
		if slices.Contains(left, p) {
			continue
		}
		name := p.Name
		if found, err := l.Find(name); name == "" || err != nil || found.Number != p.Number {
			name = strconv.Itoa(p.Number)
		}
		others = append(others, name)
	}
	return others, nil
}

// typeBIOSBoot is GRUB's, for the part of it that a BIOS runs.
const typeBIOSBoot = "21686148-6449-6E6F-744E-656564454649"

// BIOSBoot are the partitions that hold what a BIOS runs: no file system.
func (l *Layout) BIOSBoot() (found []Partition) {
	for _, p := range l.Partitions {
		if p.Type == typeBIOSBoot {
			found = append(found, p)
		}
	}
	return found
}

// Differs says in words what of l, an image's, does not stand in disk by its
// meaning: each partition's number, type, GUID and start, and that it did not
// shrink. Names, attributes, the disk's own GUID, and partitions that came on top
// belong to whoever runs the machine. "" nothing.
func (l *Layout) Differs(disk *Layout) string {
	if l.Scheme != disk.Scheme {
		return fmt.Sprintf("its partition table is %q, the image's %q", disk.Scheme, l.Scheme)
	}
	for _, want := range l.Partitions {
		var have *Partition
		for i := range disk.Partitions {
			if disk.Partitions[i].Number == want.Number {
				have = &disk.Partitions[i]
			}
		}
		switch {
		case have == nil:
			return fmt.Sprintf("partition %d is missing", want.Number)
		case have.Type != want.Type:
			return fmt.Sprintf("partition %d has type %s, the image's %s", want.Number, have.Type, want.Type)
		case have.GUID != want.GUID:
			return fmt.Sprintf("partition %d has GUID %s, the image's %s", want.Number, have.GUID, want.GUID)
		case have.Start != want.Start:
			return fmt.Sprintf("partition %d begins at byte %d, the image's at %d", want.Number, have.Start, want.Start)
		case have.End < want.End:
			return fmt.Sprintf("partition %d ends at byte %d, the image's at %d", want.Number, have.End, want.End)
		}
	}
	return ""
}

// Piece is what of one chunk lies in a region.
type Piece struct {
	Chunk      int
	Start, End int64 // in the image
	Whole      bool  // all of the chunk, so that its sum proves it
}

// Pieces of the region [start, end) of the image, in order.
func (m *Manifest) Pieces(start, end int64) []Piece { return pieces(m.Size, start, end) }

func pieces(size, start, end int64) []Piece {
	var out []Piece
	for i := start / ChunkSize; i*ChunkSize < min(end, size); i++ {
		off, to := i*ChunkSize, min((i+1)*ChunkSize, size)
		p := Piece{Chunk: int(i), Start: max(start, off), End: min(end, to)}
		if p.Whole = p.Start == off && p.End == to; p.Start < p.End {
			out = append(out, p)
		}
	}
	return out
}
