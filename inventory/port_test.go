package inventory

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPortIDHasOneSpelling(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // "" where it is refused
	}{
		{"Ethernet1/7", "Ethernet1/7"},
		{"rack 1, port 7", "rack 1, port 7"},
		{"0x00040065010f", "0x00040065010f"},
		{"0x00040065010F", "0x00040065010f"},
		{"0x45746831", "Eth1"}, // hex of what is text
		{"0x30783030", "0x30783030"},
		{"0x", ""},
		{"0x123", ""},
		{"0xzz", ""},
		{" Eth1", ""},
		{"", ""},
		{"Port-Ä", ""},
		{strings.Repeat("x", 255), strings.Repeat("x", 255)},
		{strings.Repeat("x", 256), ""},
	} {
		got, err := parsePortID(tt.in)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("parsePortID(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
		if err != nil {
			continue
		}
		if again, err := parsePortID(got); again != got || err != nil {
			t.Errorf("parsePortID(%q) = %q, %v: another spelling", got, again, err)
		}
	}
}

func TestPortMatchesWhatTheRelayGives(t *testing.T) {
	relay, other := netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("10.20.0.2")
	seen := Port{Circuit: "Eth1", Remote: "sw1", Relay: relay}
	for _, tt := range []struct {
		declared Port
		want     bool
	}{
		{Port{Circuit: "Eth1"}, true},
		{Port{Circuit: "Eth1", Remote: "sw1"}, true},
		{Port{Circuit: "Eth1", Remote: "sw1", Relay: relay}, true},
		{Port{Circuit: "Eth1", Relay: relay}, true},
		{Port{Circuit: "Eth2"}, false},
		{Port{Circuit: "eth1"}, false},
		{Port{Circuit: "Eth1", Remote: "sw2"}, false},
		{Port{Circuit: "Eth1", Relay: other}, false},
		{Port{}, false},
	} {
		if got := tt.declared.Matches(seen); got != tt.want {
			t.Errorf("%s matches %s: %v; want %v", tt.declared, seen, got, tt.want)
		}
	}
	if (Port{Circuit: "Eth1", Remote: "sw1"}).Matches(Port{Circuit: "Eth1"}) {
		t.Error("a declared remote matches a packet without one")
	}
}

// parseChanged reads rack.yaml with each old text replaced by the new one behind it.
func parseChanged(t *testing.T, swap ...string) (*Set, error) {
	t.Helper()
	// What is learned later cannot be written into user data.
	doc := strings.Replace(rack(t), "${nic.0.mac}", "learned", 1)
	for ; len(swap) > 1; swap = swap[2:] {
		if !strings.Contains(doc, swap[0]) {
			t.Fatalf("rack.yaml does not hold %q", swap[0])
		}
		doc = strings.Replace(doc, swap[0], swap[1], 1)
	}
	return Parse([]File{{Name: "rack.yaml", Data: []byte(doc)}})
}

const ported = `nics: [{port: {circuit: "Ethernet1/6", remote: sw-r1}, network: rack1, ip: 10.20.0.16}]`

