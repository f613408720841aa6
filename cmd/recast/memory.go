package main

import (
	"bytes"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// roomPercent lets garbage be three times what lives: collecting it takes as long
	// however much there is, and boot scripts wait meanwhile.
	roomPercent = 300
	// smallHost has no memory to spare: there it is once what lives, Go's default.
	smallHost = 4 << 30
)

// makeRoom lets the heap have memory where the host has it, at the most half of it.
// Who sets GOGC or GOMEMLIMIT has decided otherwise.
func makeRoom() {
	if os.Getenv("GOGC")+os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if have := memory("/proc/self/cgroup", "/sys/fs/cgroup"); have >= smallHost {
		debug.SetGCPercent(roomPercent)
		debug.SetMemoryLimit(have / 2)
	}
}

// memory that this process may use: the host's, or less by the limit (memory.max) of
// its control group or of one above it. 0: not known.
func memory(group, root string) int64 {
	var host unix.Sysinfo_t
	if unix.Sysinfo(&host) != nil {
		return 0
	}
	have := int64(min(uint64(host.Totalram)*uint64(host.Unit), math.MaxInt64))
	raw, _ := os.ReadFile(group) // none: there are no control groups
	for line := range bytes.Lines(raw) {
		name, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "0::") // version 2
		for ; ok && len(name) > 0; name = path.Dir(name) {
			limit, _ := os.ReadFile(path.Join(root, name, "memory.max"))
			if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err == nil { // else none, or "max"
				have = min(have, n)
			}
			if name == "/" || name == "." {
				break
			}
		}
	}
	return have
}
