package bmc_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/bmc"
	"recast/testenv"
)

// powerRow is a way of a BMC with power, and what becomes of on and off.
type powerRow struct {
	name   string
	faults testenv.BMCFaults
	want   error // of on; nil: done, and off as well
	asked  int   // how often on is sent; 0: once
}

// The rows of the quirk table that are about power, for both protocols and for Redfish
// alone. None was seen on metal.
var (
	powerRows = []powerRow{
		{name: "keeps its word"},
		{name: "shows a change late", faults: testenv.BMCFaults{PowerLag: 300 * time.Millisecond}},
		{name: "shows the old state to the first looks", faults: testenv.BMCFaults{StaleReads: 3}},
		{name: "answers slowly", faults: testenv.BMCFaults{Delay: 50 * time.Millisecond}},
		{name: "does not answer to a change", faults: testenv.BMCFaults{LoseReply: true}},
		{name: "does nothing", faults: testenv.BMCFaults{IgnorePower: true}, want: bmc.ErrUnverified},
		{name: "is busy", faults: testenv.BMCFaults{Busy: true}, want: bmc.ErrBusy, asked: -1},
	}
	redfishPowerRows = []powerRow{
		{name: "tells PoweringOn and PoweringOff", faults: testenv.BMCFaults{PowerLag: 300 * time.Millisecond, Redfish: testenv.RedfishFaults{PoweringWords: true}}},
		{name: "has ForceOn alone", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Resets: []string{"ForceOn", "ForceOff"}}}},
		{name: "has the power button alone", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Resets: []string{"PushPowerButton", "ForceOff"}}}},
		{name: "tells its reset types in an ActionInfo", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{ActionInfo: true, Resets: []string{"PushPowerButton", "ForceOff"}}}},
		{name: "has no way to switch on", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Resets: []string{"ForceRestart", "PowerCycle"}}}, want: bmc.ErrUnsupported, asked: -1},
		{name: "accepts what changes nothing", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{AcceptSame: true}}},
		{name: "refuses an action with If-Match", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{RefuseIfMatchPost: true}}},
		{name: "answers a changed state with a refusal", faults: testenv.BMCFaults{RejectAfter: true}},
		{name: "serves one request at a time", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Workers: 1}}},
		{name: "is slow to check a password", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{LoginTakes: 100 * time.Millisecond}}},
		{name: "redirects to a path with a slash", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{RedirectSlash: true}}},
		{name: "answers with a task", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Task: testenv.TaskOK, TaskTakes: 100 * time.Millisecond, TaskHidden: 50 * time.Millisecond}}},
	}
)

func TestPowerOnEachKindOfBMC(t *testing.T) {
	t.Parallel()
	row := func(kind string, r powerRow, start func(*testing.T, *testenv.SimMachine) (front, bmc.Target)) {
		t.Run(kind+" "+r.name, func(t *testing.T) {
			t.Parallel()
			machine := &testenv.SimMachine{}
			b, target := start(t, machine)
			c := dial(t, target)
			b.SetFaults(func(f *testenv.BMCFaults) { *f = r.faults })
			ctx := within(t, 30*time.Second)
			if r.want != nil {
				ctx = within(t, time.Second)
			}
			err := c.On(ctx)
			asked := b.Count("power-on") + b.Count("button")
			if want := max(r.asked, 0) + map[bool]int{true: 1}[r.asked == 0]; asked != want {
				t.Errorf("on was asked for %d times, want %d", asked, want)
			}
			if r.want != nil {
				if !errors.Is(err, r.want) || machine.Powered() {
					t.Errorf("on: %v, powered %v; want %v", err, machine.Powered(), r.want)
				}
				return
			}
			if err != nil || !machine.Powered() {
				t.Fatalf("on: %v, powered %v", err, machine.Powered())
			}
			if err := c.On(ctx); err != nil || b.Count("power-on")+b.Count("button") != asked {
				t.Errorf("on again: %v, asked %d times more", err, b.Count("power-on")+b.Count("button")-asked)
			}
			if err := c.Off(ctx, true); err != nil || machine.Powered() {
				t.Errorf("off: %v, powered %v", err, machine.Powered())
			}
			if n := len(machine.Starts()); n != 1 || machine.Stops() != 1 {
				t.Errorf("%d starts and %d stops, want one of each", n, machine.Stops())
			}
		})
	}
	for _, r := range append(powerRows, redfishPowerRows...) {
		row("redfish", r, func(t *testing.T, machine *testenv.SimMachine) (front, bmc.Target) {
			b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
			return b, redfishTarget(b)
		})
	}
	for _, r := range powerRows {
		row("ipmi", r, func(t *testing.T, machine *testenv.SimMachine) (front, bmc.Target) {
			b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
			return b, ipmiTarget(b)
		})
	}
}

