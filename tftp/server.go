// Package tftp serves a handful of files read-only by TFTP (RFC 1350, options of
// RFC 2347 to 2349), throttled per source.
package tftp

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pin/tftp/v3"

	"recast/inventory"
)

const (
	// blockSize fills an Ethernet frame: 1500 less the headers of IPv4, UDP and
	// TFTP. The library's own limit is 4 bytes too large and makes fragments.
	blockSize = 1468
	// A machine that stays silent for timeout gets the block again, retries
	// times, but only after it has acknowledged something.
	timeout = 2 * time.Second
	retries = 5
)

// Server serves files by TFTP. Set the fields, then call Run.
type Server struct {
	// Addr to listen on; empty means ":69". Ignored where Conn is set.
	Addr string
	// Conn is a socket that was opened elsewhere. Run closes it.
	Conn net.PacketConn
	// Files are read whole when Run starts; directories are not entered. Names
	// are looked up in a map, so that no name can lead to another file.
	Files fs.FS
	// Extra files by name, such as a generated script; they win over Files.
	Extra map[string][]byte

	Limits Limits
	// Observe is told of every transfer that ended; nil discards. It is called
	// from the transfer's goroutine.
	Observe func(inventory.Observation)
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil is time.Now

	timeout time.Duration // for tests; 0 is the constant
	files   map[string][]byte
	gate    *gate
	dropped counters
}

// Dropped counts the packets that were not answered, by reason.
func (s *Server) Dropped() map[string]int64 { return s.dropped.snapshot() }

// Run serves until ctx ends, then waits for the transfers under way, which stop
// at their next block. It returns an error only when it cannot begin or its
// socket breaks.
func (s *Server) Run(ctx context.Context) error {
	if err := s.load(); err != nil {
		return err
	}
	conn := s.Conn
	if conn == nil {
		var err error
		if conn, err = listen(cmp.Or(s.Addr, ":69")); err != nil {
			return err
		}
	}
	enlarge(conn)
	s.gate = newGate(s.Limits)
	filter := &filterConn{
		PacketConn: conn, gate: s.gate, count: &s.dropped, now: s.now, log: s.log(),
		gone: make(chan error, 1), done: make(chan struct{}),
	}
	server := tftp.NewServer(func(name string, to io.ReaderFrom) error { return s.send(ctx, name, to) }, nil)
	server.SetTimeout(cmp.Or(s.timeout, timeout))
	server.SetRetries(1) // none before the first ACK, see send
	server.SetBackoff(func(int) time.Duration { return 0 })
	server.SetHook(lostRequests{filter})

	var reader sync.WaitGroup
	served := make(chan error, 1)
	reader.Go(func() { served <- server.Serve(filter) })
	var err error
	select {
	case <-ctx.Done():
	case broken := <-filter.gone:
		err = fmt.Errorf("read TFTP socket: %w", broken)
	case err = <-served:
		err = fmt.Errorf("serve TFTP: %w", err)
	}
	close(filter.done)
	server.Shutdown()
	reader.Wait()
	return err
}

// load reads the files once: what is served cannot change under a transfer.
func (s *Server) load() error {
	s.files = map[string][]byte{}
	if s.Files != nil {
		entries, err := fs.ReadDir(s.Files, ".")
		if err != nil {
			return fmt.Errorf("list TFTP files: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			if s.files[e.Name()], err = fs.ReadFile(s.Files, e.Name()); err != nil {
				return fmt.Errorf("read TFTP file: %w", err)
			}
		}
	}
	maps.Copy(s.files, s.Extra)
	return nil
}

// send is one transfer, in its own goroutine. The error it returns goes to the
// client as text.
func (s *Server) send(ctx context.Context, name string, to io.ReaderFrom) (err error) {
	out, ok := to.(tftp.OutgoingTransfer)
	if !ok {
		return errors.New("internal error")
	}
	addr := out.RemoteAddr()
	remote := addr.AddrPort().Addr().Unmap()
	defer s.gate.end(remote)
	defer func() {
		if p := recover(); p != nil {
			s.log().Error("recover from panic in a transfer", "remote", remote, "panic", p, "stack", string(debug.Stack()))
			s.dropped.add(refusal("panic"))
			err = errors.New("internal error")
		}
	}()
	content, ok := s.files[name]
	if !ok {
		// An optional file; the client goes on without it.
		s.report(remote, fmt.Sprintf("%.80q", name), 0, 0, errors.New("no such file"))
		return fmt.Errorf("file %q is not served here", name)
	}
	t := tune(to)
	set(t.blockSize, blockSize)
	set(t.retries, 0)
	out.SetSize(int64(len(content)))
	start := s.now()
	n, err := to.ReadFrom(&blocks{ctx: ctx, data: bytes.NewReader(content), acked: func() { set(t.retries, retries) }})
	if sizeProbe(err) {
		s.log().Debug("tftp size asked", "remote", remote, "file", name)
		s.report(remote, name+", size only", 0, 0, nil)
		return nil
	}
	s.report(remote, name, n, s.now().Sub(start), err)
	return err
}

func (s *Server) report(remote netip.Addr, what string, n int64, took time.Duration, err error) {
	o := inventory.Observation{Time: s.now(), Kind: inventory.SawTFTP, Remote: remote, Detail: what, Bytes: n}
	if err != nil {
		o.Error = err.Error()
		s.log().Info("tftp transfer ended early", "remote", remote, "file", what, "bytes", n, "error", err)
	} else if n > 0 {
		o.Detail += " in " + took.Round(time.Millisecond).String()
		s.log().Debug("tftp transfer done", "remote", remote, "file", what, "bytes", n, "took", took)
	}
	if s.Observe != nil {
		s.Observe(o)
	}
}

// sizeProbe tells a PXE ROM that asked for the size, and ends the transfer with
// an ERROR in place of the first ACK, from one that failed.
func sizeProbe(err error) bool {
	return err != nil && probeEnd.MatchString(err.Error())
}

// The library's words for an ERROR of the client that answers the OACK.
var probeEnd = regexp.MustCompile(`^sending block 0: code=\d+, error: `)

// blocks hands a file to the library and learns from its calls how far the
// client is: the second block is asked for when the first was acknowledged. It
// has no method but Read, so that the library asks block by block.
type blocks struct {
	ctx   context.Context
	data  *bytes.Reader
	acked func()
	size  int // of a block, from the first call
}

func (b *blocks) Read(p []byte) (int, error) {
	switch {
	case b.size == 0:
		b.size = len(p)
	case len(p) == b.size: // a shorter one is the rest of a block
		b.acked()
	}
	if b.ctx.Err() != nil {
		return 0, errors.New("the server is stopping")
	}
	return b.data.Read(p)
}

// lostRequests ends what the library could not begin: it reports a request that
// it has no socket for with empty statistics, between two reads.
type lostRequests struct{ conn *filterConn }

func (l lostRequests) OnSuccess(tftp.TransferStats) {}

func (l lostRequests) OnFailure(stats tftp.TransferStats, err error) {
	if stats.RemoteAddr != nil || !l.conn.last.IsValid() {
		return
	}
	l.conn.log.Warn("tftp request lost", "remote", l.conn.last, "error", err)
	l.conn.gate.end(l.conn.last)
	l.conn.last = netip.Addr{}
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
