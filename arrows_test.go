package recast_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// floors says which of our packages each package may import, from the ground
// up. What is not listed is not allowed.
var floors = map[string][]string{
	// floor 0: words, records, bytes, small volumes
	"inventory": {},
	"store":     {},
	"pack":      {},
	"fat":       {},
	// floor 1: how to boot, files over UDP, images, power, what each OS wants, TPMs, hands in the ramdisk
	"ipxe":    {"inventory", "fat"},
	"tftp":    {"inventory"},
	"syslog":  {"inventory"},
	"capture": {"inventory"},
	"console": {},
	"image":   {"inventory", "pack", "fat"},
	"bmc":     {"inventory"},
	"target":  {"inventory", "fat"},
	"tpm":     {"inventory"},
	"agent":   {"inventory", "pack", "fat", "tpm"},
	// floor 2: who gets an address | what every machine should do next
	"dhcp":      {"ipxe", "store", "inventory"},
	"provision": {"ipxe", "bmc", "image", "target", "tpm", "store", "inventory"},
	// floor 3: the one HTTP front
	"web": {"provision", "dhcp", "ipxe", "image", "console", "inventory"},
	// beside: virtual racks
	"testenv": {"inventory", "store", "pack", "ipxe", "tftp", "image", "bmc", "target", "tpm", "agent"},
	// floor 4: wiring
	"cmd/recast":       {"web", "dhcp", "provision", "ipxe", "tftp", "syslog", "capture", "console", "image", "bmc", "target", "tpm", "inventory", "store", "pack", "testenv"},
	"cmd/recast-agent": {"agent", "inventory", "pack"},
}

// bans keep a library, or one of our packages, in the places named.
var bans = []struct {
	path string // an import path, or the beginning of one
	only []string
	why  string
}{
	{"github.com/labstack/echo", []string{"web"},
		"one HTTP front; and echo's response hides sendfile, which doubles the CPU per image"},
	{"github.com/bmc-toolbox/bmclib", []string{"bmc"},
		"its defects are countered in one place, behind bmc.Client"},
	{"github.com/bougou/go-ipmi", []string{"bmc", "testenv"},
		"likewise; testenv plays the other side of the wire"},
	{"github.com/stmcginnis/gofish", []string{"bmc", "testenv"},
		"likewise"},
	{"golang.org/x/crypto/ssh", []string{"bmc", "testenv"},
		"likewise: host keys are pinned in one place"},
	{"github.com/insomniacslk/dhcp", []string{"dhcp", "agent", "testenv"},
		"packets are decoded where they arrive; everyone else speaks of ipxe.Client"},
	{"github.com/pin/tftp", []string{"tftp", "testenv"},
		"it amplifies; only behind our filter may it see a packet"},
	{"go.etcd.io/bbolt", []string{"store"},
		"records are reached through store's contract, or the second engine rots"},
	{"go.etcd.io/etcd", []string{"store"},
		"likewise"},
	{"filippo.io/age", []string{"store", "provision", "cmd/recast"},
		"secrets are sealed and opened where they are kept"},
	{"github.com/spf13/cobra", []string{"cmd/recast"},
		"flags and exit codes are main's; a package gets a struct"},
	{"github.com/google/go-attestation", []string{"tpm"},
		"what a TPM says is judged in one place; testenv plays the chip"},
	{"github.com/google/go-tpm", []string{"tpm", "testenv"},
		"likewise"},
	{"os/exec", []string{"testenv", "cmd/recast", "agent"},
		"the server runs no command: a definition must never reach a shell"},
	{"text/template", nil,
		"user text never meets a template engine that can run code; substitution is a fixed, typed set"},
	{"html/template", []string{"web"},
		"pages only, where it escapes"},
	{"recast/testenv", []string{"cmd/recast"},
		"the lab is for `recast lab` and tests; nothing that runs a datacenter may depend on it"},
	{"recast/provision", []string{"web", "cmd/recast"},
		"dhcp and ipxe ask through ipxe.Booter; the brain has no callers below it"},
	{"recast/dhcp", []string{"web", "cmd/recast"},
		"dhcp and provision never import each other"},
}

