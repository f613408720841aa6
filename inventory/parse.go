package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// File is one file of declared documents; Name is what problems call it.
type File struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// maxFile bounds a declared file: 100,000 machines take some 50 MiB.
const maxFile = 256 << 20

// ReadFiles reads files, and of each directory its *.yaml and *.yml files by
// name (not those of its sub-directories). The path "-" is for ReadFrom.
func ReadFiles(paths ...string) ([]File, error) {
	var files []File
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read definitions: there is no %q here; want a file, a folder of *.yaml files, or - for standard input", path)
		}
		if err != nil {
			return nil, fmt.Errorf("read definitions: %w", err)
		}
		if !info.IsDir() {
			f, err := readFile(path)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
			continue
		}
		found, err := readDir(path)
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	return files, nil
}

func readDir(path string) ([]File, error) {
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read definitions: %w", err)
	}
	var files []File
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if e.IsDir() || ext != ".yaml" && ext != ".yml" || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f, err := readFile(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read definitions: the folder %q holds no *.yaml or *.yml file; to declare nothing any more, apply an empty file", path)
	}
	return files, nil
}

func readFile(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, fmt.Errorf("read definitions: %w", err)
	}
	defer f.Close()
	return ReadFrom(path, f)
}

// ReadFrom reads one file from a stream, such as standard input under the name "-".
func ReadFrom(name string, r io.Reader) (File, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return File{}, fmt.Errorf("read definitions from %q: %w", name, err)
	}
	if len(data) > maxFile {
		return File{}, fmt.Errorf("read definitions from %q: larger than %d MiB: split it", name, maxFile>>20)
	}
	return File{Name: name, Data: data}, nil
}

// Kinds are the declared kinds.
var Kinds = []string{"Network", "Image", "Definition", "Group", "Model", "Machine"}

// Parse reads declared documents strictly and returns one whole Set, or every
// Problem that was found (the error is Problems) and no Set.
func Parse(files []File) (*Set, error) {
	b := newBuilder()
	for _, f := range files {
		if len(f.Data) > maxFile {
			b.problems = append(b.problems, Problem{File: f.Name, Text: fmt.Sprintf("larger than %d MiB", maxFile>>20), Next: "split it"})
			continue
		}
		d := &decoder{file: f.Name}
		for _, c := range splitDocuments(f.Data) {
			for _, n := range d.parseChunk(c) {
				b.document(d, n)
			}
		}
		b.problems = append(b.problems, d.problems...)
		b.unread = b.unread || d.unread
	}
	b.build()
	if len(b.problems) > 0 {
		return nil, b.problems.sorted(files)
	}
	return b.set, nil
}

// ProblemsOf returns the problems an error carries, if it does.
func ProblemsOf(err error) (Problems, bool) {
	var p Problems
	ok := errors.As(err, &p)
	return p, ok
}

// declared is one decoded document with its file.
type declared[S any] struct {
	scope
	named bool // it has a name that no other of its kind has
	clean bool // nothing was wrong with it by itself
	rawDocument[S]
}

// document decodes one document by its kind.
func (b *builder) document(d *decoder, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // nothing between two markers
	}
	if n.Kind != yaml.MappingNode {
		d.wrong(n, "", "a document with apiVersion, kind, metadata and spec")
		d.unread = true
		return
	}
	kind, line := "", n.Line
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "kind" && n.Content[i+1].Kind == yaml.ScalarNode {
			kind, line = n.Content[i+1].Value, n.Content[i+1].Line
		}
	}
	switch kind {
	case "Network":
		take(d, n, &b.networks)
	case "Image":
		take(d, n, &b.images)
	case "Definition":
		take(d, n, &b.definitions)
	case "Group":
		take(d, n, &b.groups)
	case "Model":
		take(d, n, &b.models)
	case "Machine":
		take(d, n, &b.machines)
	case "":
		d.unread = true
		d.add(line, "kind", "missing", "want one of "+strings.Join(Kinds, ", "))
	default:
		d.unread = true
		d.add(line, "kind", fmt.Sprintf("unknown kind %q", kind), didYouMean(kind, Kinds))
	}
}

func take[S any](d *decoder, n *yaml.Node, into *[]*declared[S]) {
	doc, before := &declared[S]{}, len(d.problems)
	d.decode(n, reflect.ValueOf(&doc.rawDocument).Elem(), "")
	doc.clean = len(d.problems) == before
	doc.file, doc.line = d.file, cmp.Or(doc.Metadata.Name.Line, doc.Metadata.Line, doc.Line)
	*into = append(*into, doc)
}

