package bmc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/bmc"
	"recast/inventory"
)

// tree is a Redfish service of a few resources: what testenv's virtual BMC does
// not do. on answers before the tree does; false leaves it to the tree.
type tree struct {
	t         *testing.T
	server    *httptest.Server
	mu        sync.Mutex
	resources map[string]map[string]any
	writes    []string // METHOD path body
	location  string   // of the session; "" the usual one
	on        func(w http.ResponseWriter, method, path string, body map[string]any) bool
}

func newTree(t *testing.T, resources map[string]string) *tree {
	t.Helper()
	s := &tree{t: t, resources: map[string]map[string]any{}}
	all := map[string]string{
		"":                         `{"Systems":{"@odata.id":"/redfish/v1/Systems"},"Managers":{"@odata.id":"/redfish/v1/Managers"},"SessionService":{"@odata.id":"/redfish/v1/SessionService"},"Links":{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}}`,
		"/SessionService":          `{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}`,
		"/SessionService/Sessions": `{"Members":[]}`,
		"/Systems":                 `{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}]}`,
		"/Systems/1":               `{"PowerState":"Off"}`,
	}
	for path, raw := range resources {
		all[path] = raw
	}
	for path, raw := range all {
		var v map[string]any
		if err := json.Unmarshal([]byte(raw), &v); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		s.resources["/redfish/v1"+path] = v
	}
	s.server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.server.Close)
	return s
}

func (s *tree) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	raw, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(path, "/redfish/v1/SessionService/Sessions") && r.Method != http.MethodGet {
		w.Header().Set("X-Auth-Token", "t")
		w.Header().Set("Location", "/redfish/v1/SessionService/Sessions/1")
		if s.location != "" {
			w.Header().Set("Location", s.location)
		}
		w.WriteHeader(http.StatusCreated)
		return
	}
	var body map[string]any
	_ = json.Unmarshal(raw, &body)
	if r.Method != http.MethodGet {
		s.writes = append(s.writes, r.Method+" "+path+" "+string(raw))
	}
	if s.on != nil && s.on(w, r.Method, path, body) {
		return
	}
	resource, ok := s.resources[path]
	switch {
	case !ok:
		refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
	case r.Method == http.MethodPatch:
		merge(resource, body)
		w.WriteHeader(http.StatusNoContent)
	case r.Method != http.MethodGet:
		refuse(w, http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed")
	default:
		_ = json.NewEncoder(w).Encode(resource)
	}
}

func merge(to, from map[string]any) {
	for k, v := range from {
		if inner, ok := v.(map[string]any); ok {
			if old, ok := to[k].(map[string]any); ok {
				merge(old, inner)
				continue
			}
		}
		to[k] = v
	}
}

func refuse(w http.ResponseWriter, status int, id string, text ...string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": id, "message": strings.Join(text, " "),
		"@Message.ExtendedInfo": []any{map[string]any{"MessageId": id, "Message": strings.Join(text, " ")}}}})
}

// target is the tree's BMC; "" is for its only system.
func (s *tree) target(system string) bmc.Target {
	return bmc.InGreatHurry(bmc.Target{URL: "redfish://" + strings.TrimPrefix(s.server.URL, "https://") + system,
		User: user, Password: password, Pin: inventory.DigestOf(s.server.Certificate().Raw)})
}

func (s *tree) dial() bmc.Client { return dial(s.t, s.target("")) }

func (s *tree) written() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

func TestFlippedModeIsRepairedOnce(t *testing.T) {
	t.Parallel()
	s := newTree(t, map[string]string{"/Systems/1": `{"PowerState":"Off","Manufacturer":"Supermicro","Boot":{
		"BootSourceOverrideTarget":"None","BootSourceOverrideEnabled":"Disabled","BootSourceOverrideMode":"UEFI",
		"BootSourceOverrideTarget@Redfish.AllowableValues":["None","Pxe","UsbCd","Cd"]}}`})
	flipped := false
	s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
		boot, _ := body["Boot"].(map[string]any)
		if boot["BootSourceOverrideTarget"] != nil && !flipped {
			flipped, boot["BootSourceOverrideMode"] = true, "Legacy"
		}
		return false
	}
	c := s.dial()
	next := bmc.NextBoot{Device: bmc.BootCD, UEFI: true}
	if err := c.SetNextBoot(within(t, 20*time.Second), next); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`PATCH /redfish/v1/Systems/1 {"Boot":{"BootSourceOverrideTarget":"UsbCd","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI"}}`,
		`PATCH /redfish/v1/Systems/1 {"Boot":{"BootSourceOverrideMode":"UEFI"}}`,
	}
	if got := s.written(); !slices.Equal(got, want) {
		t.Errorf("written:\n%s", strings.Join(got, "\n"))
	}
	if now, err := c.NextBoot(t.Context()); err != nil || now != next {
		t.Errorf("%v, %v", now, err)
	}
}

