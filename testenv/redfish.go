package testenv

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"recast/inventory"
)

// RedfishOptions configure a virtual Redfish BMC.
type RedfishOptions struct {
	// Listener is the TCP socket to serve TLS on, e.g. one opened in a network
	// namespace; the BMC closes it. Nil listens on Addr, default 127.0.0.1:0.
	Listener net.Listener
	Addr     string
	// User and Password of the one account, an administrator.
	User, Password string
	// SystemID is the last word of the system's path; default "1".
	SystemID string
	// OtherSystems are systems beside it that are always off and refuse everything.
	OtherSystems []string
	// UUID of the machine, as its SMBIOS tells it; may be empty.
	UUID string
	// Certificate is generated when nil.
	Certificate *tls.Certificate
	// NoSessions offers basic authentication only.
	NoSessions bool
	// Sessions at once; default 8.
	Sessions int
	Machine  Machine
	Faults   BMCFaults
}

// RedfishBMC is a BMC that speaks Redfish over TLS and switches a Machine.
type RedfishBMC struct {
	*bmcFront
	options RedfishOptions
	addr    string
	pin     inventory.Digest
	server  *http.Server
	done    chan struct{}
	once    sync.Once

	tokenMu sync.Mutex
	tokens  map[string]string // token to session id
	nextID  int
}

// NewRedfish starts it; Close ends it.
func NewRedfish(o RedfishOptions) (*RedfishBMC, error) {
	if o.Machine == nil {
		return nil, errors.New("start Redfish BMC: no machine")
	}
	if o.SystemID == "" {
		o.SystemID = "1"
	}
	if o.Sessions == 0 {
		o.Sessions = 8
	}
	if o.Certificate == nil {
		certificate, err := redfishCertificate()
		if err != nil {
			return nil, fmt.Errorf("start Redfish BMC: %w", err)
		}
		o.Certificate = certificate
	}
	if o.Listener == nil {
		if o.Addr == "" {
			o.Addr = "127.0.0.1:0"
		}
		listener, err := net.Listen("tcp", o.Addr)
		if err != nil {
			return nil, fmt.Errorf("start Redfish BMC: %w", err)
		}
		o.Listener = listener
	}
	b := &RedfishBMC{
		bmcFront: newBMCFront(o.Machine, o.Faults),
		options:  o,
		addr:     o.Listener.Addr().String(),
		pin:      inventory.DigestOf(o.Certificate.Certificate[0]),
		done:     make(chan struct{}),
		tokens:   map[string]string{},
	}
	b.server = &http.Server{
		Handler:           http.HandlerFunc(b.serve),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{*o.Certificate}, MinVersion: tls.VersionTLS12},
		ErrorLog:          log.New(io.Discard, "", 0), // a client that refuses our certificate is the point of some tests
	}
	go func() {
		defer close(b.done)
		_ = b.server.ServeTLS(o.Listener, "", "")
	}()
	return b, nil
}

// Addr is host:port.
func (b *RedfishBMC) Addr() string { return b.addr }

// URL is what a declared machine names.
func (b *RedfishBMC) URL() string { return "redfish://" + b.addr }

// Pin is the SHA-256 of the certificate.
func (b *RedfishBMC) Pin() inventory.Digest { return b.pin }

// Sessions is how many are open.
func (b *RedfishBMC) Sessions() int {
	b.tokenMu.Lock()
	defer b.tokenMu.Unlock()
	return len(b.tokens)
}

// DropSessions forgets every session, as a restart of the BMC does.
func (b *RedfishBMC) DropSessions() {
	b.tokenMu.Lock()
	defer b.tokenMu.Unlock()
	clear(b.tokens)
}

// Close stops serving and closes the socket and every connection.
func (b *RedfishBMC) Close() error {
	var err error
	b.once.Do(func() {
		close(b.closed)
		err = b.server.Close()
		<-b.done
	})
	return err
}

// redfishCertificate is self-signed and names no host, as a BMC's factory one.
func redfishCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "virtual BMC"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

const (
	redfishRoot     = "/redfish/v1"
	redfishSessions = redfishRoot + "/SessionService/Sessions"
	redfishBodyMost = 64 << 10
)

