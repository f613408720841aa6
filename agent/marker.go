package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"recast/fat"
	"recast/inventory"
	"recast/pack"
)

// markerFile is where a disk says what was written to it.
const markerFile = "recast.json"

// configLabels are the names of our own partition: with cloud-init's files in
// it, and without.
var configLabels = []string{"CIDATA", "RECAST"}

// ReadMarker looks for our config partition on a disk and reads what it says;
// nil where there is none. The disk is read only.
func ReadMarker(disk io.ReaderAt, size int64) (*inventory.Marker, error) {
	b, err := ReadConfigFile(disk, size, markerFile)
	if err != nil || b == nil {
		return nil, err
	}
	var m inventory.Marker
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", markerFile, err)
	}
	return &m, nil
}

// ReadConfigFile reads one file of our config partition on a disk; nil where
// the disk has no such partition or file.
func ReadConfigFile(disk io.ReaderAt, size int64, name string) ([]byte, error) {
	first := make([]byte, min(size, MiB))
	if _, err := disk.ReadAt(first, 0); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	first, _ = pack.Resumed(first)
	layout, _, err := pack.ParseLayout(first, size)
	if err != nil || layout.Scheme != pack.SchemeGPT {
		return nil, nil // no table, or one of somebody else's that is broken
	}
	for _, p := range layout.Partitions {
		if !slices.Contains(configLabels, p.Name) {
			continue
		}
		var b []byte
		v, err := fat.Open(io.NewSectionReader(disk, p.Start, p.End-p.Start), p.End-p.Start)
		if err == nil {
			b, err = v.ReadFile(name, maxSmallFile)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // a CIDATA of somebody else's
		}
		if err != nil {
			return nil, fmt.Errorf("read %s on partition %q: %w", name, p.Name, err)
		}
		return b, nil
	}
	return nil, nil
}

// maxSmallFile bounds a file that is read from a volume.
const maxSmallFile = 64 << 10
