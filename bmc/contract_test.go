package bmc_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

// subject is one kind of BMC under the contract.
type subject struct {
	client bmc.Client
	// powered is the machine's own word, not the BMC's.
	powered func() bool
	// What the kind cannot do is false.
	uefi bool // the override remembers the firmware mode
	once bool // a start consumes the override
	soft bool // a shutdown reaches an operating system
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) subject{
		"fake":     startFake,
		"redfish":  startRedfish,
		"ipmi 17":  func(t *testing.T) subject { return startIPMI(t, 17) },
		"ipmi 3":   func(t *testing.T) subject { return startIPMI(t, 3) },
		"ipmi_sim": startIPMISim,
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				name string
				test func(*testing.T, context.Context, subject)
			}{
				{"power goes on and off and is read back", contractPower},
				{"an override is set, replaced and cleared", contractNextBoot},
				{"a start consumes the override", contractOnce},
				{"a shutdown asks the operating system", contractSoft},
				{"calls from many goroutines are all answered", contractConcurrent},
				{"a call ends with its context", contractContext},
				{"nonsense is refused", contractNonsense},
				{"a closed client stays closed", contractClose},
			} {
				t.Run(c.name, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
					defer cancel()
					c.test(t, ctx, start(t))
				})
			}
		})
	}
}

func contractPower(t *testing.T, ctx context.Context, s subject) {
	state := func(want bmc.PowerState) {
		t.Helper()
		got, err := s.client.Power(ctx)
		if err != nil || got != want {
			t.Fatalf("power %q, %v; want %q", got, err, want)
		}
		if s.powered() != (want == bmc.PowerOn) {
			t.Fatalf("the machine itself is not %s", want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	state(bmc.PowerOff)
	do(s.client.Off(ctx, true))
	do(s.client.On(ctx))
	state(bmc.PowerOn)
	do(s.client.On(ctx))
	state(bmc.PowerOn)
	do(s.client.Off(ctx, true))
	state(bmc.PowerOff)
	do(s.client.Off(ctx, false))
	state(bmc.PowerOff)
}

func contractNextBoot(t *testing.T, ctx context.Context, s subject) {
	read := func(want bmc.NextBoot) {
		t.Helper()
		got, err := s.client.NextBoot(ctx)
		if err != nil || got.Device != want.Device || want.Device != bmc.BootDefault && got.UEFI != want.UEFI {
			t.Fatalf("next boot %v, %v; want %v", got, err, want)
		}
	}
	read(bmc.NextBoot{Device: bmc.BootDefault})
	for _, next := range []bmc.NextBoot{
		{Device: bmc.BootNetwork, UEFI: s.uefi},
		{Device: bmc.BootNetwork, UEFI: s.uefi},
		{Device: bmc.BootDisk, UEFI: s.uefi},
		{Device: bmc.BootNetwork},
		{Device: bmc.BootDefault},
		{Device: bmc.BootDefault},
	} {
		if err := s.client.SetNextBoot(ctx, next); err != nil {
			t.Fatalf("set %v: %v", next, err)
		}
		read(next)
	}
	if s.powered() {
		t.Error("setting the next boot switched the machine on")
	}
	if !s.uefi {
		if err := s.client.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}); !errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("a BMC that drops the mode: %v, want ErrUnverified", err)
		}
	}
}

func contractOnce(t *testing.T, ctx context.Context, s subject) {
	if !s.once {
		return // its machine has no firmware
	}
	if err := s.client.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: s.uefi}); err != nil {
		t.Fatal(err)
	}
	if err := s.client.On(ctx); err != nil {
		t.Fatal(err)
	}
	next, err := s.client.NextBoot(ctx)
	if err != nil || next.Device != bmc.BootDefault {
		t.Errorf("after the start %v, %v; want default", next, err)
	}
}

func contractSoft(t *testing.T, ctx context.Context, s subject) {
	if !s.soft {
		return
	}
	if err := s.client.On(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Off(ctx, false); err != nil {
		t.Fatal(err)
	}
	if s.powered() {
		t.Error("still on")
	}
}

func contractConcurrent(t *testing.T, ctx context.Context, s subject) {
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			if i%3 == 0 {
				_, err = s.client.NextBoot(ctx)
			} else {
				_, err = s.client.Power(ctx)
			}
			if err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		}()
	}
	wg.Wait()
}

func contractContext(t *testing.T, ctx context.Context, s subject) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.client.Power(over); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want context.Canceled", err)
	}
	late, cancel := context.WithDeadline(ctx, time.Unix(1, 0))
	defer cancel()
	if err := s.client.On(late); !errors.Is(err, bmc.ErrTimeout) {
		t.Errorf("past the deadline: %v, want ErrTimeout", err)
	}
	if s.powered() {
		t.Error("a call past its deadline switched the machine on")
	}
	if _, err := s.client.Power(ctx); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func contractNonsense(t *testing.T, ctx context.Context, s subject) {
	for _, device := range []bmc.BootDevice{"", "cdrom"} {
		if err := s.client.SetNextBoot(ctx, bmc.NextBoot{Device: device}); err == nil {
			t.Errorf("device %q was accepted", device)
		}
	}
}

func contractClose(t *testing.T, ctx context.Context, s subject) {
	for range 2 {
		if err := s.client.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.client.On(ctx); err == nil {
		t.Error("a closed client switched the machine on")
	}
	if s.powered() {
		t.Error("the machine is on")
	}
}

// Each start* makes a fresh machine that is off, and a client for it.

func startFake(t *testing.T) subject {
	f := &bmc.Fake{}
	c, err := f.Dial(t.Context(), bmc.Target{})
	if err != nil {
		t.Fatal(err)
	}
	return subject{client: c, powered: f.Powered, uefi: true, once: true, soft: true}
}

func startRedfish(t *testing.T) subject {
	machine := &testenv.SimMachine{Firmware: true}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
	return subject{client: dial(t, redfishTarget(b)), powered: machine.Powered, uefi: true, once: true, soft: true}
}

func startIPMI(t *testing.T, suite int) subject {
	machine := &testenv.SimMachine{Firmware: true}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine, Suites: []int{suite}})
	target := ipmiTarget(b)
	target.CipherSuite = suite
	return subject{client: dial(t, target), powered: machine.Powered, uefi: true, once: true, soft: true}
}

const user, password = "admin", "secret"

func newRedfish(t *testing.T, o testenv.RedfishOptions) *testenv.RedfishBMC {
	t.Helper()
	o.User, o.Password = user, password
	b, err := testenv.NewRedfish(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func newIPMI(t *testing.T, o testenv.IPMIOptions) *testenv.IPMIBMC {
	t.Helper()
	o.User, o.Password = user, password
	b, err := testenv.NewIPMI(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func redfishTarget(b *testenv.RedfishBMC) bmc.Target {
	return bmc.InAHurry(bmc.Target{URL: b.URL(), User: user, Password: password, Pin: b.Pin()})
}

func ipmiTarget(b *testenv.IPMIBMC) bmc.Target {
	return bmc.InAHurry(bmc.Target{URL: b.URL(), User: user, Password: password})
}

// dial must succeed; the client is closed before the BMC.
func dial(t *testing.T, target bmc.Target) bmc.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := bmc.Dial(ctx, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}
