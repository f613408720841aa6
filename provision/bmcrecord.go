package provision

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/store"
)

// bmcRecord is what recast knows of a BMC beside what its machine declares. It is
// kept by address, since several machines may stand behind one BMC.
type bmcRecord struct {
	// Driver, At and By are of the enrolment; zero: there was none.
	Driver string    `json:"driver,omitempty"`
	At     time.Time `json:"at,omitzero"`
	By     string    `json:"by,omitempty"`
	// Pin is the certificate that an operator accepted; bmc.pin goes before it.
	Pin      inventory.Digest `json:"pin,omitempty"`
	About    bmc.BMCIdentity  `json:"about,omitzero"`
	Exposure *bmc.Exposure    `json:"exposure,omitempty"`
	// Tried are the default passwords that were tried, as NAME@VERSION of their secret.
	Tried string    `json:"tried,omitempty"`
	Facts bmc.Facts `json:"facts,omitzero"`
	// Login is what the last rotation set; nil: the declared secret's. Pending was told
	// to the BMC, perhaps: one of the two lets us in.
	Login   *bmcLogin `json:"login,omitempty"`
	Pending *bmcLogin `json:"pending,omitempty"`
	// Refused is the login that was refused last.
	Refused *bmcRefusal `json:"refused,omitempty"`
}

// bmcRefusal is on record, since a server that starts anew would try it again, and be
// locked out after a few starts.
type bmcRefusal struct {
	At         string    `json:"at"`         // host:port
	Credential string    `json:"credential"` // as bmc.Target names it
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until,omitzero"`
	Locked     bool      `json:"locked,omitempty"`
	Said       string    `json:"said"`
}

// bmcLogin is a user, and a password that is sealed as secrets are.
type bmcLogin struct {
	User string    `json:"user"`
	Box  []byte    `json:"box"`
	At   time.Time `json:"at"`
	By   string    `json:"by,omitempty"`
}

// BMCView is a machine's BMC as an operator sees it.
type BMCView struct {
	Driver string           `json:"driver"`         // redfish or ipmi, for good: the other one is never tried
	Pin    inventory.Digest `json:"pin,omitempty"`  // of the certificate, declared or accepted
	At     time.Time        `json:"at,omitzero"`    // of the enrolment; zero: it was not
	By     string           `json:"by,omitempty"`   // who enrolled it
	About  bmc.BMCIdentity  `json:"about,omitzero"` // as it said then
	// Exposure of its IPMI, as seen then.
	Exposure *bmc.Exposure `json:"exposure,omitempty"`
	// User and Rotated are of the last rotation; none: the declared secret is used.
	User    string    `json:"user,omitempty"`
	Rotated time.Time `json:"rotated,omitzero"`
	// Rotating: a new password was made at this time and is not known to work.
	Rotating time.Time `json:"rotating,omitzero"`
}

// bmcBook are the records of all BMCs.
type bmcBook struct {
	table store.Table[bmcRecord]
	mu    sync.Mutex
	known map[string]*bmcKnown
}

// bmcKnown is one of them. Who changes it, or chooses its password, has the turn: a
// rotation is one from its first look to its last.
type bmcKnown struct {
	key   string
	turn  chan struct{}
	shown atomic.Pointer[bmcRecord] // never changed in place
	told  int                       // how often the pending password was said; under the turn
}

func newBMCBook(s store.Store) *bmcBook {
	return &bmcBook{table: store.NewTable[bmcRecord](s, "/recast/enrolments/"), known: map[string]*bmcKnown{}}
}

func (b *bmcBook) load(ctx context.Context) error {
	rows, _, err := b.table.List(ctx)
	if err != nil {
		return fmt.Errorf("list the BMCs that were enrolled: %w", err)
	}
	for _, row := range rows {
		b.at(row.Name).shown.Store(&row.Value)
	}
	return nil
}

