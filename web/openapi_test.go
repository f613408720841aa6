package web

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestOpenAPIDocumentIsTheCommittedOne(t *testing.T) {
	s := newSite(t)
	code, text, _ := s.send(t, "GET", apiRoot+"/openapi.json", "", nil)
	if code != 200 {
		t.Fatal(code, text)
	}
	var doc any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)+"\n"); d != "" {
		t.Errorf("the API changed; where that is meant: go test ./web -run OpenAPI -update (-committed +now)\n%s", d)
	}
}

func TestOpenAPICoversEveryRouteAndEveryReferenceResolves(t *testing.T) {
	s := &Server{}
	raw, err := json.Marshal(openAPIOf(s.routes(), "test"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Summary   string
			Security  []map[string][]string
			Responses map[string]any
		}
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range s.routes() {
		n++
		op, ok := doc.Paths[pathParam.ReplaceAllString(r.path, "{$1}")][strings.ToLower(r.method)]
		if !ok || op.Summary == "" || op.Responses["default"] == nil || len(op.Responses) != 2 {
			t.Errorf("%s %s: %+v", r.method, r.path, op)
		}
		if secured := r.scope == scopeAgent || r.scope == scopeOperator || r.scope == scopeMetrics; (len(op.Security) > 0) != secured {
			t.Errorf("%s %s: security %v", r.method, r.path, op.Security)
		}
	}
	for _, methods := range doc.Paths {
		n -= len(methods)
	}
	if n != 0 {
		t.Errorf("%d routes more than operations", n)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok && doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")] == nil {
				t.Errorf("%s leads nowhere", ref)
			}
			for _, w := range v {
				walk(w)
			}
		case []any:
			for _, w := range v {
				walk(w)
			}
		}
	}
	var all any
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	walk(all)
}

// What the server sends must be what the document says: every key of an answer
// is a property of its schema.
func TestAnswersFollowTheirSchemas(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	types := schemas{byName: object{}, names: map[reflect.Type]string{}}
	for _, r := range s.routes() {
		if r.method != "GET" || r.out == nil || r.answer != "" || r.scope != scopeOperator && r.scope != scopeOpen {
			continue
		}
		schema := types.of(reflect.TypeOf(r.out))
		var v any
		s.ok(t, "GET", concrete(r.path), nil, &v)
		follow(t, r.path, v, schema, &types)
	}
}

func follow(t *testing.T, where string, v any, schema object, types *schemas) {
	t.Helper()
	if ref, ok := schema["$ref"].(string); ok {
		schema = types.byName[strings.TrimPrefix(ref, "#/components/schemas/")].(object)
	}
	kind := map[string]any{}
	switch v := v.(type) {
	case map[string]any:
		kind["object"] = nil
		properties, _ := schema["properties"].(object)
		required, _ := schema["required"].([]string)
		for _, name := range required {
			if _, ok := v[name]; !ok {
				t.Errorf("%s: %q is required and missing", where, name)
			}
		}
		for name, w := range v {
			if more, ok := schema["additionalProperties"].(object); ok {
				follow(t, where+"."+name, w, more, types)
			} else if p, ok := properties[name].(object); ok {
				follow(t, where+"."+name, w, p, types)
			} else {
				t.Errorf("%s: %q is in no schema", where, name)
			}
		}
	case []any:
		kind["array"] = nil
		for _, w := range v {
			if items, ok := schema["items"].(object); ok {
				follow(t, where+"[]", w, items, types)
			}
		}
	case string:
		kind["string"] = nil
	case float64:
		kind["number"], kind["integer"] = nil, nil
	case bool:
		kind["boolean"] = nil
	case nil:
		return // an empty list or pointer of Go's
	}
	if _, ok := kind[schema["type"].(string)]; !ok {
		t.Errorf("%s: %T, the schema says %s", where, v, schema["type"])
	}
}
