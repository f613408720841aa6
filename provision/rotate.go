package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/store"
)

// rotateTime is how long the new password may take to be set and tried. It does not
// end with the request: half a rotation is for the next conversation.
const rotateTime = 2 * time.Minute

// saidMost is how often a BMC is told a password that it then does not take: each
// time is a refused login, and conversations are minutes apart.
const saidMost = 3

// RotateBMC gives the BMC of a machine a new password that nobody has seen, for the
// user that recast logs in as, or for another one, which is made where it is not
// there. The password is on record, sealed, before the BMC hears it, and in use once
// it was seen to work; a crash between is finished by the next conversation.
func (e *Engine) RotateBMC(ctx context.Context, name, who, user string) (BMCView, error) {
	decl, k, err := e.declaredBMC(name)
	if err != nil {
		return BMCView{}, fmt.Errorf("rotate: %w", err)
	}
	if user != "" {
		if err := bmc.CheckUser(user); err != nil {
			return BMCView{}, fmt.Errorf("rotate: %w", err)
		}
	}
	release, err := e.quietBMC(name, k)
	if err != nil {
		return BMCView{}, fmt.Errorf("rotate: %w", err)
	}
	defer release()
	if err := ctx.Err(); err != nil {
		return BMCView{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotateTime)
	defer cancel()
	ctx, stop, err := e.whileHeld(ctx)
	if err != nil {
		return BMCView{}, err
	}
	defer stop()
	leave, err := k.enter(ctx)
	if err != nil {
		return BMCView{}, fmt.Errorf("rotate %q: %w", name, err)
	}
	defer leave()
	if k.record().Pending == nil { // else that one is finished
		err = e.beginRotation(ctx, decl, k, who, user)
	}
	if err == nil {
		err = e.settle(ctx, decl, k)
	}
	e.noticeRefusal(ctx, name, err)
	if err != nil {
		if next := e.secretNext(name, err); next != "" {
			err = fmt.Errorf("%w; %s", err, next)
		} else if k.record().Pending != nil {
			err = fmt.Errorf("%w; it goes on with the next conversation", err)
		}
		return BMCView{}, fmt.Errorf("rotate %q: %w", name, err)
	}
	return *k.view(decl), nil
}

// declaredBMC of a machine, and what is known of it.
func (e *Engine) declaredBMC(name string) (*inventory.Machine, *bmcKnown, error) {
	decl := e.Set().Machine(name)
	switch {
	case decl == nil:
		return nil, nil, e.NoMachine(name)
	case decl.BMC == nil:
		return nil, nil, fmt.Errorf("machine %q declares no bmc", name)
	}
	k, err := e.book.of(decl)
	return decl, k, err
}

// quietBMC waits until nobody talks to the BMC about the power of any machine behind
// it, and keeps it so. It refuses while an attempt is under way on one of them.
func (e *Engine) quietBMC(name string, k *bmcKnown) (release func(), err error) {
	var behind []string
	for _, m := range e.Set().Machines {
		if m.BMC == nil {
			continue
		}
		if key, err := bmcKey(m.BMC.URL); err == nil && key == k.key {
			behind = append(behind, m.Name)
		}
	}
	sort.Strings(behind)
	var held []*machine
	release = func() {
		for _, m := range held {
			m.bmcMu.Unlock()
		}
	}
	for _, other := range behind {
		m := e.machine(other)
		m.bmcMu.Lock()
		held = append(held, m)
		if s := m.snapshot(); Busy(s.Status.Phase) {
			release()
			return nil, fmt.Errorf("an attempt is under way on %s (%s); recast abort %s stops it", other, s.Status.Step, other)
		}
	}
	return release, nil
}

// beginRotation sees that the present password works, and records the next one. The
// caller has the turn.
func (e *Engine) beginRotation(ctx context.Context, decl *inventory.Machine, k *bmcKnown, who, user string) error {
	r := k.record()
	t, err := e.bmcTarget(ctx, decl, k, r.Login)
	if err != nil {
		return err
	}
	err = e.bmcs.Do(ctx, t, func(ctx context.Context, c bmc.Client) error {
		if _, ok := c.(bmc.Accounts); !ok {
			return bmc.ErrUnsupported
		}
		_, err := c.Power(ctx) // a session that is kept says nothing of a password
		return err
	})
	if err != nil && !errors.Is(err, bmc.ErrChangePassword) {
		return err
	}
	box, err := e.secrets.seal([]byte(bmc.NewPassword().Reveal()))
	if err != nil {
		return fmt.Errorf("seal the new password: %w", err)
	}
	r.Pending = &bmcLogin{User: cmp.Or(user, t.User), Box: box, At: e.Now(), By: who}
	op, keep, err := e.book.write(k, r)
	if err != nil {
		return err
	}
	k.told = 0
	return e.said(ctx, decl.Name, who, "bmc rotate", "user "+r.Pending.User, func(m *machine, said []TimelineEntry, audit store.Op) error {
		if err := e.commit(ctx, m, m.state, said, audit, op); err != nil {
			return err
		}
		keep()
		return nil
	})
}

// settle finishes a rotation: whichever of the two passwords works is kept, and the
// new one is told to the BMC again where it does not know it. The present one is
// asked first, because no login is refused then but where the new one works; each is
// refused once at the most, since a Fleet does not try what was refused. The caller
// has the turn.
func (e *Engine) settle(ctx context.Context, decl *inventory.Machine, k *bmcKnown) error {
	r := k.record()
	old, err := e.bmcTarget(ctx, decl, k, r.Login)
	if err != nil {
		return err
	}
	next, err := e.bmcTarget(ctx, decl, k, r.Pending)
	if err != nil {
		return err
	}
	said := false
	told := e.bmcs.Do(ctx, old, func(ctx context.Context, c bmc.Client) error {
		a, ok := c.(bmc.Accounts)
		if !ok {
			return bmc.ErrUnsupported
		}
		said = true
		return a.SetAccount(ctx, next.User, next.Password)
	})
	var refused *bmc.RefusedError
	changed := errors.As(told, &refused) // it does not take the present one any more
	if told != nil && !changed && !said {
		return told
	}
	if !changed {
		k.told++
		if next, err = e.bmcTarget(ctx, decl, k, r.Pending); err != nil {
			return err
		}
	}
	said = told == nil || bmc.OutcomeOf(told) == bmc.Unknown || errors.Is(told, bmc.ErrBusy)
	var works error
	if changed || said {
		works = e.bmcs.Do(ctx, next, func(context.Context, bmc.Client) error { return nil })
	}
	if !changed && (!said || errors.Is(works, bmc.ErrAuth) && k.told >= saidMost) {
		// It says no, and some change it all the same; or it says yes and does nothing.
		// A new login with the present one tells.
		again := old
		again.Credential += fmt.Sprintf(", after %d", k.told)
		if e.bmcs.Do(ctx, again, func(context.Context, bmc.Client) error { return nil }) == nil {
			r.Pending = nil
			return errors.Join(cmp.Or(told, works), e.putBMC(ctx, k, r))
		}
		works = e.bmcs.Do(ctx, next, func(context.Context, bmc.Client) error { return nil })
	}
	switch {
	case works == nil:
	case changed && errors.Is(works, bmc.ErrAuth):
		return fmt.Errorf("it takes neither its password nor the one it was to get at %s: %w", r.Pending.At.UTC().Format(time.RFC3339), works)
	case told != nil && !changed:
		return told
	default:
		return works
	}
	r.Login, r.Pending = r.Pending, nil
	op, keep, err := e.book.write(k, r)
	if err != nil {
		return err
	}
	m := e.machine(decl.Name)
	m.mu.Lock()
	defer m.mu.Unlock()
	line := TimelineEntry{Time: e.Now(), Kind: "bmc", Text: fmt.Sprintf("its BMC has a new password for %q, seen to work", r.Login.User)}
	if err := e.commit(ctx, m, m.state, []TimelineEntry{line}, op); err != nil {
		return err
	}
	keep()
	return nil
}

// finishRotations takes up those that a crash cut off.
func (e *Engine) finishRotations(ctx context.Context) {
	begun := map[*bmcKnown]bool{}
	for _, decl := range e.Set().Machines {
		if decl.BMC == nil {
			continue
		}
		k, err := e.book.of(decl)
		if err != nil || begun[k] || k.record().Pending == nil {
			continue
		}
		begun[k] = true
		e.spawn(func() {
			ctx, cancel := context.WithTimeout(ctx, rotateTime)
			defer cancel()
			if err := e.withBMC(ctx, decl.Name, func(context.Context, bmc.Client) error { return nil }); err != nil {
				e.Log.Warn("a rotation of a BMC's password is not finished; the next conversation with it does that", "machine", decl.Name, "err", err)
			}
		})
	}
}
