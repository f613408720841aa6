package provision

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"recast/image"
	"recast/inventory"
)

// mbrCode is how much of the first sector a BIOS runs.
const mbrCode = 440

// bootCode adds to a gate what a BIOS runs before any file system is read: the beginning
// of the disk, and the partitions that are set aside for it.
func (g *Gate) bootCode(img *image.Reader) error {
	code := make([]byte, mbrCode)
	if _, err := img.ReadAt(code, 0); err != nil {
		return err
	}
	if len(bytes.Trim(code, "\x00")) == 0 {
		return nil // it boots by UEFI alone
	}
	parts := img.Manifest.Layout.BIOSBoot()
	if g.OnMismatch == inventory.MismatchRestore {
		parts = nil // all but its state is there
	}
	for _, p := range parts {
		if !slices.ContainsFunc(g.Regions, func(r inventory.Region) bool { return r.Start == p.Start }) {
			g.Regions = append(g.Regions, inventory.Region{Name: strconv.Itoa(p.Number), Start: p.Start, End: p.End})
		}
	}
	g.Regions = append(g.Regions, inventory.Region{Name: "boot code", Start: 0, End: mbrCode})
	return nil
}

// gateKernel finds the kernel of an image in regions that are proved. It is kept where it
// stands and what it is: to find that takes reading it.
func (e *Engine) gateKernel(img *image.Reader, b inventory.ImageBoot, regions []inventory.Region) (*inventory.JobKernel, error) {
	p, err := img.Manifest.Layout.Find(b.Partition)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(regions, func(r inventory.Region) bool { return r.Start <= p.Start && p.End <= r.End }) {
		return nil, fmt.Errorf("partition %s is not proved, and only what was proved is started", b.Partition)
	}
	return e.kernels.get(fmt.Sprintf("%x %q", img.Manifest.Digest, b), func() (*inventory.JobKernel, error) {
		out := &inventory.JobKernel{Args: strings.Join(b.Args, " ")}
		var err error
		if out.Kernel, err = img.File(p.Start, p.End, b.Kernel); err != nil {
			return nil, fmt.Errorf("partition %s: %w", b.Partition, err)
		}
		if b.Initrd != "" {
			initrd, err := img.File(p.Start, p.End, b.Initrd)
			if err != nil {
				return nil, fmt.Errorf("partition %s: %w", b.Partition, err)
			}
			out.Initrd = &initrd
		}
		return out, nil
	})
}

// consoled gives a kernel whose arguments name no console those of the ramdisk's.
func consoled(k inventory.JobKernel, m *inventory.Machine) *inventory.JobKernel {
	if m != nil && !strings.HasPrefix(k.Args, "console=") && !strings.Contains(k.Args, " console=") {
		k.Args = strings.TrimSpace(k.Args + " " + strings.Join(m.Boot.ConsoleArgs(m.Arch), " "))
	}
	return &k
}
