package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// The raw scalars keep the line they stand on; Line 0 means "not given".
type (
	// text is a YAML string. A number in its place is refused: it must be quoted.
	text struct {
		V    string
		Line int
		// Block is set for a literal block (|), whose content begins a line below.
		Block bool
	}
	// word is a string or a whole number, taken as it is written.
	word text
	// scalar is any one value, taken as it is written.
	scalar text

	number struct{ V, Line int }

	boolean struct {
		V    bool
		Line int
	}

	// entries is a mapping with free keys, in the order of the file.
	entries []entry
	entry   struct {
		Key     string
		KeyLine int
		Value   word
	}
)

func (t text) given() bool   { return t.Line > 0 }
func (t word) given() bool   { return t.Line > 0 }
func (t scalar) given() bool { return t.Line > 0 }
func (n number) given() bool { return n.Line > 0 }

// rawField is one field of a raw struct as its tags describe it:
//
//	yaml:"name,required" also:"otherName" enum:"a|b" doc:"what it means" form:"size"
type rawField struct {
	name     string
	also     string
	index    int
	required bool
	enum     []string
	doc      string
	form     string
	example  string
}

type rawType struct {
	fields []rawField
	byName map[string]int
	names  []string
	line   int // index of the Line field, or -1
}

var rawTypes sync.Map // reflect.Type → *rawType

func rawTypeOf(t reflect.Type) *rawType {
	if known, ok := rawTypes.Load(t); ok {
		return known.(*rawType)
	}
	rt := &rawType{byName: map[string]int{}, line: -1}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			if f.Name == "Line" {
				rt.line = i
			}
			continue
		}
		rf := rawField{
			name: name, also: f.Tag.Get("also"), index: i, required: options == "required",
			doc: f.Tag.Get("doc"), form: f.Tag.Get("form"), example: f.Tag.Get("example"),
		}
		if e := f.Tag.Get("enum"); e != "" {
			rf.enum = strings.Split(e, "|")
		}
		rt.byName[name] = len(rt.fields)
		rt.names = append(rt.names, name)
		if rf.also != "" {
			rt.byName[rf.also] = len(rt.fields)
		}
		rt.fields = append(rt.fields, rf)
	}
	known, _ := rawTypes.LoadOrStore(t, rt)
	return known.(*rawType)
}

// chunk is one part of a file that begins at a document marker.
type chunk struct {
	data   []byte
	offset int // lines before it
}

// splitDocuments cuts at every "---" in the first column, which begins a
// document wherever it stands, block scalars included (YAML 1.2 §9.1.2). So a
// syntax error costs one document, and the rest is still checked.
func splitDocuments(data []byte) []chunk {
	var chunks []chunk
	start, startLine, line := 0, 0, 0
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		row := data[pos:end]
		if pos > start && bytes.HasPrefix(row, []byte("---")) && (len(row) == 3 || strings.IndexByte(" \t\r\n", row[3]) >= 0) {
			chunks = append(chunks, chunk{data[start:pos], startLine})
			start, startLine = pos, line
		}
		pos = end
	}
	if start < len(data) {
		chunks = append(chunks, chunk{data[start:], startLine})
	}
	return chunks
}

// yamlError is a syntax error with its line, counted from 1.
type yamlError struct {
	line       int
	text, next string
}

var (
	yamlErrorLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	// yaml.v3 counts the lines of these, its parser's errors, from 0, and those
	// of its scanner from 1.
	yamlFromZero  = regexp.MustCompile(`^did not find expected (node content|'-' indicator|key$|',' or|<)`)
	yamlNoAnchor  = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
	nearThisLine  = "check indentation and quotes near this line"
	noAliases     = "aliases are not read, write the value out"
	anchorsRemedy = "write the value out where it is needed"
)

