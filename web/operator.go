package web

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"recast/console"
	"recast/inventory"
	"recast/provision"
)

// Bodies of the operator API.
type (
	VersionReply struct {
		Version string `json:"version"`
	}
	StatusReply struct {
		Version string `json:"version"`
		// Epoch is the random word of the store, renewed by a restore.
		Epoch string `json:"epoch"`
		// ReadOnly says why the store takes no writes; "" it does.
		ReadOnly string           `json:"readOnly,omitempty"`
		Frozen   provision.Freeze `json:"frozen,omitzero"`
		// Findings of the DHCP server, as another server on the segment.
		Findings []string `json:"findings,omitempty"`
		// Malformed is what machines, BMCs and clients sent since the server's start
		// and was not understood or refused, by reason.
		Malformed map[string]uint64 `json:"malformed,omitempty"`
		// Relayed counts the DHCP packets that came through relays since the server's start, by Network.
		Relayed map[string]uint64 `json:"relayed,omitempty"`
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
	WipeRequest struct {
		// Disk to erase, by its serial; by its WWN or path where it has none.
		Disk string `json:"disk"`
		// Quick zeroes only what makes a disk look used.
		Quick bool `json:"quick,omitempty"`
	}
	FreezeRequest struct {
		Reason string `json:"reason,omitempty"`
	}
	SecretRequest struct {
		Value string `json:"value"`
	}
)

const (
	apiRoot = "/api/v1"
	// whoHeader names the operator for the audit log; the token says what is allowed.
	whoHeader = "Recast-Who"
)

// who is the operator's own word with the address it came from. Control
// characters would let it write lines of its own into logs and tables.
func who(c echo.Context) string {
	name := c.Request().Header.Get(whoHeader)
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			name = ""
		}
	}
	if name == "" || len(name) > 64 {
		name = "operator"
	}
	return fmt.Sprintf("%s@%s", name, remote(c.Request()))
}

func (s *Server) operatorRoutes() []route {
	e := s.Engine
	routes := []route{
		show(apiRoot+"/version", scopeOpen, "What answers here.",
			func(echo.Context) (VersionReply, error) { return VersionReply{s.Version}, nil }),
		{method: http.MethodGet, path: apiRoot + "/openapi.json", scope: scopeOpen, doc: "This API, as OpenAPI 3.1.",
			answer: echo.MIMEApplicationJSON, handle: s.openAPI},
		{method: http.MethodGet, path: "/metrics", scope: scopeMetrics, doc: "Counts and latencies in Prometheus' text format, never per machine.",
			answer: "text/plain", handle: s.metrics},
		show(apiRoot+"/status", scopeOperator, "How the server does.",
			func(echo.Context) (StatusReply, error) { return s.status(), nil }),

		ask(http.MethodPost, apiRoot+"/plan", scopeOperator, "Compare files with what is; changes nothing.",
			func(c echo.Context, in PlanRequest) (provision.Plan, error) {
				p, err := e.Plan(c.Request().Context(), in.Files, in.Erase)
				return p, refuse(http.StatusUnprocessableEntity, err)
			}),
		ask(http.MethodPost, apiRoot+"/apply", scopeOperator, "Make a plan's candidate the truth.",
			func(c echo.Context, in ApplyRequest) (provision.Plan, error) {
				p, err := e.Apply(c.Request().Context(), in.Plan, who(c))
				return p, refuse(http.StatusConflict, err)
			}),
		ask(http.MethodPost, apiRoot+"/rollback", scopeOperator, "Plan a group's return to a kept generation.",
			func(c echo.Context, in RollbackRequest) (provision.Plan, error) {
				p, err := e.Rollback(c.Request().Context(), in.Group, in.To)
				return p, refuse(http.StatusUnprocessableEntity, err)
			}),
		tell(http.MethodPost, apiRoot+"/freeze", scopeOperator, "Start nothing any more.",
			func(c echo.Context, in FreezeRequest) error {
				return e.Freeze(c.Request().Context(), who(c), in.Reason)
			}),
		act(http.MethodPost, apiRoot+"/unfreeze", "Let rollouts go on.",
			func(c echo.Context) error { return e.Unfreeze(c.Request().Context(), who(c)) }),

		show(apiRoot+"/set", scopeOperator, "The declared objects in force.",
			func(echo.Context) (*inventory.Set, error) { return e.Set(), nil }),
		show(apiRoot+"/orphans", scopeOperator, "Machines that are known but declared no more.",
			func(echo.Context) ([]provision.View, error) { return listed(e.Orphans()), nil }),
		show(apiRoot+"/discovered", scopeOperator, "Undeclared machines, with the YAML that declares them.",
			func(echo.Context) ([]provision.Stray, error) { return listed(e.Discovered()), nil }),
		show(apiRoot+"/generations", scopeOperator, "Generations kept for rollback, newest first.",
			func(c echo.Context) ([]provision.GenerationInfo, error) { return e.Generations(c.Request().Context()) }),
		show(apiRoot+"/rollouts", scopeOperator, "Applied changes on their way.",
			func(echo.Context) ([]provision.Rollout, error) { return listed(e.Rollouts()), nil }),
		show(apiRoot+"/leases", scopeOperator, "Addresses in use.",
			func(echo.Context) ([]inventory.Lease, error) { return listed(e.Leases()), nil }),
		show(apiRoot+"/audit", scopeOperator, "Who did what, oldest first, and where the chain of hashes is broken.",
			func(c echo.Context) ([]provision.AuditEntry, error) {
				log, err := e.Audit(c.Request().Context())
				return listed(log), err
			}),

		show(apiRoot+"/secrets", scopeOperator, "Names and versions of secrets; never a value.",
			func(echo.Context) ([]provision.SecretInfo, error) { return listed(e.Secrets().List()), nil }),
		ask(http.MethodPut, apiRoot+"/secrets/:name", scopeOperator, "Store a new version of a secret.",
			func(c echo.Context, in SecretRequest) (provision.SecretInfo, error) {
				info, err := e.SetSecret(c.Request().Context(), c.Param("name"), []byte(in.Value), who(c))
				return info, refuse(http.StatusUnprocessableEntity, err)
			}),
		act(http.MethodDelete, apiRoot+"/secrets/:name", "Remove a secret.", func(c echo.Context) error {
			if _, ok := e.Secrets().Version(c.Param("name")); !ok {
				return refuse(http.StatusNotFound, fmt.Errorf("there is no secret %q; recast secret list lists them", c.Param("name")))
			}
			return refuse(http.StatusConflict, e.RemoveSecret(c.Request().Context(), c.Param("name"), who(c)))
		}),
	}
	return slices.Concat(routes, s.machineRoutes(), s.bmcRoutes(), s.imageRoutes(), s.loaderRoutes())
}

