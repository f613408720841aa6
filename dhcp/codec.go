package dhcp

import (
	"encoding/binary"
	"net"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// The library copies every option of a packet it reads, and each part of one it
// writes, and keeps them in a map: forty allocations and as many look-ups where a
// boot storm needs none. The tests hold ours against its own.

const (
	headerLen = 240 // with the cookie
	minLength = 300 // BOOTP's; some relays drop what is shorter (RFC 1542 §2.1)
	optPad    = 0
	optAgent  = 82
	optEnd    = 255
)

// packet4 is one of DHCPv4 (RFC 2131 §2), its fields named as the library names them.
type packet4 struct {
	OpCode        dhcpv4.OpcodeType
	HWType        iana.HWType
	HopCount      uint8
	TransactionID dhcpv4.TransactionID
	NumSeconds    uint16
	Flags         uint16

	ClientIPAddr, YourIPAddr, ServerIPAddr, GatewayIPAddr [4]byte

	ClientHWAddr                 net.HardwareAddr
	ServerHostName, BootFileName string

	Options options
}

const flagBroadcast = 0x8000

// options of a packet by their number.
type options []opt

type opt struct {
	code  uint8
	value []byte
}

// find is where the option stands, or would.
func (o options) find(code uint8) (at int, ok bool) {
	for i := len(o); i > 0; i-- { // most come by their number
		if o[i-1].code <= code {
			if o[i-1].code == code {
				return i - 1, true
			}
			return i, false
		}
	}
	return 0, false
}

// Get is the option's value, which is nil where it is empty, or not there.
func (o options) Get(code dhcpv4.OptionCode) []byte {
	if i, ok := o.find(code.Code()); ok {
		return o[i].value
	}
	return nil
}

func (o options) Has(code dhcpv4.OptionCode) bool {
	_, ok := o.find(code.Code())
	return ok
}

// Put sets an option; its value is not copied.
func (o *options) Put(code dhcpv4.OptionCode, value []byte) { *o.at(code.Code()) = value }

// at is the place of the option's value, made where it has none.
func (o *options) at(code uint8) *[]byte {
	i, ok := o.find(code)
	if !ok {
		*o = slices.Insert(*o, i, opt{code: code})
	}
	return &(*o)[i].value
}

func (o *options) Del(code dhcpv4.OptionCode) {
	if i, ok := o.find(code.Code()); ok {
		*o = slices.Delete(*o, i, i+1)
	}
}

// emptied is the memory of options for others.
func (o options) emptied() options {
	clear(o)
	return o[:0]
}

// messageType of a reply.
func (p *packet4) messageType() dhcpv4.MessageType {
	if t := p.Options.Get(dhcpv4.OptionDHCPMessageType); len(t) == 1 {
		return dhcpv4.MessageType(t[0])
	}
	return 0
}

// parsePacket reads a packet whose header was checked into p, the memory of whose
// options is used again. Options that stand in one piece point into raw.
func parsePacket(p *packet4, raw []byte) error {
	*p = packet4{
		OpCode: dhcpv4.OpcodeType(raw[0]), HWType: iana.HWType(raw[1]), HopCount: raw[3],
		TransactionID: dhcpv4.TransactionID(raw[4:8]),
		NumSeconds:    binary.BigEndian.Uint16(raw[8:]), Flags: binary.BigEndian.Uint16(raw[10:]),
		ClientIPAddr: [4]byte(raw[12:]), YourIPAddr: [4]byte(raw[16:]),
		ServerIPAddr: [4]byte(raw[20:]), GatewayIPAddr: [4]byte(raw[24:]),
		ClientHWAddr:   net.HardwareAddr(raw[28 : 28+raw[2] : 28+raw[2]]),
		ServerHostName: text(raw[44:108]), BootFileName: text(raw[108:236]),
		Options: p.Options.emptied(),
	}
	return parseOptions(&p.Options, raw[headerLen:], true)
}

// text is a field of the header up to its zero.
func text(field []byte) string {
	if field[0] == 0 {
		return ""
	}
	s, _, _ := strings.Cut(string(field), "\x00")
	return s
}

// parseOptions adds a list of options. The parts of one that stands several times
// are joined (RFC 3396).
func parseOptions(to *options, list []byte, needEnd bool) error {
	for len(list) > 0 {
		code := list[0]
		if code == optEnd {
			return nil
		}
		if code == optPad {
			list = list[1:]
			continue
		}
		if len(list) < 2 || len(list) < 2+int(list[1]) {
			return badOptions
		}
		n := 2 + int(list[1])
		value := list[2:n:n] // what is added makes a copy
		list = list[n:]
		at := to.at(code)
		if *at != nil {
			value = append(*at, value...)
		} else if len(value) == 0 {
			value = nil
		}
		*at = value
	}
	if needEnd {
		return badOptions
	}
	return nil
}

// appendPacket writes a packet: options by number, the relay's last (RFC 3046
// §2.1), filled up to BOOTP's length.
func appendPacket(b []byte, p *packet4) []byte {
	start := len(b)
	var header [headerLen]byte
	header[0], header[1], header[2], header[3] = byte(p.OpCode), byte(p.HWType), byte(len(p.ClientHWAddr)), p.HopCount
	copy(header[4:], p.TransactionID[:])
	binary.BigEndian.PutUint16(header[8:], p.NumSeconds)
	binary.BigEndian.PutUint16(header[10:], p.Flags)
	copy(header[12:], p.ClientIPAddr[:])
	copy(header[16:], p.YourIPAddr[:])
	copy(header[20:], p.ServerIPAddr[:])
	copy(header[24:], p.GatewayIPAddr[:])
	copy(header[28:44], p.ClientHWAddr)
	copy(header[44:107], p.ServerHostName) // each ends in a zero
	copy(header[108:235], p.BootFileName)
	copy(header[236:], "\x63\x82\x53\x63")
	b = append(b, header[:]...)

	for _, o := range p.Options {
		if o.code != optAgent {
			b = appendOption(b, o.code, o.value)
		}
	}
	if i, ok := p.Options.find(optAgent); ok {
		b = appendOption(b, optAgent, p.Options[i].value)
	}
	b = append(b, optEnd)
	for len(b)-start < minLength {
		b = append(b, optPad)
	}
	return b
}

// appendOption writes a long one in several parts (RFC 3396).
func appendOption(b []byte, code byte, value []byte) []byte {
	for {
		n := min(len(value), 255)
		b = append(append(b, code, byte(n)), value[:n]...)
		if value = value[n:]; len(value) == 0 {
			return b
		}
	}
}

// peek reads of a packet what the queue needs: of one that it drops no more is
// ever looked at. A kind of 0 stands for one that has none where it belongs.
func peek(raw []byte) (kind dhcpv4.MessageType, err error) {
	if len(raw) < headerLen {
		return 0, badShort
	}
	if raw[0] != byte(dhcpv4.OpcodeBootRequest) {
		return 0, badOp
	}
	// Ethernet only: leases are keyed by the hardware address, and a client
	// without one (InfiniBand, PPP) needs option 61 as its key.
	if raw[1] != byte(iana.HWTypeEthernet) || raw[2] != 6 {
		return 0, badHardware
	}
	if hw := [6]byte(raw[28:34]); hw[0]&1 != 0 || hw == [6]byte{} {
		return 0, badHardware
	}
	if raw[3] > maxHops {
		return 0, badHops
	}
	if string(raw[236:headerLen]) != "\x63\x82\x53\x63" {
		return 0, badCookie
	}
	for list := raw[headerLen:]; len(list) > 2 && list[0] != optEnd; {
		switch {
		case list[0] == optPad:
			list = list[1:]
			continue
		case list[0] == byte(dhcpv4.OptionDHCPMessageType) && list[1] == 1:
			return dhcpv4.MessageType(list[2]), nil
		}
		list = list[min(len(list), 2+int(list[1])):]
	}
	return 0, nil
}
