package testenv

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Impairment is how badly frames leave a port. The zero value is a good cable.
type Impairment struct {
	// Loss, Duplicate and Reorder are the shares of frames, from 0 to 1, that get
	// lost, come twice, or come after the next one.
	Loss, Duplicate, Reorder float64
	// Delay is how long a frame takes.
	Delay time.Duration
	// Seed chooses which frames; the same one chooses the same.
	Seed uint64
}

// FrameCount is what became of frames that should leave a port.
type FrameCount struct {
	Frames int64 `json:"frames"`
	Lost   int64 `json:"lost"` // by the impairment, or since the queue is full
	Twice  int64 `json:"twice"`
	Late   int64 `json:"late"` // behind the one that came after it
}

// switchFlow is a queue of a port, with an impairment of its own: those of one do
// not wait for those of another.
type switchFlow struct {
	port   *SwitchPort
	impair atomic.Pointer[Impairment]
	out    chan leaving
	done   chan struct{}
	work   sync.WaitGroup

	frames, lost, twice, late atomic.Int64
}

// leaving is a frame on its way out, and when it is due.
type leaving struct {
	frame []byte
	due   time.Time
}

// flowKey is an address that frames name: a hardware address or one of IPv4.
type flowKey struct {
	hw [6]byte
	ip netip.Addr
}

const (
	switchQueue = 4096
	// switchHold is how long a frame that is to be overtaken waits for another one.
	switchHold = 10 * time.Millisecond
)

func (p *SwitchPort) newFlow(i Impairment) *switchFlow {
	f := &switchFlow{port: p, out: make(chan leaving, switchQueue), done: make(chan struct{})}
	f.impair.Store(&i)
	f.work.Go(f.run)
	return f
}

func (f *switchFlow) end() {
	close(f.done)
	f.work.Wait()
}

// SetFlow gives the frames that name one of these addresses a queue and an impairment
// of their own: a port that many stations share is a bad cable to one of them.
func (p *SwitchPort) SetFlow(keys []flowKey, i Impairment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flows[keys[0]]; f != nil {
		f.impair.Store(&i)
		return
	}
	if p.ended {
		return
	}
	f := p.newFlow(i)
	for _, k := range keys {
		p.flows[k] = f
	}
}

// EndFlow ends what SetFlow began.
func (p *SwitchPort) EndFlow(keys []flowKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flows[keys[0]]; f != nil {
		f.end()
	}
	for _, k := range keys {
		delete(p.flows, k)
	}
}

// Count is of the flow with that address, without one of all others.
func (p *SwitchPort) Count(keys ...flowKey) FrameCount {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.all
	if len(keys) > 0 {
		if f = p.flows[keys[0]]; f == nil {
			return FrameCount{}
		}
	}
	return FrameCount{f.frames.Load(), f.lost.Load(), f.twice.Load(), f.late.Load()}
}

func (p *SwitchPort) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	close(p.done)
	flows := map[*switchFlow]bool{p.all: true}
	for _, f := range p.flows {
		flows[f] = true
	}
	for f := range flows {
		f.end()
	}
}

// flow of a frame: that of the first address in it that has one. A DHCP answer to
// everybody names its machine inside.
func (p *SwitchPort) flow(b []byte) *switchFlow {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.flows) == 0 {
		return p.all
	}
	for _, k := range frameKeys(b) {
		if f := p.flows[k]; f != nil {
			return f
		}
	}
	return p.all
}

// frameKeys are the addresses that a frame without a tag names.
func frameKeys(b []byte) []flowKey {
	keys := []flowKey{{hw: [6]byte(b[:6])}, {hw: [6]byte(b[6:12])}}
	ip := func(at []byte) { keys = append(keys, flowKey{ip: netip.AddrFrom4([4]byte(at))}) }
	kind, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	switch {
	case kind == unix.ETH_P_ARP && len(b) >= 28:
		ip(b[14:18])
		ip(b[24:28])
	case kind == unix.ETH_P_IP && len(b) >= 20:
		ip(b[12:16])
		ip(b[16:20])
		head := int(b[0]&15) * 4
		if b[9] != unix.IPPROTO_UDP || len(b) < head+8+34 {
			break
		}
		if to := binary.BigEndian.Uint16(b[head+2:]); to == 67 || to == 68 {
			keys = append(keys, flowKey{hw: [6]byte(b[head+8+28:])})
		}
	}
	return keys
}

// send puts a frame into the queue, or loses it where that is full.
func (f *switchFlow) send(b []byte) {
	f.frames.Add(1)
	select {
	case f.out <- leaving{b, time.Now().Add(f.impair.Load().Delay)}:
	default:
		f.lost.Add(1)
	}
}

// run sends what is in the queue until that ends.
func (f *switchFlow) run() {
	var luck *rand.Rand
	var by *Impairment
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := func(d time.Duration) (ended bool) {
		timer.Reset(d)
		select {
		case <-f.done:
			return true
		case <-timer.C:
			return false
		}
	}
	send := func(b []byte) { _, _ = f.port.tap.Write(b) } // while the interface is down nobody hears
	var held []byte
	for {
		var next leaving
		var late <-chan time.Time
		if held != nil {
			timer.Reset(switchHold)
			late = timer.C
		}
		select {
		case <-f.done:
			return
		case <-late:
			send(held)
			held = nil
			continue
		case next = <-f.out:
		}
		if d := time.Until(next.due); d > 0 && wait(d) {
			return
		}
		if i := f.impair.Load(); i != by {
			by, luck = i, rand.New(rand.NewPCG(i.Seed, 2))
		}
		// Each frame draws three times, whatever becomes of it: the choice does not
		// depend on what a neighbour's fate was.
		lost, twice, later := luck.Float64() < by.Loss, luck.Float64() < by.Duplicate, luck.Float64() < by.Reorder
		switch {
		case lost:
			f.lost.Add(1)
			continue
		case later && held == nil:
			held = next.frame
			continue
		}
		send(next.frame)
		if twice {
			f.twice.Add(1)
			send(next.frame)
		}
		if held != nil {
			f.late.Add(1)
			send(held)
			held = nil
		}
	}
}
