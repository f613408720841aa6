package web

import (
	"encoding"
	"net/http"
	"path"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"recast/inventory"
)

// openAPI answers with the document made of the route table.
func (s *Server) openAPI(c echo.Context) error {
	return c.JSON(http.StatusOK, openAPIOf(s.routes(), s.Version))
}

var pathParam = regexp.MustCompile(`:([a-z]+)`)

type object = map[string]any

// openAPIOf describes the routes in OpenAPI 3.1. Schemas come from the Go types
// by their JSON names, so that the document follows the code.
func openAPIOf(routes []route, version string) object {
	types := schemas{byName: object{}, names: map[reflect.Type]string{}}
	paths := map[string]object{}
	for _, r := range routes {
		p := pathParam.ReplaceAllString(r.path, "{$1}")
		if paths[p] == nil {
			paths[p] = object{}
		}
		paths[p][strings.ToLower(r.method)] = operation(r, &types)
	}
	return object{
		"openapi": "3.1.0",
		"info":    object{"title": "recast", "version": version},
		"paths":   paths,
		"components": object{"schemas": types.byName, "securitySchemes": object{
			"operator": object{"type": "http", "scheme": "bearer", "description": "The operator's token."},
			"metrics":  object{"type": "http", "scheme": "bearer", "description": "The token of metrics."},
			"agent":    object{"type": "http", "scheme": "bearer", "description": "The token of one boot of one machine."}}},
	}
}

func operation(r route, types *schemas) object {
	ok, code := object{"description": "done"}, "204"
	switch {
	case r.answer == "text/event-stream":
		code, ok = "200", content("a stream of events; each event named machine holds one", r.answer, types.of(reflect.TypeOf(r.out)))
	case r.answer != "":
		code, ok = "200", content("the answer", r.answer, object{})
	case r.out != nil:
		code, ok = "200", content("the answer", "application/json", types.of(reflect.TypeOf(r.out)))
	}
	op := object{"summary": r.doc, "responses": object{code: ok,
		"default": content("why not", "application/problem+json", types.of(reflect.TypeFor[Problem]()))}}
	if r.in != nil {
		body := object{"application/json": object{"schema": types.of(reflect.TypeOf(r.in))}}
		if r.stream {
			body["application/octet-stream"] = object{}
		}
		op["requestBody"] = object{"required": true, "content": body}
	}
	switch r.scope {
	case scopeOperator:
		op["security"] = []any{object{"operator": []string{}}}
	case scopeMetrics:
		op["security"] = []any{object{"metrics": []string{}}, object{"operator": []string{}}}
	case scopeAgent:
		op["security"] = []any{object{"agent": []string{}}}
	default:
		op["security"] = []any{}
	}
	var params []any
	for _, m := range pathParam.FindAllStringSubmatch(r.path, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	if params != nil {
		op["parameters"] = params
	}
	return op
}

func content(text, mime string, schema object) object {
	return object{"description": text, "content": object{mime: object{"schema": schema}}}
}

// schemas are the named types met so far.
type schemas struct {
	byName object
	names  map[reflect.Type]string
}

var (
	textType   = reflect.TypeFor[encoding.TextMarshaler]()
	timeType   = reflect.TypeFor[time.Time]()
	digestType = reflect.TypeFor[inventory.Digest]()
)

func (s *schemas) of(t reflect.Type) object {
	switch {
	case t.Kind() == reflect.Pointer:
		return s.of(t.Elem())
	case t == timeType:
		return object{"type": "string", "format": "date-time"}
	case t == digestType:
		return object{"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
	case t.Implements(textType) || reflect.PointerTo(t).Implements(textType):
		return object{"type": "string"}
	}
	switch k := t.Kind(); {
	case k == reflect.Bool:
		return object{"type": "boolean"}
	case k == reflect.String:
		return object{"type": "string"}
	case k == reflect.Float32 || k == reflect.Float64:
		return object{"type": "number"}
	case k >= reflect.Int && k <= reflect.Uint64:
		return object{"type": "integer"}
	case (k == reflect.Slice || k == reflect.Array) && t.Elem().Kind() == reflect.Uint8:
		return object{"type": "string", "contentEncoding": "base64"}
	case k == reflect.Slice || k == reflect.Array:
		return object{"type": "array", "items": s.of(t.Elem())}
	case k == reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case k == reflect.Struct:
		return object{"$ref": "#/components/schemas/" + s.named(t)}
	}
	return object{}
}

// named describes a struct once, and gives its name. Where two packages have a
// type of one name, the later one is called by its package too.
func (s *schemas) named(t reflect.Type) string {
	if name, ok := s.names[t]; ok {
		return name
	}
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	if _, taken := s.byName[name]; taken {
		pkg := path.Base(t.PkgPath())
		name = strings.ToUpper(pkg[:1]) + pkg[1:] + name
	}
	s.names[t], s.byName[name] = name, object{} // a type that holds itself ends here
	properties, required := object{}, []string{}
	for _, f := range reflect.VisibleFields(t) { // those of embedded structs stand among its own
		if f.Anonymous && f.Tag.Get("json") == "" {
			continue
		}
		field, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || field == "-" {
			continue
		}
		if field == "" {
			field = f.Name
		}
		properties[field] = s.of(f.Type)
		if options == "" {
			required = append(required, field)
		}
	}
	schema := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	s.byName[name] = schema
	return name
}
