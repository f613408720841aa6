package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadFilesTakesFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.yaml", "a.yml", "note.txt", ".hidden.yaml"} {
		write(t, filepath.Join(dir, name), "# "+name+"\n")
	}
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	one := filepath.Join(dir, "note.txt")
	files, err := ReadFiles(one, dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f.Name)+" "+strings.TrimSpace(string(f.Data)))
	}
	if d := cmp.Diff([]string{"note.txt # note.txt", "a.yml # a.yml", "b.yaml # b.yaml"}, names); d != "" {
		t.Error(d)
	}
	if _, err := ReadFiles(filepath.Join(dir, "missing.yaml")); err == nil || !strings.Contains(err.Error(), "want a file, a folder of *.yaml files, or -") {
		t.Errorf("a missing file: %v", err)
	}
	// An empty directory must not read as "declare nothing".
	if files, err := ReadFiles(t.TempDir()); err == nil {
		t.Errorf("an empty directory gives %v", files)
	}
	f, err := ReadFrom("-", strings.NewReader("a: b"))
	if err != nil || f.Name != "-" || string(f.Data) != "a: b" {
		t.Errorf("%v %v", f, err)
	}
}

func TestProblemsOfSeveralFilesComeInTheirOrder(t *testing.T) {
	_, err := Parse([]File{
		{Name: "z.yaml", Data: []byte("kind: A\n---\nkind: B\n")},
		{Name: "a.yaml", Data: []byte(rack(t))},
		{Name: "m.yaml", Data: []byte(strings.Split(rack(t), "---\n")[0] + "...\n---\n# nothing\n---\nkind: C\n")},
	})
	want := []string{
		`z.yaml:1: kind: unknown kind "A"; want one of Network, Image, Definition, Group, Model, Machine`,
		`z.yaml:3: kind: unknown kind "B"; want one of Network, Image, Definition, Group, Model, Machine`,
		`m.yaml:4: metadata.name: the Network "rack1" is declared twice, first at a.yaml:4; rename or remove one`,
		`m.yaml:16: kind: unknown kind "C"; want one of Network, Image, Definition, Group, Model, Machine`,
	}
	if err == nil {
		t.Fatal("no problem was found")
	}
	if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
		t.Error(d)
	}
}

