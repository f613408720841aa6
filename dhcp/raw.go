package dhcp

import (
	"encoding/binary"
	"net/netip"
)

// frame wraps a payload in IPv4 and UDP headers, for a packet socket: a client
// without an address answers no ARP, so the kernel cannot send to it.
func frame(src, dst netip.AddrPort, payload []byte) []byte {
	const ipLen, udpLen = 20, 8
	b := make([]byte, ipLen+udpLen+len(payload))
	ip, udp := b[:ipLen], b[ipLen:]
	s, d := src.Addr().As4(), dst.Addr().As4()

	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // do not fragment
	ip[8] = 64
	ip[9] = 17 // UDP
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip)))

	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpLen:], payload)
	c := sum(sum(sum(17+uint32(len(udp)), s[:]), d[:]), udp)
	check := ^fold(c)
	if check == 0 { // 0 means "no checksum" (RFC 768)
		check = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return b
}

// unframe is the payload of an IPv4 UDP packet and its sender; ok is false for
// anything else, fragments included.
func unframe(b []byte) (src netip.AddrPort, dstPort uint16, payload []byte, ok bool) {
	if len(b) < 28 || b[0]>>4 != 4 || b[9] != 17 || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || total > len(b) || total < head+8 {
		return
	}
	udp := b[head:total]
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < 8 || n > len(udp) {
		return
	}
	src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(udp))
	return src, binary.BigEndian.Uint16(udp[2:]), udp[8:n], true
}

// sum adds 16-bit words; every part but the last must be of even length.
func sum(c uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		c += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		c += uint32(b[0]) << 8
	}
	return c
}

func fold(c uint32) uint16 {
	for c > 0xffff {
		c = c>>16 + c&0xffff
	}
	return uint16(c)
}
