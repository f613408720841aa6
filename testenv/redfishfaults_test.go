package testenv

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

const (
	redfishTestSystem = "/redfish/v1/Systems/1"
	redfishTestReset  = redfishTestSystem + "/Actions/ComputerSystem.Reset"
	redfishTestPXE    = `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI"}}`
	redfishTestAlways = `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Continuous","BootSourceOverrideMode":"UEFI"}}`
	redfishTestLegacy = `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"Legacy"}}`
)

// redfishStep is one request and what must come of it.
type redfishStep struct {
	method, path, body string
	header             http.Header
	status             int
	// path in the answer, with slashes, and the word that must stand there; in an
	// error, "message" is the end of its id.
	at, want string
}

func (s redfishStep) run(t *testing.T, b *RedfishBMC) {
	t.Helper()
	status, _, answer := redfishDo(t, b, s.method, s.path, s.body, s.header)
	if status != s.status {
		t.Fatalf("%s %s %s: %d, want %d: %v", s.method, s.path, s.body, status, s.status, answer)
	}
	switch {
	case s.at == "message":
		if got := redfishWord(answer, "error", "code"); !strings.HasSuffix(got, "."+s.want) {
			t.Errorf("%s %s: message %q, want %s", s.method, s.path, got, s.want)
		}
	case s.at != "":
		var v any = answer
		for _, word := range strings.Split(s.at, "/") {
			m, _ := v.(map[string]any)
			v = m[word]
		}
		got, _ := json.Marshal(v)
		if string(got) != s.want && string(got) != `"`+s.want+`"` {
			t.Errorf("%s %s: %s is %s, want %s", s.method, s.path, s.at, got, s.want)
		}
	}
}

func get(path, at, want string) redfishStep {
	return redfishStep{method: "GET", path: path, status: 200, at: at, want: want}
}

func reset(kind string, status int) redfishStep {
	return redfishStep{method: "POST", path: redfishTestReset, body: `{"ResetType":"` + kind + `"}`, status: status}
}

func patch(path, body string, status int, message string) redfishStep {
	s := redfishStep{method: "PATCH", path: path, body: body, status: status}
	if message != "" {
		s.at, s.want = "message", message
	}
	return s
}

