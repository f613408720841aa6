package bmc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

// bootRow is a way of a BMC with boot overrides, and what becomes of an intent.
type bootRow struct {
	name    string
	faults  testenv.BMCFaults
	options testenv.RedfishOptions
	before  *bmc.NextBoot // armed before, as somebody left it
	want    error         // nil: done
	// form that is remembered; "" not looked at.
	form string
}

// The rows of the quirk table that are about boot overrides. None was seen on
// metal: they are what vendors' issue trackers and other clients tell.
var bootRows = []bootRow{
	{name: "keeps its word", form: "full"},
	{name: "wants target, enabled and mode together (AMI, ASRockRack)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{RefusePartialBoot: true}}, form: "full"},
	{name: "refuses an Enabled that does not change", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{RefuseUnchangedBoot: true}},
		before: &bmc.NextBoot{Device: bmc.BootDisk, UEFI: true}, form: "no-enabled"},
	{name: "makes Continuous of what leaves Enabled out (Supermicro)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{NeedEnabled: true}}, form: "full"},
	{name: "refuses Continuous", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{RefuseContinuous: true}}},
	{name: "takes it in the settings object alone (Nokia, iDRAC10)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Settings: testenv.SettingsObject}}},
	{name: "names another place for it (AMI)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Settings: testenv.SettingsFuture}}},
	{name: "advertises a settings object without it", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Settings: testenv.SettingsDecoy}}},
	{name: "advertises one with the boot order alone (Lenovo)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Settings: testenv.SettingsOrder}}},
	{name: "tells no mode (OpenBMC)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Holes: []string{"BootSourceOverrideMode", "BootSourceOverrideMode@Redfish.AllowableValues"}}}},
	{name: "answers 400 and has changed it (iDRAC 13G)", faults: testenv.BMCFaults{RejectAfter: true}},
	{name: "answers 200 and has not", faults: testenv.BMCFaults{IgnoreBoot: true}, want: bmc.ErrUnverified},
	{name: "flips the mode, and again when told (Supermicro)", faults: testenv.BMCFaults{FlipMode: true}, want: bmc.ErrUnverified},
	{name: "answers with a task", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Task: testenv.TaskOK, TaskTakes: 200 * time.Millisecond}}},
	{name: "hides the task at first (Dell)", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Task: testenv.TaskOK, TaskTakes: 50 * time.Millisecond, TaskHidden: 100 * time.Millisecond}}},
	{name: "answers with a task that fails", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Task: testenv.TaskFail}}, want: bmc.ErrRejected},
	{name: "answers with a task that hangs", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Task: testenv.TaskStuck}}, want: bmc.ErrTimeout},
	{name: "demands an ETag", faults: testenv.BMCFaults{NeedETag: true}},
	{name: "demands an ETag, with 412", faults: testenv.BMCFaults{NeedETag: true, Redfish: testenv.RedfishFaults{ETagStatus: http.StatusPreconditionFailed}}},
	{name: "demands a weak ETag", faults: testenv.BMCFaults{NeedETag: true, Redfish: testenv.RedfishFaults{ETag: testenv.ETagWeak}}},
	{name: "gives a weak ETag and demands a strong one", faults: testenv.BMCFaults{NeedETag: true, Redfish: testenv.RedfishFaults{ETag: testenv.ETagWeakFalse}}},
	{name: "gives an empty ETag", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{ETag: testenv.ETagEmpty}}},
	{name: "gives no ETag", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{ETag: testenv.ETagNone}}},
	{name: "changes the ETag with the compression", faults: testenv.BMCFaults{NeedETag: true, Redfish: testenv.RedfishFaults{Gzip: testenv.GzipOffer}}},
	{name: "redirects to a path with a slash", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{RedirectSlash: true}}},
	{name: "leaves properties out", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{Holes: []string{"State", "ManagedBy", "Manufacturer", "@odata.type", "BootSourceOverrideMode@Redfish.AllowableValues"}}}},
	{name: "writes numbers as text", faults: testenv.BMCFaults{Redfish: testenv.RedfishFaults{NumbersAsText: true}}},
}

func TestAnAnswerThatTakesLongerThanTheChangeIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	c := dial(t, bmc.InGreatHurry(redfishTarget(b))) // a change is awaited for 25 ms
	b.SetFaults(func(f *testenv.BMCFaults) { f.Delay = 200 * time.Millisecond })
	if err := c.SetNextBoot(within(t, 20*time.Second), bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}); err != nil {
		t.Error(err)
	}
}

