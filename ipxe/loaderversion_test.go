package ipxe

import "testing"

func TestVersionOfAPackageAmongOthers(t *testing.T) {
	const lines = "ipxe 2.0.0+dfsg-5\nshim-signed 1.51~1+deb12u1+16.1-2~deb12u1\n"
	for name, want := range map[string]string{"ipxe": "2.0.0+dfsg-5", "shim-signed": "1.51~1+deb12u1+16.1-2~deb12u1", "shim": ""} {
		if got := packageVersion(lines, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
