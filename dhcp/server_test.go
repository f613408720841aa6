package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// bench is a server without sockets: packets go in at receive, replies come out
// of the tap.
type rig struct {
	*Server
	t    testing.TB
	mem  *memStore
	boot *booter
	tap  *wireTap
	link *link

	mu   sync.Mutex
	seen []inventory.Observation
	time time.Time
}

func newRig(t testing.TB, set *inventory.Set, change ...func(*rig)) *rig {
	r := &rig{t: t, mem: newMemStore(), boot: &booter{spec: ipxe.Spec{Kind: ipxe.SpecRamdisk}}, tap: &wireTap{ch: make(chan sent, 1<<12)}, time: epoch}
	r.Server = &Server{Store: r.mem, Booter: r.boot, Workers: 8,
		Bootfile: func(c ipxe.Client, spec ipxe.Spec, server netip.Addr) (string, bool) {
			switch {
			case c.Loader == ipxe.LoaderIPXE:
				return "http://" + server.String() + "/boot/script", true
			case spec.Kind == ipxe.SpecRamdisk:
				return "undionly.kpxe", true
			}
			return "", false
		},
		Observe: func(o inventory.Observation) {
			r.mu.Lock()
			r.seen = append(r.seen, o)
			r.mu.Unlock()
		},
		now: func() time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.time
		},
		interfaces: func() ([]Interface, error) { return nil, nil },
	}
	for _, f := range change {
		f(r)
	}
	if err := r.Update(set); err != nil {
		t.Fatal(err)
	}
	eth := iface(2, "eth0", "10.20.0.2/24")
	d := newDuty(site{network: set.Networks[0], iface: &eth, server: ourAddr})
	d.state.Store(dutyServing)
	r.link = &link{wire: r.tap}
	r.link.state.Store(&linkState{iface: eth, duties: []*duty{d}})
	r.ourAddrs.Store(&[]netip.Addr{ourAddr})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	// Without a declared Network on an interface Run opens no socket.
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n := r.Stats().Panics; n > 0 {
			t.Errorf("%d panics", n)
		}
	})
	eventually(t, "the leases are read", func() bool {
		r.table.mu.Lock()
		defer r.table.mu.Unlock()
		return r.table.loaded && r.ports.ready()
	})
	r.ourAddrs.Store(&[]netip.Addr{ourAddr})
	return r
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	r.time = r.time.Add(d)
	r.mu.Unlock()
}

var xids uint32

// put sends a packet in with a transaction id of its own.
func (r *rig) put(p *dhcpv4.DHCPv4) {
	xids++
	p.TransactionID = dhcpv4.TransactionID{byte(xids >> 24), byte(xids >> 16), byte(xids >> 8), byte(xids)}
	r.receive(context.Background(), r.link, p.ToBytes(), broadcast.Addr())
}

// get is the next reply.
func (r *rig) get() sent {
	r.t.Helper()
	select {
	case s := <-r.tap.ch:
		return s
	case <-time.After(10 * time.Second):
		r.t.Fatalf("no reply; %+v, findings %q", r.Stats(), r.Findings())
		return sent{}
	}
}

// silence sends a packet in and returns why it was not answered.
func (r *rig) silence(p *dhcpv4.DHCPv4) string {
	r.t.Helper()
	before := r.Stats().Silent
	r.put(p)
	why := ""
	eventually(r.t, "a packet is counted as silent", func() bool {
		for k, n := range r.Stats().Silent {
			if n > before[k] {
				why = k
			}
		}
		return why != ""
	})
	if len(r.tap.ch) > 0 {
		r.t.Fatalf("answered: %s", r.get().Summary())
	}
	return why
}

// store waits until what is stored after the answer is in the store.
func (r *rig) store() {
	r.t.Helper()
	eventually(r.t, "every lease is stored", func() bool {
		r.flush(r.t.Context())
		r.table.mu.Lock()
		defer r.table.mu.Unlock()
		return len(r.table.unstored) == 0 && len(r.table.writing) == 0
	})
}

