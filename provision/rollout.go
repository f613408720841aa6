package provision

import (
	"fmt"
	"slices"
	"sort"
	"strings"
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
	// Failed: its turn did. A look at it, or a wipe, is no reason to start others.
	Failed bool `json:"failed,omitempty"`
	// Aborted its turn by whom: the rollout starts no others until a retry.
	Aborted string `json:"aborted,omitempty"`
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

// spent tells whether the turn of a machine counts against the failure budget.
func (t RolloutTarget) spent(s State) bool {
	state := t.state(s)
	return state == targetFailed || t.Failed && state != targetDone
}

// sameTurn tells that a machine goes on with the turn it has: whatever else changed,
// admit answers as before. A hold or an abort that matters ends the turn.
func sameTurn(a, b State) bool { return Busy(a.Status.Phase) && Busy(b.Status.Phase) }

// heldBack tells that a hold ended this turn before it came to anything.
func (t RolloutTarget) heldBack(s State, plan inventory.Digest) bool {
	in := s.Intent
	return t.Started && !Busy(s.Status.Phase) && in != nil && in.HeldBack && in.Plan == plan
}

// abortedBy names who aborted this turn of a rollout; "" nobody.
func (t RolloutTarget) abortedBy(s State, plan inventory.Digest) string {
	if in := s.Intent; t.Aborted == "" && t.Started && in != nil && in.Plan == plan && in.Purpose == PurposeDeploy {
		return in.AbortedBy
	}
	return t.Aborted
}

// broken tells that a machine surely gives no service, whoever's turn it is.
func broken(st Status) bool { return st.Phase == Failed || st.Unfinished }

// Admission is the answer for every machine of a rollout that is not done.
type Admission struct {
	Start []string // in order
	// Waiting is the first failing reason, by machine.
	Waiting map[string]Wait
	// Stopped is the failure budget's word; "" it is not spent.
	Stopped string
	Done    bool // no machine is pending or running
}

// Wait is why a machine does not move, and what ends that.
type Wait struct{ Why, Next string }

// String is for those who have one line.
func (w Wait) String() string {
	if w.Next == "" {
		return w.Why
	}
	return w.Why + "; " + w.Next
}

func frozenWait(reason string) Wait {
	return Wait{"frozen: " + reason, "recast unfreeze lets rollouts go on"}
}

func heldWait(machine string, h *Hold) Wait {
	next := "recast release " + machine
	if h.Thaws {
		next = h.Cure
	} else if h.Cure != "" {
		next = h.Cure + ", then: " + next
	}
	return Wait{fmt.Sprintf("held by %s: %s", h.Owner, h.Reason), next}
}

// imageWait is the wait for an image; none where it is whole.
func imageWait(d inventory.Digest, facts ImageFacts, here bool) Wait {
	switch {
	case !here:
		return Wait{fmt.Sprintf("image %s is not here", d.Short()), "recast image add SOURCE"}
	case facts.Damaged != "":
		return Wait{"the image is damaged: " + facts.Damaged, "recast image add SOURCE mends it"}
	}
	return Wait{}
}

// retryText names a few: a line has its limits.
func retryText(failed []string) string {
	const few = 5
	if len(failed) > few {
		return "recast retry " + strings.Join(failed[:few], " ") + " …"
	}
	return "recast retry " + strings.Join(failed, " ")
}

// admit is the one ordered check: frozen, held, aborted, attempts spent, wave not open,
// domain budget, failure budget, BMC unreachable. The first failing reason is
// the answer to "why is this machine not moving".
func admit(r Rollout, policy inventory.Rollout, states map[string]State, frozen string, blocked func(machine string) Wait) Admission {
	names := make([]string, 0, len(r.Machines))
	failures := 0
	var aborted []string
	for name, t := range r.Machines {
		if t.abortedBy(states[name], r.Plan) != "" {
			aborted = append(aborted, name)
		}
		if t.spent(states[name]) {
			failures++
		}
		if !t.Out {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	count := map[targetState]int{}
	away := 0
	var failed, spent, retry []string
	for _, name := range names {
		t, st := r.Machines[name], states[name].Status
		state := t.state(states[name])
		count[state]++
		if t.spent(states[name]) {
			spent = append(spent, name)
		}
		if t.abortedBy(states[name], r.Plan) != "" {
			retry = append(retry, name)
		}
		switch {
		case Busy(st.Phase) || t.Again && state == targetPending:
			away++
		case broken(st):
			failed = append(failed, name)
			away++
		}
	}
	a := Admission{Waiting: map[string]Wait{}, Done: count[targetPending]+count[targetRunning] == 0}

	budget := max(1, policy.MaxFailures.Of(len(names)))
	if failures >= budget {
		a.Stopped = fmt.Sprintf("failure budget spent: %d of %d machines failed", failures, budget)
	}
	if len(aborted) > 0 {
		first := slices.Min(aborted)
		a.Stopped = fmt.Sprintf("stopped: %s aborted %s", r.Machines[first].abortedBy(states[first], r.Plan), first)
	}
	most := max(1, policy.MaxUnavailable.Of(len(names)))
	// The canaries are the first machines by name, so that everyone can tell
	// beforehand which they are.
	canaries := min(policy.Canary, len(names))
	settled, unsettled := 0, ""
	for _, name := range names[:canaries] {
		if r.Machines[name].state(states[name]) == targetDone {
			settled++
		} else if unsettled == "" {
			unsettled = name
		}
	}
	for i, name := range names {
		if r.Machines[name].state(states[name]) != targetPending {
			continue
		}
		var reason Wait
		again := r.Machines[name].Again
		gone := again || broken(states[name].Status) // starting it takes nobody away
		switch hold := states[name].Status.Hold; {
		case frozen != "":
			reason = frozenWait(frozen)
		case hold != nil:
			reason = heldWait(name, hold)
		case len(aborted) > 0 && !again:
			reason = Wait{a.Stopped, planNext}
			if len(retry) == len(aborted) {
				reason.Next = retryText(retry) + " lets the rollout go on; or " + planNext
			}
		case i >= canaries && settled < canaries:
			reason = Wait{fmt.Sprintf("waits for the canary: %d of %d active", settled, canaries),
				"it starts by itself once they are active: recast explain " + unsettled}
		case away >= most && !gone:
			reason = Wait{fmt.Sprintf("maxUnavailable: %d of the group are away", away), "it starts by itself once one of them is back"}
			if len(failed) > 0 {
				reason = Wait{fmt.Sprintf("%s, %d of them failed", reason.Why, len(failed)),
					retryText(failed) + ", or take them out of the group"}
			}
		case a.Stopped != "" && !again:
			reason = Wait{a.Stopped, planNext}
			if len(spent) > 0 {
				reason.Next = "mend what failed, then: " + retryText(spent)
			}
		default:
			reason = blocked(name)
		}
		if reason != (Wait{}) {
			a.Waiting[name] = reason
			continue
		}
		a.Start = append(a.Start, name)
		if !gone {
			away++
		}
	}
	return a
}
