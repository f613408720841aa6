package provision

import (
	"context"
	"fmt"
	"strings"
	"time"

	"recast/inventory"
)

// Explain names the first missing step of a machine and the cure. While there is
// one, the machine's BMC is asked, for some seconds at most.
func (e *Engine) Explain(ctx context.Context, name string) (Explanation, error) {
	v, ok := e.View(name)
	if !ok {
		return Explanation{}, fmt.Errorf("explain: %w", e.NoMachine(name))
	}
	if _, ok := e.rolloutOf(name); !ok && v.Waiting == "" {
		left := e.leftOut(v)
		v.Waiting, v.next = left.Why, left.Next
	}
	m, known := e.known(name)
	q := e.suspects(v, e.Timeline(name))
	if known {
		q.BMC = e.askBMC(ctx, m)
	}
	x := explain(q, e.Now())
	if known {
		x.Trace = e.liveTrace(m.snapshot())
	}
	return x, nil
}

// suspects gathers what the causes are looked for in.
func (e *Engine) suspects(v View, timeline []TimelineEntry) suspects {
	q := suspects{View: v, Timeline: timeline, Strangers: e.strangers.list()}
	if v.Machine != nil && len(v.Machine.NICs) > 0 {
		q.Network = e.Set().Network(v.Machine.NICs[0].Network)
	}
	if q.Network != nil {
		at, ok := e.Address(q.Network.Name)
		q.Attached = ok && q.Network.Subnet.Contains(at)
	}
	if e.Findings != nil {
		q.Findings = e.Findings()
	}
	if q.Network != nil && v.Status.Step == StepBooting {
		q.Silent = e.silent(q.Network.Name, v.Name)
	}
	return q
}

// silent are the other machines of a network that were switched on long enough
// ago, and of which nothing was heard either.
func (e *Engine) silent(network, but string) (names []string) {
	set, now := e.Set(), e.Now()
	for _, m := range set.Machines {
		if m.Name == but || len(m.NICs) == 0 || m.NICs[0].Network != network || len(names) >= maxSilent {
			continue
		}
		k, ok := e.known(m.Name)
		if !ok {
			continue
		}
		st := k.snapshot().Status
		if st.Step != StepBooting || now.Sub(st.Since) < early {
			continue
		}
		if t := follow(k.history.list()); t.Asked == nil && t.System == nil {
			names = append(names, m.Name)
		}
	}
	return names
}

// maxSilent is how many silent machines prove enough.
const maxSilent = 20

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
	en, _ := planMachine(planInput{Candidate: set, Applied: set, Image: e.imageFacts, Discovered: e.discoveredFacts, Now: e.Now()}, v.Machine, w, s, false)
	return en.left
}

// explain is the pure half.
func explain(q suspects, now time.Time) Explanation {
	v, st := q.View, q.View.Status
	x := Explanation{Machine: v.Name, State: string(st.Phase), Findings: st.Findings, Power: q.BMC.text(), Timeline: q.Timeline}
	if st.Step != StepNone {
		x.State += ", " + string(st.Step)
	}
	if !st.Since.IsZero() {
		x.State += " for " + now.Sub(st.Since).Round(time.Second).String()
	}
	if st.Step == StepStarting && st.Power != "" {
		x.State += ", its power last seen " + st.Power
	}
	x.Next = st.NextAction
	switch {
	case v.Machine == nil:
		x.Missing, x.Next = "it is not declared any more", undeclaredNext
	case v.Group == "" && !Busy(st.Phase) && st.Phase != Failed && st.Hold == nil:
		x.Missing, x.Next = "no group selects it", "give it labels that a group selects, and apply"
	case st.Hold != nil:
		w := heldWait(v.Name, st.Hold)
		x.Missing, x.Next = w.Why, w.Next
	case st.Phase == Failed:
		x.Missing = st.LastError
		_, x.Causes = diagnose(q, now)
	case Busy(st.Phase):
		if x.Missing, x.Causes = diagnose(q, now); x.Missing == "" {
			x.Missing = missing(st.Step)
		}
		if st.Step == StepStopping && v.Machine.BMC == nil {
			x.Missing = "the lease of its earlier boot has not run out"
		}
		if !st.Deadline.IsZero() {
			x.Next = byDeadline(st)
		}
	case v.Waiting != "":
		x.Missing, x.Next = v.Waiting, joinNext(v.next, x.Next)
	case st.Health == Suspended || st.Health == Missing:
		x.Missing = "it is switched off, as its BMC showed"
	case st.Gate != nil && st.Gate.Step != GateIdle && st.Health != Healthy && st.Health != HealthUnknown:
		x.Missing = fmt.Sprintf("boot %d through its gate: %s", st.Gate.Boot, gateMissing(st.Gate.Step))
	case v.Sync != InSync:
		x.Missing = v.SyncWhy
		if st.LastError != "" {
			x.Missing += "; " + st.LastError
		}
		if x.Next == "" {
			x.Next = "recast plan PATH shows what apply would do"
		}
	}
	if x.Causes == nil && v.Machine != nil && st.Phase == Active {
		_, x.Causes = diagnose(q, now)
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

// byDeadline says what happens at the deadline of a step.
func byDeadline(st Status) string {
	by := st.Deadline.Format(time.RFC3339)
	if st.Step == StepStopping && st.NextAction != "" {
		return st.NextAction + " at " + by // no BMC: it goes on by itself
	}
	next, otherwise, own := strings.Cut(st.NextAction, ", else ")
	if !own {
		otherwise = fmt.Sprintf("it counts as a failure of attempt %d", st.Attempt)
	}
	return strings.TrimSpace(fmt.Sprintf("%s by %s, else %s", next, by, otherwise))
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
