package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// osLayout is what goes onto a disk image: one root tree with kernel, ramdisk
// and GRUB's menu under /boot. Around it write puts a GPT with GRUB for BIOS, an
// EFI system partition with GRUB for UEFI, and the root partition last, so that
// a system may grow into the space behind the image.
type osLayout struct {
	root     string // folder
	rootSize int64  // bytes, a multiple of 1 MiB
	name     string // GPT name of the root partition, and its label
	guid     string // the last group of all UUIDs: 12 hex digits
	signed   bool   // with the loaders that Debian signed

	boot     string // folder of a partition of its own for what is under /boot, where dm-verity protects the root; "" there is none
	bootSize int64  // likewise
}

const (
	osMiB    = 1 << 20
	osSector = 512
	// Partition 1, for GRUB's core; partition 2, the EFI system partition.
	osBIOSStart, osBIOSSize = 1 * osMiB, 1 * osMiB
	osESPStart, osESPSize   = 2 * osMiB, 6 * osMiB
	osRootStart             = osESPStart + osESPSize
)

// osGRUBPrefix is relative to the disk that the firmware started: the root
// partition beside the one that GRUB came from, whatever other disks hold.
const osGRUBPrefix = "(,gpt3)/boot/grub"

func (l osLayout) grubPrefix() string {
	if l.boot != "" {
		return "(,gpt4)/grub"
	}
	return osGRUBPrefix
}

func (l osLayout) uuid(n int) string { return fmt.Sprintf("7265636a-7374-4000-8%03d-%s", n, l.guid) }

func (l osLayout) rootUUID() string { return l.uuid(4) }

