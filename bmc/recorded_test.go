package bmc_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/bmc"
	"recast/inventory"
)

// recordedDir is for trees that nobody may pass on: each folder below it with a
// redfish/v1, or with files of resources, is read too and its report logged.
var recordedDir = flag.String("recorded", "", "folder of recorded Redfish trees that are read too")

const (
	bmclibModule = "github.com/bmc-toolbox/bmclib/v2"
	gofishModule = "github.com/stmcginnis/gofish"
	dellFixtures = "internal/redfishwrapper/fixtures/dell/"
)

// recordings are the vendors' answers that the modules we are built of carry for their
// own tests: read where they stand. Files of one vendor make one tree, as few as they
// are; what is missing is missing here too.
var recordings = []struct {
	name, module string
	files        []string // of the module; of two about one resource the later counts
	want         string
}{
	{"Dell PowerEdge R6515", bmclibModule, []string{
		dellFixtures + "*[^a].json", "providers/redfish/fixtures/v1/dell/*.json", "providers/redfish/fixtures/v1/dell/selentries/*.json",
	}, `
		power: on
		next boot: default
		identity: Dell Inc., PowerEdge R6515, serial FOOXD53, UUID 4c4c4544-004c-4410-8058-c6c04f443533, BIOS 2.2.4
		BMC: Dell, Integrated Dell Remote Access Controller, firmware
		inventory: 0 processors, 0 modules, 0 disks, 0 interfaces, 0 firmwares, 7 holes, in 12 requests
		events: 2, more false
		drives:`},
	{"Dell PowerEdge R660", bmclibModule, []string{dellFixtures + "*.json"}, `
		power: off
		next boot: default
		identity: Dell Inc., PowerEdge R660, serial , UUID , BIOS
		BMC: Dell, 17G Monolithic, firmware 1.20.50.52
		inventory: 0 processors, 0 modules, 0 disks, 0 interfaces, 0 firmwares, 1 holes, in 6 requests
		events: unsupported
		drives: 2 CD/DVD/USBStick, 1 CD/DVD/USBStick`},
	{"Supermicro SYS-510T-MR1", bmclibModule, []string{
		"internal/redfishwrapper/fixtures/serviceroot.json", "internal/redfishwrapper/fixtures/systems*.json", "internal/redfishwrapper/fixtures/managers*.json",
	}, `
		power: on
		next boot: disk (UEFI)
		identity: Supermicro, SYS-510T-MR1-EI018, serial FOOBAR, UUID 0032331a-24d7-ec11-8000-3cecefcefeda, BIOS 1.6
		BMC: Supermicro, ASPEED, firmware 01.13.04
		inventory: 0 processors, 0 modules, 0 disks, 0 interfaces, 0 firmwares, 7 holes, in 12 requests
		events: unsupported
		drives:`},
	{"Supermicro SYS-510T-MR", bmclibModule, []string{"internal/redfishwrapper/fixtures/smc_1.14.0_*.json"}, `
		power: on
		next boot: disk (UEFI)
		identity: Supermicro, SYS-510T-MR-EI018, serial S482931X2814218, UUID b11cc600-6d10-11ec-8000-3cecefc846f8, BIOS 2.0
		BMC: Supermicro, , firmware
		inventory: 0 processors, 0 modules, 0 disks, 0 interfaces, 0 firmwares, 6 holes, in 11 requests
		events: unsupported
		drives:`},
	{"Supermicro SYS-821GE", gofishModule, []string{"oem/smc/*_test.go"}, `
		power: on
		next boot: default
		identity: Supermicro, SYS-821GE-TNHR, serial S514359X4916804, UUID d4216600-c32c-11ee-8000-7cc25586e492, BIOS 2.1
		BMC: Supermicro, ASPEED, firmware 01.01.06
		inventory: 0 processors, 0 modules, 0 disks, 0 interfaces, 0 firmwares, 6 holes, in 11 requests
		events: unsupported
		drives:`},
	{"a resource of each of many", gofishModule, []string{"redfish/*_test.go"}, `
		power: on
		next boot: network (UEFI)
		identity: Manufacturer Name, Model Name, serial 2M220100SL, UUID , BIOS P79 v1.00 (09/20/2013)
		BMC: Manufacturer Name, , firmware
		inventory: 0 processors, 1 modules, 1 disks, 1 interfaces, 0 firmwares, 3 holes, in 14 requests
		events: unsupported
		drives:`},
}

// moduleDir is where a module that we are built of stands.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("needs the source of %s (go mod download)", module)
	}
	return dir
}

// recordedTree serves resources by their @odata.id. A collection that was not recorded
// holds what was of it.
func recordedTree(t *testing.T, resources map[string]map[string]any) *tree {
	t.Helper()
	s := newTree(t, nil)
	if len(resources) > 0 {
		delete(s.resources, "/redfish/v1/Systems")
		delete(s.resources, "/redfish/v1/Systems/1")
	}
	for _, id := range slices.Sorted(maps.Keys(resources)) {
		s.resources[id] = resources[id]
		if at := path.Dir(id); resources[at] == nil && len(at) > len("/redfish/v1") {
			if s.resources[at] == nil {
				s.resources[at] = map[string]any{"Members": []any{}}
			}
			s.resources[at]["Members"] = append(s.resources[at]["Members"].([]any), map[string]any{"@odata.id": id})
		}
	}
	return s
}

