package provision

import (
	"cmp"
	"fmt"

	"recast/image"
	"recast/inventory"
)

// beneath is the image that a disk holds, whole or in part: by its own word, or by
// what is on record of the erase that was not finished. "" is not known. Nothing
// is believed for it: a disk that holds something else is only fetched more for.
func beneath(st Status, disk inventory.DiskID, imageOf func(generation inventory.Digest) inventory.Digest) inventory.Digest {
	if st.Facts != nil {
		for _, d := range st.Facts.Disks {
			if m := d.Recast; m != nil && disk.Matches(d) == nil {
				return cmp.Or(m.Image, imageOf(m.Generation))
			}
		}
	}
	if st.Unfinished && st.Disk != nil && sameDisk(*st.Disk, disk) {
		return st.DiskImage
	}
	return ""
}

// worthALook tells that blocks of the image may stand on a disk: it is not blank.
func worthALook(holds string, st Status) bool { return holds != "" || st.Unfinished }

// differenceOf finds the difference between two images; why there is none to
// fetch is for the plan.
type differenceOf func(from, to inventory.Digest) (d image.Difference, why string)

// moves says how many bytes an entry that writes takes, by the digests of blocks
// alone: as long as its disk holds what it is believed to hold.
func (e *Entry) moves(to ImageFacts, difference differenceOf) {
	e.FetchBytes, e.WriteBytes, e.ImageBytes, e.Whole = to.Pack, to.Size, to.Pack, ""
	if !e.look {
		return
	}
	e.FetchBytes += to.Index
	switch {
	case e.FromImage == "":
	case to.Index == 0:
		e.Whole = "the image's blocks are not indexed"
	default:
		d, why := difference(e.FromImage, e.toImage)
		if why == "" && d.List == "" && e.FromImage != e.toImage {
			why = fmt.Sprintf("image %s, which its disk holds, has hardly a block of it", e.FromImage.Short())
		}
		if d.Write > 0 {
			e.WriteBytes = d.Write
		}
		if e.Whole = why; why == "" {
			e.FetchBytes = to.Index + d.Fetch
		}
	}
}
