package dhcp

import (
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/ipxe"
)

func TestDecodeCountsBadPacketsByReason(t *testing.T) {
	good := message(DISCOVER, macDeclared).ToBytes()
	change := func(f func(b []byte) []byte) []byte { return f(append([]byte{}, good...)) }
	for _, tt := range []struct {
		name string
		raw  []byte
		want badPacket
	}{
		{"empty", nil, badShort},
		{"a header cut off", good[:239], badShort},
		{"a reply", change(func(b []byte) []byte { b[0] = 2; return b }), badOp},
		{"token ring", change(func(b []byte) []byte { b[1] = 6; return b }), badHardware},
		{"an address of 16 bytes", change(func(b []byte) []byte { b[2] = 16; return b }), badHardware},
		{"an address of no bytes", change(func(b []byte) []byte { b[2] = 0; return b }), badHardware},
		{"a multicast sender", change(func(b []byte) []byte { b[28] |= 1; return b }), badHardware},
		{"a zero sender", change(func(b []byte) []byte { copy(b[28:34], make([]byte, 6)); return b }), badHardware},
		{"a forwarding loop", change(func(b []byte) []byte { b[3] = 17; return b }), badHops},
		{"BOOTP", change(func(b []byte) []byte { b[236] = 0; return b }), badCookie},
		{"no end option", good[:243], badOptions},
		{"an option longer than the packet", change(func(b []byte) []byte { return append(b[:243], 12, 200, 1) }), badOptions},
		{"no message type", message(DISCOVER, macDeclared, func(p *dhcpv4.DHCPv4) { delete(p.Options, 53) }).ToBytes(), badType},
		{"a type of two bytes", message(DISCOVER, macDeclared, option(53, 1, 1)).ToBytes(), badType},
		{"a server's message", message(dhcpv4.MessageTypeOffer, macDeclared).ToBytes(), badType},
		{"a requested address of three bytes", message(REQUEST, macDeclared, option(50, 10, 0, 0)).ToBytes(), badOptions},
		{"a server identifier of five bytes", message(REQUEST, macDeclared, option(54, 10, 0, 0, 0, 1)).ToBytes(), badOptions},
		{"an overload of 4", message(DISCOVER, macDeclared, option(52, 4)).ToBytes(), badOptions},
		{"a broken overloaded field", message(DISCOVER, macDeclared, option(52, 1), func(p *dhcpv4.DHCPv4) {
			b := make([]byte, 127)
			for i := range b {
				b[i] = 99
			}
			p.BootFileName = string(b)
		}).ToBytes(), badOptions},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := decode(tt.raw)
			if err != tt.want {
				t.Errorf("decode = %v, %v; want %q", r, err, tt.want)
			}
		})
	}
	if _, err := decode(good); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestDecodeReadsOverloadedFields(t *testing.T) {
	p := message(REQUEST, macDeclared, option(52, 3), func(p *dhcpv4.DHCPv4) {
		p.BootFileName = string([]byte{50, 4, 10, 20, 7, 15, 255})
		p.ServerHostName = string([]byte{12, 4, 'w', 'e', 'b', '1', 255})
	})
	r := parse(t, p)
	if r.requested.String() != "10.20.7.15" || r.hostname != "web1" {
		t.Errorf("requested %s, hostname %q", r.requested, r.hostname)
	}
}

// dnsmasq's, to whom more options were given than fit: both fields hold some.
func TestOverloadedFieldsOfARealServerAreRead(t *testing.T) {
	replies := 0
	for _, f := range frames(t, "testdata/dnsmasq-overload.pcap") {
		from, _, raw, ok := unframe(f[14:])
		if !ok || from.Port() != serverPort {
			continue
		}
		replies++
		p, err := dhcpv4.FromBytes(raw)
		if err != nil {
			t.Fatal(err)
		}
		if how := p.Options[52]; string(how) != "\x03" {
			t.Fatalf("overloaded %x", how)
		}
		unfolded(t, p, raw)
		for code, want := range map[uint8]string{224: strings.Repeat("a", 50), 225: strings.Repeat("b", 80), 226: strings.Repeat("c", 60),
			227: strings.Repeat("d", 50), 228: strings.Repeat("e", 40), 229: strings.Repeat("f", 55)} {
			if got := string(p.Options[code]); got != want {
				t.Errorf("option %d is %q", code, got)
			}
		}
		if p.BootFileName != "" || p.ServerHostName != "" {
			t.Errorf("boot file %q, server %q", p.BootFileName, p.ServerHostName)
		}
	}
	if replies != 2 {
		t.Errorf("%d replies are captured", replies)
	}
}

