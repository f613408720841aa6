package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// wireLine is one packet of a boot as it was on a wire: what a machine, and who
// answers it, said, whatever the server believes.
type wireLine struct {
	Bridge   string
	Src      string // hardware address
	From, To netip.AddrPort
	DHCP     *dhcpv4.DHCPv4 // of a DHCPv4 packet
	TFTP     string         // of a read request: the file's name
	HTTP     string         // of a request to the boot listener: "HEAD /path"
	UDP      []byte         // of other datagrams, as DHCPv6
}

func (l wireLine) String() string {
	what := fmt.Sprintf("%d bytes", len(l.UDP))
	switch {
	case l.DHCP != nil:
		d := l.DHCP
		what = fmt.Sprintf("%s of %s, class %q, server %s, your %s, next %s, relay %s, file %q", d.MessageType(), d.ClientHWAddr,
			d.ClassIdentifier(), d.ServerIdentifier(), d.YourIPAddr, d.ServerIPAddr, d.GatewayIPAddr, d.BootFileName)
	case l.TFTP != "":
		what = "TFTP " + l.TFTP
	case l.HTTP != "":
		what = l.HTTP
	}
	return fmt.Sprintf("%s %s %s > %s: %s", l.Bridge, l.Src, l.From, l.To, what)
}

// wireBootPort is the server's for scripts, ramdisk and images.
const wireBootPort = 8080

var wirePorts = []uint32{67, 68, 69, 4011, 546, 547, wireBootPort}

// wireFilter keeps what floods by, images above all, from pushing out of the
// socket's buffer what parseWire reads: it goes by the destination's port.
func wireFilter() []bpf.Instruction {
	is := func(val uint32, yes, no uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipTrue: yes, SkipFalse: no}
	}
	reject := uint8(2 * len(wirePorts))
	f := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		is(unix.ETH_P_IPV6, 9, 0),
		is(unix.ETH_P_IP, 0, 9+reject),
		bpf.LoadMemShift{Off: 14},
		bpf.LoadAbsolute{Off: 23, Size: 1},
		is(unix.IPPROTO_UDP, 3, 0),
		is(unix.IPPROTO_TCP, 0, 5+reject),
		bpf.LoadAbsolute{Off: 16, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: 80, SkipFalse: 3 + reject}, // else an acknowledgement
		bpf.LoadIndirect{Off: 14 + 2, Size: 2},
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: 14 + 40 + 2, Size: 2},
	}
	for _, port := range wirePorts {
		f = append(f, is(port, 0, 1), bpf.RetConstant{Val: 4096})
	}
	return append(f, bpf.RetConstant{Val: 0})
}

// parseWire reads an Ethernet frame; false for what says nothing about a boot.
func parseWire(b []byte) (l wireLine, ok bool) {
	if len(b) < 14 {
		return l, false
	}
	l.Src = net.HardwareAddr(b[6:12]).String()
	var proto byte
	var from, to netip.Addr
	ip := b[14:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if len(ip) < 20 || len(ip) < int(ip[0]&15)*4 {
			return l, false
		}
		proto = ip[9]
		from, _ = netip.AddrFromSlice(ip[12:16])
		to, _ = netip.AddrFromSlice(ip[16:20])
		ip = ip[int(ip[0]&15)*4:]
	case unix.ETH_P_IPV6:
		if len(ip) < 40 {
			return l, false
		}
		proto = ip[6]
		from, _ = netip.AddrFromSlice(ip[8:24])
		to, _ = netip.AddrFromSlice(ip[24:40])
		ip = ip[40:]
	default:
		return l, false
	}
	if len(ip) < 8 {
		return l, false
	}
	l.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(ip))
	l.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(ip[2:]))
	if proto == unix.IPPROTO_TCP {
		if len(ip) < 20 || len(ip) < int(ip[12]>>4)*4 || l.To.Port() != wireBootPort {
			return l, false
		}
		line, _, _ := strings.Cut(string(ip[int(ip[12]>>4)*4:]), "\r\n")
		l.HTTP, _, ok = strings.Cut(line, " HTTP/1.")
		return l, ok
	}
	if proto != unix.IPPROTO_UDP {
		return l, false
	}
	l.UDP = slices.Clone(ip[8:])
	switch l.To.Port() {
	case 67, 68, 4011:
		if d, err := dhcpv4.FromBytes(l.UDP); err == nil {
			l.DHCP, l.UDP = d, nil
		}
	case 69:
		if len(l.UDP) > 2 && l.UDP[1] == 1 { // RFC 1350: read request
			l.TFTP, _, _ = strings.Cut(string(l.UDP[2:]), "\x00")
		}
	}
	return l, true
}

// wire listens on bridges of a rack.
type wire struct {
	mu    sync.Mutex
	lines []wireLine
}

