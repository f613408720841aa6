package bmc

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"recast/inventory"
)

// answerMost bounds one answer of a BMC; the largest collections seen are
// below a megabyte.
const answerMost = 4 << 20

// redfishTransport carries every request to one BMC, gofish's and ours. It
// pins the certificate, gives each request the context of the call in progress
// (gofish connects with context.Background), keeps connections alive although
// gofish asks to close them, and remembers why a call failed, which gofish
// reduces to text.
type redfishTransport struct {
	base *http.Transport
	host string // with its port: nobody else is asked
	tls  *tls.Config
	bad  *BadAnswers
	log  *slog.Logger

	// one in flight: the answer is read whole before the next request goes out,
	// because gofish leaves bodies half read.
	one sync.Mutex

	mu      sync.Mutex
	ctx     context.Context
	failure error  // why the call in progress failed, classified
	status  int    // the last status that was not a success
	token   string // of the session, for our own requests
	session Session
	basic   bool // the service has no sessions, or none to spare
	offer   bool // of basic authentication, in the last 401
	// change is the account whose password has to be changed before anything else.
	change string

	system string // the path of the one that is meant
	root   []byte // the service root that the login read, until that is known
}

const rootPath = "/redfish/v1"

// takeRoot is the service root as the login read it; nil where it did not.
func (r *redfishTransport) takeRoot() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	root := r.root
	r.root = nil
	return root
}

// tlsConfig believes exactly one leaf certificate. BMC certificates are
// self-signed, expired and for another name; their key is what identifies them.
func tlsConfig(host string, pin inventory.Digest) *tls.Config {
	return &tls.Config{
		// Not skipped: VerifyConnection below replaces it, on resumption too.
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS12,
		// Without the hybrid of ML-KEM, whose greeting needs a second packet: small
		// TLS stacks wait for the rest of one that they take for whole, and the key
		// is what the pin vouches for. And without X25519, which costs Go half as much
		// again as P-256, which each TLS stack has to have (RFC 8446, 9.1; RFC 8422, 5.1.1).
		CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP384},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return &PinError{Host: host, Want: pin}
			}
			seen := inventory.DigestOf(state.PeerCertificates[0].Raw)
			if pin == "" || seen != pin {
				return &PinError{Host: host, Seen: seen, Want: pin}
			}
			return nil
		},
	}
}

// Fingerprint is the SHA-256 of the certificate that a Redfish BMC shows now,
// for enrolment. It sends no credentials; whether it is the right BMC, a person
// has to know.
func Fingerprint(ctx context.Context, rawURL string) (inventory.Digest, error) {
	a, err := parseURL(rawURL)
	if err != nil {
		return "", err
	}
	if a.scheme != "redfish" {
		return "", fmt.Errorf("read certificate of %q: only redfish has one", rawURL)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	dialer := tls.Dialer{Config: tlsConfig(a.hostPort(), "")}
	conn, err := dialer.DialContext(ctx, "tcp", a.hostPort())
	if err == nil {
		_ = conn.Close()
	}
	var pin *PinError
	if errors.As(err, &pin) && pin.Seen != "" {
		return pin.Seen, nil
	}
	if err == nil {
		err = errors.New("the handshake was not checked")
	}
	return "", explain("read certificate of "+a.hostPort(), err)
}

func newRedfishTransport(a address, t Target) *redfishTransport {
	r := &redfishTransport{host: a.hostPort(), bad: t.Bad, log: t.Log, tls: tlsConfig(a.hostPort(), t.Pin)}
	r.rest()
	return r
}

// rest closes the connection and lets go of what only requests need: some KB, where
// thousands of sessions are kept. The caller sees to it that no request is under way.
func (r *redfishTransport) rest() {
	if r.base != nil {
		r.base.CloseIdleConnections()
	}
	r.base = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       r.tls,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: callTimeout,
		IdleConnTimeout:       30 * time.Second,
		MaxConnsPerHost:       1,
		ReadBufferSize:        2 << 10, // answers are read at once, thousands of connections stay open
		WriteBufferSize:       1 << 10,
		DisableCompression:    true, // some ETags change with it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ctx = context.Background()
}

// begin starts a call; failed ends it.
func (r *redfishTransport) begin(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ctx, r.failure, r.status = ctx, nil, 0
}

// failed prefers the recorded reason to the error that gofish made of it. An
// error without a recorded reason was made above the wire.
func (r *redfishTransport) failed(err error) error {
	if err == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure != nil {
		return r.failure
	}
	return err
}

func (r *redfishTransport) lastStatus() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// sessionOver reports whether the BMC has forgotten the session of the last request.
func (r *redfishTransport) sessionOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status == http.StatusUnauthorized && !r.basic // else the password itself was refused
}

