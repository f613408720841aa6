package testenv

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"recast/inventory"
)

func redfishBMC(t *testing.T, machine Machine, o RedfishOptions) *RedfishBMC {
	t.Helper()
	o.Machine, o.User, o.Password = machine, "admin", "secret"
	b, err := NewRedfish(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// redfishDo is one raw request with basic credentials.
func redfishDo(t *testing.T, b *RedfishBMC, method, path, body string, header http.Header) (int, http.Header, map[string]any) {
	t.Helper()
	client := &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				if got := inventory.DigestOf(s.PeerCertificates[0].Raw); got != b.Pin() {
					t.Errorf("certificate %s, want %s", got, b.Pin())
				}
				return nil
			},
		}},
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "https://"+b.Addr()+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("admin", "secret")
	for k, v := range header {
		r.Header[k] = v
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &answer); err != nil {
			t.Fatalf("%s %s: %v: %q", method, path, err, raw)
		}
	}
	return response.StatusCode, response.Header, answer
}

// redfishWord digs a word out of an answer.
func redfishWord(answer map[string]any, path ...string) string {
	var v any = answer
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[p]
	}
	s, _ := v.(string)
	return s
}

func TestRedfishTreeHoldsTogether(t *testing.T) {
	b := redfishBMC(t, &SimMachine{Firmware: true}, RedfishOptions{UUID: "8a1f0f52-0000-4000-8000-000000000005"})
	// Every link that a resource shows must lead to a resource.
	seen := map[string]bool{}
	var walk func(v any) []string
	walk = func(v any) (links []string) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if s, ok := x.(string); ok && k == "@odata.id" {
					links = append(links, s)
				}
				links = append(links, walk(x)...)
			}
		case []any:
			for _, x := range v {
				links = append(links, walk(x)...)
			}
		}
		return links
	}
	queue := []string{"/redfish/v1/"}
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		status, _, answer := redfishDo(t, b, http.MethodGet, path, "", nil)
		if status != http.StatusOK {
			t.Errorf("GET %s: %d", path, status)
		}
		if redfishWord(answer, "@odata.id") == "" || redfishWord(answer, "Name") == "" {
			t.Errorf("GET %s: no @odata.id or Name in %v", path, answer)
		}
		queue = append(queue, walk(answer)...)
	}
	if len(seen) < 8 {
		t.Errorf("only %d resources: %v", len(seen), seen)
	}
}

func TestRedfishBootOverrideIsConsumedByOneStart(t *testing.T) {
	machine := &SimMachine{Firmware: true}
	b := redfishBMC(t, machine, RedfishOptions{})
	const system = "/redfish/v1/Systems/1"
	status, _, _ := redfishDo(t, b, http.MethodPatch, system,
		`{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI"}}`, nil)
	if status != http.StatusNoContent {
		t.Fatalf("patch: %d", status)
	}
	_, _, answer := redfishDo(t, b, http.MethodGet, system, "", nil)
	if got := redfishWord(answer, "Boot", "BootSourceOverrideTarget"); got != "Pxe" {
		t.Fatalf("target %q, want Pxe", got)
	}
	reset := func(kind string, want int) {
		t.Helper()
		status, _, _ := redfishDo(t, b, http.MethodPost, system+"/Actions/ComputerSystem.Reset", `{"ResetType":"`+kind+`"}`, nil)
		if status != want {
			t.Fatalf("reset %s: %d, want %d", kind, status, want)
		}
	}
	reset("On", http.StatusNoContent)
	reset("On", http.StatusConflict)
	_, _, answer = redfishDo(t, b, http.MethodGet, system, "", nil)
	if got := redfishWord(answer, "Boot", "BootSourceOverrideEnabled"); got != "Disabled" {
		t.Errorf("override %q after the start, want Disabled", got)
	}
	if got := redfishWord(answer, "PowerState"); got != "On" {
		t.Errorf("power %q, want On", got)
	}
	reset("ForceRestart", http.StatusNoContent)
	reset("ForceOff", http.StatusNoContent)
	reset("Nonsense", http.StatusBadRequest)
	starts := machine.Starts()
	if len(starts) != 2 || starts[0] != (BootOnce{Device: BootPXE, UEFI: true}) || starts[1] != (BootOnce{}) {
		t.Errorf("starts %v: want pxe once, then the machine's own order", starts)
	}
}

