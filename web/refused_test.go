package web

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"recast/inventory"
)

// listening serves on a loopback port until the test ends.
func listening(t *testing.T, server *http.Server) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if server.TLSConfig != nil {
			server.ServeTLS(l, "", "")
		} else {
			server.Serve(l)
		}
	}()
	t.Cleanup(func() { server.Close(); <-done })
	return l.Addr().String()
}

// then parts what is said when the answer to what came before was read, and cut
// ends what is said with an end of the connection's one direction.
const then, cut = "\x00then\x00", "\x00cut\x00"

// say sends bytes on one connection and gives the status of every answer until
// the server closes it.
func say(t *testing.T, conn net.Conn, text string) (codes []int) {
	t.Helper()
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	text, ends := strings.CutSuffix(text, cut)
	parts := strings.Split(text, then)
	r := bufio.NewReader(conn)
	for i, part := range parts {
		// A server that has refused what is too long hears no more of it: its answer
		// can be read though the rest cannot be sent.
		if _, err := conn.Write([]byte(part)); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		if last := i == len(parts)-1; last && ends {
			if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		for {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				return codes
			}
			codes = append(codes, resp.StatusCode)
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return codes
			}
			resp.Body.Close()
			if i < len(parts)-1 {
				break
			}
		}
	}
	return codes
}

// counted waits until the server's counters are these: what net/http refuses is
// seen at the end of its connection.
func counted(t *testing.T, name string, s *Server, want map[string]uint64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		got := s.refused.counts()
		d := cmp.Diff(want, got)
		if d == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: counted (-want +got):\n%s", name, d)
		}
	}
	s.refused.mu.Lock()
	s.refused.n = nil
	s.refused.mu.Unlock()
}

const (
	get   = " HTTP/1.1\r\nHost: x\r\n\r\n"
	final = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
)

func TestRefusedRequestsOfMachinesAreCountedByReason(t *testing.T) {
	s := newSite(t)
	s.addImage(t)
	addr := listening(t, s.BootHTTP())
	pack := ImagesPath + s.image.Pack.Hex()
	const unread = "boot HTTP: no request can be read"
	for _, c := range []struct {
		name, text string
		codes      []int
		want       map[string]uint64
	}{
		{"what is there", "GET /boot/ramdisk/vmlinuz" + get + "GET " + pack + get + "HEAD " + pack + final, []int{200, 200, 200}, nil},
		{"a bad query", "GET /boot/script?mac=zz" + final, []int{400}, map[string]uint64{"boot HTTP: 400 Bad Request": 1}},
		{"no such path", "GET /a" + get + "GET /b" + final, []int{404, 404}, map[string]uint64{"boot HTTP: 404 Not Found": 2}},
		{"another method", "DELETE " + pack + final, []int{405}, map[string]uint64{"boot HTTP: 405 Method Not Allowed": 1}},
		{"a range past the end", "GET " + pack + strings.Replace(final, "\r\n\r\n", "\r\nRange: bytes=999999999-\r\n\r\n", 1), []int{416},
			map[string]uint64{"boot HTTP: 416 Requested Range Not Satisfiable": 1}},
		{"no range", "GET " + pack + strings.Replace(final, "\r\n\r\n", "\r\nRange: frames=x\r\n\r\n", 1), []int{416},
			map[string]uint64{"boot HTTP: 416 Requested Range Not Satisfiable": 1}},
		{"no HTTP", "\x16\x03\x01\x02\x00\r\n\r\n", []int{400}, map[string]uint64{unread: 1}},
		{"a header without colon", "GET / HTTP/1.1\r\nHost: x\r\nwhat\r\n\r\n", []int{400}, map[string]uint64{unread: 1}},
		{"no host", "GET / HTTP/1.1\r\n\r\n", []int{400}, map[string]uint64{unread: 1}},
		{"another version", "GET / HTTP/7.0\r\n\r\n", []int{505}, map[string]uint64{unread: 1}},
		{"a long header", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10), []int{431}, map[string]uint64{unread: 1}},
		{"half a request", "GET /boot/scr" + cut, []int{400}, map[string]uint64{unread: 1}},
		{"a good one and a long header", "GET /boot/ramdisk/vmlinuz" + get + then + "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10), []int{200, 431}, map[string]uint64{unread: 1}},
		{"nothing", cut, nil, nil},
		{"the star", "OPTIONS *" + final, []int{400}, map[string]uint64{"boot HTTP: 400 Bad Request": 1}},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if codes := say(t, conn, c.text); fmt.Sprint(codes) != fmt.Sprint(c.codes) {
			t.Errorf("%s: %d, want %d", c.name, codes, c.codes)
		}
		counted(t, c.name, s.Server, c.want)
	}
}