func TestClientIsTold(t *testing.T) {
	none := func(*dhcpv4.DHCPv4) {}
	const id = "00112233-4455-6677-8899-aabbccddeeff"
	for _, tt := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		want   ipxe.Client
	}{
		{"an operating system", none, ipxe.Client{Loader: ipxe.LoaderOS}},
		{"BIOS", pxe(0), ipxe.Client{Loader: ipxe.LoaderFirmware, UUID: id}},
		{"UEFI as 7", pxe(7), ipxe.Client{Loader: ipxe.LoaderFirmware, Arch: 7, UUID: id}},
		{"UEFI as 9", pxe(9), ipxe.Client{Loader: ipxe.LoaderFirmware, Arch: 9, UUID: id}},
		{"class only", option(60, []byte("PXEClient:Arch:00007:UNDI:003016")...), ipxe.Client{Loader: ipxe.LoaderFirmware, Arch: 7}},
		{"bare class", option(60, []byte("PXEClient")...), ipxe.Client{Loader: ipxe.LoaderFirmware}},
		{"architecture only", option(93, 0, 22), ipxe.Client{Loader: ipxe.LoaderFirmware, Arch: 22}},
		{"several architectures", option(93, 0, 7, 0, 16), ipxe.Client{Loader: ipxe.LoaderFirmware, Arch: 7}},
		{"HTTP boot", option(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), ipxe.Client{Loader: ipxe.LoaderHTTP, Arch: 16}},
		{"iPXE by the bare user class", option(77, []byte("iPXE")...), ipxe.Client{Loader: ipxe.LoaderIPXE}},
		{"iPXE by the counted user class", option(77, []byte("\x04iPXE")...), ipxe.Client{Loader: ipxe.LoaderIPXE}},
		{"iPXE as the second user class", option(77, []byte("\x03foo\x04iPXE")...), ipxe.Client{Loader: ipxe.LoaderIPXE}},
		{"iPXE behind a user class set by hand", func(p *dhcpv4.DHCPv4) {
			ipxeClient(p)
			p.Options[77] = []byte("rack-a")
		}, ipxe.Client{Loader: ipxe.LoaderIPXE, Arch: 7, UUID: id}},
		{"another user class", option(77, []byte("\x09iPXElike!")...), ipxe.Client{Loader: ipxe.LoaderOS}},
		{"a user class that counts wrong", option(77, 200, 'i', 'P', 'X', 'E'), ipxe.Client{Loader: ipxe.LoaderOS}},
		{"a UUID of zeros", option(97, make([]byte, 17)...), ipxe.Client{Loader: ipxe.LoaderOS}},
		{"a UUID of another type", option(97, append([]byte{1}, make([]byte, 16)...)...), ipxe.Client{Loader: ipxe.LoaderOS}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.MAC = macDeclared
			if got := parse(t, message(DISCOVER, macDeclared, tt.change)).client; got != tt.want {
				t.Errorf("client = %+v; want %+v", got, tt.want)
			}
		})
	}
}

func TestHostnameHoldsNothingUnexpected(t *testing.T) {
	for in, want := range map[string]string{
		"web1": "web1", "web1\x00": "web1", "a.b-c": "a.b-c", "": "",
		"<script>": "", "a b": "", "x\ny": "", "ü": "",
	} {
		if got := hostname([]byte(in)); got != want {
			t.Errorf("hostname(%q) = %q; want %q", in, got, want)
		}
	}
}
