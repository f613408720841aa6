package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pin/tftp/v3"

	"recast/inventory"
)

// loader is longer than one block of any size and not a multiple of one.
var loader = bytes.Repeat([]byte("loader\r\n\x00\xff"), 10007)

// silence is how long a test's server bears with a silent client.
const silence = 700 * time.Millisecond

// running is a server on loopback.
type running struct {
	*Server
	addr *net.UDPAddr
	stop func() error

	closed atomic.Int32 // files that were found

	mu   sync.Mutex
	seen []inventory.Observation
	more chan struct{}
}

func start(t testing.TB, limits Limits) *running {
	t.Helper()
	return startAt(t, "127.0.0.1:0", limits)
}

func startAt(t testing.TB, addr string, limits Limits) *running {
	t.Helper()
	return startWith(t, addr, limits, silence, map[string][]byte{"snponly.efi": loader})
}

func startWith(t testing.TB, addr string, limits Limits, patience time.Duration, files map[string][]byte) *running {
	t.Helper()
	conn, err := listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{addr: conn.LocalAddr().(*net.UDPAddr), more: make(chan struct{}, 1)}
	r.Server = &Server{
		Conn:  conn,
		Files: fstest.MapFS{"snponly.efi": {Data: []byte("older")}, "autoexec.ipxe": {Data: []byte("#!ipxe\n")}, "even": {Data: make([]byte, 1024)}, "empty": {}, "sub/hidden": {Data: []byte("x")}},
		Extra: files, // win
		Observe: func(o inventory.Observation) {
			r.mu.Lock()
			r.seen = append(r.seen, o)
			r.mu.Unlock()
			select {
			case r.more <- struct{}{}:
			default:
			}
		},
		Find:     r.find,
		Limits:   limits,
		patience: patience,
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// observed waits for the nth observation.
func (r *running) observed(t testing.TB, n int) inventory.Observation {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		r.mu.Lock()
		if len(r.seen) >= n {
			defer r.mu.Unlock()
			return r.seen[n-1]
		}
		r.mu.Unlock()
		select {
		case <-r.more:
		case <-deadline:
			t.Fatalf("observation %d was not made", n)
		}
	}
}

// client speaks raw TFTP from one port.
type client struct {
	t      testing.TB
	conn   *net.UDPConn
	server *net.UDPAddr
	from   *net.UDPAddr // of the last packet
}

func dial(t testing.TB, server *net.UDPAddr) *client {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, conn: c, server: server}
}

