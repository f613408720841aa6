package ipxe

import (
	"bytes"
	"debug/pe"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

func builtIn(t testing.TB, name string) []byte {
	t.Helper()
	l, err := OpenLoaders()
	if err != nil {
		t.Fatal(err)
	}
	if !l.Have(name) {
		t.Skip("needs loaders (make setup)")
	}
	return l.memFS[name]
}

func TestLoadersSayWhatTheyAreAndCan(t *testing.T) {
	for name, want := range map[string]Binary{
		LoaderSNPOnly:    {Kind: "ipxe", Arch: inventory.AMD64, UEFI: true, HTTP: true, HTTPS: true, IPv6: true},
		LoaderAMD64:      {Kind: "ipxe", Arch: inventory.AMD64, UEFI: true, HTTP: true, HTTPS: true, IPv6: true},
		LoaderARM64:      {Kind: "ipxe", Arch: inventory.ARM64, UEFI: true, HTTP: true, HTTPS: true, IPv6: true},
		LoaderRISCV64:    {Kind: "ipxe", Arch: "riscv64", UEFI: true, HTTP: true, HTTPS: true, IPv6: true},
		LoaderLoong64:    {Kind: "ipxe", Arch: "loong64", UEFI: true, HTTP: true, HTTPS: true, IPv6: true},
		LoaderLocalAMD64: {Kind: "grub", Arch: inventory.AMD64, UEFI: true},
		LoaderUndionly:   {Kind: "ipxe", Arch: inventory.AMD64},
		LoaderShimAMD64:  {Kind: "shim", Arch: inventory.AMD64, UEFI: true, HTTP: true, IPv6: true, Signers: []string{"Microsoft Corporation UEFI CA 2011", "Microsoft UEFI CA 2023"}},
		LoaderGRUBAMD64:  {Kind: "grub", Arch: inventory.AMD64, UEFI: true, IPv6: true, Signers: []string{"Debian Secure Boot CA"}},
	} {
		b := builtIn(t, name)
		got, err := ReadBinary(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if why := got.Revoked(); why != "" {
			t.Errorf("%s: %s", name, why)
		}
		signed := len(want.Signers) > 0
		if signed && (got.Version == "" || len(got.SBAT) < 2) {
			t.Errorf("%s: version %q, SBAT %+v", name, got.Version, got.SBAT)
		}
		got.Version, got.SBAT = "", nil // of the package that is there
		if name == LoaderShimAMD64 && len(got.Signers) == 1 {
			want.Signers = want.Signers[:1] // by an older one
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

// The shim that setup.sh fetches knows what is revoked; a newer one says so here.
func TestTheRevocationLevelIsThatOfTheShimWeServe(t *testing.T) {
	b := builtIn(t, LoaderShimAMD64)
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(".sbatlevel")
	if s == nil {
		t.Fatal("shim has no .sbatlevel")
	}
	level, err := section(b, s)
	if err != nil {
		t.Fatal(err)
	}
	want := "sbat,1," + revocationLevel + "\n"
	for _, r := range revocations {
		want += fmt.Sprintf("%s,%d\n", r.Component, r.Generation)
	}
	if !bytes.Contains(level, []byte(want)) {
		t.Errorf("the shim's levels are\n%q\nand ours is\n%q", level, want)
	}
}

func TestRevokedLoadersAreTold(t *testing.T) {
	for _, tc := range []struct {
		sbat, want string
	}{
		{"sbat,1,SBAT Version,sbat,1,x\nshim,3,UEFI shim,shim,1,x\nshim.debian,1,Debian,shim,15.7,x\n", "its shim has SBAT generation 3"},
		{"sbat,1\ngrub,4,FSF,grub,2.06,x\n", "its grub has SBAT generation 4"},
		{"sbat,1\ngrub,5,FSF,grub,2.06,x\ngrub.proxmox,1,Proxmox,grub2,2.06,x\n", "its grub.proxmox has SBAT generation 1"},
		{"sbat,1\ngrub,5,FSF,grub,2.12,x\nipxe,1,iPXE,ipxe.efi,2.0.0,x\n", ""},
		{"", ""},
	} {
		entries, err := parseSBAT([]byte(tc.sbat + "\x00\x00garbage"))
		if err != nil {
			t.Errorf("%q: %v", tc.sbat, err)
		}
		if why := (Binary{SBAT: entries}).Revoked(); !strings.HasPrefix(why, tc.want) || tc.want == "" && why != "" {
			t.Errorf("%q: %q, want %q", tc.sbat, why, tc.want)
		}
	}
	for _, bad := range []string{"shim\n", "shim,x\n", "shim,0\n", ",1\n", "a b,1\n", "shim,\"1\n", strings.Repeat("a,1\n", 65)} {
		if got, err := parseSBAT([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

func TestWhatIsNoLoaderIsRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":       nil,
		"text":          []byte("hello"),
		"a web page":    []byte("<html>404: there is no iPXE here, nor PXE->EB:</html>\n"),
		"an ELF file":   []byte("\x7fELF and more of it, long enough to look like something to somebody who looks"),
		"MZ alone":      []byte("MZ" + strings.Repeat("\x00", 100)),
		"PE cut off":    append([]byte("MZ"+strings.Repeat("\x00", 58)+"\x40\x00\x00\x00"), "PE\x00\x00d\x86"...),
		"far too large": make([]byte, maxBinary+1),
	} {
		if got, err := ReadBinary(b); err == nil {
			t.Errorf("%s is %+v", name, got)
		}
	}
	shim := builtIn(t, LoaderShimAMD64)
	// A signature that was cut off with the end of the file must not pass for none.
	if got, err := ReadBinary(shim[:len(shim)-4096]); err == nil {
		t.Errorf("a shim without its end is %+v", got)
	}
	// One that nobody signed ends with its last section, or says how long it is.
	for _, name := range []string{LoaderSNPOnly, LoaderARM64, LoaderLoong64, LoaderLocalAMD64, LoaderUndionly, LoaderPXE} {
		b := builtIn(t, name)
		if got, err := ReadBinary(b[:len(b)-600]); err == nil {
			t.Errorf("%s without its end is %+v", name, got)
		}
	}
}

func FuzzReadBinary(f *testing.F) {
	f.Add([]byte("MZ"))
	f.Add(tinyPE("sbat,1,SBAT Version,sbat,1,x\nshim,4,UEFI shim,shim,1,x\n", nil))
	f.Add(tinyPE("", []byte{24, 0, 0, 0, 0, 2, 2, 0, 0x30, 0x0b, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2, 0, 0, 0}))
	f.Add([]byte("mimg\x00\x00\x00\x00\x18\x00\x00\x00\x00\x00\x00\x00\x30\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		grubModules(b)
		pkcs7Issuers(b)
		x, err := ReadBinary(b)
		if err != nil {
			return
		}
		for _, text := range append([]string{x.Version, x.Kind}, x.Signers...) {
			if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u009b' }) {
				t.Errorf("%q reaches a terminal", text)
			}
		}
	})
}

// tinyPE is the smallest UEFI application with an SBAT section and a certificate
// table.
func tinyPE(sbat string, certs []byte) []byte {
	b := make([]byte, 0x200)
	copy(b, "MZ")
	b[0x3c] = 0x40
	at := copy(b[0x40:], "PE\x00\x00\x64\x86\x01\x00") + 0x40
	at += 12
	b[at], b[at+2] = 240, 0x22 // size of the optional header, characteristics
	opt := at + 4
	b[opt], b[opt+1] = 0x0b, 0x02 // PE32+
	b[opt+68] = pe.IMAGE_SUBSYSTEM_EFI_APPLICATION
	b[opt+108] = 16
	head := opt + 240
	copy(b[head:], ".sbat")
	put := func(at, v int) { b[at], b[at+1], b[at+2] = byte(v), byte(v>>8), byte(v>>16) }
	put(head+8, len(sbat))
	put(head+16, len(sbat))
	put(head+20, 0x200)
	b = append(b, sbat...)
	if certs != nil {
		put(opt+112+4*8, len(b))
		put(opt+112+4*8+4, len(certs))
		b = append(b, certs...)
	}
	return b
}

func TestTheSmallestLoaderIsRead(t *testing.T) {
	got, err := ReadBinary(tinyPE("sbat,1,SBAT Version,sbat,1,x\nipxe,1,iPXE,ipxe.efi,2.0.0,x\n", nil))
	want := Binary{Kind: "ipxe", Version: "2.0.0", Arch: inventory.AMD64, UEFI: true,
		SBAT: []SBATEntry{{"sbat", 1, "SBAT Version", "1"}, {"ipxe", 1, "iPXE", "2.0.0"}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}
