package bmc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/testenv"
)

// front is what the tests need of both kinds of virtual BMC.
type front interface {
	SetFaults(func(*testenv.BMCFaults))
	Count(verb string) int
	Done(verb string) int
}

// eachKind runs a test against both kinds, each with a fresh machine.
func eachKind(t *testing.T, test func(*testing.T, *testenv.SimMachine, front, bmc.Target)) {
	t.Parallel()
	t.Run("redfish", func(t *testing.T) {
		machine := &testenv.SimMachine{Firmware: true}
		b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
		test(t, machine, b, redfishTarget(b))
	})
	t.Run("ipmi", func(t *testing.T) {
		machine := &testenv.SimMachine{Firmware: true}
		b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
		test(t, machine, b, ipmiTarget(b))
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestWrongPasswordCostsOneLogin(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		target.Password = "hunter2"
		c, err := bmc.Dial(within(t, 20*time.Second), target)
		if !errors.Is(err, bmc.ErrAuth) {
			t.Fatalf("dial: %v, %v; want ErrAuth", c, err)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error holds the password: %v", err)
		}
		if n := b.Count("login"); n != 1 {
			t.Errorf("%d logins, want 1", n)
		}
	})
}

func TestUnknownUserCostsOneLogin(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		target.User = "nobody"
		if _, err := bmc.Dial(within(t, 20*time.Second), target); !errors.Is(err, bmc.ErrAuth) {
			t.Fatalf("dial: %v; want ErrAuth", err)
		}
		if n := b.Count("login"); n != 1 {
			t.Errorf("%d logins, want 1", n)
		}
	})
}

func TestPasswordRefusedLaterIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
	c := dial(t, redfishTarget(b))
	b.DropSessions()
	b.SetFaults(func(f *testenv.BMCFaults) { f.RefuseAuth = true })
	for range 5 {
		if _, err := c.Power(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrAuth) {
			t.Fatalf("power: %v; want ErrAuth", err)
		}
	}
	if n := b.Count("login"); n != 2 {
		t.Errorf("%d logins, want the first and one more", n)
	}
}

func TestForgottenSessionIsReopenedOnce(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
	c := dial(t, redfishTarget(b))
	b.DropSessions()
	if err := c.SetNextBoot(within(t, 20*time.Second), bmc.NextBoot{Device: bmc.BootNetwork}); err != nil {
		t.Fatal(err)
	}
	b.DropSessions()
	if err := c.On(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n := b.Count("login"); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
	if err := c.Close(t.Context()); err != nil || b.Sessions() != 0 {
		t.Errorf("after close: %v, %d sessions left", err, b.Sessions())
	}
}

func TestIgnoredPowerIsUnverified(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.IgnorePower = true })
		err := c.On(within(t, time.Second))
		if !errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("on: %v; want ErrUnverified", err)
		}
		if n := b.Count("power-on"); n != 1 {
			t.Errorf("asked %d times, want 1", n)
		}
	})
}

func TestDeafOperatingSystemIsUnverifiedThenCutOff(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		machine.IgnoreACPI(true)
		c := dial(t, target)
		if err := c.On(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := c.Off(within(t, time.Second), false); !errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("soft off: %v; want ErrUnverified", err)
		}
		if n := b.Count("shutdown"); n != 1 {
			t.Errorf("asked %d times, want 1", n)
		}
		if err := c.Off(within(t, 20*time.Second), true); err != nil || machine.Powered() {
			t.Errorf("hard off: %v, powered %v", err, machine.Powered())
		}
	})
}

func TestLostReplyIsNeverRepeated(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.LoseReply = true })
		ctx := within(t, 90*time.Second)
		if err := c.On(ctx); err != nil {
			t.Errorf("on: %v", err)
		}
		if len(machine.Starts()) != 1 || b.Done("power-on") != 1 {
			t.Errorf("%d starts, %d commands; want 1 and 1", len(machine.Starts()), b.Done("power-on"))
		}
	})
}

func TestIgnoredBootIsUnverified(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.IgnoreBoot = true })
		err := c.SetNextBoot(within(t, time.Second), bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true})
		if !errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("set: %v; want ErrUnverified", err)
		}
	})
}

