package ipxe

import (
	"net/netip"
	"strings"
	"testing"
)

func TestScriptLogsWhereThereIsAServer(t *testing.T) {
	for to, want := range map[string]string{"10.0.0.1:514": "\nset syslog 10.0.0.1\n", "10.0.0.1:5514": "", "[fd00::1]:514": "\nset syslog6 fd00::1\n", "[fd00::1]:515": ""} {
		for _, spec := range []Spec{{Kind: SpecRamdisk, Kernel: "/k"}, {Kind: SpecLocal}} {
			spec.Syslog = netip.MustParseAddrPort(to)
			text, err := Render(spec, Client{Arch: FirmwareX64UEFI}, 0)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(text, want) || want == "" && strings.Contains(text, "syslog") {
				t.Errorf("%s, %s:\n%s", to, spec.Kind, text)
			}
		}
	}
}
