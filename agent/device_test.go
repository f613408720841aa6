package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"recast/inventory"
	"recast/pack"
)

// loopDevice is a block device of the kernel's over a new file of size bytes.
func loopDevice(t *testing.T, size int64, block int) (name, file string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, bytes.Repeat([]byte{0xA5}, int(size)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", strconv.Itoa(block), file).CombinedOutput()
	if err != nil {
		t.Skipf("needs a loop device: %v: %s", err, out)
	}
	name = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", name).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return name, file
}

func openLoop(t *testing.T, name string) Disk {
	t.Helper()
	d, err := OpenDevice(name, func() (inventory.DiskID, error) { return inventory.DiskID{Name: name, Serial: "S1"}, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// blockImage is a disk image for disks with blocks of so many bytes.
func blockImage(t *testing.T, size int64, block int) []byte {
	t.Helper()
	first, last, err := pack.FormatGPT(size, block, pack.MustGUID("11111111-2222-4333-8444-555555555555"), []pack.Partition{
		{Type: pack.TypeESP.String(), GUID: "AAAAAAAA-2222-4333-8444-555555555555", Name: "esp", Start: MiB, End: 2 * MiB},
		{Type: pack.TypeLinux.String(), GUID: "BBBBBBBB-2222-4333-8444-555555555555", Name: "root", Start: 2 * MiB, End: size/MiB*MiB - MiB},
	})
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	if _, err := rand.Read(img[MiB : size/2]); err != nil { // a hole behind it
		t.Fatal(err)
	}
	copy(img[size-MiB:], last)
	return img
}

// A block device takes whole blocks alone, and all of a write goes past the page
// cache but the odd ends.
func TestBlockDevicesBecomeTheDeclaredDisk(t *testing.T) {
	for _, block := range []int{512, 4096} {
		t.Run(fmt.Sprintf("blocks of %d", block), func(t *testing.T) {
			size := 24*MiB + 5*int64(block)
			name, file := loopDevice(t, size, block)
			d := openLoop(t, name)
			if d.BlockSize() != block || d.Size() != size {
				t.Fatalf("%d blocks of %d", d.Size(), d.BlockSize())
			}
			if d.(*rawDisk).direct == nil {
				t.Error("the device is not opened past the page cache")
			}
			a := packImage(t, blockImage(t, 12*MiB+3*int64(block), block))
			img := blockImage(t, 13*MiB+3*int64(block), block)
			copy(img[3*MiB:], a.img[2*MiB+blockSize:6*MiB]) // blocks move, forth and back
			copy(img[2*MiB:3*MiB], a.img[5*MiB:])
			b := packImage(t, img)
			volume := bytes.Repeat([]byte("config! "), MiB/8)
			for _, p := range []*packed{a, b} {
				s := serveBytes(t, p)
				w := testWork(p, d, volume, s.URL)
				w.Job.Disk.LogicalBlockSize = block
				if p == b {
					differ(t, s, &w.Job.Image, a, b)
				}
				got, err := Write(context.Background(), w)
				if err != nil {
					t.Fatal(err)
				}
				table, err := pack.RenderTable(p.m, p.chunk, size, block, &pack.ConfigPart{Size: int64(len(volume)), Label: "CIDATA"})
				if err != nil {
					t.Fatal(err)
				}
				want := bytes.Clone(p.img)
				for i, c := range table.Chunks {
					copy(want[i*MiB:], c.Disk)
				}
				have, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				copy(want, table.First)
				if !bytes.Equal(have[:len(want)], want) {
					t.Error(firstDifference(have[:len(want)], want))
				}
				if at := table.ConfigStart; !bytes.Equal(have[at:at+int64(len(volume))], volume) || !bytes.Equal(have[size-MiB:], table.Last) {
					t.Error("configuration or backup table are not on the disk")
				}
				if sum := inventory.DigestOf(slices.Concat(have[:MiB], have[size-MiB:])); got.Table != sum {
					t.Errorf("table %s, want %s", got.Table, sum)
				}
			}
			// Of another block size the image is refused before anything is written.
			other := packImage(t, blockImage(t, 8*MiB, 512+4096-block))
			w := testWork(other, d, nil, serveBytes(t, other).URL)
			w.Job.Disk.LogicalBlockSize = block
			before, _ := os.ReadFile(file)
			if _, err := Write(context.Background(), w); err == nil || !strings.Contains(err.Error(), "logical block sizes differ") {
				t.Errorf("an image for other blocks: %v", err)
			}
			if after, _ := os.ReadFile(file); !bytes.Equal(before, after) {
				t.Error("the disk was changed")
			}
			if _, err := Wipe(context.Background(), Work{Job: inventory.Job{Kind: inventory.JobWipe, Disk: w.Job.Disk}, Disk: d, Lease: aliveLease()}); err != nil {
				t.Fatal(err)
			}
			if have, _ := os.ReadFile(file); !allZero(have) {
				t.Error("something is left after a wipe")
			}
		})
	}
}

// What the medium loses under us, with the old bytes still in memory, is seen:
// where a transfer is of whole blocks, and where it is not.
func TestReadBackComesFromTheDevice(t *testing.T) {
	const size = 4 * MiB
	name, file := loopDevice(t, size, 512)
	d := openLoop(t, name)
	for _, off := range []int64{MiB, 2*MiB + 512} {
		b := bytes.Repeat([]byte{7}, 64<<10)
		if _, err := d.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		have := make([]byte, len(b))
		if _, err := d.(*rawDisk).File.ReadAt(have, off); err != nil || !bytes.Equal(have, b) { // into the page cache
			t.Fatal(err)
		}
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{8}, off+4096); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, err := d.(*rawDisk).File.ReadAt(have, off); err != nil || !bytes.Equal(have, b) {
			t.Errorf("byte %d: the page cache does not hold what this test wants it to (%v)", off, err)
		}
		if _, err := d.ReadBack(have, off); err != nil || have[4096] != 8 {
			t.Errorf("byte %d: read back %d of the page cache, the disk holds 8 (%v)", off, have[4096], err)
		}
	}
}
