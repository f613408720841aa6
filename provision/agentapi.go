package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"recast/inventory"
	"recast/store"
)

// RefusedError is an agent's request that is refused for good: the agent shows
// the reason and starts over.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

func refused(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}

// Claim answers an armed machine's first word. The grant is durable before it
// is given.
func (e *Engine) Claim(ctx context.Context, c inventory.Claim, remote netip.Addr) (inventory.ClaimReply, error) {
	if c.BootID == "" || len(c.BootID) > maxWord || len(c.UUID) > maxWord || len(c.Serial) > maxWord {
		return inventory.ClaimReply{}, refused("claim: bootID, uuid and serial have at most %d bytes, and bootID is not empty", maxWord)
	}
	decl := e.machineBehind(c.MAC)
	if decl == nil {
		return inventory.ClaimReply{}, refused("claim: no machine declares %s", c.MAC)
	}
	net := e.Set().NetworkOf(remote)
	if net == nil {
		return inventory.ClaimReply{}, refused("claim: %s is on no declared network", remote)
	}
	lease, err := e.leaseOf(ctx, net.Name, remote)
	if err != nil {
		return inventory.ClaimReply{}, err
	}
	m := e.machine(decl.Name)
	twin := e.twin(decl.Name, c.UUID)
	m.mu.Lock()
	defer m.mu.Unlock()
	q := claimQuestion{Key: e.key, Machine: decl, State: m.state, Claim: c, Remote: remote,
		Minimum: e.minimumOf(decl.Name), Lease: lease, Authoritative: net.DHCP == inventory.DHCPAuthoritative, Twin: twin, TwinDeclares: e.declares(twin, c.UUID), Now: e.Now()}
	var d ClaimDecision
	var granted Event
	gate := gated(m.state)
	if gate != nil {
		d = decideGateClaim(q, gate, e.Store.Epoch())
		granted = GateClaimed{Claim: d.Claim}
	} else {
		d = decideClaim(q)
		granted = Claimed{Claim: d.Claim, Resume: d.Resume, Doubt: d.Doubt}
	}
	switch d.Verdict {
	case ClaimGrant:
		m.history.saw(sawClaim(c, remote, e.Now(), ""))
		err = e.handleLocked(ctx, m, granted)
	case ClaimRepeat:
	case ClaimReplay:
		err = e.handleLocked(ctx, m, Noticed{Finding: "a claim nonce was presented again, by another boot or from another address: somebody else has read its boot script"})
		m.history.saw(sawClaim(c, remote, e.Now(), "refused: "+d.Reason))
		return inventory.ClaimReply{}, errors.Join(refused("claim: %s", d.Reason), err)
	case ClaimHold:
		err = e.suspect(ctx, m, twin, Suspected{d.Reason, d.Cure})
		fallthrough
	default:
		m.history.saw(sawClaim(c, remote, e.Now(), "refused: "+d.Reason))
		return inventory.ClaimReply{}, errors.Join(refused("claim: %s", d.Reason), err)
	}
	if err != nil {
		return inventory.ClaimReply{}, err
	}
	if gate != nil {
		g := m.state.Intent.Gate
		return inventory.ClaimReply{Machine: decl.Name, Token: e.key.GateToken(e.Store.Epoch(), decl.Name, g), LeaseSeconds: e.gateLeaseLeft(g)}, nil
	}
	return inventory.ClaimReply{Machine: decl.Name, Token: e.key.AgentToken(m.state.Intent),
		LeaseSeconds: e.leaseLeft(m)}, nil
}

// minimumOf is the least identity that a machine's definition wants; "" any.
func (e *Engine) minimumOf(name string) inventory.Identity {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if w, ok := e.wanted[name]; ok && w.Definition != nil {
		return w.Definition.Identity
	}
	return ""
}

func sawClaim(c inventory.Claim, remote netip.Addr, now time.Time, refusal string) inventory.Observation {
	return inventory.Observation{Time: now, Kind: inventory.SawClaim, Remote: remote, Version: clip(c.Agent, maxWord), Error: refusal}
}

// maxWord bounds what a machine says of itself and we keep: SMBIOS strings, boot
// ids, host names.
const maxWord = 256

// suspect holds a machine whose lock is held, and its twin.
func (e *Engine) suspect(ctx context.Context, m *machine, twin string, why Suspected) error {
	err := e.handleLocked(ctx, m, why)
	if twin != "" {
		e.spawn(func() {
			if err := e.handle(e.background(), e.machine(twin), why); err != nil {
				e.Log.Warn("hold not recorded", "machine", twin, "err", err)
			}
		})
	}
	return err
}

