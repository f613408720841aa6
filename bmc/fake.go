package bmc

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is a way in which a BMC fails its caller.
type Fault string

const (
	FaultNone Fault = ""
	// FaultAuth refuses every call with ErrAuth, as a wrong password does.
	FaultAuth Fault = "auth"
	// FaultIgnorePower accepts On and Off and does nothing: ErrUnverified.
	FaultIgnorePower Fault = "ignore-power"
	// FaultIgnoreSoft is an operating system that ignores the power button.
	FaultIgnoreSoft Fault = "ignore-soft"
	// FaultIgnoreBoot accepts SetNextBoot and keeps the old override: ErrUnverified.
	FaultIgnoreBoot Fault = "ignore-boot"
	// FaultLoseBoot keeps the override until the next On and then boots the
	// default, as a BMC does whose flag expired in between.
	FaultLoseBoot Fault = "lose-boot"
	// FaultIgnoreMedia accepts InsertMedia and EjectMedia and does nothing: ErrUnverified.
	FaultIgnoreMedia Fault = "ignore-media"
	// FaultHang answers nothing until the caller's context ends: ErrTimeout.
	FaultHang Fault = "hang"
	// FaultBusy answers ErrBusy.
	FaultBusy Fault = "busy"
	// FaultUnreachable answers ErrUnreachable.
	FaultUnreachable Fault = "unreachable"
	// FaultLostReply executes the call and then reports ErrTimeout.
	FaultLostReply Fault = "lost-reply"
)

// FakeCall is one call that a Fake received.
type FakeCall struct {
	Verb string // dial, power, on, off, soft-off, next-boot, set-next-boot, media, insert, eject, identity, inventory, events, offers, subscribe, set-account, reset-bmc, sensors, screenshot, close
	Next NextBoot
	Err  error
}

// Fake is a BMC in memory for tests: a machine that is on or off, a one-time
// override, a fault that can be switched at any time, and a record of every
// call. The zero value is a machine that is off. It is a Client by itself, whose
// Close only leaves a record, and Dial stands in for the package's Dial.
type Fake struct {
	// Told is what Identity and Inventory tell.
	Told Inventory
	// Lacks are boot devices that SetNextBoot answers ErrUnsupported to.
	Lacks []BootDevice
	// NoMedia has no virtual drive: ErrUnsupported, as over IPMI.
	NoMedia bool
	// NoEvents has no stream of events: ErrUnsupported, as over IPMI.
	NoEvents bool

	// Passwords by user; nil: any is right.
	Passwords map[string]string
	// Readings are what Sensors tells.
	Readings []Sensor

	// Picture is what Screenshot tells; nil: ErrUnsupported.
	Picture []byte

	mu       sync.Mutex
	streams  map[*fakeEvents]bool
	medium   string
	log      []Event
	on       bool
	next     NextBoot
	fault    Fault
	delay    time.Duration
	calls    []FakeCall
	boots    []NextBoot
	onBoot   func(NextBoot)
	inFlight chan struct{}
}

var _ Client = (*Fake)(nil)

// fakeSession is a Client that ends with its Close.
type fakeSession struct {
	*Fake
	closed atomic.Bool
}

// Dial logs in to the Fake, whatever the target. It fails as the verbs do.
func (f *Fake) Dial(ctx context.Context, t Target) (Client, error) {
	if err := f.call(ctx, "dial", NextBoot{}, func(Fault) (func(), error) { return nil, f.knows(t) }); err != nil {
		return nil, err
	}
	return &fakeSession{Fake: f}, nil
}

func (s *fakeSession) open() error {
	if s.closed.Load() {
		return errClosed
	}
	return nil
}

func (s *fakeSession) Power(ctx context.Context) (PowerState, error) {
	if err := s.open(); err != nil {
		return PowerUnknown, err
	}
	return s.Fake.Power(ctx)
}

func (s *fakeSession) On(ctx context.Context) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.On(ctx)
}

func (s *fakeSession) Off(ctx context.Context, hard bool) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.Off(ctx, hard)
}

func (s *fakeSession) NextBoot(ctx context.Context) (NextBoot, error) {
	if err := s.open(); err != nil {
		return NextBoot{}, err
	}
	return s.Fake.NextBoot(ctx)
}

func (s *fakeSession) SetNextBoot(ctx context.Context, next NextBoot) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.SetNextBoot(ctx, next)
}

func (s *fakeSession) Close(ctx context.Context) error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.Fake.Close(ctx)
}

// SetFault switches the fault; FaultNone heals the BMC.
func (f *Fake) SetFault(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// SetDelay makes every call take that long.
func (f *Fake) SetDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// SetPowered changes the machine behind the BMC's back.
func (f *Fake) SetPowered(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on
}

// OnBoot is called, without locks, each time the machine starts, with the
// override that the start consumed (BootDefault for none).
func (f *Fake) OnBoot(fn func(NextBoot)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onBoot = fn
}

// Restart is a reboot from inside: it consumes the override as On does.
func (f *Fake) Restart() {
	f.mu.Lock()
	f.on = true
	then := f.start()
	f.mu.Unlock()
	then()
}

// Powered is the truth, whatever the fault says.
func (f *Fake) Powered() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.on
}