func TestRedfishFaultsDoWhatTheySay(t *testing.T) {
	const (
		settings = redfishTestSystem + "/Settings"
		sd       = redfishTestSystem + "/SD"
		enabled  = "Boot/BootSourceOverrideEnabled"
		target   = "Boot/BootSourceOverrideTarget"
		mode     = "Boot/BootSourceOverrideMode"
		long     = time.Hour
	)
	system := func(at, want string) redfishStep { return get(redfishTestSystem, at, want) }
	pxe := patch(redfishTestSystem, redfishTestPXE, 204, "")
	for name, c := range map[string]struct {
		options RedfishOptions
		faults  BMCFaults
		steps   []redfishStep
		starts  []BootDevice // what the starts obeyed
	}{
		"a once is kept": {faults: BMCFaults{KeepBoot: true},
			steps:  []redfishStep{pxe, reset("On", 204), system(enabled, "Once"), reset("ForceRestart", 204), system(target, "Pxe")},
			starts: []BootDevice{BootPXE, BootPXE}},
		"a continuous stays until it is disabled": {
			steps: []redfishStep{patch(redfishTestSystem, redfishTestAlways, 204, ""), reset("On", 204), system(enabled, "Continuous"), reset("PowerCycle", 204),
				patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideEnabled":"Disabled"}}`, 204, ""), system(enabled, "Disabled"), reset("ForceRestart", 204)},
			starts: []BootDevice{BootPXE, BootPXE, BootNone}},
		"a continuous is refused": {faults: BMCFaults{Redfish: RedfishFaults{RefuseContinuous: true}},
			steps: []redfishStep{patch(redfishTestSystem, redfishTestAlways, 400, "PropertyValueNotInList"), system(enabled, "Disabled")}},
		"a continuous becomes a once where enabled is left out": {faults: BMCFaults{Redfish: RedfishFaults{NeedEnabled: true}},
			steps: []redfishStep{patch(redfishTestSystem, redfishTestAlways, 204, ""),
				patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"Hdd"}}`, 204, ""), system(enabled, "Once"), system(target, "Hdd")}},
		"a part is refused": {faults: BMCFaults{Redfish: RedfishFaults{RefusePartialBoot: true}},
			steps: []redfishStep{patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`, 400, "PropertyMissing"), pxe}},
		"what is so already is refused": {faults: BMCFaults{Redfish: RedfishFaults{RefuseUnchangedBoot: true}},
			steps: []redfishStep{pxe, patch(redfishTestSystem, redfishTestPXE, 400, "PropertyValueConflict")}},
		"the override is lost at a restart of the BMC": {faults: BMCFaults{ForgetBoot: true},
			steps: []redfishStep{pxe, {method: "restart"}, system(enabled, "Disabled")}},
		"the override survives a restart of the BMC": {
			steps: []redfishStep{pxe, {method: "restart"}, system(enabled, "Once")}},
		"only the settings object takes it, for the next start": {faults: BMCFaults{Redfish: RedfishFaults{Settings: SettingsObject}},
			steps: []redfishStep{system("@Redfish.Settings/SettingsObject/@odata.id", settings),
				patch(redfishTestSystem, redfishTestPXE, 400, "PropertyNotWritable"), patch(settings, redfishTestPXE, 204, ""),
				get(settings, target, "Pxe"), system(target, "None"), reset("On", 204)},
			starts: []BootDevice{BootPXE}},
		"the system names the future state": {faults: BMCFaults{Redfish: RedfishFaults{Settings: SettingsFuture}},
			steps: []redfishStep{patch(redfishTestSystem, redfishTestPXE, 400, "OperationSupportedInFutureStateURI"),
				{method: "GET", path: settings, status: 404}, patch(sd, redfishTestPXE, 204, ""), reset("On", 204)},
			starts: []BootDevice{BootPXE}},
		"a settings object without boot is a decoy": {faults: BMCFaults{Redfish: RedfishFaults{Settings: SettingsDecoy}},
			steps: []redfishStep{get(settings, "Boot", "null"), patch(settings, redfishTestPXE, 405, "OperationNotAllowed"), pxe, system(target, "Pxe")}},
		"a settings object with the boot order alone is another": {faults: BMCFaults{Redfish: RedfishFaults{Settings: SettingsOrder}},
			steps: []redfishStep{get(settings, "Boot", `{"BootOrder":[]}`), patch(settings, redfishTestPXE, 405, "OperationNotAllowed"), pxe, system(target, "Pxe")}},
		"a change of the mode is a job for the next start": {faults: BMCFaults{Redfish: RedfishFaults{ModeJob: true}},
			steps: []redfishStep{patch(redfishTestSystem, redfishTestLegacy, 202, ""), system(mode, "UEFI"),
				patch(redfishTestSystem, redfishTestLegacy, 400, "PendingConfiguration"),
				get("/redfish/v1/TaskService/Tasks/1", "TaskState", "Running"), reset("On", 204),
				get("/redfish/v1/TaskService/Tasks/1", "TaskState", "Completed")},
			starts: []BootDevice{BootNone}}, // UEFI firmware does not obey it
		"nothing is changed while it starts": {faults: BMCFaults{Redfish: RedfishFaults{POST: long}},
			steps: []redfishStep{pxe, reset("On", 204), patch(redfishTestSystem, redfishTestPXE, 400, "UnableToModifyDuringSystemPOST")}},
		"power lags behind": {faults: BMCFaults{PowerLag: long},
			steps: []redfishStep{reset("On", 204), system("PowerState", "Off"), reset("ForceOff", 204), system("PowerState", "On")}},
		"power lags behind in words": {faults: BMCFaults{PowerLag: long, Redfish: RedfishFaults{PoweringWords: true}},
			steps: []redfishStep{reset("On", 204), system("PowerState", "PoweringOn"), reset("ForceOff", 204), system("PowerState", "PoweringOff")}},
		"on is refused a moment after off": {faults: BMCFaults{Redfish: RedfishFaults{OnRefused: long}},
			steps:  []redfishStep{reset("On", 204), reset("ForceOff", 204), reset("On", 409)},
			starts: []BootDevice{BootNone}},
		"on is on": {steps: []redfishStep{reset("On", 204), reset("On", 409)}},
		"on is accepted twice": {faults: BMCFaults{Redfish: RedfishFaults{AcceptSame: true}},
			steps: []redfishStep{reset("On", 204), reset("On", 204)}, starts: []BootDevice{BootNone}},
		"only some resets": {faults: BMCFaults{Redfish: RedfishFaults{Resets: []string{"PushPowerButton", "ForceOff"}}},
			steps: []redfishStep{reset("On", 400), system("Actions/#ComputerSystem.Reset/ResetType@Redfish.AllowableValues", `["ForceOff","PushPowerButton"]`),
				reset("PushPowerButton", 204), system("PowerState", "On"), reset("PushPowerButton", 204), system("PowerState", "Off")}},
		"resets are told in a resource": {faults: BMCFaults{Redfish: RedfishFaults{ActionInfo: true, Resets: []string{"On"}}},
			steps: []redfishStep{system("Actions/#ComputerSystem.Reset/ResetType@Redfish.AllowableValues", "null"),
				system("Actions/#ComputerSystem.Reset/@Redfish.ActionInfo", redfishTestSystem+"/ResetActionInfo"),
				get(redfishTestSystem+"/ResetActionInfo", "Parameters", `[{"AllowableValues":["On"],"DataType":"String","Name":"ResetType","Required":true}]`)}},
		"a deaf system stays on": {faults: BMCFaults{IgnoreShutdown: true},
			steps: []redfishStep{reset("On", 204), reset("GracefulShutdown", 204), system("PowerState", "On"), reset("ForceOff", 204), system("PowerState", "Off")}},
		"an etag is demanded": {faults: BMCFaults{NeedETag: true},
			steps: []redfishStep{patch(redfishTestSystem, redfishTestPXE, 428, "PreconditionRequired")}},
		"an etag is demanded by 412": {faults: BMCFaults{NeedETag: true, Redfish: RedfishFaults{ETagStatus: 412}},
			steps: []redfishStep{patch(redfishTestSystem, redfishTestPXE, 412, "PreconditionRequired")}},
		"an etag on an action is refused": {faults: BMCFaults{Redfish: RedfishFaults{RefuseIfMatchPost: true}},
			steps: []redfishStep{{method: "POST", path: redfishTestReset, body: `{"ResetType":"On"}`, header: http.Header{"If-Match": {"*"}}, status: 412}, reset("On", 204)}},
		"basic authentication is switched off": {options: RedfishOptions{NoBasic: true},
			steps: []redfishStep{{method: "GET", path: redfishTestSystem, status: 401}, {method: "GET", path: "/redfish/v1", status: 200}}},
		"properties are missing": {faults: BMCFaults{Redfish: RedfishFaults{Holes: []string{"ManagedBy", "State"}}},
			steps: []redfishStep{system("Links/ManagedBy", "null"), system("Status", `{"Health":"OK"}`)}},
		"numbers are words": {faults: BMCFaults{Redfish: RedfishFaults{NumbersAsText: true}},
			steps: []redfishStep{get("/redfish/v1/Systems", "Members@odata.count", `"1"`)}},
		"everything is elsewhere": {faults: BMCFaults{Redfish: RedfishFaults{RedirectTo: "bmc.invalid"}},
			steps: []redfishStep{{method: "HEAD", path: redfishTestSystem, status: 308}, {method: "GET", path: "/redfish/v1", status: 200}}},
		"a slash is missing": {faults: BMCFaults{Redfish: RedfishFaults{RedirectSlash: true}},
			steps: []redfishStep{{method: "HEAD", path: redfishTestSystem, status: 308}, {method: "GET", path: redfishTestSystem + "/", status: 200}}},
		"registries are compressed": {faults: BMCFaults{Redfish: RedfishFaults{Gzip: GzipDemand}},
			steps: []redfishStep{{method: "GET", path: "/redfish/v1/Registries/Base", header: http.Header{"Accept-Encoding": {"identity"}}, status: 406}, get("/redfish/v1/Registries/Base", "Id", "Base")}},
		"collections come in pages": {faults: BMCFaults{Redfish: RedfishFaults{Page: 2}}, steps: []redfishStep{
			get("/redfish/v1/AccountService/Roles", "Members@odata.nextLink", "/redfish/v1/AccountService/Roles?$skip=2"),
			get("/redfish/v1/AccountService/Roles?$skip=2", "Members", `[{"@odata.id":"/redfish/v1/AccountService/Roles/ReadOnly"}]`),
			get("/redfish/v1/AccountService/Roles?$skip=2", "Members@odata.count", "3"),
			{method: "GET", path: "/redfish/v1/AccountService/Roles?$skip=4", status: 501}}},
		"queries are not known": {steps: []redfishStep{{method: "GET", path: "/redfish/v1/Systems?$expand=.", status: 501}}},
		"another OData version": {steps: []redfishStep{{method: "GET", path: redfishTestSystem, header: http.Header{"Odata-Version": {"3.0"}}, status: 412}}},
		"an empty account is none": {options: RedfishOptions{AccountSlots: 3}, steps: []redfishStep{
			{method: "POST", path: "/redfish/v1/AccountService/Accounts", body: `{"UserName":"x","Password":"longenough","RoleId":"ReadOnly"}`, status: 405},
			patch("/redfish/v1/AccountService/Accounts/2", `{"UserName":"x","Password":"longenough","RoleId":"ReadOnly","Enabled":true}`, 200, ""),
			get("/redfish/v1/AccountService/Accounts/2", "UserName", "x")}},
	} {
		t.Run(name, func(t *testing.T) {
			machine := &SimMachine{Firmware: true}
			o := c.options
			o.Faults = c.faults
			b := redfishBMC(t, machine, o)
			for _, s := range c.steps {
				if s.method == "restart" {
					b.Restart()
					continue
				}
				s.run(t, b)
			}
			var starts []BootDevice
			for _, s := range machine.Starts() {
				starts = append(starts, s.Device)
			}
			if c.starts != nil && strings.Join(words(starts), ",") != strings.Join(words(c.starts), ",") {
				t.Errorf("starts %q, want %q", starts, c.starts)
			}
		})
	}
}

