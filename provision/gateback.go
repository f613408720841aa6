package provision

import "time"

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
	again.NoKexec, again.Lost = "", 0
	return &again
}
