// Package web is the one HTTP front: boot files and images for machines, the
// agent API, and the operator API. echo lives here and nowhere else.
package web

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

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
	Observe      func(inventory.Observation)
	Log          *slog.Logger
}

// Paths below the boot listener's root.
const (
	ImagesPath  = "/images/"
	RamdiskPath = "/boot/ramdisk/"
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
	return mux
}

// ramdisk serves its files without listings.
func (s *Server) ramdisk() http.Handler {
	files := http.StripPrefix(RamdiskPath, http.FileServer(s.Ramdisk))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") {
			http.NotFound(w, r)
			return
		}
		files.ServeHTTP(w, r)
		if s.Observe != nil && r.Method == http.MethodGet {
			s.Observe(inventory.Observation{Kind: inventory.SawFile, Remote: remote(r), Detail: strings.TrimPrefix(r.URL.Path, RamdiskPath)})
		}
	})
}

// scope is who may call a route. Every route has one; there is no default.
type scope int

const (
	scopeAgent    scope = iota + 1 // a token in the Authorization header or the body; the engine judges it
	scopeOperator                  // the operator's token
	scopeOpen                      // nobody is asked; nothing secret is answered
)

// route is one entry of the API. The OpenAPI document is made of this table, so
// that the two cannot differ.
type route struct {
	method, path string
	scope        scope
	doc          string
	in, out      any // zero values of the JSON bodies, nil for none
	handle       echo.HandlerFunc
}

// maxBody bounds a request's JSON: a site's files fit, nothing endless does.
const maxBody = 64 << 20

// API serves the agents and the operators.
func (s *Server) API() http.Handler {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	// v4 believes X-Forwarded-For by default, which is fatal where an address
	// names a machine (GHSA-246p-cpwv-v3jq).
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = s.problem
	e.Use(recoverPanic)
	for _, r := range s.routes() {
		e.Add(r.method, r.path, s.guard(r))
	}
	return e
}

func (s *Server) routes() []route {
	return append(s.agentRoutes(), s.operatorRoutes()...)
}

// guard denies whoever is not in the route's scope.
func (s *Server) guard(r route) echo.HandlerFunc {
	return func(c echo.Context) error {
		switch r.scope {
		case scopeOpen, scopeAgent:
		case scopeOperator:
			if s.OperatorToken == "" || subtle.ConstantTimeCompare([]byte(bearer(c)), []byte(s.OperatorToken)) != 1 {
				return echo.NewHTTPError(http.StatusUnauthorized, "this needs the operator's token: recast login URL")
			}
		default:
			return echo.NewHTTPError(http.StatusForbidden, "nobody may call this")
		}
		if r.path != imagesRoute { // an image is a stream with a limit of its own
			c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, maxBody)
		}
		return r.handle(c)
	}
}

// recoverPanic turns a panic of one request into its error. echo's own
// middleware package brings a rate limiter's module with it.
func recoverPanic(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		return next(c)
	}
}

func bearer(c echo.Context) string {
	token, _ := strings.CutPrefix(c.Request().Header.Get(echo.HeaderAuthorization), "Bearer ")
	return token
}

func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// Problem is an error as RFC 9457 wants it.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Problems are all reasons why files were refused.
	Problems []inventory.Problem `json:"problems,omitempty"`
}

// problem answers with the error, in words that say what to do.
func (s *Server) problem(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	p := Problem{Status: http.StatusInternalServerError, Detail: err.Error()}
	var he *echo.HTTPError
	var refused *provision.RefusedError
	var tooBig *http.MaxBytesError
	problems, isFiles := inventory.ProblemsOf(err)
	switch {
	case errors.As(err, &he):
		p.Status = he.Code
		if text, ok := he.Message.(string); ok {
			p.Detail = text
		}
	case errors.As(err, &refused):
		p.Status = http.StatusForbidden
	case isFiles:
		p.Status, p.Problems, p.Detail = http.StatusUnprocessableEntity, problems, "the files are refused; what was applied stays in force"
	case errors.Is(err, provision.ErrPlanMoved):
		p.Status = http.StatusConflict
	case errors.As(err, &tooBig):
		p.Status = http.StatusRequestEntityTooLarge
	case errors.Is(err, provision.ErrUnavailable):
		p.Status = http.StatusServiceUnavailable
	case errors.Is(err, errBadRequest):
		p.Status = http.StatusBadRequest
	case errors.Is(err, errNotFound):
		p.Status = http.StatusNotFound
	}
	p.Title = http.StatusText(p.Status)
	if p.Status == http.StatusInternalServerError {
		p.Detail, _, _ = strings.Cut(p.Detail, "\n") // the stack is for the log
	}
	if p.Status >= 500 && s.Log != nil {
		s.Log.Warn("request failed", "method", c.Request().Method, "path", c.Path(), "status", p.Status, "err", err)
	}
	c.Response().Header().Set(echo.HeaderContentType, "application/problem+json")
	_ = c.JSON(p.Status, p)
}

var (
	errBadRequest = errors.New("bad request")
	errNotFound   = errors.New("not found")
)

// NewHTTP wraps a handler with the limits every listener of ours has. Image
// bytes and long polls take long, so only the header's time is bounded.
func NewHTTP(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// read decodes a JSON body and refuses unknown fields.
func read[T any](c echo.Context) (T, error) {
	var v T
	if err := decodeJSON(c.Request().Body, &v); err != nil {
		return v, errors.Join(errBadRequest, err)
	}
	return v, nil
}
