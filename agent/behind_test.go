package agent

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
)

// orderedDisk knows of each MiB when it was changed and read back last, and of the
// whole when it was flushed; and how many changes are under way.
type orderedDisk struct {
	Disk
	mu               sync.Mutex
	now, flushed     int
	changed, read    map[int64]int
	changing, beside int // read back beside changes
	reads            []int
}

func (d *orderedDisk) tick() int { d.now++; return d.now }

func (d *orderedDisk) change(off, n int64, do func() error) error {
	d.mu.Lock()
	d.changing++
	d.mu.Unlock()
	err := do()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changing--
	for at := off / MiB; at*MiB < off+n; at++ {
		d.changed[at] = d.tick()
	}
	return err
}

func (d *orderedDisk) WriteAt(b []byte, off int64) (int, error) {
	return len(b), d.change(off, int64(len(b)), func() error { _, err := d.Disk.WriteAt(b, off); return err })
}

func (d *orderedDisk) Zero(off, n int64) error {
	return d.change(off, n, func() error { return d.Disk.Zero(off, n) })
}

func (d *orderedDisk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushed = d.tick()
	return d.Disk.Flush()
}

func (d *orderedDisk) ReadBack(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changing > 0 {
		d.beside++
	}
	d.reads = append(d.reads, d.tick())
	if at := off / MiB; d.changed[at] < d.flushed {
		d.read[at] = d.tick()
	}
	return d.Disk.ReadBack(b, off)
}

// Every chunk is read back after a flush behind its last write, most of them before
// the last one is written, and none while the disk writes.
func TestTheImageIsReadBackBehindItsWrites(t *testing.T) {
	p := packImage(t, gptImage(t, 20*MiB+512*5, 1))
	base, _ := diskFile(t, 32*MiB, 0xA5)
	d := &orderedDisk{Disk: base, changed: map[int64]int{}, read: map[int64]int{}}
	if _, err := Write(context.Background(), testWork(p, d, bytes.Repeat([]byte{7}, MiB), serveBytes(t, p).URL)); err != nil {
		t.Fatal(err)
	}
	last, early := 0, 0
	for at := int64(1); at < 20; at++ {
		last = max(last, d.changed[at])
		if d.changed[at] == 0 || d.read[at] < d.changed[at] {
			t.Errorf("MiB %d was changed as operation %d and read back, flushed, as %d", at, d.changed[at], d.read[at])
		}
	}
	if d.beside > 0 {
		t.Errorf("%d MiBs were read back beside writes", d.beside)
	}
	for _, at := range d.reads {
		if at < last {
			early++
		}
	}
	if early == 0 {
		t.Error("none was read back before the last was written")
	}
}

// aliasDisk takes what is written from its true size on for what lies at its beginning.
type aliasDisk struct {
	Disk
	size int64
}

func (d aliasDisk) WriteAt(b []byte, off int64) (int, error) {
	if off >= d.size {
		if _, err := d.Disk.WriteAt(b, off-d.size); err != nil {
			return 0, err
		}
	}
	return d.Disk.WriteAt(b, off)
}

func TestADiskThatIsSmallerThanItSaysIsFound(t *testing.T) {
	p := packImage(t, gptImage(t, 20*MiB, 1))
	base, _ := diskFile(t, 32*MiB, 0xA5)
	_, err := Write(context.Background(), testWork(p, aliasDisk{base, 14 * MiB}, nil, serveBytes(t, p).URL))
	if err == nil || !strings.Contains(err.Error(), "gives back other bytes") {
		t.Errorf("error %v", err)
	}
}