func TestPlaceThatOnlyTheRefusalNamesIsFollowedAndRemembered(t *testing.T) {
	t.Parallel()
	none := `"Boot":{"BootSourceOverrideTarget":"None","BootSourceOverrideEnabled":"Disabled","BootSourceOverrideMode":"UEFI"}`
	s := newTree(t, map[string]string{"/Systems/1": `{"PowerState":"Off",` + none + `}`, "/Systems/1/SD": "{" + none + "}"})
	s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
		if method == http.MethodPatch && path == "/redfish/v1/Systems/1" {
			refuse(w, http.StatusBadRequest, "Ami.1.0.OperationSupportedInFutureStateURI", "send it to '/redfish/v1/Systems/1/SD'.")
			return true
		}
		return false
	}
	c := s.dial()
	for i, next := range []bmc.NextBoot{{Device: bmc.BootNetwork, UEFI: true}, {Device: bmc.BootDisk, UEFI: true}} {
		if err := c.SetNextBoot(within(t, 20*time.Second), next); err != nil {
			t.Fatal(err)
		}
		if n := len(s.written()); n != 2+i {
			t.Errorf("%d writes after change %d: %v", n, i+1, s.written())
		}
	}
	if at := c.(bmc.Learner).Facts().BootAt; at != "/redfish/v1/Systems/1/SD" {
		t.Errorf("learned %q", at)
	}
}

const cdTree = `{"Id":"CD1","MediaTypes":["CD"],"Inserted":false,"Image":null,"Actions":{
	"#VirtualMedia.InsertMedia":{"target":"/redfish/v1/Managers/1/VirtualMedia/CD1/Insert","@Redfish.ActionInfo":"/redfish/v1/Managers/1/InsertInfo"},
	"#VirtualMedia.EjectMedia":{"target":"/redfish/v1/Managers/1/VirtualMedia/CD1/Eject"}}}`

func newMediaTree(t *testing.T, also map[string]string) *tree {
	resources := map[string]string{
		"/Managers":                    `{"Members":[{"@odata.id":"/redfish/v1/Managers/1"}]}`,
		"/Managers/1":                  `{"VirtualMedia":{"@odata.id":"/redfish/v1/Managers/1/VirtualMedia"}}`,
		"/Managers/1/VirtualMedia":     `{"Members":[{"@odata.id":"/redfish/v1/Managers/1/VirtualMedia/USB"},{"@odata.id":"/redfish/v1/Managers/1/VirtualMedia/CD1"}]}`,
		"/Managers/1/VirtualMedia/USB": `{"Id":"USB","MediaTypes":["USBStick"],"Inserted":true,"Image":"http://192.0.2.1/usb.img"}`,
		"/Managers/1/VirtualMedia/CD1": cdTree,
		"/Systems/1":                   `{"PowerState":"Off","Links":{}}`,
	}
	for path, raw := range also {
		resources[path] = raw
	}
	return newTree(t, resources)
}

func TestInsertionSendsWhatActionInfoDemands(t *testing.T) {
	t.Parallel()
	s := newMediaTree(t, map[string]string{"/Managers/1/InsertInfo": `{"Parameters":[
		{"Name":"Image","Required":true},{"Name":"TransferProtocolType","Required":true,"AllowableValues":["HTTP","HTTPS"]},
		{"Name":"MediaType","Required":true,"AllowableValues":["DVD"]},{"Name":"WriteProtected"}]}`})
	s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
		if method != http.MethodPost || !strings.HasSuffix(path, "/Insert") {
			return false
		}
		merge(s.resources["/redfish/v1/Managers/1/VirtualMedia/CD1"], map[string]any{"Inserted": true, "Image": body["Image"]})
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	if err := s.dial().(bmc.Media).InsertMedia(within(t, 20*time.Second), "https://192.0.2.1/m.iso"); err != nil {
		t.Fatal(err)
	}
	want := []string{`POST /redfish/v1/Managers/1/VirtualMedia/CD1/Insert {"Image":"https://192.0.2.1/m.iso","MediaType":"DVD","TransferProtocolType":"HTTPS"}`}
	if got := s.written(); !slices.Equal(got, want) {
		t.Errorf("written:\n%s", strings.Join(got, "\n"))
	}
}

