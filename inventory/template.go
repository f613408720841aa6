package inventory

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"
)

// The substitutions. The set is fixed, and there is nothing to compute with:
//
//	${machine.name} ${machine.uuid} ${machine.serial} ${machine.arch}
//	${machine.site} ${machine.rack} ${machine.unit} ${machine.label.KEY}
//	${nic.N.mac} ${nic.N.ip} ${nic.N.network}   N counts from 0
//	${secret.NAME}
//	$${  a literal ${
type varKind int

const (
	varMachine varKind = iota // arg is the field
	varLabel                  // arg is the key
	varNIC                    // arg is the field, index the interface
	varSecret                 // arg is the name
)

type variable struct {
	kind   varKind
	arg    string
	index  int
	text   string // as written, with ${ and }
	offset int    // in the template
}

// segment is literal text, or one variable.
type segment struct {
	literal  string
	variable *variable
}

// template is user data cut into segments.
type template struct {
	segments []segment
	// plain are the unquoted YAML scalars that hold a variable, each as segments:
	// what comes out must still be read as text there.
	plain [][]segment
}

func (t *template) variables() (vars []*variable) {
	for _, s := range t.segments {
		if s.variable != nil {
			vars = append(vars, s.variable)
		}
	}
	return vars
}

// templateProblem is a Problem before it has a file and a line.
type templateProblem struct {
	offset     int
	text, next string
}

var (
	machineFields = []string{"name", "uuid", "serial", "arch", "site", "rack", "unit"}
	nicFields     = []string{"mac", "ip", "ip6", "network"}
)

const escapeHint = `for a literal "${" write "$${"`

// parseVariable reads what stands between ${ and }.
func parseVariable(s string) (*variable, string) {
	unknown := func(text, known string) (*variable, string) {
		return nil, fmt.Sprintf("unknown substitution \"${%s}\": %s", text, known)
	}
	switch parts := strings.SplitN(s, ".", 3); {
	case len(parts) == 3 && parts[0] == "machine" && parts[1] == "label" && labelGrammar.MatchString(parts[2]):
		return &variable{kind: varLabel, arg: parts[2]}, ""
	case len(parts) == 2 && parts[0] == "machine":
		if !contains(machineFields, parts[1]) {
			return unknown(s, "machine has "+strings.Join(machineFields, ", ")+" and label.KEY")
		}
		return &variable{kind: varMachine, arg: parts[1]}, ""
	case len(parts) == 3 && parts[0] == "nic":
		n, err := strconv.Atoi(parts[1])
		if err != nil || n < 0 || n > 99 || strconv.Itoa(n) != parts[1] || !contains(nicFields, parts[2]) {
			return unknown(s, "want nic.N.mac, nic.N.ip, nic.N.ip6 or nic.N.network with N from 0")
		}
		return &variable{kind: varNIC, arg: parts[2], index: n}, ""
	case len(parts) == 2 && parts[0] == "secret":
		if nameGrammar.MatchString(parts[1]) {
			return &variable{kind: varSecret, arg: parts[1]}, ""
		}
		return unknown(s, "a secret's name has lower-case letters, digits and '-'")
	}
	return unknown(s, "want machine.…, nic.N.… or secret.NAME")
}

// parseTemplate cuts the text into segments; $${ becomes a literal ${ except in
// front of "secret.", where it stays for FillSecrets, the last to read it.
func parseTemplate(s string) (segments []segment, problems []templateProblem) {
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			segments = append(segments, segment{literal: literal.String()})
			literal.Reset()
		}
	}
	for i := 0; i < len(s); {
		rest := s[i:]
		switch {
		case strings.HasPrefix(rest, "$${secret."):
			literal.WriteString("$${")
			i += len("$${")
		case strings.HasPrefix(rest, "$${"):
			literal.WriteString("${")
			i += len("$${")
		case strings.HasPrefix(rest, "${"):
			end := strings.IndexAny(rest, "}\n")
			if end < 0 || rest[end] == '\n' {
				problems = append(problems, templateProblem{i, `a substitution "${" has no "}" on its line`, escapeHint})
				i += len("${")
				continue
			}
			v, why := parseVariable(rest[len("${"):end])
			if v == nil {
				problems = append(problems, templateProblem{i, oneLine(why), escapeHint})
			} else {
				flush()
				v.text, v.offset = rest[:end+1], i
				segments = append(segments, segment{variable: v})
			}
			i += end + 1
		default:
			n := strings.IndexByte(rest[1:], '$')
			if n < 0 {
				n = len(rest) - 1
			}
			literal.WriteString(rest[:n+1])
			i += n + 1
		}
	}
	flush()
	return segments, problems
}

