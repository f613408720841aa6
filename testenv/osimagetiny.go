package testenv

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"recast/ipxe"
)

// Modules of tiny, by what needs them. Dependencies follow from the modules.
var (
	// The ramdisk's: to find and mount the root.
	osTinyBootModules = []string{"virtio_pci", "ahci", "sd_mod", "virtio_blk", "nvme", "virtio_scsi",
		"crc32c_generic", "crct10dif_generic", "ext4"}
	// The system's: network, the config volume, the power button.
	osTinyModules = []string{"virtio_net", "e1000", "e1000e", "button", "evdev",
		"vfat", "nls_cp437", "nls_ascii", "nls_utf8", "isofs", "efivarfs"}
)

const osTinyName = "recast-tiny"

// osTinyInit is the ramdisk's only job. There is no udev: devtmpfs makes the
// devices, and the kernel tells the partitions' names in sysfs.
const osTinyInit = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do insmod /modules/$m.ko; done
tries=0
while [ $tries -lt 100 ]; do
	for u in /sys/class/block/*/uevent; do
		if grep -qx PARTNAME=` + osTinyName + ` $u; then
			dev=$(sed -n s/^DEVNAME=//p $u)
			mount -t ext4 -o ro /dev/$dev /root && break 2
		fi
	done
	tries=$((tries + 1))
	sleep 0.1
done
umount /proc /sys
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
`

const osTinyInittab = `::sysinit:/etc/rc
ttyS0::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
`

// osTinyRC configures the machine as its config volume says, and reports.
const osTinyRC = `#!/bin/sh
export PATH=/sbin:/bin
say() {
	echo "recast-tiny: $*" >/dev/ttyS0
	echo "recast-tiny: $*" >/dev/tty0
}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /run/config
mount -t devpts devpts /dev/pts
for m in $(cat /lib/modules/order); do insmod /lib/modules/$m.ko; done
mount -t efivarfs efivarfs /sys/firmware/efi/efivars 2>/dev/null
acpid -c /etc/acpi -p /run/acpid.pid -l /run/acpid.log
firmware=bios
[ -d /sys/firmware/efi ] && firmware=uefi

# The config volume stands at the end of the disk under one of these names.
for u in /sys/class/block/*/uevent; do
	if grep -qixE 'PARTNAME=(CIDATA|RECAST)' $u; then
		dev=/dev/$(sed -n s/^DEVNAME=//p $u)
		mount -t vfat -o ro $dev /run/config 2>/dev/null || mount -t iso9660 -o ro $dev /run/config
		break
	fi
done
field() { # FILE KEY: the first string of that key in a flat JSON file
	sed -n "s/.*\"$2\"[[:space:]]*:[[:space:]]*\"\([^\"]*\)\".*/\1/p" $1 2>/dev/null | head -n 1
}
# Meta-data is YAML, or JSON, which is YAML too.
name=$(sed -n 's/^[{[:space:]]*"\{0,1\}local-hostname"\{0,1\}:[[:space:]]*"\{0,1\}\([^",}]*\).*/\1/p' /run/config/meta-data 2>/dev/null | head -n 1)
[ -n "$name" ] && hostname "$name"
machine=$(field /run/config/recast.json machine)
generation=$(field /run/config/recast.json generation)

say "machine=$machine generation=$generation hostname=$(hostname) variant=$(cat /etc/recast-variant) firmware=$firmware"

# User data that is a script is run, as cloud-init would.
[ -f /run/config/user-data ] && read -r first </run/config/user-data
case $first in '#!'*) sh /run/config/user-data >/dev/ttyS0 2>&1 ;; esac

