package agent

import (
	"net"
	"testing"
	"time"
)

// The console's lines go to the server too, each in a datagram of its own.
func TestConsoleLinesGoToTheServer(t *testing.T) {
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("udp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &console{start: time.Now()}
	c.mirror(conn)
	c.log("disk %s", "/dev/sda")
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	n, _, err := l.ReadFrom(buf)
	if got := string(buf[:n]); err != nil || got != "<14>recast-agent: disk /dev/sda" {
		t.Errorf("%q %v", got, err)
	}
}