// recordedFiles reads resources from JSON files, and from the texts in Go files.
func recordedFiles(t *testing.T, files []string) map[string]map[string]any {
	t.Helper()
	found := map[string]map[string]any{}
	add := func(raw []byte) {
		var r map[string]any
		if json.Unmarshal(raw, &r) != nil {
			return
		}
		if id, _ := r["@odata.id"].(string); strings.HasPrefix(id, "/redfish/v1") && !strings.Contains(id, "#") {
			found[strings.TrimSuffix(id, "/")] = r
		}
	}
	for _, name := range files {
		if strings.HasSuffix(name, ".go") {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if text, ok := n.(*ast.BasicLit); ok && strings.HasPrefix(text.Value, "`") {
					add([]byte(strings.Trim(text.Value, "`")))
				}
				return true
			})
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		add(raw)
	}
	return found
}

func TestRecordedTreesAreReadAndNothingIsDoneThatWasNotSeen(t *testing.T) {
	t.Parallel()
	for _, r := range recordings {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			dir := moduleDir(t, r.module)
			var files []string
			for _, pattern := range r.files {
				found, err := filepath.Glob(filepath.Join(dir, pattern))
				if err != nil || len(found) == 0 {
					t.Fatalf("%s: %d files, %v", pattern, len(found), err)
				}
				files = append(files, found...)
			}
			resources := recordedFiles(t, files)
			got := readRecorded(t, resources, "")
			if diff := cmp.Diff(strings.Fields(r.want), strings.Fields(got)); diff != "" {
				t.Log(got)
				t.Errorf("report (-want +got):\n%s", diff)
			}
			neverDone(t, resources, "")
		})
	}
}

