package dhcp

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// The kernel keeps for seconds what goes to a neighbour that does not answer. Who
// reads is who sends: it must not wait for that.
func TestNeighboursThatDoNotAnswerHoldUpNobody(t *testing.T) {
	if !namespace(t) {
		return
	}
	segment6(t, "fd00:20::2/64")
	run(t, "ip", "addr", "add", "10.20.0.2/16", "dev", "br0")
	br0, err := net.InterfaceByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	f := Interface{Name: br0.Name, Index: br0.Index, MAC: br0.HardwareAddr}
	c, err := listen(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c6, err := listen6(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c6.close()
	for name, w := range map[string]struct {
		wire wire
		from string
		to   func(i int) netip.AddrPort
	}{
		"ARP": {c, "10.20.0.2", func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 20, byte(1 + i/200), byte(i % 200)}), clientPort)
		}},
		"neighbour discovery": {c6, "fd00:20::2", func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x20, 14: byte(1 + i/200), 15: byte(i % 200)}), serverPort6)
		}},
	} {
		began, sent := time.Now(), 0
		for i := range 2000 {
			// The kernel has room for some, and in its table of neighbours for some more.
			if w.wire.send(make([]byte, 400), netip.MustParseAddr(w.from), dest{to: w.to(i)}) == nil {
				sent++
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: 2000 answers took %v", name, took)
		}
		if sent < 500 {
			t.Errorf("%s: room for %d answers", name, sent)
		}
	}
}
