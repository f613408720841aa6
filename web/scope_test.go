package web

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
)

// concrete gives a route's path its parameters.
func concrete(path string) string {
	return strings.NewReplacer(":name", "m1", ":digest", "sha256:"+strings.Repeat("0", 64)).Replace(path)
}

// The table of routes is what is tested, so that a new route is in here, and one
// without a scope is seen.
func TestEveryRouteDeniesByDefault(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	agent := s.claim(t)
	none := []int{}
	denied := []int{http.StatusUnauthorized, http.StatusForbidden}
	for _, r := range s.routes() {
		body := r.in
		if r.method != http.MethodGet && body == nil {
			body = strings.NewReader("")
		}
		for _, c := range []struct {
			who, token string
			allowed    []scope
		}{
			{"nobody", "", []scope{scopeOpen}},
			{"a wrong token", "wrong" + operatorToken, []scope{scopeOpen}},
			{"a prefix of the token", operatorToken[:31], []scope{scopeOpen}},
			{"an agent", agent, []scope{scopeOpen, scopeAgent}},
			{"who may see metrics", metricsToken, []scope{scopeOpen, scopeMetrics}},
			{"the operator", operatorToken, []scope{scopeOpen, scopeOperator, scopeMetrics}},
		} {
			if r.scope == 0 {
				t.Errorf("%s %s has no scope", r.method, r.path)
			}
			// Its own body is refused for what is missing in it, and a long poll is long.
			if r.scope == scopeAgent && c.who == "an agent" && (r.path == "/agent/v1/order" || r.path == "/agent/v1/config" || r.path == "/agent/v1/booted") {
				continue
			}
			if strings.HasSuffix(r.path, "/bmc/enrol") && c.who == "the operator" {
				continue // it asks a BMC for its certificate, and there is none
			}
			code, text, h := s.send(t, r.method, concrete(r.path), c.token, body)
			want := none
			if !slices.Contains(c.allowed, r.scope) {
				want = denied
			}
			if isDenied := slices.Contains(denied, code); isDenied != (len(want) > 0) {
				t.Errorf("%s %s as %s: %d %s", r.method, r.path, c.who, code, text)
			}
			if code >= 400 {
				checkProblem(t, r.method+" "+r.path, code, text, h)
			}
			if code >= 500 {
				t.Errorf("%s %s as %s: the server is at fault: %d %s", r.method, r.path, c.who, code, text)
			}
		}
	}
}

// checkProblem holds an error to RFC 9457 and to one line.
func checkProblem(t *testing.T, what string, code int, text string, h http.Header) Problem {
	t.Helper()
	var p Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Errorf("%s: %d is no problem: %v: %q", what, code, err, text)
	}
	if p.Status != code || p.Title != http.StatusText(code) || p.Detail == "" || strings.ContainsAny(p.Detail, "\n\r") ||
		h.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: bad problem %+v, %v", what, p, h)
	}
	return p
}

func TestRouteWithoutScopeIsClosed(t *testing.T) {
	s := newSite(t)
	s.api.Config.Handler = s.Server.api([]route{{method: http.MethodGet, path: "/forgotten", handle: func(c echo.Context) error {
		return c.String(http.StatusOK, "open")
	}}})
	for _, token := range []string{"", operatorToken} {
		if code, text, h := s.send(t, "GET", "/forgotten", token, nil); code != http.StatusForbidden {
			t.Errorf("%d %s", code, text)
		} else {
			checkProblem(t, "forgotten", code, text, h)
		}
	}
}

func TestServerWithoutOperatorTokenHasNoOperator(t *testing.T) {
	s := newSite(t)
	s.OperatorToken = ""
	if code, text, _ := s.send(t, "GET", apiRoot+"/machines", "", nil); code != http.StatusUnauthorized {
		t.Errorf("%d %s", code, text)
	}
}

func TestBodiesHaveALimitByScope(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	agent := s.claim(t)
	tokens := map[scope]string{scopeAgent: agent, scopeOperator: operatorToken}
	for _, r := range s.routes() {
		if r.in == nil || r.stream || r.scope == scopeOperator && r.path != apiRoot+"/plan" {
			continue // one of the operator's stands for all: 64 MiB each
		}
		long := strings.NewReader(`{"` + strings.Repeat("x", int(bodyLimit[r.scope])) + `":1}`)
		if code, text, h := s.send(t, r.method, concrete(r.path), tokens[r.scope], long); code != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d %s", r.path, code, text)
		} else {
			checkProblem(t, r.path, code, text, h)
		}
	}
}

func TestBodiesAreStrict(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	agent := s.claim(t)
	tokens := map[scope]string{scopeAgent: agent, scopeOperator: operatorToken}
	for _, r := range s.routes() {
		if r.in == nil || r.stream {
			continue
		}
		for body, want := range map[string]string{
			`{"noSuchField":1}`: `unknown field "noSuchField"`,
			``:                  "the body is empty",
			`{`:                 "unexpected EOF",
			`{} {}`:             "something follows",
			`{} x`:              "something follows",
			`[]`:                "cannot unmarshal",
		} {
			code, text, h := s.send(t, r.method, concrete(r.path), tokens[r.scope], strings.NewReader(body))
			p := checkProblem(t, r.path, code, text, h)
			if code != http.StatusBadRequest || !strings.Contains(p.Detail, want) {
				t.Errorf("%s with %q: %d %s", r.path, body, code, text)
			}
		}
	}
}
