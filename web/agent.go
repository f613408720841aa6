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
		ask(http.MethodPost, "/agent/v1/claim", scopeKnock, "An armed machine redeems its claim nonce.",
			func(c echo.Context, in inventory.Claim) (inventory.ClaimReply, error) {
				return e.Claim(c.Request().Context(), in, remote(c.Request()))
			}),
		ask(http.MethodPost, "/agent/v1/discover", scopeKnock, "An undeclared machine's inventory.",
			func(c echo.Context, in discovery) (inventory.Order, error) {
				return e.Discover(c.Request().Context(), in.Token, in.Facts, remote(c.Request()))
			}),
		ask(http.MethodPost, "/agent/v1/tpm", scopeAgent, "The ramdisk tells of the machine's TPM, which enrols by answering a challenge.",
			func(c echo.Context, in inventory.TPMHello) (inventory.TPMReply, error) {
				return e.TPM(c.Request().Context(), bearer(c), in)
			}),
		ask(http.MethodPost, "/agent/v1/inventory", scopeAgent, "The ramdisk says what the machine is and gets its first order.",
			func(c echo.Context, in inventory.Facts) (inventory.Order, error) {
				return e.Inventory(c.Request().Context(), bearer(c), in)
			}),
		{method: http.MethodGet, path: "/agent/v1/order", scope: scopeAgent, doc: "Long poll for the next order.",
			out: inventory.Order{}, waits: true, handle: func(c echo.Context) error {
				out, err := e.Order(c.Request().Context(), bearer(c))
				return reply(c, out, err)
			}},
		ask(http.MethodPost, "/agent/v1/report", scopeAgent, "The ramdisk says how its job goes; the reply renews its lease.",
			func(c echo.Context, in inventory.Report) (inventory.ReportReply, error) {
				return e.Report(c.Request().Context(), bearer(c), in)
			}),
		{method: http.MethodGet, path: "/agent/v1/config", scope: scopeAgent, doc: "The config volume of the present job, secrets included.",
			answer: echo.MIMEOctetStream, handle: func(c echo.Context) error {
				out, err := e.ConfigVolume(c.Request().Context(), bearer(c))
				if err != nil {
					return err
				}
				c.Response().Header().Set("Cache-Control", "no-store")
				return c.Blob(http.StatusOK, echo.MIMEOctetStream, out)
			}},
		tell(http.MethodPost, "/agent/v1/booted", scopeAgent, "An installed system says which generation it runs.",
			func(c echo.Context, in inventory.BootReport) error {
				return e.Booted(c.Request().Context(), bearer(c), in)
			}),
	}
}
