package dhcp

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// agrees holds our reading and writing of a packet against the library's.
func agrees(t *testing.T, raw []byte) {
	t.Helper()
	if _, err := peek(raw); err != nil || len(raw) == headerLen { // none at all is fine with the library
		return
	}
	want, wantErr := dhcpv4.FromBytes(raw)
	var got packet4
	if err := parsePacket(&got, raw); (err == nil) != (wantErr == nil) {
		t.Fatalf("parsePacket = %v; the library says %v: %x", err, wantErr, raw)
	} else if err != nil {
		return
	}
	if got.TransactionID != want.TransactionID || got.Flags != want.Flags || got.NumSeconds != want.NumSeconds || got.HopCount != want.HopCount ||
		got.ServerHostName != want.ServerHostName || got.BootFileName != want.BootFileName || !bytes.Equal(got.ClientHWAddr, want.ClientHWAddr) ||
		!want.ClientIPAddr.Equal(got.ClientIPAddr[:]) || !want.YourIPAddr.Equal(got.YourIPAddr[:]) || !want.ServerIPAddr.Equal(got.ServerIPAddr[:]) || !want.GatewayIPAddr.Equal(got.GatewayIPAddr[:]) {
		t.Fatalf("parsePacket = %+v; the library says %+v", got, want)
	}
	if !maps.EqualFunc(byCode(got.Options), want.Options, bytes.Equal) {
		t.Fatalf("options %v; the library says %v", got.Options, want.Options)
	}
	if ours, theirs := appendPacket(nil, &got), want.ToBytes(); !bytes.Equal(ours, theirs) {
		t.Fatalf("appendPacket = %x; the library writes %x", ours, theirs)
	}
}

// unfolded has the overloaded options of a packet that the library read.
func unfolded(t testing.TB, p *dhcpv4.DHCPv4, raw []byte) {
	t.Helper()
	var ours packet4
	if err := parsePacket(&ours, raw); err != nil {
		t.Fatalf("read %x: %v", raw, err)
	}
	if err := unfold(&ours, raw); err != nil {
		t.Fatalf("its overloaded fields do not decode: %v", err)
	}
	p.BootFileName, p.ServerHostName, p.Options = ours.BootFileName, ours.ServerHostName, byCode(ours.Options)
}

// byCode is the library's form of options.
func byCode(o options) dhcpv4.Options {
	to := dhcpv4.Options{}
	for _, o := range o {
		to[o.code] = o.value
	}
	return to
}

func TestOurCodecAgreesWithTheLibrarys(t *testing.T) {
	long := message(DISCOVER, macDeclared, option(43, make([]byte, 600)...), option(82, make([]byte, 255)...), option(61))
	twice := message(DISCOVER, macDeclared).ToBytes()
	twice = append(slices.DeleteFunc(twice[:len(twice):len(twice)], func(b byte) bool { return b == 255 })[:243], 12, 2, 'a', 'b', 12, 1, 'c', 0, 12, 0, 255)
	named := message(REQUEST, macDeclared)
	named.ServerHostName, named.BootFileName = string(bytes.Repeat([]byte{'s'}, 80)), string(bytes.Repeat([]byte{'f'}, 200))
	cut := message(DISCOVER, macDeclared, option(12, 'x')).ToBytes()
	for _, raw := range [][]byte{message(DISCOVER, macDeclared, pxe(7)).ToBytes(), long.ToBytes(), twice, named.ToBytes(), cut[:243], cut[:244], cut[:240], append(cut[:243:243], 12), append(cut[:243:243], 12, 9, 1)} {
		agrees(t, raw)
	}
}

func TestAPacketThatIsReadAgainLeavesNothingBehind(t *testing.T) {
	s := &Server{}
	s.init()
	first := s.requests.Get().(*request)
	first.raw = append(first.raw, message(REQUEST, macDeclared, pxe(7), option(12, 'x'), giaddr("10.20.0.254"), option(82, 1, 1, 'p')).ToBytes()...)
	if err := first.read(); err != nil || first.hostname != "x" || first.port.Circuit == "" {
		t.Fatalf("read = %v: %+v", err, first)
	}
	s.free(first)
	first.raw = append(first.raw, message(DISCOVER, macStranger).ToBytes()...)
	first.mac = macStranger
	if err := first.read(); err != nil {
		t.Fatal(err)
	}
	fresh := parse(t, message(DISCOVER, macStranger))
	if first.hostname != fresh.hostname || first.port != fresh.port || first.client != fresh.client || first.giaddr != fresh.giaddr || !maps.EqualFunc(byCode(first.Options), byCode(fresh.Options), bytes.Equal) {
		t.Errorf("read again: %+v; want %+v", first, fresh)
	}
}
