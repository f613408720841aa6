package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest names content by its SHA-256: "sha256:" and 64 lower-case hex digits.
// The zero value means "no digest"; every other value came through
// ParseDigest, DigestOf or NewDigest and is well formed.
type Digest string

const digestPrefix = "sha256:"

// ParseDigest accepts "sha256:" followed by 64 hex digits in either case.
func ParseDigest(s string) (Digest, error) {
	rest, ok := strings.CutPrefix(s, digestPrefix)
	if !ok {
		return "", fmt.Errorf("parse digest %q: it does not start with %q", s, digestPrefix)
	}
	raw, err := hex.DecodeString(rest)
	if err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("parse digest %q: want 64 hex digits after %q", s, digestPrefix)
	}
	return Digest(digestPrefix + hex.EncodeToString(raw)), nil
}

// DigestOf hashes b.
func DigestOf(b []byte) Digest { return NewDigest(sha256.Sum256(b)) }

// NewDigest wraps a finished SHA-256 sum.
func NewDigest(sum [sha256.Size]byte) Digest {
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

func (d Digest) String() string { return string(d) }

// Hex is the 64 hex digits without the algorithm: safe as a file name.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Short is the first 12 hex digits, for people.
func (d Digest) Short() string {
	h := d.Hex()
	if len(h) > 12 {
		return h[:12]
	}
	return h
}

// UnmarshalText refuses anything but a well-formed digest or the empty string.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = ""
		return nil
	}
	p, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = p
	return nil
}
