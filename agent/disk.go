package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// MiB is the unit of everything that is written.
const MiB = 1 << 20

// Disk is what the write needs of a disk. A block device and a plain file (a
// simulated machine's disk) stand behind it with one implementation.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes [off, off+n) read as zeros.
	Zero(off, n int64) error
	// Discard tells the disk that [off, off+n) holds nothing of worth. What it
	// reads as afterwards is undefined.
	Discard(off, n int64) error
	// Flush returns when everything written so far survives a loss of power.
	Flush() error
	// ReadBack is ReadAt of what was flushed, from the disk and not from memory.
	ReadBack(b []byte, off int64) (int, error)
	Size() int64
	BlockSize() int // logical, in bytes
	// Identity is what the disk says it is, read again at each call.
	Identity() (inventory.DiskID, error)
	Close() error
}

// SameDisk compares the disk of a job with the one that is here. Every field
// that is set in want must be equal in have; the name is where it was seen, not
// what it is. A disk without WWN, serial and path cannot be told from another.
func SameDisk(want, have inventory.DiskID) error {
	if want.WWN == "" && want.Serial == "" && want.ByPath == "" {
		return errors.New("the job names no disk: neither WWN, serial nor path is set")
	}
	for _, f := range []struct{ what, want, have string }{
		{"WWN", want.WWN, have.WWN},
		{"serial", want.Serial, have.Serial},
		{"path", want.ByPath, have.ByPath},
	} {
		if f.want != "" && f.want != f.have {
			return fmt.Errorf("disk %s has %s %q, the job is for %q", have.Name, f.what, f.have, f.want)
		}
	}
	if want.Size != have.Size {
		return fmt.Errorf("disk %s has %d bytes, the job is for one of %d", have.Name, have.Size, want.Size)
	}
	if want.LogicalBlockSize != 0 && want.LogicalBlockSize != have.LogicalBlockSize {
		return fmt.Errorf("disk %s has blocks of %d bytes, the job is for %d", have.Name, have.LogicalBlockSize, want.LogicalBlockSize)
	}
	return nil
}

// rawDisk is an open block device or a plain file.
type rawDisk struct {
	*os.File
	// direct is the same device past the page cache: memory is not filled with what
	// is written once, nor the CPU busy with copying it, and what is read is read
	// from the disk. Nil for none.
	direct   *os.File
	size     int64
	block    int
	device   bool
	identity func() (inventory.DiskID, error)
	// noZero is set once the kernel has refused to zero a range by itself.
	noZero atomic.Bool
}

// OpenFile opens a plain file as the disk of a simulated machine; id says what
// disk it plays. Name, Size and LogicalBlockSize (512 when 0) are filled in.
func OpenFile(path string, id inventory.DiskID) (Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open disk: %w", err)
	}
	if !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open disk %q: not a plain file", path)
	}
	if id.LogicalBlockSize == 0 {
		id.LogicalBlockSize = 512
	}
	id.Name, id.Size = path, info.Size()
	return &rawDisk{File: f, size: id.Size, block: id.LogicalBlockSize,
		identity: func() (inventory.DiskID, error) { return id, nil }}, nil
}

// OpenDevice opens a block device for writing. O_EXCL makes the kernel refuse
// one that is mounted or held by RAID or LVM, and keeps it so while we write.
func OpenDevice(path string, identity func() (inventory.DiskID, error)) (Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("open disk %q: it is mounted or held by another driver", path)
		}
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &rawDisk{File: f, device: true, identity: identity}
	var size uint64
	if err := ioctlPtr(f, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("read size of disk %q: %w", path, err)
	}
	d.size = int64(size)
	if d.block, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil {
		f.Close()
		return nil, fmt.Errorf("read block size of disk %q: %w", path, err)
	}
	// By the open file, so that it is the same device whatever the name is now; the
	// claim is that file's.
	if direct, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR|unix.O_DIRECT, 0); err == nil {
		d.direct = direct
	}
	return d, nil
}

// directUnit is what offset, length and memory of a direct transfer are whole
// multiples of, where the disk's own block is no larger.
const directUnit = 4096

// past gives the file for a transfer: the direct one where that takes it, else
// the one with the page cache, and the kernel keeps both in step.
func (d *rawDisk) past(b []byte, off int64) *os.File {
	if d.direct == nil || len(b) == 0 {
		return d.File
	}
	if at := uint64(off) | uint64(len(b)) | uint64(uintptr(unsafe.Pointer(&b[0]))); at%max(directUnit, uint64(d.block)) != 0 {
		return d.File
	}
	return d.direct
}

func (d *rawDisk) ReadAt(b []byte, off int64) (int, error)  { return d.past(b, off).ReadAt(b, off) }
func (d *rawDisk) WriteAt(b []byte, off int64) (int, error) { return d.past(b, off).WriteAt(b, off) }

func (d *rawDisk) ReadBack(b []byte, off int64) (int, error) {
	f := d.past(b, off)
	if f == d.File {
		// What was flushed is dropped; whole pages alone, so of the widest there are.
		const page = 64 << 10
		start, end := off&^(page-1), (off+int64(len(b))+page-1)&^(page-1)
		if err := unix.Fadvise(int(f.Fd()), start, end-start, unix.FADV_DONTNEED); err != nil {
			return 0, fmt.Errorf("drop cached pages: %w", err)
		}
	}
	return f.ReadAt(b, off)
}

// backReader reads as ReadBack does.
type backReader struct{ Disk }

func (r backReader) ReadAt(b []byte, off int64) (int, error) { return r.ReadBack(b, off) }

func (d *rawDisk) Close() error {
	if d.direct != nil {
		d.direct.Close()
	}
	return d.File.Close()
}

func (d *rawDisk) Size() int64    { return d.size }
func (d *rawDisk) BlockSize() int { return d.block }

func (d *rawDisk) Identity() (inventory.DiskID, error) {
	id, err := d.identity()
	if err != nil {
		return id, err
	}
	// What the open device says counts, not what was listed before.
	id.Size, id.LogicalBlockSize = d.size, d.block
	return id, nil
}

func (d *rawDisk) Zero(off, n int64) error {
	if off < 0 || n < 0 || off+n > d.size {
		return fmt.Errorf("zero %d bytes at %d: beyond the disk", n, off)
	}
	if n == 0 {
		return nil
	}
	// The kernel zeroes whole blocks only; the odd end of an image is written.
	if whole := off%int64(d.block) == 0 && n%int64(d.block) == 0; whole && !d.noZero.Load() {
		var err error
		if d.device {
			// Never BLKDISCARD: what a discarded block reads as is up to the disk.
			span := [2]uint64{uint64(off), uint64(n)}
			err = ioctlPtr(d.File, unix.BLKZEROOUT, unsafe.Pointer(&span))
		} else {
			err = unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
			d.noZero.Store(true)
		default:
			return fmt.Errorf("zero %d bytes at %d: %w", n, off, err)
		}
	}
	zeros := make([]byte, min(n, MiB))
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:part], off); err != nil {
			return fmt.Errorf("zero %d bytes at %d: %w", part, off, err)
		}
		off, n = off+part, n-part
	}
	return nil
}

func (d *rawDisk) Discard(off, n int64) error {
	if n <= 0 {
		return nil
	}
	if !d.device {
		return unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	span := [2]uint64{uint64(off), uint64(n)}
	return ioctlPtr(d.File, unix.BLKDISCARD, unsafe.Pointer(&span))
}

func (d *rawDisk) Flush() error {
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flush disk: %w", err)
	}
	return nil
}

func ioctlPtr(f *os.File, req uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(req), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
