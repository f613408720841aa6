package web

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"recast/inventory"
)

// discovery is what an undeclared machine may say; the token came in its boot script.
type discovery struct {
	Token string          `json:"token"`
	Facts inventory.Facts `json:"facts"`
}

func (s *Server) agentRoutes() []route {
	e := s.Engine
	return []route{
		{http.MethodPost, "/agent/v1/claim", scopeAgent, "An armed machine redeems its claim nonce.",
			inventory.Claim{}, inventory.ClaimReply{}, func(c echo.Context) error {
				in, err := read[inventory.Claim](c)
				if err != nil {
					return err
				}
				out, err := e.Claim(c.Request().Context(), in, remote(c.Request()))
				return reply(c, out, err)
			}},
		{http.MethodPost, "/agent/v1/inventory", scopeAgent, "The ramdisk says what the machine is and gets its first order.",
			inventory.Facts{}, inventory.Order{}, func(c echo.Context) error {
				in, err := read[inventory.Facts](c)
				if err != nil {
					return err
				}
				out, err := e.Inventory(c.Request().Context(), bearer(c), in)
				return reply(c, out, err)
			}},
		{http.MethodGet, "/agent/v1/order", scopeAgent, "Long poll for the next order.",
			nil, inventory.Order{}, func(c echo.Context) error {
				out, err := e.Order(c.Request().Context(), bearer(c))
				return reply(c, out, err)
			}},
		{http.MethodPost, "/agent/v1/report", scopeAgent, "The ramdisk says how its job goes; the reply renews its lease.",
			inventory.Report{}, inventory.ReportReply{}, func(c echo.Context) error {
				in, err := read[inventory.Report](c)
				if err != nil {
					return err
				}
				out, err := e.Report(c.Request().Context(), bearer(c), in)
				return reply(c, out, err)
			}},
		{http.MethodGet, "/agent/v1/config", scopeAgent, "The config volume of the present job, secrets included.",
			nil, nil, func(c echo.Context) error {
				out, err := e.ConfigVolume(c.Request().Context(), bearer(c))
				if err != nil {
					return err
				}
				c.Response().Header().Set("Cache-Control", "no-store")
				return c.Blob(http.StatusOK, echo.MIMEOctetStream, out)
			}},
		{http.MethodPost, "/agent/v1/booted", scopeAgent, "An installed system says which generation it runs.",
			inventory.BootReport{}, nil, func(c echo.Context) error {
				in, err := read[inventory.BootReport](c)
				if err != nil {
					return err
				}
				return done(c, e.Booted(c.Request().Context(), bearer(c), in))
			}},
		{http.MethodPost, "/agent/v1/discover", scopeAgent, "An undeclared machine's inventory.",
			discovery{}, inventory.Order{}, func(c echo.Context) error {
				in, err := read[discovery](c)
				if err != nil {
					return err
				}
				out, err := e.Discover(c.Request().Context(), in.Token, in.Facts, remote(c.Request()))
				return reply(c, out, err)
			}},
	}
}

func reply(c echo.Context, out any, err error) error {
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, out)
}

func done(c echo.Context, err error) error {
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
