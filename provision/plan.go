package provision

import (
	"cmp"
	"fmt"
	"sort"
	"strings"
	"time"

	"recast/inventory"
)

// Wanted is what the Set wants of one machine.
type Wanted struct {
	Group      *inventory.Group
	Definition *inventory.Definition
	Generation inventory.Generation
	Rendered   inventory.Rendered
}

// ImageFacts is what planning needs to know of an image.
type ImageFacts struct {
	Size      int64 // unpacked
	Pack      int64 // compressed
	Index     int64 // of the blocks; 0 there is none yet
	BlockSize int
	Damaged   string // why nobody may start on it; "" whole
}

// resolver turns a Set into what each machine shall run.
type resolver struct {
	set     *inventory.Set
	version func(secret string) (int, bool)
	// kept finds a generation of the past by its digest, for a pinned Group.
	kept   func(inventory.Digest) (inventory.Generation, error)
	groups map[string]inventory.Generation
}

// generation of a group: the pinned one, else its Definition's.
func (r *resolver) generation(g *inventory.Group) (inventory.Generation, error) {
	if gen, ok := r.groups[g.Name]; ok {
		return gen, nil
	}
	var gen inventory.Generation
	var err error
	if g.Generation != "" {
		gen, err = r.kept(g.Generation)
	} else {
		gen, err = r.set.Resolve(r.set.Definition(g.Definition), r.version)
	}
	if err != nil {
		return gen, fmt.Errorf("group %q: %w", g.Name, err)
	}
	if r.groups == nil {
		r.groups = map[string]inventory.Generation{}
	}
	r.groups[g.Name] = gen
	return gen, nil
}

// wanted of a machine; ok is false where no Group selects it.
func (r *resolver) wanted(m *inventory.Machine) (w Wanted, ok bool, err error) {
	g := r.set.GroupOf(m.Name)
	if g == nil {
		return w, false, nil
	}
	gen, err := r.generation(g)
	if err != nil {
		return w, false, err
	}
	rendered, err := gen.Render(m)
	if err != nil {
		return w, false, fmt.Errorf("machine %q: %w", m.Name, err)
	}
	return Wanted{Group: g, Definition: r.set.Definition(g.Definition), Generation: gen, Rendered: rendered}, true, nil
}

// planInput is everything a Plan depends on.
type planInput struct {
	Candidate *inventory.Set
	Applied   *inventory.Set
	Wanted    func(*inventory.Machine) (Wanted, bool, error)
	State     func(machine string) State
	Image     func(inventory.Digest) (ImageFacts, bool)
	// ImageOf a kept generation; Difference to an image from the one on a disk.
	ImageOf    func(generation inventory.Digest) inventory.Digest
	Difference differenceOf
	Loader     func(*inventory.Machine) string // why it has none to boot by; nil: never
	Unified    func(*inventory.Machine) Wait   // why no TPM measures all of its ramdisk; likewise
	// Gate says why a generation's gate cannot be; nil: it can.
	Gate func(inventory.Generation) error
	// Discovered is what the machine showed while nobody had declared it; nil nothing.
	Discovered func(*inventory.Machine) *inventory.Facts
	Erase      []string
	Frozen     string
	Now        time.Time
}

// plan lists, in the order of machine names, what would make every Status match
// the candidate. It decides from recorded facts alone and touches nothing.
func plan(in planInput) (Plan, error) {
	p := Plan{Candidate: in.Candidate.Digest(), Applied: in.Applied.Digest(),
		Changes: inventory.Changes(in.Applied, in.Candidate)}
	erase := map[string]bool{}
	for _, name := range in.Erase {
		if in.Candidate.Machine(name) == nil {
			return p, fmt.Errorf("erase %q: the files declare no such machine; correct --erase", name)
		}
		if !erase[name] {
			erase[name] = true
			p.Erase = append(p.Erase, name)
		}
	}
	sort.Strings(p.Erase)
	for _, m := range in.Candidate.Machines {
		w, ok, err := in.Wanted(m)
		if err != nil {
			return p, err
		}
		if !ok {
			continue
		}
		if e, ok := planMachine(in, m, w, in.State(m.Name), erase[m.Name]); ok {
			p.Entries = append(p.Entries, e)
		}
	}
	p.Changes = append(p.Changes, underWay(in)...)
	p.Digest = digestPlan(p)
	return p, nil
}