func TestUnansweredInsertionIsLookedAtNeverRepeated(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		happen bool
	}{{"it happened", true}, {"it did not", false}} {
		t.Run(c.name, func(t *testing.T) {
			s := newMediaTree(t, nil)
			s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
				if method == http.MethodGet {
					return false
				}
				if c.happen {
					merge(s.resources["/redfish/v1/Managers/1/VirtualMedia/CD1"], map[string]any{"Inserted": true, "Image": body["Image"]})
				}
				panic(http.ErrAbortHandler)
			}
			err := s.dial().(bmc.Media).InsertMedia(within(t, 20*time.Second), "http://192.0.2.1/m.iso")
			if want := map[bool]bmc.Outcome{true: bmc.Done, false: bmc.Unknown}[c.happen]; bmc.OutcomeOf(err) != want {
				t.Errorf("%v: %s, want %s", err, bmc.OutcomeOf(err), want)
			}
			if got := s.written(); len(got) != 1 {
				t.Errorf("written:\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

func TestAcceptedInsertionThatDoesNotShowIsNotTriedInAnotherForm(t *testing.T) {
	t.Parallel()
	s := newMediaTree(t, nil)
	s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
		if method == http.MethodPost {
			w.WriteHeader(http.StatusNoContent)
		}
		return method == http.MethodPost
	}
	err := s.dial().(bmc.Media).InsertMedia(within(t, 20*time.Second), "http://192.0.2.1/m.iso")
	if !errors.Is(err, bmc.ErrUnverified) || len(s.written()) != 1 {
		t.Errorf("%v after %v", err, s.written())
	}
}

func TestRefusalDoesNotRepeatTheTokenOfAURI(t *testing.T) {
	t.Parallel()
	const uri = "http://192.0.2.1/boot/SECRET/m.iso"
	s := newMediaTree(t, map[string]string{"/Systems/1": `{"PowerState":"Off","Boot":{"BootSourceOverrideTarget":"None","HttpBootUri":null,
		"BootSourceOverrideTarget@Redfish.AllowableValues":["UefiHttp"]}}`})
	asTask := false
	s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
		text := "The value '" + uri + strings.Repeat("/x", 200) + "' is not liked."
		switch {
		case strings.HasSuffix(path, "/Tasks/1"):
			fmt.Fprintf(w, `{"TaskState":"Exception","Messages":[{"MessageId":"Base.1.8.PropertyValueFormatError","Message":%q}]}`, text)
		case method == http.MethodGet:
			return false
		case asTask:
			w.Header().Set("Location", "/redfish/v1/TaskService/Tasks/1")
			w.WriteHeader(http.StatusAccepted)
		default:
			refuse(w, http.StatusBadRequest, "Base.1.8.PropertyValueFormatError", text)
		}
		return true
	}
	c := s.dial()
	for range 2 {
		for _, err := range []error{
			c.SetNextBoot(within(t, 20*time.Second), bmc.NextBoot{Device: bmc.BootHTTP, UEFI: true, URI: uri}),
			c.(bmc.Media).InsertMedia(within(t, 20*time.Second), uri),
		} {
			if !errors.Is(err, bmc.ErrRejected) || strings.Contains(err.Error(), "SECRET") || !strings.Contains(err.Error(), "(URI)") {
				t.Errorf("as a task %v: %v", asTask, err)
			}
		}
		s.mu.Lock()
		asTask = true
		s.mu.Unlock()
	}
}

func TestTaskElsewhereIsNotFollowed(t *testing.T) {
	t.Parallel()
	s := newTree(t, map[string]string{"/Systems/1": `{"PowerState":"Off","Boot":{"BootSourceOverrideTarget":"None","BootSourceOverrideEnabled":"Disabled"}}`})
	asked := 0
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	t.Cleanup(other.Close)
	s.on = func(w http.ResponseWriter, method, path string, body map[string]any) bool {
		if method != http.MethodPatch {
			return false
		}
		merge(s.resources[path], body)
		w.Header().Set("Location", other.URL+"/redfish/v1/TaskService/Tasks/1")
		w.WriteHeader(http.StatusAccepted)
		return true
	}
	if err := s.dial().SetNextBoot(within(t, 20*time.Second), bmc.NextBoot{Device: bmc.BootNetwork}); err != nil {
		t.Error(err)
	}
	if asked != 0 {
		t.Errorf("asked another host %d times", asked)
	}
}

// A BMC that forgets our session while it works at what it accepted has accepted it: in
// the next session it is looked at, and not asked for the same again.
func TestTaskThatOutlivesItsSessionIsNotBegunAgain(t *testing.T) {
	t.Parallel()
	const drive = "/redfish/v1/Managers/1/VirtualMedia/CD1"
	for _, c := range []struct {
		name string
		at   string         // whose change shows late
		then map[string]any // what it is in the end
		look int            // at which it shows
		do   func(context.Context, bmc.Client) error
	}{
		{"power", "/redfish/v1/Systems/1", map[string]any{"PowerState": "On"}, 2,
			func(ctx context.Context, c bmc.Client) error { return c.On(ctx) }},
		{"media", drive, map[string]any{"Inserted": true, "Image": "http://192.0.2.1/m.iso"}, 1,
			func(ctx context.Context, c bmc.Client) error {
				return c.(bmc.Media).InsertMedia(ctx, "http://192.0.2.1/m.iso")
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newMediaTree(t, nil)
			forgotten, looks := false, 0
			s.on = func(w http.ResponseWriter, method, path string, _ map[string]any) bool {
				switch {
				case method == http.MethodPost:
					w.Header().Set("Location", "/redfish/v1/TaskService/Tasks/1")
					w.WriteHeader(http.StatusAccepted)
				case strings.HasSuffix(path, "/Tasks/1") && !forgotten:
					forgotten = true
					refuse(w, http.StatusUnauthorized, "Base.1.8.NoValidSession")
				default:
					if path == c.at && forgotten {
						if looks++; looks == c.look {
							merge(s.resources[c.at], c.then)
						}
					}
					return false
				}
				return true
			}
			if err := c.do(within(t, 20*time.Second), s.dial()); err != nil {
				t.Error(err)
			}
			if got := s.written(); len(got) != 1 {
				t.Errorf("written:\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

// A user who may read and no more has the right password: it is not to be set anew, and
// what may be read is read on.
func TestALackOfRightsIsNoWrongPassword(t *testing.T) {
	t.Parallel()
	s := newTree(t, nil)
	s.on = func(w http.ResponseWriter, method, _ string, _ map[string]any) bool {
		if method == http.MethodPost {
			refuse(w, http.StatusForbidden, "Base.1.8.InsufficientPrivilege", "There are insufficient privileges for the account.")
		}
		return method == http.MethodPost
	}
	c := s.dial()
	if err := c.On(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrRejected) || errors.Is(err, bmc.ErrAuth) || !strings.Contains(err.Error(), "insufficient privileges") {
		t.Errorf("on: %v; want ErrRejected, and why", err)
	}
	if state, err := c.Power(within(t, 20*time.Second)); err != nil || state != bmc.PowerOff {
		t.Errorf("power %q, %v", state, err)
	}
	if got := s.written(); len(got) != 1 {
		t.Errorf("written:\n%s", strings.Join(got, "\n"))
	}
}

func TestInventoryToleratesHoles(t *testing.T) {
	t.Parallel()
	id := func(path string) string { return fmt.Sprintf(`{"@odata.id":"/redfish/v1%s"}`, path) }
	s := newTree(t, map[string]string{
		"": `{"UUID":"AAAAAAAA-0000-4000-8000-000000000001","Vendor":"Contoso","Product":"BMC 3000","Systems":` + id("/Systems") +
			`,"UpdateService":` + id("/UpdateService") + `,"Links":{"Sessions":` + id("/SessionService/Sessions") + `}}`,
		"/Systems": `{"Members":[` + id("/Systems/1") + `]}`,
		"/Systems/1": `{"PowerState":"Off","UUID":"BBBBBBBB-0000-4000-8000-000000000002","SerialNumber":12345,"Manufacturer":"Contoso","Model":" R1 ","SKU":null,
			"BiosVersion":"2.1","Processors":` + id("/Systems/1/Processors") + `,"Memory":` + id("/Systems/1/Memory") + `,"Storage":` + id("/Systems/1/Storage") +
			`,"SimpleStorage":` + id("/Systems/1/Simple") + `,"EthernetInterfaces":` + id("/Systems/1/NICs") + `,"SecureBoot":` + id("/Systems/1/SecureBoot") + `}`,
		"/Managers":   `{"Members":[` + id("/Managers/E") + `,` + id("/Managers/1") + `,` + id("/Managers/gone") + `]}`,
		"/Managers/E": `{"FirmwareVersion":"enclosure","Links":{"ManagerForServers":[` + id("/Systems/9") + `]}}`,
		"/Managers/1": `{"FirmwareVersion":"7.10","Model":"iBMC","Links":{"ManagerForServers":[` + id("/Systems/1/") + `]}}`,

		"/Systems/1/Processors":              `{"Members":[` + id("/Systems/1/Processors/1") + `,` + id("/Systems/1/Processors/2") + `,` + id("/Systems/1/Processors/G") + `]}`,
		"/Systems/1/Processors/1":            `{"Socket":"CPU 1","Model":"X","TotalCores":"16","TotalThreads":32,"Manufacturer":"Maker"}`,
		"/Systems/1/Processors/2":            `{"Status":{"State":"Absent"}}`,
		"/Systems/1/Processors/G":            `{"ProcessorType":"GPU"}`,
		"/Systems/1/Memory":                  `{"Members":[` + id("/Systems/1/Memory/1") + `,` + id("/Systems/1/Memory/2") + `]}`,
		"/Systems/1/Memory/1":                `{"Id":"A1","CapacityMiB":"16384 MiB","MemoryDeviceType":"DDR5","OperatingSpeedMhz":4800,"SerialNumber":"M1"}`,
		"/Systems/1/Memory/2":                `{"Id":"A2","CapacityMiB":0}`,
		"/Systems/1/Storage":                 `{"Members":[` + id("/Systems/1/Storage/broken") + `,` + id("/Systems/1/Storage/1") + `],"Members@odata.nextLink":"/redfish/v1/Systems/1/Storage2"}`,
		"/Systems/1/Storage2":                `{"Members":[]}`,
		"/Systems/1/Storage/1":               `{"Id":"AHCI","Drives":[` + id("/Drives/1") + `]}`,
		"/Drives/1":                          `{"Name":"Disk 1","Model":"SSD","SerialNumber":"D1","CapacityBytes":960197124096,"Protocol":"SATA","MediaType":"SSD","Status":{"Health":"OK"}}`,
		"/Systems/1/SecureBoot":              `{"SecureBootEnable":"true","SecureBootCurrentBoot":"Disabled"}`,
		"/Systems/1/NICs":                    `{"Members":[` + id("/Systems/1/NICs/1") + `]}`,
		"/Systems/1/NICs/1":                  `{"Id":"1","MACAddress":"5254.0012.3456","LinkStatus":"LinkUp","SpeedMbps":null}`,
		"/UpdateService":                     `{"FirmwareInventory":` + id("/UpdateService/FirmwareInventory") + `}`,
		"/UpdateService/FirmwareInventory":   `{"Members":[` + id("/UpdateService/FirmwareInventory/B") + `,` + id("/UpdateService/FirmwareInventory/P") + `,` + id("/UpdateService/FirmwareInventory/I") + `]}`,
		"/UpdateService/FirmwareInventory/B": `{"Id":"BIOS","Version":"2.1"}`,
		"/UpdateService/FirmwareInventory/P": `{"Id":"Previous-25227-4.40__iDRAC.Embedded.1-1","Name":"Remote Access Controller","Version":"4.40"}`,
		"/UpdateService/FirmwareInventory/I": `{"Id":"Installed-25227-5.10__iDRAC.Embedded.1-1","Name":"Remote Access Controller","Version":"5.10"}`,
	})
	s.on = func(w http.ResponseWriter, method, path string, _ map[string]any) bool {
		if strings.HasSuffix(path, "/Storage/broken") {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError")
			return true
		}
		return false
	}
	c := s.dial()
	got, err := c.(bmc.Describer).Inventory(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	holes := got.Holes
	got.Holes = nil
	want := bmc.Inventory{
		Identity: bmc.Identity{UUID: "bbbbbbbb-0000-4000-8000-000000000002", Serial: "12345", Manufacturer: "Contoso", Model: "R1", BIOS: "2.1",
			BMC: bmc.BMCIdentity{UUID: "aaaaaaaa-0000-4000-8000-000000000001", Vendor: "Contoso", Model: "iBMC", Firmware: "7.10"}},
		SecureBoot: "off, on from the next start",
		Processors: []bmc.Processor{{Slot: "CPU 1", Manufacturer: "Maker", Model: "X", Cores: 16, Threads: 32}},
		Memory:     []bmc.Module{{Slot: "A1", Type: "DDR5", MiB: 16384, MHz: 4800, Serial: "M1"}},
		Disks:      []bmc.Disk{{Name: "Disk 1", Controller: "AHCI", Model: "SSD", Serial: "D1", Protocol: "SATA", Media: "SSD", Bytes: 960197124096, Health: "OK"}},
		NICs:       []bmc.NIC{{Name: "1", MAC: "52:54:00:12:34:56", Link: "LinkUp"}},
		Firmware:   []bmc.Firmware{{Name: "BIOS", Version: "2.1"}, {Name: "Remote Access Controller", Version: "4.40", State: "previous"}, {Name: "Remote Access Controller", Version: "5.10"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(holes) != 1 || !strings.Contains(holes[0], "/Storage/broken") {
		t.Errorf("holes %q", holes)
	}
	if facts := c.(bmc.Learner).Facts(); facts.Firmware != "7.10" || facts.Vendor != "Contoso" {
		t.Errorf("facts %+v", facts)
	}
}

func TestInventoryEndsWhereTheBMCDoes(t *testing.T) {
	t.Parallel()
	s := newMediaTree(t, map[string]string{"/Systems/1": `{"PowerState":"Off","Processors":{"@odata.id":"/redfish/v1/P"}}`,
		"/P": `{"Members":[` + strings.Repeat(`{"@odata.id":"/redfish/v1/P/x"},`, 99) + `{"@odata.id":"/redfish/v1/P/y"}]}`})
	asked := 0
	s.on = func(w http.ResponseWriter, method, path string, _ map[string]any) bool {
		if strings.HasPrefix(path, "/redfish/v1/P/") {
			asked++
			refuse(w, http.StatusUnauthorized, "Base.1.8.InsufficientPrivilege")
			return true
		}
		return false
	}
	if _, err := s.dial().(bmc.Describer).Inventory(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrAuth) {
		t.Errorf("%v; want ErrAuth", err)
	}
	if asked > 2 {
		t.Errorf("asked %d times", asked)
	}
}

func TestRefusalThatComesWithStatus200IsOne(t *testing.T) {
	t.Parallel()
	refusal := func(id, text string) string {
		return fmt.Sprintf(` { "error":{"code":"Base.1.8.GeneralError","message":"see the details","@Message.ExtendedInfo":[{"MessageId":%q,"Message":%q}]}}`, id, text)
	}
	for _, c := range []struct {
		name, body string
		want       error
	}{
		{"busy", refusal("Base.1.8.ServiceTemporarilyUnavailable", "later"), bmc.ErrBusy},
		{"unknown", refusal("Contoso.1.0.Mood", "not today"), bmc.ErrRejected},
		{"a resource with a property of that name", `{"PowerState":"On","error":{"code":"x"}}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newTree(t, nil)
			client := s.dial()
			s.mu.Lock()
			s.on = func(w http.ResponseWriter, method, path string, _ map[string]any) bool {
				if path == "/redfish/v1/Systems/1" {
					fmt.Fprint(w, c.body)
				}
				return path == "/redfish/v1/Systems/1"
			}
			s.mu.Unlock()
			state, err := client.Power(within(t, 20*time.Second))
			if c.want == nil {
				if err != nil || state != bmc.PowerOn {
					t.Errorf("%q, %v", state, err)
				}
				return
			}
			if !errors.Is(err, c.want) || state != bmc.PowerUnknown {
				t.Errorf("%q, %v; want %v", state, err, c.want)
			}
			if err := client.On(within(t, 20*time.Second)); !errors.Is(err, c.want) || len(s.written()) != 0 {
				t.Errorf("on: %v after %v; want %v", err, s.written(), c.want)
			}
		})
	}
}

func TestServiceThatNamesNoSessionsIsAskedWithThePassword(t *testing.T) {
	t.Parallel()
	s := newTree(t, map[string]string{"": `{"Systems":{"@odata.id":"/redfish/v1/Systems"}}`})
	asked := map[string]int{}
	s.on = func(_ http.ResponseWriter, method, path string, _ map[string]any) bool {
		asked[method]++
		return false
	}
	if state, err := s.dial().Power(within(t, 20*time.Second)); err != nil || state != bmc.PowerOff || asked[http.MethodPost] != 0 {
		t.Errorf("%q, %v after %v", state, err, asked)
	}
}
