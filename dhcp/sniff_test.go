package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

// pcap is a capture file of Ethernet frames.
type pcap struct{ bytes.Buffer }

func (p *pcap) add(frame []byte) {
	if p.Len() == 0 {
		// Magic, version 2.4, time zone, accuracy, longest packet, link type Ethernet.
		for _, v := range []uint32{0xa1b2c3d4, 4<<16 | 2, 0, 0, 0xffff, 1} {
			p.Write(binary.LittleEndian.AppendUint32(nil, v))
		}
	}
	for _, v := range []uint32{0, 0, uint32(len(frame)), uint32(len(frame))} {
		p.Write(binary.LittleEndian.AppendUint32(nil, v))
	}
	p.Write(frame)
}

// frames reads a capture file of Ethernet frames, as dumpcap -P writes it.
func frames(t testing.TB, file string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) < 24 || binary.LittleEndian.Uint32(b) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(b[20:]) != 1 {
		t.Fatalf("%s is no capture of Ethernet frames", file)
	}
	var out [][]byte
	for b = b[24:]; len(b) >= 16; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		if len(b) < 16+n {
			t.Fatalf("%s ends in the middle of a frame", file)
		}
		out, b = append(out, b[16:16+n]), b[16+n:]
	}
	return out
}

// judgedCard is where packets come from that are ours, whatever is in them.
const judgedCard = "02:00:00:00:00:02"

// judge lets tshark look for anything wrong in the replies of a capture, of which
// there must be some.
func (p *pcap) judge(t testing.TB, least int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "replies.pcap")
	if err := os.WriteFile(file, p.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	tshark := func(filter string) []string {
		t.Helper()
		var out, log bytes.Buffer
		cmd := exec.CommandContext(t.Context(), "tshark", "-r", file, "-Y", filter, "-T", "fields", "-e", "frame.number", "-e", "_ws.col.Info", "-e", "_ws.expert.message")
		cmd.Stdout, cmd.Stderr = &out, &log
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		if err := cmd.Run(); err != nil {
			t.Fatalf("tshark: %v\n%s", err, log.String())
		}
		return strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\n' })
	}
	const ours = "(dhcp.type == 2 || dhcpv6.msgtype == 2 || dhcpv6.msgtype == 7 || eth.src == " + judgedCard + ")"
	if n := len(tshark(ours)); n < least {
		t.Errorf("tshark sees %d replies; want at least %d", n, least)
	}
	for _, line := range tshark(ours + " && (_ws.malformed || _ws.expert.severity >= warning)") {
		t.Errorf("tshark: %s", line)
	}
}

// sniffer sees every DHCP packet on the bridge.
type sniffer struct {
	t  testing.TB
	mu sync.Mutex
	pcap
	seen map[sighting]int
	pc   *packet.Conn
	done chan struct{}
}

// sighting is a client's REQUEST by its state, or a reply by its type.
type sighting struct {
	mac  inventory.MAC
	what string
}

func sniff(t testing.TB) *sniffer {
	t.Helper()
	br, err := net.InterfaceByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sniffer{t: t, seen: map[sighting]int{}, done: make(chan struct{})}
	if s.pc, err = packet.Listen(br, packet.Raw, unix.ETH_P_ALL, nil); err != nil {
		t.Fatal(err)
	}
	go s.read()
	t.Cleanup(s.close)
	return s
}

func (s *sniffer) close() {
	_ = s.pc.SetReadDeadline(time.Unix(1, 0))
	<-s.done
	_ = s.pc.Close()
}

func (s *sniffer) read() {
	defer close(s.done)
	buf := make([]byte, 4096)
	for {
		n, _, err := s.pc.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		if n > 14 && binary.BigEndian.Uint16(buf[12:]) == unix.ETH_P_IPV6 {
			s.read6(buf[:n])
			continue
		}
		if n < 42 || binary.BigEndian.Uint16(buf[12:]) != unix.ETH_P_IP {
			continue
		}
		src, port, payload, ok := unframe(buf[14:n])
		if !ok || port != serverPort && src.Port() != serverPort {
			continue
		}
		p, err := dhcpv4.FromBytes(payload)
		if err != nil {
			continue
		}
		s.mu.Lock()
		s.add(buf[:n])
		what := p.MessageType().String()
		if p.MessageType() == REQUEST {
			what = state(p, netip.AddrFrom4([4]byte(buf[30:34])))
		}
		s.seen[sighting{inventory.MACOf(p.ClientHWAddr), what}]++
		s.mu.Unlock()
	}
}

// read6 notes a DHCPv6 message under its client, by its type.
func (s *sniffer) read6(frame []byte) {
	payload, _ := unframe6(frame[14:])
	if len(payload) < 4 {
		return
	}
	client := frame[6:12]
	switch binary.BigEndian.Uint16(frame[14+42:]) {
	case clientPort6:
		client = frame[:6]
	case serverPort6:
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(frame)
	s.seen[sighting{stationAddr(client), dhcpv6.MessageType(payload[0]).String()}]++
}

// state of a client that sends a REQUEST (RFC 2131 §4.3.2).
func state(p *dhcpv4.DHCPv4, to netip.Addr) string {
	switch {
	case p.Options.Has(dhcpv4.OptionServerIdentifier):
		return "SELECTING"
	case !addr4(p.ClientIPAddr).IsValid():
		return "INIT-REBOOT"
	case to == broadcast.Addr():
		return "REBINDING"
	}
	return "RENEWING"
}

// count is how often a client was seen in a state, or got a message.
func (s *sniffer) count(mac inventory.MAC, what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[sighting{mac, what}]
}

// await waits until a client was seen in a state.
func (s *sniffer) await(t testing.TB, mac inventory.MAC, state string) {
	t.Helper()
	for deadline := time.Now().Add(45 * time.Second); s.count(mac, state) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("%s was not seen %s; seen %v", mac, state, s.seen)
		}
	}
}
