package provision

import (
	"context"
	"fmt"
	"sort"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/store"
)

const freezeName = "freeze"

// operate records an operator's word on one machine: the audit entry and the
// change stand in one transaction.
func (e *Engine) operate(ctx context.Context, name, who, what, detail string, change func(State) (State, error)) error {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	if e.Set().Machine(name) == nil {
		return fmt.Errorf("%s %q: no such machine is declared; recast get machines lists them", what, name)
	}
	audit, err := e.audit(ctx, AuditEntry{Who: who, What: what, Machine: name, Detail: detail, At: e.Now()})
	if err != nil {
		return err
	}
	m := e.machine(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	next, err := change(m.snapshot())
	if err != nil {
		return fmt.Errorf("%s %q: %w", what, name, err)
	}
	text := what + " by " + who
	if detail != "" {
		text += ": " + detail
	}
	return e.commit(ctx, m, next, []TimelineEntry{{Time: e.Now(), Kind: "operator", Text: text}}, audit)
}

// Hold keeps recast from starting anything on a machine; ttl 0 means until released.
func (e *Engine) Hold(ctx context.Context, name, who, reason string, ttl time.Duration) error {
	return e.operate(ctx, name, who, "hold", reason, func(s State) (State, error) {
		h := &Hold{Owner: who, Reason: reason, Since: e.Now()}
		if ttl > 0 {
			h.Expires = h.Since.Add(ttl)
		}
		s.Status.Hold = h
		return s, nil
	})
}

// Release ends a hold.
func (e *Engine) Release(ctx context.Context, name, who string) error {
	return e.operate(ctx, name, who, "release", "", func(s State) (State, error) {
		if s.Status.Hold == nil {
			return s, fmt.Errorf("it is not held")
		}
		s.Status.Hold, s.Status.NextAction = nil, ""
		s.Status.Findings = nil
		return s, nil
	})
}

// Retry gives a failed machine, or one that waits for a person's word, another
// turn in its rollout.
func (e *Engine) Retry(ctx context.Context, name, who string) error {
	return e.operate(ctx, name, who, "retry", "", func(s State) (State, error) {
		if Busy(s.Status.Phase) {
			return s, fmt.Errorf("an attempt is under way (%s); recast abort %s stops it", s.Status.Step, name)
		}
		if ok, err := e.again(ctx, name); err != nil {
			return s, err
		} else if !ok {
			return s, fmt.Errorf("no applied plan says what to do with it; recast plan PATH shows what apply would do")
		}
		if s.Status.Phase == Failed {
			s.Status.Phase, s.Status.Step, s.Status.NextAction = Available, StepNone, ""
		}
		return s, nil
	})
}

// Abort stops the attempt under way.
func (e *Engine) Abort(ctx context.Context, name, who string) error {
	if err := e.operate(ctx, name, who, "abort", "", func(s State) (State, error) {
		if !Busy(s.Status.Phase) {
			return s, fmt.Errorf("nothing is under way")
		}
		return s, nil
	}); err != nil {
		return err
	}
	return e.handle(ctx, e.machine(name), Aborted{By: who})
}

// Look netboots a machine to take its inventory and nothing else.
func (e *Engine) Look(ctx context.Context, name, who string) error {
	return e.begin(ctx, name, who, "inspect", PurposeInspect)
}

// Adopt netboots a machine and believes what its disk says recast wrote.
func (e *Engine) Adopt(ctx context.Context, name, who string) error {
	return e.begin(ctx, name, who, "adopt", PurposeAdopt)
}

func (e *Engine) begin(ctx context.Context, name, who, what string, purpose Purpose) error {
	e.mu.RLock()
	w := e.wanted[name]
	e.mu.RUnlock()
	if err := e.operate(ctx, name, who, what, "", func(s State) (State, error) {
		switch {
		case Busy(s.Status.Phase):
			return s, fmt.Errorf("an attempt is under way (%s)", s.Status.Step)
		case s.Status.Hold != nil:
			return s, fmt.Errorf("it is held: %s; recast release %s", s.Status.Hold.Reason, name)
		case purpose == PurposeAdopt && w.Group == nil:
			return s, fmt.Errorf("no group selects it")
		}
		return s, nil
	}); err != nil {
		return err
	}
	return e.handle(ctx, e.machine(name), Started{Purpose: purpose, Generation: w.Generation.Digest,
		Rendered: w.Rendered.Digest, Epoch: e.Store.Epoch(), By: who})
}

// Freeze stops every start until Unfreeze; what is under way goes on.
func (e *Engine) Freeze(ctx context.Context, who, reason string) error {
	if reason == "" {
		reason = "by " + who
	}
	return e.setFreeze(ctx, who, "freeze", Freeze{Reason: reason, By: who})
}

// Unfreeze lets rollouts go on.
func (e *Engine) Unfreeze(ctx context.Context, who string) error {
	return e.setFreeze(ctx, who, "unfreeze", Freeze{})
}

func (e *Engine) setFreeze(ctx context.Context, who, what string, f Freeze) error {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	op, err := e.freezes.PutOp(freezeName, f, store.Any)
	if err != nil {
		return err
	}
	audit, err := e.audit(ctx, AuditEntry{Who: who, What: what, Detail: f.Reason, At: e.Now()})
	if err != nil {
		return err
	}
	if _, err := e.durable(ctx, op, audit); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	e.mu.Lock()
	e.frozen = f
	e.mu.Unlock()
	e.nudge()
	return nil
}

// Frozen is why nothing starts; zero: it is not frozen.
func (e *Engine) Frozen() Freeze {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.frozen
}

// Power reads or changes a machine's power: "status", "on", "off", "cycle".
// Soft asks the operating system and gives up where it does not obey.
func (e *Engine) Power(ctx context.Context, name, who, verb string, soft bool) (string, error) {
	if verb != "status" {
		if err := e.operate(ctx, name, who, "power "+verb, "", func(s State) (State, error) {
			if Busy(s.Status.Phase) {
				return s, fmt.Errorf("an attempt is under way (%s); recast abort %s stops it", s.Status.Step, name)
			}
			return s, nil
		}); err != nil {
			return "", err
		}
	} else if e.Set().Machine(name) == nil {
		return "", fmt.Errorf("power %q: no such machine is declared", name)
	}
	m := e.machine(name)
	m.bmcMu.Lock()
	defer m.bmcMu.Unlock()
	if s := m.snapshot(); verb != "status" && Busy(s.Status.Phase) {
		return "", fmt.Errorf("power %q: an attempt has begun in the meantime (%s)", name, s.Status.Step)
	}
	ctx, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	var seen bmc.PowerState
	err := e.withBMC(ctx, name, func(ctx context.Context, c bmc.Client) error {
		var err error
		switch verb {
		case "status":
		case "on":
			err = c.On(ctx)
		case "off":
			err = c.Off(ctx, !soft)
		case "cycle":
			if err = c.Off(ctx, !soft); err == nil {
				err = c.On(ctx)
			}
		default:
			err = fmt.Errorf("power %q: want status, on, off or cycle", verb)
		}
		if err != nil {
			return err
		}
		seen, err = c.Power(ctx)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("power of %q: %w", name, err)
	}
	m.mu.Lock()
	now := m.state
	now.Status.Power = string(seen)
	m.put(now)
	m.mu.Unlock()
	e.changes.send(name)
	return string(seen), nil
}

// Secrets of the operator.
func (e *Engine) Secrets() *Secrets { return e.secrets }

// SetSecret stores a new version and looks again at what every machine shall
// run, since a generation holds its secrets' versions.
func (e *Engine) SetSecret(ctx context.Context, name string, value []byte, who string) (SecretInfo, error) {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	info, err := e.secrets.Set(ctx, name, value, who, e.Now())
	if err != nil {
		return info, err
	}
	audit, err := e.audit(ctx, AuditEntry{Who: who, What: "secret set", Detail: fmt.Sprintf("%s version %d", name, info.Version), At: e.Now()})
	if err == nil {
		_, err = e.durable(ctx, audit)
	}
	if err != nil {
		return info, err
	}
	e.mu.RLock()
	set, rev := e.set, e.setRev
	e.mu.RUnlock()
	e.install(set, rev)
	return info, nil
}

// Authority is the CA.
func (e *Engine) Authority() *Authority { return e.authority }

// Discovered machines that nobody declared, by hardware address, each with the
// YAML that declares it.
func (e *Engine) Discovered() []Stray {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []Stray
	for mac, d := range e.strays {
		if e.set.MachineByMAC(mac) == nil {
			d.YAML = inventory.YAMLFor(d.Facts, d.Network)
			out = append(out, d)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].MAC < out[j].MAC })
	return out
}
