package ipxe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

type booterFunc func(Client) (Spec, error)

func (f booterFunc) BootSpec(_ context.Context, c Client) (Spec, error) { return f(c) }

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func get(t *testing.T, h http.Handler, method, target string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "10.20.0.15:4711"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestScriptRequestReachesTheBooterAndIsObserved(t *testing.T) {
	var asked Client
	var seen []inventory.Observation
	h := &Handler{
		Booter: booterFunc(func(c Client) (Spec, error) {
			asked = c
			return Spec{Kind: SpecLocal, Machine: "r1u05", Reason: "active"}, nil
		}),
		Observe: func(o inventory.Observation) { seen = append(seen, o) },
		Now:     func() time.Time { return noon },
	}
	r := get(t, h, "GET", "/boot/script?mac=52%3A54%3A00%3A00%3A00%3A05&uuid=11223344-5566-7788-99AA-BBCCDDEEFF00&serial=SN%2042%2Fx&arch=x86_64.efi&try=2")
	want := "#!ipxe\necho recast: r1u05: starting the local disk: active\nexit 1\n"
	if got := body(t, r); r.StatusCode != 200 || got != want {
		t.Errorf("%d %q", r.StatusCode, got)
	}
	if c := r.Header.Get("Cache-Control"); c != "no-store" {
		t.Errorf("Cache-Control %q", c)
	}
	remote := netip.MustParseAddr("10.20.0.15")
	if diff := cmp.Diff(Client{
		MAC: "52:54:00:00:00:05", UUID: "11223344-5566-7788-99aa-bbccddeeff00", Serial: "SN 42/x",
		Arch: FirmwareX64UEFI, Loader: LoaderIPXE, Remote: remote,
	}, asked, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("client (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]inventory.Observation{{
		Time: noon, Kind: inventory.SawScript, MAC: "52:54:00:00:00:05", UUID: "11223344-5566-7788-99aa-bbccddeeff00",
		Remote: remote, Detail: "local: active", Bytes: int64(len(want)), Client: "ipxe", Arch: 7,
	}}, seen, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("observed (-want +got)\n%s", diff)
	}
}

func TestLocalDiskByNotFoundIsToldOnceToWhomDHCPSent(t *testing.T) {
	var seen []string
	h := &Handler{
		Booter: booterFunc(func(c Client) (Spec, error) {
			return Spec{Kind: SpecLocal, Local: inventory.LocalHTTP404, Machine: "r1u05", Reason: "active"}, nil
		}),
		Observe: func(o inventory.Observation) { seen = append(seen, o.Detail) },
	}
	if r := get(t, h, "GET", "/boot/script?mac=52:54:00:00:00:05&arch=x86_64.efi"); r.StatusCode != http.StatusNotFound {
		t.Errorf("by DHCP: %d %s", r.StatusCode, body(t, r))
	}
	// It would ask again and again.
	r := get(t, h, "GET", "/boot/script?mac=52:54:00:00:00:05&arch=x86_64.efi&try=0")
	if got, want := body(t, r), "#!ipxe\necho recast: r1u05: starting the local disk: active\nexit 1\n"; got != want {
		t.Errorf("by a script of ours: %d %s", r.StatusCode, got)
	}
	if r := get(t, h, "GET", NothingPath); r.StatusCode != http.StatusNotFound {
		t.Errorf("%s: %d", NothingPath, r.StatusCode)
	}
	if diff := cmp.Diff([]string{"local: active, as not found", "local: active"}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestBooterErrorKeepsTheMachineAlive(t *testing.T) {
	for name, b := range map[string]booterFunc{
		"error":          func(Client) (Spec, error) { return Spec{}, errors.New("secret path /var/lib/recast") },
		"unusable spec":  func(Client) (Spec, error) { return Spec{Kind: SpecRamdisk, Kernel: "no slash"}, nil },
		"deadline":       func(Client) (Spec, error) { return Spec{}, fmt.Errorf("x: %w", context.DeadlineExceeded) },
		"spec of nobody": func(Client) (Spec, error) { return Spec{}, nil },
	} {
		var seen []inventory.Observation
		h := &Handler{Booter: b, Observe: func(o inventory.Observation) { seen = append(seen, o) }}
		r := get(t, h, "GET", "/boot/script?mac=52:54:00:00:00:05")
		got := body(t, r)
		if r.StatusCode != 200 || !strings.HasPrefix(got, "#!ipxe\necho recast: no boot decision yet: ") || !strings.HasSuffix(got, askAgainFirst) {
			t.Errorf("%s: %d\n%s", name, r.StatusCode, got)
		}
		if strings.Contains(got, "/var/lib") {
			t.Errorf("%s: the server's inside is on a machine's console:\n%s", name, got)
		}
		if len(seen) != 1 || seen[0].Error == "" || seen[0].Detail != "wait" {
			t.Errorf("%s: observed %+v", name, seen)
		}
	}
}

func TestHostileQueriesAreRefused(t *testing.T) {
	h := &Handler{Booter: booterFunc(func(c Client) (Spec, error) {
		t.Errorf("the booter was asked for %+v", c)
		return Spec{}, nil
	})}
	for name, query := range map[string]string{
		"no mac":                 "uuid=11223344-5566-7788-99aa-bbccddeeff00",
		"mac of another length":  "mac=52:54:00:00:00:05:06:07",
		"mac with a newline":     "mac=52:54:00:00:00:05%0a",
		"two macs":               "mac=52:54:00:00:00:05&mac=52:54:00:00:00:06",
		"uuid too short":         "mac=52:54:00:00:00:05&uuid=1122",
		"uuid with an expansion": "mac=52:54:00:00:00:05&uuid=${uuid}",
		"serial with a newline":  "mac=52:54:00:00:00:05&serial=a%0Areboot",
		"serial with NUL":        "mac=52:54:00:00:00:05&serial=a%00",
		"serial too long":        "mac=52:54:00:00:00:05&serial=" + strings.Repeat("a", 129),
		"arch of nobody":         "mac=52:54:00:00:00:05&arch=vax.efi",
		"negative try":           "mac=52:54:00:00:00:05&try=-1",
		"try beyond an int":      "mac=52:54:00:00:00:05&try=99999999999999999999",
		"broken escape":          "mac=52:54:00:00:00:05&serial=%zz",
		"query too long":         "mac=52:54:00:00:00:05&x=" + strings.Repeat("a", 1024),
	} {
		var seen []inventory.Observation
		h.Observe = func(o inventory.Observation) { seen = append(seen, o) }
		if r := get(t, h, "GET", "/boot/script?"+query); r.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, r.StatusCode, body(t, r))
		}
		if len(seen) != 1 || seen[0].Kind != inventory.SawBadPacket || seen[0].Error == "" {
			t.Errorf("%s: observed %+v", name, seen)
		}
	}
}

