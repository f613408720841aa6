package provision

import (
	"fmt"
	"sort"
	"time"

	"recast/inventory"
)

// Rollout is one applied change on its way through a Group: which machines may
// be touched, and for what. A machine that stands in no rollout is never
// started.
type Rollout struct {
	Group    string                   `json:"group"`
	Plan     inventory.Digest         `json:"plan"`
	By       string                   `json:"by"`
	At       time.Time                `json:"at"`
	Machines map[string]RolloutTarget `json:"machines"`
	// Stopped says why no more machines are started; "" it goes on.
	Stopped string `json:"stopped,omitempty"`
}

// RolloutTarget is what the plan said of one machine.
type RolloutTarget struct {
	Kind     EntryKind        `json:"kind"`
	To       inventory.Digest `json:"to"`
	Rendered inventory.Digest `json:"rendered"`
	Erase    bool             `json:"erase,omitempty"`
	// Consent is what the plan showed of the disk that Erase is about.
	Consent *Consent `json:"consent,omitempty"`
	// Started: it had its turn. Only an operator's retry gives it another.
	Started bool `json:"started,omitempty"`
	// Again: an operator's retry gave it this turn. It is away already, and its
	// failure was looked at.
	Again bool `json:"again,omitempty"`
	// Out: it was wiped since. Only the next apply gives it a turn.
	Out bool `json:"out,omitempty"`
}

// progress of one target, told from the machine's state alone.
type targetState int

const (
	targetPending targetState = iota
	targetRunning
	targetDone
	targetFailed
	targetParked // had its turn and waits for an operator's word (an erase to confirm)
)

func (t RolloutTarget) state(s State) targetState {
	st := s.Status
	switch {
	case Busy(st.Phase):
		return targetRunning
	case st.Phase == Active && st.Running == t.To && st.RunningRendered == t.Rendered:
		return targetDone
	case !t.Started:
		return targetPending
	case st.Phase == Failed:
		return targetFailed
	}
	return targetParked
}

// Admission is the answer for every machine of a rollout that is not done.
type Admission struct {
	Start []string // in order
	// Waiting is the first failing reason, by machine.
	Waiting map[string]string
	// Stopped is the failure budget's word; "" it is not spent.
	Stopped string
	Done    bool // no machine is pending or running
}

// admit is the one ordered check: frozen, held, attempts spent, wave not open,
// domain budget, failure budget, BMC unreachable. The first failing reason is
// the answer to "why is this machine not moving".
func admit(r Rollout, policy inventory.Rollout, states map[string]State, frozen string, blocked func(machine string) string) Admission {
	names := make([]string, 0, len(r.Machines))
	for name, t := range r.Machines {
		if !t.Out {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	count := map[targetState]int{}
	away, failed := 0, 0 // failed ones give no service either, whoever's turn it is
	for _, name := range names {
		count[r.Machines[name].state(states[name])]++
		switch phase := states[name].Status.Phase; {
		case phase == Failed:
			failed++
			away++
		case Busy(phase):
			away++
		}
	}
	a := Admission{Waiting: map[string]string{}, Done: count[targetPending]+count[targetRunning] == 0}

	budget := max(1, policy.MaxFailures.Of(len(names)))
	if count[targetFailed] >= budget {
		a.Stopped = fmt.Sprintf("failure budget spent: %d of %d machines failed", count[targetFailed], budget)
	}
	most := max(1, policy.MaxUnavailable.Of(len(names)))
	// The canaries are the first machines by name, so that everyone can tell
	// beforehand which they are.
	canaries := min(policy.Canary, len(names))
	settled := 0
	for _, name := range names[:canaries] {
		if r.Machines[name].state(states[name]) == targetDone {
			settled++
		}
	}
	for i, name := range names {
		if r.Machines[name].state(states[name]) != targetPending {
			continue
		}
		reason := ""
		again := r.Machines[name].Again
		gone := again || states[name].Status.Phase == Failed // starting it takes nobody away
		switch hold := states[name].Status.Hold; {
		case frozen != "":
			reason = "frozen: " + frozen
		case hold != nil:
			reason = fmt.Sprintf("held by %s: %s", hold.Owner, hold.Reason)
		case i >= canaries && settled < canaries:
			reason = fmt.Sprintf("waits for the canary: %d of %d active", settled, canaries)
		case away >= most && !gone:
			reason = fmt.Sprintf("maxUnavailable: %d of the group are away", away)
			if failed > 0 {
				reason += fmt.Sprintf(", %d of them failed: recast retry them, or take them out of the group", failed)
			}
		case a.Stopped != "" && !again:
			reason = a.Stopped
		default:
			reason = blocked(name)
		}
		if reason != "" {
			a.Waiting[name] = reason
			continue
		}
		a.Start = append(a.Start, name)
		if states[name].Status.Phase != Failed {
			away++
		}
	}
	return a
}