func TestBootOnceOnEachKindOfRedfish(t *testing.T) {
	t.Parallel()
	for _, row := range bootRows {
		for _, next := range []bmc.NextBoot{
			{Device: bmc.BootNetwork, UEFI: true}, {Device: bmc.BootCD, UEFI: true},
			{Device: bmc.BootHTTP, UEFI: true, URI: "http://192.0.2.1/boot.efi?token=t"},
		} {
			if row.want != nil && next.Device != bmc.BootNetwork {
				continue // the refusals are the same
			}
			t.Run(row.name+": "+string(next.Device), func(t *testing.T) {
				t.Parallel()
				machine := &testenv.SimMachine{Firmware: true}
				options := row.options
				options.Machine = machine
				b := newRedfish(t, options)
				c := dial(t, redfishTarget(b))
				ctx := within(t, 60*time.Second)
				if row.want == bmc.ErrTimeout {
					ctx = within(t, time.Second)
				}
				if row.before != nil {
					if err := c.SetNextBoot(ctx, *row.before); err != nil {
						t.Fatal(err)
					}
				}
				b.SetFaults(func(f *testenv.BMCFaults) { *f = row.faults })
				err := c.SetNextBoot(ctx, next)
				if row.want != nil {
					if !errors.Is(err, row.want) {
						t.Errorf("%v; want %v", err, row.want)
					}
					if got := machine.BootOnce(); got == (testenv.BootOnce{Device: testenv.BootPXE, UEFI: true}) {
						t.Errorf("the machine has it all the same: %v", got)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if now, err := c.NextBoot(ctx); err != nil || now != next {
					t.Errorf("it reads back as %+v, %v", now, err)
				}
				facts := c.(bmc.Learner).Facts()
				if row.form != "" && facts.BootForm != row.form {
					t.Errorf("it learned the form %q, want %q", facts.BootForm, row.form)
				}
				b.SetFaults(func(f *testenv.BMCFaults) { f.RejectAfter = false })
				if err := c.On(ctx); err != nil {
					t.Fatal(err)
				}
				devices := map[bmc.BootDevice]testenv.BootDevice{bmc.BootNetwork: testenv.BootPXE, bmc.BootCD: testenv.BootCD, bmc.BootHTTP: testenv.BootHTTP}
				want := testenv.BootOnce{Device: devices[next.Device], UEFI: true, URI: next.URI}
				if starts := machine.Starts(); len(starts) != 1 || starts[0] != want {
					t.Errorf("the machine started %v, want once %v", starts, want)
				}
				if now, err := c.NextBoot(ctx); err != nil || now.Device != bmc.BootDefault {
					t.Errorf("after the start %v, %v", now, err)
				}
			})
		}
	}
}

func TestWhatWorkedIsAskedFirst(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		faults testenv.BMCFaults
		before *bmc.NextBoot
	}{
		{"the ETag", testenv.BMCFaults{NeedETag: true, Redfish: testenv.RedfishFaults{ETag: testenv.ETagWeakFalse}}, nil},
		{"the form", testenv.BMCFaults{Redfish: testenv.RedfishFaults{RefuseUnchangedBoot: true}}, &bmc.NextBoot{Device: bmc.BootDisk, UEFI: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{Firmware: true}})
			patches := func(facts bmc.Facts) (int, bmc.Facts) {
				target := redfishTarget(b)
				target.Facts = facts
				client := dial(t, target)
				b.SetFaults(func(f *testenv.BMCFaults) { *f = testenv.BMCFaults{} })
				if c.before != nil {
					if err := client.SetNextBoot(within(t, 20*time.Second), *c.before); err != nil {
						t.Fatal(err)
					}
				}
				again := dial(t, target) // what was learned of the setting up is not its own
				b.SetFaults(func(f *testenv.BMCFaults) { *f = c.faults })
				b.Forget()
				if err := again.SetNextBoot(within(t, 20*time.Second), bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}); err != nil {
					t.Fatal(err)
				}
				n := 0
				for _, r := range b.Requests() {
					if strings.Contains(r.Detail, "PATCH") || r.Verb == "set-boot" {
						n++
					}
				}
				return n, again.(bmc.Learner).Facts()
			}
			first, facts := patches(bmc.Facts{})
			raw, err := json.Marshal(facts) // as it is stored
			if err != nil {
				t.Fatal(err)
			}
			var stored bmc.Facts
			if err := json.Unmarshal(raw, &stored); err != nil || stored != facts {
				t.Fatalf("%s: %v", raw, err)
			}
			if second, _ := patches(stored); second != 1 || first <= 1 {
				t.Errorf("%d requests to change at first and %d later, want several and 1", first, second)
			}
		})
	}
}

