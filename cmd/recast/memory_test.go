package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryIsTheHostsUnlessAControlGroupHasLess(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	group := filepath.Join(dir, "cgroup")
	host := memory(group, dir)
	if host < 64<<20 {
		t.Fatalf("a host with %d bytes of memory", host)
	}
	write("cgroup", "12:pids:/x\n0::/system.slice/recast.service\n")
	write("system.slice/recast.service/memory.max", "max\n")
	if got := memory(group, dir); got != host {
		t.Errorf("%d bytes in a group without a limit, the host has %d", got, host)
	}
	write("system.slice/memory.max", "50331648\n")
	if got := memory(group, dir); got != 48<<20 {
		t.Errorf("%d bytes, and the group above allows 48 MiB", got)
	}
	write("system.slice/recast.service/memory.max", "33554432\n")
	if got := memory(group, dir); got != 32<<20 {
		t.Errorf("%d bytes, and the group allows 32 MiB", got)
	}
}
