package provision

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// BootSpec answers, from memory, what a netbooting machine gets. It implements
// ipxe.Booter.
func (e *Engine) BootSpec(_ context.Context, c ipxe.Client) (ipxe.Spec, error) {
	e.mu.RLock()
	set := e.set
	stray := e.strays[c.MAC]
	net := set.Network(c.Network)
	if net == nil {
		net = set.NetworkOf(c.Remote)
	}
	e.mu.RUnlock()
	q := bootQuestion{Client: c, Machine: set.MachineByMAC(c.MAC), Key: e.key, Epoch: e.Store.Epoch(),
		CA: e.authority.Digest(), Now: e.Now(), Seen: stray.At, Empty: stray.empty()}
	arch := inventory.AMD64
	if q.Machine != nil {
		arch = q.Machine.Arch
		if m, ok := e.known(q.Machine.Name); ok {
			q.State = m.snapshot()
		}
	}
	q.Ramdisk = e.Ramdisk(arch)
	if net != nil {
		q.Unknown = net.Unknown
		if addr, ok := e.Address(net.Name); ok {
			q.AgentURL = agentURL(addr, e.AgentPort)
		}
	}
	if q.AgentURL == "" {
		return ipxe.Spec{}, fmt.Errorf("no network of ours holds the client %s at %s", c.MAC, c.Remote)
	}
	return boot(q), nil
}

var _ ipxe.Booter = (*Engine)(nil)

// View of one machine; false where it is neither declared nor known.
func (e *Engine) View(name string) (View, bool) {
	e.mu.RLock()
	decl := e.set.Machine(name)
	w, declared := e.wanted[name]
	waiting := e.waiting[name]
	unresolved := e.unresolved[name]
	group := e.set.GroupOf(name)
	e.mu.RUnlock()
	m, known := e.known(name)
	if decl == nil && !known {
		return View{}, false
	}
	v := View{Name: name, Machine: decl, Waiting: waiting.Why, next: waiting.Next, Status: Status{Machine: name, Phase: Available, Health: HealthUnknown}}
	if known {
		v.Status = m.snapshot().Status
	}
	if declared {
		v.Group, v.Image = w.Group.Name, w.Generation.Resolved.Image.Digest.String()
		if w.Definition != nil {
			v.Image = w.Definition.Image
		}
		v.Wanted, v.WantedRendered = w.Generation.Digest, w.Rendered.Digest
	}
	v.Sync, v.SyncWhy = synced(v.Status, w, declared)
	if unresolved != "" && group != nil {
		v.Group, v.Waiting, v.SyncWhy = group.Name, unresolved, unresolved
		v.next = unresolvedWait(unresolved).Next
	}
	return v, true
}

// NoMachine is the error of a name that is no machine's: with the nearest one.
func (e *Engine) NoMachine(name string) error {
	set := e.Set()
	names := make([]string, len(set.Machines))
	for i, m := range set.Machines {
		names[i] = m.Name
	}
	next := inventory.DidYouMean(name, names)
	if !strings.HasPrefix(next, "did you mean") {
		next = "recast get machines lists them"
	}
	return fmt.Errorf("there is no machine %q; %s", name, next)
}

// Views of every declared machine, by name.
func (e *Engine) Views() []View {
	set := e.Set()
	out := make([]View, 0, len(set.Machines))
	for _, m := range set.Machines {
		if v, ok := e.View(m.Name); ok {
			out = append(out, v)
		}
	}
	return out
}

// Rollouts that are recorded, by group.
func (e *Engine) Rollouts() []Rollout {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []Rollout
	for _, name := range sortedKeys(e.rolling) {
		out = append(out, e.rolling[name])
	}
	return out
}

// Explain names the first missing step of a machine and the cure.
func (e *Engine) Explain(name string) (Explanation, error) {
	v, ok := e.View(name)
	if !ok {
		return Explanation{}, fmt.Errorf("explain: %w", e.NoMachine(name))
	}
	if _, ok := e.rolloutOf(name); !ok && v.Waiting == "" {
		left := e.leftOut(v)
		v.Waiting, v.next = left.Why, left.Next
	}
	x := explain(v, e.Now())
	x.Timeline = e.Timeline(name)
	return x, nil
}

// leftOut is why an apply of what is declared would do nothing for a machine that
// stands in no rollout.
func (e *Engine) leftOut(v View) Wait {
	e.mu.RLock()
	set := e.set
	w, ok := e.wanted[v.Name]
	e.mu.RUnlock()
	if v.Machine == nil || !ok || v.Sync == InSync || Busy(v.Status.Phase) {
		return Wait{}
	}
	s := State{Status: v.Status}
	if m, ok := e.known(v.Name); ok {
		s = m.snapshot()
	}
	en, _ := planMachine(planInput{Candidate: set, Applied: set, Image: e.imageFacts}, v.Machine, w, s, false)
	return en.left
}

