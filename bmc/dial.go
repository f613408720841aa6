package bmc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	bmclib "github.com/bmc-toolbox/bmclib/v2"
	bmclibbmc "github.com/bmc-toolbox/bmclib/v2/bmc"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"
)

const (
	// callTimeout bounds one exchange where the caller's context has no earlier
	// deadline; slow BMCs take several seconds for a Redfish resource.
	callTimeout = 30 * time.Second
	// powerTimeout is how long a power change is awaited when the caller's
	// context does not end sooner. Real BMCs report it 1-11 s late, some a minute.
	powerTimeout = 90 * time.Second
	// unknownTimeout is how long a change is awaited whose command was not
	// answered: it may never have arrived. The caller then asks again, and the
	// state is read before anything is sent.
	unknownTimeout = 15 * time.Second
	// closeTimeout bounds the logout: a silent BMC must not hold up its caller.
	closeTimeout = time.Second
	// pollFirst doubles up to pollMost between two looks at the power state.
	pollFirst = 100 * time.Millisecond
	pollMost  = 2 * time.Second
)

var errClosed = errors.New("the BMC client is closed")

// driver is what we register with bmclib for one BMC: the one way to reach it.
type driver interface {
	Name() string
	bmclibbmc.Opener
	bmclibbmc.Closer
	bmclibbmc.PowerStateGetter
	bmclibbmc.PowerSetter
	// nextBoot reads what is armed; setNextBoot writes it and leaves it to its
	// caller to look. bmclib has no door for either: its boot device knows no URI.
	nextBoot(context.Context) (NextBoot, error)
	setNextBoot(context.Context, NextBoot) error
}

// witness passes every call on and keeps the driver's own error: bmclib
// flattens some to text and drops others (a failed override read).
type witness struct {
	driver
	err error
}

func (w *witness) Open(ctx context.Context) error {
	w.err = w.driver.Open(ctx)
	return w.err
}

func (w *witness) PowerStateGet(ctx context.Context) (state string, err error) {
	state, w.err = w.driver.PowerStateGet(ctx)
	return state, w.err
}

func (w *witness) PowerSet(ctx context.Context, state string) (ok bool, err error) {
	ok, w.err = w.driver.PowerSet(ctx, state)
	return ok, w.err
}

// session is a Client over bmclib with exactly one driver. bmclib's own
// registry would fire seven providers at the BMC, each with its own login, and
// would try the next one after a call whose outcome is unknown.
type session struct {
	lib  *bmclib.Client
	seen *witness
	bad  *BadAnswers
	log  *slog.Logger

	wait func(time.Duration) time.Duration

	// slot serialises: small BMCs answer one request at a time or none. board does
	// so for all clients of one BMC.
	slot  chan struct{}
	board *board

	// refused is the first ErrAuth. A BMC that locks accounts out counts every
	// further try, so there is none until somebody dials with other credentials.
	mu      sync.Mutex
	refused error
	closed  bool
}

// Dial logs in, and with basic authentication proves it by reading the systems. A
// refused password costs the BMC exactly one login. The Client must be closed.
func Dial(ctx context.Context, t Target) (Client, error) {
	a, err := parseURL(t.URL)
	if err != nil {
		return nil, err
	}
	if t.Log == nil {
		t.Log = slog.New(slog.DiscardHandler)
	}
	// With it bmclib writes each login to the standard output, with its password.
	_ = os.Unsetenv("DEBUG_BMCLIB")
	t.Log = t.Log.With("bmc", a.hostPort())
	var d driver
	switch a.scheme {
	case "redfish":
		d, err = newRedfish(a, t)
	case "ipmi":
		d, err = newIPMI(a, t)
	}
	if err != nil {
		return nil, err
	}

	return dialWith(ctx, a, t, d)
}

// unused stands for the client that bmclib would make for providers that we have not
// registered, and keep with each BMC.
var unused = &http.Client{Transport: &http.Transport{}}

