package dhcp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

const macBMC = "52:54:00:00:01:05"

// withBMC reserves an address for the BMC of the first machine.
func withBMC(s *inventory.Set) {
	s.Machines[0].BMC = &inventory.BMCRef{URL: "redfish://10.20.0.75", Credentials: "bmc", MAC: macBMC, IP: netip.MustParseAddr("10.20.0.75")}
}

// A new rack's BMCs have no address but what DHCP gives them.
func TestBMCIsAClientWithAReservation(t *testing.T) {
	bmcLease := func(l *inventory.Lease) { l.Machine, l.BMC = "r1u05", true }
	for _, tt := range []struct {
		name   string
		set    *inventory.Set
		before []func(*table)
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{"discover", rack(withBMC), nil, message(DISCOVER, macBMC, wantsBroadcast), "OFFER 10.20.0.75 to 255.255.255.255:68"},
		{"discover where strangers are ignored", rack(withBMC, unknown(inventory.UnknownIgnore)), nil, message(DISCOVER, macBMC, wantsBroadcast), "OFFER 10.20.0.75 to 255.255.255.255:68"},
		{"request", rack(withBMC), nil, message(REQUEST, macBMC, requested("10.20.0.75"), serverID("10.20.0.2"), wantsBroadcast), "ACK 10.20.0.75 to 255.255.255.255:68; bound 10.20.0.75 for 1h0m0s"},
		{"renewal", rack(withBMC), nil, message(REQUEST, macBMC, ciaddr("10.20.0.75")), "ACK 10.20.0.75 to 10.20.0.75:68; bound 10.20.0.75 for 1h0m0s"},
		{"it may not have its machine's address", rack(withBMC), nil, message(REQUEST, macBMC, requested("10.20.0.15"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"its machine may not have its address", rack(withBMC), nil, message(REQUEST, macDeclared, requested("10.20.0.75"), serverID("10.20.0.2")), "NAK to 255.255.255.255:68"},
		{"the board was replaced", rack(withBMC), []func(*table){leased(macOther, "10.20.0.75", time.Minute, bmcLease)}, message(DISCOVER, macBMC, wantsBroadcast), "OFFER 10.20.0.75 to 255.255.255.255:68"},
		{"its machine holds the address", rack(withBMC), []func(*table){leased(macOther, "10.20.0.75", time.Minute, ofMachine("r1u05"))}, message(DISCOVER, macBMC, wantsBroadcast), "OFFER 10.20.0.151 to 255.255.255.255:68"},
		{"nothing reserved", rack(unknown(inventory.UnknownIgnore)), nil, message(DISCOVER, macBMC), "silent: unknown machine"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := brief(ask(t, tt.set, tt.packet, tt.before)); got != tt.want {
				t.Errorf("%s; want %s", got, tt.want)
			}
		})
	}
}

// The lease is the BMC's: whoever calls from that address is not the machine.
// And a BMC that asks like firmware is told to boot nothing.
func TestBMCHasItsOwnLeaseAndBootsNothing(t *testing.T) {
	r := newRig(t, rack(withBMC))
	ack := r.exchange(macBMC, pxe(7), option(12, []byte("idrac")...))
	if ack.YourIPAddr.String() != "10.20.0.75" || ack.BootFileName != "" || len(r.boot.asked) != 0 {
		t.Errorf("got %s; the booter was asked %d times", ack.Summary(), len(r.boot.asked))
	}
	l := r.mem.leases(t)["rack1/10.20.0.75"]
	if l.Machine != "r1u05" || !l.BMC || l.MAC != macBMC {
		t.Errorf("lease %+v", l)
	}
	r.silence(message(DECLINE, macBMC, requested("10.20.0.75"), serverID("10.20.0.2")))
	if f := r.Findings(); len(f) != 1 || !strings.Contains(f[0], `10.20.0.75, reserved for the BMC of "r1u05", is in use by another device`) {
		t.Errorf("findings %q", f)
	}
	if l := r.mem.leases(t)["rack1/10.20.0.75"]; l.State != inventory.LeaseDeclined || !l.BMC {
		t.Errorf("lease %+v", l)
	}
}
