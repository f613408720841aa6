package dhcp

import (
	"encoding/binary"
	"math/bits"
	"net"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// The library copies every option of a packet it reads, and each part of one it
// writes: forty allocations where a boot storm needs none. These two fill and
// read its types in place; its own are what the tests hold them against.

const (
	headerLen = 240 // with the cookie
	minLength = 300 // BOOTP's; some relays drop what is shorter (RFC 1542 §2.1)
	optPad    = 0
	optAgent  = 82
	optEnd    = 255
)

// parsePacket reads a packet whose header was checked into p, whose map of options is
// used again. Options that stand in one piece point into raw.
func parsePacket(p *dhcpv4.DHCPv4, raw []byte) error {
	options := p.Options
	clear(options)
	*p = dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeType(raw[0]), HWType: iana.HWType(raw[1]), HopCount: raw[3],
		TransactionID: dhcpv4.TransactionID(raw[4:8]),
		NumSeconds:    binary.BigEndian.Uint16(raw[8:]), Flags: binary.BigEndian.Uint16(raw[10:]),
		ClientIPAddr: net.IP(raw[12:16:16]), YourIPAddr: net.IP(raw[16:20:20]),
		ServerIPAddr: net.IP(raw[20:24:24]), GatewayIPAddr: net.IP(raw[24:28:28]),
		ClientHWAddr:   net.HardwareAddr(raw[28 : 28+raw[2] : 28+raw[2]]),
		ServerHostName: text(raw[44:108]), BootFileName: text(raw[108:236]),
		Options: options,
	}
	return parseOptions(options, raw[headerLen:], true)
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
func parseOptions(to dhcpv4.Options, list []byte, needEnd bool) error {
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
		if have := to[code]; have != nil {
			value = append(have, value...)
		} else if len(value) == 0 {
			value = nil
		}
		to[code] = value
	}
	if needEnd {
		return badOptions
	}
	return nil
}

// appendPacket writes a packet: options by number, the relay's last (RFC 3046
// §2.1), filled up to BOOTP's length.
func appendPacket(b []byte, p *dhcpv4.DHCPv4) []byte {
	start := len(b)
	var header [headerLen]byte
	header[0], header[1], header[2], header[3] = byte(p.OpCode), byte(p.HWType), byte(len(p.ClientHWAddr)), p.HopCount
	copy(header[4:], p.TransactionID[:])
	binary.BigEndian.PutUint16(header[8:], p.NumSeconds)
	binary.BigEndian.PutUint16(header[10:], p.Flags)
	for i, ip := range []net.IP{p.ClientIPAddr, p.YourIPAddr, p.ServerIPAddr, p.GatewayIPAddr} {
		copy(header[12+4*i:], ip.To4())
	}
	copy(header[28:44], p.ClientHWAddr)
	copy(header[44:107], p.ServerHostName) // each ends in a zero
	copy(header[108:235], p.BootFileName)
	copy(header[236:], "\x63\x82\x53\x63")
	b = append(b, header[:]...)

	var set [4]uint64
	for code := range p.Options {
		if code != optPad && code != optEnd && code != optAgent {
			set[code/64] |= 1 << (code % 64)
		}
	}
	for i, word := range set {
		for ; word != 0; word &= word - 1 {
			code := byte(i*64 + bits.TrailingZeros64(word))
			b = appendOption(b, code, p.Options[code])
		}
	}
	if agent, ok := p.Options[optAgent]; ok {
		b = appendOption(b, optAgent, agent)
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
