package bmc_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/testenv"
)

// spoilt is a Redfish BMC behind a proxy that spoils what it answers.
func spoilt(t *testing.T, spoil func(w http.ResponseWriter, r *http.Request) bool, edit func([]byte) []byte) (target bmc.Target, bad *bmc.BadAnswers) {
	t.Helper()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: b.Addr()})
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	proxy.Transport = transport
	proxy.ModifyResponse = func(r *http.Response) error {
		if edit == nil {
			return nil
		}
		body, err := io.ReadAll(r.Body)
		body = edit(body)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Del("Content-Length")
		return err
	}
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if spoil == nil || !spoil(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { front.Close(); transport.CloseIdleConnections() })
	target = redfishTarget(b)
	target.URL = "redfish://" + front.Listener.Addr().String()
	target.Pin = inventory.DigestOf(front.Certificate().Raw)
	bad = &bmc.BadAnswers{}
	target.Bad = bad
	return target, bad
}

// onlyOf checks that one reason was counted and no other.
func onlyOf(t *testing.T, bad *bmc.BadAnswers, why string) {
	t.Helper()
	counts := bad.Counts()
	if counts[why] == 0 || len(counts) != 1 {
		t.Errorf("counted %v, want %q alone", counts, why)
	}
}

// wire takes the connection and writes bytes of its own.
func wire(w http.ResponseWriter, text string) bool {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	_, _ = conn.Write([]byte(text))
	return conn.Close() == nil
}

func TestBadRedfishAnswersAreCountedByReason(t *testing.T) {
	t.Parallel()
	page := func(body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	replace := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(new)) }
	}
	for name, c := range map[string]struct {
		spoil func(http.ResponseWriter, *http.Request) bool
		edit  func([]byte) []byte
		want  string // "" none
	}{
		"as it is":            {nil, nil, ""},
		"a page":              {page("<html>BMC is starting</html>"), nil, "Redfish: an answer that is no JSON object"},
		"nothing":             {page(""), nil, "Redfish: an answer that is no JSON object"},
		"a list":              {page("[]"), nil, "Redfish: an answer that is no JSON object"},
		"half an object":      {page(`{"Systems": {"@odata.id"`), nil, "Redfish: an answer that is no JSON object"},
		"5 MiB":               {page(`{"x":"` + strings.Repeat("x", 5<<20) + `"}`), nil, "Redfish: an answer larger than 4 MiB"},
		"a root without form": {nil, replace(`"Systems":{`, `"Systems":7,"S":{`), "Redfish: JSON of another shape"},
		"a power of 7":        {nil, replace(`"PowerState":"Off"`, `"PowerState":7`), "Redfish: JSON of another shape"},
		"a power of bananas":  {nil, replace(`"PowerState":"Off"`, `"PowerState":"Banana"`), "a power state without meaning"},
		"a link elsewhere":    {nil, replace(`"/redfish/v1/Systems"`, `"//elsewhere/Systems"`), "Redfish: a link or redirect that leads elsewhere"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://127.0.0.1:1/redfish/v1/", http.StatusTemporaryRedirect)
			return true
		}, nil, "Redfish: a link or redirect that leads elsewhere"},
		"no HTTP": {func(w http.ResponseWriter, r *http.Request) bool { return wire(w, "SSH-2.0-dropbear\r\n") }, nil, "Redfish: neither TLS nor HTTP"},
		"a header without colon": {func(w http.ResponseWriter, r *http.Request) bool {
			return wire(w, "HTTP/1.1 200 OK\r\nwhat\r\n\r\n")
		}, nil, "Redfish: neither TLS nor HTTP"},
		"half an answer": {func(w http.ResponseWriter, r *http.Request) bool {
			return wire(w, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
		}, nil, "Redfish: an answer that ends early"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target, bad := spoilt(t, c.spoil, c.edit)
			client, err := bmc.Dial(within(t, 30*time.Second), target)
			if client != nil {
				state, err := client.Power(t.Context())
				if want := (map[bool]bmc.PowerState{true: bmc.PowerOff, false: bmc.PowerUnknown})[c.want == ""]; state != want || err != nil && !errors.Is(err, bmc.ErrRejected) || err != nil && c.want == "" {
					t.Errorf("power %q, %v", state, err)
				}
				_ = client.Close(t.Context())
			} else if c.want == "" || err == nil || strings.Count(err.Error(), "\n") > 0 || strings.Count(err.Error(), bmc.ErrRejected.Error()) > 1 {
				t.Errorf("dial: %v", err)
			}
			if c.want != "" {
				onlyOf(t, bad, c.want)
			} else if counts := bad.Counts(); len(counts) > 0 {
				t.Errorf("counted %v of a good BMC", counts)
			}
		})
	}
}

func TestAPortThatSpeaksNoTLSIsCounted(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"HTTP": "HTTP/1.1 200 OK\r\n\r\n", "noise": "\x00\x01\x02\x03\x04\x05\x06\x07"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 1<<10))
				_, _ = conn.Write([]byte(text))
				_ = conn.Close()
			}
		}()
		bad := &bmc.BadAnswers{}
		_, err = bmc.Dial(within(t, 30*time.Second), bmc.Target{URL: "redfish://" + l.Addr().String(), User: user, Password: password, Pin: inventory.DigestOf(nil), Bad: bad})
		if err == nil {
			t.Errorf("%s: dialled", name)
		}
		onlyOf(t, bad, "Redfish: neither TLS nor HTTP")
		_ = l.Close()
		<-done
	}
}

func TestAnIPMIResponseTooShortForItsCommandIsCounted(t *testing.T) {
	t.Parallel()
	b := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}})
	target := ipmiTarget(b)
	target.Bad = &bmc.BadAnswers{}
	c := dial(t, target)
	b.SetFaults(func(f *testenv.BMCFaults) { f.CutShort = true })
	if state, err := c.Power(t.Context()); state != bmc.PowerUnknown || !errors.Is(err, bmc.ErrRejected) {
		t.Errorf("power %q, %v", state, err)
	}
	if next, err := c.NextBoot(t.Context()); err == nil {
		t.Errorf("next boot %v", next)
	}
	onlyOf(t, target.Bad, "IPMI: a response too short for its command")
	if n := target.Bad.Counts()["IPMI: a response too short for its command"]; n != 2 {
		t.Errorf("%d counted, want 2", n)
	}
}
