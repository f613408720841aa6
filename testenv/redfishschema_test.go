package testenv

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// The schemas are DMTF's (DSP8010), reduced to what judges a resource and to the
// definitions that ours reach: no descriptions. -redfish-schemas names a folder
// with the published folders json-schema and csdl, and makes the reduced file anew
// from them; a few types without version stand only in the second.
var redfishSchemaDir = flag.String("redfish-schemas", "", "make testdata/redfish-schemas.json from the DSP8010 files in this folder")

const redfishSchemaFile = "testdata/redfish-schemas.json"

// redfishSchemaSet is file name without .json to definition to schema.
type redfishSchemaSet map[string]map[string]any

// redfishSchemaRef is a reference: the file and the definition.
func redfishSchemaRef(ref, in string) (file, definition string) {
	url, definition, _ := strings.Cut(ref, "#/definitions/")
	if url == "" {
		return in, definition
	}
	return strings.TrimSuffix(url[strings.LastIndex(url, "/")+1:], ".json"), definition
}

// find is the schema that a reference means. A file without version stands for
// the version that we have, and its main definition for a link to it too.
func (s redfishSchemaSet) find(file, definition string) any {
	if d, ok := s[file][definition]; ok {
		return d
	}
	if strings.Contains(file, ".") {
		return nil
	}
	for name, definitions := range s {
		kind, _, _ := strings.Cut(name, ".v")
		d, ok := definitions[definition]
		if kind != file || !ok {
			continue
		}
		if definition == file {
			return map[string]any{"anyOf": []any{
				map[string]any{"$ref": "http://redfish.dmtf.org/schemas/v1/odata-v4.json#/definitions/idRef"},
				map[string]any{"$ref": "http://redfish.dmtf.org/schemas/v1/" + name + ".json#/definitions/" + definition},
			}}
		}
		return d
	}
	return nil
}

// judge returns what is wrong with a value, one line each.
func (s redfishSchemaSet) judge(v, schema any, file, at string) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	rules, ok := schema.(map[string]any)
	if !ok {
		return nil
	}
	if ref, ok := rules["$ref"].(string); ok {
		to, definition := redfishSchemaRef(ref, file)
		target := s.find(to, definition)
		if target == nil {
			return []string{at + ": no schema for " + ref}
		}
		for name := range s {
			if kind, _, _ := strings.Cut(name, ".v"); name == to || kind == to && s[name][definition] != nil {
				to = name
				break
			}
		}
		return s.judge(v, target, to, at)
	}
	if any, ok := rules["anyOf"].([]any); ok {
		var best []string
		for i, choice := range any {
			got := s.judge(v, choice, file, at)
			if len(got) == 0 {
				best = nil
				break
			}
			// What comes nearest is told: the longest is of the type that is meant.
			if i == 0 || len(got) < len(best) {
				best = got
			}
		}
		wrong = append(wrong, best...)
	}
	if kinds := rules["type"]; kinds != nil && !redfishSchemaType(v, kinds) {
		complain("%T %v, want %v", v, v, kinds)
		return wrong
	}
	if enum, ok := rules["enum"].([]any); ok && v != nil && !slices.Contains(enum, v) {
		complain("%v is none of %v", v, enum)
	}
	switch v := v.(type) {
	case map[string]any:
		properties, _ := rules["properties"].(map[string]any)
		patterns, _ := rules["patternProperties"].(map[string]any)
		if required, ok := rules["required"].([]any); ok {
			for _, name := range required {
				if _, ok := v[name.(string)]; !ok {
					complain("%s is missing", name)
				}
			}
		}
		for name, x := range v {
			known := false
			if rule, ok := properties[name]; ok {
				known = true
				wrong = append(wrong, s.judge(x, rule, file, at+"/"+name)...)
			}
			for pattern, rule := range patterns {
				if redfishPattern(pattern).MatchString(name) {
					known = true
					wrong = append(wrong, s.judge(x, rule, file, at+"/"+name)...)
				}
			}
			if more, ok := rules["additionalProperties"].(bool); ok && !more && !known {
				complain("%s is not in the schema", name)
			}
		}
	case []any:
		for i, x := range v {
			wrong = append(wrong, s.judge(x, rules["items"], file, fmt.Sprintf("%s/%d", at, i))...)
		}
	case string:
		if pattern, ok := rules["pattern"].(string); ok && !redfishPattern(pattern).MatchString(v) {
			complain("%q does not match %q", v, pattern)
		}
		if rules["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				complain("%q is no time", v)
			}
		}
	case float64:
		if least, ok := rules["minimum"].(float64); ok && v < least {
			complain("%v is below %v", v, least)
		}
		if most, ok := rules["maximum"].(float64); ok && v > most {
			complain("%v is above %v", v, most)
		}
	}
	return wrong
}

