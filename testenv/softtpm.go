package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SoftTPM is the TPM 2.0 of a machine without firmware. It keeps its seeds in its
// folder; each start clears its registers, as a machine's does.
type SoftTPM struct {
	net.Conn
	cmd *exec.Cmd
}

// StartSoftTPM needs swtpm.
func StartSoftTPM(dir string) (*SoftTPM, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the TPM's folder: %w", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make the TPM's socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "tpm")
	defer ours.Close()
	defer theirs.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, fmt.Errorf("open the TPM's log: %w", err)
	}
	defer log.Close()
	t := &SoftTPM{cmd: exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir=.", "--fd", "3", "--flags", "not-need-init,startup-clear")}
	t.cmd.Dir, t.cmd.Stdout, t.cmd.Stderr, t.cmd.ExtraFiles = dir, log, log, []*os.File{theirs}
	if t.Conn, err = net.FileConn(ours); err != nil {
		return nil, fmt.Errorf("make the TPM's socket: %w", err)
	}
	if err := t.cmd.Start(); err != nil {
		t.Conn.Close()
		return nil, fmt.Errorf("start swtpm (apt-get install swtpm): %w", err)
	}
	return t, nil
}

// Stop ends it as a power cut does.
func (t *SoftTPM) Stop() {
	t.Conn.Close()
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
}
