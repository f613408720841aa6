package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"recast/inventory"
	"recast/pack"
)

// Work is one write: a job, the disk it names, and where everything comes from.
type Work struct {
	Job  inventory.Job
	Disk Disk
	// Config returns the bytes of the config volume; needed when the job has one.
	Config func(ctx context.Context, size int64) ([]byte, error)
	// EFI are the firmware's variables; nil on a machine without.
	EFI   Variables
	Lease *Lease
	// Progress is updated all the way; nil discards.
	Progress *Progress
	// HTTP fetches image bytes; nil means ImageHTTP().
	HTTP *http.Client
	// Workers is how many chunks are compared, fetched and hashed at once; 0 means 4.
	Workers int
	// Log gets one readable line for each step; nil discards.
	Log func(format string, args ...any)

	wait func(n int) time.Duration
}

// Result is what was read back from the disk.
type Result struct {
	// Image is the digest over the declared image: every byte as the disk gave it
	// back after the flush, but where the partition table stands in this disk's
	// own form, which Table proves.
	Image inventory.Digest
	// Table is the digest over the disk's first and last MiB as read back.
	Table inventory.Digest
	// BootOrder of the firmware afterwards, in hex; BootEntry is why it has no entry
	// of ours.
	BootOrder, BootEntry string
	// Blank is how many bytes were read back as zeros, of a wipe.
	Blank int64
}

// Progress is where a write is; reports read it while the write goes on.
type Progress struct {
	step                          atomic.Value // inventory.AgentStep
	done, total, fetched, written atomic.Int64
	erased                        atomic.Bool
}

func (p *Progress) begin(step inventory.AgentStep, total int64) {
	p.done.Store(0)
	p.total.Store(total)
	p.step.Store(step)
}

// fill copies the progress into a report.
func (p *Progress) fill(r *inventory.Report) {
	r.Step, _ = p.step.Load().(inventory.AgentStep)
	r.Done, r.Total = p.done.Load(), p.total.Load()
	r.Fetched, r.Written = p.fetched.Load(), p.written.Load()
	r.Erased = p.erased.Load()
}

// Write makes the disk what the job says, in the one order in which a crash
// anywhere leaves a disk that does not boot, or the whole truth. Everything
// that can fail without touching the disk is done first.
func Write(ctx context.Context, w Work) (Result, error) {
	if w.Job.Kind != inventory.JobWrite {
		return Result{}, fmt.Errorf("write the disk: the job is to %q", w.Job.Kind)
	}
	if w.HTTP == nil {
		w.HTTP = ImageHTTP()
		defer w.HTTP.CloseIdleConnections()
	}
	j := newWriter(w)
	j.source = source{http: w.HTTP, image: w.Job.Image, wait: w.wait, alive: w.Lease.Check,
		fetched: func(n int64) { w.Progress.fetched.Add(n) }}
	return j.run(ctx, []workStep{
		{"check the disk", j.identify},
		{"prepare", j.prepare},
		{"compare the disk with the image", j.compare},
		{"make the disk unbootable", j.erase},
		{"write the image", j.body},
		{"read the image back", j.readBack},
		{"write the configuration", j.config},
		{"write the partition table", j.tables},
		{"set the firmware's boot entry", j.entry},
	})
}

type workStep struct {
	name string
	do   func(context.Context) error
}

// run takes the steps in order; the first error ends the work.
func (j *writer) run(ctx context.Context, steps []workStep) (Result, error) {
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return Result{}, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return j.result, nil
}

func newWriter(w Work) *writer {
	if w.Progress == nil {
		w.Progress = &Progress{}
	}
	if w.Workers <= 0 {
		w.Workers = 4
	}
	if w.Log == nil {
		w.Log = func(string, ...any) {}
	}
	if w.wait == nil {
		w.wait = wait
	}
	return &writer{Work: w, size: w.Disk.Size()}
}

// writer is the state of one Write, or Wipe, between its steps.
type writer struct {
	Work
	size     int64 // of the disk
	source   source
	manifest *pack.Manifest
	table    *pack.Table
	volume   []byte // the config volume
	todo     []pack.Decision
	result   Result
}

// guard is passed before every MiB that changes the disk.
func (j *writer) guard(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return j.Lease.Check()
}

