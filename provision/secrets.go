package provision

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"recast/store"
)

// sealed is a secret at rest: age to the key file, so that a copy of the store
// alone gives nothing away. Each version is kept beside the newest, as NAME@N,
// since a generation names the version it was made with. A removed secret keeps
// its number and no box: its next value is another version.
type sealed struct {
	Version int       `json:"version"`
	Box     []byte    `json:"box"`
	At      time.Time `json:"at"`
	By      string    `json:"by,omitempty"`
}

// SecretInfo is what may be shown of a secret.
type SecretInfo struct {
	Name    string    `json:"name"`
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	By      string    `json:"by,omitempty"`
}

// Secrets seals small values with age to one key file.
type Secrets struct {
	identity *age.X25519Identity
	table    store.Table[sealed]
	store    store.Store

	// inUse says who needs a secret, "" nobody.
	inUse func(name string) string

	writes sync.Mutex // held from reading records to the commit that changes them

	mu   sync.RWMutex
	info map[string]SecretInfo // names and versions, for planning without I/O
}

// internalPrefix marks the server's own secrets, which no operator can read,
// list or set.
const internalPrefix = "."

var secretName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// OpenSecrets reads the key file, or makes it (0600) where there is none.
func OpenSecrets(ctx context.Context, s store.Store, keyFile string) (*Secrets, error) {
	identity, err := readIdentity(keyFile)
	if err != nil {
		return nil, err
	}
	x := &Secrets{identity: identity, store: s, info: map[string]SecretInfo{},
		table: store.NewTable[sealed](s, "/recast/secrets/")}
	rows, _, err := x.table.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	for _, row := range rows {
		if strings.Contains(row.Name, "@") || len(row.Value.Box) == 0 {
			continue
		}
		x.info[row.Name] = SecretInfo{Name: row.Name, Version: row.Value.Version, At: row.Value.At, By: row.Value.By}
	}
	return x, nil
}

func readIdentity(path string) (*age.X25519Identity, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		for line := range strings.Lines(string(raw)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				id, err := age.ParseX25519Identity(line)
				if err != nil {
					return nil, fmt.Errorf("read key file %q: %w; restore it from your backup", path, err)
				}
				return id, nil
			}
		}
		return nil, fmt.Errorf("read key file %q: it holds no key; restore it from your backup", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*") // 0600 by itself
	if err != nil {
		return nil, fmt.Errorf("make key file: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = fmt.Fprintf(tmp, "# recast: opens the secrets in the store. Keep a copy apart from the store's backups.\n%s\n", id)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return nil, fmt.Errorf("make key file %q: %w", path, err)
	}
	return id, nil
}

// auditWrite makes what is committed with a change of a secret; nil for nothing.
type auditWrite func(name string, version int) (store.Op, error)

// Set stores a new version of a secret, and with it what also makes.
func (x *Secrets) Set(ctx context.Context, name string, value []byte, by string, now time.Time, also auditWrite) (SecretInfo, error) {
	if !secretName.MatchString(name) {
		return SecretInfo{}, fmt.Errorf("set secret %q: a name has lower-case letters, digits and hyphens", name)
	}
	return x.put(ctx, name, value, by, now, also)
}

func (x *Secrets) put(ctx context.Context, name string, value []byte, by string, now time.Time, also auditWrite) (SecretInfo, error) {
	box, err := x.seal(value)
	if err != nil {
		return SecretInfo{}, fmt.Errorf("seal secret %q: %w", name, err)
	}
	x.writes.Lock()
	defer x.writes.Unlock()
	old, rev, err := x.table.Get(ctx, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return SecretInfo{}, fmt.Errorf("read secret %q: %w", name, err)
	}
	row := sealed{Version: old.Version + 1, Box: box, At: now, By: by}
	op, err := x.table.PutOp(name, row, rev)
	if err != nil {
		return SecretInfo{}, err
	}
	keep, err := x.table.PutOp(versionName(name, row.Version), row, store.Any)
	if err != nil {
		return SecretInfo{}, err
	}
	ops := []store.Op{op, keep}
	if also != nil {
		op, err := also(name, row.Version)
		if err != nil {
			return SecretInfo{}, err
		}
		ops = append(ops, op)
	}
	if _, err := durable(ctx, x.store, ops...); err != nil {
		x.reread(ctx, name)
		return SecretInfo{}, fmt.Errorf("store secret %q: %w", name, err)
	}
	return x.know(name, row), nil
}

// know remembers what stands in the store now.
func (x *Secrets) know(name string, row sealed) SecretInfo {
	info := SecretInfo{Name: name, Version: row.Version, At: row.At, By: row.By}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(row.Box) == 0 {
		delete(x.info, name)
	} else {
		x.info[name] = info
	}
	return info
}

// reread looks what a commit left that failed: where it was cut off by its
// deadline it may have happened all the same.
func (x *Secrets) reread(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if row, _, err := x.table.Get(ctx, name); err == nil {
		x.know(name, row)
	}
}

func versionName(name string, version int) string { return fmt.Sprintf("%s@%d", name, version) }

// GetVersion opens one version of a secret.
func (x *Secrets) GetVersion(ctx context.Context, name string, version int) ([]byte, error) {
	b, err := x.open(ctx, versionName(name, version))
	if errors.Is(err, errNoSecret) {
		return nil, fmt.Errorf("version %d of secret %q is not kept any more: set it anew and plan again: %w", version, name, err)
	}
	return b, err
}

// errNoSecret: there is no such secret, or no such version of it.
var errNoSecret = errors.New("the secret is not set")

// Get opens the newest version of a secret.
func (x *Secrets) Get(ctx context.Context, name string) ([]byte, error) {
	b, err := x.open(ctx, name)
	if errors.Is(err, errNoSecret) {
		return nil, fmt.Errorf("secret %q is not set: recast secret set %s", name, name)
	}
	return b, err
}

func (x *Secrets) open(ctx context.Context, name string) ([]byte, error) {
	row, _, err := x.table.Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) || err == nil && len(row.Box) == 0 {
		return nil, errNoSecret
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %q: %w", name, err)
	}
	value, err := x.unseal(row.Box)
	if err != nil {
		return nil, fmt.Errorf("open secret %q: %w", name, err)
	}
	return value, nil
}

