package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"recast/inventory"
)

// ko makes the least kernel object that has a .modinfo.
func ko(modinfo ...string) []byte {
	info := []byte(strings.Join(modinfo, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	le := binary.LittleEndian
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)  // relocatable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	infoAt := len(b)
	b = append(b, info...)
	namesAt := len(b)
	b = append(b, names...)
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	for _, s := range []struct{ name, typ, at, size int }{{}, {1, 1, infoAt, len(info)}, {10, 3, namesAt, len(names)}} {
		h := make([]byte, 64)
		le.PutUint32(h, uint32(s.name))
		le.PutUint32(h[4:], uint32(s.typ))
		le.PutUint64(h[24:], uint64(s.at))
		le.PutUint64(h[32:], uint64(s.size))
		b = append(b, h...)
	}
	return b
}

// staticProgram makes the least ELF that looks like a static program.
func staticProgram(t testing.TB, machine uint16, interp bool) string {
	t.Helper()
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	le.PutUint16(b[52:], 64)
	if interp {
		le.PutUint64(b[32:], 64)
		le.PutUint16(b[54:], 56)
		le.PutUint16(b[56:], 1)
		h := make([]byte, 56)
		le.PutUint32(h, 3) // PT_INTERP
		b = append(b, h...)
	}
	name := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(name, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

type debFile struct {
	name string
	data []byte
}

// deb writes a package with the files, its data packed by pack.
func deb(t testing.TB, member string, squeeze func([]byte) []byte, files ...debFile) string {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	w.WriteHeader(&tar.Header{Name: "./lib/", Typeflag: tar.TypeDir, Mode: 0o755})
	for _, f := range files {
		w.WriteHeader(&tar.Header{Name: "./" + f.name, Typeflag: tar.TypeReg, Size: int64(len(f.data)), Mode: 0o644})
		w.Write(f.data)
	}
	w.Close()
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []debFile{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", []byte("odd")}, {member, squeeze(data.Bytes())}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 1700000000, 0, 0, "100644", len(m.data))
		b.Write(m.data)
		if len(m.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	name := filepath.Join(t.TempDir(), "linux-image.deb")
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

const tree = "lib/modules/6.9-test/"

func kernelFiles() []debFile {
	return []debFile{
		{"boot/vmlinuz-6.9-test", []byte("the kernel")},
		{"boot/config-6.9-test", []byte("# config\nCONFIG_RD_ZSTD=y\n")},
		{tree + "modules.builtin", []byte("kernel/lib/crc-core.ko\nkernel/fs/nls/nls_utf8.ko\n")},
		{tree + "kernel/net/card.ko", ko("name=card", "depends=bus-core,crc-core", "alias=pci:v00008086d*", "firmware=card/a.fw", "firmware=card/b.fw", "softdep=pre: phy sum post: late gone")},
		{tree + "kernel/net/bus-core.ko", ko("name=bus_core", "depends=")},
		{tree + "kernel/net/phy.ko", ko("name=phy", "softdep=post: card")},
		{tree + "kernel/net/late.ko", ko("name=late")},
		{tree + "kernel/crypto/sum-fast.ko", ko("name=sum_fast", "alias=sum", "alias=crypto-sum")},
		{tree + "kernel/crypto/sum-slow.ko", ko("name=sum_slow", "alias=sum")},
		{tree + "kernel/fs/vfat.ko", ko("name=vfat", "alias=fs-vfat")},
		{tree + "kernel/sound/noise.ko", ko("name=noise", "depends=not-there")},
	}
}

func arm64Kernel() []debFile {
	files := kernelFiles()
	files[1].data = append(files[1].data, "CONFIG_ARM64=y\n"...)
	return files
}

func plain(b []byte) []byte { return b }

// One folder holds the ramdisks of all architectures, and each is found by its own.
func TestRamdisksOfTwoArchitecturesShareAFolder(t *testing.T) {
	out := t.TempDir()
	for arch, o := range map[inventory.Arch]RamdiskOptions{
		inventory.AMD64: {KernelDeb: deb(t, "data.tar", plain, kernelFiles()...), Agent: staticProgram(t, 62, false)},
		inventory.ARM64: {KernelDeb: deb(t, "data.tar", plain, arm64Kernel()...), Agent: staticProgram(t, 183, false)},
	} {
		o.Out = out
		r, err := BuildRamdisk(t.Context(), o)
		if err != nil || r.Arch != arch || r.Unified {
			t.Fatalf("built %+v, %v; want %s", r, err, arch)
		}
	}
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		r, err := OpenRamdisk(out, arch)
		if kernel, initrd, _ := RamdiskNames(arch); err != nil || r.Arch != arch || r.Kernel.Name != kernel || r.Initrd.Name != initrd {
			t.Errorf("opened %+v, %v", r, err)
		}
	}
}

func TestRamdiskHoldsTheAgentAndWhatItsModulesNeed(t *testing.T) {
	firmware := t.TempDir()
	if err := os.MkdirAll(filepath.Join(firmware, "card"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(firmware, "card/b.fw.xz"), []byte("firmware b"), 0o644); err != nil {
		t.Fatal(err)
	}
	agent := staticProgram(t, 62, false)
	var first Ramdisk
	for name, file := range map[string]string{
		"plain": deb(t, "data.tar", plain, kernelFiles()...),
		"zstd":  deb(t, "data.tar.zst", func(b []byte) []byte { return zstded(t, b) }, kernelFiles()...),
		"xz":    deb(t, "data.tar.xz", func(b []byte) []byte { return xzed(t, b) }, kernelFiles()...),
		"gzip":  deb(t, "data.tar.gz", gzipped, kernelFiles()...),
	} {
		r, err := BuildRamdisk(context.Background(), RamdiskOptions{
			KernelDeb: file, Agent: agent, Modules: []string{"card", "vfat", "nls-utf8"}, FirmwareDir: firmware, Out: t.TempDir(),
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if first.Dir == "" {
			first = r
		}
		opened, err := OpenRamdisk(r.Dir, inventory.AMD64)
		if diff := cmp.Diff(r, opened); err != nil || diff != "" {
			t.Errorf("%s: opened (-want +got): %v\n%s", name, err, diff)
		}
		r.Dir = first.Dir
		if diff := cmp.Diff(first, r); diff != "" {
			t.Errorf("%s: built again (-want +got):\n%s", name, diff)
		}
	}
	want := Ramdisk{
		Dir: first.Dir, Arch: "amd64", KernelVersion: "6.9-test", Kernel: RamdiskFile{"vmlinuz", inventory.DigestOf([]byte("the kernel")), 10},
		Initrd: first.Initrd, Agent: first.Agent,
		Modules: []string{"bus_core", "card", "late", "phy", "sum_fast", "sum_slow", "vfat"}, MissingFirmware: []string{"card/a.fw"},
	}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("ramdisk (-want +got):\n%s", diff)
	}
	left, err := os.ReadDir(first.Dir)
	if err != nil || len(left) != 3 {
		t.Errorf("the folder holds %v, %v", left, err)
	}

	files := unpackCPIO(t, first.InitrdPath())
	agentBytes, err := os.ReadFile(agent)
	if err != nil || !bytes.Equal(files["init"].data, agentBytes) || files["init"].mode != 0o100755 {
		t.Errorf("init: %o, %d bytes", files["init"].mode, len(files["init"].data))
	}
	if console := files["dev/console"]; console.mode != 0o020600 || console.rdev != [2]int{5, 1} {
		t.Errorf("console: %+v", console)
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "lib/modules/6.9-test/kernel/net"} {
		if files[d].mode != 0o040755 {
			t.Errorf("folder %s: %o", d, files[d].mode)
		}
	}
	if string(files["lib/firmware/card/b.fw.xz"].data) != "firmware b" {
		t.Error("the firmware that is there was not taken")
	}
	if _, ok := files[tree+"kernel/sound/noise.ko"]; ok {
		t.Error("a module that nobody needs was taken")
	}
	var index ModuleIndex
	if err := json.Unmarshal(files["lib/modules/modules.json"].data, &index); err != nil {
		t.Fatal(err)
	}
	at := func(s string) string { return "/" + tree + "kernel/" + s + ".ko" }
	wantIndex := ModuleIndex{Kernel: "6.9-test", Load: []string{"vfat"}, Modules: map[string]Module{
		"card": {Path: at("net/card"), Depends: []string{"bus_core"}, Pre: []string{"phy", "sum_fast", "sum_slow"}, Post: []string{"late"},
			Aliases: []string{"pci:v00008086d*"}, Firmware: []string{"card/a.fw", "card/b.fw"}},
		"bus_core": {Path: at("net/bus-core")}, "phy": {Path: at("net/phy"), Post: []string{"card"}}, "late": {Path: at("net/late")},
		"sum_fast": {Path: at("crypto/sum-fast"), Aliases: []string{"sum", "crypto-sum"}},
		"sum_slow": {Path: at("crypto/sum-slow"), Aliases: []string{"sum"}},
		"vfat":     {Path: at("fs/vfat"), Aliases: []string{"fs-vfat"}},
	}}
	if diff := cmp.Diff(wantIndex, index); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	for name, m := range index.Modules {
		if f, ok := files[m.Path[1:]]; !ok || f.mode != 0o100644 {
			t.Errorf("module %s is not at %s", name, m.Path)
		}
	}
	if list, err := exec.LookPath("cpio"); err == nil { // another reader of the same archive
		b, _ := os.ReadFile(first.InitrdPath())
		d, _ := zstd.NewReader(nil)
		raw, _ := d.DecodeAll(b, nil)
		d.Close()
		cmd := exec.Command(list, "-it", "--quiet")
		cmd.Stdin = bytes.NewReader(raw)
		out, err := cmd.CombinedOutput()
		if err != nil || len(strings.Fields(string(out))) != len(files) {
			t.Errorf("cpio: %v, %d names of %d:\n%s", err, len(strings.Fields(string(out))), len(files), out)
		}
	}
}

type cpioEntry struct {
	mode int
	rdev [2]int
	data []byte
}

func unpackCPIO(t testing.TB, name string) map[string]cpioEntry {
	t.Helper()
	f, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := d.DecodeAll(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(b)%512 != 0 {
		t.Errorf("%d bytes are no whole number of 512", len(b))
	}
	files, at, seen := map[string]cpioEntry{}, 0, map[int]bool{}
	field := func(i int) (n int) {
		if _, err := fmt.Sscanf(string(b[at+6+8*i:at+14+8*i]), "%08x", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for {
		if string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		size, nameSize, ino := field(6), field(11), field(0)
		if seen[ino] || field(5) != 0 || field(2) != 0 {
			t.Errorf("inode %d twice, or a time or an owner", ino)
		}
		seen[ino] = true
		e := cpioEntry{mode: field(1), rdev: [2]int{field(9), field(10)}}
		name := string(b[at+110 : at+110+nameSize-1])
		if name == "TRAILER!!!" {
			return files
		}
		at = (at + 110 + nameSize + 3) / 4 * 4
		e.data = b[at : at+size]
		at = (at + size + 3) / 4 * 4
		if _, ok := files[name]; ok {
			t.Errorf("%s stands there twice", name)
		}
		if dir := filepath.Dir(name); dir != "." && files[dir].mode&0o040000 == 0 {
			t.Errorf("%s comes before its folder", name)
		}
		files[name] = e
	}
}

func TestRamdiskErrorsSayWhatIsWrong(t *testing.T) {
	agent := staticProgram(t, 62, false)
	without := func(name string) []debFile {
		return slices.DeleteFunc(kernelFiles(), func(f debFile) bool { return strings.Contains(f.name, name) })
	}
	good := deb(t, "data.tar", plain, kernelFiles()...)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.deb")
	if err := os.WriteFile(cut, whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    RamdiskOptions
		says string
	}{
		"no agent":         {RamdiskOptions{KernelDeb: good, Agent: text + ".gone"}, "read the agent"},
		"agent is text":    {RamdiskOptions{KernelDeb: good, Agent: text}, "no Linux program"},
		"agent is arm64":   {RamdiskOptions{KernelDeb: good, Agent: staticProgram(t, 183, false)}, "is for amd64 and the agent"},
		"agent is riscv":   {RamdiskOptions{KernelDeb: good, Agent: staticProgram(t, 243, false)}, "GOARCH=amd64 or arm64"},
		"kernel is arm64":  {RamdiskOptions{KernelDeb: deb(t, "data.tar", plain, arm64Kernel()...), Agent: agent}, "is for arm64 and the agent"},
		"agent is dynamic": {RamdiskOptions{KernelDeb: good, Agent: staticProgram(t, 62, true)}, "CGO_ENABLED=0"},
		"no package":       {RamdiskOptions{KernelDeb: good + ".gone", Agent: agent}, "no such file"},
		"text as package":  {RamdiskOptions{KernelDeb: text, Agent: agent}, "no Debian package"},
		"cut package":      {RamdiskOptions{KernelDeb: cut, Agent: agent}, "unexpected EOF"},
		"no data":          {RamdiskOptions{KernelDeb: deb(t, "data.bad", plain), Agent: agent}, "no data.tar"},
		"no kernel":        {RamdiskOptions{KernelDeb: deb(t, "data.tar", plain, without("vmlinuz")...), Agent: agent}, "linux-image-amd64 or -arm64 depends on"},
		"no zstd":          {RamdiskOptions{KernelDeb: deb(t, "data.tar", plain, without("config")...), Agent: agent}, "CONFIG_RD_ZSTD"},
		"unknown module":   {RamdiskOptions{KernelDeb: good, Agent: agent, Modules: []string{"card", "magic"}}, `no module ["magic"]`},
		"missing dep":      {RamdiskOptions{KernelDeb: good, Agent: agent, Modules: []string{"noise"}}, `"noise" depends on "not_there"`},
		"broken module":    {RamdiskOptions{KernelDeb: deb(t, "data.tar", plain, append(kernelFiles(), debFile{tree + "x.ko", []byte("no ELF")})...), Agent: agent}, "x.ko"},
		"packed modules":   {RamdiskOptions{KernelDeb: deb(t, "data.tar", plain, append(kernelFiles(), debFile{tree + "x.ko.xz", nil})...), Agent: agent}, "compressed"},
		"no firmware":      {RamdiskOptions{KernelDeb: good, Agent: agent, FirmwareDir: text + ".gone"}, "firmware folder"},
	} {
		c.o.Out = t.TempDir()
		_, err := BuildRamdisk(context.Background(), c.o)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "build the ramdisk: ") {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if left, _ := os.ReadDir(c.o.Out); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	r, err := BuildRamdisk(context.Background(), RamdiskOptions{KernelDeb: good, Agent: agent, Out: t.TempDir()})
	if err != nil || !slices.Contains(r.MissingModules, "e1000e") || slices.Contains(r.MissingModules, "nls_utf8") {
		t.Errorf("default set: %v, missing %v", err, r.MissingModules)
	}
	if _, err := OpenRamdisk(t.TempDir(), inventory.AMD64); err == nil || !strings.Contains(err.Error(), "recast ramdisk build") {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.WriteFile(r.KernelPath(), []byte("tHe kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRamdisk(r.Dir, inventory.AMD64); err == nil || !strings.Contains(err.Error(), `"vmlinuz" is not the file that was built`) {
		t.Errorf("another kernel: %v", err)
	}
}

// kernelDeb finds the package that "make setup" downloads.
func kernelDeb(t testing.TB) string {
	t.Helper()
	if name := os.Getenv("RECAST_KERNEL_DEB"); name != "" {
		return name
	}
	names, _ := filepath.Glob("../.cache/linux-image-*_amd64.deb")
	if len(names) == 0 {
		t.Skip("needs a kernel package (make setup)")
	}
	return names[len(names)-1]
}

// Debian's own kernel: everything declared is there, the result is small and
// the same each time, and, where QEMU is at hand, every module of it loads with
// nothing but what the index names.
func TestRamdiskOfDebiansKernel(t *testing.T) {
	file := kernelDeb(t)
	agent := filepath.Join(t.TempDir(), "loader")
	build := exec.Command("go", "build", "-trimpath", "-o", agent, "testdata/loader/main.go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the loader: %v\n%s", err, out)
	}
	// Unpacking the package is slow and is done once.
	ctx := context.Background()
	spool, err := os.CreateTemp(t.TempDir(), "modules")
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	k, err := readKernel(ctx, file, spool)
	if err != nil {
		t.Fatal(err)
	}
	init, _, err := readAgent(agent)
	if err != nil {
		t.Fatal(err)
	}
	var both [2]Ramdisk
	for i := range both {
		if both[i], err = assemble(ctx, RamdiskOptions{Out: t.TempDir()}, init, k, spool); err != nil {
			t.Fatal(err)
		}
	}
	r := both[0]
	if r.Initrd != both[1].Initrd || r.Kernel != both[1].Kernel {
		t.Errorf("built twice, two results: %+v and %+v", r, both[1])
	}
	if len(r.MissingModules) > 0 {
		t.Errorf("modules that Debian's kernel does not have: %v", r.MissingModules)
	}
	if r.Initrd.Size > 25<<20 {
		t.Errorf("the ramdisk has %d bytes, want at most 25 MiB", r.Initrd.Size)
	}
	if !slices.Contains(r.MissingFirmware, "tigon/tg3.bin") {
		t.Errorf("firmware that tg3 asks for is not named: %v", r.MissingFirmware)
	}
	for _, name := range []string{"mii", "libata", "scsi_mod", "virtio_ring", "realtek", "fat", "crct10dif_generic"} {
		if !slices.Contains(r.Modules, name) {
			t.Errorf("module %q is missing", name)
		}
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs qemu-system-x86_64 (apt-get install qemu-system-x86)")
	}
	blank := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(blank, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-m", "512", "-net", "none",
		"-kernel", r.KernelPath(), "-initrd", r.InitrdPath(), "-append", "console=ttyS0 quiet panic=-1",
		"-device", "ahci,id=a", "-drive", "if=none,id=d,format=raw,snapshot=on,file="+blank, "-device", "ide-hd,bus=a.0,drive=d",
		"-drive", "if=none,id=e,format=raw,snapshot=on,file="+blank, "-device", "virtio-blk-pci,drive=e").CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	loaded := 0
	for line := range strings.Lines(string(out)) {
		if _, rest, ok := strings.Cut(line, "LOADER "); ok && strings.HasPrefix(rest, "bad") {
			t.Error(strings.TrimSpace(rest))
		} else if ok {
			loaded++
		}
	}
	if loaded != len(r.Modules)+1 { // and the end
		t.Errorf("%d modules of %d were tried:\n%s", loaded, len(r.Modules), out)
	}
}

func FuzzModule(f *testing.F) {
	f.Add(ko("name=x", "depends=a,b", "softdep=pre: c post: d", "firmware=f", "alias=pci:*"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readModule(b)
		if err != nil {
			return
		}
		for _, name := range slices.Concat(m.Depends, m.Pre, m.Post) {
			if name == "" || strings.ContainsAny(name, "\x00/-") {
				t.Fatalf("dependency %q", name)
			}
		}
	})
}

func FuzzUnpack(f *testing.F) {
	img := disk(f, 5, 1)[:64<<10]
	f.Add(img)
	f.Add(gzipped(img))
	f.Add(xzed(f, img))
	f.Add(zstded(f, img))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := unpack(&counter{r: bytes.NewReader(b)})
		if err != nil {
			return
		}
		defer r.Close()
		buf := make([]byte, 64<<10)
		for n := 0; n < 8<<20; {
			k, err := r.Read(buf)
			if err != nil {
				return
			}
			n += k
		}
	})
}

func TestSystemWithoutFirmwareHasNoFolderOfIt(t *testing.T) {
	root := t.TempDir()
	if got := FirmwareOf(root); got != "" {
		t.Errorf("firmware of an empty system: %q", got)
	}
	dir := filepath.Join(root, "lib/firmware")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := FirmwareOf(root); got != dir {
		t.Errorf("firmware in %q, want %q", got, dir)
	}
}
