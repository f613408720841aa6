package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
)

// without takes options out of a packet again.
func without(codes ...uint8) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		for _, c := range codes {
			delete(p.Options, c)
		}
	}
}

// httpBoot is what edk2's HTTP Boot sends.
func httpBoot(arch byte) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		pxe(arch)(p)
		p.Options[60] = []byte(fmt.Sprintf("HTTPClient:Arch:%05d:UNDI:003001", arch))
	}
}

// booting gives every client the boot file of its kind, as the server does.
func booting(q *question) {
	q.boot.file, _ = ipxe.Boot{}.Bootfile(q.req.client, ipxe.Spec{Kind: ipxe.SpecRamdisk}, ourAddr, 8080)
}

// A PXE client takes an offer for one only with the class in it, wants its
// identifier back and the server's name; some cards leave out 93, 94 or 97.
func TestFirmwareIsAnsweredAsPXEWhateverItLeavesOut(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		file   string
	}{
		{"all options", without(), "undionly.kpxe"},
		{"without 93", without(93), "undionly.kpxe"},
		{"without 94", without(94), "undionly.kpxe"},
		{"without 97", without(97), "undionly.kpxe"},
		{"without 93, 94 and 97", without(93, 94, 97), "undionly.kpxe"},
		{"without 60", without(60), "undionly.kpxe"},
		{"a bare class", func(p *dhcpv4.DHCPv4) { without(93, 94, 97)(p); p.Options[60] = []byte("PXEClient") }, "undionly.kpxe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range []dhcpv4.MessageType{DISCOVER, REQUEST} {
				p := message(kind, macDeclared, pxe(0), requested("10.20.0.15"), serverID("10.20.0.2"), tt.change)
				o := ask(t, rack(), p, nil, booting)
				if o.packet == nil {
					t.Fatal(o.silence)
				}
				if o.packet.BootFileName != tt.file || string(o.packet.Options[67]) != tt.file {
					t.Errorf("boot file %q, option 67 %q; want %q", o.packet.BootFileName, o.packet.Options[67], tt.file)
				}
				if string(o.packet.Options[60]) != "PXEClient" || !bytes.Equal(o.packet.Options[54], ip4(ourAddr)) {
					t.Errorf("class %q, server %x", o.packet.Options[60], o.packet.Options[54])
				}
				if !bytes.Equal(o.packet.Options[97], p.Options[97]) {
					t.Errorf("option 97 came back as %x; want %x", o.packet.Options[97], p.Options[97])
				}
			}
		})
	}
}

// Machines whose firmware gives all of them one UUID are still two machines.
func TestUUIDIsNeverAKeyByItself(t *testing.T) {
	for _, tt := range []struct {
		name string
		id   []byte
	}{
		{"one UUID for all boards", append([]byte{0}, []byte("0123456789abcdef")...)},
		{"zeros", make([]byte, 17)},
		{"ones", append([]byte{0}, bytes.Repeat([]byte{0xff}, 16)...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rack())
			first := r.exchange(macStranger, pxe(0), option(97, tt.id...))
			second := r.exchange(macOther, pxe(0), option(97, tt.id...))
			if first.YourIPAddr.Equal(second.YourIPAddr) {
				t.Errorf("both got %s", first.YourIPAddr)
			}
			if !bytes.Equal(first.Options[97], tt.id) {
				t.Errorf("option 97 came back as %x", first.Options[97])
			}
		})
	}
}

