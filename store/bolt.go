package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// BoltOptions tune a store in one file; the zero value is right for a server.
type BoltOptions struct {
	// MustExist refuses to make a new store where there is none.
	MustExist bool
	// Timeout is how long to wait for another process to let go of the file. 0: 2 s.
	Timeout time.Duration
	// NoSync acknowledges before the disk has the change. For tests only.
	NoSync bool
	// WatchBuffer is how many changes may wait for a slow watch. 0: 16384.
	WatchBuffer int
	Log         *slog.Logger // nil discards

	retry time.Duration // how often to look whether the disk is well again. 0: 1 s
}

// boltStore keeps every record in memory and in one bbolt file. Reads and
// watches never touch the file; one goroutine writes it.
type boltStore struct {
	path  string
	opts  BoltOptions
	log   *slog.Logger
	epoch string
	file  *os.File // bbolt's own
	db    *bbolt.DB

	requests chan *request
	quit     chan struct{} // closed by Close
	stopped  chan struct{} // closed when the committer has gone
	closing  sync.Once
	closed   error
	down     atomic.Pointer[error] // why nothing can be written

	mu       sync.RWMutex // the committer writes under it; it reads without
	records  index
	attached map[LeaseID]map[string]bool
	revision int64
	watchers map[*watcher]struct{} // nil when closed
	watching sync.WaitGroup

	leaseMu sync.Mutex
	leases  map[LeaseID]*lease

	// The committer's own.
	expiry       time.Time        // when to look for expired leases
	retry        time.Time        // when to look whether the disk is well again
	unsure       map[string]bool  // keys whose state in the file is not known, after a failed commit
	unsureLeases map[LeaseID]bool // leases likewise
	broken       bool             // bbolt panicked: only a restart helps
	failed       int              // bytes of the commit that failed
}

type lease struct {
	ttl      time.Duration
	deadline time.Time
}

// OpenBolt opens the store in the file path, and makes it first where there is
// none (0600; missing folders 0700).
func OpenBolt(path string, opts BoltOptions) (Store, error) {
	if opts.Timeout == 0 {
		opts.Timeout = 2 * time.Second
	}
	if opts.retry == 0 {
		opts.retry = time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s, err := openBolt(path, opts)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open store %q: %w: stop that one first, or use a verb that goes through its API", path, ErrHeld)
	case errors.Is(err, errDamaged), errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("open store %q: %w: move the file away, then bring a backup back with \"recast store restore\"", path, err)
	case errors.Is(err, fs.ErrNotExist) && opts.MustExist:
		return nil, fmt.Errorf("open store %q: there is none: name another file, or start \"recast serve\" once", path)
	default:
		return nil, fmt.Errorf("open store %q: %w", path, err)
	}
}

func openBolt(path string, opts BoltOptions) (*boltStore, error) {
	switch _, err := os.Stat(path); {
	case err == nil || opts.MustExist && errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrNotExist):
		err := createFile(path, &image{state: fileState{Schema: schema, Epoch: newEpoch()}}, opts.NoSync)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	default:
		return nil, err
	}

	oneMeta, err := checkFile(path, opts.Timeout)
	if err != nil {
		return nil, err
	}
	if oneMeta {
		opts.Log.Warn("one of the store's two meta pages is damaged: the last commit may be missing", "path", path)
	}
	s := &boltStore{path: path, opts: opts, log: opts.Log}
	var m image
	err = guard(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: opts.Timeout,
			NoSync:  opts.NoSync,
			// The list of free pages is worked out at open instead of written
			// with every commit: less to write, and it cannot be wrong.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
			OpenFile: func(path string, flag int, mode os.FileMode) (f *os.File, err error) {
				f, err = os.OpenFile(path, flag&^os.O_CREATE, mode)
				s.file = f
				return f, err
			},
		})
		if err != nil {
			return err
		}
		return s.db.View(m.load)
	})
	if err != nil {
		s.discard()
		return nil, err
	}
	if err := s.file.Chmod(0o600); err != nil {
		s.discard()
		return nil, err
	}
	s.start(&m)
	return s, nil
}

// discard lets go of a file that could not be opened, whatever state bbolt was
// left in: closing the descriptor ends the lock.
func (s *boltStore) discard() {
	if s.db != nil {
		_ = guard(s.db.Close)
	}
	if s.file != nil {
		_ = s.file.Close()
	}
}

func (s *boltStore) start(m *image) {
	s.epoch = m.state.Epoch
	s.revision = m.state.Revision
	s.records = m.records
	s.requests = make(chan *request, 1024)
	s.quit = make(chan struct{})
	s.stopped = make(chan struct{})
	s.watchers = make(map[*watcher]struct{})
	s.attached = make(map[LeaseID]map[string]bool)
	s.leases = make(map[LeaseID]*lease)
	s.unsure = make(map[string]bool)
	s.unsureLeases = make(map[LeaseID]bool)
	// Nobody knows how long we were away: every lease gets its whole ttl again.
	for id, ttl := range m.leases {
		s.leases[id] = &lease{ttl: ttl, deadline: time.Now().Add(ttl)}
	}
	for _, r := range s.records.list("") {
		s.attach(r)
	}
	go s.run()
}

func (s *boltStore) attach(r *Record) {
	if r.Lease == 0 {
		return
	}
	if s.attached[r.Lease] == nil {
		s.attached[r.Lease] = make(map[string]bool)
	}
	s.attached[r.Lease][r.Key] = true
}

func (s *boltStore) Get(ctx context.Context, key string) (Record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.watchers == nil {
		return Record{}, fmt.Errorf("get %q: %w", key, ErrClosed)
	}
	if r := s.records.get(key); r != nil {
		return *r, nil
	}
	return Record{}, fmt.Errorf("get %q: %w", key, ErrNotFound)
}

func (s *boltStore) List(ctx context.Context, prefix string) ([]Record, int64, error) {
	s.mu.RLock()
	found, revision, closed := s.records.list(prefix), s.revision, s.watchers == nil
	s.mu.RUnlock()
	if closed {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, ErrClosed)
	}
	out := make([]Record, len(found))
	for i, r := range found {
		out[i] = *r
	}
	return out, revision, nil
}

func (s *boltStore) Watch(ctx context.Context, prefix string) (Watch, error) {
	w := newWatcher(prefix, s.opts.WatchBuffer)
	s.mu.Lock()
	if s.watchers == nil {
		s.mu.Unlock()
		return Watch{}, fmt.Errorf("watch %q: %w", prefix, ErrClosed)
	}
	snapshot, revision := s.records.list(prefix), s.revision
	s.watchers[w] = struct{}{}
	s.watching.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.watching.Done()
		w.run(ctx, snapshot, revision)
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	return w.watch(), nil
}

func (s *boltStore) Epoch() string { return s.epoch }

func (s *boltStore) Writable() error {
	select {
	case <-s.quit:
		return ErrClosed
	default:
	}
	if err := s.down.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *boltStore) Held() error { return nil }

func (s *boltStore) Close() error {
	s.closing.Do(func() {
		close(s.quit)
		<-s.stopped
		s.mu.Lock()
		watchers := s.watchers
		s.watchers = nil
		s.mu.Unlock()
		for w := range watchers {
			w.end(ErrClosed)
		}
		s.watching.Wait()
		if s.broken {
			// bbolt may still hold its own locks.
			s.closed = s.file.Close()
			return
		}
		s.closed = s.db.Close()
	})
	return s.closed
}

func newEpoch() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
