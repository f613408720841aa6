package testenv

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// RedfishOptions configure a virtual Redfish BMC.
type RedfishOptions struct {
	// Listener is the TCP socket to serve TLS on, e.g. one opened in a network
	// namespace; the BMC closes it. Nil listens on Addr, default 127.0.0.1:0.
	Listener net.Listener
	Addr     string
	// Dial connects to where events are pushed and images are read, e.g. out of a
	// network namespace; nil dials from here.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// User and Password of the first account, an administrator.
	User, Password string
	// PasswordChangeRequired lets it do nothing else before that.
	PasswordChangeRequired bool
	// AccountSlots are accounts that exist from the start, mostly empty: one is
	// created by a PATCH of an empty one (iDRAC). 0: by POST and DELETE.
	AccountSlots int
	// NoSessions offers basic authentication only, NoBasic sessions only.
	NoSessions, NoBasic bool
	// Sessions at once; default 8.
	Sessions int
	// SessionIdle ends a session without requests; default 30 min.
	SessionIdle time.Duration

	// SystemID is the last word of the system's path; default "1".
	SystemID string
	// OtherSystems are beside it.
	OtherSystems []RedfishSystem
	// UUID and Serial of the machine, as its SMBIOS tells them; may be empty.
	UUID, Serial string
	// Hardware of the machine, as its BMC tells it.
	Hardware RedfishHardware
	// What the vendor calls itself and its things; the defaults are ours.
	Vendor, Product, Manufacturer, Model, Firmware string
	// BaseRegistry is the version of the messages in errors; default Base.1.19. Some
	// clients know the words of one version only.
	BaseRegistry string
	// Drives are the ids of the virtual drives of a machine that has one
	// (MediaDrive): the first is wired to it; default CD1.
	Drives []string
	// MediaUnderSystem has them under the system (Dell) instead of the manager.
	MediaUnderSystem bool

	// Screen is a PNG file of the machine's screen, as Dell's iDRAC gives it out. Nil:
	// there is no such action.
	Screen func() []byte

	// SSH is the socket of a console by SSH before a machine that has a serial port
	// (Consoled); the BMC closes it. Nil: none is on offer. SSHCommand has to be typed
	// first, into a shell of the BMC's own.
	SSH        net.Listener
	SSHCommand string
	// OldConsole tells of it as managers did before systems had a SerialConsole.
	OldConsole bool

	// Certificate is generated when nil.
	Certificate *tls.Certificate
	Machine     Machine
	Faults      BMCFaults
}

// RedfishBMC is a BMC that speaks Redfish over TLS and switches a Machine.
type RedfishBMC struct {
	*bmcFront
	options  RedfishOptions
	board    atomic.Pointer[Board] // of the first system
	addr     string
	port     int
	server   *http.Server
	listener *redfishListener
	outside  *http.Client // of the BMC's own requests
	systems  []*redfishSystem
	workers  atomic.Int32
	ssh      *redfishSSH // nil without

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // tasks, pushes, restarts
	done   chan struct{}
	once   sync.Once

	// stateMu guards everything below, and what says so; bmcFront's lock may be
	// taken while it is held, never the other way round.
	stateMu          sync.Mutex
	certificate      *tls.Certificate
	signingKey       crypto.Signer // of the last signing request
	accounts         []*redfishAccount
	nextAccount      int
	sessions         []*redfishSession
	nextSession      int
	idle             time.Duration
	tasks            []*redfishTaskRun
	nextTask         int
	subscriptions    []*redfishSubscription
	nextSubscription int
	nextEvent        int
}

