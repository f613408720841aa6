package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"recast/inventory"
)

// RamdiskOptions of BuildRamdisk.
type RamdiskOptions struct {
	KernelDeb string // linux-image-*_*.deb, not the cloud kernel: it has no AHCI, e1000e or ixgbe
	Agent     string // static Linux program of the kernel's architecture that becomes /init
	// Modules by name; nil means DefaultModules. A named one that the kernel
	// does not have is an error, a default one is listed as missing.
	Modules []string
	// FirmwareDir is where the modules' firmware files lie, as FirmwareOf("/");
	// empty for none.
	FirmwareDir string
	// Root is the system whose stub (StubOf) makes the unified ramdisk; "" for none.
	Root string
	Out  string // folder; made where it is missing
}

// FirmwareOf a Linux system is its folder of firmware files, "" where it has none:
// without a package that brings firmware, Debian does not make it.
func FirmwareOf(root string) string {
	dir := filepath.Join(root, "lib/firmware")
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return ""
	}
	return dir
}

// RamdiskNames are the files of one architecture's ramdisk in a folder that holds
// those of all: kernel, initrd, and the record.
func RamdiskNames(a inventory.Arch) (kernel, initrd, record string) {
	if a == inventory.AMD64 {
		return "vmlinuz", "initrd.img", "ramdisk.json"
	}
	return "vmlinuz-" + string(a), "initrd-" + string(a) + ".img", "ramdisk-" + string(a) + ".json"
}

// RamdiskPart tells what the file of that name is there; a machine fetches the
// initrd last. The unified one is both.
func RamdiskPart(name string) (isKernel, isInitrd bool) {
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		kernel, initrd, _ := RamdiskNames(arch)
		both := name == UnifiedName(arch) || name == UnsignedName(arch)
		isKernel, isInitrd = isKernel || name == kernel || both, isInitrd || name == initrd || both
	}
	return isKernel, isInitrd
}

// Ramdisk is a kernel and an initrd that belong together, with this record beside
// them; see RamdiskNames.
type Ramdisk struct {
	Dir           string           `json:"-"`
	Arch          inventory.Arch   `json:"arch"`
	KernelVersion string           `json:"kernelVersion"`
	Kernel        RamdiskFile      `json:"kernel"`
	Initrd        RamdiskFile      `json:"initrd"`
	Agent         inventory.Digest `json:"agent"` // of the program that is /init
	Modules       []string         `json:"modules"`
	// MissingModules are default ones that this kernel does not have.
	MissingModules []string `json:"missingModules,omitempty"`
	// MissingFirmware are files that the modules may ask for and FirmwareDir does
	// not hold. Most drivers work without or need one only for some cards.
	MissingFirmware []string `json:"missingFirmware,omitempty"`
	// Unified tells that there is an unsigned unified one beside them.
	Unified bool `json:"-"`
	// Outdated tells that a signed one of an earlier build was removed.
	Outdated bool `json:"-"`
}

// RamdiskFile is one file of a Ramdisk.
type RamdiskFile struct {
	Name   string           `json:"name"`
	Digest inventory.Digest `json:"digest"`
	Size   int64            `json:"size"`
}

// KernelPath and InitrdPath are where the files lie.
func (r Ramdisk) KernelPath() string { return filepath.Join(r.Dir, r.Kernel.Name) }
func (r Ramdisk) InitrdPath() string { return filepath.Join(r.Dir, r.Initrd.Name) }

