package dhcp

import (
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// A socket is closed when its interface goes, and the machines of others wait in
// the same queue.
func TestReaderOfAClosedSocketAnswersWhatWaits(t *testing.T) {
	r := newRig(t, rack())
	raw := message(DISCOVER, macDeclared).ToBytes()
	raw[4] = 0x77
	for i := range few + 1 {
		raw[5] = byte(i)
		r.accept(r.link, raw, broadcast.Addr(), netip.AddrPort{}, 0)
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	r.serve(t.Context(), r.link, udp, serverPort)
	for range few + 1 {
		if p := r.get(); p.MessageType() != dhcpv4.MessageTypeOffer {
			t.Error(p.Summary())
		}
	}
}
