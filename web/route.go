package web

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"recast/inventory"
)

// scope is who may call a route. Every route has one; there is no default.
type scope int

const (
	scopeKnock    scope = iota + 1 // a nonce or a discovery token in the body; the engine judges it
	scopeAgent                     // an agent's token in the Authorization header; the engine judges it
	scopeOperator                  // the operator's token
	scopeMetrics                   // the token of metrics, or the operator's
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
	// answer is the media type of a success that is no JSON; stream lifts the
	// body's limit, since the handler has one of its own.
	answer string
	stream bool
	// waits: the answer is given when something happens.
	waits bool
}

// Limits of a request's body: what a stranger may send, what a machine may say
// of itself, and a site's files.
var bodyLimit = map[scope]int64{
	scopeOpen:     0,
	scopeKnock:    1 << 20,
	scopeAgent:    4 << 20,
	scopeOperator: 64 << 20,
}

// API serves the agents and the operators.
func (s *Server) API() http.Handler { return s.api(s.routes()) }

func (s *Server) api(routes []route) http.Handler {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	// v4 believes X-Forwarded-For by default, which is fatal where an address
	// names a machine (GHSA-246p-cpwv-v3jq).
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = s.problem
	e.Use(recoverPanic)
	for _, r := range routes {
		e.Add(r.method, r.path, s.guard(r))
	}
	return e
}

func (s *Server) routes() []route {
	return append(s.agentRoutes(), s.operatorRoutes()...)
}

// unescapeParams makes a path's parts what was meant by them: echo matches the path as
// it was sent where it was escaped in another way than Go would.
func unescapeParams(c echo.Context) {
	if c.Request().URL.RawPath == "" {
		return
	}
	values := slices.Clone(c.ParamValues())
	for i, v := range values {
		if plain, err := url.PathUnescape(v); err == nil {
			values[i] = plain
		}
	}
	c.SetParamValues(values...)
}

// guard denies whoever is not in the route's scope.
func (s *Server) guard(r route) echo.HandlerFunc {
	return func(c echo.Context) error {
		switch r.scope {
		case scopeOpen, scopeKnock:
		case scopeAgent:
			if bearer(c) == "" {
				return echo.NewHTTPError(http.StatusUnauthorized, "this needs the token of a machine's present boot")
			}
		case scopeOperator:
			if !s.opens(c, s.OperatorToken) {
				return echo.NewHTTPError(http.StatusUnauthorized, "this needs the operator's token: recast login URL")
			}
		case scopeMetrics:
			if !s.opens(c, s.MetricsToken) && !s.opens(c, s.OperatorToken) {
				return echo.NewHTTPError(http.StatusUnauthorized, "this needs the token in metrics.token of the server's data folder, or the operator's")
			}
		default:
			return echo.NewHTTPError(http.StatusForbidden, "nobody may call this")
		}
		if r.scope == scopeAgent || r.scope == scopeKnock {
			s.log().Debug("agent", "path", r.path, "remote", remote(c.Request()), "trace", printable(c.Request().Header.Get(inventory.TraceHeader)))
		}
		unescapeParams(c)
		if !r.stream {
			c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, bodyLimit[r.scope])
			hurry(c.Response(), c.Request())
		}
		if r.waits {
			ctx, cancel := context.WithCancel(c.Request().Context())
			defer cancel()
			go func() {
				select {
				case <-s.Stopping:
					cancel()
				case <-ctx.Done():
				}
			}()
			c.SetRequest(c.Request().WithContext(ctx))
		}
		return r.handle(c)
	}
}

// opens tells whether a request bears a token; one that is not set opens nothing.
func (s *Server) opens(c echo.Context, token string) bool {
	return token != "" && subtle.ConstantTimeCompare([]byte(bearer(c)), []byte(token)) == 1
}

// bodyTime is how long a request's body may take. It ends with the body: a long
// poll behind it is not cut short.
const bodyTime = 30 * time.Second

// hurry keeps a body that trickles from holding a connection for ever. The server
// lifts the deadline itself where it begins to listen behind the body.
func hurry(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		// A writer without deadlines is no connection.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	}
}

// panicError is a panic of one request; its stack is for the log.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// recoverPanic turns a panic of one request into its error. echo's own
// middleware package brings a rate limiter's module with it.
func recoverPanic(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if r := recover(); r != nil {
				if r == http.ErrAbortHandler {
					panic(r)
				}
				err = &panicError{r, debug.Stack()}
			}
		}()
		return next(c)
	}
}

// printable is what a stranger's word may be in a log: short, and one word.
func printable(word string) string {
	for i := range len(word) {
		if ch := word[i]; i >= 64 || ch <= ' ' || ch > '~' {
			return word[:i] + "…"
		}
	}
	return word
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func bearer(c echo.Context) string {
	token, ok := strings.CutPrefix(c.Request().Header.Get(echo.HeaderAuthorization), "Bearer ")
	if !ok {
		return ""
	}
	return token
}

// read decodes a JSON body and refuses unknown fields.
func read[T any](c echo.Context) (T, error) {
	var v T
	return v, refuse(http.StatusBadRequest, decodeJSON(c.Request().Body, &v))
}

// decodeJSON refuses unknown fields and a second document.
func decodeJSON(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the body is empty")
		}
		return fmt.Errorf("decode request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode request: something follows the JSON document")
	}
	return nil
}

func reply(c echo.Context, out any, err error) error {
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.JSON(http.StatusOK, out)
}

func done(c echo.Context, err error) error {
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// The makers of route entries. ask reads a JSON body, calls f and answers with
// what it returns; tell answers with nothing; show has no body.

func ask[In, Out any](method, path string, s scope, doc string, f func(echo.Context, In) (Out, error)) route {
	var in In
	var out Out
	return route{method: method, path: path, scope: s, doc: doc, in: in, out: out, handle: func(c echo.Context) error {
		in, err := read[In](c)
		if err != nil {
			return err
		}
		out, err := f(c, in)
		return reply(c, out, err)
	}}
}

func tell[In any](method, path string, s scope, doc string, f func(echo.Context, In) error) route {
	var in In
	return route{method: method, path: path, scope: s, doc: doc, in: in, handle: func(c echo.Context) error {
		in, err := read[In](c)
		if err != nil {
			return err
		}
		return done(c, f(c, in))
	}}
}

func show[Out any](path string, s scope, doc string, f func(echo.Context) (Out, error)) route {
	var out Out
	return route{method: http.MethodGet, path: path, scope: s, doc: doc, out: out, handle: func(c echo.Context) error {
		out, err := f(c)
		return reply(c, out, err)
	}}
}

func act(method, path string, doc string, f func(echo.Context) error) route {
	return route{method: method, path: path, scope: scopeOperator, doc: doc, handle: func(c echo.Context) error { return done(c, f(c)) }}
}