func TestRefusedRequestsToTheAPIsAreCountedByReason(t *testing.T) {
	s := newSite(t)
	cert, err := s.Engine.Authority().Issue(nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server := s.APIHTTP()
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	addr := listening(t, server)
	post := func(path, token, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", path, token, len(body), body)
	}
	for _, c := range []struct {
		name, text string
		codes      []int
		want       map[string]uint64
	}{
		{"what is there", "GET " + apiRoot + "/version" + final, []int{200}, nil},
		{"no such path", "GET /client/word" + final, []int{404}, map[string]uint64{"operator API: 404 Not Found": 1}},
		{"another method", "DELETE " + apiRoot + "/version" + final, []int{405}, map[string]uint64{"operator API: 405 Method Not Allowed": 1}},
		{"no token", "GET " + apiRoot + "/status" + final, []int{401}, map[string]uint64{"operator API: 401 Unauthorized": 1}},
		{"no JSON", post(apiRoot+"/freeze", operatorToken, "{"), []int{400}, map[string]uint64{"operator API: 400 Bad Request": 1}},
		{"files that are refused", post(apiRoot+"/plan", operatorToken, `{"files":[{"name":"x.yaml","data":"a: b"}]}`), []int{400}, map[string]uint64{"operator API: 400 Bad Request": 1}},
		{"a state that says no", post(apiRoot+"/apply", operatorToken, `{"plan":"sha256:`+strings.Repeat("0", 64)+`"}`), []int{409}, nil},
		{"an agent without a token", post("/agent/v1/report", "", "{}"), []int{401}, map[string]uint64{"agent API: 401 Unauthorized": 1}},
		{"an agent with one of its own", post("/agent/v1/report", "x", "{}"), []int{403}, map[string]uint64{"agent API: 403 Forbidden": 1}},
		{"a claim without JSON", post("/agent/v1/claim", "", "<xml>"), []int{400}, map[string]uint64{"agent API: 400 Bad Request": 1}},
		{"a claim of 2 MiB", post("/agent/v1/claim", "", `{"nonce":"`+strings.Repeat("x", 2<<20)+`"}`), []int{413}, map[string]uint64{"agent API: 413 Request Entity Too Large": 1}},
		{"no HTTP", "GARBAGE\r\n\r\n", []int{400}, map[string]uint64{"API: no request can be read": 1}},
		{"half a request", "GET /api" + cut, []int{400}, map[string]uint64{"API: no request can be read": 1}},
	} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if codes := say(t, conn, c.text); fmt.Sprint(codes) != fmt.Sprint(c.codes) {
			t.Errorf("%s: %d, want %d", c.name, codes, c.codes)
		}
		counted(t, c.name, s.Server, c.want)
	}
	for name, text := range map[string]string{"plain HTTP": "GET /" + final, "noise": "\x00\x01\x02\x03\x04\x05\x06\x07"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		say(t, conn, text)
		counted(t, name, s.Server, map[string]uint64{"API: the TLS handshake failed": 1})
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close() // somebody looks whether the port is open
	say(t, dialTLS(t, addr), "GET "+apiRoot+"/version"+final)
	counted(t, "a look at the port", s.Server, nil)

	var got StatusReply
	say(t, dialTLS(t, addr), "GET "+apiRoot+"/status"+final)
	s.Malformed = func() map[string]uint64 { return map[string]uint64{"DHCP: short": 3} }
	s.ok(t, "GET", apiRoot+"/status", nil, &got)
	if d := cmp.Diff(map[string]uint64{"DHCP: short": 3, "operator API: 401 Unauthorized": 1}, got.Malformed); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
}

func dialTLS(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestFailedHandshakesAreSeenOfTheirMachine(t *testing.T) {
	for line, want := range map[string]inventory.Observation{
		"http: TLS handshake error from 10.0.0.1:40000: remote error: tls: bad certificate\n": {Kind: inventory.SawTLS, Remote: netip.MustParseAddr("10.0.0.1"), Error: "remote error: tls: bad certificate"},
		"http: TLS handshake error from [::ffff:10.0.0.1]:4: EOF":                             {Kind: inventory.SawTLS, Remote: netip.MustParseAddr("10.0.0.1"), Error: "EOF"},
		"http: something else": {Kind: inventory.SawTLS},
	} {
		if diff := cmp.Diff(want, sawTLS(line), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%q (-want +got)\n%s", line, diff)
		}
	}
}

// A ramdisk whose clock is far off refuses us; its machine's timeline says so.
func TestAMachineThatDoesNotBelieveOurCertificateIsSeen(t *testing.T) {
	s := newSite(t)
	cert, err := s.Engine.Authority().Issue(nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server := s.APIHTTP()
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	addr := listening(t, server)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.Engine.Authority().PEM())
	if conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool}); err != nil {
		t.Fatal(err)
	} else {
		conn.Close()
	}
	if _, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, Time: func() time.Time { return time.Unix(0, 0) }}); err == nil {
		t.Fatal("a certificate of the future is believed")
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		var failed []inventory.Observation
		for _, o := range s.observed() {
			if o.Kind == inventory.SawTLS {
				failed = append(failed, o)
			}
		}
		if len(failed) == 1 && failed[0].Remote == netip.MustParseAddr("127.0.0.1") && strings.Contains(failed[0].Error, "certificate") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("observed %+v", failed)
		}
	}
}