func TestRefusedForAMomentIsBusyThenDone(t *testing.T) {
	t.Parallel()
	const moment = 400 * time.Millisecond
	armed := bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}
	for _, c := range []struct {
		name   string
		faults testenv.RedfishFaults
		before func(context.Context, bmc.Client) error
		do     func(context.Context, bmc.Client) error
		verb   string
	}{
		{"On after off (iDRAC10)", testenv.RedfishFaults{OnRefused: moment},
			func(ctx context.Context, c bmc.Client) error { return errors.Join(c.On(ctx), c.Off(ctx, true)) },
			func(ctx context.Context, c bmc.Client) error { return c.On(ctx) }, "power-on"},
		{"a change while it starts (HPE)", testenv.RedfishFaults{POST: moment},
			func(ctx context.Context, c bmc.Client) error { return c.On(ctx) },
			func(ctx context.Context, c bmc.Client) error { return c.SetNextBoot(ctx, armed) }, "set-boot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{Firmware: true}, Faults: testenv.BMCFaults{Redfish: c.faults}})
			client := dial(t, redfishTarget(b))
			ctx := within(t, 30*time.Second)
			if err := c.before(ctx, client); err != nil {
				t.Fatal(err)
			}
			done := b.Done(c.verb)
			var backoff bmc.Backoff
			err := c.do(ctx, client)
			if !errors.Is(err, bmc.ErrBusy) || bmc.OutcomeOf(err) != bmc.Refused || b.Done(c.verb) != done {
				t.Fatalf("at once: %v, %d times more; want ErrBusy", err, b.Done(c.verb)-done)
			}
			for err != nil {
				select {
				case <-time.After(backoff.Next(err) / 10):
				case <-ctx.Done():
					t.Fatal(err)
				}
				err = c.do(ctx, client)
			}
			if n := b.Done(c.verb) - done; n != 1 {
				t.Errorf("done %d times, want once", n)
			}
		})
	}
}

func TestModeThatIsAJobOfTheBIOSIsNotDone(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{Firmware: true}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine, Faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{ModeJob: true}}})
	c := dial(t, redfishTarget(b))
	for i := range 2 { // the second is refused while the first waits
		if err := c.SetNextBoot(within(t, time.Second), bmc.NextBoot{Device: bmc.BootNetwork}); err == nil || machine.BootOnce() != (testenv.BootOnce{}) {
			t.Errorf("%d: %v, the machine has %v", i, err, machine.BootOnce())
		}
	}
	if n := len(machine.Starts()); n != 0 {
		t.Errorf("%d starts", n)
	}
}

func TestOverrideThatStaysIsCleared(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.KeepBoot = true })
		ctx := within(t, 20*time.Second)
		next := bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}
		if err := errors.Join(c.SetNextBoot(ctx, next), c.On(ctx)); err != nil {
			t.Fatal(err)
		}
		if now, err := c.NextBoot(ctx); err != nil || now != next {
			t.Errorf("after the start %v, %v; it stays", now, err)
		}
		if err := c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootDefault}); err != nil {
			t.Fatal(err)
		}
		if err := machine.Reset(ctx); err != nil {
			t.Fatal(err)
		}
		if starts := machine.Starts(); len(starts) != 2 || starts[1] != (testenv.BootOnce{}) {
			t.Errorf("starts %v, want the second without an override", starts)
		}
	})
}

func TestOverrideThatARestartOfTheBMCForgetsIsSeenToBeGone(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{Firmware: true}, Faults: testenv.BMCFaults{ForgetBoot: true}})
	c := dial(t, redfishTarget(b))
	ctx := within(t, 20*time.Second)
	if err := c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}); err != nil {
		t.Fatal(err)
	}
	b.Restart()
	for {
		now, err := c.NextBoot(ctx)
		if err == nil && now.Device == bmc.BootDefault {
			break
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, bmc.ErrUnreachable) && !errors.Is(err, bmc.ErrTimeout) && !errors.Is(err, bmc.ErrBusy) {
			t.Fatalf("%v, %v", now, err)
		}
	}
}

func TestPasswordDoesNotFollowARedirect(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 100)
	other := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method + " " + r.URL.Path }))
	t.Cleanup(other.Close)
	for _, basic := range []bool{false, true} {
		b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{Firmware: true}, NoSessions: basic})
		c := dial(t, redfishTarget(b))
		b.SetFaults(func(f *testenv.BMCFaults) { f.Redfish.RedirectTo = other.Listener.Addr().String() })
		ctx := within(t, 5*time.Second)
		_, err := c.Power(ctx)
		for _, err := range []error{err, c.On(ctx), c.SetNextBoot(ctx, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}), c.(bmc.Media).InsertMedia(ctx, "http://192.0.2.1/m.iso")} {
			if !errors.Is(err, bmc.ErrRejected) {
				t.Errorf("basic %v: %v; want ErrRejected", basic, err)
			}
		}
		if _, err := bmc.Dial(ctx, redfishTarget(b)); err == nil {
			t.Error("logged in elsewhere")
		}
	}
	select {
	case what := <-asked:
		t.Errorf("another host was asked: %s", what)
	default:
	}
}

