package web

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"recast/inventory"
	"recast/provision"
)

func TestRamdiskFolderIsFlatAndHasNoListing(t *testing.T) {
	s := newSite(t)
	for path, want := range map[string]int{
		"vmlinuz": 200, "initrd.img": 200, "": 404, "below": 404, "below/": 404, "below/x": 404, ".hidden": 404,
		"../recast.db": 404, "%2e%2e/recast.db": 404, "..%2frecast.db": 404, "nothing": 404, "below%2fx": 404,
	} {
		code, text := s.public(t, RamdiskPath+path)
		if code != want || strings.Contains(text, "below") || strings.Contains(text, "hidden") {
			t.Errorf("%q: %d %q", path, code, text)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		req, err := http.NewRequest(method, s.boot.URL+RamdiskPath+"vmlinuz", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %s", method, resp.Status)
		}
	}
}

// Where an address names a machine, nobody may say what his address is.
func TestForwardedForIsIgnored(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	liar := func(url, token, method string, body io.Reader) {
		req, err := http.NewRequest(method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []string{"X-Forwarded-For", "X-Real-IP", "True-Client-IP", "Forwarded"} {
			req.Header.Set(h, "203.0.113.9")
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set(whoHeader, "liar")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			t.Fatalf("%s: %s", url, resp.Status)
		}
	}
	liar(s.boot.URL+RamdiskPath+"vmlinuz", "", "GET", nil)
	liar(s.api.URL+apiRoot+"/machines/m1/hold", operatorToken, "POST", strings.NewReader(`{"reason":"look"}`))
	for _, o := range s.observed() {
		if o.Remote != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("observed %+v", o)
		}
	}
	if len(s.observed()) == 0 {
		t.Error("nothing was observed")
	}
	var log []provision.AuditEntry
	s.ok(t, "GET", apiRoot+"/audit", nil, &log)
	if last := log[len(log)-1]; last.Who != "liar@127.0.0.1" {
		t.Errorf("audit: %+v", last)
	}
}

func TestWhoCannotWriteLinesOfItsOwn(t *testing.T) {
	for name, want := range map[string]string{"eve": "eve@127.0.0.1", "": "operator@127.0.0.1", "a\tb": "operator@127.0.0.1",
		strings.Repeat("x", 65): "operator@127.0.0.1"} {
		s := newSite(t)
		req, err := http.NewRequest("POST", s.api.URL+apiRoot+"/freeze", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+operatorToken)
		req.Header.Set(whoHeader, name)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		var log []provision.AuditEntry
		s.ok(t, "GET", apiRoot+"/audit", nil, &log)
		if got := log[len(log)-1].Who; got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}

// A value that was set as a secret leaves the server in one way only: in the
// config volume, to the agent that claimed its machine.
func TestSecretsAppearNowhere(t *testing.T) {
	s := newSite(t)
	canaries := []string{"canary-72c1d0", strings.TrimPrefix(bmcSecret, "admin:"), operatorToken}
	s.ok(t, "PUT", apiRoot+"/secrets/app-key", SecretRequest{Value: canaries[0]}, nil)
	s.declare(t, "key ${secret.app-key}")
	agent := s.claim(t)
	sweep := func(where, text string) {
		t.Helper()
		for _, canary := range append(canaries, agent) {
			if strings.Contains(text, canary) {
				t.Errorf("%s: it shows %q", where, canary)
			}
		}
	}
	for _, path := range []string{"/boot/script", "/boot/autoexec.ipxe", "/boot/loader/snponly.efi", RamdiskPath + "vmlinuz", RamdiskPath + "initrd.img",
		ImagesPath + s.image.Pack.Hex(), ImagesPath + s.image.Manifest.Hex()} {
		_, text := s.public(t, path)
		sweep(path, text)
	}
	for _, mac := range []string{"52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:99"} {
		sweep("script of "+mac, s.script(t, mac))
	}
	// The agent's own answers, but the config volume.
	code, text, _ := s.send(t, "POST", "/agent/v1/inventory", agent, facts())
	var order inventory.Order
	if err := json.Unmarshal([]byte(text), &order); err != nil || code != 200 || order.Kind != inventory.OrderWrite {
		t.Fatalf("inventory: %d %s", code, text)
	}
	sweep("inventory", text)
	code, text, _ = s.send(t, "GET", "/agent/v1/config", agent, nil)
	if code != 200 || !strings.Contains(text, canaries[0]) {
		t.Errorf("the config volume of the claimed machine does not hold its secret: %d", code)
	}
	read := 0
	for _, r := range s.routes() {
		if r.scope == scopeAgent || r.scope == scopeKnock || r.method != "GET" || r.answer == "text/event-stream" {
			continue
		}
		code, text, _ := s.send(t, "GET", concrete(r.path), operatorToken, nil)
		if code != 200 {
			t.Errorf("%s: %d %s", r.path, code, text)
		}
		read++
		sweep(r.path, text)
	}
	if read < 12 {
		t.Errorf("only %d routes were read", read)
	}
	plan := s.plan(t, s.yaml("key ${secret.app-key} and more"))
	for _, path := range []string{"/plan", "/apply"} {
		body := any(ApplyRequest{Plan: plan.Digest})
		if path == "/plan" {
			body = PlanRequest{Files: []inventory.File{{Name: "site.yaml", Data: []byte(s.yaml("key ${secret.app-key} and more"))}}}
		}
		code, text, _ := s.send(t, "POST", apiRoot+path, operatorToken, body)
		if code != 200 {
			t.Errorf("%s: %d %s", path, code, text)
		}
		sweep(path, text)
	}
	if log := s.log.String(); len(log) < 100 {
		t.Errorf("hardly a log: %q", log)
	} else {
		sweep("the log", log)
	}
}

// event is one server-sent event.
type event struct{ name, data string }

func (s *site) watch(t *testing.T) (next func() event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", s.api.URL+apiRoot+"/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v", resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() (e event) {
		t.Helper()
		for lines.Scan() {
			switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				if e.name != "" {
					return e
				}
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return e
	}
}

func TestWatchGivesAllThenEveryChange(t *testing.T) {
	s := newSite(t)
	s.ok(t, "PUT", apiRoot+"/secrets/rack-bmc", SecretRequest{Value: bmcSecret}, nil)
	s.addImage(t)
	// Frozen, so that nothing changes but what this test does.
	s.ok(t, "POST", apiRoot+"/freeze", FreezeRequest{Reason: "test"}, nil)
	s.ok(t, "POST", apiRoot+"/apply", ApplyRequest{Plan: s.plan(t, s.yaml("x")).Digest}, nil)
	next := s.watch(t)
	var names []string
	view := func(e event) (v provision.View) {
		if err := json.Unmarshal([]byte(e.data), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	for {
		e := next()
		if e.name == "synced" {
			break
		}
		names = append(names, view(e).Name)
	}
	if strings.Join(names, " ") != "m1 m2" {
		t.Errorf("first %q", names)
	}
	s.ok(t, "POST", apiRoot+"/machines/m2/hold", HoldRequest{Reason: "watched"}, nil)
	for {
		if v := view(next()); v.Name == "m2" && v.Status.Hold != nil && v.Status.Hold.Reason == "watched" {
			break
		}
	}
	s.ok(t, "POST", apiRoot+"/machines/m2/release", nil, nil)
	for {
		if v := view(next()); v.Name == "m2" && v.Status.Hold == nil {
			break
		}
	}
}

func TestStoppingEndsWhatWaits(t *testing.T) {
	s := newSite(t)
	stopping := make(chan struct{})
	s.Stopping = stopping
	s.declare(t, "first")
	agent := s.claim(t)
	next := s.watch(t)
	next()
	answered := make(chan int, 1)
	go func() {
		code, _, _ := s.send(t, "GET", "/agent/v1/order", agent, nil)
		answered <- code
	}()
	await(t, "the long poll", func() bool { return s.waiting.Load() > 0 })
	close(stopping)
	deadline := time.After(10 * time.Second)
	select {
	case code := <-answered:
		if code != http.StatusServiceUnavailable {
			t.Errorf("the poll ended with %d", code)
		}
	case <-deadline:
		t.Fatal("the poll still waits")
	}
	s.api.Close() // waits for the stream
}

func TestFilesAreRefusedWithEveryProblem(t *testing.T) {
	s := newSite(t)
	s.addImage(t)
	bad := strings.Replace(strings.Replace(s.yaml("x"), "minSize", "minSiez", 1), "credentials: rack-bmc", "credential: rack-bmc", 1)
	code, text, h := s.send(t, "POST", apiRoot+"/plan", operatorToken, PlanRequest{Files: []inventory.File{{Name: "site.yaml", Data: []byte(bad)}}})
	p := checkProblem(t, "plan", code, text, h)
	if code != http.StatusUnprocessableEntity || len(p.Problems) < 2 || p.Problems[0].File != "site.yaml" || p.Problems[0].Line == 0 {
		t.Errorf("%d %s", code, text)
	}
	code, text, h = s.send(t, "POST", apiRoot+"/plan", operatorToken, PlanRequest{Files: []inventory.File{{Name: "site.yaml", Data: []byte(s.yaml("x"))}}})
	if p := checkProblem(t, "plan", code, text, h); code != http.StatusUnprocessableEntity || len(p.Problems) != 1 || !strings.Contains(text, "recast secret set rack-bmc") {
		t.Errorf("unknown secret: %d %s", code, text)
	}
}

func TestOutdatedPlanIsAConflict(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	one, two := s.plan(t, s.yaml("two")), s.plan(t, s.yaml("three"))
	s.ok(t, "POST", apiRoot+"/apply", ApplyRequest{Plan: two.Digest}, nil)
	code, text, h := s.send(t, "POST", apiRoot+"/apply", operatorToken, ApplyRequest{Plan: one.Digest})
	if p := checkProblem(t, "apply", code, text, h); code != http.StatusConflict || !strings.Contains(p.Detail, "recast plan") {
		t.Errorf("%d %s", code, text)
	}
	code, text, h = s.send(t, "POST", apiRoot+"/apply", operatorToken, ApplyRequest{Plan: inventory.DigestOf(nil)})
	if p := checkProblem(t, "apply", code, text, h); code/100 != 4 || !strings.Contains(p.Detail, "recast plan") {
		t.Errorf("no such plan: %d %s", code, text)
	}
}

func TestUnknownMachineIsNotFound(t *testing.T) {
	s := newSite(t)
	for _, r := range s.routes() {
		if !strings.Contains(r.path, "/machines/:name") {
			continue
		}
		body := r.in
		if body == nil && r.method == "POST" {
			body = strings.NewReader("")
		}
		code, text, h := s.send(t, r.method, strings.Replace(r.path, ":name", "nobody", 1), operatorToken, body)
		if p := checkProblem(t, r.path, code, text, h); code != http.StatusNotFound || !strings.Contains(p.Detail, "recast get machines") {
			t.Errorf("%s: %d %s", r.path, code, text)
		}
	}
	code, text, h := s.send(t, "GET", apiRoot+"/machines/..%2Fx%20y", operatorToken, nil)
	if p := checkProblem(t, "an escaped name", code, text, h); code != http.StatusNotFound || !strings.Contains(p.Detail, `"../x y"`) {
		t.Errorf("%d %s", code, text)
	}
	code, text, h = s.send(t, "GET", "/api/v2/machines", operatorToken, nil)
	if p := checkProblem(t, "no route", code, text, h); code != http.StatusNotFound || !strings.Contains(p.Detail, "openapi.json") {
		t.Errorf("%d %s", code, text)
	}
}

func TestPanicIsOneRequestsErrorAndKeepsItsStack(t *testing.T) {
	h := recoverPanic(func(echo.Context) error { panic("secret detail") })
	err := h(nil)
	var p *panicError
	if !errors.As(err, &p) || len(p.stack) == 0 {
		t.Fatalf("%v", err)
	}
	if got := problemOf(err); got.Status != 500 || strings.Contains(got.Detail, "secret") {
		t.Errorf("%+v", got)
	}
}

// Agents know the CA's digest alone, so the chain must bring the CA along.
func TestTLSChainHoldsTheCAThatAgentsPin(t *testing.T) {
	s := newSite(t)
	ca := s.Engine.Authority()
	cert, err := ca.Issue([]string{"localhost"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server := s.APIHTTP()
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server.TLSConfig)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { server.Serve(l); close(done) }()
	defer func() { server.Close(); <-done }()
	pinned := func(want inventory.Digest) error {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true,
			VerifyConnection: func(c tls.ConnectionState) error {
				for _, root := range c.PeerCertificates[1:] {
					if inventory.DigestOf(root.Raw) == want {
						pool := x509.NewCertPool()
						pool.AddCert(root)
						_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: "127.0.0.1"})
						return err
					}
				}
				return errors.New("no certificate of the pinned digest")
			}}}}
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + l.Addr().String() + apiRoot + "/version")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 1 {
			t.Errorf("protocol %s", resp.Proto)
		}
		return nil
	}
	if err := pinned(ca.Digest()); err != nil {
		t.Error(err)
	}
	if err := pinned(inventory.DigestOf(nil)); err == nil {
		t.Error("another digest was believed")
	}
}

