// Package dhcp gives machines their addresses and tells them what to boot: a
// server of DHCPv4 and DHCPv6 over the declared Networks, and ProxyDHCP where
// another server gives the addresses.
//
// One pure function, reply, decides the answer to a packet; around it stand the
// loop of each socket with a bounded queue of what waits, workers for what has to
// be stored first, the lease index with the store as its log, and a guard per link
// that keeps us silent where another server answers.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

const (
	// rescan is how often interfaces that come and go are looked for.
	rescan = 5 * time.Second
	// defaultWorkers wait for the store together, which makes one group commit:
	// at 5 ms a commit, 38,000 leases a second.
	defaultWorkers = 256
)

// Server answers DHCP. Set the fields, call Update with what is declared, and
// Run. A nil Booter or Bootfile gives addresses only.
type Server struct {
	Store store.Store
	// Booter is asked what a machine that netboots may boot now.
	Booter ipxe.Booter
	// Bootfile turns the answer into the name the client understands: a TFTP
	// name for firmware (a tftp URL where server is an IPv6 address), an http URL
	// for iPXE. ok false: an address, no boot file.
	Bootfile func(c ipxe.Client, spec ipxe.Spec, server netip.Addr) (file string, ok bool)
	// Observe is told what was seen; it must not block. Nil discards.
	Observe func(inventory.Observation)
	Log     *slog.Logger
	// Workers is how many leases are stored at once; 0 means 256.
	Workers int

	once     sync.Once
	cfg      atomic.Pointer[config]
	table    *table
	ports    *ports
	queue    *queue
	counters counters
	findings findings
	duid     []byte                     // our server identifier in DHCPv6
	waiting  chan func(context.Context) // for the store; see later
	requests sync.Pool
	ourAddrs atomic.Pointer[[]netip.Addr]
	// storeRetry is when the store is tried again after it failed, in Unix
	// nanoseconds.
	storeRetry atomic.Int64
	badSeen    atomic.Int64

	mu       sync.Mutex // declared, sites, links, run
	declared *config
	sites    []site           // as they were arranged last
	links    map[string]*link // by interface
	links6   map[string]*link
	run      context.Context

	// For tests; nil means the real one.
	now        func() time.Time
	interfaces func() ([]Interface, error)
	probe      func(ctx context.Context, f Interface, class string, found func(foreign)) error
	probe6     func(ctx context.Context, f Interface, duid []byte, found func(foreign), managed func()) error
	arp        func(ctx context.Context, f Interface, heard func(netip.Addr, net.HardwareAddr)) error
	after      func(time.Duration) <-chan time.Time
	listen     func(Interface) (*conn, error)
	listen6    func(Interface) (*conn6, error)
}

// link is one interface we listen on.
type link struct {
	conn   *conn  // IPv4's
	conn6  *conn6 // or IPv6's
	wire   wire
	state  atomic.Pointer[linkState]
	unsent unsent
	cancel map[string]context.CancelFunc // of the guards, by Network
	reader sync.WaitGroup
	guards sync.WaitGroup
}

// linkState is what a packet's handling needs of a link; it is replaced whole.
type linkState struct {
	iface  Interface
	duties []*duty
}

func (s *Server) init() {
	s.once.Do(func() {
		s.table = newTable()
		s.ports = newPorts()
		s.queue = newQueue()
		s.links, s.links6 = map[string]*link{}, map[string]*link{}
		s.declared = compile(nil)
		s.cfg.Store(s.declared)
		s.ourAddrs.Store(new([]netip.Addr))
		if s.Workers <= 0 {
			s.Workers = defaultWorkers
		}
		s.waiting = make(chan func(context.Context), maxWaiting)
		s.requests.New = func() any { return &request{again: true} }
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		if s.now == nil {
			s.now = time.Now
		}
		if s.interfaces == nil {
			s.interfaces = Interfaces
		}
		if s.probe == nil {
			s.probe = probe
		}
		if s.probe6 == nil {
			s.probe6 = probe6
		}
		if s.arp == nil {
			s.arp = listenARP
		}
		if s.after == nil {
			s.after = time.After
		}
		if s.listen == nil {
			s.listen = listen
		}
		if s.listen6 == nil {
			s.listen6 = listen6
		}
	})
}

func (s *Server) log() *slog.Logger { return s.Log }

func (s *Server) observe(o inventory.Observation) {
	if s.Observe != nil {
		o.Time = s.now()
		s.Observe(o)
	}
}

// Update takes over a new declared truth: sockets are opened and closed as it
// needs, Networks that did not change go on undisturbed. The error names what
// is not served and why; everything else is.
func (s *Server) Update(set *inventory.Set) error {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.declared
	s.declared = compile(set)
	s.findings.drop(func(key string) bool { return outdated(key, was, s.declared) })
	if s.run == nil {
		s.cfg.Store(s.declared)
		return nil
	}
	return s.arrange()
}

