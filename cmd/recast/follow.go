package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"recast/dhcp"
	"recast/inventory"
	"recast/provision"
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
		work.Go(func() { s.keepTFTP(tctx) })
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

const tftpPort = 69

// tftpAgain is when the port is tried again; as often as DHCP looks for its own.
const tftpAgain = 5 * time.Second

// keepTFTP serves loaders until the context ends. While somebody else has the port that
// is a finding, and ends with it: no restart of ours is needed then.
func (s *server) keepTFTP(ctx context.Context) {
	s.oneTFTP.Lock() // the one before may still end its transfers
	defer s.oneTFTP.Unlock()
	for ctx.Err() == nil {
		conn, err := net.ListenPacket("udp", fmt.Sprintf(":%d", tftpPort))
		if err == nil {
			if s.noTFTP.Swap(nil) != nil {
				s.log.Info("TFTP is served again")
			}
			s.tftp.Conn = conn.(*net.UDPConn)
			err = s.tftp.Run(ctx)
		}
		if err == nil {
			return
		}
		finding := provision.NoTFTP + err.Error()
		if errors.Is(err, syscall.EADDRINUSE) {
			if owner := dhcp.PortOwner(tftpPort, os.Getpid()); owner != "" {
				finding += ": it is held by " + owner
			}
			finding += ": stop that TFTP server; recast takes the port by itself then"
		}
		if old := s.noTFTP.Swap(&finding); old == nil || *old != finding {
			s.log.Error(finding)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tftpAgain):
		}
	}
	s.noTFTP.Store(nil)
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
