package inventory

import (
	"bytes"
	"encoding/json"
	"reflect"
)

// schemaPatterns are the grammars of the raw structs' forms, as far as a
// regular expression can tell them.
var schemaPatterns = map[string]string{
	"name":     `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`,
	"label":    `^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`,
	"digest":   `^sha256:[0-9A-Fa-f]{64}$`,
	"hostKey":  `^SHA256:[A-Za-z0-9+/]{43}$`,
	"size":     `^[0-9]+(\.[0-9]+)? ?([kKMGTP]B|[KMGTP]iB|B)$`,
	"duration": `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`,
	"addr":     `^([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:]+)$`,
	"addr4":    `^[0-9]{1,3}(\.[0-9]{1,3}){3}$`,
	"addr6":    `^[0-9A-Fa-f:]+$`,
	"prefix":   `^([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:]+)/[0-9]{1,3}$`,
	"range":    `^([0-9]{1,3}(\.[0-9]{1,3}){3} *- *[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:]+ *- *[0-9A-Fa-f:]+)$`,
	"uuid":     `^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`,
	"bmc":      `^(redfish|ipmi)://[^/@]+`,
	"share":    `^[0-9]+%?$`,
}

type schema map[string]any

// Schema is the JSON Schema (draft 7, which YAML editors read) of one declared
// document, made from the types that Parse decodes into. What it accepts Parse
// may still refuse: references, duplicates and addresses are beyond it.
func Schema() []byte {
	kinds := map[string]reflect.Type{
		"Network": reflect.TypeFor[rawNetwork](), "Image": reflect.TypeFor[rawImage](), "Definition": reflect.TypeFor[rawDefinition](),
		"Group": reflect.TypeFor[rawGroup](), "Model": reflect.TypeFor[rawModel](), "Machine": reflect.TypeFor[rawMachine](),
	}
	root := schemaOf(reflect.TypeFor[rawDocument[struct{}]](), rawField{})
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "recast " + APIVersion
	root["properties"].(schema)["kind"].(schema)["enum"] = Kinds
	var rules []schema
	definitions := schema{}
	for _, kind := range Kinds {
		definitions[kind] = schemaOf(kinds[kind], rawField{})
		rules = append(rules, schema{
			"if":   schema{"properties": schema{"kind": schema{"const": kind}}},
			"then": schema{"properties": schema{"spec": schema{"$ref": "#/definitions/" + kind}}},
		})
	}
	root["properties"].(schema)["spec"] = schema{}
	root["definitions"], root["allOf"] = definitions, rules
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		panic("inventory: encode schema: " + err.Error()) // maps of strings and lists
	}
	return b.Bytes()
}

func schemaOf(t reflect.Type, f rawField) schema {
	s := schema{}
	pattern := schemaPatterns[f.form]
	switch reflect.Zero(t).Interface().(type) {
	case text:
		s["type"] = "string"
	case word:
		s["type"] = []string{"string", "integer"}
	case scalar:
		s["type"] = []string{"string", "number", "boolean"}
	case number:
		s["type"] = "integer"
	case boolean:
		s["type"] = "boolean"
	case entries:
		s["type"] = "object"
		s["additionalProperties"] = schema{"type": []string{"string", "integer"}, "pattern": schemaPatterns["label"]}
		switch f.form {
		case "partitions":
			s["additionalProperties"] = schema{"type": []string{"string", "integer"}}
		case "deadlines":
			steps := schema{}
			for _, step := range stepNames() {
				steps[step] = schema{"type": "string", "pattern": schemaPatterns["duration"]}
			}
			s["properties"], s["additionalProperties"] = steps, false
		}
	default:
		if t.Kind() == reflect.Slice {
			s["type"], s["items"] = "array", schemaOf(t.Elem(), rawField{form: f.form})
			pattern = ""
			break
		}
		s["type"], s["additionalProperties"] = "object", false
		properties, required := schema{}, []string{}
		for _, f := range rawTypeOf(t).fields {
			one := schemaOf(t.Field(f.index).Type, f)
			properties[f.name] = one
			if f.also != "" {
				properties[f.also] = one
			}
			if f.required {
				required = append(required, f.name)
			}
		}
		s["properties"] = properties
		if len(required) > 0 {
			s["required"] = required
		}
	}
	if pattern != "" {
		s["pattern"] = pattern
	}
	if f.enum != nil {
		s["enum"] = f.enum
	}
	if f.doc != "" {
		s["description"] = f.doc
	}
	return s
}
