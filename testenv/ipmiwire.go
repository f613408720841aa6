package testenv

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiConn is the BMC's socket: it sees logins, ends sessions that were idle,
// loses packets on demand, and is deaf while the BMC resets.
type ipmiConn struct {
	net.PacketConn
	bmc  *IPMIBMC
	idle time.Duration

	mu       sync.Mutex
	dice     *rand.Rand
	sessions map[uint32]*ipmiSession // by the BMC's number
	refused  map[ipmiPeer]bool       // logins under way that must fail
	after    map[ipmiPeer]ipmiAfter
	away     time.Time // until then the BMC is not there
}

// ipmiPeer is a session as packets to the console name it. The number alone is
// not enough: ipmitool's is always the same.
type ipmiPeer struct {
	addr    string
	console uint32
}

// ipmiSession is what the socket knows of a session, from its first packet on.
type ipmiSession struct {
	peer    ipmiPeer
	seen    time.Time
	refused bool // whatever the password
}

// ipmiAfter is what becomes of the next answer in a session.
type ipmiAfter struct {
	lose bool
	then func() // when it is sent or lost
}

func newIPMIConn(conn net.PacketConn, b *IPMIBMC, idle time.Duration, seed uint64) *ipmiConn {
	return &ipmiConn{PacketConn: conn, bmc: b, idle: idle,
		dice:     rand.New(rand.NewPCG(seed, seed)), // the same losses in each run
		sessions: map[uint32]*ipmiSession{}, refused: map[ipmiPeer]bool{}, after: map[ipmiPeer]ipmiAfter{}}
}

// rolls says whether something of that probability happens.
func (c *ipmiConn) rolls(probability float64) bool {
	if probability <= 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dice.Float64() < probability
}

func (c *ipmiConn) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.away)
}

func (c *ipmiConn) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.PacketConn.ReadFrom(p)
		if err != nil {
			return n, addr, err
		}
		faults := c.bmc.now()
		c.mu.Lock()
		c.bmc.leaveOpen(faults)
		c.mu.Unlock()
		if faults.Hang || c.gone() {
			c.bmc.record("read", "packet not answered", false)
			continue
		}
		if c.rolls(faults.LoseIn) {
			continue
		}
		c.hear(p[:n])
		return n, addr, nil
	}
}

// hear follows a packet to the BMC.
func (c *ipmiConn) hear(p []byte) {
	kind, id, body, ok := ipmiPlus(p)
	if !ok {
		return
	}
	c.endIdle()
	c.mu.Lock()
	s := c.sessions[id]
	if s != nil {
		s.seen = time.Now()
	}
	if kind == types.PayloadTypeRAKPMessage1 || kind == types.PayloadTypeRAKPMessage3 {
		if len(body) >= 8 {
			id = binary.LittleEndian.Uint32(body[4:8])
			s = c.sessions[id]
		}
	}
	c.mu.Unlock()
	if s == nil {
		return
	}
	switch kind {
	case types.PayloadTypeRAKPMessage1:
		if user, ok := ipmiLogin(body); ok {
			refused := !c.bmc.login(user)
			c.mu.Lock()
			s.refused = refused
			c.refused[s.peer] = refused
			c.mu.Unlock()
		}
	case types.PayloadTypeRAKPMessage3:
		c.mu.Lock()
		refused := s.refused
		c.mu.Unlock()
		if refused {
			// It would be let in with the right password.
			c.end(id)
		}
	}
}

func (c *ipmiConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	faults := c.bmc.now()
	p = c.say(p, addr.String())
	lost, then := faults.Hang || c.gone(), func() {}
	if kind, id, _, ok := ipmiPlus(p); ok && kind == types.PayloadTypeIPMI && id != 0 {
		c.mu.Lock()
		peer := ipmiPeer{addr.String(), id}
		if after, ok := c.after[peer]; ok {
			delete(c.after, peer)
			lost = lost || after.lose
			if after.then != nil {
				then = after.then
			}
		}
		c.mu.Unlock()
	}
	defer then()
	if lost || c.rolls(faults.LoseOut) {
		return len(p), nil
	}
	return c.PacketConn.WriteTo(p, addr)
}

// say follows a packet from the BMC, and spoils the proof of the password where
// a login is to fail: the client then fails as with a wrong one.
func (c *ipmiConn) say(p []byte, addr string) []byte {
	kind, _, body, ok := ipmiPlus(p)
	if !ok || len(body) < 8 || body[1] != 0 {
		return p
	}
	peer := ipmiPeer{addr, binary.LittleEndian.Uint32(body[4:8])}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch kind {
	case types.PayloadTypeRmcpOpenSessionResponse:
		if len(body) >= 12 {
			c.sessions[binary.LittleEndian.Uint32(body[8:12])] = &ipmiSession{peer: peer, seen: time.Now()}
		}
	case types.PayloadTypeRAKPMessage2:
		if c.refused[peer] && len(body) > 40 {
			p = append([]byte(nil), p...)
			p[len(p)-1] ^= 0xff
		}
		delete(c.refused, peer)
	case types.PayloadTypeRAKPMessage4:
		c.bmc.loggedIn()
	}
	return p
}

// next decides over the next answer in a session.
func (c *ipmiConn) next(session *bmc.Session, after ipmiAfter) {
	addr := session.GetAddr()
	if addr == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.after[ipmiPeer{addr.String(), session.ConsoleID}] = after
}

// endIdle ends sessions whose time is over. go-ipmi looks every few seconds
// only, and allows for some more.
func (c *ipmiConn) endIdle() {
	var over []uint32
	c.mu.Lock()
	for id, s := range c.sessions {
		if time.Since(s.seen) > c.idle {
			over = append(over, id)
		}
	}
	c.mu.Unlock()
	for _, id := range over {
		c.end(id)
	}
}

// end forgets a session; one that was closed is gone already.
func (c *ipmiConn) end(id uint32) {
	c.mu.Lock()
	if s := c.sessions[id]; s != nil {
		delete(c.after, s.peer)
		delete(c.refused, s.peer)
	}
	delete(c.sessions, id)
	c.mu.Unlock()
	_ = c.bmc.bmc.Sessions.Close(id)
}

// leave is the start of a reset: nobody is logged in, nothing is heard.
func (c *ipmiConn) leave(d time.Duration) {
	c.mu.Lock()
	c.away = time.Now().Add(d)
	ids := maps.Clone(c.sessions)
	c.mu.Unlock()
	for id := range ids {
		c.end(id)
	}
}

// ipmiPlus takes an RMCP+ packet apart (IPMI 2.0, 13.6).
func ipmiPlus(p []byte) (kind types.PayloadType, session uint32, body []byte, ok bool) {
	const header = 16
	if len(p) < header || p[3]&0x1f != 0x07 || p[4] != 0x06 {
		return 0, 0, nil, false
	}
	size := int(binary.LittleEndian.Uint16(p[14:16]))
	if size > len(p)-header {
		return 0, 0, nil, false
	}
	return types.PayloadType(p[5] & 0x3f), binary.LittleEndian.Uint32(p[6:10]), p[header : header+size], true
}

// ipmiLogin is the user that RAKP message 1 names (IPMI 2.0, 13.20), after which
// a wrong password shows.
func ipmiLogin(body []byte) (user string, ok bool) {
	if len(body) < 28 || len(body) != 28+int(body[27]) {
		return "", false
	}
	return string(body[28:]), true
}
