package dhcp

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// load plays clients behind a relay, many packets to a system call, so that it
// costs less than what it measures.
type load struct {
	kind byte    // first byte of its clients' hardware addresses
	from int     // the number of the first client
	of   int     // how many there are; then the first comes again
	loss float64 // of what is sent and of what comes

	// Either this many exchanges are under way at once, and what has no answer for
	// so long (0: 100 ms) begins again, until n are done;
	window, n int
	patience  time.Duration
	// or this many begin in a second, for that time, and nothing again.
	rate int
	time time.Duration
	// lure leaves it at the DISCOVER.
	lure bool
}

// loaded is what became of it.
type loaded struct {
	began, done, again int
	took               time.Duration
	waits              []time.Duration // DISCOVER to ACK, sorted
}

func (l loaded) rate() float64 { return float64(l.done) / l.took.Seconds() }

func (l loaded) quantile(q float64) time.Duration {
	if len(l.waits) == 0 {
		return 0
	}
	return l.waits[int(q*float64(len(l.waits)-1))]
}

// relaySocket is bound to a relay's address.
func relaySocket(b *testing.B, st *netStation, addr string) *net.UDPConn {
	var udp *net.UDPConn
	st.enter(func() (err error) {
		udp, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr), Port: 67}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 67})
		return err
	})
	b.Cleanup(func() { udp.Close() })
	_ = udp.SetReadBuffer(receiveBuffer)
	_ = udp.SetWriteBuffer(receiveBuffer)
	return udp
}

const burst = 64

type exchangeOf struct {
	began, asked time.Time
	open         bool
}

// run plays it, giaddr and all, over a relay's socket.
func (l load) run(b *testing.B, udp *net.UDPConn) loaded {
	giaddrOf := udp.LocalAddr().(*net.UDPAddr).IP.String()
	discover := message(DISCOVER, "00:00:00:00:00:00", giaddr(giaddrOf), pxe(7)).ToBytes()
	request := message(REQUEST, "00:00:00:00:00:00", giaddr(giaddrOf), pxe(7), requested("255.255.255.1"), serverID("255.255.255.2")).ToBytes()
	at50, at54 := bytes.Index(request, []byte{50, 4})+2, bytes.Index(request, []byte{54, 4})+2

	conn := ipv4.NewPacketConn(udp)
	messages := func(size int) []ipv4.Message {
		m := make([]ipv4.Message, burst)
		for i := range m {
			m[i].Buffers = [][]byte{make([]byte, size)}
		}
		return m
	}
	out, in := messages(1024), messages(2048)
	waiting := 0
	var exchanges []exchangeOf
	rng := rand.New(rand.NewPCG(1, uint64(l.kind)))
	lose := func() bool { return l.loss > 0 && rng.Float64() < l.loss }
	flush := func() {
		for sent := 0; sent < waiting; {
			n, err := conn.WriteBatch(out[sent:waiting], 0)
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) { // refused while the server is not there yet
				b.Fatal(err)
			}
			sent += max(n, 1)
		}
		waiting = 0
	}
	put := func(template []byte, i int) []byte {
		if waiting == burst {
			flush()
		}
		p := append(out[waiting].Buffers[0][:0], template...)
		binary.BigEndian.PutUint32(p[4:], uint32(i)+1)
		copy(p[28:], hwAddr(l.kind, l.from+i%l.of))
		out[waiting].Buffers[0] = p
		if !lose() {
			waiting++
		}
		return p
	}

	start := time.Now()
	res := loaded{}
	open, oldest := 0, 0
	for {
		now := time.Now()
		if l.rate > 0 {
			if now.Sub(start) >= l.time {
				if l.lure || now.Sub(start) >= l.time+200*time.Millisecond {
					break
				}
			} else {
				for due := int(now.Sub(start).Seconds() * float64(l.rate)); len(exchanges) < due; open++ {
					put(discover, len(exchanges))
					exchanges = append(exchanges, exchangeOf{began: now, asked: now, open: true})
				}
			}
		} else {
			if res.done >= l.n {
				break
			}
			for open < l.window && len(exchanges) < l.n {
				put(discover, len(exchanges))
				exchanges = append(exchanges, exchangeOf{began: now, asked: now, open: true})
				open++
			}
			for ; oldest < len(exchanges) && !exchanges[oldest].open; oldest++ {
			}
			for i := oldest; i < len(exchanges); i++ {
				if e := &exchanges[i]; e.open && now.Sub(e.asked) > cmp.Or(l.patience, 100*time.Millisecond) {
					put(discover, i)
					e.asked = now
					if res.again++; res.again > l.n+100_000 {
						b.Fatalf("%d of %d exchanges done", res.done, l.n)
					}
				}
			}
		}
		flush()
		_ = udp.SetReadDeadline(now.Add(time.Millisecond))
		n, err := conn.ReadBatch(in, 0)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.ECONNREFUSED) {
				b.Fatal(err)
			}
			continue
		}
		now = time.Now()
		for _, m := range in[:n] {
			raw := m.Buffers[0][:m.N]
			i := int(binary.BigEndian.Uint32(raw[4:])) - 1
			if i < 0 || i >= len(exchanges) || !exchanges[i].open || l.lure || lose() {
				continue
			}
			raw[0] = 1 // that peek looks at it
			switch kind, err := peek(raw); {
			case err != nil:
				b.Fatal(err)
			case kind == dhcpv4.MessageTypeOffer:
				p := put(request, i)
				copy(p[at50:], raw[16:20])
				copy(p[at54:], []byte{10, 0, 0, 2})
			case kind == dhcpv4.MessageTypeAck:
				e := &exchanges[i]
				e.open = false
				open--
				res.done++
				res.waits = append(res.waits, now.Sub(e.began))
			default:
				b.Fatalf("answer %v", kind)
			}
		}
	}
	res.took, res.began = time.Since(start), len(exchanges)
	if l.rate > 0 {
		res.took = l.time
	}
	slices.Sort(res.waits)
	return res
}
