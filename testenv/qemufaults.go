package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// faultyDisk is the file of a disk of QEMU's as we read and write it for QEMU, which
// has nothing that fails beyond a place or after so many bytes.
type faultyDisk struct {
	*os.File
	size int64

	mu    sync.Mutex
	f     machineFaults
	bytes int64         // written by us, ever
	at    int64         // at which of them it happens
	then  func()        // what happens in mid-write; nil for nothing
	cuts  bool          // it is the end of the power
	held  chan struct{} // a write that waits for the end of the power
}

var _ diskMedium = (*faultyDisk)(nil)

func (d *faultyDisk) Size() int64 { return d.size }

func (d *faultyDisk) fail(f machineFaults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.f = f
}

// arm has something happen when so many bytes more were written.
func (d *faultyDisk) arm(after int64, cuts bool, then func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at, d.cuts, d.then = d.bytes+after, cuts, then
}

// bad says whether QEMU's own file will not do.
func (d *faultyDisk) bad() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.f.diskGone || d.f.diskError > 0 || d.f.readError > 0 || d.then != nil
}

// ReadAt implements io.ReaderAt.
func (d *faultyDisk) ReadAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	fails := d.f.diskGone || d.f.readError > 0 && off+int64(len(b)) > d.f.readError
	d.mu.Unlock()
	if fails {
		return 0, syscall.EIO
	}
	return d.File.ReadAt(b, off)
}

// WriteAt implements io.WriterAt. The write in which the power is cut does not happen,
// and is not answered.
func (d *faultyDisk) WriteAt(b []byte, off int64) (int, error) {
	n := int64(len(b))
	d.mu.Lock()
	if d.f.diskGone || d.f.diskError > 0 && off+n > d.f.diskError {
		d.mu.Unlock()
		return 0, syscall.EIO
	}
	var then func()
	if d.then != nil && d.bytes+n >= d.at {
		then, d.then = d.then, nil
		if d.cuts {
			held := make(chan struct{})
			d.held = held
			d.mu.Unlock()
			then()
			<-held
			return 0, syscall.EIO
		}
	}
	d.bytes += n
	d.mu.Unlock()
	k, err := d.File.WriteAt(b, off)
	if then != nil {
		then()
	}
	return k, err
}

// release what waits for the end of the power.
func (d *faultyDisk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		close(d.held)
		d.held = nil
	}
}

// fail makes these the faults of the machine. Of its disks those that stop answering do
// so now, what they show changes at the next start. What was armed to happen once
// stays so, but for none.
func (m *QEMU) fail(ctx context.Context, f machineFaults, none bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	hangs := m.faults.hangs
	if f.hangs > 0 || none {
		hangs = f.hangs
	}
	for len(m.faulty) < len(m.Disks) {
		file, err := os.OpenFile(m.Disks[len(m.faulty)].Path, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("let a disk of %q fail: %w", m.Name, err)
		}
		info, err := file.Stat()
		if err != nil {
			return errors.Join(fmt.Errorf("let a disk of %q fail: %w", m.Name, err), file.Close())
		}
		m.faulty = append(m.faulty, &faultyDisk{File: file, size: info.Size()})
	}
	for _, d := range m.faulty {
		d.fail(f)
	}
	// What happens in mid-write happens to the first disk alone.
	switch d := m.faulty[0]; {
	case f.powerCut > 0:
		d.arm(f.powerCut, true, func() { go m.cutPower() })
	case f.reset > 0:
		d.arm(f.reset, false, func() { go m.resetOnce() })
	case none:
		d.arm(0, false, nil)
	}
	f.hangs = hangs
	m.faults = f
	if !m.on() {
		return nil // prepare sees to them
	}
	return m.serveDisks(ctx, m.run)
}

// closeDisks lets go of the files.
func (m *QEMU) closeDisks() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, d := range m.faulty {
		errs = append(errs, d.Close())
	}
	m.faulty = nil
	return errors.Join(errs...)
}

// shown is the size of the disk that the machine shows, 0 for that of its file.
func (m *QEMU) shown(i int) int64 {
	if i >= len(m.faulty) || m.faults.diskSize == 0 || m.faults.diskSize >= m.faulty[i].size {
		return 0
	}
	return m.faults.diskSize / osSector * osSector
}

// anew tells whether what the machine shows is not what its QEMU was started with.
func (m *QEMU) anew() bool {
	return m.run.gone != m.faults.diskGone || m.run.size != m.faults.diskSize
}

func (m *QEMU) badDisks() bool {
	return !m.faults.diskGone && slices.ContainsFunc(m.faulty, (*faultyDisk).bad)
}

// serveDisks puts what we serve in place of QEMU's own files, for the disks that need
// it; the machine sees the same disk. It stays there until the machine is off.
func (m *QEMU) serveDisks(ctx context.Context, run *qemuRun) error {
	for i, d := range m.faulty {
		if run.gone || run.served[i] || !d.bad() {
			continue
		}
		socket := "disk" + strconv.Itoa(i) + ".sock"
		listener, err := m.listen(socket)
		if err != nil {
			return fmt.Errorf("let a disk of %q fail: %w", m.Name, err)
		}
		run.servers = append(run.servers, serveNBD(listener, d))
		node := "served" + strconv.Itoa(i)
		reopen := map[string]any{"driver": "raw", "node-name": qemuNodeID(i), "file": node,
			"discard": qemuDiscard(m.Disks[i]), "cache": map[string]bool{"direct": false, "no-flush": false}}
		if run.size > 0 && m.shown(i) > 0 {
			reopen["size"] = m.shown(i)
		}
		if err := run.qmp.execute(ctx, "blockdev-add", map[string]any{"driver": "nbd", "node-name": node,
			"server": map[string]string{"type": "unix", "path": socket}}, nil); err != nil {
			return fmt.Errorf("let a disk of %q fail: %w", m.Name, err)
		}
		if err := run.qmp.execute(ctx, "blockdev-reopen", map[string]any{"options": []any{reopen}}, nil); err != nil {
			return fmt.Errorf("let a disk of %q fail: %w", m.Name, err)
		}
		run.served[i] = true
	}
	return nil
}

// cutPower is the end of the power in mid-write: nobody stops the processor first,
// which would wait for the write.
func (m *QEMU) cutPower() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	was, err := m.powerOff(ctx, true)
	if err != nil {
		m.logger().Error("cut the power", "machine", m.Name, "error", err)
	}
	if was {
		m.changed(MachineOff)
	}
}

func (m *QEMU) resetOnce() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Reset(ctx); err != nil {
		m.logger().Error("reset in mid-write", "machine", m.Name, "error", err)
	}
}

// halt stops the processor: what was about to run does not.
func (m *QEMU) halt(ctx context.Context, run *qemuRun) error {
	if run.halted {
		return nil
	}
	run.halted = true
	return run.qmp.execute(ctx, "stop", nil, nil)
}

// resume lets the processor run where a start came that may.
func (m *QEMU) resume(ctx context.Context, run *qemuRun) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !run.halted || m.faults.dead || run.off {
		return nil
	}
	run.halted = false
	return run.qmp.execute(ctx, "cont", nil, nil)
}

// SetBoard puts another board behind the BMC, for which the machine is switched off.
func (m *QEMU) SetBoard(ctx context.Context, b Board) error {
	if err := m.PowerOff(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.UUID, m.Serial = b.UUID, b.Serial
	return nil
}
