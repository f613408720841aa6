package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// request is one call that changes the store, on its way to the committer.
type request struct {
	ctx    context.Context
	ops    []Op
	grant  time.Duration // of a new lease
	revoke LeaseID
	expire LeaseID // revoke, unless it was kept alive meanwhile

	done   chan result // holds one
	unsure bool
	result result
}

type result struct {
	revision int64
	lease    LeaseID
	err      error
}

// How much the committer gathers into one transaction.
const (
	batchRequests = 1024
	batchBytes    = 16 << 20
)

func (s *boltStore) Commit(ctx context.Context, ops ...Op) (int64, error) {
	if err := checkOps(ops); err != nil {
		return 0, err
	}
	own := make([]Op, len(ops))
	for i, op := range ops {
		if op.Value != nil { // an empty value stays different from none
			op.Value = append(make([]byte, 0, len(op.Value)), op.Value...)
		}
		own[i] = op
	}
	r := s.do(&request{ctx: ctx, ops: own})
	return r.revision, r.err
}

func (s *boltStore) Grant(ctx context.Context, ttl time.Duration) (LeaseID, error) {
	if ttl <= 0 {
		return 0, fmt.Errorf("grant a lease of %s: it must be longer than nothing", ttl)
	}
	r := s.do(&request{ctx: ctx, grant: ttl})
	return r.lease, r.err
}

func (s *boltStore) KeepAlive(ctx context.Context, id LeaseID) error {
	select {
	case <-s.quit:
		return ErrClosed
	default:
	}
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	// Past its deadline a lease stays ended, even while its records still wait
	// for the disk: somebody may have been told.
	l, now := s.leases[id], time.Now()
	if l == nil || !now.Before(l.deadline) {
		return fmt.Errorf("keep lease %x alive: %w", int64(id), ErrNotFound)
	}
	l.deadline = now.Add(l.ttl)
	return nil
}

func (s *boltStore) Revoke(ctx context.Context, id LeaseID) error {
	return s.do(&request{ctx: ctx, revoke: id}).err
}

func (s *boltStore) alive(id LeaseID) bool {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	l := s.leases[id]
	return l != nil && time.Now().Before(l.deadline)
}

// do hands a request to the committer and waits for the answer.
func (s *boltStore) do(r *request) result {
	r.done = make(chan result, 1)
	if err := r.ctx.Err(); err != nil {
		return result{err: err}
	}
	select {
	case s.requests <- r:
	case <-r.ctx.Done():
		return result{err: r.ctx.Err()}
	case <-s.quit:
		return result{err: ErrClosed}
	}
	select {
	case res := <-r.done:
		return res
	case <-r.ctx.Done():
		return result{err: fmt.Errorf("%w: gave up waiting for the disk, whether it was written is not known: %w", ErrUnavailable, r.ctx.Err())}
	case <-s.stopped:
		select {
		case res := <-r.done:
			return res
		default:
			return result{err: ErrClosed}
		}
	}
}

// run is the committer.
func (s *boltStore) run() {
	defer close(s.stopped)
	s.findExpiry()
	wake := time.NewTimer(time.Until(s.wakeAt()))
	defer wake.Stop()
	for {
		select {
		case r := <-s.requests:
			s.commit(s.gather(r))
		case <-wake.C:
			if s.down.Load() != nil {
				s.probe()
				break
			}
			if expired := s.expired(); len(expired) > 0 {
				s.commit(expired)
			}
			s.findExpiry()
		case <-s.quit:
			for {
				select {
				case r := <-s.requests:
					r.done <- result{err: ErrClosed}
				default:
					return
				}
			}
		}
		wake.Reset(time.Until(s.wakeAt()))
	}
}

// gather takes what else is waiting. Nobody waits for company: while one
// transaction is on its way to the disk the next one fills by itself.
func (s *boltStore) gather(r *request) []*request {
	runtime.Gosched() // who is about to ask does so first
	batch, size := []*request{r}, r.size()
	for len(batch) < batchRequests && size < batchBytes {
		select {
		case r := <-s.requests:
			batch = append(batch, r)
			size += r.size()
		default:
			return batch
		}
	}
	return batch
}

func (r *request) size() (n int) {
	for _, op := range r.ops {
		n += len(op.Key) + len(op.Value)
	}
	return n
}

