package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// tableVersion is the schema version of the records that this recast writes.
const tableVersion = 1

// opening of a record of that version.
var opening = fmt.Sprintf(`{"v":%d,"o":`, tableVersion)

// Table keeps values of one type as JSON under prefix + name, each in an
// envelope with its schema version: {"v":1,"o":{…}}.
type Table[T any] struct {
	store  Store
	prefix string
}

// Row is one value of a Table. Revision is the condition for writing it back.
type Row[T any] struct {
	Name     string
	Value    T
	Revision int64
}

type envelope struct {
	Version int             `json:"v"`
	Object  json.RawMessage `json:"o"`
}

// NewTable returns the table under prefix, which ends in a slash: else the
// table "/recast/status" would also hold "/recast/status-old/x".
func NewTable[T any](s Store, prefix string) Table[T] {
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return Table[T]{store: s, prefix: prefix}
}

// Prefix ends in a slash; it is what to watch.
func (t Table[T]) Prefix() string { return t.prefix }

// Key of the record that holds name.
func (t Table[T]) Key(name string) string { return t.prefix + name }

// Name of the value that is kept under key.
func (t Table[T]) Name(key string) string { return strings.TrimPrefix(key, t.prefix) }

// Get returns the value and its revision, or ErrNotFound.
func (t Table[T]) Get(ctx context.Context, name string) (T, int64, error) {
	r, err := t.store.Get(ctx, t.Key(name))
	if err != nil {
		var none T
		return none, 0, err
	}
	v, err := t.Decode(r)
	return v, r.Revision, err
}

// List returns all rows by name, and the revision of the snapshot they form.
func (t Table[T]) List(ctx context.Context) ([]Row[T], int64, error) {
	records, revision, err := t.store.List(ctx, t.prefix)
	if err != nil {
		return nil, 0, err
	}
	rows := make([]Row[T], len(records))
	for i, r := range records {
		rows[i] = Row[T]{Name: t.Name(r.Key), Revision: r.Revision}
		if rows[i].Value, err = t.Decode(r); err != nil {
			return nil, 0, err
		}
	}
	return rows, revision, nil
}

// Decode opens the envelope of a record, from an Event too. A record of a newer
// recast is ErrNewer; fields that this one does not know are ignored.
func (t Table[T]) Decode(r Record) (T, error) {
	var v T
	var e envelope
	if err := json.Unmarshal(r.Value, &e); err != nil {
		return v, fmt.Errorf("decode record %q: %w", r.Key, err)
	}
	if e.Version > tableVersion {
		return v, fmt.Errorf("decode record %q of version %d: %w: update recast", r.Key, e.Version, ErrNewer)
	}
	if e.Version < 1 || len(e.Object) == 0 {
		return v, fmt.Errorf("decode record %q: it has no version or no object", r.Key)
	}
	if err := json.Unmarshal(e.Object, &v); err != nil {
		return v, fmt.Errorf("decode record %q: %w", r.Key, err)
	}
	return v, nil
}

// PutOp writes value if the record still has the revision ifRevision (0: there
// is none yet; Any: whatever stands there).
func (t Table[T]) PutOp(name string, value T, ifRevision int64) (Op, error) {
	if name == "" {
		return Op{}, fmt.Errorf("put into %q: the name is empty", t.prefix)
	}
	// A user's text may hold <, > and &; they stay readable.
	var b bytes.Buffer
	b.Grow(256) // a lease or two
	b.WriteString(opening)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return Op{}, fmt.Errorf("encode record %q: %w", t.Key(name), err)
	}
	b.Truncate(b.Len() - 1) // Encode's newline
	b.WriteByte('}')
	return Op{Key: t.Key(name), Value: b.Bytes(), If: ifRevision}, nil
}

// DeleteOp deletes under the same conditions as PutOp.
func (t Table[T]) DeleteOp(name string, ifRevision int64) Op {
	return Op{Key: t.Key(name), If: ifRevision}
}

// Put commits one PutOp and returns the record's new revision.
func (t Table[T]) Put(ctx context.Context, name string, value T, ifRevision int64) (int64, error) {
	op, err := t.PutOp(name, value, ifRevision)
	if err != nil {
		return 0, err
	}
	return t.store.Commit(ctx, op)
}

// Delete commits one DeleteOp.
func (t Table[T]) Delete(ctx context.Context, name string, ifRevision int64) error {
	_, err := t.store.Commit(ctx, t.DeleteOp(name, ifRevision))
	return err
}
