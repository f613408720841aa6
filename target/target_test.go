package target

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

var update = flag.Bool("update", false, "write the golden files anew")

// testCA is a fixed certificate: golden volumes must not change from run to run.
const testCA = `-----BEGIN CERTIFICATE-----
bm90IGEgcmVhbCBjZXJ0aWZpY2F0ZSwgYnV0IHRoZSByZW5kZXJlciBjYW5ub3Qga25vdw==
-----END CERTIFICATE-----
`

func testInput() Input {
	return Input{
		Rendered: inventory.Rendered{
			Machine: "r1u05", Generation: inventory.DigestOf([]byte("generation")), Digest: inventory.DigestOf([]byte("rendered")),
			UserData: "#cloud-config\nhostname: r1u05\npassword: ${secret.root}\n",
			NICs: []inventory.RenderedNIC{{MAC: "52:54:00:00:00:05", Network: "rack1", IP: "10.20.0.15"},
				{MAC: "52:54:00:00:01:05", Network: "storage"}},
		},
		Format: inventory.ConfigCloudInit, Image: inventory.DigestOf([]byte("image")), Attempt: 2, Write: "e0.7",
		Machine: &inventory.Machine{Name: "r1u05"},
		Secrets: func(name string) (string, bool) { return "s3cret", name == "root" },
		Report:  &Reporter{URL: "https://10.20.0.1:8443/", CAPEM: testCA, Token: "tok.en-1_2"},
	}
}

