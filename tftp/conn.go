package tftp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds the requests of a few thousand machines that are switched
// on at once while the server is stalled; the system's default holds 160.
const receiveBuffer = 4 << 20

// filterConn stands between the socket and the library, which opens a socket
// and starts a goroutine for every packet it reads, and answers ten bytes with
// 3 KB: it hands on only requests that were understood and admitted.
type filterConn struct {
	net.PacketConn
	gate  *gate
	count *counters
	now   func() time.Time
	log   *slog.Logger

	gone chan error    // gets the error of a socket that broke
	done chan struct{} // closed when the server stops
	last netip.Addr    // of the request handed on last; only the reading goroutine
}

// ReadFrom returns the next admitted request, rewritten for the library.
func (c *filterConn) ReadFrom(b []byte) (int, net.Addr, error) {
	// One byte more than the longest request tells a longer one.
	var buf [maxRequest + 1]byte
	c.last = netip.Addr{} // the library has taken it
	for {
		n, addr, err := c.PacketConn.ReadFrom(buf[:])
		if err != nil {
			// The library would spin on a socket that is gone.
			if !errors.Is(err, net.ErrClosed) {
				select {
				case c.gone <- err:
				default:
				}
			}
			<-c.done
			return 0, nil, err
		}
		from, ok := addr.(*net.UDPAddr)
		if !ok {
			continue
		}
		source := from.AddrPort().Addr().Unmap()
		r, err := parseRequest(buf[:n])
		if err == nil {
			err = c.gate.admit(c.now(), source)
		}
		if err != nil {
			c.count.add(err)
			c.log.Debug("drop packet", "remote", from, "error", err)
			continue
		}
		c.last = source
		return copy(b, r.packet()), from, nil
	}
}

// counters counts what was dropped, by reason.
type counters struct {
	mu sync.Mutex
	n  map[refusal]int64
}

func (c *counters) add(err error) {
	var why refusal
	if !errors.As(err, &why) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[refusal]int64{}
	}
	c.n[why]++
}

func (c *counters) snapshot() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]int64, len(c.n))
	for k, v := range c.n {
		out[string(k)] = v
	}
	return out
}

// listen opens the socket of an address such as "10.20.0.1:69".
func listen(addr string) (net.PacketConn, error) {
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return nil, fmt.Errorf("open TFTP socket: %w", err)
	}
	return c, nil
}

// enlarge asks for the receive buffer; without the privilege the kernel grants
// what net.core.rmem_max allows.
func enlarge(c net.PacketConn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	})
}
