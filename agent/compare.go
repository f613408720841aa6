package agent

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"recast/inventory"
	"recast/pack"
)

// prepare fetches what is needed to know every byte that will stand on the
// disk: manifest, table, configuration; and what helps to fetch few of them.
func (j *writer) prepare(ctx context.Context) error {
	j.Progress.begin(inventory.AgentComparing, j.Job.Image.Size)
	m, err := j.source.manifest(ctx)
	if err != nil {
		return err
	}
	j.manifest = m
	var part *pack.ConfigPart
	if c := j.Job.Config; c != nil {
		part = &pack.ConfigPart{Size: c.Size, Label: c.Label}
		if err := m.CheckDisk(j.size, j.Disk.BlockSize(), part); err != nil {
			return err
		}
		if j.volume, err = j.fetchConfig(ctx); err != nil {
			return err
		}
	}
	j.table, err = pack.RenderTable(m, func(i int) ([]byte, error) { return j.source.chunk(ctx, m, i) },
		j.size, j.Disk.BlockSize(), part)
	if err != nil {
		return err
	}
	return j.fetchIndex(ctx)
}

func (j *writer) fetchConfig(ctx context.Context) ([]byte, error) {
	for n := 1; ; n++ {
		b, err := j.Config(ctx, j.Job.Config.Size)
		if err == nil {
			if have := inventory.DigestOf(b); have == j.Job.Config.Digest {
				return b, nil
			} else if err = fmt.Errorf("config volume has digest %s, the job is for %s", have.Short(), j.Job.Config.Digest.Short()); n == 2 {
				return nil, err
			}
		}
		if final(err) {
			return nil, err
		}
		if err := j.source.again(ctx, n, err); err != nil {
			return nil, err
		}
	}
}

// fetchIndex gets the index and the difference where the job names them. They
// save bytes and prove nothing: without them the image is fetched whole.
func (j *writer) fetchIndex(ctx context.Context) error {
	if j.Memory <= 0 {
		j.Memory = freeMemory() / 4
	}
	if j.Job.Image.Index == "" {
		return nil
	}
	if need := pack.IndexMemory(j.manifest); need > j.Memory/2 {
		j.Log("no memory for the image's index, %d MiB of %d: fetching what is not in its place", need/MiB, j.Memory/2/MiB)
		return nil
	}
	var err error
	if j.index, err = j.source.index(ctx, j.manifest); err == nil && j.Job.Image.Difference != nil {
		j.diff, err = j.source.difference(ctx, j.index)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		j.Log("fetching more of the image than needed: %v", err)
		return j.guard(ctx)
	}
	return nil
}

// freeMemory is what the kernel could give us, in bytes.
func freeMemory() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10
		}
	}
	return 256 * MiB
}

// compare finds what of the image is on the disk already, wherever it stands,
// and decides where each block will come from. It reads only.
func (j *writer) compare(ctx context.Context) error {
	size := j.manifest.Size
	if d := j.Job.Image.Difference; d != nil && j.index != nil {
		size = max(size, min(d.FromSize, j.size))
	}
	j.Progress.begin(inventory.AgentComparing, size)
	found, held, err := j.find(ctx, size)
	if err != nil {
		return err
	}
	for _, r := range j.ends() {
		found.Lose(r.Start, r.End, true)
	}
	j.moved.memory = int((j.Memory/2 - held*MiB) / pack.BlockSize)
	j.moved.disk = region{alignUp(size), j.size - MiB}
	if j.table.ConfigStart > 0 {
		j.moved.disk.end = j.table.ConfigStart
	}
	room := j.moved.memory + int(max(0, j.moved.disk.end-j.moved.disk.off)/pack.BlockSize)
	j.plan = pack.NewPlan(found, j.diff, room)
	var here, moved int
	for i, d := range j.plan.Chunks {
		switch d {
		case pack.Right:
			here++
		case pack.Elsewhere:
			for _, b := range j.plan.Blocks(i) {
				if b.Decision == pack.Elsewhere || b.Decision == pack.Kept {
					moved++
				}
			}
		}
	}
	j.Log("%d of %d MiB are in their place, %d MiB elsewhere on the disk; %d MiB to fetch, %d to write",
		here, len(j.plan.Chunks), moved*pack.BlockSize/MiB, j.plan.Fetched/MiB, j.plan.Written/MiB)
	return nil
}

// find tells what of the image stands where, and how many MiBs it keeps of what it read.
// A disk that holds what the difference expects, as far as it looks, is taken at that and
// not read as a whole: what moves is proved by its chunk's sum before it is written, what
// stays when it is read back.
func (j *writer) find(ctx context.Context, size int64) (found *pack.Found, held int64, err error) {
	j.seen = make([][]byte, pack.NumChunks(size))
	if j.diff != nil {
		found = j.diff.Expect(j.table)
		if j.expected, err = found.Holds(ctx, j.Disk, size, j.Workers+readers); err != nil || j.expected {
			j.Progress.done.Store(size)
			return found, 0, err
		}
	}
	var left atomic.Int64 // MiBs that may be held
	left.Store(j.Memory / 4 / MiB)
	found, err = pack.Scan(ctx, j.Disk, j.manifest, j.index, j.table, pack.ScanOptions{
		Size: size, Workers: j.Workers + readers, Done: func(n int64) { j.Progress.done.Add(n) },
		Hold: func(i int, have []byte) bool {
			if j.index == nil || len(have) < MiB || left.Add(-1) < 0 {
				return false
			}
			j.seen[i] = have
			return true
		},
	})
	return found, j.Memory/4/MiB - max(0, left.Load()), err
}

func alignUp(n int64) int64 { return (n + MiB - 1) / MiB * MiB }

// ends are what is zeroed first of all: the disk's first and last MiB, and the
// image's own last, where its backup table stood.
func (j *writer) ends() []pack.Region {
	block := int64(j.Disk.BlockSize())
	return []pack.Region{
		{Start: 0, End: MiB},
		{Start: j.size - MiB, End: j.size},
		{Start: max(MiB, (j.manifest.Size-MiB)/block*block), End: min((j.manifest.Size+block-1)/block*block, j.size-MiB)},
	}
}

// erase is the point of no return: afterwards no firmware finds anything to
// start, and no backup table brings the old system back.
func (j *writer) erase(ctx context.Context) error {
	if err := j.identify(ctx); err != nil { // the comparison may have taken minutes
		return err
	}
	if err := j.guard(ctx); err != nil {
		return err
	}
	j.Progress.begin(inventory.AgentWriting, j.manifest.Size)
	j.Progress.erased.Store(true)
	for _, r := range j.ends() {
		if err := j.zero(ctx, r.Start, r.End); err != nil {
			return err
		}
	}
	return j.Disk.Flush()
}

// discardGap tells the disk that nothing of worth stands behind the image.
func (j *writer) discardGap(ctx context.Context) error {
	if j.Job.Wipe != inventory.WipeDiscard {
		return nil
	}
	from, end := j.ends()[2].End, j.size-MiB
	if j.table.ConfigStart > 0 {
		end = j.table.ConfigStart
	}
	return j.discard(ctx, from, end)
}
