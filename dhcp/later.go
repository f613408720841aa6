package dhcp

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"recast/inventory"
	"recast/store"
)

const (
	// laterEvery is how often the leases of declared addresses are stored.
	laterEvery = time.Second
	// laterAtOnce transactions are handed to the store together, which makes one
	// group commit.
	laterAtOnce = 16
)

// A lease of an address that is declared for its client is stored after the
// answer: the declaration is the durable promise, and nobody else is ever given
// the address, whatever a crash takes with it. The record says who is there now.

// later notes a lease that is in force and to be stored. The lock is held.
func (t *table) later(l inventory.Lease) *record {
	t.unstored[place{l.Network, l.Addr}] = struct{}{}
	return t.put(l, 0)
}

// encode is the leases of these places and their writes. The lock is held.
func (t *table) encode(places []place) (leases []inventory.Lease, ops []store.Op) {
	for _, p := range places {
		_, waits := t.unstored[p]
		delete(t.unstored, p)
		r := t.byAddr[p]
		if !waits || r == nil {
			continue
		}
		op, err := leaseRecords.PutOp(leaseName(p.network, p.addr), r.Lease, r.rev)
		if err != nil {
			panic(err) // strings and times only
		}
		t.writing[p] = written{r.Lease, op.Value}
		leases, ops = append(leases, r.Lease), append(ops, op)
	}
	return leases, ops
}

// storeLater stores what waits for it, for ever.
func (s *Server) storeLater(ctx context.Context) {
	tick := time.NewTicker(laterEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.flush(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// flush stores what waits now, in the order of the keys: neighbours share the
// store's pages. What the store does not take waits on.
func (s *Server) flush(ctx context.Context) {
	t := s.table
	t.mu.Lock()
	places := slices.Collect(maps.Keys(t.unstored))
	t.mu.Unlock()
	if s.storeRetry.Load() != 0 && len(places) > 0 {
		// One asks whether the store is back, before all are encoded for it.
		if s.storeSome(ctx, places[:1]); s.storeRetry.Load() != 0 {
			return
		}
		places = places[1:]
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(strings.Compare(a.network, b.network), a.addr.Compare(b.addr))
	})
	var work sync.WaitGroup
	slots := make(chan struct{}, laterAtOnce)
	for some := range slices.Chunk(places, store.MaxOps) {
		slots <- struct{}{}
		if s.storeRetry.Load() != 0 {
			break
		}
		work.Go(func() {
			defer func() { <-slots }()
			s.storeSome(ctx, some)
		})
	}
	work.Wait()
}

// storeSome encodes what waits of these places, and stores it.
func (s *Server) storeSome(ctx context.Context, places []place) {
	s.table.mu.Lock()
	leases, ops := s.table.encode(places)
	s.table.mu.Unlock()
	if len(ops) > 0 {
		s.storeAll(ctx, leases, ops)
	}
}

// storeAll is one transaction, or one for each lease where somebody else
// changed one of them.
func (s *Server) storeAll(ctx context.Context, leases []inventory.Lease, ops []store.Op) {
	rev, err := s.commit(ctx, ops)
	if errors.Is(err, store.ErrConflict) {
		s.table.mu.Lock()
		for _, l := range leases {
			delete(s.table.writing, place{l.Network, l.Addr})
		}
		s.table.mu.Unlock()
		s.reread(ctx, ops)
		if len(ops) == 1 {
			return // another server gave it: its record stands until the client asks again
		}
		for i := range ops {
			s.storeAll(ctx, leases[i:i+1], ops[i:i+1])
		}
		return
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	for _, l := range leases {
		p := place{l.Network, l.Addr}
		delete(s.table.writing, p)
		r := s.table.byAddr[p]
		switch {
		case r == nil:
		case err != nil:
			s.table.unstored[p] = struct{}{}
		case r.rev < rev:
			r.rev, r.stored = rev, l.Expires
		}
	}
}
