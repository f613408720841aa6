package main

import (
	"context"
	"sync"

	"recast/dhcp"
	"recast/inventory"
)

// followNetworks tells DHCP of every new Set, and runs TFTP and syslog while there is
// a Network to serve.
func (s *server) followNetworks(ctx context.Context, work *sync.WaitGroup) (stop func()) {
	var mu sync.Mutex
	var cancel context.CancelFunc
	stop = func() {
		mu.Lock()
		defer mu.Unlock()
		if cancel != nil {
			cancel()
			cancel = nil
		}
	}
	s.engine.OnSet(func(set *inventory.Set) {
		s.serveSet(set)
		serves := false
		for _, n := range set.Networks {
			serves = serves || n.DHCP != inventory.DHCPOff
		}
		if !serves {
			stop()
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if cancel != nil || ctx.Err() != nil {
			return
		}
		var tctx context.Context
		tctx, cancel = context.WithCancel(ctx)
		work.Go(func() {
			if err := s.tftp.Run(tctx); err != nil {
				s.log.Error("TFTP is not served", "err", err)
			}
		})
		if s.syslog != nil {
			work.Go(func() {
				if err := s.syslog.Run(tctx); err != nil {
					s.log.Warn("no syslog of machines is received; syslog: \"\" in the configuration turns it off", "err", err)
				}
			})
		}
	})
	return stop
}

// serveSet says what is answered from now on, and answers it.
func (s *server) serveSet(set *inventory.Set) {
	ifaces, err := dhcp.Interfaces()
	if err != nil {
		s.log.Warn("interfaces cannot be listed", "err", err)
	}
	for _, line := range dhcp.Describe(set, ifaces) {
		s.log.Info(line)
	}
	if err := s.dhcp.Update(set); err != nil {
		s.log.Warn("not every network is served", "err", err)
	}
}
