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
