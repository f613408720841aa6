package dhcp

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// Relays throw away what is shorter than a BOOTP message.
func TestEveryReplyHas300Bytes(t *testing.T) {
	bare := rack(func(s *inventory.Set) { s.Networks[0].Gateway, s.Networks[0].DNS = netip.Addr{}, nil })
	for _, p := range []*dhcpv4.DHCPv4{
		message(DISCOVER, macDeclared), message(REQUEST, macDeclared, requested("10.20.0.15")),
		message(REQUEST, macDeclared, requested("10.20.0.16")), message(INFORM, macDeclared, ciaddr("10.20.0.15")),
		message(DISCOVER, macDeclared, giaddr("10.20.0.254"), option(82, 1, 1, 1)),
	} {
		o := ask(t, bare, p, nil)
		if o.packet == nil || len(o.raw) < 300 {
			t.Errorf("%s: %s", p.MessageType(), brief(o))
		}
	}
}

// Long identifiers leave an operating system no room: what it needs goes into
// the header's fields, which a boot ROM does not read for options.
func TestOverloadsTheHeaderForSystemsNeverForFirmware(t *testing.T) {
	long := []func(*dhcpv4.DHCPv4){option(61, bytes.Repeat([]byte{7}, 255)...), giaddr("10.20.0.254"), option(82, append([]byte{1, 120}, bytes.Repeat([]byte{8}, 120)...)...)}
	for _, tt := range []struct {
		name     string
		more     []func(*dhcpv4.DHCPv4)
		dns      int
		overload bool
		limit    int
		has      []uint8
	}{
		{"a system", long, 2, true, 548 + 124, []uint8{1, 3, 6, 28, 51, 53, 54, 58, 59, 61, 82}},
		{"a system with many name servers", long, 29, true, 548 + 124, []uint8{1, 3, 6, 28, 51, 53, 54, 58, 59, 61, 82}},
		{"a system with room", nil, 2, false, 548, []uint8{1, 3, 6, 28, 51, 53, 54, 58, 59}},
		{"a system that takes more", append([]func(*dhcpv4.DHCPv4){option(57, 5, 0)}, long...), 2, false, 1280 - 28 + 124, []uint8{1, 3, 6, 28, 51, 53, 54, 58, 59, 61, 82}},
		{"firmware", append([]func(*dhcpv4.DHCPv4){pxe(0)}, long...), 2, false, 548 + 124, []uint8{1, 3, 43, 51, 53, 54, 60, 61, 82}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := rack(func(s *inventory.Set) {
				s.Networks[0].DNS = nil
				for i := range tt.dns {
					s.Networks[0].DNS = append(s.Networks[0].DNS, netip.AddrFrom4([4]byte{10, 9, 9, byte(i)}))
				}
			})
			o := ask(t, set, message(DISCOVER, macDeclared, tt.more...), nil, booting)
			raw := o.raw
			p, err := dhcpv4.FromBytes(raw)
			if err != nil {
				t.Fatal(err)
			}
			if p.Options.Has(dhcpv4.OptionOptionOverload) != tt.overload {
				t.Errorf("overload %x; want it: %v", p.Options[52], tt.overload)
			}
			if len(raw) > tt.limit {
				t.Errorf("%d bytes; want at most %d", len(raw), tt.limit)
			}
			if tt.overload && !bytes.HasSuffix(bytes.TrimRight(raw, "\x00"), append(append([]byte{82, 122, 1, 120}, bytes.Repeat([]byte{8}, 120)...), 255)) {
				t.Error("the relay's option is not the last one of the options field")
			}
			unfolded(t, p, raw)
			for _, code := range tt.has {
				if !p.Options.Has(dhcpv4.GenericOptionCode(code)) {
					t.Errorf("option %d is missing", code)
				}
			}
			if len(p.Options[6]) != 4*tt.dns && bytes.IndexByte(tt.has, 6) >= 0 {
				t.Errorf("name servers %x", p.Options[6])
			}
		})
	}
}

func TestOptionsLongerThan255BytesGoInParts(t *testing.T) {
	id := make([]byte, 300)
	for i := range id {
		id[i] = byte(i * 7)
	}
	p := message(DISCOVER, macDeclared, option(61, id...), option(57, 5, 0))
	raw := p.ToBytes()
	if n := bytes.Count(raw, append([]byte{61, 255}, id[:255]...)); n != 1 || !bytes.Contains(raw, append([]byte{61, 45}, id[255:]...)) {
		t.Fatal("the packet does not hold the option in two parts")
	}
	for _, tt := range []struct {
		name string
		raw  []byte
	}{
		{"two parts together", raw},
		{"two parts with others between", bytes.Replace(raw, append([]byte{61, 45}, id[255:]...), append([]byte{12, 1, 'x', 61, 45}, id[255:]...), 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := decode(tt.raw)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.Options.Get(dhcpv4.GenericOptionCode(61)), id) {
				t.Errorf("read %x", r.Options.Get(dhcpv4.GenericOptionCode(61)))
			}
			cfg := compile(rack())
			tab := newTable()
			tab.loaded = true
			o := reply(question{req: r, cfg: cfg, network: cfg.networks[0], server: ourAddr, now: epoch}, tab)
			back := appendPacket(nil, o.packet)
			first, second := bytes.Index(back, append([]byte{61, 255}, id[:255]...)), bytes.Index(back, append([]byte{61, 45}, id[255:]...))
			if first < 0 || second < first {
				t.Error("the identifier does not come back in two parts, in order")
			}
		})
	}
	// A part in an overloaded field belongs behind those of the options field.
	q := message(DISCOVER, macDeclared, option(12, 'w', 'e'), option(52, 1), func(p *dhcpv4.DHCPv4) { p.BootFileName = string([]byte{12, 2, 'b', '1', 255}) })
	if got := parse(t, q).hostname; got != "web1" {
		t.Errorf("host name %q; want the parts joined", got)
	}
}
