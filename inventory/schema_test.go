package inventory

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// judge is as much of JSON Schema as Schema uses.
func judge(root, s map[string]any, v any, path string) (wrong []string) {
	fail := func(format string, args ...any) { wrong = append(wrong, path+": "+fmt.Sprintf(format, args...)) }
	if ref, ok := s["$ref"].(string); ok {
		return judge(root, root["definitions"].(map[string]any)[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any), v, path)
	}
	if want, ok := s["type"]; ok {
		types, _ := want.([]any)
		if one, ok := want.(string); ok {
			types = []any{one}
		}
		if !slices.ContainsFunc(types, func(t any) bool { return t == typeOf(v) || t == "number" && typeOf(v) == "integer" }) {
			fail("want %v, found %s", types, typeOf(v))
			return wrong
		}
	}
	if want, ok := s["const"]; ok && v != want {
		fail("want %v", want)
	}
	if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, v) {
		fail("%v is none of %v", v, enum)
	}
	if text, ok := v.(string); ok && s["pattern"] != nil && !regexp.MustCompile(s["pattern"].(string)).MatchString(text) {
		fail("%q does not match %s", text, s["pattern"])
	}
	if list, ok := v.([]any); ok && s["items"] != nil {
		for i, item := range list {
			wrong = append(wrong, judge(root, s["items"].(map[string]any), item, fmt.Sprintf("%s[%d]", path, i))...)
		}
	}
	if object, ok := v.(map[string]any); ok {
		properties, _ := s["properties"].(map[string]any)
		for name, value := range object {
			if p, ok := properties[name].(map[string]any); ok {
				wrong = append(wrong, judge(root, p, value, path+"."+name)...)
			} else if s["additionalProperties"] == false {
				fail("unknown field %s", name)
			} else if p, ok := s["additionalProperties"].(map[string]any); ok {
				wrong = append(wrong, judge(root, p, value, path+"."+name)...)
			}
		}
		required, _ := s["required"].([]any)
		for _, name := range required {
			if _, ok := object[name.(string)]; !ok {
				fail("%s is missing", name)
			}
		}
	}
	rules, _ := s["allOf"].([]any)
	for _, r := range rules {
		rule := r.(map[string]any)
		if len(judge(root, rule["if"].(map[string]any), v, path)) == 0 {
			wrong = append(wrong, judge(root, rule["then"].(map[string]any), v, path)...)
		}
	}
	return wrong
}

func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "boolean"
	case int:
		return "integer"
	case float64:
		return "number"
	default:
		if reflect.TypeOf(v).Kind() == reflect.Map {
			return "object"
		}
		return "array"
	}
}

func judgeAll(t *testing.T, doc string) (wrong []string) {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal(Schema(), &root); err != nil {
		t.Fatal(err)
	}
	for _, one := range strings.Split(doc, "---\n") {
		var v map[string]any
		if err := yaml.NewDecoder(bytes.NewReader([]byte(one))).Decode(&v); err != nil {
			t.Fatal(err)
		}
		wrong = append(wrong, judge(root, root, v, "")...)
	}
	return wrong
}

func TestSchemaAcceptsWhatParseAccepts(t *testing.T) {
	doc := rack(t)
	if wrong := judgeAll(t, doc); len(wrong) > 0 {
		t.Error(wrong)
	}
	for _, change := range [][2]string{
		{"gateway:", "gatewy:"}, {"dhcp: authoritative", "dhcp: maybe"}, {"attempts: 3", "attempts: three"}, {"kind: Group", "kind: Grup"},
		{"minSize: 8GiB", "minSize: 8"}, {"rotational: false", "rotationl: false"}, {"{booting: 15m}", "{boting: 15m}"}, {"sha256:e3", "sha256:"},
		{"name: r1u05", "name: R1U05"}, {"nics: [", "nic: ["}, {"deadline: 20m", "deadline: soon"}, {"redfish://", "https://"},
	} {
		if wrong := judgeAll(t, strings.Replace(doc, change[0], change[1], 1)); len(wrong) == 0 {
			t.Errorf("%q instead of %q was accepted", change[1], change[0])
		}
	}
}

// The schema is kept in the repository, where editors find it.
func TestSchemaFileIsCurrent(t *testing.T) {
	const file = "testdata/recast.schema.json"
	if *update {
		if err := os.WriteFile(file, Schema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, Schema()) {
		t.Error("testdata/recast.schema.json is not what Schema gives: go test ./inventory -run Schema -update")
	}
}