// underWay names the machines that are taken out or protected while they are
// being written. That is finished: half a disk protects nobody.
func underWay(in planInput) (lines []string) {
	for _, old := range in.Applied.Machines {
		m := in.Candidate.Machine(old.Name)
		if m != nil && (old.Protected || !m.Protected) {
			continue
		}
		if s := in.State(old.Name); Busy(s.Status.Phase) && s.Intent != nil && s.Intent.Write != nil {
			lines = append(lines, fmt.Sprintf("machine %s is being written, and that is finished first; recast abort %s stops it", old.Name, old.Name))
		}
	}
	return lines
}

// digestPlan covers what an operator approves: what is applied, over what, to
// which machines, on which disks, holding what; not the byte counts or texts
// that move by themselves.
func digestPlan(p Plan) inventory.Digest {
	var b strings.Builder
	fmt.Fprintf(&b, "candidate %s\napplied %s\nerase %q\n", p.Candidate, p.Applied, p.Erase)
	for _, e := range p.Entries {
		fmt.Fprintf(&b, "%s %s %s %s>%s %s>%s %q %d %q %t %t\n", e.Kind, e.Group, e.Machine, e.From, e.To, e.FromRendered, e.ToRendered,
			e.Disk, e.DiskSize, e.Holds, e.NeedsErase, e.Blocked != "")
	}
	return inventory.DigestOf([]byte(b.String()))
}

func planMachine(in planInput, m *inventory.Machine, w Wanted, s State, erase bool) (Entry, bool) {
	st := s.Status
	to, rendered := w.Generation.Digest, w.Rendered.Digest
	e := Entry{Machine: m.Name, Group: w.Group.Name, To: to, ToRendered: rendered,
		From: st.Running, FromRendered: st.RunningRendered}
	if deploying := s.Intent == nil || s.Intent.Purpose == PurposeDeploy; Busy(st.Phase) && deploying &&
		st.Wanted == to && st.WantedRendered == rendered {
		e.Kind, e.Why = EntryObserve, fmt.Sprintf("%s is under way: %s", st.Phase, st.Step)
		return e, true
	}
	if st.Phase == Active && st.Running == to && st.RunningRendered == rendered {
		need := w.Generation.Resolved.Evidence
		e.Kind, e.Why = EntryObserve, cmp.Or(st.Evidence.short(need), tooOld(st, w, in.Now))
		return e, e.Why != ""
	}
	if untouched(&st) && st.Running == to && st.RunningRendered == rendered {
		e.Kind, e.Why = EntryObserve, "it ran this generation, and its disk was not touched since"
		return e, true
	}
	e.Kind, e.Why = EntryWrite, planWhy(st, w)
	if m.BMC != nil {
		e.PowerCycles = 1
	}
	image, here := in.Image(w.Generation.Resolved.Image.Digest)
	e.Waits = imageWait(w.Generation.Resolved.Image.Digest, image, here).String()
	e.toImage = w.Generation.Resolved.Image.Digest
	e.moves(image, in.Difference)
	if in.Loader != nil && e.Waits == "" {
		e.Waits = in.Loader(m)
	}
	if s.Status.Facts == nil && in.Discovered != nil {
		// Anybody could have said that for it: before a byte is written, the ramdisk
		// looks again, and all is decided anew.
		if s.Status.Facts = in.Discovered(m); s.Status.Facts != nil {
			e.Why += "; of its disk is known what its discovery showed"
		}
	}
	never, later := bootWay(m, w, st.Offers)
	if e.Waits == "" {
		e.Waits = later.String()
	}
	if m.Boot.Via == inventory.BootHTTP {
		e.Why += "; " + httpWarning
	}
	if never == (Wait{}) {
		never = gateWay(in, m, w.Generation, here)
	}
	if never == (Wait{}) {
		never = noTPM(m.Name, s.Status, w.Generation)
	}
	if never == (Wait{}) && in.Unified != nil && w.Generation.Resolved.Evidence == inventory.E4 {
		never = in.Unified(m)
	}
	if planDisk(&e, m, w, s, image, erase); e.Blocked == "" && never != (Wait{}) {
		e.leaveOut(never.Why, never.Next)
	}
	if e.disk != nil && e.Kind == EntryWrite && e.Blocked == "" && here {
		e.FromImage, e.look = beneath(s.Status, *e.disk, in.ImageOf), worthALook(e.Holds, s.Status)
		e.moves(image, in.Difference)
	}
	switch {
	case e.Blocked != "" || e.Waits != "":
	case in.Frozen != "":
		e.Waits = frozenWait(in.Frozen).String()
	case st.Hold != nil:
		e.Waits = heldWait(m.Name, st.Hold).String()
	case Busy(st.Phase):
		e.Waits = fmt.Sprintf("an earlier change is under way (%s); recast abort %s stops it", st.Step, m.Name)
	}
	return e, true
}

