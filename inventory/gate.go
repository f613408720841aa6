package inventory

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxImmutable partitions are those that a GPT has as a rule.
const maxImmutable = 128

// buildImmutable checks the names by themselves: which partitions there are is
// known where the image is.
func (s scope) buildImmutable(raw []word, i *Image) {
	for n, t := range raw {
		field := "spec.immutable[" + strconv.Itoa(n) + "]"
		switch {
		case !t.given():
		case t.V == "" || utf8.RuneCountInString(t.V) > 36 || !utf8.ValidString(t.V) || strings.ContainsFunc(t.V, func(r rune) bool { return !unicode.IsPrint(r) }):
			s.problem(t.Line, field, fmt.Sprintf("%q cannot name a partition", t.V), "want its GPT name, at most 36 characters, or its number")
		case slices.Contains(i.Immutable, t.V):
			s.problem(t.Line, field, fmt.Sprintf("%q stands there twice", t.V), "remove one")
		case n == maxImmutable:
			s.problem(t.Line, field, fmt.Sprintf("more than %d partitions", maxImmutable), "name those that never change")
		default:
			i.Immutable = append(i.Immutable, t.V)
		}
	}
}

// buildGate checks how a deployed machine boots.
func (s scope) buildGate(raw rawDefinition, o *Definition) {
	boot := raw.Boot
	if o.Every == BootRestore {
		s.problem(boot.Every.Line, "spec.boot.every", "every: restore is not accepted yet", "want disk or gate")
		return
	}
	if o.Every == BootDisk {
		for _, f := range []struct {
			name string
			t    text
		}{{"onMismatch", boot.OnMismatch}, {"repairLimit", boot.RepairLimit}, {"handover", boot.Handover}, {"onServerDown", boot.OnServerDown}} {
			if f.t.given() {
				s.problem(f.t.Line, "spec.boot."+f.name, "it says what a gate does, and there is none", "remove it, or set every: gate")
			}
		}
		return
	}
	o.Gate = &Gate{OnMismatch: MismatchHold, RepairLimit: DefaultRepairLimit}
	if boot.OnMismatch.given() {
		o.Gate.OnMismatch = OnMismatch(boot.OnMismatch.V)
	}
	if t := boot.RepairLimit; t.given() {
		n, err := ParseSize(t.V)
		switch {
		case err != nil:
			s.fail(t.Line, "spec.boot.repairLimit", err)
		case o.Gate.OnMismatch != MismatchRepair:
			s.problem(t.Line, "spec.boot.repairLimit", fmt.Sprintf("with onMismatch: %s nothing is written", o.Gate.OnMismatch), "remove it, or set onMismatch: repair")
		default:
			o.Gate.RepairLimit = n
		}
	}
	if t := boot.Handover; t.V == "kexec" {
		s.problem(t.Line, "spec.boot.handover", "handover: kexec is not accepted yet", "want reboot")
	}
	if t := boot.OnServerDown; t.V == "refuse" {
		s.problem(t.Line, "spec.boot.onServerDown", "onServerDown: refuse is not accepted yet", "want lastGood")
	}
	if raw.Identity.Minimum.V == string(L1) {
		s.problem(raw.Identity.Minimum.Line, "spec.identity.minimum", "a gate's boots come from the network by the machine's own boot order, where its hardware address is all that is known of it", "want L0, or every: disk")
	}
	if i := s.b.image[o.Image]; i != nil && len(i.Immutable) == 0 {
		s.problem(boot.Every.Line, "spec.boot.every", fmt.Sprintf("image %q names no immutable partition, so that there is nothing to prove", i.Name), "name those that never change in its immutable, or want disk")
	}
}