ifconfig lo 127.0.0.1
# Where there is no DHCP, the address stands in the configuration.
static=$(sed -n 's,^ *addresses: \["\([0-9./]*\)"\]$,\1,p' /run/config/network-config 2>/dev/null | head -n 1)
gateway=$(sed -n 's,^ *- {to: "0.0.0.0/0"\, via: "\([0-9.]*\)"}$,\1,p' /run/config/network-config 2>/dev/null | head -n 1)
for i in /sys/class/net/eth*; do
	[ -e $i ] || continue
	ifconfig ${i##*/} up
	if [ -n "$static" ]; then
		busybox ip address add "$static" dev ${i##*/}
		[ -z "$gateway" ] || route add default gw "$gateway" dev ${i##*/}
		break
	fi
	udhcpc -i ${i##*/} -s /etc/udhcpc -t 8 -T 2 -n -x hostname:$(hostname) >/dev/null 2>&1 && break
done
address=$(ifconfig | sed -n 's/.*inet addr:\([0-9.]*\) .*/\1/p' | grep -v '^127' | head -n 1)

say "address=$address"
if [ -x /bin/recast-agent ] && [ -n "$generation" ]; then
	if recast-agent report --dir /run/config >/run/report.log 2>&1; then
		say "reported generation=$generation"
	else
		say "report failed: $(tail -n 1 /run/report.log)"
	fi
fi
`

const osTinyUDHCPC = `#!/bin/sh
case $1 in
deconfig) ifconfig $interface 0.0.0.0 ;;
bound | renew)
	ifconfig $interface $ip netmask $subnet
	for r in $router; do route add default gw $r dev $interface; done
	for d in $dns; do echo nameserver $d; done >/run/resolv.conf
	;;
esac
`

// A soft power-off is answered, as a real system answers it; at once, also while
// init still waits for the network, since a read-only system has nothing to save.
const osTinyPowerButton = "#!/bin/sh\nexec poweroff -f\n"

const osTinyGRUB = `set timeout=0
linux /boot/vmlinuz quiet panic=10 net.ifnames=0 console=tty0 console=ttyS0,115200
initrd /boot/initrd
boot
`

func osTinyInputs(o OSOptions, w io.Writer) error {
	if o.KernelDeb == "" {
		return errors.New("needs Debian's linux-image package as KernelDeb")
	}
	files := []string{o.KernelDeb, "/bin/busybox", "/usr/lib/grub/i386-pc/boot.img", "/usr/lib/grub/x86_64-efi/kernel.img"}
	if o.AgentBin != "" {
		files = append(files, o.AgentBin)
	}
	for _, f := range files {
		if err := osHashFile(w, f); err != nil {
			return fmt.Errorf("hash inputs: %w", err)
		}
	}
	if o.Signed {
		shim, grub, err := osSigned()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "signed %x %x\n", sha256.Sum256(shim), sha256.Sum256(grub))
	}
	if o.Verity {
		if err := osVerityInputs(context.Background(), w); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "%q\n", []string{osTinyInit, osTinyInittab, osTinyRC, osTinyUDHCPC, osTinyPowerButton, osTinyGRUB,
		strings.Join(osTinyBootModules, " "), strings.Join(osTinyModules, " ")})
	return nil
}

func osBuildTiny(ctx context.Context, o OSOptions, dir string) (osLayout, error) {
	kernel, err := osReadKernel(ctx, o.KernelDeb)
	if err != nil {
		return osLayout{}, err
	}
	bootModules, init := osTinyBootModules, osTinyInit
	if o.Verity {
		bootModules, init = osVerityModules, osVerityInit
	}
	boot, err := kernel.closure(bootModules)
	if err != nil {
		return osLayout{}, err
	}
	all, err := kernel.closure(append(slices.Clone(bootModules), osTinyModules...))
	if err != nil {
		return osLayout{}, err
	}
	rest := all[len(boot):] // the closure of a longer list begins with that of its beginning
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return osLayout{}, err
	}

	initrd := osTree{}
	for _, d := range []string{"proc", "sys", "dev", "root", "bin", "modules"} {
		initrd.dir(d)
	}
	initrd.file("bin/busybox", 0o755, busybox)
	for _, applet := range []string{"sh", "mount", "umount", "insmod", "cat", "grep", "sed", "sleep", "switch_root"} {
		initrd.link("bin/"+applet, "busybox")
	}
	initrd.file("init", 0o755, []byte(init))
	if o.Verity {
		if err := initrd.addVeritysetup(ctx); err != nil {
			return osLayout{}, err
		}
	}
	initrd.file("modules/order", 0o644, []byte(strings.Join(boot, "\n")+"\n"))
	for _, m := range boot {
		initrd.file("modules/"+m+".ko", 0o644, kernel.modules[m].content)
	}
	packed, err := osGzip(initrd.cpio())
	if err != nil {
		return osLayout{}, err
	}

	root := osTree{}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "bin", "sbin", "etc/acpi", "lib/modules", "boot/grub", "root"} {
		root.dir(d)
	}
	root.file("bin/busybox", 0o755, busybox)
	for _, applet := range []string{"sh", "mount", "umount", "insmod", "cat", "grep", "sed", "head", "tail", "hostname",
		"mkdir", "ls", "dmesg", "ps", "ping", "wget", "dd", "hexdump", "sha256sum", "sync", "df", "free", "vi", "test", "[", "echo", "date", "stty"} {
		root.link("bin/"+applet, "busybox")
	}
	for _, applet := range []string{"init", "acpid", "ifconfig", "route", "udhcpc", "poweroff", "reboot", "halt", "blkid"} {
		root.link("sbin/"+applet, "../bin/busybox")
	}
	root.file("etc/inittab", 0o644, []byte(osTinyInittab))
	root.file("etc/rc", 0o755, []byte(osTinyRC))
	root.file("etc/udhcpc", 0o755, []byte(osTinyUDHCPC))
	root.file("etc/acpi/PWRF/00000080", 0o755, []byte(osTinyPowerButton))
	root.file("etc/recast-variant", 0o644, []byte(o.Variant+"\n"))
	root.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	root.file("etc/group", 0o644, []byte("root:x:0:\n"))
	root.link("etc/resolv.conf", "../run/resolv.conf")
	root.file("lib/modules/order", 0o644, []byte(strings.Join(rest, "\n")+"\n"))
	for _, m := range rest {
		root.file("lib/modules/"+m+".ko", 0o644, kernel.modules[m].content)
	}
	if !o.Verity {
		root.file("boot/vmlinuz", 0o644, kernel.vmlinuz)
		root.file("boot/initrd", 0o644, packed)
		root.file("boot/grub/grub.cfg", 0o644, []byte(osTinyGRUB))
	}
	if o.AgentBin != "" {
		agent, err := os.ReadFile(o.AgentBin)
		if err != nil {
			return osLayout{}, err
		}
		root.file("bin/recast-agent", 0o755, agent)
	}
	if o.Verity {
		root.file(osVerityProbe, 0o644, osVerityProbeText())
	}
	tree := filepath.Join(dir, "root")
	if err := root.write(tree); err != nil {
		return osLayout{}, err
	}
	// Read-only: what ext4 itself needs, its journal included, and little more.
	size := (root.size()*21/20/osMiB + 6) * osMiB
	l := osLayout{root: tree, rootSize: size, name: osTinyName, guid: "74696e790001", signed: o.Signed}
	if o.Verity {
		start := osTree{"vmlinuz": {osModeFile | 0o644, kernel.vmlinuz}, "initrd": {osModeFile | 0o644, packed}}
		start.dir("grub")
		l.boot, l.bootSize = filepath.Join(dir, "boot"), (start.size()*21/20/osMiB+6)*osMiB
		if err := start.write(l.boot); err != nil {
			return osLayout{}, err
		}
	}
	return l, nil
}

// osSigned gives Debian's shim and the GRUB that it starts, which are among the loaders.
func osSigned() (shim, grub []byte, err error) {
	loaders, err := ipxe.OpenLoaders()
	if err != nil {
		return nil, nil, err
	}
	if shim, err = fs.ReadFile(loaders, ipxe.LoaderShimAMD64); err == nil {
		grub, err = fs.ReadFile(loaders, ipxe.LoaderGRUBAMD64)
	}
	if err != nil {
		err = fmt.Errorf("read the signed loaders (make setup): %w", err)
	}
	return shim, grub, err
}

// osKernel is what tiny takes from a linux-image package.
type osKernel struct {
	vmlinuz []byte
	modules map[string]*osModule
}

type osModule struct {
	content []byte
	needs   []string // depends, and the softdeps that must be loaded before
}

// osModuleDirs hold what tiny may need; the rest of the package's 400 MB is skipped.
var osModuleDirs = []string{"arch/x86/crypto", "block", "crypto", "drivers/acpi", "drivers/ata", "drivers/block", "drivers/cdrom",
	"drivers/input", "drivers/net", "drivers/net/ethernet/intel/e1000", "drivers/net/ethernet/intel/e1000e",
	"drivers/nvme/host", "drivers/nvme/common", "drivers/pps", "drivers/ptp", "drivers/scsi", "drivers/virtio",
	"drivers/md", "fs", "fs/ext4", "fs/efivarfs", "fs/fat", "fs/isofs", "fs/jbd2", "fs/nls", "lib", "lib/reed_solomon", "net/core"}

func osReadKernel(ctx context.Context, deb string) (*osKernel, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	k, err := osReadKernelTar(out)
	if err != nil {
		cancel()
		_ = cmd.Wait()
		return nil, fmt.Errorf("unpack kernel %q: %w", filepath.Base(deb), err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("unpack kernel %q: %w", filepath.Base(deb), err)
	}
	return k, nil
}

func osReadKernelTar(r io.Reader) (*osKernel, error) {
	k := &osKernel{modules: map[string]*osModule{}}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		if strings.HasPrefix(name, "boot/vmlinuz-") {
			if k.vmlinuz, err = io.ReadAll(t); err != nil {
				return nil, err
			}
			continue
		}
		_, inTree, ok := strings.Cut(name, "/kernel/")
		if !ok || path.Ext(name) != ".ko" || !slices.Contains(osModuleDirs, path.Dir(inTree)) {
			continue
		}
		m := &osModule{}
		if m.content, err = io.ReadAll(t); err != nil {
			return nil, err
		}
		if m.needs, err = osModuleNeeds(m.content); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Base(name), err)
		}
		k.modules[osModuleName(strings.TrimSuffix(path.Base(name), ".ko"))] = m
	}
	if k.vmlinuz == nil || len(k.modules) == 0 {
		return nil, errors.New("no kernel or no modules in it: is this a linux-image package?")
	}
	return k, nil
}

// osModuleName: the kernel takes - and _ in names for the same.
func osModuleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// osModuleNeeds reads a module's .modinfo section: NUL-terminated key=value.
func osModuleNeeds(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			needs = append(needs, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			if pre, ok := strings.CutPrefix(value, "pre: "); ok {
				pre, _, _ = strings.Cut(pre, " post:")
				needs = append(needs, strings.Fields(pre)...)
			}
		}
	}
	for i := range needs {
		needs[i] = osModuleName(needs[i])
	}
	return needs, nil
}

// closure lists the modules and all they need, each after what it needs. A
// wanted module must exist; a needed one may be built in, or a name that is an
// alias (softdeps), and is left out then.
func (k *osKernel) closure(wanted []string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] || k.modules[name] == nil {
			return
		}
		seen[name] = true
		for _, n := range k.modules[name].needs {
			visit(n)
		}
		order = append(order, name)
	}
	for _, name := range wanted {
		if k.modules[name] == nil {
			return nil, fmt.Errorf("find kernel module %q: it is not in the package", name)
		}
		visit(name)
	}
	return order, nil
}

// osTree is a small file tree, all of it owned by root.
type osTree map[string]osFile

type osFile struct {
	mode    uint32 // with the type bits
	content []byte // of a link: its target
}

const (
	osModeDir  = 0o040000
	osModeFile = 0o100000
	osModeLink = 0o120000
)

func (t osTree) dir(name string) {
	for ; name != "." && name != "/"; name = path.Dir(name) {
		t[name] = osFile{mode: osModeDir | 0o755}
	}
}

func (t osTree) file(name string, mode uint32, content []byte) {
	t.dir(path.Dir(name))
	t[name] = osFile{mode: osModeFile | mode, content: content}
}

func (t osTree) link(name, target string) {
	t.dir(path.Dir(name))
	t[name] = osFile{mode: osModeLink | 0o777, content: []byte(target)}
}

func (t osTree) names() []string {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare[string]) // a folder before what is in it
	return names
}

func (t osTree) size() (bytes int64) {
	for _, f := range t {
		bytes += (int64(len(f.content))+4095)&^4095 + 256
	}
	return bytes
}

// cpio packs the tree as the kernel unpacks it ("newc", the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
func (t osTree) cpio() []byte {
	var b bytes.Buffer
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	entry := func(ino int, name string, f osFile) {
		links := 1
		if f.mode&0o170000 == osModeDir {
			links = 2
		}
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			ino, f.mode, 0, 0, links, osEpoch, len(f.content), 0, 0, 0, 0, len(name)+1, 0, name)
		pad()
		b.Write(f.content)
		pad()
	}
	for i, name := range t.names() {
		entry(i+1, name, t[name])
	}
	entry(0, "TRAILER!!!", osFile{})
	return b.Bytes()
}

// write lays the tree out as files.
func (t osTree) write(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, name := range t.names() {
		f, to := t[name], filepath.Join(dir, name)
		var err error
		switch f.mode & 0o170000 {
		case osModeDir:
			err = os.Mkdir(to, 0o755)
		case osModeLink:
			err = os.Symlink(string(f.content), to)
		default:
			err = os.WriteFile(to, f.content, os.FileMode(f.mode&0o777))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func osGzip(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
