package provision

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"recast/inventory"
	"recast/store"
)

// Stray is an undeclared machine's inventory.
type Stray struct {
	MAC     inventory.MAC   `json:"mac"`
	Network string          `json:"network,omitempty"`
	Addr    netip.Addr      `json:"addr,omitzero"`
	Facts   inventory.Facts `json:"facts"`
	At      time.Time       `json:"at"`
	// MayBe says which declared machine it may be: "another card of r1u05, which
	// declares its UUID". YAML declares it. Both are filled in when shown.
	MayBe string `json:"mayBe,omitempty"`
	YAML  string `json:"yaml,omitempty"`
}

// empty tells that no disk holds anything. A machine that shows no disk may have
// one behind a controller that the ramdisk does not know: any doubt is its disk.
func (d Stray) empty() bool {
	if len(d.Facts.Disks) == 0 {
		return false
	}
	for _, disk := range d.Facts.Disks {
		if disk.Holds != "" {
			return false
		}
	}
	return true
}

// discoveredFacts are what a declared machine showed before it was: the newest
// inventory that came by one of its hardware addresses, nil none.
func (e *Engine) discoveredFacts(m *inventory.Machine) *inventory.Facts {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var newest Stray
	for _, nic := range m.NICs {
		if d, ok := e.strays[nic.MAC]; ok && d.At.After(newest.At) {
			newest = d
		}
	}
	if newest.MAC == "" {
		return nil
	}
	facts := namedFacts(newest.Facts, m.Name)
	return &facts
}

// relatives finds the declared machine that a stranger may be another card of.
type relatives struct {
	set              *inventory.Set
	byUUID, bySerial map[string]string
	said             *uuidIndex
}

func (e *Engine) relatives(set *inventory.Set) relatives {
	r := relatives{set, map[string]string{}, map[string]string{}, &e.uuids}
	for _, m := range set.Machines {
		if m.UUID != "" {
			r.byUUID[m.UUID] = m.Name
		}
		if m.Serial != "" {
			r.bySerial[m.Serial] = m.Name
		}
	}
	return r
}

// of tells the machine, and by what; "" none.
func (r relatives) of(facts inventory.Facts) (machine, by string) {
	uuid, serial := strings.ToLower(facts.SystemVendor.UUID), facts.SystemVendor.SerialNumber
	if m := r.byUUID[uuid]; m != "" {
		return m, "which declares its UUID"
	}
	if m := r.bySerial[serial]; m != "" {
		return m, "which declares its serial"
	}
	for _, nic := range facts.Interfaces {
		if m := r.set.MachineByMAC(nic.MAC); m != nil {
			return m.Name, "which declares its interface " + nic.MAC.String()
		}
	}
	for _, m := range r.said.who(uuid) {
		if r.set.Machine(m) != nil {
			return m, "which says the same UUID"
		}
	}
	return "", ""
}

// show fills in what is not stored.
func (d *Stray) show(r relatives) {
	d.YAML = inventory.YAMLFor(d.Facts, d.Network)
	m, by := r.of(d.Facts)
	if m == "" {
		return
	}
	d.MayBe = fmt.Sprintf("another card of %s, %s", m, by)
	d.YAML = fmt.Sprintf("# It may be %s. Then add {mac: %q} to the nics of %s:\n"+
		"# one machine declared twice is refused, or held. If it is another machine, give it a UUID\n# and serial of its own first.\n%s", d.MayBe, d.MAC, m, d.YAML)
}

// Discover takes an undeclared machine's inventory. The token, which the boot
// script carried, permits this and nothing else.
func (e *Engine) Discover(ctx context.Context, token string, facts inventory.Facts, remote netip.Addr) (inventory.Order, error) {
	mac, _ := tokenMAC(token)
	if !sameToken(token, e.key.DiscoveryToken(e.Store.Epoch(), mac)) {
		return inventory.Order{}, refused("the discovery token is not that of %s", mac)
	}
	if err := checkFacts(facts); err != nil {
		return inventory.Order{}, err
	}
	have, old, room := e.strayRoom(mac)
	switch since := e.Now().Sub(have.At); {
	case !room:
		return inventory.Order{}, refused("%d undeclared machines are known, and no more are kept: declare them, or set unknown: ignore", maxStrays)
	case !have.At.IsZero() && since >= 0 && since < strayPause:
		return e.discoveryOrder(have), nil // it was heard a moment ago
	}
	d := Stray{MAC: mac, Addr: remote, Facts: facts, At: e.Now()}
	if n := e.Set().NetworkOf(remote); n != nil {
		d.Network = n.Name
	}
	op, err := e.discovered.PutOp(strayName(mac), d, store.Any)
	if err != nil {
		return inventory.Order{}, err
	}
	ops := []store.Op{op}
	if old != "" {
		ops = append(ops, e.discovered.DeleteOp(strayName(old), store.Any))
	}
	if _, err := e.durable(ctx, ops...); err != nil {
		return inventory.Order{}, fmt.Errorf("record the discovery: %w", err)
	}
	e.mu.Lock()
	e.strays[mac] = d
	delete(e.strays, old)
	e.mu.Unlock()
	e.changes.send(AllMachines)
	return e.discoveryOrder(d), nil
}

// Anybody on a Network that discovers can get a token for any hardware address:
// what strangers may leave in the store is bounded in number and in rate.
const (
	maxStrays  = 4096
	strayPause = 10 * time.Second
	// strayOld: after this time without a word a stranger makes room for another.
	strayOld = 24 * time.Hour
)

func strayName(mac inventory.MAC) string { return strings.ReplaceAll(mac.String(), ":", "-") }

// strayRoom is what is known of a stranger, which other one has to go for it (""
// none), and whether its inventory may be kept.
func (e *Engine) strayRoom(mac inventory.MAC) (have Stray, old inventory.MAC, room bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	have, known := e.strays[mac]
	if known || len(e.strays) < maxStrays {
		return have, "", true
	}
	last := e.Now().Add(-strayOld)
	for other, s := range e.strays {
		if s.At.Before(last) || e.machineOf(other) != nil {
			return have, other, true
		}
	}
	return have, "", false
}

// discoveryOrder: a machine with something on a disk goes back to it; an empty
// one waits to be declared.
func (e *Engine) discoveryOrder(d Stray) inventory.Order {
	if m := e.machineBehind(d.MAC); m != nil {
		return inventory.Order{Kind: inventory.OrderReboot, Reason: "declared as " + m.Name}
	}
	if d.empty() {
		return inventory.Order{Kind: inventory.OrderWait, Reason: "waits to be declared"}
	}
	return e.toDisk("", State{}, &d.Facts, "inventory taken")
}

// discoveryPoll answers the long poll of a discovered machine.
func (e *Engine) discoveryPoll(ctx context.Context, token string, mac inventory.MAC) (inventory.Order, error) {
	if !sameToken(token, e.key.DiscoveryToken(e.Store.Epoch(), mac)) {
		return inventory.Order{}, refused("the discovery token is not that of %s", mac)
	}
	ctx, cancel := context.WithTimeout(ctx, PollTime)
	defer cancel()
	for {
		changed := e.changes.declared() // before the look, so that nothing falls between
		e.mu.RLock()
		d, ok := e.strays[mac]
		e.mu.RUnlock()
		if !ok {
			return inventory.Order{}, refused("send the inventory first")
		}
		if o := e.discoveryOrder(d); o.Kind != inventory.OrderWait {
			return o, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return e.discoveryOrder(d), nil
		}
	}
}
