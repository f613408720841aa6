package bmc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
)

const (
	// ipmiTimeout and ipmiRetries are one UDP exchange: a BMC answers in
	// milliseconds or has lost the packet.
	ipmiTimeout = time.Second
	ipmiRetries = 2
	// ipmiHandshakes is how often a login is begun when packets are lost in it.
	ipmiHandshakes = 4
	// ipmiSessionLife is how long a session is used. go-ipmi's keepalive starts
	// after 30 s in its own goroutine, races with our requests for sequence
	// numbers, and cannot be turned off; no session of ours lives to see it.
	ipmiSessionLife = 20 * time.Second
	// ipmiFarewell is how long a BMC that did not answer may take to agree that
	// its session is over.
	ipmiFarewell = 50 * time.Millisecond
	// Limits of the protocol; go-ipmi cuts longer passwords silently.
	ipmiUserMost     = 16
	ipmiPasswordMost = 20
)

// ipmiDriver is a bmclib provider over go-ipmi: IPMI 2.0 without the ipmitool
// binary. Its caller serialises; the lock is for the session's expiry.
type ipmiDriver struct {
	address  address
	user     string
	password Secret
	suite    types.CipherSuiteID
	bad      *BadAnswers
	log      *slog.Logger
	timeout  time.Duration // of one exchange
	board    *board
	facts    memory
	about    *ipmiDevice // nil: not asked yet; under the caller's turn

	mu     sync.Mutex
	lib    *client.Client
	guard  *ipmiGuard // the socket of lib
	opened time.Time
	expiry *time.Timer
}

var _ driver = (*ipmiDriver)(nil)

func newIPMI(a address, t Target) (*ipmiDriver, error) {
	suite := types.CipherSuiteID17
	switch t.CipherSuite {
	case 0, 17:
	case 3:
		suite = types.CipherSuiteID3
	default:
		return nil, fmt.Errorf("use cipher suite %d for %s: want 17, or 3 where the BMC has no better", t.CipherSuite, t.URL)
	}
	if len(t.User) > ipmiUserMost {
		return nil, fmt.Errorf("log in to %s: an IPMI user name has at most %d bytes", t.URL, ipmiUserMost)
	}
	if len(t.Password) > ipmiPasswordMost {
		return nil, fmt.Errorf("log in to %s: an IPMI password has at most %d bytes", t.URL, ipmiPasswordMost)
	}
	return &ipmiDriver{address: a, user: t.User, password: t.Password, suite: suite, bad: t.Bad, log: t.Log, timeout: t.wait(ipmiTimeout), board: t.board,
		facts: memory{facts: t.Facts}}, nil
}

// Name is that of bmclib's own coming provider.
func (d *ipmiDriver) Name() string { return "ipmi" }

// Open logs in once.
func (d *ipmiDriver) Open(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.openLocked(ctx)
}

// openLocked begins a handshake anew where packets were lost; whatever the BMC
// answered, a refusal above all, is final.
func (d *ipmiDriver) openLocked(ctx context.Context) error {
	var err error
	for range ipmiHandshakes {
		var answered bool
		if answered, err = d.handshake(ctx); err == nil {
			return nil
		}
		if !answered && ctx.Err() == nil && reasonOf(err) == ErrTimeout {
			return fmt.Errorf("%w: no answer to IPMI on %s", ErrUnreachable, d.address.hostPort())
		}
		if ctx.Err() != nil || reasonOf(err) != ErrTimeout {
			return err
		}
	}
	return err
}

// handshake is one login. It reports whether the BMC answered at all.
func (d *ipmiDriver) handshake(ctx context.Context) (answered bool, err error) {
	d.dropLocked(closeTimeout)
	lib, err := client.NewClient(d.address.host, d.address.port, d.user, d.password.Reveal())
	if err != nil {
		return false, err
	}
	dialer := &ipmiDialer{ctx: ctx, to: d.address.hostPort(), user: d.user, password: d.password, bad: d.bad, log: d.log}
	lib.WithTimeout(d.timeout).WithRetry(ipmiRetries).WithCipherSuiteID(d.suite).WithUDPProxy(dialer)
	d.lib = lib
	if err := lib.Connect(ctx); err != nil {
		if dialer.guard != nil {
			answered = dialer.guard.answered()
			_ = dialer.guard.Close() // there is no session to close: do not wait for an answer to that
		}
		d.dropLocked(ipmiFarewell)
		return answered, err
	}
	d.opened, d.guard = time.Now(), dialer.guard
	d.expiry = time.AfterFunc(ipmiSessionLife, func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if leave, err := d.board.enter(ctx); err == nil {
			defer leave(nil)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.lib == lib {
			d.dropLocked(closeTimeout)
		}
	})
	return true, nil
}

