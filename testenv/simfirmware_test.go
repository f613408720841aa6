package testenv

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"recast/inventory"
)

// simCaptured are the DHCP questions of a capture of dhcp/testdata.
func simCaptured(t *testing.T, file string) (out [][]byte) {
	t.Helper()
	raw, err := os.ReadFile("../dhcp/testdata/" + file + ".pcap")
	simMust(t, err)
	if binary.LittleEndian.Uint32(raw) != 0xa1b2c3d4 && binary.LittleEndian.Uint32(raw) != 0xa1b23c4d {
		t.Fatalf("%s is no capture of the classic form", file)
	}
	for raw = raw[24:]; len(raw) >= 16; {
		n := int(binary.LittleEndian.Uint32(raw[8:]))
		frame := raw[16 : 16+n]
		raw = raw[16+n:]
		if len(frame) < 42 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[23] != 17 {
			continue
		}
		udp := frame[14+int(frame[14]&15)*4:]
		if binary.BigEndian.Uint16(udp[2:]) == 67 {
			out = append(out, udp[8:binary.BigEndian.Uint16(udp[4:])])
		}
	}
	return out
}

// A simulated machine's questions are, byte by byte, those of the firmware that it
// plays.
func TestSimulatedFirmwareAsksAsTheRealOne(t *testing.T) {
	for file, askers := range map[string][]simAsker{
		"seabios-ipxe": {simROM},
		"ovmf-pxe":     {simEdk2PXE, simIPXE},
		"ovmf-http":    {simEdk2HTTP, simIPXE},
		"u-boot":       {simUBootOwn, simUBootUEFI},
		"aavmf-pxe":    {simIPXEARM64},
	} {
		found := map[int]bool{}
		for i, want := range simCaptured(t, file) {
			o := simOptions(want)
			q := simAsking{request: o[53][0] == 3, xid: binary.BigEndian.Uint32(want[4:]), secs: binary.BigEndian.Uint16(want[8:]),
				mac: inventory.MACOf(want[28:34]), uuid: "00112233-4455-6677-8899-aabbccddeeff"}
			q.server, _ = netip.AddrFromSlice(o[54])
			q.addr, _ = netip.AddrFromSlice(o[50])
			mine := false
			for k, a := range askers {
				if bytes.Equal(a.packet(q), want) {
					found[k], mine = true, true
				}
			}
			if !mine && file != "seabios-ipxe" && file != "aavmf-pxe" { // where a newer iPXE follows, and AAVMF begins
				t.Errorf("%s: packet %d is nobody's:\n%x\n%x", file, i+1, want, askers[0].packet(q))
			}
		}
		for k := range askers {
			if !found[k] {
				t.Errorf("%s: nobody real asks as its client %d", file, k)
			}
		}
	}
}