// listed is what go list says of a package.
type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	var text strings.Builder
	cmd.Stderr = &text
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(out); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v\n%s", err, text.String())
	}
	return all
}

func TestImportsFollowTheArrows(t *testing.T) {
	for _, p := range list(t) {
		for _, problem := range check(p) {
			t.Error(problem)
		}
	}
}

// beneath is every floor that a package stands on, its own imports' too.
func beneath(name string) []string {
	var all []string
	for _, below := range floors[name] {
		all = append(append(all, below), beneath(below)...)
	}
	return all
}

// check returns what is wrong with the imports of one package. Its tests may
// play the other side of any wire with the libraries, may use testenv, and may
// build what the package stands on (web's open a store for the engine), but
// never look upwards or across.
func check(p listed) []string {
	const module = "recast"
	name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
	if name == "" {
		return nil // this test
	}
	below, known := floors[name]
	if !known {
		return []string{fmt.Sprintf("package %s has no floor: it is a new package or a sub-package; see DESIGN.md before adding it to floors", p.ImportPath)}
	}
	var problems []string
	for _, imported := range p.Imports {
		ours, isOurs := strings.CutPrefix(imported, module+"/")
		if isOurs && !slices.Contains(below, ours) {
			problems = append(problems, fmt.Sprintf("%s imports %s, which does not lie below it (it may import %s)", name, ours, strings.Join(below, ", ")))
		}
		for _, b := range bans {
			if (imported == b.path || strings.HasPrefix(imported, b.path+"/")) && !slices.Contains(b.only, name) {
				problems = append(problems, fmt.Sprintf("%s imports %s: %s", name, imported, b.why))
			}
		}
	}
	if strings.HasPrefix(name, "cmd/") {
		return problems // whole programs under test
	}
	for _, imported := range append(slices.Clone(p.TestImports), p.XTestImports...) {
		ours, isOurs := strings.CutPrefix(imported, module+"/")
		if isOurs && ours != name && ours != "testenv" && !slices.Contains(beneath(name), ours) {
			problems = append(problems, fmt.Sprintf("a test of %s imports %s, which does not lie below it", name, ours))
		}
	}
	return problems
}

func TestImportsOffTheArrowsAreFound(t *testing.T) {
	for name, p := range map[string]listed{
		"upwards":             {ImportPath: "recast/inventory", Imports: []string{"recast/store"}},
		"across":              {ImportPath: "recast/dhcp", Imports: []string{"recast/provision"}},
		"library out of bond": {ImportPath: "recast/provision", Imports: []string{"github.com/labstack/echo/v4"}},
		"etcd beside store":   {ImportPath: "recast/dhcp", Imports: []string{"go.etcd.io/etcd/client/v3"}},
		"a shell":             {ImportPath: "recast/target", Imports: []string{"os/exec"}},
		"lab in the server":   {ImportPath: "recast/web", Imports: []string{"recast/testenv"}},
		"sub-package":         {ImportPath: "recast/bmc/util"},
		"a test upwards":      {ImportPath: "recast/ipxe", XTestImports: []string{"recast/web"}},
	} {
		if len(check(p)) == 0 {
			t.Errorf("%s: nothing found in %+v", name, p)
		}
	}
	if problems := check(listed{ImportPath: "recast/ipxe", Imports: []string{"recast/inventory", "fmt"}, XTestImports: []string{"recast/ipxe", "recast/testenv"}}); len(problems) > 0 {
		t.Errorf("a good package: %q", problems)
	}
	for _, b := range bans {
		if b.why == "" {
			t.Errorf("the ban of %s has no reason", b.path)
		}
	}
}
