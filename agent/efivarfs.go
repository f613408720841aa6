package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// VarFS is the firmware's variables through a mounted efivarfs.
type VarFS string

var _ Variables = VarFS("")

// List names every variable.
func (v VarFS) List() ([]string, error) {
	entries, err := os.ReadDir(string(v))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Get reads a value without the attributes before it.
func (v VarFS) Get(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(string(v), name))
	if err != nil {
		return nil, err
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("read variable %s: %d bytes, want 4 of attributes first", name, len(b))
	}
	return b[4:], nil
}

// Set writes attributes and value, in one call as the firmware wants it.
func (v VarFS) Set(name string, attributes uint32, value []byte) error {
	path := filepath.Join(string(v), name)
	if err := mutable(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), value...))
	return err
}

// Delete removes a variable.
func (v VarFS) Delete(name string) error {
	path := filepath.Join(string(v), name)
	if err := mutable(path); err != nil {
		return err
	}
	return os.Remove(path)
}

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// mutable clears the immutable flag by which the kernel protects variables from
// "rm -rf /". A variable that is not there needs nothing.
func mutable(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil // a file system without flags has nothing to clear
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}
