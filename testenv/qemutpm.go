package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// startTPM starts the chip of a machine that is about to start, as a process of its
// own, which keeps what it holds in the machine's folder and ends with the other end of
// its socket. The caller gives that to QEMU and closes it, and waits for the process.
func (m *QEMU) startTPM() (*exec.Cmd, *os.File, error) {
	state := filepath.Join(m.Dir, "tpm")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the TPM's folder: %w", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the TPM's socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "tpm")
	defer theirs.Close()
	log, err := os.OpenFile(filepath.Join(m.Dir, "tpm.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		ours.Close()
		return nil, nil, fmt.Errorf("open the TPM's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir=tpm", "--ctrl", "type=unixio,clientfd=3", "--terminate")
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.Dir, log, log
	cmd.ExtraFiles = []*os.File{theirs}
	if err := m.Net.Start(cmd); err != nil {
		ours.Close()
		return nil, nil, fmt.Errorf("start swtpm (apt-get install swtpm): %w", err)
	}
	return cmd, ours, nil
}