// OpenRamdisk reads the record in dir of one architecture and checks both files
// against it.
func OpenRamdisk(dir string, arch inventory.Arch) (Ramdisk, error) {
	const cure = "build it with: recast ramdisk build"
	r := Ramdisk{Dir: dir}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Ramdisk{}, fmt.Errorf("open the ramdisk: %w; %s", err, cure)
	}
	defer root.Close()
	_, _, record := RamdiskNames(arch)
	b, err := root.ReadFile(record)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return Ramdisk{}, fmt.Errorf("open the ramdisk in %q: %w; %s", dir, err, cure)
	}
	for _, want := range []RamdiskFile{r.Kernel, r.Initrd} {
		f, err := root.Open(want.Name)
		if err != nil {
			return Ramdisk{}, fmt.Errorf("open the ramdisk in %q: %w; %s", dir, err, cure)
		}
		h := sha256.New()
		n, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			return Ramdisk{}, fmt.Errorf("open the ramdisk in %q: %w", dir, err)
		}
		if got := inventory.NewDigest([sha256.Size]byte(h.Sum(nil))); n != want.Size || got != want.Digest {
			return Ramdisk{}, fmt.Errorf("open the ramdisk in %q: %q is not the file that was built (%d bytes, %s); %s", dir, want.Name, n, got, cure)
		}
	}
	return r, nil
}

// BuildRamdisk makes the small Linux that machines netboot: the package's
// kernel, the chosen modules with an index of them, and the agent as init. The
// same inputs give the same bytes.
func BuildRamdisk(ctx context.Context, o RamdiskOptions) (Ramdisk, error) {
	r, err := buildRamdisk(ctx, o)
	if err != nil {
		return Ramdisk{}, fmt.Errorf("build the ramdisk: %w", err)
	}
	return r, nil
}

func buildRamdisk(ctx context.Context, o RamdiskOptions) (Ramdisk, error) {
	agent, arch, err := readAgent(o.Agent)
	if err != nil {
		return Ramdisk{}, err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return Ramdisk{}, err
	}
	// Which modules are needed is known when all have been seen, and there are
	// 400 MB of them: they wait in a file.
	spool, err := os.CreateTemp(o.Out, "tmp-modules-")
	if err != nil {
		return Ramdisk{}, err
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	k, err := readKernel(ctx, o.KernelDeb, spool)
	if err != nil {
		return Ramdisk{}, err
	}
	if k.arch != arch {
		return Ramdisk{}, fmt.Errorf("kernel %s is for %s and the agent %q for %s", k.version, k.arch, o.Agent, arch)
	}
	return assemble(ctx, o, agent, k, spool)
}

// assemble writes the three files. The modules of k stand in spool.
func assemble(ctx context.Context, o RamdiskOptions, agent []byte, k *kernel, spool io.ReaderAt) (Ramdisk, error) {
	wanted := o.Modules
	if wanted == nil {
		wanted = DefaultModules()
	}
	chosen, absent, err := chooseModules(k.modules, k.builtin, wanted)
	if err != nil {
		return Ramdisk{}, err
	}
	if len(absent) > 0 && o.Modules != nil {
		return Ramdisk{}, fmt.Errorf("kernel %s has no module %q", k.version, absent)
	}
	firmware, missing, err := findFirmware(o.FirmwareDir, chosen)
	if err != nil {
		return Ramdisk{}, err
	}
	r := Ramdisk{
		Dir: o.Out, Arch: k.arch, KernelVersion: k.version, Agent: inventory.DigestOf(agent),
		Modules: slices.Sorted(maps.Keys(chosen)), MissingModules: absent, MissingFirmware: missing,
	}
	index := ModuleIndex{Kernel: k.version, Modules: chosen}
	for _, name := range fileModules {
		if _, ok := chosen[name]; ok {
			index.Load = append(index.Load, name)
		}
	}
	indexJSON, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		return Ramdisk{}, err
	}

	kernelName, initrdName, recordName := RamdiskNames(k.arch)
	// What they hold is what was built before.
	for _, name := range []string{UnifiedName(k.arch), UnsignedName(k.arch)} {
		switch err := os.Remove(filepath.Join(o.Out, name)); {
		case err == nil:
			r.Outdated = r.Outdated || name == UnifiedName(k.arch)
		case !errors.Is(err, fs.ErrNotExist):
			return Ramdisk{}, err
		}
	}
	r.Initrd, err = writeOut(o.Out, initrdName, func(w io.Writer) error {
		// Best costs 10 s and is spent once; every boot transfers the result. The
		// window stays small, as the kernel takes that much memory at boot.
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		c := newCPIO(z)
		for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc", "lib/firmware"} {
			if err := c.dir(d); err != nil {
				return err
			}
		}
		// The kernel opens the console for init before anything is mounted.
		if err := c.device("dev/console", 0o600, 5, 1); err != nil {
			return err
		}
		if err := c.device("dev/null", 0o666, 1, 3); err != nil {
			return err
		}
		if err := c.file("init", 0o755, int64(len(agent)), bytes.NewReader(agent)); err != nil {
			return err
		}
		if err := c.file("lib/modules/modules.json", 0o644, int64(len(indexJSON)), bytes.NewReader(indexJSON)); err != nil {
			return err
		}
		for _, name := range r.Modules {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := k.at[name]
			if err := c.file(chosen[name].Path, 0o644, at.size, io.NewSectionReader(spool, at.offset, at.size)); err != nil {
				return err
			}
		}
		for _, name := range firmware {
			if err := addFirmware(c, o.FirmwareDir, name); err != nil {
				return err
			}
		}
		return errors.Join(c.close(), z.Close())
	})
	if err != nil {
		return Ramdisk{}, err
	}
	if r.Kernel, err = writeOut(o.Out, kernelName, func(w io.Writer) error { _, err := w.Write(k.vmlinuz); return err }); err != nil {
		return Ramdisk{}, err
	}
	if r.Unified, err = writeUnsigned(o, r); err != nil {
		return Ramdisk{}, err
	}
	record, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return Ramdisk{}, err
	}
	// Last: with the record the others are what it says.
	_, err = writeOut(o.Out, recordName, func(w io.Writer) error { _, err := w.Write(append(record, '\n')); return err })
	return r, err
}

