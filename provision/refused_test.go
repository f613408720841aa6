package provision

import (
	"strings"
	"testing"

	"recast/inventory"
)

// TestFilesAreRefusedWhereTheyAreWrong: what only the server can judge is told
// with file, line and field, like what is wrong by itself.
func TestFilesAreRefusedWhereTheyAreWrong(t *testing.T) {
	s := newSite(t, 1)
	y := strings.Replace(s.yaml(true), "dhcp: off}", "dhcp: authoritative, pool: 10.0.0.100-10.0.0.120}", 1)
	const config = `config: {format: cloud-init, userData: "#cloud-config\nhostname: x\n"}`
	for _, c := range []struct{ name, from, to, want string }{
		{"our own address", "network: n}", "network: n, ip: 10.0.0.1}",
			"site.yaml:28: spec.nics[0].ip: 10.0.0.1 is this server's own address; choose another address"},
		{"our own address for a BMC", "credentials: rack-bmc}", `credentials: rack-bmc, mac: "52:54:00:00:01:01", ip: 10.0.0.1}`,
			"site.yaml:29: spec.bmc.ip: 10.0.0.1 is this server's own address; choose another address"},
		{"no header", config, `config: {format: cloud-init, userData: "hostname: x\n"}`,
			`site.yaml:17: spec.config.userData: userData begins with "hostname: x", which cloud-init does not know; the first line must be #cloud-config, a script's #!, or a MIME header`},
		{"no header in a block", config, "config:\n    format: cloud-init\n    userData: |\n      hostname: x\n",
			`site.yaml:20: spec.config.userData: userData begins with "hostname: x", which cloud-init does not know; the first line must be #cloud-config, a script's #!, or a MIME header`},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := strings.Replace(y, c.from, c.to, 1)
			if bad == y {
				t.Fatalf("the files hold no %q", c.from)
			}
			_, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(bad)}}, nil)
			if problems, ok := inventory.ProblemsOf(err); !ok || problems.Error() != c.want {
				t.Errorf("%v; want %s", err, c.want)
			}
		})
	}
}
