package image

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"recast/inventory"
)

// A unified kernel image is kernel and initrd in one UEFI program, so that one
// signature covers both (UAPI group's UKI specification). Ours has no arguments of
// its own: systemd's stub ignores the loader's under Secure Boot where it has, and
// every boot needs other ones.

// maxUnified is larger than any: the initrd holds drivers and the agent.
const maxUnified = 1 << 30

// UnifiedName is the signed one's in the ramdisk's folder.
func UnifiedName(a inventory.Arch) string {
	if a == inventory.AMD64 {
		return "ramdisk.efi"
	}
	return "ramdisk-" + string(a) + ".efi"
}

// UnsignedName is that of the one which each build makes beside, for firmware that
// measures what it starts and asks for no signature.
func UnsignedName(a inventory.Arch) string {
	return strings.TrimSuffix(UnifiedName(a), ".efi") + "-unsigned.efi"
}

// StubOf a Linux system is where its package systemd-boot-efi puts the stub.
func StubOf(root string, a inventory.Arch) string {
	name := map[inventory.Arch]string{inventory.AMD64: "linuxx64.efi.stub", inventory.ARM64: "linuxaa64.efi.stub"}[a]
	return filepath.Join(root, "usr/lib/systemd/boot/efi", name)
}

// Unify puts a ramdisk behind systemd's stub, unsigned. The same inputs give the
// same bytes.
func Unify(stub []byte, r Ramdisk) ([]byte, error) {
	kernel, err := os.ReadFile(r.KernelPath())
	if err != nil {
		return nil, fmt.Errorf("unify the ramdisk: %w", err)
	}
	initrd, err := os.ReadFile(r.InitrdPath())
	if err != nil {
		return nil, fmt.Errorf("unify the ramdisk: %w", err)
	}
	release := fmt.Sprintf("ID=recast\nNAME=recast\nPRETTY_NAME=\"recast ramdisk, kernel %s\"\n", r.KernelVersion)
	out, err := addSections(stub, r.Arch, []section{{".osrel", []byte(release)}, {".linux", kernel}, {".initrd", initrd}})
	if err != nil {
		return nil, fmt.Errorf("unify the ramdisk: %w", err)
	}
	return out, nil
}

// section of a PE file.
type section struct {
	name string
	data []byte
}

// Offsets in a PE header and the size of a section's (Microsoft's PE format).
const (
	peSections       = 6   // behind the signature: how many
	peOptionalSize   = 20  // how large the optional header is
	peOptional       = 24  // where it begins
	peSectionAlign   = 32  // in the optional header
	peFileAlign      = 36  // likewise
	peSizeOfImage    = 56  // likewise
	peSizeOfHeaders  = 60  // likewise
	peChecksum       = 64  // likewise
	peDirectories    = 112 // likewise, where it is of 64 bits
	peSectionHeader  = 40
	peCertificates   = pe.IMAGE_DIRECTORY_ENTRY_SECURITY
	peReadOnlyData   = pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ
	peVirtualAligned = 4096
)

var peMachine = map[inventory.Arch]uint16{inventory.AMD64: pe.IMAGE_FILE_MACHINE_AMD64, inventory.ARM64: pe.IMAGE_FILE_MACHINE_ARM64}

// readPE is what a UEFI program of 64 bits for an architecture says of itself.
func readPE(b []byte, arch inventory.Arch) (*pe.File, *pe.OptionalHeader64, error) {
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, nil, fmt.Errorf("it is no UEFI program: %w", err)
	}
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || h.Subsystem != pe.IMAGE_SUBSYSTEM_EFI_APPLICATION || h.NumberOfRvaAndSizes <= peCertificates {
		return nil, nil, errors.New("it is no UEFI program of 64 bits")
	}
	if f.Machine != peMachine[arch] {
		return nil, nil, fmt.Errorf("it is not for %s", arch)
	}
	return f, h, nil
}

