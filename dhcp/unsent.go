package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// unsent are the answers that an interface did not take, by the kernel's reason: a
// line for each would be as many as there are packets.
type unsent struct {
	some atomic.Bool // by holds something: asked at every answer
	mu   sync.Mutex
	by   map[syscall.Errno]*failure
}

type failure struct {
	n     int
	since time.Time
	last  time.Time
	to    netip.Addr // the last: what works again is told by an answer that goes there
}

// cannotSend notes an answer that the kernel refused.
func (s *Server) cannotSend(l *link, to netip.Addr, err error) {
	s.counters.count(&s.counters.s.Silent, "send error")
	var why syscall.Errno
	if errors.Is(err, net.ErrClosed) || !errors.As(err, &why) {
		s.log().Debug("send", "err", err) // the interface is being taken away
		return
	}
	now := s.now()
	u := &l.unsent
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.by[why]
	fresh := f == nil || now.Sub(f.last) >= quarantine
	if fresh {
		if u.by == nil {
			u.by = map[syscall.Errno]*failure{}
		}
		f = &failure{since: now}
		u.by[why] = f
		u.some.Store(true)
	}
	f.n, f.last, f.to = f.n+1, now, to
	answers := "1 answer"
	if f.n > 1 {
		answers = fmt.Sprintf("%d answers", f.n)
	}
	text := fmt.Sprintf("dhcp: %s: %s could not be sent since %s, the last to %s (%s): look at the interface, at its routes and at this host's firewall; recast doctor helps",
		l.state.Load().iface.Name, answers, f.since.UTC().Format(time.RFC3339), to, why)
	s.findings.set(l.unsentKey(why), text, now.Add(quarantine))
	if fresh {
		s.log().Warn(text)
	}
}

// sent notes an answer that went out.
func (s *Server) sent(l *link, to netip.Addr) {
	u := &l.unsent
	if !u.some.Load() {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for why, f := range u.by {
		if f.to != to {
			continue
		}
		delete(u.by, why)
		s.findings.clear(l.unsentKey(why))
		s.log().Info("answers are sent again", "interface", l.state.Load().iface.Name, "to", to, "err", why, "unsent", f.n)
	}
	u.some.Store(len(u.by) > 0)
}

func (l *link) unsentKey(why syscall.Errno) string {
	return fmt.Sprintf("unsent/%s/%t/%d", l.state.Load().iface.Name, l.conn6 != nil, why)
}