// Either mark of iPXE ends the chain, or it would load itself for ever.
func TestIPXEGetsItsScriptByEitherMark(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
	}{
		{"bare user class", func(p *dhcpv4.DHCPv4) { p.Options[77] = []byte("iPXE") }},
		{"counted user class", func(p *dhcpv4.DHCPv4) { p.Options[77] = []byte("\x04iPXE") }},
		{"one of several user classes", func(p *dhcpv4.DHCPv4) { p.Options[77] = []byte("\x03foo\x04iPXE") }},
		{"option 175 alone", func(p *dhcpv4.DHCPv4) {
			p.Options[175] = []byte{0x13, 1, 1, 0x24, 1, 1, 0xb1, 5, 1, 0x80, 0x86, 0x10, 0x0e}
		}},
		{"behind a user class set by hand", func(p *dhcpv4.DHCPv4) { p.Options[77], p.Options[175] = []byte("rack-a"), []byte{0x13, 1, 1} }},
		{"with the HTTP Boot class of the firmware it came from", func(p *dhcpv4.DHCPv4) { httpBoot(16)(p); p.Options[77] = []byte("iPXE") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), message(DISCOVER, macDeclared, pxe(7), tt.change), nil, booting)
			if !strings.HasPrefix(o.packet.BootFileName, "http://10.20.0.2:8080/boot/script?") {
				t.Errorf("boot file %q", o.packet.BootFileName)
			}
			if !bytes.Equal(o.packet.Options[175], []byte{0xb0, 1, 1}) {
				t.Errorf("option 175 %x: it waits for a ProxyDHCP server", o.packet.Options[175])
			}
		})
	}
}

func TestArchitectureChoosesTheLoader(t *testing.T) {
	const url = "http://10.20.0.2:8080/boot/loader/"
	for _, tt := range []struct {
		name string
		arch []uint16
		want string
	}{
		{"BIOS", []uint16{0}, "undionly.kpxe"},
		{"Itanium", []uint16{2}, ""},
		{"x86 UEFI", []uint16{6}, ""},
		{"x64 UEFI", []uint16{7}, "snponly.efi"},
		{"x64 UEFI by the RFC's number", []uint16{9}, "snponly.efi"},
		{"arm32 UEFI", []uint16{10}, ""},
		{"arm64 UEFI", []uint16{11}, "ipxe-arm64.efi"},
		{"x86 HTTP", []uint16{15}, ""},
		{"x64 HTTP", []uint16{16}, url + "snponly.efi"},
		{"BC HTTP", []uint16{17}, url + "snponly.efi"},
		{"arm32 HTTP", []uint16{18}, ""},
		{"arm64 HTTP", []uint16{19}, url + "ipxe-arm64.efi"},
		{"BIOS HTTP", []uint16{20}, ""},
		{"arm32 U-Boot", []uint16{21}, ""},
		{"arm64 U-Boot", []uint16{22}, ""},
		{"arm32 U-Boot HTTP", []uint16{23}, ""},
		{"arm64 U-Boot HTTP", []uint16{24}, ""},
		{"riscv32 UEFI", []uint16{25}, ""},
		{"riscv32 HTTP", []uint16{26}, ""},
		{"riscv64 UEFI", []uint16{27}, "ipxe-riscv64.efi"},
		{"riscv64 HTTP", []uint16{28}, url + "ipxe-riscv64.efi"},
		{"riscv128 UEFI", []uint16{29}, ""},
		{"riscv128 HTTP", []uint16{30}, ""},
		{"loongarch32 UEFI", []uint16{37}, ""},
		{"loongarch32 HTTP", []uint16{38}, ""},
		{"loongarch64 UEFI", []uint16{39}, "ipxe-loong64.efi"},
		{"loongarch64 HTTP", []uint16{40}, url + "ipxe-loong64.efi"},
		{"Raspberry Pi", []uint16{41}, ""},
		{"a number nobody knows", []uint16{999}, ""},
		{"a list: the first that we can serve", []uint16{6, 7}, "snponly.efi"},
		{"a list of unknown ones", []uint16{999, 998}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var v []byte
			for _, a := range tt.arch {
				v = binary.BigEndian.AppendUint16(v, a)
			}
			o := ask(t, rack(), message(DISCOVER, macDeclared, option(93, v...)), nil, booting)
			if o.packet.BootFileName != tt.want {
				t.Errorf("boot file %q; want %q", o.packet.BootFileName, tt.want)
			}
		})
	}
}

