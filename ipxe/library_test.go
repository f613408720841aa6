package ipxe

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

const (
	ipxeSBAT = "sbat,1,SBAT Version,sbat,1,x\nipxe,1,iPXE,ipxe.efi,2.0.0,x\n\x00HTTP\x00HTTPS\x00"
	shimSBAT = "sbat,1,SBAT Version,sbat,1,x\nshim,4,UEFI shim,shim,1,x\n"
)

// signedBy is a certificate table with the least PKCS #7 that names an issuer.
func signedBy(name string) []byte {
	der := func(tag byte, parts ...[]byte) []byte {
		var body []byte
		for _, p := range parts {
			body = append(body, p...)
		}
		return append([]byte{tag, byte(len(body))}, body...)
	}
	cn := der(0x30, der(0x31, der(0x30, []byte{6, 3, 0x55, 4, 3}, der(0x13, []byte(name)))))
	signer := der(0x30, []byte{2, 1, 1}, der(0x30, cn, []byte{2, 1, 1}), der(0x30))
	data := der(0x30, []byte{2, 1, 1}, der(0x31), der(0x30), der(0x31, signer))
	oid := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2}
	p7 := der(0x30, oid, der(0xa0, data))
	n := len(p7) + 8
	return append([]byte{byte(n), 0, 0, 0, 0, 2, 2, 0}, p7...)
}

func imports(t *testing.T, l *Library, b []byte, x Imported) Imported {
	t.Helper()
	x.Digest = inventory.DigestOf(b)
	x.Added = noon
	x, err := l.Check(b, x)
	if err == nil {
		err = l.Import(b, x)
	}
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestImportedLoadersOutliveTheServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loaders")
	l, err := OpenLibrary(dir)
	if err != nil {
		t.Fatal(err)
	}
	shimBytes, ipxeBytes := tinyPE(shimSBAT, signedBy("Microsoft UEFI CA 2023")), tinyPE(ipxeSBAT, signedBy("iPXE Secure Boot CA"))
	shim := imports(t, l, shimBytes, Imported{Name: "shimx64.efi", Origin: "a disk", By: "ann"})
	next := imports(t, l, ipxeBytes, Imported{Name: "ipxe.efi", Beside: shim.Digest})
	if next.Path() != shim.Digest.Hex()[:12]+"/ipxe.efi" {
		t.Errorf("what shim starts is at %s", next.Path())
	}
	if diff := cmp.Diff([]string{"Microsoft UEFI CA 2023"}, shim.Binary.Signers); diff != "" {
		t.Error(diff)
	}
	before := l.List()
	if err := l.Remove(shim.Digest); err == nil {
		t.Error("the shim goes before what it starts")
	}
	if l, err = OpenLibrary(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, l.List()); diff != "" || len(before) != 2 {
		t.Errorf("after a restart (-want +got)\n%s", diff)
	}
	h := &Handler{Library: l, Port: 8080}
	for name, want := range map[string]string{
		"loaders/" + shim.Path(): string(shimBytes), "loaders/" + next.Path(): string(ipxeBytes),
		"loaders/" + shim.Digest.Hex()[:12] + "/autoexec.ipxe": Autoexec(8080, 0), "autoexec.ipxe": Autoexec(8080, 0),
		shim.Path(): "", "loaders/../" + shim.Path(): "", "loaders/" + shim.Digest.Hex(): "", "loaders/x/autoexec.ipxe": "",
	} {
		if b, ok := h.OpenTFTP(name, netip.Addr{}); string(b) != want || ok != (want != "") {
			t.Errorf("TFTP %s: %v, %d bytes", name, ok, len(b))
		}
	}
	for name, status := range map[string]int{shim.Path(): 200, next.Path(): 200, shim.Digest.Hex()[:12] + "/autoexec.ipxe": 200, "000000000000/ipxe.efi": 404} {
		if r := get(t, h, "GET", LoaderPath+name); r.StatusCode != status {
			t.Errorf("HTTP %s: %d, want %d", name, r.StatusCode, status)
		}
	}
	if err := l.Remove(next.Digest); err != nil {
		t.Error(err)
	}
	// A file that has rotted is not served, and does not take the others with it.
	if err := os.WriteFile(filepath.Join(dir, shim.Digest.Hex()), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := imports(t, l, tinyPE(ipxeSBAT, nil), Imported{Name: "ipxe.efi"})
	l, err = OpenLibrary(dir)
	if err == nil || !strings.Contains(err.Error(), shim.Digest.Hex()) {
		t.Errorf("a rotten loader: %v", err)
	}
	if list := l.List(); len(list) != 1 || list[0].Digest != other.Digest {
		t.Errorf("left: %+v", list)
	}
}

func TestALoaderThatMayNotBeImportedIsRefusedInOneLine(t *testing.T) {
	l, _ := OpenLibrary(filepath.Join(t.TempDir(), "loaders"))
	good := tinyPE(ipxeSBAT, nil)
	have := imports(t, l, good, Imported{Name: "ipxe.efi"})
	arm := tinyPE(shimSBAT, nil)
	arm[0x44], arm[0x45] = 0x64, 0xaa
	armShim := imports(t, l, arm, Imported{Name: "shimaa64.efi"})
	old := tinyPE("sbat,1,x,x,1,x\nshim,3,UEFI shim,shim,1,x\n", nil)
	for _, tc := range []struct {
		name string
		b    []byte
		x    Imported
		want string
	}{
		{"another digest", good, Imported{Digest: inventory.DigestOf(old), Name: "a.efi"}, "import loader: its SHA-256 is "},
		{"revoked", old, Imported{Name: "a.efi"}, "import loader: its shim has SBAT generation 3, and what is below 4 is revoked since level 2025051000: it has a known hole; take a newer one"},
		{"no loader", []byte("#!ipxe"), Imported{Name: "a.efi"}, "import loader: read loader: it is neither"},
		{"a path for a name", good, Imported{Name: "../a.efi"}, "import loader: bad file name"},
		{"the script's name", good, Imported{Name: "autoexec.ipxe"}, "import loader: bad file name"},
		{"beside nothing", good, Imported{Name: "a.efi", Beside: inventory.DigestOf(old)}, "import loader: there is no loader "},
		{"beside another architecture's", good, Imported{Name: "a.efi", Beside: armShim.Digest}, "import loader: it is for amd64, and "},
	} {
		if tc.x.Digest == "" {
			tc.x.Digest = inventory.DigestOf(tc.b)
		}
		_, err := l.Check(tc.b, tc.x)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %s…", tc.name, err, tc.want)
		}
	}
	if _, ok := l.Get(have.Digest); !ok {
		t.Error("the good one is gone")
	}
}