func TestFlippedModeIsUnverified(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.FlipMode = true })
		err := c.SetNextBoot(within(t, time.Second), bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true})
		if !errors.Is(err, bmc.ErrUnverified) || !strings.Contains(err.Error(), "network (BIOS)") {
			t.Errorf("set: %v; want ErrUnverified and what was read", err)
		}
	})
}

func TestLostFlagShowsInWhatTheMachineBoots(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.LoseBoot = true })
		ctx := within(t, 20*time.Second)
		if err := c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}); err != nil {
			t.Fatal(err)
		}
		if err := c.On(ctx); err != nil {
			t.Fatal(err)
		}
		if starts := machine.Starts(); len(starts) != 1 || starts[0] != (testenv.BootOnce{}) {
			t.Errorf("starts %v: want the machine's own order", starts)
		}
	})
}

func TestHangEndsAtTheDeadline(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.Hang = true })
		began := time.Now()
		_, err := c.Power(within(t, 500*time.Millisecond))
		if !errors.Is(err, bmc.ErrTimeout) {
			t.Errorf("power: %v; want ErrTimeout", err)
		}
		err = c.Close(t.Context())
		if took := time.Since(began); err != nil || took > 5*time.Second {
			t.Errorf("close: %v after %v", err, took)
		}
	})
}

func TestHungBMCRecovers(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.Hang = true })
		if _, err := c.Power(within(t, 300*time.Millisecond)); err == nil {
			t.Fatal("a hung BMC answered")
		}
		b.SetFaults(func(f *testenv.BMCFaults) { f.Hang = false })
		if _, err := c.Power(within(t, 20*time.Second)); err != nil {
			t.Errorf("power after the hang: %v", err)
		}
	})
}

func TestBusyIsBusy(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.Busy = true })
		if err := c.On(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrBusy) {
			t.Errorf("on: %v; want ErrBusy", err)
		}
		b.SetFaults(func(f *testenv.BMCFaults) { f.Busy = false })
		if err := c.On(within(t, 20*time.Second)); err != nil {
			t.Errorf("on, later: %v", err)
		}
	})
}

func TestFullSessionTableIsBusyOrGoneAround(t *testing.T) {
	t.Parallel()
	t.Run("redfish", func(t *testing.T) {
		machine := &testenv.SimMachine{}
		b := newRedfish(t, testenv.RedfishOptions{Machine: machine, Sessions: 1})
		dial(t, redfishTarget(b)) // as a server that was killed would leave it
		if err := dial(t, redfishTarget(b)).On(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if starts := machine.Starts(); len(starts) != 1 {
			t.Errorf("starts %v", starts)
		}
		wrong := redfishTarget(b)
		wrong.Password = "wrong"
		if _, err := bmc.Dial(within(t, 20*time.Second), wrong); !errors.Is(err, bmc.ErrAuth) {
			t.Errorf("a wrong password: %v; want ErrAuth", err)
		}
	})
	t.Run("ipmi", func(t *testing.T) {
		b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}, Sessions: 1})
		first := dial(t, ipmiTarget(b))
		if _, err := bmc.Dial(within(t, 20*time.Second), ipmiTarget(b)); !errors.Is(err, bmc.ErrBusy) {
			t.Errorf("second session: %v; want ErrBusy", err)
		}
		if err := first.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		dial(t, ipmiTarget(b))
	})
}

func TestNobodyThereIsUnreachable(t *testing.T) {
	t.Parallel()
	port := freeUDPPort(t)
	for _, url := range []string{
		fmt.Sprintf("ipmi://127.0.0.1:%d", port),
		fmt.Sprintf("redfish://127.0.0.1:%d", port),
	} {
		_, err := bmc.Dial(within(t, 20*time.Second), bmc.Target{URL: url, User: user, Password: password, Pin: inventory.DigestOf(nil)})
		if !errors.Is(err, bmc.ErrUnreachable) {
			t.Errorf("%s: %v; want ErrUnreachable", url, err)
		}
	}
}

