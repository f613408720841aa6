package testenv

import (
	"context"
	"errors"
	"io"
	"sync"
)

// SerialPort is the port of a machine in memory. What is said while nobody is
// connected is lost, as on a cable without a far end.
type SerialPort struct {
	// Typed is called with what somebody types; nil is a terminal that echoes.
	Typed func([]byte)

	mu     sync.Mutex
	line   *serialLine
	breaks int
}

// Breaks is how many it got.
func (p *SerialPort) Breaks() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.breaks
}

// Break implements Breaker.
func (m *SimMachine) Break(context.Context) error {
	m.Port.mu.Lock()
	defer m.Port.mu.Unlock()
	m.Port.breaks++
	return nil
}

// serialMost is what waits for a caller that does not read; more is lost.
const serialMost = 64 << 10

// Say is the machine speaking.
func (p *SerialPort) Say(text string) {
	p.mu.Lock()
	line := p.line
	p.mu.Unlock()
	if line != nil {
		line.put(text)
	}
}

// Connect takes the port; one caller at a time has it.
func (p *SerialPort) Connect(context.Context) (io.ReadWriteCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line != nil {
		return nil, errors.New("connect to the serial port: it is in use")
	}
	p.line = &serialLine{port: p}
	p.line.heard = sync.NewCond(&p.line.mu)
	return p.line, nil
}

// Console implements Consoled.
func (m *SimMachine) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.Port.Connect(ctx)
}

// echo is what a terminal does with what is typed.
func (p *SerialPort) echo(text []byte) {
	var out []byte
	for _, c := range text {
		out = append(out, c)
		if c == '\r' {
			out = append(out, '\n')
		}
	}
	p.Say(string(out))
}

// serialLine is the far end of a SerialPort.
type serialLine struct {
	port *SerialPort

	mu     sync.Mutex
	heard  *sync.Cond
	text   []byte
	closed bool
}

func (l *serialLine) put(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.text)+len(text) <= serialMost {
		l.text = append(l.text, text...)
	}
	l.heard.Signal()
}

func (l *serialLine) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.text) == 0 && !l.closed {
		l.heard.Wait()
	}
	if l.closed {
		return 0, io.EOF
	}
	n := copy(p, l.text)
	l.text = l.text[n:]
	return n, nil
}

func (l *serialLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return 0, io.ErrClosedPipe
	}
	if typed := l.port.Typed; typed != nil {
		typed(p)
	} else {
		l.port.echo(p)
	}
	return len(p), nil
}

func (l *serialLine) Close() error {
	l.mu.Lock()
	l.closed = true
	l.heard.Broadcast()
	l.mu.Unlock()
	l.port.mu.Lock()
	defer l.port.mu.Unlock()
	if l.port.line == l {
		l.port.line = nil
	}
	return nil
}
