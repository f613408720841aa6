package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"recast/inventory"
	"recast/provision"
)

// longestCapture and mostCaptures bound what captures cost the server.
const (
	longestCapture = time.Hour
	mostCaptures   = 4
)

// capture streams a machine's packets as a pcap file.
func (s *Server) capture(c echo.Context) error {
	v, ok := s.Engine.View(c.Param("name"))
	switch {
	case !ok:
		return refuse(http.StatusNotFound, s.Engine.NoMachine(c.Param("name")))
	case v.Machine == nil:
		return refuse(http.StatusConflict, fmt.Errorf("capture %s: it is not declared any more, so that its hardware address is not known", v.Name))
	case s.Capture == nil:
		return refuse(http.StatusNotFound, fmt.Errorf("capture %s: this server captures nothing", v.Name))
	}
	span := time.Minute
	if text := c.QueryParam("for"); text != "" {
		var err error
		if span, err = time.ParseDuration(text); err != nil || span <= 0 || span > longestCapture {
			return refuse(http.StatusBadRequest, fmt.Errorf("capture for %q: want a duration up to %s, such as 60s", text, longestCapture))
		}
	}
	if s.captures.Add(1) > mostCaptures {
		s.captures.Add(-1)
		return refuse(http.StatusConflict, fmt.Errorf("capture %s: %d captures are under way already; wait for one to end", v.Name, mostCaptures))
	}
	defer s.captures.Add(-1)
	// A store that takes no writes is a time when people look closely.
	if err := s.Engine.Record(c.Request().Context(), provision.AuditEntry{Who: who(c), What: "capture", Machine: v.Name, Detail: span.String()}); err != nil && s.Log != nil {
		s.Log.Warn("capture not audited", "machine", v.Name, "who", who(c), "err", err)
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), span)
	defer cancel()
	w := &pcapAnswer{Response: c.Response()}
	err := s.Capture(ctx, v.Machine, w)
	if err != nil && !c.Response().Committed {
		return refuse(http.StatusConflict, fmt.Errorf("capture %s: %w", v.Name, err))
	}
	return nil // what was written stands; the reader may be gone
}

const pcapType = "application/vnd.tcpdump.pcap"

// pcapAnswer sends each packet at once, and its head with the first bytes: before
// them an error can still be told.
type pcapAnswer struct{ *echo.Response }

func (a *pcapAnswer) Write(p []byte) (int, error) {
	if !a.Committed {
		a.Header().Set(echo.HeaderContentType, pcapType)
		a.Header().Set("Cache-Control", "no-store")
		a.WriteHeader(http.StatusOK)
	}
	n, err := a.Response.Write(p)
	a.Flush()
	return n, err
}

// Capturer writes a machine's packets as a pcap file until the context ends.
type Capturer func(context.Context, *inventory.Machine, io.Writer) error
