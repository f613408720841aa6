package store

import (
	"fmt"
	"time"
)

// batch decides what a group of requests would change, on top of what is
// committed; it writes nothing.
type batch struct {
	base     *index
	revision int64
	alive    func(LeaseID) bool
	attached map[LeaseID]map[string]bool // committed records by lease

	pending map[string]*Record // what the batch writes; nil deletes
	granted map[LeaseID]time.Duration
	ended   map[LeaseID]bool
	events  []Event
}

// current is the record as an operation of this batch sees it, and whether an
// earlier request of the batch made it so.
func (b *batch) current(key string) (r *Record, fresh bool) {
	if r, ok := b.pending[key]; ok {
		return r, true
	}
	return b.base.get(key), false
}

// commit applies ops. unsure tells that the answer stands or falls with the
// rest of the batch.
func (b *batch) commit(ops []Op) (revision int64, unsure bool, err error) {
	changes := false
	for _, op := range ops {
		now, fresh := b.current(op.Key)
		unsure = unsure || fresh
		switch {
		case op.If == Any:
		case op.If == 0 && now != nil, op.If > 0 && (now == nil || now.Revision != op.If):
			return 0, unsure, fmt.Errorf("commit key %q: %w", op.Key, ErrConflict)
		}
		if op.Lease != 0 && (b.ended[op.Lease] || !b.alive(op.Lease)) {
			return 0, unsure, fmt.Errorf("commit key %q: lease %x: %w", op.Key, int64(op.Lease), ErrNotFound)
		}
		if !op.Check && (op.Value != nil || now != nil) {
			changes = true
		}
	}
	if !changes {
		return b.revision, unsure, nil
	}
	b.revision++
	for _, op := range ops {
		switch now, _ := b.current(op.Key); {
		case op.Check:
		case op.Value != nil:
			b.put(&Record{Key: op.Key, Value: op.Value, Revision: b.revision, Lease: op.Lease})
		case now != nil:
			b.delete(op.Key)
		}
	}
	return b.revision, true, nil
}

// end deletes a lease and the records that live by it.
func (b *batch) end(id LeaseID) {
	b.ended[id] = true
	var keys []string
	for key := range b.attached[id] {
		if r, fresh := b.current(key); !fresh && r != nil {
			keys = append(keys, key)
		}
	}
	for key, r := range b.pending {
		if r != nil && r.Lease == id {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return
	}
	b.revision++
	for _, key := range keys {
		b.delete(key)
	}
}

func (b *batch) put(r *Record) {
	b.pending[r.Key] = r
	b.events = append(b.events, Event{Record: *r})
}

func (b *batch) delete(key string) {
	b.pending[key] = nil
	b.events = append(b.events, Event{Record: Record{Key: key, Revision: b.revision}, Deleted: true})
}

func (b *batch) empty() bool {
	return len(b.pending) == 0 && len(b.granted) == 0 && len(b.ended) == 0
}
