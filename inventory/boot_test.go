package inventory

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const bootRack = `apiVersion: recast/v1
kind: Network
metadata: {name: rack1}
spec: {subnet: 10.20.0.0/24, dhcp: authoritative, pool: 10.20.0.100-10.20.0.199}
---
apiVersion: recast/v1
kind: Model
metadata: {name: r650}
spec:
  boot: {loader: ipxe, local: silent, console: ["tty0", "ttyS1,115200n8"]}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: r1u05}
spec:
  nics: [{mac: "52:54:00:00:00:05", network: rack1}]
`

func machineOf(t *testing.T, text string) (*Machine, error) {
	t.Helper()
	set, err := Parse([]File{{Name: "rack.yaml", Data: []byte(text)}})
	if err != nil {
		return nil, err
	}
	return set.Machine("r1u05"), nil
}

func TestAMachineBootsAsItsModelSaysWhereItSaysNothingItself(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		spec string
		want Boot
	}{
		"no model":         {"", Boot{}},
		"the model's":      {"  model: r650\n", Boot{Loader: "ipxe", Local: LocalSilent, Console: []string{"tty0", "ttyS1,115200n8"}}},
		"its own word":     {"  model: r650\n  boot: {local: exit, console: [hvc0]}\n", Boot{Loader: "ipxe", Local: LocalExit, Console: []string{"hvc0"}}},
		"a loader by name": {"  boot: {loader: snponly}\n", Boot{Loader: "snponly"}},
		"a loader by digest": {"  model: r650\n  boot: {loader: \"" + digest + "\"}\n",
			Boot{Loader: digest, Local: LocalSilent, Console: []string{"tty0", "ttyS1,115200n8"}}},
	} {
		m, err := machineOf(t, bootRack+tc.spec)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, m.Boot); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	if diff := cmp.Diff([]string{"console=tty0", "console=ttyS0,115200n8"}, Boot{}.ConsoleArgs(AMD64)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"console=hvc0"}, Boot{Console: []string{"hvc0"}}.ConsoleArgs(ARM64)); diff != "" {
		t.Error(diff)
	}
}

// viaRack is a machine that may boot through its BMC, on a Network without DHCP.
const viaRack = `apiVersion: recast/v1
kind: Network
metadata: {name: rack1}
spec: {subnet: 10.20.0.0/23, dhcp: off, gateway: 10.20.0.1, dns: [10.20.0.3]}
---
apiVersion: recast/v1
kind: Model
metadata: {name: r650}
spec:
  boot: {via: media}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: r1u05}
spec:
  nics: [{mac: "52:54:00:00:00:05", network: rack1, ip: 10.20.0.15}]
`

const viaBMC = "  bmc: {url: \"redfish://10.30.0.15\", credentials: rack1-bmc}\n"

func TestABootThroughTheBMCGivesAddressesWhereNoDHCPDoes(t *testing.T) {
	static := &Static{Address: netip.MustParsePrefix("10.20.0.15/23"), Gateway: netip.MustParseAddr("10.20.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.20.0.3")}}
	off, on := viaRack+viaBMC, strings.Replace(viaRack, "dhcp: off", "dhcp: authoritative", 1)+viaBMC
	for name, tc := range map[string]struct {
		text   string
		via    BootVia
		static *Static
	}{
		"nothing said":            {off, "", nil},
		"the default":             {off + "  boot: {via: network}\n", "", nil},
		"media":                   {off + "  boot: {via: media}\n", BootMedia, static},
		"media, by the model":     {off + "  model: r650\n", BootMedia, static},
		"its own word":            {off + "  model: r650\n  boot: {via: network}\n", "", nil},
		"http":                    {off + "  boot: {via: http}\n", BootHTTP, nil},
		"media where DHCP serves": {on + "  boot: {via: media}\n", BootMedia, nil},
	} {
		m, err := machineOf(t, tc.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.static, m.NICs[0].Static, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); m.Boot.Via != tc.via || diff != "" {
			t.Errorf("%s: via %q (-want +got)\n%s", name, m.Boot.Via, diff)
		}
	}
}

func TestMistakesInABootThroughTheBMCAreNamed(t *testing.T) {
	media := viaRack + viaBMC + "  boot: {via: media}\n"
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, tc := range []struct{ name, text, want string }{
		{"unknown way", viaRack + viaBMC + "  boot: {via: cd}\n", `rack.yaml:18: spec.boot.via: unknown value "cd"; want one of network, http, media`},
		{"no BMC", viaRack + "  boot: {via: media}\n", `rack.yaml:17: spec.boot.via: via: media is done by the BMC, and the machine declares none; declare its bmc, or leave via out`},
		{"no BMC, by the model", viaRack + "  model: r650\n", `rack.yaml:17: spec.boot.via: via: media is done by the BMC, and the machine declares none; declare its bmc, or leave via out`},
		{"IPMI", strings.Replace(media, "redfish:", "ipmi:", 1), `rack.yaml:18: spec.boot.via: via: media needs Redfish, and its bmc is reached by IPMI; want a bmc.url of redfish://…, or leave via out`},
		{"HTTP Boot of a BIOS", viaRack + viaBMC + "  boot: {via: http}\n  firmware: bios\n", `rack.yaml:18: spec.boot.via: a BIOS has no HTTP Boot; want via: media, or firmware: uefi`},
		{"no address", strings.Replace(media, ", ip: 10.20.0.15", "", 1), `rack.yaml:18: spec.boot.via: a machine without DHCP needs its address on the medium; give its first interface mac, network and ip`},
		{"Secure Boot from a medium", media + "  secureBoot: true\n", `rack.yaml:18: spec.boot.via: what recast brings for via: media is not signed, and with secureBoot only signed loaders are offered; leave via out; via: http can also be had by an imported loader (boot.loader)`},
		{"an imported loader on a medium", viaRack + viaBMC + "  boot: {via: media, loader: \"" + digest + "\"}\n", `rack.yaml:18: spec.boot.via: the medium holds recast's own iPXE, not an imported loader; leave boot.loader out`},
	} {
		_, err := machineOf(t, tc.text)
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
			continue
		}
		if diff := cmp.Diff(tc.want, err.Error()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tc.name, diff)
		}
	}
	if _, err := machineOf(t, viaRack+viaBMC+"  secureBoot: true\n  boot: {via: http, loader: \""+digest+"\"}\n"); err != nil {
		t.Errorf("HTTP Boot of an imported loader: %v", err)
	}
}

