package dhcp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"recast/inventory"
	"recast/store"
)

const (
	// commitTimeout is how long one client waits for the store; it asks again
	// after four seconds.
	commitTimeout = 2 * time.Second
	// storePause is how long a store that failed is left alone.
	storePause = time.Second
	// maxWaiting answers wait for the store; who comes then asks again.
	maxWaiting = 1024
)

var (
	errBusy = errors.New("too many packets wait for the store")
	errAway = fmt.Errorf("%w: it is left alone for a moment", store.ErrUnavailable)
)

// later gives what has to wait for the store to a worker, so that nobody else
// waits. It reports whether there was room.
func (s *Server) later(work func(context.Context)) bool {
	select {
	case s.waiting <- work:
		return true
	default:
		return false
	}
}

// work is one worker.
func (s *Server) work(ctx context.Context) {
	for {
		select {
		case work := <-s.waiting:
			work(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// decide takes the decision and marks it in the index. What it writes has to be
// durable before it is an answer; see settle.
func (s *Server) decide(q *question) (o outcome, ops []store.Op, must bool) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	o = reply(*q, s.table)
	ops, must = s.table.prepare(q, &o)
	return o, ops, must
}

// settle makes a decision durable. A record that somebody else changed in between
// is read again and the decision taken anew.
func (s *Server) settle(ctx context.Context, q *question, o outcome, ops []store.Op, must bool) (outcome, error) {
	for try := 0; ; try++ {
		rev, err := s.commit(ctx, ops)
		err = s.settled(q, &o, must, rev, err)
		if !errors.Is(err, store.ErrConflict) || try == 2 {
			return o, err
		}
		s.reread(ctx, ops)
		if o, ops, must = s.decide(q); len(ops) == 0 {
			return o, nil
		}
	}
}

// settled brings the index up to date after a commit. The error is nil where the
// answer does not depend on it.
func (s *Server) settled(q *question, o *outcome, must bool, rev int64, err error) error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if o.lease != nil {
		delete(s.table.writing, place{o.lease.Network, o.lease.Addr})
	}
	switch {
	case err == nil:
		s.table.committed(q, o, rev)
	case !must && !errors.Is(err, store.ErrConflict) && !errors.Is(err, errBusy):
		// The address is durably this machine's already; only the new expiry is not.
		s.table.extend(o)
		return nil
	}
	return err
}

// prepare marks in the index what the outcome decides and returns the writes it
// needs. must says that the answer depends on them. The lock is held.
func (t *table) prepare(q *question, o *outcome) (ops []store.Op, must bool) {
	name, mac := q.network.Name, q.req.mac
	own, known := q.own()
	switch {
	case !o.offer.IsValid():
	case own.on(q.network) == o.offer:
		t.forgetOffer(station{name, mac}) // the declaration keeps it for the machine
	default:
		t.hold(name, mac, known, o.offer, q.now.Add(offerHold))
	}
	if o.forget {
		t.forgetOffer(station{name, mac})
	}
	if o.silence == silenceExhausted && q.now.Sub(t.full[name]) >= fullPause {
		t.full[name] = q.now
	}
	if o.drop.IsValid() {
		if r := t.byAddr[place{name, o.drop}]; r != nil && r.rev > 0 {
			ops = append(ops, leaseRecords.DeleteOp(leaseName(name, o.drop), r.rev))
			// Who asks for it again meanwhile is not answered by this record.
			r.stored = time.Time{}
			delete(t.unstored, place{name, o.drop})
		} else {
			t.remove(name, o.drop)
		}
	}
	if o.lease == nil {
		return ops, false
	}
	l := *o.lease
	r := t.byAddr[place{name, l.Addr}]
	var rev int64
	same := false
	if r != nil {
		rev = r.rev
		same = rev > 0 && r.MAC == l.MAC && r.State == l.State
	}
	switch l.State {
	case inventory.LeaseDeclined:
		// In force at once, whatever the store says.
		t.put(l, 0)
	case inventory.LeaseBound:
		if same && len(ops) == 0 && r.Machine == l.Machine && r.BMC == l.BMC && r.Hostname == l.Hostname && samePort(r.Port, l.Port) &&
			// Nor much longer: leaseTime was made shorter since, or the clock was ahead.
			!r.stored.Before(l.Expires) && r.stored.Before(l.Expires.Add(q.leaseTime())) {
			if r.Expires.Before(l.Expires) {
				r.Expires = l.Expires
			}
			r.bound = q.now
			t.forgetOffer(station{name, mac})
			return nil, false
		}
		// A little more than promised, so that firmware, iPXE, ramdisk and system,
		// one after the other, need one write.
		l.Expires = l.Expires.Add(q.leaseTime() / 8)
		if own.on(q.network) == l.Addr && len(ops) == 0 {
			t.later(l).bound = q.now
			t.forgetOffer(station{name, mac})
			return nil, false
		}
		// Nobody else is given the address while it is being written.
		t.hold(name, mac, known, l.Addr, q.now.Add(offerHold))
		must = !same && own.on(q.network) != l.Addr
	}
	op, err := leaseRecords.PutOp(leaseName(name, l.Addr), l, rev)
	if err != nil {
		panic(err) // strings and times only
	}
	t.writing[place{name, l.Addr}] = written{l, op.Value}
	return append(ops, op), must
}

// committed installs what is now durable. The lock is held.
func (t *table) committed(q *question, o *outcome, rev int64) {
	name := q.network.Name
	if o.drop.IsValid() {
		t.deleted(place{name, o.drop})
	}
	if o.lease == nil {
		return
	}
	l := *o.lease
	if l.State == inventory.LeaseBound {
		l.Expires = l.Expires.Add(q.leaseTime() / 8)
		t.forgetOffer(station{name, l.MAC})
	}
	if r := t.byAddr[place{name, l.Addr}]; r != nil && r.rev > rev {
		return // the watch has brought something newer
	}
	t.put(l, rev).bound = q.now
}

// extend keeps a lease in memory that the store could not take. The lock is held.
func (t *table) extend(o *outcome) {
	if o.lease != nil {
		t.put(*o.lease, 0)
		t.forgetOffer(station{o.lease.Network, o.lease.MAC})
	}
}

// commit writes, unless the store has just failed.
func (s *Server) commit(ctx context.Context, ops []store.Op) (int64, error) {
	now := s.now().UnixNano()
	if until := s.storeRetry.Load(); until != 0 {
		// One packet a pause tries the store again; the rest do not wait.
		if now < until || !s.storeRetry.CompareAndSwap(until, now+int64(storePause)) {
			return 0, errAway
		}
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	rev, err := s.Store.Commit(ctx, ops...)
	switch {
	case err == nil, errors.Is(err, store.ErrConflict):
		if s.storeRetry.Swap(0) != 0 {
			s.findings.clear("store")
			s.log().Info("the store takes leases again")
		}
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
	default:
		s.storeRetry.Store(s.now().Add(storePause).UnixNano())
		text := fmt.Sprintf("dhcp: leases cannot be stored (%v): machines that have one are served, new pool addresses are not given out", err)
		if s.findings.set("store", text, time.Time{}) {
			s.log().Warn(text)
		}
	}
	return rev, err
}

// reread brings the index up to date after a conflict.
func (s *Server) reread(ctx context.Context, ops []store.Op) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	for _, op := range ops {
		rec, err := s.Store.Get(ctx, op.Key)
		switch {
		case err == nil:
			if err := s.table.apply(store.Event{Record: rec}); err != nil {
				s.log().Warn("skip a lease record", "err", err)
			}
		case errors.Is(err, store.ErrNotFound):
			if p, err := parseLeaseKey(op.Key); err == nil {
				s.table.mu.Lock()
				s.table.deleted(p)
				s.table.mu.Unlock()
			}
		}
	}
}