func (b *RedfishBMC) systemPath() string { return redfishRoot + "/Systems/" + b.options.SystemID }

// serve is one request: faults, login, then the resource.
func (b *RedfishBMC) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	faults := b.now()
	if faults.Hang {
		b.record("read", r.Method+" "+path+": not answered", false)
		select {
		case <-r.Context().Done():
		case <-b.closed:
		}
		return
	}
	if !b.wait(faults.Delay) {
		return
	}
	w.Header().Set("OData-Version", "4.0")
	r.Body = http.MaxBytesReader(w, r.Body, redfishBodyMost)
	switch {
	case path == "/redfish" && r.Method == http.MethodGet:
		redfishReply(w, http.StatusOK, map[string]string{"v1": redfishRoot + "/"})
		return
	case path == redfishRoot && r.Method == http.MethodGet:
		b.record("read", "GET "+path, false)
		redfishReply(w, http.StatusOK, b.root())
		return
	case path == redfishSessions && r.Method == http.MethodPost:
		b.openSession(w, r)
		return
	}
	if !b.authorised(w, r) {
		return
	}
	if faults.Busy {
		b.record("read", r.Method+" "+path+": busy", false)
		w.Header().Set("Retry-After", "5")
		redfishError(w, http.StatusServiceUnavailable, "Base.1.8.ServiceTemporarilyUnavailable", "The service is temporarily unavailable. Retry in 5 seconds.")
		return
	}
	switch {
	case r.Method == http.MethodDelete && strings.HasPrefix(path, redfishSessions+"/"):
		b.closeSession(w, path[len(redfishSessions)+1:])
	case r.Method == http.MethodPost && path == b.systemPath()+"/Actions/ComputerSystem.Reset":
		b.reset(w, r)
	case r.Method == http.MethodPatch && path == b.systemPath():
		b.patch(w, r)
	case r.Method == http.MethodGet:
		b.record("read", "GET "+path, false)
		b.get(w, path)
	default:
		b.record("read", r.Method+" "+path+": refused", false)
		redfishError(w, http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed", "The HTTP method is not allowed on this resource.")
	}
}