func (o *RedfishOptions) defaults() {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.SystemID, "1"}, {&o.Vendor, "recast"}, {&o.Product, "virtual BMC"}, {&o.Manufacturer, "recast"},
		{&o.Model, "virtual machine"}, {&o.Firmware, "1.0"}, {&o.Addr, "127.0.0.1:0"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.Sessions == 0 {
		o.Sessions = 8
	}
	if o.SessionIdle == 0 {
		o.SessionIdle = 30 * time.Minute
	}
	if o.Drives == nil {
		o.Drives = []string{"CD1"}
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
}

// NewRedfish starts it; Close ends it.
func NewRedfish(o RedfishOptions) (_ *RedfishBMC, err error) {
	if o.Machine == nil {
		return nil, errors.New("start Redfish BMC: no machine")
	}
	o.defaults()
	if o.Certificate == nil {
		certificate, err := redfishCertificate()
		if err != nil {
			return nil, fmt.Errorf("start Redfish BMC: %w", err)
		}
		o.Certificate = certificate
	}
	if o.Listener == nil {
		listener, err := net.Listen("tcp", o.Addr)
		if err != nil {
			return nil, fmt.Errorf("start Redfish BMC: %w", err)
		}
		o.Listener = listener
	}
	b := &RedfishBMC{
		bmcFront:    newBMCFront(o.Machine, o.Faults),
		options:     o,
		addr:        o.Listener.Addr().String(),
		listener:    &redfishListener{Listener: o.Listener, conns: map[net.Conn]bool{}},
		done:        make(chan struct{}),
		certificate: o.Certificate,
		idle:        o.SessionIdle,
		accounts:    []*redfishAccount{{id: "1", user: o.User, password: o.Password, role: "Administrator", enabled: true, mustChange: o.PasswordChangeRequired}},
		nextAccount: 1,
	}
	for len(b.accounts) < o.AccountSlots {
		b.nextAccount++
		b.accounts = append(b.accounts, &redfishAccount{id: strconv.Itoa(b.nextAccount), role: "ReadOnly"})
	}
	if _, port, err := net.SplitHostPort(b.addr); err == nil {
		b.port, _ = strconv.Atoi(port)
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.outside = &http.Client{Transport: &http.Transport{
		DialContext: o.Dial, IdleConnTimeout: 10 * time.Second,
		// Real ones verify nothing unless somebody gave them a certificate to trust.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	b.board.Store(&Board{o.UUID, o.Serial})
	b.addSystem(o.SystemID, o.UUID, o.Machine)
	for _, other := range o.OtherSystems {
		if other.Machine == nil {
			other.Machine = redfishNobody{}
		}
		b.addSystem(other.ID, other.UUID, other.Machine)
	}
	if b.ssh, err = newRedfishSSH(b); err != nil {
		b.cancel()
		_ = o.Listener.Close()
		return nil, fmt.Errorf("start Redfish BMC: %w", err)
	}
	b.server = &http.Server{
		Handler:           http.HandlerFunc(b.serve),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return b.tlsCertificate(), nil },
		},
		ErrorLog: log.New(io.Discard, "", 0), // a client that refuses our certificate is the point of some tests
	}
	go func() {
		defer close(b.done)
		_ = b.server.ServeTLS(b.listener, "", "")
	}()
	return b, nil
}

// Addr is host:port.
func (b *RedfishBMC) Addr() string { return b.addr }

// URL is what a declared machine names.
func (b *RedfishBMC) URL() string { return "redfish://" + b.addr }

// Close stops serving and closes the socket and every connection.
func (b *RedfishBMC) Close() error {
	var err error
	b.once.Do(func() {
		close(b.closed)
		b.cancel()
		err = b.server.Close()
		<-b.done
		b.work.Wait()
		b.ejectAll()
		b.outside.CloseIdleConnections()
	})
	return err
}

// redfishListener is a socket whose BMC can be away for a while.
type redfishListener struct {
	net.Listener

	mu    sync.Mutex
	until time.Time
	conns map[net.Conn]bool
}

// rest cuts every connection, and each new one until the time is over.
func (l *redfishListener) rest(length time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Now().Add(length)
	for conn := range l.conns {
		_ = conn.Close()
	}
	clear(l.conns)
}

func (l *redfishListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		away := time.Now().Before(l.until)
		if !away {
			l.conns[conn] = true
		}
		l.mu.Unlock()
		if !away {
			return &redfishConn{Conn: conn, listener: l}, nil
		}
		_ = conn.Close()
	}
}

type redfishConn struct {
	net.Conn
	listener *redfishListener
}

func (c *redfishConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c.Conn)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
