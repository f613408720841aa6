package tftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const inNamespace = "RECAST_TFTP_NAMESPACE"

// namespace runs the rest of the test in a child process with a network
// namespace of its own, which the kernel takes away with the process: the whole
// process, since a socket is where the thread is that opens it. It returns true
// in the child, and then its loopback is up.
func namespace(t testing.TB, tools ...tool) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		run(t, "ip link set lo up")
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tool := range append(tools, tool{"ip", "iproute2"}) {
		tool.need(t)
	}
	if t, ok := t.(*testing.T); ok {
		t.Parallel() // the time goes into waiting for what was lost
	}
	flag := "-test.run"
	if _, ok := t.(*testing.B); ok {
		flag = "-test.run=^$ -test.benchtime=1x -test.bench"
	}
	args := append(strings.Fields(flag+"=^"+regexp.QuoteMeta(t.Name())+"$"), "-test.v", "-test.timeout=290s", "-test.parallel=20")
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}

// tool is a program that a test runs, and the package that has it.
type tool struct{ name, pkg string }

func (tool tool) need(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath(tool.name); err != nil {
		t.Skipf("needs %s (apt-get install %s)", tool.name, tool.pkg)
	}
}

func run(t testing.TB, commands ...string) {
	t.Helper()
	for _, line := range commands {
		f := strings.Fields(line)
		if out, err := exec.CommandContext(t.Context(), f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

// UEFI drops what does not come from the address that it asked (RFC 1350
// section 4), and the kernel, left alone, answers from the first one of the
// subnet.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	if !namespace(t) {
		return
	}
	run(t, "ip link add one type veth peer name two", "ip link set one up", "ip link set two up",
		"ip address add 10.9.0.1/24 dev one", "ip address add 10.9.0.2/24 dev one")
	s := startAt(t, "0.0.0.0:0", Limits{})
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

// A block is no larger than what the way takes in one piece.
func TestBlocksFollowTheMTU(t *testing.T) {
	if !namespace(t) {
		return
	}
	run(t, "ip link add one mtu 1400 type veth peer name two", "ip link set one up", "ip link set two up",
		"ip address add 10.9.0.1/24 dev one", "ip route add 10.8.0.0/16 dev one mtu 1280", "ip route add 10.7.0.0/16 dev one mtu 552")
	for to, want := range map[string]int{"10.9.0.2:69": 1368, "10.8.0.1:69": 1248, "10.7.0.1:69": 520} {
		if got := room(netip.MustParseAddr("10.9.0.1"), netip.MustParseAddrPort(to)); got != want {
			t.Errorf("room to %s: %d, want %d", to, got, want)
		}
	}
}

// realClient is a program that people use to fetch a file.
type realClient struct {
	what string
	tool tool
	args string // OUT, HOST and PORT are filled in
}

var (
	toolCurl    = tool{"curl", "curl"}
	toolHPA     = tool{"tftp", "tftp-hpa"}
	toolATFTP   = tool{"atftp", "atftp"}
	toolBusybox = tool{"busybox", "busybox-static"}
)

var realClients = []realClient{
	{"curl", toolCurl, "-sS -o OUT tftp://HOST:PORT/FILE"},
	{"curl, a whole frame", toolCurl, "-sS --tftp-blksize 1468 -o OUT tftp://HOST:PORT/FILE"},
	{"curl without options", toolCurl, "-sS --tftp-no-options -o OUT tftp://HOST:PORT/FILE"},
	{"tftp-hpa", toolHPA, "-m binary HOST PORT -c get FILE OUT"},
	{"tftp-hpa as text", toolHPA, "-m netascii HOST PORT -c get FILE OUT"},
	{"atftp", toolATFTP, "-g -r FILE -l OUT HOST PORT"},
	{"atftp, a window of 4", toolATFTP, "--option windowsize=4 --option blksize=1468 -g -r FILE -l OUT HOST PORT"},
	{"atftp, a window of 64 and a time", toolATFTP, "--option windowsize=64 --option timeout=1 --option tsize=0 -g -r FILE -l OUT HOST PORT"},
	{"busybox", toolBusybox, "tftp -g -b 1468 -r FILE -l OUT HOST PORT"},
	{"busybox, small blocks", toolBusybox, "tftp -g -b 100 -r FILE -l OUT HOST PORT"},
}

// fetch runs the client and compares what it got.
func (c realClient) fetch(t *testing.T, addr *net.UDPAddr, file string, want []byte) {
	t.Helper()
	c.tool.need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Second)
	defer cancel()
	out := filepath.Join(t.TempDir(), "out")
	args := strings.Fields(strings.NewReplacer("OUT", out, "HOST", addr.IP.String(), "PORT", strconv.Itoa(addr.Port), "FILE", file).Replace(c.args))
	for i := range args {
		args[i] = strings.Replace(args[i], "=", " ", 1) // atftp's options are two words
	}
	start := time.Now()
	if text, err := exec.CommandContext(ctx, c.tool.name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("fetched %d bytes that differ from the %d of the file", len(got), len(want))
	}
	t.Logf("%d bytes in %s", len(got), time.Since(start).Round(time.Millisecond))
}

func TestRealClientsFetchALoader(t *testing.T) {
	s := start(t, Limits{})
	for _, c := range realClients {
		t.Run(c.what, func(t *testing.T) { c.fetch(t, s.addr, "snponly.efi", loader) })
	}
}

// TestRealClientsFetchALoaderThroughLoss: of all packets between client and
// server, the first and the last among them, a tenth is lost.
func TestRealClientsFetchALoaderThroughLoss(t *testing.T) {
	if !namespace(t, tool{"nft", "nftables"}, toolCurl, toolHPA, toolATFTP, toolBusybox) {
		return
	}
	run(t, "ip address add 10.9.0.1/32 dev lo",
		"nft add table ip loss", "nft add chain ip loss in { type filter hook input priority 0 ; }",
		"nft add rule ip loss in ip saddr 10.9.0.1 udp dport > 0 numgen random mod 10 == 0 counter drop")
	content := make([]byte, 60_000)
	rand.Read(content)
	s := startWith(t, "10.9.0.1:0", Limits{Burst: 1000, PerSource: 100}, 0, map[string][]byte{"snponly.efi": content})
	for _, c := range realClients {
		if strings.Contains(c.what, "small") {
			continue // a thousand and a half round trips, a fifth of which fail
		}
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			c.fetch(t, s.addr, "snponly.efi", content)
		})
	}
}
