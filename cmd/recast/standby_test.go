package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startEtcd runs one member on unix sockets, and gives its endpoint.
func startEtcd(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("needs etcd (apt-get install etcd-server)")
	}
	dir, err := os.MkdirTemp("", "etcd-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("etcd", "--data-dir", "data", "--logger", "zap", "--log-outputs", "stderr",
		"--listen-client-urls", "unix://localhost:1", "--advertise-client-urls", "unix://localhost:1",
		"--listen-peer-urls", "unix://localhost:2", "--initial-advertise-peer-urls", "unix://localhost:2",
		"--initial-cluster", "default=unix://localhost:2")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); os.RemoveAll(dir) })
	return "unix://" + filepath.Join(dir, "localhost:1")
}

// TestOneServerOfAClusterServes: the other stands by, and takes over from one
// that was killed.
func TestOneServerOfAClusterServes(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	endpoint := startEtcd(t)
	var dirs []string
	for range 2 {
		dir := t.TempDir()
		text := fmt.Sprintf("boot: 127.0.0.1:%d\nagent: 127.0.0.1:%d\nstore: {endpoints: [%q]}\n", freePort(t), freePort(t), endpoint)
		if err := os.WriteFile(filepath.Join(dir, "recast.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	first := startServer(t, dirs[0])
	for _, name := range []string{"key.age", "operator.token"} {
		raw, err := os.ReadFile(filepath.Join(dirs[0], name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dirs[1], name), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	second := launchServer(t, dirs[1])
	await(t, "the second to stand by", func() bool { return strings.Contains(second.text(t), "standing by") })
	if line := second.text(t); !strings.Contains(line, fmt.Sprintf("(pid %d) since", first.Process.Pid)) || strings.Count(line, "standing by") != 1 {
		t.Errorf("it says %q", line)
	}
	// A stopped store's verbs keep out of one that is held.
	text, code := recast(t, nil, "store", "backup", filepath.Join(t.TempDir(), "b"), "--config", filepath.Join(dirs[1], "recast.yaml"))
	if code != exitError || !strings.Contains(text, "another recast holds this store") {
		t.Errorf("backup of a held store: %d %s", code, text)
	}
	if err := first.stop(t, syscall.SIGKILL); err == nil {
		t.Error("it was not killed")
	}
	second.serves(t, dirs[1])
	third := launchServer(t, dirs[0])
	await(t, "the third to stand by", func() bool { return strings.Contains(third.text(t), "standing by") })
	if err := second.stop(t, syscall.SIGTERM); err != nil {
		t.Errorf("it ends with %v", err)
	}
	third.serves(t, dirs[0])
}