// syntaxError reads an error of yaml.v3; nil stays nil.
func syntaxError(err error, data []byte) *yamlError {
	if err == nil {
		return nil
	}
	e := &yamlError{line: 1, text: oneLine(err.Error()), next: nearThisLine}
	if bad := notUTF8(data); bad >= 0 {
		return &yamlError{line: 1 + bytes.Count(data[:bad], []byte("\n")), text: fmt.Sprintf("byte 0x%02x is no UTF-8", data[bad]), next: "save the file as UTF-8"}
	}
	m := yamlErrorLine.FindStringSubmatch(e.text)
	if m == nil {
		return e
	}
	e.text = m[2]
	if v, err := strconv.Atoi(m[1]); err == nil {
		e.line = v
		if yamlFromZero.MatchString(e.text) {
			e.line++
		}
	}
	// At the end of the text yaml.v3 names a line behind it.
	e.line = min(e.line, max(1, bytes.Count(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))+1))
	if a := yamlNoAnchor.FindStringSubmatch(e.text); a != nil {
		e.next = noAliases
		if i := bytes.Index(data, []byte("*"+a[1])); i >= 0 {
			e.line = 1 + bytes.Count(data[:i], []byte("\n"))
		}
	}
	return e
}

// notUTF8 is where the first byte stands that is no UTF-8; -1: all is. A file that
// begins with a byte order mark is UTF-16 to the reader, which it may be.
func notUTF8(data []byte) int {
	if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
		return -1
	}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// readNode decodes the next document. yaml.v3 reports its own errors by panics
// that it catches, and has let others through.
func readNode(dec *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot be read: %v", r)
		}
	}()
	return dec.Decode(into)
}

// parseChunk reads the documents of one chunk (more than one only after a "..."
// marker) as nodes.
func (d *decoder) parseChunk(c chunk) (docs []*yaml.Node) {
	d.offset = c.offset
	dec := yaml.NewDecoder(bytes.NewReader(c.data))
	for {
		var n yaml.Node
		err := readNode(dec, &n)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if e := syntaxError(err, c.data); e != nil {
			d.add(e.line, "", "not valid YAML: "+e.text, e.next)
			d.unread = true
			return docs
		}
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			docs = append(docs, n.Content[0])
		}
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// decoder fills raw structs from nodes and notes every problem on the way.
type decoder struct {
	file     string
	offset   int
	problems Problems
	// unread is set once a document could not be told: what refers to it would
	// only be blamed for that.
	unread bool
	// form of the text that is decoded next.
	form string
}

// add notes a problem; line counts from 1 within the chunk.
func (d *decoder) add(line int, field, text, next string) {
	d.problems = append(d.problems, Problem{File: d.file, Line: line + d.offset, Field: field, Text: text, Next: next})
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// describe names what stands in the file, for "want X, found Y".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	value := n.Value
	if r := []rune(value); len(r) > 40 {
		value = string(r[:40]) + "…"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "the number " + value
	case "!!bool":
		return "the boolean " + value
	}
	return fmt.Sprintf("%q", value)
}

// wrong notes a value of the wrong type.
func (d *decoder) wrong(n *yaml.Node, path, want string) {
	next := ""
	switch tag := n.ShortTag(); {
	case n.Kind == yaml.AliasNode:
		next = noAliases
	case tag == "!!null":
		next = "give it a value or remove it"
	case want == "text" && withUnit(d.form, n.Value) != "":
		next = "write the unit: " + withUnit(d.form, n.Value)
	case want == "text" && n.Kind == yaml.ScalarNode:
		next = fmt.Sprintf("put it in quotes: %q", n.Value)
	}
	d.add(n.Line, path, fmt.Sprintf("want %s, found %s", want, describe(n)), next)
}

// withUnit is a bare number as a person who left out the unit of a size or a
// duration may have meant it; "" for anything else.
func withUnit(form, number string) string {
	switch form {
	case "size":
		if _, err := ParseSize(number + "GiB"); err == nil {
			return number + "GiB"
		}
	case "duration":
		if _, err := time.ParseDuration(number + "m"); err == nil {
			return number + "m"
		}
	}
	return ""
}

// decode fills v from n.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, path string) {
	if n.Anchor != "" {
		d.add(n.Line, path, fmt.Sprintf("the anchor %q is not read", "&"+n.Anchor), anchorsRemedy)
	}
	line := n.Line + d.offset
	isScalar := n.Kind == yaml.ScalarNode
	tag := n.ShortTag()
	switch into := v.Addr().Interface().(type) {
	case *text:
		// A date written without quotes is text that looks like a date.
		if !isScalar || tag != "!!str" && tag != "!!timestamp" {
			d.wrong(n, path, "text")
			return
		}
		*into = text{n.Value, line, n.Style&yaml.LiteralStyle != 0}
	case *word:
		if !isScalar || tag != "!!str" && tag != "!!timestamp" && tag != "!!int" {
			d.wrong(n, path, "text")
			return
		}
		*into = word{V: n.Value, Line: line}
	case *scalar:
		if !isScalar || tag == "!!null" || tag == "!!binary" {
			d.wrong(n, path, "one value")
			return
		}
		*into = scalar{V: n.Value, Line: line}
	case *number:
		i, err := strconv.Atoi(n.Value)
		if !isScalar || tag != "!!int" || err != nil || strconv.Itoa(i) != n.Value {
			d.wrong(n, path, "a whole number")
			return
		}
		*into = number{i, line}
	case *boolean:
		if !isScalar || tag != "!!bool" {
			d.wrong(n, path, "true or false")
			return
		}
		*into = boolean{strings.EqualFold(n.Value, "true"), line}
	case *entries:
		d.decodeEntries(n, into, path)
	default:
		switch v.Kind() {
		case reflect.Slice:
			if n.Kind != yaml.SequenceNode {
				d.wrong(n, path, "a list")
				return
			}
			list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
			for i, item := range n.Content {
				d.decode(item, list.Index(i), path+"["+strconv.Itoa(i)+"]")
			}
			v.Set(list)
		case reflect.Struct:
			d.decodeStruct(n, v, path)
		default:
			panic("inventory: no way to decode " + v.Type().String())
		}
	}
}

