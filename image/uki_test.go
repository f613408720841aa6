package image

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"recast/inventory"
)

// tinyStub is a UEFI program with one section and room for more.
func tinyStub(machine uint16, room int) []byte {
	le := binary.LittleEndian
	b := make([]byte, 1024)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], machine)
	le.PutUint16(b[0x46:], 1)
	le.PutUint16(b[0x54:], 240)
	h := b[0x58:]
	le.PutUint16(h, 0x20b)
	le.PutUint32(h[32:], 512)
	le.PutUint32(h[36:], 512)
	le.PutUint32(h[56:], 0x1300)
	le.PutUint32(h[60:], uint32(0x58+240+40+room*40))
	le.PutUint16(h[68:], 10)
	le.PutUint32(h[108:], 16)
	s := h[240:]
	copy(s, ".text")
	for i, n := range []uint32{200, 0x1000, 512, 512} {
		le.PutUint32(s[8+4*i:], n)
	}
	return b
}

// signedPE has a certificate table of no use behind it.
func signedPE(b []byte) []byte {
	out := append(bytes.Clone(b), 8, 0, 0, 0, 0, 2, 2, 0)
	binary.LittleEndian.PutUint32(out[0x58+112+32:], uint32(len(b)))
	binary.LittleEndian.PutUint32(out[0x58+112+36:], 8)
	return out
}

func tinyRamdisk(t *testing.T) Ramdisk {
	t.Helper()
	r := Ramdisk{Dir: t.TempDir(), Arch: inventory.AMD64, KernelVersion: "6.1"}
	for _, f := range []struct {
		to   *RamdiskFile
		name string
		data string
	}{{&r.Kernel, "vmlinuz", strings.Repeat("kernel", 900)}, {&r.Initrd, "initrd.img", "initrd"}} {
		*f.to = RamdiskFile{f.name, inventory.DigestOf([]byte(f.data)), int64(len(f.data))}
		if err := os.WriteFile(filepath.Join(r.Dir, f.name), []byte(f.data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestTheUnifiedRamdiskHoldsKernelAndInitrdUnderOneSignature(t *testing.T) {
	r := tinyRamdisk(t)
	stub := tinyStub(pe.IMAGE_FILE_MACHINE_AMD64, 3)
	b, err := Unify(stub, r)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Unify(stub, r); err != nil || !bytes.Equal(again, b) {
		t.Error("the same inputs give other bytes")
	}
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	end := uint32(0)
	for _, s := range f.Sections {
		if s.VirtualAddress < end || s.Offset%512 != 0 || s.VirtualAddress%512 != 0 || int(s.Offset+s.Size) > len(b) {
			t.Errorf("section %+v", s.SectionHeader)
		}
		end = s.VirtualAddress + s.VirtualSize
	}
	if h := f.OptionalHeader.(*pe.OptionalHeader64); h.SizeOfImage < end || len(f.Sections) != 4 {
		t.Errorf("an image of %#x, %d sections, which end at %#x", h.SizeOfImage, len(f.Sections), end)
	}
	if text, err := f.Section(".osrel").Data(); err != nil || !strings.Contains(string(text), "ID=recast\n") {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := ImportUnified(b, r); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("imported without a signature: %v", err)
	}
	signed := signedPE(b)
	to, err := ImportUnified(signed, r)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(to); err != nil || !bytes.Equal(kept, signed) || filepath.Base(to) != "ramdisk.efi" {
		t.Errorf("kept %d bytes in %q, %v", len(kept), to, err)
	}
	if kernel, initrd := RamdiskPart("ramdisk.efi"); !kernel || !initrd {
		t.Error("it is no part of the ramdisk")
	}

	other := tinyRamdisk(t)
	other.Initrd.Digest = inventory.DigestOf([]byte("of another build"))
	args, err := addSections(stub, r.Arch, []section{{".cmdline", []byte("quiet")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		b          []byte
		r          Ramdisk
	}{
		{"of another build", "not the initrd.img that was built last", signed, other},
		{"with arguments of its own", "arguments of its own", args, r},
		{"without a kernel", "no section", stub, r},
		{"no program", "no UEFI program", []byte("x"), r},
		{"cut", "", signed[:2048], r},
	} {
		if err := CheckUnified(c.b, c.r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	for _, c := range []struct {
		name, want string
		stub       []byte
	}{
		{"full", "no room", tinyStub(pe.IMAGE_FILE_MACHINE_AMD64, 2)},
		{"of another architecture", "not for amd64", tinyStub(pe.IMAGE_FILE_MACHINE_ARM64, 3)},
		{"signed", "is signed", signedPE(stub)},
		{"with a kernel", "holds a kernel", b},
		{"none", "no UEFI program", nil},
	} {
		if _, err := Unify(c.stub, r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a stub, %s: %v; want %q", c.name, err, c.want)
		}
	}
}

func FuzzCheckUnified(f *testing.F) {
	f.Add(tinyStub(pe.IMAGE_FILE_MACHINE_AMD64, 3))
	f.Add(signedPE(tinyStub(pe.IMAGE_FILE_MACHINE_AMD64, 3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = CheckUnified(b, Ramdisk{Arch: inventory.AMD64})
		if out, err := addSections(b, inventory.AMD64, []section{{".linux", []byte("kernel")}}); err == nil {
			if g, err := pe.NewFile(bytes.NewReader(out)); err != nil || g.Section(".linux") == nil {
				t.Errorf("what came out cannot be read: %v", err)
			}
		}
	})
}

// TestEachBuildMakesItsUnsignedUnifiedRamdisk: one that is left of a build before, or of
// another ramdisk, would be measured, and be another than the one that is meant.
func TestEachBuildMakesItsUnsignedUnifiedRamdisk(t *testing.T) {
	root := t.TempDir()
	name := StubOf(root, inventory.AMD64)
	stub := tinyStub(pe.IMAGE_FILE_MACHINE_AMD64, 3)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, stub, 0o644)); err != nil {
		t.Fatal(err)
	}
	o := RamdiskOptions{KernelDeb: deb(t, "data.tar", plain, kernelFiles()...), Agent: staticProgram(t, 62, false), Root: root, Out: t.TempDir()}
	r, err := BuildRamdisk(t.Context(), o)
	if err != nil || !r.Unified {
		t.Fatalf("built %+v, %v", r, err)
	}
	file := filepath.Join(o.Out, UnsignedName(inventory.AMD64))
	want, err := Unify(stub, r)
	if err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(file); err != nil || !bytes.Equal(have, want) {
		t.Errorf("%d bytes, %v; want %d", len(have), err, len(want))
	}
	if kernel, initrd := RamdiskPart(filepath.Base(file)); !kernel || !initrd {
		t.Error("it is no part of the ramdisk")
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if r, err = BuildRamdisk(t.Context(), o); err != nil || r.Unified || r.Outdated {
		t.Errorf("built without a stub: %+v, %v", r, err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("that of the build before is left: %v", err)
	}
}