func TestHTTPBootIsDetectedNeverAssumed(t *testing.T) {
	t.Parallel()
	http := bmc.NextBoot{Device: bmc.BootHTTP, UEFI: true}
	withURI := http
	withURI.URI = "http://192.0.2.1/boot.efi"
	for _, c := range []struct {
		name  string
		holes []string
		uefi  bool
		next  bmc.NextBoot
		want  error
	}{
		{"offered", nil, true, withURI, nil},
		{"offered, with the URI that DHCP gives", nil, true, http, nil},
		{"BIOS firmware offers none", nil, false, http, bmc.ErrUnsupported},
		{"no HttpBootUri", []string{"HttpBootUri"}, true, withURI, bmc.ErrUnsupported},
		{"no HttpBootUri, and none wanted", []string{"HttpBootUri"}, true, http, nil},
		{"no list of targets", []string{"BootSourceOverrideTarget@Redfish.AllowableValues"}, true, withURI, bmc.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{Firmware: c.uefi}})
			b.SetFaults(func(f *testenv.BMCFaults) { f.Redfish.Holes = c.holes })
			err := dial(t, redfishTarget(b)).SetNextBoot(within(t, 20*time.Second), c.next)
			if !errors.Is(err, c.want) {
				t.Errorf("%v; want %v", err, c.want)
			}
			if n := b.Count("set-boot"); c.want != nil && n != 0 {
				t.Errorf("%d requests to change it", n)
			}
		})
	}
	t.Run("IPMI has none", func(t *testing.T) {
		b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{Firmware: true}})
		if err := dial(t, ipmiTarget(b)).SetNextBoot(within(t, 20*time.Second), http); !errors.Is(err, bmc.ErrUnsupported) {
			t.Errorf("%v; want ErrUnsupported", err)
		}
	})
	t.Run("nonsense is refused before it is sent", func(t *testing.T) {
		for _, next := range []bmc.NextBoot{
			{Device: bmc.BootHTTP}, {Device: bmc.BootHTTP, UEFI: true, URI: "tftp://192.0.2.1/x"},
			{Device: bmc.BootNetwork, UEFI: true, URI: "http://192.0.2.1/x"}, {Device: bmc.BootHTTP, UEFI: true, URI: "secret"},
		} {
			if err := (&bmc.Fake{}).SetNextBoot(t.Context(), next); err == nil || strings.Contains(err.Error(), "secret") {
				t.Errorf("%+v: %v", next, err)
			}
		}
	})
}

func TestURIOfAnEarlierBootIsNotLoaded(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{Firmware: true}
	b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
	c := dial(t, redfishTarget(b))
	for _, uri := range []string{"http://192.0.2.1/one", "http://192.0.2.1/two", ""} {
		next := bmc.NextBoot{Device: bmc.BootHTTP, UEFI: true, URI: uri}
		if err := c.SetNextBoot(within(t, 20*time.Second), next); err != nil {
			t.Fatal(err)
		}
		if got := machine.BootOnce(); got.URI != uri || got.Device != testenv.BootHTTP {
			t.Errorf("%+v, want %q", got, uri)
		}
	}
}

// image serves a CD image.
func image(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) == "missing.iso" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "m.iso", time.Time{}, bytes.NewReader(make([]byte, 64<<10)))
	}))
	t.Cleanup(server.Close)
	return server.URL + "/media/m.iso"
}

