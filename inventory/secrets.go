package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// SecretRef is one place that names a secret. A Set that was parsed knows file
// and line; one that was decoded knows only the object, in File.
type SecretRef struct {
	Name  string `json:"name"`
	File  string `json:"file"`
	Line  int    `json:"line,omitempty"`
	Field string `json:"field"`
}

// Unknown is the Problem of naming a secret that was never set.
func (r SecretRef) Unknown() Problem {
	return Problem{File: r.File, Line: r.Line, Field: r.Field, Text: fmt.Sprintf("there is no secret %q", r.Name), Next: "set it with: recast secret set " + r.Name}
}

// SecretRefs are all places of the set that name a secret, by name.
func (s *Set) SecretRefs() []SecretRef {
	if s.refs != nil {
		return s.refs
	}
	var refs []SecretRef
	for _, d := range s.Definitions {
		for _, name := range secretsIn(d.Config.UserData) {
			refs = append(refs, SecretRef{Name: name, File: "definition " + d.Name, Field: "spec.config.userData"})
		}
	}
	for _, m := range s.Machines {
		if m.BMC != nil && m.BMC.Credentials != "" {
			refs = append(refs, SecretRef{Name: m.BMC.Credentials, File: "machine " + m.Name, Field: "spec.bmc.credentials"})
		}
	}
	return sortedRefs(refs)
}

// SecretNames are the secrets that the set names, sorted, each once.
func (s *Set) SecretNames() []string {
	names := []string{}
	for _, r := range s.SecretRefs() {
		if len(names) == 0 || names[len(names)-1] != r.Name {
			names = append(names, r.Name)
		}
	}
	return names
}

func sortedRefs(refs []SecretRef) []SecretRef {
	slices.SortFunc(refs, func(x, y SecretRef) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Field, y.Field))
	})
	return refs
}

// secretsIn are the names of ${secret.NAME} in a text, sorted, each once.
func secretsIn(text string) []string {
	segments, _ := parseTemplate(text)
	var names []string
	for _, s := range segments {
		if s.variable != nil && s.variable.kind == varSecret {
			names = append(names, s.variable.arg)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// FillSecrets replaces every ${secret.NAME} of a Rendered text by its value. It
// must be the last step, and only on the way to a machine that has claimed. It
// refuses a value that would change the structure of a #cloud-config, and no
// error holds a value.
func FillSecrets(text string, get func(name string) (string, bool)) (string, error) {
	segments, err := secretSegments(text)
	if err != nil {
		return "", err
	}
	if segments == nil {
		return text, nil
	}
	values := make([]string, 0, len(segments))
	var filled strings.Builder
	for _, s := range segments {
		if s.variable == nil {
			filled.WriteString(s.literal)
			continue
		}
		value, ok := get(s.variable.arg)
		if !ok {
			return "", fmt.Errorf("there is no secret %q: set it with: recast secret set %s", s.variable.arg, s.variable.arg)
		}
		if value == "" {
			return "", fmt.Errorf("the secret %q is empty: set it with: recast secret set %s", s.variable.arg, s.variable.arg)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' || r >= firstMarker }) {
			return "", fmt.Errorf("the secret %q holds a line break or control character, which cannot stand there: encode it, such as in base64", s.variable.arg)
		}
		values = append(values, value)
		filled.WriteString(value)
	}
	if isCloudConfig(text) {
		if err := sameShape(segments, values, filled.String()); err != nil {
			return "", err
		}
	}
	return filled.String(), nil
}

// secretSegments cuts a rendered text at its secrets; nil where there is
// nothing to replace.
func secretSegments(text string) (segments []segment, err error) {
	start := 0
	add := func(end int) {
		if end > start {
			segments = append(segments, segment{literal: text[start:end]})
		}
	}
	for i := 0; i < len(text); {
		switch {
		case strings.HasPrefix(text[i:], "$${secret."):
			add(i)
			segments = append(segments, segment{literal: "${secret."})
			i += len("$${secret.")
			start = i
		case strings.HasPrefix(text[i:], "${secret."):
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return nil, errors.New(`a substitution "${secret." has no "}"`)
			}
			v, why := parseVariable(text[i+len("${") : i+end])
			if v == nil {
				return nil, errors.New(oneLine(why))
			}
			add(i)
			segments = append(segments, segment{variable: v})
			i += end + 1
			start = i
		default:
			i++
		}
	}
	if segments != nil {
		add(len(text))
	}
	return segments, nil
}

// sameShape compares the YAML with markers in the secrets' places with the
// filled one: same nodes, and each scalar what the marker's scalar becomes.
func sameShape(segments []segment, values []string, filled string) error {
	marked, _ := mark(segments)
	var vars []*variable
	for _, s := range segments {
		if s.variable != nil {
			vars = append(vars, s.variable)
		}
	}
	if len(vars) == 0 {
		return nil
	}
	if len(vars) > maxVariables {
		return fmt.Errorf("more than %d secrets in one text", maxVariables)
	}
	var before, after yaml.Node
	if err := unmarshalNode(marked, &before); err != nil {
		return fmt.Errorf("the user data is not valid YAML: %s", err.text)
	}
	breaks := func(parts []segment) error {
		name := vars[0].arg
		if v := firstVariable(parts); v != nil {
			name = v.arg
		}
		return fmt.Errorf("the secret %q holds characters that would change the YAML around it: put ${secret.%s} in single quotes, and use no quote or backslash in its value", name, name)
	}
	if unmarshalNode(filled, &after) != nil {
		return breaks(nil)
	}
	var walk func(a, b *yaml.Node) error
	walk = func(a, b *yaml.Node) error {
		parts := unmark(a.Value, vars)
		if a.Kind != b.Kind || len(a.Content) != len(b.Content) || a.Style != b.Style || a.Anchor != b.Anchor {
			return breaks(parts)
		}
		want := a.Value
		if parts != nil {
			var s strings.Builder
			for _, p := range parts {
				if p.variable == nil {
					s.WriteString(p.literal)
					continue
				}
				for i, v := range vars {
					if v == p.variable {
						s.WriteString(values[i])
					}
				}
			}
			want = s.String()
		}
		if want != b.Value {
			return breaks(parts)
		}
		if parts != nil && a.Kind == yaml.ScalarNode && a.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
			if what := readAs(want); what != "" {
				v := firstVariable(parts)
				return fmt.Errorf("the secret %q would be read as %s there: put ${secret.%s} in quotes", v.arg, what, v.arg)
			}
		}
		for i := range a.Content {
			if err := walk(a.Content[i], b.Content[i]); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(&before, &after)
}