// listed makes an empty list of none: null is no list to a client.
func listed[T any](v []T) []T {
	if v == nil {
		return []T{}
	}
	return v
}

func (s *Server) machineRoutes() []route {
	e := s.Engine
	const one = apiRoot + "/machines/:name"
	// known answers 404 for a machine that nobody declared or knows.
	known := func(c echo.Context) (provision.View, error) {
		v, ok := e.View(c.Param("name"))
		if !ok {
			return v, refuse(http.StatusNotFound, e.NoMachine(c.Param("name")))
		}
		return v, nil
	}
	// verb is an operator's word on one machine, without a body. The engine's no
	// is about the state the machine is in.
	verb := func(name, doc string, f func(ctx context.Context, machine, who string) error) route {
		return act(http.MethodPost, one+"/"+name, doc, func(c echo.Context) error {
			if _, err := known(c); err != nil {
				return err
			}
			return refuse(http.StatusConflict, f(c.Request().Context(), c.Param("name"), who(c)))
		})
	}
	return []route{
		show(apiRoot+"/machines", scopeOperator, "Every declared machine.",
			func(echo.Context) ([]provision.View, error) { return listed(e.Views()), nil }),
		{method: http.MethodGet, path: apiRoot + "/watch", scope: scopeOperator, answer: "text/event-stream", waits: true, out: provision.View{},
			doc: "Server-sent events: first every machine, then each that changes.", handle: s.watch},
		show(one, scopeOperator, "One machine.", known),
		show(one+"/explain", scopeOperator, "The first missing step and the cure.",
			func(c echo.Context) (provision.Explanation, error) {
				if _, err := known(c); err != nil {
					return provision.Explanation{}, err
				}
				x, err := e.Explain(c.Request().Context(), c.Param("name"))
				if err == nil && x.Missing != "" {
					x.Console = s.consoleLines(x.Machine)
				}
				return x, err
			}),
		{method: http.MethodGet, path: one + "/capture", scope: scopeOperator, answer: pcapType, waits: true,
			doc: "Its boot packets as a pcap file, for the duration of the query's for.", handle: s.capture},
		{method: http.MethodGet, path: one + "/console", scope: scopeOperator, answer: "text/event-stream", waits: true, out: console.State{},
			doc: "Its serial console as server-sent events: output (JSON text of base64), beginning with the last bytes kept (the query's tail; 4096), and state. evict=true puts out, once, whoever has it at the BMC.", handle: s.console},
		tell(http.MethodPost, one+"/console", scopeOperator, "Type to its console, from a watcher's seat.", s.consoleType),
		{method: http.MethodGet, path: one + "/console/log", scope: scopeOperator, answer: echo.MIMEOctetStream,
			doc: "What was kept of its console: the last bytes, as many as the query's tail says, or all.", handle: s.consoleLog},
		verb("release", "End a hold.", e.Release),
		verb("repair", "Release what its gate holds, and let that write what differs, once.", e.Repair),
		verb("retry", "Give it another turn.", e.Retry),
		verb("abort", "Stop the attempt under way.", e.Abort),
		verb("inspect", "Netboot it and take its inventory.", e.Look),
		verb("trust", "Take what its TPM showed last for right: another boot chain, or another TPM.", e.Trust),
		verb("adopt", "Netboot it and believe what its disk says.", e.Adopt),
		tell(http.MethodPost, one+"/hold", scopeOperator, "Keep recast's hands off.",
			func(c echo.Context, in HoldRequest) error {
				if _, err := known(c); err != nil {
					return err
				}
				if in.For < 0 {
					return refuse(http.StatusBadRequest, fmt.Errorf("hold %s for %s: want more than 0; 0 is until it is released", c.Param("name"), in.For))
				}
				return refuse(http.StatusConflict, e.Hold(c.Request().Context(), c.Param("name"), who(c), in.Reason, time.Duration(in.For)))
			}),
		ask(http.MethodPost, one+"/wipe", scopeOperator, "Netboot it and erase one disk; the answer is that disk.",
			func(c echo.Context, in WipeRequest) (inventory.DiskFacts, error) {
				if _, err := known(c); err != nil {
					return inventory.DiskFacts{}, err
				}
				d, err := e.Wipe(c.Request().Context(), c.Param("name"), who(c), in.Disk, in.Quick)
				return d, refuse(http.StatusConflict, err)
			}),
		ask(http.MethodPost, one+"/power", scopeOperator, "Read or change its power.",
			func(c echo.Context, in PowerRequest) (PowerReply, error) {
				v, err := known(c)
				if err != nil {
					return PowerReply{}, err
				}
				switch in.Verb {
				case "status", "on", "off", "cycle":
				default:
					return PowerReply{}, refuse(http.StatusBadRequest, fmt.Errorf("power %q: want status, on, off or cycle", in.Verb))
				}
				if in.Verb != "status" && provision.Busy(v.Status.Phase) {
					return PowerReply{}, refuse(http.StatusConflict, fmt.Errorf("power %s: an attempt is under way (%s); recast abort %s stops it", v.Name, v.Status.Step, v.Name))
				}
				if v.Machine == nil || v.Machine.BMC == nil {
					return PowerReply{}, refuse(http.StatusConflict, fmt.Errorf("power %s: it has no BMC: a person has to press its button", v.Name))
				}
				p, err := e.Power(c.Request().Context(), c.Param("name"), who(c), in.Verb, in.Soft)
				return PowerReply{p}, refuse(http.StatusBadGateway, err)
			}),
	}
}

// metrics are written whole before their first byte leaves.
func (s *Server) metrics(c echo.Context) error {
	if s.Metrics == nil {
		return echo.NewHTTPError(http.StatusNotFound, "no metrics are counted here")
	}
	var b bytes.Buffer
	if err := s.Metrics(&b, s.status()); err != nil {
		return err
	}
	return c.Blob(http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", b.Bytes())
}

func (s *Server) status() StatusReply {
	v := StatusReply{Version: s.Version, Epoch: s.Engine.Store.Epoch(), Frozen: s.Engine.Frozen()}
	if err := s.Engine.Store.Writable(); err != nil {
		v.ReadOnly = err.Error()
	}
	if s.Findings != nil {
		v.Findings = s.Findings()
	}
	v.Malformed = s.refused.counts()
	if s.Malformed != nil {
		if v.Malformed == nil {
			v.Malformed = map[string]uint64{}
		}
		maps.Copy(v.Malformed, s.Malformed())
	}
	if s.Relayed != nil {
		v.Relayed = s.Relayed()
	}
	return v
}