func TestNothingDeclaresNothing(t *testing.T) {
	for _, s := range []string{"", "\n", "# comment\n", "---\n---\n", "\ufeff# mark\n", "---\n...\n", "null\n"} {
		set, err := Parse([]File{{Name: "a.yaml", Data: []byte(s)}})
		if err != nil || set.Digest() != EmptySet().Digest() {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestWindowsLineEndsKeepTheLines(t *testing.T) {
	doc := strings.ReplaceAll(strings.Replace(rack(t), "unit: 6", "unti: 6", 1), "\n", "\r\n")
	_, err := Parse([]File{{Name: "a.yaml", Data: []byte(doc)}})
	if err == nil || err.Error() != `a.yaml:64: spec.location.unti: unknown field; did you mean "unit"?` {
		t.Error(err)
	}
}

// The YAML blocks of the documents are what people copy.
func TestYAMLInTheDocumentsParses(t *testing.T) {
	block := regexp.MustCompile("(?ms)^[ \t]*```ya?ml\n(.*?)^[ \t]*```")
	for _, name := range []string{"README.md", "DESIGN.md", "CONTRIBUTING.md"} {
		data, err := os.ReadFile(filepath.Join("..", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatchIndex(data, -1) {
			doc := data[m[2]:m[3]]
			if !bytes.Contains(doc, []byte("apiVersion: "+APIVersion)) {
				continue // recast.yaml, or the output of a command
			}
			first := bytes.Count(data[:m[2]], []byte("\n"))
			// Blank lines before it make the lines of the problems those of the document.
			if _, err := Parse([]File{{Name: name, Data: append(bytes.Repeat([]byte("\n"), first), doc...)}}); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestYAMLForDeclaresADiscoveredMachine(t *testing.T) {
	facts := Facts{
		CPU: CPUFacts{Architecture: "x86_64"},
		Disks: []DiskFacts{
			{Name: "/dev/sda", Serial: "ZC1A", Model: "evil\n---\nkind: Machine", Size: 1 << 40},
		},
		Interfaces: []NICFacts{
			{Name: "eth0", MAC: "52:54:00:00:00:01"}, {Name: "eth1", MAC: "52:54:00:00:00:02"}, {Name: "bond0", MAC: "52:54:00:00:00:01"},
			{Name: "ib0", MAC: "80:00:02:08:fe:80:00:00:00:00:00:00:f4:52:14:03:00:7b:cb:a1"}, {Name: "lo", MAC: "00:00:00:00:00:00"},
		},
		SystemVendor: SystemVendor{SerialNumber: "CZ-1234/5", UUID: "4C4C4544-0042-3510-8052-B4C04F4A4E31"},
		Boot:         BootFacts{PXEInterface: "52:54:00:00:00:02", Mode: "uefi"},
	}
	want := `apiVersion: recast/v1
kind: Machine
metadata:
  name: "cz-1234-5"  # choose one
  labels: {}
spec:
  arch: amd64
  firmware: uefi
  serial: "CZ-1234/5"
  uuid: "4c4c4544-0042-3510-8052-b4c04f4a4e31"
  nics:
    - {mac: "52:54:00:00:00:02", network: "rack1"}
    - {mac: "52:54:00:00:00:01"}
  # bmc: {url: "redfish://ADDRESS", credentials: NAME}
  # disk sda serial ZC1A, evil?---?kind: Machine, 1.1 TB (1.0 TiB)
`
	got := YAMLFor(facts, "rack1")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	network := strings.Split(rack(t), "---\n")[0]
	m := parseOne(t, network+"---\n"+got).Machine("cz-1234-5")
	if m == nil || len(m.NICs) != 2 || m.NICs[0].Network != "rack1" || m.BMC != nil {
		t.Errorf("%+v", m)
	}
	// Without a network, and with what vendors leave where a serial should be.
	for _, serial := range []string{"", "To Be Filled By O.E.M.", "Not Specified", "0", "Default string", "0123456789", "a\nb", "\x00", "ключ"} {
		facts.SystemVendor = SystemVendor{SerialNumber: serial, UUID: "00000000-0000-0000-0000-000000000000"}
		got := YAMLFor(facts)
		m := parseOne(t, got).Machine("m-525400000002")
		if serial == "a\nb" {
			m = parseOne(t, got).Machine("a-b")
		}
		if m == nil || m.Serial != "" || m.UUID != "" {
			t.Errorf("serial %q gives %s", serial, got)
		}
	}
	facts.Boot.Mode = "" // never seen, so that nothing is claimed
	if got := YAMLFor(facts); strings.Contains(got, "firmware") {
		t.Errorf("an unknown firmware is declared:\n%s", got)
	}
	facts.CPU.Architecture = "aarch64"
	if m := parseOne(t, YAMLFor(facts)).Machines[0]; m.Arch != ARM64 {
		t.Errorf("aarch64 is declared as %s", m.Arch)
	}
}

// fleet declares n machines in racks of 40, and one Group per rack.
func fleet(n int) []byte {
	var b bytes.Buffer
	b.WriteString("apiVersion: recast/v1\nkind: Network\nmetadata: {name: all}\nspec: {subnet: 10.0.0.0/8, dhcp: authoritative}\n")
	fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Image\nmetadata: {name: os}\nspec: {type: disk, digest: %q}\n", DigestOf(nil))
	b.WriteString("---\napiVersion: recast/v1\nkind: Definition\nmetadata: {name: os}\nspec:\n  image: os\n  config:\n    format: cloud-init\n    userData: |\n      #cloud-config\n      hostname: ${machine.name}\n      rack: 'r${machine.rack}'\n")
	for i := range n {
		if i%40 == 0 {
			fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Group\nmetadata: {name: rack%d}\nspec: {select: {rack: r%d}, definition: os}\n", i/40, i/40)
		}
		fmt.Fprintf(&b, `---
apiVersion: recast/v1
kind: Machine
metadata: {name: m%d, labels: {role: compute, batch: b%d}}
spec:
  location: {site: ams, rack: r%d, unit: %d}
  nics: [{mac: "52:54:%02x:%02x:%02x:01", network: all, ip: 10.%d.%d.%d}]
  bmc: {url: "redfish://10.%d.%d.%d", credentials: bmc}
`, i, i%7, i/40, i%40+1, i>>16&255, i>>8&255, i&255, 1+i>>16, i>>8&255, i&255, 200+i>>16, i>>8&255, i&255)
	}
	return b.Bytes()
}

func TestAFleetParsesIntoItsGroups(t *testing.T) {
	s, err := Parse([]File{{Name: "fleet.yaml", Data: fleet(2000)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Machines) != 2000 || len(s.Groups) != 50 {
		t.Fatalf("%d machines in %d groups", len(s.Machines), len(s.Groups))
	}
	for i, m := range s.Machines {
		if g := s.GroupOf(m.Name); g == nil || g.Name != "rack"+strings.TrimPrefix(m.Location.Rack, "r") {
			t.Fatalf("machine %d %s is in %v", i, m.Name, g)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		data := fleet(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := Parse([]File{{Name: "fleet.yaml", Data: data}}); err != nil {
					b.Fatal(len(err.Error()), err.Error()[:300])
				}
			}
		})
	}
}

func BenchmarkRender(b *testing.B) {
	s, err := Parse([]File{{Name: "fleet.yaml", Data: fleet(100)}})
	if err != nil {
		b.Fatal(err)
	}
	g, err := s.Resolve(s.Definition("os"), version(1))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, m := range s.Machines {
			if _, err := g.Render(m); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// yamlBreak is everything that yaml.v3 counts as the end of a line.
var yamlBreak = regexp.MustCompile("\r\n|[\n\r\u0085\u2028\u2029]")

// Whatever bytes come in: no panic, problems of one line each, and a set that
// was accepted survives encoding.
func FuzzParse(f *testing.F) {
	f.Add(rack(f))
	for _, doc := range strings.Split(rack(f), "---\n") {
		f.Add(doc)
	}
	f.Add("a: &a [*a]\n---\n<<: x\n...\n%YAML 1.1\n---\n? [a]\n: b\n")
	f.Add("apiVersion: recast/v1\nkind: Machine\nmetadata: {name: a}\nspec: {nics: [{mac: 52-54-00-00-00-01}], bmc: {url: 'ipmi://[::1]:623', credentials: x}}\n")
	f.Fuzz(func(t *testing.T, doc string) {
		s, err := Parse([]File{{Name: "a.yaml", Data: []byte(doc)}})
		if err != nil {
			problems, ok := ProblemsOf(err)
			if !ok || len(problems) == 0 || s != nil {
				t.Fatalf("%v with %v", s, err)
			}
			lines := len(yamlBreak.FindAllString(doc, -1)) + 1
			for _, p := range problems {
				if strings.ContainsAny(p.String(), "\n\r") || p.Text == "" || p.Line < 1 || p.Line > lines {
					t.Fatalf("bad problem %q", p)
				}
			}
			return
		}
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeSet(b)
		if err != nil {
			t.Fatal(err)
		}
		if again.Digest() != s.Digest() {
			t.Fatal("encoding changed the set")
		}
		for _, d := range s.Definitions {
			g, err := s.Resolve(d, version(1))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range s.Machines {
				if group := s.GroupOf(m.Name); group == nil || group.Definition != d.Name {
					continue
				}
				if _, err := g.Render(m); err != nil {
					t.Fatalf("accepted, but: %v", err)
				}
			}
		}
	})
}
