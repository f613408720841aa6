package bmc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiKeys protect the packets of a session.
type ipmiKeys struct {
	k1, k2    []byte
	integrity types.IntegrityAlg
}

// whole says why a packet inside a session is not one of it, whole and encrypted.
func (k *ipmiKeys) whole(p []byte, header *types.SessionHeader20, body []byte, consoleID uint32) error {
	if p[5]&flagsSealed != flagsSealed {
		return badClear
	}
	if header.SessionID != consoleID {
		return fmt.Errorf("%w: %#x", badSession, header.SessionID)
	}
	size, ok := crypto.IntegrityAuthCodeLen(k.integrity)
	if !ok || size == 0 || len(p) < headerEnd+len(body)+size {
		return badCode
	}
	end := len(p) - size
	want, err := crypto.SessionIntegrityAuthCode(k.integrity, p[rmcpSize:end], k.k1, "")
	if err != nil {
		return err
	}
	if !crypto.Equal(want, p[end:]) {
		return badCode
	}
	return nil
}

// ipmiWire is a session in which we send the packets ourselves: go-ipmi reads only
// while it waits for an answer, and a console speaks when it likes.
type ipmiWire struct {
	conn             net.Conn
	keys             ipmiKeys
	bmcID, consoleID uint32
	bad              *BadAnswers
	timeout          time.Duration // of one exchange

	mu       sync.Mutex // over what goes out
	sequence uint32
	request  byte // number of the last command, six bits

	replays replayWindow // of what comes in; its reader's
}

// wire ends go-ipmi's part in the session that is open, and is what becomes of it.
func (d *ipmiDriver) wire() (*ipmiWire, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lib, g := d.lib, d.guard
	if lib == nil || g == nil {
		return nil, errors.New("there is no session to take")
	}
	g.mu.Lock()
	g.left = true // from here on go-ipmi neither sends nor closes
	w := &ipmiWire{conn: g.Conn, keys: g.keys, bmcID: g.bmcID, consoleID: g.consoleID, sequence: g.sequence, bad: d.bad, timeout: d.timeout}
	for n := range g.seen {
		w.replays.fresh(n)
	}
	g.mu.Unlock()
	d.dropLocked(closeTimeout)
	if w.bmcID == 0 {
		_ = w.conn.Close()
		return nil, errors.New("the session was never used")
	}
	return w, nil
}

// replayWindow knows which of the last packets came already (IPMI 2.0, 6.12.13).
type replayWindow struct {
	newest uint32
	seen   uint64 // bit n: the packet n before the newest
}

// fresh notes a packet and reports whether it is new. Number 0 stands outside of
// sessions' numbers, and some BMCs send nothing else.
func (w *replayWindow) fresh(n uint32) bool {
	switch {
	case n == 0:
		return true
	case n > w.newest:
		if ahead := n - w.newest; ahead < 64 {
			w.seen = w.seen<<ahead | 1
		} else {
			w.seen = 1
		}
		w.newest = n
		return true
	case w.newest-n >= 64:
		return false
	}
	bit := uint64(1) << (w.newest - n)
	if w.seen&bit != 0 {
		return false
	}
	w.seen |= bit
	return true
}

// send seals a payload and sends it.
func (w *ipmiWire) send(kind types.PayloadType, plain []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := w.seal(kind, plain, crypto.RandomBytes(16))
	if err != nil {
		return err
	}
	_, err = w.conn.Write(p)
	return err
}

// seal makes the next packet (IPMI 2.0, 13.6).
func (w *ipmiWire) seal(kind types.PayloadType, plain, iv []byte) ([]byte, error) {
	body, err := crypto.EncryptAESPayload(plain, w.keys.k2, iv)
	if err != nil {
		return nil, err
	}
	if w.sequence++; w.sequence == 0 {
		w.sequence = 1
	}
	p := []byte{0x06, 0, 0xff, rmcpClass, formatPlus, byte(kind) | flagsSealed}
	p = binary.LittleEndian.AppendUint32(p, w.bmcID)
	p = binary.LittleEndian.AppendUint32(p, w.sequence)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(body)))
	p = append(p, body...)
	pad := (4 - (len(p)-rmcpSize+2)%4) % 4
	for range pad {
		p = append(p, 0xff)
	}
	p = append(p, byte(pad), 0x07)
	code, err := crypto.SessionIntegrityAuthCode(w.keys.integrity, p[rmcpSize:], w.keys.k1, "")
	if err != nil {
		return nil, err
	}
	return append(p, code...), nil
}

