package provision

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"recast/inventory"
	"recast/store"
)

const auditPrefix = "/recast/audit/"

// AuditEntry says who did what. Each carries the hash of the one before.
type AuditEntry struct {
	Seq     int64            `json:"seq"`
	At      time.Time        `json:"at"`
	Who     string           `json:"who"`
	What    string           `json:"what"`
	Machine string           `json:"machine,omitempty"`
	Plan    inventory.Digest `json:"plan,omitempty"`
	Set     inventory.Digest `json:"set,omitempty"`
	Image   inventory.Digest `json:"image,omitempty"`
	Erase   []string         `json:"erase,omitempty"`
	// Generations that the groups run by what was applied.
	Generations map[string]inventory.Digest `json:"generations,omitempty"`
	Detail      string                      `json:"detail,omitempty"`
	Before      inventory.Digest            `json:"before,omitempty"` // hash of the entry before

	// Hash of the entry as it is stored, and why the chain does not hold here; ""
	// it holds. Both are worked out on reading.
	Hash   inventory.Digest `json:"hash,omitempty"`
	Broken string           `json:"broken,omitempty"`
}

// auditLog appends to the log. Its mutex-holding caller commits what it makes,
// so the end is looked for each time, from where it was seen last.
type auditLog struct {
	table store.Table[AuditEntry]
	store store.Store

	mu   sync.Mutex
	seq  int64 // of the last entry seen, 0 none
	hash inventory.Digest
}

func newAuditLog(s store.Store) *auditLog {
	return &auditLog{store: s, table: store.NewTable[AuditEntry](s, auditPrefix)}
}

func auditName(seq int64) string { return fmt.Sprintf("%012d", seq) }

func auditHash(r store.Record) inventory.Digest {
	return inventory.NewDigest(sha256.Sum256(r.Value))
}

// op is the write that appends an entry. It fails in the commit if somebody else
// appends in the meantime.
func (l *auditLog) op(ctx context.Context, a AuditEntry) (store.Op, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.seek(ctx); err != nil {
		return store.Op{}, fmt.Errorf("read the audit log: %w", err)
	}
	a.Seq, a.Before = l.seq+1, l.hash
	return l.table.PutOp(auditName(a.Seq), a, 0)
}

// seek finds the last entry.
func (l *auditLog) seek(ctx context.Context) error {
	if l.seq == 0 {
		records, _, err := l.store.List(ctx, auditPrefix)
		if err != nil || len(records) == 0 {
			return err
		}
		last := records[len(records)-1]
		if l.seq, err = l.number(last); err != nil {
			l.seq = 0
			return err
		}
		l.hash = auditHash(last)
	}
	for {
		r, err := l.store.Get(ctx, l.table.Key(auditName(l.seq+1)))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		l.seq, l.hash = l.seq+1, auditHash(r)
	}
}

func (l *auditLog) number(r store.Record) (int64, error) {
	n, err := strconv.ParseInt(l.table.Name(r.Key), 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("the key %q has no number", r.Key)
	}
	return n, nil
}

// entries are the log, oldest first. Where the chain does not hold, the entry
// says so.
func (l *auditLog) entries(ctx context.Context) ([]AuditEntry, error) {
	records, _, err := l.store.List(ctx, auditPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	out := make([]AuditEntry, 0, len(records))
	var seq int64
	var before inventory.Digest
	for _, r := range records {
		n, err := l.number(r)
		if err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		a, err := l.table.Decode(r)
		switch {
		case errors.Is(err, store.ErrNewer):
			return nil, fmt.Errorf("read the audit log: %w", err)
		case err != nil:
			a.Broken = "it cannot be read: " + err.Error()
		case n > seq+2:
			a.Broken = fmt.Sprintf("the entries %d to %d are missing", seq+1, n-1)
		case n > seq+1:
			a.Broken = fmt.Sprintf("the entry %d is missing", seq+1)
		case a.Seq != n:
			a.Broken = fmt.Sprintf("it says that it is entry %d", a.Seq)
		case a.Before != before:
			a.Broken = fmt.Sprintf("the entry before it was changed after it was written: its hash is %s, and was %s", before.Short(), a.Before.Short())
		}
		seq, before = n, auditHash(r)
		a.Seq, a.Hash = n, before
		out = append(out, a)
	}
	return out, nil
}

// audit makes the write that appends an entry. The caller holds applyMu, and
// commits it with what it audits.
func (e *Engine) audit(ctx context.Context, a AuditEntry) (store.Op, error) { return e.log.op(ctx, a) }

// Audit is the log, oldest first, each entry with what is wrong with the chain
// there.
func (e *Engine) Audit(ctx context.Context) ([]AuditEntry, error) { return e.log.entries(ctx) }

// Record appends an entry for a deed that has no record of its own in the store.
// It stands there when the deed begins: one that was cut off is recorded, one
// that is not recorded does not happen.
func (e *Engine) Record(ctx context.Context, a AuditEntry) error {
	e.applyMu.Lock()
	defer e.applyMu.Unlock()
	return e.record(ctx, a)
}

// record is Record with applyMu held.
func (e *Engine) record(ctx context.Context, a AuditEntry) error {
	a.At = e.Now()
	op, err := e.audit(ctx, a)
	if err != nil {
		return err
	}
	if _, err := e.durable(ctx, op); err != nil {
		return fmt.Errorf("record %q in the audit log: %w", a.What, err)
	}
	return nil
}

// RecordIn appends to the audit log of a store that no engine has open.
func RecordIn(ctx context.Context, s store.Store, a AuditEntry) error {
	op, err := newAuditLog(s).op(ctx, a)
	if err != nil {
		return err
	}
	if _, err := s.Commit(ctx, op); err != nil {
		return fmt.Errorf("record %q in the audit log: %w", a.What, err)
	}
	return nil
}
