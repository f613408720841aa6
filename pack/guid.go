package pack

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID as it stands on disk: the first three fields are little-endian (UEFI
// specification, appendix A).
type GUID [16]byte

// Partition types, from the UEFI specification and the Discoverable Partitions
// Specification.
var (
	TypeESP        = MustGUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
	TypeBIOSBoot   = MustGUID("21686148-6449-6E6F-744E-656564454649")
	TypeLinux      = MustGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
	TypeBasicData  = MustGUID("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7")
	TypeLinuxRootX = MustGUID("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709")
)

// ParseGUID takes 8-4-4-4-12 hex digits in either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("parse GUID %q: want 8-4-4-4-12 hex digits", s)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != len(g) {
		return g, fmt.Errorf("parse GUID %q: want 8-4-4-4-12 hex digits", s)
	}
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(raw[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(raw[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(raw[6:]))
	copy(g[8:], raw[8:])
	return g, nil
}

// MustGUID is ParseGUID for constants.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// String is upper case, as sgdisk prints it.
func (g GUID) String() string {
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X",
		binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}
