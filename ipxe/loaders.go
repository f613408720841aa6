package ipxe

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"recast/inventory"
)

//go:embed all:loaders
var embedded embed.FS

// The loaders by name: the only boot file names there are, beside those of
// imported ones. iPXE's are as Debian's package spells them.
const (
	// These drive the network card through the firmware. They are preferred for a
	// PXE or HTTP boot: a third of the bytes over TFTP, they keep to the interface
	// they were loaded from on a machine with many, and the full builds' own
	// drivers hang on some cards (ipxe issues 541, 972, 973). On other cards it is
	// the firmware's driver that fails; hence the choice.
	LoaderUndionly = "undionly.kpxe"
	LoaderSNPOnly  = "snponly.efi"
	// These bring drivers of their own.
	LoaderPXE     = "ipxe.pxe"
	LoaderAMD64   = "ipxe-amd64.efi"
	LoaderARM64   = "ipxe-arm64.efi"
	LoaderRISCV64 = "ipxe-riscv64.efi"
	LoaderLoong64 = "ipxe-loong64.efi"
	// A GRUB without network, which finds what the disk starts with and starts that.
	LoaderLocalBIOS  = "local.pxe"
	LoaderLocalAMD64 = "local.efi"
	// What a disc starts under BIOS: a GRUB that knows two names, and the iPXE that it
	// starts as a kernel.
	LoaderCD     = "cd.img"
	LoaderKernel = "ipxe.lkrn"
	// Debian's shim, which Microsoft signed, and the GRUB that it loads from beside
	// itself, by this name.
	LoaderShimAMD64 = "shimx64.efi"
	LoaderGRUBAMD64 = "grubx64.efi"
)

const loaderCure = "run `sudo ./setup.sh loaders` and build again, or `apt-get install ipxe` on this machine; then restart recast serve"

const signedCure = "run `sudo ./setup.sh loaders` and build again, or `apt-get install shim-signed grub-efi-amd64-signed` on this machine; then restart recast serve"

// LoaderCure says how a missing loader of ours is had.
func LoaderCure(name string) string {
	switch name {
	case LoaderShimAMD64, LoaderGRUBAMD64:
		return signedCure
	case LoaderLocalBIOS, LoaderLocalAMD64, LoaderCD:
		return "run `sudo ./setup.sh loaders` and build again; then restart recast serve"
	}
	return loaderCure
}

// Where Debian's packages put the loaders, for a binary that was built without.
// Debian 12 has the full build as ipxe.efi, in /boot; newer suites name the
// architecture. The GRUBs that start a disk are made by setup.sh and stand nowhere.
var loaderPaths = map[string][]string{
	LoaderUndionly:   {"usr/lib/ipxe/undionly.kpxe"},
	LoaderSNPOnly:    {"usr/lib/ipxe/snponly.efi"},
	LoaderPXE:        {"usr/lib/ipxe/ipxe.pxe"},
	LoaderAMD64:      {"usr/lib/ipxe/ipxe-amd64.efi", "usr/lib/ipxe/ipxe.efi", "boot/ipxe.efi"},
	LoaderARM64:      {"usr/lib/ipxe/ipxe-arm64.efi"},
	LoaderRISCV64:    {"usr/lib/ipxe/ipxe-riscv64.efi"},
	LoaderLoong64:    {"usr/lib/ipxe/ipxe-loong64.efi"},
	LoaderLocalBIOS:  nil,
	LoaderLocalAMD64: nil,
	LoaderCD:         nil,
	LoaderKernel:     {"usr/lib/ipxe/ipxe.lkrn", "boot/ipxe.lkrn"},
	LoaderShimAMD64:  {"usr/lib/shim/shimx64.efi.signed"},
	LoaderGRUBAMD64:  {"usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"},
}

// Loaders holds the loaders that were found, each whole in memory (10 MB for all):
// what is served cannot change or vanish under a running server. It is an
// fs.FS with nothing but these names.
type Loaders struct {
	memFS
	from map[string]string
}

// OpenLoaders gathers the loaders: those embedded at build time, else those that
// the ipxe package installed on this machine.
func OpenLoaders() (*Loaders, error) {
	sub, err := fs.Sub(embedded, "loaders")
	if err != nil {
		return nil, fmt.Errorf("open embedded loaders: %w", err)
	}
	return openLoaders(sub, os.DirFS("/"))
}

func openLoaders(embedded, root fs.FS) (*Loaders, error) {
	l := &Loaders{memFS: memFS{}, from: map[string]string{}}
	for name, paths := range loaderPaths {
		if b, err := fs.ReadFile(embedded, name); err == nil {
			l.memFS[name], l.from[name] = b, "embedded"
			continue
		}
		for _, p := range paths {
			b, err := fs.ReadFile(root, p)
			if err == nil {
				l.memFS[name], l.from[name] = b, "/"+p
				break
			}
			// /usr/lib/ipxe/ipxe.efi is a link to /boot, which DirFS follows; what
			// is there and cannot be read must not pass for absent.
			if !os.IsNotExist(err) {
				return nil, fmt.Errorf("read loader %q: %w", "/"+p, err)
			}
		}
	}
	return l, nil
}

// Have reports whether the loader was found.
func (l *Loaders) Have(name string) bool {
	_, ok := l.memFS[name]
	return ok
}

// From says where a loader came from: "embedded" or a path; "" when missing.
func (l *Loaders) From(name string) string { return l.from[name] }

// Missing names the loaders that were not found, with what that costs and how
// to get them; nil when the machines of every firmware in the table can boot.
func (l *Loaders) Missing() error {
	var lost []string
	for _, need := range []struct{ loader, who string }{
		{LoaderUndionly, "BIOS machines"},
		{LoaderSNPOnly, "UEFI x86-64 machines"},
		{LoaderARM64, "UEFI arm64 machines"},
	} {
		if !l.Have(need.loader) {
			lost = append(lost, fmt.Sprintf("%s (%s cannot netboot)", need.loader, need.who))
		}
	}
	if lost == nil {
		return nil
	}
	return fmt.Errorf("find loaders: missing %s: %s", strings.Join(lost, ", "), loaderCure)
}

// Lack names a loader of ours that is missing and without which this machine does not
// do what it is declared to; "" for none.
func (l *Loaders) Lack(m *inventory.Machine) string {
	var need []string
	_, imported := m.Boot.LoaderDigest()
	switch {
	case m.SecureBoot && !imported:
		need = []string{LoaderShimAMD64, LoaderGRUBAMD64}
	case m.Boot.Via == inventory.BootMedia:
		return l.discLack(m)
	case m.SecureBoot || m.Boot.Local != inventory.LocalGRUB:
	case m.Firmware == inventory.BIOS:
		need = []string{LoaderLocalBIOS}
	case m.Firmware == inventory.UEFI:
		need = []string{LoaderLocalAMD64}
	default: // which of them it has is seen at its first boot
		need = []string{LoaderLocalBIOS, LoaderLocalAMD64}
	}
	return l.absent(need...)
}

// absent is the first of the loaders that is not there; "" for none.
func (l *Loaders) absent(names ...string) string {
	for _, name := range names {
		if !l.Have(name) {
			return name
		}
	}
	return ""
}

// Names lists what is there, sorted.
func (l *Loaders) Names() []string {
	var names []string
	for n := range l.memFS {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// loaderType is the media type that UEFI HTTP Boot accepts for a loader; edk2
// goes by the extension first and by the type where there is none.
func loaderType(name string) string {
	if path.Ext(name) == ".efi" {
		return "application/efi"
	}
	return "application/octet-stream"
}
