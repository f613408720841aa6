package inventory

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func someMachine() *Machine {
	return &Machine{
		Name: "r1u05", Arch: AMD64, Serial: "CZ 1", UUID: "4c4c4544-0042-3510-8052-b4c04f4a4e31",
		Labels:   map[string]string{"role": "compute", "flag": "off", "code": "0x1F", "release": "1.10"},
		Location: Location{Site: "ams", Rack: "r1", Unit: 5},
		NICs:     []NIC{{MAC: "52:54:00:00:00:05", Network: "rack1", IP: netip.MustParseAddr("10.20.0.15")}, {MAC: "52:54:00:00:00:0a"}},
	}
}

func TestSubstitution(t *testing.T) {
	for _, tt := range []struct{ name, in, want, err string }{
		{"every machine field", "${machine.name} ${machine.uuid} ${machine.arch} ${machine.site} ${machine.rack} ${machine.unit}",
			"r1u05 4c4c4544-0042-3510-8052-b4c04f4a4e31 amd64 ams r1 5", ""},
		{"label and interfaces", "${machine.label.role}/${nic.0.mac}/${nic.0.ip}/${nic.0.network}/${nic.1.mac}", "compute/52:54:00:00:00:05/10.20.0.15/rack1/52:54:00:00:00:0a", ""},
		{"secrets stay", "a ${secret.x} b", "a ${secret.x} b", ""},
		{"a literal", "$${HOME} $HOME $$ ${machine.arch}$", "${HOME} $HOME $$ amd64$", ""},
		{"a literal secret is kept for FillSecrets", "$${secret.x}", "$${secret.x}", ""},
		{"dollar before a literal", "$$${x}", "$${x}", ""},
		{"label that is not there", "${machine.label.other}", "", "${machine.label.other} has no value; declare it"},
		{"interface that is not there", "${nic.2.mac}", "", "${nic.2.mac} is not there, it declares 2 interfaces; declare it"},
		{"address that is not there", "${nic.1.ip}", "", "${nic.1.ip} has no value; declare it"},
		{"a space in the serial", "${machine.serial}", "", `${machine.serial} is "CZ 1", which is not safe to substitute; want letters, digits and . _ / + : - only`},
		{"YAML text", "#cloud-config\na: ${machine.label.role}\nb: {c: [${machine.name}, x]}\n", "#cloud-config\na: compute\nb: {c: [r1u05, x]}\n", ""},
		{"YAML number where one is meant", "#cloud-config\nunit: ${machine.unit}\n", "#cloud-config\nunit: 5\n", ""},
		{"YAML boolean", "#cloud-config\na: ${machine.label.flag}\n", "", `${machine.label.flag} gives "off", which YAML reads as a boolean there; put the substitution in quotes`},
		{"YAML number", "#cloud-config\na: ${machine.label.code}\n", "", `${machine.label.code} gives "0x1F", which YAML reads as a number there; put the substitution in quotes`},
		{"YAML fraction", "#cloud-config\na: ${machine.label.release}\n", "", `${machine.label.release} gives "1.10", which YAML reads as a number there; put the substitution in quotes`},
		{"YAML base 60", "#cloud-config\na: ${nic.0.mac}\n", "", `${nic.0.mac} gives "52:54:00:00:00:05", which YAML reads as a number there; put the substitution in quotes`},
		{"the same in quotes", "#cloud-config\na: '${machine.label.flag}'\nb: \"${nic.0.mac}\"\nc: |\n  ${machine.label.code}\n", "#cloud-config\na: 'off'\nb: \"52:54:00:00:00:05\"\nc: |\n  0x1F\n", ""},
		{"the same with text around it", "#cloud-config\na: mode ${machine.label.flag}\n", "#cloud-config\na: mode off\n", ""},
		{"the same outside cloud-config", "#!/bin/sh\na=${machine.label.flag}\n", "#!/bin/sh\na=off\n", ""},
		{"in a comment", "#cloud-config\n# ${machine.label.flag}\na: b\n", "#cloud-config\n# off\na: b\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tmpl, problems := compileTemplate(tt.in)
			if tmpl == nil {
				t.Fatal(problems)
			}
			got, err := tmpl.render(someMachine())
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %q, error %v, want %s", got, err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %q (%v), want %q", got, err, tt.want)
			}
		})
	}
}

