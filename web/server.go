// Package web is the one HTTP front: boot files and images for machines, the
// agent API, and the operator API. echo lives here and nowhere else.
package web

import (
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"recast/console"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
)

// Server makes the two handlers: Boot, plain HTTP, public by construction, and
// API, for TLS listeners.
type Server struct {
	Engine  *provision.Engine
	Images  *image.Store
	Scripts *ipxe.Handler
	// Ramdisk is the folder of ramdisk files, served below /boot/ramdisk/.
	Ramdisk http.FileSystem
	// OperatorToken lets its bearer do everything.
	OperatorToken string
	// ImageMaxSize bounds an unpacked image, bytes; 0 means the image store's default.
	ImageMaxSize int64
	Version      string
	// Stopping, once closed, ends the answers that wait for something to happen,
	// so that a server that stops waits for transfers alone. Nil: never.
	Stopping <-chan struct{}
	// Findings of the DHCP server; nil none.
	Findings func() []string
	// Malformed counts what came elsewhere and was not understood, by reason; nil none.
	Malformed func() map[string]uint64
	// Metrics writes what is counted in Prometheus' text format; nil serves none.
	// MetricsToken opens them and nothing else.
	Metrics      func(io.Writer, StatusReply) error
	MetricsToken string
	// Relayed counts DHCP packets that came through relays, by Network; nil none.
	Relayed func() map[string]uint64
	// Capture of a machine's packets; nil captures nothing.
	Capture Capturer
	// Consoles of machines; nil keeps none.
	Consoles *console.Hub
	Observe  func(inventory.Observation)
	Log      *slog.Logger

	captures atomic.Int64 // under way
	refused  refusals
}

// Paths below the boot listener's root.
const (
	ImagesPath  = "/images/"
	RamdiskPath = "/boot/ramdisk/" // + a file's name; see image.RamdiskNames
)

// Boot serves what a machine without any identity may have: loaders, scripts,
// the ramdisk and image bytes. None of it holds a secret.
func (s *Server) Boot() http.Handler {
	mux := http.NewServeMux()
	// echo's Response hides the connection's ReadFrom and with it sendfile, so
	// the big files stay outside.
	mux.Handle(ImagesPath, http.StripPrefix(strings.TrimSuffix(ImagesPath, "/"), s.Images))
	mux.Handle(RamdiskPath, s.ramdisk())
	mux.Handle("/boot/", s.Scripts)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hurry(w, r) // nothing here has a body to send
		n := &noted{ResponseWriter: w}
		mux.ServeHTTP(n, r)
		s.refused.status(frontBoot, n.code)
	})
}

// ramdisk serves its files without listings.
func (s *Server) ramdisk() http.Handler {
	files := http.StripPrefix(RamdiskPath, http.FileServer(s.Ramdisk))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, RamdiskPath)
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are served here", http.StatusMethodNotAllowed)
			return
		// The folder is flat: no listing, no way down, no hidden file.
		case name == "" || strings.Contains(name, "/") || strings.HasPrefix(name, "."):
			http.NotFound(w, r)
			return
		}
		s.Scripts.Turns.Fetching(remote(r), time.Now())
		seen := ipxe.Transfer(w, r, name, files.ServeHTTP)
		if _, last := image.RamdiskPart(name); last && seen.Error == "" && !seen.Asked && seen.Offset+seen.Bytes == seen.Size {
			s.Scripts.Turns.Done(remote(r), time.Now())
		}
		if s.Observe != nil {
			s.Observe(seen)
		}
	})
}

func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