func TestAWipeIsRefusedBeforeItsDiskWasSeen(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	code, text, h := s.send(t, "POST", apiRoot+"/machines/m2/wipe", operatorToken, WipeRequest{Disk: "S1"})
	if code != http.StatusConflict || !strings.Contains(text, "recast inspect m2") {
		t.Errorf("%d %s", code, text)
	}
	checkProblem(t, "wipe", code, text, h)
	if code, text, _ := s.send(t, "POST", apiRoot+"/machines/nobody/wipe", operatorToken, WipeRequest{Disk: "S1"}); code != http.StatusNotFound {
		t.Errorf("%d %s", code, text)
	}
}

func TestAHoldOfNegativeTimeIsRefused(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	code, text, h := s.send(t, "POST", apiRoot+"/machines/m2/hold", operatorToken, HoldRequest{Reason: "slip", For: -1})
	if p := checkProblem(t, "hold", code, text, h); code != http.StatusBadRequest || !strings.Contains(p.Detail, "more than 0") {
		t.Errorf("%d %s", code, text)
	}
	var v provision.View
	if s.ok(t, "GET", apiRoot+"/machines/m2", nil, &v); v.Status.Hold != nil {
		t.Errorf("it is held: %+v", v.Status.Hold)
	}
}

func TestStatusCountsMalformedPacketsByReason(t *testing.T) {
	s := newSite(t)
	want := map[string]uint64{"options": 3, "short": 1}
	s.Malformed = func() map[string]uint64 { return want }
	var got StatusReply
	s.ok(t, "GET", apiRoot+"/status", nil, &got)
	if !maps.Equal(got.Malformed, want) {
		t.Errorf("%v, want %v", got.Malformed, want)
	}
}
