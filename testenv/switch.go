package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Switch is a learning Ethernet switch in user space, for what the kernel's bridge
// cannot do: VLANs on a kernel without 802.1Q, and links that lose, double, delay
// and reorder frames, by a seed and so each time alike. Its ports are taps, and the
// interface of each is one that programs use as a card: on an access port it is
// what the kernel's sub-interface eth0.100 would be, and on a trunk the card below.
//
// Duties of the caller: Plug what it has, then Close, which takes the taps' cards
// away with them.
type Switch struct {
	mu     sync.Mutex
	ports  []*SwitchPort
	table  map[station]*SwitchPort
	closed bool

	work sync.WaitGroup
}

// station is a hardware address in its VLAN.
type station struct {
	vlan uint16
	hw   [6]byte
}

// PortConfig is what a port carries, and how badly.
type PortConfig struct {
	// Access is the VLAN of frames without a tag, in and out. 0 drops them.
	Access uint16
	// Trunk are the VLANs that are carried with their tag.
	Trunk []uint16
	// Impairment of what leaves by the port.
	Impairment
}

// SwitchPort is a port that is plugged in.
type SwitchPort struct {
	tap  io.ReadWriteCloser
	done chan struct{}

	mu     sync.Mutex
	config PortConfig
	all    *switchFlow // of frames that are of no other
	flows  map[flowKey]*switchFlow
	ended  bool
}

const etherVLAN = unix.ETH_P_8021Q

// NewTap makes a tap interface in the network namespace of the calling thread, and
// returns the cable's other end: a read is a frame that the kernel sent out of the
// interface, a write one that it receives. The interface goes with the file.
func NewTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make tap %q: open /dev/net/tun: %w", name, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make tap %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil // non-blocking, so that Close ends a Read
}

// Plug puts the other end of a tap, or anything that keeps frames apart like one,
// into a port. The switch closes it.
func (s *Switch) Plug(tap io.ReadWriteCloser, c PortConfig) *SwitchPort {
	p := &SwitchPort{tap: tap, config: c, done: make(chan struct{}), flows: map[flowKey]*switchFlow{}}
	p.all = p.newFlow(c.Impairment)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil {
		s.table = map[station]*SwitchPort{}
	}
	s.ports = append(s.ports, p)
	s.work.Go(func() { s.read(p) })
	return p
}

// Set changes what the port carries, and how badly, from now on.
func (p *SwitchPort) Set(c PortConfig) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config = c
	p.all.impair.Store(&c.Impairment)
}

func (p *SwitchPort) now() PortConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config
}

// Close unplugs every port and waits until the last frame is through.
func (s *Switch) Close() error {
	s.mu.Lock()
	var errs []error
	if !s.closed {
		s.closed = true
		for _, p := range s.ports {
			errs = append(errs, p.tap.Close())
			p.end()
		}
	}
	s.mu.Unlock()
	s.work.Wait()
	return errors.Join(errs...)
}

// read takes what comes into a port until that is unplugged.
func (s *Switch) read(p *SwitchPort) {
	buf := make([]byte, 1<<16)
	for {
		n, err := p.tap.Read(buf)
		if errors.Is(err, unix.EBADFD) || errors.Is(err, unix.EIO) {
			err = nil // the interface is down: it may come up
			n = 0
		}
		if err != nil {
			return
		}
		config := p.now()
		vlan, frame, ok := config.enter(buf[:n])
		if !ok {
			continue
		}
		s.forward(p, vlan, frame)
	}
}

// enter is the VLAN of a frame that came in and the frame without its tag, a copy;
// ok is false where the port does not carry it.
func (c *PortConfig) enter(b []byte) (vlan uint16, frame []byte, ok bool) {
	if len(b) < 14 {
		return 0, nil, false
	}
	if binary.BigEndian.Uint16(b[12:]) != etherVLAN {
		return c.Access, slices.Clone(b), c.Access != 0
	}
	if len(b) < 18 {
		return 0, nil, false
	}
	vlan = binary.BigEndian.Uint16(b[14:]) & 0xfff
	frame = slices.Concat(b[:12], b[16:])
	if vlan == 0 { // a priority alone (802.1Q §6.9.1)
		return c.Access, frame, c.Access != 0
	}
	return vlan, frame, slices.Contains(c.Trunk, vlan)
}

// leave is a frame of a VLAN as the port sends it; ok is false where it does not
// carry the VLAN.
func (c *PortConfig) leave(vlan uint16, frame []byte) (_ []byte, ok bool) {
	if vlan == c.Access {
		return frame, true
	}
	if !slices.Contains(c.Trunk, vlan) {
		return nil, false
	}
	tagged := binary.BigEndian.AppendUint16(slices.Clone(frame[:12]), etherVLAN)
	tagged = binary.BigEndian.AppendUint16(tagged, vlan)
	return append(tagged, frame[12:]...), true
}

// forward sends a frame to the port where its address was seen, or to all others.
func (s *Switch) forward(from *SwitchPort, vlan uint16, frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	to, src := station{vlan, [6]byte(frame[:6])}, station{vlan, [6]byte(frame[6:12])}
	if src.hw[0]&1 == 0 {
		s.table[src] = from
	}
	ports := s.ports
	if p, known := s.table[to]; known {
		ports = []*SwitchPort{p}
	}
	for _, p := range ports {
		if p == from {
			continue
		}
		config := p.now()
		if b, ok := config.leave(vlan, frame); ok {
			p.flow(frame).send(b)
		}
	}
}
