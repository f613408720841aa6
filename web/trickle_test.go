package web

import (
	"bufio"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestDeadlineEndsWithTheBody: the deadline of a body must not cut short the
// long poll that comes behind it, nor one without a body.
func TestDeadlineEndsWithTheBody(t *testing.T) {
	got := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
		_, err := decodeAll(r)
		if err == nil {
			select {
			case <-r.Context().Done():
				err = r.Context().Err()
			case <-time.After(400 * time.Millisecond):
			}
		}
		got <- err
	}))
	defer srv.Close()
	for _, c := range []struct {
		name, body string
		length     string
		fails      bool
	}{
		{"whole body", `{"a":1}`, "7", false},
		{"trickling body", `{"a"`, "7", true},
	} {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + c.length + "\r\n\r\n" + c.body)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-got:
			if (err != nil) != c.fails {
				t.Errorf("%s: %v", c.name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the handler waits for ever", c.name)
		}
		conn.Close()
	}
}

func decodeAll(r *http.Request) (map[string]any, error) {
	var v map[string]any
	return v, decodeJSON(r.Body, &v)
}

// TestBodiesAreHurried: the real handlers set the deadline on a real connection.
func TestBodiesAreHurried(t *testing.T) {
	s := newSite(t)
	for name, host := range map[string]string{"boot": s.boot.Listener.Addr().String(), "API": s.api.Listener.Addr().String()} {
		conn, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		path := "/boot/nothing"
		if name == "API" {
			path = "/agent/v1/claim"
		}
		// Everything at once: an answer comes, so that the deadline does no harm.
		if _, err := conn.Write([]byte("POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 4") {
			t.Errorf("%s: %q %v", name, line, err)
		}
	}
}
