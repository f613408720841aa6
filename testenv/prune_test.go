package testenv

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestCacheKeepsWhatWasUsedLately(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	put := func(name string, age time.Duration) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	old := cacheAge + time.Hour
	put("os-tiny-01.img", old) // the one in use
	put("os-tiny-01.img.json", old)
	put("os-tiny-02.img", old)
	put("os-tiny-02.img.json", old)
	put("os-tiny-03.img", old)
	put("os-tiny-03.img.json", old)
	put("os-tiny-04.img.building-1", buildAge+time.Hour)
	put("os-tiny-04.img.building-2", time.Hour)
	put("linux-image-6.1.deb", old) // not ours to remove
	if err := markUsed(filepath.Join(dir, "os-tiny-03.img"), now); err != nil {
		t.Fatal(err)
	}
	if err := pruneCache(dir, filepath.Join(dir, "os-tiny-01.img"), now); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{"linux-image-6.1.deb", "os-tiny-01.img", "os-tiny-01.img.json", "os-tiny-03.img", "os-tiny-03.img.json", "os-tiny-04.img.building-2"}
	if !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
}
