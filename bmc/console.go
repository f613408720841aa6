package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrTaken is a console that somebody else holds; a BMC gives it to one at a time.
var ErrTaken = errors.New("the machine's console is in use elsewhere")

// TakenError says who holds a console, as far as the BMC tells. It matches ErrTaken.
type TakenError struct {
	BMC  string // host:port
	User string // "" not told
	From string // address of the other session; "" not told
}

func (e *TakenError) Error() string {
	text := fmt.Sprintf("%v: %s serves one at a time, and ", ErrTaken, e.BMC)
	switch {
	case e.User != "" && e.From != "":
		text += fmt.Sprintf("its user %s at %s has it", e.User, e.From)
	case e.User != "":
		text += fmt.Sprintf("its user %s has it", e.User)
	default:
		text += "does not say who has it"
	}
	return text + "; that one can leave, or be put out"
}

func (e *TakenError) Is(target error) bool { return target == ErrTaken }

// Console is a machine's serial line. One goroutine reads; any number writes.
type Console interface {
	// Read gives what the machine says. Its error says why the line is gone.
	io.Reader
	// Write returns once the BMC took what was typed.
	io.Writer
	// Break sends one, where the way to the machine has it.
	Break() error
	// Way is "IPMI" or "SSH".
	Way() string
	// Close gives the line back to the BMC.
	Close() error
}

// ConsoleOptions say how a console is opened.
type ConsoleOptions struct {
	// Evict puts out whoever else holds the console.
	Evict bool
}

// Console opens a machine's console: by serial over LAN on an IPMI BMC, on a
// Redfish BMC by what it offers. It is a session of its own on the BMC, beside the
// one for all else: a line stays open for hours, and no other call waits for it.
// One login counts as any other does, so that a refused credential is tried once.
func (f *Fleet) Console(ctx context.Context, t Target, o ConsoleOptions) (Console, error) {
	a, err := parseURL(t.URL)
	if err != nil {
		return nil, err
	}
	b, err := f.begin(a)
	if err != nil {
		return nil, err
	}
	if t.Log == nil {
		t.Log = f.Log
	}
	t.Log, t.board = t.Log.With("bmc", a.hostPort()), b
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	var c Console
	switch a.scheme {
	case "ipmi":
		c, err = b.dial(ctx, t, func(ctx context.Context) (Console, error) { return dialSOL(ctx, a, t, o) })
	default:
		c, err = f.redfishConsole(ctx, b, a, t, o)
	}
	if err != nil {
		f.talks.Done()
		return nil, fmt.Errorf("open the console of %s: %w", t.URL, err)
	}
	return &fleetConsole{c, sync.OnceFunc(f.talks.Done)}, nil
}

// dial opens a console unless the credential was refused, and no other login of
// the same target is under way.
func (b *board) dial(ctx context.Context, t Target, open func(context.Context) (Console, error)) (Console, error) {
	_, done, err := b.loginTurn(ctx, t)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := open(ctx)
	if refused := b.judge(t.login().credential, err); refused != nil {
		return nil, refused
	}
	return c, err
}

// fleetConsole is a conversation until it is closed.
type fleetConsole struct {
	Console
	done func()
}

func (c *fleetConsole) Close() error {
	err := c.Console.Close()
	c.done()
	return err
}
