package main

import (
	"net/netip"
	"testing"
)

// Machines behind a router reach us at an address that lies outside their subnet.
func TestAddressTowardsAnotherSubnetIsTheRoutes(t *testing.T) {
	subnet := netip.MustParsePrefix("127.5.0.0/16") // of no interface, and a route leads there on any host
	if a, ok := routedFrom(subnet); !ok || subnet.Contains(a) || !a.IsLoopback() {
		t.Errorf("%s, %v; want what this host sends from", a, ok)
	}
}
