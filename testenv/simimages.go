package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"recast/image"
	"recast/inventory"
)

// simImageBytes is the size of the image that simulated machines run: no firmware
// could start it, all of recast takes it for one.
const simImageBytes = 6 * osMiB

// SimImages writes into dir the images that the simulated machines of the rack
// run, each as NAME.img, and gives their digests by group.
func (r *Rack) SimImages(dir string) (map[string]inventory.Digest, error) {
	out := map[string]inventory.Digest{}
	for i, group := range r.groups() {
		if group == rackGroup {
			continue
		}
		raw := SimImage(simImageBytes, uint64(i+1))
		if err := os.WriteFile(filepath.Join(dir, group+".img"), raw, 0o644); err != nil {
			return nil, fmt.Errorf("write the image of simulated machines: %w", err)
		}
		out[group] = inventory.DigestOf(raw)
	}
	return out, nil
}

// SimRamdisk writes into dir what simulated machines fetch for a ramdisk: their
// agent runs in their own process, so that only the fetch is real. Files that are
// there stay.
func SimRamdisk(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the ramdisk of simulated machines: %w", err)
	}
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		kernel, initrd, _ := image.RamdiskNames(arch)
		for _, name := range []string{kernel, initrd, image.UnsignedName(arch)} {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, os.ErrExist) {
				break // a real one's, or all of them
			}
			if err != nil {
				return fmt.Errorf("write the ramdisk of simulated machines: %w", err)
			}
			_, err = f.Write(bytes.Repeat([]byte(name), 10000))
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("write the ramdisk of simulated machines: %w", err)
			}
		}
	}
	return nil
}