// commit decides, writes, publishes, answers.
func (s *boltStore) commit(requests []*request) {
	defer func() {
		for _, r := range requests {
			r.done <- r.result
		}
	}()
	if down := s.down.Load(); down != nil {
		for _, r := range requests {
			r.result = result{err: *down}
		}
		return
	}
	b := &batch{
		base:     &s.records,
		revision: s.revision,
		alive:    s.alive,
		attached: s.attached,
		pending:  make(map[string]*Record),
		granted:  make(map[LeaseID]time.Duration),
		ended:    make(map[LeaseID]bool),
	}
	for _, r := range requests {
		s.decide(b, r)
	}
	if b.empty() {
		return
	}
	if err := s.write(b); err != nil {
		for key := range b.pending {
			s.unsure[key] = true
		}
		for id := range b.granted {
			s.unsureLeases[id] = true
		}
		for id := range b.ended {
			s.unsureLeases[id] = true
		}
		for _, r := range requests {
			if r.unsure {
				r.result = result{err: err}
			}
		}
		return
	}
	s.publish(b)
}

func (s *boltStore) decide(b *batch, r *request) {
	if err := r.ctx.Err(); err != nil {
		r.result.err = err
		return
	}
	switch {
	case r.grant > 0:
		for {
			var id [8]byte
			rand.Read(id[:]) // never fails
			r.result.lease = LeaseID(binary.BigEndian.Uint64(id[:]) >> 1)
			if r.result.lease > 0 && !s.alive(r.result.lease) && b.granted[r.result.lease] == 0 {
				break
			}
		}
		b.granted[r.result.lease], r.unsure = r.grant, true
	case r.revoke != 0:
		if b.ended[r.revoke] || !s.alive(r.revoke) {
			r.result.err = fmt.Errorf("revoke lease %x: %w", int64(r.revoke), ErrNotFound)
			return
		}
		b.end(r.revoke)
		r.unsure = true
	case r.expire != 0:
		if !b.ended[r.expire] && !s.alive(r.expire) {
			b.end(r.expire)
			r.unsure = true
		}
	default:
		r.result.revision, r.unsure, r.result.err = b.commit(r.ops)
	}
}

// write brings a batch to the disk, together with the truth about keys that an
// earlier failure left unsure: what readers were told all along goes over what
// the failed commit may have left in the file.
func (s *boltStore) write(b *batch) error {
	size := 0
	err := s.update(func(tx *bbolt.Tx) error {
		records, leases := tx.Bucket(bucketRecords), tx.Bucket(bucketLeases)
		keys := make([]string, 0, len(b.pending)+len(s.unsure))
		for key := range b.pending {
			keys = append(keys, key)
		}
		for key := range s.unsure {
			if _, ok := b.pending[key]; !ok {
				keys = append(keys, key)
			}
		}
		sort.Strings(keys) // neighbours share pages
		count := s.records.count
		for _, key := range keys {
			before := s.records.get(key)
			now, _ := b.current(key)
			if before != nil {
				count--
			}
			if now == nil {
				if err := records.Delete([]byte(key)); err != nil {
					return err
				}
				continue
			}
			count++
			size += len(key) + len(now.Value)
			if err := records.Put([]byte(key), sealRecord(now)); err != nil {
				return err
			}
		}
		s.leaseMu.Lock()
		defer s.leaseMu.Unlock()
		ttls := make(map[LeaseID]time.Duration)
		for id := range s.unsureLeases {
			if l := s.leases[id]; l != nil {
				ttls[id] = l.ttl
			} else {
				ttls[id] = 0
			}
		}
		for id := range b.ended {
			ttls[id] = 0
		}
		maps.Copy(ttls, b.granted)
		for id, ttl := range ttls {
			err := leases.Delete(leaseKey(id))
			if ttl > 0 {
				err = leases.Put(leaseKey(id), sealLease(id, ttl))
			}
			if err != nil {
				return err
			}
		}
		if err := tx.Bucket(bucketState).Delete(keyProbe); err != nil {
			return err
		}
		n := len(s.leases) + len(b.granted) - len(b.ended)
		return putState(tx, fileState{Schema: schema, Epoch: s.epoch, Revision: b.revision, Records: count, Leases: n})
	})
	if err != nil {
		s.failed = size
		return s.goDown(err)
	}
	clear(s.unsure)
	clear(s.unsureLeases)
	return nil
}

