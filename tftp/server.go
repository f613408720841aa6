// Package tftp serves a handful of files read-only by TFTP (RFC 1350, options of
// RFC 2347 to 2349 and 7440), throttled per source.
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
	"sync"
	"time"

	"recast/inventory"
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

	// Find opens a file that is not among them, for the machine that asks; a nil
	// File says that there is none. It is closed after its transfer.
	Find func(ctx context.Context, name string, remote netip.Addr) (File, error)

	Limits Limits
	// Observe is told of every transfer that ended; nil discards. It is called
	// from the transfer's goroutine.
	Observe func(inventory.Observation)
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil is time.Now

	patience time.Duration // for tests; 0 is the constant
	files    map[string][]byte
	gate     *gate
	relay    *relay
	work     sync.WaitGroup // transfers
	dropped  counters
}

// File is content of a known size.
type File interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Bytes is a File in memory.
func Bytes(b []byte) File { return memory{bytes.NewReader(b)} }

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

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
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s.gate = newGate(s.Limits)
	if s.relay, err = newRelay(ctx, cmp.Or(s.patience, patience), &s.dropped); err != nil {
		return errors.Join(err, conn.Close())
	}
	var library, reader sync.WaitGroup
	ended := make(chan error, 2)
	library.Go(func() { ended <- s.relay.run() })
	reader.Go(func() { ended <- s.read(ctx, conn) })
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	stop()
	conn.Close()
	reader.Wait()
	s.work.Wait()
	s.relay.stop()
	library.Wait()
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
