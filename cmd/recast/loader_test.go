package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"recast/inventory"
)

func TestALoaderIsImportedByItsDigestListedAuditedAndRemoved(t *testing.T) {
	workplace(t)
	content := []byte("\xea\x05\x00 iPXE for BIOS, as far as anybody can tell")
	if err := os.WriteFile("undionly.kpxe", content, 0o644); err != nil {
		t.Fatal(err)
	}
	digest := inventory.DigestOf(content)
	see := func(wantCode int, want string, args ...string) string {
		t.Helper()
		out, code := recast(t, nil, args...)
		if code != wantCode || !strings.Contains(out, want) {
			t.Errorf("recast %s: exit %d\n%swant exit %d and %q", strings.Join(args, " "), code, out, wantCode, want)
		}
		return out
	}
	see(exitUsage, "--sha256", "loader", "import", "undionly.kpxe")
	see(exitUsage, "parse digest", "loader", "import", "undionly.kpxe", "--sha256", "abc")
	see(exitRefused, "has the SHA-256 "+digest.Hex(), "loader", "import", "undionly.kpxe", "--sha256", strings.Repeat("ab", 32))
	see(0, "DIGEST", "loader", "list")
	see(0, digest.String(), "loader", "import", "undionly.kpxe", "--sha256", digest.Hex())
	see(0, "ipxe  ", "loader", "list")
	see(0, "undionly.kpxe", "get", "loaders", digest.Hex()[:8], "-o", "wide")
	see(0, `"kind": "ipxe"`, "loader", "list", "-o", "json")

	// The same by URL, for a shim that is not there.
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(content) }))
	defer site.Close()
	see(exitRefused, "there is none", "loader", "import", site.URL+"/x/ipxe.pxe", "--sha256", digest.Hex(), "--beside", "abcd")
	see(exitRefused, "beside", "loader", "import", site.URL+"/x/ipxe.pxe", "--sha256", digest.Hex(), "--beside", strings.Replace(digest.String(), digest.Hex()[:4], "0000", 1))
	see(0, digest.String(), "loader", "import", site.URL+"/x/ipxe.pxe", "--sha256", digest.Hex())
	see(0, "ipxe.pxe", "loader", "list")

	// A machine that names another waits for it, and the plan says so.
	files, err := os.ReadFile("site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	absent := strings.Repeat("ab", 32)
	text := strings.Replace(string(files), "  nics:", "  boot: {loader: \"sha256:"+absent+"\"}\n  nics:", 1)
	if err := os.WriteFile("named.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, code := recast(t, strings.NewReader("admin:x"), "secret", "set", "rack1-bmc"); code != 0 {
		t.Fatal(out)
	}
	see(0, "sha256:", "image", "add", "disk.img")
	see(0, "is not imported: recast loader import FILE --sha256 "+absent, "plan", "named.yaml")
	see(0, "loader imported", "get", "audit")
	see(0, "removed", "loader", "remove", digest.Hex()[:6])
	see(exitRefused, "there is none", "loader", "remove", digest.Hex()[:6])
	see(0, "loader removed", "get", "audit")
}
