package ipxe

import (
	"io/fs"
	"strings"
)

// EmbeddedVersion is the version of Debian's ipxe package that the embedded
// loaders came from, "" where there are none.
func EmbeddedVersion() string {
	b, err := fs.ReadFile(embedded, "loaders/VERSION")
	if err != nil {
		return ""
	}
	return packageVersion(string(b), "ipxe")
}

// packageVersion finds a package in the lines that setup.sh writes, one a package
// with its version.
func packageVersion(lines, name string) string {
	for line := range strings.Lines(lines) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return version
		}
	}
	return ""
}
