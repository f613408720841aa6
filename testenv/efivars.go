package testenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
)

// efiGlobal is EFI_GLOBAL_VARIABLE, as it stands in memory.
var efiGlobal = []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}

// efiHTTPOption is the number of the boot option that HttpBootUri becomes; firmware
// counts its own from 0.
const efiHTTPOption = 0x2acf

var errEFIStore = errors.New("not the variables of OVMF")

// efiUTF16 is a word as UEFI writes it, ended by a zero.
func efiUTF16(word string) (out []byte) {
	for _, c := range utf16.Encode([]rune(word + "\x00")) {
		out = binary.LittleEndian.AppendUint16(out, c)
	}
	return out
}

// efiSetVariable stores a global variable that lasts (non-volatile, boot and
// runtime services) in OVMF's variables while no machine runs on them: behind the
// last one, an old one of the name being marked as deleted (edk2, VariableFormat.h).
func efiSetVariable(vars []byte, variable string, data []byte) ([]byte, error) {
	// VARIABLE_STORE_HEADER, AUTHENTICATED_VARIABLE_HEADER, and its states.
	const storeHeader, header, start, added, deleted = 28, 60, 0x55aa, 0x3f, 0x3d
	le := binary.LittleEndian
	if len(vars) < 128 {
		return nil, fmt.Errorf("set the firmware's variable %s: %w", variable, errEFIStore)
	}
	volume := int(le.Uint16(vars[48:])) // length of EFI_FIRMWARE_VOLUME_HEADER
	if volume+storeHeader > len(vars) {
		return nil, fmt.Errorf("set the firmware's variable %s: %w", variable, errEFIStore)
	}
	end := volume + int(le.Uint32(vars[volume+16:])) // of the store, header included
	if end > len(vars) || end < volume+storeHeader {
		return nil, fmt.Errorf("set the firmware's variable %s: %w", variable, errEFIStore)
	}
	vars = bytes.Clone(vars)
	name := efiUTF16(variable)
	at := volume + storeHeader
	for at+header < end && le.Uint16(vars[at:]) == start {
		nameLen, dataLen := int(le.Uint32(vars[at+36:])), int(le.Uint32(vars[at+40:]))
		next := at + header + nameLen + dataLen
		if nameLen < 0 || dataLen < 0 || next < at || next > end {
			return nil, fmt.Errorf("set the firmware's variable %s: %w", variable, errEFIStore)
		}
		if vars[at+2] == added && bytes.Equal(vars[at+44:at+60], efiGlobal) && bytes.Equal(vars[at+header:at+header+nameLen], name) {
			vars[at+2] = deleted
		}
		at = (next + 3) &^ 3
	}
	entry := le.AppendUint16(nil, start)
	entry = append(entry, added, 0)
	entry = le.AppendUint32(entry, 7)
	entry = append(entry, make([]byte, 8+16+4)...) // count, time, key
	entry = le.AppendUint32(entry, uint32(len(name)))
	entry = le.AppendUint32(entry, uint32(len(data)))
	entry = append(append(append(entry, efiGlobal...), name...), data...)
	if at+len(entry) > end || len(bytes.Trim(vars[at:at+len(entry)], "\xff")) > 0 {
		return nil, fmt.Errorf("set the firmware's variable %s: there is no room for %d bytes", variable, len(entry))
	}
	copy(vars[at:], entry)
	return vars, nil
}

// efiBootHTTP makes the next start one by HTTP from the address: a boot option
// whose path is the address alone, which firmware completes with each of its cards
// (UEFI 2.10, 3.1.2), named by BootNext, which firmware forgets as it obeys.
func efiBootHTTP(vars []byte, uri string) ([]byte, error) {
	le := binary.LittleEndian
	path := append(le.AppendUint16([]byte{3, 24}, uint16(4+len(uri))), uri...) // messaging, URI
	path = append(path, 0x7f, 0xff, 4, 0)                                      // the end
	option := le.AppendUint32(nil, 1)                                          // active
	option = le.AppendUint16(option, uint16(len(path)))
	option = append(append(option, efiUTF16("HttpBootUri")...), path...)
	vars, err := efiSetVariable(vars, fmt.Sprintf("Boot%04X", efiHTTPOption), option)
	if err != nil {
		return nil, err
	}
	return efiSetVariable(vars, "BootNext", le.AppendUint16(nil, efiHTTPOption))
}
