package capture

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"regexp"
	"slices"
)

// chooser picks the frames that tell of a machine's boot, and takes out of them
// what is secret.
type chooser struct {
	macs  []net.HardwareAddr
	addrs []netip.Addr
	boot  uint16 // TCP port of boot scripts
	agent uint16 // TCP port of the agent API, of which only the ends are kept
}

func newChooser(o Options) *chooser {
	c := &chooser{addrs: o.Addrs, boot: uint16(o.BootPort), agent: uint16(o.AgentPort)}
	for _, m := range o.MACs {
		if hw, err := net.ParseMAC(string(m)); err == nil {
			c.macs = append(c.macs, hw)
		}
	}
	return c
}

// choose returns what is kept of a frame, which may be less than the frame; nil
// keeps nothing. The frame is changed.
func (c *chooser) choose(frame []byte) []byte {
	if len(frame) < 14 {
		return nil
	}
	named := slices.ContainsFunc(c.macs, func(m net.HardwareAddr) bool {
		return bytes.Equal(frame[:6], m) || bytes.Equal(frame[6:12], m)
	})
	const head = 14
	var proto byte
	var at int // of the payload of IP
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806: // ARP
		if named {
			return frame
		}
		return nil
	case 0x0800:
		ip := frame[head:]
		if len(ip) < 20 || ip[0]>>4 != 4 || ip[0]&15 < 5 {
			return nil
		}
		if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return nil // a later fragment, which may hold anything
		}
		named = named || slices.Contains(c.addrs, netip.AddrFrom4([4]byte(ip[12:16]))) || slices.Contains(c.addrs, netip.AddrFrom4([4]byte(ip[16:20])))
		proto, at = ip[9], head+int(ip[0]&15)*4
	case 0x86dd:
		ip := frame[head:]
		if len(ip) < 40 {
			return nil
		}
		named = named || slices.Contains(c.addrs, netip.AddrFrom16([16]byte(ip[8:24]))) || slices.Contains(c.addrs, netip.AddrFrom16([16]byte(ip[24:40])))
		proto, at = ip[6], head+40
	default:
		return nil
	}
	switch proto {
	case 17:
		return c.udp(frame, at, named)
	case 6:
		return c.tcp(frame, at, named)
	case 1, 58: // ICMP says why something did not arrive; what it quotes is short
		if named {
			return frame[:min(len(frame), at+48)]
		}
	}
	return nil
}

func (c *chooser) udp(frame []byte, at int, named bool) []byte {
	if len(frame) < at+8 {
		return nil
	}
	src, dst, payload := binary.BigEndian.Uint16(frame[at:]), binary.BigEndian.Uint16(frame[at+2:]), frame[at+8:]
	is := func(ports ...uint16) bool { return slices.Contains(ports, src) || slices.Contains(ports, dst) }
	switch {
	case is(67, 68, 4011):
		// chaddr says whose it is, through relays too.
		if !named && (len(payload) < 34 || !slices.ContainsFunc(c.macs, func(m net.HardwareAddr) bool { return bytes.Equal(payload[28:34], m) })) {
			return nil
		}
	case is(546, 547):
		// The hardware address stands in the DUID, or in the relay's option 79.
		if !named && !slices.ContainsFunc(c.macs, func(m net.HardwareAddr) bool { return bytes.Contains(payload, m) }) {
			return nil
		}
	case !named:
		return nil
	case dst == 69:
	case src > 1023 && dst > 1023 && len(payload) >= 4 && payload[0] == 0 && payload[1] >= 3 && payload[1] <= 6: // TFTP from port to port
		if payload[1] == 3 {
			return frame[:at+8+4] // a block of a file: its number alone
		}
	default:
		return nil
	}
	redact(payload)
	return frame
}

const (
	tcpFIN = 1
	tcpSYN = 2
	tcpRST = 4
)

func (c *chooser) tcp(frame []byte, at int, named bool) []byte {
	if !named || len(frame) < at+20 {
		return nil
	}
	src, dst, flags := binary.BigEndian.Uint16(frame[at:]), binary.BigEndian.Uint16(frame[at+2:]), frame[at+13]
	body := at + int(frame[at+12]>>4)*4
	if body < at+20 || body > len(frame) {
		return nil
	}
	payload := frame[body:]
	ends := flags&(tcpFIN|tcpSYN|tcpRST) != 0
	switch {
	case src != c.boot && dst != c.boot:
		if ends && (src == c.agent || dst == c.agent) {
			return frame[:body]
		}
		return nil
	case dst == c.boot && (bytes.HasPrefix(payload, []byte("GET /")) || bytes.HasPrefix(payload, []byte("HEAD /"))):
	case src == c.boot && bytes.HasPrefix(payload, []byte("HTTP/1.")):
		end := bytes.Index(payload, []byte("\r\n\r\n"))
		if end < 0 {
			return frame[:body+min(len(payload), 12)] // HTTP/1.1 200
		}
		if !bytes.Contains(bytes.ToLower(payload[:end]), []byte("content-type: text/plain")) {
			payload = payload[:end+4] // bytes of a file
			frame = frame[:body+end+4]
		}
	case ends:
		return frame[:body]
	default:
		return nil // the rest of a longer answer
	}
	redact(payload)
	return frame
}

// secrets are what a script or a URL gives to one boot: claim nonces, discovery
// tokens, and what operators may have put into kernel arguments. What stands at
// the end may go on in the next packet, of which nothing is kept.
var secrets = regexp.MustCompile(`(?i)((?:nonce|discover|token|password|passwd|secret|key|authorization)[=:][ ]?)([^\x00\r\n &]+)`)

// redact overwrites secrets in place: lengths stay, checksums do not.
func redact(payload []byte) {
	for _, m := range secrets.FindAllSubmatchIndex(payload, -1) {
		for i := m[4]; i < m[5]; i++ {
			payload[i] = '*'
		}
	}
}
