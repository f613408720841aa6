// Package store keeps durable records: small JSON documents under slash-separated
// keys, with one global revision, compare-and-put, watch and lease. Two engines
// stand behind one contract: bbolt in one file, and an etcd cluster.
//
// A caller's duties: keep a record under 1 MiB and a Txn under 100 operations
// (etcd's limits); drain or cancel every watch.
package store

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrNotFound: no record under the key.
	ErrNotFound = errors.New("no such record")
	// ErrConflict: a condition of the transaction did not hold; nothing was written.
	ErrConflict = errors.New("the record has changed")
	// ErrResync ends a watch whose reader was too slow, or whose connection was
	// lost: list again and watch anew.
	ErrResync = errors.New("the watch fell behind")
	// ErrUnavailable: the engine cannot commit now (disk full, cluster away).
	// Nothing was acknowledged; trying again later may work.
	ErrUnavailable = errors.New("the store cannot write")
	// ErrHeld: another process holds the store.
	ErrHeld = errors.New("another recast holds this store")
	// ErrLost: this process held the store and does not any more. Only a new start
	// helps, since what it remembers may be old.
	ErrLost = errors.New("another recast may hold this store by now")
	// ErrNewer: a record was written by a newer recast.
	ErrNewer = errors.New("the record was written by a newer version")
)

// Record is one stored value. Revision is the store's revision at which it was
// last written. Value is shared with the store: read it, never change it.
type Record struct {
	Key      string
	Value    []byte
	Revision int64
	// Lease, where set, is what the record lives by.
	Lease LeaseID
}

// Op is one write of a transaction; a nil Value deletes. If has the revision
// the record must still have: 0 means "must not exist", Any means no condition.
type Op struct {
	Key   string
	Value []byte
	If    int64
	// Lease, where set, deletes the record when the lease ends.
	Lease LeaseID
	// Check only asks for the condition: the record is left as it is. It fences
	// a write by the revision of another record.
	Check bool
}

// Any as a condition accepts whatever stands there.
const Any int64 = -1

// LeaseID names a lease; 0 is none.
type LeaseID int64

// Event is one committed change, or the end of the snapshot.
type Event struct {
	Record
	Deleted bool
	// Synced marks the end of the snapshot; it carries only the Revision.
	Synced bool
}

// Watch is a snapshot followed by every committed change in revision order.
type Watch struct {
	Events <-chan Event
	// Err is valid after Events was closed: nil when the context ended,
	// ErrResync when the reader must list again.
	Err func() error
}

// Store is the contract of both engines; one suite judges both.
type Store interface {
	Get(ctx context.Context, key string) (Record, error)
	// List returns the records whose key begins with prefix, by key, and the
	// revision of the snapshot they form.
	List(ctx context.Context, prefix string) ([]Record, int64, error)
	// Commit applies all operations or none, and returns the new revision. When
	// it returns nil the change survives a crash.
	Commit(ctx context.Context, ops ...Op) (int64, error)
	// Watch never starts from an old revision: it begins with a snapshot.
	Watch(ctx context.Context, prefix string) (Watch, error)
	// Grant makes a lease that ends after ttl unless kept alive.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)
	KeepAlive(ctx context.Context, id LeaseID) error
	Revoke(ctx context.Context, id LeaseID) error
	// Epoch is the random word of this store, renewed by a restore.
	Epoch() string
	// Writable is nil when the last commit worked, else why not.
	Writable() error
	// Held is nil while this process alone may act on what the store permits:
	// always for a file, which one process opens. Where a cluster has not confirmed
	// it for too long it is ErrUnavailable; ErrLost is for good.
	Held() error
	Close() error
}
