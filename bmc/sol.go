package bmc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/types"
)

const (
	// solAgain is how long a packet of ours may stay without an answer, and solTries
	// how often it is sent before the line counts as dead.
	solAgain = time.Second
	solTries = 10
	// solPause is how long a BMC is left alone that took nothing more; it doubles up
	// to solPauseMost.
	solPause     = 100 * time.Millisecond
	solPauseMost = 2 * time.Second
	// solPatience is how long what is typed may wait for a BMC that takes nothing.
	solPatience = 10 * time.Second
	// solAlive is how often a line is proved that says nothing: a BMC ends a session
	// after a minute of silence (6.12.15), and many count commands alone, not SOL.
	solAlive = 10 * time.Second
	// solInstance is the first; hardly any BMC has a second.
	solInstance = 1
	// solWaiting is how many packets may wait for a reader. What comes then is not
	// acknowledged, and the BMC keeps it as long as it can.
	solWaiting = 64
)

// solConsole is an active SOL payload in a session of its own.
type solConsole struct {
	wire *ipmiWire
	t    Target
	room int

	heard  chan []byte   // what came, decrypted
	text   chan []byte   // for Read
	typed  chan *solType // for the BMC
	stop   chan struct{} // closed by Close
	over   chan struct{} // closed when the line is dead, after why is set
	why    error
	once   sync.Once
	work   sync.WaitGroup
	unread []byte
}

// solType is something typed, on its way.
type solType struct {
	text []byte
	what byte
	done chan struct{}
	err  error // valid after done
}

// dialSOL logs in and activates the payload. Its caller holds the turn.
func dialSOL(ctx context.Context, a address, t Target, o ConsoleOptions) (Console, error) {
	d, err := newIPMI(a, t)
	if err != nil {
		return nil, err
	}
	leave, err := t.board.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { leave(err) }()
	if err = protect(func() error { return d.Open(ctx) }); err != nil {
		t.Bad.count(badAnswerOf(err))
		_ = d.Close(ctx)
		if ctx.Err() != nil {
			return nil, ended(ctx, "log in")
		}
		err = explain("log in", err)
		return nil, err
	}
	w, err := d.wire()
	if err != nil {
		_ = d.Close(ctx)
		return nil, fmt.Errorf("log in: %w: %w", ErrUnreachable, err)
	}
	room, err := w.activate(ctx, a.hostPort(), o)
	if err != nil {
		bounded, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = w.close(bounded)
		return nil, err
	}
	c := &solConsole{wire: w, t: t, room: room,
		heard: make(chan []byte, solWaiting), text: make(chan []byte, solWaiting), typed: make(chan *solType),
		stop: make(chan struct{}), over: make(chan struct{})}
	listening := make(chan struct{})
	c.work.Go(func() { defer close(listening); c.listen() })
	c.work.Go(func() { c.run(listening) })
	return c, nil
}

// activate makes the session the console's (24.1), and returns how many characters
// a packet to the BMC may hold.
func (w *ipmiWire) activate(ctx context.Context, name string, o ConsoleOptions) (room int, err error) {
	sol := byte(types.PayloadTypeSOL)
	for evicted := false; ; evicted = true {
		var answer []byte
		// Encrypted and authenticated; serial alerts are deferred meanwhile.
		if answer, err = w.call(ctx, cmdActivatePayload, sol, solInstance, 0xc0|0x04, 0, 0, 0); err == nil {
			if len(answer) < 8 {
				return 0, badResponse
			}
			return solRoom(binary.LittleEndian.Uint16(answer[4:6])), nil
		}
		var code completionError
		switch {
		case ctx.Err() != nil:
			return 0, ended(ctx, "activate serial over LAN")
		case !errors.As(err, &code):
			return 0, fmt.Errorf("activate serial over LAN: %w: %s", reasonOf(err), oneLine(err))
		case code != completionError(types.CodeActivatePayloadAlreadyActive):
			return 0, fmt.Errorf("activate serial over LAN: %w", solRefusal(code))
		}
		taken := &TakenError{BMC: name}
		if mine := w.holder(ctx, taken); mine {
			return solRoom(0), nil // the answer to our own activation was lost
		}
		if !o.Evict || evicted {
			return 0, taken
		}
		if _, err := w.call(ctx, cmdDeactivatePayload, sol, solInstance, 0, 0, 0, 0); err != nil && !errors.As(err, &code) {
			return 0, fmt.Errorf("put out who has the console: %w: %s", reasonOf(err), oneLine(err))
		}
	}
}

