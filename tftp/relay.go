package tftp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lostAfter is how long the library may take to begin a transfer.
	lostAfter = 2 * time.Second
	// linger is how long the library may take to send its last packet, which
	// follows the end of our handler.
	linger = 250 * time.Millisecond
)

// relay stands between the network and the library, which listens on loopback.
// The library opens a socket and starts a goroutine for every packet it reads,
// answers ten bytes with 3 KB, and sends from whatever address the kernel likes;
// so it gets only requests that were understood and admitted, and what it sends
// goes out by a socket of ours: from the address that the client asked, and once
// only until the client has answered.
type relay struct {
	*Server
	library netip.AddrPort

	mu        sync.Mutex
	transfers map[uint16]*transfer // by the port of inner
	work      sync.WaitGroup
}

// transfer is one admitted request on its way.
type transfer struct {
	client  netip.AddrPort
	outer   *net.UDPConn // to the client; its port is our TID (RFC 1350 section 4)
	inner   *net.UDPConn // to the library
	release func()       // gives the place in the gate back, once

	begun  atomic.Bool // the library has called us
	heard  atomic.Bool // the client has answered, so that its address is its own
	silent atomic.Bool // it did not answer in time
	over   atomic.Bool // it sent an ERROR, which has no answer (RFC 1350 section 7)
	probe  atomic.Bool // it answered the options with that: the size was all it wanted

	block atomic.Int64 // block size in force
}

// read takes requests until the socket breaks or is closed.
func (r *relay) read(conn *net.UDPConn) error {
	// One byte more than the longest request tells a longer one.
	var buf [maxRequest + 1]byte
	oob := make([]byte, 128)
	bound := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	for {
		n, m, _, from, err := conn.ReadMsgUDPAddrPort(buf[:], oob)
		if err != nil {
			return fmt.Errorf("read TFTP socket: %w", err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		to := bound
		if bound.IsUnspecified() {
			to = destination(oob[:m])
		}
		if err := r.accept(buf[:n], from, to); err != nil {
			r.dropped.add(err)
			r.log().Debug("drop packet", "remote", from, "error", err)
		}
	}
}

const (
	badDestination refusal = "not sent to an address of ours"
	lostRequest    refusal = "no socket"
	badSender      refusal = "from another process of this host"
)

// accept begins the transfer that a packet asks for.
func (r *relay) accept(packet []byte, from netip.AddrPort, to netip.Addr) error {
	req, err := parseRequest(packet)
	if err != nil {
		return err
	}
	if !to.IsValid() {
		return badDestination
	}
	if err := r.gate.admit(r.now(), from.Addr()); err != nil {
		return err
	}
	t := &transfer{client: from, release: sync.OnceFunc(func() { r.gate.end(from.Addr()) })}
	if t.outer, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0))); err == nil {
		if t.inner, err = net.ListenUDP("udp4", loopback()); err != nil {
			t.outer.Close()
		}
	}
	if err != nil {
		t.release()
		r.log().Warn("tftp request lost", "remote", from, "error", err)
		return lostRequest
	}
	port := t.inner.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	r.mu.Lock()
	r.transfers[port] = t
	r.mu.Unlock()
	_ = t.inner.SetReadDeadline(time.Now().Add(lostAfter))
	r.work.Go(func() {
		r.down(t, req.packet())
		r.mu.Lock()
		delete(r.transfers, port)
		r.mu.Unlock()
		t.release()
		if !t.begun.Load() {
			r.dropped.add(lostRequest)
			r.log().Warn("tftp request lost", "remote", from)
		}
	})
	return nil
}

// begin finds the transfer that the library calls about, by its port.
func (r *relay) begin(remote net.UDPAddr) (*transfer, error) {
	r.mu.Lock()
	t := r.transfers[uint16(remote.Port)]
	r.mu.Unlock()
	// Exactly: anybody on this host may have the port at 127.0.0.2.
	if t == nil || addrPort(remote) != t.inner.LocalAddr().(*net.UDPAddr).AddrPort() {
		return nil, errors.New("ask at the public port")
	}
	t.begun.Store(true)
	return t, t.inner.SetReadDeadline(time.Time{})
}

func addrPort(a net.UDPAddr) netip.AddrPort {
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func (t *transfer) end() {
	t.release()
	_ = t.inner.SetReadDeadline(time.Now().Add(linger))
}

// down hands the request to the library and what comes back to the client.
func (r *relay) down(t *transfer, request []byte) {
	var up sync.WaitGroup
	defer up.Wait()
	defer t.inner.Close()
	defer t.outer.Close()
	if _, err := t.inner.WriteToUDPAddrPort(request, r.library); err != nil {
		return
	}
	buf := make([]byte, blockSize+4)
	var library netip.AddrPort // its socket for this transfer
	for {
		n, from, err := t.inner.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // ended, or never begun
		}
		switch {
		case !t.begun.Load() || library.IsValid() && from != library:
			r.dropped.add(badSender) // it shall not feed a machine
			continue
		case !library.IsValid():
			library = from
			asked := n >= 2 && buf[1] == opOACK
			t.block.Store(int64(grantedBlock(buf[:n])))
			up.Go(func() { t.up(from, asked) })
		case t.over.Load():
			continue
		case !t.heard.Load():
			// The library repeats itself. The address may be a victim's: the transfer
			// ends here.
			t.silent.Store(true)
			_, _ = t.inner.WriteToUDPAddrPort([]byte("\x00\x05\x00\x00no answer\x00"), from)
			continue
		}
		// What is lost on the way is sent again.
		_, _ = t.outer.WriteToUDPAddrPort(buf[:n], t.client)
	}
}

// up hands the client's packets to the library, and nobody else's.
func (t *transfer) up(library netip.AddrPort, asked bool) {
	var buf [maxRequest + 4]byte
	for {
		n, from, err := t.outer.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return
		}
		if from != t.client {
			continue
		}
		answered := t.heard.Swap(true)
		if n >= 2 && buf[1] == opError {
			t.probe.Store(asked && !answered)
			t.over.Store(true)
		}
		_, _ = t.inner.WriteToUDPAddrPort(buf[:n], library)
	}
}

func loopback() *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)} }
