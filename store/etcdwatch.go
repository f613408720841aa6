package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type clientv3Range = etcdserverpb.RangeResponse

func (s *etcdStore) Watch(ctx context.Context, prefix string) (Watch, error) {
	snapshot, revision, err := s.list(ctx, prefix)
	if err != nil {
		return Watch{}, fmt.Errorf("watch %q: %w", prefix, err)
	}
	w := newWatcher(prefix, s.opts.WatchBuffer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers == nil {
		return Watch{}, fmt.Errorf("watch %q: %w", prefix, ErrClosed)
	}
	s.watchers[w] = struct{}{}
	changes, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	s.work.Add(2)
	go func() {
		defer s.work.Done()
		s.pump(changes, w, revision+1)
		w.end(ErrResync)
	}()
	go func() {
		defer s.work.Done()
		w.run(ctx, snapshot, revision)
		cancel()
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	return w.watch(), nil
}

// pump carries changes from the client, whose own buffer has no bound, to the
// watcher, whose has. It returns when no more can come.
func (s *etcdStore) pump(ctx context.Context, w *watcher, from int64) {
	for resp := range s.client.Watch(ctx, w.prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if ctx.Err() != nil {
			break
		}
		if resp.Err() != nil {
			return // compacted, no leader, refused
		}
		events := make([]Event, 0, len(resp.Events))
		for _, e := range resp.Events {
			r := fromEtcd(e.Kv.Key, e.Kv.Value, e.Kv.ModRevision, e.Kv.Lease)
			if isReserved(r.Key) {
				continue
			}
			if e.Type == clientv3.EventTypeDelete {
				r.Value, r.Lease = nil, 0
			}
			events = append(events, Event{Record: r, Deleted: e.Type == clientv3.EventTypeDelete})
		}
		w.add(events)
	}
	if ctx.Err() != nil {
		// Nobody reads any more; run says why.
		<-w.ended
	}
}

// monitor finds out that the cluster is away: the client itself waits and
// reconnects in silence, while its watches look alive. And it finds out that
// the cluster is back.
func (s *etcdStore) monitor() {
	tick := time.NewTicker(s.opts.Timeout / 2)
	defer tick.Stop()
	var compactAt time.Time
	var compactTo int64
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		revision, err := s.ping()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.goDown(err)
			s.mu.Lock()
			for w := range s.watchers {
				w.end(ErrResync)
			}
			s.mu.Unlock()
			continue
		}
		s.goUp()
		if now := time.Now(); s.opts.Compact > 0 && now.After(compactAt) {
			if compactTo > 0 {
				s.compact(compactTo)
			}
			compactAt, compactTo = now.Add(s.opts.Compact), revision
		}
	}
}

// ping reads the store's own record, by way of the leader. After a failure only
// a write proves that writes work again (a member out of space still reads).
func (s *etcdStore) ping() (revision int64, err error) {
	c, cancel, err := s.begin(s.ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	resp, err := s.client.Get(c, epochKey)
	if err != nil {
		return 0, s.explain(s.ctx, err)
	}
	if err := s.sameStore((*clientv3Range)(resp)); err != nil {
		return 0, err
	}
	if s.down.Load() != nil {
		if _, err := s.client.Put(c, reserved+"/probe", "1"); err != nil {
			return 0, s.explain(s.ctx, err)
		}
	}
	return resp.Header.Revision, nil
}

// compact lets go of the history before revision. Other servers do the same;
// whoever comes late is told that it is done.
func (s *etcdStore) compact(revision int64) {
	c, cancel, err := s.begin(s.ctx)
	if err != nil {
		return
	}
	defer cancel()
	if _, err := s.client.Compact(c, revision); err != nil && !errors.Is(err, context.Canceled) {
		s.log.Debug("compact etcd's history", "revision", revision, "err", err)
	}
}
