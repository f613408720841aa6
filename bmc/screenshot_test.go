package bmc_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	pixels "image"
	"image/png"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers/asrockrack"
	"github.com/bmc-toolbox/bmclib/v2/providers/supermicro"
	"github.com/go-logr/logr"

	"recast/bmc"
	"recast/testenv"
)

const dellScreenshot = "/redfish/v1/Dell/Managers/iDRAC.Embedded.1/DellLCService/Actions/DellLCService.ExportServerScreenShot"

// idrac is an R6515 as bmclib has it on record, with a screen. It keeps what was asked
// of it, and with what.
type idrac struct {
	*tree
	shot func(w http.ResponseWriter, r *http.Request, picture string) // nil: as recorded

	mu       sync.Mutex
	asked    []string // METHOD path, of all
	with     []string // how each was let in: the token, the kind of authorization, or nothing
	bodies   []string // of what is no GET
	noTokens bool     // there are no sessions
}

func newIDRAC(t *testing.T, system string) *idrac {
	t.Helper()
	dir := filepath.Join(moduleDir(t, bmclibModule), "providers/dell")
	var files []string
	for _, name := range []string{"serviceroot", "systems", system} {
		files = append(files, filepath.Join(dir, "fixtures", name+".json"))
	}
	b := &idrac{tree: recordedTree(t, recordedFiles(t, files))}
	answer := recordedScreenshot(t, filepath.Join(dir, "idrac_test.go"))
	b.server.Close()
	b.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(raw))
		login := strings.Contains(r.URL.Path, "/Sessions")
		b.mu.Lock()
		b.asked = append(b.asked, r.Method+" "+r.URL.Path)
		word, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		b.with = append(b.with, r.Header.Get("X-Auth-Token")+word)
		if r.Method != http.MethodGet && !login {
			b.bodies = append(b.bodies, string(raw))
		}
		noTokens := b.noTokens
		b.mu.Unlock()
		switch {
		case login && noTokens:
			refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
		case r.URL.Path != dellScreenshot:
			b.serve(w, r)
		case b.shot != nil:
			b.shot(w, r, answer)
		default:
			_, _ = io.WriteString(w, answer)
		}
	}))
	t.Cleanup(b.server.Close)
	return b
}

// count is how many requests were so.
func (b *idrac) count(request string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.asked {
		if a == request {
			n++
		}
	}
	return n
}

const (
	loginRequest = "POST /redfish/v1/SessionService/Sessions"
	shotRequest  = "POST " + dellScreenshot
)

// picture is what the screen shows.
var picture = func() []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, pixels.NewGray(pixels.Rect(0, 0, 640, 400))); err != nil {
		panic(err)
	}
	return b.Bytes()
}()

// recordedScreenshot is iDRAC's answer as bmclib's test has it, with our picture in it.
func recordedScreenshot(t *testing.T, name string) (answer string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if text, ok := n.(*ast.BasicLit); ok && strings.Contains(text.Value, "ServerScreenshotFile") {
			answer = strings.Trim(text.Value, "`")
		}
		return true
	})
	if strings.Count(answer, "%s") != 1 {
		t.Fatalf("%s has no recorded screenshot: %q", name, answer)
	}
	return strings.Replace(answer, "%s", base64.StdEncoding.EncodeToString(picture), 1)
}

func TestScreenshotOfARecordedDellIsOneRequestInTheSessionThatIsThere(t *testing.T) {
	t.Parallel()
	b := newIDRAC(t, "systems_embedded.1")
	var logged bytes.Buffer
	target := b.target("")
	target.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug - 8}))
	c := dial(t, target)
	for range 2 {
		got, err := c.(bmc.Screen).Screenshot(within(t, 20*time.Second))
		if err != nil || !bytes.Equal(got, picture) {
			t.Fatalf("%d bytes, %v; want the %d on the screen", len(got), err, len(picture))
		}
	}
	if _, err := c.Power(within(t, 20*time.Second)); err != nil {
		t.Errorf("power after it: %v", err)
	}
	if err := c.Close(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
	if n, m := b.count(loginRequest), b.count("DELETE /redfish/v1/SessionService/Sessions/1"); n != 1 || m != 1 {
		t.Errorf("%d logins and %d logouts, want one of each", n, m)
	}
	if n := b.count(shotRequest); n != 2 || !slices.Equal(b.bodies, []string{`{"FileType":"ServerScreenShot"}`, `{"FileType":"ServerScreenShot"}`}) {
		t.Errorf("%d requests for two screenshots: %q", n, b.bodies)
	}
	begun := slices.Index(b.asked, loginRequest)
	for i, with := range b.with[begun+1:] {
		if with != "t" {
			t.Errorf("%s was let in by %q, not by the session's token", b.asked[begun+1+i], with)
		}
	}
	if strings.Contains(logged.String(), password) || strings.Contains(logged.String(), `token=t`) {
		t.Errorf("a secret is logged:\n%s", logged.String())
	}
}

