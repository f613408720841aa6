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
		"every: gate": {OnMismatch: MismatchHold, RepairLimit: DefaultRepairLimit},
		"every: gate, onMismatch: repair, repairLimit: 1MiB, onServerDown: lastGood": {OnMismatch: MismatchRepair, RepairLimit: 1 << 20},
		"every: gate, handover: reboot":                                              {OnMismatch: MismatchHold, RepairLimit: DefaultRepairLimit, Handover: HandoverReboot},
		"every: gate, onMismatch: report":                                            {OnMismatch: MismatchReport, RepairLimit: DefaultRepairLimit},
		"every: gate, onMismatch: poweroff":                                          {OnMismatch: MismatchPowerOff, RepairLimit: DefaultRepairLimit},
		"every: gate, onServerDown: refuse":                                          {OnMismatch: MismatchHold, RepairLimit: DefaultRepairLimit, Refuse: true},
		"every: gate, onServerDown: refuse}\n  evidence: {minimum: enforced}\n  # {": {OnMismatch: MismatchHold, RepairLimit: DefaultRepairLimit, Refuse: true},
	} {
		doc := gateRack(t, boot)
		if strings.Contains(boot, "evidence") {
			doc = strings.Replace(doc, "  evidence: {minimum: reported}\n", "", 1)
		}
		s := parseOne(t, doc)
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
		"every: gate, handover: kexec":                          "spec.boot.handover: image \"debian-12\" does not say what its kernel is; name it in the image's boot, or want reboot",
		"every: gate, handover: jump":                           "spec.boot.handover",
		"every: gate, onMismatch: shrug":                        "spec.boot.onMismatch",
		"every: gate}\n  identity: {minimum: L1}\n  # {":        "spec.identity.minimum: a gate's boots come from the network",
		"every: gate}\n  evidence: {minimum: enforced}\n  # { ": "spec.evidence.minimum: nothing keeps a machine that does not reach recast from starting its disk unproved, so that nothing is enforced; set boot: {every: gate, onServerDown: refuse}",
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

// kernelRack is gateRack with an image that says what its kernel is.
func kernelRack(t testing.TB, image, boot string) string {
	t.Helper()
	return strings.Replace(gateRack(t, boot), "immutable: [esp, 2]", "immutable: [esp, 2]\n  boot: {"+image+"}", 1)
}

func TestAnImageSaysWhatItsKernelIs(t *testing.T) {
	image := "partition: 2, kernel: /vmlinuz, initrd: /boot/initrd.img, args: [root=PARTUUID=7265636a-7374-4000-8003-74696e790001, ro]"
	want := ImageBoot{Partition: "2", Kernel: "/vmlinuz", Initrd: "/boot/initrd.img", Args: []string{"root=PARTUUID=7265636a-7374-4000-8003-74696e790001", "ro"}}
	digests := map[Digest]bool{}
	for boot, handover := range map[string]Handover{"every: gate": HandoverAny, "every: gate, handover: kexec": HandoverKexec} {
		r := resolved(t, parseOne(t, kernelRack(t, image, boot)), "compute")
		if g := r.Resolved; g.Image.Boot == nil || !reflect.DeepEqual(*g.Image.Boot, want) || g.Gate.Handover != handover {
			t.Errorf("%s: %+v, %+v", boot, g.Image.Boot, g.Gate)
		}
		digests[r.Digest] = true
	}
	// Who never starts it is not written anew for what it is said to be.
	for _, boot := range []string{"every: gate, handover: reboot", "every: disk"} {
		a, b := resolved(t, parseOne(t, kernelRack(t, image, boot)), "compute"), resolved(t, parseOne(t, gateRack(t, boot)), "compute")
		if a.Digest != b.Digest || a.Resolved.Image.Boot != nil {
			t.Errorf("%s: the generation depends on a kernel that is not used", boot)
		}
		digests[a.Digest] = true
	}
	if len(digests) != 4 {
		t.Errorf("%d generations of 4", len(digests))
	}
}

func TestAKernelThatCannotBeIsRefused(t *testing.T) {
	for image, want := range map[string]string{
		"kernel: /vmlinuz":                                                          "spec.boot.partition",
		"partition: 2":                                                              "spec.boot.kernel",
		"partition: 3, kernel: /vmlinuz":                                            `spec.boot.partition: partition "3" is not immutable, and only what was proved is started`,
		"partition: 2, kernel: vmlinuz":                                             `spec.boot.kernel: "vmlinuz" is no path of a file; want it from the partition's root: /vmlinuz`,
		"partition: 2, kernel: /boot/":                                              "spec.boot.kernel",
		"partition: 2, kernel: /vmlinuz, initrd: \"\"":                              "spec.boot.initrd",
		"partition: 2, kernel: /vmlinuz, args: [ro quiet]":                          `spec.boot.args[0]: "ro quiet" is not one word`,
		"partition: 2, kernel: /vmlinuz, args: ['a\"b']":                            "spec.boot.args[0]",
		"partition: 2, kernel: /vmlinuz, args: [" + strings.Repeat("x", 1536) + "]": "spec.boot.args: 1537 characters in all; want at most 1536",
		"partition: 2, kernel: /vmlinuz, cmdline: ro":                               "cmdline",
	} {
		_, err := Parse([]File{{Name: "rack.yaml", Data: []byte(kernelRack(t, image, "every: gate"))}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", image, err, want)
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

func TestAPartitionThatDmVerityProtectsIsPartOfAGate(t *testing.T) {
	verity := func(boot, pairs string) Generation {
		return resolved(t, parseOne(t, strings.Replace(gateRack(t, boot), "immutable: [esp, 2]", "immutable: [esp]\n  verity: {"+pairs+"}", 1)), "compute")
	}
	r := verity("every: gate", "root: 3, 5: usr-verity")
	if want := map[string]string{"root": "3", "5": "usr-verity"}; !reflect.DeepEqual(r.Resolved.Image.Verity, want) {
		t.Errorf("%q, want %q", r.Resolved.Image.Verity, want)
	}
	again, err := DecodeGeneration(r.Canonical)
	if err != nil || !reflect.DeepEqual(again.Resolved, r.Resolved) {
		t.Errorf("read back as %+v, %v", again.Resolved, err)
	}
	// It is a generation of its own, and none where no gate reads it.
	if r.Digest == verity("every: gate", "root: 4").Digest || r.Digest == verity("every: gate", "").Digest {
		t.Error("another tree is the same generation")
	}
	if a, b := verity("every: disk", "root: 3"), resolved(t, parseOne(t, rack(t)), "compute"); a.Digest != b.Digest {
		t.Error("the generation depends on a tree that nobody reads")
	}
}

func TestAGateWithATreeNeedsWhatStartsItToBeProved(t *testing.T) {
	for image, want := range map[string]string{
		"verity: {root: root-verity}": `spec.boot.every: image "debian-12" names no immutable partition, so that nothing proves what starts the kernel and gives it the root hash; name those in its immutable, or want disk`,
		"immutable: [esp]\n  verity: {root: root-verity}\n  boot: {partition: root, kernel: /vmlinuz}": `spec.boot.partition: what stands in "root" is proved only by the kernel that it would hold; name an immutable partition that has the kernel`,
	} {
		doc := strings.Replace(gateRack(t, "every: gate"), "immutable: [esp, 2]", image, 1)
		if _, err := Parse([]File{{Name: "rack.yaml", Data: []byte(doc)}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", image, err, want)
		}
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