func (c *client) send(to *net.UDPAddr, p string) {
	c.t.Helper()
	if _, err := c.conn.WriteToUDP([]byte(p), to); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns the next packet, "" when none comes in time.
func (c *client) receive(wait time.Duration) string {
	c.t.Helper()
	var buf [4096]byte
	c.conn.SetReadDeadline(time.Now().Add(wait))
	n, from, err := c.conn.ReadFromUDP(buf[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.from = from
	return string(buf[:n])
}

func (c *client) ack(block uint16) {
	c.send(c.from, "\x00\x04"+string(binary.BigEndian.AppendUint16(nil, block)))
}

func rrq(name string, options ...string) string {
	p := "\x00\x01" + name + "\x00octet\x00"
	for _, o := range options {
		p += o + "\x00"
	}
	return p
}

// get fetches a file and returns it with the first packet of the answer. It
// acknowledges each window.
func (c *client) get(request string, blksize, window int) (content []byte, first string) {
	c.t.Helper()
	c.send(c.server, request)
	first = c.receive(5 * time.Second)
	p := first
	if strings.HasPrefix(p, "\x00\x06") {
		c.ack(0)
		p = c.receive(5 * time.Second)
	}
	for n := 1; ; n++ {
		if !strings.HasPrefix(p, "\x00\x03"+string(binary.BigEndian.AppendUint16(nil, uint16(n)))) {
			c.t.Fatalf("block %d: got %.40q", n, p)
		}
		content = append(content, p[4:]...)
		if len(p)-4 < blksize {
			c.ack(uint16(n))
			return content, first
		}
		if n%window == 0 {
			c.ack(uint16(n))
		}
		p = c.receive(5 * time.Second)
	}
}

func TestReadMatrix(t *testing.T) {
	size := strconv.Itoa(len(loader))
	text := bytes.ReplaceAll(bytes.ReplaceAll(loader, []byte("\r"), []byte("\r\x00")), []byte("\n"), []byte("\r\n"))
	for _, tc := range []struct {
		name    string
		request string
		blksize int
		window  int
		first   string // beginning of the first packet
		want    []byte
	}{
		{"no options", rrq("snponly.efi"), 512, 1, "\x00\x03\x00\x01", loader},
		{"a whole frame", rrq("snponly.efi", "blksize", "1468"), 1468, 1, "\x00\x06blksize\x001468\x00", loader},
		{"what iPXE asks", rrq("snponly.efi", "blksize", "1432", "tsize", "0"), 1432, 1, "\x00\x06blksize\x001432\x00tsize\x00" + size + "\x00", loader},
		{"what edk2 asks", rrq("snponly.efi", "tsize", "0", "blksize", "1468", "windowsize", "4"), 1468, 4, "\x00\x06tsize\x00" + size + "\x00blksize\x001468\x00windowsize\x004\x00", loader},
		{"what curl asks", rrq("snponly.efi", "tsize", "0", "blksize", "512", "timeout", "6"), 512, 1, "\x00\x06tsize\x00" + size + "\x00blksize\x00512\x00timeout\x006\x00", loader},
		{"more than a frame is lowered", rrq("snponly.efi", "blksize", "65464"), 1468, 1, "\x00\x06blksize\x001468\x00", loader},
		{"smaller than a plain block", rrq("snponly.efi", "blksize", "100"), 100, 1, "\x00\x06blksize\x00100\x00", loader},
		{"the file's size", rrq("snponly.efi", "tsize", "0"), 512, 1, "\x00\x06tsize\x00" + size + "\x00", loader},
		{"names in capitals", rrq("snponly.efi", "TSIZE", "0"), 512, 1, "\x00\x06tsize\x00" + size + "\x00", loader},
		{"a window alone", rrq("snponly.efi", "windowsize", "4"), 512, 4, "\x00\x06windowsize\x004\x00", loader},
		{"a window of one", rrq("snponly.efi", "windowsize", "1"), 512, 1, "\x00\x06windowsize\x001\x00", loader},
		{"a large window is lowered", rrq("snponly.efi", "windowsize", "64", "blksize", "1024"), 1024, 16, "\x00\x06windowsize\x0016\x00blksize\x001024\x00", loader},
		{"unknown options are left out", rrq("snponly.efi", "multicast", "", "blksize", "1024"), 1024, 1, "\x00\x06blksize\x001024\x00", loader},
		{"only unknown options", rrq("snponly.efi", "utimeout", "4"), 512, 1, "\x00\x03\x00\x01", loader},
		{"a multiple of the block ends with an empty one", rrq("even"), 512, 1, "\x00\x03\x00\x01", make([]byte, 1024)},
		{"a multiple of the window likewise", rrq("even", "windowsize", "2"), 512, 2, "\x00\x06windowsize\x002\x00", make([]byte, 1024)},
		{"an empty file", rrq("empty"), 512, 1, "\x00\x03\x00\x01", nil},
		{"an empty file in a window", rrq("empty", "windowsize", "4"), 512, 4, "\x00\x06windowsize\x004\x00", nil},
		{"a generated file", rrq("/autoexec.ipxe"), 512, 1, "\x00\x03\x00\x01", []byte("#!ipxe\n")},
		{"as text", strings.Replace(rrq("snponly.efi"), "octet", "NetASCII", 1), 512, 1, "\x00\x03\x00\x01", text},
		{"as text, with its size", strings.Replace(rrq("snponly.efi", "tsize", "0", "windowsize", "3"), "octet", "netascii", 1), 512, 3, "\x00\x06tsize\x00" + strconv.Itoa(len(text)), text},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, Limits{})
			got, first := dial(t, s.addr).get(tc.request, tc.blksize, tc.window)
			if !strings.HasPrefix(first, tc.first) {
				t.Errorf("first packet %.60q, want %q", first, tc.first)
			}
			if !bytes.Equal(got, tc.want) {
				t.Errorf("%d bytes differ from the %d of the file", len(got), len(tc.want))
			}
			o := s.observed(t, 1)
			if o.Kind != inventory.SawTFTP || o.Bytes != int64(len(tc.want)) || o.Size != o.Bytes || o.BlockSize != tc.blksize || o.Asked || o.Error != "" || o.Remote != netip.MustParseAddr("127.0.0.1") || o.Time.IsZero() {
				t.Errorf("observed %+v", o)
			}
		})
	}
}