// firstMarker stands for variables while the YAML around them is read: one rune
// each of a private plane, which is an ordinary character to YAML.
const firstMarker = 0xF0000

const maxVariables = 4096

// isCloudConfig: cloud-init reads the rest as YAML only after this very line.
func isCloudConfig(s string) bool {
	first, _, _ := strings.Cut(s, "\n")
	return strings.TrimRight(first, " \t\r") == "#cloud-config"
}

// compileTemplate reads user data; the template is nil if there are problems.
func compileTemplate(s string) (*template, []templateProblem) {
	segments, problems := parseTemplate(s)
	t := &template{segments: segments}
	vars := t.variables()
	if len(vars) > maxVariables {
		problems = append(problems, templateProblem{0, fmt.Sprintf("more than %d substitutions", maxVariables), "move the data into the image"})
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r >= firstMarker || r == 0 }); i >= 0 {
		problems = append(problems, templateProblem{i, "a character that has no meaning in text", "remove it"})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if isCloudConfig(s) {
		marked, _ := mark(segments)
		var root yaml.Node
		if err := unmarshalNode(marked, &root); err != nil {
			return nil, []templateProblem{{offsetOfLine(s, err.line), "not valid YAML, which #cloud-config must be: " + err.text, nearThisLine}}
		}
		walkScalars(&root, func(n *yaml.Node) {
			if parts := unmark(n.Value, vars); n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0 && parts != nil {
				t.plain = append(t.plain, parts)
			}
		})
	}
	return t, nil
}

// mark writes one marker for each variable.
func mark(segments []segment) (string, int) {
	var b strings.Builder
	n := 0
	for _, s := range segments {
		if s.variable == nil {
			b.WriteString(s.literal)
			continue
		}
		b.WriteRune(rune(firstMarker + n))
		n++
	}
	return b.String(), n
}

// unmark cuts a scalar at its markers; nil where it has none.
func unmark(s string, vars []*variable) (parts []segment) {
	found := false
	start := 0
	for i, r := range s {
		if r < firstMarker || int(r-firstMarker) >= len(vars) {
			continue
		}
		found = true
		if i > start {
			parts = append(parts, segment{literal: s[start:i]})
		}
		parts = append(parts, segment{variable: vars[r-firstMarker]})
		start = i + len(string(r))
	}
	if !found {
		return nil
	}
	if start < len(s) {
		parts = append(parts, segment{literal: s[start:]})
	}
	return parts
}

func walkScalars(n *yaml.Node, do func(*yaml.Node)) {
	if n.Kind == yaml.ScalarNode {
		do(n)
	}
	for _, c := range n.Content {
		walkScalars(c, do)
	}
}

// unmarshalNode reads the first document of a text, without following aliases.
func unmarshalNode(s string, into *yaml.Node) *yamlError {
	err := readNode(yaml.NewDecoder(strings.NewReader(s)), into)
	if errors.Is(err, io.EOF) {
		return nil // comments only
	}
	return syntaxError(err, []byte(s))
}

func offsetOfLine(s string, line int) int {
	at := 0
	for ; line > 1; line-- {
		i := strings.IndexByte(s[at:], '\n')
		if i < 0 {
			break
		}
		at += i + 1
	}
	return at
}

// safeValue is what may be substituted anywhere: no space, quote, bracket or
// control character, nothing a shell, a kernel argument or YAML gives a meaning
// to, and no colon at an end, which would make a YAML key.
var safeValue = regexp.MustCompile(`^[A-Za-z0-9/]([A-Za-z0-9._/+:-]*[A-Za-z0-9/])?$`)

