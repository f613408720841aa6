package provision

import (
	"fmt"

	"recast/inventory"
)

// DiskVerdict is what may happen to a machine's disk after its inventory.
type DiskVerdict string

const (
	DiskWrite  DiskVerdict = "write"  // erase and write it
	DiskWipe   DiskVerdict = "wipe"   // zero it
	DiskAdopt  DiskVerdict = "adopt"  // it already is what is wanted
	DiskLook   DiskVerdict = "look"   // nothing: the intent was to look
	DiskAsk    DiskVerdict = "ask"    // it holds something and nobody named the machine
	DiskRefuse DiskVerdict = "refuse" // it cannot be written
	// DiskDamaged: the image is bad, so that nothing may be erased for it.
	DiskDamaged DiskVerdict = "damaged"
)

// DiskDecision is decideDisk's answer.
type DiskDecision struct {
	Verdict DiskVerdict
	Reason  string
	Next    string // what ends a refusal
	Disk    inventory.DiskID
	Holds   string
	Marker  inventory.Marker
	Image   inventory.Digest // with DiskDamaged
	Gate    *Gate            // with DiskWrite and DiskAdopt: that of what is on it then
}

// diskQuestion is what decideDisk needs.
type diskQuestion struct {
	Machine *inventory.Machine
	Intent  *Intent
	Attempt int
	Known   *inventory.DiskID // the disk recast wrote before
	// Unfinished: Known was erased and never written to its end.
	Unfinished bool
	Select     inventory.DiskSelect
	ImageSize  int64
	BlockSize  int
	// Volume is the size of the config volume behind the image, bytes.
	Volume int64
}

// decideDisk says which disk the machine may write, if any. Every doubt is a
// refusal: a disk is written only when it is surely the one, and either blank,
// ours, or named by the operator.
func decideDisk(q diskQuestion, facts inventory.Facts) DiskDecision {
	if q.Intent.Purpose == PurposeInspect {
		return DiskDecision{Verdict: DiskLook}
	}
	refuse := func(format string, args ...any) DiskDecision {
		return DiskDecision{Verdict: DiskRefuse, Reason: fmt.Sprintf(format, args...),
			Next: "give it another disk, or its definition another image: " + planNext}
	}
	seen, err := inventory.Choose(q.Select, facts.Disks)
	if err != nil {
		d := refuse("choose a disk: %v", err)
		d.Next = fmt.Sprintf("correct disk.select of its definition or machine and apply; if its disks are others by now: recast inspect %s", q.Machine.Name)
		return d
	}
	id, err := seen.ID()
	if err != nil {
		return refuse("identify the disk: %v", err)
	}
	d := DiskDecision{Disk: id, Holds: seen.Holds}
	if m := seen.Recast; m != nil && d.Holds == "" {
		d.Holds = "what recast wrote for " + m.Machine
	}
	w := q.Intent.Write
	current := w != nil && w.Attempt == q.Attempt && w.Disk.Matches(seen) == nil
	earlier := q.Intent.Earlier != nil && q.Intent.Earlier.Matches(seen) == nil
	ours := q.ours(seen)
	if m := seen.Recast; m != nil && m.Machine == q.Machine.Name && !current {
		d.Marker = *m
		if q.Intent.Purpose == PurposeAdopt ||
			(!ours && !q.Intent.Erase && m.Generation == q.Intent.Generation && m.Rendered == q.Intent.Rendered) {
			d.Verdict = DiskAdopt
			return d
		}
	}
	if q.Intent.Purpose == PurposeAdopt {
		return refuse("%s does not say that recast wrote it for %s: %s", diskName(id), q.Machine.Name, orBlank(d.Holds))
	}
	// Only what was erased already has nothing left to protect.
	if q.Machine.Protected && d.Holds != "" && !(current && w.Erased) {
		no := refuse("machine %s is protected and %s holds %s", q.Machine.Name, diskName(id), d.Holds)
		no.Next = protectedNext
		return no
	}
	if q.BlockSize != 0 && seen.LogicalBlockSize != q.BlockSize {
		return refuse("%s has %d-byte blocks, the image was made for %d", diskName(id), seen.LogicalBlockSize, q.BlockSize)
	}
	if q.BlockSize != 0 && seen.Size%int64(q.BlockSize) != 0 {
		return refuse("%s has %d bytes, no whole number of %d-byte blocks", diskName(id), seen.Size, q.BlockSize)
	}
	// As pack.Manifest.MinDiskSize has it: the config volume begins at a whole MiB
	// behind the image, and the backup table takes the last.
	if need := wholeMiB(max(q.ImageSize, 1)) + wholeMiB(q.Volume) + 1<<20; seen.Size < need {
		return refuse("%s has %s, the image with its configuration needs %s", diskName(id), inventory.SizeTextBeside(seen.Size, need), inventory.SizeTextBeside(need, seen.Size))
	}
	if ours || current || earlier || d.Holds == "" || q.Intent.Erase && q.Intent.Consent.covers(seen, d.Holds) {
		d.Verdict = DiskWrite
		return d
	}
	d.Verdict = DiskAsk
	d.Reason = fmt.Sprintf("%s holds %s and would be erased for the first time", diskName(id), d.Holds)
	if c := q.Intent.Consent; q.Intent.Erase {
		d.Reason += fmt.Sprintf("; the erase that was asked for is of %s, %s", diskName(c.Disk), orBlank(c.Holds))
	}
	return d
}

func wholeMiB(n int64) int64 { return (n + 1<<20 - 1) >> 20 << 20 }

// ours says whether recast wrote this disk for this machine: it is the disk that
// is recorded, and says so itself. An identity alone is no proof: serials repeat,
// disks move between machines, and people install other systems. Only a disk
// that was erased and never finished cannot speak for itself; one without an
// identity of its own must, since what is recorded of it is its slot.
func (q diskQuestion) ours(seen inventory.DiskFacts) bool {
	if q.Known == nil || q.Known.Matches(seen) != nil {
		return false
	}
	if m := seen.Recast; m != nil {
		return m.Machine == q.Machine.Name
	}
	return q.Unfinished && (q.Known.WWN != "" || q.Known.Serial != "")
}