// writeUnsigned is false where there is no stub.
func writeUnsigned(o RamdiskOptions, r Ramdisk) (bool, error) {
	if o.Root == "" {
		return false, nil
	}
	stub, err := os.ReadFile(StubOf(o.Root, r.Arch))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the stub: %w", err)
	}
	b, err := Unify(stub, r)
	if err != nil {
		return false, err
	}
	_, err = writeOut(o.Out, UnsignedName(r.Arch), func(w io.Writer) error { _, err := w.Write(b); return err })
	return err == nil, err
}

// readAgent refuses a program that could not run as the only file of a system.
func readAgent(name string) ([]byte, inventory.Arch, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, "", fmt.Errorf("read the agent: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, "", fmt.Errorf("agent %q is no Linux program; build it with CGO_ENABLED=0 GOOS=linux", name)
	}
	arch, ok := map[elf.Machine]inventory.Arch{elf.EM_X86_64: inventory.AMD64, elf.EM_AARCH64: inventory.ARM64}[f.Machine]
	if !ok {
		return nil, "", fmt.Errorf("agent %q is for %s; build it with GOARCH=amd64 or arm64", name, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, "", fmt.Errorf("agent %q is linked dynamically, and the ramdisk has no libraries; build it with CGO_ENABLED=0", name)
		}
	}
	return b, arch, nil
}

// kernel is what a kernel package holds.
type kernel struct {
	version string
	arch    inventory.Arch
	vmlinuz []byte
	modules map[string]Module
	at      map[string]extent // of each module in the spool
	builtin map[string]bool
}

type extent struct{ offset, size int64 }

const (
	maxVmlinuz = 64 << 20
	maxModule  = 64 << 20
)

