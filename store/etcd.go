package store

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// EtcdOptions name an etcd cluster, where one server is not enough.
type EtcdOptions struct {
	// Endpoints of the members: https://host:2379, or unix:///path.
	Endpoints          []string
	TLS                *tls.Config // nil: as the endpoints' schemes say
	Username, Password string
	// Timeout of one request; a cluster that is silent for longer is away. 0: 5 s.
	Timeout time.Duration
	// WatchBuffer is how many changes may wait for a slow watch. 0: 16384.
	WatchBuffer int
	// Compact is how much history the cluster keeps at least. etcd itself keeps
	// all of it until its quota is full. 0: 5 minutes; negative: leave the
	// history alone, for a cluster that has other users.
	Compact time.Duration
	// Hold names this process in words, and keeps every other that names itself out
	// of the store while this one lives: OpenEtcd is ErrHeld meanwhile. "": read and
	// write beside others.
	Hold string
	// HoldTime is how long the store stays held after its holder was last heard.
	// 0: 15 s.
	HoldTime time.Duration
	Log      *slog.Logger // nil discards
}

// epochKey holds the store's own record. Every transaction compares it, so that
// a cluster that was wiped or swapped under us takes no write.
const epochKey = reserved + "/epoch"

type etcdStore struct {
	opts   EtcdOptions
	log    *slog.Logger
	client *clientv3.Client
	epoch  string
	record string // what stands under epochKey

	hold *hold // nil: not held

	down   atomic.Pointer[error]
	ctx    context.Context // ends with the store
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	watchers map[*watcher]struct{} // nil when closed
}

// OpenEtcd connects to a cluster, and makes the store in it where there is none.
func OpenEtcd(ctx context.Context, opts EtcdOptions) (Store, error) {
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Second
	}
	if opts.Compact == 0 {
		opts.Compact = 5 * time.Minute
	}
	if opts.HoldTime == 0 {
		opts.HoldTime = 15 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if len(opts.Endpoints) == 0 {
		return nil, errors.New("open store in etcd: name at least one endpoint")
	}
	s, err := openEtcd(ctx, opts)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, ErrNewer), errors.Is(err, errDamaged), errors.Is(err, ErrHeld):
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%w: no answer within %s: see that etcd runs there and that its certificate is accepted: %w", ErrUnavailable, opts.Timeout, err)
	default:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil, fmt.Errorf("open store in etcd at %s: %w", strings.Join(opts.Endpoints, ","), err)
}

func openEtcd(ctx context.Context, opts EtcdOptions) (*etcdStore, error) {
	s := &etcdStore{opts: opts, log: opts.Log, watchers: make(map[*watcher]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var err error
	s.client, err = clientv3.New(clientv3.Config{
		Endpoints: opts.Endpoints, TLS: opts.TLS, Username: opts.Username, Password: opts.Password,
		DialTimeout: opts.Timeout, DialKeepAliveTime: opts.Timeout, DialKeepAliveTimeout: opts.Timeout,
		Context: s.ctx,
		// gRPC's own back-off grows to two minutes: too long to stand read-only
		// beside a cluster that is back.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: opts.Timeout,
		})},
		Logger: zap.NewNop(), // it would write to stderr, in a format of its own
	})
	if err != nil {
		s.cancel()
		return nil, err
	}
	err = s.join(ctx)
	if err == nil && opts.Hold != "" {
		err = s.acquire(ctx)
	}
	if err != nil {
		s.cancel()
		_ = s.client.Close()
		return nil, err
	}
	s.work.Go(s.monitor)
	if s.hold != nil {
		s.work.Go(s.keepHold)
	}
	return s, nil
}