// dropLocked ends the session and waits that long for the BMC to agree. go-ipmi
// panics on a second Close.
func (d *ipmiDriver) dropLocked(wait time.Duration) {
	lib := d.lib
	d.lib = nil
	if d.expiry != nil {
		d.expiry.Stop()
		d.expiry = nil
	}
	if lib == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	// The context bounds it. go-ipmi's own timeout must stay as it is: after a
	// cancelled exchange a goroutine of its still reads it.
	err := protect(func() error { return lib.WithRetry(0).Close(ctx) })
	if err != nil {
		d.log.Debug("close IPMI session", "error", oneLine(err))
	}
}

func (d *ipmiDriver) Close(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked(closeTimeout)
	return nil
}

// with runs one exchange in a session that is young enough. Retries repeat the
// same packet, which a BMC may execute twice when only its answer was lost:
// none for what must not happen twice.
func (d *ipmiDriver) with(ctx context.Context, retries int, do func(*client.Client) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lib == nil || time.Since(d.opened) > ipmiSessionLife {
		if err := d.openLocked(ctx); err != nil {
			return err
		}
	}
	timeout := d.timeout
	if retries == 0 {
		timeout = 3 * d.timeout
	}
	d.lib.WithRetry(retries).WithTimeout(timeout)
	err := do(d.lib)
	var answered *types.ResponseError
	if err != nil && !errors.As(err, &answered) {
		// No answer: the BMC may have forgotten the session, and a late answer
		// may still be on its way. The next call starts afresh.
		d.dropLocked(ipmiFarewell)
	}
	// go-ipmi reports what it cannot unpack as a refusal with the code of success.
	if answered != nil && answered.CompletionCode() == types.CodeOK || errors.Is(err, types.ErrUnpackedDataTooShort) {
		return fmt.Errorf("%w: %s", badResponse, oneLine(err))
	}
	return err
}

func (d *ipmiDriver) PowerStateGet(ctx context.Context) (state string, err error) {
	err = d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		status, err := lib.GetChassisStatus(ctx)
		if err != nil {
			return err
		}
		state = "off"
		if status.PowerIsOn {
			state = "on"
		}
		return nil
	})
	return state, err
}

// ipmiControls has no reset and no cycle: both mean different things on
// different BMCs, and some refuse a cycle of a machine that is off.
var ipmiControls = map[string]chassis.ChassisControl{
	"on":   chassis.ChassisControlPowerUp,
	"off":  chassis.ChassisControlPowerDown,
	"soft": chassis.ChassisControlSoftShutdown,
}

func (d *ipmiDriver) PowerSet(ctx context.Context, state string) (bool, error) {
	control, ok := ipmiControls[state]
	if !ok {
		return false, fmt.Errorf("%w: power action %q", ErrUnsupported, state)
	}
	err := d.with(ctx, 0, func(lib *client.Client) error {
		_, err := lib.ChassisControl(ctx, control)
		return err
	})
	return err == nil, err
}

// ipmiDialer hands go-ipmi a guarded socket. It brackets IPv6 hosts, which
// go-ipmi does not.
type ipmiDialer struct {
	ctx      context.Context
	to       string
	user     string
	password Secret
	bad      *BadAnswers
	log      *slog.Logger
	guard    *ipmiGuard
}

func (d *ipmiDialer) Dial(string, string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(d.ctx, "udp", d.to)
	if err != nil {
		return nil, err
	}
	d.guard = &ipmiGuard{Conn: conn, user: d.user, password: d.password, bad: d.bad, log: d.log}
	return d.guard, nil
}