func TestMissingFilesAndTraversalsEndWithAnError(t *testing.T) {
	s := start(t, Limits{})
	for i, name := range []string{"nothing.efi", "../snponly.efi", "sub/hidden", "sub", ".", "\\snponly.efi", "snponly.efi\n"} {
		c := dial(t, s.addr)
		c.send(s.addr, rrq(name))
		if p := c.receive(5 * time.Second); p != "\x00\x05\x00\x01no such file\x00" {
			t.Errorf("%q: %.60q", name, p)
		}
		if o := s.observed(t, i+1); o.Error != "no such file" || o.Bytes != 0 {
			t.Errorf("%q: observed %+v", name, o)
		}
	}
}

func TestSizeProbeIsNoFailure(t *testing.T) {
	s := start(t, Limits{})
	c := dial(t, s.addr)
	c.send(s.addr, rrq("snponly.efi", "tsize", "0"))
	if p := c.receive(5 * time.Second); !strings.HasPrefix(p, "\x00\x06tsize\x00") {
		t.Fatalf("got %q", p)
	}
	c.send(c.from, "\x00\x05\x00\x00TFTP Aborted\x00")
	if o := s.observed(t, 1); o.Error != "" || o.Detail != "snponly.efi" || !o.Asked || o.Bytes != 0 || o.Size != int64(len(loader)) {
		t.Errorf("observed %+v", o)
	}
}

func TestAnAbortLaterIsAFailure(t *testing.T) {
	s := start(t, Limits{})
	c := dial(t, s.addr)
	c.send(s.addr, rrq("snponly.efi"))
	c.receive(5 * time.Second)
	c.ack(1)
	c.receive(5 * time.Second)
	c.send(c.from, "\x00\x05\x00\x03disk full\x00")
	if o := s.observed(t, 1); !strings.Contains(o.Error, "disk full") || o.Detail != "snponly.efi" || o.Bytes >= o.Size || o.BlockSize != 512 {
		t.Errorf("observed %+v", o)
	}
}

// GRUB says once that it has the OACK.
func TestALostAcknowledgementOfOptionsStopsNoClientThatWaits(t *testing.T) {
	for _, request := range []string{rrq("snponly.efi", "blksize", "1024", "tsize", "0"), rrq("snponly.efi", "blksize", "1024", "windowsize", "1", "tsize", "0")} {
		s := startWith(t, "127.0.0.1:0", Limits{}, 2*time.Second, map[string][]byte{"snponly.efi": loader})
		c := dial(t, s.addr)
		c.send(s.addr, request)
		for range 2 {
			if p := c.receive(5 * time.Second); !strings.HasPrefix(p, "\x00\x06blksize\x001024\x00") {
				t.Fatalf("%q: got %.60q", request, p)
			}
		}
		c.ack(0)
		if p := c.receive(5 * time.Second); !strings.HasPrefix(p, "\x00\x03\x00\x01") || len(p) != 1028 {
			t.Errorf("%q: then came %.60q", request, p)
		}
		c.send(c.from, "\x00\x05\x00\x00enough\x00")
	}
}

func TestALostBlockComesAgainOnceTheClientIsKnown(t *testing.T) {
	s := start(t, Limits{})
	c := dial(t, s.addr)
	c.send(s.addr, rrq("snponly.efi"))
	c.receive(5 * time.Second)
	c.ack(1)
	second := c.receive(5 * time.Second)
	if again := c.receive(5 * time.Second); again != second {
		t.Errorf("after silence came %.20q, want block 2 again", again)
	}
	c.send(c.from, "\x00\x05\x00\x00enough\x00")
}