func TestSilentIPMIIsUnreachable(t *testing.T) {
	t.Parallel()
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	began := time.Now()
	_, err = bmc.Dial(within(t, 30*time.Second), bmc.Target{URL: "ipmi://" + silent.LocalAddr().String(), User: user, Password: password})
	if !errors.Is(err, bmc.ErrUnreachable) {
		t.Errorf("%v; want ErrUnreachable", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestNoPinMeansNoPassword(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	for name, pin := range map[string]inventory.Digest{"none": "", "another": inventory.DigestOf([]byte("another"))} {
		t.Run(name, func(t *testing.T) {
			target := redfishTarget(b)
			target.Pin = pin
			_, err := bmc.Dial(within(t, 20*time.Second), target)
			if !errors.Is(err, bmc.ErrPin) {
				t.Fatalf("dial: %v; want ErrPin", err)
			}
			// The operator needs the fingerprint to compare and to pin.
			if !strings.Contains(err.Error(), b.Pin().String()) || !strings.Contains(err.Error(), "bmc.pin") {
				t.Errorf("the error does not show what to pin: %v", err)
			}
			var pinError *bmc.PinError
			if !errors.As(err, &pinError) || pinError.Seen != b.Pin() {
				t.Errorf("no PinError with what was seen in %v", err)
			}
			if len(b.Requests()) != 0 {
				t.Errorf("requests reached an unpinned BMC: %v", b.Requests())
			}
		})
	}
	seen, err := bmc.Fingerprint(within(t, 20*time.Second), b.URL())
	if err != nil || seen != b.Pin() {
		t.Errorf("fingerprint %s, %v; want %s", seen, err, b.Pin())
	}
}

func TestTheNamedSystemIsTheOneSwitched(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine, SystemID: "blade2", OtherSystems: []testenv.RedfishSystem{{ID: "blade1"}, {ID: "blade3"}}})
	target := redfishTarget(b)
	if _, err := bmc.Dial(within(t, 20*time.Second), target); !errors.Is(err, bmc.ErrUnsupported) || !strings.Contains(err.Error(), "blade2") {
		t.Errorf("no system named: %v; want ErrUnsupported and the names", err)
	}
	target.URL = b.URL() + "/redfish/v1/Systems/blade9"
	if _, err := bmc.Dial(within(t, 20*time.Second), target); !errors.Is(err, bmc.ErrUnsupported) {
		t.Errorf("unknown system: %v; want ErrUnsupported", err)
	}
	for _, suffix := range []string{"/redfish/v1/Systems/blade2", "?system=blade2", "/systems/blade2"} {
		target.URL = b.URL() + suffix
		c := dial(t, target)
		ctx := within(t, 20*time.Second)
		if err := c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork}); err != nil {
			t.Fatalf("%s: %v", suffix, err)
		}
		if err := c.On(ctx); err != nil || !machine.Powered() {
			t.Fatalf("%s: on: %v, powered %v", suffix, err, machine.Powered())
		}
		if err := c.Off(ctx, true); err != nil || machine.Powered() {
			t.Fatalf("%s: off: %v, powered %v", suffix, err, machine.Powered())
		}
	}
}

