package agent

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"recast/inventory"
	"recast/pack"
)

// turnChunks is how many chunks are written before they are read back, while the
// network brings the next ones: few enough that its buffers hold what comes
// meanwhile, many enough that neither the flush nor the way of a disk's heads counts.
const turnChunks = 64

// behind reads the image back behind its writes, a turn of chunks at a time. The
// disk does one of both: a turn waits for the writes under way, is flushed, and
// the others wait until it was read.
type behind struct {
	disk  sync.RWMutex // held for reading by a write, for writing by a turn
	size  int          // chunks in a turn
	left  []atomic.Int32
	right []bool // the chunks that were read back; under disk
}

func (v *behind) begin(chunks, size int) {
	v.size, v.right = size, make([]bool, chunks)
	v.left = make([]atomic.Int32, (chunks+size-1)/size)
	for i := range chunks {
		v.left[i/size].Add(1)
	}
}

// arrived is told once of every chunk, as soon as nothing is to be written of it.
// The last turn is left to the step that reads back.
func (j *writer) arrived(ctx context.Context, i int) error {
	v := &j.behind
	turn := i / v.size
	if v.left[turn].Add(-1) > 0 || turn == len(v.left)-1 {
		return nil
	}
	v.disk.Lock()
	defer v.disk.Unlock()
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	var chunks []int
	for i := turn * v.size; i < (turn+1)*v.size; i++ {
		chunks = append(chunks, i)
	}
	if err := j.proveChunks(ctx, chunks, nil); err != nil {
		return err
	}
	for _, i := range chunks {
		v.right[i] = true
	}
	return nil
}

// again is how many chunks that were read back behind their writes are read once
// more, from all over the image, when the last is written: a disk that takes one
// address for another has lost them since.
const again = 64

// readBack proves from the disk, not from memory, that every byte arrived, and
// that what was left in its place is what it should be.
func (j *writer) readBack(ctx context.Context) error {
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	j.Progress.begin(inventory.AgentVerifying, j.manifest.Size)
	var rest, before []int
	for i, right := range j.behind.right {
		if right {
			before = append(before, i)
			j.Progress.done.Add(int64(j.manifest.ChunkLen(i)))
		} else {
			rest = append(rest, i)
		}
	}
	if err := j.proveChunks(ctx, rest, &j.Progress.done); err != nil {
		return err
	}
	var some []int
	for k := range min(again, len(before)) {
		some = append(some, before[k*len(before)/min(again, len(before))])
	}
	if err := j.proveChunks(ctx, some, nil); err != nil {
		return err
	}
	j.result.Image = inventory.NewDigest(j.manifest.Digest)
	return nil
}

// proveChunks reads chunks back and compares each with what it should be. done
// counts their bytes; nil for nobody.
func (j *writer) proveChunks(ctx context.Context, chunks []int, done *atomic.Int64) error {
	return pack.Read(ctx, backReader{j.Disk}, j.manifest.Size, chunks, j.Workers+readers, func(i int, have []byte) error {
		right := false
		if c, ours := j.table.Chunks[i]; ours {
			right = bytes.Equal(have, j.unfinished(i, c.Disk))
		} else {
			right = pack.Decide(j.manifest, nil, i, have) == pack.Right
		}
		if !right {
			return fmt.Errorf("the disk gives back other bytes than were written, in the MiB at byte %d", j.manifest.ChunkOffset(i))
		}
		if done != nil {
			done.Add(int64(len(have)))
		}
		return nil
	})
}

// unfinished is what chunk i of the table's reads as before the last step: its
// parts in the disk's first and last MiB are zeros still.
func (j *writer) unfinished(i int, disk []byte) []byte {
	b := bytes.Clone(disk)
	off := j.manifest.ChunkOffset(i)
	for k := range b {
		if at := off + int64(k); at < MiB || at >= j.size-MiB {
			b[k] = 0
		}
	}
	return b
}
