// Package console keeps the serial consoles of machines: one line to each, many
// watchers, one writer, and a scrollback on disk.
package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Line is a machine's serial line, as bmc.Console is.
type Line interface {
	io.Reader // one goroutine reads; an error says why the line is gone
	io.Writer
	Break() error
	Way() string // "IPMI", "SSH"
	Close() error
}

const (
	// scrollbackMost is how much of a machine's console is kept.
	scrollbackMost = 1 << 20
	// forgetAfter is when a scrollback goes that nothing was added to.
	forgetAfter = 90 * 24 * time.Hour
	// linger is how long a line stays open that nobody needs any more: a BMC takes a
	// login for each, and a watcher may come back.
	linger = 10 * time.Second
	// againFirst doubles up to againMost between two tries to open a line.
	againFirst = time.Second
	againMost  = time.Minute
)

// Hub has the consoles of all machines. Run it before it is used.
type Hub struct {
	// Dir holds the scrollbacks; it is made.
	Dir string
	// Open opens a machine's line; evict puts out whoever has it.
	Open func(ctx context.Context, machine string, evict bool) (Line, error)
	// Hopeless says that trying again does not help until somebody did something; nil:
	// nothing is. It is tried again all the same while somebody watches.
	Hopeless func(error) bool
	// Most of a scrollback in bytes; 0 means 1 MiB.
	Most int64
	Log  *slog.Logger

	again time.Duration // before a second try; 0 means againFirst

	mu    sync.Mutex
	ctx   context.Context // nil before Run and after
	root  *os.Root
	ports map[string]*port
	work  sync.WaitGroup
}

// Start opens the folder. Lines are opened until ctx ends; Wait follows.
func (h *Hub) Start(ctx context.Context) error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of scrollbacks: %w", err)
	}
	root, err := os.OpenRoot(h.Dir)
	if err != nil {
		return fmt.Errorf("open the folder of scrollbacks: %w", err)
	}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
	if err := forget(root, forgetAfter, time.Now()); err != nil {
		h.Log.Warn("old scrollbacks stay", "err", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ctx, h.root, h.ports = ctx, root, map[string]*port{}
	return nil
}

// Wait returns when every line is closed, after the context of Start has ended.
func (h *Hub) Wait() {
	h.mu.Lock()
	ctx := h.ctx
	h.mu.Unlock()
	if ctx == nil {
		return
	}
	<-ctx.Done()
	h.mu.Lock() // who began a line before the end has begun it now
	ports, root := h.ports, h.root
	h.ctx = nil
	h.mu.Unlock()
	h.work.Wait()
	for _, p := range ports {
		p.mu.Lock()
		p.kept.close()
		p.mu.Unlock()
	}
	_ = root.Close()
}

var errStopped = errors.New("the server is stopping")

// port is the one of a machine, with what is kept of it.
func (h *Hub) port(machine string) (*port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx == nil {
		return nil, errStopped
	}
	p, ok := h.ports[machine]
	if !ok {
		most := h.Most
		if most == 0 {
			most = scrollbackMost
		}
		p = &port{hub: h, machine: machine, kept: scrollback{root: h.root, name: machine, most: most},
			seats: map[*Seat]bool{}, changed: make(chan struct{}, 1)}
		h.ports[machine] = p
	}
	return p, nil
}

// Tail is the last n bytes that a machine said.
func (h *Hub) Tail(machine string, n int64) ([]byte, error) {
	p, err := h.port(machine)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept.tail(n)
}

// Keep holds a machine's line open, or does so no more, whoever watches.
func (h *Hub) Keep(machine string, on bool) {
	p, err := h.port(machine)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keep != on {
		p.keep = on
		p.wake()
	}
}

// port is the console of one machine.
type port struct {
	hub     *Hub
	machine string

	mu      sync.Mutex
	kept    scrollback
	hide    redactor
	broken  bool // the scrollback cannot be written, and that was said
	seats   map[*Seat]bool
	writer  *Seat
	keep    bool
	evict   bool // at the next try
	running bool
	line    Line
	why     string // there is no line
	changed chan struct{}
}

// wake makes the port look at what is wanted; its lock is held.
func (p *port) wake() {
	if !p.running && p.wanted() {
		p.hub.mu.Lock()
		ctx := p.hub.ctx
		if ctx != nil && ctx.Err() == nil {
			p.running = true
			p.hub.work.Go(func() { p.run(ctx) })
		}
		p.hub.mu.Unlock()
	}
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func (p *port) wanted() bool { return p.keep || len(p.seats) > 0 }

// run has a line while one is wanted.
func (p *port) run(ctx context.Context) {
	pause := p.hub.first()
	for {
		p.mu.Lock()
		if !p.wanted() || ctx.Err() != nil {
			p.running = false
			p.kept.close() // a rack's worth of files is not held open for nothing
			p.mu.Unlock()
			return
		}
		evict := p.evict
		p.evict = false
		if p.why == "" {
			p.why = "opening the line"
		}
		p.tellLocked()
		p.mu.Unlock()
		began := time.Now()
		line, err := p.hub.Open(ctx, p.machine, evict)
		if err == nil {
			err = p.serve(ctx, line)
		}
		if err == nil || ctx.Err() != nil {
			continue // nobody needs it any more
		}
		hopeless := p.hub.Hopeless != nil && p.hub.Hopeless(err)
		p.mu.Lock()
		p.why = err.Error()
		p.tellLocked()
		watched := len(p.seats) > 0
		p.mu.Unlock()
		p.hub.Log.Debug("no console", "machine", p.machine, "err", err)
		if time.Since(began) > againMost {
			pause = p.hub.first() // it was there for a while
		}
		wait := pause
		if hopeless {
			if wait = againMost; !watched {
				wait = 10 * againMost
			}
		}
		p.sleep(ctx, wait)
		pause = min(2*pause, againMost)
	}
}

func (h *Hub) first() time.Duration {
	if h.again > 0 {
		return h.again
	}
	return againFirst
}

// sleep ends early when somebody asks for a line that is taken, or nobody needs one.
func (p *port) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-p.changed:
			p.mu.Lock()
			now := p.evict || !p.wanted()
			p.mu.Unlock()
			if now {
				return
			}
		}
	}
}

