package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
)

// What another server answered is seen by whom the machine chooses; and why we say
// nothing belongs to its story too.
func TestObservationsTellWhoAnsweredAndWhyWeDidNot(t *testing.T) {
	r := newRig(t, rack())
	foreign := netip.MustParseAddr("10.20.0.3")
	r.put(message(REQUEST, macDeclared, requested("10.20.0.15"), serverID(foreign.String())))
	d := r.link.state.Load().duties[0]
	eventually(t, "a choice", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 1 })
	d.state.Store(dutySilent)
	r.put(message(DISCOVER, macDeclared, pxe(7)))
	eventually(t, "a silence", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 2 })
	d.state.Store(dutyServing)
	r.exchange(macDeclared, pxe(7))
	eventually(t, "an exchange", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 6 })
	var got []string
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.seen {
		got = append(got, fmt.Sprintf("%s server %v foreign %v%s, %s %d: %s", o.Kind, o.Server, o.Foreign, map[bool]string{true: " gave " + o.Remote.String()}[o.Foreign], o.Client, o.Arch, o.Error))
	}
	none, ours := netip.Addr{}, ourAddr
	if diff := cmp.Diff([]string{
		fmt.Sprintf("%s server %v foreign true gave 10.20.0.15, os 0: ", inventory.SawRequest, foreign),
		fmt.Sprintf("%s server %v foreign false, firmware 7: another DHCP server", inventory.SawUnanswered, none),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawDiscover, none),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawOffer, ours),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawRequest, ours),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawAck, ours),
	}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAnAnswerToAnInformHasItsQuestion(t *testing.T) {
	r := newRig(t, rack())
	r.put(message(INFORM, macDeclared, ciaddr("10.20.0.15")))
	eventually(t, "question and answer", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if q, a := r.seen[0], r.seen[1]; q.Kind != inventory.SawRequest || q.Detail != "os, has an address" || a.Kind != inventory.SawAck {
		t.Errorf("%s %q, %s", q.Kind, q.Detail, a.Kind)
	}
}

func TestRelayedRequestsAreCountedByNetwork(t *testing.T) {
	r := newRig(t, rack())
	r.put(message(DISCOVER, macDeclared))
	r.get()
	r.put(message(DISCOVER, macDeclared, func(p *dhcpv4.DHCPv4) { p.GatewayIPAddr = net.IPv4(10, 20, 0, 3).To4() }))
	r.get()
	if diff := cmp.Diff(map[string]uint64{"rack1": 1}, r.Stats().Relayed); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSocketTablesAreRead(t *testing.T) {
	const udp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  12: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 111 2 0 0
  13: 010014AC:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 112 2 0 0
  14: 00000000:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 113 2 0 0
  short line
`
	const tcp = `  sl  local_address rem_address   st
   0: 0100007F:0043 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 211 1 0
   1: 0100007F:0043 0100007F:9000 01 00000000:00000000 00:00000000 00000000     0        0 212 1 0
   2: 00000000000000000000000001000000:0043 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 213 1 0
`
	got := map[string]netip.Addr{}
	sockets(strings.NewReader(udp), false, 67, got)
	sockets(strings.NewReader(tcp), true, 67, got)
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return // the tables above are of a little-endian machine
	}
	if diff := cmp.Diff(map[string]netip.Addr{"socket:[111]": netip.IPv4Unspecified(), "socket:[112]": netip.MustParseAddr("172.20.0.1"),
		"socket:[211]": netip.MustParseAddr("127.0.0.1"), "socket:[213]": netip.IPv6Loopback()}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPortOwnersNamesThisProcess(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got := PortOwners("tcp", l.Addr().(*net.TCPAddr).Port)
	if len(got) != 1 || got[0].PID != os.Getpid() || got[0].Exe != exe || got[0].Addr != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("%+v", got)
	}
}

func TestADiscoverThatWaitedTooLongIsToldWithItsNetworkAndClient(t *testing.T) {
	r := newRig(t, rack())
	r.accept(r.link, message(DISCOVER, macDeclared, pxe(7)).ToBytes(), broadcast.Addr(), netip.AddrPort{}, 0)
	r.pass(stale + time.Second)
	r.drain(t.Context(), 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	want := inventory.Observation{Kind: inventory.SawUnanswered, Time: epoch.Add(stale + time.Second), MAC: macDeclared, Network: "rack1", Client: string(ipxe.LoaderFirmware), Arch: 7,
		UUID: "00112233-4455-6677-8899-aabbccddeeff", Detail: "DISCOVER", Error: "stale"}
	if len(r.seen) != 1 || r.seen[0] != want {
		t.Errorf("told %+v, want %+v", r.seen, want)
	}
}

// The relay's own address lies in a Network: what it selects is what nobody declared.
func TestLinkThatARelaySelectsIsNamedWhereNobodyDeclaredIt(t *testing.T) {
	r := newRig(t, rack())
	if why := r.silence(message(DISCOVER, macDeclared, giaddr("10.20.0.254"), option(82, 5, 4, 172, 16, 0, 0))); why != silenceSelected {
		t.Errorf("silent for %q", why)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.seen[len(r.seen)-1]; o.Error != silenceSelected || o.Detail != "DISCOVER for 172.16.0.0" || o.Relay.String() != "10.20.0.254" {
		t.Errorf("told %+v", o)
	}
}
