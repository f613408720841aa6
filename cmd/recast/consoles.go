package main

import (
	"context"
	"errors"
	"time"

	"recast/bmc"
	"recast/console"
)

// openConsole opens a machine's serial line at its BMC.
func (s *server) openConsole(ctx context.Context, machine string, evict bool) (console.Line, error) {
	return s.engine.Console(ctx, machine, evict)
}

// hopeless tells whether a console comes by itself.
func hopeless(err error) bool {
	return errors.Is(err, bmc.ErrUnsupported) || errors.Is(err, bmc.ErrAuth) || errors.Is(err, bmc.ErrLockedOut) || errors.Is(err, bmc.ErrPin)
}

// consoleLook is the least time from one look at the machines to the next: in a storm
// each of 10,000 changes many times a second.
const consoleLook = time.Second

// keepConsoles has a console open for as long as recast is at work on its machine,
// so that what a failed one said can be read afterwards.
func (s *server) keepConsoles(ctx context.Context) error {
	if err := s.console.Start(ctx); err != nil {
		return err
	}
	defer s.console.Wait()
	changes := s.engine.Watch(ctx)
	pause := time.NewTicker(consoleLook)
	defer pause.Stop()
	kept := map[string]bool{}
	for more := true; more; {
		busy := s.engine.AtWork()
		for name := range kept {
			if !busy[name] {
				s.console.Keep(name, false)
			}
		}
		for name := range busy {
			if !kept[name] {
				s.console.Keep(name, true)
			}
		}
		kept = busy
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		_, more = <-changes
		for more && len(changes) > 0 { // one look is for all of them
			_, more = <-changes
		}
	}
	return nil
}