// serve passes on what a line says until it is gone, which is the error, or nobody
// needs it any more.
func (p *port) serve(ctx context.Context, line Line) error {
	p.mu.Lock()
	p.line, p.why = line, ""
	p.hide = redactor{}
	p.markLocked("the console of %s begins here, by %s", p.machine, line.Way())
	p.tellLocked()
	p.mu.Unlock()
	over := make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 4<<10)
		for {
			n, err := line.Read(buf)
			p.mu.Lock()
			if p.line != nil {
				p.hide.redact(buf[:n])
				p.sayLocked(buf[:n])
			}
			p.mu.Unlock()
			if err != nil {
				over <- err
				return
			}
		}
	})
	err := p.attend(ctx, over)
	p.mu.Lock()
	p.line = nil
	if err != nil {
		p.markLocked("the console is lost: %v", err)
	} else {
		p.markLocked("nobody watches the console from here on")
	}
	p.mu.Unlock()
	_ = line.Close()
	reading.Wait()
	return err
}

// attend waits for the end of a line.
func (p *port) attend(ctx context.Context, over <-chan error) error {
	var idle <-chan time.Time
	for {
		select {
		case err := <-over:
			return err
		case <-ctx.Done():
			return nil
		case <-idle:
			return nil
		case <-p.changed:
			p.mu.Lock()
			wanted := p.wanted()
			p.mu.Unlock()
			switch {
			case wanted:
				idle = nil
			case idle == nil:
				idle = time.After(linger)
			}
		}
	}
}

// markLocked writes a line of ours into the scrollback, so that a gap shows.
func (p *port) markLocked(format string, args ...any) {
	p.keepLocked(fmt.Appendf(nil, "\r\n[%s recast: %s]\r\n", time.Now().UTC().Format(time.RFC3339), fmt.Sprintf(format, args...)))
}

// sayLocked is the machine speaking.
func (p *port) sayLocked(text []byte) {
	if len(text) == 0 {
		return
	}
	p.keepLocked(text)
	for s := range p.seats {
		s.hear(text)
	}
}

func (p *port) keepLocked(text []byte) {
	_, err := p.kept.Write(text)
	if err != nil && !p.broken {
		p.hub.Log.Warn("a console is shown and not kept", "machine", p.machine, "err", err)
	}
	p.broken = err != nil
}

// tellLocked shows everybody how things are.
func (p *port) tellLocked() {
	for s := range p.seats {
		s.tell(p.stateLocked(s))
	}
}

func (p *port) stateLocked(s *Seat) State {
	st := State{Seat: s.id, Why: p.why, Watchers: len(p.seats)}
	if p.line != nil {
		st.Way = p.line.Way()
	}
	if p.writer != nil {
		st.Writer, st.Yours = p.writer.who, p.writer == s
	}
	return st
}