// builder turns raw documents into a Set. Every check notes its problem and
// goes on; one that needs a value which was refused elsewhere stays silent.
type builder struct {
	problems Problems
	unread   bool // some document could not be told, so references stay unchecked
	set      *Set

	networks    []*declared[rawNetwork]
	images      []*declared[rawImage]
	definitions []*declared[rawDefinition]
	groups      []*declared[rawGroup]
	models      []*declared[rawModel]
	machines    []*declared[rawMachine]

	// Every declared name, those of refused objects too, so that one mistake is
	// reported once: kind → name → where.
	names map[string]map[string]place

	// By name, refused objects excepted.
	network    map[string]*Network
	image      map[string]*Image
	definition map[string]*Definition
	model      map[string]*Model
	templates  map[string]*template   // by definition
	pooled     map[string]bool        // networks with a pool, good or bad
	ports      map[portOn][]portClaim // by network and circuit
	refs       []SecretRef
}

// place is where something stands.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

func newBuilder() *builder {
	return &builder{
		set:        &Set{reservedAt: map[netip.Addr]spot{}, configAt: map[string]spot{}},
		names:      map[string]map[string]place{},
		network:    map[string]*Network{},
		image:      map[string]*Image{},
		definition: map[string]*Definition{},
		model:      map[string]*Model{},
		templates:  map[string]*template{},
		pooled:     map[string]bool{},
		ports:      map[portOn][]portClaim{},
	}
}

// scope is where problems of one document go.
type scope struct {
	b    *builder
	file string
	line int // where a field that is not there is reported
}

func (s scope) problem(line int, field, text, next string) {
	if line == 0 {
		line = s.line
	}
	s.b.problems = append(s.b.problems, Problem{File: s.file, Line: line, Field: field, Text: text, Next: next})
}

// fail notes err, whose text may end in ": next".
func (s scope) fail(line int, field string, err error) { s.problem(line, field, err.Error(), "") }

// registerAll checks that every name is good and the only one of its kind.
func registerAll[S any](b *builder, kind string, docs []*declared[S]) {
	names := make(map[string]place, len(docs))
	b.names[kind] = names
	for _, d := range docs {
		d.scope.b = b
		name := d.Metadata.Name
		if !name.given() {
			b.unread = true
			continue // reported as missing or of the wrong type
		}
		if err := CheckName(name.V); err != nil {
			names[name.V] = place{d.file, name.Line}
			d.fail(name.Line, "metadata.name", err)
			continue
		}
		if first, ok := names[name.V]; ok {
			d.problem(name.Line, "metadata.name", fmt.Sprintf("the %s %q is declared twice, first at %s", kind, name.V, first), "rename or remove one")
			continue
		}
		names[name.V] = place{d.file, name.Line}
		d.named = true
		if kind != "Machine" && len(d.Metadata.Labels) > 0 {
			d.problem(d.Metadata.Labels[0].KeyLine, "metadata.labels", "only a Machine has labels", "remove them")
		}
	}
}

// refers checks that a reference names a declared object.
func (s scope) refers(t text, field, kind string) {
	if !t.given() || s.b.unread {
		return
	}
	if _, ok := s.b.names[kind][t.V]; ok {
		return
	}
	next := fmt.Sprintf("no %s is declared", kind)
	if known := s.b.known(kind); len(known) > 0 {
		next = didYouMean(t.V, known)
	}
	s.problem(t.Line, field, fmt.Sprintf("there is no %s %q", kind, t.V), next)
}

func (b *builder) known(kind string) []string {
	known := make([]string, 0, len(b.names[kind]))
	for name := range b.names[kind] {
		known = append(known, name)
	}
	slices.Sort(known)
	return known
}

func (b *builder) build() {
	registerAll(b, "Network", b.networks)
	registerAll(b, "Image", b.images)
	registerAll(b, "Definition", b.definitions)
	registerAll(b, "Group", b.groups)
	registerAll(b, "Model", b.models)
	registerAll(b, "Machine", b.machines)
	for _, d := range b.networks {
		b.buildNetwork(d)
	}
	b.checkSubnets()
	for _, d := range b.images {
		b.buildImage(d)
	}
	for _, d := range b.definitions {
		b.buildDefinition(d)
	}
	for _, d := range b.groups {
		b.buildGroup(d)
	}
	for _, d := range b.models {
		b.buildModel(d)
	}
	hw := newHardware()
	for _, d := range b.machines {
		before := len(b.problems)
		b.buildMachine(d, hw)
		d.clean = d.clean && len(b.problems) == before
	}
	b.set.index()
	b.checkMembership()
	b.set.refs = sortedRefs(b.refs)
}
