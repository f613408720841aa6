package dhcp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// The packets of this file are made from documents, none was recorded: no such
// board can be emulated.

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func withDNS(n int) func(*inventory.Set) {
	return func(s *inventory.Set) {
		s.Networks[0].DNS = nil
		for i := range n {
			s.Networks[0].DNS = append(s.Networks[0].DNS, netip.AddrFrom4([4]byte{10, 9, 9, byte(i + 1)}))
		}
	}
}

// raspberryPi asks as the boot ROM of the Pi 3 and the EEPROM of the Pi 4 and 5
// do (raspberrypi.com, "Raspberry Pi boot modes" and "Network booting"): as an
// x86 BIOS, with a parameter list that lacks mask and router, and a client
// identifier of 0x44s, or of "RPi4", revision, address and serial.
func raspberryPi(model byte) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		p.Options[60] = []byte("PXEClient:Arch:00000:UNDI:002001")
		p.Options[93] = []byte{0, 0}
		p.Options[94] = []byte{1, 2, 1}
		p.Options[55] = []byte{1, 3, 43, 60, 66, 67, 128, 129, 130, 131, 132, 133, 134, 135}
		if model == 3 {
			p.Options[55] = []byte{43, 60, 66, 67}
			p.Options[97] = append([]byte{0}, bytes.Repeat([]byte{0x44}, 16)...)
			return
		}
		p.Options[97] = append([]byte{0, 'R', 'P', 'i', '0' + model}, 0x11, 0x31, 0xc0, 0, 5, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde)
	}
}

// onie asks as ONIE's udhcpc does (ONIE design specification, "DHCP Request and
// Response Options").
func onie(p *dhcpv4.DHCPv4) {
	p.Options[60] = []byte("onie_vendor:x86_64-accton_as7712_32x-r0")
	p.Options[77] = []byte("onie_dhcp_user_class")
	p.Options[55] = []byte{1, 3, 6, 7, 12, 15, 42, 43, 66, 67, 72, 114, 125, 54}
	p.Options[125] = append([]byte{0, 0, 0xa6, 0x7f, 22}, "\x01\x14x86_64-accton_as7712"...) // enterprise 42623
}

// A Pi says that it is a PC: a PC's loader would leave it hanging, and a proxy
// that answers keeps it from its own server.
func TestRaspberryPiNeverGetsAPCsLoader(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mac    string
		change func(*dhcpv4.DHCPv4)
		pi     bool
	}{
		{"Pi 3", "b8:27:eb:00:00:01", raspberryPi(3), true},
		{"Pi 3 by its identifier alone", macStranger, raspberryPi(3), true},
		{"Pi 4", "dc:a6:32:00:00:01", raspberryPi(4), true},
		{"Pi 4 by its identifier alone", macStranger, raspberryPi(4), true},
		{"Pi 5 whose identifier was set", "2c:cf:67:00:00:01", func(p *dhcpv4.DHCPv4) {
			raspberryPi(5)(p)
			p.Options[97] = append([]byte{0}, "rack1-node-00007"...)
		}, true},
		{"Pi 4 without an identifier", "e4:5f:01:00:00:01", func(p *dhcpv4.DHCPv4) { raspberryPi(4)(p); without(97)(p) }, true},
		{"a PC", macStranger, pxe(0), false},
		{"a Pi with UEFI firmware", "dc:a6:32:00:00:01", pxe(11), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), message(DISCOVER, tt.mac, tt.change), nil, booting)
			if o.packet == nil {
				t.Fatal(o.silence)
			}
			if file := o.packet.BootFileName + string(o.packet.Options[67]); (file == "") != tt.pi {
				t.Errorf("boot file %q", file)
			}
			// What its boot code needs and does not ask for, so that it gets as far as its
			// own TFTP server, or its card.
			for _, code := range []uint8{1, 3, 51, 54} {
				if !o.packet.Options.Has(dhcpv4.GenericOptionCode(code)) {
					t.Errorf("option %d is missing", code)
				}
			}
			if got := brief(ask(t, rack(beside), message(DISCOVER, tt.mac, tt.change), nil, booting)); (got == "silent: nothing to boot") != tt.pi {
				t.Errorf("as a proxy: %s", got)
			}
		})
	}
}