func words(devices []BootDevice) []string {
	out := make([]string, len(devices))
	for i, d := range devices {
		out[i] = "[" + string(d) + "]"
	}
	return out
}

func TestRedfishETagModes(t *testing.T) {
	for name, c := range map[string]struct {
		mode RedfishETag
		// what the BMC gives out, and what it answers to a PATCH with that, with the
		// strong form of it, and with an older one
		prefix               string
		given, strong, stale int
	}{
		"strong":     {ETagStrong, `"`, 204, 204, 412},
		"weak":       {ETagWeak, `W/"`, 204, 204, 412},
		"weak-false": {ETagWeakFalse, `W/"`, 412, 204, 412},
		"empty":      {ETagEmpty, ``, 412, 412, 412},
		"none":       {ETagNone, ``, 204, 204, 204},
	} {
		t.Run(name, func(t *testing.T) {
			b := redfishBMC(t, &SimMachine{Firmware: true}, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{ETag: c.mode}}})
			etag := func() string {
				_, header, _ := redfishDo(t, b, "GET", redfishTestSystem, "", nil)
				tag, sent := header["Etag"]
				if sent != (c.mode != ETagNone) {
					t.Fatalf("ETag %q", header["Etag"])
				}
				if !sent {
					return ""
				}
				if !strings.HasPrefix(tag[0], c.prefix) || c.prefix == "" && tag[0] != "" {
					t.Errorf("ETag %q, want %s…", tag[0], c.prefix)
				}
				return tag[0]
			}
			try := func(match string, want int) {
				t.Helper()
				status, _, _ := redfishDo(t, b, "PATCH", redfishTestSystem, redfishTestPXE, http.Header{"If-Match": {match}})
				if status != want {
					t.Errorf("If-Match %q: %d, want %d", match, status, want)
				}
			}
			try(etag(), c.given)
			try(strings.TrimPrefix(etag(), "W/"), c.strong)
			try(`"older"`, c.stale)
		})
	}
}

