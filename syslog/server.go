// Package syslog receives what machines log while they boot: iPXE, the ramdisk's
// agent, whoever else is pointed here. It answers nothing.
package syslog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"recast/inventory"
)

// Limits bound what strangers can make the server do; a zero field means the
// default.
type Limits struct {
	Rate    float64 // lines a second per source, sustained; 10
	Burst   int     // lines at once per source; 100: a script's whole output
	Sources int     // sources remembered; 16384
}

// Server receives by UDP. Set the fields, then call Run.
type Server struct {
	// Addr to listen on; empty means ":514".
	Addr string
	// Conn is a socket that was opened elsewhere. Run closes it.
	Conn   *net.UDPConn
	Limits Limits
	// Observe is told of every line that is kept; nil discards.
	Observe func(inventory.Observation)
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil is time.Now

	mu      sync.Mutex
	sources map[netip.Addr]*source
	dropped map[string]uint64
}

// source is a token bucket, and how many lines it has cost.
type source struct {
	tokens float64
	at     time.Time
	lost   int
}

// Dropped counts the datagrams that are on no timeline, by reason.
func (s *Server) Dropped() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.dropped)
}

// Run receives until ctx ends. It returns an error only when it cannot begin or
// its socket breaks.
func (s *Server) Run(ctx context.Context) error {
	conn := s.Conn
	if conn == nil {
		pc, err := net.ListenPacket("udp", cmp.Or(s.Addr, ":514"))
		if err != nil {
			return fmt.Errorf("open syslog socket: %w", err)
		}
		conn = pc.(*net.UDPConn)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			conn.Close()
		}
	}()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("read syslog socket: %w", err)
		case err != nil:
			s.drop("read error")
			continue
		}
		s.take(buf[:n], from.Addr().Unmap())
	}
}

// take one datagram.
func (s *Server) take(b []byte, from netip.Addr) {
	now := s.now()
	lost, ok := s.admit(from, now)
	if !ok {
		return
	}
	line, err := Parse(b)
	if err != nil {
		s.drop(err.Error())
		return
	}
	if s.Log != nil {
		s.Log.Debug("syslog", "remote", from, "app", line.App, "severity", line.Severity, "text", line.Text)
	}
	if s.Observe == nil {
		return
	}
	o := inventory.Observation{Time: now, Kind: inventory.SawSyslog, Remote: from, Client: line.App, Detail: line.Text}
	if lost > 0 {
		o.Error = fmt.Sprintf("%d lines before it were left out: they came too fast", lost)
	}
	s.Observe(o)
}

// admit takes a token of the source's; lost is how many lines it had none for
// since the last one.
func (s *Server) admit(from netip.Addr, now time.Time) (lost int, ok bool) {
	l := s.Limits
	rate, burst, sources := cmp.Or(l.Rate, 10), float64(cmp.Or(l.Burst, 100)), cmp.Or(l.Sources, 16384)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sources == nil {
		s.sources = map[netip.Addr]*source{}
	}
	src := s.sources[from]
	if src == nil {
		if len(s.sources) >= sources {
			s.forget(now, rate, burst)
		}
		if len(s.sources) >= sources {
			s.count("too many sources")
			return 0, false
		}
		src = &source{tokens: burst, at: now}
		s.sources[from] = src
	}
	src.tokens = min(burst, src.tokens+now.Sub(src.at).Seconds()*rate)
	src.at = now
	if src.tokens < 1 {
		src.lost++
		s.count("too many lines from this source")
		return 0, false
	}
	src.tokens--
	lost, src.lost = src.lost, 0
	return lost, true
}

// forget drops the sources that have been quiet long enough to be as new.
func (s *Server) forget(now time.Time, rate, burst float64) {
	for a, src := range s.sources {
		if src.tokens+now.Sub(src.at).Seconds()*rate >= burst {
			delete(s.sources, a)
		}
	}
}

func (s *Server) drop(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(why)
}

// count a datagram that is dropped. The lock is held.
func (s *Server) count(why string) {
	if s.dropped == nil {
		s.dropped = map[string]uint64{}
	}
	s.dropped[why]++
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}
