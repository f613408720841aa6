package bmc_test

import (
	"context"
	"errors"
	"path"
	"strings"
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
	// What else it offers.
	http   bool
	cd     bool
	medium func() string // in the machine's drive; nil: the BMC has no virtual media
	serial string        // that it tells
	event  func()        // makes one in the log; nil: it has none to speak of
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) subject{
		"fake":     startFake,
		"redfish":  startRedfish,
		"ipmi 17":  func(t *testing.T) subject { return startIPMI(t, 17) },
		"ipmi 3":   func(t *testing.T) subject { return startIPMI(t, 3) },
		"ipmi_sim": startIPMISim,
		"fakebmc":  startFakeBMC,
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
				{"HTTP Boot is done or unsupported", contractHTTPBoot},
				{"a medium is inserted, replaced and ejected, or unsupported", contractMedia},
				{"it offers what it does", contractOffers},
				{"it says who it is", contractIdentity},
				{"events are told once, from a cursor on", contractEvents},
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

func contractOffers(t *testing.T, ctx context.Context, s subject) {
	got, err := s.client.(bmc.Offerer).Offers(ctx)
	if want := (bmc.Offers{HTTPBoot: s.http, Media: s.medium != nil}); err != nil || got != want {
		t.Errorf("it offers %+v, %v; want %+v", got, err, want)
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
		{Device: bmc.BootCD, UEFI: s.uefi},
		{Device: bmc.BootDefault},
		{Device: bmc.BootDefault},
	} {
		if next.Device == bmc.BootCD && !s.cd {
			continue
		}
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

func contractHTTPBoot(t *testing.T, ctx context.Context, s subject) {
	next := bmc.NextBoot{Device: bmc.BootHTTP, UEFI: true, URI: "http://192.0.2.1/boot.efi"}
	err := s.client.SetNextBoot(ctx, next)
	now, readErr := s.client.NextBoot(ctx)
	switch {
	case readErr != nil:
		t.Error(readErr)
	case s.http && (err != nil || now != next):
		t.Errorf("%v, it reads back as %+v", err, now)
	case !s.http && (!errors.Is(err, bmc.ErrUnsupported) || now.Device != bmc.BootDefault):
		t.Errorf("%v, it reads back as %+v; want ErrUnsupported and no override", err, now)
	}
}

func contractMedia(t *testing.T, ctx context.Context, s subject) {
	media := s.client.(bmc.Media)
	uri := image(t)
	if s.medium == nil {
		if err := media.InsertMedia(ctx, uri); !errors.Is(err, bmc.ErrUnsupported) {
			t.Errorf("%v; want ErrUnsupported", err)
		}
		return
	}
	for _, name := range []string{"m.iso", "m.iso", "n.iso", "", ""} {
		var err error
		if name == "" {
			err = media.EjectMedia(ctx)
		} else {
			err = media.InsertMedia(ctx, strings.Replace(uri, "m.iso", name, 1))
		}
		if err != nil || s.medium() != name {
			t.Fatalf("want %q in the drive: %v, it holds %q", name, err, s.medium())
		}
		drives, err := media.Media(ctx)
		if err != nil || len(drives) == 0 || drives[0].Inserted != (name != "") || path.Base(drives[0].Image) != name && name != "" {
			t.Errorf("want %q: %+v, %v", name, drives, err)
		}
	}
	if err := media.InsertMedia(ctx, "nfs://192.0.2.1/m.iso"); err == nil || s.medium() != "" {
		t.Errorf("not HTTP: %v, %q", err, s.medium())
	}
}

func contractIdentity(t *testing.T, ctx context.Context, s subject) {
	d := s.client.(bmc.Describer)
	id, err := d.Identity(ctx)
	if err != nil || id.Serial != s.serial || s.serial != "" && id.UUID != machineUUID {
		t.Errorf("identity %+v, %v; want the serial number %q", id, err, s.serial)
	}
	all, err := d.Inventory(ctx)
	if err != nil || all.Identity != id {
		t.Errorf("inventory %+v, %v; want the same identity", all, err)
	}
}

func contractEvents(t *testing.T, ctx context.Context, s subject) {
	if s.event == nil {
		return
	}
	log := s.client.(bmc.EventLog)
	all, err := log.Events(ctx, "") // whatever its start left
	if err != nil || all.Lost || all.More {
		t.Fatalf("%+v, %v", all, err)
	}
	for range 2 {
		s.event()
		next, err := log.Events(ctx, all.Cursor)
		if err != nil || len(next.Events) == 0 || next.Lost || next.More || next.Cursor == all.Cursor {
			t.Fatalf("after an event: %+v, %v", next, err)
		}
		for _, e := range next.Events {
			if e.Text == "" || e.ID == "" || time.Since(e.At) > time.Hour {
				t.Errorf("event %+v", e)
			}
		}
		again, err := log.Events(ctx, next.Cursor)
		if err != nil || len(again.Events) != 0 || again.Lost || again.Cursor != next.Cursor {
			t.Errorf("again: %+v, %v", again, err)
		}
		all = next
	}
	if _, err := log.Events(ctx, "nonsense"); err == nil {
		t.Error("a cursor of nobody was taken")
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
	f := &bmc.Fake{Told: bmc.Inventory{Identity: bmc.Identity{Serial: "SN42", UUID: machineUUID}}}
	c, err := f.Dial(t.Context(), bmc.Target{})
	if err != nil {
		t.Fatal(err)
	}
	medium := func() string {
		if f.Medium() == "" {
			return ""
		}
		return path.Base(f.Medium())
	}
	return subject{client: c, powered: f.Powered, uefi: true, once: true, soft: true, http: true, cd: true, medium: medium, serial: "SN42",
		event: func() { f.AddEvent(bmc.Event{At: time.Now(), Text: "fan 1 stands still"}) }}
}

func startRedfish(t *testing.T) subject {
	machine := &testenv.SimMachine{Firmware: true}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine, UUID: machineUUID, Serial: "SN42"})
	medium := func() string {
		if m := machine.Medium(); m != nil {
			return m.Name()
		}
		return ""
	}
	return subject{client: dial(t, redfishTarget(b)), powered: machine.Powered, uefi: true, once: true, soft: true,
		http: true, cd: true, medium: medium, serial: "SN42", event: func() { b.AddLogEntry("Critical", "fan 1 stands still") }}
}

func startIPMI(t *testing.T, suite int) subject {
	machine := &testenv.SimMachine{Firmware: true}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine, Suites: []int{suite}, UUID: machineUUID, Serial: "SN42"})
	target := ipmiTarget(b)
	target.CipherSuite = suite
	return subject{client: dial(t, target), powered: machine.Powered, uefi: true, once: true, soft: true, cd: true, serial: "SN42",
		event: func() {
			_ = machine.PowerOn(context.Background())
			_ = machine.Reset(context.Background())
		}}
}

const (
	user, password = "admin", "secret"
	machineUUID    = "12345678-9abc-4def-8123-456789abcdef"
)

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
