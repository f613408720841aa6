package testenv

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"recast/inventory"
)

// SimFirmware is what a simulated machine starts with, and so whose requests it
// sends on a SimWire.
type SimFirmware string

const (
	SimBIOS  SimFirmware = "bios"      // SeaBIOS; the ROM of its card is iPXE
	SimUEFI  SimFirmware = "uefi"      // edk2 by PXE, then iPXE
	SimHTTP  SimFirmware = "uefi-http" // edk2 by HTTP Boot, then iPXE
	SimUBoot SimFirmware = "u-boot"    // an arm64 board: by U-Boot's own name, then as UEFI, then iPXE
)

// SimFirmwares are all of them.
var SimFirmwares = []SimFirmware{SimBIOS, SimUEFI, SimHTTP, SimUBoot}

// UEFI says in which mode it starts a disk.
func (f SimFirmware) UEFI() bool { return f != SimBIOS }

// Arch is that of the machine.
func (f SimFirmware) Arch() inventory.Arch {
	if f == SimUBoot {
		return inventory.ARM64
	}
	return inventory.AMD64
}

// simAsker is one program that asks DHCP for an address and a boot file. What it
// says, and in which order, is that of the captures in dhcp/testdata.
type simAsker struct {
	broadcast bool   // wants broadcast answers
	secs      bool   // counts the seconds
	file      string // in the header's field
	class     string // option 60
	arch      uint16 // option 93
	undi      [3]byte
	most      [2]uint16 // option 57 of a DISCOVER and of a REQUEST
	user      string    // option 77
	wants     string    // option 55, hexadecimal
	encap     string    // option 175, hexadecimal
	order     []byte    // of the options; those that it has not are left out
	least     int       // bytes of a packet
}

const (
	simIPXEWants  = "010306070c0f111a2a2b3c424377798081828384858687afcb"
	simIPXEClass  = "PXEClient:Arch:%05d:UNDI:%03d%03d"
	simIPXEEncap  = "b105011af41000eb03020000260101170101270101240101130101140101110101290101150101120101"
	simDHCPLength = 300 // the least that BOOTP demands (RFC 1542, 2.1)
)

var (
	simIPXEOrder  = []byte{53, 57, 93, 94, 60, 77, 55, 175, 61, 97, 54, 50}
	simEdk2Order  = []byte{53, 54, 50, 57, 55, 97, 94, 93, 60}
	simUBootOrder = []byte{53, 57, 54, 50, 93, 94, 60, 55}

	// The iPXE of 2019 in the ROM of QEMU's cards.
	simROM = simAsker{secs: true, arch: 0, undi: [3]byte{1, 2, 1}, most: [2]uint16{1472, 1472}, user: "iPXE",
		wants: "010306070c0f111a2b3c4243778081828384858687afcb", order: simIPXEOrder,
		encap: "b105018086100eeb03010000170101220101130101110101270101190101290101100102210101150101180101120101"}
	simEdk2PXE = simAsker{broadcast: true, arch: 7, undi: [3]byte{1, 3, 0}, most: [2]uint16{1472, 65280},
		wants: "0102030405060c0d0f111216171c28292a2b3233363a3b3c4243618081828384858687", order: simEdk2Order}
	simEdk2HTTP = simAsker{broadcast: true, arch: 16, undi: [3]byte{1, 3, 0}, most: [2]uint16{1472, 1472}, class: "HTTPClient:Arch:00016:UNDI:003000",
		wants: "0102030405060c0d0f111216171c28292a2b3233363a3b3ceb4361", order: simEdk2Order}
	simIPXE = simAsker{broadcast: true, secs: true, arch: 7, undi: [3]byte{1, 3, 10}, most: [2]uint16{1472, 1472}, user: "iPXE",
		wants: simIPXEWants, order: simIPXEOrder, encap: simIPXEEncap}
	simIPXEARM64 = simAsker{broadcast: true, secs: true, arch: 11, undi: [3]byte{1, 3, 10}, most: [2]uint16{1472, 1472}, user: "iPXE",
		wants: simIPXEWants, order: simIPXEOrder,
		encap: "b105011af41000eb030200002601011701012701012401011301011401011101012901011b0101150101120101"}
	simUBootOwn = simAsker{file: "boot.scr.uimg", arch: 22, undi: [3]byte{1, 0, 0}, most: [2]uint16{576, 576}, class: "U-Boot.armv8",
		wants: "0103060c11", order: simUBootOrder, least: simDHCPLength}
	simUBootUEFI = simAsker{file: "boot.scr.uimg", arch: 11, undi: [3]byte{1, 0, 0}, most: [2]uint16{576, 576}, class: "PXEClient:Arch:00011:UNDI:003000",
		wants: "0103060c11", order: simUBootOrder, least: simDHCPLength}
	// An installed system, as busybox's udhcpc.
	simSystem = simAsker{secs: true, most: [2]uint16{576, 576}, class: "udhcp 1.35.0", wants: "0103060c0f1c2a", order: []byte{53, 50, 54, 57, 61, 60, 55}, least: simDHCPLength}
)

