// Package pack is recast's image format: a disk image as one zstd file of
// independent frames, the manifest that lists and proves every chunk, the index
// by which its blocks are found elsewhere, the difference to another image, and
// the partition table as it shall stand on one particular disk.
//
// A pack is a plain zstd file (RFC 8878) with one frame for each MiB of the
// unpacked image, in order and without gaps: "zstd -d" restores the image, and
// any HTTP server can hand out single frames by Range. A chunk of zeros (a
// hole) has its frame too, 115 bytes, so the size always comes out right.
//
// In the ramdisk the order of work is:
//
//	m, err := ParseManifest(b)            // after checking b's own digest
//	t, err := RenderTable(m, chunk, …)    // chunk fetches and decodes one frame
//	x, err := ParseIndex(b, m)            // nil will do, and so will no difference
//	d, err := ParseDifference(b, x)
//	f, err := Scan(ctx, disk, m, x, t, …) // what of the image stands where
//	p := NewPlan(f, d, room)              // where each block will come from
//	… carry out p, chunk 0 left out …
//	err = Read(…)                         // read back: Decide must say Right of all
//	… write t.Last, then t.First …
//
// The package does no network I/O, keeps no clock and imports nothing else of
// recast, so that the ramdisk stays small.
package pack

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	// ChunkSize is the size of every chunk but the last. One MiB is large
	// enough that zstd loses little against one long frame and small enough
	// that a broken transfer repeats little.
	ChunkSize = 1 << 20
	// MaxImageSize bounds what a manifest may describe.
	MaxImageSize = 256 << 30
	// MaxManifestSize bounds the bytes that ParseManifest looks at: an image of
	// MaxImageSize needs 12.7 MB.
	MaxManifestSize = 16 << 20
	// MaxFrameSize bounds one frame: zstd stores what does not compress in
	// blocks of 128 KiB with 3 bytes each, plus header and checksum.
	MaxFrameSize = ChunkSize + 1024
	// Version of the manifest's form.
	Version = 1
)

// Digest is a SHA-256 sum, written "sha256:" and 64 hex digits.
type Digest [sha256.Size]byte

const digestPrefix = "sha256:"

func (d Digest) String() string { return digestPrefix + d.Hex() }

// Hex is the 64 digits alone: the name of a blob.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// MarshalText writes the form of String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText takes the form of String, lower case only.
func (d *Digest) UnmarshalText(text []byte) error {
	rest, ok := strings.CutPrefix(string(text), digestPrefix)
	if !ok || len(rest) != hex.EncodedLen(len(d)) || strings.ToLower(rest) != rest {
		return fmt.Errorf("parse digest %q: want %q and 64 lower-case hex digits", text, digestPrefix)
	}
	if _, err := hex.Decode(d[:], []byte(rest)); err != nil {
		return fmt.Errorf("parse digest %q: %w", text, err)
	}
	return nil
}