// Run serves until the context ends, which is no error. It returns early only
// when no socket can be opened at its start.
func (s *Server) Run(ctx context.Context) error {
	s.init()
	if s.Store == nil {
		return errors.New("run dhcp: no store is set")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.duid = serverDUID(s.Store.Epoch())

	var background, workers sync.WaitGroup
	background.Go(func() { s.follow(ctx, "leases", inventory.LeasePrefix, s.table.begin, s.table.apply) })
	background.Go(func() { s.follow(ctx, "ports", inventory.PortPrefix, s.ports.begin, s.ports.apply) })
	background.Go(func() { s.storeLater(ctx) })
	background.Go(func() { s.collectPorts(ctx) })
	for range s.Workers {
		workers.Go(func() { s.work(ctx) })
	}
	s.mu.Lock()
	s.run = ctx
	err := s.arrange()
	started := len(s.links)+len(s.links6) > 0 || err == nil
	s.mu.Unlock()

	if started {
		if err != nil {
			s.log().Warn("dhcp serves in part", "err", err)
			err = nil
		}
		tick := time.NewTicker(rescan)
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-tick.C:
				s.mu.Lock()
				if err := s.arrange(); err != nil {
					s.log().Debug("arrange sockets", "err", err)
				}
				s.mu.Unlock()
				s.table.mu.Lock()
				s.table.sweep(s.now())
				s.table.mu.Unlock()
			}
		}
		tick.Stop()
	}

	s.mu.Lock()
	s.run, s.sites = nil, nil
	for _, links := range []map[string]*link{s.links, s.links6} {
		for name, l := range links {
			l.stop()
			delete(links, name)
		}
	}
	s.mu.Unlock()
	cancel()
	workers.Wait()
	background.Wait()
	// Nobody answers any more: this is all there is to store.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s.flush(last)
	return err
}

// arrange makes the sockets fit the declared Networks and the interfaces there
// are. s.mu is held.
func (s *Server) arrange() error {
	cfg, ctx := s.declared, s.run // which Run takes away under a reader that only begins
	ifaces, err := s.interfaces()
	if err != nil {
		return err
	}
	sites := attach(cfg.networks, ifaces, s.sites)
	s.sites = sites
	var errs []error
	for _, t := range sites {
		key := "attach/" + t.network.Name
		if t.problem == nil {
			s.findings.clear(key)
			continue
		}
		errs = append(errs, t.problem)
		s.findings.set(key, t.problem.Error(), time.Time{})
	}
	want := map[string]listener{}
	ours := []netip.Addr{}
	for _, l := range listeners(sites, ifaces, false) {
		want[l.iface.Name] = l
	}
	s.cfg.Store(cfg)
	errs = append(errs, s.arrange6(listeners(sites, ifaces, true), &ours)...)
	for _, name := range slices.Sorted(maps.Keys(s.links)) {
		// An interface that was made anew has another index; its old socket is deaf.
		if w, ok := want[name]; !ok || w.iface.Index != s.links[name].state.Load().iface.Index {
			s.links[name].stop()
			delete(s.links, name)
			s.log().Info("stop listening", "interface", name)
		}
	}
	// Firmware behind a relay asks the boot server from its new address, past the relay.
	relayedProxy := slices.ContainsFunc(sites, func(t site) bool {
		return t.iface == nil && t.network.DHCP == inventory.DHCPProxy && t.network.Subnet.Addr().Is4()
	})
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, key := want[name], "listen/"+name
		l := s.links[name]
		if l == nil {
			c, err := s.listen(w.iface)
			if err != nil {
				s.findings.set(key, err.Error(), time.Time{})
				// Where only a relay might send to, another server may have the port.
				if len(w.sites) > 0 {
					errs = append(errs, err)
				}
				continue
			}
			s.findings.clear(key)
			l = &link{conn: c, wire: c, cancel: map[string]context.CancelFunc{}}
			l.state.Store(&linkState{})
			s.links[name] = l
			s.log().Info("listen", "interface", name, "port", serverPort)
			s.assign(l, w)
			l.reader.Go(func() { s.serve(ctx, l, c.udp, serverPort) })
		} else {
			s.assign(l, w)
		}
		proxies := relayedProxy || slices.ContainsFunc(w.sites, func(t site) bool { return t.network.DHCP == inventory.DHCPProxy })
		switch udp, err := l.conn.serveBoot(proxies); {
		case err != nil:
			s.findings.set(key+"/boot", err.Error(), time.Time{})
			errs = append(errs, err)
		case udp != nil:
			s.log().Info("listen", "interface", name, "port", bootPort)
			l.reader.Go(func() { s.serve(ctx, l, udp, bootPort) })
			fallthrough
		default:
			s.findings.clear(key + "/boot")
		}
		for _, p := range w.iface.Addrs {
			ours = append(ours, p.Addr())
		}
	}
	s.ourAddrs.Store(&ours)
	s.findings.drop(func(key string) bool {
		kind, rest, _ := strings.Cut(key, "/")
		name, what, _ := strings.Cut(rest, "/")
		if kind != "listen" {
			return false
		}
		for _, l := range listeners(sites, ifaces, what == strconv.Itoa(serverPort6)) {
			if l.iface.Name == name {
				return false
			}
		}
		return true // nobody wants it any more
	})
	return errors.Join(errs...)
}