func (d *decoder) decodeEntries(n *yaml.Node, into *entries, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "a mapping")
		return
	}
	*into = entries{}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.key(key, path, seen) {
			continue
		}
		e := entry{Key: key.Value, KeyLine: key.Line + d.offset}
		d.decode(value, reflect.ValueOf(&e.Value).Elem(), join(path, key.Value))
		if e.Value.given() {
			*into = append(*into, e)
		}
	}
}

// key checks that a key is a plain word that was not there before.
func (d *decoder) key(key *yaml.Node, path string, seen map[string]int) bool {
	if key.Kind != yaml.ScalarNode || key.Anchor != "" || key.ShortTag() == "!!null" {
		d.add(key.Line, path, "a field's name must be one word, found "+describe(key), "")
		return false
	}
	if strings.ContainsFunc(key.Value, func(r rune) bool { return !unicode.IsPrint(r) }) || len(key.Value) > 100 {
		d.add(key.Line, path, "a field's name must be one word, found "+describe(key), "")
		return false
	}
	if key.ShortTag() == "!!merge" {
		d.add(key.Line, join(path, key.Value), "merge keys are not read", "write the fields out")
		return false
	}
	if first, ok := seen[key.Value]; ok {
		d.add(key.Line, join(path, key.Value), fmt.Sprintf("given twice, first on line %d", first), "remove one")
		return false
	}
	seen[key.Value] = key.Line + d.offset
	return true
}

func (d *decoder) decodeStruct(n *yaml.Node, v reflect.Value, path string) {
	rt := rawTypeOf(v.Type())
	if rt.line >= 0 {
		v.Field(rt.line).SetInt(int64(n.Line + d.offset))
	}
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "a mapping")
		return
	}
	seen := make(map[string]int, len(n.Content)/2)
	var have uint64 // bit per field; raw structs are small
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.key(key, path, seen) {
			continue
		}
		at, ok := rt.byName[key.Value]
		if !ok {
			d.add(key.Line, join(path, key.Value), "unknown field", didYouMean(key.Value, rt.names))
			continue
		}
		f := rt.fields[at]
		where := join(path, f.name)
		if have&(1<<at) != 0 {
			d.add(key.Line, where, fmt.Sprintf("given twice, as %q and as %q", f.name, f.also), "remove one")
			continue
		}
		have |= 1 << at
		into := v.Field(f.index)
		d.form = f.form
		d.decode(value, into, where)
		if t, ok := into.Interface().(text); ok && t.given() && f.enum != nil && !contains(f.enum, t.V) {
			d.add(value.Line, where, fmt.Sprintf("unknown value %q", t.V), didYouMean(t.V, f.enum))
			into.Set(reflect.ValueOf(text{Line: t.Line})) // given, but worth nothing
		}
	}
	for i, f := range rt.fields {
		if f.required && have&(1<<i) == 0 {
			next := "add it"
			switch {
			case f.enum != nil:
				next = "want one of " + strings.Join(f.enum, ", ")
			case f.example != "":
				next = "add it, such as " + f.example
			}
			d.add(n.Line, join(path, f.name), "missing", next)
		}
	}
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