// How a machine boots is no part of what it runs: a machine that says nothing of
// it has the bytes it had before there was anything to say.
func TestBootLeavesMachinesThatSayNothingAsTheyWere(t *testing.T) {
	m, err := machineOf(t, bootRack)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Canonical(m)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"arch":"amd64","name":"r1u05","nics":[{"mac":"52:54:00:00:00:05","network":"rack1"}]}`; string(b) != want {
		t.Errorf("canonical %s\nwant      %s", b, want)
	}
}

func TestMistakesInHowAMachineBootsAreNamed(t *testing.T) {
	proxy := strings.Replace(bootRack, "authoritative, pool: 10.20.0.100-10.20.0.199", "proxy", 1)
	for _, tc := range []struct{ name, text, want string }{
		{"unknown loader", bootRack + "  boot: {loader: grub}\n",
			`rack.yaml:17: spec.boot.loader: unknown loader "grub"; want snponly, ipxe, or the digest of an imported one as recast loader list prints it`},
		{"unknown way to the disk", bootRack + "  boot: {local: exti}\n",
			`rack.yaml:17: spec.boot.local: unknown value "exti"; did you mean "exit"?`},
		{"console that is an argument", bootRack + "  boot: {console: [\"ttyS0 init=/bin/sh\"]}\n",
			`rack.yaml:17: spec.boot.console[0]: bad console "ttyS0 init=/bin/sh"; want a device and its rate, such as tty0 or ttyS1,115200n8`},
		{"unknown model", bootRack + "  model: r65\n",
			`rack.yaml:17: spec.model: there is no Model "r65"; did you mean "r650"?`},
		{"snponly for arm64", bootRack + "  arch: arm64\n  boot: {loader: snponly}\n",
			`rack.yaml:18: spec.boot.loader: there is no snponly for arm64; leave it out, or import one: recast loader import`},
		{"GRUB for arm64", bootRack + "  arch: arm64\n  boot: {local: grub}\n",
			`rack.yaml:18: spec.boot.local: there is no GRUB for arm64; want one of exit, sanboot, silent, http-404`},
		{"Secure Boot of a BIOS", bootRack + "  secureBoot: true\n  firmware: bios\n",
			`rack.yaml:17: spec.secureBoot: a BIOS has no Secure Boot; want firmware: uefi, or remove it`},
		{"Secure Boot with an unsigned loader, by the model", bootRack + "  secureBoot: true\n  model: r650\n",
			`rack.yaml:18: spec.boot.loader: the ipxe that recast brings is not signed, and with secureBoot only signed loaders are offered; leave it out, which is Debian's shim and GRUB, or name an imported one by its digest`},
		{"Secure Boot of arm64", bootRack + "  arch: arm64\n  secureBoot: true\n",
			`rack.yaml:18: spec.secureBoot: there is no signed loader for arm64; import one (recast loader import) and name its digest in boot.loader`},
		{"Secure Boot and sanboot", bootRack + "  secureBoot: true\n  boot: {local: sanboot}\n",
			`rack.yaml:18: spec.boot.local: sanboot is iPXE's, and with secureBoot the machine gets GRUB; want one of exit, silent, grub, http-404`},
		{"Secure Boot in a VLAN", strings.Replace(bootRack, "dhcp: authoritative,", "vlan: 100, dhcp: authoritative,", 1) + "  secureBoot: true\n",
			`rack.yaml:16: spec.nics[0].network: network "rack1" has vlan: 100, and Debian's signed GRUB sends no tags; give the switch port that VLAN without a tag and the machine another Network, or name an imported loader by its digest`},
		{"Secure Boot beside another DHCP server", proxy + "  secureBoot: true\n",
			`rack.yaml:16: spec.nics[0].network: network "rack1" has dhcp: proxy, where shim and GRUB take the other server for ours; want a Network with dhcp: authoritative for a machine with secureBoot`},
	} {
		_, err := machineOf(t, tc.text)
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
			continue
		}
		if diff := cmp.Diff(tc.want, err.Error()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tc.name, diff)
		}
	}
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, spec := range []string{"  secureBoot: true\n", "  secureBoot: true\n  boot: {loader: \"" + digest + "\"}\n",
		"  secureBoot: true\n  boot: {local: sanboot, loader: \"" + digest + "\"}\n", "  arch: arm64\n  secureBoot: true\n  boot: {loader: \"" + digest + "\"}\n"} {
		if m, err := machineOf(t, bootRack+spec); err != nil || !m.SecureBoot {
			t.Errorf("%s: %v", spec, err)
		}
	}
}
