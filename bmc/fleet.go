package bmc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"recast/inventory"
)

const (
	// loginTimeout bounds a login: slow BMCs take tens of seconds after a restart.
	loginTimeout = 30 * time.Second
	// keepSession is how long a session is kept that nobody uses. BMCs have four
	// to eight, and forget theirs after 5 to 30 minutes.
	keepSession = 10 * time.Minute
	// lockedOutTime is how long a BMC is left alone that locked us out and does not
	// say for how long; vendors' defaults are 1 to 10 minutes, and some begin anew
	// with each try.
	lockedOutTime = 10 * time.Minute
)

var errFleetClosed = errors.New("the server is stopping: no BMC is asked any more")

// Fleet owns the conversations with all BMCs: one session with each, kept between
// conversations, one call in flight per BMC and a bounded number of calls in all.
// A credential that a BMC refused is not tried again. The zero value works; Close
// ends it.
type Fleet struct {
	// Dial opens a Client; nil means the package's Dial.
	Dial func(context.Context, Target) (Client, error)
	// Calls in flight at once, over all BMCs; 0 means 64. A quarter more conversations
	// are held at once: each of them holds a connection and some 70 KB.
	Calls int
	// Rate of calls a second that begin in one subnet (/24, /64), which is often one
	// management switch; 0 means 200, negative any.
	Rate int
	// Keep is how long an unused session is kept; 0 means 10 minutes.
	Keep time.Duration
	// Memory of the sessions that are open; nil forgets them with the process.
	Memory Memory
	// Log; nil discards.
	Log *slog.Logger

	once    sync.Once
	pool    chan struct{} // one token per call in flight
	held    chan struct{} // one token per conversation
	mu      sync.Mutex
	boards  map[string]*board // by host:port
	subnets map[string]*pace
	closed  bool
	talks   sync.WaitGroup // conversations, and closings of what nobody uses
}

// board is one BMC: what all conversations with it share, whichever of its
// systems they are about.
type board struct {
	fleet *Fleet
	name  string // host:port
	pace  *pace
	slot  chan struct{} // one call in flight

	mu       sync.Mutex
	silent   time.Time // nothing is sent before: the BMC asked for it
	refused  map[credential]*RefusedError
	lines    map[string]*line // by URL
	sessions map[string]ourSession
	noBasic  bool // it takes no password but for a session
}

// basicOff tells whether that is known, and notes it.
func (b *board) basicOff(now bool) bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noBasic = b.noBasic || now
	return b.noBasic
}

// line is the one Client for one URL, or the place for it.
type line struct {
	turn chan struct{} // held while one logs in
	kept *kept         // under the board's mu
}

// kept is a Client and how many use it. All fields are under the board's mu.
type kept struct {
	client Client
	login  login
	users  int
	gone   bool // closed as soon as nobody uses it
	idle   *time.Timer
}

// credential tells one user and password from another without holding them.
type credential [sha256.Size]byte

// login is all that a session depends on.
type login struct {
	credential credential
	pin        inventory.Digest
	suite      int
}

func (t Target) login() login {
	return login{
		credential: sha256.Sum256(fmt.Appendf(nil, "%q %q %q", t.User, t.Password.Reveal(), t.Credential)),
		pin:        t.Pin,
		suite:      t.CipherSuite,
	}
}

// RefusedError is a BMC that refused its credential and is not asked again with
// it. It matches ErrAuth or ErrLockedOut.
type RefusedError struct {
	BMC   string // host:port
	Since time.Time
	Until time.Time // zero: until the credential changes
	Err   error     // what the BMC said
}

