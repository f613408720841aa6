package dhcp

import (
	"maps"
	"sort"
	"sync"
	"time"
)

// Stats are counters since the start.
type Stats struct {
	Received  uint64            // datagrams
	Panics    uint64            // packets whose handling panicked; each is a bug
	Replies   map[string]uint64 // by message type: OFFER, ACK, NAK
	Silent    map[string]uint64 // understood and not answered, by reason
	Malformed map[string]uint64 // not understood, by reason
	Relayed   map[string]uint64 // requests that came through relays, by Network
	Leases    int               // records in the index, quarantined and expired ones included
}

type counters struct {
	mu sync.Mutex
	s  Stats
}

func (c *counters) count(m *map[string]uint64, key string) {
	c.mu.Lock()
	if *m == nil {
		*m = map[string]uint64{}
	}
	(*m)[key]++
	c.mu.Unlock()
}

func (c *counters) received() {
	c.mu.Lock()
	c.s.Received++
	c.mu.Unlock()
}

func (c *counters) snapshot() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	s.Replies, s.Silent, s.Malformed, s.Relayed = maps.Clone(s.Replies), maps.Clone(s.Silent), maps.Clone(s.Malformed), maps.Clone(s.Relayed)
	return s
}

// findings are what a person should know, each under a key until it is cleared
// or has gone stale.
type findings struct {
	mu sync.Mutex
	m  map[string]finding
}

type finding struct {
	text  string
	until time.Time // zero: until cleared
}

// set reports whether the text is new under its key.
func (f *findings) set(key, text string, until time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[string]finding{}
	}
	was := f.m[key]
	f.m[key] = finding{text, until}
	return was.text != text
}

func (f *findings) clear(key string) {
	f.mu.Lock()
	delete(f.m, key)
	f.mu.Unlock()
}

func (f *findings) list(now time.Time) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for k, v := range f.m {
		if !v.until.IsZero() && !now.Before(v.until) {
			delete(f.m, k)
			continue
		}
		out = append(out, v.text)
	}
	sort.Strings(out)
	return out
}