var redfishPatterns = map[string]*regexp.Regexp{}

func redfishPattern(pattern string) *regexp.Regexp {
	if redfishPatterns[pattern] == nil {
		redfishPatterns[pattern] = regexp.MustCompile(pattern)
	}
	return redfishPatterns[pattern]
}

func redfishSchemaType(v, kinds any) bool {
	list, ok := kinds.([]any)
	if !ok {
		list = []any{kinds}
	}
	for _, kind := range list {
		switch kind {
		case "null":
			ok = v == nil
		case "boolean":
			_, ok = v.(bool)
		case "string":
			_, ok = v.(string)
		case "number":
			_, ok = v.(float64)
		case "integer":
			var f float64
			f, ok = v.(float64)
			ok = ok && f == float64(int64(f))
		case "array":
			_, ok = v.([]any)
		case "object":
			_, ok = v.(map[string]any)
		}
		if ok {
			return true
		}
	}
	return false
}

// reduceRedfishSchemas reads the published files.
func reduceRedfishSchemas(t *testing.T, dir string) redfishSchemaSet {
	all := redfishSchemaSet{}
	paths, err := filepath.Glob(filepath.Join(dir, "json-schema", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no schemas in %q: %v", dir, err)
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Definitions map[string]any `json:"definitions"`
		}
		if err := json.Unmarshal(raw, &file); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[strings.TrimSuffix(filepath.Base(path), ".json")] = file.Definitions
	}
	out := redfishSchemaSet{}
	var keep func(file, definition string)
	var strip func(v any, file string, names bool) any
	strip = func(v any, file string, names bool) any {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				keep(redfishSchemaRef(ref, file))
			}
			m := map[string]any{}
			for k, x := range v {
				// Below properties the words are names, not rules.
				if names || slices.Contains([]string{"$ref", "anyOf", "type", "enum", "required", "properties", "patternProperties",
					"additionalProperties", "items", "pattern", "format", "minimum", "maximum"}, k) {
					m[k] = strip(x, file, !names && (k == "properties" || k == "patternProperties"))
				}
			}
			return m
		case []any:
			l := make([]any, len(v))
			for i, x := range v {
				l[i] = strip(x, file, false)
			}
			return l
		}
		return v
	}
	keep = func(file, definition string) {
		if definition != file && !strings.Contains(file, ".") && !strings.HasPrefix(file, "odata") && out[file][definition] == nil {
			if d := redfishCSDL(t, dir, file, definition); d != nil {
				if out[file] == nil {
					out[file] = map[string]any{}
				}
				out[file][definition] = true // seen; replaced below
				out[file][definition] = strip(d, file, false)
				return
			}
		}
		for name, definitions := range all {
			kind, _, versioned := strings.Cut(name, ".v")
			if name != file && (kind != file || !versioned) || definitions[definition] == nil {
				continue
			}
			// A link to a resource that we do not have is only a link.
			if name != file && definition == kind && !slices.Contains(redfishSchemas, name) {
				continue
			}
			if out[name][definition] != nil {
				return
			}
			if out[name] == nil {
				out[name] = map[string]any{}
			}
			out[name][definition] = true // seen; replaced below
			out[name][definition] = strip(definitions[definition], name, false)
			return
		}
	}
	for _, name := range append([]string{"redfish-error.v1_0_2/RedfishError"}, redfishSchemas...) {
		file, definition, ok := strings.Cut(name, "/")
		if !ok {
			definition, _, _ = strings.Cut(file, ".")
		}
		if all[file][definition] == nil {
			t.Errorf("no definition %s in %s.json", definition, file)
		}
		keep(file, definition)
	}
	keep("odata-v4", "idRef")
	return out
}

