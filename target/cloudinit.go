package target

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"recast/fat"
	"recast/inventory"
)

// headers by which cloud-init knows a kind of user data (its documentation,
// "User data formats"); anything else it ignores with a warning that nobody
// reads. Longer ones first.
var headers = []string{
	"#cloud-config-archive", "#cloud-config-jsonp", "#cloud-config", "#cloud-boothook",
	"#include-once", "#include", "#part-handler", "#!", "## template: jinja",
}

func knownHeader(s string) string {
	first, _, _ := strings.Cut(s, "\n")
	first = strings.TrimRight(first, " \t\r")
	for _, h := range headers {
		if first == h || (h == "#!" || h == "#include") && strings.HasPrefix(first, h) {
			return h
		}
	}
	lower := strings.ToLower(first)
	if strings.HasPrefix(lower, "content-type: multipart/") || strings.HasPrefix(lower, "mime-version:") {
		return "mime"
	}
	return ""
}

var substitution = regexp.MustCompile(`\$\{[^}\n]*\}`)

func validateUserData(s string) error {
	if s == "" {
		return nil
	}
	if len(s) > MaxUserData {
		return fmt.Errorf("userData has %d bytes, more than %d; put large files into the image", len(s), MaxUserData)
	}
	kind := knownHeader(s)
	if kind == "" {
		first, _, _ := strings.Cut(s, "\n")
		if len(first) > 40 {
			first = first[:40] + "…"
		}
		return fmt.Errorf("userData begins with %q, which cloud-init does not know; the first line must be #cloud-config, a script's #!, or a MIME header", first)
	}
	if kind != "#cloud-config" {
		return nil
	}
	var top yaml.Node
	if err := yaml.Unmarshal([]byte(substitution.ReplaceAllString(s, "x")), &top); err != nil {
		return fmt.Errorf("userData is not valid YAML: %w", err)
	}
	if len(top.Content) > 0 && top.Content[0].Kind != yaml.MappingNode && top.Content[0].Tag != "!!null" {
		return errors.New("userData: #cloud-config must be followed by keys and values (hostname: …)")
	}
	return nil
}

// noCloud renders the files of cloud-init's NoCloud data source.
func noCloud(in Input, report *reportConfig) ([]fat.File, error) {
	userData, err := inventory.FillSecrets(in.Rendered.UserData, func(name string) (string, bool) {
		if in.Secrets == nil {
			return "", false
		}
		return in.Secrets(name)
	})
	if err != nil {
		return nil, err
	}
	if userData == "" {
		userData = "#cloud-config\n{}\n" // the file must be there
	}
	if kind := knownHeader(userData); kind == "" {
		return nil, errors.New("userData begins with nothing that cloud-init knows")
	}
	if len(userData) > MaxUserData {
		return nil, fmt.Errorf("userData has %d bytes once filled in, more than %d", len(userData), MaxUserData)
	}
	files := []fat.File{
		{Name: "user-data", Data: []byte(userData)},
		{Name: "meta-data", Data: metaData(in)},
		{Name: "network-config", Data: networkConfig(in.Rendered.NICs)},
	}
	if report != nil {
		script, err := reportScript(report)
		if err != nil {
			return nil, err
		}
		files = append(files, fat.File{Name: "vendor-data", Data: vendorData("recast-report", script)})
	}
	return files, nil
}

// metaData makes every attempt a new instance, so that cloud-init runs all of
// it again on a disk that was written again.
func metaData(in Input) []byte {
	name := in.Rendered.Machine
	return fmt.Appendf(nil, "instance-id: %q\nlocal-hostname: %q\n",
		fmt.Sprintf("%s-%s-%d", name, in.Rendered.Generation.Short(), in.Attempt), name)
}

// networkConfig names interfaces by their hardware address and asks DHCP, which
// knows the declared address, where there is any. Without set-name every renderer of cloud-init but
// netplan writes a configuration for an interface of that key's name, which
// does not exist.
func networkConfig(nics []inventory.RenderedNIC) []byte {
	var b strings.Builder
	b.WriteString("version: 2\n")
	// One that was never learned cannot be told from another.
	nics = slices.DeleteFunc(slices.Clone(nics), func(n inventory.RenderedNIC) bool { return n.MAC == "" })
	if len(nics) == 0 {
		b.WriteString("ethernets: {}\n")
		return []byte(b.String())
	}
	b.WriteString("ethernets:\n")
	for i, n := range nics {
		// Only the first must be up for the boot to go on.
		fmt.Fprintf(&b, "  net%d:\n    match: {macaddress: %q}\n    set-name: net%d\n", i, string(n.MAC), i)
		if n.VLAN == 0 {
			addresses(&b, n)
		}
		fmt.Fprintf(&b, "    optional: %t\n", i > 0)
	}
	tagged := false
	for i, n := range nics {
		if n.VLAN == 0 {
			continue
		}
		if !tagged {
			b.WriteString("vlans:\n")
			tagged = true
		}
		fmt.Fprintf(&b, "  net%d.%d:\n    id: %d\n    link: net%d\n", i, n.VLAN, n.VLAN, i)
		addresses(&b, n)
		fmt.Fprintf(&b, "    optional: %t\n", i > 0)
	}
	return []byte(b.String())
}

