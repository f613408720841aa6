package testenv

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

// cdThatSays is an ISO 9660 image whose boot sector says a line on the first
// serial port and halts (El Torito, without emulation).
func cdThatSays(text string) []byte {
	const sector = 2048
	image := make([]byte, 21*sector)
	copy(image[16*sector:], "\x01CD001\x01\x00")
	binary.LittleEndian.PutUint32(image[16*sector+80:], 21) // size of the volume, in either order
	binary.BigEndian.PutUint32(image[16*sector+84:], 21)
	copy(image[17*sector:], "\x00CD001\x01EL TORITO SPECIFICATION")
	image[17*sector+71] = 19 // the catalog
	copy(image[18*sector:], "\xffCD001\x01")
	catalog := image[19*sector:]
	catalog[0], catalog[30], catalog[31] = 1, 0x55, 0xaa // validation entry: its words add up to zero
	binary.LittleEndian.PutUint16(catalog[28:], -(0x0001+0xaa55)&0xffff)
	catalog[32], catalog[38], catalog[40] = 0x88, 1, 20 // bootable; one sector of 512 bytes; where
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x16, 0x7c, // mov si, text
		0xba, 0xf8, 0x03, // mov dx, 3f8h
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz end
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
		0xf4,       // end: hlt
		0xeb, 0xfd, // jmp end
	}
	copy(image[20*sector:], code)
	copy(image[20*sector+len(code):], text)
	return image
}

func TestQEMUBootsFromVirtualMedia(t *testing.T) {
	const said = "recast: from the virtual CD"
	image := redfishImageServer(t, cdThatSays(said+"\r\n"))
	m := qemuForTest(t, FirmwareBIOS, BusAHCI)
	m.Drive = true
	b := redfishBMC(t, m, RedfishOptions{})
	cd := patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"Cd","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"Legacy"}}`, 204, "")
	start := func(kind, text string, n int) {
		t.Helper()
		reset(kind, 204).run(t, b)
		awaitConsole(t, m, text, n, 3*time.Minute)
	}
	redfishInsertStep(image, "", 204).run(t, b) // while it is off
	cd.run(t, b)
	start("On", said, 1)
	redfishEjectStep(204).run(t, b)
	redfishInsertStep(image, "", 204).run(t, b) // while it is on
	cd.run(t, b)
	start("ForceRestart", said, 2)
	get(redfishTestSystem, "Boot/BootSourceOverrideEnabled", "Disabled").run(t, b)
	reset("Nmi", 204).run(t, b)
	// Once is once: the disk is first again, though the medium is still in.
	start("ForceRestart", "recast-tiny: machine=", 1)
	get(redfishTestDrive, "Inserted", "true").run(t, b)
	redfishEjectStep(204).run(t, b)
	if m.medium != nil {
		t.Error("the medium is still in the machine")
	}
	// The BMC saw every change of the power.
	reset("ForceOff", 204).run(t, b)
	_, _, answer := redfishDo(t, b, "GET", redfishTestSystem+"/LogServices/SEL/Entries", "", nil)
	var log []string
	for _, e := range answer["Members"].([]any) {
		log = append(log, redfishWord(e.(map[string]any), "Message"))
	}
	if got := strings.Join(log, ", "); got != "system on, system reset, system reset, system off" {
		t.Errorf("log %q", got)
	}
}
