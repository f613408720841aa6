package web

import (
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"

	"recast/inventory"
	"recast/provision"
)

// Bodies of the operator API about BMCs.
type (
	EnrolRequest struct {
		// Pin is the certificate that the BMC must show, instead of one accepted before.
		Pin inventory.Digest `json:"pin,omitempty"`
		// Defaults names the secret that lists default passwords, each to be tried once.
		Defaults string `json:"defaults,omitempty"`
	}
	RotateRequest struct {
		// User to log in as from then on; none: the present one.
		User string `json:"user,omitempty"`
	}
)

// bmcRoutes are about the BMC of one machine itself.
func (s *Server) bmcRoutes() []route {
	e := s.Engine
	const one = apiRoot + "/machines/:name/bmc"
	// has answers 404 for a machine that nobody knows, and 409 for one without a BMC.
	has := func(c echo.Context) error {
		v, ok := e.View(c.Param("name"))
		switch {
		case !ok:
			return refuse(http.StatusNotFound, e.NoMachine(c.Param("name")))
		case v.BMC == nil:
			return refuse(http.StatusConflict, errors.New("machine "+v.Name+" declares no bmc"))
		}
		return nil
	}
	return []route{
		ask(http.MethodPost, one+"/enrol", scopeOperator, "Pin its certificate, log in once, and see what it leaves open.",
			func(c echo.Context, in EnrolRequest) (provision.BMCView, error) {
				if err := has(c); err != nil {
					return provision.BMCView{}, err
				}
				v, err := e.EnrolBMC(c.Request().Context(), c.Param("name"), who(c), provision.EnrolOptions(in))
				return v, refuseBMC(err)
			}),
		ask(http.MethodPost, one+"/rotate", scopeOperator, "Give it a new password that nobody has seen.",
			func(c echo.Context, in RotateRequest) (provision.BMCView, error) {
				if err := has(c); err != nil {
					return provision.BMCView{}, err
				}
				v, err := e.RotateBMC(c.Request().Context(), c.Param("name"), who(c), in.User)
				return v, refuseBMC(err)
			}),
		act(http.MethodPost, one+"/reset", "Restart it; the machine does not notice.", func(c echo.Context) error {
			if err := has(c); err != nil {
				return err
			}
			return refuseBMC(e.ResetBMC(c.Request().Context(), c.Param("name"), who(c)))
		}),
		show(one+"/sensors", scopeOperator, "Readings of its sensors.", func(c echo.Context) (v provision.BMCSensorList, err error) {
			if err := has(c); err != nil {
				return v, err
			}
			v, err = e.BMCSensors(c.Request().Context(), c.Param("name"))
			v.Sensors = listed(v.Sensors)
			return v, refuseBMC(err)
		}),
		show(one+"/events", scopeOperator, "Its event log, oldest first, behind the query's cursor; a hundred at the most.", func(c echo.Context) (v provision.BMCEventList, err error) {
			if err := has(c); err != nil {
				return v, err
			}
			v, err = e.BMCEvents(c.Request().Context(), c.Param("name"), c.QueryParam("cursor"))
			v.Events = listed(v.Events)
			return v, refuseBMC(err)
		}),
		show(one+"/inventory", scopeOperator, "The hardware as it tells it.", func(c echo.Context) (v provision.BMCHardware, err error) {
			if err := has(c); err != nil {
				return v, err
			}
			v, err = e.BMCInventory(c.Request().Context(), c.Param("name"))
			return v, refuseBMC(err)
		}),
		{method: http.MethodGet, path: one + "/screenshot", scope: scopeOperator, doc: "What the machine's screen shows now.",
			answer: pngType, handle: func(c echo.Context) error {
				if err := has(c); err != nil {
					return err
				}
				image, err := e.BMCScreenshot(c.Request().Context(), c.Param("name"))
				if err != nil {
					return refuseBMC(err)
				}
				s.audit(c, c.Param("name"), "bmc screenshot") // there may be secrets on a screen
				c.Response().Header().Set("Cache-Control", "no-store")
				return c.Blob(http.StatusOK, pngType, image)
			}},
	}
}

const pngType = "image/png"

// refuseBMC tells the BMC's trouble from what the operator has to do first.
func refuseBMC(err error) error {
	if provision.IsBMCTrouble(err) {
		return refuse(http.StatusBadGateway, err)
	}
	return refuse(http.StatusConflict, err)
}
