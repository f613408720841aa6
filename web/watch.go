package web

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"recast/provision"
)

// watchAlive is how often a quiet stream says that it stands, so that a reader
// can tell silence from a dead connection.
const watchAlive = 15 * time.Second

// watch sends a machine's view whenever it changes; first all of them, then an
// event "synced".
func (s *Server) watch(c echo.Context) error {
	ctx := c.Request().Context()
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	changes := s.Engine.Watch(ctx) // before the first look, so that nothing falls between
	send := func(v provision.View) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "event: machine\ndata: %s\n\n", raw)
		return err
	}
	all := func() error {
		for _, v := range s.Engine.Views() {
			if err := send(v); err != nil {
				return err
			}
		}
		_, err := io.WriteString(w, "event: synced\ndata: {}\n\n")
		return err
	}
	if all() != nil {
		return nil // the reader is gone
	}
	w.Flush()
	alive := time.NewTicker(watchAlive)
	defer alive.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-alive.C:
			_, err = io.WriteString(w, ": alive\n\n")
		case name, open := <-changes:
			if !open {
				return nil
			}
			if name == provision.AllMachines {
				err = all()
			} else if v, ok := s.Engine.View(name); ok {
				err = send(v)
			}
		}
		if err != nil {
			return nil
		}
		w.Flush()
	}
}
