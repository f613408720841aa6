package web

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"recast/inventory"
)

// refusals counts the requests that were not served, by front and reason. Neither
// is ever a client's text.
type refusals struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (r *refusals) count(front, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == nil {
		r.n = map[string]uint64{}
	}
	r.n[front+": "+why]++
}

// status counts an answer that lays the blame on the request. A conflict is none:
// the request was understood, and the state of things says no.
func (r *refusals) status(front string, code int) {
	if code/100 == 4 && code != http.StatusConflict {
		r.count(front, fmt.Sprintf("%d %s", code, http.StatusText(code)))
	}
}

func (r *refusals) counts() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.n)
}

// Names of the fronts in counters.
const (
	frontBoot     = "boot HTTP"
	frontAPI      = "API"
	frontAgent    = "agent API"
	frontOperator = "operator API"
)

const (
	// refusedUnread: bytes came, and net/http made no request of them: no HTTP,
	// another version, a malformed or too long header, or an end in its middle. It
	// answers by itself and tells nobody but by the states of the connection, where
	// a short one behind a good request on the same connection does not show.
	refusedUnread = "no request can be read"
	refusedTLS    = "the TLS handshake failed"
)

// BootHTTP serves Boot on plain listeners.
func (s *Server) BootHTTP() *http.Server { return s.newHTTP(frontBoot, s.Boot()) }

// APIHTTP serves API; its TLSConfig is the caller's.
func (s *Server) APIHTTP() *http.Server { return s.newHTTP(frontAPI, s.API()) }

// unread is the context key of whether a connection's request has come to a
// handler: true from its first bytes until then.
type unread struct{}

// newHTTP wraps a handler with the limits every listener of ours has. Image
// bytes and long polls take long, so only the header's time is bounded.
func (s *Server) newHTTP(front string, h http.Handler) *http.Server {
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	// One long poll per connection is all an agent needs: HTTP/1.1 alone.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	errorLog.SetOutput(handshakes{&s.refused, front, s.Observe, errorLog.Writer()})
	var open sync.Map // net.Conn → *atomic.Bool
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, ok := r.Context().Value(unread{}).(*atomic.Bool); ok {
				u.Store(false)
			}
			h.ServeHTTP(w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			u := new(atomic.Bool)
			open.Store(c, u)
			return context.WithValue(ctx, unread{}, u)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			v, ok := open.Load(c)
			if !ok {
				return
			}
			switch u := v.(*atomic.Bool); state {
			case http.StateActive:
				u.Store(true)
			case http.StateClosed, http.StateHijacked:
				open.Delete(c)
				if u.Load() {
					s.refused.count(front, refusedUnread)
				}
			}
		},
		DisableGeneralOptionsHandler: true, // OPTIONS * is a request as any other
		ReadHeaderTimeout:            10 * time.Second, IdleTimeout: 2 * time.Minute, Protocols: &protocols,
		MaxHeaderBytes: 16 << 10, ErrorLog: errorLog}
}

// handshakes counts TLS handshakes that failed, which net/http only logs. A
// connection that ends before it says anything is no request.
type handshakes struct {
	refused *refusals
	front   string
	observe func(inventory.Observation) // nil discards
	to      io.Writer
}

func (h handshakes) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("http: TLS handshake error")) && !bytes.HasSuffix(bytes.TrimSpace(p), []byte(": EOF")) {
		h.refused.count(h.front, refusedTLS)
		if o := sawTLS(string(p)); h.observe != nil && o.Remote.IsValid() {
			h.observe(o)
		}
	}
	return h.to.Write(p)
}

// sawTLS reads net/http's line: "http: TLS handshake error from 10.0.0.1:40000:
// remote error: tls: bad certificate".
func sawTLS(line string) inventory.Observation {
	_, line, _ = strings.Cut(line, "handshake error from ")
	from, why, _ := strings.Cut(line, ": ")
	o := inventory.Observation{Kind: inventory.SawTLS, Error: strings.TrimSpace(why)}
	if ap, err := netip.ParseAddrPort(from); err == nil {
		o.Remote = ap.Addr().Unmap()
	}
	return o
}

// frontOf names who an API's request is for.
func frontOf(path string) string {
	if strings.HasPrefix(path, "/agent/") {
		return frontAgent
	}
	return frontOperator
}

// noted remembers the status of an answer. Files pass through its ReadFrom to the
// connection's, or the kernel would not send them.
type noted struct {
	http.ResponseWriter
	code int
}

func (n *noted) WriteHeader(code int) {
	if n.code == 0 && code >= 200 {
		n.code = code
	}
	n.ResponseWriter.WriteHeader(code)
}

func (n *noted) ReadFrom(r io.Reader) (int64, error) { return io.Copy(n.ResponseWriter, r) }

// WriteString spares scripts a copy.
func (n *noted) WriteString(s string) (int, error) { return io.WriteString(n.ResponseWriter, s) }

// Unwrap is for http.ResponseController.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }
