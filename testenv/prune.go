package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Images in a cache that nobody used for cacheAge are removed, and work that a
// crash left after buildAge: builds take minutes.
const (
	cacheAge = 30 * 24 * time.Hour
	buildAge = 24 * time.Hour
)

// pruneCache removes what is old from a cache of operating systems, keep apart.
// An image's time is that of its last use.
func pruneCache(dir, keep string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("prune the image cache: %w", err)
	}
	for _, e := range entries {
		age := cacheAge
		switch {
		case !strings.HasPrefix(e.Name(), "os-"):
			continue
		case strings.Contains(e.Name(), ".building-"):
			age = buildAge
		case strings.TrimSuffix(e.Name(), ".json") == filepath.Base(keep):
			continue
		}
		info, err := e.Info()
		if err != nil || now.Sub(info.ModTime()) < age {
			continue // another builder removed it, or it is in use
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("prune the image cache: %w", err)
		}
	}
	return nil
}

// markUsed gives a cached image, facts included, the time of its use. The facts
// last: they must not go before their image does.
func markUsed(path string, now time.Time) error {
	for _, p := range []string{path, path + ".json"} {
		if err := os.Chtimes(p, now, now); err != nil && !os.IsPermission(err) { // another user's cache
			return fmt.Errorf("mark the cached image as used: %w", err)
		}
	}
	return nil
}