// gateWay says why a machine's boots cannot go through the gate that its definition
// wants; none: they can, or it wants none.
func gateWay(in planInput, m *inventory.Machine, gen inventory.Generation, here bool) Wait {
	if !gen.Resolved.Every.Gated() {
		return Wait{}
	}
	if m.Boot.Via != "" {
		return Wait{fmt.Sprintf("its BMC makes it boot via %s, once; a gate needs each boot to begin at the network", m.Boot.Via), "leave boot.via out, or give its group a definition with every: disk, and apply"}
	}
	if m.SecureBoot && gen.Resolved.Gate.Handover == inventory.HandoverKexec {
		return Wait{"it has Secure Boot, where the ramdisk's kernel takes another by kexec only if it trusts its signer, and recast does not know who signed the image's", "want handover: reboot, or leave it out: then each machine is handed over as it can be; and apply"}
	}
	if gen.Resolved.Gate != nil && gen.Resolved.Gate.Refuse {
		if w := refuseWay(m, in.State(m.Name).Status.Facts); w != (Wait{}) {
			return w
		}
	}
	if in.Gate != nil && here {
		if err := in.Gate(gen); err != nil {
			return Wait{err.Error(), "correct immutable, verity, state or boot of the Image and apply"}
		}
	}
	return Wait{}
}

// tooOld says that the evidence for what a machine runs is older than its definition
// allows; "" it is not. That is a reason to look, never to write.
func tooOld(st Status, w Wanted, now time.Time) string {
	if w.Definition == nil || w.Definition.EvidenceAge == 0 || st.Evidence.At.IsZero() {
		return ""
	}
	at, limit := st.Evidence.At, time.Duration(w.Definition.EvidenceAge)
	if w.Generation.Resolved.Evidence <= inventory.E2 && st.Evidence.Reported.After(at) {
		at = st.Evidence.Reported
	}
	if now.Sub(at) <= limit {
		return ""
	}
	return fmt.Sprintf("evidence is older than %s", limit) // and no number that moves with each look
}

// untouched tells that a machine was active with the generation on record and is
// not now, although nothing was written to its disk since.
func untouched(st *Status) bool {
	return st.Phase != Active && !Busy(st.Phase) && st.Ran && st.Running != "" && !st.Unfinished
}

func planWhy(st Status, w Wanted) string {
	switch {
	case st.Phase == Failed:
		return "failed: " + st.LastError
	case !blankSince(st).IsZero():
		return "its disk was wiped"
	case st.Running == "" && stopped(State{Status: st}):
		return "its gate has seen that it does not hold what was written"
	case st.Running == "" && Busy(st.Phase) && st.Evidence.Generation == st.Wanted: // it may be erased already
		return fmt.Sprintf("generation %s is being written", st.Wanted.Short())
	case st.Unfinished:
		return "its disk was erased and not written to its end"
	case st.Running == "" && seenOther(st) != "":
		return seenOther(st)
	case st.Running == "":
		return "recast has not written it yet"
	case st.Running != w.Generation.Digest:
		if w.Group != nil && w.Group.Generation != "" {
			return "back to a kept generation"
		}
		return "a new generation"
	case st.RunningRendered != w.Rendered.Digest:
		return "the same generation, rendered differently for this machine"
	}
	return "not seen running"
}

// seenOther says what the ramdisk saw in place of what recast wrote; "" nothing.
func seenOther(st Status) string {
	if st.Running == "" && st.Evidence.Level == inventory.E2 && st.Evidence.Generation == "" {
		return st.Evidence.Detail
	}
	return ""
}

