package testenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

const bootTag = 100

// bootVLAN has the machine on a trunk that carries one VLAN, and the server on an
// access port of that: whatever the machine says without a tag is lost. Its
// firmware is set up for the VLAN, as by a person in its menu. What lies behind the
// router is reached by a route, which the ramdisk takes too.
var bootVLAN = bootNetwork{
	segments: []string{bootSegment},
	declare:  bootNetworkYAML + fmt.Sprintf("subnet: 10.77.0.0/24, vlan: %d, routes: [{to: 10.99.0.0/16, via: 10.77.0.9}], dhcp: authoritative, pool: 10.77.0.100-10.77.0.199}\n", bootTag),
	arrange: func(s *story) {
		var sw Switch
		s.t.Cleanup(func() { s.must(sw.Close()) })
		for _, p := range []struct {
			tap, bridge string
			PortConfig
		}{
			{"sw-access", NetBridge, PortConfig{Access: bootTag}},
			{"sw-trunk", bootSegment, PortConfig{Trunk: []uint16{bootTag}}},
		} {
			s.must(s.Net.Do(func() error {
				tap, err := NewTap(p.tap)
				if err == nil {
					sw.Plug(tap, p.PortConfig)
				}
				return err
			}))
			s.must(s.Net.ip("link set " + p.tap + " master " + p.bridge + " up"))
		}
		n := s.Node("m1")
		empty, err := os.ReadFile(qemuOVMFVars)
		s.must(err)
		vars, err := ovmfVLAN(empty, n.NICs[0].MAC, bootTag)
		s.must(err)
		s.must(os.WriteFile(filepath.Join(n.Dir, "vars.fd"), vars, 0o644))
	},
}

// ovmfVLAN adds to a variable store that holds none what edk2's VLAN menu would
// leave: the tags of a card, under its address (MnpVlan.c).
func ovmfVLAN(empty []byte, mac string, vid uint16) ([]byte, error) {
	// EFI_FIRMWARE_VOLUME_HEADER has its length at 48; VARIABLE_STORE_HEADER follows.
	if len(empty) < 128 {
		return nil, errors.New("add VLAN to the firmware's variables: no variable store")
	}
	at := int(binary.LittleEndian.Uint16(empty[48:])) + 28
	if at+256 > len(empty) || binary.LittleEndian.Uint16(empty[at:]) == 0x55aa {
		return nil, errors.New("add VLAN to the firmware's variables: the store is not empty")
	}
	guid := []byte{0x68, 0xd7, 0x23, 0x9e, 0xf3, 0xd2, 0x66, 0x43, 0x9f, 0xc3, 0x3a, 0x7a, 0xba, 0x86, 0x43, 0x74}
	var name []byte
	for _, c := range append(utf16.Encode([]rune(strings.ToUpper(strings.ReplaceAll(mac, ":", "")))), 0) {
		name = binary.LittleEndian.AppendUint16(name, c)
	}
	// AUTHENTICATED_VARIABLE_HEADER
	v := binary.LittleEndian.AppendUint16(nil, 0x55aa)
	v = append(v, 0x3f, 0)                     // added
	v = binary.LittleEndian.AppendUint32(v, 3) // non-volatile, boot services
	v = append(v, make([]byte, 8+16+4)...)     // count, time, key
	v = binary.LittleEndian.AppendUint32(v, uint32(len(name)))
	v = binary.LittleEndian.AppendUint32(v, 2)
	v = append(append(v, guid...), name...)
	v = binary.LittleEndian.AppendUint16(v, vid)
	out := bytes.Clone(empty)
	copy(out[at:], v)
	return out, nil
}

// tagged checks that the machine got its address, and nobody else any, and that the
// kernel's arguments name the VLAN to the ramdisk.
func (b bootSeen) tagged(t *testing.T) {
	t.Helper()
	console, err := os.ReadFile(b.console)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprintf("eth0.%d has address 10.77.0.1", bootTag)} {
		if !bytes.Contains(console, []byte(want)) {
			t.Errorf("the ramdisk does not say %q", want)
		}
	}
}
