package testenv

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// osPackage is one Debian package of a frozen list.
type osPackage struct{ name, version, sum string } // sum is the SHA-256 of the .deb

// osReleaseRules are apt's preferences by which the releases of a frozen list were
// chosen: a point release; the same with its userland brought up to date; the same
// with its kernel brought up to date.
var osReleaseRules = map[string]string{
	"base":     "Package: *\nPin: release n=%[1]s\nPin-Priority: 1001\n",
	"userland": "Package: src:linux src:linux-signed-amd64\nPin: release n=%[1]s\nPin-Priority: 1001\n",
	"kernel": "Package: *\nPin: release n=%[1]s\nPin-Priority: 1001\n\n" +
		"Package: src:linux src:linux-signed-amd64\nPin: release n=%[1]s-security\nPin-Priority: 1002\n",
}

// osReadFrozen reads the packages of one release from a frozen list: lines of name,
// version, SHA-256 and the releases that have it.
func osReadFrozen(path, release string) (all []osPackage, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) != 4 || len(f[2]) != 64 {
			return nil, fmt.Errorf("read %s:%d: want name, version, SHA-256 and releases", path, n)
		}
		if slices.Contains(strings.Split(f[3], ","), release) {
			all = append(all, osPackage{f[0], f[1], f[2]})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("read %s: no package is of release %q", path, release)
	}
	return all, nil
}

// osWriteFrozen writes the list of several releases.
func osWriteFrozen(path, about string, releases map[string][]osPackage) error {
	of := map[osPackage][]string{}
	for name, all := range releases {
		for _, p := range all {
			of[p] = append(of[p], name)
		}
	}
	var lines []string
	for p, names := range of {
		slices.Sort(names)
		lines = append(lines, fmt.Sprintf("%s %s %s %s\n", p.name, p.version, p.sum, strings.Join(names, ",")))
	}
	slices.Sort(lines)
	return os.WriteFile(path, []byte("# "+about+"\n"+strings.Join(lines, "")), 0o644)
}

// osPins are apt's preferences for exactly these packages.
func osPins(all []osPackage) string {
	var b strings.Builder
	for _, p := range all {
		fmt.Fprintf(&b, "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", p.name, p.version)
	}
	return b.String()
}

// osFrozenHooks give apt its preferences, and leave in dir what was installed, for
// osInstalled.
func osFrozenHooks(dir, prefs string) ([]string, error) {
	if err := os.WriteFile(filepath.Join(dir, "preferences"), []byte(prefs), 0o644); err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf(`--setup-hook=mkdir -p "$1/etc/apt/preferences.d" && cp %q "$1/etc/apt/preferences.d/frozen"`, filepath.Join(dir, "preferences")),
		fmt.Sprintf(`--customize-hook=chroot "$1" dpkg-query -W -f '${Package} ${Version}\n' >%q && cat "$1"/var/lib/apt/lists/*_Packages >%q && rm "$1/etc/apt/preferences.d/frozen"`,
			filepath.Join(dir, "installed"), filepath.Join(dir, "packages")),
	}, nil
}

// osInstalled are the packages of a root that was built with osFrozenHooks, with
// the sums that the signed indexes of the archive have.
func osInstalled(dir string) (all []osPackage, err error) {
	index, err := os.ReadFile(filepath.Join(dir, "packages"))
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	var name, version string
	lines := bufio.NewScanner(bytes.NewReader(index))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch key, value, _ := strings.Cut(lines.Text(), ": "); key {
		case "Package":
			name = value
		case "Version":
			version = value
		case "SHA256":
			sums[name+" "+version] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	installed, err := os.ReadFile(filepath.Join(dir, "installed"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(installed)) {
		line = strings.TrimSpace(line)
		name, version, _ := strings.Cut(line, " ")
		if sums[line] == "" {
			return nil, fmt.Errorf("package %s is in no index", line)
		}
		all = append(all, osPackage{name, version, sums[line]})
	}
	return all, nil
}

// osSamePackages says how what was installed is not what is frozen.
func osSamePackages(frozen, installed []osPackage) error {
	var off []string
	for _, p := range frozen {
		if !slices.Contains(installed, p) {
			off = append(off, "-"+p.name+" "+p.version)
		}
	}
	for _, p := range installed {
		if !slices.Contains(frozen, p) {
			off = append(off, "+"+p.name+" "+p.version)
		}
	}
	if len(off) == 0 {
		return nil
	}
	slices.SortFunc(off, func(a, b string) int { return strings.Compare(a[1:], b[1:]) })
	few := off[:min(6, len(off))]
	return fmt.Errorf("the archive has moved on from the frozen list, in %d packages: %s; take a new one: go test ./testenv -run TestDebianReleases -freeze",
		len(off), strings.Join(few, ", "))
}
