package web

import (
	"net/http"
	"strings"
	"testing"

	"recast/bmc"
)

func TestABMCIsReadAndLookedAfterThroughTheAPI(t *testing.T) {
	s := newSite(t)
	s.ok(t, "POST", apiRoot+"/freeze", FreezeRequest{Reason: "so that nothing starts"}, nil)
	s.declare(t, "")
	reading := 42.5
	s.bmc.Readings = []bmc.Sensor{{Name: "Inlet", Kind: "temperature", Reading: &reading, Unit: "°C", State: "ok"}}
	s.bmc.Told = bmc.Inventory{Identity: bmc.Identity{Serial: "SN1"}}
	const one = "/api/v1/machines/m1/bmc"
	for _, c := range []struct {
		method, path string
		body         any
		code         int
		says         string
	}{
		{http.MethodGet, one + "/sensors", nil, 200, `"reading":42.5`},
		{http.MethodGet, one + "/inventory", nil, 200, `"serial":"SN1"`},
		{http.MethodGet, one + "/screenshot", nil, 200, "\x89PNG of a screen"},
		{http.MethodGet, "/api/v1/audit", nil, 200, "bmc screenshot"},
		{http.MethodGet, one + "/events", nil, 200, `"events":[]`},
		{http.MethodGet, one + "/events?cursor=nonsense", nil, 409, "cursor"},
		{http.MethodPost, one + "/reset", nil, 204, ""},
		{http.MethodPost, one + "/rotate", RotateRequest{User: "no good"}, 409, "without blanks"},
		{http.MethodPost, one + "/rotate", RotateRequest{User: "recast"}, 200, `"user":"recast"`},
		{http.MethodPost, one + "/enrol", EnrolRequest{Defaults: "none"}, 409, "recast secret set none"},
		{http.MethodGet, "/api/v1/machines/m0/bmc/sensors", nil, 404, "there is no machine"},
	} {
		code, text, _ := s.send(t, c.method, c.path, operatorToken, c.body)
		if code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s %s: %d %s; want %d and %q", c.method, c.path, code, text, c.code, c.says)
		}
	}
	if s.bmc.Password("recast") == "" || s.bmc.Count("reset-bmc") != 1 {
		t.Errorf("%d resets", s.bmc.Count("reset-bmc"))
	}
	s.bmc.Picture = nil
	if code, text, _ := s.send(t, http.MethodGet, one+"/screenshot", operatorToken, nil); code != http.StatusConflict {
		t.Errorf("of a BMC without pictures: %d %s", code, text)
	}
	s.bmc.SetFault(bmc.FaultUnreachable)
	if code, text, _ := s.send(t, http.MethodGet, one+"/sensors", operatorToken, nil); code != http.StatusBadGateway {
		t.Errorf("of a BMC out of reach: %d %s", code, text)
	}
}