// planDisk names the disk and what it holds, as far as an inventory tells.
func planDisk(e *Entry, m *inventory.Machine, w Wanted, s State, image ImageFacts, erase bool) {
	sel := w.Generation.Resolved.Select
	facts := s.Status.Facts
	if facts == nil {
		e.Disk = "chosen after inspection by " + describeSelect(sel)
		switch {
		case m.Protected:
			e.leaveOut("the machine is protected", protectedNext)
		case !erase:
			e.Kind = EntryInspect
			e.Why += "; nothing is known of its disk: it is written only if blank"
		}
		return
	}
	intent := &Intent{Machine: m.Name, Purpose: PurposeDeploy, Generation: e.To, Rendered: e.ToRendered, Erase: erase}
	d := decideDisk(diskQuestion{Machine: m, Intent: intent, Known: s.Status.Disk, Unfinished: s.Status.Unfinished, Select: sel,
		ImageSize: image.Size, BlockSize: image.BlockSize, Volume: configRoom}, *facts)
	if d.Disk != (inventory.DiskID{}) {
		e.Disk = fmt.Sprintf("%s, %s, %s", diskName(d.Disk), d.Disk.Name, inventory.DiskSizeText(d.Disk.Size))
		e.DiskSize = d.Disk.Size
		e.Holds = d.Holds
		e.disk = &d.Disk
	}
	switch d.Verdict {
	case DiskAdopt:
		e.Kind, e.Why = EntryAdopt, "its disk says that it is this generation already"
		e.FetchBytes, e.WriteBytes, e.ImageBytes = 0, 0, 0
	case DiskAsk:
		e.NeedsErase = true
		e.leaveOut(d.Reason, fmt.Sprintf("apply with --erase %s", m.Name))
	case DiskRefuse:
		e.leaveOut(d.Reason, d.Next)
	}
}

// leaveOut makes an entry one that apply does nothing for.
func (e *Entry) leaveOut(why, next string) {
	e.left = Wait{why, next}
	e.Blocked = e.left.String()
	e.FetchBytes, e.WriteBytes, e.ImageBytes, e.PowerCycles = 0, 0, 0, 0
}

// protectedNext ends the protection of a machine.
const protectedNext = "take protected: true out of its file, if its disk may be erased, and apply"

// configRoom is what a config volume takes at the end of a disk, for planning.
const configRoom = 8 << 20

func describeSelect(s inventory.DiskSelect) string {
	var parts []string
	for _, k := range sortedKeys(s.Hints) {
		parts = append(parts, k+" "+s.Hints[k])
	}
	if s.MinSize > 0 {
		parts = append(parts, "minSize "+inventory.SizeText(s.MinSize))
	}
	if s.MaxSize > 0 {
		parts = append(parts, "maxSize "+inventory.SizeText(s.MaxSize))
	}
	if len(parts) == 0 {
		return "being the only disk"
	}
	return strings.Join(parts, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// synced compares what a machine runs with what is wanted of it.
func synced(st Status, w Wanted, declared bool, now time.Time) (Sync, string) {
	switch {
	case !declared:
		return SyncUnknown, "no group selects it"
	case st.Phase == Cleaning:
		return OutOfSync, "being wiped"
	case Busy(st.Phase):
		return OutOfSync, "being deployed"
	case !blankSince(st).IsZero():
		return OutOfSync, "its disk was wiped, nothing is installed"
	case seenOther(st) != "":
		return OutOfSync, seenOther(st)
	case st.Running == "" && st.Phase != Failed:
		return SyncUnknown, "nothing is known of what it runs"
	case st.Running != w.Generation.Digest:
		return OutOfSync, "another generation is wanted"
	case st.RunningRendered != w.Rendered.Digest:
		return OutOfSync, "it is rendered differently now"
	case st.Phase != Active:
		return OutOfSync, "not seen running"
	case st.Evidence.short(w.Generation.Resolved.Evidence) != "":
		return SyncUnknown, st.Evidence.short(w.Generation.Resolved.Evidence)
	case tooOld(st, w, now) != "":
		return SyncUnknown, tooOld(st, w, now)
	}
	return InSync, ""
}