// ONIE looks for an installer in 43.1, 114, 72, 66 and 67, in that order, and then
// by names of its own over HTTP: nothing of ours may look like one.
func TestONIEGetsAnAddressAndNoInstaller(t *testing.T) {
	o := ask(t, rack(), message(DISCOVER, macDeclared, onie), nil, booting)
	if o.packet == nil || o.packet.YourIPAddr.String() != "10.20.0.15" {
		t.Fatal(brief(o))
	}
	for _, code := range []uint8{43, 60, 66, 67, 72, 114, 125} {
		if v := o.packet.Options.Get(dhcpv4.GenericOptionCode(code)); v != nil {
			t.Errorf("option %d is %q", code, v)
		}
	}
	if o.packet.BootFileName != "" || addr4(o.packet.ServerIPAddr).IsValid() {
		t.Errorf("boot file %q of %s", o.packet.BootFileName, o.packet.ServerIPAddr)
	}
}

// The offers that edk2 tells apart, as PxeBcDhcp4.c does it (PxeBcParseDhcp4Packet):
// the better one wins, the first of two ProxyPxe10 is kept.
func edk2Sees(p *dhcpv4.DHCPv4) string {
	pxeClass := strings.HasPrefix(string(p.Options[60]), "PXEClient")
	var tags = map[byte][]byte{}
	if v := p.Options[43]; pxeClass {
		for len(v) >= 2 && v[0] != 255 && len(v) >= 2+int(v[1]) {
			tags[v[0]], v = v[2:2+v[1]], v[2+v[1]:]
		}
	}
	// IS_VALID_DISCOVER_VENDOR_OPTION; bit 3 with a boot file needs no discovery.
	pxe10 := len(tags[6]) == 1
	file := p.BootFileName != "" || len(p.Options[67]) > 0
	address := addr4(p.YourIPAddr).IsValid()
	switch {
	case pxeClass && pxe10 && address:
		return "DhcpPxe10"
	case pxeClass && pxe10:
		return "ProxyPxe10"
	case pxeClass && address:
		return "DhcpBinl"
	case pxeClass:
		return "ProxyBinl"
	case address && file:
		return "DhcpOnly with file"
	}
	return "DhcpOnly"
}

func TestOurOfferIsTheKindThatEdk2Prefers(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  *inventory.Set
		want string
	}{
		{"address and file in one, which some UEFI insists on", rack(), "DhcpPxe10"},
		{"beside another server", rack(beside), "ProxyPxe10"},
	} {
		for _, arch := range []byte{0, 7, 9, 11} {
			o := ask(t, tt.set, message(DISCOVER, macDeclared, pxe(arch)), nil, booting)
			if o.packet == nil {
				t.Fatal(o.silence)
			}
			if got := edk2Sees(o.packet); got != tt.want {
				t.Errorf("%s, architecture %d: %s; want %s", tt.name, arch, got, tt.want)
			}
			if o.packet.BootFileName == "" || !o.packet.ServerIPAddr.Equal(net.IP(ip4(ourAddr))) {
				t.Errorf("%s: file %q of %s", tt.name, o.packet.BootFileName, o.packet.ServerIPAddr)
			}
		}
	}
}

// Control 8 and an immediate prompt: "take the file that was offered". A list of
// boot servers or a menu beside it would send edk2 to its first address, and make
// ROMs wait for a key.
func TestPXEVendorOptionHoldsNoServersNorMenu(t *testing.T) {
	for _, set := range []*inventory.Set{rack(), rack(beside)} {
		o := ask(t, set, message(DISCOVER, macDeclared, pxe(7)), nil, booting)
		var got []string
		for v := o.packet.Options[43]; len(v) > 0; {
			if v[0] == 255 {
				got, v = append(got, "end"), v[1:]
				continue
			}
			got = append(got, fmt.Sprintf("%d=%x", v[0], v[2:2+v[1]]))
			v = v[2+v[1]:]
		}
		if want := "6=08 10=00505845 end"; strings.Join(got, " ") != want {
			t.Errorf("option 43 is %q; want %q", got, want)
		}
	}
}
