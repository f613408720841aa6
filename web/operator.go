package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"recast/image"
	"recast/inventory"
	"recast/provision"
)

// Bodies of the operator API.
type (
	VersionReply struct {
		Version string `json:"version"`
		Epoch   string `json:"epoch"`
		// ReadOnly says why the store takes no writes; "" it does.
		ReadOnly string           `json:"readOnly,omitempty"`
		Frozen   provision.Freeze `json:"frozen,omitzero"`
	}
	PlanRequest struct {
		Files []inventory.File `json:"files"`
		Erase []string         `json:"erase,omitempty"`
	}
	ApplyRequest struct {
		Plan inventory.Digest `json:"plan"`
	}
	RollbackRequest struct {
		Group string           `json:"group"`
		To    inventory.Digest `json:"to,omitempty"`
	}
	HoldRequest struct {
		Reason string             `json:"reason"`
		For    inventory.Duration `json:"for,omitempty"`
	}
	PowerRequest struct {
		Verb string `json:"verb"` // status, on, off, cycle
		Soft bool   `json:"soft,omitempty"`
	}
	PowerReply struct {
		Power string `json:"power"`
	}
	FreezeRequest struct {
		Reason string `json:"reason,omitempty"`
	}
	SecretRequest struct {
		Value string `json:"value"`
	}
	ImageSource struct {
		Source string           `json:"source"`
		Digest inventory.Digest `json:"digest,omitempty"`
	}
)

const (
	apiRoot     = "/api/v1"
	imagesRoute = apiRoot + "/images"
	// whoHeader names the operator for the audit log; the token says what is allowed.
	whoHeader = "Recast-Who"
)

func who(c echo.Context) string {
	name := c.Request().Header.Get(whoHeader)
	if name == "" || len(name) > 64 {
		name = "operator"
	}
	return fmt.Sprintf("%s@%s", name, remote(c.Request()))
}