// redfishCSDL is a type without version as a schema, or nil where there is none.
func redfishCSDL(t *testing.T, dir, file, definition string) any {
	raw, err := os.ReadFile(filepath.Join(dir, "csdl", file+"_v1.xml"))
	if err != nil {
		return nil
	}
	var edmx struct {
		Schemas []struct {
			Namespace string `xml:",attr"`
			Enums     []struct {
				Name    string `xml:",attr"`
				Members []struct {
					Name string `xml:",attr"`
				} `xml:"Member"`
			} `xml:"EnumType"`
			Words []struct {
				Name           string `xml:",attr"`
				UnderlyingType string `xml:",attr"`
			} `xml:"TypeDefinition"`
			Objects []struct {
				Name       string `xml:",attr"`
				Properties []struct {
					Name string `xml:",attr"`
					Type string `xml:",attr"`
				} `xml:"Property"`
			} `xml:"ComplexType"`
		} `xml:"DataServices>Schema"`
	}
	if err := xml.Unmarshal(raw, &edmx); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	ref := func(name string) any {
		switch name {
		case "Edm.String", "Edm.Guid", "Edm.DateTimeOffset", "Edm.Duration":
			return map[string]any{"type": []any{"string", "null"}}
		case "Edm.Boolean":
			return map[string]any{"type": []any{"boolean", "null"}}
		case "Edm.Int64", "Edm.Decimal", "Edm.Double":
			return map[string]any{"type": []any{"number", "null"}}
		}
		dot := strings.LastIndex(name, ".")
		return map[string]any{"anyOf": []any{map[string]any{"$ref": name[:dot] + ".json#/definitions/" + name[dot+1:]}, map[string]any{"type": "null"}}}
	}
	for _, schema := range edmx.Schemas {
		if schema.Namespace != file {
			continue
		}
		for _, e := range schema.Enums {
			if e.Name == definition {
				var words []any
				for _, m := range e.Members {
					words = append(words, m.Name)
				}
				return map[string]any{"type": "string", "enum": words}
			}
		}
		for _, w := range schema.Words {
			if w.Name == definition {
				return map[string]any{"type": []any{"string", "null"}}
			}
		}
		for _, o := range schema.Objects {
			if o.Name != definition {
				continue
			}
			if definition == "Oem" {
				return map[string]any{"type": "object"}
			}
			properties := map[string]any{}
			for _, p := range o.Properties {
				if of, ok := strings.CutPrefix(p.Type, "Collection("); ok {
					properties[p.Name] = map[string]any{"type": "array", "items": ref(strings.TrimSuffix(of, ")"))}
				} else {
					properties[p.Name] = ref(p.Type)
				}
			}
			return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
		}
	}
	return nil
}

func redfishSchemaRead(t *testing.T) redfishSchemaSet {
	t.Helper()
	if dir := *redfishSchemaDir; dir != "" {
		reduced := reduceRedfishSchemas(t, dir)
		var out bytes.Buffer
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(reduced); err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(out.String(), "},\"", "},\n\"") // one rule a line, for reading changes
		if err := os.WriteFile(redfishSchemaFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(redfishSchemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var s redfishSchemaSet
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// redfishWalk reads every resource that a link leads to.
func redfishWalk(t *testing.T, b *RedfishBMC, each func(path string, answer map[string]any)) {
	t.Helper()
	var links func(v any) []string
	links = func(v any) (out []string) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if s, ok := x.(string); ok && (k == "@odata.id" || k == "@Redfish.ActionInfo") {
					s, _, _ = strings.Cut(s, "#")
					out = append(out, s)
				}
				out = append(out, links(x)...)
			}
		case []any:
			for _, x := range v {
				out = append(out, links(x)...)
			}
		}
		return out
	}
	seen := map[string]bool{}
	for queue := []string{"/redfish/v1/"}; len(queue) > 0; queue = queue[1:] {
		path := queue[0]
		if seen[path] {
			continue
		}
		seen[path] = true
		status, _, answer := redfishDo(t, b, http.MethodGet, path, "", nil)
		if status != http.StatusOK {
			t.Errorf("GET %s: %d: %v", path, status, answer)
			continue
		}
		each(path, answer)
		queue = append(queue, links(answer)...)
	}
}

// listener is a socket on loopback.
func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRedfishResourcesAreValidBySchema(t *testing.T) {
	schemas := redfishSchemaRead(t)
	image := redfishImageServer(t, bytes.Repeat([]byte{1}, 1<<16))
	for name, c := range map[string]struct {
		options RedfishOptions
		least   int // resources
	}{
		"plain": {RedfishOptions{UUID: "8a1f0f52-0000-4000-8000-000000000005", Serial: "S1",
			Hardware: RedfishHardware{MACs: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}, Cores: 2, MemoryMiB: 1536, Disks: []inventory.DiskID{{Serial: "D1", Size: 1 << 30}, {Size: 1 << 31}}, SecureBoot: "Enabled"}}, 55},
		"with every variant": {RedfishOptions{MediaUnderSystem: true, AccountSlots: 4, OtherSystems: []RedfishSystem{{ID: "2"}},
			Faults: BMCFaults{LockAfter: 3, Redfish: RedfishFaults{ActionInfo: true, Settings: SettingsObject, Task: TaskOK}}}, 54},
		"with a console":        {RedfishOptions{SSH: listener(t), SSHCommand: "console com2"}, 45},
		"with a console of old": {RedfishOptions{SSH: listener(t), OldConsole: true}, 45},
		"with a decoy":          {RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Settings: SettingsDecoy}}}, 46},
	} {
		t.Run(name, func(t *testing.T) {
			b := redfishBMC(t, &SimMachine{Firmware: true}, c.options)
			// Something in every collection.
			for _, r := range []struct{ method, path, body string }{
				{"POST", "/redfish/v1/SessionService/Sessions", `{"UserName":"admin","Password":"secret"}`},
				{"POST", "/redfish/v1/EventService/Subscriptions", `{"Destination":"http://127.0.0.1:9/","Protocol":"Redfish","Context":"x","RegistryPrefixes":["Base"]}`},
				{"POST", "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset", `{"ResetType":"On"}`},
				{"POST", "/redfish/v1/Managers/1/VirtualMedia/CD1/Actions/VirtualMedia.InsertMedia", `{"Image":"` + image + `"}`},
				{"POST", "/redfish/v1/Systems/1/VirtualMedia/CD1/Actions/VirtualMedia.InsertMedia", `{"Image":"` + image + `"}`},
			} {
				redfishDo(t, b, r.method, r.path, r.body, nil)
			}
			n := 0
			redfishWalk(t, b, func(path string, answer map[string]any) {
				n++
				kind := strings.TrimPrefix(redfishWord(answer, "@odata.type"), "#")
				dot := strings.LastIndex(kind, ".")
				if dot < 0 {
					t.Errorf("%s: type %q", path, kind)
					return
				}
				file, definition := kind[:dot], kind[dot+1:]
				schema := schemas[file][definition]
				if schema == nil {
					t.Errorf("%s: no schema for %q", path, kind)
					return
				}
				for _, wrong := range schemas.judge(answer, schema, file, path) {
					t.Error(wrong)
				}
				if got := redfishWord(answer, "@odata.id"); got != path {
					t.Errorf("%s calls itself %q", path, got)
				}
			})
			if n < c.least {
				t.Errorf("only %d resources, want %d", n, c.least)
			}
		})
	}
}

