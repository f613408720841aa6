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
	"runtime/debug"
	"sync"
	"time"

	"github.com/pin/tftp/v3"

	"recast/inventory"
)

const (
	// blockSize fills an Ethernet frame: 1500 less the headers of IPv4, UDP and
	// TFTP.
	blockSize = 1468
	// A machine that stays silent for timeout gets the block again, retries
	// times, but only after it has answered something (see relay).
	timeout = 2 * time.Second
	retries = 5
)

// Server serves files by TFTP. Set the fields, then call Run.
type Server struct {
	// Addr to listen on; empty means ":69". Ignored where Conn is set.
	Addr string
	// Conn is a socket that was opened elsewhere. Run closes it.
	Conn *net.UDPConn
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
	var err error
	conn := s.Conn
	if conn == nil {
		if conn, err = listen(cmp.Or(s.Addr, ":69")); err != nil {
			return err
		}
	}
	if err := prepare(conn); err != nil {
		return errors.Join(err, conn.Close())
	}
	inner, err := net.ListenUDP("udp4", loopback())
	if err != nil {
		return errors.Join(fmt.Errorf("open TFTP's socket on loopback: %w", err), conn.Close())
	}
	// The library does so too, and takes its block size from it, but for the first
	// requests too late.
	if err := prepare(inner); err != nil {
		return errors.Join(err, inner.Close(), conn.Close())
	}
	s.gate = newGate(s.Limits)
	r := &relay{Server: s, library: inner.LocalAddr().(*net.UDPAddr).AddrPort(), transfers: map[uint16]*transfer{}}
	library := tftp.NewServer(func(name string, to io.ReaderFrom) error { return r.send(ctx, name, to) }, nil)
	library.SetBlockSize(blockSize)
	library.SetTimeout(cmp.Or(s.timeout, timeout))
	library.SetRetries(retries)
	library.SetBackoff(func(int) time.Duration { return 0 })

	var readers sync.WaitGroup
	ended := make(chan error, 2)
	readers.Go(func() { ended <- library.Serve(inner) })
	readers.Go(func() { ended <- r.read(conn) })
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	conn.Close()
	library.Shutdown() // waits for the transfers
	readers.Wait()
	r.work.Wait()
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
func (r *relay) send(ctx context.Context, name string, to io.ReaderFrom) (err error) {
	out, ok := to.(tftp.OutgoingTransfer)
	if !ok {
		return errors.New("internal error")
	}
	t, err := r.begin(out.RemoteAddr())
	if err != nil {
		return err
	}
	remote := t.client.Addr()
	defer t.end()
	defer func() {
		if p := recover(); p != nil {
			r.log().Error("recover from panic in a transfer", "remote", remote, "panic", p, "stack", string(debug.Stack()))
			r.dropped.add(refusal("panic"))
			err = errors.New("internal error")
		}
	}()
	content, ok := r.files[name]
	if !ok {
		// An optional file; the client goes on without it.
		r.report(inventory.Observation{Remote: remote, Detail: fmt.Sprintf("%.80q", name)}, errors.New("no such file"))
		return fmt.Errorf("file %q is not served here", name)
	}
	out.SetSize(int64(len(content)))
	start := r.now()
	o := inventory.Observation{Remote: remote, Detail: name, Size: int64(len(content))}
	o.Bytes, err = to.ReadFrom(&blocks{ctx: ctx, data: bytes.NewReader(content)})
	o.Took, o.BlockSize = inventory.Duration(r.now().Sub(start)), int(t.block.Load())
	switch {
	case t.probe.Load():
		o.Asked, o.Bytes, o.Took, err = true, 0, 0, nil
	case t.silent.Load():
		o.Bytes, err = 0, errors.New("no answer")
	}
	r.report(o, err)
	return err
}

// report tells of a transfer that ended.
func (s *Server) report(o inventory.Observation, err error) {
	o.Time, o.Kind = s.now(), inventory.SawTFTP
	if err != nil {
		o.Error = err.Error()
		s.log().Info("tftp transfer ended early", "remote", o.Remote, "file", o.Detail, "bytes", o.Bytes, "size", o.Size, "block", o.BlockSize, "error", err)
	} else {
		s.log().Debug("tftp transfer done", "remote", o.Remote, "file", o.Detail, "bytes", o.Bytes, "block", o.BlockSize, "took", o.Took)
	}
	if s.Observe != nil {
		s.Observe(o)
	}
}

// blocks hands a file to the library, and ends with the context. It has no
// method but Read, so that the library asks block by block.
type blocks struct {
	ctx  context.Context
	data *bytes.Reader
}

func (b *blocks) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, errors.New("the server is stopping")
	}
	return b.data.Read(p)
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