func TestRedfishQuirks(t *testing.T) {
	t.Parallel()
	next := bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}
	t.Run("no sessions", func(t *testing.T) {
		machine := &testenv.SimMachine{Firmware: true}
		b := newRedfish(t, testenv.RedfishOptions{Machine: machine, NoSessions: true})
		c := dial(t, redfishTarget(b))
		if err := errors.Join(c.SetNextBoot(within(t, 20*time.Second), next), c.On(within(t, 20*time.Second))); err != nil {
			t.Fatal(err)
		}
		if starts := machine.Starts(); len(starts) != 1 || starts[0].Device != testenv.BootPXE {
			t.Errorf("starts %v", starts)
		}
	})
	t.Run("no sessions, wrong password", func(t *testing.T) {
		b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, NoSessions: true})
		target := redfishTarget(b)
		target.Password = "wrong"
		if _, err := bmc.Dial(within(t, 20*time.Second), target); !errors.Is(err, bmc.ErrAuth) {
			t.Errorf("dial: %v; want ErrAuth", err)
		}
		if n := b.Count("login"); n != 1 {
			t.Errorf("%d logins, want 1", n)
		}
	})
	t.Run("demands an etag", func(t *testing.T) {
		b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{Firmware: true}, Faults: testenv.BMCFaults{NeedETag: true}})
		c := dial(t, redfishTarget(b))
		if err := c.SetNextBoot(within(t, 20*time.Second), next); err != nil {
			t.Error(err)
		}
	})
	t.Run("changes and says that it refused", func(t *testing.T) {
		machine := &testenv.SimMachine{Firmware: true}
		b := newRedfish(t, testenv.RedfishOptions{Machine: machine, Faults: testenv.BMCFaults{RejectAfter: true}})
		c := dial(t, redfishTarget(b))
		if err := errors.Join(c.SetNextBoot(within(t, 20*time.Second), next), c.On(within(t, 20*time.Second))); err != nil {
			t.Fatal(err)
		}
		if n := b.Done("power-on"); n != 1 {
			t.Errorf("%d power-on, want 1", n)
		}
	})
}

func TestIPMIQuirks(t *testing.T) {
	t.Parallel()
	next := bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}
	t.Run("no fallback to a weaker suite", func(t *testing.T) {
		b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}, Suites: []int{3}})
		if _, err := bmc.Dial(within(t, 20*time.Second), ipmiTarget(b)); !errors.Is(err, bmc.ErrUnsupported) {
			t.Errorf("dial: %v; want ErrUnsupported", err)
		}
		if n := b.Count("login"); n != 0 {
			t.Errorf("%d logins with a suite that nobody asked for", n)
		}
	})
	t.Run("the override is kept from expiring", func(t *testing.T) {
		b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{BootExpiry: time.Nanosecond}})
		c := dial(t, ipmiTarget(b))
		if err := c.SetNextBoot(within(t, 20*time.Second), next); err != nil {
			t.Error(err)
		}
	})
	t.Run("parameter 3 may be refused", func(t *testing.T) {
		b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{RejectParam3: true}})
		c := dial(t, ipmiTarget(b))
		if err := c.SetNextBoot(within(t, 20*time.Second), next); err != nil {
			t.Error(err)
		}
	})
	t.Run("an expired override is not one", func(t *testing.T) {
		b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{RejectParam3: true, BootExpiry: time.Nanosecond}})
		c := dial(t, ipmiTarget(b))
		if err := c.SetNextBoot(within(t, time.Second), next); !errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("set: %v; want ErrUnverified", err)
		}
	})
}