// addSections puts data behind what a program has already.
func addSections(program []byte, arch inventory.Arch, add []section) ([]byte, error) {
	f, h, err := readPE(program, arch)
	if err != nil {
		return nil, fmt.Errorf("the stub: %w", err)
	}
	if h.DataDirectory[peCertificates].Size != 0 {
		return nil, errors.New("the stub is signed, and what is added would not be")
	}
	if f.Section(".linux") != nil || f.Section(".initrd") != nil {
		return nil, errors.New("the stub holds a kernel already")
	}
	le := binary.LittleEndian
	out := bytes.Clone(program)
	at := int(le.Uint32(out[0x3c:]))
	optional := at + peOptional
	headers := optional + int(le.Uint16(out[at+peOptionalSize:])) + len(f.Sections)*peSectionHeader
	if room := headers + len(add)*peSectionHeader; room > int(h.SizeOfHeaders) || room > len(out) {
		return nil, fmt.Errorf("the stub has no room for %d more sections", len(add))
	}
	fileAlign, sectionAlign := int64(h.FileAlignment), int64(max(h.SectionAlignment, peVirtualAligned))
	if fileAlign <= 0 || fileAlign > 1<<16 || sectionAlign > 1<<24 {
		return nil, fmt.Errorf("the stub is aligned to %d and %d", fileAlign, sectionAlign)
	}
	end := int64(h.SizeOfImage)
	for _, s := range f.Sections {
		end = max(end, int64(s.VirtualAddress)+int64(s.VirtualSize))
	}
	// A symbol table may stand behind the sections; nobody reads it, and it stays.
	for _, s := range add {
		end = upTo(end, sectionAlign)
		from := upTo(int64(len(out)), fileAlign)
		size := upTo(int64(len(s.data)), fileAlign)
		if from+size > maxUnified || end+size > maxUnified {
			return nil, fmt.Errorf("it would have more than %d MiB", maxUnified>>20)
		}
		out = append(out, make([]byte, from-int64(len(out)))...)
		out = append(out, s.data...)
		out = append(out, make([]byte, size-int64(len(s.data)))...)
		head := out[headers : headers+peSectionHeader]
		clear(head)
		copy(head[:8], s.name)
		le.PutUint32(head[8:], uint32(len(s.data)))
		le.PutUint32(head[12:], uint32(end))
		le.PutUint32(head[16:], uint32(size))
		le.PutUint32(head[20:], uint32(from))
		le.PutUint32(head[36:], peReadOnlyData)
		headers += peSectionHeader
		end += int64(len(s.data))
	}
	le.PutUint16(out[at+peSections:], uint16(len(f.Sections)+len(add)))
	le.PutUint32(out[optional+peSizeOfImage:], uint32(upTo(end, sectionAlign)))
	le.PutUint32(out[optional+peChecksum:], 0) // no firmware looks at it
	return out, nil
}

func upTo(n, align int64) int64 { return (n + align - 1) / align * align }

// CheckUnified says why a file is not this ramdisk, joined by Unify and signed since.
// Whose signature it is, the machines' firmware checks.
func CheckUnified(b []byte, r Ramdisk) error {
	f, h, err := readPE(b, r.Arch)
	if err != nil {
		return err
	}
	if f.Section(".cmdline") != nil {
		return errors.New("it has arguments of its own, so that under Secure Boot its stub ignores those of a boot: make it with recast ramdisk export")
	}
	for name, want := range map[string]RamdiskFile{".linux": r.Kernel, ".initrd": r.Initrd} {
		s := f.Section(name)
		if s == nil {
			return fmt.Errorf("it has no section %s: make it with recast ramdisk export", name)
		}
		start, size := int64(s.Offset), int64(s.VirtualSize)
		if size != want.Size || start+size > int64(len(b)) || inventory.DigestOf(b[start:start+size]) != want.Digest {
			return fmt.Errorf("its %s is not the %s that was built last: recast ramdisk export, and sign that", name, want.Name)
		}
	}
	if h.DataDirectory[peCertificates].Size == 0 {
		return errors.New("it is not signed: sbsign --key KEY --cert CERT FILE does that")
	}
	return nil
}

// ImportUnified puts a signed one beside the ramdisk that it is made of, from where
// it is served until another is built.
func ImportUnified(b []byte, r Ramdisk) (string, error) {
	if err := CheckUnified(b, r); err != nil {
		return "", fmt.Errorf("import the ramdisk: %w", err)
	}
	name := UnifiedName(r.Arch)
	if _, err := writeOut(r.Dir, name, func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
		return "", fmt.Errorf("import the ramdisk: %w", err)
	}
	return filepath.Join(r.Dir, name), nil
}