func TestRedfishRefusesWhatItMust(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	const system = "/redfish/v1/Systems/1"
	for _, c := range []struct {
		name, method, path, body string
		header                   http.Header
		want                     int
	}{
		{"wrong password", "GET", system, "", http.Header{"Authorization": {"Basic YWRtaW46d3Jvbmc="}}, 401},
		{"unknown token", "GET", system, "", http.Header{"X-Auth-Token": {"x"}}, 401},
		{"unknown path", "GET", "/redfish/v1/Nothing", "", nil, 404},
		{"unknown property", "PATCH", system, `{"Boot":{"BootOrder":[]}}`, nil, 400},
		{"unknown target", "PATCH", system, `{"Boot":{"BootSourceOverrideTarget":"Floppy"}}`, nil, 400},
		{"stale etag", "PATCH", system, `{"Boot":{"BootSourceOverrideTarget":"Pxe"}}`, http.Header{"If-Match": {`"old"`}}, 412},
		{"no json", "POST", system + "/Actions/ComputerSystem.Reset", "{", nil, 400},
		{"delete the system", "DELETE", system, "", nil, 405},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, _, answer := redfishDo(t, b, c.method, c.path, c.body, c.header)
			if status != c.want {
				t.Errorf("status %d, want %d: %v", status, c.want, answer)
			}
		})
	}
	if got := b.Done("set-boot"); got != 0 {
		t.Errorf("%d overrides were set by refused requests", got)
	}
}

func TestRedfishSessionsAreLimitedAndClosed(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{Sessions: 1})
	const sessions = "/redfish/v1/SessionService/Sessions"
	const account = `{"UserName":"admin","Password":"secret"}`
	status, header, _ := redfishDo(t, b, http.MethodPost, sessions, account, nil)
	if status != http.StatusCreated {
		t.Fatalf("login: %d", status)
	}
	if status, _, _ := redfishDo(t, b, http.MethodPost, sessions, account, nil); status != http.StatusServiceUnavailable {
		t.Errorf("second session: %d, want 503", status)
	}
	token := http.Header{"X-Auth-Token": header["X-Auth-Token"], "Authorization": nil}
	if status, _, _ := redfishDo(t, b, http.MethodDelete, header.Get("Location"), "", token); status != http.StatusNoContent {
		t.Errorf("logout: %d", status)
	}
	if b.Sessions() != 0 {
		t.Errorf("%d sessions left", b.Sessions())
	}
	if status, _, _ := redfishDo(t, b, http.MethodGet, "/redfish/v1/Systems/1", "", token); status != http.StatusUnauthorized {
		t.Errorf("a closed session still works: %d", status)
	}
}

func FuzzRedfishOverride(f *testing.F) {
	f.Add(`{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`, true)
	f.Fuzz(func(t *testing.T, body string, uefi bool) {
		var patch redfishBootPatch
		if json.Unmarshal([]byte(body), &patch) != nil || patch.Boot == nil {
			return
		}
		now := redfishOverride{enabled: "Disabled", uefi: uefi}
		got, why, _ := now.patched(*patch.Boot, []BootDevice{BootPXE, BootDisk, BootHTTP}, RedfishFaults{})
		if why != "" && got != (redfishOverride{}) {
			t.Errorf("refused (%s) and set %v", why, got)
		}
		if once := got.once(); once.Device == BootHTTP && !once.UEFI || once.Device == BootCD {
			t.Errorf("override %v", once)
		}
	})
}
