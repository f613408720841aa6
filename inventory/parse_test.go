package inventory

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// rack is testdata/rack.yaml: two machines of one rack, with everything they need.
func rack(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("testdata/rack.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func parseOne(t testing.TB, doc string) *Set {
	t.Helper()
	s, err := Parse([]File{{Name: "rack.yaml", Data: []byte(doc)}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseFillsInDefaults(t *testing.T) {
	s := parseOne(t, rack(t))
	wantNet := &Network{
		Name: "rack1", Subnet: netip.MustParsePrefix("10.20.0.0/24"), DHCP: DHCPAuthoritative, Unknown: UnknownDiscover,
		Pool:    &AddrRange{netip.MustParseAddr("10.20.0.100"), netip.MustParseAddr("10.20.0.199")},
		Gateway: netip.MustParseAddr("10.20.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.20.0.1")},
		LeaseTime: Duration(time.Hour),
	}
	byValue := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	prefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if d := cmp.Diff(wantNet, s.Network("rack1"), byValue, prefixes); d != "" {
		t.Error(d)
	}
	def := s.Definition("compute")
	wantDef := &Definition{
		Name: "compute", Image: "debian-12", Every: BootDisk, Wipe: WipeTable, Evidence: E2,
		Select:         DiskSelect{Hints: map[string]string{"rotational": "false"}, MinSize: 8 << 30},
		Config:         Config{Format: ConfigCloudInit, UserData: def.Config.UserData},
		HealthDeadline: Duration(20 * time.Minute), Attempts: 3,
		Deadlines: map[string]Duration{
			"stopping": Duration(5 * time.Minute), "arming": Duration(2 * time.Minute), "powering": Duration(2 * time.Minute),
			"booting": Duration(15 * time.Minute), "claiming": Duration(5 * time.Minute), "inspecting": Duration(5 * time.Minute),
			"writing": Duration(5 * time.Minute), "verifying": Duration(5 * time.Minute), "starting": Duration(20 * time.Minute),
			"awaiting-operator": Duration(24 * time.Hour),
		},
	}
	if d := cmp.Diff(wantDef, def); d != "" {
		t.Error(d)
	}
	if !strings.HasPrefix(def.Config.UserData, "#cloud-config\nhostname: ${machine.name}\n") {
		t.Errorf("user data was changed: %q", def.Config.UserData)
	}
	wantMachine := &Machine{
		Name: "r1u06", Labels: map[string]string{"role": "compute"}, Location: Location{Site: "ams", Rack: "r1", Unit: 6}, Arch: AMD64,
		NICs:   []NIC{{MAC: "52:54:00:00:00:06", Network: "rack1"}},
		BMC:    &BMCRef{URL: "ipmi://10.30.0.16", Credentials: "rack1-bmc", CipherSuite: 3},
		Serial: "CZ1234/567", UUID: "4c4c4544-0042-3510-8052-b4c04f4a4e31", Protected: true,
	}
	if d := cmp.Diff(wantMachine, s.Machine("r1u06"), byValue); d != "" {
		t.Error(d)
	}
	// By label and by location: r1u06 has no label rack.
	for _, name := range []string{"r1u05", "r1u06"} {
		if g := s.GroupOf(name); g == nil || g.Name != "rack1-compute" {
			t.Errorf("group of %s is %v", name, g)
		}
	}
	// A Group without rollout.
	s = parseOne(t, strings.Replace(rack(t), "  rollout: {canary: 1, maxUnavailable: 25%, maxFailures: 1}\n", "", 1))
	if d := cmp.Diff(Rollout{MaxUnavailable: IntOrPercent{25, true}, MaxFailures: IntOrPercent{Value: 1}}, s.Group("rack1-compute").Rollout); d != "" {
		t.Error(d)
	}
}

func TestBMCHasAReservation(t *testing.T) {
	raw, err := os.ReadFile("testdata/rack.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := parseOne(t, strings.Replace(string(raw), "rack1-bmc, cipherSuite: 3", `rack1-bmc, mac: "52-54-00-00-01-06", ip: 10.20.0.66`, 1))
	if b := s.Machine("r1u06").BMC; b.MAC != "52:54:00:00:01:06" || b.IP != netip.MustParseAddr("10.20.0.66") {
		t.Errorf("reserved %s for %s", b.IP, b.MAC)
	}
	if m := s.MachineByMAC("52:54:00:00:01:06"); m != nil {
		t.Errorf("the BMC boots as %q", m.Name)
	}
}

func TestAGroupSelectsByAllItsLabels(t *testing.T) {
	machine := func(name, labels, location, mac string) string {
		return "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: " + name + ", labels: {" + labels + "}}\n" +
			"spec: {location: {" + location + "}, nics: [{mac: '" + mac + "'}]}\n"
	}
	s := parseOne(t, rack(t)+
		machine("other-role", "rack: r1, role: storage", "", "52:54:00:00:01:01")+
		machine("no-role", "rack: r1", "", "52:54:00:00:01:02")+
		machine("other-rack", "role: compute", "rack: r2", "52:54:00:00:01:03")+
		machine("nowhere", "", "", "52:54:00:00:01:04")+`---
apiVersion: recast/v1
kind: Group
metadata: {name: one-unit}
spec: {select: {unit: 5, rack: r2}, definition: compute}
`+machine("by-unit", "", "rack: r2, unit: 5", "52:54:00:00:01:05"))
	for name, want := range map[string]string{
		"r1u05": "rack1-compute", "r1u06": "rack1-compute", "other-role": "", "no-role": "", "other-rack": "", "nowhere": "", "by-unit": "one-unit",
	} {
		got := ""
		if g := s.GroupOf(name); g != nil {
			got = g.Name
		}
		if got != want {
			t.Errorf("%s is in group %q, want %q", name, got, want)
		}
	}
}

func TestLookUps(t *testing.T) {
	s := parseOne(t, rack(t)+`---
apiVersion: recast/v1
kind: Network
metadata: {name: rack0}
spec: {subnet: 10.10.0.0/16, dhcp: off}
`)
	if m := s.MachineByMAC("52:54:00:00:00:05"); m == nil || m.Name != "r1u05" {
		t.Errorf("by MAC: %v", m)
	}
	if m := s.MachineByAddr(netip.MustParseAddr("10.20.0.15")); m == nil || m.Name != "r1u05" {
		t.Errorf("by address: %v", m)
	}
	for addr, want := range map[string]string{
		"10.20.0.0": "rack1", "10.20.0.255": "rack1", "10.20.1.0": "", "10.19.255.255": "", "10.10.255.255": "rack0", "10.9.0.1": "", "255.0.0.1": "",
	} {
		got := ""
		if n := s.NetworkOf(netip.MustParseAddr(addr)); n != nil {
			got = n.Name
		}
		if got != want {
			t.Errorf("network of %s is %q, want %q", addr, got, want)
		}
	}
}

func TestUUIDsThatManyBoardsShareProveNothing(t *testing.T) {
	for uuid, want := range map[string]bool{
		"": false, "not a uuid": false,
		"00000000-0000-0000-0000-000000000000": false,
		"FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF": false,
		"03000200-0400-0500-0006-000700080009": false,
		"7265636a-7374-4c61-8b00-000000000001": true,
	} {
		if got := UsableUUID(uuid); got != want {
			t.Errorf("%q: %t, want %t", uuid, got, want)
		}
	}
}

func TestWhatVendorsLeaveWhereASerialShouldBeNamesNoBoard(t *testing.T) {
	for s, want := range map[string]bool{"": false, "To Be Filled By O.E.M.": false, "to be filled by oem": false, "Not Specified": false, "Default string": false, "None": false,
		"System Serial Number": false, "N/A": false, "NA": false, "null": false, "unknown": false, "0": false, "00000000": false, "xxxxxxx": false, "0123456789": false,
		"..............": false, "S3Z8NB0K": true, "CN7475108V01GT": true, "00A1": true, "Nonesuch7": true} {
		if UsableSerial(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	for _, s := range []string{"0", "123456789", "1.2.3"} {
		if Placeholder(s) {
			t.Errorf("%q is a text like others", s)
		}
	}
}
