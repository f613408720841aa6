package inventory

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNetworkGivesItsMachinesItsVLANAndWhereNoDHCPOfOursDoesItsRoutes(t *testing.T) {
	const more = "  dns: [10.20.0.1]\n  vlan: 100\n  routes: [{to: 10.30.0.0/16, via: 10.20.0.254}, {to: 10.40.0.1/32, via: 10.20.0.253}]"
	doc := strings.Replace(rack(t), "  dns: [10.20.0.1]", more, 1)
	routes := []Route{
		{netip.MustParsePrefix("10.30.0.0/16"), netip.MustParseAddr("10.20.0.254")},
		{netip.MustParsePrefix("10.40.0.1/32"), netip.MustParseAddr("10.20.0.253")},
	}
	s := parseOne(t, doc)
	if n := s.Network("rack1"); n.VLAN != 100 || !cmp.Equal(n.Routes, routes, cmp.Comparer(func(a, b Route) bool { return a == b })) {
		t.Errorf("network %+v", n)
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeSet(b)
	if err != nil || again.Digest() != s.Digest() {
		t.Fatalf("decoded: %v", err)
	}
	nic := func(s *Set) RenderedNIC {
		t.Helper()
		m := s.Machine("r1u05")
		r, err := resolved(t, s, "compute").Render(m)
		if err != nil {
			t.Fatal(err)
		}
		return r.NICs[0]
	}
	if got := nic(again); got.VLAN != 100 || got.Routes != nil {
		t.Errorf("DHCP of ours: %+v", got)
	}
	proxy := strings.NewReplacer("dhcp: authoritative", "dhcp: proxy", "  pool: 10.20.0.100-10.20.0.199\n", "", ", ip: 10.20.0.15", "", ", ip: 10.20.0.16", "").Replace(doc)
	if got := nic(parseOne(t, proxy)); got.VLAN != 100 || len(got.Routes) != 2 {
		t.Errorf("DHCP of others: %+v", got)
	}
}

func TestOneInterfaceHasOneTag(t *testing.T) {
	_, err := Parse([]File{{Name: "rack.yaml", Data: []byte(strings.Replace(dualStack(t), "  dns: [10.20.0.1]", "  dns: [10.20.0.1]\n  vlan: 100", 1))}})
	const want = `network "rack1" has vlan 100 and network "rack1-v6" vlan 0: one interface has one tag; give both Networks of the link the same vlan`
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %s", err, want)
	}
	s := parseOne(t, strings.NewReplacer("  dns: [10.20.0.1]", "  dns: [10.20.0.1]\n  vlan: 100", `  dns: ["2001:db8::53"]`, "  dns: [\"2001:db8::53\"]\n  vlan: 100").Replace(
		strings.Replace(dualStack(t), `network: rack1, ip: 10.20.0.15, ip6`, "ip6", 1)))
	if n := s.Machine("r1u05").NICs[0]; n.VLAN != 100 {
		t.Errorf("%+v", n)
	}
}
