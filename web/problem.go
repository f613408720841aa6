package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"syscall"

	"github.com/labstack/echo/v4"

	"recast/image"
	"recast/inventory"
	"recast/provision"
)

// Problem is an error as RFC 9457 wants it.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail is one line: what, where, and what to do next.
	Detail string `json:"detail,omitempty"`
	// Problems are all reasons why files were refused.
	Problems []inventory.Problem `json:"problems,omitempty"`
}

// statusError is an error that knows its status.
type statusError struct {
	code int
	err  error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// refuse says that an error is the request's, not the server's. The store's
// being away, an outdated plan and the like keep the status of their own.
func refuse(code int, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{code, err}
}

// statusOf an error. What the server cannot help now comes before whose fault
// it is; what nobody foresaw is ours.
func statusOf(err error) int {
	var he *echo.HTTPError
	var refused *provision.RefusedError
	var tooBig *http.MaxBytesError
	var status *statusError
	_, isFiles := inventory.ProblemsOf(err)
	switch {
	case errors.As(err, &he):
		return he.Code
	case errors.As(err, &tooBig):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return http.StatusInsufficientStorage
	case errors.Is(err, provision.ErrUnavailable), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	case errors.As(err, &refused):
		return http.StatusForbidden
	case isFiles:
		return http.StatusUnprocessableEntity
	case errors.Is(err, provision.ErrPlanMoved), errors.Is(err, provision.ErrInUse):
		return http.StatusConflict
	case errors.Is(err, image.ErrNotFound):
		return http.StatusNotFound
	case errors.As(err, &status):
		return status.code
	}
	return http.StatusInternalServerError
}

// problemOf an error, in words that say what to do.
func problemOf(err error) Problem {
	p := Problem{Status: statusOf(err), Detail: err.Error()}
	p.Title = http.StatusText(p.Status)
	var he *echo.HTTPError
	if errors.As(err, &he) {
		if text, ok := he.Message.(string); ok {
			p.Detail = text
		}
		if he.Code == http.StatusNotFound && p.Detail == p.Title {
			p.Detail = "there is no such route; " + apiRoot + "/openapi.json lists them"
		}
	}
	if problems, ok := inventory.ProblemsOf(err); ok {
		p.Problems, p.Detail = problems, "the files are refused; what was applied stays in force"
	}
	var panicked *panicError
	if errors.As(err, &panicked) {
		p.Detail = "the server met an error of its own; its log has the rest"
	}
	p.Detail = strings.Join(strings.FieldsFunc(p.Detail, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return p
}

// problem answers with the error.
func (s *Server) problem(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	p := problemOf(err)
	s.refused.status(frontOf(c.Request().URL.Path), p.Status)
	if p.Status >= 500 && s.Log != nil {
		s.Log.Warn("request failed", "method", c.Request().Method, "path", c.Path(), "status", p.Status, "err", err)
	}
	h := c.Response().Header()
	h.Set(echo.HeaderContentType, "application/problem+json")
	h.Set("Cache-Control", "no-store")
	_ = c.JSON(p.Status, p)
}