// assign gives a link its Networks, and each its guard. A Network that stays as
// it was keeps its guard and what that knows. s.mu is held.
func (s *Server) assign(l *link, w listener) {
	old := map[string]*duty{}
	for _, d := range l.state.Load().duties {
		old[d.site.network.Name] = d
	}
	var duties []*duty
	for i := range w.sites {
		t := w.sites[i]
		if d := old[t.network.Name]; d != nil && d.site.server == t.server && d.site.network.Force == t.network.Force && d.site.network.DHCP == t.network.DHCP && d.site.network.Subnet == t.network.Subnet {
			delete(old, t.network.Name)
			duties = append(duties, d)
			continue
		}
		d := newDuty(t)
		if cancel := l.cancel[t.network.Name]; cancel != nil {
			cancel()
		}
		ctx, cancel := context.WithCancel(s.run)
		l.cancel[t.network.Name] = cancel
		delete(old, t.network.Name)
		duties = append(duties, d)
		l.guards.Go(func() { s.guard(ctx, d) })
		if t.network.DHCP == inventory.DHCPAuthoritative && t.network.Subnet.Addr().Is4() {
			l.guards.Go(func() { s.hear(ctx, d) })
		}
	}
	for name := range old {
		l.cancel[name]()
		delete(l.cancel, name)
	}
	l.state.Store(&linkState{iface: w.iface, duties: duties})
}

// doubt tells the guard of a Network that another server may be on its link.
func (l *link) doubt(network string) {
	for _, d := range l.state.Load().duties {
		if d.site.network.Name == network {
			d.suspect()
		}
	}
}

// stop closes the socket and waits for the reader and the guards.
func (l *link) stop() {
	for _, cancel := range l.cancel {
		cancel()
	}
	if l.conn != nil {
		l.conn.close()
	}
	if l.conn6 != nil {
		l.conn6.close()
	}
	l.reader.Wait()
	l.guards.Wait()
}

// follow keeps an index current from the store, for ever.
func (s *Server) follow(ctx context.Context, what, prefix string, begin func(), apply func(store.Event) error) {
	for ctx.Err() == nil {
		begin()
		w, err := s.Store.Watch(ctx, prefix)
		if err == nil {
			s.findings.clear(what)
			for e := range w.Events {
				if err := apply(e); err != nil {
					s.log().Warn("skip a record of "+what, "err", err)
				}
			}
			err = w.Err()
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, store.ErrResync) {
			s.findings.set(what, fmt.Sprintf("dhcp: reading %s from the store: %v; declared addresses and known leases are served meanwhile", what, err), time.Time{})
		}
		select {
		case <-ctx.Done():
		case <-s.after(time.Second):
		}
	}
}

// Leases are all records of the index by Network and address, expired and
// quarantined ones included.
func (s *Server) Leases() []inventory.Lease {
	s.init()
	return s.table.all()
}

// LeaseByAddr is the lease in force on an address.
func (s *Server) LeaseByAddr(a netip.Addr) (inventory.Lease, bool) {
	s.init()
	n := s.cfg.Load().networkOf(a)
	if n == nil {
		return inventory.Lease{}, false
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	r := s.table.byAddr[place{n.Name, a}]
	if r == nil || r.State != inventory.LeaseBound || !s.now().Before(r.Expires) {
		return inventory.Lease{}, false
	}
	return r.Lease, true
}

// Findings are what a person should know now: other servers, addresses in use
// by strangers, ports taken. Each line says what to do.
func (s *Server) Findings() []string {
	s.init()
	return s.findings.list(s.now())
}

// Stats is a snapshot of the counters.
func (s *Server) Stats() Stats {
	s.init()
	st := s.counters.snapshot()
	s.table.mu.Lock()
	st.Leases = len(s.table.byAddr)
	s.table.mu.Unlock()
	return st
}

func (s *Server) probeClass() string { return probeClass(s.Store.Epoch()) }

const probeMark = "recast-probe:"

// isPeer reports whether a request is a probe of a server with the same store.
func (s *Server) isPeer(class []byte) bool {
	return strings.HasPrefix(string(class), probeMark) && string(class) == s.probeClass()
}