// RoundTrip implements http.RoundTripper.
func (r *redfishTransport) RoundTrip(in *http.Request) (*http.Response, error) {
	// gofish makes addresses of the host and what the BMC calls a path: of "0/x", or of
	// "@host/", that is another port, or another host, and the token would go there.
	if in.URL.Host != r.host || in.URL.Scheme != "https" || in.URL.User != nil {
		r.bad.count(badLink)
		r.fail(0, fmt.Errorf("%s: %w", in.Method, badLink), badLink)
		return nil, badLink
	}
	r.one.Lock()
	defer r.one.Unlock()
	r.mu.Lock()
	ctx := r.ctx
	r.mu.Unlock()

	out := in.WithContext(ctx)
	if in.Close || in.Header["Connection"] != nil || in.Method == http.MethodPost && in.Header["If-Match"] != nil {
		out = in.Clone(ctx)
		out.Close = false
		out.Header.Del("Connection")
		if out.Method == http.MethodPost {
			// gofish adds the resource's ETag to actions; some BMCs answer 412.
			out.Header.Del("If-Match")
		}
	}
	began := time.Now()
	var body []byte
	response, err := r.base.RoundTrip(out)
	if err == nil {
		body, err = r.readAll(response)
	}
	if err != nil {
		// Counted here: gofish may make light of it, and what it leaves of it is text.
		r.bad.count(badAnswerOf(err))
		reason := reasonOf(err)
		if reason == ErrRejected && !errors.Is(err, ErrRejected) {
			reason = ErrUnreachable // no answer came, so none can have refused
		}
		r.fail(0, fmt.Errorf("%s %s: %w: %s", out.Method, out.URL.EscapedPath(), reason, strings.TrimPrefix(oneLine(err), reason.Error()+": ")), err)
		r.log.Debug("redfish", "method", out.Method, "path", out.URL.EscapedPath(), "error", err)
		return nil, err
	}
	r.log.Debug("redfish", "method", out.Method, "path", out.URL.EscapedPath(), "status", response.StatusCode, "took", time.Since(began))
	if err := r.note(out, response, body); err != nil {
		return nil, err
	}
	return response, nil
}

func (r *redfishTransport) fail(status int, reason, cause error) {
	var pin *PinError
	if errors.As(cause, &pin) {
		reason = pin
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure, r.status = reason, status
}

// readAll replaces the body by bytes in memory.
func (r *redfishTransport) readAll(response *http.Response) (body []byte, err error) {
	if n := response.ContentLength; n >= 0 && n <= answerMost {
		body = make([]byte, n)
		_, err = io.ReadFull(response.Body, body)
	} else {
		body, err = io.ReadAll(io.LimitReader(response.Body, answerMost+1))
	}
	_ = response.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(body) > answerMost {
		return nil, badLong
	}
	if response.Request.Method == http.MethodGet && response.StatusCode == http.StatusOK && !isObject(body) {
		return nil, badJSON
	}
	response.Body = &readBody{Reader: bytes.NewReader(body), all: body}
	response.ContentLength = int64(len(body))
	return body, nil
}

// basicRefused reports whether a password was sent to a service that does not offer to
// take one with each request.
func (r *redfishTransport) basicRefused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.basic && !r.offer
}

// readBody is an answer in memory.
type readBody struct {
	*bytes.Reader
	all []byte
}

func (*readBody) Close() error { return nil }

// isObject reports whether the bytes are one JSON object, as every resource is.
func isObject(body []byte) bool {
	body = bytes.TrimSpace(body)
	return len(body) > 0 && body[0] == '{' && json.Valid(body)
}

// isRefusal reports whether an object is nothing but an error. Those of changes that
// went well are so on some BMCs, with a message that says so; a resource never is.
func isRefusal(body []byte) bool {
	body, object := bytes.CutPrefix(bytes.TrimSpace(body), []byte("{"))
	return object && bytes.HasPrefix(bytes.TrimSpace(body), []byte(`"error"`))
}