func TestSerialWithGarbageIsUnknown(t *testing.T) {
	c, _, err := ParseQuery("mac=52:54:00:00:00:05&serial=%ff%fe&arch=i386.pcbios")
	if err != nil || c.Serial != "" || c.MAC != "52:54:00:00:00:05" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestHandOverFilesByHTTP(t *testing.T) {
	var seen []inventory.Observation
	h := &Handler{
		Port:    8080,
		Loaders: &Loaders{memFS: memFS{"snponly.efi": []byte("loader")}},
		Observe: func(o inventory.Observation) { seen = append(seen, o) },
	}
	for _, tc := range []struct {
		method, path string
		status       int
		kind, text   string
	}{
		{"GET", "/boot/script", 200, "text/plain; charset=utf-8", Stub()},
		{"GET", "/boot/autoexec.ipxe", 200, "text/plain; charset=utf-8", Autoexec(8080, 0)},
		{"GET", "/boot/loader/autoexec.ipxe", 200, "text/plain; charset=utf-8", Autoexec(8080, 0)},
		{"GET", "/boot/loader/snponly.efi", 200, "application/efi", "loader"},
		{"HEAD", "/boot/loader/snponly.efi", 200, "application/efi", ""},
		{"GET", "/boot/loader/undionly.kpxe", 404, "text/plain; charset=utf-8", "loader \"undionly.kpxe\" is missing: " + loaderCure + "\n"},
		{"GET", "/boot/loader/../script.go", 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"GET", "/boot/loader/README", 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"GET", "/boot/loader/", 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"GET", "/boot", 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"POST", "/boot/script", 405, "text/plain; charset=utf-8", "only GET and HEAD are served here\n"},
	} {
		r := get(t, h, tc.method, tc.path)
		if got := body(t, r); r.StatusCode != tc.status || r.Header.Get("Content-Type") != tc.kind || got != tc.text {
			t.Errorf("%s %s: %d %s %q", tc.method, tc.path, r.StatusCode, r.Header.Get("Content-Type"), got)
		}
		if tc.method == "HEAD" && r.Header.Get("Content-Length") != "6" {
			t.Errorf("HEAD has Content-Length %q", r.Header.Get("Content-Length"))
		}
	}
	var got []string
	for _, o := range seen {
		got = append(got, fmt.Sprintf("%s %s %d %v", o.Kind, o.Detail, o.Bytes, o.Error != ""))
	}
	if diff := cmp.Diff([]string{"boot-file snponly.efi 6 false", "boot-file snponly.efi 0 false", "boot-file undionly.kpxe 0 true"}, got); diff != "" {
		t.Errorf("observed (-want +got)\n%s", diff)
	}
}

func BenchmarkScript(b *testing.B) {
	h := &Handler{Booter: booterFunc(func(c Client) (Spec, error) {
		return Spec{Kind: SpecRamdisk, Machine: "r1u05", Reason: "deploying", Kernel: "/boot/k", Initrds: []string{"/boot/i"}, Args: []string{"console=ttyS0", "recast.nonce=x"}}, nil
	})}
	r := httptest.NewRequest("GET", "/boot/script?mac=52:54:00:00:00:05&uuid=11223344-5566-7788-99aa-bbccddeeff00&serial=SN42&arch=x86_64.efi", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}
