package provision

import (
	"fmt"
	"time"
)

// What a machine that comes back to its gate says of the start before it.

// kexecPrefix begins what is found of a handover by kexec.
const kexecPrefix = "kexec: "

// maxLost starts by kexec in a row that came to nothing: one may be a power cut.
const maxLost = 2

// lostJump notes a machine that comes back from a kernel that was started by kexec, or
// while that was loaded, before its system said a word: firmware and cards that do not
// stand that would have it hang or turn in circles.
func (t *transition) lostJump(g *Gate, seen *GateSeen) {
	why := ""
	switch {
	case seen.Step == GateLoading:
		why = "its ramdisk did not get as far as loading the kernel"
	case !g.Passed || g.Jumped.IsZero():
		return
	case t.p.Reports || t.now.Before(g.Jumped.Add(PassTime)):
		why = "it came back from the kernel that was started by kexec, and its system had not reported itself"
	}
	g.Jumped = time.Time{}
	if why == "" {
		g.Lost = 0
		return
	}
	if g.Lost++; g.Lost < maxLost {
		t.line("seen", "%s; that may have been a power cut, and it is started so once more", why)
		return
	}
	g.NoKexec = why + ", twice in a row"
}

// forgiven is a gate that tries again what a person has seen to.
func (g *Gate) forgiven() *Gate {
	if g == nil {
		return nil
	}
	again := *g
	again.NoKexec, again.Lost, again.Consent = "", 0, nil
	return &again
}

// circles counts a machine that was let through, asked the network again and was told to
// start its disk, and is back soon after: a firmware that takes no BootNext and leaves the
// network for nothing, or a system that does not stay up. It tells when that is to end.
func (t *transition) circles(g *Gate) bool {
	within := PassTime
	if t.p.Reports {
		within = PassTimeSlow // that it did not say a word says more than when it came
	}
	if !g.Passed || g.Pass == nil || g.Pass.Asked.IsZero() || !t.now.Before(g.Pass.Asked.Add(within)) {
		g.Circles = 0
		return false
	}
	g.Circles++
	return g.Circles > MaxRestarts
}

// gateHoldsCircle ends them in the ramdisk. Nothing is wrong with the disk.
func (t *transition) gateHoldsCircle(g *Gate, seen *GateSeen) {
	soon := "before its system had reported itself"
	if !t.p.Reports {
		soon = fmt.Sprintf("within %s", PassTime)
	}
	why := fmt.Sprintf("it was proved and told to start its disk %d times in a row, and came back each time %s", g.Circles, soon)
	restarts := fmt.Sprintf("recast retry %s writes it anew", t.Status.Machine)
	if len(g.Verity) > 0 {
		restarts = fmt.Sprintf("recast release %s --repair has the data that dm-verity protects read and written too, %s", t.Status.Machine, restarts)
	}
	cure := fmt.Sprintf("look at its console: where its system restarts, %s; where its firmware asks the network again, put its disk behind the network in its boot order, or declare another boot.local for it", restarts)
	if g.Refuse {
		why += ": its firmware does not start what BootNext names, and its order leads to no disk"
		cure = fmt.Sprintf("give its group a definition with onServerDown: lastGood, apply, and recast retry %s", t.Status.Machine)
	}
	t.gateHolds(g, seen, why, cure)
}