// seal closes a value to the key file.
func (x *Secrets) seal(value []byte) ([]byte, error) {
	var box bytes.Buffer
	w, err := age.Encrypt(&box, x.identity.Recipient())
	if err != nil {
		return nil, err
	}
	if _, err = w.Write(value); err == nil {
		err = w.Close()
	}
	return box.Bytes(), err
}

// unseal opens it.
func (x *Secrets) unseal(box []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(box), x.identity)
	if err != nil {
		return nil, fmt.Errorf("%w; is this the store's own key file?", err)
	}
	return io.ReadAll(r)
}

// Version of an operator's secret; false where it is not set.
func (x *Secrets) Version(name string) (int, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, ok := x.info[name]
	return i.Version, ok
}

// List names the operator's secrets, never their values.
func (x *Secrets) List() []SecretInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []SecretInfo
	for _, name := range sortedKeys(x.info) {
		if !strings.HasPrefix(name, internalPrefix) {
			out = append(out, x.info[name])
		}
	}
	return out
}

// Remove deletes a secret in all its versions, and commits with it what also
// makes. One that is needed stays.
func (x *Secrets) Remove(ctx context.Context, name string, also auditWrite) error {
	if err := x.remove(ctx, name, also); err != nil {
		return err
	}
	if err := x.collect(ctx, nil); err != nil {
		return fmt.Errorf("remove the versions of secret %q: %w; the next start of the server removes them", name, err)
	}
	return nil
}

func (x *Secrets) remove(ctx context.Context, name string, also auditWrite) error {
	x.writes.Lock()
	defer x.writes.Unlock()
	if _, ok := x.Version(name); !ok || strings.HasPrefix(name, internalPrefix) {
		return fmt.Errorf("remove secret %q: it is not set", name)
	}
	if x.inUse != nil {
		if who := x.inUse(name); who != "" {
			return fmt.Errorf("remove secret %q: %s needs it", name, who)
		}
	}
	row, rev, err := x.table.Get(ctx, name)
	if err != nil {
		return fmt.Errorf("remove secret %q: %w", name, err)
	}
	row.Box = nil
	op, err := x.table.PutOp(name, row, rev)
	if err != nil {
		return err
	}
	ops := []store.Op{op}
	if also != nil {
		op, err := also(name, row.Version)
		if err != nil {
			return err
		}
		ops = append(ops, op)
	}
	if _, err := durable(ctx, x.store, ops...); err != nil {
		x.reread(ctx, name)
		return fmt.Errorf("remove secret %q: %w", name, err)
	}
	x.know(name, row)
	return nil
}

// collect deletes versions: those of a removed secret, and those that are neither
// the newest nor needed. A nil needed needs all.
func (x *Secrets) collect(ctx context.Context, needed func(name string, version int) bool) error {
	x.writes.Lock()
	defer x.writes.Unlock()
	rows, _, err := x.table.List(ctx)
	if err != nil {
		return fmt.Errorf("list secrets: %w", err)
	}
	newest := map[string]sealed{}
	for _, row := range rows {
		if !strings.Contains(row.Name, "@") {
			newest[row.Name] = row.Value
		}
	}
	var ops []store.Op
	for _, row := range rows {
		name, _, version := strings.Cut(row.Name, "@")
		now, ok := newest[name]
		if !version || !ok || len(now.Box) > 0 && (needed == nil || row.Value.Version == now.Version || needed(name, row.Value.Version)) {
			continue
		}
		ops = append(ops, x.table.DeleteOp(row.Name, row.Revision))
	}
	return deleteAll(ctx, x.store, ops)
}

// deleteAll commits deletes, as many at once as fit. Each stands for itself.
func deleteAll(ctx context.Context, s store.Store, ops []store.Op) error {
	for len(ops) > 0 {
		n := min(len(ops), store.MaxOps)
		if _, err := durable(ctx, s, ops[:n]...); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// internal gets one of the server's own secrets, making it where there is none.
func (x *Secrets) internal(ctx context.Context, name string, now time.Time, make func() ([]byte, error)) ([]byte, error) {
	if _, ok := x.Version(internalPrefix + name); ok {
		return x.Get(ctx, internalPrefix+name)
	}
	value, err := make()
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	if _, err := x.put(ctx, internalPrefix+name, value, "", now, nil); err != nil {
		return nil, err
	}
	return value, nil
}
