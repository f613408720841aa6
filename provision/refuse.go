package provision

import (
	"fmt"
	"slices"

	"recast/inventory"
	"recast/target"
)

// What a gate with onServerDown: refuse needs of the machine's firmware: a boot order
// that leads to the network alone, set by the ramdisk, and found so by it at each boot.

// refuseWay says why a machine cannot be kept from its disk; none: it can, or nothing is
// known that speaks against it.
func refuseWay(m *inventory.Machine, facts *inventory.Facts) Wait {
	bios, secure := m.Firmware == inventory.BIOS, m.SecureBoot
	if facts != nil {
		bios = bios || m.Firmware == "" && facts.Boot.Mode == string(inventory.BIOS)
		secure = secure || facts.Boot.SecureBoot
	}
	next := "give its group a definition with onServerDown: lastGood, and apply"
	switch {
	case bios:
		return Wait{"onServerDown: refuse needs a boot order that is set and read back, and that of a BIOS is neither from here", "switch it to UEFI, or " + next}
	case secure:
		return Wait{"onServerDown: refuse ends its boot order with a program that is not signed, which Secure Boot does not start", next}
	}
	return Wait{}
}

// refuseDisk refuses to write a machine that could not be kept from its disk.
func refuseDisk(d DiskDecision, m *inventory.Machine, facts inventory.Facts) DiskDecision {
	if d.Verdict != DiskWrite || d.Gate == nil || !d.Gate.Refuse {
		return d
	}
	if w := refuseWay(m, &facts); w != (Wait{}) {
		return DiskDecision{Verdict: DiskRefuse, Reason: w.Why, Next: w.Next, Disk: d.Disk, Holds: d.Holds}
	}
	return d
}

// againProgram of a machine with this gate; nil: it needs none.
func againProgram(g *inventory.Gate) *inventory.EFIProgram {
	if g == nil || !g.Refuse {
		return nil
	}
	return target.AgainProgram()
}

// gateOrderSeen takes what the ramdisk found of the boot order, before it was mended.
func (t *transition) gateOrderSeen(g *Gate, seen *GateSeen, r inventory.Report) {
	if !g.Refuse || seen.Step != GateProving || r.Step != inventory.AgentDone {
		return // a repair comes after, and who failed tells nothing of it
	}
	seen.Unguarded = r.Unguarded
	switch f := t.Status.Facts; {
	case r.Unguarded != "":
	case r.BootOrder == "":
		seen.Unguarded = "its ramdisk does not tell the boot order: recast ramdisk build"
	case f != nil && f.Boot.SecureBoot:
		seen.Unguarded = "Secure Boot is on, which does not start the program that starts it over: switch it off"
	}
	if r.BootOrder != "" {
		t.Status.BootOrder = r.BootOrder
	}
}

// gateEnforces raises the evidence of a proof to what it is where nothing could have
// started the disk without one.
func (t *transition) gateEnforces(g *Gate, seen *GateSeen) {
	ev := &t.Status.Evidence
	switch {
	case !g.Refuse:
	case seen.Unguarded != "":
		t.finding(unguardedPrefix + seen.Unguarded)
	case ev.Level >= inventory.E3:
		ev.Level = inventory.E5
		ev.Detail += "; its firmware's order " + bootNames(bootEntries(t.Status.BootOrder)) + " leads to the network alone"
	}
}

const unguardedPrefix = gatePrefix + "without recast its firmware would start a disk: "

// unguarded says how the order that a system reports would start a disk without the gate
// that left another; "" it would not. What stands behind the last of ours is never
// reached.
func unguarded(left, seen string) string {
	was, now := bootEntries(left), bootEntries(seen)
	if len(was) == 0 || len(now) == 0 {
		return ""
	}
	end := slices.Index(now, was[len(was)-1])
	if end < 0 || slices.ContainsFunc(now[:end], func(n uint16) bool { return !slices.Contains(was, n) }) {
		return fmt.Sprintf("its order was left as %s and is %s", bootNames(was), bootNames(now))
	}
	return ""
}

// unguardedNow takes the enforcement away that a report of the running system disproves.
func (t *transition) unguardedNow(report inventory.BootReport) {
	g := gated(t.State)
	if g == nil || !g.Refuse {
		return
	}
	if text := unguarded(t.Status.BootOrder, report.BootOrder); text != "" {
		t.finding(unguardedPrefix + text)
		if ev := &t.Status.Evidence; ev.Level == inventory.E5 {
			ev.Level, ev.Detail = inventory.E3, "the gate's proof; since then its firmware's order has changed"
		}
	}
}