// addresses are what an interface has, by DHCP or where there is none, and the routes
// that come by none.
func addresses(b *strings.Builder, n inventory.RenderedNIC) {
	s := n.Static
	if s == nil {
		b.WriteString("    dhcp4: true\n")
	} else {
		fmt.Fprintf(b, "    addresses: [%q]\n", s.Address)
		if len(s.DNS) > 0 {
			fmt.Fprintf(b, "    nameservers: {addresses: [%s]}\n", strings.Join(quoted(s.DNS), ", "))
		}
	}
	if n.IP6 != "" {
		b.WriteString("    dhcp6: true\n")
	}
	routes := n.Routes
	if s != nil && s.Gateway.IsValid() {
		// Netplan calls gateway4 deprecated, and cloud-init 22.4 does not know "default".
		routes = append([]inventory.Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: s.Gateway}}, routes...)
	}
	if len(routes) > 0 {
		b.WriteString("    routes:\n")
	}
	for _, r := range routes {
		fmt.Fprintf(b, "    - {to: %q, via: %q}\n", r.To, r.Via)
	}
}

func quoted(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = strconv.Quote(a.String())
	}
	return out
}

// vendorData wraps a script as vendor data, which cloud-init runs once for each
// instance. A MIME part of its own is merged with nothing: user data that has a
// runcmd or write_files of its own would replace the vendor's. The part's type is
// the plain one: of vendor data, cloud-init 22.4 files a per-boot script under
// scripts/vendor/per-boot, where nothing runs it.
func vendorData(name string, script []byte) []byte {
	const boundary = "recast-vendor-data"
	return fmt.Appendf(nil, `Content-Type: multipart/mixed; boundary=%q
MIME-Version: 1.0

--%s
Content-Type: text/x-shellscript; charset="us-ascii"
MIME-Version: 1.0
Content-Transfer-Encoding: 7bit
Content-Disposition: attachment; filename=%q

%s
--%s--
`, boundary, boundary, name, script, boundary)
}

// reportScript installs itself for every boot, and reports once in each. It goes on in the background, so that a server that is away does
// not hold up the boot, and gives up after about an hour. The token stands in
// no process's arguments.
func reportScript(r *reportConfig) ([]byte, error) {
	config, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `#!/bin/sh
# Tells recast, once per boot, which generation runs here. The token in it can
# do nothing else.
umask 077
each=/var/lib/cloud/scripts/per-boot/recast-report
if [ "$0" != $each ]; then
mkdir -p ${each%%/*} && cp "$0" $each && chmod 700 $each
fi
[ ! -e /run/recast-report.log ] || exit 0
with_python() {
python3 - <<'END_OF_PYTHON'
import json, socket, ssl, sys, time, urllib.error, urllib.request
c = json.loads(r'''%s''')
with open("/proc/sys/kernel/random/boot_id") as f:
    boot = f.read().strip()
def efi(name):
    try:
        with open("/sys/firmware/efi/efivars/" + name + "-8be4df61-93ca-11d2-aa0d-00e098032b8c", "rb") as f:
            return f.read()[4:].hex()
    except OSError:
        return ""
body = json.dumps({"machine": c["machine"], "generation": c["generation"],
    "rendered": c["rendered"], "write": c["write"], "bootID": boot, "hostname": socket.gethostname(),
    "bootOrder": efi("BootOrder"), "bootCurrent": efi("BootCurrent"), "secureBoot": efi("SecureBoot")}).encode()
tls = ssl.create_default_context(cadata=c["ca"])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
for n in range(70):
    try:
        opener.open(urllib.request.Request(c["url"] + "/agent/v1/booted", body,
            {"Content-Type": "application/json", "Authorization": "Bearer " + c["token"]}), timeout=20).read()
        print("reported")
        sys.exit(0)
    except urllib.error.HTTPError as e:
        print("recast answers", e.code, flush=True)
        if e.code in (401, 403, 404, 409, 410):
            sys.exit(1)
    except Exception as e:
        print("report:", e, flush=True)
    time.sleep(min(2 ** n, 60))
END_OF_PYTHON
}
efi() {
od -An -v -tx1 "/sys/firmware/efi/efivars/$1-8be4df61-93ca-11d2-aa0d-00e098032b8c" 2>/dev/null | tr -d ' \n' | cut -c9-
}
with_curl() {
cat >/run/recast-ca.pem <<'END_OF_CA'
%s
END_OF_CA
n=1
while [ $n -le 70 ]; do
curl --silent --show-error --fail --noproxy '*' --max-time 20 --cacert /run/recast-ca.pem --config - <<END_OF_CONFIG && return 0
url = "%s/agent/v1/booted"
header = "Content-Type: application/json"
header = "Authorization: Bearer %s"
data = "{\"machine\":\"%s\",\"generation\":\"%s\",\"rendered\":\"%s\",\"write\":\"%s\",\"bootID\":\"$(cat /proc/sys/kernel/random/boot_id)\",\"hostname\":\"$(uname -n)\",\"bootOrder\":\"$(efi BootOrder)\",\"bootCurrent\":\"$(efi BootCurrent)\",\"secureBoot\":\"$(efi SecureBoot)\"}"
END_OF_CONFIG
sleep $((n < 60 ? n : 60))
n=$((n + 1))
done
return 1
}
if command -v python3 >/dev/null; then report=with_python; else report=with_curl; fi
$report </dev/null >/run/recast-report.log 2>&1 &
`, config, strings.TrimSpace(r.CA), r.URL, r.Token, r.Machine, r.Generation, r.Rendered, r.Write), nil
}
