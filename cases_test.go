package recast_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// What fuzzing found is kept by a name that says what it does, beside a target
// that still reads it: Go names a case by its hash and skips one without a target.
func TestFoundCasesAreKeptByName(t *testing.T) {
	var cases []string
	for _, pattern := range []string{"*/testdata/fuzz/*/*", "cmd/*/testdata/fuzz/*/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, found...)
	}
	if len(cases) == 0 {
		t.Error("no case is kept")
	}
	hash := regexp.MustCompile(`^[0-9a-f]{16,}$`)
	for _, c := range cases {
		if hash.MatchString(filepath.Base(c)) {
			t.Errorf("%s: name it by what it does", c)
		}
		target := filepath.Base(filepath.Dir(c))
		sources, _ := filepath.Glob(filepath.Join(filepath.Dir(c), "../../../*_test.go"))
		read := false
		for _, s := range sources {
			b, err := os.ReadFile(s)
			if err != nil {
				t.Fatal(err)
			}
			read = read || bytes.Contains(b, []byte("func "+target+"("))
		}
		if !read {
			t.Errorf("%s: there is no target %s", c, target)
		}
	}
}

// Every fuzz target has its hour, and what is in the list is a target.
func TestEveryFuzzTargetIsInTheListOfFuzzrun(t *testing.T) {
	b, err := os.ReadFile("testenv/fuzzrun.go")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t\{"([a-z/]+)", "(Fuzz\w+)"\},$`).FindAllSubmatch(b, -1) {
		name := string(m[1]) + " " + string(m[2])
		if listed[name] {
			t.Errorf("%s is listed twice", name)
		}
		listed[name] = true
	}
	sources, _ := filepath.Glob("*/*_test.go")
	more, _ := filepath.Glob("cmd/*/*_test.go")
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)
	for _, source := range append(sources, more...) {
		b, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range target.FindAllSubmatch(b, -1) {
			name := filepath.ToSlash(filepath.Dir(source)) + " " + string(m[1])
			if !listed[name] {
				t.Errorf("%s is missing in the lists of testenv/fuzzrun.go", name)
			}
			delete(listed, name)
		}
	}
	for name := range listed {
		t.Errorf("testenv/fuzzrun.go lists %s, which there is not", name)
	}
}
