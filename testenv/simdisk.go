package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"recast/agent"
	"recast/inventory"
	"recast/pack"
)

// SimDisk is a disk of a simulated machine: a plain file, and counters that
// nothing but the disk itself moves.
type SimDisk struct {
	Path string
	ID   inventory.DiskID
	// Pace slows every change down, so that a small disk takes as long as one
	// wishes. Set it before use.
	Pace time.Duration
	// OnRead is told of each read by an agent, before it; nil nobody. Set it while the
	// machine is off. Agents read by several goroutines.
	OnRead func(off, n int64)

	mu     sync.Mutex
	writes []SimWrite
	erases []SimWrite
	bytes  int64
	cutAt  int64
	cut    func()
	gone   bool  // nobody finds it
	size   int64 // that it shows; 0: its own
	broken int64 // writes beyond this place fail; 0: none
	lost   int64 // reads beyond this one do
	// keepsTable is a disk that says it has zeroed or marked its ends and has not, as an
	// agent would leave it that wrote in another order.
	keepsTable bool
}

// SimWrite is a change of a disk: when, in which start of the machine, and what
// the boot script of that start gave as its reason.
type SimWrite struct {
	At     time.Time
	Boot   int
	Reason string
}

var errPowerLost = errors.New("the machine has lost its power")

// newSimDisk makes the file, every byte fill or those of its ends alone, unless it
// is there already.
func newSimDisk(path string, id inventory.DiskID, fill byte, ends bool) (*SimDisk, error) {
	if id.LogicalBlockSize == 0 {
		id.LogicalBlockSize = 512
	}
	id.Name = path
	if info, err := os.Stat(path); err == nil && info.Size() == id.Size {
		return &SimDisk{Path: path, ID: id}, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	defer f.Close()
	full := id.Size
	if ends {
		full = min(id.Size, osMiB)
	}
	b := bytes.Repeat([]byte{fill}, int(full))
	_, first := f.WriteAt(b, 0)
	_, last := f.WriteAt(b, id.Size-full)
	if err := errors.Join(first, last); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	return &SimDisk{Path: path, ID: id}, nil
}

// Erases are the times at which the first MiB was zeroed: the point of no return.
func (d *SimDisk) Erases() []SimWrite {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]SimWrite(nil), d.erases...)
}

// FirstWrites is the first change in each start of the machine that changed
// anything.
func (d *SimDisk) FirstWrites() []SimWrite {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]SimWrite(nil), d.writes...)
}

// Written is how many bytes were changed, ever.
func (d *SimDisk) Written() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes
}

// fail makes these its faults.
func (d *SimDisk) fail(f machineFaults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone, d.size, d.broken, d.lost = f.diskGone, f.diskSize, f.diskError, f.readError
}

func (d *SimDisk) missing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// id is what it shows of itself.
func (d *SimDisk) id() inventory.DiskID {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.ID
	if d.size > 0 {
		id.Size = min(id.Size, d.size)
	}
	return id
}

// CutAfter calls cut, once, before the change that would bring the bytes written from
// now on to n. Nil cuts nothing any more. Where cut ends the start of the machine, that
// change does not happen.
func (d *SimDisk) CutAfter(n int64, cut func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt, d.cut = d.bytes+n, cut
}

// Digest of every byte on it.
func (d *SimDisk) Digest() (inventory.Digest, error) {
	b, err := os.ReadFile(d.Path)
	return inventory.DigestOf(b), err
}

// content of it as it is between two changes: what a power cut would leave.
func (d *SimDisk) content() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return os.ReadFile(d.Path)
}

// Bootable tells whether firmware would find anything to start: a whole
// partition table with a partition.
func (d *SimDisk) Bootable() bool {
	layout, err := d.layout()
	return err == nil && layout.Scheme == pack.SchemeGPT && len(layout.Partitions) > 0
}

func (d *SimDisk) layout() (pack.Layout, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return pack.Layout{}, err
	}
	defer f.Close()
	first := make([]byte, min(d.ID.Size, 1<<20))
	if _, err := f.ReadAt(first, 0); err != nil {
		return pack.Layout{}, err
	}
	layout, _, err := pack.ParseLayout(first, d.ID.Size)
	return layout, err
}

// ConfigFile reads a file of recast's config partition; nil where there is none.
func (d *SimDisk) ConfigFile(name string) ([]byte, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return agent.ReadConfigFile(f, d.ID.Size, name)
}

