package inventory

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// gateRack is the rack with an image that has an immutable partition, and a gate.
func gateRack(t testing.TB, boot string) string {
	t.Helper()
	doc := strings.Replace(rack(t), "type: disk", "type: disk\n  immutable: [esp, 2]", 1)
	return strings.Replace(doc, "every: disk", boot, 1)
}

func TestGateIsDeclaredWithItsDefaults(t *testing.T) {
	for boot, want := range map[string]Gate{
		"every: gate": {MismatchHold, DefaultRepairLimit},
		"every: gate, onMismatch: repair, repairLimit: 1MiB, handover: reboot, onServerDown: lastGood": {MismatchRepair, 1 << 20},
		"every: gate, onMismatch: report":   {MismatchReport, DefaultRepairLimit},
		"every: gate, onMismatch: poweroff": {MismatchPowerOff, DefaultRepairLimit},
	} {
		s := parseOne(t, gateRack(t, boot))
		g := resolved(t, s, "compute").Resolved
		if g.Gate == nil || *g.Gate != want || g.Every != BootGate || !slices.Equal(g.Image.Immutable, []string{"esp", "2"}) {
			t.Errorf("%s: %+v of %q", boot, g.Gate, g.Image.Immutable)
		}
	}
}

func TestGateThatCannotBeIsRefused(t *testing.T) {
	for boot, want := range map[string]string{
		"every: gate, repairLimit: 1MiB":                        "spec.boot.repairLimit: with onMismatch: hold nothing is written",
		"every: gate, onMismatch: repair, repairLimit: 1":       "spec.boot.repairLimit: want text",
		"every: gate, handover: kexec":                          "spec.boot.handover: handover: kexec is not accepted yet; want reboot",
		"every: gate, onServerDown: refuse":                     "spec.boot.onServerDown: onServerDown: refuse is not accepted yet; want lastGood",
		"every: gate, onMismatch: shrug":                        "spec.boot.onMismatch",
		"every: gate}\n  identity: {minimum: L1}\n  # {":        "spec.identity.minimum: a gate's boots come from the network",
		"every: gate}\n  evidence: {minimum: enforced}\n  # { ": "evidence.minimum",
	} {
		doc := gateRack(t, boot)
		if strings.Contains(boot, "evidence") {
			doc = strings.Replace(doc, "  evidence: {minimum: reported}\n", "", 1)
		}
		_, err := Parse([]File{{Name: "rack.yaml", Data: []byte(doc)}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", boot, err, want)
		}
	}
}

// What is immutable matters to a gate and to nothing else: to say it of an image must
// not re-image the machines that start their disks.
func TestImmutablePartitionsChangeNoGenerationWithoutAGate(t *testing.T) {
	plain := parseOne(t, rack(t))
	named := parseOne(t, gateRack(t, "every: disk"))
	if a, b := resolved(t, plain, "compute"), resolved(t, named, "compute"); a.Digest != b.Digest {
		t.Errorf("the generation went from %s to %s", a.Digest.Short(), b.Digest.Short())
	}
	gated := resolved(t, parseOne(t, gateRack(t, "every: gate")), "compute")
	other := resolved(t, parseOne(t, strings.Replace(gateRack(t, "every: gate"), "[esp, 2]", "[esp]", 1)), "compute")
	if gated.Digest == other.Digest {
		t.Error("another region is the same generation")
	}
	again, err := DecodeGeneration(gated.Canonical)
	if err != nil || !reflect.DeepEqual(again.Resolved, gated.Resolved) {
		t.Errorf("read back as %+v, %v", again.Resolved, err)
	}
}

func TestVerdictMatchesOnlyWhereEverythingDoes(t *testing.T) {
	a, b := DigestOf([]byte("a")), DigestOf([]byte("b"))
	good := RegionVerdict{Name: "esp", Read: a, Want: a}
	for what, tt := range map[string]struct {
		v    Verdict
		want bool
	}{
		"all":             {Verdict{Regions: []RegionVerdict{good, good}}, true},
		"nothing read":    {Verdict{}, false},
		"another table":   {Verdict{Table: "it is", Regions: []RegionVerdict{good}}, false},
		"another digest":  {Verdict{Regions: []RegionVerdict{good, {Read: a, Want: b}}}, false},
		"a block":         {Verdict{Regions: []RegionVerdict{{Read: a, Want: a, Blocks: 1}}}, false},
		"no digest":       {Verdict{Regions: []RegionVerdict{{}}}, false},
		"nothing to want": {Verdict{Regions: []RegionVerdict{{Read: a}}}, false},
	} {
		if got := tt.v.Matches(); got != tt.want {
			t.Errorf("%s: %t", what, got)
		}
	}
	v := Verdict{Regions: []RegionVerdict{good}}
	if !v.About([]Region{{Name: "esp"}}) || v.About([]Region{{Name: "root"}}) || v.About(nil) || v.About([]Region{{Name: "esp"}, {Name: "esp"}}) {
		t.Error("a verdict is taken for one about other regions")
	}
}

func TestRestoreIsDeclaredByWhatIsKept(t *testing.T) {
	restoreRack := func(state string) string {
		doc := strings.Replace(rack(t), "type: disk", "type: disk\n  immutable: [usr]\n  state: "+state, 1)
		return strings.Replace(doc, "every: disk", "every: restore", 1)
	}
	var digests []Digest
	for state, want := range map[string][]string{"[home, 4]": {"home", "4"}, "[]": nil} {
		g := resolved(t, parseOne(t, restoreRack(state)), "compute")
		r := g.Resolved
		if r.Every != BootRestore || !r.Every.Gated() || r.Gate == nil || *r.Gate != (Gate{OnMismatch: MismatchRestore}) || !r.Gate.Writes() ||
			!slices.Equal(r.Image.State, want) || r.Image.Immutable != nil {
			t.Errorf("state %s: %+v, gate %+v", state, r, r.Gate)
		}
		again, err := DecodeGeneration(g.Canonical)
		if err != nil || again.Resolved.Every != BootRestore {
			t.Errorf("read back as %+v, %v", again.Resolved, err)
		}
		digests = append(digests, g.Digest)
	}
	if digests[0] == digests[1] {
		t.Error("to keep something else is the same generation")
	}
}
