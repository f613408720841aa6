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

// badPartition says why no partition has that name or number; "" one may.
func badPartition(name string) string {
	if name == "" || utf8.RuneCountInString(name) > 36 || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%q cannot name a partition", name)
	}
	return ""
}

const partitionRule = "want its GPT name, at most 36 characters, or its number"

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
		case badPartition(t.V) != "":
			s.problem(t.Line, field, badPartition(t.V), partitionRule)
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

// buildVerity checks that each partition is one thing: data, a tree, immutable or state.
// Whether a tree is the data's is known where the image is.
func (s scope) buildVerity(raw entries, i *Image) {
	trees := map[string]string{} // with the data of each
	for _, e := range raw {
		trees[e.Value.V] = e.Key
	}
	for _, e := range raw {
		data, tree, field := e.Key, e.Value.V, "spec.verity."+e.Key
		switch {
		case badPartition(data) != "":
			s.problem(e.KeyLine, field, badPartition(data), partitionRule)
		case badPartition(tree) != "":
			s.problem(e.Value.Line, field, badPartition(tree), partitionRule)
		case trees[data] != "":
			s.problem(e.KeyLine, field, fmt.Sprintf("%q is the tree of %q", data, trees[data]), "name the partition that holds the data, and behind it that of its tree")
		case trees[tree] != data:
			s.problem(e.Value.Line, field, fmt.Sprintf("%q is the tree of %q too", tree, trees[tree]), "name another one: each has its own")
		case slices.Contains(i.Immutable, data):
			s.problem(e.KeyLine, field, fmt.Sprintf("%q is immutable too, so that all of it would be read", data), "remove one: its tree proves it")
		case slices.Contains(i.Immutable, tree):
			s.problem(e.Value.Line, field, fmt.Sprintf("%q stands in immutable too", tree), "remove it there: a tree is read whole")
		case slices.Contains(i.State, data), slices.Contains(i.State, tree):
			s.problem(e.KeyLine, field, "what dm-verity protects is no state", "remove it there or here")
		default:
			if i.Verity == nil {
				i.Verity = map[string]string{}
			}
			i.Verity[data] = tree
		}
	}
}

// maxArgs leaves room in x86's 2048 characters for the consoles.
const maxArgs = 1536

// buildImageBoot checks where a kernel is said to be; whether it is there is known
// where the image is.
func (s scope) buildImageBoot(raw rawImageBoot, i *Image) {
	if raw.Line == 0 {
		return
	}
	o := &ImageBoot{Partition: raw.Partition.V, Kernel: raw.Kernel.V, Initrd: raw.Initrd.V}
	if t := raw.Partition; t.given() && i.Verity[t.V] != "" {
		s.problem(t.Line, "spec.boot.partition", fmt.Sprintf("what stands in %q is proved only by the kernel that it would hold", t.V), "name an immutable partition that has the kernel")
	} else if t.given() && !slices.Contains(i.Immutable, t.V) && (i.State == nil || slices.Contains(i.State, t.V)) {
		s.problem(t.Line, "spec.boot.partition", fmt.Sprintf("partition %q is not immutable, and only what was proved is started", t.V), "name it in immutable too, in the same way")
	}
	for _, f := range []struct {
		name string
		t    text
	}{{"kernel", raw.Kernel}, {"initrd", raw.Initrd}} {
		if f.t.given() && (!strings.HasPrefix(f.t.V, "/") || strings.HasSuffix(f.t.V, "/") || len(f.t.V) > 1024 || !utf8.ValidString(f.t.V) || strings.ContainsFunc(f.t.V, func(r rune) bool { return !unicode.IsPrint(r) })) {
			s.problem(f.t.Line, "spec.boot."+f.name, fmt.Sprintf("%q is no path of a file", f.t.V), "want it from the partition's root: /vmlinuz")
		}
	}
	length := 0
	for n, t := range raw.Args {
		if !t.given() || t.V == "" || strings.ContainsFunc(t.V, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\'' }) {
			s.problem(t.Line, "spec.boot.args["+strconv.Itoa(n)+"]", fmt.Sprintf("%q is not one word of printable ASCII without quotes", t.V), "want one argument in each place")
			continue
		}
		length += len(t.V) + 1
		o.Args = append(o.Args, t.V)
	}
	if length > maxArgs {
		s.problem(raw.Args[0].Line, "spec.boot.args", fmt.Sprintf("%d characters in all", length), fmt.Sprintf("want at most %d", maxArgs))
	}
	i.Boot = o
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
	o.Gate.Handover = Handover(boot.Handover.V)
	if t := boot.OnServerDown; t.V == "refuse" {
		o.Gate.Refuse = true
		if i := s.b.image[o.Image]; i != nil && i.Arch != AMD64 {
			s.problem(t.Line, "spec.boot.onServerDown", fmt.Sprintf("the program that keeps a machine from its disk is there for %s alone, and image %q is for %s", AMD64, i.Name, i.Arch), "want lastGood")
		}
	}
	if raw.Identity.Minimum.V == string(L1) {
		s.problem(raw.Identity.Minimum.Line, "spec.identity.minimum", "a gate's boots come from the network by the machine's own boot order, where its hardware address is all that is known of it", "want L0, or every: disk")
	}
	i := s.b.image[o.Image]
	if i != nil && i.Boot == nil && o.Gate.Handover == HandoverKexec {
		s.problem(boot.Handover.Line, "spec.boot.handover", fmt.Sprintf("image %q does not say what its kernel is", i.Name), "name it in the image's boot, or want reboot")
	}
	switch {
	case i == nil:
	case o.Every == BootGate && len(i.Immutable) == 0 && len(i.Verity) > 0:
		s.problem(boot.Every.Line, "spec.boot.every", fmt.Sprintf("image %q names no immutable partition, so that nothing proves what starts the kernel and gives it the root hash", i.Name), "name those in its immutable, or want disk")
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

// buildEvidence refuses a minimum that nothing would ever reach.
func (s scope) buildEvidence(t text, o *Definition) {
	if !t.given() || o.Evidence.UnmarshalText([]byte(t.V)) != nil || o.Evidence < E5 {
		return // whether it has a TPM, the machine knows
	}
	if o.Gate == nil || !o.Gate.Refuse {
		s.problem(t.Line, "spec.evidence.minimum", "nothing keeps a machine that does not reach recast from starting its disk unproved, so that nothing is enforced",
			"set boot: {every: gate, onServerDown: refuse}, or want reported, read-back, or measured")
	}
}
