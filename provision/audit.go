package provision

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"recast/inventory"
	"recast/store"
)

const auditKey = "/recast/audit/"

// AuditEntry says who did what. Each carries the hash of the one before.
type AuditEntry struct {
	Seq     int64            `json:"seq"`
	At      time.Time        `json:"at"`
	Who     string           `json:"who"`
	What    string           `json:"what"`
	Machine string           `json:"machine,omitempty"`
	Plan    inventory.Digest `json:"plan,omitempty"`
	Set     inventory.Digest `json:"set,omitempty"`
	Erase   []string         `json:"erase,omitempty"`
	// Generations that the groups run by what was applied.
	Generations map[string]inventory.Digest `json:"generations,omitempty"`
	Detail      string                      `json:"detail,omitempty"`
	Before      inventory.Digest            `json:"before,omitempty"` // hash of the entry before
}

// audit makes the write that appends an entry. The caller holds applyMu, and
// commits it with what it audits.
func (e *Engine) audit(ctx context.Context, a AuditEntry) (store.Op, error) {
	log, _, err := e.Store.List(ctx, auditKey)
	if err != nil {
		return store.Op{}, fmt.Errorf("read the audit log: %w", err)
	}
	a.Seq = int64(len(log)) + 1
	if n := len(log); n > 0 {
		a.Before = inventory.NewDigest(sha256.Sum256(log[n-1].Value))
	}
	raw, err := json.Marshal(a)
	if err != nil {
		return store.Op{}, err
	}
	return store.Op{Key: fmt.Sprintf("%s%012d", auditKey, a.Seq), Value: raw, If: 0}, nil
}

// Audit is the log, oldest first, its chain verified.
func (e *Engine) Audit(ctx context.Context) ([]AuditEntry, error) {
	records, _, err := e.Store.List(ctx, auditKey)
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	var out []AuditEntry
	var before inventory.Digest
	for _, r := range records {
		var a AuditEntry
		if err := json.Unmarshal(r.Value, &a); err != nil {
			return nil, fmt.Errorf("read audit entry %s: %w", r.Key, err)
		}
		if a.Before != before {
			return out, fmt.Errorf("audit entry %d does not follow the one before it: the log was changed", a.Seq)
		}
		before = inventory.NewDigest(sha256.Sum256(r.Value))
		out = append(out, a)
	}
	return out, nil
}