func TestScreenshotUnderBasicAuthenticationSendsItsPasswordAsEveryRequest(t *testing.T) {
	t.Parallel()
	b := newIDRAC(t, "systems_embedded.1")
	b.noTokens = true
	got, err := b.dial().(bmc.Screen).Screenshot(within(t, 20*time.Second))
	if err != nil || !bytes.Equal(got, picture) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if at := slices.Index(b.asked, shotRequest); b.count(loginRequest) != 1 || b.with[at] != "Basic" {
		t.Errorf("asked %q with %q", b.asked, b.with)
	}
}

func TestScreenshotThatFailsIsAskedForOnceAndSaysWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		shot func(http.ResponseWriter, *http.Request, string)
		want error
		says string
	}{
		"no such action": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
		}, bmc.ErrUnsupported, "404"},
		"no licence": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			refuse(w, http.StatusForbidden, "IDRAC.2.5.LIC501", "A required license is missing.")
		}, bmc.ErrUnsupported, "license is missing"},
		"no privilege to see the console": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			refuse(w, http.StatusForbidden, "Base.1.8.AccessDenied", "no console for you")
		}, bmc.ErrRejected, "no console for you"},
		"busy": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			refuse(w, http.StatusServiceUnavailable, "Base.1.8.ServiceTemporarilyUnavailable")
		}, bmc.ErrBusy, "503"},
		"no answer": {func(http.ResponseWriter, *http.Request, string) { panic(http.ErrAbortHandler) }, bmc.ErrTimeout, "ExportServerScreenShot"},
		"no picture": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			_, _ = io.WriteString(w, `{"ServerScreenshotFile":"`+base64.StdEncoding.EncodeToString([]byte("foobar"))+`"}`)
		}, bmc.ErrRejected, "no PNG"},
		"nothing in it": {func(w http.ResponseWriter, _ *http.Request, _ string) { _, _ = io.WriteString(w, `{}`) }, bmc.ErrRejected, "no screencapture data"},
		"too long": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			_, _ = io.WriteString(w, `{"ServerScreenshotFile":"`+strings.Repeat("A", 5<<20)+`"}`)
		}, bmc.ErrRejected, "4 MiB"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request, _ string) {
			http.Redirect(w, r, "https://192.0.2.1/x", http.StatusPermanentRedirect)
		}, bmc.ErrRejected, "elsewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newIDRAC(t, "systems_embedded.1")
			b.shot = c.shot
			client := b.dial()
			got, err := client.(bmc.Screen).Screenshot(within(t, 20*time.Second))
			if !errors.Is(err, c.want) || got != nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%d bytes, %v; want %v and %q", len(got), err, c.want, c.says)
			}
			if n, m := b.count(shotRequest), b.count(loginRequest); n != 1 || m != 1 {
				t.Errorf("asked %d times, in %d sessions", n, m)
			}
			// It was only the screen: the machine can be talked about still.
			if _, err := client.Power(within(t, 20*time.Second)); err != nil {
				t.Errorf("power after it: %v", err)
			}
		})
	}
}

func TestScreenshotEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := newIDRAC(t, "systems_embedded.1")
	reached, ended := make(chan struct{}), make(chan struct{})
	b.shot = func(_ http.ResponseWriter, r *http.Request, _ string) {
		close(reached)
		<-r.Context().Done()
		close(ended)
	}
	c := b.dial()
	ctx, cancel := context.WithCancel(within(t, 20*time.Second))
	go func() {
		<-reached
		cancel()
	}()
	if _, err := c.(bmc.Screen).Screenshot(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	<-ended
}

func TestForgottenSessionIsMadeAnewForAScreenshotOnce(t *testing.T) {
	t.Parallel()
	b := newIDRAC(t, "systems_embedded.1")
	refused := false
	b.shot = func(w http.ResponseWriter, _ *http.Request, answer string) {
		if !refused {
			refused = true
			refuse(w, http.StatusUnauthorized, "Base.1.8.NoValidSession")
			return
		}
		_, _ = io.WriteString(w, answer)
	}
	got, err := b.dial().(bmc.Screen).Screenshot(within(t, 20*time.Second))
	if err != nil || !bytes.Equal(got, picture) || b.count(loginRequest) != 2 || b.count(shotRequest) != 2 {
		t.Errorf("%d bytes, %v, asked %q", len(got), err, b.asked)
	}
}

func TestScreenshotIsAskedOfTheVendorAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		system string
		facts  bmc.Facts
		says   string
	}{
		"told now":              {"systems_embedded_not_dell.1", bmc.Facts{}, `"bmclib"`},
		"told at the enrolment": {"systems_embedded.1", bmc.Facts{Vendor: "Supermicro"}, `"Supermicro"`},
		"another board than that of the enrolment": {"systems_embedded_not_dell.1", bmc.Facts{Vendor: "Dell Inc."}, "bmclib"},
		"nothing told": {"systems_embedded_no_manufacturer.1", bmc.Facts{}, `""`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newIDRAC(t, c.system)
			target := b.target("")
			target.Facts = c.facts
			_, err := dial(t, target).(bmc.Screen).Screenshot(within(t, 20*time.Second))
			if !errors.Is(err, bmc.ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want ErrUnsupported and %s", err, c.says)
			}
			if n := b.count(shotRequest); n != 0 || b.count(loginRequest) != 1 {
				t.Errorf("asked %q", b.asked)
			}
		})
	}
}

func TestScreenshotOfABMCWithAnotherCertificateIsNotAskedFor(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, Manufacturer: "Dell Inc.", Screen: func() []byte { return picture }})
	c := dial(t, redfishTarget(b))
	if got, err := c.(bmc.Screen).Screenshot(within(t, 20*time.Second)); err != nil || !bytes.Equal(got, picture) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := b.SwapCertificate(); err != nil {
		t.Fatal(err)
	}
	bmc.Rest(c)
	if _, err := c.(bmc.Screen).Screenshot(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrPin) {
		t.Errorf("%v, want ErrPin", err)
	}
	if n, m := b.Count("screenshot"), b.Count("login"); n != 1 || m != 1 {
		t.Errorf("%d screenshots and %d logins, want one of each", n, m)
	}
}

// Why bmclib's provider is not used: once this fails, it can be thought of again.
func TestSupermicroProviderTakesNoClientOfOursAndLogsInTwice(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	logins := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/cgi/login.cgi" {
			logins++
		}
		_, _ = io.WriteString(w, "wrong password")
	}))
	t.Cleanup(server.Close)
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	pinned := &http.Client{Transport: refusing{}}
	c := supermicro.NewClient(host, user, password, logr.Discard(), supermicro.WithHttpClient(pinned), supermicro.WithPort(port))
	if err := c.Open(within(t, 20*time.Second)); err == nil || strings.Contains(err.Error(), errPinned.Error()) {
		t.Errorf("%v: it takes our client", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if logins != 2 {
		t.Errorf("%d logins with one wrong password", logins)
	}
}

var errPinned = errors.New("the certificate is not the pinned one")

// refusing sends nothing.
type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) { return nil, errPinned }

// Why bmclib's provider is not used: it says another password than it was given, and a
// session stays where the board is not one of three.
func TestASRockRackProviderSaysAnotherPasswordAndLeavesItsSession(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var said []string
	open := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch r.Method + r.URL.Path {
		case "POST/api/session":
			open++
			said = append(said, r.FormValue("password"))
			_, _ = io.WriteString(w, `{"CSRFToken":"l5L29IP7"}`)
		case "DELETE/api/session":
			open--
		case "GET/api/fru":
			_, _ = io.WriteString(w, `[{"board":{"manufacturer":"ASRockRack","product_name":"X570D4U"}}]`)
		}
	}))
	t.Cleanup(server.Close)
	c := asrockrack.NewWithOptions(server.Listener.Addr().String(), user, "a+b&c", logr.Discard(), asrockrack.WithHTTPClient(server.Client()))
	if err := c.Open(within(t, 20*time.Second)); err == nil {
		t.Error("it takes any board")
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(said, []string{"a b"}) || open != 1 {
		t.Errorf("it said the passwords %q, and left %d sessions", said, open)
	}
}

// Not in parallel: it is about the environment and the standard output.
func TestNoLoginIsWrittenToTheStandardOutput(t *testing.T) {
	t.Setenv("DEBUG_BMCLIB", "true")
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	file, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	os.Stdout = file
	b := newIDRAC(t, "systems_embedded.1")
	if _, err := b.dial().(bmc.Screen).Screenshot(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
	if said, err := os.ReadFile(file.Name()); err != nil || len(said) > 0 {
		t.Errorf("%v: %s", err, said)
	}
}
