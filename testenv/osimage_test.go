package testenv

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// osOptionsForTest are the options for a tiny from the repository's cache.
func osOptionsForTest(t *testing.T) OSOptions {
	t.Helper()
	cache, err := filepath.Abs("../.cache")
	if err != nil {
		t.Fatal(err)
	}
	deb, err := FindKernelDeb(cache)
	if err != nil {
		t.Skip("needs linux-image-*.deb in .cache (make setup)")
	}
	if err := osTools(OSTiny); err != nil {
		t.Skip(err)
	}
	return OSOptions{Kind: OSTiny, CacheDir: cache, KernelDeb: deb, Variant: "test"}
}

// osForTest builds tiny, or takes it from the repository's cache.
func osForTest(t *testing.T) OSImage {
	t.Helper()
	img, err := BuildOS(t.Context(), osOptionsForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestTinyIsReproducible(t *testing.T) {
	o := osOptionsForTest(t)
	var images [3]OSImage
	for i := range images {
		o.CacheDir = t.TempDir() // nothing to take from
		if i == 2 {
			o.Variant = "other"
		}
		var err error
		if images[i], err = BuildOS(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if images[0].Digest != images[1].Digest {
		t.Errorf("two builds: %v and %v", images[0].Digest, images[1].Digest)
	}
	if images[0].Digest == images[2].Digest {
		t.Error("another variant gave the same image")
	}
	again, err := BuildOS(t.Context(), o)
	if err != nil || again != images[2] {
		t.Errorf("from the cache: %+v, %v; want %+v", again, err, images[2])
	}
	osCheckImage(t, images[0].Path)
}

// osCheckImage lets the tools that know the formats judge the image.
func osCheckImage(t *testing.T, image string) {
	t.Helper()
	out, err := exec.Command("/usr/sbin/sgdisk", "--verify", image).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v: %s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, part := range map[string]struct {
		start, end int
		check      []string
	}{
		"root": {osRootStart, len(data) - osMiB, []string{"/usr/sbin/e2fsck", "-fn"}},
		"ESP":  {osESPStart, osESPStart + osESPSize, []string{"/usr/sbin/fsck.fat", "-n"}},
	} {
		path := filepath.Join(t.TempDir(), "part")
		if err := os.WriteFile(path, data[part.start:part.end], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(part.check[0]); err != nil {
			t.Logf("%s not checked: %v", name, err)
			continue
		}
		out, err := exec.CommandContext(context.Background(), part.check[0], append(part.check[1:], path)...).CombinedOutput()
		if err != nil {
			t.Errorf("check of the %s partition: %v: %s", name, err, out)
		}
	}
	for _, b := range data[len(data)-osMiB : len(data)-33*osSector] {
		if b != 0 {
			t.Error("the last MiB holds more than the backup table")
			break
		}
	}
}
