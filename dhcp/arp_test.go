package dhcp

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

func TestARPTellsWhoHasAnAddress(t *testing.T) {
	const request = "0001080006040001" + "525400000099" + "0a140082" + "000000000000" + "0a140001"
	for _, tt := range []struct {
		name, frame, want string
	}{
		{"request", request, "10.20.0.130 52:54:00:00:00:99"},
		{"reply", strings.Replace(request, "0001080006040001", "0001080006040002", 1), "10.20.0.130 52:54:00:00:00:99"},
		{"padded", request + strings.Repeat("00", 18), "10.20.0.130 52:54:00:00:00:99"},
		{"a probe has no address yet", strings.Replace(request, "0a140082", "00000000", 1), ""},
		{"a reverse request", strings.Replace(request, "0001080006040001", "0001080006040003", 1), ""},
		{"another hardware", strings.Replace(request, "00010800", "00060800", 1), ""},
		{"another protocol", strings.Replace(request, "00010800", "000186dd", 1), ""},
		{"other lengths", strings.Replace(request, "0604", "0610", 1), ""},
		{"a group's address", strings.Replace(request, "525400000099", "01005e000001", 1), ""},
		{"short", request[:54], ""},
		{"empty", "", ""},
	} {
		b, err := hex.DecodeString(tt.frame)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if a, hw, ok := arpSender(b); ok {
			got = fmt.Sprint(a, " ", hw)
		}
		if got != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
		}
	}
}

func TestAddressThatSomebodyUsesIsNotGivenToAnother(t *testing.T) {
	const home = "10.20.0.173" // of macStranger
	heard := func(mac, addr string) func(*table) {
		return func(t *table) { t.heard(rack().Networks[0], netip.MustParseAddr(addr), inventory.MAC(mac), epoch) }
	}
	for _, tt := range []struct {
		name   string
		before []func(*table)
		after  time.Duration
		given  bool
	}{
		{"nobody was heard", nil, 0, true},
		{"somebody was", []func(*table){heard(macOther, home)}, 0, false},
		{"the client itself was: it has it from before our leases were lost", []func(*table){heard(macStranger, home)}, 0, true},
		{"somebody was, long ago", []func(*table){heard(macOther, home)}, quarantine, true},
		{"somebody is on an address that the client has leased", []func(*table){leased(macStranger, home, time.Hour), heard(macOther, home)}, 0, true},
		{"somebody else speaks from it before the client has asked for what it was offered", []func(*table){offeredTo(macStranger, home), heard(macOther, home)}, 0, false},
		{"another address", []func(*table){heard(macOther, "10.20.0.174")}, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), message(DISCOVER, macStranger), tt.before, func(q *question) { q.now = epoch.Add(tt.after) })
			if got := o.packet.YourIPAddr.String(); (got == home) != tt.given {
				t.Errorf("offered %s", got)
			}
		})
	}
	// Outside the pool nothing is kept, whatever is said.
	tab := newTable()
	for _, a := range []string{"10.20.0.15", "10.20.0.1", "192.0.2.1"} {
		if tab.heard(rack().Networks[0], netip.MustParseAddr(a), macOther, epoch); len(tab.seen) > 0 {
			t.Errorf("%s is kept", a)
		}
	}
	tab.heard(rack().Networks[0], netip.MustParseAddr(home), macOther, epoch)
	if tab.sweep(epoch.Add(quarantine)); len(tab.seen) > 0 {
		t.Error("what was heard is kept for ever")
	}
}

// A machine that was set up by hand sits on the address that would be given next.
func TestSquatterIsHeardBeforeItsAddressIsGivenAway(t *testing.T) {
	if !namespace(t, "udhcpc") {
		return
	}
	segment(t, "10.20.0.2/24")
	s := serve(t, rack(func(s *inventory.Set) { s.Networks[0].Force = true }))
	s.await(t, dutyServing)
	squatter := newStation(t, macOther)
	squatter.run("ip", "addr", "add", "10.20.0.173/24", "dev", "eth0")
	var udp net.Conn
	squatter.enter(func() (err error) {
		udp, err = net.Dial("udp4", "10.20.0.1:9")
		return err
	})
	defer udp.Close()
	eventually(t, "it is heard", func() bool {
		_, _ = udp.Write([]byte("x")) // the kernel asks for the hardware address of a gateway that is not there
		s.table.mu.Lock()
		defer s.table.mu.Unlock()
		return len(s.table.seen) == 1
	})
	path, log := script(t)
	newStation(t, macStranger).run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "10", "-T", "1")
	logged(t, log, "event=bound")
	if l := s.Leases(); len(l) != 1 || l[0].Addr.String() == "10.20.0.173" || !rack().Networks[0].Pool.Contains(l[0].Addr) {
		t.Errorf("leases %+v", l)
	}
	path, log = script(t)
	squatter.run("udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", path, "-t", "10", "-T", "1", "-r", "10.20.0.173")
	logged(t, log, "ip=10.20.0.173\n") // its own it may have
}

// However many strangers come: a machine that is declared without an address of
// its own gets one of the pool's.
func TestStrangersNeverTakeTheAddressesOfDeclaredMachines(t *testing.T) {
	declare := func(n, addresses int) *inventory.Set {
		return rack(func(s *inventory.Set) {
			s.Networks[0].Pool.Last = slot(s.Networks[0].Pool, uint64(addresses-1))
			s.Machines = s.Machines[:1]
			for i := range n {
				s.Machines = append(s.Machines, &inventory.Machine{Name: fmt.Sprintf("m%d", i), NICs: []inventory.NIC{{MAC: inventory.MAC(fmt.Sprintf("52:54:00:00:03:%02x", i)), Network: "rack1"}}})
			}
		})
	}
	for _, tt := range []struct {
		declared, pool, strangers int
	}{{0, 16, 16}, {3, 16, 13}, {16, 16, 2}, {40, 16, 2}, {1, 1, 0}} {
		t.Run(fmt.Sprintf("%d declared, pool of %d", tt.declared, tt.pool), func(t *testing.T) {
			r := newRig(t, declare(tt.declared, tt.pool))
			for i := range tt.strangers {
				r.exchange(fmt.Sprintf("52:54:00:00:04:%02x", i))
			}
			for i := range 50 { // the flood goes on, in the same second
				if why := r.silence(message(DISCOVER, fmt.Sprintf("52:54:00:00:05:%02x", i))); why != silenceExhausted {
					t.Fatalf("stranger %d: %s", i, why)
				}
			}
			if kept := tt.pool - tt.strangers; kept > 0 {
				if f := strings.Join(r.Findings(), "\n"); !strings.Contains(f, fmt.Sprintf("is taken, but for %d that are kept for declared machines without one of their own", kept)) {
					t.Errorf("findings %q", f)
				}
			}
			for i := range min(tt.declared, tt.pool-tt.strangers) {
				mac := fmt.Sprintf("52:54:00:00:03:%02x", i)
				got := r.exchange(mac).YourIPAddr.String()
				if l, ok := r.LeaseByAddr(netip.MustParseAddr(got)); !ok || l.Machine != fmt.Sprintf("m%d", i) {
					t.Errorf("%s is leased as %+v", got, l)
				}
				if again := r.exchange(mac).YourIPAddr.String(); again != got {
					t.Errorf("%s, then %s", got, again)
				}
			}
		})
	}
}