// The rows of the quirk table that are about virtual media. None was seen on metal.
var mediaRows = []struct {
	name    string
	faults  testenv.RedfishFaults
	options testenv.RedfishOptions
	want    error
	form    string
	ejected string
}{
	{name: "follows the specification", form: "insert", ejected: "eject"},
	{name: "has it under the system (Dell)", options: testenv.RedfishOptions{MediaUnderSystem: true}, form: "insert"},
	{name: "has two drives", options: testenv.RedfishOptions{Drives: []string{"CD1", "CD2"}}, form: "insert"},
	{name: "names no manager (Huawei 1288H)", faults: testenv.RedfishFaults{Holes: []string{"ManagedBy"}}, form: "insert"},
	{name: "needs TransferProtocolType (Nokia)", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{Need: []string{"TransferProtocolType"}}}, form: "protocol"},
	{name: "needs TransferMethod too", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{Need: []string{"TransferProtocolType", "TransferMethod"}}}, form: "protocol-method"},
	{name: "needs a user and password", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{Need: []string{"UserName", "Password"}}}, form: "user"},
	{name: "needs them all", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{Need: []string{"UserName", "Password", "TransferProtocolType", "TransferMethod"}}}, form: "user-protocol-method"},
	{name: "refuses Inserted and WriteProtected", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{Refuse: []string{"Inserted", "WriteProtected"}}}, form: "image"},
	{name: "has only PATCH (Lenovo SD530)", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{OnlyPatch: true}}, form: "patch", ejected: "patch"},
	{name: "has only PATCH, without Inserted", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{OnlyPatch: true, Refuse: []string{"Inserted"}}}, form: "patch-image"},
	{name: "shows a medium after it left", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{EjectLag: 300 * time.Millisecond}}, form: "insert"},
	{name: "answers 500 after an ejection", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{EjectBroken: 300 * time.Millisecond}}, form: "insert"},
	{name: "demands a strong ETag for PATCH", faults: testenv.RedfishFaults{ETag: testenv.ETagWeakFalse, Media: testenv.RedfishMediaFaults{OnlyPatch: true}}, form: "patch"},
	{name: "answers with a task", faults: testenv.RedfishFaults{Task: testenv.TaskOK, TaskTakes: 100 * time.Millisecond}, form: "insert"},
	{name: "answers with a task that is hidden", faults: testenv.RedfishFaults{Task: testenv.TaskOK, TaskTakes: 100 * time.Millisecond, TaskHidden: 50 * time.Millisecond}, form: "insert"},
	{name: "answers with a task that hangs", faults: testenv.RedfishFaults{Task: testenv.TaskStuck}, want: bmc.ErrTimeout},
	{name: "needs what nobody sends", faults: testenv.RedfishFaults{Media: testenv.RedfishMediaFaults{Need: []string{"Oem"}}}, want: bmc.ErrRejected},
	{name: "has no drive", options: testenv.RedfishOptions{Drives: []string{}}, want: bmc.ErrUnsupported},
}

func TestVirtualMediaOnEachKindOfRedfish(t *testing.T) {
	t.Parallel()
	for _, row := range mediaRows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			machine := &testenv.SimMachine{Firmware: true}
			row.options.Machine = machine
			b := newRedfish(t, row.options)
			c := dial(t, redfishTarget(b))
			media := c.(bmc.Media)
			b.SetFaults(func(f *testenv.BMCFaults) { f.Redfish = row.faults })
			ctx := within(t, 60*time.Second)
			if row.want == bmc.ErrTimeout {
				ctx = within(t, time.Second)
			}
			uri := image(t)
			err := media.InsertMedia(ctx, uri)
			if row.want != nil {
				if !errors.Is(err, row.want) || machine.Medium() != nil {
					t.Errorf("%v; want %v", err, row.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if facts := c.(bmc.Learner).Facts(); facts.InsertForm != row.form || facts.Drive == "" {
				t.Errorf("it learned %+v, want the form %q", facts, row.form)
			}
			if err := media.InsertMedia(ctx, uri); err != nil || b.Done("insert") != 1 {
				t.Errorf("again: %v, inserted %d times", err, b.Done("insert"))
			}
			other := strings.Replace(uri, "m.iso", "n.iso", 1)
			if err := media.InsertMedia(ctx, other); err != nil {
				t.Fatal(err)
			}
			drives, err := media.Media(ctx)
			if err != nil || !slices.ContainsFunc(drives, func(d bmc.Drive) bool { return d.Inserted && d.Image == other }) {
				t.Errorf("%+v, %v", drives, err)
			}
			if m := machine.Medium(); m == nil || m.Name() != "n.iso" {
				t.Errorf("the machine has %v", m)
			}
			for range 2 {
				if err := media.EjectMedia(ctx); err != nil || machine.Medium() != nil {
					t.Fatalf("eject: %v, left %v", err, machine.Medium())
				}
			}
			if n := b.Done("eject"); n != 2 {
				t.Errorf("ejected %d times, want 2", n)
			}
			if facts := c.(bmc.Learner).Facts(); row.ejected != "" && facts.EjectForm != row.ejected {
				t.Errorf("it learned %+v, want the form %q", facts, row.ejected)
			}
		})
	}
}

func TestImageThatIsNotThereIsTriedOnce(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	uri := strings.Replace(image(t), "m.iso", "missing.iso", 1)
	b.Forget()
	err := dial(t, redfishTarget(b)).(bmc.Media).InsertMedia(within(t, 20*time.Second), uri)
	if !errors.Is(err, bmc.ErrRejected) || bmc.OutcomeOf(err) != bmc.Refused {
		t.Errorf("%v; want ErrRejected", err)
	}
	n := 0
	for _, r := range b.Requests() {
		if strings.Contains(r.Detail, "InsertMedia") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("asked %d times, want 1: %+v", n, b.Requests())
	}
}

