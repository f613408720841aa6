package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"recast/bmc"
	"recast/image"
	"recast/inventory"
	"recast/store"
)

const freezeName = "freeze"

// operate records an operator's word on one machine: the audit entry and the
// change stand in one transaction.
func (e *Engine) operate(ctx context.Context, name, who, what, detail string, change func(State) (State, error)) error {
	return e.said(ctx, name, who, what, detail, func(m *machine, said []TimelineEntry, audit store.Op) error {
		next, err := change(m.snapshot())
		if err != nil {
			return fmt.Errorf("%s %q: %w", what, name, err)
		}
		return e.commit(ctx, m, next, said, audit)
	})
}

// command is an operator's word that is an event of the machine; check says why
// not. What was said and what came of it stand in one transaction.
func (e *Engine) command(ctx context.Context, name, who, what string, check func(State) error, ev Event) error {
	return e.said(ctx, name, who, what, "", func(m *machine, said []TimelineEntry, audit store.Op) error {
		if err := check(m.snapshot()); err != nil {
			return fmt.Errorf("%s %q: %w", what, name, err)
		}
		return e.handleWith(ctx, m, ev, said, audit)
	})
}

// said makes the records of an operator's word, and lets do commit them with what
// it changes. The machine's lock is held over that.
func (e *Engine) said(ctx context.Context, name, who, what, detail string, do func(m *machine, said []TimelineEntry, audit store.Op) error) error {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	if e.Set().Machine(name) == nil {
		return fmt.Errorf("%s: %w", what, e.NoMachine(name))
	}
	audit, err := e.audit(ctx, AuditEntry{Who: who, What: what, Machine: name, Detail: detail, At: e.Now()})
	if err != nil {
		return err
	}
	m := e.machine(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	text := what + " by " + who
	if detail != "" {
		text += ": " + detail
	}
	return do(m, []TimelineEntry{{Time: e.Now(), Kind: "operator", Text: text}}, audit)
}

// Hold keeps recast from starting anything on a machine; ttl 0 means until released.
func (e *Engine) Hold(ctx context.Context, name, who, reason string, ttl time.Duration) error {
	h := Hold{Owner: who, Reason: reason, Since: e.Now()}
	if ttl > 0 {
		h.Expires = h.Since.Add(ttl)
	}
	return e.said(ctx, name, who, "hold", reason, func(m *machine, said []TimelineEntry, audit store.Op) error {
		return e.handleWith(ctx, m, Held{h}, said, audit)
	})
}

// Release ends a hold, and lets a gate try again what it had given up.
func (e *Engine) Release(ctx context.Context, name, who string) error {
	return e.operate(ctx, name, who, "release", "", func(s State) (State, error) {
		if g := gated(s); s.Status.Hold == nil && (g == nil || g.NoKexec == "") {
			return s, fmt.Errorf("it is not held")
		}
		return released(s), nil
	})
}

// Repair releases a machine that its gate holds, and lets that write what differs this
// once, however much it is. Another disk, and another partition table, are held again. Data
// that dm-verity protects is read and written then too: nobody but its kernel sees what is
// wrong with that, so that no gate need hold it.
func (e *Engine) Repair(ctx context.Context, name, who string) error {
	decl := e.Set().Machine(name)
	return e.operate(ctx, name, who, "repair", "", func(s State) (State, error) {
		switch {
		case Busy(s.Status.Phase) && !written(s.Status.Step):
			return s, fmt.Errorf("an attempt is under way (%s); recast abort %s stops it", s.Status.Step, name)
		case stopped(s) && s.Status.Hold != nil:
		case stopped(s) || s.Status.Hold != nil || len(gateVerity(s)) == 0:
			return s, fmt.Errorf("no gate holds it")
		case s.Status.Gate.Step.working():
			return s, fmt.Errorf("its gate is at work: ask again when that has ended")
		}
		if decl != nil && decl.Protected {
			return s, fmt.Errorf("it is protected: %s", protectedNext)
		}
		return consented(s, who, e.Store.Epoch()), nil
	})
}

// consented is a machine that its gate held, or none did, and may repair now.
func consented(s State, who, epoch string) State {
	if s.Status.Hold != nil {
		s = released(s)
	}
	in, g := *s.Intent, *s.Intent.Gate
	g.Consent = &GateConsent{By: who, Epoch: epoch}
	in.Gate, s.Intent = &g, &in
	return s
}

// lifts says why a hold ends by itself now, "" it does not.
func (e *Engine) lifts(h *Hold) string {
	switch {
	case expired(h, e.Now()):
		return "recast: the hold expired"
	case h != nil && h.Thaws && e.Frozen() == Freeze{}:
		return "recast: nothing is frozen any more"
	}
	return ""
}

// lift ends such a hold.
func (e *Engine) lift(ctx context.Context, name, why string) error {
	return e.operate(ctx, name, why, "release", "", func(s State) (State, error) {
		if e.lifts(s.Status.Hold) == "" {
			return s, fmt.Errorf("another hold was placed")
		}
		return released(s), nil
	})
}

func expired(h *Hold, now time.Time) bool {
	return h != nil && !h.Expires.IsZero() && now.After(h.Expires)
}

// released is a machine after its hold: what was to be done after that is next.
func released(s State) State {
	st := &s.Status
	if st.Hold != nil && st.Hold.Thaws {
		st.NextAction = ""
	}
	st.Hold, st.Findings = nil, nil
	if s.Intent != nil {
		in := *s.Intent
		if in.Gate = in.Gate.forgiven(); in.HeldBack {
			st.LastError = ""
		}
		s.Intent = &in
	}
	if release := "recast release " + st.Machine; strings.Contains(st.NextAction, release) {
		_, st.NextAction, _ = strings.Cut(st.NextAction, release+", then: ")
	}
	if st.NextAction == "" && st.Phase == Failed {
		st.NextAction = againNext(s.Intent, st.Machine)
	}
	return s
}

// Retry gives a failed machine, or one that waits for a person's word, another
// turn in its rollout.
func (e *Engine) Retry(ctx context.Context, name, who string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // two transactions: whoever hangs up between them must not leave half
	if err := e.operate(ctx, name, who, "retry", "", func(s State) (State, error) {
		if Busy(s.Status.Phase) {
			return s, fmt.Errorf("an attempt is under way (%s); recast abort %s stops it", s.Status.Step, name)
		}
		st := &s.Status
		unlike := stopped(s) && st.Phase == Active // its gate has seen that it does not hold what it was given
		if _, ok := e.rolloutOf(name); !ok {
			if !unlike || e.Set().GroupOf(name) == nil {
				return s, fmt.Errorf("no applied plan says what to do with it; recast plan PATH shows what apply would do")
			}
			// A plan of others came after its own, and the next one has it again.
			st.NextAction = fmt.Sprintf("recast plan PATH, and apply that, then: recast release %s", name)
			if st.Hold != nil {
				h := *st.Hold
				h.Cure, st.Hold = "recast plan PATH, and apply that", &h
			}
		}
		if unlike {
			st.Phase, st.Running, st.RunningRendered, st.RunningWrite, st.Ran = Available, "", "", "", false
			in, g := *s.Intent, *s.Intent.Gate
			g.Anew = true
			in.Gate, s.Intent = &g, &in
		}
		if st.Phase == Failed {
			st.Phase, st.Step, st.NextAction = Available, StepNone, ""
		}
		return s, nil
	}); err != nil {
		return err
	}
	// After the audit entry: a crash between them costs the turn, which another
	// retry gives, and not the record of who gave it.
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	if err := e.again(ctx, name); err != nil {
		return fmt.Errorf("retry %q: %w", name, err)
	}
	e.nudge()
	return nil
}

// Abort stops the attempt under way.
func (e *Engine) Abort(ctx context.Context, name, who string) error {
	return e.command(ctx, name, who, "abort", func(s State) error {
		if !Busy(s.Status.Phase) {
			return fmt.Errorf("nothing is under way")
		}
		return nil
	}, Aborted{By: who})
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
	return e.command(ctx, name, who, what, func(s State) error {
		switch {
		case Busy(s.Status.Phase):
			return fmt.Errorf("an attempt is under way (%s)", s.Status.Step)
		case s.Status.Hold != nil:
			return fmt.Errorf("it is held: %s; recast release %s", s.Status.Hold.Reason, name)
		case purpose == PurposeAdopt && w.Group == nil:
			return fmt.Errorf("no group selects it")
		}
		return nil
	}, Started{Purpose: purpose, Generation: w.Generation.Digest,
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
		// It may have happened all the same.
		if now, _, again := e.freezes.Get(context.WithoutCancel(ctx), freezeName); again == nil {
			e.mu.Lock()
			e.frozen = now
			e.mu.Unlock()
		}
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
	if !slices.Contains([]string{"status", "on", "off", "cycle"}, verb) {
		return "", fmt.Errorf("power %q: want status, on, off or cycle", verb)
	}
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
		return "", fmt.Errorf("power: %w", e.NoMachine(name))
	}
	m := e.machine(name)
	m.bmcMu.Lock()
	defer m.bmcMu.Unlock()
	m.asked = bmcNow{}
	if s := m.snapshot(); verb != "status" && Busy(s.Status.Phase) {
		return "", fmt.Errorf("power %q: an attempt has begun in the meantime (%s)", name, s.Status.Step)
	}
	ctx, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	var seen bmc.PowerState
	err := e.withDeclared(ctx, name, func(ctx context.Context, decl *inventory.Machine, c bmc.Client) error {
		if verb != "status" {
			if _, err := e.rightBoard(ctx, m, decl, c); err != nil {
				return err
			}
		}
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
		}
		if err != nil {
			return err
		}
		seen, err = c.Power(ctx)
		return err
	})
	if err != nil {
		if verb != "status" {
			e.tellFailed(ctx, m, "power "+verb, err)
		}
		if next := e.secretNext(name, err); next != "" {
			err = fmt.Errorf("%w; %s", err, next)
		}
		return "", fmt.Errorf("power of %q: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.state
	health := now.Status.Health
	now.Status = powered(now.Status, verb, string(seen), who)
	if now.Status.Health == health {
		m.put(now)
	} else {
		line := TimelineEntry{Time: e.Now(), Kind: "bmc", Text: fmt.Sprintf("seen %s: %s", seen, now.Status.Health)}
		if err := e.commit(ctx, m, now, []TimelineEntry{line}); err != nil {
			return "", fmt.Errorf("power of %q: it is %s, which could not be recorded: %w", name, seen, err)
		}
	}
	e.changes.send(name)
	return string(seen), nil
}

// tellFailed puts into the timeline, which holds an operator's word already, that nothing
// or not all came of it.
func (e *Engine) tellFailed(ctx context.Context, m *machine, what string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	line := TimelineEntry{Time: e.Now(), Kind: "bmc", Text: fmt.Sprintf("%s: %v", what, err)}
	if err := e.commit(context.WithoutCancel(ctx), m, m.state, []TimelineEntry{line}); err != nil {
		e.Log.Warn("that an operator's command failed is not on record", "machine", m.name, "what", what, "err", err)
	}
}

// powered is what a BMC's answer says of a machine that is taken as running.
func powered(st Status, verb, seen, who string) Status {
	st.Power = seen
	if seen == "on" {
		st.OffSince = time.Time{}
	}
	if verb != "status" {
		st.SwitchedOn = nil // a person has seen to it
	}
	on := "recast power on " + st.Machine
	if seen == "on" && strings.HasSuffix(st.NextAction, on) {
		st.NextAction = ""
	}
	if st.Phase != Active {
		return st
	}
	switch {
	case seen == "off" && verb == "off":
		st.Health, st.NextAction = Suspended, fmt.Sprintf("switched off by %s: %s", who, on)
	case seen == "off" && st.Health != Suspended:
		st.Health, st.NextAction = Missing, "its BMC shows it off: "+on
	case seen == "on" && (st.Health == Suspended || st.Health == Missing):
		st.Health = HealthUnknown // until it reports
	}
	return st
}

// Secrets of the operator.
func (e *Engine) Secrets() *Secrets { return e.secrets }

// SetSecret stores a new version and looks again at what every machine shall
// run, since a generation holds its secrets' versions.
func (e *Engine) SetSecret(ctx context.Context, name string, value []byte, who string) (SecretInfo, error) {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	before, _ := e.secrets.Version(name)
	info, err := e.secrets.Set(ctx, name, value, who, e.Now(), e.auditSecret(ctx, who, "secret set"))
	e.resolveAgain(name, before)
	if err == nil {
		e.askSoon(func(m *inventory.Machine) bool { return m.BMC.Credentials == name }) // they may have been refused
	}
	return info, err
}

// RemoveSecret deletes a secret that nothing applied needs.
func (e *Engine) RemoveSecret(ctx context.Context, name, who string) error {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	before, _ := e.secrets.Version(name)
	err := e.secrets.Remove(ctx, name, e.auditSecret(ctx, who, "secret remove"))
	e.resolveAgain(name, before)
	return err
}

func (e *Engine) auditSecret(ctx context.Context, who, what string) auditWrite {
	return func(name string, version int) (store.Op, error) {
		return e.audit(ctx, AuditEntry{Who: who, What: what, Detail: fmt.Sprintf("%s version %d", name, version), At: e.Now()})
	}
}

// resolveAgain looks what every machine shall run, if the secret is another one
// now. applyMu is held.
func (e *Engine) resolveAgain(secret string, before int) {
	if now, _ := e.secrets.Version(secret); now == before {
		return
	}
	e.mu.RLock()
	set, rev := e.set, e.setRev
	e.mu.RUnlock()
	e.install(set, rev)
}

// AcceptImage puts an image into the audit log before it is kept; for the image
// store's Accept.
func (e *Engine) AcceptImage(ctx context.Context, who string) func(image.Info) error {
	return func(i image.Info) error {
		return e.Record(ctx, AuditEntry{Who: who, What: "image add", Image: i.Digest, Detail: i.Source})
	}
}

// RemoveImage deletes an image that nothing needs.
func (e *Engine) RemoveImage(ctx context.Context, d inventory.Digest, who string) error {
	if err := e.mayRemove(ctx, d, who); err != nil {
		return err
	}
	// Without applyMu, which the image store's listener takes. An apply that comes
	// between is one that came after: its machines wait for the image.
	return e.Images.Remove(d)
}

func (e *Engine) mayRemove(ctx context.Context, d inventory.Digest, who string) error {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	info, err := e.Images.Info(d)
	if err != nil {
		return err
	}
	if user := e.ImageUser(d); user != "" {
		return fmt.Errorf("remove image %s: %s %w", d.Short(), user, ErrInUse)
	}
	return e.record(ctx, AuditEntry{Who: who, What: "image remove", Image: d, Detail: info.Source})
}

// ErrInUse: what shall be removed is needed by somebody.
var ErrInUse = errors.New("needs it")

// Authority is the CA.
func (e *Engine) Authority() *Authority { return e.authority }

// Discovered machines that nobody declared, by hardware address, each with the
// YAML that declares it, and what it may be instead.
func (e *Engine) Discovered() []Stray {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if len(e.strays) == 0 {
		return nil
	}
	var out []Stray
	kin := e.relatives(e.set)
	for mac, d := range e.strays {
		if e.machineOf(mac) == nil {
			d.show(kin)
			out = append(out, d)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].MAC < out[j].MAC })
	return out
}
