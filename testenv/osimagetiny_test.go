package testenv

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// osModuleForTest is the smallest ELF file with a .modinfo section.
func osModuleForTest(info string) []byte {
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	head := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Shoff: uint64(64 + len(info) + len(names)), Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
	}
	_ = binary.Write(&b, binary.LittleEndian, head)
	b.WriteString(info + names)
	for _, s := range []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(info)), Addralign: 1},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(info)), Size: uint64(len(names)), Addralign: 1},
	} {
		_ = binary.Write(&b, binary.LittleEndian, s)
	}
	return b.Bytes()
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	const dir = "./lib/modules/6.1.0-1-amd64/kernel/"
	add("./boot/vmlinuz-6.1.0-1-amd64", []byte("kernel"))
	add(dir+"fs/ext4/ext4.ko", osModuleForTest("license=GPL\x00depends=jbd2,crc16\x00softdep=pre: crc32c post: never\x00"))
	add(dir+"fs/jbd2/jbd2.ko", osModuleForTest("depends=\x00"))
	add(dir+"lib/crc16.ko", osModuleForTest("depends=\x00"))
	add(dir+"drivers/nvme/host/nvme-core.ko", osModuleForTest("depends=\x00"))
	add(dir+"drivers/nvme/host/nvme.ko", osModuleForTest("depends=nvme-core\x00"))
	add(dir+"sound/noise.ko", []byte("never read"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	k, err := osReadKernelTar(&b)
	if err != nil {
		t.Fatal(err)
	}
	if string(k.vmlinuz) != "kernel" {
		t.Errorf("kernel %q", k.vmlinuz)
	}
	got, err := k.closure([]string{"ext4", "nvme"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"jbd2", "crc16", "ext4", "nvme_core", "nvme"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if _, err := k.closure([]string{"noise"}); err == nil {
		t.Error("a wanted module that is not there: no error")
	}
}

func FuzzModuleNeeds(f *testing.F) {
	f.Add(osModuleForTest("depends=a,b-c\x00softdep=pre: d e post: f\x00"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		needs, _ := osModuleNeeds(data)
		for _, n := range needs {
			if strings.ContainsAny(n, "-,\x00") {
				t.Errorf("name %q", n)
			}
		}
	})
}

func TestCPIOIsWhatCPIOReads(t *testing.T) {
	tool, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("needs cpio (apt-get install cpio)")
	}
	tree := osTree{}
	tree.file("bin/busybox", 0o755, []byte("odd"))
	tree.link("bin/sh", "busybox")
	tree.file("init", 0o755, []byte("#!/bin/sh\n"))
	dir := t.TempDir()
	cmd := exec.Command(tool, "--quiet", "-idm", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(tree.cpio())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "bin/sh")) // through the link
	if err != nil || string(data) != "odd" {
		t.Errorf("bin/sh: %q, %v", data, err)
	}
	info, err := os.Stat(filepath.Join(dir, "init"))
	if err != nil || info.Mode().Perm() != 0o755 || info.ModTime().Unix() != osEpoch {
		t.Errorf("init: %v, %v", info, err)
	}
}
