package tftp

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// UEFI drops what does not come from the address that it asked (RFC 1350
// section 4), and the kernel, left alone, answers from the first one of the
// subnet.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (apt-get install iproute2)")
	}
	const inside = "RECAST_TEST_IN_NETNS"
	if os.Getenv(inside) == "" {
		// The whole process has to be in the namespace: a socket is where the thread
		// is that opens it.
		cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, line := range []string{"link set lo up", "link add one type veth peer name two", "link set one up", "link set two up",
		"address add 10.9.0.1/24 dev one", "address add 10.9.0.2/24 dev one"} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	s := startAt(t, "0.0.0.0:0", Limits{Burst: 100})
	client := dial(t, s.addr)
	for _, ask := range []net.IP{net.IPv4(10, 9, 0, 1), net.IPv4(10, 9, 0, 2), net.IPv4(127, 0, 0, 1)} {
		for _, name := range []string{"snponly.efi", "nothing"} {
			client.send(&net.UDPAddr{IP: ask, Port: s.addr.Port}, rrq(name, "blksize", "1468"))
			if client.receive(5*time.Second) == "" || !client.from.IP.Equal(ask) || client.from.Port == s.addr.Port {
				t.Errorf("%s, %s: answered from %s, want that address and another port than %d", ask, name, client.from, s.addr.Port)
			}
			client.send(client.from, "\x00\x05\x00\x00enough\x00")
		}
	}
	// Nobody answers a broadcast.
	raw, err := client.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) })
	if err != nil {
		t.Fatal(err)
	}
	client.send(&net.UDPAddr{IP: net.IPv4(127, 255, 255, 255), Port: s.addr.Port}, rrq("snponly.efi"))
	for deadline := time.Now().Add(5 * time.Second); s.Dropped()[string(badDestination)] == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the broadcast was not refused: %v", s.Dropped())
		}
	}
}
