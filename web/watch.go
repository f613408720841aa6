package web

import (
	"encoding/json"
	"errors"
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

// watchRest bounds the pause between two looks.
const watchRest = 5 * time.Second

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
		var began time.Time
		select {
		case <-ctx.Done():
			return nil
		case <-alive.C:
			began = time.Now()
			_, err = io.WriteString(w, ": alive\n\n")
		case name, open := <-changes:
			if !open {
				return nil
			}
			began = time.Now()
			names := map[string]bool{name: true}
			for len(changes) > 0 {
				names[<-changes] = true // "" where it was closed just now
			}
			if names[provision.AllMachines] {
				err = all()
				break
			}
			for name := range names {
				if v, ok := s.Engine.View(name); ok {
					err = errors.Join(err, send(v))
				}
			}
		}
		if err != nil {
			return nil
		}
		w.Flush()
		// When a room comes back everything changes all the time: most of it is left to
		// the machines, and who looks sees each of them less often.
		rest := time.NewTimer(min(4*time.Since(began), watchRest))
		select {
		case <-ctx.Done():
			rest.Stop()
			return nil
		case <-rest.C:
		}
	}
}
