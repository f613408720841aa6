package inventory

import (
	"fmt"
	"strings"
)

// ChoiceError says why no single disk fits: none does, or several do. Either
// way nothing may be written.
type ChoiceError struct {
	Matched []DiskFacts // that fit; empty or more than one
	Refused []RefusedDisk
}

// RefusedDisk is a disk that does not fit, and why.
type RefusedDisk struct {
	Disk DiskFacts
	Why  string
}

func (e *ChoiceError) Error() string {
	if len(e.Matched) > 1 {
		names := make([]string, len(e.Matched))
		for i, d := range e.Matched {
			names[i] = d.label()
		}
		return fmt.Sprintf("%d disks fit the hints: %s; add a hint that only one of them fits, such as its serial", len(e.Matched), strings.Join(names, ", "))
	}
	if len(e.Refused) == 0 {
		return "the machine has no disk; check its controller and cables, and that the ramdisk has the controller's driver"
	}
	reasons := make([]string, len(e.Refused))
	for i, r := range e.Refused {
		reasons[i] = r.Disk.label() + " (" + r.Why + ")"
	}
	return fmt.Sprintf("no disk fits the hints: %s", strings.Join(reasons, ", "))
}

// label names a disk for people, by serial where it has one.
func (d DiskFacts) label() string {
	name := strings.TrimPrefix(d.Name, "/dev/")
	switch {
	case d.Serial != "":
		return name + " serial " + d.Serial
	case d.WWN != "":
		return name + " wwn " + d.WWN
	case d.ByPath != "":
		return name + " at " + d.ByPath
	}
	return name + " without serial"
}

// Choose returns the one disk that fits every hint. Disks that are removable,
// read-only or in use never fit. Anything but exactly one is a *ChoiceError.
func Choose(sel DiskSelect, disks []DiskFacts) (DiskFacts, error) {
	hints, err := sel.parse()
	if err != nil {
		return DiskFacts{}, fmt.Errorf("read disk hints: %w", err)
	}
	e := &ChoiceError{}
	for _, d := range disks {
		if why := refuse(sel, hints, d); why != "" {
			e.Refused = append(e.Refused, RefusedDisk{d, why})
			continue
		}
		e.Matched = append(e.Matched, d)
	}
	if len(e.Matched) != 1 {
		return DiskFacts{}, e
	}
	return e.Matched[0], nil
}

func refuse(sel DiskSelect, hints []hint, d DiskFacts) string {
	switch {
	case d.Removable:
		return "it is removable"
	case d.ReadOnly:
		return "it is read-only"
	case d.InUse:
		return "it is in use"
	case d.Size <= 0:
		return "its size is not known"
	case d.Size < sel.MinSize:
		return fmt.Sprintf("%s is less than minSize %s", SizeTextBeside(d.Size, sel.MinSize), SizeTextBeside(sel.MinSize, d.Size))
	case sel.MaxSize > 0 && d.Size > sel.MaxSize:
		return fmt.Sprintf("%s is more than maxSize %s", SizeTextBeside(d.Size, sel.MaxSize), SizeTextBeside(sel.MaxSize, d.Size))
	}
	for _, h := range hints {
		if why := h.fits(d); why != "" {
			return why
		}
	}
	return ""
}

// ID pins the disk by WWN and serial. A disk with neither is pinned by its path,
// which names the slot and not the disk; one without a path cannot be pinned.
func (d DiskFacts) ID() (DiskID, error) {
	id := DiskID{Name: d.Name, WWN: d.WWN, Serial: d.Serial, Size: d.Size, LogicalBlockSize: d.LogicalBlockSize}
	if d.Size <= 0 || d.LogicalBlockSize <= 0 {
		return DiskID{}, fmt.Errorf("identify disk %s: size or block size is not known", d.Name)
	}
	if id.WWN == "" && id.Serial == "" {
		if d.ByPath == "" {
			return DiskID{}, fmt.Errorf("identify disk %s: it tells no WWN, no serial and no by_path, so it cannot be told from another", d.Name)
		}
		id.ByPath = d.ByPath
	}
	return id, nil
}

// Matches is nil if d is the disk that id pins, else it names the first
// difference. An identity that pins nothing matches nothing.
func (id DiskID) Matches(d DiskFacts) error {
	if id.WWN == "" && id.Serial == "" && id.ByPath == "" {
		return fmt.Errorf("the wanted disk has no identity")
	}
	for _, f := range []struct{ what, want, seen string }{
		{"wwn", id.WWN, d.WWN}, {"serial", id.Serial, d.Serial}, {"by_path", id.ByPath, d.ByPath},
	} {
		if f.want != "" && f.want != f.seen {
			return fmt.Errorf("%s: the %s is %q, want %q", d.Name, f.what, f.seen, f.want)
		}
	}
	// A path names a slot: a disk with an identity of its own came into it.
	if id.WWN == "" && id.Serial == "" && (d.WWN != "" || d.Serial != "") {
		return fmt.Errorf("%s: another disk is at %s, it has serial %q and wwn %q", d.Name, id.ByPath, d.Serial, d.WWN)
	}
	if id.Size != d.Size {
		return fmt.Errorf("%s: the size is %d bytes, want %d", d.Name, d.Size, id.Size)
	}
	if id.LogicalBlockSize != d.LogicalBlockSize {
		return fmt.Errorf("%s: the logical block size is %d, want %d", d.Name, d.LogicalBlockSize, id.LogicalBlockSize)
	}
	return nil
}
