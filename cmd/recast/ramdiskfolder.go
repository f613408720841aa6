package main

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"recast/image"
	"recast/inventory"
	"recast/provision"
	"recast/web"
)

// settled is how old a folder's last change must be before the next is sure to have
// another time: the kernel's clock goes in steps of some milliseconds.
const settled = time.Second

// ramdiskFolder knows which ramdisks stand in a folder, and looks for them again
// whenever it changed, so that one that is built while the server runs is used at
// once. It is asked several times in one boot, by DHCP at each packet.
type ramdiskFolder struct {
	dir string

	mu   sync.Mutex
	was  folderState
	have map[inventory.Arch]provision.RamdiskFiles
}

// folderState is another after a file came, went or was replaced. The time is that
// of the inode, which nobody sets back.
type folderState struct {
	dev, ino uint64
	changed  unix.Timespec
}

func (f *ramdiskFolder) files(arch inventory.Arch) provision.RamdiskFiles {
	var now folderState
	var st unix.Stat_t
	if unix.Stat(f.dir, &st) == nil {
		now = folderState{uint64(st.Dev), st.Ino, st.Ctim}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil || f.was != now || time.Since(time.Unix(now.changed.Unix())) < settled {
		f.was, f.have = now, map[inventory.Arch]provision.RamdiskFiles{}
	}
	files, known := f.have[arch]
	if !known {
		files = f.look(arch)
		f.have[arch] = files
	}
	return files
}

func (f *ramdiskFolder) look(arch inventory.Arch) (files provision.RamdiskFiles) {
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(f.dir, name))
		return err == nil
	}
	kernel, initrd, _ := image.RamdiskNames(arch)
	if !there(kernel) || !there(initrd) {
		return files
	}
	files.Kernel, files.Initrd = web.RamdiskPath+kernel, web.RamdiskPath+initrd
	if name := image.UnifiedName(arch); there(name) {
		files.Unified = web.RamdiskPath + name
	}
	if name := image.UnsignedName(arch); there(name) {
		files.Unsigned = web.RamdiskPath + name
	}
	return files
}
