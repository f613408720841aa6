package web

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
)

func (s *Server) loaderRoutes() []route {
	return []route{
		show(apiRoot+"/loaders", scopeOperator, "Loaders that were imported.",
			func(echo.Context) ([]ipxe.Imported, error) { return listed(s.Scripts.Library.List()), nil }),
		{method: http.MethodPost, path: apiRoot + "/loaders", scope: scopeOperator,
			doc: "Import a loader: the body's bytes, with ?sha256= (which they must have), ?name=, ?beside= and ?origin=.",
			out: ipxe.Imported{}, handle: s.importLoader},
		act(http.MethodDelete, apiRoot+"/loaders/:digest", "Remove an imported loader.", s.removeLoader),
	}
}

func (s *Server) importLoader(c echo.Context) error {
	x := ipxe.Imported{Name: c.QueryParam("name"), Origin: oneLine(c.QueryParam("origin")), By: who(c), Added: time.Now().UTC()}
	var err error
	if x.Digest, err = inventory.ParseDigest(c.QueryParam("sha256")); err != nil {
		return refuse(http.StatusBadRequest, fmt.Errorf("sha256: %w", err))
	}
	if q := c.QueryParam("beside"); q != "" {
		if x.Beside, err = inventory.ParseDigest(q); err != nil {
			return refuse(http.StatusBadRequest, fmt.Errorf("beside: %w", err))
		}
	}
	b, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return refuse(http.StatusBadRequest, fmt.Errorf("read the loader: %w", err))
	}
	library := s.Scripts.Library
	if x, err = library.Check(b, x); err != nil {
		return refuse(http.StatusUnprocessableEntity, err)
	}
	if err := s.Engine.Record(c.Request().Context(), provision.AuditEntry{Who: x.By, What: "loader imported",
		Detail: fmt.Sprintf("%s, %s %s for %s, sha256:%s", x.Path(), x.Binary.Kind, x.Binary.Version, x.Binary.Arch, x.Digest.Hex())}); err != nil {
		return err
	}
	return reply(c, x, library.Import(b, x))
}

func (s *Server) removeLoader(c echo.Context) error {
	d, err := inventory.ParseDigest(c.Param("digest"))
	if err != nil {
		return refuse(http.StatusBadRequest, err)
	}
	if _, ok := s.Scripts.Library.Get(d); !ok {
		return refuse(http.StatusNotFound, fmt.Errorf("there is no loader %s; recast loader list shows them", d.Short()))
	}
	for _, m := range s.Engine.Set().Machines {
		if used, ok := m.Boot.LoaderDigest(); ok && used == d {
			return refuse(http.StatusConflict, fmt.Errorf("machine %q boots by loader %s: declare another for it and apply", m.Name, d.Short()))
		}
	}
	if err := s.Engine.Record(c.Request().Context(), provision.AuditEntry{Who: who(c), What: "loader removed", Detail: d.String()}); err != nil {
		return err
	}
	return refuse(http.StatusConflict, s.Scripts.Library.Remove(d))
}

// oneLine keeps an operator's words fit for tables and logs.
func oneLine(s string) string {
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return ""
		}
	}
	return s[:min(len(s), 256)]
}
