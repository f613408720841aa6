package provision

import (
	"fmt"

	"recast/inventory"
)

// freeQuestion: a machine is sent to its disk, and may have a boot order that leads to
// none, since a gate with onServerDown: refuse left it so.
type freeQuestion struct {
	Facts   inventory.Facts
	Machine string // as whom it came; "" undeclared
	State   State  // of that machine
	// Refuse: its definition says so now. Unresolved: that cannot be told.
	Refuse, Unresolved bool
	// Other is the declared machine that it may be instead, By what says so; "" none.
	Other, By string
}

// freesDisk tells whether the ramdisk may put the disk back into such an order, and why
// not. By its hardware address alone, which it may have been given, no machine gets rid of
// what another declaration says: any doubt leaves the order as it is.
func freesDisk(q freeQuestion) (free bool, why string) {
	if !q.Facts.Boot.Again {
		return false, ""
	}
	keep := func(format string, args ...any) (bool, string) {
		return false, "its boot order goes on to lead to no disk: " + fmt.Sprintf(format, args...)
	}
	in := q.State.Intent
	switch {
	case q.Other != "":
		return keep("it may be %s, %s", q.Other, q.By)
	case q.Machine == "":
		return true, ""
	case in != nil && in.Gate != nil && in.Gate.Refuse:
		return keep("its gate is with onServerDown: refuse")
	case q.Refuse:
		return keep("its definition says onServerDown: refuse")
	case q.Unresolved:
		return keep("it cannot be told what it shall run")
	case q.State.Status.Hold != nil:
		return keep("it is held")
	case in == nil || in.AbortedBy != "":
		return keep("nobody has looked at its disks")
	}
	return true, ""
}

// toDisk is the order that sends a machine to its disk, declared or not.
func (e *Engine) toDisk(name string, s State, facts *inventory.Facts, reason string) inventory.Order {
	o := inventory.Order{Kind: inventory.OrderLocal, Reason: reason}
	if facts == nil || !facts.Boot.Again {
		return o
	}
	q := freeQuestion{Facts: *facts, Machine: name, State: s}
	set := e.Set()
	e.mu.RLock()
	w, wanted := e.wanted[name]
	q.Refuse = wanted && w.Generation.Resolved.Gate != nil && w.Generation.Resolved.Gate.Refuse
	q.Unresolved = name != "" && e.unresolved[name] != ""
	e.mu.RUnlock()
	if name == "" {
		q.Other, q.By = e.relatives(set).of(*facts)
	}
	for _, d := range facts.Disks {
		if m := d.Recast; m != nil && m.Machine != name && set.Machine(m.Machine) != nil {
			q.Other, q.By = m.Machine, "whose disk it has"
		}
	}
	free, why := freesDisk(q)
	if o.FreeDisk = free; free {
		o.Reason += "; its boot order leads to it again"
	} else {
		o.Reason += "; " + why
	}
	e.Log.Info("sent to its disk, where its boot order leads to none", "machine", name, "mac", facts.Boot.PXEInterface, "freed", free, "why", why)
	return o
}
