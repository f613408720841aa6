package ipxe

import (
	"bytes"
	"debug/elf"
	"debug/pe"
	"encoding/asn1"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"crypto/x509/pkix"

	"recast/inventory"
)

// Binary is what a loader's file says of itself. Nothing of it is verified: the
// digest that an operator pins says which file it is, and the firmware checks the
// signature.
type Binary struct {
	Kind    string         `json:"kind"` // shim, grub, ipxe, or "" unknown
	Version string         `json:"version,omitempty"`
	Arch    inventory.Arch `json:"arch"`
	UEFI    bool           `json:"uefi"`
	SBAT    []SBATEntry    `json:"sbat,omitempty"`
	// Signers name who signed it for Secure Boot, as the signatures' issuers; none:
	// it is not signed.
	Signers []string `json:"signers,omitempty"`
	HTTP    bool     `json:"http,omitempty"`
	HTTPS   bool     `json:"https,omitempty"`
	IPv6    bool     `json:"ipv6,omitempty"`
}

// SBATEntry is one line of a loader's SBAT section: a component and its generation,
// which rises with each hole that was mended (shim's SBAT.md).
type SBATEntry struct {
	Component  string `json:"component"`
	Generation int    `json:"generation"`
	Vendor     string `json:"vendor,omitempty"`
	Version    string `json:"version,omitempty"`
}

// maxBinary bounds a loader: the largest known, GRUB with everything, has 8 MiB.
const maxBinary = 32 << 20

// Values of Machine in a PE header that debug/pe has no loader's use for.
var peArch = map[uint16]inventory.Arch{
	pe.IMAGE_FILE_MACHINE_AMD64: inventory.AMD64, pe.IMAGE_FILE_MACHINE_ARM64: inventory.ARM64, pe.IMAGE_FILE_MACHINE_I386: "i386",
	pe.IMAGE_FILE_MACHINE_RISCV64: "riscv64", pe.IMAGE_FILE_MACHINE_LOONGARCH64: "loong64",
}

// ReadBinary reads a loader. A BIOS loader has no format but that it begins with
// code, so it is taken for one where it names iPXE.
func ReadBinary(b []byte) (Binary, error) {
	if len(b) > maxBinary {
		return Binary{}, fmt.Errorf("read loader: %d bytes, at most %d are taken", len(b), maxBinary)
	}
	if !bytes.HasPrefix(b, []byte("MZ")) || !hasPEHeader(b) {
		// What holds no zero is text, such as the page that came instead of the file.
		if bytes.IndexByte(b, 0) >= 0 && (bytes.Contains(b, []byte("iPXE")) || bytes.Contains(b, []byte("PXE->EB:"))) {
			if size := sizeBIOS(b); size > len(b) {
				return Binary{}, fmt.Errorf("read loader: its end is missing: it has %d of %d bytes", len(b), size)
			}
			return Binary{Kind: "ipxe", Arch: inventory.AMD64}, nil
		}
		return Binary{}, errors.New("read loader: it is neither a UEFI program (PE/COFF) nor an iPXE for BIOS")
	}
	// debug/pe knows LoongArch's number and refuses it all the same.
	at := binary.LittleEndian.Uint32(b[0x3c:]) + 4
	machine, known := uint16(0), b
	if int(at)+2 <= len(b) {
		machine = binary.LittleEndian.Uint16(b[at:])
	}
	if machine == pe.IMAGE_FILE_MACHINE_LOONGARCH64 {
		known = bytes.Clone(b)
		binary.LittleEndian.PutUint16(known[at:], pe.IMAGE_FILE_MACHINE_RISCV64)
	}
	f, err := pe.NewFile(bytes.NewReader(known))
	if err != nil {
		return Binary{}, fmt.Errorf("read loader: its PE header: %w", err)
	}
	defer f.Close()
	var dirs []pe.DataDirectory
	var subsystem uint16
	switch h := f.OptionalHeader.(type) {
	case *pe.OptionalHeader64:
		dirs, subsystem = h.DataDirectory[:min(int(h.NumberOfRvaAndSizes), len(h.DataDirectory))], h.Subsystem
	case *pe.OptionalHeader32:
		dirs, subsystem = h.DataDirectory[:min(int(h.NumberOfRvaAndSizes), len(h.DataDirectory))], h.Subsystem
	}
	if subsystem != pe.IMAGE_SUBSYSTEM_EFI_APPLICATION {
		return Binary{}, fmt.Errorf("read loader: it is no UEFI application (subsystem %d, want 10)", subsystem)
	}
	arch, ok := peArch[machine]
	if !ok {
		return Binary{}, fmt.Errorf("read loader: it is for an unknown processor (%#x)", machine)
	}
	for _, s := range f.Sections {
		if _, err := section(b, s); err != nil {
			return Binary{}, fmt.Errorf("read loader: its end is missing: the section %q lies outside of the file", printable(s.Name))
		}
	}
	out := Binary{Arch: arch, UEFI: true}
	if s := f.Section(".sbat"); s != nil {
		text, err := section(b, s)
		if err == nil {
			out.SBAT, err = parseSBAT(text)
		}
		if err != nil {
			return Binary{}, fmt.Errorf("read loader: its SBAT section: %w", err)
		}
	}
	if len(dirs) > pe.IMAGE_DIRECTORY_ENTRY_SECURITY {
		if out.Signers, err = signers(b, dirs[pe.IMAGE_DIRECTORY_ENTRY_SECURITY]); err != nil {
			return Binary{}, fmt.Errorf("read loader: its signature: %w", err)
		}
	}
	out.identify(b, f)
	return out, nil
}