func (s *Server) operatorRoutes() []route {
	e := s.Engine
	get := func(path, doc string, out any, f func(c echo.Context) (any, error)) route {
		return route{http.MethodGet, apiRoot + path, scopeOperator, doc, nil, out, func(c echo.Context) error {
			v, err := f(c)
			return reply(c, v, err)
		}}
	}
	// verb is an operator's word on one machine, without a body.
	verb := func(name, doc string, f func(c echo.Context, machine string) error) route {
		return route{http.MethodPost, apiRoot + "/machines/:name/" + name, scopeOperator, doc, nil, nil,
			func(c echo.Context) error { return done(c, f(c, c.Param("name"))) }}
	}
	routes := []route{
		{http.MethodGet, apiRoot + "/version", scopeOpen, "What answers here.", nil, VersionReply{}, s.version},
		{http.MethodGet, apiRoot + "/openapi.json", scopeOpen, "This API, as OpenAPI 3.1.", nil, nil, s.openAPI},
		{http.MethodPost, apiRoot + "/plan", scopeOperator, "Compare files with what is; changes nothing.",
			PlanRequest{}, provision.Plan{}, func(c echo.Context) error {
				in, err := read[PlanRequest](c)
				if err != nil {
					return err
				}
				p, err := e.Plan(c.Request().Context(), in.Files, in.Erase)
				return reply(c, p, err)
			}},
		{http.MethodPost, apiRoot + "/apply", scopeOperator, "Make a plan's candidate the truth.",
			ApplyRequest{}, provision.Plan{}, func(c echo.Context) error {
				in, err := read[ApplyRequest](c)
				if err != nil {
					return err
				}
				p, err := e.Apply(c.Request().Context(), in.Plan, who(c))
				return reply(c, p, err)
			}},
		{http.MethodPost, apiRoot + "/rollback", scopeOperator, "Plan a group's return to a kept generation.",
			RollbackRequest{}, provision.Plan{}, func(c echo.Context) error {
				in, err := read[RollbackRequest](c)
				if err != nil {
					return err
				}
				p, err := e.Rollback(c.Request().Context(), in.Group, in.To)
				return reply(c, p, err)
			}},
		get("/machines", "Every declared machine.", []provision.View{}, func(echo.Context) (any, error) { return e.Views(), nil }),
		get("/machines/:name", "One machine.", provision.View{}, func(c echo.Context) (any, error) {
			v, ok := e.View(c.Param("name"))
			if !ok {
				return nil, fmt.Errorf("machine %q: %w; recast get machines lists them", c.Param("name"), errNotFound)
			}
			return v, nil
		}),
		get("/machines/:name/explain", "The first missing step and the cure.", provision.Explanation{}, func(c echo.Context) (any, error) {
			x, err := e.Explain(c.Param("name"))
			if err != nil {
				err = errors.Join(errNotFound, err)
			}
			return x, err
		}),
		get("/orphans", "Machines that are known but declared no more.", []provision.View{}, func(echo.Context) (any, error) { return e.Orphans(), nil }),
		get("/discovered", "Undeclared machines, with the YAML that declares them.", []provision.Stray{}, func(echo.Context) (any, error) { return e.Discovered(), nil }),
		get("/set", "The declared objects in force.", inventory.Set{}, func(echo.Context) (any, error) { return e.Set(), nil }),
		get("/generations", "Generations kept for rollback, newest first.", []provision.GenerationInfo{}, func(c echo.Context) (any, error) {
			return e.Generations(c.Request().Context())
		}),
		get("/rollouts", "Applied changes on their way.", []provision.Rollout{}, func(echo.Context) (any, error) { return e.Rollouts(), nil }),
		get("/leases", "Addresses in use.", []inventory.Lease{}, func(echo.Context) (any, error) { return e.Leases(), nil }),
		get("/audit", "Who did what, oldest first.", []provision.AuditEntry{}, func(c echo.Context) (any, error) {
			return e.Audit(c.Request().Context())
		}),
		get("/secrets", "Names and versions of secrets; never a value.", []provision.SecretInfo{}, func(echo.Context) (any, error) {
			return e.Secrets().List(), nil
		}),
		get("/images", "Images here.", []image.Info{}, func(echo.Context) (any, error) { return s.Images.List(), nil }),
		{http.MethodGet, apiRoot + "/watch", scopeOperator, "Server-sent events: every change of a machine.", nil, provision.View{}, s.watch},
		verb("release", "End a hold.", func(c echo.Context, m string) error { return e.Release(c.Request().Context(), m, who(c)) }),
		verb("retry", "Give it another turn.", func(c echo.Context, m string) error { return e.Retry(c.Request().Context(), m, who(c)) }),
		verb("abort", "Stop the attempt under way.", func(c echo.Context, m string) error { return e.Abort(c.Request().Context(), m, who(c)) }),
		verb("inspect", "Netboot it and take its inventory.", func(c echo.Context, m string) error { return e.Look(c.Request().Context(), m, who(c)) }),
		verb("adopt", "Netboot it and believe what its disk says.", func(c echo.Context, m string) error { return e.Adopt(c.Request().Context(), m, who(c)) }),
		{http.MethodPost, apiRoot + "/machines/:name/hold", scopeOperator, "Keep recast's hands off.", HoldRequest{}, nil, func(c echo.Context) error {
			in, err := read[HoldRequest](c)
			if err != nil {
				return err
			}
			return done(c, e.Hold(c.Request().Context(), c.Param("name"), who(c), in.Reason, time.Duration(in.For)))
		}},
		{http.MethodPost, apiRoot + "/machines/:name/power", scopeOperator, "Read or change its power.", PowerRequest{}, PowerReply{}, func(c echo.Context) error {
			in, err := read[PowerRequest](c)
			if err != nil {
				return err
			}
			p, err := e.Power(c.Request().Context(), c.Param("name"), who(c), in.Verb, in.Soft)
			return reply(c, PowerReply{p}, err)
		}},
		{http.MethodPost, apiRoot + "/freeze", scopeOperator, "Start nothing any more.", FreezeRequest{}, nil, func(c echo.Context) error {
			in, err := read[FreezeRequest](c)
			if err != nil {
				return err
			}
			return done(c, e.Freeze(c.Request().Context(), who(c), in.Reason))
		}},
		{http.MethodPost, apiRoot + "/unfreeze", scopeOperator, "Let rollouts go on.", nil, nil, func(c echo.Context) error {
			return done(c, e.Unfreeze(c.Request().Context(), who(c)))
		}},
		{http.MethodPut, apiRoot + "/secrets/:name", scopeOperator, "Store a new version of a secret.", SecretRequest{}, provision.SecretInfo{}, func(c echo.Context) error {
			in, err := read[SecretRequest](c)
			if err != nil {
				return err
			}
			info, err := e.SetSecret(c.Request().Context(), c.Param("name"), []byte(in.Value), who(c))
			return reply(c, info, err)
		}},
		{http.MethodDelete, apiRoot + "/secrets/:name", scopeOperator, "Remove a secret.", nil, nil, func(c echo.Context) error {
			return done(c, e.Secrets().Remove(c.Request().Context(), c.Param("name")))
		}},
		{http.MethodPost, imagesRoute, scopeOperator, "Ingest an image: the body's bytes, or with Content-Type application/json an ImageSource.",
			ImageSource{}, image.Info{}, s.addImage},
		{http.MethodDelete, apiRoot + "/images/:digest", scopeOperator, "Remove an image that nothing refers to.", nil, nil, s.removeImage},
		{http.MethodPost, apiRoot + "/images/:digest/verify", scopeOperator, "Hash every byte of our copy.", nil, image.Info{}, s.verifyImage},
	}
	return routes
}