func TestTreesOfAFolderAreReadAndNothingIsDoneThatWasNotSeen(t *testing.T) {
	if *recordedDir == "" {
		t.Skip("no -recorded FOLDER")
	}
	folders, err := os.ReadDir(*recordedDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		t.Run(folder.Name(), func(t *testing.T) {
			t.Parallel()
			var files []string
			err := filepath.WalkDir(filepath.Join(*recordedDir, folder.Name()), func(name string, entry fs.DirEntry, err error) error {
				if err == nil && !entry.IsDir() && strings.HasSuffix(name, ".json") && !strings.Contains(name, "/JsonSchemas/") {
					files = append(files, name)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			resources := recordedFiles(t, files)
			members, _ := resources["/redfish/v1/Systems"]["Members"].([]any)
			for _, m := range members {
				link, _ := m.(map[string]any)
				id, _ := link["@odata.id"].(string)
				t.Logf("%s\n%s", id, readRecorded(t, resources, strings.TrimSuffix(id, "/")))
				neverDone(t, resources, strings.TrimSuffix(id, "/"))
			}
		})
	}
}

// readRecorded reads all that there is to read, and reports what came: a value, or the
// reason why there is none.
func readRecorded(t *testing.T, resources map[string]map[string]any, system string) string {
	t.Helper()
	s := recordedTree(t, resources)
	var asked atomic.Int64
	s.on = func(_ http.ResponseWriter, method, path string, _ map[string]any) bool {
		asked.Add(1)
		if method != http.MethodGet {
			t.Errorf("reading sent %s %s", method, path)
		}
		return false
	}
	bad := &bmc.BadAnswers{}
	target := s.target(system)
	target.Bad = bad
	c := dial(t, target)
	ctx := within(t, 60*time.Second)
	var report strings.Builder
	tell := func(what string, err error, format string, args ...any) {
		t.Helper()
		text := fmt.Sprintf(format, args...)
		if err != nil {
			text = reasonWord(t, err)
		}
		fmt.Fprintf(&report, "%s: %s\n", what, strings.TrimRight(text, " "))
	}
	power, err := c.Power(ctx)
	tell("power", err, "%s", power)
	next, err := c.NextBoot(ctx)
	tell("next boot", err, "%s", next)
	id, err := c.(bmc.Describer).Identity(ctx)
	tell("identity", err, "%s, %s, serial %s, UUID %s, BIOS %s", id.Manufacturer, id.Model, id.Serial, id.UUID, id.BIOS)
	tell("BMC", err, "%s, %s, firmware %s", id.BMC.Vendor, id.BMC.Model, id.BMC.Firmware)
	before := asked.Load()
	all, err := c.(bmc.Describer).Inventory(ctx)
	tell("inventory", err, "%d processors, %d modules, %d disks, %d interfaces, %d firmwares, %d holes, in %d requests",
		len(all.Processors), len(all.Memory), len(all.Disks), len(all.NICs), len(all.Firmware), len(all.Holes), asked.Load()-before)
	for _, n := range all.NICs {
		if _, err := inventory.ParseMAC(n.MAC); err != nil && n.MAC != "" {
			t.Logf("an address that is none: %q", n.MAC)
		}
	}
	found, err := c.(bmc.EventLog).Events(ctx, "")
	tell("events", err, "%d, more %v", len(found.Events), found.More)
	if err == nil && len(found.Events) > 0 {
		again, err := c.(bmc.EventLog).Events(ctx, found.Cursor)
		if err != nil || again.Lost || len(again.Events) > 0 != found.More {
			t.Errorf("events after %q: %d, lost %v, %v", found.Cursor, len(again.Events), again.Lost, err)
		}
	}
	drives, err := c.(bmc.Media).Media(ctx)
	var names []string
	for _, d := range drives {
		names = append(names, d.ID+" "+strings.Join(d.Types, "/"))
	}
	tell("drives", err, "%s", strings.Join(names, ", "))
	if facts := c.(bmc.Learner).Facts(); facts.Vendor != id.Manufacturer || facts.Model != id.Model || facts.Firmware != id.BMC.Firmware {
		t.Errorf("it learned of %+v, and is %+v", facts, id)
	}
	for why, n := range bad.Counts() {
		t.Errorf("%d times: %s", n, why)
	}
	return report.String()
}

// reasonWord is the reason of an error, which every error must have, on one line.
func reasonWord(t *testing.T, err error) string {
	t.Helper()
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("several lines: %v", err)
	}
	for word, reason := range map[string]error{"refused login": bmc.ErrAuth, "locked out": bmc.ErrLockedOut, "wrong pin": bmc.ErrPin,
		"unreachable": bmc.ErrUnreachable, "timeout": bmc.ErrTimeout, "busy": bmc.ErrBusy, "unsupported": bmc.ErrUnsupported,
		"rejected": bmc.ErrRejected, "unverified": bmc.ErrUnverified} {
		if errors.Is(err, reason) {
			return word
		}
	}
	t.Errorf("an error without a reason: %v", err)
	return err.Error()
}

// neverDone asks for changes of a BMC that makes none, whatever it says of them.
func neverDone(t *testing.T, resources map[string]map[string]any, system string) {
	t.Helper()
	const refusal = `{"error":{"code":"Base.1.8.GeneralError","@Message.ExtendedInfo":[{"MessageId":"Base.1.8.InternalError","Message":"no"}]}}`
	for name, answer := range map[string]func(http.ResponseWriter){
		"405":               func(w http.ResponseWriter) { refuse(w, http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed") },
		"400":               func(w http.ResponseWriter) { refuse(w, http.StatusBadRequest, "Base.1.8.PropertyUnknown") },
		"204":               func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
		"200 with an error": func(w http.ResponseWriter) { _, _ = w.Write([]byte(refusal)) },
		"202 without task":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusAccepted) },
		"no answer":         func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		s := recordedTree(t, resources)
		var sent atomic.Int64
		s.on = func(w http.ResponseWriter, method, _ string, _ map[string]any) bool {
			if method == http.MethodGet {
				return false
			}
			sent.Add(1)
			answer(w)
			return true
		}
		c := dial(t, s.target(system))
		ctx := within(t, 60*time.Second)
		change := func(what string, already bool, do func(context.Context) error) {
			t.Helper()
			sent.Store(0)
			err := do(ctx)
			switch {
			case err == nil && !already:
				t.Errorf("%s: %s is done", name, what)
			case err == nil && sent.Load() > 0:
				t.Errorf("%s: %s was so already, and was asked for %d times", name, what, sent.Load())
			case err != nil:
				reasonWord(t, err)
			}
			if most := map[bool]int{true: 1, false: 20}[name == "no answer"]; sent.Load() > int64(most) {
				t.Errorf("%s: %s was sent %d times", name, what, sent.Load())
			}
		}
		power, err := c.Power(ctx)
		if err != nil {
			continue
		}
		change("on", power == bmc.PowerOn, c.On)
		change("off", power == bmc.PowerOff, func(ctx context.Context) error { return c.Off(ctx, true) })
		now, err := c.NextBoot(ctx)
		for _, next := range []bmc.NextBoot{{Device: bmc.BootNetwork, UEFI: true}, {Device: bmc.BootNetwork}, {Device: bmc.BootDisk, UEFI: true},
			{Device: bmc.BootCD, UEFI: true}, {Device: bmc.BootHTTP, UEFI: true, URI: "http://192.0.2.1/x.efi"}, {Device: bmc.BootDefault}} {
			if err == nil && now.Device == next.Device && next.Device != bmc.BootDefault {
				continue // it is armed: whether it is written again is the driver's
			}
			change("next boot "+next.String(), err == nil && now.Device == next.Device, func(ctx context.Context) error { return c.SetNextBoot(ctx, next) })
		}
		drives, _ := c.(bmc.Media).Media(ctx)
		full := slices.ContainsFunc(drives, func(d bmc.Drive) bool { return d.Inserted })
		change("insertion", false, func(ctx context.Context) error {
			return c.(bmc.Media).InsertMedia(ctx, "http://192.0.2.1/m.iso")
		})
		if !full {
			change("ejection", true, c.(bmc.Media).EjectMedia)
		}
	}
}