func TestRedfishCompressionChangesTheETag(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Gzip: GzipOffer}}})
	_, plain, _ := redfishDo(t, b, "GET", redfishTestSystem, "", http.Header{"Accept-Encoding": {"identity"}})
	_, packed, _ := redfishDo(t, b, "GET", redfishTestSystem, "", nil) // Go asks for gzip by itself
	if plain.Get("ETag") == packed.Get("ETag") || packed.Get("ETag") == "" {
		t.Errorf("ETags %q and %q", plain.Get("ETag"), packed.Get("ETag"))
	}
}

func TestRedfishTasks(t *testing.T) {
	for name, c := range map[string]struct {
		kind    RedfishTask
		state   string
		monitor int
		on      bool
	}{
		"ok":    {TaskOK, "Completed", 204, true},
		"fail":  {TaskFail, "Exception", 500, false},
		"stuck": {TaskStuck, "Running", 202, false},
	} {
		t.Run(name, func(t *testing.T) {
			machine := &SimMachine{}
			b := redfishBMC(t, machine, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Task: c.kind}}})
			status, header, task := redfishDo(t, b, "POST", redfishTestReset, `{"ResetType":"On"}`, nil)
			if status != 202 || redfishWord(task, "TaskMonitor") != header.Get("Location") {
				t.Fatalf("%d, location %q: %v", status, header.Get("Location"), task)
			}
			path := redfishWord(task, "@odata.id")
			await(t, "the task is "+c.state, 20*time.Second, func() bool {
				_, _, now := redfishDo(t, b, "GET", path, "", nil)
				return redfishWord(now, "TaskState") == c.state
			})
			if status, _, _ := redfishDo(t, b, "GET", header.Get("Location"), "", nil); status != c.monitor {
				t.Errorf("monitor: %d, want %d", status, c.monitor)
			}
			if machine.Powered() != c.on {
				t.Errorf("powered %v, want %v", machine.Powered(), c.on)
			}
		})
	}
	t.Run("hidden", func(t *testing.T) {
		b := redfishBMC(t, &SimMachine{}, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Task: TaskOK, TaskHidden: time.Hour}}})
		_, header, task := redfishDo(t, b, "POST", redfishTestReset, `{"ResetType":"On"}`, nil)
		for _, path := range []string{header.Get("Location"), redfishWord(task, "@odata.id")} {
			redfishStep{method: "GET", path: path, status: 404}.run(t, b)
		}
		b.SetFaults(func(f *BMCFaults) { f.Redfish.TaskHidden = 0 })
		get(redfishWord(task, "@odata.id"), "Id", "1").run(t, b)
	})
}

