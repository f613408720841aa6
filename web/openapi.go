package web

import (
	"encoding"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
)

// openAPI answers with the document made of the route table.
func (s *Server) openAPI(c echo.Context) error {
	return c.JSON(http.StatusOK, openAPIOf(s.routes(), s.Version))
}

var pathParam = regexp.MustCompile(`:([a-z]+)`)

// openAPIOf describes the routes in OpenAPI 3.1. Schemas come from the Go types
// by their JSON names, so that the document follows the code.
func openAPIOf(routes []route, version string) map[string]any {
	schemas := map[string]any{}
	paths := map[string]map[string]any{}
	for _, r := range routes {
		op := map[string]any{"summary": r.doc, "responses": map[string]any{
			"default": response(schemaOf(reflect.TypeFor[Problem](), schemas), "application/problem+json", "why not"),
		}}
		ok := map[string]any{"description": "done"}
		if r.out != nil {
			ok = response(schemaOf(reflect.TypeOf(r.out), schemas), "application/json", "the answer")
		}
		op["responses"].(map[string]any)["200"] = ok
		if r.in != nil {
			op["requestBody"] = map[string]any{"required": true, "content": map[string]any{
				"application/json": map[string]any{"schema": schemaOf(reflect.TypeOf(r.in), schemas)}}}
		}
		if r.scope != scopeOpen {
			op["security"] = []any{map[string]any{"bearer": []string{}}}
		}
		var params []any
		for _, m := range pathParam.FindAllStringSubmatch(r.path, -1) {
			params = append(params, map[string]any{"name": m[1], "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
		}
		if params != nil {
			op["parameters"] = params
		}
		path := pathParam.ReplaceAllString(r.path, "{$1}")
		if paths[path] == nil {
			paths[path] = map[string]any{}
		}
		paths[path][strings.ToLower(r.method)] = op
	}
	return map[string]any{
		"openapi": "3.1.0",
		"info":    map[string]any{"title": "recast", "version": version},
		"paths":   paths,
		"components": map[string]any{"schemas": schemas,
			"securitySchemes": map[string]any{"bearer": map[string]any{"type": "http", "scheme": "bearer"}}},
	}
}

func response(schema any, mime, text string) map[string]any {
	return map[string]any{"description": text, "content": map[string]any{mime: map[string]any{"schema": schema}}}
}

var textType = reflect.TypeFor[encoding.TextMarshaler]()

func schemaOf(t reflect.Type, schemas map[string]any) map[string]any {
	if t.Kind() == reflect.Pointer {
		return schemaOf(t.Elem(), schemas)
	}
	if t == reflect.TypeFor[time.Time]() {
		return map[string]any{"type": "string", "format": "date-time"}
	}
	if t.Implements(textType) || reflect.PointerTo(t).Implements(textType) {
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "contentEncoding": "base64"}
		}
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), schemas)}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), schemas)}
	case reflect.Struct:
		return structSchema(t, schemas)
	}
	if t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64 {
		return map[string]any{"type": "integer"}
	}
	return map[string]any{}
}

func structSchema(t reflect.Type, schemas map[string]any) map[string]any {
	ref := map[string]any{"$ref": "#/components/schemas/" + t.Name()}
	if _, ok := schemas[t.Name()]; ok {
		return ref
	}
	schemas[t.Name()] = nil // a type that holds itself ends here
	properties := map[string]any{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		properties[name] = schemaOf(f.Type, schemas)
	}
	schemas[t.Name()] = map[string]any{"type": "object", "properties": properties}
	return ref
}