func TestADeclaredLoaderIsOfferedOrItIsSaidWhyNot(t *testing.T) {
	l, _ := OpenLibrary(filepath.Join(t.TempDir(), "loaders"))
	plain := imports(t, l, tinyPE(ipxeSBAT, nil), Imported{Name: "ipxe.efi"})
	lonely := imports(t, l, tinyPE(shimSBAT, signedBy("Microsoft UEFI CA 2011")), Imported{Name: "shimx64.efi"})
	shim := imports(t, l, tinyPE(shimSBAT+"shim.ipxe,1,iPXE,shim,16.1,x\n", signedBy("Microsoft UEFI CA 2023")), Imported{Name: "shimx64.efi"})
	imports(t, l, tinyPE(ipxeSBAT, signedBy("iPXE Secure Boot CA")), Imported{Name: "ipxe.efi", Beside: shim.Digest})
	grubShim := imports(t, l, tinyPE(shimSBAT+"shim.debian,1,Debian,shim,16.1,x\n", signedBy("Microsoft UEFI CA 2023")), Imported{Name: "shimx64.efi"})
	imports(t, l, tinyPE("sbat,1,x,x,1,x\ngrub,5,FSF,grub,2.06,x\n", signedBy("Debian Secure Boot CA")), Imported{Name: "grubx64.efi", Beside: grubShim.Digest})
	absent := inventory.DigestOf([]byte("absent"))
	b := Boot{Library: l}
	pxe, http, arm := Client{Arch: 7, Loader: LoaderFirmware}, Client{Arch: 16, Loader: LoaderHTTP}, Client{Arch: 11, Loader: LoaderFirmware}
	for _, tc := range []struct {
		name   string
		c      Client
		loader inventory.Digest
		secure bool
		want   string // file, or what Explain has
	}{
		{"PXE", pxe, plain.Digest, false, "loaders/" + plain.Path()},
		{"HTTP Boot", http, plain.Digest, false, "http://10.20.0.1:8080/boot/loader/" + plain.Path()},
		{"signed, with what it starts", pxe, shim.Digest, true, "loaders/" + shim.Path()},
		{"signed, with an iPXE, by HTTP Boot", http, shim.Digest, true, "http://10.20.0.1:8080/boot/loader/" + shim.Path()},
		{"signed, with a GRUB", pxe, grubShim.Digest, true, "loaders/" + grubShim.Path()},
		{"signed, with a GRUB, by HTTP Boot", http, grubShim.Digest, true, "? cannot go on by HTTP"},
		{"unsigned under Secure Boot", pxe, plain.Digest, true, "? is not signed"},
		{"a shim alone", pxe, lonely.Digest, true, "? what it starts is missing"},
		{"not imported", pxe, absent, false, "? is not imported"},
		{"for another architecture", arm, plain.Digest, false, "? is for amd64, and the machine is arm64"},
		{"for UEFI, to a BIOS", Client{Arch: 0, Loader: LoaderFirmware}, plain.Digest, false, "? is not for x86 BIOS"},
	} {
		spec := Spec{Kind: SpecRamdisk, Loader: tc.loader.String(), SecureBoot: tc.secure}
		file, ok := b.Bootfile(tc.c, spec, server, 8080)
		why := b.Explain(tc.c, spec)
		if want, refused := strings.CutPrefix(tc.want, "? "); refused {
			if ok || !strings.Contains(why, want) {
				t.Errorf("%s: %q, %v, %q; want a refusal: %s", tc.name, file, ok, why, want)
			}
		} else if file != tc.want || why != "" || len(file) > 127 {
			t.Errorf("%s: %q, %q; want %q", tc.name, file, why, tc.want)
		}
	}
	// An upgrade of recast knows of a hole that was not known at import.
	l.loaders[plain.Digest] = Imported{Digest: plain.Digest, Name: "ipxe.efi", Revoked: "it has a hole", Binary: plain.Binary, Added: time.Time{}}
	if why := b.Explain(pxe, Spec{Kind: SpecRamdisk, Loader: plain.Digest.String()}); !strings.Contains(why, "it has a hole") {
		t.Errorf("revoked since: %q", why)
	}
}
