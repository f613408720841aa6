package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"recast/console"
	"recast/provision"
)

// ConsoleInput is what a watcher types.
type ConsoleInput struct {
	Seat string `json:"seat"` // as the event "state" names it
	Text []byte `json:"text,omitempty"`
	// Break sends one, after the text.
	Break bool `json:"break,omitempty"`
	// Take takes the keyboard from whoever has it, before the text.
	Take bool `json:"take,omitempty"`
}

// consoleTail is what of the scrollback a watcher gets first, where it does not say.
const consoleTail = 4 << 10

// consoleOf is a machine that has a console, or why there is none.
func (s *Server) consoleOf(c echo.Context) (provision.View, error) {
	v, ok := s.Engine.View(c.Param("name"))
	switch {
	case !ok:
		return v, refuse(http.StatusNotFound, s.Engine.NoMachine(c.Param("name")))
	case s.Consoles == nil:
		return v, refuse(http.StatusNotFound, fmt.Errorf("console %s: this server keeps none", v.Name))
	}
	return v, nil
}

// console streams what a machine says, to one watcher of many.
func (s *Server) console(c echo.Context) error {
	v, err := s.consoleOf(c)
	if err != nil {
		return err
	}
	if v.Machine == nil || v.Machine.BMC == nil {
		return refuse(http.StatusConflict, fmt.Errorf("console %s: it has no BMC; recast console --log shows what was kept", v.Name))
	}
	tail, err := tailOf(c, consoleTail)
	if err != nil {
		return err
	}
	evict := c.QueryParam("evict") == "true"
	if evict {
		s.audit(c, v.Name, "console: put out who has it at the BMC")
	}
	seat, err := s.Consoles.Watch(v.Name, who(c), tail, evict)
	if err != nil {
		return refuse(http.StatusServiceUnavailable, err)
	}
	defer seat.Leave()
	ctx, cancel := context.WithCancel(c.Request().Context())
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	news := make(chan consoleNews)
	go func() {
		defer close(news)
		for {
			text, st, err := seat.Next(ctx)
			if err != nil {
				return
			}
			select {
			case news <- consoleNews{text, st}:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		for range news { // until it has ended
		}
	}()
	tick := time.NewTicker(watchAlive)
	defer tick.Stop()
	for {
		select {
		case n, open := <-news:
			if !open {
				return nil
			}
			err = n.write(w)
		case <-tick.C:
			_, err = io.WriteString(w, ": alive\n\n")
		}
		if err != nil {
			return nil // the reader is gone
		}
		w.Flush()
	}
}

type consoleNews struct {
	text  []byte
	state *console.State
}

func (n consoleNews) write(w io.Writer) error {
	if n.state != nil {
		raw, err := json.Marshal(n.state)
		if err == nil {
			_, err = fmt.Fprintf(w, "event: state\ndata: %s\n\n", raw)
		}
		if err != nil {
			return err
		}
	}
	if len(n.text) == 0 {
		return nil
	}
	raw, err := json.Marshal(n.text)
	if err == nil {
		_, err = fmt.Fprintf(w, "event: output\ndata: %s\n\n", raw)
	}
	return err
}

// tailOf reads how much of the scrollback is asked for.
func tailOf(c echo.Context, usual int64) (int64, error) {
	text := c.QueryParam("tail")
	if text == "" {
		return usual, nil
	}
	n, err := strconv.ParseUint(text, 10, 40)
	if err != nil {
		return 0, refuse(http.StatusBadRequest, fmt.Errorf("console tail %q: want a number of bytes", text))
	}
	return int64(n), nil
}

// consoleLog is what was kept of a machine's console.
func (s *Server) consoleLog(c echo.Context) error {
	v, err := s.consoleOf(c)
	if err != nil {
		return err
	}
	tail, err := tailOf(c, 1<<40)
	if err != nil {
		return err
	}
	text, err := s.Consoles.Tail(v.Name, tail)
	if err != nil {
		return refuse(http.StatusServiceUnavailable, err)
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.Blob(http.StatusOK, echo.MIMEOctetStream, text)
}

// explainLines is how many lines of a console are quoted beside a reason.
const explainLines = 5

// consoleLines are the last lines of a machine's console; none where nothing is kept.
func (s *Server) consoleLines(machine string) []string {
	if s.Consoles == nil {
		return nil
	}
	text, err := s.Consoles.Tail(machine, consoleTail)
	if err != nil {
		return nil // what is missing is known without
	}
	return console.Lines(text, explainLines)
}

// consoleType is what a watcher types.
func (s *Server) consoleType(c echo.Context, in ConsoleInput) error {
	v, err := s.consoleOf(c)
	if err != nil {
		return err
	}
	seat, ok := s.Consoles.Seat(v.Name, in.Seat)
	if !ok {
		return refuse(http.StatusConflict, fmt.Errorf("console %s: nobody watches from that seat; a stream of it says which it is", v.Name))
	}
	if in.Take {
		if from := seat.Take(); from != "" {
			s.audit(c, v.Name, "console: keyboard taken from "+from)
		} else {
			s.audit(c, v.Name, "console: keyboard taken")
		}
	}
	if len(in.Text) == 0 && !in.Break {
		return nil
	}
	taken, err := seat.Type(in.Text, in.Break)
	if taken {
		s.audit(c, v.Name, "console: keyboard taken")
	}
	if in.Break && err == nil {
		s.audit(c, v.Name, "console: break sent")
	}
	switch {
	case errors.Is(err, console.ErrKeyboard):
		return refuse(http.StatusConflict, err)
	case err != nil:
		return refuse(http.StatusBadGateway, fmt.Errorf("console %s: %w", v.Name, err))
	}
	return nil
}

// audit notes an operator's deed that stands even where it cannot be noted.
func (s *Server) audit(c echo.Context, machine, what string) {
	if err := s.Engine.Record(c.Request().Context(), provision.AuditEntry{Who: who(c), What: what, Machine: machine}); err != nil {
		s.log().Warn("not audited", "machine", machine, "what", what, "who", who(c), "err", err)
	}
}
