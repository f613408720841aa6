package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/store"
)

// bmcSessions are the records of sessions that are open on BMCs.
type bmcSessions struct{ store.Table[[]bmc.Session] }

var _ bmc.Memory = bmcSessions{}

func (e *Engine) bmcTable() store.Table[[]bmc.Session] {
	return store.NewTable[[]bmc.Session](e.Store, "/recast/bmcs/")
}

func (t bmcSessions) Sessions(ctx context.Context) (map[string][]bmc.Session, error) {
	rows, _, err := t.List(ctx)
	if err != nil {
		return nil, err
	}
	open := make(map[string][]bmc.Session, len(rows))
	for _, row := range rows {
		open[row.Name] = row.Value
	}
	return open, nil
}

func (t bmcSessions) SetSessions(ctx context.Context, name string, open []bmc.Session) error {
	if len(open) == 0 {
		return t.Delete(ctx, name, store.Any)
	}
	_, err := t.Put(ctx, name, open, store.Any)
	return err
}

var errNoCredentials = errors.New("no credentials")

// withBMC holds one conversation with a machine's BMC.
func (e *Engine) withBMC(ctx context.Context, name string, do func(context.Context, bmc.Client) error) error {
	return e.withDeclared(ctx, name, func(ctx context.Context, _ *inventory.Machine, c bmc.Client) error { return do(ctx, c) })
}

// withDeclared is withBMC for whoever has to know which bmc.url it is: it may be
// declared anew at any time.
func (e *Engine) withDeclared(ctx context.Context, name string, do func(context.Context, *inventory.Machine, bmc.Client) error) error {
	decl := e.Set().Machine(name)
	if decl == nil || decl.BMC == nil {
		return fmt.Errorf("machine %q declares no bmc", name)
	}
	ctx, stop, err := e.whileHeld(ctx)
	if err != nil {
		return err
	}
	defer stop()
	k, t, err := e.presentBMC(ctx, decl)
	if err != nil {
		e.noticeRefusal(ctx, name, err)
		return err
	}
	var facts bmc.Facts
	err = e.bmcs.Do(ctx, t, func(ctx context.Context, c bmc.Client) error {
		err := do(ctx, decl, c)
		if l, ok := c.(bmc.Learner); ok {
			facts = l.Facts()
		}
		return err
	})
	e.learn(ctx, k, facts)
	e.keepRefusal(ctx, k, t, err)
	e.noticeRefusal(ctx, name, err)
	return err
}