// authorised checks the session token or the basic credentials of a request.
func (b *RedfishBMC) authorised(w http.ResponseWriter, r *http.Request) bool {
	if token := r.Header.Get("X-Auth-Token"); token != "" {
		b.tokenMu.Lock()
		_, ok := b.tokens[token]
		b.tokenMu.Unlock()
		if ok {
			return true
		}
		b.record("read", r.Method+" "+r.URL.Path+": no such session", false)
		redfishError(w, http.StatusUnauthorized, "Base.1.8.NoValidSession", "There is no valid session established with the implementation.")
		return false
	}
	if user, password, ok := r.BasicAuth(); ok {
		if b.login(user) && b.matches(user, password) {
			b.loggedIn()
			return true
		}
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="virtual BMC"`)
	redfishError(w, http.StatusUnauthorized, "Base.1.8.NoValidSession", "There is no valid session established with the implementation.")
	return false
}

func (b *RedfishBMC) matches(user, password string) bool {
	return subtle.ConstantTimeCompare([]byte(user+"\x00"+password), []byte(b.options.User+"\x00"+b.options.Password)) == 1
}

// openSession is the login.
func (b *RedfishBMC) openSession(w http.ResponseWriter, r *http.Request) {
	if b.options.NoSessions {
		b.record("read", "POST "+redfishSessions+": no sessions", false)
		redfishError(w, http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed", "The HTTP method is not allowed on this resource.")
		return
	}
	var account struct{ UserName, Password string }
	if err := json.NewDecoder(r.Body).Decode(&account); err != nil {
		redfishError(w, http.StatusBadRequest, "Base.1.8.MalformedJSON", "The request body was not valid JSON.")
		return
	}
	if !b.login(account.UserName) || !b.matches(account.UserName, account.Password) {
		redfishError(w, http.StatusUnauthorized, "Base.1.8.ResourceAtUriUnauthorized", "The user name or password is wrong.")
		return
	}
	b.loggedIn()
	b.tokenMu.Lock()
	full := len(b.tokens) >= b.options.Sessions
	token, id := rand.Text(), ""
	if !full {
		b.nextID++
		id = strconv.Itoa(b.nextID)
		b.tokens[token] = id
	}
	b.tokenMu.Unlock()
	if full {
		redfishError(w, http.StatusServiceUnavailable, "Base.1.8.SessionLimitExceeded", "The session limit is reached.")
		return
	}
	path := redfishSessions + "/" + id
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", path)
	redfishReply(w, http.StatusCreated, redfishResource(path, "#Session.v1_3_0.Session", id, map[string]any{"UserName": account.UserName}))
}

func (b *RedfishBMC) closeSession(w http.ResponseWriter, id string) {
	b.tokenMu.Lock()
	found := false
	for token, session := range b.tokens {
		if session == id {
			delete(b.tokens, token)
			found = true
		}
	}
	b.tokenMu.Unlock()
	b.record("logout", id, found)
	if !found {
		redfishNotFound(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// redfishResets are the reset types on offer: the verb, and what the machine does.
var redfishResets = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart"}

func (b *RedfishBMC) reset(w http.ResponseWriter, r *http.Request) {
	var action struct{ ResetType string }
	if err := json.NewDecoder(r.Body).Decode(&action); err != nil {
		redfishError(w, http.StatusBadRequest, "Base.1.8.MalformedJSON", "The request body was not valid JSON.")
		return
	}
	var verb string
	var do func(context.Context) error
	on := b.machine.Powered()
	switch action.ResetType {
	case "On":
		verb, do = "power-on", b.machine.PowerOn
	case "ForceOff":
		verb, do = "power-off", b.machine.PowerOff
	case "GracefulShutdown":
		verb, do = "shutdown", b.machine.Shutdown
	case "ForceRestart":
		verb, do = "reset", b.machine.Reset
	default:
		redfishError(w, http.StatusBadRequest, "Base.1.8.ActionParameterNotSupported", "The parameter ResetType has a value that is not supported.")
		return
	}
	if on == (verb == "power-on") {
		b.record(verb, "refused: already so", false)
		redfishError(w, http.StatusConflict, "Base.1.8.ActionParameterValueConflict", "The system is in that power state already.")
		return
	}
	// The machine's own time must not depend on whether the client still listens.
	if err := b.power(context.WithoutCancel(r.Context()), verb, do); err != nil {
		redfishError(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
		return
	}
	faults := b.now()
	if faults.LoseReply {
		panic(http.ErrAbortHandler) // the connection ends without an answer
	}
	if faults.RejectAfter {
		redfishError(w, http.StatusBadRequest, "Base.1.8.GeneralError", "A general error has occurred.")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// redfishBootPatch is what a client may write.
type redfishBootPatch struct {
	Boot *struct {
		BootSourceOverrideTarget  *string
		BootSourceOverrideEnabled *string
		BootSourceOverrideMode    *string
	}
}

func (b *RedfishBMC) patch(w http.ResponseWriter, r *http.Request) {
	faults := b.now()
	if match := r.Header.Get("If-Match"); match == "" && faults.NeedETag {
		redfishError(w, http.StatusPreconditionRequired, "Base.1.8.PreconditionRequired", "A precondition header is required.")
		return
	} else if match != "" && match != "*" && match != redfishETag(b.system()) {
		redfishError(w, http.StatusPreconditionFailed, "Base.1.8.PreconditionFailed", "The ETag supplied did not match.")
		return
	}
	var patch redfishBootPatch
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&patch); err != nil || patch.Boot == nil {
		redfishError(w, http.StatusBadRequest, "Base.1.8.PropertyUnknown", "The request holds a property that is unknown or not writable.")
		return
	}
	once, why := redfishOverride(patch, b.boot(), b.machine.UEFI())
	if why != "" {
		redfishError(w, http.StatusBadRequest, "Base.1.8.PropertyValueNotInList", why)
		return
	}
	if err := b.setBoot(once); err != nil {
		redfishError(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
		return
	}
	if faults.RejectAfter {
		redfishError(w, http.StatusBadRequest, "Base.1.8.GeneralError", "A general error has occurred.")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
