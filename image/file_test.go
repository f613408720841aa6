package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"recast/inventory"
)

// fileAt is where the volume lies in a test's image.
const fileAt = 1 << 20

// fileTree is what the volumes of a test hold: one file in many blocks, with a hole.
func fileTree(t *testing.T) (dir string, kernel []byte) {
	t.Helper()
	dir = t.TempDir()
	r := rand.NewChaCha8([32]byte{1})
	kernel = make([]byte, 3<<20+777)
	_, _ = r.Read(kernel)
	clear(kernel[1<<20 : 1<<20+300<<10])
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "boot"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "many"), 0o755))
	for i := range 900 { // a folder of more than one block, with a hash tree
		must(os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("a file with a rather long name %04d", i)), []byte{byte(i)}, 0o644))
	}
	must(os.WriteFile(filepath.Join(dir, "boot", "vmlinuz-6.1.0-50-amd64"), kernel, 0o644))
	must(os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644))
	for name, to := range map[string]string{
		"vmlinuz":     "boot/vmlinuz-6.1.0-50-amd64",
		"absolute":    "/boot/vmlinuz-6.1.0-50-amd64",
		"boot/up":     "../../../vmlinuz",
		"boot/slow":   "./" + strings.Repeat("../boot/", 20) + "vmlinuz-6.1.0-50-amd64", // too long for its inode
		"round":       "round",
		"boot/long":   strings.Repeat("../boot/", 100) + "longer",
		"boot/longer": strings.Repeat("../boot/", 100) + "vmlinuz-6.1.0-50-amd64",
		"boot/gone":   "nowhere",
		"boot/etc":    "/etc/passwd",
		"bootfolder":  "boot",
	} {
		must(os.Symlink(to, filepath.Join(dir, name)))
	}
	return dir, kernel
}

// fileVolume makes a volume with a program and gives it as a part of an image.
func fileVolume(t testing.TB, size int64, program string, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	tool, err := exec.LookPath(program)
	if err != nil {
		if tool, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			t.Skipf("needs %s (make setup)", program)
		}
	}
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "VOLUME", path)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, fileAt), b...)
}

func TestFilesAreFoundInTheFileSystemsOfAnImage(t *testing.T) {
	dir, kernel := fileTree(t)
	const size = 16 << 20
	for name, args := range map[string][]string{
		"ext4":                     {"-t", "ext4"},
		"ext4 of 1 KiB blocks":     {"-t", "ext4", "-b", "1024"},
		"ext4 without checksums":   {"-t", "ext4", "-O", "^metadata_csum,^64bit"},
		"ext3":                     {"-t", "ext3"},
		"ext2 of 1 KiB blocks":     {"-t", "ext2", "-b", "1024"},
		"ext2 without types":       {"-t", "ext2", "-O", "^filetype"},
		"ext4 as a root is formed": {"-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file", "-b", "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			img := fileVolume(t, size, "mke2fs", append(args, "-q", "-F", "-d", dir, "VOLUME")...)
			for _, path := range []string{"/vmlinuz", "/absolute", "/boot/up", "/boot/slow", "/../boot/vmlinuz-6.1.0-50-amd64", "/bootfolder/vmlinuz-6.1.0-50-amd64"} {
				f, err := findFile(bytes.NewReader(img), fileAt, int64(len(img)), path)
				if err != nil {
					t.Errorf("%s: %v", path, err)
					continue
				}
				fileIs(t, img, f, kernel)
			}
			f, err := findFile(bytes.NewReader(img), fileAt, int64(len(img)), "/many/a file with a rather long name 0777")
			if err != nil {
				t.Fatal(err)
			}
			fileIs(t, img, f, []byte{777 % 256})
			for path, want := range map[string]string{
				"/boot":                      "is no file",
				"/empty":                     "is empty",
				"/round":                     "more than 16 links",
				"/boot/long":                 "more than 256 names on the way",
				"/boot/gone":                 `"nowhere" is missing`,
				"/boot/etc":                  `"etc" is missing`, // and not the one of this machine
				"/vmlinuz/x":                 `"x" is not in a folder`,
				"/boot/vmlinuz-6.1.0-50-amd": "is missing",
			} {
				if _, err := findFile(bytes.NewReader(img), fileAt, int64(len(img)), path); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", path, err, want)
				}
			}
		})
	}
	for name, size := range map[string]int64{"FAT12": 8 << 20, "FAT16": 40 << 20, "FAT32": 80 << 20} {
		t.Run(name, func(t *testing.T) {
			mkfs := fileVolume(t, size, "mkfs.vfat", append(map[string][]string{"FAT32": {"-F", "32"}, "FAT16": {"-F", "16"}, "FAT12": {"-F", "12", "-s", "8"}}[name], "VOLUME")...)
			path := filepath.Join(t.TempDir(), "volume")
			if err := os.WriteFile(path, mkfs[fileAt:], 0o644); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{
				{"mmd", "-i", path, "::/EFI", "::/EFI/Linux"},
				{"mcopy", "-i", path, filepath.Join(dir, "boot", "vmlinuz-6.1.0-50-amd64"), "::/EFI/Linux/vmlinuz-6.1.0-50-amd64"},
				{"mcopy", "-i", path, filepath.Join(dir, "boot", "vmlinuz-6.1.0-50-amd64"), "::/KERNEL.IMG"},
			} {
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
					t.Skipf("needs %s (make setup)", args[0])
				} else if err != nil {
					t.Fatalf("%q: %v: %s", args, err, out)
				}
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			img := append(make([]byte, fileAt), b...)
			for _, path := range []string{"/EFI/Linux/vmlinuz-6.1.0-50-amd64", "/efi/linux/VMLINUZ-6.1.0-50-AMD64", "/kernel.img"} {
				f, err := findFile(bytes.NewReader(img), fileAt, int64(len(img)), path)
				if err != nil {
					t.Errorf("%s: %v", path, err)
					continue
				}
				fileIs(t, img, f, kernel)
			}
			for path, want := range map[string]string{"/EFI": "is no file", "/EFI/none": "is missing", "/kernel.img/x": "is not in a folder"} {
				if _, err := findFile(bytes.NewReader(img), fileAt, int64(len(img)), path); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", path, err, want)
				}
			}
		})
	}
}

