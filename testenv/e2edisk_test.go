package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"recast/agent"
	"recast/inventory"
	"recast/pack"
)

// The disks of a story are files: what was written is read from outside.

// diskSum is the SHA-256 of a machine's whole disk.
func (s *story) diskSum(name string) inventory.Digest {
	s.t.Helper()
	d, _, err := osHash(s.Node(name).Disks[0].Path)
	s.must(err)
	return d
}

// ends are the first and the last MiB of a machine's disk.
func (s *story) ends(name string) (first, last []byte) {
	s.t.Helper()
	f, err := os.Open(s.Node(name).Disks[0].Path)
	s.must(err)
	defer f.Close()
	info, err := f.Stat()
	s.must(err)
	first, last = make([]byte, osMiB), make([]byte, osMiB)
	_, err = f.ReadAt(first, 0)
	s.must(err)
	_, err = f.ReadAt(last, info.Size()-osMiB)
	s.must(err)
	return first, last
}

// checkUnbootable: no boot record and no partition table, at neither end.
func (s *story) checkUnbootable(name string) {
	s.t.Helper()
	first, last := s.ends(name)
	if len(bytes.Trim(first, "\x00")) != 0 {
		s.t.Errorf("%s: the first MiB of the disk is not zero", name)
	}
	if bytes.Contains(last, []byte("EFI PART")) {
		s.t.Errorf("%s: a backup partition table stands at the end of the disk", name)
	}
}

// checkDisk judges a deployed disk: a sound partition table of its own, every
// byte of the image's partitions, and the config volume behind them.
func (s *story) checkDisk(name string, img OSImage, userData string) {
	s.t.Helper()
	path := s.Node(name).Disks[0].Path
	out, err := exec.CommandContext(s.t.Context(), "sgdisk", "-v", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		s.t.Errorf("%s: sgdisk -v: %v: %s", name, err, out)
	}
	disk, size, wrote := s.layout(path)
	_, _, want := s.layout(img.Path)
	source, err := os.Open(img.Path)
	s.must(err)
	defer source.Close()
	defer disk.Close()
	if len(wrote.Partitions) != len(want.Partitions)+1 {
		s.t.Fatalf("%s: %d partitions, want those of the image, %d, and one more", name, len(wrote.Partitions), len(want.Partitions))
	}
	for i, w := range want.Partitions {
		g := wrote.Partitions[i]
		if g.Start != w.Start || g.End != w.End || g.GUID != w.GUID || g.Type != w.Type {
			s.t.Errorf("%s: partition %d is %+v, the image's %+v", name, w.Number, g, w)
			continue
		}
		if a, b := s.sumPart(disk, g), s.sumPart(source, w); a != b {
			s.t.Errorf("%s: partition %d (%s) differs from the image's", name, w.Number, w.Name)
		}
	}
	config := wrote.Partitions[len(want.Partitions)]
	if config.Name != "CIDATA" || size-config.End > osMiB {
		s.t.Errorf("%s: the last partition is %+v, want CIDATA up to the last MiB of %d bytes", name, config, size)
	}
	got, err := agent.ReadConfigFile(disk, size, "user-data")
	s.must(err)
	if string(got) != userData {
		s.t.Errorf("%s: user data on the disk is %q, want %q", name, got, userData)
	}
}

func (s *story) layout(path string) (f *os.File, size int64, l pack.Layout) {
	s.t.Helper()
	f, err := os.Open(path)
	s.must(err)
	info, err := f.Stat()
	s.must(err)
	first := make([]byte, osMiB)
	_, err = f.ReadAt(first, 0)
	s.must(err)
	l, _, err = pack.ParseLayout(first, info.Size())
	s.must(err)
	return f, info.Size(), l
}

func (s *story) sumPart(r io.ReaderAt, p pack.Partition) string {
	s.t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(r, p.Start, p.End-p.Start))
	s.must(err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// written is how many bytes a machine has written to its disk since it was made.
func (s *story) written(name string) int64 {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	stats, err := s.Node(name).BlockStats(ctx)
	s.must(err)
	return stats[0].WriteBytes
}

// slowDisk limits what a machine reads and writes, in bytes per second, from now
// until it is switched off; 0 is no limit.
func (s *story) slowDisk(name string, read, write int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	m := s.Node(name).QEMU
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on() {
		s.t.Fatalf("%s is off", name)
	}
	s.must(m.run.qmp.execute(ctx, "block_set_io_throttle", map[string]any{"device": qemuDriveID(0),
		"bps": 0, "bps_rd": read, "bps_wr": write, "iops": 0, "iops_rd": 0, "iops_wr": 0}, nil))
}

// flip changes one bit of a file.
func (s *story) flip(path string, at int64) {
	s.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	s.must(err)
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	s.must(err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	s.must(errors.Join(err, f.Close()))
}
