package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// loadKernel reads the system's kernel and its ramdisk from the disk, by places and
// digests that come from the image, and gives them to the kernel here. The disk is
// mounted by nobody: what is loaded is what the image has there, or nothing is.
func (s *session) loadKernel(ctx context.Context, job inventory.Job, progress *Progress) error {
	if job.Machine != s.machine {
		return fmt.Errorf("the job is for %q, this machine is %q", printable(job.Machine), printable(s.machine))
	}
	k := job.Kernel
	if k == nil || !s.proved {
		return errors.New("the job names no kernel, or the disk was not proved by this boot")
	}
	disk, err := s.Machine.OpenDisk(ctx, job.Disk)
	if err != nil {
		return err
	}
	defer disk.Close()
	total := k.Kernel.Size
	if k.Initrd != nil {
		total += k.Initrd.Size
	}
	progress.begin(inventory.AgentLoading, total)
	kernel, err := s.proven(ctx, disk, k.Kernel, progress)
	if err != nil {
		return err
	}
	defer kernel.Close()
	var initrd *os.File
	if k.Initrd != nil {
		if initrd, err = s.proven(ctx, disk, *k.Initrd, progress); err != nil {
			return err
		}
		defer initrd.Close()
	}
	if err := s.Machine.LoadKernel(kernel, initrd, k.Args); err != nil {
		return fmt.Errorf("load %s: %w", printable(k.Kernel.Path), err)
	}
	return nil
}

// proven copies a file of the disk into memory and opens it there for reading, if its
// digest is the one that it has in the image. The kernel reads no file that somebody
// could still write to.
func (s *session) proven(ctx context.Context, disk Disk, f inventory.DiskFile, progress *Progress) (*os.File, error) {
	for _, e := range f.Extents {
		if e.Start != inventory.ZeroExtent && (e.Start < 0 || e.Length <= 0 || e.Start > disk.Size()-e.Length) {
			return nil, fmt.Errorf("%s does not lie on the disk", printable(f.Path))
		}
	}
	fd, err := unix.MemfdCreate("proven", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make room for %s in memory: %w", printable(f.Path), err)
	}
	copied := os.NewFile(uintptr(fd), f.Path)
	defer copied.Close()
	h := sha256.New()
	if _, err := f.Copy(io.MultiWriter(copied, h, counted{ctx, progress}), disk); err != nil {
		return nil, fmt.Errorf("read %s: %w", printable(f.Path), err)
	}
	if got := gateSum(h); got != f.Digest {
		return nil, fmt.Errorf("%s reads from the disk as %s, and is %s in the image", printable(f.Path), got.Short(), f.Digest.Short())
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// counted counts what is written to it, until ctx ends.
type counted struct {
	ctx      context.Context
	progress *Progress
}

func (w counted) Write(p []byte) (int, error) {
	w.progress.done.Add(int64(len(p)))
	return len(p), w.ctx.Err()
}

// LoadKernel gives a kernel to the one that runs, for Kexec. Under lockdown that takes
// it only if it was signed by somebody whom it trusts.
func (h Hardware) LoadKernel(kernel, initrd *os.File, args string) error {
	flags, fd := unix.KEXEC_FILE_NO_INITRAMFS, -1
	if initrd != nil {
		flags, fd = 0, int(initrd.Fd())
	}
	if err := unix.KexecFileLoad(int(kernel.Fd()), fd, args, flags); err != nil {
		return fmt.Errorf("the ramdisk's kernel refuses it: %w", err)
	}
	return nil
}

// jump starts the kernel that was loaded. It returns only where that cannot be.
func jump(c *console) {
	// Cards that go on receiving would write into the memory of the next kernel.
	if nics, err := net.Interfaces(); err == nil {
		for _, nic := range nics {
			if err := setDown(nic.Name); err != nil {
				c.log("%s stays up: %v", nic.Name, err)
			}
		}
	}
	c.log("the ramdisk's kernel does not start it: %v", unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC))
}
