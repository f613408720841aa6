package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pin/tftp/v3"
)

const (
	// pause is how long the library waits before it sends a block again. It
	// answers no late copy of an acknowledgement, so that a repeated block costs no
	// more than itself.
	pause = 2 * shortestWait
	// lostAfter is how long it may take to begin.
	lostAfter = 2 * time.Second
	// fullBlock fills an Ethernet frame: 1500 less the headers of IPv4, UDP and
	// TFTP.
	fullBlock = 1468
)

// relay hands transfers to the library, which listens on loopback. The library
// opens a socket and starts a goroutine for every packet it reads, answers ten
// bytes with 3 KB, and sends from whatever address the kernel likes; so it sees
// only clients that have answered us, and what it sends goes out by the
// transfer's own socket.
type relay struct {
	library *tftp.Server
	conn    *net.UDPConn
	dropped *counters

	mu    sync.Mutex
	tasks map[netip.AddrPort]*task // by the address of inner
}

// task is a transfer that the library works at.
type task struct {
	ctx    context.Context
	file   *io.SectionReader
	inner  *net.UDPConn // to the library
	begun  atomic.Bool  // the library has called us
	result chan result  // of the library's call
}

type result struct {
	bytes int64 // handed out, the block under way included
	err   error
}

func newRelay(ctx context.Context, patience time.Duration, dropped *counters) (*relay, error) {
	conn, err := net.ListenUDP("udp4", loopback())
	if err != nil {
		return nil, fmt.Errorf("open TFTP's socket on loopback: %w", err)
	}
	r := &relay{conn: conn, dropped: dropped, tasks: map[netip.AddrPort]*task{}}
	// The library asks for this too, and takes its block size from it, but for the
	// first requests too late.
	if err := prepare(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	r.library = tftp.NewServer(r.send, nil)
	r.library.SetBlockSize(fullBlock)
	longer := func(n int) time.Duration { return min(pause<<min(n+1, 12), longestWait) - pause }
	retries := 0
	for d := pause; d < patience; retries++ {
		d += longer(retries) + pause
	}
	r.library.SetTimeout(pause)
	r.library.SetRetries(retries)
	r.library.SetBackoff(func(n int) time.Duration {
		// The library would sleep on while the server stops.
		select {
		case <-ctx.Done():
		case <-time.After(longer(n)):
		}
		return 0
	})
	return r, nil
}

func (r *relay) run() error { return r.library.Serve(r.conn) }

// stop ends run. No transfer may be under way.
func (r *relay) stop() {
	r.library.Shutdown()
	r.conn.Close() // the library does not know it where run has not begun
}

// send is called by the library, in the transfer's goroutine.
func (r *relay) send(_ string, to io.ReaderFrom) (err error) {
	out, ok := to.(tftp.OutgoingTransfer)
	if !ok {
		return errors.New("internal error")
	}
	at := out.RemoteAddr()
	k := r.task(netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), at.AddrPort().Port()))
	if k == nil {
		return errors.New("ask at the public port")
	}
	k.begin()
	var n int64
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
		k.end(n, err)
	}()
	n, err = to.ReadFrom(&blocks{k.ctx, k.file})
	return err
}

func (k *task) begin() {
	k.begun.Store(true)
	_ = k.inner.SetReadDeadline(time.Time{})
}

func (k *task) end(n int64, err error) {
	k.result <- result{n, err}
	_ = k.inner.SetReadDeadline(time.Now())
}

// task finds the transfer that the library calls about, by its address: exactly,
// for anybody on this host may have the port at 127.0.0.2.
func (r *relay) task(at netip.AddrPort) *task {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[at]
}

const badSender refusal = "from another process of this host"

var errLost = errors.New("the transfer did not begin")

// serve lets the library send a file whose first packet the client has answered.
// It returns the number of blocks that have arrived.
func (r *relay) serve(ctx context.Context, t *transfer) (acked int64, err error) {
	inner, err := net.ListenUDP("udp4", loopback())
	if err != nil {
		return 0, fmt.Errorf("open TFTP's socket on loopback: %w", err)
	}
	k := &task{ctx: ctx, file: t.file, inner: inner, result: make(chan result, 1)}
	at := inner.LocalAddr().(*net.UDPAddr).AddrPort()
	r.mu.Lock()
	r.tasks[at] = k
	r.mu.Unlock()

	given := r.exchange(ctx, t, k)

	r.mu.Lock()
	delete(r.tasks, at)
	r.mu.Unlock()
	if !k.begun.Load() {
		return 0, errLost
	}
	end := <-k.result
	var silence net.Error
	switch {
	case end.err == nil:
		return end.bytes/int64(t.block) + 1, nil
	case given != nil:
		err = given
	case errors.As(end.err, &silence) && silence.Timeout():
		err = errSilent
	default:
		err = end.err
	}
	return max(end.bytes-1, 0) / int64(t.block), err
}

// exchange carries packets both ways until the library has ended, and returns
// why we ended it, if we did.
func (r *relay) exchange(ctx context.Context, t *transfer, k *task) (given error) {
	defer k.inner.Close()
	// Both the library's first packet and the client's answer to it are known
	// already.
	request, answer := "\x00\x01file\x00octet\x00", ackPacket(1)
	if t.oack != nil {
		request += fmt.Sprintf("blksize\x00%d\x00", t.block)
		answer = ackPacket(0)
	}
	_ = k.inner.SetReadDeadline(time.Now().Add(lostAfter))
	if _, err := k.inner.WriteToUDPAddrPort([]byte(request), r.conn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		return err
	}
	buf := make([]byte, fullBlock+4)
	var library netip.AddrPort // its socket for this transfer
	// Beside the deadline, which a receive that is about to begin would take back.
	work, over := context.WithCancel(ctx)
	defer over()
	var up sync.WaitGroup
	for {
		n, from, err := k.inner.ReadFromUDPAddrPort(buf)
		if err != nil {
			break // ended, or never begun
		}
		switch {
		case !k.begun.Load() || library.IsValid() && from != library:
			r.dropped.add(badSender) // it shall not feed a machine
		case !library.IsValid():
			library = from
			_, _ = k.inner.WriteToUDPAddrPort(answer, library)
			up.Go(func() { given = k.acknowledge(work, t, library) })
		case n >= 2 && buf[1] == opError:
			// The client gets our words.
		default:
			t.send(buf[:n])
		}
	}
	over()
	_ = t.conn.SetReadDeadline(time.Now())
	up.Wait()
	if errors.Is(given, os.ErrDeadlineExceeded) || ctx.Err() == nil && errors.Is(given, errStopping) {
		given = nil
	}
	return given
}

// acknowledge hands the client's acknowledgements to the library. Anything else
// ends the library's work.
func (k *task) acknowledge(ctx context.Context, t *transfer, library netip.AddrPort) error {
	for {
		block, err := t.receive(ctx, time.Time{})
		if err != nil {
			_, _ = k.inner.WriteToUDPAddrPort(errorPacket(codeText, "over"), library)
			return err
		}
		_, _ = k.inner.WriteToUDPAddrPort(ackPacket(block), library)
	}
}

// blocks hands a file to the library, and ends with the context. It has no
// method but Read, so that the library asks block by block.
type blocks struct {
	ctx  context.Context
	data io.Reader
}

func (b *blocks) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, errStopping
	}
	return b.data.Read(p)
}

func loopback() *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)} }
