package bmc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Session is one of ours on a Redfish BMC.
type Session struct {
	URI string `json:"uri"`
	// Created is the BMC's own time of it, where it tells one: some give the same
	// URI to the next session after a restart.
	Created string `json:"created,omitempty"`
}

// Memory keeps which sessions are open, by BMC (host:port), so that those of a
// process that was killed do not fill the few places that a BMC has. IPMI
// sessions need none: a BMC ends them after a minute (IPMI 2.0, 6.12.15).
type Memory interface {
	Sessions(ctx context.Context) (map[string][]Session, error)
	// SetSessions replaces those of one BMC; none forgets it.
	SetSessions(ctx context.Context, bmc string, open []Session) error
}

// ourSession is live where this process uses it, else an earlier one left it.
type ourSession struct {
	Session
	live bool
}

// Recall reads what an earlier process left open, before the first conversation.
func (f *Fleet) Recall(ctx context.Context) error {
	f.init()
	if f.Memory == nil {
		return nil
	}
	left, err := f.Memory.Sessions(ctx)
	if err != nil {
		return fmt.Errorf("read the BMC sessions that are open: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, sessions := range left {
		b := f.boardLocked(name)
		b.mu.Lock()
		for _, s := range sessions {
			b.sessions[s.URI] = ourSession{Session: s}
		}
		b.mu.Unlock()
	}
	return nil
}

// Owes reports whether an earlier process left sessions open on the BMC of a URL;
// the next login there removes them.
func (f *Fleet) Owes(url string) bool {
	a, err := parseURL(url)
	if err != nil {
		return false
	}
	f.init()
	f.mu.Lock()
	b := f.boards[a.hostPort()]
	f.mu.Unlock()
	return b != nil && len(b.stale()) > 0
}

// Retain forgets the BMCs that none of the URLs names: kept sessions are closed, and
// of those that an earlier process left the record goes, since nobody tells any more
// by what to log in there.
func (f *Fleet) Retain(ctx context.Context, urls []string) {
	f.init()
	named := make(map[string]bool, len(urls))
	for _, u := range urls {
		if a, err := parseURL(u); err == nil {
			named[a.hostPort()] = true
		}
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	f.talks.Add(1)
	defer f.talks.Done()
	var left []*board
	for name, b := range f.boards {
		if !named[name] {
			left = append(left, b)
		}
	}
	f.mu.Unlock()
	for _, b := range left {
		b.forget(ctx)
	}
}

// forget closes what is kept of a BMC and its records; what is in use ends by itself.
func (b *board) forget(ctx context.Context) {
	b.mu.Lock()
	var unused []*kept
	for _, l := range b.lines {
		if l.kept != nil && l.kept.users == 0 {
			unused = append(unused, l.kept)
			l.kept = nil
		}
	}
	b.mu.Unlock()
	for _, k := range unused {
		b.drop(k)
	}
	b.mu.Lock()
	before := len(b.sessions)
	maps.DeleteFunc(b.sessions, func(_ string, s ourSession) bool { return !s.live })
	changed := len(b.sessions) < before
	b.mu.Unlock()
	if changed {
		b.remember(ctx)
	}
}

// stale are the sessions of ours that nobody uses.
func (b *board) stale() (left []Session) {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if !s.live {
			left = append(left, s.Session)
		}
	}
	slices.SortFunc(left, func(x, y Session) int { return strings.Compare(x.URI, y.URI) })
	return left
}

// opened notes a session that is in use from now on.
func (b *board) opened(ctx context.Context, s Session) {
	if b == nil || s.URI == "" {
		return
	}
	b.mu.Lock()
	b.sessions[s.URI] = ourSession{Session: s, live: true}
	b.mu.Unlock()
	b.remember(ctx)
}

// ended notes a session that is in use no more; gone: nor on the BMC.
func (b *board) ended(ctx context.Context, uri string, gone bool) {
	if b == nil || uri == "" {
		return
	}
	b.mu.Lock()
	s, known := b.sessions[uri]
	delete(b.sessions, uri)
	if known && !gone {
		b.sessions[uri] = ourSession{Session: s.Session}
	}
	b.mu.Unlock()
	if known && gone {
		b.remember(ctx)
	}
}

// remember writes down what is open. The lock is not held over it: a call that
// opens a session is the only one in flight on its BMC.
func (b *board) remember(ctx context.Context) {
	if b.fleet.Memory == nil {
		return
	}
	b.mu.Lock()
	open := make([]Session, 0, len(b.sessions))
	for _, s := range b.sessions {
		open = append(open, s.Session)
	}
	b.mu.Unlock()
	slices.SortFunc(open, func(x, y Session) int { return strings.Compare(x.URI, y.URI) })
	if err := b.fleet.Memory.SetSessions(ctx, b.name, open); err != nil {
		b.fleet.Log.Warn("an open BMC session is not on record; should the server be killed, the BMC has to expire it", "bmc", b.name, "err", err)
	}
}