func dialWith(ctx context.Context, a address, t Target, d driver) (Client, error) {
	s := &session{seen: &witness{driver: d}, bad: t.Bad, log: t.Log, wait: t.wait, slot: make(chan struct{}, 1), board: t.board}
	registry := registrar.NewRegistry(registrar.WithDrivers(registrar.Drivers{{
		Name: d.Name(), Protocol: a.scheme, DriverInterface: s.seen,
	}}))
	s.lib = bmclib.NewClient(a.host, t.User, t.Password.Reveal(),
		bmclib.WithRegistry(registry),
		bmclib.WithHTTPClient(unused),
		bmclib.WithLogger(logr.FromSlogHandler(t.Log.Handler())),
		bmclib.WithPerProviderTimeout(callTimeout))

	open := func(ctx context.Context) error {
		if err := s.lib.Open(ctx); err != nil {
			return s.cause(err)
		}
		return nil
	}
	if err := s.call(ctx, "log in to "+t.URL, open); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

// release drops what a failed Dial has opened; it reports nothing, because the
// caller already has the reason.
func (s *session) release() error {
	_ = s.Close(context.Background())
	return nil
}

// cause prefers the driver's own error to what bmclib made of it.
func (s *session) cause(err error) error {
	if err == nil {
		return nil
	}
	if s.seen.err != nil {
		return s.seen.err
	}
	return err
}

// call runs one exchange: alone, with a deadline, not after a refused password.
func (s *session) call(ctx context.Context, verb string, do func(context.Context) error) (err error) {
	if err := s.usable(); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	select {
	case s.slot <- struct{}{}:
		defer func() { <-s.slot }()
	case <-ctx.Done():
		return ended(ctx, verb)
	}
	if err := s.usable(); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	if ctx.Err() != nil {
		return ended(ctx, verb)
	}
	leave, err := s.board.enter(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	defer func() { leave(err) }()
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s.seen.err = nil
	err = protect(func() error { return do(bounded) })
	if err == nil {
		return nil
	}
	s.bad.count(badAnswerOf(err))
	if ctx.Err() != nil {
		return ended(ctx, verb)
	}
	err = explain(verb, err)
	if errors.Is(err, ErrAuth) || errors.Is(err, ErrLockedOut) {
		s.mu.Lock()
		if s.refused == nil {
			s.refused = err
		}
		s.mu.Unlock()
	}
	s.log.Debug("BMC call failed", "verb", verb, "error", err)
	return err
}

func (s *session) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return s.refused
}

// refusal is the refused login, nil while there was none.
func (s *session) refusal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// rest gives back what a session does not need while nobody talks.
func (s *session) rest() {
	if d, ok := s.seen.driver.(interface{ rest() }); ok {
		d.rest()
	}
}

// protect turns a panic in the libraries into an error: both decode what the
// BMC sends with unchecked indexes.
func protect(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", badPanic, p)
		}
	}()
	return do()
}

// powerStates normalises what vendors say. PoweringOn counts as on and
// PoweringOff as on: the machine still runs.
var powerStates = map[string]PowerState{
	"on":          PowerOn,
	"off":         PowerOff,
	"poweringon":  PowerOn,
	"poweringoff": PowerOn,
	"paused":      PowerOn,
}

func powerState(text string) PowerState {
	key := strings.ToLower(strings.TrimSpace(text))
	if p, ok := powerStates[key]; ok {
		return p
	}
	return PowerUnknown
}

func (s *session) Power(ctx context.Context) (PowerState, error) {
	state := PowerUnknown
	err := s.call(ctx, "read power state", func(ctx context.Context) error {
		text, err := s.lib.GetPowerState(ctx)
		if state = powerState(text); state == PowerUnknown && text != "" {
			s.bad.count(badPower)
		}
		return s.cause(err)
	})
	if err != nil {
		return PowerUnknown, err
	}
	return state, nil
}

func (s *session) On(ctx context.Context) error {
	return s.power(ctx, "power on", "on", PowerOn)
}

func (s *session) Off(ctx context.Context, hard bool) error {
	if hard {
		return s.power(ctx, "power off", "off", PowerOff)
	}
	return s.power(ctx, "shut down", "soft", PowerOff)
}

// power is observe, act once, observe. The act is never repeated here: a lost
// answer may stand for an executed command, so only the state decides.
func (s *session) power(ctx context.Context, verb, action string, want PowerState) error {
	state, err := s.Power(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	if state == want {
		return nil
	}
	actErr := s.call(ctx, verb, func(ctx context.Context) error {
		_, err := s.lib.SetPowerState(ctx, action)
		// bmclib reports a graceful shutdown that went well as (false, nil) from
		// the driver; the driver's own error is the truth.
		if s.seen.err == nil {
			return nil
		}
		return s.cause(err)
	})
	s.log.Debug("BMC power", "verb", verb, "error", actErr)
	patience := powerTimeout
	if _, bounded := ctx.Deadline(); actErr != nil {
		patience = unknownTimeout
	} else if action == "soft" && bounded {
		patience = 0 // an operating system may take minutes to stop
	}
	return s.verify(ctx, verb, patience, actErr, func(ctx context.Context) (string, error) {
		state, err := s.Power(ctx)
		if err != nil || state == want {
			return "", err
		}
		return "the machine is " + string(state), nil
	})
}

// Close logs out within a second, whatever the BMC does.
func (s *session) Close(ctx context.Context) error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	s.mu.Unlock()
	if already {
		return nil
	}
	select {
	case s.slot <- struct{}{}:
		defer func() { <-s.slot }()
	case <-ctx.Done():
		return ended(ctx, "log out")
	}
	leave, err := s.board.enter(ctx)
	if err != nil {
		return fmt.Errorf("log out: %w", err)
	}
	defer leave(nil)
	bounded, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	// The session on the BMC expires by itself; a failed logout is not an error
	// for which a caller has a cure.
	if err := protect(func() error { return s.seen.driver.Close(bounded) }); err != nil {
		s.log.Debug("BMC logout failed", "error", oneLine(err))
	}
	return nil
}