// join reads the store's own record; the first to come writes it.
func (s *etcdStore) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	fresh, err := json.Marshal(fileState{Schema: schema, Epoch: newEpoch()})
	if err != nil {
		return err
	}
	resp, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(epochKey), "=", 0)).
		Then(clientv3.OpPut(epochKey, string(fresh)), clientv3.OpGet(epochKey)).
		Else(clientv3.OpGet(epochKey)).Commit()
	if err != nil {
		return err
	}
	kvs := resp.Responses[len(resp.Responses)-1].GetResponseRange().Kvs
	if len(kvs) != 1 {
		return fmt.Errorf("%w: the record %q is missing", errDamaged, epochKey)
	}
	var state fileState
	if err := json.Unmarshal(kvs[0].Value, &state); err != nil || state.Epoch == "" {
		return fmt.Errorf("%w: the record %q does not decode (%v)", errDamaged, epochKey, err)
	}
	if state.Schema > schema {
		return fmt.Errorf("it has schema %d, this recast knows %d: %w: update recast", state.Schema, schema, ErrNewer)
	}
	s.epoch, s.record = state.Epoch, string(kvs[0].Value)
	return nil
}

// begin bounds a request by the timeout and by the store's life.
func (s *etcdStore) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if s.ctx.Err() != nil {
		return nil, nil, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }, nil
}

// explain turns the client's error into the contract's.
func (s *etcdStore) explain(caller context.Context, err error) error {
	switch {
	case s.ctx.Err() != nil:
		return ErrClosed
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrNotFound
	case errors.Is(caller.Err(), context.Canceled):
		return caller.Err()
	default:
		return fmt.Errorf("%w: etcd at %s: %w", ErrUnavailable, strings.Join(s.opts.Endpoints, ","), err)
	}
}

func fromEtcd(key, value []byte, revision, lease int64) Record {
	return Record{Key: string(key), Value: value, Revision: revision, Lease: LeaseID(lease)}
}

