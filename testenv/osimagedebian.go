package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const osDebianName = "recast-root"

// osDebianPackages make a plain Debian that cloud-init configures. The rest
// comes with their dependencies; what is only recommended stays away.
var osDebianPackages = []string{
	"linux-image-amd64", "initramfs-tools", "zstd", "systemd-sysv", "systemd-resolved", "dbus", "udev", "kmod",
	"cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs", "iproute2", "iputils-ping", "netbase",
	"ca-certificates", "curl", "less", "procps",
}

// osDebianFiles are written into the finished root.
var osDebianFiles = map[string]string{
	// Only our own volume: the others look for a cloud that is not there, and wait for it.
	"etc/cloud/cloud.cfg.d/90-recast.cfg": "datasource_list: [NoCloud]\n",
	"etc/hostname":                        "debian\n",
	"etc/hosts":                           "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
	// Empty: systemd makes one at the first boot.
	"etc/machine-id":     "",
	"etc/default/locale": "LANG=C.UTF-8\n",
}

const osDebianGRUB = `set timeout=0
linux %s root=UUID=%s ro quiet net.ifnames=0 console=tty0 console=ttyS0,115200
initrd %s
boot
`

// osDebianLeftovers differ from build to build, or are secrets of one machine.
var osDebianLeftovers = []string{
	"var/log/*", "var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/debconf/*-old", "var/lib/dpkg/*-old",
	"var/cache/ldconfig/aux-cache", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
	"var/lib/systemd/catalog/database", "etc/ssh/ssh_host_*", "etc/resolv.conf", "tmp/*", "var/tmp/*", "run/*",
	"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
}

// osDebianSuite is the release that this machine runs, and is built.
func osDebianSuite() (string, error) {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", errors.New("find Debian's release: /etc/os-release names none")
}

// osDebianSources are this machine's own apt sources for the suite, as one-line
// and as deb822 text. Other repositories of the machine are left out.
func osDebianSources(dir, suite string) (list, deb822 string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "sources.list.d", "*"))
	if err != nil {
		return "", "", err
	}
	for _, path := range append([]string{filepath.Join(dir, "sources.list")}, files...) {
		ext := filepath.Ext(path)
		if ext != ".list" && ext != ".sources" {
			continue // apt reads no other
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		if ext == ".list" {
			for line := range strings.Lines(string(data)) {
				if osDebianLine(line, suite) {
					list += strings.TrimSpace(line) + "\n"
				}
			}
			continue
		}
		for stanza := range strings.SplitSeq(string(data), "\n\n") {
			if osDebianStanza(stanza, suite) {
				deb822 += strings.TrimSpace(stanza) + "\n\n"
			}
		}
	}
	if list == "" && deb822 == "" {
		return "", "", fmt.Errorf("find apt sources for %q in %q: there are none", suite, dir)
	}
	return list, deb822, nil
}

func osDebianHasSuite(words []string, suite string) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		return w == suite || w == suite+"-updates" || w == suite+"-security"
	})
}

// osDebianLine: deb [options] URI suite component…
func osDebianLine(line, suite string) bool {
	words := strings.Fields(line)
	return len(words) >= 4 && words[0] == "deb" && slices.Contains(words, "main") && osDebianHasSuite(words, suite)
}

func osDebianStanza(stanza, suite string) bool {
	fields := map[string][]string{}
	for line := range strings.Lines(stanza) {
		if key, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "#") {
			fields[strings.ToLower(key)] = strings.Fields(value)
		}
	}
	return slices.Contains(fields["types"], "deb") && !slices.Contains(fields["enabled"], "no") &&
		slices.Contains(fields["components"], "main") && osDebianHasSuite(fields["suites"], suite)
}

func osDebianInputs(o OSOptions, w io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	suite, err := osDebianSuite()
	if err != nil {
		return err
	}
	list, deb822, err := osDebianSources("/etc/apt", suite)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%q\n%q\n%v\n", []string{suite, list, deb822, osDebianGRUB}, osDebianPackages, osDebianFiles)
	if o.Frozen != "" {
		return osHashFile(w, o.Frozen) // whatever the archive offers meanwhile
	}
	// What the mirrors offered when this machine last looked: after an apt-get
	// update with news the image is built anew.
	releases, err := filepath.Glob("/var/lib/apt/lists/*_dists_" + suite + "*_InRelease")
	if err != nil {
		return err
	}
	for _, f := range releases {
		if err := osHashFile(w, f); err != nil {
			return fmt.Errorf("hash inputs: %w", err)
		}
	}
	return nil
}

