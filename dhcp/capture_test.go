package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/ipxe"
)

// asked are the client's packets of a capture.
func asked(t testing.TB, file string) [][]byte {
	t.Helper()
	var out [][]byte
	for _, f := range frames(t, file) {
		if _, port, payload, ok := unframe(f[14:]); ok && (port == serverPort || port == bootPort) {
			out = append(out, payload)
		}
	}
	return out
}

// captured are all packets that real firmware sent.
func captured(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.pcap")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d captures, %v", len(files), err)
	}
	var out [][]byte
	for _, f := range files {
		out = append(out, asked(t, f)...)
	}
	return out
}

// Each line is one kind of packet of the capture, once: who asks, and what we
// tell it to boot. testdata/record made the captures.
func TestCapturedFirmwareGetsWhatItBoots(t *testing.T) {
	const script, snponly, arm64 = "http://10.20.0.2:8080/boot/script?…", "snponly.efi", "ipxe-arm64.efi"
	for _, tt := range []struct {
		capture string
		want    []string
	}{
		{"seabios-ipxe", []string{
			"ipxe, x86 BIOS: OFFER " + script, "ipxe, x86 BIOS: ACK " + script}},
		{"ovmf-pxe", []string{
			"firmware, x86-64 UEFI: OFFER " + snponly, "firmware, x86-64 UEFI: ACK " + snponly,
			"ipxe, x86-64 UEFI: OFFER " + script, "ipxe, x86-64 UEFI: ACK " + script}},
		{"ovmf-http", []string{
			"http, x86-64 UEFI HTTP: OFFER http://10.20.0.2:8080/boot/loader/snponly.efi", "http, x86-64 UEFI HTTP: ACK http://10.20.0.2:8080/boot/loader/snponly.efi",
			"ipxe, x86-64 UEFI: OFFER " + script, "ipxe, x86-64 UEFI: ACK " + script}},
		{"aavmf-pxe", []string{
			"firmware, arm64 UEFI: OFFER " + arm64, "firmware, arm64 UEFI: ACK " + arm64,
			"ipxe, arm64 UEFI: OFFER " + script, "ipxe, arm64 UEFI: ACK " + script}},
		{"aavmf-http", []string{
			"http, arm64 UEFI HTTP: OFFER http://10.20.0.2:8080/boot/loader/ipxe-arm64.efi", "http, arm64 UEFI HTTP: ACK http://10.20.0.2:8080/boot/loader/ipxe-arm64.efi",
			"ipxe, arm64 UEFI: OFFER " + script, "ipxe, arm64 UEFI: ACK " + script}},
		// First by its own name, to which we have nothing to say, then as the UEFI that
		// it also is.
		{"u-boot", []string{
			"firmware, arm64 U-Boot: OFFER nothing", "firmware, arm64 U-Boot: ACK nothing",
			"firmware, arm64 UEFI: OFFER " + arm64, "firmware, arm64 UEFI: ACK " + arm64}},
	} {
		t.Run(tt.capture, func(t *testing.T) {
			var got []string
			seen := map[string]bool{}
			for _, raw := range asked(t, "testdata/"+tt.capture+".pcap") {
				p, err := dhcpv4.FromBytes(raw)
				if err != nil {
					t.Fatal(err)
				}
				if p.Options.Has(dhcpv4.OptionServerIdentifier) { // as if it had taken our offer
					serverID("10.20.0.2")(p)
					requested("10.20.0.15")(p)
				}
				set := rack(func(s *inventory.Set) { s.Machines[0].NICs[0].MAC = inventory.MACOf(p.ClientHWAddr) })
				o := ask(t, set, p, nil, booting)
				if o.packet == nil {
					t.Fatalf("%s: %s", p.Summary(), o.silence)
				}
				r := parse(t, p)
				file, query, _ := strings.Cut(string(o.packet.Options[67]), "?")
				if query != "" {
					file += "?…"
				}
				if file == "" {
					file = "nothing"
				}
				line := fmt.Sprintf("%s, %s: %s %s", r.client.Loader, r.client.Arch, o.packet.MessageType(), file)
				if !seen[line] {
					got = append(got, line)
				}
				seen[line] = true
				if id := p.Options[97]; !bytes.Equal(o.packet.Options[97], id) {
					t.Errorf("option 97 came back as %x; want %x", o.packet.Options[97], id)
				}
				if len(o.packet.Options[67]) > 0 && !bytes.Equal(o.packet.Options[60], p.Options[60][:min(len("PXEClient"), len(p.Options[60]))]) && r.client.Loader == "firmware" {
					t.Errorf("class %q to one that says %q", o.packet.Options[60], p.Options[60])
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Whatever we can say, tshark understands it.
func TestTsharkFindsNothingMalformedInAnythingWeSay(t *testing.T) {
	if tools["tshark"].path() == "" {
		t.Skip("needs tshark (apt-get install tshark)")
	}
	var all pcap
	n := 0
	add := func(set *inventory.Set, p *dhcpv4.DHCPv4, change ...func(*question)) {
		t.Helper()
		o := ask(t, set, p, nil, append([]func(*question){booting}, change...)...)
		if o.packet == nil {
			return
		}
		n++
		all.add(ethernet(hardware(macDeclared), hardware(judgedCard), frame(addrPort("10.20.0.2:67"), o.dest.to, o.raw)))
	}
	for _, class := range []string{"", "PXEClient"} { // what we ask when we look for other servers
		n++
		question := discover(dhcpv4.TransactionID{7, 7, 7, 7}, hardware(judgedCard), class).ToBytes()
		all.add(ethernet(hardware("ff:ff:ff:ff:ff:ff"), hardware(judgedCard), frame(addrPort("0.0.0.0:68"), addrPort("255.255.255.255:67"), question)))
	}
	long := make([]byte, 250)
	for i := range long {
		long[i] = byte(i)
	}
	clients := []func(*dhcpv4.DHCPv4){without(), pxe(0), pxe(7), pxe(11), httpBoot(16), ipxeClient, raspberryPi(3), raspberryPi(4), onie}
	extras := []func(*dhcpv4.DHCPv4){without(), wantsBroadcast, option(61, long...), option(57, 5, 0xdc), atPort("Ethernet1/7", "sw1"),
		func(p *dhcpv4.DHCPv4) { atPort("p7")(p); option(61, long...)(p) }, option(55, 1, 3, 121, 249), option(55)}
	for _, set := range []*inventory.Set{rack(), rack(beside), rack(withDNS(40))} {
		for _, c := range clients {
			for _, x := range extras {
				add(set, message(DISCOVER, macDeclared, c, x))
				add(set, message(REQUEST, macDeclared, c, x, requested("10.20.0.15"), serverID("10.20.0.2")))
				add(set, message(REQUEST, macDeclared, c, x, requested("10.20.0.16"), serverID("10.20.0.2"))) // NAK
				add(set, message(INFORM, macDeclared, c, x, ciaddr("10.20.0.15")))
				add(set, message(REQUEST, macDeclared, c, x, ciaddr("10.20.0.77")), asker("10.20.0.77:68"))
			}
		}
	}
	for _, raw := range captured(t) {
		if p, err := dhcpv4.FromBytes(raw); err == nil {
			add(rack(), p)
			add(rack(beside), p)
		}
	}
	all.judge(t, n)
	if n < 500 {
		t.Errorf("%d replies: too few to say anything", n)
	}
}

// Nor is anything wrong with what we say by DHCPv6, to whomever and through relays.
func TestTsharkFindsNothingMalformedInAnyDHCPv6(t *testing.T) {
	if tools["tshark"].path() == "" {
		t.Skip("needs tshark (apt-get install tshark)")
	}
	const own, other, away = "2001:db8:20::15", "2001:db8:20::1:7", "2001:db8:99::7"
	var all pcap
	n := 0
	add := func(src, dst netip.Addr, from, to uint16, payload []byte) {
		n++
		f := ethernet(hardware(macDeclared), hardware(judgedCard), frame6(src, dst, from, to, payload))
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IPV6)
		all.add(f)
	}
	add(privateAddr, allAgents, clientPort6, serverPort6, solicitation6([3]byte{7, 7, 7}, hardware(judgedCard))) // when we look for other servers
	for _, set := range []*inventory.Set{rack6(), rack6(func(s *inventory.Set) { s.Networks[0].Pool = nil }), rack6(func(s *inventory.Set) { s.Networks[0].DNS = nil })} {
		for _, client := range []change6{func(*dhcpv6.Message) {}, pxe6, http6, ipxe6, from6(duidLLT(macOther)), func(m *dhcpv6.Message) {
			m.AddOption(dhcpv6.OptRequestedOption(1, 2, 3, 7, 23, 24, 31, 59, 60, 82, 83))
		}} {
			for _, m := range []*dhcpv6.Message{
				message6(SOLICIT, client, wants(1)), message6(SOLICIT, client, wants(1), rapid), message6(SOLICIT, client, wants(1), wants(2)),
				message6(SOLICIT, client, wants(1), raw6(dhcpv6.OptionIAPD, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0), raw6(dhcpv6.OptionIATA, 0, 0, 0, 8)),
				message6(REQUEST6, client, toUs, wants(1, own)), message6(REQUEST6, client, toUs, wants(1, away)),
				message6(RENEW, client, toUs, wants(1, own)), message6(RENEW, client, toUs, wants(1, other), wants(2, away)), message6(REBIND, client, wants(1, away)),
				message6(CONFIRM, client, wants(1, own)), message6(CONFIRM, client, wants(1, away)), message6(INFORM6, client),
				message6(RELEASE6, client, toUs, wants(1, own)), message6(RELEASE6, client, toUs, wants(1, other)), message6(DECLINE6, client, toUs, wants(1, own)),
			} {
				for _, p := range []dhcpv6.DHCPv6{m, relayed6(m, "2001:db8:20::fe", privateAddr.String(), option79(macDeclared), interfaceID("ge-0/0/7\x00\xff")),
					relayed6(relayed6(m, "::", privateAddr.String(), option79(macStranger)), "2001:db8:20::fe", "fe80::7")} {
					for _, mac := range []string{macDeclared, macPooled} {
						o := ask6(t, set, p, mac, nil, func(q *question) {
							q.boot.file, _ = ipxe.Boot{}.Bootfile(q.req.client, ipxe.Spec{Kind: ipxe.SpecRamdisk}, ourAddr6, 8080)
						})
						if o.six == nil {
							continue
						}
						add(ourAddr6, o.dest.to.Addr(), serverPort6, o.dest.to.Port(), o.six.payload)
					}
				}
			}
		}
	}
	all.judge(t, n)
	if n < 500 {
		t.Errorf("%d replies: too few to say anything", n)
	}
}