func TestRedfishTooManyRequestsAtOnce(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Workers: 1}}})
	b.workers.Add(1) // one is at work
	redfishStep{method: "GET", path: redfishTestSystem, status: 503}.run(t, b)
	b.workers.Add(-1)
	redfishStep{method: "GET", path: redfishTestSystem, status: 200}.run(t, b)
}

func TestRedfishRestartEndsSessionsAndConnections(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{NewCertificateAtRestart: true}}})
	redfishStep{method: "POST", path: redfishSessions, body: `{"UserName":"admin","Password":"secret"}`, status: 201}.run(t, b)
	pin := b.Pin()
	redfishStep{method: "POST", path: "/redfish/v1/Managers/1/Actions/Manager.Reset", body: `{"ResetType":"ForceRestart"}`, status: 204}.run(t, b)
	await(t, "sessions and certificate are gone", 20*time.Second, func() bool { return b.Sessions() == 0 && b.Pin() != pin })
	get("/redfish/v1/Managers/1", "Id", "1").run(t, b)
	if b.Done("restart-bmc") != 1 {
		t.Errorf("log %v", b.Requests())
	}
}

func TestRedfishSecondSystemIsItsOwn(t *testing.T) {
	first, second := &SimMachine{}, &SimMachine{}
	b := redfishBMC(t, first, RedfishOptions{OtherSystems: []RedfishSystem{{ID: "2", UUID: "u2", Machine: second}, {ID: "3"}}})
	const two = "/redfish/v1/Systems/2"
	patch(two, `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`, 204, "").run(t, b)
	redfishStep{method: "POST", path: two + "/Actions/ComputerSystem.Reset", body: `{"ResetType":"On"}`, status: 204}.run(t, b)
	get(two, "UUID", "u2").run(t, b)
	redfishStep{method: "POST", path: "/redfish/v1/Systems/3/Actions/ComputerSystem.Reset", body: `{"ResetType":"On"}`, status: 500}.run(t, b)
	if starts := second.Starts(); first.Powered() || len(starts) != 1 || starts[0].Device != BootPXE {
		t.Errorf("first on: %v, starts of the second: %v", first.Powered(), starts)
	}
	for _, r := range b.Requests() {
		if r.Verb == "power-on" && r.Detail != "2" && r.Detail != "3" {
			t.Errorf("log %v", r)
		}
	}
}

