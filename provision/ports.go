package provision

import (
	"context"
	"fmt"
	"slices"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// learned are the hardware addresses that DHCP found behind declared switch
// ports. A record whose port nobody declares any more says nothing.
type learned map[inventory.MAC]inventory.PortRecord

// take replaces what is known of a record's port. The record that is there last
// counts: a port has one machine.
func (l learned) take(r inventory.PortRecord) {
	l.forget(r.Network, r.Port)
	l[r.MAC] = r
}

func (l learned) forget(network string, p inventory.Port) {
	for mac, old := range l {
		if old.Network == network && old.Port == p {
			delete(l, mac)
		}
	}
}

// machineOf finds whose a hardware address is: declared, or learned at a declared
// port. e.mu is held.
func (e *Engine) machineOf(mac inventory.MAC) *inventory.Machine {
	if m := e.set.MachineByMAC(mac); m != nil {
		return m
	}
	if r, ok := e.ports[mac]; ok {
		return e.set.MachineByPort(r.Network, r.Port)
	}
	return nil
}

// machineBehind is machineOf for whoever does not hold e.mu.
func (e *Engine) machineBehind(mac inventory.MAC) *inventory.Machine {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.machineOf(mac)
}

// bootsAs is the machine that a netbooting client is. DHCP has learned a new
// address a moment before we hear of it, and says so.
func (e *Engine) bootsAs(c ipxe.Client) *inventory.Machine {
	if m := e.machineOf(c.MAC); m != nil || c.Machine == "" {
		return m
	}
	return e.set.Machine(c.Machine)
}

func (e *Engine) loadPorts(ctx context.Context) error {
	rows, _, err := e.portTable.List(ctx)
	if err != nil {
		return fmt.Errorf("list learned ports: %w", err)
	}
	for _, row := range rows {
		e.ports.take(row.Value)
	}
	return nil
}

// watchPorts follows what only the DHCP server writes.
func (e *Engine) watchPorts(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := e.Store.Watch(ctx, inventory.PortPrefix)
		if err != nil {
			e.Log.Warn("watch learned ports", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		names := map[string]inventory.PortRecord{} // by key, since a deleted record has no value
		fresh := learned{}                         // until the snapshot is whole
		for ev := range w.Events {
			if ev.Synced {
				e.mu.Lock()
				e.ports, fresh = fresh, nil
				e.mu.Unlock()
				continue
			}
			r := names[ev.Key]
			if !ev.Deleted {
				if r, err = e.portTable.Decode(ev.Record); err != nil {
					e.Log.Warn("learned port left out", "key", ev.Key, "err", err)
					continue
				}
				names[ev.Key] = r
			}
			into := fresh
			e.mu.Lock()
			if into == nil {
				into = e.ports
			}
			if ev.Deleted {
				// The address may stand behind another port by now.
				if into[r.MAC].Port == r.Port && into[r.MAC].Network == r.Network {
					delete(into, r.MAC)
				}
			} else {
				into.take(r)
			}
			e.mu.Unlock()
		}
	}
}

// withLearned fills in the hardware address of the interface that is declared by
// its port: the machine has netbooted from it, and claimed with it.
func withLearned(r inventory.Rendered, mac inventory.MAC) inventory.Rendered {
	declared := func(n inventory.RenderedNIC) bool { return n.MAC == mac }
	if mac == "" || slices.ContainsFunc(r.NICs, declared) {
		return r
	}
	r.NICs = slices.Clone(r.NICs)
	for i := range r.NICs {
		if r.NICs[i].MAC == "" {
			r.NICs[i].MAC = mac
			break
		}
	}
	return r
}
