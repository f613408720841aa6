package testenv

import (
	"context"
	"fmt"
	"time"
)

// obeyed is what the override means to this machine's firmware.
func (m *QEMU) obeyed() BootDevice {
	if m.UEFI() && !m.once.UEFI {
		return BootNone
	}
	return m.once.Device
}

// qemuResetAgain is how long firmware may take from a reset to the last of those
// that it makes of it itself: SeaBIOS, entered warm, asks the chipset for another
// one, twice (tryReboot in its resume.c), done 0.1 s later on a busy host. All of
// them are one start, and the order must stand until the last. No machine comes
// so far that it reboots for a reason of its own in that time.
const qemuResetAgain = 3 * time.Second

// restoreOrder ends an override that was obeyed.
func (m *QEMU) restoreOrder(ctx context.Context, run *qemuRun) {
	if err := m.setBootIndexes(ctx, run, BootNone); err != nil && !run.ended() {
		m.logger().Error("restore boot order", "machine", m.Name, "error", err)
	}
}

func (m *QEMU) restoreLater(run *qemuRun) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if run.restore != nil && !run.off && !run.ended() {
		m.restoreOrder(ctx, run)
	}
}

// SetBootOnce implements Machine.
func (m *QEMU) SetBootOnce(once BootOnce) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if once.Device == BootNone {
		once = BootOnce{}
	}
	m.once = once
	if !m.on() {
		return nil // start reads it
	}
	// Even where it changes no index, a reset before now must not consume it.
	at, err := m.run.qmp.executeAt(ctx, "query-status", nil, nil)
	if err != nil {
		return fmt.Errorf("set boot override of %q: %w", m.Name, err)
	}
	m.run.armedAt = at
	boot := m.obeyed()
	if boot == BootHTTP {
		boot = BootNone // restart sees to it
	}
	if err := m.setBootIndexes(ctx, m.run, boot); err != nil {
		return fmt.Errorf("set boot override of %q: %w", m.Name, err)
	}
	return nil
}

// BootOnce implements Machine.
func (m *QEMU) BootOnce() BootOnce {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.once
}

// setBootIndexes tells QEMU the order for the next start: the firmware reads a
// copy that QEMU makes at each reset.
func (m *QEMU) setBootIndexes(ctx context.Context, run *qemuRun, boot BootDevice) error {
	if run.restore != nil {
		run.restore.Stop()
		run.restore = nil
	}
	set := func(id string, index int) error {
		if run.index[id] == index {
			return nil // QEMU refuses one that is taken, be it by the device itself
		}
		at, err := run.qmp.executeAt(ctx, "qom-set", map[string]any{
			"path": "/machine/peripheral/" + id, "property": "bootindex", "value": index,
		}, nil)
		if err != nil {
			return err
		}
		run.index[id], run.armedAt = index, at
		return nil
	}
	for i := range m.Disks {
		if run.gone {
			break
		}
		if err := set(qemuDiskID(i), m.diskIndex(i, boot)); err != nil {
			return err
		}
	}
	for i := range m.NICs {
		if err := set(qemuNICID(i), m.nicIndex(i, boot)); err != nil {
			return err
		}
	}
	if m.Drive {
		if err := set(qemuCDID, qemuCDIndex(boot)); err != nil {
			return err
		}
	}
	run.armed = boot != BootNone
	return nil
}

func (m *QEMU) diskIndex(i int, boot BootDevice) int {
	if boot == BootDisk {
		return 20 + i // before 50 anyway; the first disk is the first
	}
	if m.OwnOrder {
		return -1
	}
	return 50 + i
}

func (m *QEMU) nicIndex(i int, boot BootDevice) int {
	if boot == BootPXE || boot == BootHTTP {
		return 1 + i
	}
	if m.OwnOrder {
		return -1
	}
	if m.NetworkFirst {
		return 30 + i // behind a disk that was asked for, before all others
	}
	return 100 + i
}
