package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"time"

	"recast/inventory"
)

// OSKind is one of the two operating systems that testenv builds.
type OSKind string

const (
	// OSTiny is a Debian kernel, busybox and a read-only root: for tests.
	OSTiny OSKind = "tiny"
	// OSDebian is a plain Debian with systemd and cloud-init.
	OSDebian OSKind = "debian"
)

// OSOptions say which image to build, and from what.
type OSOptions struct {
	Kind OSKind
	// CacheDir keeps images under the digest of their inputs, for 30 days after
	// their last use.
	CacheDir string
	// KernelDeb is Debian's linux-image package (tiny only); see FindKernelDeb.
	KernelDeb string
	// AgentBin is a static recast-agent that tiny reports with; "" for an image
	// that reports nothing.
	AgentBin string
	// Variant is written to /etc/recast-variant: another word, another image.
	Variant string
	// Signed boots by the shim and the GRUB that Debian signed (tiny only), so that it
	// starts under Secure Boot.
	Signed bool
	// Verity has dm-verity protect the root (tiny only).
	Verity bool
	// Frozen is a list of packages (debian only), of which the release named by
	// Variant is built; "" for what the archive offers today.
	Frozen string
	Log    *slog.Logger

	// freeze gets the packages of the release as its rules choose them today, for a
	// new list; nil builds by the list.
	freeze *[]osPackage
}

// OSImage is a built disk image: one GPT that boots by BIOS and by UEFI.
type OSImage struct {
	Kind    OSKind           `json:"kind"`
	Variant string           `json:"variant,omitempty"`
	Path    string           `json:"-"`
	Size    int64            `json:"size"`   // bytes
	Digest  inventory.Digest `json:"digest"` // of the file
}

// osEpoch is the time of everything in an image (2024-01-01), so that the same
// inputs give the same bytes.
const osEpoch = 1704067200

// osRecipe is part of the digest of the inputs: raise it with any change to the
// code that builds images.
const osRecipe = "2"

// BuildOS returns the image for the options, from the cache where it has been
// built before. It needs root for debian, and Debian's tools for both; a
// missing one is named with its package.
func BuildOS(ctx context.Context, o OSOptions) (OSImage, error) {
	build := osBuildTiny
	if o.Kind == OSDebian {
		build = osBuildDebian
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	path, err := osPath(o)
	if err != nil {
		return OSImage{}, err
	}
	if img, err := osCached(path); err == nil && o.freeze == nil {
		if err := markUsed(path, time.Now()); err != nil {
			return OSImage{}, err
		}
		return img, pruneCache(o.CacheDir, path, time.Now())
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return OSImage{}, fmt.Errorf("read cached %s: %w (remove %q to build it again)", o.Kind, err, path)
	}

	start := time.Now()
	log.Info("building operating system", "kind", o.Kind, "variant", o.Variant)
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return OSImage{}, fmt.Errorf("build %s: %w", o.Kind, err)
	}
	// In the cache's file system, so that the last step is a rename; two builders
	// of one image do not meet.
	dir, err := os.MkdirTemp(o.CacheDir, strings.TrimSuffix(filepath.Base(path), ".img")+".building-")
	if err != nil {
		return OSImage{}, fmt.Errorf("build %s: %w", o.Kind, err)
	}
	defer os.RemoveAll(dir)
	layout, err := build(ctx, o, dir)
	if err != nil {
		return OSImage{}, fmt.Errorf("build %s: %w", o.Kind, err)
	}
	built := filepath.Join(dir, "disk.img")
	if err := layout.write(ctx, dir, built); err != nil {
		return OSImage{}, fmt.Errorf("build %s: %w", o.Kind, err)
	}
	img := OSImage{Kind: o.Kind, Variant: o.Variant, Path: path}
	if img.Digest, img.Size, err = osHash(built); err != nil {
		return OSImage{}, fmt.Errorf("build %s: %w", o.Kind, err)
	}
	facts, err := json.Marshal(img)
	if err != nil {
		return OSImage{}, err
	}
	// The facts first: an image without facts would be taken for damaged.
	if err := os.WriteFile(path+".json", append(facts, '\n'), 0o644); err != nil {
		return OSImage{}, fmt.Errorf("keep %s: %w", o.Kind, err)
	}
	if err := os.Rename(built, path); err != nil {
		return OSImage{}, fmt.Errorf("keep %s: %w", o.Kind, err)
	}
	if err := pruneCache(o.CacheDir, path, time.Now()); err != nil {
		return OSImage{}, err
	}
	log.Info("built operating system", "kind", o.Kind, "variant", o.Variant, "size", img.Size,
		"digest", img.Digest.Short(), "took", time.Since(start).Round(time.Second/10))
	return img, nil
}