// sizeBIOS is what an iPXE for PXE under BIOS says of its size, less what the last of
// its paragraphs may lack; 0 nothing. It stands between two of its texts, since its
// first stack begins behind it (iPXE's pxeprefix.S, image_size_pgh).
func sizeBIOS(b []byte) int {
	_, b, _ = bytes.Cut(b, []byte("PXE->EB:\x00"))
	if len(b) < 2 || !bytes.HasPrefix(b[2:], []byte(" PXENV+ at")) {
		return 0
	}
	return int(binary.LittleEndian.Uint16(b))*16 - 15
}

func hasPEHeader(b []byte) bool {
	if len(b) < 0x40 {
		return false
	}
	at := int64(binary.LittleEndian.Uint32(b[0x3c:]))
	return at+4 <= int64(len(b)) && bytes.Equal(b[at:at+4], []byte("PE\x00\x00"))
}

// section is the content of one, without its padding.
func section(b []byte, s *pe.Section) ([]byte, error) {
	start, size := int64(s.Offset), int64(min(s.Size, max(s.VirtualSize, 1)))
	if start+size > int64(len(b)) {
		return nil, errors.New("it lies outside of the file")
	}
	return b[start : start+size], nil
}

// identify finds out what it is and what it can do: by its SBAT components, and by
// the names of features (iPXE) and modules (GRUB) in it.
func (x *Binary) identify(b []byte, f *pe.File) {
	for _, e := range x.SBAT {
		base, _, _ := strings.Cut(e.Component, ".")
		if base == "shim" || base == "grub" || base == "ipxe" {
			x.Kind = base
			x.Version = e.Version // of the vendor, whose line is the last
		}
	}
	mods := f.Section("mods")
	switch {
	case x.Kind == "" && mods != nil:
		x.Kind = "grub"
	case x.Kind == "" && bytes.Contains(b, []byte("UEFI SHIM\n$Version: ")):
		x.Kind = "shim"
		_, rest, _ := bytes.Cut(b, []byte("UEFI SHIM\n$Version: "))
		version, _, _ := bytes.Cut(rest[:min(len(rest), 32)], []byte(" "))
		x.Version = string(bytes.ToValidUTF8(version, nil))
	case x.Kind == "" && bytes.Contains(b, []byte("iPXE")):
		x.Kind = "ipxe"
	}
	named := func(s string) bool { return bytes.Contains(b, []byte("\x00"+s+"\x00")) }
	switch x.Kind {
	case "ipxe":
		x.HTTP, x.HTTPS, x.IPv6 = named("HTTP"), named("HTTPS"), named("IPv6")
	case "shim":
		x.HTTP = bytes.Contains(b, []byte("httpboot"))
		x.IPv6 = x.HTTP
	case "grub":
		if mods == nil {
			return
		}
		raw, err := section(b, mods)
		if err != nil {
			return
		}
		names := grubModules(raw)
		x.HTTP = slices.Contains(names, "http")
		x.IPv6 = x.HTTP || slices.Contains(names, "tftp") // its network speaks both, where it has one
	}
}

// parseSBAT reads the lines of an SBAT section: component, generation, vendor,
// package, version, URL.
func parseSBAT(text []byte) ([]SBATEntry, error) {
	text, _, _ = bytes.Cut(text, []byte{0})
	r := csv.NewReader(bytes.NewReader(text))
	r.FieldsPerRecord = -1
	var out []SBATEntry
	for {
		line, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(out) >= 64 {
			return nil, errors.New("more than 64 lines")
		}
		if len(line) < 2 || !plainWord(line[0]) {
			return nil, fmt.Errorf("line %d has no component with its generation", len(out)+1)
		}
		n, err := strconv.Atoi(line[1])
		if err != nil || n < 1 {
			return nil, fmt.Errorf("the generation %q of %s is no number", line[1], line[0])
		}
		e := SBATEntry{Component: line[0], Generation: n}
		if len(line) > 4 {
			e.Vendor, e.Version = printable(line[2]), printable(line[4])
		}
		out = append(out, e)
	}
}

