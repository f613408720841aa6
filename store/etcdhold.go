package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// holdKey says who holds the store. It lives by an etcd lease, so that it goes by
// itself when its holder is gone. Every commit compares its revision: a holder
// that slept through the end of its lease writes nothing.
const holdKey = reserved + "/hold"

// hold is this process's right to the store.
type hold struct {
	lease    clientv3.LeaseID
	revision int64

	mu    sync.Mutex
	until time.Time // the cluster keeps it at least so long, by our clock
	gone  error
}

// slack is how much earlier than the cluster we take the hold as over: clocks do
// not run alike, and what is under way needs a moment to stop.
func slack(ttl time.Duration) time.Duration { return ttl / 5 }

func (h *hold) lost() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

func (h *hold) lose(why string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone == nil {
		h.gone = fmt.Errorf("%w: %s: start this one again", ErrLost, why)
	}
	return h.gone
}

func (h *hold) confirmed(sent time.Time, ttl time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = sent.Add(ttl - slack(ttl))
}

// acquire takes the store, or says who has it.
func (s *etcdStore) acquire(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	sent := time.Now()
	lease, err := s.client.Grant(ctx, int64((s.opts.HoldTime+time.Second-1)/time.Second))
	if err != nil {
		return err
	}
	who := fmt.Sprintf("%s since %s", s.opts.Hold, time.Now().Format(time.RFC3339))
	resp, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(holdKey), "=", 0)).
		Then(clientv3.OpPut(holdKey, who, clientv3.WithLease(lease.ID))).
		Else(clientv3.OpGet(holdKey)).Commit()
	if err == nil && resp.Succeeded {
		s.hold = &hold{lease: lease.ID, revision: resp.Header.Revision}
		s.hold.confirmed(sent, s.opts.HoldTime)
		return nil
	}
	if _, again := s.client.Revoke(ctx, lease.ID); again != nil {
		s.log.Debug("a lease is left to end by itself", "err", again)
	}
	if err != nil {
		return err
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 1 {
		return fmt.Errorf("%w: %s", ErrHeld, kvs[0].Value)
	}
	return ErrHeld
}

// keepHold keeps the lease alive while the store is open.
func (s *etcdStore) keepHold() {
	tick := time.NewTicker(s.opts.HoldTime / 5)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.HoldTime/3)
		sent := time.Now()
		_, err := s.client.KeepAliveOnce(ctx, s.hold.lease)
		cancel()
		switch {
		case err == nil:
			s.hold.confirmed(sent, s.opts.HoldTime)
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.log.Error("the store is not ours any more", "err", s.hold.lose("the lease on the cluster has ended"))
			return
		case s.ctx.Err() == nil:
			s.log.Warn("the cluster does not confirm that the store is ours", "err", err)
		}
	}
}

// stillHeld looks at who holds the store, after a commit that was refused.
func (s *etcdStore) stillHeld(resp *clientv3Range) error {
	switch {
	case s.hold == nil || len(resp.Kvs) == 1 && resp.Kvs[0].ModRevision == s.hold.revision:
		return nil
	case len(resp.Kvs) == 1:
		return s.hold.lose("it is held by " + string(resp.Kvs[0].Value))
	}
	return s.hold.lose("the lease on the cluster has ended")
}

func (s *etcdStore) Held() error {
	if s.hold == nil {
		return nil
	}
	s.hold.mu.Lock()
	defer s.hold.mu.Unlock()
	if s.hold.gone != nil {
		return s.hold.gone
	}
	if since := time.Since(s.hold.until); since > 0 {
		return fmt.Errorf("%w: the cluster has not confirmed for %s that this recast holds the store", ErrUnavailable, (since + s.opts.HoldTime - slack(s.opts.HoldTime)).Round(time.Second))
	}
	return nil
}

// release lets the next one in at once.
func (s *etcdStore) release() {
	if s.hold == nil || s.hold.lost() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	if _, err := s.client.Revoke(ctx, s.hold.lease); err != nil {
		s.log.Debug("the hold is left to end by itself", "err", err)
	}
}
