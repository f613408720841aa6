package dhcp

import (
	"maps"
	"reflect"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"recast/inventory"
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

// add sets the text unless one stands under its key, and reports whether it did.
func (f *findings) add(key, text string, now, until time.Time) bool {
	f.mu.Lock()
	was, ok := f.m[key]
	f.mu.Unlock()
	return (!ok || !was.until.IsZero() && !now.Before(was.until)) && f.set(key, text, until)
}

func (f *findings) clear(key string) {
	f.mu.Lock()
	delete(f.m, key)
	f.mu.Unlock()
}

// drop clears those that another declaration has made untrue.
func (f *findings) drop(untrue func(key string) bool) {
	f.mu.Lock()
	maps.DeleteFunc(f.m, func(key string, _ finding) bool { return untrue(key) })
	f.mu.Unlock()
}

// outdated reports whether a finding is about a declaration that is another one
// now. Where it still holds, it is found again. What a port told is kept as long as it
// can be, since it is not seen again before a machine boots.
func outdated(key string, was, now *config) bool {
	kind, rest, _ := strings.Cut(key, "/")
	name, mac, _ := strings.Cut(rest, "/")
	switch kind {
	case "attach":
		return now.named(name) == nil
	case "relay":
		return true
	case "address":
		return !reflect.DeepEqual(was.named(name), now.named(name)) || !reflect.DeepEqual(was.byMAC[inventory.MAC(mac)], now.byMAC[inventory.MAC(mac)])
	case "port", "cable":
		if !reflect.DeepEqual(was.plugs, now.plugs) || !maps.Equal(was.plugByMAC, now.plugByMAC) {
			return true
		}
		if kind == "port" {
			return now.named(name) == nil || !reflect.DeepEqual(was.byMAC[inventory.MAC(mac)], now.byMAC[inventory.MAC(mac)])
		}
		for _, d := range now.byMAC {
			if d.machine == name {
				return false
			}
		}
		return true
	}
	return false
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
	return slices.Compact(out) // a hundred machines that find the pool full are one thing to know
}