func TestMachineIsKnownByItsPort(t *testing.T) {
	set, err := parseChanged(t, `nics: [{mac: "52:54:00:00:00:06", network: rack1}]`, ported)
	if err != nil {
		t.Fatal(err)
	}
	at := Port{Circuit: "Ethernet1/6", Remote: "sw-r1"}
	if m := set.MachineByPort("rack1", at); m == nil || m.Name != "r1u06" {
		t.Errorf("MachineByPort = %v", m)
	}
	if m := set.MachineByPort("rack1", Port{Circuit: "Ethernet1/6"}); m != nil {
		t.Errorf("another spelling finds %v", m.Name)
	}
	if m := set.MachineByMAC(""); m != nil {
		t.Errorf("no hardware address finds %v", m.Name)
	}
	raw, err := set.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeSet(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(set.Machine("r1u06"), back.Machine("r1u06"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if m := back.MachineByPort("rack1", at); m == nil {
		t.Error("a set from the store does not know the port")
	}
	// A hardware address that is declared too names the machine alone.
	set, err = parseChanged(t, `{mac: "52:54:00:00:00:06", network: rack1}`, `{mac: "52:54:00:00:00:06", port: {circuit: Ethernet1/6}, network: rack1}`)
	if err != nil {
		t.Fatal(err)
	}
	if m := set.MachineByPort("rack1", Port{Circuit: "Ethernet1/6"}); m != nil {
		t.Errorf("MachineByPort = %v", m.Name)
	}
}

func TestMistakesInPorts(t *testing.T) {
	const nic = `nics: [{mac: "52:54:00:00:00:06", network: rack1}]`
	const first = `nics: [{mac: "52:54:00:00:00:05", network: rack1, ip: 10.20.0.15}]`
	for _, tt := range []struct {
		name string
		swap []string // old, new, old, new …
		want []string
	}{
		{"neither", []string{nic, "nics: [{network: rack1}]"}, []string{
			`rack.yaml:65: spec.nics[0].mac: missing; add it, such as "52:54:00:00:00:05", or the port it is plugged into`}},
		{"no circuit", []string{nic, "nics: [{port: {remote: sw1}, network: rack1}]"}, []string{
			`rack.yaml:65: spec.nics[0].port.circuit: missing; add it, such as Ethernet1/7`}},
		{"no network", []string{nic, "nics: [{port: {circuit: Eth1}}]"}, []string{
			`rack.yaml:65: spec.nics[0].network: a port is a port of one network; name the Network its machine is on`}},
		{"bad hex", []string{nic, "nics: [{port: {circuit: 0x123}, network: rack1}]"}, nil},
		{"bad relay", []string{nic, `nics: [{port: {circuit: "Eth1", relay: sw1}, network: rack1}]`}, []string{
			`rack.yaml:65: spec.nics[0].port.relay: parse address "sw1": want an IPv4 address such as 10.20.0.15`}},
		{"another server's addresses", []string{nic, "nics: [{port: {circuit: Eth1}, network: rack1}]",
			"dhcp: authoritative", "dhcp: proxy", "pool: 10.20.0.100-10.20.0.199", "", "unknown: discover", "unknown: ignore"}, []string{
			`rack.yaml:65: spec.nics[0].port: network "rack1" has dhcp: proxy, where recast does not learn who is behind a port; give its mac instead, or set dhcp: authoritative`}},
		{"declared twice", []string{first, "nics: [{port: {circuit: Eth1}, network: rack1}]", nic, "nics: [{port: {circuit: Eth1, remote: sw1}, network: rack1}]"}, []string{
			`rack.yaml:65: spec.nics[0].port: what asks at {circuit: "Eth1", remote: "sw1"} may ask at {circuit: "Eth1"} too, declared by machine "r1u05" at rack.yaml:57; correct one of them, or give both the remote or relay they differ in`}},
		{"told apart by their switch", []string{first, "nics: [{port: {circuit: Eth1, remote: sw2}, network: rack1}]", nic, "nics: [{port: {circuit: Eth1, remote: sw1}, network: rack1}]"}, []string{}},
		{"two to learn", []string{nic, "nics: [{port: {circuit: Eth1}, network: rack1}, {port: {circuit: Eth2}, network: rack1}]"}, []string{
			`rack.yaml:65: spec.nics[1].mac: a second interface without a hardware address; only the one it boots from is learned: give the mac of the others`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseChanged(t, tt.swap...)
			if tt.want == nil {
				if err == nil || !strings.Contains(err.Error(), "spec.nics[0].port.circuit") {
					t.Errorf("got %v", err)
				}
				return
			}
			got := []string{}
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestPortOfAnIPv6NetworkHasARelayOfThatFamily(t *testing.T) {
	const nic = `{mac: "52:54:00:00:00:06", network: rack1}`
	port := func(network, relay string) string {
		return strings.Replace(dualStack(t), nic, fmt.Sprintf(`{mac: "52:54:00:00:00:06", port: {circuit: Eth6, relay: %q}, network: %s}`, relay, network), 1)
	}
	set := parseOne(t, port("rack1-v6", "2001:db8:20::fe"))
	if p := set.Machine("r1u06").NICs[0].Port; p == nil || p.Relay != netip.MustParseAddr("2001:db8:20::fe") {
		t.Errorf("port %v", p)
	}
	for _, tt := range []struct{ network, relay, want string }{
		{"rack1-v6", "10.20.0.1", `spec.nics[0].port.relay: parse address "10.20.0.1": want an IPv6 address`},
		{"rack1", "2001:db8:20::fe", `spec.nics[0].port.relay: parse address "2001:db8:20::fe": want an IPv4 address`},
	} {
		if _, err := Parse([]File{{Name: "rack.yaml", Data: []byte(port(tt.network, tt.relay))}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v; want %s", err, tt.want)
		}
	}
}