func (e *RefusedError) Error() string {
	if e.Until.IsZero() {
		return fmt.Sprintf("%v; so since %s, and not tried again until the credential changes", e.Err, e.Since.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%v; so since %s, and not tried again before %s", e.Err, e.Since.UTC().Format(time.RFC3339), e.Until.UTC().Format(time.RFC3339))
}

func (e *RefusedError) Unwrap() error { return e.Err }

func (f *Fleet) init() {
	f.once.Do(func() {
		if f.Dial == nil {
			f.Dial = Dial
		}
		if f.Calls == 0 {
			f.Calls = 64
		}
		if f.Rate == 0 {
			f.Rate = 200
		}
		if f.Keep == 0 {
			f.Keep = keepSession
		}
		if f.Log == nil {
			f.Log = slog.New(slog.DiscardHandler)
		}
		f.pool, f.held = make(chan struct{}, f.Calls), make(chan struct{}, f.Calls+f.Calls/4)
		f.boards, f.subnets = map[string]*board{}, map[string]*pace{}
	})
}

// begin is the board of an address and a place among the conversations; who gets
// no error calls f.talks.Done.
func (f *Fleet) begin(a address) (*board, error) {
	f.init()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errFleetClosed
	}
	f.talks.Add(1)
	return f.boardLocked(a.hostPort()), nil
}

func (f *Fleet) boardLocked(name string) *board {
	b, ok := f.boards[name]
	if !ok {
		b = &board{fleet: f, name: name, pace: f.paceLocked(name), slot: make(chan struct{}, 1),
			refused: map[credential]*RefusedError{}, lines: map[string]*line{}, sessions: map[string]ourSession{}}
		f.boards[name] = b
	}
	return b
}

// Do holds one conversation with a BMC: it logs in unless there is a session, and
// keeps the session afterwards. The Client must not be closed, nor used later.
func (f *Fleet) Do(ctx context.Context, t Target, do func(context.Context, Client) error) error {
	a, err := parseURL(t.URL)
	if err != nil {
		return err
	}
	b, err := f.begin(a)
	if err != nil {
		return err
	}
	defer f.talks.Done()
	if err := b.refusal(t.login().credential); err != nil {
		return err
	}
	select {
	case f.held <- struct{}{}:
		defer func() { <-f.held }()
	case <-ctx.Done():
		return queued(ctx, "talk to "+t.URL)
	}
	l, k, err := b.open(ctx, t)
	if err != nil {
		return err
	}
	err = do(ctx, k.client)
	said := err
	if s, ok := k.client.(*session); ok && s.refusal() != nil {
		said = s.refusal() // whoever talked may have made light of it
	}
	refused := b.judge(t.login().credential, said)
	b.release(l, k, refused != nil || errors.Is(err, ErrPin))
	if refused != nil && err != nil && final(err) {
		return refused
	}
	return err
}

// loginTurn waits until no other login of a target is under way, and fails where its
// credential was refused. The caller ends the turn with done.
func (b *board) loginTurn(ctx context.Context, t Target) (l *line, done func(), err error) {
	b.mu.Lock()
	l, ok := b.lines[t.URL]
	if !ok {
		l = &line{turn: make(chan struct{}, 1)}
		b.lines[t.URL] = l
	}
	b.mu.Unlock()
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, queued(ctx, "log in to "+t.URL)
	}
	done = func() { <-l.turn }
	if err := b.refusal(t.login().credential); err != nil {
		done()
		return nil, nil, err
	}
	return l, done, nil
}