func (j *writer) writeAt(ctx context.Context, b []byte, off int64) error {
	for len(b) > 0 {
		if err := j.guard(ctx); err != nil {
			return err
		}
		n := min(len(b), MiB)
		if _, err := j.Disk.WriteAt(b[:n], off); err != nil {
			return fmt.Errorf("write at byte %d: %w", off, err)
		}
		j.Progress.written.Add(int64(n))
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (j *writer) zero(ctx context.Context, off, end int64) error {
	for off < end {
		if err := j.guard(ctx); err != nil {
			return err
		}
		n := min(end-off, MiB)
		if err := j.Disk.Zero(off, n); err != nil {
			return err
		}
		j.Progress.written.Add(n)
		off += n
	}
	return nil
}

// discardPart bounds one discard, so that the lease is looked at in between.
const discardPart = 4 << 30

func (j *writer) discard(ctx context.Context, off, end int64) error {
	for off < end {
		if err := j.guard(ctx); err != nil {
			return err
		}
		n := min(end-off, discardPart)
		if err := j.Disk.Discard(off, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (j *writer) identify(context.Context) error {
	switch j.Job.Wipe {
	case inventory.WipeTable, inventory.WipeDiscard, "":
	default:
		return fmt.Errorf("the job's wipe %q is not known to this agent", j.Job.Wipe)
	}
	id, err := j.Disk.Identity()
	if err != nil {
		return err
	}
	return SameDisk(j.Job.Disk, id)
}

// prepare fetches what is needed to know every byte that will stand on the
// disk: manifest, table, configuration.
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
	return err
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

// compare finds what is right already. It reads only.
func (j *writer) compare(ctx context.Context) error {
	j.todo = make([]pack.Decision, len(j.manifest.Chunks))
	right := 0
	err := pack.Walk(ctx, j.Disk, j.manifest, j.table, j.Workers, func(i int, d pack.Decision) error {
		j.todo[i] = d
		if d == pack.Right {
			right++
		}
		j.Progress.done.Add(int64(j.manifest.ChunkLen(i)))
		return nil
	})
	if err == nil {
		j.Log("%d of %d MiB are on the disk already", right, len(j.todo))
	}
	return err
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
	if err := j.zero(ctx, 0, MiB); err != nil {
		return err
	}
	if err := j.zero(ctx, j.size-MiB, j.size); err != nil {
		return err
	}
	block := int64(j.Disk.BlockSize())
	from := max(MiB, (j.manifest.Size-MiB)/block*block)
	to := min((j.manifest.Size+block-1)/block*block, j.size-MiB)
	if err := j.zero(ctx, from, to); err != nil {
		return err
	}
	for i := range j.todo {
		off := j.manifest.ChunkOffset(i)
		if j.todo[i] == pack.Right && off+int64(j.manifest.ChunkLen(i)) > from {
			j.todo[i] = pack.Fetch
			if _, ours := j.table.Chunks[i]; ours {
				j.todo[i] = pack.Render
			} else if j.manifest.Chunks[i].Hole {
				j.todo[i] = pack.Right // was zeros, is zeros
			}
		}
	}
	if j.Job.Wipe == inventory.WipeDiscard {
		gap := j.size - MiB
		if j.table.ConfigStart > 0 {
			gap = j.table.ConfigStart
		}
		if gap > to {
			if err := j.discard(ctx, to, gap); err != nil {
				return fmt.Errorf("discard the space behind the image: %w", err)
			}
		}
	}
	return j.Disk.Flush()
}

// body brings every chunk but those of the table to the disk.
func (j *writer) body(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var fetch, local []int
	for i, d := range j.todo {
		switch d {
		case pack.Fetch:
			fetch = append(fetch, i)
		case pack.Zero, pack.Render:
			local = append(local, i)
		default:
			j.Progress.done.Add(int64(j.manifest.ChunkLen(i)))
		}
	}
	work := make(chan span)
	var wg sync.WaitGroup
	for range j.Workers {
		wg.Go(func() {
			var buf frameBuffer
			for sp := range work {
				if ctx.Err() != nil {
					continue
				}
				err := j.source.chunks(ctx, j.manifest, sp, &buf, func(i int, data []byte) error {
					return j.put(ctx, i, data)
				})
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Go(func() {
		for _, i := range local {
			if err := j.put(ctx, i, nil); err != nil {
				cancel(err)
				return
			}
		}
	})
	for _, sp := range spans(j.manifest, fetch) {
		work <- sp
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// put writes one chunk: the table's form where it has one, else data, else
// zeros. The disk's first and last MiB stay zeros until the very end.
func (j *writer) put(ctx context.Context, i int, data []byte) error {
	off, n := j.manifest.ChunkOffset(i), int64(j.manifest.ChunkLen(i))
	defer j.Progress.done.Add(n)
	c, ours := j.table.Chunks[i]
	if ours {
		data = c.Disk
	}
	end := min(off+n, j.size-MiB)
	switch {
	case off < MiB || end <= off:
		return nil
	case data == nil:
		return j.zero(ctx, off, end)
	}
	return j.writeAt(ctx, data[:end-off], off)
}

// readBack proves from the disk, not from memory, that every byte arrived.
func (j *writer) readBack(ctx context.Context) error {
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	if err := j.Disk.DropCaches(); err != nil {
		return err
	}
	j.Progress.begin(inventory.AgentVerifying, j.manifest.Size)
	sum := sha256.New()
	// Reading runs ahead of hashing; both are sequential.
	type piece struct {
		i    int
		data []byte
		err  error
	}
	ahead, free := make(chan piece, 3), make(chan []byte, 4)
	for range cap(free) {
		free <- make([]byte, pack.ChunkSize)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(ahead)
		for i := range j.manifest.Chunks {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			p := piece{i: i, data: buf[:j.manifest.ChunkLen(i)]}
			_, p.err = j.Disk.ReadAt(p.data, j.manifest.ChunkOffset(i))
			select {
			case ahead <- p:
			case <-ctx.Done():
				return
			}
		}
	})
	for p := range ahead {
		if p.err != nil {
			return fmt.Errorf("read at byte %d: %w", j.manifest.ChunkOffset(p.i), p.err)
		}
		if c, ours := j.table.Chunks[p.i]; ours {
			if !bytes.Equal(p.data, j.unfinished(p.i, c.Disk)) {
				return fmt.Errorf("byte %d and following are not what was written", j.manifest.ChunkOffset(p.i))
			}
			sum.Write(c.Image)
		} else {
			sum.Write(p.data)
		}
		j.Progress.done.Add(int64(len(p.data)))
		free <- p.data[:cap(p.data)]
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	j.result.Image = inventory.NewDigest([sha256.Size]byte(sum.Sum(nil)))
	if j.result.Image.String() != j.manifest.Digest.String() {
		return j.blame(ctx)
	}
	return nil
}

// unfinished is what chunk i of the table's reads as before the last step: its
// parts in the disk's first and last MiB are zeros still.
func (j *writer) unfinished(i int, disk []byte) []byte {
	b := slices.Clone(disk)
	off := j.manifest.ChunkOffset(i)
	for k := range b {
		if at := off + int64(k); at < MiB || at >= j.size-MiB {
			b[k] = 0
		}
	}
	return b
}

// blame names the first chunk that the disk does not give back as written.
func (j *writer) blame(ctx context.Context) error {
	first := len(j.manifest.Chunks)
	err := pack.Walk(ctx, j.Disk, j.manifest, j.table, j.Workers, func(i int, d pack.Decision) error {
		if _, ours := j.table.Chunks[i]; !ours && d != pack.Right {
			first = min(first, i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if first == len(j.manifest.Chunks) {
		// Every chunk is the manifest's, and still the sum is not the image's.
		return &BadFrameError{Frame: -1, Err: errors.New("its chunks do not add up to the image's digest")}
	}
	return fmt.Errorf("the disk gives back other bytes than were written, first in the MiB at byte %d", j.manifest.ChunkOffset(first))
}

func (j *writer) config(ctx context.Context) error {
	if j.Job.Config == nil {
		return nil
	}
	j.Progress.begin(inventory.AgentConfigure, int64(len(j.volume)))
	start, end := j.table.ConfigStart, j.table.ConfigStart+j.table.ConfigSize
	if err := j.writeAt(ctx, j.volume, start); err != nil {
		return err
	}
	if err := j.zero(ctx, start+int64(len(j.volume)), end); err != nil {
		return err
	}
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	if err := j.Disk.DropCaches(); err != nil {
		return err
	}
	have := make([]byte, len(j.volume))
	if _, err := j.Disk.ReadAt(have, start); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(have, j.volume) {
		return errors.New("the disk gives back other bytes than were written")
	}
	j.Progress.done.Store(int64(len(j.volume)))
	return nil
}

// tables makes the disk bootable: the backup first, so that a first MiB that is
// there means that everything is.
func (j *writer) tables(ctx context.Context) error {
	if err := j.writeAt(ctx, j.table.Last, j.size-MiB); err != nil {
		return err
	}
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	if err := j.writeAt(ctx, j.table.First, 0); err != nil {
		return err
	}
	if err := j.Disk.Flush(); err != nil {
		return err
	}
	if err := j.Disk.DropCaches(); err != nil {
		return err
	}
	first, last := make([]byte, MiB), make([]byte, MiB)
	if _, err := j.Disk.ReadAt(first, 0); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if _, err := j.Disk.ReadAt(last, j.size-MiB); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	j.result.Table = inventory.DigestOf(append(first, last...))
	if j.result.Table.String() != j.table.Digest.String() {
		return errors.New("the disk gives back other bytes than were written")
	}
	return nil
}

// entry tells the firmware about the disk. Its failure does not fail the job:
// the disk is right, and firmware finds the removable-media path by itself.
func (j *writer) entry(context.Context) error {
	if j.Job.EFI == nil || j.EFI == nil {
		return nil
	}
	esp, ok := systemPartition(j.table.First, j.size)
	if !ok {
		j.result.BootEntry = "the image has no EFI system partition"
		j.Log("%s: no boot entry made", j.result.BootEntry)
		return nil
	}
	text, err := setBootEntry(j.EFI, *j.Job.EFI, esp)
	if err != nil {
		j.result.BootEntry = err.Error()
		j.Log("the firmware refuses the boot entry, it has to find %s by itself: %v", j.Job.EFI.Loader, err)
		return nil
	}
	j.result.BootOrder = hexVariable(j.EFI, bootOrder)
	j.Log("%s", text)
	return nil
}