// publish makes a written batch visible, and tells the watchers.
func (s *boltStore) publish(b *batch) {
	s.leaseMu.Lock()
	for id, ttl := range b.granted {
		l := &lease{ttl: ttl, deadline: time.Now().Add(ttl)}
		s.leases[id] = l
		if l.deadline.Before(s.expiry) {
			s.expiry = l.deadline
		}
	}
	for id := range b.ended {
		delete(s.leases, id)
	}
	s.leaseMu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	for key, now := range b.pending {
		if before := s.records.get(key); before != nil && before.Lease != 0 {
			delete(s.attached[before.Lease], key)
		}
		if now == nil {
			s.records.delete(key)
			continue
		}
		s.records.put(now)
		s.attach(now)
	}
	for id := range b.ended {
		delete(s.attached, id)
	}
	s.revision = b.revision
	for w := range s.watchers {
		w.add(b.events)
	}
}

// expired returns a request for every lease whose time is over.
func (s *boltStore) expired() (requests []*request) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	now := time.Now()
	for id, l := range s.leases {
		if !now.Before(l.deadline) {
			requests = append(requests, &request{ctx: context.Background(), expire: id, done: make(chan result, 1)})
		}
	}
	return requests
}

// findExpiry sets when to look for expired leases next. A lease that is kept
// alive meanwhile only makes that look come early.
func (s *boltStore) findExpiry() {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	now := time.Now()
	s.expiry = now.Add(time.Hour)
	for _, l := range s.leases {
		if l.deadline.Before(s.expiry) {
			s.expiry = l.deadline
		}
	}
	// Many leases end in one transaction rather than in one each.
	if soon := now.Add(20 * time.Millisecond); s.expiry.Before(soon) {
		s.expiry = soon
	}
}

// wakeAt is when the committer has something to do that nobody asked for. The
// moments are fixed, so that a stream of requests does not push them away.
func (s *boltStore) wakeAt() time.Time {
	if s.down.Load() != nil {
		return s.retry
	}
	return s.expiry
}

// update runs one bbolt transaction. A panic leaves bbolt's locks taken, so
// after one it is never called again.
func (s *boltStore) update(f func(*bbolt.Tx) error) error {
	panicked := true
	err := guard(func() error {
		err := s.db.Update(f)
		panicked = false
		return err
	})
	s.broken = s.broken || panicked
	return err
}

// goDown keeps the reason, and returns it as the answer to whoever waits.
func (s *boltStore) goDown(cause error) error {
	s.retry = time.Now().Add(s.opts.retry)
	is := func(no syscall.Errno) bool {
		// Where bbolt grows the file it passes on only the text.
		return errors.Is(cause, no) || strings.HasSuffix(cause.Error(), no.Error())
	}
	next := "recast tries again by itself"
	switch {
	case s.broken:
		next = "restart recast; if that fails, bring a backup back with \"recast store restore\""
	case is(syscall.ENOSPC), is(syscall.EDQUOT), is(syscall.EFBIG):
		next = "free some space there; recast goes on by itself"
	case is(syscall.EIO):
		next = "look at the disk; recast tries again by itself"
	case is(syscall.EROFS):
		next = "mount it writable; recast goes on by itself"
	}
	err := fmt.Errorf("%w: write %q: %w: %s", ErrUnavailable, s.path, cause, next)
	if s.down.Swap(&err) == nil {
		s.log.Error("store went read-only", "path", s.path, "err", cause, "next", next)
	}
	return err
}

// probe finds out whether the disk takes writes again: it needs to take as much
// as it last refused, and to give it back.
func (s *boltStore) probe() {
	if s.broken {
		s.retry = time.Now().Add(time.Hour)
		return
	}
	err := s.settle()
	if err == nil {
		err = s.update(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketState).Put(keyProbe, make([]byte, max(s.failed, 64<<10)))
		})
	}
	if err == nil {
		err = s.write(&batch{base: &s.records, revision: s.revision})
	}
	if err != nil {
		_ = s.goDown(err)
		return
	}
	s.down.Store(nil)
	s.log.Info("store takes writes again", "path", s.path)
}

// settle makes the newest meta page durable. When the sync behind it failed,
// the page stands in the cache, marked clean, and bbolt goes on from it; the
// disk may hold only its predecessor, whose pages bbolt would now reuse. Only
// writing it again makes the kernel bring it to the disk.
func (s *boltStore) settle() error {
	meta := make([]byte, 2*s.db.Info().PageSize)
	if _, err := s.file.ReadAt(meta, 0); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(meta, 0); err != nil {
		return err
	}
	return s.file.Sync()
}
