package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The tiny system with a root that dm-verity protects: kernel, ramdisk and GRUB's menu,
// which gives the root hash, have a partition of their own behind the root, and behind that
// is the root's tree. Both are as cryptsetup's veritysetup makes and opens them.

// osVerityTree and osVerityBoot are the GPT names of those partitions.
const (
	osVerityBoot = "boot"
	osVerityTree = osTinyName + "-verity"
)

// osVerityInit is the ramdisk's only job, as osTinyInit. Where the kernel was given no
// root hash it starts the root all the same, which a gate has to see to that it is.
const osVerityInit = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do insmod /modules/$m.ko; done
find() {
	for u in /sys/class/block/*/uevent; do
		grep -qx PARTNAME=$1 $u && sed -n s,^DEVNAME=,/dev/,p $u
	done
}
echo "ramdisk: looking for the root" >/dev/console
hash=$(sed -n 's/.*roothash=\([0-9a-f]*\).*/\1/p' /proc/cmdline)
tries=0
while [ $tries -lt 100 ]; do
	root=$(find ` + osTinyName + `)
	tree=$(find ` + osVerityTree + `)
	[ -n "$root" ] && [ -n "$tree" ] && break
	tries=$((tries + 1))
	sleep 0.1
done
echo "ramdisk: root $root, tree $tree, root hash $hash" >/dev/console
if [ -n "$hash" ]; then
	DM_DISABLE_UDEV=1 veritysetup open $root root $tree $hash && root=/dev/mapper/root || root=
fi
mount -t ext4 -o ro $root /root
umount /proc /sys
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
`

// osVerityProbe is a file of the root that nothing reads but who asks for it.
const (
	osVerityProbe     = "etc/verity-probe"
	osVerityProbeLine = "verity probe, line %05d\n"
)

func osVerityProbeText() []byte {
	var b []byte
	for i := range 4096 {
		b = fmt.Appendf(b, osVerityProbeLine, i)
	}
	return b
}

const osVerityGRUB = `set timeout=0
linux /vmlinuz quiet panic=10 net.ifnames=0 roothash=%s console=tty0 console=ttyS0,115200
initrd /initrd
boot
`

// osVeritysetup are the files of veritysetup: itself, and the libraries that it needs.
func osVeritysetup(ctx context.Context) ([]string, error) {
	tool, err := osLook("veritysetup")
	if err != nil {
		return nil, fmt.Errorf("find veritysetup (make setup): %w", err)
	}
	out, err := exec.CommandContext(ctx, "ldd", tool).Output()
	if err != nil {
		return nil, fmt.Errorf("list what veritysetup needs: %w", err)
	}
	files := []string{tool}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			files = append(files, word)
		}
	}
	return files, nil
}

func osVerityInputs(ctx context.Context, w io.Writer) error {
	files, err := osVeritysetup(ctx)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := osHashFile(w, f); err != nil {
			return fmt.Errorf("hash inputs: %w", err)
		}
	}
	fmt.Fprintf(w, "%q\n", []string{osVerityInit, osVerityGRUB, string(osVerityProbeText())})
	return nil
}

// addVeritysetup puts it into a ramdisk, where it stands on this machine.
func (t osTree) addVeritysetup(ctx context.Context) error {
	files, err := osVeritysetup(ctx)
	if err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		t.file(strings.TrimPrefix(f, "/"), 0o755, data)
	}
	t.link("bin/veritysetup", files[0])
	t.dir("run") // its locks
	return nil
}

// verityLayout is where the boot partition and the tree lie.
func (l osLayout) verityLayout() (boot, tree, treeSize, end int64) {
	boot = osRootStart + l.rootSize
	tree = boot + l.bootSize
	blocks := l.rootSize / 4096
	treeSize = (blocks*32*128/127 + 4*4096 + osMiB - 1) / osMiB * osMiB
	return boot, tree, treeSize, tree + treeSize
}

// writeVerity makes the tree of the root, which is written, and the partition that starts it.
func (l osLayout) writeVerity(ctx context.Context, dir, image string) error {
	boot, tree, treeSize, _ := l.verityLayout()
	root, hashes, hash := filepath.Join(dir, "root.part"), filepath.Join(dir, "tree.part"), filepath.Join(dir, "root.hash")
	if err := osCopyPart(root, image, osRootStart, l.rootSize); err != nil {
		return err
	}
	if err := os.WriteFile(hashes, nil, 0o644); err != nil {
		return err
	}
	if err := osRun(ctx, "veritysetup", "format", "--uuid", l.uuid(8), "--salt", strings.Repeat("5a", 32), "--root-hash-file", hash, root, hashes); err != nil {
		return err
	}
	made, err := os.ReadFile(hashes)
	if err != nil {
		return err
	}
	if int64(len(made)) > treeSize {
		return fmt.Errorf("the tree has %d bytes, its partition %d", len(made), treeSize)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(made, tree)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	text, err := os.ReadFile(hash)
	if err != nil {
		return err
	}
	menu := filepath.Join(l.boot, "grub", "grub.cfg")
	if err := os.WriteFile(menu, fmt.Appendf(nil, osVerityGRUB, strings.TrimSpace(string(text))), 0o644); err != nil {
		return err
	}
	return l.writeExt(ctx, image, l.boot, osVerityBoot, 6, boot, l.bootSize)
}

func osCopyPart(to, from string, start, size int64) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(f, start, size))
	return errors.Join(err, out.Close())
}

// osVerityModules of the ramdisk.
var osVerityModules = append(slices.Clone(osTinyBootModules), "dm_mod", "dm_verity")
