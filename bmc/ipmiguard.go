package bmc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"
)

// RMCP+ packets: 4 bytes of RMCP, then the session header of 12 bytes
// (IPMI 2.0, table 13-8), the payload, and in a session the trailer.
const (
	rmcpSize    = 4
	headerEnd   = 16
	rmcpClass   = 0x07
	formatPlus  = 0x06
	flagsSealed = 0xc0 // encrypted and authenticated
)

// ipmiGuard is the socket that go-ipmi reads from. go-ipmi v0.9.1 checks
// neither the integrity code nor the session of an answer, accepts clear text
// within an encrypted session and whatever algorithms the BMC names, and
// indexes into decrypted bytes in a goroutine that nobody can recover: one
// forged datagram would invent a power state or end the process. The guard
// follows the handshake, derives the same keys, and lets through only what
// belongs to it.
type ipmiGuard struct {
	net.Conn
	user     string
	password Secret
	bad      *BadAnswers
	log      *slog.Logger

	mu sync.Mutex
	// await is the payload type that the handshake waits for.
	await types.PayloadType
	// algorithms asked for: authentication, integrity, confidentiality.
	algorithms  [3]byte
	consoleID   uint32
	consoleRand []byte
	role        byte
	keys        ipmiKeys
	bmcID       uint32 // the BMC's number of the session
	sequence    uint32 // of the last packet that went out in it
	left        bool   // go-ipmi has no part in the session any more
	active      bool
	heard       bool
	sent        [0x40]bool // by payload type, in this handshake
	seen        map[uint32]bool
}

// errRepeated ends a handshake in which a packet was lost. go-ipmi leaves only
// its text.
var errRepeated = errors.New(loginLost)

const loginLost = "a packet of the login was lost"

// Write follows what go-ipmi sends. It refuses to repeat a RAKP message: BMCs
// answer that with a new random number or a status that reads like a wrong
// password. The handshake is begun anew instead.
func (g *ipmiGuard) Write(p []byte) (int, error) {
	g.mu.Lock()
	left := g.left
	g.mu.Unlock()
	if left {
		return 0, net.ErrClosed
	}
	if !g.follow(p) {
		return 0, errRepeated
	}
	return g.Conn.Write(p)
}

// Close leaves the socket to whom the session was given.
func (g *ipmiGuard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left {
		return nil
	}
	return g.Conn.Close()
}

// follow notes a request and reports whether it may go out.
func (g *ipmiGuard) follow(p []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(p) < headerEnd || p[rmcpSize] != formatPlus {
		return true
	}
	kind := types.PayloadType(p[5] & 0x3f)
	body := p[headerEnd:]
	if g.active {
		g.bmcID, g.sequence = binary.LittleEndian.Uint32(p[6:10]), binary.LittleEndian.Uint32(p[10:14])
	}
	switch kind {
	case types.PayloadTypeRmcpOpenSessionRequest:
		if len(body) < 32 {
			return true
		}
		g.consoleID = binary.LittleEndian.Uint32(body[4:8])
		g.algorithms = [3]byte{body[12] & 0x3f, body[20] & 0x3f, body[28] & 0x3f}
		g.await = types.PayloadTypeRmcpOpenSessionResponse
		g.active, g.sent, g.seen = false, [0x40]bool{}, map[uint32]bool{}
	case types.PayloadTypeRAKPMessage1:
		if g.sent[kind] || len(body) < 25 {
			return false
		}
		g.consoleRand = append([]byte(nil), body[8:24]...)
		g.role = body[24]
		g.await = types.PayloadTypeRAKPMessage2
		g.sent[kind] = true
	case types.PayloadTypeRAKPMessage3:
		if g.sent[kind] {
			return false
		}
		g.await = types.PayloadTypeRAKPMessage4
		g.sent[kind] = true
	}
	return true
}