// exchange is DISCOVER to ACK.
func (r *rig) exchange(mac string, change ...func(*dhcpv4.DHCPv4)) sent {
	r.t.Helper()
	r.put(message(DISCOVER, mac, change...))
	offer := r.get()
	if offer.MessageType() != dhcpv4.MessageTypeOffer {
		r.t.Fatalf("got %s", offer.Summary())
	}
	r.put(message(REQUEST, mac, append(change, requested(offer.YourIPAddr.String()), serverID(ourAddr.String()))...))
	ack := r.get()
	if ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(offer.YourIPAddr) || ack.BootFileName != offer.BootFileName {
		r.t.Fatalf("got %s after %s", ack.Summary(), offer.Summary())
	}
	r.store()
	return ack
}

func TestOneAddressForFirmwareLoaderAndSystem(t *testing.T) {
	for _, mac := range []string{macDeclared, macPooled, macStranger} {
		t.Run(mac, func(t *testing.T) {
			r := newRig(t, rack())
			first := r.exchange(mac, pxe(0))
			if first.BootFileName != "undionly.kpxe" {
				t.Errorf("firmware got %q", first.BootFileName)
			}
			second := r.exchange(mac, ipxeClient, option(61, 1, 2, 3))
			if second.BootFileName != "http://10.20.0.2/boot/script" {
				t.Errorf("iPXE got %q", second.BootFileName)
			}
			third := r.exchange(mac, option(61, 0xff, 9, 9, 9), option(12, []byte("web1")...))
			if third.BootFileName != "" {
				t.Errorf("the system got %q", third.BootFileName)
			}
			if !first.YourIPAddr.Equal(second.YourIPAddr) || !first.YourIPAddr.Equal(third.YourIPAddr) {
				t.Errorf("addresses %s, %s, %s", first.YourIPAddr, second.YourIPAddr, third.YourIPAddr)
			}
			stored := r.mem.leases(t)
			l, ok := stored["rack1/"+first.YourIPAddr.String()]
			if !ok || len(stored) != 1 || l.MAC != inventory.MAC(mac) || l.Hostname != "web1" {
				t.Errorf("stored %+v", stored)
			}
			if l.Expires.Before(epoch.Add(third.IPAddressLeaseTime(0))) {
				t.Errorf("the stored lease ends at %s, before what was promised", l.Expires)
			}
			if got, ok := r.LeaseByAddr(l.Addr); !ok || got.MAC != l.MAC {
				t.Errorf("LeaseByAddr = %+v, %v", got, ok)
			}
		})
	}
}

func TestLeaseIsStoredBeforeItsAckLeaves(t *testing.T) {
	r := newRig(t, rack())
	r.put(message(DISCOVER, macStranger))
	offer := r.get()
	gate := make(chan struct{})
	r.mem.mu.Lock()
	r.mem.hang = gate
	r.mem.mu.Unlock()
	r.put(message(REQUEST, macStranger, requested(offer.YourIPAddr.String()), serverID("10.20.0.2")))
	// What needs no commit is served while the store hangs.
	r.put(message(DISCOVER, macDeclared))
	if got := r.get(); got.ClientHWAddr.String() != macDeclared {
		t.Fatalf("acknowledged before the commit: %s", got.Summary())
	}
	close(gate)
	if got := r.get(); got.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatal(got.Summary())
	}
}

func TestStoreAwayServesKnownMachinesOnly(t *testing.T) {
	r := newRig(t, rack())
	old := r.exchange(macStranger)
	r.put(message(DISCOVER, macOther))
	offer := r.get()
	r.mem.setFail(store.ErrUnavailable)
	r.pass(30 * time.Minute)

	if why := r.silence(message(REQUEST, macOther, requested(offer.YourIPAddr.String()), serverID("10.20.0.2"))); why != "store" {
		t.Errorf("a new lease: silent for %q", why)
	}
	r.put(message(REQUEST, macStranger, ciaddr(old.YourIPAddr.String())))
	if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("a renewal: %s", ack.Summary())
	}
	if l, ok := r.LeaseByAddr(addr4(old.YourIPAddr)); !ok || l.Expires.Before(epoch.Add(30*time.Minute+strangersLease)) {
		t.Errorf("the renewal is not in force: %+v %v", l, ok)
	}
	r.put(message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2")))
	if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("a reservation: %s", ack.Summary())
	}
	if f := strings.Join(r.Findings(), ";"); !strings.Contains(f, "leases cannot be stored") {
		t.Errorf("findings %q", f)
	}

	r.mem.setFail(nil)
	r.pass(2 * time.Second)
	r.exchange(macOther)
	if f := r.Findings(); len(f) != 0 {
		t.Errorf("findings %q after the store came back", f)
	}
	r.exchange(macStranger)
	if l := r.mem.leases(t)["rack1/"+old.YourIPAddr.String()]; l.Expires.Before(epoch.Add(30*time.Minute + strangersLease)) {
		t.Errorf("the renewed lease was not stored: %+v", l)
	}
}