func TestRedfishNMIReachesTheMachine(t *testing.T) {
	machine := &SimMachine{}
	b := redfishBMC(t, machine, RedfishOptions{})
	reset("Nmi", 409).run(t, b)
	reset("On", 204).run(t, b)
	reset("Nmi", 204).run(t, b)
	if machine.NMIs() != 1 {
		t.Errorf("%d interrupts", machine.NMIs())
	}
}

func TestRedfishUefiHttpIsHandedToTheMachine(t *testing.T) {
	machine := &SimMachine{Firmware: true}
	b := redfishBMC(t, machine, RedfishOptions{})
	patch(redfishTestSystem, `{"Boot":{"HttpBootUri":"file:///x"}}`, 400, "PropertyValueFormatError").run(t, b)
	patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"Legacy"}}`, 400, "PropertyValueConflict").run(t, b)
	patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI","HttpBootUri":"http://10.0.0.1/x.efi"}}`, 204, "").run(t, b)
	get(redfishTestSystem, "Boot/HttpBootUri", "http://10.0.0.1/x.efi").run(t, b)
	reset("On", 204).run(t, b)
	if starts := machine.Starts(); len(starts) != 1 || starts[0] != (BootOnce{Device: BootHTTP, UEFI: true, URI: "http://10.0.0.1/x.efi"}) {
		t.Errorf("starts %v", starts)
	}
	// BIOS firmware has none.
	bios := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"UefiHttp"}}`, 400, "PropertyValueNotInList").run(t, bios)
}

func TestRedfishLosesTheReplyToWhatItDid(t *testing.T) {
	b := redfishBMC(t, &SimMachine{Firmware: true}, RedfishOptions{Faults: BMCFaults{LoseEveryReply: true}})
	r, err := http.NewRequestWithContext(t.Context(), "PATCH", "https://"+b.Addr()+redfishTestSystem, strings.NewReader(redfishTestPXE))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("admin", "secret")
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if response, err := transport.RoundTrip(r); err == nil {
		response.Body.Close()
		t.Errorf("answered %s", response.Status)
	}
	get(redfishTestSystem, "Boot/BootSourceOverrideTarget", "Pxe").run(t, b)
	if b.Done("set-boot") != 1 {
		t.Errorf("log %v", b.Requests())
	}
}