func (s *etcdStore) Get(ctx context.Context, key string) (Record, error) {
	c, cancel, err := s.begin(ctx)
	if err != nil {
		return Record{}, fmt.Errorf("get %q: %w", key, err)
	}
	defer cancel()
	if key == "" || isReserved(key) {
		return Record{}, fmt.Errorf("get %q: %w", key, ErrNotFound)
	}
	resp, err := s.client.Get(c, key)
	if err != nil {
		return Record{}, fmt.Errorf("get %q: %w", key, s.explain(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return Record{}, fmt.Errorf("get %q: %w", key, ErrNotFound)
	}
	kv := resp.Kvs[0]
	return fromEtcd(kv.Key, kv.Value, kv.ModRevision, kv.Lease), nil
}

func (s *etcdStore) List(ctx context.Context, prefix string) ([]Record, int64, error) {
	found, revision, err := s.list(ctx, prefix)
	if err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	out := make([]Record, len(found))
	for i, r := range found {
		out[i] = *r
	}
	return out, revision, nil
}

// listPage keeps one answer below the 2 GiB that gRPC can carry, whatever the
// records' size.
const listPage = 1000

// list reads in pages of one revision.
func (s *etcdStore) list(ctx context.Context, prefix string) ([]*Record, int64, error) {
	var out []*Record
	var revision int64
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	if from == "" {
		from = "\x00"
	}
	for {
		c, cancel, err := s.begin(ctx)
		if err != nil {
			return nil, 0, err
		}
		resp, err := s.client.Get(c, from, clientv3.WithRange(end), clientv3.WithLimit(listPage), clientv3.WithRev(revision))
		cancel()
		if errors.Is(err, rpctypes.ErrCompacted) {
			out, revision, from = nil, 0, max(prefix, "\x00") // history went away under us
			continue
		}
		if err != nil {
			return nil, 0, s.explain(ctx, err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			if r := fromEtcd(kv.Key, kv.Value, kv.ModRevision, kv.Lease); !isReserved(r.Key) {
				out = append(out, &r)
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return out, revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (s *etcdStore) Commit(ctx context.Context, ops ...Op) (int64, error) {
	if err := checkOps(ops); err != nil {
		return 0, err
	}
	c, cancel, err := s.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	defer cancel()
	compare := []clientv3.Cmp{clientv3.Compare(clientv3.Value(epochKey), "=", s.record)}
	if s.hold != nil {
		if err := s.hold.lost(); err != nil {
			return 0, fmt.Errorf("commit: %w", err)
		}
		compare = append(compare, clientv3.Compare(clientv3.ModRevision(holdKey), "=", s.hold.revision))
	}
	var then []clientv3.Op
	for _, op := range ops {
		switch {
		case op.If == 0:
			compare = append(compare, clientv3.Compare(clientv3.CreateRevision(op.Key), "=", 0))
		case op.If > 0:
			compare = append(compare, clientv3.Compare(clientv3.ModRevision(op.Key), "=", op.If))
		}
		switch {
		case op.Check:
		case op.Value == nil:
			then = append(then, clientv3.OpDelete(op.Key))
		default:
			then = append(then, clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
		}
	}
	resp, err := s.client.Txn(c).If(compare...).Then(then...).Else(clientv3.OpGet(epochKey), clientv3.OpGet(holdKey)).Commit()
	if err != nil {
		err = s.explain(ctx, err)
		if errors.Is(err, ErrUnavailable) {
			s.goDown(err)
		}
		return 0, fmt.Errorf("commit: %w", err)
	}
	if !resp.Succeeded {
		if err := s.sameStore(resp.Responses[0].GetResponseRange()); err != nil {
			s.goDown(err)
			return 0, fmt.Errorf("commit: %w", err)
		}
		if err := s.stillHeld(resp.Responses[1].GetResponseRange()); err != nil {
			return 0, fmt.Errorf("commit: %w", err)
		}
		return 0, fmt.Errorf("commit key %q and %d more: %w", ops[0].Key, len(ops)-1, ErrConflict)
	}
	s.goUp()
	return resp.Header.Revision, nil
}

// sameStore compares the store's own record with the one we joined.
func (s *etcdStore) sameStore(resp *clientv3Range) error {
	if len(resp.Kvs) == 1 && string(resp.Kvs[0].Value) == s.record {
		return nil
	}
	return fmt.Errorf("%w: etcd at %s holds another store than when recast started: restart recast", ErrUnavailable, strings.Join(s.opts.Endpoints, ","))
}

func (s *etcdStore) Grant(ctx context.Context, ttl time.Duration) (LeaseID, error) {
	if ttl <= 0 {
		return 0, fmt.Errorf("grant a lease of %s: it must be longer than nothing", ttl)
	}
	c, cancel, err := s.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", err)
	}
	defer cancel()
	resp, err := s.client.Grant(c, int64((ttl+time.Second-1)/time.Second)) // whole seconds
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", s.explain(ctx, err))
	}
	return LeaseID(resp.ID), nil
}

func (s *etcdStore) KeepAlive(ctx context.Context, id LeaseID) error {
	c, cancel, err := s.begin(ctx)
	if err == nil {
		defer cancel()
		if _, err = s.client.KeepAliveOnce(c, clientv3.LeaseID(id)); err != nil {
			err = s.explain(ctx, err)
		}
	}
	if err != nil {
		return fmt.Errorf("keep lease %x alive: %w", int64(id), err)
	}
	return nil
}

func (s *etcdStore) Revoke(ctx context.Context, id LeaseID) error {
	c, cancel, err := s.begin(ctx)
	if err == nil {
		defer cancel()
		if _, err = s.client.Revoke(c, clientv3.LeaseID(id)); err != nil {
			err = s.explain(ctx, err)
		}
	}
	if err != nil {
		return fmt.Errorf("revoke lease %x: %w", int64(id), err)
	}
	return nil
}

func (s *etcdStore) Epoch() string { return s.epoch }

func (s *etcdStore) Writable() error {
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	if err := s.down.Load(); err != nil {
		return *err
	}
	return s.Held()
}

func (s *etcdStore) goDown(err error) {
	if s.down.Swap(&err) == nil {
		s.log.Error("store went read-only", "err", err)
	}
}

func (s *etcdStore) goUp() {
	if s.down.Swap(nil) != nil {
		s.log.Info("store takes writes again", "endpoints", s.opts.Endpoints)
	}
}

func (s *etcdStore) Close() error {
	s.mu.Lock()
	watchers := s.watchers
	s.watchers = nil
	s.mu.Unlock()
	if watchers == nil {
		return nil
	}
	for w := range watchers {
		w.end(ErrClosed)
	}
	s.release()
	s.cancel()
	s.work.Wait()
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}
