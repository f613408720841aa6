package testenv

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// What was declared of a BMC must hold after the rack was started again.
func TestRackKeepsItsBMCsAccountAndCertificate(t *testing.T) {
	dir := t.TempDir()
	user, password, err := rackAccount(dir)
	if err != nil {
		t.Fatal(err)
	}
	if u, p, err := rackAccount(dir); err != nil || u != user || p != password {
		t.Errorf("again %q %q (%v), before %q %q", u, p, err, user, password)
	}
	first, err := rackCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := rackCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Certificate[0], again.Certificate[0]) {
		t.Error("another certificate")
	}
	for _, name := range []string{rackSecretFile, rackBMCFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v (%v)", name, info, err)
		}
	}
	if _, p, err := rackAccount(t.TempDir()); err != nil || p == password {
		t.Errorf("another rack has the same password (%v)", err)
	}
	if err := os.WriteFile(filepath.Join(dir, rackSecretFile), []byte("recast:"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := rackAccount(dir); err == nil {
		t.Error("an account without a password is taken")
	}
}

func TestRackKnowsADiskThatNobodyWrote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	const size = 3*osMiB + 4096
	if got, err := rackFillDisk(t.Context(), path, size); err != nil || got != size {
		t.Fatal(got, err)
	}
	check := func(why string, want bool) {
		t.Helper()
		if got, err := RackUntouched(path); err != nil || got != want {
			t.Errorf("%s: untouched %v (%v)", why, got, err)
		}
	}
	check("fresh", true)
	for why, at := range map[string]int64{"a boot sector": 510, "a backup of the partition table": size - 512} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0x55, 0xAA}, at); err != nil {
			t.Fatal(err)
		}
		check(why, false)
		// A rack that is started again takes it as it is, whatever size it asks for.
		if got, err := rackFillDisk(t.Context(), path, 2*size); err != nil || got != size {
			t.Errorf("%d (%v)", got, err)
		}
		check(why+" after another start", false)
		if _, err := f.WriteAt([]byte{rackFill, rackFill}, at); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	if _, err := RackUntouched(path + ".none"); err == nil {
		t.Error("a disk that is not there is untouched")
	}
}