func (s *Server) version(c echo.Context) error {
	v := VersionReply{Version: s.Version, Epoch: s.Engine.Store.Epoch(), Frozen: s.Engine.Frozen()}
	if err := s.Engine.Store.Writable(); err != nil {
		v.ReadOnly = err.Error()
	}
	return c.JSON(http.StatusOK, v)
}

// addImage streams: the body may be larger than memory.
func (s *Server) addImage(c echo.Context) error {
	ctx := c.Request().Context()
	o := image.AddOptions{MaxSize: s.ImageMaxSize}
	if c.Request().Header.Get(echo.HeaderContentType) == echo.MIMEApplicationJSON {
		in, err := read[ImageSource](c)
		if err != nil {
			return err
		}
		o.Want = in.Digest
		info, err := s.Images.AddSource(ctx, in.Source, o)
		if err != nil {
			err = errors.Join(errBadRequest, err)
		}
		return reply(c, info, err)
	}
	q := c.QueryParam("digest")
	if q != "" {
		d, err := inventory.ParseDigest(q)
		if err != nil {
			return errors.Join(errBadRequest, err)
		}
		o.Want = d
	}
	o.Source = c.QueryParam("source")
	info, err := s.Images.Add(ctx, c.Request().Body, o)
	if err != nil {
		err = errors.Join(errBadRequest, err)
	}
	return reply(c, info, err)
}

func (s *Server) removeImage(c echo.Context) error {
	d, err := inventory.ParseDigest(c.Param("digest"))
	if err != nil {
		return errors.Join(errBadRequest, err)
	}
	if user := s.Engine.ImageUser(d); user != "" {
		return echo.NewHTTPError(http.StatusConflict, fmt.Sprintf("image %s is used by %s", d.Short(), user))
	}
	return done(c, s.Images.Remove(d))
}

func (s *Server) verifyImage(c echo.Context) error {
	d, err := inventory.ParseDigest(c.Param("digest"))
	if err != nil {
		return errors.Join(errBadRequest, err)
	}
	if err := s.Images.Verify(c.Request().Context(), d); err != nil && !errors.Is(err, image.ErrDamaged) {
		return err
	}
	info, err := s.Images.Info(d)
	return reply(c, info, err)
}

// watch sends a machine's view whenever it changes; first all of them.
func (s *Server) watch(c echo.Context) error {
	ctx := c.Request().Context()
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	changes := s.Engine.Watch(ctx)
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
		return nil
	}
	if err := all(); err != nil {
		return nil // the reader is gone
	}
	w.Flush()
	alive := time.NewTicker(15 * time.Second)
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

// decodeJSON refuses unknown fields and a second document.
func decodeJSON(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	if d.More() {
		return errors.New("decode request: more than one document")
	}
	return nil
}
