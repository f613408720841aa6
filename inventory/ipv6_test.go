package inventory

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dualStack is rack.yaml with an IPv6 Network beside the IPv4 one.
func dualStack(t testing.TB) string {
	t.Helper()
	return strings.Replace(rack(t), `ip: 10.20.0.15}]
  bmc: {url: "redfish://10.30.0.15", credentials: rack1-bmc}`, `ip: 10.20.0.15, ip6: "2001:db8:20::15"}]
  bmc: {url: "redfish://[2001:db8:20::75]", credentials: rack1-bmc, mac: "52:54:00:00:01:05", ip6: "2001:db8:20::75"}`, 1) + `---
apiVersion: recast/v1
kind: Network
metadata: {name: rack1-v6}
spec:
  subnet: 2001:db8:20::/64
  dhcp: authoritative
  pool: 2001:db8:20::1:0-2001:db8:20::1:ffff
  dns: ["2001:db8::53"]
`
}

func TestAnIPv6SubnetIsANetworkOfItsOwn(t *testing.T) {
	s := parseOne(t, dualStack(t))
	addr := netip.MustParseAddr
	n := s.Network("rack1-v6")
	if n.Subnet != netip.MustParsePrefix("2001:db8:20::/64") || !n.Pool.Contains(addr("2001:db8:20::1:7")) || n.Pool.Contains(addr("10.20.0.100")) || n.DNS[0] != addr("2001:db8::53") {
		t.Errorf("%+v", n)
	}
	m := s.Machine("r1u05")
	if m.NICs[0].IP6 != addr("2001:db8:20::15") || m.NICs[0].IP != addr("10.20.0.15") || m.NICs[0].Network != "rack1" {
		t.Errorf("%+v", m.NICs)
	}
	if m.BMC.IP6 != addr("2001:db8:20::75") || m.BMC.MAC != "52:54:00:00:01:05" || m.BMC.IP.IsValid() {
		t.Errorf("%+v", m.BMC)
	}
	if s.MachineByAddr(addr("2001:db8:20::15")) != m || s.NetworkOf(addr("2001:db8:20::ffff")) != n || s.NetworkOf(addr("2001:db8:21::1")) != nil ||
		s.NetworkOf(addr("10.20.0.15")).Name != "rack1" {
		t.Error("look-ups")
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeSet(b)
	if err != nil || again.Digest() != s.Digest() || again.MachineByAddr(addr("2001:db8:20::15")) == nil {
		t.Errorf("decoded: %v", err)
	}
}

// An interface with IPv6 alone names that Network, or none.
func TestAMachineMayHaveIPv6Alone(t *testing.T) {
	for _, nic := range []string{`ip6: "2001:db8:20::15"`, `network: rack1-v6, ip6: "2001:db8:20::15"`, "network: rack1-v6"} {
		doc := strings.Replace(dualStack(t), `network: rack1, ip: 10.20.0.15, ip6: "2001:db8:20::15"`, nic, 1)
		s := parseOne(t, doc)
		if n := s.Machine("r1u05").NICs[0]; n.IP.IsValid() || n.IP6.IsValid() != strings.Contains(nic, "ip6") {
			t.Errorf("%s: %+v", nic, n)
		}
	}
}

// What the machine is told changes only where an IPv6 address is declared.
func TestIPv6IsPartOfWhatTheMachineGets(t *testing.T) {
	render := func(doc, machine string) Rendered {
		t.Helper()
		s := parseOne(t, doc)
		r, err := resolved(t, s, "compute").Render(s.Machine(machine))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	with := strings.Replace(dualStack(t), "mac ${nic.0.mac}", "mac ${nic.0.mac} ${nic.0.ip6}", 1)
	with = strings.Replace(with, `"52:54:00:00:00:06", network: rack1`, `"52:54:00:00:00:06", network: rack1, ip6: "2001:db8:20::16"`, 1)
	if r := render(with, "r1u05"); !strings.Contains(r.UserData, "52:54:00:00:00:05 2001:db8:20::15") || r.NICs[0].IP6 != "2001:db8:20::15" {
		t.Errorf("%+v", r)
	}
	if render(dualStack(t), "r1u05").Digest == render(rack(t), "r1u05").Digest {
		t.Error("the IPv6 address is not in the rendered digest")
	}
	if render(dualStack(t), "r1u06").Digest != render(rack(t), "r1u06").Digest {
		t.Error("an IPv6 Network beside it changes what a machine without an IPv6 address gets")
	}
}

func TestMistakesInIPv6AreNamedWithTheirLineAndCure(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"gateway", "  dns: [\"2001:db8::53\"]", "  gateway: \"2001:db8:20::1\"",
			"rack.yaml:78: spec.gateway: DHCPv6 names no router: IPv6 routers announce themselves; remove it"},
		{"proxy", "  dhcp: authoritative\n  pool: 2001:db8:20::1:0-2001:db8:20::1:ffff\n", "  dhcp: proxy\n",
			`rack.yaml:58: spec.bmc.ip6: network "rack1-v6" has dhcp: proxy, where recast gives no addresses; remove mac and ip6, or set dhcp: authoritative` + "\n" +
				"rack.yaml:76: spec.dhcp: IPv6 has no ProxyDHCP; want authoritative or off"},
		{"IPv4 name server", "\"2001:db8::53\"", "10.20.0.1",
			`rack.yaml:78: spec.dns[0]: parse address "10.20.0.1": want an IPv6 address such as 2001:db8:20::15, not of the link only`},
		{"IPv4 pool", "2001:db8:20::1:0-2001:db8:20::1:ffff", "10.21.0.1-10.21.0.9",
			`rack.yaml:77: spec.pool: parse address "10.21.0.1": want an IPv6 address such as 2001:db8:20::15, not of the link only`},
		{"pool outside", "2001:db8:20::1:0-2001", "2001:db8:19::1:0-2001",
			"rack.yaml:77: spec.pool: the address 2001:db8:19::1:0 is outside the subnet 2001:db8:20::/64; want one from 2001:db8:20::1 to 2001:db8:20:0:ffff:ffff:ffff:ffff"},
		{"link-local subnet", "subnet: 2001:db8:20::/64", "subnet: fe80::/64",
			"rack.yaml:57: spec.nics[0].ip6: the address 2001:db8:20::15 is on no declared network; declare the Network of its subnet\n" +
				"rack.yaml:58: spec.bmc.ip6: the address 2001:db8:20::75 is on no declared network; declare its Network with dhcp: authoritative\n" +
				`rack.yaml:75: spec.subnet: parse subnet "fe80::/64": want a subnet such as 10.20.0.0/24 or 2001:db8:20::/64`},
		{"bits behind the mask", "2001:db8:20::/64", "2001:db8:20::1/64",
			"rack.yaml:57: spec.nics[0].ip6: the address 2001:db8:20::15 is on no declared network; declare the Network of its subnet\n" +
				"rack.yaml:58: spec.bmc.ip6: the address 2001:db8:20::75 is on no declared network; declare its Network with dhcp: authoritative\n" +
				`rack.yaml:75: spec.subnet: subnet "2001:db8:20::1/64" has bits set behind the mask: write 2001:db8:20::/64`},
		{"too short a mask", "2001:db8:20::/64", "2000::/16",
			"rack.yaml:57: spec.nics[0].ip6: the address 2001:db8:20::15 is on no declared network; declare the Network of its subnet\n" +
				"rack.yaml:58: spec.bmc.ip6: the address 2001:db8:20::75 is on no declared network; declare its Network with dhcp: authoritative\n" +
				`rack.yaml:75: spec.subnet: subnet "2000::/16": want a mask from /32 to /126`},
		{"overlap", "", "apiVersion: recast/v1\nkind: Network\nmetadata: {name: wide}\nspec: {subnet: 2001:db8::/32, dhcp: off}\n",
			`rack.yaml:75: spec.subnet: 2001:db8:20::/64 overlaps 2001:db8::/32 of network "wide" at rack.yaml:82; give each Network its own subnet`},
		{"address of IPv4", `ip6: "2001:db8:20::15"`, "ip6: 10.20.0.16",
			`rack.yaml:57: spec.nics[0].ip6: parse address "10.20.0.16": want an IPv6 address such as 2001:db8:20::15, not of the link only`},
		{"link-local address", `ip6: "2001:db8:20::15"`, `ip6: "fe80::15"`,
			`rack.yaml:57: spec.nics[0].ip6: parse address "fe80::15": want an IPv6 address such as 2001:db8:20::15, not of the link only`},
		{"address of no Network", `ip6: "2001:db8:20::15"`, `ip6: "2001:db8:21::15"`,
			"rack.yaml:57: spec.nics[0].ip6: the address 2001:db8:21::15 is on no declared network; declare the Network of its subnet"},
		{"address outside the Network it names", `network: rack1, ip: 10.20.0.15, ip6: "2001:db8:20::15"`, `network: rack1-v6, ip6: "2001:db8:21::15"`,
			`rack.yaml:57: spec.nics[0].ip6: the address 2001:db8:21::15 is outside the subnet 2001:db8:20::/64 of network "rack1-v6"; want one from 2001:db8:20::1 to 2001:db8:20:0:ffff:ffff:ffff:ffff`},
		{"address in the pool", `ip6: "2001:db8:20::15"`, `ip6: "2001:db8:20::1:15"`,
			`rack.yaml:57: spec.nics[0].ip6: the address 2001:db8:20::1:15 lies in the pool 2001:db8:20::1:0-2001:db8:20::1:ffff of network "rack1-v6", which is for undeclared machines; choose one outside it`},
		{"address of the subnet", `ip6: "2001:db8:20::15"`, `ip6: "2001:db8:20::"`,
			`rack.yaml:57: spec.nics[0].ip6: 2001:db8:20:: is the address of the subnet 2001:db8:20::/64 itself of network "rack1-v6"; want one from 2001:db8:20::1 to 2001:db8:20:0:ffff:ffff:ffff:ffff`},
		{"IPv4 address in an IPv6 Network", `network: rack1, ip: 10.20.0.15, ip6: "2001:db8:20::15"`, "network: rack1-v6, ip: 10.20.0.15",
			`rack.yaml:57: spec.nics[0].ip: the address 10.20.0.15 is outside the subnet 2001:db8:20::/64 of network "rack1-v6"; want one from 2001:db8:20::1 to 2001:db8:20:0:ffff:ffff:ffff:ffff`},
		{"address twice", `mac: "52:54:00:00:01:05", ip6: "2001:db8:20::75"`, `mac: "52:54:00:00:01:05", ip6: "2001:db8:20::15"`,
			"rack.yaml:58: spec.bmc.ip6: the url says 2001:db8:20::75, the reservation 2001:db8:20::15; make them equal"},
		{"two machines with one address", `"52:54:00:00:00:06", network: rack1`, `"52:54:00:00:00:06", network: rack1, ip6: "2001:db8:20:0::15"`,
			`rack.yaml:65: spec.nics[0].ip6: the address 2001:db8:20::15 is declared twice, first by machine "r1u05" at rack.yaml:57; correct one of them`},
		{"no way to an address", "network: rack1, ip: 10.20.0.15, ip6: \"2001:db8:20::15\"}]", "network: bare}]",
			`rack.yaml:57: spec.nics[0].ip6: network "bare" has no pool, so this interface would never get an address; give it an ip6, or the Network a pool`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := dualStack(t)
			if strings.Contains(tt.new, "bare") {
				doc += "---\napiVersion: recast/v1\nkind: Network\nmetadata: {name: bare}\nspec: {subnet: \"2001:db8:30::/64\", dhcp: authoritative}\n"
			}
			if tt.old == "" {
				doc += "---\n" + tt.new
			} else if !strings.Contains(doc, tt.old) {
				t.Fatalf("the document does not hold %q", tt.old)
			} else {
				doc = strings.Replace(doc, tt.old, tt.new, 1)
			}
			_, err := Parse([]File{{Name: "rack.yaml", Data: []byte(doc)}})
			problems, ok := ProblemsOf(err)
			if !ok {
				t.Fatalf("no problems but %v", err)
			}
			if d := cmp.Diff(strings.Split(tt.want, "\n"), strings.Split(problems.Error(), "\n")); d != "" {
				t.Error(d)
			}
		})
	}
}
