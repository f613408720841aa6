package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
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
	// Workers is how many chunks are compared, fetched and hashed at once; 0 means
	// one for each core, 4 to 16.
	Workers int
	// Memory is for blocks that move, in bytes: half of it for knowing which, a quarter
	// for those that were read; 0 means a quarter of what is free. What does not fit
	// is read again, copied to the space behind the image, or fetched.
	Memory int64
	// Log gets one readable line for each step; nil discards.
	Log func(format string, args ...any)

	kept *kept // of the jobs before it, for Gate; nil: nothing
	wait func(n int) time.Duration
	turn int // chunks read back at a time behind their writes; 0 means turnChunks, where the disk has time
}

// Result is what was read back from the disk.
type Result struct {
	// Image is the digest of the declared image: every chunk of it was read back
	// after a flush behind its writes and has the manifest's sum, but where the partition table
	// stands in this disk's own form, which Table proves.
	Image inventory.Digest
	// Table is the digest over the disk's first and last MiB as read back.
	Table inventory.Digest
	// BootOrder of the firmware afterwards, in hex; BootEntry is why it has no entry
	// of ours.
	BootOrder, BootEntry string
	// Blank is how many bytes were read back as zeros, of a wipe.
	Blank int64
	// Verdict of a gate, and why its firmware would have started the disk without one.
	Verdict   *inventory.Verdict
	Unguarded string
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
		fetched: func(n int64) { j.Progress.fetched.Add(n) }}
	return j.run(ctx, []workStep{
		{"check the disk", j.identify},
		{"check the boot order", j.canRefuse},
		{"prepare", j.prepare},
		{"compare the disk with the image", j.compare},
		{"make the disk unbootable", j.erase},
		{"write the image", j.body},
		{"discard the space behind the image", j.discardGap},
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
		w.Workers = min(max(4, runtime.NumCPU()), 16)
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
	volume   []byte           // the config volume
	index    *pack.Index      // nil for none
	diff     *pack.Difference // nil for none
	plan     *pack.Plan
	expected bool     // the plan is of what the disk should hold; it was not compared as a whole
	seen     [][]byte // MiBs of the disk, as they were when it was compared; nil for most
	moved    moved
	behind   behind
	result   Result
}

// guard is passed before every MiB that changes the disk.
func (j *writer) guard(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return j.Lease.Check()
}

// change does what changes the disk, of up to a MiB, while nothing is read back.
func (j *writer) change(ctx context.Context, do func() error) error {
	j.behind.disk.RLock()
	defer j.behind.disk.RUnlock()
	if err := j.guard(ctx); err != nil {
		return err
	}
	j.behind.writing(1)
	defer j.behind.writing(-1)
	return do()
}

func (j *writer) writeAt(ctx context.Context, b []byte, off int64) error {
	for len(b) > 0 {
		n := min(len(b), MiB)
		err := j.change(ctx, func() error {
			if _, err := j.Disk.WriteAt(b[:n], off); err != nil {
				return fmt.Errorf("write at byte %d: %w", off, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		j.Progress.written.Add(int64(n))
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (j *writer) zero(ctx context.Context, off, end int64) error {
	for off < end {
		n := min(end-off, MiB)
		if err := j.change(ctx, func() error { return j.Disk.Zero(off, n) }); err != nil {
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
	have := make([]byte, len(j.volume))
	if _, err := j.Disk.ReadBack(have, start); err != nil {
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
	first, last := make([]byte, MiB), make([]byte, MiB)
	if _, err := j.Disk.ReadBack(first, 0); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if _, err := j.Disk.ReadBack(last, j.size-MiB); err != nil {
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
	set := func() (string, error) { return setBootEntry(j.EFI, *j.Job.EFI, esp) }
	if j.Job.EFI.Again != nil {
		set = func() (string, error) {
			p, err := bootParts(j.table.First, j.size)
			if err != nil {
				return "", err
			}
			return setNetworkOrder(j.EFI, *j.Job.EFI, p)
		}
	}
	text, err := set()
	if err != nil {
		j.result.BootEntry = err.Error()
		j.Log("the firmware refuses the boot entry, it has to find %s by itself: %v", j.Job.EFI.Loader, err)
		return nil
	}
	j.result.BootOrder = hexVariable(j.EFI, bootOrder)
	j.Log("%s", text)
	if j.Job.EFI.Second && j.Job.EFI.Again == nil {
		startNext(j.EFI, j.Log)
	}
	return nil
}
