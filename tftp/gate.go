package tftp

import (
	"net/netip"
	"sync"
	"time"
)

// Limits bound what strangers can make the server do; a zero field means the
// default. Firmware asks for up to thirty names in a row, most of which nobody
// has: GRUB and U-Boot look for their configuration by shorter and shorter
// names, a Raspberry Pi for everything that its loader knows.
type Limits struct {
	Rate      float64 // requests a second per source, sustained; 8
	Burst     int     // requests at once per source; 64
	PerSource int     // transfers at once per source; 8
	Transfers int     // transfers at once in all; 8192
	Sources   int     // sources remembered; 65536
}

func (l Limits) filled() Limits {
	if l.Rate == 0 {
		l.Rate = 8
	}
	if l.Burst == 0 {
		l.Burst = 64
	}
	if l.PerSource == 0 {
		l.PerSource = 8
	}
	if l.Transfers == 0 {
		l.Transfers = 8192
	}
	if l.Sources == 0 {
		l.Sources = 65536
	}
	return l
}

const (
	busyRate    refusal = "too many requests from this source"
	busySource  refusal = "too many transfers to this source"
	busyServer  refusal = "too many transfers"
	busySources refusal = "too many sources"
)

// gate admits requests. Every admitted one must be ended.
type gate struct {
	limits Limits

	mu      sync.Mutex
	sources map[netip.Addr]*source
	active  int
}

// source is a token bucket and the transfers under way.
type source struct {
	tokens float64
	at     time.Time
	active int
}

func newGate(l Limits) *gate {
	return &gate{limits: l.filled(), sources: map[netip.Addr]*source{}}
}

func (g *gate) admit(now time.Time, from netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[from]
	if s == nil {
		if len(g.sources) >= g.limits.Sources {
			g.forget(now)
		}
		if len(g.sources) >= g.limits.Sources {
			return busySources
		}
		s = &source{tokens: float64(g.limits.Burst), at: now}
		g.sources[from] = s
	}
	g.refill(s, now)
	if s.tokens < 1 {
		return busyRate
	}
	s.tokens--
	if s.active >= g.limits.PerSource {
		return busySource
	}
	if g.active >= g.limits.Transfers {
		return busyServer
	}
	s.active++
	g.active++
	return nil
}

func (g *gate) end(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sources[from].active-- // stays in the map while active, see forget
	g.active--
}

func (g *gate) refill(s *source, now time.Time) {
	if d := now.Sub(s.at); d > 0 {
		s.tokens = min(float64(g.limits.Burst), s.tokens+d.Seconds()*g.limits.Rate)
		s.at = now
	}
}

// forget drops the sources that a new one would not differ from.
func (g *gate) forget(now time.Time) {
	for a, s := range g.sources {
		g.refill(s, now)
		if s.active == 0 && s.tokens >= float64(g.limits.Burst) {
			delete(g.sources, a)
		}
	}
}