func fileIs(t *testing.T, img []byte, f inventory.DiskFile, want []byte) {
	t.Helper()
	var b bytes.Buffer
	if _, err := f.Copy(&b, bytes.NewReader(img)); err != nil || !bytes.Equal(b.Bytes(), want) || f.Size != int64(len(want)) || f.Digest != inventory.DigestOf(want) {
		t.Errorf("%s: %d bytes of %d, digest %s, %v", f.Path, b.Len(), len(want), f.Digest, err)
	}
	for _, e := range f.Extents {
		if e.Start != inventory.ZeroExtent && e.Start < fileAt {
			t.Errorf("%s: a piece at %d lies outside its volume", f.Path, e.Start)
		}
	}
}

func TestWhatHoldsNoFilesIsNamed(t *testing.T) {
	volume := func(at int, magic string) []byte {
		b := make([]byte, 1<<20)
		copy(b[at:], magic)
		return b
	}
	dirty := fileVolume(t, 8<<20, "mke2fs", "-q", "-F", "-t", "ext4", "VOLUME")[fileAt:]
	dirty[1024+0x60] |= extRecover
	for want, b := range map[string][]byte{
		"it holds XFS":                   volume(0, "XFSB"),
		"it holds btrfs":                 volume(65600, "_BHRfS_M"),
		"it holds squashfs":              volume(0, "hsqs"),
		"it is encrypted":                volume(0, "LUKS\xba\xbe"),
		"no file system":                 volume(0, ""),
		"was not unmounted cleanly":      dirty,
		"it holds no file system that r": volume(510, "\x55\xaa"),
	} {
		if _, err := findFile(bytes.NewReader(b), 0, int64(len(b)), "/vmlinuz"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// reads counts, and refuses more than a file that is there can need.
type reads struct {
	r    io.ReaderAt
	left int
}

func (r *reads) ReadAt(b []byte, off int64) (int, error) {
	if r.left--; r.left < 0 {
		return 0, errors.New("the test's reader is used up")
	}
	return r.r.ReadAt(b, off)
}

// Four levels of index nodes, each of whose entries names the same node below, and a
// leaf without an extent: 340 to the fourth reads, of five blocks.
func TestAnExtentTreeThatSharesItsNodesIsRefused(t *testing.T) {
	const block = 4096
	le := binary.LittleEndian
	b := make([]byte, 8*block)
	fill := func(at []byte, level, below int) {
		n := (len(at) - 12) / 12
		le.PutUint16(at, 0xf30a)
		le.PutUint16(at[6:], uint16(level))
		if level == 0 {
			return
		}
		le.PutUint16(at[2:], uint16(n))
		for i := range n {
			le.PutUint32(at[12+12*i+4:], uint32(below))
		}
	}
	for level := range 5 {
		fill(b[(level+1)*block:][:block], level, level)
	}
	root := make([]byte, 60)
	fill(root, 5, 5)
	v := &ext{r: &reads{bytes.NewReader(b), 1 << 20}, block: block, blocks: 8}
	raw := make([]byte, 128)
	le.PutUint32(raw[0x20:], extInodeExtents)
	copy(raw[0x28:], root)
	if _, err := v.extents(node{kind: nodeFile, size: block, raw: raw}); err == nil || !strings.Contains(err.Error(), "too many pieces") {
		t.Errorf("%v", err)
	}
}

// A partition of three sectors has room for the magic number, and for no superblock.
func TestAVolumeThatEndsInItsSuperblockIsNone(t *testing.T) {
	for _, size := range []int{512, 1082, 1536, 2047} {
		b := make([]byte, size)
		if size > 1080 {
			copy(b[1080:], "\x53\xef")
		}
		if _, err := findFile(bytes.NewReader(b), 0, int64(size), "/vmlinuz"); err == nil || !strings.Contains(err.Error(), "no file system") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// What is found of any volume lies in it, and to look for it ends.
func FuzzFindFile(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), bytes.Repeat([]byte("kernel"), 500), 0o644); err != nil {
		f.Fatal(err)
	}
	for _, kind := range []string{"ext2", "ext4"} {
		f.Add(fileVolume(f, 256<<10, "mke2fs", "-q", "-F", "-t", kind, "-O", "^has_journal", "-b", "1024", "-N", "16", "-d", dir, "VOLUME")[fileAt:])
	}
	f.Add(fileVolume(f, 64<<10, "mkfs.vfat", "-F", "12", "VOLUME")[fileAt:])
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := openVolume(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		n, err := walk(v, "/vmlinuz")
		if err != nil || n.kind != nodeFile || n.size > maxFile {
			return
		}
		list, err := cut(v, n)
		if err != nil {
			return
		}
		left := n.size
		for _, e := range list {
			left -= e.Length
			if e.Length <= 0 || e.Start != inventory.ZeroExtent && (e.Start < 0 || e.Start+e.Length > int64(len(b))) {
				t.Errorf("a piece at %d of %d bytes, the volume has %d", e.Start, e.Length, len(b))
			}
		}
		if left != 0 {
			t.Errorf("%d bytes have no piece", left)
		}
	})
}

// Whatever stands on a volume, looking for a file ends, and what it gives lies in it.
func TestADamagedFileSystemIsAnError(t *testing.T) {
	dir, _ := fileTree(t)
	volumes := [][]byte{
		fileVolume(t, 16<<20, "mke2fs", "-t", "ext4", "-q", "-F", "-d", dir, "VOLUME"),
		fileVolume(t, 16<<20, "mke2fs", "-t", "ext2", "-b", "1024", "-q", "-F", "-d", dir, "VOLUME"),
	}
	for _, img := range volumes {
		// Where anything stands before the files themselves.
		var at []int
		for i := fileAt; i < fileAt+3<<20; i++ {
			if img[i] != 0 {
				at = append(at, i)
			}
		}
		found, refused := 0, 0
		for seed := range uint64(300) {
			r := rand.New(rand.NewPCG(seed, 1))
			type flip struct {
				at  int
				bit byte
			}
			var flips []flip
			for range 1 + r.IntN(200) {
				flips = append(flips, flip{at[r.IntN(min(len(at), 4000+r.IntN(len(at))))], byte(1 << r.IntN(8))})
				img[flips[len(flips)-1].at] ^= flips[len(flips)-1].bit
			}
			f, err := findFile(bytes.NewReader(img), fileAt, int64(len(img)), "/boot/up")
			if err != nil {
				refused++
			} else if found++; f.Size > maxFile {
				t.Errorf("seed %d: a file of %d bytes", seed, f.Size)
			} else if _, err := f.Copy(io.Discard, bytes.NewReader(img)); err != nil {
				t.Errorf("seed %d: what was found cannot be read: %v", seed, err)
			}
			for _, f := range flips {
				img[f.at] ^= f.bit
			}
		}
		if found == 0 || refused == 0 {
			t.Errorf("%d found, %d refused", found, refused)
		}
	}
}
