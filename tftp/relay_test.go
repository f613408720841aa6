package tftp

import (
	"bytes"
	"io"
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
	client, ours, asked, library, stranger := socket(), socket(), socket(), socket(), socket()
	r := &relay{conn: asked, dropped: &counters{}, tasks: map[netip.AddrPort]*task{}}
	content := bytes.NewReader(make([]byte, 3*plainBlock-1))
	tr := &transfer{terms: terms{block: plainBlock, window: 1}, conn: ours, client: at(client), file: io.NewSectionReader(content, 0, content.Size())}
	ended := make(chan int64, 1)
	go func() {
		n, err := r.serve(t.Context(), tr)
		if err != nil {
			t.Error(err)
		}
		ended <- n
	}()
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
	hears := func(who string, c *net.UDPConn, want string) netip.AddrPort {
		t.Helper()
		n, from, err := c.ReadFromUDPAddrPort(buf[:])
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("the %s got %q (%v), want %q", who, buf[:n], err, want)
		}
		return from
	}
	send(stranger, "\x00\x03\x00\x01evil")
	for deadline := time.Now().Add(20 * time.Second); r.dropped.snapshot()[string(badSender)] == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stranger's packet is not dropped")
		}
	}
	if r.task(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), inner.Port())) != nil {
		t.Error("the port at another address began the transfer")
	}
	k := r.task(inner)
	if k == nil {
		t.Fatal("the library's call finds no transfer")
	}
	k.begin()
	// The client has the first block.
	send(library, "\x00\x03\x00\x01good")
	hears("library", library, "\x00\x04\x00\x01")
	send(stranger, "\x00\x03\x00\x02evil")
	send(library, "\x00\x03\x00\x02good")
	from := hears("client", client, "\x00\x03\x00\x02good")
	if _, err := stranger.WriteToUDPAddrPort([]byte("\x00\x04\x00\x02"), from); err != nil {
		t.Fatal(err)
	}
	hears("stranger", stranger, "\x00\x05\x00\x05\x00") // RFC 1350 section 4
	if _, err := client.WriteToUDPAddrPort([]byte("\x00\x04\x00\x02"), from); err != nil {
		t.Fatal(err)
	}
	hears("library", library, "\x00\x04\x00\x02")
	k.end(content.Size(), nil)
	if n := <-ended; n != 3 {
		t.Errorf("%d blocks arrived, want 3", n)
	}
}
