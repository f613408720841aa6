package testenv

import (
	"context"
	"errors"
	"sync"
)

// SimMachine is a Machine in memory: it boots nothing and takes no time.
type SimMachine struct {
	// Firmware is true for UEFI. Set it before use.
	Firmware bool
	// Port is its serial port.
	Port SerialPort

	watchers

	mu         sync.Mutex
	on         bool
	once       BootOnce
	ignoreACPI bool
	starts     []BootOnce
	stops      int
	onStart    func(BootOnce)
	medium     Medium
	nmis       int
}

var (
	_ Machine     = (*SimMachine)(nil)
	_ Watched     = (*SimMachine)(nil)
	_ Interrupter = (*SimMachine)(nil)
	_ MediaDrive  = (*SimMachine)(nil)
	_ BootDevices = (*SimMachine)(nil)
)

// BootDevices implements BootDevices.
func (m *SimMachine) BootDevices() []BootDevice {
	if m.Firmware {
		return []BootDevice{BootCD, BootHTTP}
	}
	return []BootDevice{BootCD}
}

// IgnoreACPI makes the operating system deaf to the power button.
func (m *SimMachine) IgnoreACPI(deaf bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ignoreACPI = deaf
}

// OnStart is called, without locks, at each start with the override that it obeyed.
func (m *SimMachine) OnStart(fn func(BootOnce)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onStart = fn
}

// Starts is what each start obeyed, in order: zero for the machine's own boot order.
func (m *SimMachine) Starts() []BootOnce {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]BootOnce(nil), m.starts...)
}

// Stops is how often the machine went from on to off.
func (m *SimMachine) Stops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stops
}

// NMI implements Interrupter; NMIs counts.
func (m *SimMachine) NMI(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on {
		return errors.New("interrupt the machine: it is off")
	}
	m.nmis++
	return nil
}

// NMIs is how many interrupts reached it while it was on.
func (m *SimMachine) NMIs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nmis
}

// InsertMedium implements MediaDrive.
func (m *SimMachine) InsertMedium(_ context.Context, medium Medium) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.medium != nil {
		return errors.New("insert the medium: the drive is not empty")
	}
	m.medium = medium
	return nil
}

// EjectMedium implements MediaDrive.
func (m *SimMachine) EjectMedium(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.medium = nil
	return nil
}

// Medium is what is in the drive, nil for none: the machine reads it as it likes.
func (m *SimMachine) Medium() Medium {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.medium
}

func (m *SimMachine) start(change MachineChange) func() {
	obeyed := m.once
	if m.Firmware && !obeyed.UEFI {
		obeyed = BootOnce{}
	}
	m.on, m.once = true, BootOnce{}
	m.starts = append(m.starts, obeyed)
	fn := m.onStart
	return func() {
		if fn != nil {
			fn(obeyed)
		}
		m.changed(change)
	}
}

func (m *SimMachine) PowerOn(context.Context) error {
	m.mu.Lock()
	if m.on {
		m.mu.Unlock()
		return nil
	}
	then := m.start(MachineOn)
	m.mu.Unlock()
	then()
	return nil
}

func (m *SimMachine) PowerOff(context.Context) error {
	m.mu.Lock()
	was := m.on
	if was {
		m.stops++
	}
	m.on = false
	m.mu.Unlock()
	if was {
		m.changed(MachineOff)
	}
	return nil
}

func (m *SimMachine) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	deaf := m.ignoreACPI
	m.mu.Unlock()
	if deaf {
		return nil
	}
	return m.PowerOff(ctx)
}

func (m *SimMachine) Reset(context.Context) error {
	m.mu.Lock()
	if !m.on {
		m.mu.Unlock()
		return errors.New("reset the machine: it is off")
	}
	then := m.start(MachineReset)
	m.mu.Unlock()
	then()
	return nil
}

func (m *SimMachine) Powered() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}

func (m *SimMachine) UEFI() bool { return m.Firmware }

func (m *SimMachine) SetBootOnce(once BootOnce) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if once.Device == BootNone {
		once = BootOnce{}
	}
	m.once = once
	return nil
}

func (m *SimMachine) BootOnce() BootOnce {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.once
}