// Read returns the next datagram that belongs here.
func (g *ipmiGuard) Read(p []byte) (int, error) {
	for {
		n, err := g.Conn.Read(p)
		if err != nil {
			return n, err
		}
		if why := g.judge(p[:n]); why != nil {
			bad := badDecode // the library's own reasons
			errors.As(why, &bad)
			g.bad.count(bad)
			g.log.Debug("drop IPMI packet", "why", why)
			continue
		}
		return n, nil
	}
}

// judge says why a datagram is not one that go-ipmi should see, and notes what
// an accepted one changes.
func (g *ipmiGuard) judge(p []byte) (why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			why = fmt.Errorf("undecodable: %v", r)
		}
	}()
	if len(p) < rmcpSize+1 || p[0] != 0x06 || p[3]&0x1f != rmcpClass {
		return badIPMI
	}
	// The library's own decoder first: what it cannot take it must not get.
	var packet types.Rmcp
	if err := packet.Unpack(p); err != nil {
		return err
	}
	if packet.Session15 != nil {
		if g.active || g.await != 0 {
			return badSessionless
		}
		var response types.IPMIResponse
		if err := response.Unpack(packet.Session15.Payload); err != nil {
			return err
		}
		g.heard = true
		return nil
	}
	if packet.Session20 == nil || len(p) < headerEnd {
		return badIPMI
	}
	header, body := packet.Session20.SessionHeader20, packet.Session20.SessionPayload
	if g.active {
		return g.judgeSealed(p, header, body)
	}
	if header.PayloadType != g.await || header.SessionID != 0 || p[5]&flagsSealed != 0 {
		return fmt.Errorf("%w: %#02x", badAwaited, uint8(header.PayloadType))
	}
	if len(body) < 8 || binary.LittleEndian.Uint32(body[4:8]) != g.consoleID {
		return badSession
	}
	refused := body[1] != 0
	switch {
	case refused:
	case header.PayloadType == types.PayloadTypeRmcpOpenSessionResponse:
		if len(body) < 36 {
			return badLogin
		}
		got := [3]byte{body[16] & 0x3f, body[24] & 0x3f, body[32] & 0x3f}
		if got != g.algorithms {
			return fmt.Errorf("%w: %v, not %v", badAlgorithms, got, g.algorithms)
		}
	case header.PayloadType == types.PayloadTypeRAKPMessage2:
		if len(body) < 40 {
			return badLogin
		}
		_, k1, k2, err := crypto.DeriveSessionKeys(types.AuthAlg(g.algorithms[0]), g.consoleRand, body[8:24],
			g.role, g.user, crypto.PadPassword20([]byte(g.password.Reveal())))
		if err != nil {
			return err
		}
		g.keys.k1, g.keys.k2, g.keys.integrity = k1, k2, types.IntegrityAlg(g.algorithms[1])
	case header.PayloadType == types.PayloadTypeRAKPMessage4:
		// go-ipmi verifies its integrity check value, with the same keys.
		g.active, g.seen = true, map[uint32]bool{}
	}
	g.heard = true
	return nil
}

// judgeSealed checks a packet inside the session: whole, ours, new, encrypted.
func (g *ipmiGuard) judgeSealed(p []byte, header *types.SessionHeader20, body []byte) error {
	if err := g.keys.whole(p, header, body, g.consoleID); err != nil {
		return err
	}
	if header.Sequence != 0 && g.seen[header.Sequence] {
		return fmt.Errorf("%w: %d", badRepeated, header.Sequence)
	}
	if header.PayloadType != types.PayloadTypeIPMI {
		return fmt.Errorf("%w: %#02x", badAwaited, uint8(header.PayloadType))
	}
	plain, err := crypto.DecryptAESPayload(body, g.keys.k2)
	if err != nil {
		return err
	}
	var response types.IPMIResponse
	if err := response.Unpack(plain); err != nil {
		return err
	}
	g.seen[header.Sequence] = true
	return nil
}

// answered reports whether anything that belongs to this exchange ever came.
func (g *ipmiGuard) answered() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heard
}
