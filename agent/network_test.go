package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// RFC 3442: a lease with classless routes has no other router, and what leads
// through a router that another route makes reachable is set after that one.
func TestRoutesOfALease(t *testing.T) {
	route := func(to, via string) inventory.Route {
		return inventory.Route{To: netip.MustParsePrefix(to), Via: netip.MustParseAddr(via)}
	}
	router := []byte{10, 20, 0, 1}
	for _, tt := range []struct {
		name    string
		options dhcpv4.Options
		want    []inventory.Route
	}{
		{"none", dhcpv4.Options{}, nil},
		{"a router", dhcpv4.Options{3: router}, []inventory.Route{route("0.0.0.0/0", "10.20.0.1")}},
		{"classless ones, and a router that counts for nothing", dhcpv4.Options{3: router, 121: {8, 10, 10, 20, 0, 254, 0, 10, 20, 0, 253}},
			[]inventory.Route{route("10.0.0.0/8", "10.20.0.254"), route("0.0.0.0/0", "10.20.0.253")}},
		{"on the link first", dhcpv4.Options{121: {0, 10, 99, 0, 1, 32, 10, 99, 0, 1, 0, 0, 0, 0}},
			[]inventory.Route{route("10.99.0.1/32", "0.0.0.0"), route("0.0.0.0/0", "10.99.0.1")}},
		{"cut short", dhcpv4.Options{3: router, 121: {24, 10, 20}}, []inventory.Route{route("0.0.0.0/0", "10.20.0.1")}},
	} {
		got := routes(&dhcpv4.DHCPv4{Options: tt.options})
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b inventory.Route) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, diff)
		}
	}
}