// write makes the image file. Neither loop devices nor grub-install are needed,
// and the same tree gives the same bytes.
func (l osLayout) write(ctx context.Context, dir, image string) error {
	// One MiB is left at the end, as at the beginning, for the partition tables:
	// who writes the image can leave both for last.
	size := osRootStart + l.rootSize + osMiB
	bootAt, treeAt, treeSize, end := l.verityLayout()
	if l.boot != "" {
		size = end + osMiB
	}
	if err := os.WriteFile(image, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	part := func(n int, start, size int64, kind, name string) []string {
		return []string{
			fmt.Sprintf("--new=%d:%d:%d", n, start/osSector, (start+size)/osSector-1),
			fmt.Sprintf("--typecode=%d:%s", n, kind), fmt.Sprintf("--change-name=%d:%s", n, name),
			fmt.Sprintf("--partition-guid=%d:%s", n, l.uuid(n)),
		}
	}
	args := []string{"--set-alignment=2048", "--disk-guid=" + l.uuid(0)}
	args = append(args, part(1, osBIOSStart, osBIOSSize, "EF02", "BIOS boot")...)
	args = append(args, part(2, osESPStart, osESPSize, "EF00", "EFI system")...)
	args = append(args, part(3, osRootStart, l.rootSize, "8300", l.name)...)
	if l.boot != "" {
		args = append(args, part(4, bootAt, l.bootSize, "8300", osVerityBoot)...)
		args = append(args, part(5, treeAt, treeSize, "8300", osVerityTree)...)
	}
	if err := osRun(ctx, "sgdisk", append(args, image)...); err != nil {
		return err
	}
	if err := l.writeExt(ctx, image, l.root, l.name, 4, osRootStart, l.rootSize); err != nil {
		return err
	}
	if l.boot != "" {
		if err := l.writeVerity(ctx, dir, image); err != nil {
			return err
		}
	}
	if err := l.writeBIOS(ctx, dir, image); err != nil {
		return err
	}
	return l.writeESP(ctx, dir, image)
}

// writeExt puts a folder into a partition, whose UUID is that of the number and whose hash
// seed is the next.
func (l osLayout) writeExt(ctx context.Context, image, folder, label string, id int, start, size int64) error {
	// GRUB 2.06 cannot read the newest features of ext4.
	err := osRun(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "1", "-L", label, "-U", l.uuid(id),
		"-O", "^metadata_csum_seed,^orphan_file",
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0", start, l.uuid(id+1)),
		"-d", folder, image, fmt.Sprintf("%dk", size/1024))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := osPinTimes(osOffsetFile{f, start}, osEpoch); err != nil {
		return fmt.Errorf("pin the times in the file system %s: %w", label, err)
	}
	return f.Close()
}

// writeBIOS installs GRUB for BIOS: its first sector in the MBR, its core in
// partition 1.
func (l osLayout) writeBIOS(ctx context.Context, dir, image string) error {
	path := filepath.Join(dir, "core.img")
	if err := osRun(ctx, "grub-mkimage", "-O", "i386-pc", "-o", path, "-p", l.grubPrefix(),
		"biosdisk", "part_gpt", "ext2", "normal", "linux", "configfile", "echo", "sleep", "reboot"); err != nil {
		return err
	}
	core, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/usr/lib/grub/i386-pc/boot.img")
	if err != nil {
		return err
	}
	if err := osPatchGRUB(boot, core, osBIOSStart/osSector); err != nil {
		return err
	}
	if len(core) > osBIOSSize {
		return fmt.Errorf("install GRUB: its core has %d bytes, the partition %d", len(core), osBIOSSize)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// 440 bytes of code; behind them stand the disk's signature and the protective MBR.
	if _, err := f.WriteAt(boot[:440], 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(core, osBIOSStart); err != nil {
		return err
	}
	return f.Close()
}

// osPatchGRUB tells boot.img where the core starts, and the core's first sector
// where the rest of it is: what grub-install does (GRUB's boot.S and diskboot.S).
func osPatchGRUB(boot, core []byte, lba uint64) error {
	if len(boot) < 440 || len(core) < 2*osSector {
		return errors.New("install GRUB: boot.img or core.img is too short")
	}
	binary.LittleEndian.PutUint64(boot[0x5c:], lba)
	boot[0x66], boot[0x67] = 0x90, 0x90 // trust the drive number that the BIOS hands over
	binary.LittleEndian.PutUint64(core[0x1f4:], lba+1)
	binary.LittleEndian.PutUint16(core[0x1fc:], uint16((len(core)-1)/osSector))
	return nil
}

// writeESP puts GRUB for UEFI where firmware looks without a boot entry.
func (l osLayout) writeESP(ctx context.Context, dir, image string) error {
	loader := filepath.Join(dir, "BOOTX64.EFI")
	if l.signed {
		return l.writeSigned(ctx, dir, image)
	}
	if err := osRun(ctx, "grub-mkimage", "-O", "x86_64-efi", "-o", loader, "-p", l.grubPrefix(),
		"part_gpt", "ext2", "fat", "normal", "linux", "configfile", "echo", "sleep", "reboot"); err != nil {
		return err
	}
	esp, err := formatESP(ctx, image)
	if err != nil {
		return err
	}
	return osRun(ctx, "mcopy", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI")
}

// formatESP gives the partition as mtools name it.
func formatESP(ctx context.Context, image string) (esp string, err error) {
	esp = fmt.Sprintf("%s@@%d", image, osESPStart)
	if err := osRun(ctx, "mformat", "-i", esp, "-v", "EFI", "-N", "7265636a",
		"-T", fmt.Sprint(osESPSize/osSector), "-h", "16", "-s", "63", "-H", fmt.Sprint(osESPStart/osSector), "::"); err != nil {
		return "", err
	}
	return esp, osRun(ctx, "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
}

// writeSigned puts shim where firmware looks without a boot entry, and beside it the
// GRUB that it starts. That one is made for the network, and looks for its menu in
// /grub of where it came from.
func (l osLayout) writeSigned(ctx context.Context, dir, image string) error {
	shim, grub, err := osSigned()
	if err != nil {
		return err
	}
	esp, err := formatESP(ctx, image)
	if err != nil {
		return err
	}
	if err := osRun(ctx, "mmd", "-i", esp, "::/grub"); err != nil {
		return err
	}
	menu := fmt.Sprintf("search --no-floppy --fs-uuid --set=root %s\nconfigfile /boot/grub/grub.cfg\n", l.rootUUID())
	for _, f := range []struct {
		name string
		data []byte
	}{{"EFI/BOOT/BOOTX64.EFI", shim}, {"EFI/BOOT/grubx64.efi", grub}, {"grub/grub.cfg", []byte(menu)}} {
		from := filepath.Join(dir, filepath.Base(f.name))
		if err := os.WriteFile(from, f.data, 0o644); err != nil {
			return err
		}
		if err := osRun(ctx, "mcopy", "-i", esp, from, "::/"+f.name); err != nil {
			return err
		}
	}
	return nil
}

// osOffsetFile is a part of a file, from an offset to the end.
type osOffsetFile struct {
	f      *os.File
	offset int64
}

func (o osOffsetFile) ReadAt(p []byte, off int64) (int, error)  { return o.f.ReadAt(p, o.offset+off) }
func (o osOffsetFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, o.offset+off) }

// osPinTimes sets the times of every inode of a fresh ext4 to its modification
// time, and that to at most epoch. mkfs.ext4 -d copies the change times of the
// files it packs, which nobody can set, so that no two runs give the same bytes.
//
// The layout is that of the kernel's Documentation/filesystems/ext4.
func osPinTimes(fs interface {
	io.ReaderAt
	io.WriterAt
}, epoch uint32) error {
	le := binary.LittleEndian
	sb := make([]byte, 1024)
	if _, err := fs.ReadAt(sb, 1024); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	if le.Uint16(sb[0x38:]) != 0xef53 {
		return errors.New("no ext4 superblock")
	}
	var (
		blockSize      = int64(1024) << le.Uint32(sb[0x18:])
		firstBlock     = int64(le.Uint32(sb[0x14:]))
		blocks         = int64(le.Uint32(sb[0x4:]))
		blocksPerGroup = int64(le.Uint32(sb[0x20:]))
		inodesPerGroup = int(le.Uint32(sb[0x28:]))
		inodeSize      = int(le.Uint16(sb[0x58:]))
		incompat       = le.Uint32(sb[0x60:])
		roCompat       = le.Uint32(sb[0x64:])
		descSize       = 32
		table          = crc32.MakeTable(crc32.Castagnoli)
	)
	if incompat&0x80 != 0 { // 64bit
		descSize = int(le.Uint16(sb[0xfe:]))
	}
	if inodeSize < 256 || blocksPerGroup == 0 {
		return fmt.Errorf("inodes of %d bytes, %d blocks per group: not what mkfs.ext4 makes by default", inodeSize, blocksPerGroup)
	}
	// ext4's CRC32C is the plain register: neither the start value nor the end is inverted.
	crc := func(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, table, p) }
	seed := crc(^uint32(0), sb[0x68:0x78])
	sums := roCompat&0x400 != 0 // metadata_csum

	groups := int((blocks - firstBlock + blocksPerGroup - 1) / blocksPerGroup)
	desc := make([]byte, groups*descSize)
	if _, err := fs.ReadAt(desc, (firstBlock+1)*blockSize); err != nil {
		return fmt.Errorf("read group descriptors: %w", err)
	}
	inodes := make([]byte, inodesPerGroup*inodeSize)
	for g := range groups {
		d := desc[g*descSize:]
		if le.Uint16(d[0x12:])&1 != 0 { // INODE_UNINIT
			continue
		}
		at := int64(le.Uint32(d[0x8:]))
		if descSize >= 64 {
			at |= int64(le.Uint32(d[0x28:])) << 32
		}
		if _, err := fs.ReadAt(inodes, at*blockSize); err != nil {
			return fmt.Errorf("read inodes of group %d: %w", g, err)
		}
		for i := range inodesPerGroup {
			inode := inodes[i*inodeSize : (i+1)*inodeSize]
			if le.Uint16(inode[0x1a:]) == 0 && le.Uint32(inode[0x10:]) == 0 { // no links, never used
				continue
			}
			mtime := min(le.Uint32(inode[0x10:]), epoch)
			for _, field := range []int{0x8, 0xc, 0x10} { // access, change, modification
				le.PutUint32(inode[field:], mtime)
			}
			// Reserved inodes may go without the fields behind the first 128 bytes.
			extra := le.Uint16(inode[0x80:])
			if extra >= 0x18 {
				le.PutUint32(inode[0x90:], mtime)                     // creation
				for _, field := range []int{0x84, 0x88, 0x8c, 0x94} { // nanoseconds of all four
					le.PutUint32(inode[field:], 0)
				}
			}
			if !sums {
				continue
			}
			le.PutUint16(inode[0x7c:], 0)
			if extra >= 4 {
				le.PutUint16(inode[0x82:], 0)
			}
			head := make([]byte, 4)
			le.PutUint32(head, uint32(g*inodesPerGroup+i+1))
			sum := crc(crc(crc(seed, head), inode[0x64:0x68]), inode)
			le.PutUint16(inode[0x7c:], uint16(sum))
			if extra >= 4 {
				le.PutUint16(inode[0x82:], uint16(sum>>16))
			}
		}
		if _, err := fs.WriteAt(inodes, at*blockSize); err != nil {
			return fmt.Errorf("write inodes of group %d: %w", g, err)
		}
	}
	return nil
}
