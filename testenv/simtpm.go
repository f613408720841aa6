package testenv

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/go-tpm/legacy/tpm2"

	"recast/tpm"
)

// simChip is what can be changed of a simulated machine's TPM.
type simChip struct {
	number   int    // of the chip on its board
	firmware string // that it measures
	gone     bool   // switched off in the setup
}

// SwapTPM puts another chip on its board, as with the board itself.
func (s *Simulated) SwapTPM() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chip.number++
}

// SetTPMOff switches it off in the firmware's setup, or on again.
func (s *Simulated) SetTPMOff(off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chip.gone = off
}

// SetFirmware installs another version of its firmware, which its TPM measures.
func (s *Simulated) SetFirmware(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chip.firmware = version
}

// startTPM starts the chip of a start, nil for none, and measures into it as firmware
// does.
func (s *Simulated) startTPM() (*SoftTPM, error) {
	s.mu.Lock()
	c := s.chip
	s.mu.Unlock()
	if !s.Options.TPM || c.gone {
		return nil, nil
	}
	chip, err := StartSoftTPM(filepath.Join(s.Options.Dir, fmt.Sprintf("%s-tpm%d", s.Options.Name, c.number)))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(c.firmware))
	if err := tpm2.PCRExtend(chip, 0, tpm2.AlgSHA256, sum[:], ""); err != nil {
		chip.Stop()
		return nil, fmt.Errorf("measure the firmware: %w", err)
	}
	return chip, nil
}

// TPM implements agent.Machine.
func (h simHardware) TPM() (*tpm.Chip, error) {
	if h.chip == nil {
		return nil, nil
	}
	return tpm.On(h.chip.Conn, func() ([]byte, error) { return nil, errors.New("it keeps no log") })
}
