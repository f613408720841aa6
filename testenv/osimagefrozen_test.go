package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAFrozenListIsReadAsItWasWritten(t *testing.T) {
	dir := t.TempDir()
	sum := func(c string) string { return strings.Repeat(c, 64) }
	one, two, three := osPackage{"libc6", "2.36-9", sum("a")}, osPackage{"openssl", "3.0.20", sum("b")}, osPackage{"openssl", "3.0.22", sum("c")}
	path := filepath.Join(dir, "list.txt")
	if err := osWriteFrozen(path, "test", map[string][]osPackage{"base": {one, two}, "userland": {one, three}}); err != nil {
		t.Fatal(err)
	}
	for release, want := range map[string][]osPackage{"base": {one, two}, "userland": {one, three}} {
		got, err := osReadFrozen(path, release)
		if err != nil || cmp.Diff(want, got, cmp.AllowUnexported(osPackage{})) != "" {
			t.Errorf("%s: %v, %v", release, got, err)
		}
	}
	if _, err := osReadFrozen(path, "kernel"); err == nil {
		t.Error("a release that no package is of: no error")
	}
	if err := os.WriteFile(path, []byte("libc6 2.36-9 base\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := osReadFrozen(path, "base"); err == nil || !strings.Contains(err.Error(), "list.txt:1") {
		t.Errorf("a line without a sum: %v", err)
	}
	if got := osPins([]osPackage{two}); got != "Package: openssl\nPin: version 3.0.20\nPin-Priority: 1001\n\n" {
		t.Errorf("pins %q", got)
	}
}

func TestWhatWasInstalledIsComparedWithTheFrozenList(t *testing.T) {
	dir := t.TempDir()
	sum := func(c string) string { return strings.Repeat(c, 64) }
	for name, text := range map[string]string{
		"packages":  "Package: openssl\nVersion: 3.0.20\nDescription: x\n of: y\nSHA256: " + sum("b") + "\n\nPackage: openssl\nVersion: 3.0.22\nSHA256: " + sum("c") + "\n",
		"installed": "openssl 3.0.22\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := osInstalled(dir)
	if err != nil || len(got) != 1 || got[0] != (osPackage{"openssl", "3.0.22", sum("c")}) {
		t.Fatalf("%v, %v", got, err)
	}
	if err := osSamePackages(got, got); err != nil {
		t.Error(err)
	}
	err = osSamePackages([]osPackage{{"openssl", "3.0.20", sum("b")}, got[0]}, append(got, osPackage{"less", "590", sum("d")}))
	if err == nil || !strings.Contains(err.Error(), "2 packages: +less 590, -openssl 3.0.20") {
		t.Errorf("%v", err)
	}
}
