package provision

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"recast/bmc"
)

const (
	// offFor is how long a machine is left off that somebody switched off: a restart by
	// the front panel is off for a while, too.
	offFor = time.Minute
	// restoreMost is how often a machine is switched on in restoreDay: who switches it
	// off again and again means it.
	restoreMost = 3
	restoreDay  = 24 * time.Hour

	// powerPrefix and boardPrefix begin the findings of looked.
	powerPrefix = "its power: "
	boardPrefix = "its board: "
)

func (t *transition) looked(ev Looked) {
	if t.busy() {
		return // we switch it ourselves
	}
	if ev.Board != nil {
		t.boardSeen(*ev.Board, ev.Owner)
	}
	if ev.Power != bmc.PowerUnknown {
		t.powerSeen(ev.Power)
	}
}

func (t *transition) powerSeen(seen bmc.PowerState) {
	st := &t.Status
	before, health := st.Power, st.Health
	*st = powered(*st, "status", string(seen), "")
	if before != "" && before != st.Power {
		t.line("bmc", "seen %s, after %s: recast did not switch it", st.Power, before)
	}
	if st.Health != health {
		t.line("bmc", "seen %s: %s", st.Power, st.Health)
	}
	if st.Health != Missing {
		st.OffSince = time.Time{}
		// Only now: one that was given up stays so until somebody switches it on.
		st.SwitchedOn = lately(st.SwitchedOn, t.now)
		t.noticed(Noticed{About: powerPrefix, Finding: wasRestored(*st)})
		return
	}
	if st.OffSince.IsZero() {
		st.OffSince = t.now
	}
	why, on := t.restores()
	t.noticed(Noticed{About: powerPrefix, Finding: powerPrefix + "it is off, and recast did not switch it off" + why + ": recast power on " + st.Machine})
	if on {
		st.SwitchedOn = append(slices.Clone(st.SwitchedOn), t.now)
		t.line("bmc", "off since %s, and its group says power: enforce: it is switched on (%d of %d times in a day)",
			st.OffSince.UTC().Format(time.TimeOnly), len(st.SwitchedOn), restoreMost)
		t.actions = append(t.actions, ActRestore)
	}
}

// lately are the times of the last day; nil none.
func lately(times []time.Time, now time.Time) (late []time.Time) {
	for _, at := range times {
		if now.Sub(at) < restoreDay {
			late = append(late, at)
		}
	}
	return late
}

// restores tells whether a machine that somebody switched off is switched on now, and
// if not, why; "" where that is not for recast to do.
func (t *transition) restores() (why string, on bool) {
	st := &t.Status
	switch {
	case !t.p.Enforce:
		return "", false
	case st.Hold != nil:
		return "; it is left so while it is held", false
	case slices.ContainsFunc(st.Findings, func(f string) bool { return strings.HasPrefix(f, boardPrefix) }):
		return "; it is left so because its board is another one", false
	case len(st.SwitchedOn) >= restoreMost:
		return fmt.Sprintf("; it is left so because it went off again after it was switched on %d times within a day", restoreMost), false
	case t.now.Before(restoreDue(*st)):
		return "; it is switched on once it was off for " + offFor.String(), false
	}
	return "; it is switched on now", true
}

// restoreDue is when a machine that is off may be switched on: it was seen so for a
// while, and so it was after it was last switched on.
func restoreDue(st Status) time.Time {
	due := st.OffSince
	if n := len(st.SwitchedOn); n > 0 && st.SwitchedOn[n-1].After(due) {
		due = st.SwitchedOn[n-1]
	}
	return due.Add(offFor)
}

// wasRestored is what stands of it for a day; "" nothing.
func wasRestored(st Status) string {
	n := len(st.SwitchedOn)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%ssomebody switched it off, and recast on again, %d of %d times in a day, last at %s: find out who",
		powerPrefix, n, restoreMost, st.SwitchedOn[n-1].UTC().Format(time.RFC3339))
}

// restored is what came of ActRestore.
func (t *transition) restored(ev BMCDone) {
	st := &t.Status
	if t.busy() || st.Health != Missing {
		return // somebody else's order came first
	}
	if ev.Err != "" {
		t.line("bmc", "%s: %s", ev.Action, ev.Err)
		t.noticed(Noticed{About: powerPrefix, Finding: powerPrefix + "it is off, and recast could not switch it on: " + ev.Err})
		return
	}
	t.line("bmc", "%s: done", ev.Action)
	*st = powered(*st, "status", string(bmc.PowerOn), "")
	t.noticed(Noticed{About: powerPrefix, Finding: wasRestored(*st)})
}