func osBuildDebian(ctx context.Context, o OSOptions, dir string) (osLayout, error) {
	suite, err := osDebianSuite()
	if err != nil {
		return osLayout{}, err
	}
	list, deb822, err := osDebianSources("/etc/apt", suite)
	if err != nil {
		return osLayout{}, err
	}
	layout := osLayout{root: filepath.Join(dir, "root"), name: osDebianName, guid: "646562696e01"}
	args := []string{
		"--mode=root", "--format=directory", "--variant=minbase", "--quiet",
		"--include=" + strings.Join(osDebianPackages, ","),
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-exclude=/usr/share/locale/*",
		// Without udev inside the chroot the ramdisk cannot guess; it takes all drivers anyway.
		"--customize-hook=chroot \"$1\" systemctl --quiet enable systemd-networkd systemd-resolved",
		"--customize-hook=chroot \"$1\" passwd --quiet --lock root",
	}
	var frozen []osPackage
	if o.Frozen != "" {
		prefs := fmt.Sprintf(osReleaseRules[o.Variant], suite)
		if o.freeze == nil {
			if frozen, err = osReadFrozen(o.Frozen, o.Variant); err != nil {
				return osLayout{}, err
			}
			prefs = osPins(frozen)
		}
		hooks, err := osFrozenHooks(dir, prefs)
		if err != nil {
			return osLayout{}, err
		}
		args = append(args, hooks...)
	}
	args = append(args, suite, layout.root)
	for name, text := range map[string]string{"sources.list": list, "debian.sources": deb822} {
		if text == "" {
			continue
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return osLayout{}, err
		}
		args = append(args, path)
	}
	if err := osRun(ctx, "mmdebstrap", args...); err != nil {
		return osLayout{}, err
	}
	if o.Frozen != "" {
		installed, err := osInstalled(dir)
		if err == nil && o.freeze == nil {
			err = osSamePackages(frozen, installed)
		}
		if err != nil {
			return osLayout{}, err
		}
		if o.freeze != nil {
			*o.freeze = installed
		}
	}
	if err := layout.finishDebian(); err != nil {
		return osLayout{}, fmt.Errorf("finish the root: %w", err)
	}
	used, err := osTreeSize(layout.root)
	if err != nil {
		return osLayout{}, err
	}
	// Room for the file system's own structures and the first minutes of a boot:
	// cloud-init grows it to the disk.
	layout.rootSize = (used*110/100/osMiB + 128) * osMiB
	return layout, nil
}

// finishDebian makes a finished root into one that any machine can start.
func (l osLayout) finishDebian() error {
	for _, pattern := range osDebianLeftovers {
		paths, err := filepath.Glob(filepath.Join(l.root, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	files := map[string]string{"etc/fstab": fmt.Sprintf("UUID=%s / ext4 errors=remount-ro 0 1\n", l.rootUUID())}
	for name, text := range osDebianFiles {
		files[name] = text
	}
	var err error
	if files["boot/grub/grub.cfg"], err = l.debianMenu(); err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(l.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(l.root, "etc/resolv.conf"))
}

// debianMenu starts the links that Debian's kernel packages keep up to date.
func (l osLayout) debianMenu() (string, error) {
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		if _, err := os.Lstat(filepath.Join(l.root, name)); err != nil {
			return "", fmt.Errorf("find the kernel: %w", err)
		}
	}
	return fmt.Sprintf(osDebianGRUB, "/vmlinuz", l.rootUUID(), "/initrd.img"), nil
}

// osTreeSize is what a tree takes on ext4: whole blocks and one inode per file.
func osTreeSize(root string) (int64, error) {
	var size int64
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += 256
		if info.Mode().IsRegular() || info.IsDir() {
			size += (max(info.Size(), 1) + 4095) &^ 4095
		}
		return nil
	})
	return size, err
}