func readKernel(ctx context.Context, deb string, spool io.Writer) (*kernel, error) {
	k := &kernel{modules: map[string]Module{}, at: map[string]extent{}, builtin: map[string]bool{}}
	var config []byte
	var offset int64
	read := func(r io.Reader, size, limit int64) ([]byte, error) {
		if size > limit {
			return nil, fmt.Errorf("%d bytes are over the limit of %d", size, limit)
		}
		b := make([]byte, size)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	err := readDeb(ctx, deb, func(name string, size int64, r io.Reader) (err error) {
		dir, base := path.Split(name)
		inTree := strings.HasPrefix(name, "lib/modules/") || strings.HasPrefix(name, "usr/lib/modules/")
		switch {
		case dir == "boot/" && strings.HasPrefix(base, "vmlinuz-"):
			k.version = strings.TrimPrefix(base, "vmlinuz-")
			k.vmlinuz, err = read(r, size, maxVmlinuz)
		case dir == "boot/" && strings.HasPrefix(base, "config-"):
			config, err = read(r, size, maxModule)
		case inTree && base == "modules.builtin":
			var list []byte
			list, err = read(r, size, maxModule)
			for line := range strings.FieldsSeq(string(list)) {
				k.builtin[moduleName(line)] = true
			}
		case inTree && strings.HasSuffix(base, ".ko"):
			var ko []byte
			if ko, err = read(r, size, maxModule); err != nil {
				return err
			}
			m, err := readModule(ko)
			if err != nil {
				return err
			}
			m.Path = "/" + strings.TrimPrefix(name, "usr/")
			k.modules[moduleName(base)] = m
			k.at[moduleName(base)] = extent{offset, size}
			offset += size
			_, err = spool.Write(ko)
			return err
		case inTree && strings.Contains(base, ".ko."):
			return errors.New("it is compressed; recast builds from packages with plain .ko files, as Debian 12's")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if k.vmlinuz == nil || len(k.modules) == 0 {
		return nil, fmt.Errorf("package %q holds no kernel with modules; take the linux-image package that linux-image-amd64 or -arm64 depends on", deb)
	}
	if !bytes.Contains(config, []byte("\nCONFIG_RD_ZSTD=y\n")) {
		return nil, fmt.Errorf("kernel %s cannot unpack a zstd initrd (CONFIG_RD_ZSTD)", k.version)
	}
	k.arch = inventory.AMD64
	if bytes.Contains(config, []byte("\nCONFIG_ARM64=y\n")) {
		k.arch = inventory.ARM64
	}
	return k, nil
}

// findFirmware tells which of the files that the modules may ask for dir holds.
// A name may stand there with .xz or .zst behind it, which the kernel finds too.
func findFirmware(dir string, modules map[string]Module) (found, missing []string, err error) {
	names := map[string]bool{}
	for _, m := range modules {
		for _, name := range m.Firmware {
			names[name] = true
		}
	}
	var root *os.Root
	if dir != "" {
		if root, err = os.OpenRoot(dir); err != nil {
			return nil, nil, fmt.Errorf("open the firmware folder: %w", err)
		}
		defer root.Close()
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		has := ""
		for _, end := range []string{"", ".xz", ".zst"} {
			if root == nil {
				break
			}
			if fi, err := root.Stat(name + end); err == nil && fi.Mode().IsRegular() {
				has = name + end
				break
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, nil, fmt.Errorf("look for firmware: %w", err)
			}
		}
		if has != "" {
			found = append(found, has)
		} else {
			missing = append(missing, name)
		}
	}
	return found, missing, nil
}

func addFirmware(c *cpioWriter, dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	b, err := root.ReadFile(name)
	if err != nil {
		return err
	}
	return c.file("lib/firmware/"+name, 0o644, int64(len(b)), bytes.NewReader(b))
}

type hashWriter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (h *hashWriter) Write(b []byte) (int, error) {
	n, err := h.w.Write(b)
	h.h.Write(b[:n])
	h.n += int64(n)
	return n, err
}

// writeOut makes dir/name by write, sync, rename and tells what is in it.
func writeOut(dir, name string, fill func(io.Writer) error) (RamdiskFile, error) {
	f, err := os.CreateTemp(dir, "tmp-"+name+"-")
	if err != nil {
		return RamdiskFile{}, err
	}
	h := &hashWriter{w: f, h: sha256.New()}
	err = fill(h)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return RamdiskFile{}, errors.Join(fmt.Errorf("write %q: %w", filepath.Join(dir, name), err), os.Remove(f.Name()))
	}
	return RamdiskFile{name, inventory.NewDigest([sha256.Size]byte(h.h.Sum(nil))), h.n}, nil
}