// listenWire records what goes over the bridges until the test ends.
func (s *story) listenWire(bridges ...string) *wire {
	s.t.Helper()
	raw, err := bpf.Assemble(wireFilter())
	s.must(err)
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	w := &wire{}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	s.t.Cleanup(func() {
		close(quit)
		wg.Wait()
	})
	for _, name := range bridges {
		fd := -1
		s.must(s.Net.Do(func() error {
			bridge, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			all := bits.ReverseBytes16(unix.ETH_P_ALL) // in network order; what we send too
			// Of no protocol until it is bound, or it would hear every interface.
			if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return errors.Join(
				unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
				unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: bridge.Index}),
				// What is bridged past us as well.
				unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(bridge.Index), Type: unix.PACKET_MR_PROMISC}),
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}))
		}))
		wg.Go(func() {
			defer unix.Close(fd)
			b := make([]byte, 4096)
			for {
				select {
				case <-quit:
					return
				default:
				}
				size, _, err := unix.Recvfrom(fd, b, 0)
				if err != nil {
					continue // a timeout
				}
				if l, ok := parseWire(b[:size]); ok {
					l.Bridge = name
					w.mu.Lock()
					w.lines = append(w.lines, l)
					w.mu.Unlock()
				}
			}
		})
	}
	return w
}

// all that was heard until now.
func (w *wire) all() []wireLine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

func TestWireReadsWhatABootSays(t *testing.T) {
	dhcp := func() []byte {
		d, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 1})
		if err != nil {
			t.Fatal(err)
		}
		return d.ToBytes()
	}()
	frame := func(ether uint16, proto byte, to uint16, payload []byte) []byte {
		b := append(make([]byte, 12), byte(ether>>8), byte(ether))
		if ether == unix.ETH_P_IP {
			ip := make([]byte, 24) // with an option
			ip[0], ip[9] = 0x46, proto
			b = append(b, ip...)
		} else {
			ip := make([]byte, 40)
			ip[0], ip[6] = 0x60, proto
			b = append(b, ip...)
		}
		head := make([]byte, 8)
		if proto == unix.IPPROTO_TCP {
			head = make([]byte, 32)
			head[12] = 8 << 4
		}
		binary.BigEndian.PutUint16(head[2:], to)
		b = append(append(b, head...), payload...)
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
		return b
	}
	vm, err := bpf.NewVM(wireFilter())
	if err != nil {
		t.Fatal(err)
	}
	request := []byte("HEAD /boot/loader/snponly.efi HTTP/1.1\r\nHost: 10.77.0.1:8080\r\n\r\n")
	for _, tt := range []struct {
		name  string
		frame []byte
		kept  bool   // by the filter
		want  string // the end of the line; "" for none
	}{
		{"DHCP", frame(unix.ETH_P_IP, unix.IPPROTO_UDP, 67, dhcp), true, `relay 0.0.0.0, file ""`},
		{"TFTP read", frame(unix.ETH_P_IP, unix.IPPROTO_UDP, 69, []byte("\x00\x01snponly.efi\x00octet\x00")), true, "TFTP snponly.efi"},
		{"HTTP", frame(unix.ETH_P_IP, unix.IPPROTO_TCP, 8080, request), true, "HEAD /boot/loader/snponly.efi"},
		{"HTTP over IPv6", frame(unix.ETH_P_IPV6, unix.IPPROTO_TCP, 8080, request), true, "HEAD /boot/loader/snponly.efi"},
		{"DHCPv6", frame(unix.ETH_P_IPV6, unix.IPPROTO_UDP, 547, []byte{1, 2, 3, 4}), true, "4 bytes"},
		{"an acknowledgement", frame(unix.ETH_P_IP, unix.IPPROTO_TCP, 8080, nil), false, ""},
		{"another port", frame(unix.ETH_P_IP, unix.IPPROTO_TCP, 22, request), false, ""},
		{"TFTP data", frame(unix.ETH_P_IP, unix.IPPROTO_UDP, 2070, make([]byte, 1432)), false, "1432 bytes"},
		{"ARP", frame(unix.ETH_P_ARP, 0, 0, nil), false, ""},
		{"cut short", frame(unix.ETH_P_IP, unix.IPPROTO_UDP, 67, nil)[:36], false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if n, err := vm.Run(tt.frame); err != nil || (n > 0) != tt.kept {
				t.Errorf("the filter keeps %d bytes, %v; want kept: %v", n, err, tt.kept)
			}
			l, ok := parseWire(tt.frame)
			if ok != (tt.want != "") || !strings.HasSuffix(l.String(), tt.want) {
				t.Errorf("%v: %s; want %q", ok, l, tt.want)
			}
		})
	}
}