// osPath is where the image for the options stands in the cache, or shall stand.
func osPath(o OSOptions) (string, error) {
	var inputs func(OSOptions, io.Writer) error
	switch o.Kind {
	case OSTiny:
		inputs = osTinyInputs
	case OSDebian:
		inputs = osDebianInputs
	default:
		return "", fmt.Errorf("build an operating system: unknown kind %q, want tiny or debian", o.Kind)
	}
	if err := osTools(o.Kind); err != nil {
		return "", fmt.Errorf("build %s: %w", o.Kind, err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "recipe %s\nkind %s\nvariant %q\ngo %s\n", osRecipe, o.Kind, o.Variant, runtime.Version())
	if err := inputs(o, h); err != nil {
		return "", fmt.Errorf("build %s: %w", o.Kind, err)
	}
	return filepath.Join(o.CacheDir, fmt.Sprintf("os-%s-%x.img", o.Kind, h.Sum(nil)[:8])), nil
}

// osCached is an image that an earlier run left.
func osCached(path string) (OSImage, error) {
	info, err := os.Stat(path)
	if err != nil {
		return OSImage{}, err
	}
	data, err := os.ReadFile(path + ".json")
	if err != nil {
		return OSImage{}, err
	}
	var img OSImage
	if err := json.Unmarshal(data, &img); err != nil {
		return OSImage{}, err
	}
	if img.Size != info.Size() {
		return OSImage{}, fmt.Errorf("it has %d bytes, want %d", info.Size(), img.Size)
	}
	img.Path = path
	return img, nil
}

func osHash(path string) (inventory.Digest, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", 0, fmt.Errorf("hash %q: %w", path, err)
	}
	return inventory.NewDigest([sha256.Size]byte(h.Sum(nil))), n, nil
}

// FindKernelDeb looks for Debian's linux-image package of amd64: $RECAST_KERNEL_DEB,
// else the newest in the cache folder of the repository.
func FindKernelDeb(cacheDir string) (string, error) {
	if path := os.Getenv("RECAST_KERNEL_DEB"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("find kernel package: RECAST_KERNEL_DEB: %w", err)
		}
		return path, nil
	}
	return newestKernelDeb(cacheDir, inventory.AMD64, "make setup")
}

func newestKernelDeb(cacheDir string, arch inventory.Arch, cure string) (string, error) {
	name := "linux-image-*_" + string(arch) + ".deb"
	debs, err := filepath.Glob(filepath.Join(cacheDir, name))
	if err != nil || len(debs) == 0 {
		return "", fmt.Errorf("find kernel package: no %s in %q (%s downloads it)", name, cacheDir, cure)
	}
	newest, at := "", time.Time{}
	for _, deb := range debs {
		if info, err := os.Stat(deb); err == nil && info.ModTime().After(at) {
			newest, at = deb, info.ModTime()
		}
	}
	return newest, nil
}

// osPackages says which Debian package brings a tool.
var osPackages = map[OSKind]map[string]string{
	OSTiny: {
		"dpkg-deb": "dpkg", "sgdisk": "gdisk", "mkfs.ext4": "e2fsprogs", "mformat": "mtools",
		"mcopy": "mtools", "mmd": "mtools", "grub-mkimage": "grub-common",
		"/bin/busybox":                     "busybox-static",
		"/usr/lib/grub/i386-pc/boot.img":   "grub-pc-bin",
		"/usr/lib/grub/x86_64-efi/fat.mod": "grub-efi-amd64-bin",
	},
	OSDebian: {
		"mmdebstrap": "mmdebstrap", "sgdisk": "gdisk", "mkfs.ext4": "e2fsprogs", "mformat": "mtools",
		"mcopy": "mtools", "mmd": "mtools", "grub-mkimage": "grub-common",
		"/usr/lib/grub/i386-pc/boot.img":   "grub-pc-bin",
		"/usr/lib/grub/x86_64-efi/fat.mod": "grub-efi-amd64-bin",
	},
}

// osTools names what is missing, with one command that brings all of it.
func osTools(kind OSKind) error {
	var missing []string
	packages := map[string]bool{}
	for tool, pkg := range osPackages[kind] {
		if _, err := osLook(tool); err != nil {
			missing = append(missing, tool)
			packages[pkg] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	sort.Strings(missing)
	var names []string
	for pkg := range packages {
		names = append(names, pkg)
	}
	sort.Strings(names)
	return fmt.Errorf("needs %s (apt-get install %s)", strings.Join(missing, ", "), strings.Join(names, " "))
}

// osLook finds a tool also where an ordinary user's path does not look.
func osLook(tool string) (string, error) {
	if filepath.IsAbs(tool) { // a file that we read, not a program
		_, err := os.Stat(tool)
		return tool, err
	}
	if path, err := exec.LookPath(tool); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", tool))
}

// osRun runs one tool; its error holds what the tool said last.
func osRun(ctx context.Context, tool string, args ...string) error {
	path, err := osLook(tool)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = osEnv()
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = bytes.TrimSpace(out)
		if len(out) > 800 {
			out = out[len(out)-800:]
		}
		return fmt.Errorf("run %s: %w: %s", tool, err, out)
	}
	return nil
}

// osEnv pins what tools put into their output: the time, the zone, the language.
func osEnv() []string {
	return append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLS_SKIP_CHECK=1",
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", osEpoch), fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", osEpoch))
}

// osHashFile adds a file's content to the digest of the inputs.
func osHashFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(w, "file %s\n", filepath.Base(path))
	_, err = io.Copy(w, f)
	return err
}
