package agent

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"recast/inventory"
	"recast/pack"
)

// turnChunks is how many chunks are written before they are read back, while the
// network brings the next ones: few enough that its buffers hold what comes
// meanwhile, many enough that neither the flush nor the way of a disk's heads counts.
const turnChunks = 64

// behind reads the image back behind its writes, a turn of chunks at a time, where the
// network leaves the disk the time: the last step reads back what is left. The
// disk does one of both: a turn waits for the writes under way, is flushed, and
// the others wait until it was read.
type behind struct {
	disk   sync.RWMutex // held for reading by a write, for writing by a turn
	always bool         // however busy the disk is
	size   int          // chunks in a turn
	left   []atomic.Int32
	right  []bool // the chunks that were read back; under disk

	mu     sync.Mutex
	writes int           // under way
	since  time.Time     // when the first of them began
	busy   time.Duration // how long any was under way, since began
	began  time.Time
}

func (v *behind) begin(chunks, size int, always bool) {
	v.always, v.began = always, time.Now()
	v.size, v.right = size, make([]bool, chunks)
	v.left = make([]atomic.Int32, (chunks+size-1)/size)
	for i := range chunks {
		v.left[i/size].Add(1)
	}
}

// writing is told before and after each write.
func (v *behind) writing(more int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if v.writes == 0 {
		v.since = now
	}
	if v.writes += more; v.writes == 0 {
		v.busy += now.Sub(v.since)
	}
}

// hasTime says whether no write was under way for a fifth of the time since it was asked
// last, or the last turn ended: a disk that all wait for only loses by turns. Writes of
// zstd's speed keep a disk busy for 90 % of it, those of 1 Gbit/s for 40 to 75 %.
func (v *behind) hasTime() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	busy := v.busy
	if v.writes > 0 {
		busy += now.Sub(v.since)
		v.since = now
	}
	idle := busy < now.Sub(v.began)*4/5
	v.busy, v.began = 0, now
	return idle || v.always
}

// resume ends a turn: no write could be under way.
func (v *behind) resume() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.busy, v.began = 0, time.Now()
}

// arrived is told once of every chunk, as soon as nothing is to be written of it.
// The last turn is left to the step that reads back.
func (j *writer) arrived(ctx context.Context, i int) error {
	v := &j.behind
	turn := i / v.size
	if v.left[turn].Add(-1) > 0 || turn == len(v.left)-1 || !v.hasTime() {
		return nil
	}
	v.disk.Lock()
	defer v.disk.Unlock()
	defer v.resume()
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	var chunks []int
	for i := turn * v.size; i < (turn+1)*v.size; i++ {
		chunks = append(chunks, i)
	}
	wrong, err := j.proveChunks(ctx, chunks, false)
	for _, i := range chunks {
		v.right[i] = err == nil && !slices.Contains(wrong, i)
	}
	return err
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
	wrong, err := j.proveChunks(ctx, rest, true)
	if err == nil && len(wrong) > 0 {
		err = j.mend(ctx, wrong)
	}
	if err != nil {
		return err
	}
	var some []int
	for k := range min(again, len(before)) {
		some = append(some, before[k*len(before)/min(again, len(before))])
	}
	j.expected = false // each was right once: what is not now, the disk has lost
	if _, err := j.proveChunks(ctx, some, false); err != nil {
		return err
	}
	j.result.Image = inventory.NewDigest(j.manifest.Digest)
	return nil
}

// mend writes chunks that were left in their place and are not what the disk was
// expected to hold there, and reads them back.
func (j *writer) mend(ctx context.Context, wrong []int) error {
	j.Log("%d MiB were not what the disk was to hold: fetching them", len(wrong))
	var fetch []int
	for _, i := range wrong {
		if !j.manifest.Chunks[i].Hole {
			fetch = append(fetch, i)
		} else if err := j.place(ctx, i, nil, nil); err != nil {
			return err
		}
	}
	var buf frameBuffer
	for _, sp := range spans(j.manifest.Chunks, fetch) {
		err := j.source.span(ctx, imageFrames(j.manifest), sp, &buf, func(i int, data []byte) error {
			return j.place(ctx, i, data, []pack.Region{{End: int64(len(data))}})
		})
		if err != nil {
			return err
		}
	}
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	j.expected = false // what is wrong now was written
	_, err := j.proveChunks(ctx, wrong, true)
	return err
}

// proveChunks reads chunks back, compares each with what it should be, and counts
// it as progress where it shall. Those of wrong were expected to be right, and left alone.
func (j *writer) proveChunks(ctx context.Context, chunks []int, count bool) (wrong []int, err error) {
	var mu sync.Mutex
	err = pack.Read(ctx, backReader{j.Disk}, j.manifest.Size, chunks, j.Workers+readers, func(i int, have []byte) error {
		right := false
		if c, ours := j.table.Chunks[i]; ours {
			right = bytes.Equal(have, j.unfinished(i, c.Disk))
		} else {
			right = pack.Decide(j.manifest, nil, i, have) == pack.Right
		}
		switch {
		case !right && j.expected && j.plan.Chunks[i] == pack.Right:
			mu.Lock()
			defer mu.Unlock()
			wrong = append(wrong, i)
		case !right:
			return fmt.Errorf("the disk gives back other bytes than were written, in the MiB at byte %d", j.manifest.ChunkOffset(i))
		case count:
			j.Progress.done.Add(int64(len(have)))
		}
		return nil
	})
	slices.Sort(wrong) // they came in any order
	return wrong, err
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