// Without the class and a URL the firmware takes the offer for a plain one.
func TestHTTPBootGetsItsClassAndAURL(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		file   string
	}{
		{"x64", httpBoot(16), "http://10.20.0.2:8080/boot/loader/snponly.efi"},
		{"arm64", httpBoot(19), "http://10.20.0.2:8080/boot/loader/ipxe-arm64.efi"},
		{"by the architecture alone", func(p *dhcpv4.DHCPv4) { httpBoot(16)(p); without(60)(p) }, "http://10.20.0.2:8080/boot/loader/snponly.efi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range []dhcpv4.MessageType{DISCOVER, REQUEST} {
				p := message(kind, macDeclared, tt.change, requested("10.20.0.15"), serverID("10.20.0.2"))
				o := ask(t, rack(), p, nil, booting)
				got := o.packet
				if got.BootFileName != tt.file || string(got.Options[67]) != tt.file || string(got.Options[60]) != "HTTPClient" {
					t.Errorf("file %q, 67 %q, 60 %q", got.BootFileName, got.Options[67], got.Options[60])
				}
				if got.Options.Has(dhcpv4.OptionVendorSpecificInformation) || got.Options.Has(dhcpv4.OptionTFTPServerName) || addr4(got.ServerIPAddr).IsValid() {
					t.Errorf("PXE's options in an HTTP offer: %s", got.Summary())
				}
			}
		})
	}
	t.Run("asked of the booter", func(t *testing.T) {
		r := newRig(t, rack(), func(r *rig) {
			r.Bootfile = func(c ipxe.Client, s ipxe.Spec, a netip.Addr) (string, bool) {
				return ipxe.Boot{}.Bootfile(c, s, a, 8080)
			}
		})
		if got := r.exchange(macDeclared, httpBoot(16)); got.BootFileName != "http://10.20.0.2:8080/boot/loader/snponly.efi" {
			t.Errorf("boot file %q", got.BootFileName)
		}
	})
}

func TestNeverAURLForPXENorANameForHTTPBoot(t *testing.T) {
	const name, url = "snponly.efi", "http://10.20.0.2:8080/x.efi"
	for _, tt := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		file   string
		want   string
	}{
		{"a name for PXE", pxe(7), name, name},
		{"a URL for PXE", pxe(7), url, ""},
		{"a URL for HTTP Boot", httpBoot(16), url, url},
		{"a name for HTTP Boot", httpBoot(16), name, ""},
		{"a URL for HTTP Boot with PXE's number", httpBoot(7), url, url},
		{"a name for PXE with HTTP's number", pxe(16), name, name},
		{"iPXE takes both: a URL", ipxeClient, url, url},
		{"iPXE takes both: a name", ipxeClient, name, name},
		{"an operating system gets none", without(), name, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), message(DISCOVER, macDeclared, tt.change), nil, func(q *question) { q.boot.file = tt.file })
			if o.packet.BootFileName != tt.want || string(o.packet.Options[67]) != tt.want {
				t.Errorf("file %q, option 67 %q; want %q", o.packet.BootFileName, o.packet.Options[67], tt.want)
			}
			if class := o.packet.Options.Has(dhcpv4.OptionClassIdentifier); tt.want == "" && class {
				t.Errorf("a class without a boot file: %q", o.packet.Options[60])
			}
		})
	}
}

// The Raspberry Pi's boot code asks with a list that lacks what it needs.
func TestWhatEveryClientNeedsIsSentAskedForOrNot(t *testing.T) {
	for _, tt := range []struct {
		name string
		list []byte
	}{
		{"no list", nil},
		{"an empty list", []byte{}},
		{"the Raspberry Pi's", []byte{43, 60, 66, 67}},
		{"edk2's", []byte{1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128}},
		{"backwards", []byte{54, 51, 3, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := message(DISCOVER, macDeclared)
			if tt.list != nil {
				p.Options[55] = tt.list
			}
			o := ask(t, rack(), p, nil)
			for code, want := range map[uint8]string{1: "ffffff00", 3: "0a140001", 51: "00000e10", 54: "0a140002"} {
				if got := fmt.Sprintf("%x", o.packet.Options[code]); got != want {
					t.Errorf("option %d is %s; want %s", code, got, want)
				}
			}
		})
	}
}

