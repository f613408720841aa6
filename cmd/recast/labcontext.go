package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

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
	return errors.Join(os.Lchown(f.contextFile(), uid, gid), os.Lchown(testenv.LabYAML(f.dir()), uid, gid),
		os.Lchown(testenv.LabUser(f.dir()), uid, gid))
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
		return c, codeError{fmt.Errorf("%d labs are here: name one with --context, as in --context %s", len(files), files[0]), exitUsage}
	}
	return readContext(files[0])
}

// labRoot is where labs stand.
func labRoot() string {
	if dir := os.Getenv("RECAST_LABS"); dir != "" {
		return dir
	}
	return defaultLabRoot
}