// note records a failure and the token of a new session. Its error is a refusal that
// came with status 200.
func (r *redfishTransport) note(request *http.Request, response *http.Response, body []byte) error {
	if token := response.Header.Get("X-Auth-Token"); token != "" && request.Method == http.MethodPost {
		r.mu.Lock()
		r.token, r.session = token, openedSession(response, body)
		r.mu.Unlock()
	}
	if request.Method == http.MethodGet && response.StatusCode == http.StatusOK && strings.TrimSuffix(request.URL.Path, "/") == rootPath {
		r.mu.Lock()
		if r.system == "" {
			r.root = body
		}
		r.mu.Unlock()
	}
	hidden := response.StatusCode == http.StatusOK && request.Method == http.MethodGet && isRefusal(body)
	if response.StatusCode < 400 && !hidden {
		return nil
	}
	id, text := extendedInfo(body)
	r.noteChange(id, body)
	if hidden && plainMessageID(id) == "Base.Success" { // the end of a task that had no more to say
		return nil
	}
	if response.StatusCode == http.StatusUnauthorized {
		offer := strings.Contains(strings.ToLower(strings.Join(response.Header.Values("WWW-Authenticate"), ",")), "basic")
		r.mu.Lock()
		r.offer = offer
		r.mu.Unlock()
	}
	answer := &AnswerError{
		Reason: httpReason(response.StatusCode, id, text),
		Code:   oneLine(errors.New(id)), Message: oneLine(errors.New(text)), Status: response.StatusCode,
		After: retryAfter(response.Header.Get("Retry-After"), time.Now()),
		what:  request.Method + " " + request.URL.EscapedPath(),
	}
	if answer.Reason == ErrAuth && answer.Status == http.StatusForbidden && plainMessageID(id) == "Base.InsufficientPrivilege" && request.Header.Get("X-Auth-Token") != "" {
		answer.Reason = ErrRejected // who is in has the right password, and not the right to do this
	}
	r.fail(response.StatusCode, answer, nil)
	if hidden {
		return answer
	}
	return nil
}

// noteChange keeps the account that a PasswordChangeRequired names.
func (r *redfishTransport) noteChange(id string, body []byte) {
	if plainMessageID(id) != "Base.PasswordChangeRequired" {
		return
	}
	var answer struct {
		Error struct {
			Info []struct {
				MessageID string   `json:"MessageId"`
				Args      []string `json:"MessageArgs"`
			} `json:"@Message.ExtendedInfo"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &answer)
	for _, i := range answer.Error.Info {
		if plainMessageID(i.MessageID) == "Base.PasswordChangeRequired" && len(i.Args) > 0 && strings.HasPrefix(i.Args[0], "/redfish/v1/") {
			r.mu.Lock()
			r.change = i.Args[0]
			r.mu.Unlock()
		}
	}
}

// mustChange is that account, "" none.
func (r *redfishTransport) mustChange() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change
}

// extendedInfo finds the message of a Redfish error body that says most: one
// that we know, else the first that is not the general one that some BMCs begin
// with. Both are empty where the body is something else.
func extendedInfo(body []byte) (id, text string) {
	var answer struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Info    []struct {
				MessageID string `json:"MessageId"`
				Message   string `json:"Message"`
			} `json:"@Message.ExtendedInfo"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return "", ""
	}
	id, text = answer.Error.Code, answer.Error.Message
	said := 0 // how much the message found so far says
	for _, i := range answer.Error.Info {
		plain := plainMessageID(i.MessageID)
		says := 2
		if _, known := messageReasons[plain]; known {
			says = 3
		} else if plain == "Base.GeneralError" || plain == "Base.Success" {
			says = 1
		}
		if i.MessageID != "" && says > said {
			id, text, said = i.MessageID, i.Message, says
		}
	}
	return id, text
}

// sameHost refuses to carry a session token to another host.
func sameHost(request *http.Request, via []*http.Request) error {
	if request.URL.Host != via[0].URL.Host || request.URL.Scheme != via[0].URL.Scheme {
		return badLink
	}
	if len(via) > 4 {
		return badLink
	}
	return nil
}
