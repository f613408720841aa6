// Command loader is the init of a test's ramdisk: it loads every module of the
// index with what the index says it needs, names each that does not load, and
// switches the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"syscall"
	"unsafe"
)

var index struct {
	Kernel  string
	Modules map[string]struct {
		Path               string
		Depends, Pre, Post []string
	}
	Load []string
}

// done holds every module that was tried, true for those that loaded.
var done = map[string]bool{}

func load(name string) {
	if _, ok := done[name]; ok {
		return
	}
	done[name] = false
	m, ok := index.Modules[name]
	if !ok {
		fmt.Printf("LOADER bad %s: not in the index\n", name)
		return
	}
	for _, d := range append(m.Depends, m.Pre...) {
		load(d)
	}
	f, err := os.Open(m.Path)
	if err != nil {
		fmt.Printf("LOADER bad %s: %v\n", name, err)
		return
	}
	empty := []byte{0}
	_, _, e := syscall.Syscall(313 /* finit_module */, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0)
	f.Close()
	switch {
	case e == 0:
		done[name] = true
		fmt.Printf("LOADER ok %s\n", name)
	case errors.Is(e, syscall.ENODEV), errors.Is(e, syscall.ENXIO), // linked; its hardware is not there
		errors.Is(e, syscall.ENOENT) && !all(m.Depends): // nor what it stands on
		fmt.Printf("LOADER idle %s\n", name)
	default:
		fmt.Printf("LOADER bad %s: %v\n", name, e)
	}
	for _, d := range m.Post {
		load(d)
	}
}

func all(names []string) bool {
	for _, n := range names {
		if !done[n] {
			return false
		}
	}
	return true
}

func main() {
	b, err := os.ReadFile("/lib/modules/modules.json")
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		fmt.Println("LOADER bad index:", err)
	}
	for _, name := range index.Load {
		load(name)
	}
	var names []string
	for name := range index.Modules {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		load(name)
	}
	os.Mkdir("/mnt", 0o755)
	if err := syscall.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		fmt.Println("LOADER bad sysfs:", err)
	}
	for _, disk := range []string{"sda", "vda"} {
		if _, err := os.Stat("/sys/block/" + disk); err != nil {
			fmt.Println("LOADER bad disk:", err)
		}
	}
	fmt.Println("LOADER end")
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
