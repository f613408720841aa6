package inventory

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPartitions are those that a GPT has as a rule.
const maxPartitions = 128

// buildPartitions checks the names by themselves: which partitions there are is
// known where the image is. Nil where nothing is said.
func (s scope) buildPartitions(name string, raw []word) (list []string) {
	if raw != nil {
		list = []string{}
	}
	for n, t := range raw {
		field := "spec." + name + "[" + strconv.Itoa(n) + "]"
		switch {
		case !t.given():
		case t.V == "" || utf8.RuneCountInString(t.V) > 36 || !utf8.ValidString(t.V) || strings.ContainsFunc(t.V, func(r rune) bool { return !unicode.IsPrint(r) }):
			s.problem(t.Line, field, fmt.Sprintf("%q cannot name a partition", t.V), "want its GPT name, at most 36 characters, or its number")
		case slices.Contains(list, t.V):
			s.problem(t.Line, field, fmt.Sprintf("%q stands there twice", t.V), "remove one")
		case n == maxPartitions:
			s.problem(t.Line, field, fmt.Sprintf("more than %d partitions", maxPartitions), "a table has no more")
		default:
			list = append(list, t.V)
		}
	}
	return list
}

// buildGate checks how a deployed machine boots.
func (s scope) buildGate(raw rawDefinition, o *Definition) {
	boot := raw.Boot
	refuse := func(why, next string, fields ...string) {
		given := map[string]text{"onMismatch": boot.OnMismatch, "repairLimit": boot.RepairLimit, "handover": boot.Handover, "onServerDown": boot.OnServerDown}
		for _, f := range fields {
			if t := given[f]; t.given() {
				s.problem(t.Line, "spec.boot."+f, why, next)
			}
		}
	}
	switch o.Every {
	case BootDisk:
		refuse("it says what a gate does, and there is none", "remove it, or set every: gate", "onMismatch", "repairLimit", "handover", "onServerDown")
		return
	case BootGate:
		s.buildMismatch(boot, o)
	case BootRestore:
		refuse("every: restore puts back whatever differs", "remove it, or set every: gate", "onMismatch", "repairLimit")
		o.Gate = &Gate{OnMismatch: MismatchRestore}
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
	switch i := s.b.image[o.Image]; {
	case i == nil:
	case o.Every == BootGate && len(i.Immutable) == 0:
		s.problem(boot.Every.Line, "spec.boot.every", fmt.Sprintf("image %q names no immutable partition, so that there is nothing to prove", i.Name), "name those that never change in its immutable, or want disk")
	case o.Every == BootRestore && i.State == nil:
		s.problem(boot.Every.Line, "spec.boot.every", fmt.Sprintf("image %q does not say what is kept: all else is put back at every boot", i.Name), "name the partitions that are kept in its state, or set state: [] to keep none")
	}
}

// buildMismatch checks what a gate does where something differs.
func (s scope) buildMismatch(boot rawBoot, o *Definition) {
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
}
