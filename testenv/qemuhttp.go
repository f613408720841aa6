package testenv

import (
	"context"
	"fmt"
	"os"

	"recast/inventory"
)

// BootDevices implements BootDevices.
func (m *QEMU) BootDevices() []BootDevice {
	var devices []BootDevice
	if m.Drive {
		devices = append(devices, BootCD)
	}
	if m.UEFI() && m.Arch != inventory.ARM64 {
		devices = append(devices, BootHTTP)
	}
	return devices
}

// order is the boot order of a start with the override: one by HTTP from an address
// of its own leaves it as it is, since BootNext comes before it.
func (m *QEMU) order(boot BootDevice) BootDevice {
	if boot == BootHTTP && m.once.URI != "" {
		return BootNone
	}
	return boot
}

// armHTTP writes the address of the override into the variables of a machine that
// is off.
func (m *QEMU) armHTTP(path string) error {
	if m.once.URI == "" {
		return nil // DHCP names it
	}
	vars, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("arm HTTP Boot: %w", err)
	}
	if vars, err = efiBootHTTP(vars, m.once.URI); err != nil {
		return fmt.Errorf("arm HTTP Boot: %w", err)
	}
	if err := os.WriteFile(path+".new", vars, 0o644); err != nil {
		return fmt.Errorf("arm HTTP Boot: %w", err)
	}
	return os.Rename(path+".new", path)
}

// restart is a reset whose start comes by HTTP, or that shows other disks: a running
// QEMU keeps the variables to itself, so that it takes a new one. A reboot from inside cannot be that start,
// and loses the override.
func (m *QEMU) restart(ctx context.Context) error {
	if _, err := m.powerOff(ctx, false); err != nil {
		return err
	}
	_, err := m.powerOn(ctx)
	if err == nil {
		m.changed(MachineReset)
	}
	return err
}