// lossyPipe relays datagrams between a client and a BMC and drops what lose says.
func lossyPipe(t *testing.T, to string, lose func(answer bool, p []byte) bool) string {
	t.Helper()
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	backs := map[string]net.Conn{}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		p := make([]byte, 4096)
		for {
			n, from, err := front.ReadFrom(p)
			if err != nil {
				return
			}
			mu.Lock()
			back := backs[from.String()]
			if back == nil {
				if back, err = net.Dial("udp", to); err != nil {
					mu.Unlock()
					return
				}
				backs[from.String()] = back
				wg.Add(1)
				go func() {
					defer wg.Done()
					p := make([]byte, 4096)
					for {
						n, err := back.Read(p)
						if err != nil {
							return
						}
						if !lose(true, p[:n]) {
							_, _ = front.WriteTo(p[:n], from)
						}
					}
				}()
			}
			mu.Unlock()
			if !lose(false, p[:n]) {
				_, _ = back.Write(p[:n])
			}
		}
	}()
	t.Cleanup(func() {
		_ = front.Close()
		mu.Lock()
		for _, b := range backs {
			_ = b.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return front.LocalAddr().String()
}

func TestOneLostPacketNeitherSwitchesTwiceNorLooksLikeAWrongPassword(t *testing.T) {
	// A login, a look, a power on and a power off are 24 datagrams; each one is lost once.
	for lost := int64(1); lost <= 24; lost++ {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			t.Parallel()
			machine := &testenv.SimMachine{Firmware: true}
			b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
			var count atomic.Int64
			target := ipmiTarget(b)
			target.URL = "ipmi://" + lossyPipe(t, b.Addr(), func(bool, []byte) bool { return count.Add(1) == lost })
			c := dial(t, target)
			ctx := within(t, 30*time.Second)
			for _, do := range []func() error{
				func() error { _, err := c.Power(ctx); return err },
				func() error { return c.On(ctx) },
				func() error { return c.Off(ctx, true) },
			} {
				err := do()
				if errors.Is(err, bmc.ErrTimeout) {
					err = do() // the command itself was lost: asking again is the caller's
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if starts, stops := len(machine.Starts()), machine.Stops(); starts != 1 || stops != 1 {
				t.Errorf("%d starts, %d stops; want 1 and 1", starts, stops)
			}
			if on, off := b.Done("power-on"), b.Done("power-off"); on != 1 || off != 1 {
				t.Errorf("%d times told on, %d times off; want 1 and 1", on, off)
			}
			if count.Load() < lost {
				t.Errorf("only %d datagrams: nothing was lost", count.Load())
			}
		})
	}
}

func TestForgedAndBrokenAnswersAreDropped(t *testing.T) {
	t.Parallel()
	// Before each true answer inside the session comes a forged one: clear text
	// that says "on", the true one with a flipped bit, and noise.
	machine := &testenv.SimMachine{}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("udp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	var client atomic.Pointer[net.Addr]
	var sequence atomic.Int64
	var forged atomic.Int64
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		p := make([]byte, 4096)
		for {
			n, from, err := front.ReadFrom(p)
			if err != nil {
				return
			}
			client.Store(&from)
			if n > 16 && p[4] == 6 && p[5] == 0xc0 {
				sequence.Add(1)
			}
			_, _ = back.Write(p[:n])
		}
	}()
	go func() {
		defer wg.Done()
		p := make([]byte, 4096)
		for {
			n, err := back.Read(p)
			if err != nil {
				return
			}
			to := *client.Load()
			if n > 20 && p[4] == 6 && p[5] == 0xc0 {
				forged.Add(1)
				// Every request sequence number a client could be waiting for:
				// "chassis is on" in clear, with and without a session.
				for rq := range byte(64) {
					body := []byte{0x81, 0x04, 0x7b, 0x20, rq << 2, 0x01, 0x00, 0x01, 0, 0, 0}
					sum := byte(0)
					for _, x := range body[3:] {
						sum -= x
					}
					body = append(body, sum)
					plain := append([]byte{6, 0, 0xff, 7, 6, 0, p[6], p[7], p[8], p[9], 9, 9, 0, 0, byte(len(body)), 0}, body...)
					old := append([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(body))}, body...)
					_, _ = front.WriteTo(plain, to)
					_, _ = front.WriteTo(old, to)
				}
				for _, at := range []int{5, 6, 10, 14, 17, n / 2, n - 1} {
					bad := append([]byte(nil), p[:n]...)
					bad[at] ^= 0x41
					_, _ = front.WriteTo(bad, to)
				}
				_, _ = front.WriteTo(p[:n/2], to)
				_, _ = front.WriteTo([]byte{6}, to)
				_, _ = front.WriteTo(append([]byte{6, 0, 0xff, 7, 6, 0xc0, p[6], p[7], p[8], p[9], 1, 0, 0, 0, 3, 0}, 1, 2, 3), to)
			}
			_, _ = front.WriteTo(p[:n], to)
		}
	}()
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		wg.Wait()
	})
	target := ipmiTarget(b)
	target.URL = "ipmi://" + front.LocalAddr().String()
	c := dial(t, target)
	ctx := within(t, 30*time.Second)
	for range 3 {
		if state, err := c.Power(ctx); err != nil || state != bmc.PowerOff {
			t.Fatalf("power %q, %v; want off, as the BMC says", state, err)
		}
	}
	if err := c.On(ctx); err != nil {
		t.Fatal(err)
	}
	if forged.Load() == 0 {
		t.Error("nothing was forged")
	}
}
