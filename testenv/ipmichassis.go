package testenv

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// CycleWhenOff is what a BMC makes of a power cycle while the machine is off.
type CycleWhenOff string

const (
	// CycleRefused is what the specification recommends (28.3): no action, D5h.
	CycleRefused CycleWhenOff = ""
	CycleIgnored CycleWhenOff = "ignored" // success, and nothing happens
	CycleStarts  CycleWhenOff = "starts"  // the machine is switched on
	CycleUnknown CycleWhenOff = "unknown" // CCh to any cycle, off or on: fakebmc, virtualbmc
)

// ipmiLED is the light that identifies the machine in its rack.
type ipmiLED struct {
	mu    sync.Mutex
	on    bool      // until it is switched off
	until time.Time // or for a while
}

func (l *ipmiLED) lit() (on, temporary bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.on || time.Now().Before(l.until), !l.on
}

// Identified says whether the machine's light is on.
func (b *IPMIBMC) Identified() bool {
	on, _ := b.led.lit()
	return on
}

func (b *IPMIBMC) registerChassis(r *handlers.Registry) {
	r.RegisterFunc(types.CommandGetChassisStatus, b.chassisStatus)
	r.RegisterFunc(types.CommandChassisControl, b.chassisControl)
	r.RegisterFunc(types.CommandChassisIdentify, b.identify)
}

// chassisStatus implements Get Chassis Status (28.2).
func (b *IPMIBMC) chassisStatus(context.Context, *handlers.HandlerContext, []byte) ([]byte, types.CompletionCode, error) {
	const (
		policyOff         = 0 << 5 // stays off after mains were lost
		identifySupported = 1 << 6
		identifyTemporary = 1 << 4
		identifyOn        = 2 << 4
	)
	answer := []byte{policyOff, 0, identifySupported}
	if b.powered() {
		answer[0] |= 1
	}
	switch on, temporary := b.led.lit(); {
	case on && temporary:
		answer[2] |= identifyTemporary
	case on:
		answer[2] |= identifyOn
	}
	return answer, types.CodeOK, nil
}

// ipmiControls are the actions of Chassis Control (28.3).
var ipmiControls = []string{"power-off", "power-on", "cycle", "reset", "nmi", "shutdown"}

// chassisControl implements Chassis Control (28.3).
func (b *IPMIBMC) chassisControl(ctx context.Context, _ *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	if len(data) < 1 {
		return nil, types.CodeRequestDataLengthInvalid, nil
	}
	action := int(data[0] & 0x0f)
	if action >= len(ipmiControls) {
		return nil, types.CodeRequestDataFieldInvalid, nil
	}
	verb := ipmiControls[action]
	do, code := b.control(verb)
	if do == nil {
		b.record(verb, fmt.Sprintf("refused: %#02x", uint8(code)), false)
		return nil, code, nil
	}
	if err := b.power(ctx, verb, do); err != nil {
		return nil, types.CodeUnspecifiedError, nil
	}
	return nil, types.CodeOK, nil
}

// watch keeps the event log of the machine's power, as real BMCs do.
func (b *IPMIBMC) watch() {
	if w, ok := b.machine.(Watched); ok {
		w.Watch(b.logChange)
	}
}

func (b *IPMIBMC) logChange(c MachineChange) {
	const powerUnit, bootInitiated = 0x09, 0x1d // 42.2
	switch c {
	case MachineOff:
		b.sel.event(powerUnit, ipmiSensorPower, 0)
	case MachineOn:
		b.sel.event(bootInitiated, ipmiSensorBoot, 0)
	case MachineReset:
		b.sel.event(bootInitiated, ipmiSensorBoot, 1)
	}
}

// control is what an action does to the machine as it is, or why it is refused.
func (b *IPMIBMC) control(verb string) (do func(context.Context) error, refusal types.CompletionCode) {
	m, on := b.machine, b.machine.Powered()
	switch verb {
	case "power-off":
		return m.PowerOff, 0
	case "power-on":
		return m.PowerOn, 0
	case "shutdown":
		return m.Shutdown, 0
	case "reset":
		if on {
			return m.Reset, 0
		}
	case "nmi":
		line, ok := m.(Interrupter)
		if !ok {
			return nil, types.CodeRequestDataFieldInvalid
		}
		if on {
			return func(ctx context.Context) error {
				const criticalInterrupt = 0x13 // 42.2
				b.sel.event(criticalInterrupt, ipmiSensorNMI, 0)
				return line.NMI(ctx)
			}, 0
		}
	case "cycle":
		switch way := b.now().CycleWhenOff; {
		case way == CycleUnknown:
			return nil, types.CodeRequestDataFieldInvalid
		case on:
			return func(ctx context.Context) error {
				if err := m.PowerOff(ctx); err != nil {
					return err
				}
				return m.PowerOn(ctx)
			}, 0
		case way == CycleStarts:
			return m.PowerOn, 0
		case way == CycleIgnored:
			return func(context.Context) error { return nil }, 0
		}
	}
	return nil, types.CodeNotSupported
}

// identify implements Chassis Identify (28.5): 15 s unless told otherwise.
func (b *IPMIBMC) identify(_ context.Context, _ *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	lit := 15 * time.Second
	if len(data) > 0 {
		lit = time.Duration(data[0]) * time.Second
	}
	b.led.mu.Lock()
	defer b.led.mu.Unlock()
	b.led.on = len(data) > 1 && data[1]&1 != 0
	b.led.until = time.Now().Add(lit)
	return nil, types.CodeOK, nil
}
