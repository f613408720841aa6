package testenv

import (
	"context"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/hal"
)

// Consoled is a Machine with a serial port. One caller at a time holds it; while
// the machine is off there may be no port.
type Consoled interface {
	Console(context.Context) (io.ReadWriteCloser, error)
}

// Breaker is a Machine whose serial port takes a break.
type Breaker interface {
	Break(context.Context) error
}

const (
	// ipmiConsoleAgain is how often the port of a machine is looked for that has
	// none now: serial over LAN outlives the machine's power.
	ipmiConsoleAgain = 100 * time.Millisecond
	// ipmiConsoleMost is what waits for the remote console at most; the port is
	// not read further then.
	ipmiConsoleMost = 16 << 10
)

// ipmiHAL is the hardware as go-ipmi's server sees it: records and a serial
// port. The commands of the chassis are answered here.
type ipmiHAL struct {
	bmc     *IPMIBMC
	storage *ipmiStorage
}

func newIPMIHAL(b *IPMIBMC, serial string) (*ipmiHAL, error) {
	storage, err := newIPMIStorage(serial)
	if err != nil {
		return nil, err
	}
	return &ipmiHAL{b, storage}, nil
}

func (*ipmiHAL) Chassis() hal.ChassisHAL   { return nil }
func (*ipmiHAL) Sensors() hal.SensorHAL    { return nil }
func (h *ipmiHAL) Storage() hal.StorageHAL { return h.storage }
func (h *ipmiHAL) Network() hal.NetworkHAL { return ipmiLAN{h.bmc} }
func (*ipmiHAL) GPIO() hal.GPIOHAL         { return nil }
func (*ipmiHAL) I2C() hal.I2CHAL           { return nil }
func (*ipmiHAL) Close() error              { return nil }

// ipmiLAN is the BMC's own card, as `ipmitool lan print` shows it.
type ipmiLAN struct{ bmc *IPMIBMC }

// GetConfig implements hal.NetworkHAL. A BMC on IPv6 has no IPv4 address.
func (l ipmiLAN) GetConfig(context.Context) (*hal.IPConfig, error) {
	at, err := netip.ParseAddrPort(l.bmc.addr)
	if err != nil {
		return nil, err
	}
	c := &hal.IPConfig{Mask: [4]byte{255, 255, 255, 0}, Port: at.Port(), MAC: [6]byte{0x02, 0x5e}}
	if ip := at.Addr().Unmap(); ip.Is4() {
		c.IP = ip.As4()
		copy(c.MAC[2:], c.IP[:])
	}
	return c, nil
}

// SetConfig implements hal.NetworkHAL.
func (ipmiLAN) SetConfig(context.Context, *hal.IPConfig) error { return hal.ErrNotSupported }

// Console is nil for a machine without a serial port: SOL is not on offer then.
func (h *ipmiHAL) Console() hal.ConsoleHAL {
	if port, ok := h.bmc.machine.(Consoled); ok {
		return ipmiConsole{port}
	}
	return nil
}

type ipmiConsole struct{ port Consoled }

// Open begins to follow the port. go-ipmi keeps a second session out.
func (c ipmiConsole) Open(context.Context) (hal.ConsoleConn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &ipmiSOL{port: c.port, cancel: cancel, done: make(chan struct{})}
	s.room = sync.NewCond(&s.mu)
	go s.follow(ctx)
	return s, nil
}

// ipmiSOL holds the machine's serial port, whenever there is one.
type ipmiSOL struct {
	port   Consoled
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	room    *sync.Cond
	line    io.ReadWriteCloser // nil while there is none
	pending []byte
	closed  bool
}

func (s *ipmiSOL) follow(ctx context.Context) {
	defer close(s.done)
	for ctx.Err() == nil {
		line, err := s.port.Console(ctx)
		if err == nil {
			s.read(line)
		}
		timer := time.NewTimer(ipmiConsoleAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// read takes what the machine says until its port is gone.
func (s *ipmiSOL) read(line io.ReadWriteCloser) {
	defer line.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.line = line
	s.mu.Unlock()
	buf := make([]byte, 1024)
	for {
		n, err := line.Read(buf)
		s.mu.Lock()
		for len(s.pending) > ipmiConsoleMost && !s.closed {
			s.room.Wait()
		}
		s.pending = append(s.pending, buf[:n]...)
		s.room.Broadcast()
		if err != nil || s.closed {
			s.line = nil
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// ReadAvailable implements hal.ConsoleConn.
func (s *ipmiSOL) ReadAvailable(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(p, s.pending)
	s.pending = s.pending[n:]
	s.room.Broadcast()
	return n, nil
}

// next waits for what the machine says; nil after Close.
func (s *ipmiSOL) next() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending) == 0 && !s.closed {
		s.room.Wait()
	}
	if s.closed {
		return nil
	}
	text := s.pending
	s.pending = nil
	s.room.Broadcast()
	return text
}

// Write is what somebody typed; a machine that is off does not hear it.
func (s *ipmiSOL) Write(p []byte) (int, error) {
	s.mu.Lock()
	line := s.line
	s.mu.Unlock()
	if line == nil {
		return len(p), nil
	}
	if _, err := line.Write(p); err != nil {
		return len(p), nil // the port just went; follow looks for the next
	}
	return len(p), nil
}

// SendBreak implements hal.ConsoleConn.
func (s *ipmiSOL) SendBreak(ctx context.Context) error {
	if m, ok := s.port.(Breaker); ok {
		return m.Break(ctx)
	}
	return hal.ErrNotSupported
}

// Close lets the port go.
func (s *ipmiSOL) Close() error {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	if s.line != nil {
		_ = s.line.Close()
	}
	s.room.Broadcast()
	s.mu.Unlock()
	<-s.done
	return nil
}