// leaseOf is the machine that holds the lease of an address now, "" none. What
// was watched may be a moment late; a pool's lease is durable before its ACK, and
// a declared address is its machine's unless somebody else still has it.
func (e *Engine) leaseOf(ctx context.Context, network string, addr netip.Addr) (string, error) {
	inForce := func(l inventory.Lease) bool {
		return l.State == inventory.LeaseBound && e.Now().Before(l.Expires)
	}
	e.mu.RLock()
	l := e.leases[addr]
	m := e.set.MachineByAddr(addr)
	e.mu.RUnlock()
	if !inForce(l) {
		var err error
		if l, _, err = e.leaseTable.Get(ctx, network+"/"+addr.String()); err != nil && !errors.Is(err, store.ErrNotFound) {
			return "", fmt.Errorf("read the lease of %s: %w", addr, err)
		}
	}
	switch {
	case inForce(l) && !l.BMC:
		return l.Machine, nil
	case !inForce(l) && m != nil && (m.BMC == nil || m.BMC.IP != addr):
		return m.Name, nil
	}
	return "", nil
}

// leaseLeft is what remains of the durable lease, whole seconds.
func (e *Engine) leaseLeft(m *machine) int {
	return max(0, int(m.state.Intent.Claim.Until.Sub(e.Now()).Seconds()))
}

// twin is another machine that says the same UUID, "" none.
func (e *Engine) twin(name, uuid string) string {
	if !inventory.UsableUUID(uuid) {
		return ""
	}
	set := e.Set()
	for _, other := range e.uuids.who(uuid) {
		if other != name && set.Machine(other) != nil {
			return other
		}
	}
	return ""
}

// declares tells whether a machine is declared with the UUID.
func (e *Engine) declares(name, uuid string) bool {
	m := e.Set().Machine(name)
	return m != nil && strings.EqualFold(m.UUID, uuid)
}

// agent finds the machine whose present boot holds the token, and locks it.
func (e *Engine) agent(token string) (*machine, error) {
	m, ok := e.known(tokenMachine(token))
	if !ok {
		return nil, refused("the token is not known")
	}
	m.mu.Lock()
	in := m.state.Intent
	if in == nil || in.Claim == nil || in.Epoch != e.Store.Epoch() || !sameToken(token, e.key.AgentToken(in)) {
		m.mu.Unlock()
		return nil, refused("the token is not that of the machine's present boot")
	}
	return m, nil
}

// renew prolongs the lease. The durable end is moved only when it comes near,
// and no agent is ever told more than what is durable.
func (e *Engine) renew(ctx context.Context, m *machine) (int, error) {
	now := e.Now()
	in := m.state.Intent
	if in.Live && in.Claim.Until.Sub(now) < LeaseTime*2/3 {
		if err := e.handleLocked(ctx, m, Renewed{Until: now.Add(LeaseTime)}); err != nil {
			return e.leaseLeft(m), err
		}
	}
	return e.leaseLeft(m), nil
}

// order is what the machine's present boot shall do now. The lock is held.
func (e *Engine) order(ctx context.Context, m *machine) (inventory.Order, error) {
	st, in := m.state.Status, m.state.Intent
	switch {
	case Busy(st.Phase) && (st.Step == StepWriting || st.Step == StepVerifying) && in.Write != nil:
		left, err := e.renew(ctx, m)
		if err != nil {
			return inventory.Order{}, err
		}
		job, err := e.job(ctx, m.name, m.state)
		if err != nil {
			return inventory.Order{}, err
		}
		return inventory.Order{Kind: inventory.OrderKind(job.Kind), Job: job, LeaseSeconds: left}, nil
	case Busy(st.Phase) && st.Step == StepInspecting:
		return inventory.Order{Kind: inventory.OrderWait, Reason: "send the inventory"}, nil
	case in.Purpose == PurposeWipe && in.Write != nil && (st.Step == StepPowerOff || !in.Live):
		return inventory.Order{Kind: inventory.OrderPowerOff, Reason: cmp.Or(st.LastError, "the disk is wiped")}, nil
	case Busy(st.Phase) && !written(st.Step):
		// Another attempt has begun; a BMC will cut the power, else it goes by itself.
		return inventory.Order{Kind: inventory.OrderReboot, Reason: fmt.Sprintf("attempt %d begins: %s", st.Attempt, st.LastError)}, nil
	case st.Phase == Failed && st.Unfinished:
		return inventory.Order{Kind: inventory.OrderPowerOff, Reason: st.LastError}, nil
	}
	reason := st.LastError
	if reason == "" {
		reason = string(st.Phase)
	}
	return e.toDisk(m.name, m.state, st.Facts, reason), nil
}

// PollTime is how long Order holds a waiting agent's request.
const PollTime = 25 * time.Second

// Order answers an agent's long poll.
func (e *Engine) Order(ctx context.Context, token string) (inventory.Order, error) {
	if mac, ok := tokenMAC(token); ok {
		return e.discoveryPoll(ctx, token, mac)
	}
	var err error
	deadline := time.NewTimer(PollTime)
	defer deadline.Stop()
	for {
		order := e.order
		m, through := e.gateAgent(token)
		if through {
			order = e.gateOrder
		} else if m, err = e.agent(token); err != nil {
			return inventory.Order{}, err
		}
		o, err := order(ctx, m)
		changed := m.orders
		m.mu.Unlock()
		if err != nil || o.Kind != inventory.OrderWait {
			return o, err
		}
		select {
		case <-changed:
		case <-deadline.C:
			return o, nil
		case <-ctx.Done():
			return o, ctx.Err()
		}
	}
}
