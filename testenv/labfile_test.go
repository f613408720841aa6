package testenv

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// labLine is a machine of a lab in words.
func labLine(m RackMachine) string {
	kind := simEither(m.Simulated, "simulated", "qemu")
	line := fmt.Sprintf("%s %s.%d %s %s%s %s", m.Name, m.Rack, m.Unit, kind, m.Firmware, simEither(m.NetBoot == "", "", " "+string(m.NetBoot)), m.BMC)
	if len(m.NICs) > 0 {
		line += fmt.Sprintf(", %d nics", len(m.NICs))
	}
	if m.TPM {
		line += ", tpm"
	}
	if m.Drive {
		line += ", drive"
	}
	for _, d := range m.Disks {
		line += fmt.Sprintf(", disk %d %s %t", d.Size>>20, d.Bus, d.Discard)
	}
	if m.Cable != (Cable{}) {
		line += fmt.Sprint(", link ", m.Cable)
	}
	return line
}

func TestLabFileSaysWhatALabIsMadeOf(t *testing.T) {
	f, err := ParseLabFile("LAB.yaml", []byte(`
os: tiny
racks:
- {name: r1, machines: 3}
- {name: r2, machines: 3, kind: simulated, bmc: redfish, tpm: true, link: {delay: 5ms}}
machines:
  r2u02: {tpm: false}
  r1u02: {firmware: uefi-http, tpm: true, drive: true, nics: 2, disks: [2GiB, {size: 1GiB, bus: nvme, discard: true}]}
  r1u03: {kind: simulated, bmc: none}
  r2u03: {firmware: u-boot, disks: [32MiB], link: {loss: 0.1, duplicate: 0.2, reorder: 0.3, vlan: 7}}
faults:
  r2u01: hang
  r2u02: [no-boot, delay=2s]
rollout: {maxUnavailable: 25%, maxFailures: 2}
`))
	simMust(t, err)
	var got []string
	for _, m := range f.Machines {
		got = append(got, labLine(m))
	}
	want := []string{
		"r1u01 r1.1 qemu bios ipmi, disk 0 ahci false",
		"r1u02 r1.2 qemu uefi http redfish, 2 nics, tpm, drive, disk 2048  false, disk 1024 nvme true",
		"r1u03 r1.3 simulated bios none",
		"r2u01 r2.1 simulated bios redfish, tpm, link {{0 0 0 5ms 0} 0}",
		"r2u02 r2.2 simulated uefi redfish, link {{0 0 0 5ms 0} 0}",
		"r2u03 r2.3 simulated u-boot redfish, tpm, disk 32  false, link {{0.1 0.2 0.3 0s 0} 7}",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if f.OS != OSTiny || f.QEMU() != 2 || f.Simulated() != 4 || fmt.Sprint(f.Faults) != "map[r2u01:[hang] r2u02:[no-boot delay=2s]]" || f.MaxUnavailable != "25%" || f.MaxFailures != "2" {
		t.Errorf("%+v", f)
	}
}

// Without a file a lab is what it always was.
func TestLabWithoutAFileIsTheSmallestRack(t *testing.T) {
	f, _, err := NewLabFile(1, 2, false)
	simMust(t, err)
	want := RackDefault()
	for i := range f.Machines {
		f.Machines[i].Rack, f.Machines[i].Unit = "", 0
	}
	if diff := cmp.Diff(want, f.Machines); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What flags say wrong is told by their names.
func TestLabFlagsAreRefusedByTheirNames(t *testing.T) {
	for _, c := range []struct {
		racks, perRack int
		simulated      bool
		want           string
	}{
		{0, 2, false, "--racks 0: want a number from 1 to 4000"},
		{1, -1, true, "--per-rack -1: want a number from 1 to 4000"},
		{100, 100, true, "--racks 100 --per-rack 100: 10000 machines in the lab; want at most 4000"},
		{4, 48, false, "--racks 4 --per-rack 48: 192 QEMU machines, which take 1 GiB of memory each; want at most 32, or --simulated"},
	} {
		if _, _, err := NewLabFile(c.racks, c.perRack, c.simulated); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

func TestLabFileIsReadStrictly(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "LAB.yaml: the file is empty; want racks: with a name and a number of machines each",
		"os: tiny":                          "LAB.yaml: racks: missing; want at least one, such as - {name: r1, machines: 2}",
		"racks: 4":                          "LAB.yaml:1: racks: want a list of racks; such as - {name: r1, machines: 48, kind: simulated}",
		"racks: [{machines: 2}]":            "LAB.yaml:1: racks[0].name: missing; its machines are called by it: r1 has r1u01, r1u02 …",
		"racks: [{name: r1}]":               "LAB.yaml:1: racks[0].machines: missing; say how many machines it has",
		"racks: [{name: R 1, machines: 1}]": "LAB.yaml:1: racks[0].name: bad name",
		"racks: [{name: r1, machines: 1, firmwear: bios}]":                    "LAB.yaml:1: racks[0].firmwear: unknown field; did you mean \"firmware\"",
		"racks: [{name: r1, machines: x}]":                                    "LAB.yaml:1: racks[0].machines: bad value \"x\"; want a number from 1 to 4000",
		"racks: [{name: r1, machines: 9, kind: simulated, nics: 2}]":          "LAB.yaml:1: racks.r1.nics: a simulated machine has one card; leave it out, or make it kind: qemu",
		"racks: [{name: r1, machines: 1, firmware: u-boot}]":                  "LAB.yaml:1: racks.r1.firmware: u-boot is played by simulated machines alone; make it kind: simulated",
		"racks: [{name: r1, machines: 33}]":                                   "LAB.yaml: racks: 33 machines are QEMU, which take 1 GiB of memory each; at most 32; make the others kind: simulated",
		"racks: [{name: r1, machines: 1}, {name: r1, machines: 1}]":           "LAB.yaml:1: racks[1].name: the rack \"r1\" is there twice; rename it, or the one of line 1",
		"racks: [{name: r1, machines: 1}]\nmachines: {r1u1: {bmc: ipmi}}":     "LAB.yaml:2: machines.r1u1: no rack has a machine \"r1u1\"; did you mean \"r1u01\"",
		"racks: [{name: r1, machines: 1}]\nmachines: {r1u01: {bmc: telnet}}":  "LAB.yaml:2: machines.r1u01.bmc: unknown value \"telnet\"; want ipmi, redfish, none",
		"racks: [{name: r1, machines: 1}]\nmachines: {r1u01: {disks: [2TB]}}": "LAB.yaml:2: machines.r1u01.disks[0]: 2TB is no whole number of MiB; want a size such as 2GiB",
		"racks: [{name: r1, machines: 1}]\nfaults: {r1u01: hangs}":            "LAB.yaml:2: faults.r1u01: there is no fault \"hangs\"; did you mean \"hang\"",
		"racks: [{name: r1, machines: 1, link: {loss: 2}}]":                   "LAB.yaml:1: racks[0].link.loss: bad value \"2\"; want a number above 0 and up to 1, such as 0.15",
		"racks: [{name: r1, machines: 1, link: {jitter: 2s}}]":                "LAB.yaml:1: racks[0].link.jitter: unknown field; want one of loss, delay, duplicate, reorder, vlan",
		"racks: [{name: r1, machines: 1}]\nfaults: {r1u01: link-vlan=4095}":   "LAB.yaml:2: faults.r1u01: fault \"link-vlan=4095\": want a number from 1 to 4094",
		"racks: [{name: r1, machines: 1}]\nfaults: {r1u01: restart-bmc}":      "LAB.yaml:2: faults.r1u01: \"restart-bmc\" happens now; call recast lab fault on the lab that runs",
		"racks: [{name: r1, machines: 1}]\nrollout: {maxFailures: many}":      "LAB.yaml:2: rollout.maxFailures: bad value \"many\"; want a count or a share, such as 2 or 25%",
		"racks: [":             "LAB.yaml:1: did not find expected node content; mend the YAML there",
		"racks: []\nracks: []": "LAB.yaml:2: racks: it is set twice; remove this or line 1",
	} {
		_, err := ParseLabFile("LAB.yaml", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Count(err.Error(), "\n") > 0 && !strings.Contains(text, "racks: []") {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
	}
}

func FuzzParseLabFile(f *testing.F) {
	f.Add("racks: [{name: r1, machines: 2}]\nmachines: {r1u01: {disks: [1GiB, {size: 1GiB}]}}\nfaults: {r1u01: [hang, delay=2s]}")
	f.Add("racks:\n- &a {name: r1, machines: 3999, kind: simulated}\n- *a")
	f.Add("racks: [{machines: 1}")
	f.Fuzz(func(t *testing.T, text string) {
		lab, err := ParseLabFile("LAB.yaml", []byte(text))
		if err == nil && (len(lab.Machines) == 0 || len(lab.Machines) > labMost) {
			t.Errorf("%d machines of %q", len(lab.Machines), text)
		}
	})
}

// Whatever BMCs can do wrong has a name and a text, and lands where it belongs.
func TestEveryFaultCanBeNamed(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range FaultKinds() {
		if seen[k.Name] {
			t.Errorf("two faults are called %s", k.Name)
		}
		seen[k.Name] = true
		if k.Text == "" {
			t.Errorf("%s: no text says what it is", k.Name)
		}
		text := k.Name
		if k.Value != "" {
			text += "=" + faultExample(k)
		}
		f, err := ParseFault(text)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if k.field == nil {
			continue
		}
		var faults BMCFaults
		f.set(k, &faults)
		if v := reflect.ValueOf(faults).FieldByIndex(k.field); v.IsZero() {
			t.Errorf("%s sets nothing", text)
		}
	}
	for name := range faultTexts {
		if !seen[name] {
			t.Errorf("there is a text for %s, and no such fault", name)
		}
	}
	for text, want := range map[string]string{
		"hang=1": "it takes no value; say hang", "delay": "it needs a value; say delay=2s", "delay=x": "want a time such as 2s", "etag=odd": "want one of weak, weak-false, empty, none",
		"lose-in=2": "want a number above 0 and up to 1", "disk-size=big": "want a size such as 4MiB", "stale-reads=-1": "want a count such as 1",
	} {
		if _, err := ParseFault(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	var faults BMCFaults
	for _, text := range []string{"delay=1500ms", "lose-in=0.15", "resets=On,ForceOff", "media-eject-lag=2s", "etag=weak"} {
		f, err := ParseFault(text)
		simMust(t, err)
		f.set(f.kind(), &faults)
	}
	want := BMCFaults{Delay: 1500 * time.Millisecond, LoseIn: 0.15, Redfish: RedfishFaults{ETag: ETagWeak, Resets: []string{"On", "ForceOff"}, Media: RedfishMediaFaults{EjectLag: 2 * time.Second}}}
	if diff := cmp.Diff(want, faults); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLabNamesTheLoadersThatItsMachinesWouldWaitFor(t *testing.T) {
	f, err := ParseLabFile("LAB.yaml", []byte(`
racks:
- {name: r1, machines: 2, kind: simulated}
- {name: r2, machines: 2, firmware: uefi-http}
machines:
  r2u02: {kind: simulated, firmware: u-boot}
`))
	simMust(t, err)
	for have, want := range map[string]string{
		"snponly.efi ipxe-arm64.efi": "",
		"ipxe-arm64.efi":             "the boot loader snponly.efi, as uefi machines load it",
		"snponly.efi":                "the boot loader ipxe-arm64.efi, as u-boot machines load it",
	} {
		got := f.lacks(func(loader string) bool { return strings.Contains(have, loader) })
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], want)) {
			t.Errorf("with %s: %q", have, got)
		}
	}
	f, _, err = NewLabFile(1, 1, true) // a BIOS alone
	simMust(t, err)
	if got := f.lacks(func(string) bool { return false }); got != nil {
		t.Errorf("%q", got)
	}
}