func plainWord(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// printable makes a foreign text fit for a table and a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}

// signers are the issuers of the signatures in the certificate table (PE format,
// "The Attribute Certificate Table"), whose place is one in the file.
func signers(b []byte, dir pe.DataDirectory) ([]string, error) {
	start, size := int64(dir.VirtualAddress), int64(dir.Size)
	if size == 0 {
		return nil, nil
	}
	if start+size > int64(len(b)) || size < 8 {
		return nil, errors.New("it lies outside of the file")
	}
	table := b[start : start+size]
	var out []string
	for len(table) >= 8 {
		n := int(binary.LittleEndian.Uint32(table))
		if n < 8 || n > len(table) {
			return nil, errors.New("an entry is longer than the table")
		}
		// 2 is PKCS #7 signed data; others are not used by firmware.
		if binary.LittleEndian.Uint16(table[6:]) == 2 {
			names, err := pkcs7Issuers(table[8:n])
			if err != nil {
				return nil, err
			}
			out = append(out, names...)
		}
		table = table[min((n+7)&^7, len(table)):]
	}
	return out, nil
}

// pkcs7Issuers reads as much of PKCS #7 signed data (RFC 2315 section 9) as it
// takes to say who vouches for the signers: the certificates' issuers.
func pkcs7Issuers(der []byte) ([]string, error) {
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, fmt.Errorf("no signed data: %w", err)
	}
	var signed struct {
		Version int
		Digests asn1.RawValue `asn1:"set"`
		Content asn1.RawValue
		Certs   asn1.RawValue `asn1:"optional,tag:0"`
		CRLs    asn1.RawValue `asn1:"optional,tag:1"`
		Signers []struct {
			Version int
			ID      struct {
				Issuer asn1.RawValue
				Serial asn1.RawValue
			}
			Rest asn1.RawValue
		} `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &signed); err != nil {
		return nil, fmt.Errorf("its signers: %w", err)
	}
	var out []string
	for _, s := range signed.Signers {
		var rdn pkix.RDNSequence
		if _, err := asn1.Unmarshal(s.ID.Issuer.FullBytes, &rdn); err != nil {
			return nil, fmt.Errorf("a signer's issuer: %w", err)
		}
		var name pkix.Name
		name.FillFromRDNSequence(&rdn)
		if name.CommonName == "" {
			name.CommonName = "somebody without a name"
		}
		out = append(out, printable(name.CommonName))
	}
	return out, nil
}

// grubModules are the names of the modules in a GRUB image's "mods" section
// (GRUB's kernel.h: grub_module_info64, then headers of type and size).
func grubModules(raw []byte) []string {
	if len(raw) < 24 || string(raw[:4]) != "mimg" {
		return nil
	}
	at, end := binary.LittleEndian.Uint64(raw[8:]), binary.LittleEndian.Uint64(raw[16:])
	end = min(end, uint64(len(raw)))
	var out []string
	for at < end && end-at >= 8 {
		kind, size := binary.LittleEndian.Uint32(raw[at:]), uint64(binary.LittleEndian.Uint32(raw[at+4:]))
		if size < 8 || size > end-at || len(out) > 1024 {
			break
		}
		if kind == 0 { // OBJ_TYPE_ELF
			if name := elfModule(raw[at+8 : at+size]); name != "" {
				out = append(out, name)
			}
		}
		at += size
	}
	return out
}

func elfModule(b []byte) string {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return ""
	}
	defer f.Close()
	s := f.Section(".modname")
	if s == nil || s.Size > 64 {
		return ""
	}
	name, err := s.Data()
	if err != nil {
		return ""
	}
	name, _, _ = bytes.Cut(name, []byte{0})
	return string(name)
}

// revocations is the newest level that shim 16.1 brings (its .sbatlevel): what is
// below it is refused by firmware that has it, and may be abused where it has not.
// TestTheRevocationLevelIsThatOfTheShimWeServe compares.
var revocations = []SBATEntry{{Component: "shim", Generation: 4}, {Component: "grub", Generation: 5}, {Component: "grub.proxmox", Generation: 2}}

const revocationLevel = "2025051000"

// Revoked says which component of a loader is revoked, "" none.
func (x Binary) Revoked() string {
	for _, r := range revocations {
		for _, e := range x.SBAT {
			if e.Component == r.Component && e.Generation < r.Generation {
				return fmt.Sprintf("its %s has SBAT generation %d, and what is below %d is revoked since level %s: it has a known hole", e.Component, e.Generation, r.Generation, revocationLevel)
			}
		}
	}
	return ""
}
