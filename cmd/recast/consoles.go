package main

import (
	"context"
	"errors"

	"recast/bmc"
	"recast/console"
	"recast/provision"
)

// openConsole opens a machine's serial line at its BMC.
func (s *server) openConsole(ctx context.Context, machine string, evict bool) (console.Line, error) {
	return s.engine.Console(ctx, machine, evict)
}

// hopeless tells whether a console comes by itself.
func hopeless(err error) bool {
	return errors.Is(err, bmc.ErrUnsupported) || errors.Is(err, bmc.ErrAuth) || errors.Is(err, bmc.ErrLockedOut) || errors.Is(err, bmc.ErrPin)
}

// keepConsoles has a console open for as long as recast is at work on its machine,
// so that what a failed one said can be read afterwards.
func (s *server) keepConsoles(ctx context.Context) error {
	if err := s.console.Start(ctx); err != nil {
		return err
	}
	defer s.console.Wait()
	changes := s.engine.Watch(ctx)
	kept := map[string]bool{}
	look := func(v provision.View) {
		busy := v.Machine != nil && v.Machine.BMC != nil && provision.Busy(v.Status.Phase)
		if kept[v.Name] == busy {
			return
		}
		kept[v.Name] = busy
		if !busy {
			delete(kept, v.Name)
		}
		s.console.Keep(v.Name, busy)
	}
	all := func() {
		for _, v := range s.engine.Views() {
			look(v)
		}
	}
	all()
	for name := range changes {
		if name == provision.AllMachines {
			all()
		} else if v, ok := s.engine.View(name); ok {
			look(v)
		}
	}
	return nil
}