// simAsking is one packet to come.
type simAsking struct {
	request bool // a DISCOVER else
	xid     uint32
	secs    uint16
	mac     inventory.MAC
	uuid    string
	// Of a REQUEST.
	server, addr netip.Addr
}

// simHardwareAddr is the MAC on the wire; inventory has checked it.
func simHardwareAddr(mac inventory.MAC) (raw [6]byte) {
	b, _ := hex.DecodeString(strings.ReplaceAll(string(mac), ":", ""))
	copy(raw[:], b)
	return raw
}

// packet is the payload of the datagram.
func (a simAsker) packet(q simAsking) []byte {
	p := make([]byte, 240, 512)
	p[0], p[1], p[2] = 1, 1, 6
	binary.BigEndian.PutUint32(p[4:], q.xid)
	if a.secs {
		binary.BigEndian.PutUint16(p[8:], q.secs)
	}
	if a.broadcast {
		p[10] = 0x80
	}
	mac := simHardwareAddr(q.mac)
	copy(p[28:], mac[:])
	copy(p[108:], a.file)
	copy(p[236:], "\x63\x82\x53\x63")
	add := func(code byte, value []byte) {
		p = append(append(p, code, byte(len(value))), value...)
	}
	addr := func(a netip.Addr) []byte { raw := a.As4(); return raw[:] }
	number := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	text := func(digits string) []byte { raw, _ := hex.DecodeString(digits); return raw }
	for _, code := range a.order {
		switch code {
		case 53:
			add(code, []byte{simEither[byte](q.request, 3, 1)})
		case 54:
			if q.request {
				add(code, addr(q.server))
			}
		case 50:
			if q.request {
				add(code, addr(q.addr))
			}
		case 55:
			add(code, text(a.wants))
		case 57:
			add(code, number(simEither(q.request, a.most[1], a.most[0])))
		case 60:
			class := a.class
			if class == "" {
				class = fmt.Sprintf(simIPXEClass, a.arch, a.undi[1], a.undi[2])
			}
			add(code, []byte(class))
		case 61:
			add(code, append([]byte{1}, mac[:]...))
		case 77:
			add(code, []byte(a.user))
		case 93:
			add(code, number(a.arch))
		case 94:
			add(code, a.undi[:])
		case 97:
			add(code, append([]byte{0}, simWireUUID(q.uuid)...))
		case 175:
			add(code, text(a.encap))
		}
	}
	p = append(p, 255)
	if len(p) < a.least {
		p = append(p, make([]byte, a.least-len(p))...)
	}
	return p
}

func simEither[T any](yes bool, a, b T) T {
	if yes {
		return a
	}
	return b
}

// simWireUUID has the first three fields the other way round, as SMBIOS stores
// them (RFC 4578, 2.3).
func simWireUUID(uuid string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(b) != 16 {
		return make([]byte, 16)
	}
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5], b[6], b[7] = b[5], b[4], b[7], b[6]
	return b
}
