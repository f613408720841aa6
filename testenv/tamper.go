package testenv

import (
	"fmt"
	"os"

	"recast/pack"
)

// Tamper flips every bit of one byte of a partition, named by its GPT name or number,
// on a disk that is a plain file, and tells where on the disk it stands. Nothing else
// may have the disk open.
func Tamper(path, region string, offset int64) (at int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("tamper: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("tamper: %w", err)
	}
	first := make([]byte, min(info.Size(), pack.MiB))
	if _, err := f.ReadAt(first, 0); err != nil {
		return 0, fmt.Errorf("tamper: read the partition table: %w", err)
	}
	first, _ = pack.Resumed(first) // a repair may have been cut
	layout, _, err := pack.ParseLayout(first, info.Size())
	if err != nil {
		return 0, fmt.Errorf("tamper: %w", err)
	}
	p, err := layout.Find(region)
	if err != nil {
		return 0, fmt.Errorf("tamper: %w", err)
	}
	if offset < 0 || offset >= p.End-p.Start {
		return 0, fmt.Errorf("tamper: partition %s has bytes 0 to %d, not %d", region, p.End-p.Start-1, offset)
	}
	at = p.Start + offset
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return 0, fmt.Errorf("tamper: %w", err)
	}
	b[0] = ^b[0]
	if _, err := f.WriteAt(b, at); err != nil {
		return 0, fmt.Errorf("tamper: %w", err)
	}
	return at, f.Sync()
}

// Tamper flips a byte on the first disk of a machine that is off; see Tamper.
func (r *Rack) Tamper(name, region string, offset int64) (Tampered, error) {
	m, err := r.member(name)
	if err != nil {
		return Tampered{}, err
	}
	if m.machine.Powered() {
		return Tampered{}, fmt.Errorf("%s is on, and may write its disk at any moment: recast power off %s first", name, name)
	}
	path := m.disk
	if m.simulated != nil {
		path = m.simulated.Disks[0].Path
	}
	at, err := Tamper(path, region, offset)
	return Tampered{Disk: path, At: at}, err
}
