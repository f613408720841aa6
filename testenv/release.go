package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"recast/pack"
)

// BuildRelease makes a disk image like the n-th release of one system: an ext4 of
// many small files, made from scratch by mkfs. From one release to the next a few
// files in a hundred change, half of one in a hundred is added and as many go, so
// that hardly a block stands where it stood and most are still there. No firmware
// could start it. The same seed gives the same files.
func BuildRelease(ctx context.Context, path string, seed uint64, n int) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), "release-")
	if err != nil {
		return fmt.Errorf("build release %d: %w", n, err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(releaseTree(filepath.Join(dir, "root"), seed, n), releaseDisk(ctx, dir, path)); err != nil {
		return fmt.Errorf("build release %d: %w", n, err)
	}
	return nil
}

const (
	releaseFiles = 2000
	releaseRoot  = 48 * osMiB
	// In a thousand, from one release to the next.
	releaseChanged, releaseAdded = 30, 5
)

func releaseTree(root string, seed uint64, n int) error {
	odds := func(file, release, what int) bool {
		r := rand.New(rand.NewPCG(seed^uint64(file)<<20, uint64(release)<<8|uint64(what)))
		return r.IntN(1000) < []int{releaseChanged, releaseAdded}[what]
	}
	for i := range releaseFiles {
		version, gone := 0, false
		for r := 1; r <= n; r++ {
			if odds(i, r, 0) {
				version = r
			}
			gone = gone || odds(i, r, 1)
		}
		if !gone {
			if err := releaseFile(root, seed, i, version); err != nil {
				return err
			}
		}
		for r := 1; r <= n; r++ {
			if odds(i+releaseFiles, r, 1) {
				if err := releaseFile(root, seed, i+r*releaseFiles, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// releaseFile is as compressible as programs are: words of four bytes, half of
// them common ones.
func releaseFile(root string, seed uint64, i, version int) error {
	size := rand.New(rand.NewPCG(seed, uint64(i)))
	noise := rand.New(rand.NewPCG(seed+uint64(version)<<32, uint64(i)))
	b := make([]byte, 1+int(size.ExpFloat64()*14000)&^3)
	for at := 0; at+4 <= len(b); at += 4 {
		w := noise.Uint32()
		if w&1 == 0 {
			w &= 0x3f0
		}
		binary.LittleEndian.PutUint32(b[at:], w)
	}
	path := filepath.Join(root, fmt.Sprintf("usr/lib/d%02d/f%05d", i%50, i))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	epoch := time.Unix(osEpoch, 0)
	return os.Chtimes(path, epoch, epoch)
}

func releaseDisk(ctx context.Context, dir, path string) error {
	l := osLayout{root: filepath.Join(dir, "root"), rootSize: releaseRoot, name: "root", guid: "72656c656173"}
	size := int64(osRootStart + releaseRoot + osMiB)
	first, last, err := pack.FormatGPT(size, osSector, pack.MustGUID(l.uuid(0)), []pack.Partition{
		{Type: pack.TypeESP.String(), GUID: l.uuid(2), Name: "esp", Start: osESPStart, End: osESPStart + osESPSize},
		{Type: pack.TypeLinux.String(), GUID: l.uuid(3), Name: "root", Start: osRootStart, End: osRootStart + releaseRoot},
	})
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, e1 := f.WriteAt(first, 0)
	_, e2 := f.WriteAt(last, size-osMiB)
	if err := errors.Join(e1, e2, f.Close()); err != nil {
		return err
	}
	return l.writeExt(ctx, path, l.root, l.name, 4, osRootStart, l.rootSize)
}
