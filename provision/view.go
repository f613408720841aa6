package provision

import (
	"context"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"recast/inventory"
	"recast/ipxe"
)

// BootSpec answers, from memory, what a netbooting machine gets. It implements
// ipxe.Booter.
func (e *Engine) BootSpec(_ context.Context, c ipxe.Client) (ipxe.Spec, error) {
	e.mu.RLock()
	set := e.set
	stray := e.strays[c.MAC]
	decl := e.bootsAs(c)
	net := set.Network(c.Network)
	if net == nil {
		net = set.NetworkOf(c.Remote)
	}
	e.mu.RUnlock()
	if c.Token != "" {
		m, _, err := e.tokenBoot(c.Token)
		if err != nil {
			return ipxe.Spec{}, err
		}
		if m.Boot.Via != inventory.BootHTTP {
			return ipxe.Spec{}, errNoToken // a medium holds its script, which must not pass the network
		}
		if decl == nil || decl.Name != m.Name {
			return ipxe.Spec{}, fmt.Errorf("the token is that of %s, which does not declare %s", m.Name, c.MAC)
		}
	}
	q := bootQuestion{Carried: c.Token != "", Client: c, Machine: decl, Key: e.key, Epoch: e.Store.Epoch(),
		CA: e.authority.Digest(), Now: e.Now(), Seen: stray.At, Empty: stray.empty()}
	if q.Arch = c.Arch.CPU(); q.Machine != nil {
		q.Arch = q.Machine.Arch
		if m, ok := e.known(q.Machine.Name); ok {
			q.State = m.committed()
		}
	}
	q.Ramdisk = e.Ramdisk(q.Arch)
	if net != nil {
		q.Unknown, q.VLAN = net.Unknown, net.VLAN
		if addr, ok := e.Address(net.Name); ok {
			q.AgentURL = agentURL(addr, e.AgentPort)
			if e.SyslogPort != 0 {
				q.Syslog = netip.AddrPortFrom(addr, uint16(e.SyslogPort))
			}
		}
	}
	if q.AgentURL == "" && net != nil {
		return ipxe.Spec{}, fmt.Errorf("no address of ours is reached from network %q: give this host one in %s, or a route there", net.Name, net.Subnet)
	}
	if q.AgentURL == "" {
		return ipxe.Spec{}, fmt.Errorf("no network of ours holds the client %s at %s", c.MAC, c.Remote)
	}
	spec := boot(q)
	spec.Syslog = q.Syslog
	return spec, nil
}

var _ ipxe.Booter = (*Engine)(nil)

// View of one machine; false where it is neither declared nor known.
func (e *Engine) View(name string) (View, bool) {
	e.mu.RLock()
	decl := e.set.Machine(name)
	w, declared := e.wanted[name]
	waiting := e.waiting[name]
	unresolved := e.unresolved[name]
	group := e.set.GroupOf(name)
	e.mu.RUnlock()
	m, known := e.known(name)
	if decl == nil && !known {
		return View{}, false
	}
	v := View{Name: name, Machine: decl, Waiting: waiting.Why, next: waiting.Next, Status: Status{Machine: name, Phase: Available, Health: HealthUnknown}}
	if known {
		v.Status = m.snapshot().Status
	}
	if declared {
		v.Group, v.Image = w.Group.Name, w.Generation.Resolved.Image.Digest.String()
		if w.Definition != nil {
			v.Image = w.Definition.Image
		}
		v.Wanted, v.WantedRendered = w.Generation.Digest, w.Rendered.Digest
	}
	if decl != nil && decl.BMC != nil {
		if k, err := e.book.of(decl); err == nil {
			v.BMC = k.view(decl)
		}
	}
	v.Sync, v.SyncWhy = synced(v.Status, w, declared, e.Now())
	if unresolved != "" && group != nil {
		v.Group, v.Waiting, v.SyncWhy = group.Name, unresolved, unresolved
		v.next = unresolvedWait(unresolved).Next
	}
	return v, true
}

// NoMachine is the error of a name that is no machine's: with the nearest one.
func (e *Engine) NoMachine(name string) error {
	set := e.Set()
	names := make([]string, len(set.Machines))
	for i, m := range set.Machines {
		names[i] = m.Name
	}
	next := inventory.DidYouMean(name, names)
	if !strings.HasPrefix(next, "did you mean") {
		next = "recast get machines lists them"
	}
	return fmt.Errorf("there is no machine %q; %s", name, next)
}

// Views of every declared machine, by name.
func (e *Engine) Views() []View {
	set := e.Set()
	out := make([]View, 0, len(set.Machines))
	for _, m := range set.Machines {
		if v, ok := e.View(m.Name); ok {
			out = append(out, v)
		}
	}
	return out
}

// AtWork names the machines with a BMC that are being changed now.
func (e *Engine) AtWork() map[string]bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := map[string]bool{}
	for name, m := range e.machines {
		if decl := e.set.Machine(name); decl != nil && decl.BMC != nil && Busy(m.committed().Status.Phase) {
			out[name] = true
		}
	}
	return out
}

// Rollouts that are recorded, by group.
func (e *Engine) Rollouts() []Rollout {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []Rollout
	for _, name := range sortedKeys(e.rolling) {
		out = append(out, e.rolling[name])
	}
	return out
}

// Orphans are machines that are known but declared no more.
func (e *Engine) Orphans() []View {
	set := e.Set()
	var out []View
	for _, m := range e.list() {
		if set.Machine(m.name) == nil {
			if v, ok := e.View(m.name); ok {
				out = append(out, v)
			}
		}
	}
	return out
}

// Leases in force, by address.
func (e *Engine) Leases() []inventory.Lease {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := make([]inventory.Lease, 0, len(e.leases))
	for _, l := range e.leases {
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Addr.Less(out[j].Addr) })
	return out
}

// ImageUser names who needs an image, "" nobody: what is declared, what runs,
// and the generations kept for rollback.
func (e *Engine) ImageUser(d inventory.Digest) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, img := range e.set.Images {
		if img.Digest == d {
			return "image " + img.Name
		}
	}
	for _, gen := range e.kept {
		if gen.Resolved.Image.Digest == d {
			return "generation " + gen.Digest.Short()
		}
	}
	return ""
}
