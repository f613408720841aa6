package testenv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// SimWire is a segment of a Net as simulated machines hang on it: each asks DHCP
// by frames of its own hardware address, and speaks TFTP and HTTP from the address
// that it got. They share one host beside the server, a namespace, which answers
// for the addresses of all of them.
type SimWire struct {
	host *Neighbour
	leg  netip.Prefix
	file *os.File
	done chan struct{}

	mu   sync.Mutex
	asks map[[6]byte]chan []byte
	have map[netip.Addr]bool
}

// simHost is the name of that host within the Net.
const simHost = "sim"

// simLease is what DHCP told.
type simLease struct {
	addr, server netip.Addr
	file         string
}

// NewSimWire hangs it on a bridge; leg is the address of the host, in the subnet of
// the machines. Close it before the Net.
func (n *Net) NewSimWire(bridge string, leg netip.Prefix) (w *SimWire, err error) {
	w = &SimWire{leg: leg, done: make(chan struct{}), asks: map[[6]byte]chan []byte{}, have: map[netip.Addr]bool{}}
	if w.host, err = n.AddNeighbour(simHost, NeighbourLeg{Bridge: bridge, Addr: leg}); err != nil {
		return nil, err
	}
	err = NetDo(w.host.Name, func() error {
		leg, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const proto = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8 // big endian
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return err
		}
		w.file = os.NewFile(uintptr(fd), "wire")
		// A rack that is powered on at once is answered at once.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: leg.Index})
	})
	if err != nil {
		if w.file != nil {
			err = errors.Join(err, w.file.Close())
		}
		return nil, errors.Join(fmt.Errorf("hang simulated machines on %s: %w", bridge, err), w.host.Close())
	}
	go w.hear()
	return w, nil
}

// Close takes the host away.
func (w *SimWire) Close() error {
	err := w.file.Close()
	<-w.done
	return errors.Join(err, w.host.Close())
}

// hear hands each DHCP answer to the machine that it is for.
func (w *SimWire) hear() {
	defer close(w.done)
	b := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(b)
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) {
				continue // the wire is being taken away, and Close says when
			}
			return
		}
		payload, ok := simAnswer(b[:n])
		if !ok {
			continue
		}
		w.mu.Lock()
		asks := w.asks[[6]byte(payload[28:34])]
		w.mu.Unlock()
		if asks != nil {
			select {
			case asks <- bytes.Clone(payload):
			default: // it listens no more
			}
		}
	}
}

// simAnswer is the payload of a frame with a DHCP answer.
func simAnswer(b []byte) (payload []byte, ok bool) {
	if len(b) < 14+20+8 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP {
		return nil, false
	}
	ip := b[14:]
	head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[9] != unix.IPPROTO_UDP || head < 20 || total > len(ip) || total < head+8+240 {
		return nil, false
	}
	udp := ip[head:total]
	payload = udp[8:]
	return payload, binary.BigEndian.Uint16(udp[2:]) == 68 && payload[0] == 2
}

// simFrame is a DHCP question as a machine without an address sends it.
func simFrame(mac [6]byte, payload []byte) []byte {
	b := make([]byte, 14+20+8, 14+20+8+len(payload))
	copy(b, "\xff\xff\xff\xff\xff\xff")
	copy(b[6:], mac[:])
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(20+8+len(payload)))
	copy(ip[16:], "\xff\xff\xff\xff")
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := ip[20:]
	binary.BigEndian.PutUint16(udp, 68)
	binary.BigEndian.PutUint16(udp[2:], 67)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// simOptions are the options of an answer; of one that comes twice the last.
func simOptions(p []byte) map[byte][]byte {
	out := map[byte][]byte{}
	for p = p[240:]; len(p) > 1 && p[0] != 255; {
		if p[0] == 0 {
			p = p[1:]
			continue
		}
		n := int(p[1])
		if len(p) < 2+n {
			break
		}
		out[p[0]] = p[2 : 2+n]
		p = p[2+n:]
	}
	return out
}

// simTries is how often a machine asks DHCP: after 1 s, 2 s, 4 s … like iPXE.
const simTries = 5

// lease is one exchange: discover, offer, request, acknowledgement.
func (w *SimWire) lease(ctx context.Context, as simAsker, mac inventory.MAC, uuid string) (simLease, error) {
	hw := simHardwareAddr(mac)
	answers := make(chan []byte, 8)
	w.mu.Lock()
	w.asks[hw] = answers
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		if w.asks[hw] == answers {
			delete(w.asks, hw)
		}
		w.mu.Unlock()
	}()
	q := simAsking{xid: rand.Uint32(), mac: mac, uuid: uuid}
	begun := time.Now()
	for try := range simTries {
		q.secs, q.request = uint16(time.Since(begun).Seconds()), false
		if _, err := w.file.Write(simFrame(hw, as.packet(q))); err != nil {
			return simLease{}, fmt.Errorf("ask DHCP: %w", err)
		}
		again := time.NewTimer(time.Second << try)
		defer again.Stop()
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return simLease{}, ctx.Err()
			case <-again.C:
				waiting = false
			case p := <-answers:
				if binary.BigEndian.Uint32(p[4:]) != q.xid {
					continue
				}
				o := simOptions(p)
				addr, _ := netip.AddrFromSlice(p[16:20])
				server, ok := netip.AddrFromSlice(o[54])
				kind := o[53]
				switch {
				case !ok || len(kind) != 1:
				case kind[0] == 2 && !q.request: // OFFER
					q.request, q.addr, q.server = true, addr, server
					if _, err := w.file.Write(simFrame(hw, as.packet(q))); err != nil {
						return simLease{}, fmt.Errorf("ask DHCP: %w", err)
					}
				case kind[0] == 6 && q.request: // NAK
					waiting = false
				case kind[0] == 5 && q.request: // ACK
					l := simLease{addr: addr, server: server, file: string(o[67])}
					if l.file == "" {
						l.file = simText(p[108:236])
					}
					if next, _ := netip.AddrFromSlice(p[20:24]); next.IsValid() && !next.IsUnspecified() {
						l.server = next // siaddr, where TFTP is
					}
					return l, w.take(addr)
				}
			}
		}
	}
	return simLease{}, errors.New("nobody answers DHCP")
}

// simText ends at the first zero.
func simText(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// take makes an address the host's, for good: the declared address of a machine is
// no other's.
func (w *SimWire) take(addr netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.have[addr] {
		return nil
	}
	inside := &Net{Name: w.host.Name}
	if err := inside.ip("address add " + netip.PrefixFrom(addr, w.leg.Bits()).String() + " dev eth0"); err != nil {
		return err
	}
	w.have[addr] = true
	return nil
}

// dial connects from a machine's address.
func (w *SimWire) dial(from netip.Addr) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = NetDo(w.host.Name, func() error {
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}

// client speaks HTTP from a machine's address.
func (w *SimWire) client(from netip.Addr) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: w.dial(from)}, Timeout: time.Minute}
}
