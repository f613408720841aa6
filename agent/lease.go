package agent

import (
	"errors"
	"sync"
	"time"
)

// ErrLeaseLost stops a write: the server may by now believe that nobody writes
// this disk and have given it to another agent.
var ErrLeaseLost = errors.New("the lease has run out without an answer from the server")

// Lease is this agent's own deadline, on the monotonic clock: past it no byte
// may be written. It counts from the moment the renewing request was sent, so
// that ours always ends before the server's.
type Lease struct {
	now   func() time.Time
	mu    sync.Mutex
	until time.Time
}

// NewLease starts expired. A nil now is the real clock.
func NewLease(now func() time.Time) *Lease {
	if now == nil {
		now = time.Now
	}
	return &Lease{now: now}
}

// Renew extends the lease to seconds after sent; it never shortens it.
func (l *Lease) Renew(sent time.Time, seconds int) {
	if seconds <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if until := sent.Add(time.Duration(seconds) * time.Second); until.After(l.until) {
		l.until = until
	}
}

// Check is nil while the lease lives.
func (l *Lease) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now().Before(l.until) {
		return nil
	}
	return ErrLeaseLost
}