func TestRedfishErrorsAreValidBySchema(t *testing.T) {
	schemas := redfishSchemaRead(t)
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	for _, r := range []struct{ method, path, body string }{
		{"GET", "/redfish/v1/Nothing", ""},
		{"PATCH", "/redfish/v1/Systems/1", `{"Boot":{"BootOrder":[]}}`},
		{"DELETE", "/redfish/v1/Systems/1", ""},
	} {
		_, _, answer := redfishDo(t, b, r.method, r.path, r.body, nil)
		for _, wrong := range schemas.judge(answer, schemas["redfish-error.v1_0_2"]["RedfishError"], "redfish-error.v1_0_2", r.path) {
			t.Error(wrong)
		}
	}
}

// The judge must find what is wrong.
func TestRedfishSchemaJudgeRefuses(t *testing.T) {
	schemas := redfishSchemaRead(t)
	good := map[string]any{"@odata.id": "/x", "@odata.type": "#Session.v1_8_0.Session", "Id": "1", "Name": "n", "UserName": "u"}
	judge := func(change func(map[string]any)) []string {
		v := map[string]any{}
		for k, x := range good {
			v[k] = x
		}
		change(v)
		return schemas.judge(v, schemas["Session.v1_8_0"]["Session"], "Session.v1_8_0", "")
	}
	if wrong := judge(func(map[string]any) {}); wrong != nil {
		t.Errorf("a good session: %v", wrong)
	}
	for name, change := range map[string]func(map[string]any){
		"unknown property": func(v map[string]any) { v["Nonsense"] = 1.0 },
		"missing property": func(v map[string]any) { delete(v, "Name") },
		"wrong type":       func(v map[string]any) { v["UserName"] = 1.0 },
		"wrong word":       func(v map[string]any) { v["SessionType"] = "Nonsense" },
		"no time":          func(v map[string]any) { v["CreatedTime"] = "yesterday" },
	} {
		if wrong := judge(change); len(wrong) != 1 {
			t.Errorf("%s: %v, want one complaint", name, wrong)
		}
	}
	if !reflect.DeepEqual(judge(func(v map[string]any) { v["Oem"] = map[string]any{} }), []string(nil)) {
		t.Error("an empty Oem was refused")
	}
}