func TestUEFIDiskOfSupermicroIsItsOwnSelector(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		vendor uint32
		next   bmc.NextBoot
		asked  int // GetDeviceID
	}{
		{"Supermicro", testenv.SupermicroIANA, bmc.NextBoot{Device: bmc.BootDisk, UEFI: true}, 1},
		{"Supermicro, BIOS", testenv.SupermicroIANA, bmc.NextBoot{Device: bmc.BootDisk}, 0},
		{"another", 0, bmc.NextBoot{Device: bmc.BootDisk, UEFI: true}, 1},
		{"network", testenv.SupermicroIANA, bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			machine := &testenv.SimMachine{Firmware: c.next.UEFI}
			b := newIPMI(t, testenv.IPMIOptions{Machine: machine, Manufacturer: c.vendor})
			client := dial(t, ipmiTarget(b))
			if err := client.SetNextBoot(within(t, 20*time.Second), c.next); err != nil {
				t.Fatal(err)
			}
			asked := 0
			for _, r := range b.Requests() {
				if strings.Contains(r.Detail, "Get Device ID") {
					asked++
				}
			}
			// Another process has not armed it and reads it all the same.
			if now, err := dial(t, ipmiTarget(b)).NextBoot(within(t, 20*time.Second)); err != nil || now != c.next {
				t.Errorf("%v, %v", now, err)
			}
			if asked != c.asked {
				t.Errorf("asked %d times for the vendor, want %d", asked, c.asked)
			}
			devices := map[bmc.BootDevice]testenv.BootDevice{bmc.BootDisk: testenv.BootDisk, bmc.BootNetwork: testenv.BootPXE}
			if got := machine.BootOnce(); got.Device != devices[c.next.Device] || got.UEFI != c.next.UEFI {
				t.Errorf("the machine has %v", got)
			}
		})
	}
}

func TestIgnoredEFIBitIsUnverified(t *testing.T) {
	t.Parallel()
	b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{Firmware: true}, Faults: testenv.BMCFaults{IgnoreEFI: true}})
	err := dial(t, ipmiTarget(b)).SetNextBoot(within(t, time.Second), bmc.NextBoot{Device: bmc.BootCD, UEFI: true})
	if !errors.Is(err, bmc.ErrUnverified) {
		t.Errorf("%v; want ErrUnverified", err)
	}
}

func TestTaskDecidesOfPower(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault testenv.RedfishTask
		want  error
	}{{"ok", testenv.TaskOK, nil}, {"fails", testenv.TaskFail, bmc.ErrRejected}, {"hangs", testenv.TaskStuck, bmc.ErrTimeout}} {
		t.Run(c.name, func(t *testing.T) {
			machine := &testenv.SimMachine{}
			b := newRedfish(t, testenv.RedfishOptions{Machine: machine})
			b.SetFaults(func(f *testenv.BMCFaults) { f.Redfish.Task, f.Redfish.TaskTakes = c.fault, 20*time.Millisecond })
			if err := dial(t, redfishTarget(b)).On(within(t, time.Second)); !errors.Is(err, c.want) || machine.Powered() != (c.want == nil) {
				t.Errorf("%v, powered %v; want %v", err, machine.Powered(), c.want)
			}
		})
	}
}

func TestIPMIHasNoVirtualMedia(t *testing.T) {
	t.Parallel()
	b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}})
	media := dial(t, ipmiTarget(b)).(bmc.Media)
	_, err := media.Media(t.Context())
	for _, err := range []error{err, media.InsertMedia(t.Context(), "http://192.0.2.1/m.iso"), media.EjectMedia(t.Context())} {
		if !errors.Is(err, bmc.ErrUnsupported) {
			t.Errorf("%v; want ErrUnsupported", err)
		}
	}
}

func TestOutcomes(t *testing.T) {
	for err, want := range map[error]bmc.Outcome{
		nil: bmc.Done, bmc.ErrUnverified: bmc.Unknown, bmc.ErrTimeout: bmc.Unknown, bmc.ErrUnreachable: bmc.Unknown,
		context.Canceled: bmc.Unknown, errors.Join(bmc.ErrUnverified, bmc.ErrBusy): bmc.Unknown,
		bmc.ErrAuth: bmc.Refused, bmc.ErrBusy: bmc.Refused, bmc.ErrUnsupported: bmc.Refused, bmc.ErrRejected: bmc.Refused,
		bmc.ErrPin: bmc.Refused, bmc.ErrLockedOut: bmc.Refused, errors.New("nothing was asked"): bmc.Refused,
	} {
		if got := bmc.OutcomeOf(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}
