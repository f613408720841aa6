package testenv

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// simKernelImage is a SimImage whose root is an ext4 with a kernel and its ramdisk.
func simKernelImage(t *testing.T) []byte {
	t.Helper()
	const size, root = 12 << 20, 2 << 20
	if _, err := osLook("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4 (make setup)")
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	simMust(t, os.MkdirAll(filepath.Join(tree, "boot"), 0o755))
	r := rand.NewChaCha8([32]byte{9})
	for name, n := range map[string]int{"vmlinuz-1": 300_000, "initrd": 1_500_000} {
		b := make([]byte, n)
		_, _ = r.Read(b)
		simMust(t, os.WriteFile(filepath.Join(tree, "boot", name), b, 0o644))
	}
	simMust(t, os.Symlink("boot/vmlinuz-1", filepath.Join(tree, "vmlinuz")))
	path := filepath.Join(dir, "image")
	img := SimImage(size, 7)
	clear(img[root : size-1<<20])
	simMust(t, os.WriteFile(path, img, 0o644))
	simMust(t, osRun(t.Context(), "mkfs.ext4", "-q", "-F", "-E", "offset=2097152,nodiscard", "-d", tree, path, "9216k"))
	img, err := os.ReadFile(path)
	simMust(t, err)
	return img
}

func TestAGateHandsOverByKexec(t *testing.T) {
	raw := simKernelImage(t)
	s := newSimServer(t)
	const kernel = "{partition: root, kernel: /vmlinuz, initrd: /boot/initrd, args: [root=/dev/vda2, ro]}"
	d := simDeclare{Image: s.addImage(raw), Immutable: "[root]", Kernel: kernel, Spec: "  boot: {every: gate, onMismatch: repair}\n"}
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range 2 {
		s.add(i+1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, !o.UEFI })
	}
	// What the image does not have is seen by the plan.
	for wrong, want := range map[string]string{
		strings.Replace(kernel, "/vmlinuz", "/vmlinux", 1):              `partition root: there is no /vmlinux: "vmlinux" is missing`,
		strings.Replace(kernel, "/boot/initrd", "/boot", 1):             "partition root: /boot is no file",
		strings.Replace(kernel, "partition: root", "partition: esp", 1): "partition esp: it holds no file system that recast knows",
	} {
		bad := d
		bad.Kernel, bad.Immutable = wrong, "[esp, root]"
		for _, e := range s.plan(bad, "m01", "m02").Entries {
			if !strings.Contains(e.Blocked, want) || !strings.Contains(e.Blocked, "boot of the Image") {
				t.Errorf("%s: %q, want %q", wrong, e.Blocked, want)
			}
		}
	}
	s.apply(d)
	said := func(name, text string) (n int) {
		for _, l := range s.timeline(name) {
			if strings.Contains(l.Text, text) {
				n++
			}
		}
		return n
	}
	for _, m := range s.machines {
		name := m.Options.Name
		s.awaitActive(name, 60*time.Second)
		clean := simBytes(t, m)
		start := s.restart(m, func() {
			simTamper(t, m, "root", 5000)
			simTamper(t, m, "esp", 5000) // state, and kept
		})
		s.awaitReport(m, start)
		want := bytes.Clone(clean)
		want[1<<20+5000] ^= 0xff
		if !bytes.Equal(simBytes(t, m), want) {
			t.Errorf("%s: the disk is not as it was, but for its state", name)
		}
		path := strings.Join(m.path(start), " → ")
		if len(m.Boots()) != start+1 || !strings.HasSuffix(path, " → loaded 300000 bytes: root=/dev/vda2 ro console=tty0 console=ttyS0,115200n8 → kexec: starting /vmlinuz → disk → reported") {
			t.Errorf("%s went by %s", name, path)
		}
		if v := s.awaitActive(name, 10*time.Second); v.Status.Evidence.Level != "read-back" || len(v.Status.Findings) > 0 || v.Status.Gate.Verdict != "repaired" || said(name, "handed over by kexec: /vmlinuz ") != 1 {
			t.Errorf("%v, gate %+v", v, v.Status.Gate)
		}
		// A ramdisk that cannot do it says why, and the machine restarts.
		m.Options.NoKexec = true
		start = s.restart(m, func() {})
		s.awaitReport(m, start)
		if path := strings.Join(m.path(start), " → "); len(m.Boots()) != start+2 || !strings.HasSuffix(path, "disk → reported") || strings.Contains(path, "kexec: starting") {
			t.Errorf("%s went by %s", name, path)
		}
		if said(name, "not handed over by kexec: load /vmlinuz: the simulated kernel refuses it; it restarts instead") != 1 {
			t.Errorf("%s: the timeline does not say why it restarted", name)
		}
		s.awaitActive(name, 10*time.Second)
	}
	// Under BIOS what is run before any file system is read is proved too.
	for _, m := range s.machines {
		if m.Options.UEFI {
			continue
		}
		start := s.restart(m, func() {
			b := simBytes(t, m)
			b[4] ^= 0xff
			simMust(t, os.WriteFile(m.Disks[0].Path, b, 0o600))
		})
		s.awaitReport(m, start)
		if b := simBytes(t, m); !bytes.Equal(b[:440], raw[:440]) || said(m.Options.Name, "boot code 1 of its blocks") != 1 {
			t.Error("the boot code was not repaired")
		}
	}
}