// explain is the pure half.
func explain(v View, now time.Time) Explanation {
	st := v.Status
	x := Explanation{Machine: v.Name, State: string(st.Phase), Findings: st.Findings}
	if st.Step != StepNone {
		x.State += ", " + string(st.Step)
	}
	if !st.Since.IsZero() {
		x.State += " for " + now.Sub(st.Since).Round(time.Second).String()
	}
	x.Next = st.NextAction
	switch {
	case v.Machine == nil:
		x.Missing, x.Next = "it is not declared any more", undeclaredNext
	case v.Group == "" && !Busy(st.Phase) && st.Phase != Failed:
		x.Missing, x.Next = "no group selects it", "give it labels that a group selects, and apply"
	case st.Hold != nil:
		w := heldWait(v.Name, st.Hold)
		x.Missing, x.Next = w.Why, w.Next
	case st.Phase == Failed:
		x.Missing = st.LastError
		x.Causes = causes(st)
	case Busy(st.Phase):
		x.Missing = missing(st.Step)
		x.Causes = causes(st)
		if !st.Deadline.IsZero() {
			x.Next = fmt.Sprintf("by %s, else it counts as a failure of attempt %d", st.Deadline.Format(time.RFC3339), st.Attempt)
			if st.NextAction != "" {
				x.Next = st.NextAction + " " + x.Next
			}
		}
	case v.Waiting != "":
		x.Missing, x.Next = v.Waiting, joinNext(v.next, x.Next)
	case st.Health == Suspended || st.Health == Missing:
		x.Missing = "it is switched off, as its BMC showed"
	case v.Sync != InSync:
		x.Missing = v.SyncWhy
		if st.LastError != "" {
			x.Missing += "; " + st.LastError
		}
		if x.Next == "" {
			x.Next = "recast plan PATH shows what apply would do"
		}
	}
	if m := ownMarker(st); m != nil && v.Machine != nil && st.Hold == nil {
		x.Next = joinNext(x.Next, fmt.Sprintf("its disk says that it holds generation %s: recast adopt %s believes it", m.Generation.Short(), v.Name))
	}
	return x
}

// ownMarker is what a disk says that recast wrote for a machine of which nothing
// is on record, as after the loss of the store; nil: none does.
func ownMarker(st Status) *inventory.Marker {
	if st.Phase != Available || st.Running != "" || st.Unfinished || st.Facts == nil {
		return nil
	}
	for _, d := range st.Facts.Disks {
		if d.Recast != nil && d.Recast.Machine == st.Machine {
			return d.Recast
		}
	}
	return nil
}

func joinNext(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// missing is what the step waits for.
func missing(s StepName) string {
	switch s {
	case StepStopping, StepPowerOff:
		return "the BMC has not shown the machine as off"
	case StepArming:
		return "the BMC has not taken the network boot override"
	case StepPowering:
		return "the BMC has not shown the machine as on"
	case StepBooting:
		return "the machine has not asked for a boot script"
	case StepClaiming:
		return "the ramdisk has not claimed the machine"
	case StepInspecting:
		return "the ramdisk has not reported the inventory"
	case StepWriting, StepVerifying:
		return "the ramdisk is at work"
	case StepStarting:
		return "the installed system has not reported itself"
	case StepRestarting:
		return "the BMC has not power-cycled it"
	case StepAwaitingPerson:
		return "a person has to power-cycle it"
	}
	return ""
}

// causes that commonly stand behind a machine that stays in a step, the
// likeliest first.
func causes(st Status) []string {
	switch st.Step {
	case StepBooting:
		return []string{
			"the firmware tries other devices first, or the BMC dropped the override",
			"the cable or VLAN of the boot interface; its switch port is still in spanning tree listening",
			"another DHCP server answered: recast describe network NAME shows findings",
		}
	case StepClaiming:
		return []string{
			"the kernel or ramdisk could not be fetched, or its console shows a panic",
			"no driver for the network card in the ramdisk, or its firmware file is missing",
			"the clock of the machine is far off, so that it does not believe our certificate",
		}
	case StepStarting:
		list := []string{
			"the disk is not in the firmware's boot order",
			"the system came up but cannot reach the server's agent port",
			"it was switched off since: recast power status " + st.Machine + " asks its BMC",
		}
		if st.Power == "off" {
			list[2] = "its BMC showed it off: recast power on " + st.Machine + " after recast abort, which ends the wait"
			list[0], list[2] = list[2], list[0]
		}
		return list
	}
	return nil
}

// Orphans are machines that are known but declared no more.
func (e *Engine) Orphans() []View {
	set := e.Set()
	var out []View
	for _, m := range e.list() {
		if set.Machine(m.name) == nil {
			if v, ok := e.View(m.name); ok {
				out = append(out, v)
			}
		}
	}
	return out
}

// Leases in force, by address.
func (e *Engine) Leases() []inventory.Lease {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := make([]inventory.Lease, 0, len(e.leases))
	for _, l := range e.leases {
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Addr.Less(out[j].Addr) })
	return out
}

// ImageUser names who needs an image, "" nobody: what is declared, what runs,
// and the generations kept for rollback.
func (e *Engine) ImageUser(d inventory.Digest) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, img := range e.set.Images {
		if img.Digest == d {
			return "image " + img.Name
		}
	}
	for _, gen := range e.kept {
		if gen.Resolved.Image.Digest == d {
			return "generation " + gen.Digest.Short()
		}
	}
	return ""
}