// facts as the ramdisk's inventory has them.
func (d *SimDisk) facts() (inventory.DiskFacts, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return inventory.DiskFacts{}, err
	}
	defer f.Close()
	id := d.id()
	in := simDiskReader{f, d}
	out := inventory.DiskFacts{Name: d.Path, Model: "simulated", Serial: id.Serial, WWN: id.WWN,
		Size: id.Size, LogicalBlockSize: id.LogicalBlockSize}
	if out.Holds, err = agent.Holds(in, id.Size); err != nil {
		return out, err
	}
	out.Recast, _ = agent.ReadMarker(in, id.Size) // as the real inventory: a broken marker is none
	return out, nil
}

// readable fails for what ends beyond the place up to which it can be read.
func (d *SimDisk) readable(end int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost > 0 && end > d.lost {
		return fmt.Errorf("read up to %d: %w", end, syscall.EIO)
	}
	return nil
}

// simDiskReader reads a disk as the inventory does.
type simDiskReader struct {
	*os.File
	disk *SimDisk
}

// ReadAt implements io.ReaderAt.
func (r simDiskReader) ReadAt(b []byte, off int64) (int, error) {
	if err := r.disk.readable(off + int64(len(b))); err != nil {
		return 0, err
	}
	return r.File.ReadAt(b, off)
}

// open it for one start of the machine.
func (d *SimDisk) open(b *simBoot) (agent.Disk, error) {
	inner, err := agent.OpenFile(d.Path, d.id())
	if err != nil {
		return nil, err
	}
	return simOpenDisk{Disk: inner, disk: d, boot: b}, nil
}

// simOpenDisk counts, and stops where the machine's power stopped.
type simOpenDisk struct {
	agent.Disk
	disk *SimDisk
	boot *simBoot
}

// change does one change under the disk's lock: after PowerOff has returned, no
// byte moves any more.
func (o simOpenDisk) change(off, n int64, zero bool, do func() error) error {
	d := o.disk
	if d.Pace > 0 {
		time.Sleep(d.Pace) // the disk's own speed, not a wait for anything
	}
	d.mu.Lock()
	if d.cut != nil && d.bytes+n >= d.cutAt {
		cut := d.cut
		d.cut = nil
		d.mu.Unlock()
		cut()
		d.mu.Lock()
	}
	defer d.mu.Unlock()
	if o.boot.dead {
		return errPowerLost
	}
	if d.broken > 0 && off+n > d.broken {
		return fmt.Errorf("write at %d: %w", off, syscall.EIO)
	}
	if ends := off < pack.MiB || off+n > d.ID.Size-pack.MiB; d.keepsTable && ends && (zero || n <= 4096) {
		return nil
	}
	w := SimWrite{At: time.Now(), Boot: o.boot.number, Reason: o.boot.reason}
	if k := len(d.writes); k == 0 || d.writes[k-1].Boot != w.Boot {
		d.writes = append(d.writes, w)
	}
	if zero && off == 0 {
		d.erases = append(d.erases, w)
	}
	d.bytes += n
	return do()
}

// ReadAt takes its time, so that reading back is a stage that one can meet.
func (o simOpenDisk) ReadAt(b []byte, off int64) (int, error) {
	if o.disk.Pace > 0 {
		time.Sleep(o.disk.Pace) // the disk's own speed
	}
	if err := o.disk.readable(off + int64(len(b))); err != nil {
		return 0, err
	}
	if o.disk.OnRead != nil {
		o.disk.OnRead(off, int64(len(b)))
	}
	return o.Disk.ReadAt(b, off)
}

func (o simOpenDisk) ReadBack(b []byte, off int64) (int, error) {
	if o.disk.Pace > 0 {
		time.Sleep(o.disk.Pace)
	}
	if o.disk.OnRead != nil {
		o.disk.OnRead(off, int64(len(b)))
	}
	return o.Disk.ReadBack(b, off)
}

func (o simOpenDisk) WriteAt(b []byte, off int64) (n int, err error) {
	err = o.change(off, int64(len(b)), false, func() error {
		_, err := o.Disk.WriteAt(b, off)
		return err
	})
	if err == nil {
		n = len(b)
	}
	return n, err
}

func (o simOpenDisk) Zero(off, n int64) error {
	return o.change(off, n, true, func() error { return o.Disk.Zero(off, n) })
}

func (o simOpenDisk) Discard(off, n int64) error {
	return o.change(off, n, false, func() error { return o.Disk.Discard(off, n) })
}

// Flush of a file that only this process looks at needs no fsync: what counts
// as lost in a power cut is what came after it, and the lock decides that.
func (o simOpenDisk) Flush() error { return nil }

var _ io.ReaderAt = simOpenDisk{}
