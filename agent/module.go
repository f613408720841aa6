package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// moduleIndex is /lib/modules/modules.json, which the ramdisk's builder writes.
type moduleIndex struct {
	Kernel  string                `json:"kernel"`
	Modules map[string]moduleInfo `json:"modules"`
	Load    []string              `json:"load"` // what no device asks for
}

type moduleInfo struct {
	Path    string   `json:"path"`
	Depends []string `json:"depends"`
	Pre     []string `json:"pre"`
	Post    []string `json:"post"`
	Aliases []string `json:"aliases"`
}

// modules loads kernel modules, each once.
type modules struct {
	index  moduleIndex
	load   func(path, params string) error
	tried  map[string]bool
	seen   map[string]bool // device aliases that were looked up
	log    func(format string, args ...any)
	loaded []string
}

func openModules(path string, log func(string, ...any)) (*modules, error) {
	m := &modules{load: finitModule, tried: map[string]bool{}, seen: map[string]bool{}, log: log}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &m.index)
	}
	if err != nil {
		return m, fmt.Errorf("read module index: %w", err)
	}
	return m, nil
}

// base loads what no device asks for.
func (m *modules) base() {
	for _, name := range m.index.Load {
		m.insert(name)
	}
}

// coldplug loads a module for every device that has none yet, and again for the
// devices that turned up by that. It reports whether anything was new.
func (m *modules) coldplug(root string) bool {
	any := false
	for again := true; again; {
		again = false
		for _, alias := range deviceAliases(root) {
			if m.seen[alias] {
				continue
			}
			m.seen[alias] = true
			for _, name := range m.match(alias) {
				if m.insert(name) {
					again, any = true, true
				}
			}
		}
	}
	return any
}

// deviceAliases is what every device in sysfs says to be.
func deviceAliases(root string) []string {
	var aliases []string
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "modalias" {
			if b, err := os.ReadFile(path); err == nil && len(b) > 1 {
				aliases = append(aliases, strings.TrimSpace(string(b)))
			}
		}
		return nil // devices come and go while we walk
	})
	return aliases
}

func (m *modules) match(alias string) []string {
	var names []string
	for name, info := range m.index.Modules {
		for _, pattern := range info.Aliases {
			if glob(pattern, alias) {
				names = append(names, name)
				break
			}
		}
	}
	slices.Sort(names)
	return names
}

// insertWith loads a module that does what its parameters say, so that it is not
// there before.
func (m *modules) insertWith(name, params string) error {
	info, ok := m.index.Modules[name]
	if !ok {
		return fmt.Errorf("the ramdisk has no module %s", name)
	}
	for _, d := range slices.Concat(info.Depends, info.Pre) {
		m.insert(d)
	}
	m.tried[name] = true
	if err := m.load(info.Path, params); err != nil {
		return fmt.Errorf("module %s does not load: %w", name, err)
	}
	m.loaded = append(m.loaded, name)
	return nil
}

// insert loads a module after what it depends on, and reports whether it is new.
func (m *modules) insert(name string) bool {
	if m.tried[name] {
		return false
	}
	m.tried[name] = true
	info, ok := m.index.Modules[name]
	if !ok {
		return false // built in, or left out on purpose
	}
	for _, d := range slices.Concat(info.Depends, info.Pre) {
		m.insert(d)
	}
	err := m.load(info.Path, "")
	switch {
	case err == nil:
		m.loaded = append(m.loaded, name)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EEXIST):
		// Its hardware is not here, or it is loaded already.
	default:
		m.log("module %s does not load: %v", name, err)
	}
	for _, d := range info.Post {
		m.insert(d)
	}
	return err == nil
}

func finitModule(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), params, 0)
}

// glob is fnmatch for the patterns of module aliases: *, ? and [ ].
func glob(pattern, s string) bool {
	for pattern != "" {
		switch pattern[0] {
		case '*':
			pattern = strings.TrimLeft(pattern, "*")
			if pattern == "" {
				return true
			}
			for i := range len(s) {
				if glob(pattern, s[i:]) {
					return true
				}
			}
			return false
		case '[':
			end := strings.IndexByte(pattern, ']')
			if end < 0 || s == "" || !inClass(pattern[1:end], s[0]) {
				return false
			}
			pattern, s = pattern[end+1:], s[1:]
		default:
			if s == "" || pattern[0] != '?' && pattern[0] != s[0] {
				return false
			}
			pattern, s = pattern[1:], s[1:]
		}
	}
	return s == ""
}

func inClass(class string, c byte) bool {
	for i := 0; i < len(class); i++ {
		if i+2 < len(class) && class[i+1] == '-' {
			if class[i] <= c && c <= class[i+2] {
				return true
			}
			i += 2
		} else if class[i] == c {
			return true
		}
	}
	return false
}
