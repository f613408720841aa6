package provision

import (
	"fmt"

	"recast/inventory"
)

// DiskVerdict is what may happen to a machine's disk after its inventory.
type DiskVerdict string

const (
	DiskWrite  DiskVerdict = "write"  // erase and write it
	DiskAdopt  DiskVerdict = "adopt"  // it already is what is wanted
	DiskLook   DiskVerdict = "look"   // nothing: the intent was to look
	DiskAsk    DiskVerdict = "ask"    // it holds something and nobody named the machine
	DiskRefuse DiskVerdict = "refuse" // it cannot be written
)

// DiskDecision is decideDisk's answer.
type DiskDecision struct {
	Verdict DiskVerdict
	Reason  string
	Disk    inventory.DiskID
	Holds   string
	Marker  inventory.Marker
}

// diskQuestion is what decideDisk needs.
type diskQuestion struct {
	Machine   *inventory.Machine
	Intent    *Intent
	Attempt   int
	Known     *inventory.DiskID // the disk recast wrote before
	Select    inventory.DiskSelect
	ImageSize int64
	BlockSize int
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
		return DiskDecision{Verdict: DiskRefuse, Reason: fmt.Sprintf(format, args...)}
	}
	seen, err := inventory.Choose(q.Select, facts.Disks)
	if err != nil {
		return refuse("choose a disk: %v", err)
	}
	id, err := seen.ID()
	if err != nil {
		return refuse("identify the disk: %v", err)
	}
	d := DiskDecision{Disk: id, Holds: seen.Holds}
	ours := q.Known != nil && q.Known.Matches(seen) == nil
	current := q.Intent.Write != nil && q.Intent.Write.Attempt == q.Attempt && q.Intent.Write.Disk.Matches(seen) == nil
	if m := seen.Recast; m != nil && m.Machine == q.Machine.Name && !current {
		d.Marker = *m
		if q.Intent.Purpose == PurposeAdopt ||
			(!ours && !q.Intent.Erase && m.Generation == q.Intent.Generation && m.Rendered == q.Intent.Rendered) {
			d.Verdict = DiskAdopt
			return d
		}
	}
	if q.Intent.Purpose == PurposeAdopt {
		return refuse("%s does not say that recast wrote it for %s: %s", diskName(id), q.Machine.Name, orBlank(seen.Holds))
	}
	if q.Machine.Protected && seen.Holds != "" && !current {
		return refuse("machine %s is protected and %s holds %s", q.Machine.Name, diskName(id), seen.Holds)
	}
	if q.BlockSize != 0 && seen.LogicalBlockSize != q.BlockSize {
		return refuse("%s has %d-byte blocks, the image was made for %d", diskName(id), seen.LogicalBlockSize, q.BlockSize)
	}
	if need := q.ImageSize + q.Volume + 2<<20; seen.Size < need {
		return refuse("%s has %d bytes, the image with its configuration needs %d", diskName(id), seen.Size, need)
	}
	if !ours && !current && seen.Holds != "" && !q.Intent.Erase {
		d.Verdict = DiskAsk
		d.Reason = fmt.Sprintf("%s holds %s and would be erased for the first time", diskName(id), seen.Holds)
		return d
	}
	d.Verdict = DiskWrite
	return d
}
