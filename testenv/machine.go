// Package testenv plays the other side of every wire: virtual machines behind
// virtual BMCs, images, links and their faults. Tests and the lab use it.
package testenv

import (
	"context"
	"io"
	"sync"
)

// BootDevice is where a Machine's next start looks first.
type BootDevice string

const (
	BootNone BootDevice = ""     // the machine's own boot order
	BootPXE  BootDevice = "pxe"  // its network interfaces
	BootDisk BootDevice = "disk" // its first disk
	BootCD   BootDevice = "cd"   // the virtual drive, see MediaDrive
	BootHTTP BootDevice = "http" // UEFI HTTP Boot, see BootOnce.URI
)

// BootOnce is a boot override for one start. UEFI is the mode that was asked
// for; it means nothing for BootNone.
type BootOnce struct {
	Device BootDevice
	UEFI   bool
	// URI is what BootHTTP loads; "" what DHCP names.
	URI string
}

// Machine is one computer as its BMC sees it: the power and reset lines, and
// the word that the firmware reads when it starts. The virtual BMCs of this
// package stand in front of one; SimMachine and the QEMU machine implement it.
//
// All methods may be called from several goroutines at once. None of them
// talks to the operating system inside, but Shutdown, which only asks it.
type Machine interface {
	// PowerOn starts a machine that is off and consumes the boot override (see
	// SetBootOnce). On a machine that is on it does nothing and returns nil. It
	// returns as soon as Powered is true, not when anything has booted.
	PowerOn(ctx context.Context) error
	// PowerOff cuts the power at once; nothing inside is asked. On a machine
	// that is off it does nothing and returns nil. An override that no start has
	// consumed stays. It returns when Powered is false.
	PowerOff(ctx context.Context) error
	// Shutdown presses the power button (ACPI) and returns at once. A machine
	// without a listening operating system stays on; one that listens goes off by
	// itself some time later. Nil on a machine that is off.
	Shutdown(ctx context.Context) error
	// Reset pulls the reset line of a running machine: a start, so it consumes
	// the boot override. On a machine that is off it is an error and changes nothing.
	Reset(ctx context.Context) error
	// Powered is the state now. It turns false also when the machine goes off by
	// itself (shutdown from inside, a crash of its process).
	Powered() bool
	// UEFI is the machine's firmware: true for UEFI, false for BIOS. It never changes.
	UEFI() bool
	// SetBootOnce stores the override for the next start, whatever starts it
	// (PowerOn, Reset, or a reboot from inside), and replaces an earlier one;
	// BootNone clears it. It is legal on a running machine and does not disturb it.
	//
	// The start consumes it exactly once: from then on BootOnce is zero and the
	// start after it follows the machine's own order. A UEFI machine consumes, but
	// does not obey, an override for BIOS: it has no compatibility module. A BIOS
	// machine obeys either, because old firmware does not know that bit.
	SetBootOnce(BootOnce) error
	// BootOnce is the override that the next start would consume, zero for none.
	BootOnce() BootOnce
}

// MachineChange is what became of a machine's power.
type MachineChange string

const (
	MachineOn    MachineChange = "on"    // it was off and starts
	MachineOff   MachineChange = "off"   // by the power line or by itself
	MachineReset MachineChange = "reset" // it starts again, by the reset line or from inside
)

// Watched is a Machine that tells of each change, its own ones too. What is
// called must not wait for the machine.
type Watched interface {
	Watch(func(MachineChange))
}

// watchers is what makes a machine a Watched one.
type watchers struct {
	watching sync.Mutex
	told     []func(MachineChange)
}

// Watch implements Watched.
func (w *watchers) Watch(fn func(MachineChange)) {
	w.watching.Lock()
	defer w.watching.Unlock()
	w.told = append(w.told, fn)
}

// changed tells them. The caller holds no lock of the machine: it may be asked.
func (w *watchers) changed(c MachineChange) {
	w.watching.Lock()
	told := w.told[:len(w.told):len(w.told)]
	w.watching.Unlock()
	for _, fn := range told {
		fn(c)
	}
}

// Interrupter is a Machine with an NMI line.
type Interrupter interface {
	NMI(context.Context) error
}

// Medium is a disc image as a virtual drive reads it.
type Medium interface {
	io.ReaderAt
	Size() int64
	Name() string // for people: the last word of its address
}

// MediaDrive is a Machine with a virtual CD drive, which starts what is in it
// when the override says BootCD.
type MediaDrive interface {
	// InsertMedium fails while another is in.
	InsertMedium(context.Context, Medium) error
	// EjectMedium takes out what is in, and does nothing to an empty drive. The
	// Medium is not read after it returned.
	EjectMedium(context.Context) error
}
