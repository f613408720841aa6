package console

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
)

// State is how a console stands for one watcher.
type State struct {
	// Seat is the watcher's, by which it types.
	Seat string `json:"seat"`
	// Way of the line to the machine, "IPMI" or "SSH"; "" there is none, and Why says so.
	Way string `json:"way,omitempty"`
	Why string `json:"why,omitempty"`
	// Writer has the keyboard; "" nobody has, and who types first gets it.
	Writer string `json:"writer,omitempty"`
	// Yours: the keyboard is this watcher's.
	Yours    bool `json:"yours,omitempty"`
	Watchers int  `json:"watchers"`
}

// unreadMost is what waits for a watcher that does not keep up; older text goes first.
const unreadMost = 256 << 10

// Seat is one watcher's place before a console. Leave it when done.
type Seat struct {
	port *port
	id   string
	who  string

	// Under the port's lock.
	text   []byte
	missed int
	state  *State // news
	bell   chan struct{}
}

// ErrKeyboard is a word typed without having the keyboard.
var ErrKeyboard = errors.New("somebody else has the keyboard")

// Watch takes a seat before a machine's console, with its last n bytes to read.
// evict puts out, once, whoever holds the console at the BMC.
func (h *Hub) Watch(machine, who string, n int64, evict bool) (*Seat, error) {
	p, err := h.port(machine)
	if err != nil {
		return nil, err
	}
	s := &Seat{port: p, id: rand.Text(), who: who, bell: make(chan struct{}, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.text, err = p.kept.tail(n); err != nil {
		h.Log.Warn("a console without what was kept of it", "machine", machine, "err", err)
	}
	p.seats[s] = true
	p.evict = p.evict || evict && p.line == nil
	p.wake()
	p.tellLocked()
	return s, nil
}

// Seat finds one by its ID.
func (h *Hub) Seat(machine, id string) (*Seat, bool) {
	p, err := h.port(machine)
	if err != nil {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.seats {
		if s.id == id {
			return s, true
		}
	}
	return nil, false
}

// ID tells the seat from others; who knows it may type.
func (s *Seat) ID() string { return s.id }

// hear and tell are called under the port's lock.
func (s *Seat) hear(text []byte) {
	s.text = append(s.text, text...)
	if over := len(s.text) - unreadMost; over > 0 {
		s.missed += over
		s.text = append([]byte(nil), s.text[over:]...)
	}
	s.ring()
}

func (s *Seat) tell(st State) {
	s.state = &st
	s.ring()
}

func (s *Seat) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// Next waits for news: text, how things stand, or both; nil each where there are none.
// Its error is ctx's.
func (s *Seat) Next(ctx context.Context) ([]byte, *State, error) {
	for {
		s.port.mu.Lock()
		text, st, missed := s.text, s.state, s.missed
		s.text, s.state, s.missed = nil, nil, 0
		s.port.mu.Unlock()
		if missed > 0 {
			text = append(fmt.Appendf(nil, "\r\n[recast: %d bytes were not shown: this watcher is slower than the machine]\r\n", missed), text...)
		}
		if len(text) > 0 || st != nil {
			return text, st, nil
		}
		select {
		case <-s.bell:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// Take takes the keyboard, from whoever has it.
func (s *Seat) Take() (from string) {
	p := s.port
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writer == s || !p.seats[s] {
		return ""
	}
	if p.writer != nil {
		from = p.writer.who
	}
	p.writer = s
	p.markLocked("%s has the keyboard", s.who)
	p.tellLocked()
	return from
}

// Type sends what was typed, and a break after it where one is asked for. A keyboard
// that nobody has becomes the seat's: taken says so.
func (s *Seat) Type(text []byte, brk bool) (taken bool, err error) {
	p := s.port
	p.mu.Lock()
	switch {
	case !p.seats[s]:
		p.mu.Unlock()
		return false, errors.New("the watcher has left")
	case p.writer != nil && p.writer != s:
		by := p.writer.who
		p.mu.Unlock()
		return false, fmt.Errorf("%w: %s", ErrKeyboard, by)
	case p.writer == nil:
		p.writer, taken = s, true
		p.markLocked("%s has the keyboard", s.who)
		p.tellLocked()
	}
	line, why := p.line, p.why
	p.mu.Unlock()
	if line == nil {
		return taken, fmt.Errorf("there is no line to the machine: %s", why)
	}
	if len(text) > 0 {
		if _, err := line.Write(bytes.Clone(text)); err != nil {
			return taken, err
		}
	}
	if brk {
		return taken, line.Break()
	}
	return taken, nil
}

// Leave gives the seat up, and the keyboard with it.
func (s *Seat) Leave() {
	p := s.port
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.seats, s)
	if p.writer == s {
		p.writer = nil
	}
	p.wake()
	p.tellLocked()
}
