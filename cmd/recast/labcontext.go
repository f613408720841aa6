package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"recast/testenv"
)

// labContextFile is what the client of the person needs who called lab up, by
// sudo or as root.
const labContextFile = "context.json"

func (f *labFlags) contextFile() string {
	return filepath.Join(testenv.LabUser(f.dir()), labContextFile)
}

// giveToCaller makes the context and the declarations the caller's own, so that
// all but lab up and lab down goes without sudo.
func (f *labFlags) giveToCaller(c *client) error {
	if err := f.giveContext(c.ctx); err != nil {
		return err
	}
	uid, gid, ok := caller()
	if !ok {
		return nil
	}
	// The folder too, so that sed -i may write beside the file. Where a lab runs on
	// it is the caller's already, and a name in it may lead anywhere.
	if err := giveFile(testenv.LabControl(f.dir()), uid, gid); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(giveFile(f.contextFile(), uid, gid), giveFile(testenv.LabYAML(f.dir()), uid, gid),
		os.Lchown(testenv.LabUser(f.dir()), uid, gid))
}

// giveFile follows no link, and gives away no file that has another name too: it
// may be anybody's.
func giveFile(path string, uid, gid int) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "give", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "give", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink != 1 {
		return fmt.Errorf("give %s to its user: the file has other names too; remove it", path)
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "give", Path: path, Err: err}
	}
	return nil
}

// giveContext writes the token itself: the file that holds it is the server's.
func (f *labFlags) giveContext(c clientContext) error {
	c.Name, c.TokenFile = f.name, ""
	if err := saveContext(f.contextFile(), c); err != nil {
		return fmt.Errorf("save the lab's context: %w", err)
	}
	return nil
}

// caller is the user behind sudo.
func caller() (uid, gid int, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil || uid == 0 {
		return 0, 0, false
	}
	gid, err = strconv.Atoi(os.Getenv("SUDO_GID"))
	return uid, gid, err == nil
}

// labContext finds the one lab of this host that the user may ask. Where there
// are several, one has to be named.
func labContext() (c clientContext, err error) {
	files, err := filepath.Glob(filepath.Join(testenv.LabUser(filepath.Join(labRoot(), "*")), labContextFile))
	if err != nil || len(files) == 0 {
		return c, os.ErrNotExist
	}
	if len(files) > 1 {
		names := make([]string, len(files))
		for i, file := range files {
			names[i] = filepath.Base(filepath.Dir(filepath.Dir(file)))
		}
		return c, codeError{fmt.Errorf("%d labs are here: name one with --context %s", len(files), strings.Join(names, " or --context ")), exitUsage}
	}
	return readContext(files[0])
}

// labDenied says who may read a lab's context.
func labDenied(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return codeError{errors.New("the lab on this host is another user's: use sudo"), exitUsage}
	}
	return err
}

// labRoot is where labs stand.
func labRoot() string {
	if dir := os.Getenv("RECAST_LABS"); dir != "" {
		return dir
	}
	return defaultLabRoot
}
