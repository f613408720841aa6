package main

import (
	"os"
	"path/filepath"
	"testing"

	"recast/inventory"
	"recast/provision"
)

func TestTheRamdiskIsLookedForWhenItsFolderChanged(t *testing.T) {
	top := t.TempDir()
	f := &ramdiskFolder{dir: filepath.Join(top, "ramdisk")}
	check := func(when string, want provision.RamdiskFiles) {
		t.Helper()
		for range 3 {
			if got := f.files(inventory.AMD64); got != want {
				t.Fatalf("%s: %+v, want %+v", when, got, want)
			}
		}
	}
	write := func(dir, name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(name string) {
		t.Helper()
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	whole := provision.RamdiskFiles{Kernel: "/boot/ramdisk/vmlinuz", Initrd: "/boot/ramdisk/initrd.img"}
	signed := whole
	signed.Unified = "/boot/ramdisk/ramdisk.efi"

	check("no folder", provision.RamdiskFiles{})
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	check("an empty one", provision.RamdiskFiles{})
	write(f.dir, "vmlinuz")
	check("a kernel alone", provision.RamdiskFiles{})
	write(f.dir, "initrd.img")
	check("both", whole)
	write(f.dir, "ramdisk.efi")
	check("a signed one beside them", signed)
	write(f.dir, "ramdisk-unsigned.efi")
	signed.Unsigned = "/boot/ramdisk/ramdisk-unsigned.efi"
	check("and one that is not", signed)
	if got := f.files(inventory.ARM64); got != (provision.RamdiskFiles{}) {
		t.Errorf("for arm64: %+v", got)
	}
	await(t, "a folder at rest is not searched", func() bool {
		return testing.AllocsPerRun(10, func() { f.files(inventory.AMD64); f.files(inventory.ARM64) }) <= 2
	})
	check("at rest", signed)
	remove("ramdisk.efi")
	remove("ramdisk-unsigned.efi")
	check("without the signed one", whole)
	remove("initrd.img")
	check("half of it", provision.RamdiskFiles{})
	write(f.dir, "initrd.img")
	check("whole again", whole)
	await(t, "a folder at rest is not searched", func() bool {
		return testing.AllocsPerRun(10, func() { f.files(inventory.AMD64) }) <= 1
	})
	// Another folder in its place.
	if err := os.Rename(f.dir, f.dir+".old"); err != nil {
		t.Fatal(err)
	}
	check("moved away", provision.RamdiskFiles{})
	if err := os.Rename(f.dir+".old", f.dir); err != nil {
		t.Fatal(err)
	}
	check("moved back", whole)
}

func BenchmarkRamdiskFiles(b *testing.B) {
	f := &ramdiskFolder{dir: b.TempDir()}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(f.dir, name), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		f.files(inventory.AMD64)
	}
}

func TestRamdiskIsMadeWhereTheServersDataAre(t *testing.T) {
	t.Setenv("RECAST_DATA", "/srv/recast")
	for name, flag := range map[string]string{"build": "out", "export": "ramdisk", "import": "ramdisk"} {
		cmd, _, err := newRamdisk().Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		if got := cmd.Flags().Lookup(flag).DefValue; got != "/srv/recast/ramdisk" {
			t.Errorf("ramdisk %s: --%s is %s", name, flag, got)
		}
	}
}
