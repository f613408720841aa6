package main

import (
	"net/netip"
	"testing"
	"time"
)

// Machines behind a router reach us at an address that lies outside their subnet.
func TestAddressTowardsAnotherSubnetIsTheRoutes(t *testing.T) {
	subnet := netip.MustParsePrefix("127.5.0.0/16") // of no interface, and a route leads there on any host
	if a, ok := routedFrom(subnet); !ok || subnet.Contains(a) || !a.IsLoopback() {
		t.Errorf("%s, %v; want what this host sends from", a, ok)
	}
}

// Every packet asks for it: the kernel must not be asked as often.
func TestOurAddressIsAskedOfTheKernelOnceASecond(t *testing.T) {
	var o ourAddresses
	now := time.Unix(1000, 0)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if a, ok := o.towards(loopback, now); !ok || a != netip.MustParseAddr("127.0.0.1") {
		t.Fatalf("%s, %v", a, ok)
	}
	if n := testing.AllocsPerRun(100, func() { o.towards(loopback, now.Add(time.Second)) }); n != 0 {
		t.Errorf("%.0f allocations: the kernel was asked again", n)
	}
	o.known[loopback] = netip.MustParseAddr("127.9.9.9") // gone since
	if a, _ := o.towards(loopback, now.Add(1001*time.Millisecond)); a != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("after a second still %s", a)
	}
}
