package testenv

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
	"golang.org/x/sys/unix"

	"recast/inventory"
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

// Measured is a line of a firmware's log.
type Measured struct {
	PCR    int
	Digest inventory.Digest
}

// Measure extends a register, as firmware and what it starts do.
func (t *SoftTPM) Measure(m Measured) error {
	sum, err := m.sum()
	if err == nil {
		err = tpm2.PCRExtend(t, tpmutil.Handle(m.PCR), tpm2.AlgSHA256, sum, "")
	}
	if err != nil {
		return fmt.Errorf("measure into PCR %d: %w", m.PCR, err)
	}
	return nil
}

func (m Measured) sum() ([]byte, error) { return hex.DecodeString(m.Digest.Hex()) }

// EventLog is a firmware's log (TCG PC Client Platform Firmware Profile, 10.4), with
// digests of SHA-256 alone.
func EventLog(lines ...Measured) []byte {
	const bank = 0x0b // SHA-256
	le := binary.LittleEndian
	spec := le.AppendUint32([]byte("Spec ID Event03\x00"), 0)
	spec = le.AppendUint32(append(spec, 0, 2, 0, 2), 1)
	spec = append(le.AppendUint16(le.AppendUint16(spec, bank), 32), 0)
	b := le.AppendUint32(le.AppendUint32(nil, 0), 3) // EV_NO_ACTION
	b = append(le.AppendUint32(append(b, make([]byte, 20)...), uint32(len(spec))), spec...)
	for _, l := range lines {
		b = le.AppendUint32(le.AppendUint32(b, uint32(l.PCR)), 0x0d) // EV_IPL
		b = le.AppendUint16(le.AppendUint32(b, 1), bank)
		sum, _ := l.sum()
		b = append(b, sum...)
		b = append(le.AppendUint32(b, 4), "line"...)
	}
	return b
}

// Stop ends it as a power cut does.
func (t *SoftTPM) Stop() {
	t.Conn.Close()
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
}