// Calls is every call so far, in order.
func (f *Fake) Calls() []FakeCall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]FakeCall(nil), f.calls...)
}

// Count is how many calls of that verb were made.
func (f *Fake) Count(verb string) int {
	n := 0
	for _, c := range f.Calls() {
		if c.Verb == verb {
			n++
		}
	}
	return n
}

// Boots is the override that each start consumed, in order.
func (f *Fake) Boots() []NextBoot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]NextBoot(nil), f.boots...)
}

// start consumes the override. The caller holds mu and runs the result after
// it has let go.
func (f *Fake) start() func() {
	booted := f.next
	if booted.Device == "" || f.fault == FaultLoseBoot {
		booted = NextBoot{Device: BootDefault}
	}
	f.next = NextBoot{}
	f.boots = append(f.boots, booted)
	fn := f.onBoot
	return func() {
		if fn != nil {
			fn(booted)
		}
	}
}

// call runs one verb: one at a time, as a real client does.
func (f *Fake) call(ctx context.Context, verb string, next NextBoot, do func(Fault) (func(), error)) error {
	f.mu.Lock()
	if f.inFlight == nil {
		f.inFlight = make(chan struct{}, 1)
	}
	slot := f.inFlight
	f.mu.Unlock()
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return ended(ctx, verb)
	}

	f.mu.Lock()
	fault, delay := f.fault, f.delay
	f.mu.Unlock()
	var err error
	then := func() {}
	switch fault {
	case FaultAuth:
		err = fmt.Errorf("%s: %w", verb, ErrAuth)
	case FaultBusy:
		err = fmt.Errorf("%s: %w", verb, ErrBusy)
	case FaultUnreachable:
		err = fmt.Errorf("%s: %w", verb, ErrUnreachable)
	case FaultHang:
		<-ctx.Done()
		err = ended(ctx, verb)
	default:
		if delay > 0 {
			timer := time.NewTimer(delay)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				err = ended(ctx, verb)
			}
		}
		if err == nil {
			f.mu.Lock()
			then, err = do(fault)
			f.mu.Unlock()
		}
		if err == nil && fault == FaultLostReply {
			err = fmt.Errorf("%s: %w", verb, ErrTimeout)
		}
	}
	f.mu.Lock()
	f.calls = append(f.calls, FakeCall{Verb: verb, Next: next, Err: err})
	f.mu.Unlock()
	if then != nil {
		then()
	}
	return err
}

func (f *Fake) Power(ctx context.Context) (PowerState, error) {
	state := PowerUnknown
	err := f.call(ctx, "power", NextBoot{}, func(Fault) (func(), error) {
		state = PowerOff
		if f.on {
			state = PowerOn
		}
		return nil, nil
	})
	if err != nil {
		return PowerUnknown, err
	}
	return state, nil
}

func (f *Fake) On(ctx context.Context) error {
	return f.call(ctx, "on", NextBoot{}, func(fault Fault) (func(), error) {
		if f.on {
			return nil, nil
		}
		if fault == FaultIgnorePower {
			return nil, fmt.Errorf("power on: %w: the machine is off", ErrUnverified)
		}
		f.on = true
		return f.start(), nil
	})
}

func (f *Fake) Off(ctx context.Context, hard bool) error {
	verb := "off"
	if !hard {
		verb = "soft-off"
	}
	return f.call(ctx, verb, NextBoot{}, func(fault Fault) (func(), error) {
		if f.on && (fault == FaultIgnorePower || !hard && fault == FaultIgnoreSoft) {
			return nil, fmt.Errorf("power off: %w: the machine is on", ErrUnverified)
		}
		f.on = false
		return nil, nil
	})
}

func (f *Fake) NextBoot(ctx context.Context) (NextBoot, error) {
	next := NextBoot{Device: BootDefault}
	err := f.call(ctx, "next-boot", NextBoot{}, func(Fault) (func(), error) {
		if f.next.Device != "" {
			next = f.next
		}
		return nil, nil
	})
	return next, err
}

func (f *Fake) SetNextBoot(ctx context.Context, next NextBoot) error {
	if err := next.validate(); err != nil {
		return err
	}
	return f.call(ctx, "set-next-boot", next, func(fault Fault) (func(), error) {
		if slices.Contains(f.Lacks, next.Device) {
			return nil, fmt.Errorf("set next boot to %s: %w", next, ErrUnsupported)
		}
		if fault == FaultIgnoreBoot {
			return nil, fmt.Errorf("set next boot to %s: %w: it reads back as default", next, ErrUnverified)
		}
		f.next = next
		if next.Device == BootDefault {
			f.next = NextBoot{}
		}
		return nil, nil
	})
}

func (f *Fake) Close(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, FakeCall{Verb: "close"})
	return nil
}