// open is the Client of a target, with the caller among its users.
func (b *board) open(ctx context.Context, t Target) (*line, *kept, error) {
	want := t.login()
	l, done, err := b.loginTurn(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	b.mu.Lock()
	k := l.kept
	if k != nil && k.login == want {
		k.users++
		b.mu.Unlock()
		return l, k, nil
	}
	l.kept = nil
	b.mu.Unlock()
	if k != nil {
		b.drop(k) // of an older credential or pin
	}
	t.board = b
	dial, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	c, err := b.fleet.Dial(dial, t)
	if err != nil {
		if refused := b.judge(want.credential, err); refused != nil {
			return nil, nil, refused
		}
		return nil, nil, err
	}
	k = &kept{client: c, login: want, users: 1}
	k.idle = time.AfterFunc(b.fleet.Keep, func() { b.expire(l, k) })
	b.mu.Lock()
	l.kept = k
	b.mu.Unlock()
	return l, k, nil
}

// judge notes a refused credential, and returns what to tell of it.
func (b *board) judge(c credential, err error) error {
	var refused *RefusedError
	now := time.Now()
	switch {
	case errors.As(err, &refused):
		return err
	case errors.Is(err, ErrLockedOut):
		after := RetryAfter(err)
		if after == 0 {
			after = lockedOutTime
		}
		refused = &RefusedError{BMC: b.name, Since: now, Until: now.Add(after), Err: err}
	case errors.Is(err, ErrAuth):
		refused = &RefusedError{BMC: b.name, Since: now, Err: err}
	default:
		return nil
	}
	b.mu.Lock()
	b.refused[c] = refused
	b.mu.Unlock()
	b.fleet.Log.Warn("BMC refuses its credential; it is not asked again with it", "bmc", b.name, "err", err)
	return refused
}

// refusal is why a credential is not tried, nil where it may be.
func (b *board) refusal(c credential) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	refused, ok := b.refused[c]
	if !ok {
		return nil
	}
	if !refused.Until.IsZero() && !time.Now().Before(refused.Until) {
		delete(b.refused, c)
		return nil
	}
	return refused
}

// release takes the caller off the users; useless: nobody shall use it again.
func (b *board) release(l *line, k *kept, useless bool) {
	b.mu.Lock()
	k.users--
	if useless && l.kept == k {
		l.kept = nil
	}
	last := k.users == 0 && (k.gone || useless)
	k.gone = k.gone || useless
	if k.users == 0 && !k.gone {
		k.idle.Reset(b.fleet.Keep)
		if s, ok := k.client.(*session); ok {
			s.rest()
		}
	}
	b.mu.Unlock()
	if last {
		b.end(k)
	}
}

// drop closes a Client that nobody shall use again, once nobody does.
func (b *board) drop(k *kept) {
	b.mu.Lock()
	last := k.users == 0 && !k.gone
	k.gone = true
	b.mu.Unlock()
	if last {
		b.end(k)
	}
}

// expire closes a Client that nobody has used for a while.
func (b *board) expire(l *line, k *kept) {
	b.fleet.mu.Lock()
	if b.fleet.closed {
		b.fleet.mu.Unlock()
		return // Close sees to it
	}
	b.fleet.talks.Add(1)
	b.fleet.mu.Unlock()
	defer b.fleet.talks.Done()
	b.mu.Lock()
	if k.users > 0 || k.gone {
		b.mu.Unlock()
		return
	}
	if l.kept == k {
		l.kept = nil
	}
	b.mu.Unlock()
	b.drop(k)
}

func (b *board) end(k *kept) {
	k.idle.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 5*closeTimeout)
	defer cancel()
	_ = k.client.Close(ctx) // a session left open is in Memory, or the BMC's to expire
}

// Close waits for the conversations under way and logs out everywhere, for as long
// as ctx lasts. A session that is left is removed when its BMC is next asked.
func (f *Fleet) Close(ctx context.Context) error {
	f.init()
	f.mu.Lock()
	f.closed = true
	boards := make([]*board, 0, len(f.boards))
	for _, b := range f.boards {
		boards = append(boards, b)
	}
	f.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		f.talks.Wait()
		var logouts sync.WaitGroup
		for _, b := range boards {
			for _, k := range b.empty() {
				logouts.Go(func() {
					k.idle.Stop()
					_ = k.client.Close(ctx)
				})
			}
		}
		logouts.Wait()
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("log out of the BMCs: %w", ctx.Err())
	}
}

// empty takes every Client out of the board.
func (b *board) empty() (all []*kept) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if l.kept != nil {
			l.kept.gone = true
			all = append(all, l.kept)
			l.kept = nil
		}
	}
	return all
}