// solRefusal words what a BMC answers to an activation (table 24-2). Not allowed is
// no refused login: the same user may do all else.
func solRefusal(code completionError) error {
	refusal := &AnswerError{Reason: ErrUnsupported, Code: code.Error()}
	switch types.CompletionCode(code) {
	case types.CodeActivatePayloadTypeDisabled:
		refusal.Message = "serial over LAN is switched off there: ipmitool sol set enabled true"
	case types.CodeActivatePayloadActivationLimitReached:
		refusal.Reason, refusal.Message = ErrBusy, "it has as many consoles open as it can"
	case types.CodeActivatePayloadCannotActivateWithEncryption:
		refusal.Message = "it has no encrypted serial over LAN"
	case types.CodeInsufficientPrivilege:
		refusal.Message = "its user may not use serial over LAN: ipmitool sol payload enable CHANNEL USER"
	case types.CodeInvalidCommand, types.CodeInvalidCommandForLUN:
		refusal.Message = "it has no serial over LAN"
	default:
		if reason, ok := completionReasons[types.CompletionCode(code)]; ok && reason != ErrAuth {
			refusal.Reason = reason
		}
	}
	return refusal
}

// holder finds out who has the console (24.5, 22.20, 22.29), and whether it is us. BMCs
// tell more or less of it.
func (w *ipmiWire) holder(ctx context.Context, taken *TakenError) (mine bool) {
	answer, err := w.call(ctx, cmdPayloadInstance, byte(types.PayloadTypeSOL), solInstance)
	if err != nil || len(answer) < 4 {
		return false
	}
	id := binary.LittleEndian.Uint32(answer)
	if id == w.bmcID {
		return true
	}
	const byID = 0xff
	answer, err = w.call(ctx, cmdGetSessionInfo, append([]byte{byID}, answer[:4]...)...)
	if err != nil || len(answer) < 6 {
		return false
	}
	user := answer[3] & 0x3f
	if len(answer) >= 18 {
		if addr, ok := netip.AddrFromSlice(answer[6:10]); ok && !addr.IsUnspecified() {
			taken.From = netip.AddrPortFrom(addr, binary.LittleEndian.Uint16(answer[16:18])).String()
		}
	}
	taken.User = fmt.Sprintf("%d", user)
	if name, err := w.call(ctx, cmdGetUserName, user); err == nil {
		if text := strings.TrimRight(string(name), "\x00 "); text != "" {
			taken.User = fmt.Sprintf("%q", text)
		}
	}
	return false
}

// listen hands over what comes. It ends when the socket's deadline is in the past.
func (c *solConsole) listen() {
	buf := make([]byte, 2<<10)
	for {
		kind, plain, err := c.wire.read(buf)
		var refused net.Error
		switch {
		case err == nil && kind == types.PayloadTypeSOL:
			select {
			case c.heard <- plain:
			case <-c.over:
				return
			}
		case err == nil:
			select {
			case c.heard <- nil: // an answer to a proof of life
			case <-c.over:
				return
			}
		case errors.As(err, &refused) && refused.Timeout(), errors.Is(err, net.ErrClosed):
			return
		default: // the host said that nobody listens there; a BMC that restarts comes back without us
			select {
			case <-c.over:
				return
			case <-time.After(c.t.wait(solAgain)):
			}
		}
	}
}

// run is the conversation. It is the only one to send, until the line is dead.
func (c *solConsole) run(listening <-chan struct{}) {
	why := c.converse()
	c.why = why
	close(c.over)
	_ = c.wire.conn.SetReadDeadline(time.Unix(1, 0))
	<-listening
	ctx, cancel := context.WithTimeout(context.Background(), 2*closeTimeout)
	defer cancel()
	if errors.Is(why, errClosed) { // a BMC that is gone need not be asked
		_, _ = c.wire.call(ctx, cmdDeactivatePayload, byte(types.PayloadTypeSOL), solInstance, 0, 0, 0, 0)
		_ = c.wire.close(ctx)
		return
	}
	_, _ = c.wire.ask(cmdCloseSession, binary.LittleEndian.AppendUint32(nil, c.wire.bmcID)...)
	_ = c.wire.conn.Close()
}