// read is the next packet that belongs to the session.
func (w *ipmiWire) read(buf []byte) (types.PayloadType, []byte, error) {
	for {
		n, err := w.conn.Read(buf)
		if err != nil {
			return 0, nil, err
		}
		kind, plain, err := w.open(buf[:n])
		if err == nil {
			return kind, plain, nil
		}
		bad := badDecode
		errors.As(err, &bad)
		w.bad.count(bad)
	}
}

// open checks a packet as the guard does and decrypts it.
func (w *ipmiWire) open(p []byte) (kind types.PayloadType, plain []byte, err error) {
	defer func() { // the library's decoders index what comes without a look
		if r := recover(); r != nil {
			err = fmt.Errorf("undecodable: %v", r)
		}
	}()
	if len(p) < headerEnd || p[0] != 0x06 || p[3]&0x1f != rmcpClass || p[rmcpSize] != formatPlus {
		return 0, nil, badIPMI
	}
	var packet types.Rmcp
	if err := packet.Unpack(p); err != nil {
		return 0, nil, err
	}
	if packet.Session20 == nil {
		return 0, nil, badIPMI
	}
	header, body := packet.Session20.SessionHeader20, packet.Session20.SessionPayload
	if err := w.keys.whole(p, header, body, w.consoleID); err != nil {
		return 0, nil, err
	}
	if plain, err = crypto.DecryptAESPayload(body, w.keys.k2); err != nil {
		return 0, nil, err
	}
	if !w.replays.fresh(header.Sequence) {
		return 0, nil, fmt.Errorf("%w: %d", badRepeated, header.Sequence)
	}
	return header.PayloadType, plain, nil
}

// Network functions and commands that a console needs.
const (
	netFnApp             = 0x06
	cmdGetDeviceID       = 0x01
	cmdCloseSession      = 0x3c
	cmdGetSessionInfo    = 0x3d
	cmdGetUserName       = 0x46
	cmdActivatePayload   = 0x48
	cmdDeactivatePayload = 0x49
	cmdPayloadInstance   = 0x4b
)

// ask sends a command and does not wait for its answer; it returns the command's number.
func (w *ipmiWire) ask(command byte, data ...byte) (number byte, err error) {
	w.mu.Lock()
	w.request = (w.request + 1) & 0x3f
	number = w.request
	w.mu.Unlock()
	return number, w.send(types.PayloadTypeIPMI, ipmiRequest(number, command, data))
}

// ipmiRequest is a message to the BMC of the application's function (IPMI 2.0, 13.8).
func ipmiRequest(number, command byte, data []byte) []byte {
	p := []byte{0x20, netFnApp << 2, 0, 0x81, number << 2, command}
	p[2] = -(p[0] + p[1])
	p = append(p, data...)
	var sum byte
	for _, c := range p[3:] {
		sum += c
	}
	return append(p, -sum)
}

// call sends a command until it is answered, and returns the answer's data. Nobody
// else may read meanwhile; what the console says is left for the BMC to repeat.
func (w *ipmiWire) call(ctx context.Context, command byte, data ...byte) ([]byte, error) {
	buf := make([]byte, 1<<10)
	var err error
	for range ipmiRetries + 1 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var number byte
		if number, err = w.ask(command, data...); err != nil {
			return nil, err
		}
		until := time.Now().Add(w.timeout)
		if at, ok := ctx.Deadline(); ok && at.Before(until) {
			until = at
		}
		if err := w.conn.SetReadDeadline(until); err != nil {
			return nil, err
		}
		for {
			var kind types.PayloadType
			var plain []byte
			if kind, plain, err = w.read(buf); err != nil {
				break
			}
			var answer types.IPMIResponse
			if kind != types.PayloadTypeIPMI || protect(func() error { return answer.Unpack(plain) }) != nil ||
				answer.RequesterSequence != number || answer.Command != command {
				continue
			}
			_ = w.conn.SetReadDeadline(time.Time{})
			if answer.CompletionCode != 0 {
				return nil, completionError(answer.CompletionCode)
			}
			return answer.Data, nil
		}
	}
	_ = w.conn.SetReadDeadline(time.Time{})
	return nil, err
}

// completionError is a command's answer that is not a success.
type completionError byte

func (c completionError) Error() string { return fmt.Sprintf("completion code %#02x", byte(c)) }

// close ends the session, for as long as ctx lasts, and closes the socket.
func (w *ipmiWire) close(ctx context.Context) error {
	defer w.conn.Close()
	_, err := w.call(ctx, cmdCloseSession, binary.LittleEndian.AppendUint32(nil, w.bmcID)...)
	return err
}