func TestSubstitutionIsAFixedSet(t *testing.T) {
	for _, s := range []string{
		"${}", "${ machine.name}", "${machine}", "${machine.}", "${machine.name.x}", "${machine.label}", "${machine.label.}", "${machine.label.a b}",
		"${nic.mac}", "${nic.-1.mac}", "${nic.00.mac}", "${nic.0.speed}", "${nic.100.mac}", "${secret}", "${secret.}", "${secret.A}", "${secret.a.b}",
		"${env.PATH}", "${machine.name", "${machine.\nname}", "${${machine.name}}", "a\x00b",
	} {
		if tmpl, problems := compileTemplate(s); tmpl != nil || len(problems) == 0 {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestFillSecrets(t *testing.T) {
	secrets := map[string]string{
		"plain": "s3cret", "quote": "a'b", "double": `a"b`, "yaml": "a: b", "hash": "x #y", "number": "1234", "bool": "yes", "lines": "a\nb",
		"dollar": "${secret.plain}", "empty": "", "bracket": "a, b]", "indicator": "@x", "list": "a, b", "map": "{x: y}",
	}
	get := func(name string) (string, bool) { v, ok := secrets[name]; return v, ok }
	const head = "#cloud-config\n"
	for _, tt := range []struct{ name, in, want, err string }{
		{"in text", "a=${secret.plain} b=${HOME}", "a=s3cret b=${HOME}", ""},
		{"a literal", "$${secret.plain} $${x}", "${secret.plain} $${x}", ""},
		{"a value is not read again", "${secret.dollar}", "${secret.plain}", ""},
		{"unknown", "${secret.other}", "", `there is no secret "other": set it with: recast secret set other`},
		{"empty", "${secret.empty}", "", `the secret "empty" is empty: set it with: recast secret set empty`},
		{"lines", "${secret.lines}", "", `the secret "lines" holds a line break or control character, which cannot stand there: encode it, such as in base64`},
		{"YAML word", head + "a: ${secret.plain}\n", head + "a: s3cret\n", ""},
		{"YAML in single quotes", head + "a: '${secret.double}'\nb: '${secret.yaml}'\nc: '${secret.hash}'\n", head + "a: 'a\"b'\nb: 'a: b'\nc: 'x #y'\n", ""},
		{"YAML in a block", head + "a: |\n  ${secret.yaml}\n  '${secret.quote}\"\n", head + "a: |\n  a: b\n  'a'b\"\n", ""},
		{"mapping smuggled in", head + "a: ${secret.yaml}\n", "", `the secret "yaml" holds`},
		{"comment smuggled in", head + "a: ${secret.hash}\n", "", `the secret "hash" holds`},
		{"quote in single quotes", head + "a: '${secret.quote}'\n", "", `the secret "quote" holds`},
		{"quote in double quotes", head + "a: \"${secret.double}\"\n", "", `the secret "double" holds`},
		{"item smuggled in", head + "a: [${secret.bracket}]\n", "", `the secret "bracket" holds`},
		{"second item smuggled in", head + "a: [${secret.list}]\n", "", `the secret "list" holds`},
		{"mapping in place of a word", head + "a: ${secret.map}\n", "", `the secret "map" holds`},
		{"indicator", head + "a: ${secret.indicator}\n", "", `the secret "indicator" holds`},
		{"number", head + "a: ${secret.number}\n", "", `the secret "number" would be read as a number there: put ${secret.number} in quotes`},
		{"boolean", head + "a: ${secret.bool}\n", "", `the secret "bool" would be read as a boolean there: put ${secret.bool} in quotes`},
		{"number in quotes", head + "a: \"${secret.number}\"\n", head + "a: \"1234\"\n", ""},
		{"malformed", "${secret.A}", "", "unknown substitution"},
		{"without end", "${secret.a", "", `has no "}"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := FillSecrets(tt.in, get)
			if tt.err == "" {
				if err != nil || got != tt.want {
					t.Errorf("got %q (%v), want %q", got, err, tt.want)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), tt.err) && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("got %q, error %v, want %s", got, err, tt.err)
			}
			for name, value := range secrets {
				if len(value) > 3 && name != "dollar" && strings.Contains(err.Error(), value) {
					t.Errorf("the error shows the secret %s: %v", name, err)
				}
			}
		})
	}
}

func TestKernelArgumentsHoldNoSecretAndNoSpace(t *testing.T) {
	m := someMachine()
	if got, err := renderKernelArg("ip=${nic.0.ip}", m); err != nil || got != "ip=10.20.0.15" {
		t.Errorf("%q %v", got, err)
	}
	for _, arg := range []string{"a=${secret.x}", "a b", "a=\"b\"", "", "${machine.serial}", "a\n", "${x}"} {
		if got, err := renderKernelArg(arg, m); err == nil {
			t.Errorf("%q became %q", arg, got)
		}
	}
}

// The words as PyYAML 6.0 reads them, and those that only YAML 1.2 reads as
// something else (y, 0o17, 1e3): both may be on the machine.
func TestReadAsFollowsYAML11(t *testing.T) {
	for _, s := range strings.Fields("compute r1u05 10.20.0.15 e5 1.2.3 v1 yesterday 0x 12-34 a:b 52:54:00:00:00:0a 4c4c4544-0042 +abc 1a 08x /dev/sda . nan inf 2024-1") {
		if what := readAs(s); what != "" {
			t.Errorf("%q is read as %s", s, what)
		}
	}
	for _, s := range strings.Fields("~ null Null yes No ON off true False y N 0 12 0123 0o17 0x1F 0b101 1_000 1.5 1.10 1e3 1.5e+3 .5 .inf -.INF .NaN 12:30 52:54:00:00:00:05 2024-01-02 << =") {
		if readAs(s) == "" {
			t.Errorf("%q is read as text", s)
		}
	}
}

var shapeValue = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+:-]{0,20}$`)

// Whatever stands around a substitution, filling it in never changes the shape
// of the YAML: same nodes, and every node that held no substitution unchanged.
func FuzzSubstitution(f *testing.F) {
	for _, s := range []string{"a: ${machine.name}", "a: [${machine.label.x}, {b: '${nic.0.mac}'}]", "${machine.name}: |\n  x ${machine.unit}", "a: \"${machine.label.x}\\n\"", "- ${machine.label.x}", "a: >\n ${machine.label.x}\n b"} {
		f.Add(s, "value")
		f.Add(s, "1:2")
	}
	f.Fuzz(func(t *testing.T, s, value string) {
		source := "#cloud-config\n" + s
		tmpl, problems := compileTemplate(source)
		if tmpl == nil {
			if len(problems) == 0 {
				t.Fatal("refused without a reason")
			}
			return
		}
		if !shapeValue.MatchString(value) {
			return
		}
		m := someMachine()
		m.Name, m.Labels["x"] = value, value
		got, err := tmpl.render(m)
		if err != nil {
			return
		}
		marked, _ := mark(tmpl.segments)
		var before, after yaml.Node
		if unmarshalNode(marked, &before) != nil {
			t.Fatal("the template is not YAML")
		}
		if err := unmarshalNode(got, &after); err != nil {
			t.Fatalf("%q became %q, which is not YAML: %s", source, got, err.text)
		}
		var walk func(a, b *yaml.Node)
		walk = func(a, b *yaml.Node) {
			if a.Kind != b.Kind || len(a.Content) != len(b.Content) {
				t.Fatalf("%q became %q, of another shape", source, got)
			}
			for i := range a.Content {
				walk(a.Content[i], b.Content[i])
			}
			if a.Kind != yaml.ScalarNode {
				return
			}
			if parts := unmark(a.Value, tmpl.variables()); parts == nil {
				if a.Value != b.Value {
					t.Fatalf("%q became %q: %q turned into %q", source, got, a.Value, b.Value)
				}
			} else if b.ShortTag() != "!!str" && a.Style == 0 && !(len(parts) == 1 && parts[0].variable.arg == "unit") {
				t.Fatalf("%q became %q: %q is read as %s", source, got, b.Value, b.ShortTag())
			}
		}
		walk(&before, &after)
	})
}
