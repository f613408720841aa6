package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"recast/bmc"
	"recast/inventory"
)

// act does one action on a machine's BMC in the background and feeds its
// outcome back. Actions of one machine are done one after the other.
func (e *Engine) act(ctx context.Context, m *machine, a Action) {
	before := m.state // the caller holds the machine's lock
	e.spawn(func() {
		err := e.persist(ctx, m, a, before)
		if ctx.Err() != nil {
			return // shutting down: the action is repeated at the next start
		}
		done := BMCDone{Action: a}
		if a == ActClear && errors.Is(err, errOtherBoard) {
			return // what is to be cleared is not there; the finding on its board says where
		}
		if err != nil {
			done.Err = err.Error()
			done.Final = errors.Is(err, errOtherBoard) || errors.Is(err, bmc.ErrAuth) || errors.Is(err, bmc.ErrLockedOut) || errors.Is(err, bmc.ErrPin) || errors.Is(err, bmc.ErrChangePassword) || errors.Is(err, bmc.ErrUnsupported) || errors.Is(err, errNoCredentials)
			done.Next = e.secretNext(m.name, err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if !sameTry(before, m.state, a) {
			return // another step has begun: this outcome is not about it
		}
		if err := e.handleLocked(ctx, m, done); err != nil {
			e.Log.Warn("outcome of a BMC action not recorded", "machine", m.name, "action", a, "err", err)
		}
	})
}

// sameTry tells whether what an action was begun for is still under way. Without
// this, one that waited behind a slow BMC would switch a machine off that has
// been aborted, or that is already writing.
func sameTry(before, now State, a Action) bool {
	if a == ActRestore { // nobody has seen it on since, nor given it another order
		return now.Status.Phase == Active && now.Status.Health == Missing && now.Status.Hold == nil &&
			slices.Equal(before.Status.SwitchedOn, now.Status.SwitchedOn)
	}
	switch {
	case before.Intent == nil || now.Intent == nil:
		return false
	case !before.Intent.Created.Equal(now.Intent.Created) || before.Status.Attempt != now.Status.Attempt:
		return false
	}
	return a == ActClear || Busy(now.Status.Phase) &&
		before.Status.Step == now.Status.Step && before.Status.Since.Equal(now.Status.Since)
}

var errStale = errors.New("what it was for is over")

// persist repeats an action until its step's deadline while the BMC is busy,
// restarting or out of reach: what passes by itself must not cost an attempt.
func (e *Engine) persist(ctx context.Context, m *machine, a Action, before State) error {
	left := powerTime
	if d := before.Status.Deadline; a != ActClear && !d.IsZero() {
		left = d.Sub(e.Now())
		left -= min(left/5, 2*time.Second) // so that the BMC's own reason is told, not that time is over
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	var backoff bmc.Backoff
	for {
		err := e.once(ctx, m, a, before)
		passes := errors.Is(err, bmc.ErrBusy) || errors.Is(err, bmc.ErrUnreachable) || errors.Is(err, bmc.ErrTimeout)
		if err == nil || !passes || ctx.Err() != nil {
			return err
		}
		m.history.note(e.Now(), fmt.Sprintf("%s%s: %v", bmcPrefix, a, err))
		again := time.NewTimer(backoff.Next(err))
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return err
		}
		if !sameTry(before, m.snapshot(), a) {
			return err
		}
	}
}

// once does an action in one conversation.
func (e *Engine) once(ctx context.Context, m *machine, a Action, before State) error {
	m.bmcMu.Lock()
	defer m.bmcMu.Unlock()
	m.asked = bmcNow{}
	switch s := m.snapshot(); {
	case !sameTry(before, s, a):
		return errStale
	case s.Status.Hold != nil && a != ActClear:
		return fmt.Errorf("held by %s: %s", s.Status.Hold.Owner, s.Status.Hold.Reason)
	}
	return e.withDeclared(ctx, m.name, func(ctx context.Context, decl *inventory.Machine, c bmc.Client) error {
		return e.doAction(ctx, m, decl, c, a)
	})
}

// powerTime is the deadline of one conversation with a BMC: slow ones take tens
// of seconds for a power change to show.
const powerTime = 2 * time.Minute

func (e *Engine) doAction(ctx context.Context, m *machine, decl *inventory.Machine, c bmc.Client, a Action) error {
	ctx, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	s := m.snapshot()
	uefi := e.uefi(m.name, s)
	if a == ActRestore {
		if err := e.sameBoard(ctx, m, decl, c); err != nil {
			m.boardDue = time.Time{}
			return err
		}
		return c.On(ctx)
	}
	if err := e.mayTell(ctx, m, decl, c, a, s); err != nil {
		return err
	}
	switch a {
	case ActOff:
		return e.powerOff(ctx, c, s)
	case ActArm:
		return e.arm(ctx, decl, c, s, uefi)
	case ActOn:
		return c.On(ctx)
	case ActClear:
		return disarm(ctx, c, s, uefi)
	}
	return fmt.Errorf("unknown action %q", a)
}

// powerOff asks the operating system first, unless our own ramdisk runs, which
// has nothing to lose.
func (e *Engine) powerOff(ctx context.Context, c bmc.Client, s State) error {
	power, err := c.Power(ctx)
	if err != nil {
		return err
	}
	if power == bmc.PowerOff {
		return nil
	}
	ours := s.Intent != nil && s.Intent.Claim != nil && e.Now().Before(s.Intent.Claim.Until)
	if e.SoftOff > 0 && !ours {
		soft, cancel := context.WithTimeout(ctx, e.SoftOff)
		err := c.Off(soft, false)
		cancel()
		if err == nil {
			return nil
		}
		if errors.Is(err, bmc.ErrAuth) || errors.Is(err, bmc.ErrLockedOut) || errors.Is(err, bmc.ErrPin) || errors.Is(err, bmc.ErrChangePassword) {
			return err
		}
	}
	return c.Off(ctx, true)
}

// uefi tells the firmware mode to ask for: as declared, else as last seen, else
// UEFI, which is what new machines have.
func (e *Engine) uefi(name string, s State) bool {
	if decl := e.Set().Machine(name); decl != nil && decl.Firmware != "" {
		return decl.Firmware == inventory.UEFI
	}
	return s.Status.Facts == nil || s.Status.Facts.Boot.Mode != "bios"
}

// whileHeld is a context that ends when another server may act on the machines.
func (e *Engine) whileHeld(ctx context.Context) (context.Context, func(), error) {
	if err := e.Store.Held(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", bmc.ErrBusy, err) // passes by itself, or the server ends
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := e.Store.Held(); err != nil {
				cancel(err)
				return
			}
		}
	})
	return ctx, func() { cancel(nil); work.Wait() }, nil
}

// secretNext is what a person does where a BMC refuses its secret, there is none, its
// certificate is not the pinned one, or it is on another board.
func (e *Engine) secretNext(machine string, err error) string {
	decl := e.Set().Machine(machine)
	if decl == nil || decl.BMC == nil {
		return ""
	}
	var pin *bmc.PinError
	switch {
	case errors.Is(err, errOtherBoard):
		return boardNext(machine)
	case errors.As(err, &pin) && decl.BMC.Pin != "":
		return ""
	case errors.As(err, &pin) && pin.Want != "":
		return fmt.Sprintf("recast bmc enrol %s --pin %s", machine, pin.Seen)
	case errors.As(err, &pin):
		return "recast bmc enrol " + machine
	case errors.Is(err, bmc.ErrChangePassword):
		return "recast bmc rotate " + machine
	case !errors.Is(err, bmc.ErrAuth) && !errors.Is(err, errNoCredentials):
		return ""
	}
	if k, err := e.book.of(decl); err == nil && k.record().Login != nil {
		return fmt.Sprintf("recast secret set %s, then: recast bmc enrol %s", decl.BMC.Credentials, machine)
	}
	return "recast secret set " + decl.BMC.Credentials
}