func TestValidateNamesWhatCloudInitWouldIgnore(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  inventory.Config
		want string
	}{
		{"none", inventory.Config{Format: inventory.ConfigNone}, ""},
		{"none with data", inventory.Config{Format: inventory.ConfigNone, UserData: "x"}, "nobody to read it"},
		{"another format", inventory.Config{Format: "ignition"}, "not known"},
		{"no data", inventory.Config{Format: inventory.ConfigCloudInit}, ""},
		{"cloud-config", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#cloud-config\nhostname: ${machine.name}\nruncmd: [echo ${machine.name}]\n"}, ""},
		{"empty cloud-config", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#cloud-config\n"}, ""},
		{"script", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#!/bin/sh\necho\n"}, ""},
		{"include", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#include https://x/y\n"}, ""},
		{"mime", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "Content-Type: multipart/mixed; boundary=x\n\n"}, ""},
		{"jinja", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "## template: jinja\n#cloud-config\n"}, ""},
		{"header misspelt", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#cloudconfig\nhostname: x\n"}, `begins with "#cloudconfig"`},
		{"header with more behind it", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#cloud-config: yes\n"}, "does not know"},
		{"space before the header", inventory.Config{Format: inventory.ConfigCloudInit, UserData: " #cloud-config\n"}, "does not know"},
		{"yaml broken", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#cloud-config\na: [\n"}, "not valid YAML"},
		{"yaml list", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#cloud-config\n- a\n"}, "keys and values"},
		{"too large", inventory.Config{Format: inventory.ConfigCloudInit, UserData: "#!/bin/sh\n" + strings.Repeat("x", MaxUserData)}, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Validate(tt.cfg)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestVolumeIsTheSameForTheSameInput also keeps the bytes in a golden file: a
// change of them is a change of every machine's config, and the agent's own
// reader is tested against that file.
func TestVolumeIsTheSameForTheSameInput(t *testing.T) {
	for name, in := range map[string]Input{"cloud-init": testInput(), "none": func() Input {
		in := testInput()
		in.Format, in.Rendered.UserData, in.Report = inventory.ConfigNone, "", nil
		return in
	}()} {
		v, err := Render(in)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Render(in)
		if err != nil || again.Digest != v.Digest || !bytes.Equal(again.Bytes, v.Bytes) {
			t.Errorf("%s: a second rendering gives %s, the first %s (%v)", name, again.Digest, v.Digest, err)
		}
		if len(v.Bytes)%(1<<20) != 0 || len(v.Bytes) == 0 || v.Digest != inventory.DigestOf(v.Bytes) {
			t.Errorf("%s: %d bytes, digest %s", name, len(v.Bytes), v.Digest)
		}
		golden := filepath.Join("testdata", name+".img.gz")
		if *update {
			var b bytes.Buffer
			z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
			z.Write(v.Bytes)
			z.Close()
			if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(golden)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(v.Bytes, want) {
			t.Errorf("%s: the volume is not the golden one; look at the difference and run with -update", name)
		}
	}
}

func TestRenderDependsOnEveryInput(t *testing.T) {
	base, err := Render(testInput())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Input){
		"attempt":    func(in *Input) { in.Attempt++ },
		"write":      func(in *Input) { in.Write = "e0.8" },
		"generation": func(in *Input) { in.Rendered.Generation = inventory.DigestOf(nil) },
		"user data":  func(in *Input) { in.Rendered.UserData += "x: y\n" },
		"nic":        func(in *Input) { in.Rendered.NICs[0].MAC = "52:54:00:00:00:06" },
		"token":      func(in *Input) { in.Report.Token = "other" },
		"secret":     func(in *Input) { in.Secrets = func(string) (string, bool) { return "other", true } },
		"format":     func(in *Input) { in.Format, in.Rendered.UserData = inventory.ConfigNone, "" },
	} {
		in := testInput()
		change(&in)
		v, err := Render(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if v.Digest == base.Digest {
			t.Errorf("%s changes nothing", name)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Input)
		want   string
	}{
		"a secret that is not set":       {func(in *Input) { in.Secrets = nil }, `no secret "root"`},
		"a secret that breaks the YAML":  {func(in *Input) { in.Secrets = func(string) (string, bool) { return "a: b: c", true } }, "root"},
		"a token that ends a string":     {func(in *Input) { in.Report.Token = `a"b` }, "token"},
		"a URL without TLS":              {func(in *Input) { in.Report.URL = "http://10.0.0.1" }, "https://"},
		"a CA that is none":              {func(in *Input) { in.Report.CAPEM = "x" }, "PEM"},
		"user data cloud-init ignores":   {func(in *Input) { in.Rendered.UserData = "hostname: x\n" }, "nothing that cloud-init knows"},
		"a format nobody knows":          {func(in *Input) { in.Format = "talos" }, "not known"},
		"a machine name with a quote":    {func(in *Input) { in.Rendered.Machine = "a'b" }, "machine name"},
		"user data larger than its room": {func(in *Input) { in.Rendered.UserData += strings.Repeat("#", MaxUserData) }, "more than"},
	} {
		in := testInput()
		tt.change(&in)
		_, err := Render(in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), "a: b: c") || strings.Contains(err.Error(), `a"b`)) {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
}

func need(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("needs %s (apt-get install %s)", tool, pkg)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestVolumeIsReadByOthers has the file system judged by the tools that Linux
// distributions check and read one with.
func TestVolumeIsReadByOthers(t *testing.T) {
	need(t, "fsck.vfat", "dosfstools")
	need(t, "mcopy", "mtools")
	need(t, "blkid", "util-linux")
	big := testInput()
	big.Rendered.UserData = "#!/bin/sh\n" + strings.Repeat("# a longer script\n", 50000)
	none := testInput()
	none.Format, none.Rendered.UserData = inventory.ConfigNone, ""
	for name, in := range map[string]Input{"usual": testInput(), "big": big, "none": none} {
		t.Run(name, func(t *testing.T) {
			v, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "volume")
			if err := os.WriteFile(path, v.Bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			if out := run(t, "fsck.vfat", "-n", "-v", path); strings.Contains(out, "ifference") {
				t.Errorf("fsck.vfat complains:\n%s", out)
			}
			if out := run(t, "blkid", "-p", "-o", "export", path); !strings.Contains(out, "LABEL="+v.Label+"\n") || !strings.Contains(out, "TYPE=vfat\n") {
				t.Errorf("blkid says:\n%s", out)
			}
			read := func(file string) string {
				out := filepath.Join(dir, "out")
				os.Remove(out)
				run(t, "mcopy", "-n", "-i", path, "::"+file, out)
				b, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			var m inventory.Marker
			if err := json.Unmarshal([]byte(read(MarkerFile)), &m); err != nil {
				t.Fatal(err)
			}
			want := inventory.Marker{Machine: "r1u05", Generation: in.Rendered.Generation, Rendered: in.Rendered.Digest, Image: in.Image, Attempt: 2, Write: "e0.7"}
			if diff := cmp.Diff(want, m); diff != "" {
				t.Errorf("marker (-want +got):\n%s", diff)
			}
			if in.Format == inventory.ConfigNone {
				if out := run(t, "mdir", "-b", "-i", path, "::"); strings.Contains(out, "user-data") {
					t.Errorf("a volume for nobody holds\n%s", out)
				}
				return
			}
			if got, want := read("user-data"), strings.ReplaceAll(in.Rendered.UserData, "${secret.root}", "s3cret"); got != want {
				t.Errorf("user-data has %d bytes, want %d", len(got), len(want))
			}
			if got, want := read("meta-data"), fmt.Sprintf("instance-id: \"r1u05-%s-2\"\nlocal-hostname: \"r1u05\"\n", in.Rendered.Generation.Short()); got != want {
				t.Errorf("meta-data\n%swant\n%s", got, want)
			}
			if got, want := read("network-config"), `version: 2
ethernets:
  net0:
    match: {macaddress: "52:54:00:00:00:05"}
    set-name: net0
    dhcp4: true
    optional: false
  net1:
    match: {macaddress: "52:54:00:00:01:05"}
    set-name: net1
    dhcp4: true
    optional: true
`; got != want {
				t.Errorf("network-config\n%swant\n%s", got, want)
			}
		})
	}
}

// vendorScript takes the script out of the vendor data as cloud-init does it.
func vendorScript(t *testing.T, in Input) string {
	t.Helper()
	files, err := noCloud(in, &reportConfig{URL: in.Report.URL, CA: in.Report.CAPEM, Token: in.Report.Token,
		Machine: in.Rendered.Machine, Generation: in.Rendered.Generation, Rendered: in.Rendered.Digest, Write: in.Write})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := mail.ReadMessage(bytes.NewReader(files[len(files)-1].Data))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" {
		t.Fatalf("content type %q: %v", kind, err)
	}
	part, err := multipart.NewReader(msg.Body, params["boundary"]).NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if got := part.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/x-shellscript;") {
		t.Errorf("part is %q", got)
	}
	b, err := io.ReadAll(part)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestInstalledSystemReports runs the script that cloud-init would run, with
// each of its two ways to speak HTTPS, against a server with the pinned CA and
// one with another.
func TestInstalledSystemReports(t *testing.T) {
	need(t, "sh", "dash")
	for _, way := range []struct{ tool, pkg, force string }{
		{"python3", "python3", "report=with_python"},
		{"curl", "curl", "report=with_curl"},
	} {
		t.Run(way.tool, func(t *testing.T) {
			need(t, way.tool, way.pkg)
			got := make(chan string, 10)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got <- r.Method + " " + r.URL.Path + "\n" + r.Header.Get("Authorization") + "\n" + string(b)
			}))
			cert, ca := certificate(t)
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			srv.StartTLS()
			defer srv.Close()
			in := testInput()
			in.Report.URL, in.Report.CAPEM = srv.URL, ca
			dir := t.TempDir()
			for name, value := range map[string]string{"BootOrder": "\x07\x00\x00\x00\x03\x00\x00\x00", "BootCurrent": "\x06\x00\x00\x00\x03\x00", "SecureBoot": "\x06\x00\x00\x00\x01"} {
				if err := os.WriteFile(filepath.Join(dir, name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c"), []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			script := strings.NewReplacer("/sys/firmware/efi/efivars/", dir+"/", "/run/", dir+"/", "/var/lib/cloud/", dir+"/cloud/").Replace(vendorScript(t, in))
			script = strings.Replace(script, "then report=with_python; else report=with_curl; fi", "then :; fi; "+way.force, 1)
			// In the foreground, so that the test knows when it has ended.
			script = strings.Replace(script, ".log 2>&1 &\n", ".log 2>&1\n", 1)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			vendor := filepath.Join(dir, "vendor-script")
			run := func(script, path string) ([]byte, error) {
				if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
					t.Fatal(err)
				}
				cmd := exec.CommandContext(ctx, "sh", path)
				cmd.WaitDelay = time.Second
				return cmd.CombinedOutput()
			}
			if out, err := run(script, vendor); err != nil {
				log, _ := os.ReadFile(filepath.Join(dir, "recast-report.log"))
				t.Fatalf("%v\n%s\n%s", err, out, log)
			}
			var text string
			select {
			case text = <-got:
			case <-time.After(10 * time.Second):
				t.Fatal("nothing was reported")
			}
			parts := strings.SplitN(text, "\n", 3)
			if parts[0] != "POST /agent/v1/booted" || parts[1] != "Bearer tok.en-1_2" {
				t.Errorf("request %q, %q", parts[0], parts[1])
			}
			var b inventory.BootReport
			if err := json.Unmarshal([]byte(parts[2]), &b); err != nil {
				t.Fatalf("%v in %s", err, parts[2])
			}
			boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
			host, _ := os.Hostname()
			want := inventory.BootReport{Machine: "r1u05", Generation: in.Rendered.Generation, Rendered: in.Rendered.Digest, Write: "e0.7",
				BootID: strings.TrimSpace(string(boot)), Hostname: host, BootOrder: "03000000", BootCurrent: "0300", SecureBoot: "01"}
			if diff := cmp.Diff(want, b); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}

			// It is there for every boot to come, and silent in this one.
			each := filepath.Join(dir, "cloud/scripts/per-boot/recast-report")
			if installed, err := os.ReadFile(each); err != nil || string(installed) != script {
				t.Errorf("not installed for every boot: %v", err)
			}
			if out, err := run(script, each); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			select {
			case text := <-got:
				t.Errorf("reported twice in one boot: %q", text)
			default:
			}
			if err := os.Remove(filepath.Join(dir, "recast-report.log")); err != nil {
				t.Fatal(err)
			}

			_, other := certificate(t)
			script = strings.ReplaceAll(script, strings.TrimSpace(ca), strings.TrimSpace(other))
			script = strings.ReplaceAll(script, jsonEscape(ca), jsonEscape(other))
			// One try is enough to see that it is refused.
			script = strings.ReplaceAll(strings.ReplaceAll(script, "range(70)", "range(1)"), "-le 70", "-le 1")
			script = strings.ReplaceAll(strings.ReplaceAll(script, "sleep $((n < 60 ? n : 60))", ":"), "time.sleep(min(2 ** n, 60))", "pass")
			_, _ = run(script, vendor) // one way ends with an error, the other gives up
			select {
			case text := <-got:
				t.Errorf("a server with another CA was told %q", text)
			default:
			}
		})
	}
}

func jsonEscape(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// certificate is a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// An interface whose hardware address nobody knows cannot be told from another.
func TestInterfaceWithoutAnAddressIsLeftOut(t *testing.T) {
	for _, tt := range []struct {
		nics []inventory.RenderedNIC
		want string
	}{
		{[]inventory.RenderedNIC{{Network: "rack1"}}, "version: 2\nethernets: {}\n"},
		{[]inventory.RenderedNIC{{}, {MAC: "52:54:00:00:01:05"}}, "version: 2\nethernets:\n  net0:\n    match: {macaddress: \"52:54:00:00:01:05\"}\n    set-name: net0\n    dhcp4: true\n    optional: false\n"},
	} {
		if got := string(networkConfig(tt.nics)); got != tt.want {
			t.Errorf("got %s; want %s", got, tt.want)
		}
	}
}

func TestInterfaceWithoutDHCPHasItsAddressInTheConfiguration(t *testing.T) {
	static := &inventory.Static{Address: netip.MustParsePrefix("10.20.0.15/23"), Gateway: netip.MustParseAddr("10.20.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.20.0.3"), netip.MustParseAddr("10.20.0.4")}}
	route := inventory.Route{To: netip.MustParsePrefix("10.30.0.0/16"), Via: netip.MustParseAddr("10.20.0.254")}
	got := string(networkConfig([]inventory.RenderedNIC{
		{MAC: "52:54:00:00:00:05", Static: static, Routes: []inventory.Route{route}},
		{MAC: "52:54:00:00:01:05", VLAN: 100, Static: &inventory.Static{Address: netip.MustParsePrefix("10.20.4.15/24")}},
	}))
	want := `version: 2
ethernets:
  net0:
    match: {macaddress: "52:54:00:00:00:05"}
    set-name: net0
    addresses: ["10.20.0.15/23"]
    nameservers: {addresses: ["10.20.0.3", "10.20.0.4"]}
    routes:
    - {to: "0.0.0.0/0", via: "10.20.0.1"}
    - {to: "10.30.0.0/16", via: "10.20.0.254"}
    optional: false
  net1:
    match: {macaddress: "52:54:00:00:01:05"}
    set-name: net1
    optional: true
vlans:
  net1.100:
    id: 100
    link: net1
    addresses: ["10.20.4.15/24"]
    optional: true
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// In a Network with a VLAN the system adds the tag itself; routes come by DHCP where
// that is ours, and stand here where it is not.
func TestInterfaceIsInTheVLANAndHasTheRoutesOfItsNetwork(t *testing.T) {
	route := inventory.Route{To: netip.MustParsePrefix("10.30.0.0/16"), Via: netip.MustParseAddr("10.20.0.254")}
	got := string(networkConfig([]inventory.RenderedNIC{
		{MAC: "52:54:00:00:00:05", IP6: "2001:db8::5", VLAN: 100},
		{MAC: "52:54:00:00:01:05", Routes: []inventory.Route{route}},
		{MAC: "52:54:00:00:02:05", VLAN: 200, Routes: []inventory.Route{route}},
	}))
	want := `version: 2
ethernets:
  net0:
    match: {macaddress: "52:54:00:00:00:05"}
    set-name: net0
    optional: false
  net1:
    match: {macaddress: "52:54:00:00:01:05"}
    set-name: net1
    dhcp4: true
    routes:
    - {to: "10.30.0.0/16", via: "10.20.0.254"}
    optional: true
  net2:
    match: {macaddress: "52:54:00:00:02:05"}
    set-name: net2
    optional: true
vlans:
  net0.100:
    id: 100
    link: net0
    dhcp4: true
    dhcp6: true
    optional: false
  net2.200:
    id: 200
    link: net2
    dhcp4: true
    routes:
    - {to: "10.30.0.0/16", via: "10.20.0.254"}
    optional: true
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
