package bmc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// Exposure is what a BMC's IPMI over LAN offers to anybody, asked for without a
// login.
type Exposure struct {
	IPMI20 bool `json:"ipmi20,omitempty"`
	IPMI15 bool `json:"ipmi15,omitempty"`
	// Open: IPMI 1.5 without any authentication.
	Open bool `json:"open,omitempty"`
	// Anonymous: a user without name and password is enabled. NoName: one without
	// name, with a password.
	Anonymous bool `json:"anonymous,omitempty"`
	NoName    bool `json:"noName,omitempty"`
	// Cipher0: it begins sessions of suite 0, in which no password is checked.
	Cipher0 bool `json:"cipher0,omitempty"`
}

// Findings are what a person should close, and how.
func (x Exposure) Findings() (found []string) {
	for _, f := range []struct {
		is   bool
		text string
	}{
		{x.Cipher0, "IPMI cipher suite 0 lets in without a password whoever names a user: disable suite 0"},
		{x.Anonymous, "IPMI has a user without name and password: disable user 1"},
		{x.NoName && !x.Anonymous, "IPMI has a user without a name: disable user 1"},
		{x.Open, "IPMI 1.5 lets in without authentication: disable the type none"},
		{x.IPMI15 && !x.Open, "IPMI 1.5 is offered, whose sessions are not encrypted: disable it"},
	} {
		if f.is {
			found = append(found, f.text)
		}
	}
	return found
}

const (
	exposureTries   = 3
	exposureTimeout = time.Second
)

// Expose asks the IPMI over LAN of a BMC at host:port (623) what it offers. It
// takes three packets and no login. No IPMI at all is no error: the zero value.
func Expose(ctx context.Context, hostPort string) (x Exposure, err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", hostPort)
	if err != nil {
		return x, explain("look at IPMI on "+hostPort, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	caps, err := ipmiAsk(ctx, conn, ipmiCapabilitiesRequest(true), ipmiCapabilities)
	var refused ipmiRefusal
	if errors.As(err, &refused) { // older than 2.0
		caps, err = ipmiAsk(ctx, conn, ipmiCapabilitiesRequest(false), ipmiCapabilities)
	}
	if err != nil && ctx.Err() == nil && (reasonOf(err) == ErrTimeout || reasonOf(err) == ErrUnreachable) {
		return x, nil
	}
	if err != nil {
		return x, explain("look at IPMI on "+hostPort, err)
	}
	x = caps
	if !x.IPMI20 {
		return x, nil
	}
	var tag [4]byte
	_, _ = rand.Read(tag[:])
	console := binary.LittleEndian.Uint32(tag[:]) | 1 // 0 is none (13.17)
	x.Cipher0, err = ipmiAsk(ctx, conn, ipmiOpen0Request(console), func(p []byte) (bool, error) { return ipmiOpen0(p, console) })
	if err != nil && ctx.Err() == nil && reasonOf(err) == ErrTimeout {
		return x, nil // some do not answer what they refuse
	}
	if err != nil {
		return x, explain("try IPMI cipher suite 0 on "+hostPort, err)
	}
	return x, nil
}

// ipmiAsk sends until a packet comes that read understands.
func ipmiAsk[T any](ctx context.Context, conn net.Conn, request []byte, read func([]byte) (T, error)) (answer T, err error) {
	buffer := make([]byte, 1024)
	for range exposureTries {
		if ctx.Err() != nil {
			return answer, ended(ctx, "ask")
		}
		if err = conn.SetDeadline(time.Now().Add(exposureTimeout)); err != nil {
			return answer, err
		}
		if _, err = conn.Write(request); err != nil {
			return answer, err
		}
		for {
			var n int
			if n, err = conn.Read(buffer); err != nil {
				break
			}
			answer, err = read(buffer[:n])
			if !errors.Is(err, errNotMine) {
				return answer, err
			}
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			return answer, err
		}
	}
	return answer, err
}

// errNotMine: a packet is no answer to what was asked.
var errNotMine = errors.New("not the answer")

// ipmiRefusal is a completion code.
type ipmiRefusal byte

func (r ipmiRefusal) Error() string { return fmt.Sprintf("completion code %#02x", byte(r)) }

const (
	ipmiApp      = 0x06
	ipmiGetAuth  = 0x38
	ipmiBMC      = 0x20
	ipmiRemote   = 0x81
	ipmiThisLAN  = 0x0e
	ipmiAdmin    = 0x04
	ipmiExtended = 0x80
)

// ipmiCapabilitiesRequest is Get Channel Authentication Capabilities (IPMI 2.0,
// 22.13) outside of any session.
func ipmiCapabilitiesRequest(extended bool) []byte {
	channel := byte(ipmiThisLAN)
	if extended {
		channel |= ipmiExtended
	}
	head := []byte{ipmiBMC, ipmiApp << 2}
	body := []byte{ipmiRemote, 0, ipmiGetAuth, channel, ipmiAdmin}
	message := append(append(head, ipmiChecksum(head)), append(body, ipmiChecksum(body))...)
	packet := []byte{0x06, 0, 0xff, rmcpClass, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(message))}
	return append(packet, message...)
}

// ipmiChecksum makes the sum of the bytes zero (13.8).
func ipmiChecksum(p []byte) (sum byte) {
	for _, b := range p {
		sum -= b
	}
	return sum
}

// ipmiCapabilities reads the answer.
func ipmiCapabilities(p []byte) (x Exposure, err error) {
	const sessionless = 14 // RMCP and the session header of type none
	if len(p) < sessionless+8 || p[0] != 0x06 || p[3]&0x1f != rmcpClass || p[4] != 0 {
		return x, errNotMine
	}
	m := p[sessionless:]
	if n := int(p[sessionless-1]); n < len(m) {
		m = m[:n]
	}
	if len(m) < 8 || m[1]>>2 != ipmiApp+1 || m[5] != ipmiGetAuth {
		return x, errNotMine
	}
	if m[6] != 0 {
		return x, ipmiRefusal(m[6])
	}
	if len(m) < 12 {
		return x, badResponse
	}
	types, status, versions := m[8], m[9], m[10]
	x.Anonymous, x.NoName = status&1 != 0, status&2 != 0
	switch {
	case types&0x80 == 0:
		x.IPMI15 = true
	default:
		x.IPMI15, x.IPMI20 = versions&1 != 0, versions&2 != 0
	}
	x.Open = x.IPMI15 && types&1 != 0
	return x, nil
}

// ipmiOpen0Request is RMCP+ Open Session Request (13.17) for suite 0: no
// authentication, no integrity, no confidentiality. It names no user.
func ipmiOpen0Request(console uint32) []byte {
	p := []byte{0x06, 0, 0xff, rmcpClass, formatPlus, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0,
		0, 0, 0, 0} // tag, the highest right that is to be had
	p = binary.LittleEndian.AppendUint32(p, console)
	for kind := range byte(3) {
		p = append(p, kind, 0, 0, 8, 0, 0, 0, 0)
	}
	return p
}

// ipmiOpen0 reads the answer: whether it begins the session that was asked for.
func ipmiOpen0(p []byte, console uint32) (bool, error) {
	if len(p) < headerEnd+2 || p[0] != 0x06 || p[3]&0x1f != rmcpClass || p[4] != formatPlus || p[5]&0x3f != 0x11 {
		return false, errNotMine
	}
	body := p[headerEnd:]
	if body[1] != 0 {
		return false, nil
	}
	if len(body) < 36 {
		return false, badLogin
	}
	if binary.LittleEndian.Uint32(body[4:8]) != console {
		return false, errNotMine
	}
	return body[16]&0x3f == 0, nil
}
