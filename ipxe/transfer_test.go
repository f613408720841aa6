package ipxe

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"recast/inventory"
)

func TestTransfersTellWhatWent(t *testing.T) {
	file := bytes.NewReader(bytes.Repeat([]byte("x"), 1000))
	for name, c := range map[string]struct {
		method, span string
		status       int
		want         inventory.Observation
	}{
		"whole":         {want: inventory.Observation{Bytes: 1000, Size: 1000}},
		"size only":     {method: "HEAD", want: inventory.Observation{Size: 1000, Asked: true}},
		"a range":       {span: "bytes=100-299", want: inventory.Observation{Bytes: 200, Size: 1000, Offset: 100}},
		"the rest":      {span: "bytes=900-", want: inventory.Observation{Bytes: 100, Size: 1000, Offset: 900}},
		"beyond":        {span: "bytes=2000-", want: inventory.Observation{Error: "answered 416 Requested Range Not Satisfiable"}},
		"not there":     {status: 404, want: inventory.Observation{Error: "answered 404 Not Found"}},
		"not needed":    {status: 304, want: inventory.Observation{Asked: true}},
		"not permitted": {status: 403, want: inventory.Observation{Error: "answered 403 Forbidden"}},
	} {
		r := httptest.NewRequest(c.method, "/x", nil)
		if c.span != "" {
			r.Header.Set("Range", c.span)
		}
		got := Transfer(httptest.NewRecorder(), r, "x", func(w http.ResponseWriter, r *http.Request) {
			if c.status != 0 {
				w.WriteHeader(c.status)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, file)
		})
		c.want.Kind, c.want.Detail = inventory.SawFile, "x"
		if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(inventory.Observation{}, "Took", "Remote"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

// A file is larger than what the sockets' buffers hold, and the machine goes away.
func TestATransferThatBreaksOffSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "initrd.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	seen := make(chan inventory.Observation, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := w.(io.ReaderFrom); !ok {
			t.Error("the connection has no ReadFrom, so that sendfile cannot be used")
		}
		seen <- Transfer(w, r, "initrd.img", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) })
	}))
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	o := <-seen
	if o.Error == "" || o.Bytes < 1<<20-4096 || o.Bytes >= size || o.Size != size {
		t.Errorf("observed %+v", o)
	}
}

func TestIPXESaysItsVersion(t *testing.T) {
	for agent, want := range map[string]string{
		"iPXE/1.0.0+git-20190125.36a4c85-5.1": "1.0.0+git-20190125.36a4c85-5.1",
		"iPXE/2.0.0":                          "2.0.0",
		"curl/7.88.1":                         "",
		"iPXE/1 \x1b[31m":                     "",
		"":                                    "",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("User-Agent", agent)
		if got := version(r); got != want {
			t.Errorf("%q: %q, want %q", agent, got, want)
		}
	}
}