// A client that gets option 121 (or Microsoft's 249) ignores the router in 3:
// no reply may carry one without the other.
func TestRouterIsNeverHiddenByClasslessRoutes(t *testing.T) {
	for _, kind := range []dhcpv4.MessageType{DISCOVER, REQUEST, INFORM} {
		p := message(kind, macDeclared, option(55, 121, 249, 3))
		switch kind {
		case REQUEST:
			requested("10.20.0.15")(p)
		case INFORM:
			ciaddr("10.20.0.15")(p)
		}
		o := ask(t, rack(), p, nil)
		if o.packet == nil || o.packet.Options.Has(dhcpv4.GenericOptionCode(121)) || o.packet.Options.Has(dhcpv4.GenericOptionCode(249)) {
			t.Fatalf("%s: %s", kind, brief(o))
		}
		if got := fmt.Sprintf("%x", o.packet.Options[3]); got != "0a140001" {
			t.Errorf("%s: router %s", kind, got)
		}
	}
	none := ask(t, rack(func(s *inventory.Set) { s.Networks[0].Gateway = netip.Addr{} }), message(DISCOVER, macDeclared), nil)
	if none.packet.Options.Has(dhcpv4.OptionRouter) {
		t.Errorf("a router that nobody declared: %x", none.packet.Options[3])
	}
}

// What a capture of packets is joined to the logs by: iPXE and people find the
// attempt's trace in both.
func TestTheAttemptsTraceGoesWithTheBootFile(t *testing.T) {
	const trace = "1d44f94068682d44"
	traced := func(q *question) {
		booting(q)
		q.boot.trace = trace
	}
	mark := append([]byte{69, 16}, trace...)
	for name, tt := range map[string]struct {
		client func(*dhcpv4.DHCPv4)
		option uint8
		want   []byte
	}{
		"firmware": {pxe(0), 43, append(append([]byte{6, 1, 8, 10, 4, 0, 'P', 'X', 'E'}, mark...), 255)},
		"iPXE": {func(p *dhcpv4.DHCPv4) {
			pxe(0)(p)
			p.Options[175] = []byte{0x13, 1, 1}
		}, 175, append([]byte{0xb0, 1, 1}, mark...)},
	} {
		o := ask(t, rack(), message(DISCOVER, macDeclared, tt.client), nil, traced)
		if o.packet == nil || !bytes.Equal(o.packet.Options[tt.option], tt.want) {
			t.Errorf("%s: option %d is %x; want %x", name, tt.option, o.packet.Options[tt.option], tt.want)
		}
		o = ask(t, rack(), message(DISCOVER, macDeclared, tt.client), nil, booting)
		if o.packet == nil || bytes.Contains(o.packet.Options[tt.option], mark) {
			t.Errorf("%s: a trace that nobody gave: %x", name, o.packet.Options[tt.option])
		}
	}
}

// What goes wrong before iPXE has its script is seen by the server too.
func TestIPXELogsFromItsAddressOn(t *testing.T) {
	ours := netip.MustParseAddr("10.20.0.1")
	logging := func(q *question) {
		booting(q)
		q.boot.log = ours
	}
	ipxe := func(p *dhcpv4.DHCPv4) {
		pxe(0)(p)
		p.Options[175] = []byte{0x13, 1, 1}
	}
	o := ask(t, rack(), message(DISCOVER, macDeclared, ipxe), nil, logging)
	if o.packet == nil || !bytes.Equal(o.packet.Options[7], ours.AsSlice()) {
		t.Errorf("option 7 is %x", o.packet.Options[7])
	}
	r := newRig(t, rack())
	for log, want := range map[string]bool{"10.20.0.1:514": true, "10.20.0.1:5514": false, "[fd00::1]:514": false} {
		r.boot.spec.Syslog = netip.MustParseAddrPort(log)
		for name, c := range map[string]struct {
			client func(*dhcpv4.DHCPv4)
			want   bool
		}{"iPXE": {ipxe, want}, "firmware": {pxe(0), false}, "a system": {func(*dhcpv4.DHCPv4) {}, false}} {
			r.put(message(DISCOVER, macDeclared, c.client))
			if got := r.get().Options.Has(dhcpv4.OptionLogServer); got != c.want {
				t.Errorf("%s, logs to %s: option 7 is there: %t", name, log, got)
			}
		}
	}
}