func TestRestartKeepsLeases(t *testing.T) {
	mem := newMemStore()
	var addr string
	for range 2 {
		t.Run("", func(t *testing.T) {
			r := newRig(t, rack(), func(r *rig) { r.mem, r.Store = mem, mem })
			if addr != "" {
				if l := r.Leases(); len(l) != 1 || l[0].Addr.String() != addr {
					t.Errorf("leases %+v", l)
				}
				r.put(message(REQUEST, macStranger, requested(addr))) // INIT-REBOOT
				if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
					t.Error(ack.Summary())
				}
				return
			}
			addr = r.exchange(macStranger, requested("10.20.0.177")).YourIPAddr.String()
		})
	}
	if addr != "10.20.0.177" {
		t.Errorf("address %s", addr)
	}
}

func TestTwoServersNeverGiveOneAddressTwice(t *testing.T) {
	r := newRig(t, rack())
	r.put(message(DISCOVER, macStranger, requested("10.20.0.130")))
	r.get()
	// The other server writes between our decision and our commit.
	other := inventory.Lease{Network: "rack1", Addr: netip.MustParseAddr("10.20.0.130"), MAC: macOther, State: inventory.LeaseBound, Expires: epoch.Add(time.Hour)}
	op, err := leaseRecords.PutOp(leaseName("rack1", other.Addr), other, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.mem.mu.Lock()
	r.mem.before = func() {
		if _, err := r.mem.Commit(context.Background(), op); err != nil {
			t.Error(err)
		}
	}
	r.mem.mu.Unlock()
	r.put(message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.2")))
	if got := r.get(); got.MessageType() != dhcpv4.MessageTypeNak {
		t.Fatalf("%s", got.Summary())
	}
	if l := r.mem.leases(t)["rack1/10.20.0.130"]; l.MAC != macOther {
		t.Errorf("stored %+v", l)
	}
	if got := r.exchange(macStranger, wantsBroadcast); got.YourIPAddr.String() == "10.20.0.130" {
		t.Errorf("gave %s again", got.YourIPAddr)
	}
}

func TestDeclineQuarantinesAndPicksAnother(t *testing.T) {
	r := newRig(t, rack())
	bad := r.exchange(macStranger).YourIPAddr.String()
	if why := r.silence(message(DECLINE, macStranger, requested(bad), serverID("10.20.0.2"))); why != "declined" {
		t.Errorf("silent for %q", why)
	}
	if l := r.mem.leases(t)["rack1/"+bad]; l.State != inventory.LeaseDeclined || !l.Expires.Equal(epoch.Add(10*time.Minute)) {
		t.Errorf("stored %+v", l)
	}
	if got := r.exchange(macStranger).YourIPAddr.String(); got == bad {
		t.Errorf("gave %s again", got)
	}
	if _, ok := r.LeaseByAddr(netip.MustParseAddr(bad)); ok {
		t.Error("a quarantined address counts as leased")
	}
	// A reservation: the machine boots from the pool meanwhile, and a person is told.
	r.silence(message(DECLINE, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2")))
	if f := strings.Join(r.Findings(), ";"); !strings.Contains(f, `10.20.0.15, reserved for "r1u05", is in use by another device`) {
		t.Errorf("findings %q", f)
	}
	if got := r.exchange(macDeclared).YourIPAddr.String(); got == "10.20.0.15" {
		t.Errorf("gave %s again", got)
	}
	r.pass(11 * time.Minute)
	if got := r.exchange(macDeclared).YourIPAddr.String(); got != "10.20.0.15" {
		t.Errorf("gave %s after the quarantine", got)
	}
	if n := len(r.Findings()); n != 0 {
		t.Errorf("findings %q", r.Findings())
	}
}

func TestReleaseFreesTheAddress(t *testing.T) {
	r := newRig(t, rack())
	a := r.exchange(macStranger).YourIPAddr.String()
	if why := r.silence(message(RELEASE, macStranger, ciaddr(a), serverID("10.20.0.2"))); why != "released" {
		t.Errorf("silent for %q", why)
	}
	if left := r.mem.leases(t); len(left) != 0 {
		t.Errorf("stored %+v", left)
	}
	if got := r.exchange(macOther, requested(a)).YourIPAddr.String(); got != a {
		t.Errorf("gave %s", got)
	}
}

func TestBooterDecidesWhoIsAnswered(t *testing.T) {
	r := newRig(t, rack())
	set := func(k ipxe.SpecKind, err error) {
		r.boot.mu.Lock()
		r.boot.spec, r.boot.err, r.boot.asked = ipxe.Spec{Kind: k}, err, nil
		r.boot.mu.Unlock()
	}
	set(ipxe.SpecLocal, nil)
	if got := r.exchange(macDeclared, pxe(0)); got.BootFileName != "" || got.Options.Has(dhcpv4.OptionClassIdentifier) {
		t.Errorf("local boot: %s", got.Summary())
	}
	r.boot.mu.Lock()
	want := ipxe.Client{MAC: macDeclared, UUID: "00112233-4455-6677-8899-aabbccddeeff", Loader: ipxe.LoaderFirmware, Network: "rack1"}
	if len(r.boot.asked) == 0 {
		t.Error("the booter was not asked")
	} else if diff := cmp.Diff(want, r.boot.asked[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	r.boot.mu.Unlock()
	set(ipxe.SpecIgnore, nil)
	if why := r.silence(message(DISCOVER, macDeclared, pxe(0))); why != "ignored: ignore" {
		t.Errorf("silent for %q", why)
	}
	set(ipxe.SpecLocal, fmt.Errorf("not ready"))
	if why := r.silence(message(DISCOVER, macDeclared, pxe(0))); why != "no boot answer" {
		t.Errorf("silent for %q", why)
	}
	// A system that renews its address is not asked about.
	r.exchange(macDeclared)
	r.boot.mu.Lock()
	if len(r.boot.asked) != 1 {
		t.Errorf("asked %d times", len(r.boot.asked))
	}
	r.boot.mu.Unlock()
}

func TestStrangersBootOnlyWhereTheNetworkSaysDiscover(t *testing.T) {
	for mode, want := range map[inventory.UnknownMode]string{inventory.UnknownDiscover: "undionly.kpxe", inventory.UnknownLocal: ""} {
		r := newRig(t, rack(unknown(mode)))
		if got := r.exchange(macStranger, pxe(0)).BootFileName; got != want {
			t.Errorf("%s: got %q; want %q", mode, got, want)
		}
		if asked := len(r.boot.asked); (asked > 0) != (mode == inventory.UnknownDiscover) {
			t.Errorf("%s: the booter was asked %d times", mode, asked)
		}
	}
	r := newRig(t, rack(unknown(inventory.UnknownIgnore)))
	for _, p := range []*dhcpv4.DHCPv4{
		message(DISCOVER, macStranger, pxe(0)), message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.2")),
		message(REQUEST, macStranger, ciaddr("10.20.0.15")), message(INFORM, macStranger, ciaddr("10.20.0.15")),
	} {
		if why := r.silence(p); why != silenceIgnored {
			t.Errorf("silent for %q", why)
		}
	}
	// Ignored, but seen.
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) == 0 || r.seen[0].Kind != inventory.SawDiscover || r.seen[0].MAC != macStranger || !strings.Contains(r.seen[0].Detail, "undeclared") {
		t.Errorf("observed %+v", r.seen)
	}
}

func TestObservationsTellTheExchange(t *testing.T) {
	r := newRig(t, rack())
	r.exchange(macDeclared, pxe(7))
	r.put(message(REQUEST, macDeclared, requested("10.20.0.16")))
	r.get()
	var got []string
	eventually(t, "six observations", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.seen) >= 6
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.seen {
		addr := ""
		if o.Remote.IsValid() {
			addr = " " + o.Remote.String()
		}
		got = append(got, fmt.Sprintf("%s %s%s: %s", o.Kind, o.Network, addr, o.Detail))
	}
	want := []string{
		"dhcp-discover rack1: firmware, architecture 7",
		"dhcp-offer rack1 10.20.0.15: undionly.kpxe",
		"dhcp-request rack1: firmware, architecture 7",
		"dhcp-ack rack1 10.20.0.15: undionly.kpxe",
		"dhcp-request rack1: os",
		"dhcp-nak rack1: this machine's address is 10.20.0.15",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSilentBesideAnotherServerUntilProbed(t *testing.T) {
	r := newRig(t, rack())
	d := r.link.state.Load().duties[0]
	for state, want := range map[int32]string{dutyProbing: "looking for other servers", dutySilent: "another DHCP server"} {
		d.state.Store(state)
		if why := r.silence(message(DISCOVER, macDeclared)); why != want {
			t.Errorf("silent for %q; want %q", why, want)
		}
	}
	d.state.Store(dutyServing)
	if why := r.silence(message(DISCOVER, macStranger, option(60, []byte(r.probeClass())...))); why != "probe of a peer" {
		t.Errorf("silent for %q", why)
	}
	r.link.state.Store(&linkState{iface: iface(2, "eth0", "10.20.0.2/24")})
	if why := r.silence(message(DISCOVER, macDeclared)); why != "no Network here" {
		t.Errorf("silent for %q", why)
	}
}

func TestBadPacketsAreCountedAndSeldomReported(t *testing.T) {
	r := newRig(t, rack())
	for range 50 {
		r.receive(t.Context(), r.link, []byte{1, 2, 3}, ourAddr)
	}
	reply := message(DISCOVER, macDeclared).ToBytes()
	reply[0] = 2
	r.receive(t.Context(), r.link, reply, ourAddr)
	if st := r.Stats(); st.Malformed["short"] != 50 || st.Malformed["not a request"] != 1 || st.Received != 51 {
		t.Errorf("stats %+v", st)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) != 1 || r.seen[0].Kind != inventory.SawBadPacket {
		t.Errorf("observed %+v", r.seen)
	}
}

func TestPanicIsCountedAndServiceGoesOn(t *testing.T) {
	boom := true
	r := newRig(t, rack(), func(r *rig) {
		file := r.Bootfile
		r.Bootfile = func(c ipxe.Client, spec ipxe.Spec, server netip.Addr) (string, bool) {
			if boom {
				boom = false
				panic("boom")
			}
			return file(c, spec, server)
		}
	})
	r.put(message(DISCOVER, macDeclared, pxe(0)))
	eventually(t, "the panic is counted", func() bool { return r.Stats().Panics == 1 })
	r.exchange(macDeclared, pxe(0))
	r.counters.mu.Lock()
	r.counters.s.Panics = 0 // this one was ours
	r.counters.mu.Unlock()
}

func TestQueuePrefersKnownMachinesAndWhatFinishesAnExchange(t *testing.T) {
	q := newQueue()
	in := func(kind dhcpv4.MessageType, mac string, xid byte) arrival {
		return arrival{flight: flight{xid: dhcpv4.TransactionID{xid}, mac: inventory.MAC(mac), kind: kind}, at: epoch}
	}
	push := func(a arrival, lane int, want string) {
		t.Helper()
		if got, _ := q.push(a, lane); got != want {
			t.Errorf("push = %q; want %q", got, want)
		}
	}
	push(in(DISCOVER, macStranger, 1), laneStranger, "")
	push(in(REQUEST, macStranger, 2), laneStrangerRequest, "")
	push(in(DISCOVER, macDeclared, 3), laneDiscover, "")
	push(in(REQUEST, macOther, 4), laneRequest, "")
	push(in(DISCOVER, macStranger, 1), laneStranger, "duplicate")
	for _, want := range []byte{4, 3, 2, 1} {
		a, ok := q.pop()
		if !ok || a.flight.xid[0] != want {
			t.Errorf("popped %v, %v; want %d", a.flight, ok, want)
		}
		if want == 1 {
			push(in(DISCOVER, macStranger, 1), laneStranger, "duplicate") // still worked on
			q.done(a.flight)
			push(in(DISCOVER, macStranger, 1), laneStranger, "")
			q.pop()
		}
	}
	if a, ok := q.pop(); ok {
		t.Errorf("popped %v out of an empty queue", a)
	}
	// A full lane drops its oldest.
	for i := range laneSize + 1 {
		want := ""
		if i == laneSize {
			want = "queue full"
		}
		push(in(DISCOVER, fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255), 7), laneStranger, want)
	}
	for i := range laneSize {
		if a, _ := q.pop(); string(a.flight.mac) != fmt.Sprintf("52:54:00:01:%02x:%02x", (i+1)>>8, (i+1)&255) {
			t.Fatalf("packet %d is %s's", i, a.flight.mac)
		}
	}
	// One client cannot take the room of others.
	for i := range perClient {
		push(in(REQUEST, "52:54:00:02:00:00", byte(i)), laneRequest, "")
	}
	push(in(REQUEST, "52:54:00:02:00:00", 100), laneRequest, "too many packets")
	late := in(REQUEST, "52:54:00:02:00:00", 100)
	late.at = epoch.Add(time.Second)
	push(late, laneRequest, "")
	// A flood of invented addresses takes no room from who is known.
	for i := range clientsCounted {
		q.counts[inventory.MAC(fmt.Sprint(i))]++
	}
	stranger, known := in(REQUEST, macStranger, 1), in(REQUEST, macDeclared, 1)
	stranger.at, known.at = late.at, late.at
	push(stranger, laneStrangerRequest, "too many packets")
	push(known, laneRequest, "")
}

func TestWatchFollowsTheStore(t *testing.T) {
	tab := newTable()
	ev := func(rev int64, addr, mac string, deleted bool) store.Event {
		l := inventory.Lease{Network: "rack1", Addr: netip.MustParseAddr(addr), MAC: inventory.MAC(mac), State: inventory.LeaseBound, Expires: epoch.Add(time.Hour)}
		op, err := leaseRecords.PutOp(leaseName("rack1", l.Addr), l, store.Any)
		if err != nil {
			t.Fatal(err)
		}
		return store.Event{Record: store.Record{Key: op.Key, Value: op.Value, Revision: rev}, Deleted: deleted}
	}
	apply := func(e store.Event) {
		t.Helper()
		if err := tab.apply(e); err != nil {
			t.Fatal(err)
		}
	}
	owner := func(addr string) string {
		r := tab.byAddr[place{"rack1", netip.MustParseAddr(addr)}]
		if r == nil {
			return ""
		}
		return string(r.MAC)
	}
	tab.begin()
	apply(ev(3, "10.20.0.101", macStranger, false))
	apply(store.Event{Synced: true, Record: store.Record{Revision: 3}})
	if !tab.loaded || owner("10.20.0.101") != macStranger {
		t.Fatal("the snapshot was not taken")
	}
	apply(ev(5, "10.20.0.101", macOther, false))
	apply(ev(4, "10.20.0.101", macStranger, false)) // old news
	if owner("10.20.0.101") != macOther {
		t.Errorf("owner %s", owner("10.20.0.101"))
	}
	if _, ok := tab.lease("rack1", macStranger); ok {
		t.Error("the old owner keeps its lease")
	}
	apply(ev(4, "10.20.0.101", macOther, true))
	if owner("10.20.0.101") == "" {
		t.Error("an old deletion took a newer lease away")
	}
	apply(ev(6, "10.20.0.102", macStranger, false))
	apply(ev(7, "10.20.0.102", macStranger, true))
	if owner("10.20.0.102") != "" {
		t.Error("a deleted lease is still there")
	}
	// A new snapshot without the record: it went while we were not looking.
	tab.begin()
	apply(ev(9, "10.20.0.103", macStranger, false))
	apply(store.Event{Synced: true, Record: store.Record{Revision: 9}})
	if owner("10.20.0.101") != "" || owner("10.20.0.103") != macStranger {
		t.Errorf("owners %q, %q", owner("10.20.0.101"), owner("10.20.0.103"))
	}
	for _, key := range []string{inventory.LeasePrefix + "rack1", inventory.LeasePrefix + "rack1/nonsense"} {
		if err := tab.apply(store.Event{Record: store.Record{Key: key, Value: []byte("{}"), Revision: 10}}); err == nil {
			t.Errorf("key %q was taken", key)
		}
	}
	for _, value := range []string{"{", `{"v":2,"o":{"network":"rack1","addr":"10.20.0.104"}}`, `{"network":"rack1","addr":"10.20.0.104"}`} {
		if err := tab.apply(store.Event{Record: store.Record{Key: inventory.LeasePrefix + "rack1/10.20.0.104", Value: []byte(value), Revision: 10}}); err == nil {
			t.Errorf("the record %s was taken", value)
		}
	}
}