// converse ends with the reason why there is no line any more.
func (c *solConsole) converse() error {
	var line solLine
	var job *solType    // what is typed and not taken yet
	var since time.Time // it waits with nothing taken
	pause, tries, unproved := c.t.wait(solPause), 0, 0
	// One timer each, so that a quiet line costs a packet in ten seconds.
	again, proof := time.NewTimer(time.Hour), time.NewTimer(c.t.wait(solAlive))
	defer again.Stop()
	defer proof.Stop()
	send := func(p solPacket) {
		// A packet that cannot leave is one that was lost.
		if err := c.wire.send(types.PayloadTypeSOL, p.pack()); err != nil {
			c.t.Log.Debug("send to the console", "err", err)
		}
	}
	fly := func() {
		tries = 1
		n := min(len(job.text), c.room)
		send(line.send(job.text[:n], job.what))
		again.Reset(c.t.wait(solAgain))
	}
	for {
		typed := c.typed
		if job != nil {
			typed = nil
		}
		select {
		case <-c.stop:
			return errClosed
		case job = <-typed:
			since = time.Now()
			fly()
		case <-again.C:
			switch {
			case job == nil:
			case !line.flying:
				fly() // what the BMC did not take before
			case tries >= solTries:
				return fmt.Errorf("the console: %w: what was typed is not acknowledged", ErrTimeout)
			default:
				tries++
				send(line.sent)
				again.Reset(c.t.wait(solAgain))
			}
		case <-proof.C:
			if unproved >= solTries {
				return fmt.Errorf("the console: %w", ErrTimeout)
			}
			if _, err := c.wire.ask(cmdGetDeviceID); err != nil {
				c.t.Log.Debug("prove the console", "err", err)
			}
			unproved++
			proof.Reset(c.t.wait(solAgain))
		case raw := <-c.heard:
			unproved = 0
			proof.Reset(c.t.wait(solAlive))
			if raw == nil {
				continue
			}
			p, err := parseSOL(raw)
			if err != nil {
				c.t.Bad.count(badSOL)
				continue
			}
			if len(p.text) > 0 && len(c.text) == cap(c.text) {
				continue // nobody reads: as if it had been lost
			}
			h := line.hear(p)
			if len(h.text) > 0 {
				c.text <- append([]byte(nil), h.text...) // there is room: nobody else sends
			}
			if h.reply != nil {
				send(*h.reply)
			}
			if h.lost {
				c.t.Log.Info("characters of a console were lost on their way")
			}
			if h.over {
				return fmt.Errorf("%w: the BMC ended it, as for somebody who put us out", ErrTaken)
			}
			if !h.landed || job == nil {
				continue
			}
			job.text, job.what = job.text[h.taken:], 0
			switch {
			case len(job.text) == 0:
				close(job.done)
				job, pause = nil, c.t.wait(solPause)
			case h.taken == 0 && time.Since(since) > c.t.wait(solPatience):
				job.err = fmt.Errorf("type to the console: %w: it takes no characters", ErrBusy)
				close(job.done)
				job = nil
			case h.taken == 0:
				again.Reset(pause)
				pause = min(2*pause, c.t.wait(solPauseMost))
			default:
				since, pause = time.Now(), c.t.wait(solPause)
				fly()
			}
		}
	}
}

// Read implements Console; what came before the end is read before it is told.
func (c *solConsole) Read(p []byte) (int, error) {
	if len(c.unread) == 0 {
		select {
		case c.unread = <-c.text:
		case <-c.over:
			select {
			case c.unread = <-c.text:
			default:
				return 0, c.end()
			}
		}
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// end is why the line is gone, for whoever uses it.
func (c *solConsole) end() error {
	if errors.Is(c.why, errClosed) {
		return io.EOF
	}
	return c.why
}

// Write implements Console.
func (c *solConsole) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.give(append([]byte(nil), p...), 0); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Break implements Console.
func (c *solConsole) Break() error { return c.give(nil, solBreak) }

func (c *solConsole) give(text []byte, what byte) error {
	job := &solType{text: text, what: what, done: make(chan struct{})}
	select {
	case c.typed <- job:
	case <-c.over:
		return c.end()
	}
	select {
	case <-job.done:
		return job.err
	case <-c.over:
		return c.end()
	}
}

// Way implements Console.
func (c *solConsole) Way() string { return "IPMI" }

// Close implements Console.
func (c *solConsole) Close() error {
	c.once.Do(func() { close(c.stop) })
	c.work.Wait()
	return nil
}
