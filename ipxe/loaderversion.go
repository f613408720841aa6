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
	return strings.TrimSpace(string(b))
}
