package testenv

import (
	"fmt"
	"path/filepath"

	"recast/inventory"
	"recast/tpm"
)

// simChip is what can be changed of a simulated machine's TPM.
type simChip struct {
	number   int    // of the chip on its board
	firmware string // that it measures
	gone     bool   // switched off in the setup
	// arguments that are added to those of its kernel.
	arguments string
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

// SetBootArguments has somebody between the server and the machine add to the kernel's
// arguments.
func (s *Simulated) SetBootArguments(more string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chip.arguments = more
}

// simTPM is the chip of a start, and what its firmware logged.
type simTPM struct {
	*SoftTPM
	log []byte
}

// startTPM starts the chip of a start, nil for none, and measures into it as firmware
// does, and a kernel that got these arguments.
func (s *Simulated) startTPM(arguments string) (*simTPM, error) {
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
	lines := []Measured{{0, inventory.DigestOf([]byte(c.firmware))},
		{tpm.KernelPCR, inventory.NewDigest(tpm.ArgumentsDigest(arguments))}, {tpm.KernelPCR, inventory.DigestOf([]byte("initrd"))}}
	for _, l := range lines {
		if err := chip.Measure(l); err != nil {
			chip.Stop()
			return nil, err
		}
	}
	return &simTPM{chip, EventLog(lines...)}, nil
}

// TPM implements agent.Machine.
func (h simHardware) TPM() (*tpm.Chip, error) {
	if h.chip == nil {
		return nil, nil
	}
	return tpm.On(h.chip.Conn, func() ([]byte, error) { return h.chip.log, nil })
}