// gofish appends what the BMC calls the path of a session to its address.
func TestSessionElsewhereIsNotClosedThere(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 100)
	other := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method + " " + r.URL.Path }))
	t.Cleanup(other.Close)
	for _, uri := range []string{"@" + other.Listener.Addr().String() + "/x", ".example/x", "0/x"} {
		s := newTree(t, nil)
		s.location = uri
		c := dial(t, s.target(""))
		if state, err := c.Power(within(t, 20*time.Second)); err != nil || state != bmc.PowerOff {
			t.Errorf("%q: %q, %v", uri, state, err)
		}
		if err := c.Close(within(t, 20*time.Second)); err != nil {
			t.Errorf("%q: %v", uri, err)
		}
	}
	select {
	case what := <-asked:
		t.Errorf("another host was asked: %s", what)
	default:
	}
}

func TestCertificateOfARestartStopsEverything(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{NewCertificateAtRestart: true}}})
	c := dial(t, redfishTarget(b))
	old := redfishTarget(b)
	b.Restart()
	logins := b.Count("login")
	ctx := within(t, 20*time.Second)
	var err error
	for { // it may be away for a moment
		if err = c.On(ctx); errors.Is(err, bmc.ErrPin) || ctx.Err() != nil {
			break
		}
	}
	_, again := bmc.Dial(ctx, old)
	for _, err := range []error{err, again} {
		var pin *bmc.PinError
		if !errors.As(err, &pin) || pin.Seen != b.Pin() || pin.Want != old.Pin {
			t.Errorf("%v; want the one seen and the one pinned", err)
		}
	}
	if n := b.Count("login"); n != logins || b.Count("power-on") != 0 {
		t.Errorf("%d logins, %d power-on after it", n-logins, b.Count("power-on"))
	}
}

func TestLockedAccountIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{LockAfter: 1}})
	wrong := redfishTarget(b)
	wrong.Password = "wrong"
	for i, target := range []bmc.Target{wrong, redfishTarget(b)} {
		if _, err := bmc.Dial(within(t, 20*time.Second), target); !errors.Is(err, bmc.ErrAuth) && !errors.Is(err, bmc.ErrLockedOut) {
			t.Errorf("%d: %v; want a refused login", i, err)
		}
	}
	if n := b.Count("login"); n != 2 {
		t.Errorf("%d logins, want one of each", n)
	}
}

// A service that takes passwords for sessions alone, and has none free, says 401 to
// basic authentication: that is no wrong password.
func TestFullSessionsWithoutBasicAreBusyNotAWrongPassword(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, Sessions: 1, NoBasic: true})
	first := dial(t, redfishTarget(b))
	fleet := &bmc.Fleet{}
	t.Cleanup(func() { _ = fleet.Close(context.Background()) })
	do := func() error { return fleet.Do(within(t, 20*time.Second), redfishTarget(b), look) }
	for range 2 {
		if err := do(); !errors.Is(err, bmc.ErrBusy) {
			t.Fatalf("%v; want ErrBusy", err)
		}
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := do(); err != nil {
		t.Errorf("with a place that is free: %v", err)
	}
}

func TestPagesAndHolesMakeNoDifference(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, Serial: "SN42", UUID: machineUUID, Drives: []string{"CD1", "CD2", "CD3"}})
	c := dial(t, redfishTarget(b))
	read := func() (bmc.Inventory, []bmc.Drive) {
		all, err := c.(bmc.Describer).Inventory(within(t, 20*time.Second))
		drives, mediaErr := c.(bmc.Media).Media(within(t, 20*time.Second))
		if err != nil || mediaErr != nil {
			t.Fatal(err, mediaErr)
		}
		return all, drives
	}
	all, drives := read()
	for name, faults := range map[string]testenv.RedfishFaults{
		"pages":                  {Page: 1},
		"numbers as text":        {NumbersAsText: true},
		"no states":              {Holes: []string{"State", "Status", "ManagedBy", "@odata.type", "Members@odata.count"}},
		"compressed on demand":   {Gzip: testenv.GzipDemand}, // of registries, which nobody reads
		"a slash at every end":   {RedirectSlash: true},
		"one worker, in a hurry": {Workers: 1},
	} {
		b.SetFaults(func(f *testenv.BMCFaults) { f.Redfish = faults })
		again, drivesAgain := read()
		if diff := cmp.Diff(all, again) + cmp.Diff(drives, drivesAgain); diff != "" {
			t.Errorf("%s (-before +after):\n%s", name, diff)
		}
	}
}
