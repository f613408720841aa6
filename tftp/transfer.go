package tftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/pin/tftp/v3/netascii"

	"recast/inventory"
)

const (
	// patience is how long a client may be silent. Most repeat themselves after
	// five or six seconds, and that may be lost too.
	patience = 20 * time.Second
	// longestPatience is that for a client that names long times.
	longestPatience = time.Minute
	// maxText is how large a file may be that is converted to netascii.
	maxText = 4 << 20
)

// transfer is one admitted request on its way.
type transfer struct {
	terms
	conn   *net.UDPConn // to the client; its port is our TID (RFC 1350 section 4)
	client netip.AddrPort
	room   int // for a block
	asked  int // bytes of the request
	file   *io.SectionReader
	buf    [maxRequest + 4]byte
}

// read takes requests until the socket breaks or is closed.
func (s *Server) read(ctx context.Context, conn *net.UDPConn) error {
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
		if to.IsLinkLocalUnicast() {
			to = to.WithZone(from.Addr().Zone())
		}
		if err := s.accept(ctx, buf[:n], from, to); err != nil {
			s.dropped.add(err)
			s.log().Debug("drop packet", "remote", from, "error", err)
		}
	}
}

const (
	badDestination refusal = "not sent to an address of ours"
	lostRequest    refusal = "no socket"
	panicked       refusal = "panic"
)

// accept begins the transfer that a packet asks for.
func (s *Server) accept(ctx context.Context, packet []byte, from netip.AddrPort, to netip.Addr) error {
	req, err := parseRequest(packet)
	if err != nil {
		return err
	}
	if !to.IsValid() {
		return badDestination
	}
	if err := s.gate.admit(s.now(), from.Addr()); err != nil {
		return err
	}
	// Here and not in the transfer's goroutine, whose stack would keep the room
	// that this takes.
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
	if err != nil {
		s.gate.end(from.Addr())
		s.log().Warn("tftp request lost", "remote", from, "error", err)
		return lostRequest
	}
	t := &transfer{conn: conn, client: from, room: room(to, from), asked: len(packet)}
	s.work.Go(func() {
		defer s.gate.end(from.Addr())
		defer conn.Close()
		defer func() {
			if p := recover(); p != nil {
				s.log().Error("recover from panic in a transfer", "remote", from, "panic", p, "stack", string(debug.Stack()))
				s.dropped.add(panicked)
			}
		}()
		s.serve(ctx, req, t)
	})
	return nil
}

// serve is one transfer, up to its report.
func (s *Server) serve(ctx context.Context, req request, t *transfer) {
	o := inventory.Observation{Remote: t.client.Addr(), Detail: req.name}
	file, err := s.open(ctx, req, t.client.Addr())
	if err != nil {
		// An optional file; the client goes on without it, and at once. The words are
		// few: the address may be a victim's.
		o.Detail = fmt.Sprintf("%.80q", req.name)
		s.report(o, err)
		t.send(errorPacket(codeNotFound, errNoFile.Error()))
		return
	}
	defer file.Close()
	t.file = io.NewSectionReader(file, 0, file.Size())
	t.terms = req.agree(t.file.Size(), t.room)
	o.Size, o.BlockSize = t.file.Size(), t.block

	defer context.AfterFunc(ctx, func() { _ = t.conn.SetReadDeadline(time.Now()) })()
	start := s.now()
	acked, err := t.run(ctx, s.relay, cmp.Or(s.patience, patience))
	o.Bytes = min(acked*int64(t.block), o.Size)
	o.Took = inventory.Duration(s.now().Sub(start))
	var given clientError
	switch {
	case errors.As(err, &given) && acked == 0 && t.oack != nil:
		o.Asked, o.Took, err = true, 0, nil // the size was all it wanted
	case err != nil && given == "" && acked > 0:
		t.send(errorPacket(codeText, err.Error()))
	}
	s.report(o, err)
}

var errNoFile = errors.New("no such file")

// open finds the file that a request asks for, in the form that it asks for.
func (s *Server) open(ctx context.Context, req request, remote netip.Addr) (File, error) {
	var f File
	if content, ok := s.files[req.name]; ok {
		f = Bytes(content)
	} else if s.Find != nil {
		var err error
		if f, err = s.Find(ctx, req.name, remote); err != nil {
			return nil, err
		}
	}
	if f == nil {
		return nil, errNoFile
	}
	if !req.text {
		return f, nil
	}
	defer f.Close()
	if f.Size() > maxText {
		return nil, errors.New("too large as text")
	}
	content, err := io.ReadAll(netascii.ToReader(io.NewSectionReader(f, 0, f.Size())))
	if err != nil {
		return nil, fmt.Errorf("convert to netascii: %w", err)
	}
	return Bytes(content), nil
}

