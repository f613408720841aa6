package image

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// cpioWriter writes an archive in the "newc" form, which is what the kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst). Owners
// and times are zero and inodes are numbered in order, so that the same files
// give the same bytes.
type cpioWriter struct {
	w    io.Writer
	n    int64
	ino  int
	dirs map[string]bool
}

const (
	cpioDir    = 0o040000
	cpioFile   = 0o100000
	cpioDevice = 0o020000
)

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{".": true, "/": true}}
}

// dir adds a folder and those above it.
func (c *cpioWriter) dir(name string) error {
	name = strings.Trim(name, "/")
	if name == "" || c.dirs[name] {
		return nil
	}
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	c.dirs[name] = true
	return c.entry(name, cpioDir|0o755, 0, 0, 0, nil)
}

// file adds a plain file of size bytes and the folders above it.
func (c *cpioWriter) file(name string, perm int, size int64, r io.Reader) error {
	name = strings.Trim(name, "/")
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, cpioFile|perm, size, 0, 0, r)
}

// device adds a character device.
func (c *cpioWriter) device(name string, perm, major, minor int) error {
	name = strings.Trim(name, "/")
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, cpioDevice|perm, 0, major, minor, nil)
}

func (c *cpioWriter) close() error {
	if err := c.entry("TRAILER!!!", 0, 0, 0, 0, nil); err != nil {
		return err
	}
	return c.pad(512)
}

func (c *cpioWriter) entry(name string, mode int, size int64, major, minor int, r io.Reader) error {
	if size>>32 != 0 {
		return fmt.Errorf("archive %q: %d bytes are too many for a cpio", name, size)
	}
	c.ino++
	links := 1
	if mode&cpioDir != 0 {
		links = 2
	}
	// ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize with its NUL, check
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	if err := c.write([]byte(head)); err != nil {
		return err
	}
	if err := c.pad(4); err != nil {
		return err
	}
	if size > 0 {
		n, err := io.Copy(c.w, io.LimitReader(r, size))
		c.n += n
		if err == nil && n < size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("archive %q: %w", name, err)
		}
	}
	return c.pad(4)
}

func (c *cpioWriter) write(b []byte) error {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return err
}

func (c *cpioWriter) pad(to int64) error {
	return c.write(make([]byte, (to-c.n%to)%to))
}
