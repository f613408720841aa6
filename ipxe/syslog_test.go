package ipxe

import (
	"net/netip"
	"strings"
	"testing"
)

func TestScriptLogsWhereThereIsAServer(t *testing.T) {
	for to, want := range map[string]bool{"10.0.0.1:514": true, "10.0.0.1:5514": false, "[fd00::1]:514": false} {
		for _, spec := range []Spec{{Kind: SpecRamdisk, Kernel: "/k"}, {Kind: SpecLocal}} {
			spec.Syslog = netip.MustParseAddrPort(to)
			text, err := Render(spec, Client{Arch: FirmwareX64UEFI}, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(text, "\nset syslog 10.0.0.1\n"); got != want {
				t.Errorf("%s, %s:\n%s", to, spec.Kind, text)
			}
		}
	}
}