var (
	errSilent = errors.New("no answer")
	// errNoBlock: the small packets pass, the first large one does not.
	errNoBlock = errors.New("no answer to the first block")
)

// run moves the file and returns how many blocks have arrived.
func (t *transfer) run(ctx context.Context, library *relay, patience time.Duration) (acked int64, err error) {
	w := newWindow(t.terms, t.file.Size(), time.Now())
	if err := t.first(ctx, w, patience); err != nil {
		return 0, err
	}
	switch {
	case w.done():
	case t.window > 1 || t.timeout > 0 || t.block < plainBlock:
		err = t.sendWindows(ctx, w, min(max(patience, 5*t.timeout), longestPatience))
	default:
		w.acked, err = library.serve(ctx, t)
	}
	if t.oack != nil && w.acked == 0 && err == errSilent {
		err = errNoBlock
	}
	return w.acked, err
}

// first sends the first packet and waits until the client has answered it.
//
// The address may be a victim's until then: a block is sent once, and a client
// that lost it asks again. An OACK is sent again as often as all of them stay
// below three times the request, for GRUB acknowledges it once, and when that is
// lost waits half a minute for the data and gives up. Not before six seconds of
// silence: atftp gives up over a second OACK, and after five repeats its own answer.
func (t *transfer) first(ctx context.Context, w *window, patience time.Duration) error {
	p := t.oack
	if p == nil {
		var err error
		if p, err = t.data(nil, 1); err != nil {
			return err
		}
	}
	pause := patience * 3 / 10
	start := time.Now()
	for sent := 1; ; sent++ {
		t.send(p)
		again := t.oack != nil && (sent+1)*len(p) < 3*t.asked
		deadline := start.Add(patience)
		if again {
			deadline = start.Add(min(time.Duration(sent)*pause, patience))
		}
		for {
			block, err := t.receive(ctx, deadline)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil || w.ack(time.Now(), block) {
				return err
			}
		}
		if !again || time.Since(start) >= patience {
			return errSilent
		}
		w.again = true // whose answer comes is not known
	}
}

// sendWindows does what the library cannot: windows, a time of the client's, and
// blocks smaller than the usual.
func (t *transfer) sendWindows(ctx context.Context, w *window, patience time.Duration) error {
	packet := make([]byte, 0, 4+t.block)
	for !w.done() {
		var err error
		for block, last := w.next(time.Now()); block <= last; block++ {
			if packet, err = t.data(packet, block); err != nil {
				return err
			}
			t.send(packet)
		}
		block, err := t.receive(ctx, w.deadline)
		switch now := time.Now(); {
		case err == nil:
			w.ack(now, block)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case now.Sub(w.moved) > patience:
			return errSilent
		}
	}
	return nil
}

// data makes the packet of a block, counted from 1, in the space of p.
func (t *transfer) data(p []byte, block int64) ([]byte, error) {
	p = dataPacket(p[:0], uint16(block))
	at := (block - 1) * int64(t.block)
	n := int(min(int64(t.block), t.file.Size()-at))
	p = slices.Grow(p, n)[:len(p)+n]
	if got, err := t.file.ReadAt(p[4:], at); got < n {
		return nil, fmt.Errorf("read block %d: %w", block, err)
	}
	return p, nil
}

// send sends a packet to the client. What is lost is sent again, whether it was
// lost on the way or here.
func (t *transfer) send(p []byte) { _, _ = t.conn.WriteToUDPAddrPort(p, t.client) }

var errStopping = errors.New("the server is stopping")

// receive returns the block that the client acknowledges.
func (t *transfer) receive(ctx context.Context, deadline time.Time) (uint16, error) {
	if err := t.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	for {
		// After the deadline is set, which the end of the context moves too.
		if ctx.Err() != nil {
			return 0, errStopping
		}
		n, from, err := t.conn.ReadFromUDPAddrPort(t.buf[:])
		if ctx.Err() != nil {
			return 0, errStopping
		}
		if err != nil {
			return 0, err
		}
		if from != t.client {
			_, _ = t.conn.WriteToUDPAddrPort(errorPacket(codeWrongTID, ""), from)
			continue
		}
		if block, err := parseAnswer(t.buf[:n]); !errors.Is(err, badAnswer) {
			return block, err
		}
	}
}
