package dhcp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

func TestStrangersArePromisedLittleTime(t *testing.T) {
	lasts := func(d time.Duration) func(*inventory.Set) {
		return func(s *inventory.Set) { s.Networks[0].LeaseTime = inventory.Duration(d) }
	}
	for _, tt := range []struct {
		mac         string
		declared    time.Duration
		want        time.Duration
		renewal, at time.Duration
	}{
		{macStranger, 24 * time.Hour, 15 * time.Minute, 450 * time.Second, 787 * time.Second},
		{macStranger, 0, 15 * time.Minute, 450 * time.Second, 787 * time.Second},
		{macStranger, 8 * time.Minute, 8 * time.Minute, 4 * time.Minute, 7 * time.Minute},
		{macPooled, 24 * time.Hour, 24 * time.Hour, 12 * time.Hour, 21 * time.Hour},
		{macDeclared, 24 * time.Hour, 24 * time.Hour, 12 * time.Hour, 21 * time.Hour},
	} {
		o := ask(t, rack(lasts(tt.declared)), message(REQUEST, tt.mac, ciaddr(map[bool]string{true: "10.20.0.15", false: "10.20.0.130"}[tt.mac == macDeclared])), nil)
		if o.packet == nil {
			t.Fatal(o.silence)
		}
		got := []time.Duration{o.packet.IPAddressLeaseTime(0), o.packet.IPAddressRenewalTime(0), o.packet.IPAddressRebindingTime(0), o.lease.Expires.Sub(epoch)}
		if want := []time.Duration{tt.want, tt.renewal, tt.at, tt.want}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s with leaseTime %s: %v, want %v", tt.mac, tt.declared, got, want)
		}
		six := ask6(t, rack6(lasts(tt.declared)), message6(SOLICIT, wants(1), rapid), tt.mac, nil)
		if got := six.lease.Expires.Sub(epoch); got != tt.want {
			t.Errorf("%s with leaseTime %s by DHCPv6: %v, want %v", tt.mac, tt.declared, got, tt.want)
		}
		m, _ := inner6(t, six.six.payload)
		if ia := m.Options.OneIANA(); ia.Options.OneAddress().ValidLifetime != tt.want || ia.T1 != tt.want/2 {
			t.Errorf("%s with leaseTime %s by DHCPv6: %v", tt.mac, tt.declared, ia)
		}
	}
}

// Strangers who filled the pool before anybody was declared do not keep a machine
// waiting: what is kept for it they cannot renew, and it is told until when they have it.
func TestMachineDeclaredIntoAFullPoolWaitsForOneShortLease(t *testing.T) {
	small := func(machines int) *inventory.Set {
		return rack(func(s *inventory.Set) {
			s.Networks[0].Pool.Last = slot(s.Networks[0].Pool, 7)
			s.Machines = s.Machines[:machines]
		})
	}
	r := newRig(t, small(1))
	macs := map[string]string{}
	for i := range 8 {
		mac := fmt.Sprintf("52:54:00:00:04:%02x", i)
		macs[r.exchange(mac).YourIPAddr.String()] = mac
	}
	if err := r.Update(small(2)); err != nil {
		t.Fatal(err)
	}
	if why := r.silence(message(DISCOVER, macPooled)); why != silenceExhausted {
		t.Fatal(why)
	}
	lease, ok := r.LeaseByAddr(netip.MustParseAddr("10.20.0.107"))
	if at := lease.Expires.UTC().Format(time.RFC3339); !ok || !strings.Contains(strings.Join(r.Findings(), "\n"), "the first becomes free by "+at+", the last by "+at) {
		t.Errorf("the lease ends at %s, findings %q", at, r.Findings())
	}
	r.pass(8 * time.Minute)
	for a, mac := range macs {
		r.put(message(REQUEST, mac, ciaddr(a)))
		got, want := r.get().MessageType(), dhcpv4.MessageTypeAck
		if a == "10.20.0.107" {
			want = dhcpv4.MessageTypeNak
		}
		if got != want {
			t.Errorf("%s renews %s: %s, want %s", mac, a, got, want)
		}
	}
	r.pass(9 * time.Minute)
	if got := r.exchange(macPooled).YourIPAddr.String(); got != "10.20.0.107" {
		t.Errorf("the machine has %s", got)
	}
}

func TestDHCPv6StrangerCannotRenewWhatIsKept(t *testing.T) {
	const last = "2001:db8:20::1:ffff"
	set := rack6(func(s *inventory.Set) {
		s.Machines = append(s.Machines, &inventory.Machine{Name: "r1u07", NICs: []inventory.NIC{{MAC: macOther, Network: "rack1-v6"}}})
	})
	got := brief6(t, ask6(t, set, message6(RENEW, toUs, wants(1, last)), macStranger, []func(*table){leased6(macStranger, last, time.Minute)}))
	if !strings.Contains(got, last+" over") || !strings.Contains(got, "; drop "+last) {
		t.Error(got)
	}
}