// bmcKey is the same for both protocols on their own ports.
func bmcKey(url string) (string, error) {
	driver, host, port, err := bmc.Address(url)
	if err != nil || driver == "redfish" && port == 443 || driver == "ipmi" && port == 623 {
		return host, err
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

func (b *bmcBook) at(key string) *bmcKnown {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, ok := b.known[key]
	if !ok {
		k = &bmcKnown{key: key, turn: make(chan struct{}, 1)}
		k.shown.Store(&bmcRecord{})
		b.known[key] = k
	}
	return k
}

// of is the record of a machine's BMC.
func (b *bmcBook) of(decl *inventory.Machine) (*bmcKnown, error) {
	key, err := bmcKey(decl.BMC.URL)
	if err != nil {
		return nil, err
	}
	return b.at(key), nil
}

func (k *bmcKnown) record() bmcRecord { return *k.shown.Load() }

// enter takes the turn; leave gives it back.
func (k *bmcKnown) enter(ctx context.Context) (leave func(), err error) {
	select {
	case k.turn <- struct{}{}:
		return func() { <-k.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: its password is being rotated", bmc.ErrBusy)
	}
}

// write makes a change of a record; keep remembers it when it was committed. The
// caller has the turn, so that nobody else writes.
func (b *bmcBook) write(k *bmcKnown, r bmcRecord) (op store.Op, keep func(), err error) {
	op, err = b.table.PutOp(k.key, r, store.Any)
	return op, func() { k.shown.Store(&r) }, err
}

// put commits a record by itself.
func (e *Engine) putBMC(ctx context.Context, k *bmcKnown, r bmcRecord) error {
	op, keep, err := e.book.write(k, r)
	if err != nil {
		return err
	}
	if _, err := e.durable(ctx, op); err != nil {
		return fmt.Errorf("record what is known of the BMC %s: %w", k.key, err)
	}
	keep()
	return nil
}

// putWhereIdle changes a record, and does nothing where somebody else has the turn: the
// next conversation tells the same.
func (e *Engine) putWhereIdle(ctx context.Context, k *bmcKnown, change func(*bmcRecord)) error {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	default:
		return nil
	}
	r := k.record()
	change(&r)
	return e.putBMC(ctx, k, r)
}

// learn keeps what a conversation taught of the way to ask.
func (e *Engine) learn(ctx context.Context, k *bmcKnown, facts bmc.Facts) {
	if facts == (bmc.Facts{}) || facts == k.record().Facts {
		return
	}
	if err := e.putWhereIdle(ctx, k, func(r *bmcRecord) { r.Facts = facts }); err != nil {
		e.Log.Debug("what was learned of a BMC is not on record", "bmc", k.key, "err", err)
	}
}

// refuses is why a login is not tried, nil where it may be.
func (r *bmcRefusal) refuses(t bmc.Target, now time.Time) error {
	if r == nil || r.At != atBMC(t.URL) || r.Credential != t.Credential || !r.Until.IsZero() && !now.Before(r.Until) {
		return nil
	}
	reason := bmc.ErrAuth
	if r.Locked {
		reason = bmc.ErrLockedOut
	}
	return &bmc.RefusedError{BMC: r.At, Since: r.Since, Until: r.Until, Err: saidBefore{r.Said, reason}}
}

// saidBefore is what an earlier run of the server was told.
type saidBefore struct {
	text   string
	reason error
}

func (e saidBefore) Error() string { return e.text }
func (e saidBefore) Unwrap() error { return e.reason }

// keepRefusal records a refused login, or that there is none any more. Where somebody
// else has the turn, the next conversation does.
func (e *Engine) keepRefusal(ctx context.Context, k *bmcKnown, t bmc.Target, err error) {
	var refused *bmc.RefusedError
	known, now := k.record().Refused, (*bmcRefusal)(nil)
	switch {
	case errors.As(err, &refused):
		if known != nil && known.Credential == t.Credential && known.Since.Equal(refused.Since) {
			return
		}
		now = &bmcRefusal{At: refused.BMC, Credential: t.Credential, Since: refused.Since, Until: refused.Until,
			Locked: errors.Is(err, bmc.ErrLockedOut), Said: refused.Err.Error()}
	case err != nil || known == nil:
		return
	}
	if err := e.putWhereIdle(ctx, k, func(r *bmcRecord) { r.Refused = now }); err != nil {
		e.Log.Warn("a refused login is not on record, and is tried again by the next run of the server", "bmc", k.key, "err", err)
	}
}

// view for the operator.
func (k *bmcKnown) view(decl *inventory.Machine) *BMCView {
	r := k.record()
	driver, _, _, _ := bmc.Address(decl.BMC.URL)
	v := &BMCView{Driver: driver, Pin: decl.BMC.Pin, At: r.At, By: r.By, About: r.About, Exposure: r.Exposure}
	if v.Pin == "" && driver == "redfish" {
		v.Pin = r.Pin
	}
	if r.Login != nil {
		v.User, v.Rotated = r.Login.User, r.Login.At
	}
	if r.Pending != nil {
		v.Rotating = r.Pending.At
	}
	return v
}

// bmcTarget is where a machine's BMC is and how it is believed, with a login of the
// record, or nil for the declared secret.
func (e *Engine) bmcTarget(ctx context.Context, decl *inventory.Machine, k *bmcKnown, login *bmcLogin) (bmc.Target, error) {
	r := k.record()
	t := bmc.Target{URL: decl.BMC.URL, Pin: decl.BMC.Pin, HostKey: decl.BMC.HostKey, CipherSuite: decl.BMC.CipherSuite, Facts: r.Facts}
	if t.Pin == "" && strings.HasPrefix(t.URL, "redfish:") {
		t.Pin = r.Pin
	}
	if login != nil {
		password, err := e.secrets.unseal(login.Box)
		if err != nil {
			return t, errors.Join(errNoCredentials, fmt.Errorf("open the password of the BMC %s: %w", k.key, err))
		}
		t.User, t.Password = login.User, bmc.Secret(password)
		// After it was said once more, it may be tried once more.
		t.Credential = fmt.Sprintf("rotated %d, said %d", login.At.UnixNano(), k.told)
		return t, nil
	}
	version, _ := e.secrets.Version(decl.BMC.Credentials) // before it is read: at worst a new one is tried twice
	raw, err := e.secrets.Get(ctx, decl.BMC.Credentials)
	if err != nil {
		return t, errors.Join(errNoCredentials, err)
	}
	t.User, t.Password, err = bmc.Split(strings.TrimRight(string(raw), "\n"))
	if err != nil {
		return t, fmt.Errorf("secret %q: %w", decl.BMC.Credentials, errors.Join(errNoCredentials, err))
	}
	t.Credential = fmt.Sprintf("%s@%d", decl.BMC.Credentials, version)
	return t, nil
}
