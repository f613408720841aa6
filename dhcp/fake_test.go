package dhcp

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// memStore keeps the contract in memory and fails on demand: what the engines
// do for real is judged by their own suite.
type memStore struct {
	mu       sync.Mutex
	rev      int64
	recs     map[string]store.Record
	watchers []watcher
	fail     error
	commits  int
	hang     chan struct{} // commits wait for it while it is set
	before   func()        // runs before a commit, once
}

type watcher struct {
	prefix string
	events chan store.Event
}

func newMemStore() *memStore { return &memStore{recs: map[string]store.Record{}} }

func (m *memStore) setFail(err error) {
	m.mu.Lock()
	m.fail = err
	m.mu.Unlock()
}

func (m *memStore) Get(_ context.Context, key string) (store.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.recs[key]; ok {
		return r, nil
	}
	return store.Record{}, store.ErrNotFound
}

func (m *memStore) List(_ context.Context, prefix string) ([]store.Record, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list(prefix), m.rev, nil
}

func (m *memStore) list(prefix string) []store.Record {
	var out []store.Record
	for k, r := range m.recs {
		if strings.HasPrefix(k, prefix) {
			out = append(out, r)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

func (m *memStore) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	m.mu.Lock()
	before, hang := m.before, m.hang
	m.before = nil
	m.mu.Unlock()
	if before != nil {
		before()
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	for _, op := range ops {
		r, ok := m.recs[op.Key]
		if op.If == 0 && ok || op.If > 0 && r.Revision != op.If {
			return 0, store.ErrConflict
		}
	}
	m.rev++
	m.commits++
	for _, op := range ops {
		e := store.Event{Record: store.Record{Key: op.Key, Value: op.Value, Revision: m.rev}, Deleted: op.Value == nil}
		if e.Deleted {
			delete(m.recs, op.Key)
		} else {
			m.recs[op.Key] = e.Record
		}
		for _, w := range m.watchers {
			if strings.HasPrefix(e.Key, w.prefix) {
				w.events <- e
			}
		}
	}
	return m.rev, nil
}

func (m *memStore) Watch(ctx context.Context, prefix string) (store.Watch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := make(chan store.Event, 1<<16)
	for _, r := range m.list(prefix) {
		in <- store.Event{Record: r}
	}
	in <- store.Event{Synced: true, Record: store.Record{Revision: m.rev}}
	m.watchers = append(m.watchers, watcher{prefix, in})
	out := make(chan store.Event)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-in:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return store.Watch{Events: out, Err: func() error { return nil }}, nil
}

func (m *memStore) leases(t testing.TB) map[string]inventory.Lease {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]inventory.Lease{}
	for k, r := range m.recs {
		if !strings.HasPrefix(k, inventory.LeasePrefix) {
			continue
		}
		l, err := leaseRecords.Decode(r)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(k, inventory.LeasePrefix)] = l
	}
	return out
}

func (m *memStore) Grant(context.Context, time.Duration) (store.LeaseID, error) { return 1, nil }
func (m *memStore) KeepAlive(context.Context, store.LeaseID) error              { return nil }
func (m *memStore) Revoke(context.Context, store.LeaseID) error                 { return nil }
func (m *memStore) Epoch() string                                               { return "epoch" }
func (m *memStore) Writable() error                                             { return nil }
func (m *memStore) Held() error                                                 { return nil }
func (m *memStore) Close() error                                                { return nil }

// booter answers what it is told to.
type booter struct {
	mu    sync.Mutex
	spec  ipxe.Spec
	err   error
	asked []ipxe.Client
}

func (b *booter) BootSpec(_ context.Context, c ipxe.Client) (ipxe.Spec, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, c)
	return b.spec, b.err
}

// sent is a reply as it left.
type sent struct {
	*dhcpv4.DHCPv4
	raw  []byte
	from netip.Addr
	to   dest
}

// wireTap collects what would have been sent.
type wireTap struct{ ch chan sent }

func (w *wireTap) send(b []byte, from netip.Addr, to dest) error {
	var p *dhcpv4.DHCPv4
	if port := to.to.Port(); port != clientPort6 && port != serverPort6 {
		var err error
		if p, err = dhcpv4.FromBytes(b); err != nil {
			return err
		}
	}
	to.hw = slices.Clone(to.hw) // the bytes are the server's again
	w.ch <- sent{DHCPv4: p, raw: slices.Clone(b), from: from, to: to}
	return nil
}

const (
	macDeclared = "52:54:00:00:00:05"
	macPooled   = "52:54:00:00:00:06" // declared without an address
	macStranger = "52:54:00:00:00:99"
	macOther    = "52:54:00:00:00:98"
)

var (
	ourAddr = netip.MustParseAddr("10.20.0.2")
	epoch   = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
)

// rack is the Network and machines of most tests.
func rack(change ...func(*inventory.Set)) *inventory.Set {
	set := &inventory.Set{
		Networks: []*inventory.Network{{
			Name: "rack1", Subnet: netip.MustParsePrefix("10.20.0.0/24"), DHCP: inventory.DHCPAuthoritative,
			Unknown: inventory.UnknownDiscover, Gateway: netip.MustParseAddr("10.20.0.1"),
			Pool:      &inventory.AddrRange{First: netip.MustParseAddr("10.20.0.100"), Last: netip.MustParseAddr("10.20.0.199")},
			DNS:       []netip.Addr{netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("9.9.9.9")},
			LeaseTime: inventory.Duration(time.Hour),
		}},
		Machines: []*inventory.Machine{
			{Name: "r1u05", NICs: []inventory.NIC{{MAC: macDeclared, Network: "rack1", IP: netip.MustParseAddr("10.20.0.15")}}},
			{Name: "r1u06", NICs: []inventory.NIC{{MAC: macPooled, Network: "rack1"}}},
		},
	}
	for _, f := range change {
		f(set)
	}
	return set
}

func unknown(m inventory.UnknownMode) func(*inventory.Set) {
	return func(s *inventory.Set) { s.Networks[0].Unknown = m }
}

// message builds a client's packet.
func message(kind dhcpv4.MessageType, mac string, change ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: hw,
		TransactionID: dhcpv4.TransactionID{1, 2, 3, 4}, Options: dhcpv4.Options{53: {byte(kind)}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func requested(a string) func(*dhcpv4.DHCPv4) {
	return option(50, ip4(netip.MustParseAddr(a))...)
}
func serverID(a string) func(*dhcpv4.DHCPv4) { return option(54, ip4(netip.MustParseAddr(a))...) }
func ciaddr(a string) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.ClientIPAddr = net.ParseIP(a) }
}
func giaddr(a string) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.GatewayIPAddr = net.ParseIP(a) }
}
func option(code uint8, v ...byte) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.Options[code] = v }
}
func wantsBroadcast(p *dhcpv4.DHCPv4) { p.SetBroadcast() }

func pxe(arch byte) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		p.Options[60] = []byte("PXEClient:Arch:000" + string('0'+arch/10) + string('0'+arch%10) + ":UNDI:003016")
		p.Options[93] = []byte{0, arch}
		p.Options[94] = []byte{1, 3, 16}
		p.Options[97] = append([]byte{0}, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff)
	}
}

func ipxeClient(p *dhcpv4.DHCPv4) {
	pxe(7)(p)
	p.Options[77] = []byte("iPXE")
	p.Options[175] = []byte{0x13, 1, 1}
}

// parse sends the packet through the decoder, as the socket does.
func parse(t testing.TB, p *dhcpv4.DHCPv4) *request {
	t.Helper()
	r, err := decode(p.ToBytes())
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	return r
}