// A packet with a forged source must not make the server send much to its
// victim. With options the answer is small, and sent again where that stays small
// too; without, the protocol demands a block of 512 bytes, which is sent once.
func TestForgedSourcesGainLessThanThreefoldOrOneBlock(t *testing.T) {
	for _, tc := range []struct {
		request string
		packets int
		bytes   int
	}{
		{rrq("snponly.efi", "blksize", "1468", "tsize", "0"), 4, 3*len(rrq("snponly.efi", "blksize", "1468", "tsize", "0")) - 1},
		{rrq("snponly.efi", "blksize", "1468", "tsize", "0", "windowsize", "16"), 3, 3*len(rrq("snponly.efi", "blksize", "1468", "tsize", "0", "windowsize", "16")) - 1},
		{rrq("x", "blksize", "8", "blksize", "100", "tsize", "0"), 4, 3*len(rrq("x", "blksize", "8", "blksize", "100", "tsize", "0")) - 1},
		{rrq("x", "tsize", "0"), 3, 3*len(rrq("x", "tsize", "0")) - 1},
		{rrq("snponly.efi", "tsize", ""), 1, 516},
		{rrq("snponly.efi"), 1, 516},
		{rrq("autoexec.ipxe"), 1, 11},
		{rrq("nothing"), 1, 3*len(rrq("nothing")) - 1},
		{rrq("n"), 1, 3*len(rrq("n")) - 1},
		{"\x00\x02a\x00octet\x00", 0, 0},
		{"\x00\x01a", 0, 0},
		{"\x00\x04\x00\x01", 0, 0},
	} {
		t.Run(strconv.Quote(tc.request), func(t *testing.T) {
			t.Parallel()
			const patience = time.Second
			s := startWith(t, "127.0.0.1:0", Limits{}, patience, map[string][]byte{"snponly.efi": loader, "x": loader})
			c := dial(t, s.addr)
			c.send(s.addr, tc.request)
			packets, sum := 0, 0
			// Silence for longer than the server's patience: nothing is sent later.
			for end := time.Now().Add(patience + time.Second); ; {
				p := c.receive(time.Until(end))
				if p == "" {
					break
				}
				packets++
				sum += len(p)
			}
			if packets != tc.packets || sum > tc.bytes {
				t.Errorf("%d bytes were answered with %d bytes in %d packets, want at most %d in %d", len(tc.request), sum, packets, tc.bytes, tc.packets)
			}
		})
	}
}

// GRUB, U-Boot and the Raspberry Pi ask for many names that nobody has, and wait
// for each answer.
func TestManyMissingNamesInARowAreEachRefused(t *testing.T) {
	s := start(t, Limits{})
	c := dial(t, s.addr)
	for i := range 50 {
		c.send(s.addr, rrq("pxelinux.cfg/0A09000"+strconv.Itoa(i)))
		if p := c.receive(5 * time.Second); !strings.HasPrefix(p, "\x00\x05\x00\x01") {
			t.Fatalf("request %d: got %.60q, dropped %v", i, p, s.Dropped())
		}
	}
}

// RFC 1350 section 4.
func TestAStrangerIsRefusedAndDoesNotEndTheTransfer(t *testing.T) {
	for _, options := range [][]string{nil, {"windowsize", "2"}} {
		s := start(t, Limits{})
		c, stranger := dial(t, s.addr), dial(t, s.addr)
		c.send(s.addr, rrq("even", options...))
		first := c.receive(5 * time.Second)
		for _, p := range []string{"\x00\x04\x00\x01", "\x00\x05\x00\x00stop\x00"} {
			stranger.send(c.from, p)
			if p := stranger.receive(5 * time.Second); !strings.HasPrefix(p, "\x00\x05\x00\x05") {
				t.Errorf("the stranger got %q, want error 5", p)
			}
		}
		c.ack(uint16(first[3]) * uint16(first[1]&1)) // the OACK as 0
		if p := c.receive(5 * time.Second); !strings.HasPrefix(p, "\x00\x03") {
			t.Errorf("then the client got %.10q", p)
		}
		c.send(c.from, "\x00\x05\x00\x00enough\x00")
	}
}

// The count of blocks has 16 bits.
func TestAFileOfMoreThan65535BlocksArrives(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcde"), 70_000*plainBlock/15)
	s := startWith(t, "127.0.0.1:0", Limits{}, 0, map[string][]byte{"big": big, "many": big[:70_000*16]})
	for _, request := range []string{
		rrq("big"), // the library's
		rrq("many", "blksize", "16", "windowsize", "7"),
	} {
		want := big
		if strings.Contains(request, "many") {
			want = big[:70_000*16]
		}
		got, err := fetch(dial(t, s.addr).conn, s.addr, request)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: fetched %d bytes that differ from the %d of the file: %v", request, len(got), len(want), err)
		}
	}
}

