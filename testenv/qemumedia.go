package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

const (
	qemuCDID     = "cd0"
	qemuCDSocket = "cd0.sock" // in Dir
)

// qemuCDIndex is the place of the drive in the boot order: the last one, or the
// first one for a start from it.
func qemuCDIndex(boot BootDevice) int {
	if boot == BootCD {
		return 10
	}
	return 200
}

// NMI implements Interrupter.
func (m *QEMU) NMI(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on() {
		return fmt.Errorf("interrupt %q: the machine is off", m.Name)
	}
	if err := m.run.qmp.execute(ctx, "inject-nmi", nil, nil); err != nil {
		return fmt.Errorf("interrupt %q: %w", m.Name, err)
	}
	return nil
}

// Break implements Breaker.
func (m *QEMU) Break(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on() {
		return fmt.Errorf("send a break to %q: the machine is off", m.Name)
	}
	if err := m.run.qmp.execute(ctx, "chardev-send-break", map[string]any{"id": "console"}, nil); err != nil {
		return fmt.Errorf("send a break to %q: %w", m.Name, err)
	}
	return nil
}

// InsertMedium implements MediaDrive: QEMU reads it block by block from us, as
// the machine asks.
func (m *QEMU) InsertMedium(ctx context.Context, medium Medium) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.Drive {
		return fmt.Errorf("insert medium into %q: the machine has no drive", m.Name)
	}
	if m.medium != nil {
		return fmt.Errorf("insert medium into %q: the drive is not empty", m.Name)
	}
	listener, err := m.listen(qemuCDSocket)
	if err != nil {
		return fmt.Errorf("insert medium into %q: %w", m.Name, err)
	}
	m.nbd, m.medium = serveNBD(listener, medium), medium
	if !m.on() {
		return nil // prepare loads it
	}
	if err := m.load(ctx, m.run); err != nil {
		return errors.Join(err, m.unload())
	}
	return nil
}

// listen opens a socket in Dir, whose path may be longer than a socket's can.
func (m *QEMU) listen(name string) (net.Listener, error) {
	dir, err := os.Open(m.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.Remove(filepath.Join(m.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name))
	if err != nil {
		return nil, err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // its name is gone by then; the next one removes the file
	return listener, nil
}

// load tells a running QEMU what is in its drive.
func (m *QEMU) load(ctx context.Context, run *qemuRun) error {
	if err := run.qmp.execute(ctx, "blockdev-change-medium", map[string]any{
		"id": qemuCDID, "filename": "nbd+unix:///?socket=" + qemuCDSocket, "format": "raw", "read-only-mode": "read-only", "force": true,
	}, nil); err != nil {
		return fmt.Errorf("insert medium into %q: %w", m.Name, err)
	}
	return nil
}

func (m *QEMU) unload() error {
	if m.nbd == nil {
		return nil
	}
	err := m.nbd.Close()
	m.nbd, m.medium = nil, nil
	return err
}

// EjectMedium implements MediaDrive. The machine is not asked: it may hold the
// drive's door, as Linux does while it has a CD mounted.
func (m *QEMU) EjectMedium(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.medium == nil {
		return nil
	}
	var err error
	if m.on() {
		if err = m.run.qmp.execute(ctx, "eject", map[string]any{"id": qemuCDID, "force": true}, nil); errors.Is(err, errQMPClosed) {
			err = nil
		}
	}
	if err = errors.Join(err, m.unload()); err != nil {
		return fmt.Errorf("eject medium of %q: %w", m.Name, err)
	}
	return nil
}
