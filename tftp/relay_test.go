package tftp

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestNobodyElseOnThisHostTakesPartInATransfer: not with the library, from the
// transfer's port at another address, nor with the client, as if it were the
// library.
func TestNobodyElseOnThisHostTakesPartInATransfer(t *testing.T) {
	socket := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", loopback())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	at := func(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
	client, asked, library, stranger := socket(), socket(), socket(), socket()
	r := &relay{Server: &Server{}, library: at(asked), transfers: map[uint16]*transfer{}}
	r.gate = newGate(Limits{})
	if err := r.accept([]byte("\x00\x01file\x00octet\x00"), at(client), at(client).Addr()); err != nil {
		t.Fatal(err)
	}
	var buf [600]byte
	_, inner, err := asked.ReadFromUDPAddrPort(buf[:])
	if err != nil {
		t.Fatal(err)
	}
	send := func(from *net.UDPConn, text string) {
		if _, err := from.WriteToUDPAddrPort([]byte(text), inner); err != nil {
			t.Fatal(err)
		}
	}
	// gets returns what the client gets next, and acknowledges it.
	gets := func(want string) {
		t.Helper()
		n, from, err := client.ReadFromUDPAddrPort(buf[:])
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("the client got %q (%v), want %q", buf[:n], err, want)
		}
		if _, err := client.WriteToUDPAddrPort([]byte("\x00\x04"+want[2:4]), from); err != nil {
			t.Fatal(err)
		}
		if n, _, err := library.ReadFromUDPAddrPort(buf[:]); err != nil || string(buf[:n]) != "\x00\x04"+want[2:4] {
			t.Fatalf("the library got %q (%v)", buf[:n], err)
		}
	}
	send(stranger, "\x00\x03\x00\x01evil")
	if _, err := r.begin(net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: int(inner.Port())}); err == nil {
		t.Error("the port at another address began the transfer")
	}
	for deadline := time.Now().Add(20 * time.Second); r.Dropped()[string(badSender)] == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stranger's packet is not dropped")
		}
	}
	tr, err := r.begin(*net.UDPAddrFromAddrPort(inner))
	if err != nil {
		t.Fatal(err)
	}
	send(library, "\x00\x03\x00\x01good")
	gets("\x00\x03\x00\x01good")
	send(stranger, "\x00\x03\x00\x02evil")
	send(library, "\x00\x03\x00\x02good")
	gets("\x00\x03\x00\x02good")
	tr.end()
	r.work.Wait()
}