func TestAFloodFromOneSourceIsDropped(t *testing.T) {
	s := start(t, Limits{Rate: 0.001, Burst: 5, PerSource: 3})
	c := dial(t, s.addr)
	for range 200 {
		c.send(s.addr, rrq("snponly.efi"))
	}
	answered := 0
	for p := c.receive(time.Second); strings.HasPrefix(p, "\x00\x03"); p = c.receive(500 * time.Millisecond) {
		answered++
	}
	if answered != 3 {
		t.Errorf("%d of 200 requests were answered, want 3", answered)
	}
	if d := s.Dropped(); d[string(busySource)] != 2 || d[string(busyRate)] == 0 {
		t.Errorf("dropped %v", d)
	}
}

func TestRunEndsWithItsContextInMidTransfer(t *testing.T) {
	s := start(t, Limits{})
	c := dial(t, s.addr)
	c.send(s.addr, rrq("snponly.efi"))
	c.receive(5 * time.Second)
	ended := make(chan error, 1)
	go func() { ended <- s.stop() }()
	c.ack(1)
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run did not end")
	}
	if o := s.observed(t, 1); o.Error == "" {
		t.Errorf("the cut transfer is observed as %+v", o)
	}
}

func TestRunReturnsWhenTheSocketBreaks(t *testing.T) {
	conn, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (&Server{Conn: conn}).Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run = %v", err)
	}
}

type closing struct {
	File
	closed *atomic.Int32
}

func (c closing) Close() error {
	c.closed.Add(1)
	return c.File.Close()
}

// find serves one file that is made for its asker.
func (r *running) find(_ context.Context, name string, remote netip.Addr) (File, error) {
	switch name {
	case "grub/grub.cfg":
		return closing{Bytes([]byte("for " + remote.String())), &r.closed}, nil
	case "broken":
		return nil, errors.New("the disk is broken")
	}
	return nil, nil
}

func TestFilesAreFoundForTheirAskerAndClosedAfterwards(t *testing.T) {
	s := start(t, Limits{})
	c, err := tftp.NewClient(s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	from, err := c.Receive("/grub/grub.cfg", "octet")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := from.WriteTo(&got); err != nil || got.String() != "for 127.0.0.1" {
		t.Errorf("%q, %v", &got, err)
	}
	if o := s.observed(t, 1); o.Detail != "grub/grub.cfg" || o.Error != "" || o.Bytes != 13 {
		t.Errorf("observed %+v", o)
	}
	for _, name := range []string{"broken", "absent"} {
		if _, err := c.Receive(name, "octet"); err == nil {
			t.Errorf("%s was served", name)
		}
	}
	if err := s.stop(); err != nil || s.closed.Load() != 1 {
		t.Errorf("closed %d times, %v", s.closed.Load(), err)
	}
}

// Small packets pass and large ones do not: a link's MTU, which is another matter
// than a port that is blocked.
func TestSilenceAfterTheOptionsIsTold(t *testing.T) {
	for name, c := range map[string]struct{ options, ack, want string }{
		"never heard":              {"blksize\x001468\x00", "", "no answer"},
		"heard":                    {"blksize\x001468\x00", "\x00\x04\x00\x00", "no answer to the first block"},
		"heard, asks for a window": {"blksize\x001468\x00windowsize\x004\x00", "\x00\x04\x00\x00", "no answer to the first block"},
		"no options":               {"", "", "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, Limits{})
			cl := dial(t, s.addr)
			cl.send(s.addr, "\x00\x01snponly.efi\x00octet\x00"+c.options)
			if cl.receive(10*time.Second) == "" {
				t.Fatal("no answer to the request")
			}
			if c.ack != "" {
				cl.send(cl.from, c.ack)
			}
			if o := s.observed(t, 1); o.Error != c.want || o.Bytes != 0 || o.Asked {
				t.Errorf("%+v, want %q", o, c.want)
			}
		})
	}
}
