package agent

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"recast/inventory"
	"recast/pack"
)

// Wipe makes the disk read as zeros and proves it: every byte of it, or, for a
// quick one, what makes it look used.
func Wipe(ctx context.Context, w Work) (Result, error) {
	if w.Job.Kind != inventory.JobWipe {
		return Result{}, fmt.Errorf("wipe the disk: the job is to %q", w.Job.Kind)
	}
	j := newWriter(w)
	var regions []region
	var parts []pack.GUID
	return j.run(ctx, []workStep{
		{"check the disk", j.identify},
		{"find what to zero", func(context.Context) (err error) {
			if regions, err = wipeRegions(j.Disk, j.size, j.Job.Quick); err == nil {
				parts, err = partitionIDs(j.Disk, j.size)
			}
			return err
		}},
		{"zero the disk", func(ctx context.Context) error { return j.blank(ctx, regions) }},
		{"read the disk back", func(ctx context.Context) error { return j.readZeros(ctx, regions) }},
		{"clean up the firmware's boot entries", func(context.Context) error { j.forgetEntry(parts); return nil }},
	})
}

// partitionIDs of the table on the disk; none where it cannot be read.
func partitionIDs(disk Disk, size int64) (ids []pack.GUID, err error) {
	first := make([]byte, min(size, MiB))
	if _, err := disk.ReadAt(first, 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	first, _ = pack.Resumed(first)
	layout, _, err := pack.ParseLayout(first, size)
	if err != nil {
		return nil, nil
	}
	for _, p := range layout.Partitions {
		if id, err := pack.ParseGUID(p.GUID); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// forgetEntry removes our boot entry to what was on the disk. Its failure fails no
// wipe: the disk is blank, and the firmware skips an entry that leads nowhere.
func (j *writer) forgetEntry(parts []pack.GUID) {
	if j.EFI == nil || len(parts) == 0 {
		return
	}
	text, err := removeBootEntries(j.EFI, parts)
	if err != nil {
		j.result.BootEntry = err.Error()
		j.Log("our boot entry stays in the firmware: %v", err)
	} else if text != "" {
		j.Log("%s", text)
	}
}

// region is the bytes from off up to end.
type region struct{ off, end int64 }

// wipeRegions is what a wipe zeroes, in order, none touching another: the whole
// disk; or the first and the last MiB of it and of each partition in its table,
// where tables, file systems, RAID and LVM leave their marks.
func wipeRegions(disk Disk, size int64, quick bool) ([]region, error) {
	if !quick {
		return []region{{0, size}}, nil
	}
	marks := func(off, end int64) []region {
		off, end = max(off, 0), min(end, size)
		if off >= end {
			return nil
		}
		return []region{{off, min(off+MiB, end)}, {max(end-MiB, off), end}}
	}
	all := marks(0, size)
	first := make([]byte, min(size, MiB))
	if _, err := disk.ReadAt(first, 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	first, _ = pack.Resumed(first)
	// A table that cannot be read names no partition.
	if layout, _, err := pack.ParseLayout(first, size); err == nil {
		for _, p := range layout.Partitions {
			all = append(all, marks(p.Start, p.End)...)
		}
	}
	slices.SortFunc(all, func(a, b region) int { return int(min(max(a.off-b.off, -1), 1)) })
	out := all[:1]
	for _, r := range all[1:] {
		if last := &out[len(out)-1]; r.off <= last.end {
			last.end = max(last.end, r.end)
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

func total(regions []region) (n int64) {
	for _, r := range regions {
		n += r.end - r.off
	}
	return n
}

// blank zeroes the disk's ends first, from where no firmware finds anything to
// start and no backup table brings the old system back, then the regions. A quick
// wipe takes the ends last: the table there says where the rest is, also to the
// next boot if this one is cut off.
func (j *writer) blank(ctx context.Context, regions []region) error {
	if err := j.guard(ctx); err != nil {
		return err
	}
	j.Progress.begin(inventory.AgentWriting, total(regions))
	j.Progress.erased.Store(true)
	head := min(MiB, j.size)
	tail := max(head, j.size-MiB)
	ends, rest := []region{{0, head}, {tail, j.size}}, []region(nil)
	for _, r := range regions {
		rest = append(rest, region{max(r.off, head), min(r.end, tail)})
	}
	parts := [][]region{ends, rest}
	if j.Job.Quick {
		slices.Reverse(parts)
	}
	for _, part := range parts {
		for _, r := range part {
			if err := j.blankRegion(ctx, r); err != nil {
				return err
			}
		}
		if err := j.Disk.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (j *writer) blankRegion(ctx context.Context, r region) error {
	for off := r.off; off < r.end; off += MiB {
		end := min(off+MiB, r.end)
		if err := j.zero(ctx, off, end); err != nil {
			return err
		}
		j.Progress.done.Add(end - off)
	}
	return nil
}

// readZeros proves from the disk, not from memory, that nothing is left.
func (j *writer) readZeros(ctx context.Context, regions []region) error {
	j.Progress.begin(inventory.AgentVerifying, total(regions))
	buf, zeros := make([]byte, MiB), make([]byte, MiB)
	for _, r := range regions {
		for off := r.off; off < r.end; off += MiB {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b := buf[:min(MiB, r.end-off)]
			if _, err := j.Disk.ReadBack(b, off); err != nil {
				return fmt.Errorf("read at byte %d: %w", off, err)
			}
			if !bytes.Equal(b, zeros[:len(b)]) {
				at := slices.IndexFunc(b, func(v byte) bool { return v != 0 })
				return fmt.Errorf("byte %d reads back as 0x%02x, zero was written", off+int64(at), b[at])
			}
			j.Progress.done.Add(int64(len(b)))
		}
	}
	j.result.Blank = total(regions)
	return nil
}