// fillError says why one machine cannot be filled in, and in which of its
// fields that is cured.
type fillError struct{ field, text, next string }

func (e *fillError) Error() string { return e.text + "; " + e.next }

// value of a variable other than a secret on one machine.
func (v *variable) value(m *Machine) (string, error) {
	s, field := "", v.field()
	switch v.kind {
	case varLabel:
		s = m.Labels[v.arg]
	case varMachine:
		switch v.arg {
		case "name":
			s = m.Name
		case "uuid":
			s = m.UUID
		case "serial":
			s = m.Serial
		case "arch":
			s = string(m.Arch)
		default:
			s = m.Field(v.arg)
		}
	case varNIC:
		if v.index >= len(m.NICs) {
			return "", &fillError{field, fmt.Sprintf("%s is not there, it declares %d interfaces", v.text, len(m.NICs)), "declare it"}
		}
		n := m.NICs[v.index]
		switch v.arg {
		case "mac":
			s = string(n.MAC)
		case "ip":
			if n.IP.IsValid() {
				s = n.IP.String()
			}
		case "ip6":
			if n.IP6.IsValid() {
				s = n.IP6.String()
			}
		case "network":
			s = n.Network
		}
	}
	if s == "" {
		return "", &fillError{field, v.text + " has no value", "declare it"}
	}
	if !safeValue.MatchString(s) {
		return "", &fillError{field, fmt.Sprintf("%s is %q, which is not safe to substitute", v.text, s), "want letters, digits and . _ / + : - only"}
	}
	return s, nil
}

// field of a Machine that the variable reads.
func (v *variable) field() string {
	switch v.kind {
	case varLabel:
		return "metadata.labels." + v.arg
	case varNIC:
		return fmt.Sprintf("spec.nics[%d].%s", v.index, v.arg)
	}
	switch v.arg {
	case "name":
		return "metadata.name"
	case "site", "rack", "unit":
		return "spec.location." + v.arg
	}
	return "spec." + v.arg
}

// render fills in everything but secrets.
func (t *template) render(m *Machine) (string, error) {
	text, err := renderSegments(t.segments, m)
	if err != nil {
		return "", err
	}
	for _, parts := range t.plain {
		if hasSecret(parts) {
			continue // FillSecrets looks at those
		}
		if len(parts) == 1 && parts[0].variable.kind == varMachine && parts[0].variable.arg == "unit" {
			continue // a number is what it is
		}
		value, err := renderSegments(parts, m)
		if err != nil {
			return "", err
		}
		if what := readAs(value); what != "" {
			v := firstVariable(parts)
			return "", &fillError{v.field(), fmt.Sprintf("%s gives %q, which YAML reads as %s there", v.text, value, what), "put the substitution in quotes"}
		}
	}
	return text, nil
}

func hasSecret(parts []segment) bool {
	for _, p := range parts {
		if p.variable != nil && p.variable.kind == varSecret {
			return true
		}
	}
	return false
}

func firstVariable(parts []segment) *variable {
	for _, p := range parts {
		if p.variable != nil {
			return p.variable
		}
	}
	return nil
}

func renderSegments(segments []segment, m *Machine) (string, error) {
	var b strings.Builder
	for _, s := range segments {
		switch {
		case s.variable == nil:
			b.WriteString(s.literal)
		case s.variable.kind == varSecret:
			b.WriteString(s.variable.text)
		default:
			v, err := s.variable.value(m)
			if err != nil {
				return "", err
			}
			b.WriteString(v)
		}
	}
	return b.String(), nil
}

// templates keeps compiled user data: a plan renders one Definition for
// thousands of machines.
var templates = templateCache{m: map[string]*template{}}

type templateCache struct {
	mu sync.Mutex
	m  map[string]*template
}

func (c *templateCache) get(s string) (*template, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.m[s]; t != nil {
		return t, nil
	}
	t, problems := compileTemplate(s)
	if t == nil {
		p := problems[0]
		return nil, fmt.Errorf("%s; %s", p.text, p.next)
	}
	if len(c.m) >= 64 { // more Definitions than are rendered at a time
		clear(c.m)
	}
	c.m[s] = t
	return t, nil
}
