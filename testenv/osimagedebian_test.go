package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDebianSourcesAreThisMachinesOwnForTheRelease(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sources.list.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sources.list": "# comment\n" +
			"deb http://mirror.example/debian bookworm main contrib\n" +
			"deb [arch=amd64] http://mirror.example/security bookworm-security main\n" +
			"deb-src http://mirror.example/debian bookworm main\n" +
			"deb http://mirror.example/debian trixie main\n" +
			"deb https://tools.example/repo bookworm stable\n",
		"sources.list.d/a.sources": "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n" +
			"Types: deb\nEnabled: no\nURIs: http://old.example\nSuites: bookworm\nComponents: main\n\n" +
			"Types: deb\nURIs: https://node.example\nSuites: nodistro\nComponents: main\n",
		"sources.list.d/b.sources.disabled": "Types: deb\nURIs: http://no.example\nSuites: bookworm\nComponents: main\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list, deb822, err := osDebianSources(dir, "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("deb http://mirror.example/debian bookworm main contrib\n"+
		"deb [arch=amd64] http://mirror.example/security bookworm-security main\n", list); diff != "" {
		t.Errorf("one-line sources (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n", deb822); diff != "" {
		t.Errorf("deb822 sources (-want +got):\n%s", diff)
	}
	if _, _, err := osDebianSources(dir, "sid"); err == nil {
		t.Error("a release that no source has: no error")
	}
}
