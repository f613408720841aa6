package testenv

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// redfishImageServer serves one image, with ranges.
func redfishImageServer(t *testing.T, content []byte) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/boot.iso" {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "boot.iso", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(server.Close)
	return server.URL + "/boot.iso"
}