// Console opens a machine's serial console; evict puts out whoever has it.
func (e *Engine) Console(ctx context.Context, name string, evict bool) (bmc.Console, error) {
	decl := e.Set().Machine(name)
	if decl == nil || decl.BMC == nil {
		return nil, fmt.Errorf("%w: machine %q declares no bmc", bmc.ErrUnsupported, name)
	}
	dial, stop, err := e.whileHeld(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	k, target, err := e.presentBMC(dial, decl)
	if err != nil {
		return nil, err
	}
	c, err := e.bmcs.Console(dial, target, bmc.ConsoleOptions{Evict: evict})
	e.keepRefusal(ctx, k, target, err)
	e.noticeRefusal(ctx, name, err)
	return c, err
}

// presentBMC is a machine's BMC with the password that it has, unless that was refused. While it is not known
// which one that is, nothing else is tried with any.
func (e *Engine) presentBMC(ctx context.Context, decl *inventory.Machine) (*bmcKnown, bmc.Target, error) {
	k, err := e.book.of(decl)
	if err != nil {
		return nil, bmc.Target{}, err
	}
	leave, err := k.enter(ctx)
	if err != nil {
		return nil, bmc.Target{}, err
	}
	defer leave()
	if k.record().Pending != nil {
		if err := e.settle(ctx, decl, k); err != nil && k.record().Pending != nil {
			return nil, bmc.Target{}, err
		}
	}
	t, err := e.bmcTarget(ctx, decl, k, k.record().Login)
	if err == nil {
		err = k.record().Refused.refuses(t, e.Now())
	}
	return k, t, err
}

// refusalPrefix begins the finding of noticeRefusal.
const refusalPrefix = "its BMC: "

// noticeRefusal keeps a finding on a machine for as long as its BMC refuses us.
func (e *Engine) noticeRefusal(ctx context.Context, name string, err error) {
	ev := Noticed{About: refusalPrefix}
	var refused *bmc.RefusedError
	var pin *bmc.PinError
	switch {
	case err == nil:
	case errors.As(err, &refused):
		ev.Finding = refusalPrefix + refused.Error()
		if next := e.secretNext(name, err); next != "" {
			ev.Finding += "; " + next
		}
	case errors.As(err, &pin):
		ev.Finding = refusalPrefix + pin.Error()
		if next := e.secretNext(name, err); next != "" {
			ev.Finding += "; or " + next
		}
	default:
		return // it says nothing of them
	}
	m := e.machine(name)
	if ev.Finding == "" && !slices.ContainsFunc(m.snapshot().Status.Findings, func(f string) bool { return strings.HasPrefix(f, refusalPrefix) }) {
		return
	}
	if err := e.handle(ctx, m, ev); err != nil {
		e.Log.Warn("finding on a BMC not recorded", "machine", name, "err", err)
	}
}

// farewellTime is how long the BMCs may take to end our sessions.
const farewellTime = 10 * time.Second

// sweepBMCs logs in where an earlier run of the server was killed with sessions
// open, which removes them: a BMC has few, and some keep them for half an hour.
func (e *Engine) sweepBMCs(ctx context.Context) {
	for _, decl := range e.Set().Machines {
		if decl.BMC == nil || !e.bmcs.Owes(decl.BMC.URL) {
			continue
		}
		e.spawn(func() {
			ctx, cancel := context.WithTimeout(ctx, powerTime)
			defer cancel()
			if err := e.withBMC(ctx, decl.Name, func(context.Context, bmc.Client) error { return nil }); err != nil {
				e.Log.Info("sessions of an earlier run are left to the BMC to expire", "machine", decl.Name, "err", err)
			}
		})
	}
}

// ResetBMC restarts the BMC of a machine, and waits until it answers again. The
// machine does not notice; an armed boot override may be lost.
func (e *Engine) ResetBMC(ctx context.Context, name, who string) error {
	_, k, err := e.declaredBMC(name)
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	release, err := e.quietBMC(name, k)
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	defer release()
	if err := e.operate(ctx, name, who, "bmc reset", "", func(s State) (State, error) { return s, nil }); err != nil {
		return err
	}
	if err := e.withBMC(ctx, name, func(ctx context.Context, c bmc.Client) error {
		r, ok := c.(bmc.Resetter)
		if !ok {
			return bmc.ErrUnsupported
		}
		return r.ResetBMC(ctx)
	}); err != nil {
		e.tellFailed(ctx, e.machine(name), "bmc reset", err)
		return fmt.Errorf("reset the BMC of %q: %w", name, err)
	}
	return nil
}

// inventoryTime is how long a BMC may take to tell what it knows: seconds for each
// resource, and hundreds of them.
const inventoryTime = 5 * time.Minute

// askingBMC reads something that a BMC may be able to tell.
func askingBMC[C, T any](ctx context.Context, e *Engine, name, what string, ask func(context.Context, C) (T, error)) (answer T, err error) {
	if _, _, err := e.declaredBMC(name); err != nil {
		return answer, fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := context.WithTimeout(ctx, inventoryTime)
	defer cancel()
	err = e.withBMC(ctx, name, func(ctx context.Context, c bmc.Client) (err error) {
		able, ok := c.(C)
		if !ok {
			return bmc.ErrUnsupported
		}
		answer, err = ask(ctx, able)
		return err
	})
	if err != nil {
		if next := e.secretNext(name, err); next != "" {
			err = fmt.Errorf("%w; %s", err, next)
		}
		return answer, fmt.Errorf("%s of %q: %w", what, name, err)
	}
	return answer, nil
}

// What a BMC tells, for those who do not know package bmc.
type (
	BMCSensorList = bmc.Sensors
	BMCEventList  = bmc.Events
	BMCHardware   = bmc.Inventory
)

// IsBMCTrouble tells what went wrong with a BMC from what was wrong before it was asked,
// and from what it never will do.
func IsBMCTrouble(err error) bool { return bmc.IsReason(err) && !errors.Is(err, bmc.ErrUnsupported) }

// BMCSensors are the readings of a machine's sensors.
func (e *Engine) BMCSensors(ctx context.Context, name string) (bmc.Sensors, error) {
	return askingBMC(ctx, e, name, "sensors", func(ctx context.Context, c bmc.SensorReader) (bmc.Sensors, error) { return c.Sensors(ctx) })
}

// BMCEvents are the entries of the event log behind a cursor; "" all.
func (e *Engine) BMCEvents(ctx context.Context, name, cursor string) (bmc.Events, error) {
	return askingBMC(ctx, e, name, "events", func(ctx context.Context, c bmc.EventLog) (bmc.Events, error) { return c.Events(ctx, cursor) })
}

// BMCInventory is the hardware as the BMC tells it.
func (e *Engine) BMCInventory(ctx context.Context, name string) (bmc.Inventory, error) {
	return askingBMC(ctx, e, name, "inventory", func(ctx context.Context, c bmc.Describer) (bmc.Inventory, error) { return c.Inventory(ctx) })
}

// BMCScreenshot is a PNG file of what the machine's screen shows now.
func (e *Engine) BMCScreenshot(ctx context.Context, name string) ([]byte, error) {
	return askingBMC(ctx, e, name, "screenshot", func(ctx context.Context, c bmc.Screen) ([]byte, error) { return c.Screenshot(ctx) })
}
