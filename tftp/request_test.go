package tftp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestRequestsAreUnderstoodOrRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	for name, tc := range map[string]struct {
		packet string
		want   string // what the client is told
		err    error
	}{
		"plain":                        {"\x00\x01snponly.efi\x00octet\x00", "snponly.efi: ", nil},
		"options":                      {"\x00\x01a\x00octet\x00tsize\x000\x00blksize\x001468\x00", "a: tsize 300000 blksize 1468", nil},
		"case":                         {"\x00\x01a\x00OCTET\x00BLKSIZE\x001432\x00", "a: blksize 1432", nil},
		"all that edk2 asks":           {"\x00\x01a\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00", "a: tsize 300000 blksize 1468 windowsize 4", nil},
		"all that curl asks":           {"\x00\x01a\x00octet\x00tsize\x000\x00blksize\x00512\x00timeout\x006\x00", "a: tsize 300000 blksize 512 timeout 6", nil},
		"options nobody knows":         {"\x00\x01a\x00octet\x00multicast\x00x\x00rollover\x000\x00", "a: ", nil},
		"option given twice":           {"\x00\x01a\x00octet\x00blksize\x00600\x00blksize\x00700\x00", "a: blksize 600", nil},
		"no numbers":                   {"\x00\x01a\x00octet\x00blksize\x00big\x00windowsize\x00-1\x00timeout\x001.5\x00", "a: ", nil},
		"outside of what RFCs allow":   {"\x00\x01a\x00octet\x00blksize\x007\x00windowsize\x000\x00timeout\x00256\x00", "a: ", nil},
		"more than RFCs allow":         {"\x00\x01a\x00octet\x00blksize\x0065465\x00windowsize\x0065536\x00timeout\x000\x00", "a: ", nil},
		"the most that RFCs allow":     {"\x00\x01a\x00octet\x00blksize\x0065464\x00windowsize\x0065535\x00timeout\x00255\x00", "a: blksize 1468 windowsize 16 timeout 255", nil},
		"the least":                    {"\x00\x01a\x00octet\x00blksize\x008\x00windowsize\x001\x00timeout\x001\x00", "a: blksize 8 windowsize 1 timeout 1", nil},
		"option with an empty value":   {"\x00\x01a\x00octet\x00tsize\x00\x000\x00", "", badOptions},
		"empty value, well formed":     {"\x00\x01a\x00octet\x00tsize\x00\x00blksize\x00600\x00", "a: blksize 600", nil},
		"leading slash":                {"\x00\x01/snponly.efi\x00octet\x00", "snponly.efi: ", nil},
		"end mark of DHCP":             {"\x00\x01snponly.efi\xff\x00octet\x00", "snponly.efi: ", nil},
		"zeros up to the buffer":       {"\x00\x01a\x00octet\x00" + strings.Repeat("\x00", 300), "a: ", nil},
		"write":                        {"\x00\x02a\x00octet\x00", "", badWrite},
		"data":                         {"\x00\x03\x00\x01abc", "", badOpcode},
		"two bytes":                    {"\x00\x01", "", badShort},
		"nothing":                      {"", "", badShort},
		"too long":                     {"\x00\x01" + strings.Repeat("a\x00", 256) + "a\x00", "", badLong},
		"name too long":                {"\x00\x01" + long + "\x00octet\x00", "", badName},
		"no name":                      {"\x00\x01\x00octet\x00", "", badName},
		"only a slash":                 {"\x00\x01/\x00octet\x00", "", badName},
		"no mode":                      {"\x00\x01aaaa\x00", "", badMode},
		"mail":                         {"\x00\x01a\x00mail\x00", "", badMode},
		"not closed":                   {"\x00\x01a\x00octet", "", badEnd},
		"option without value":         {"\x00\x01a\x00octet\x00blksize\x00", "", badOptions},
		"traversal is a name like any": {"\x00\x01../../etc/passwd\x00octet\x00", "../../etc/passwd: ", nil},
	} {
		r, err := parseRequest([]byte(tc.packet))
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
			t.Errorf("%s: error %v, want %v", name, err, tc.err)
			continue
		}
		if err != nil {
			continue
		}
		if got := r.name + ": " + optionsOf(t, r.agree(300_000, 1468)); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// optionsOf reads an OACK, and that the terms are what it says.
func optionsOf(t *testing.T, got terms) string {
	t.Helper()
	want := terms{block: plainBlock, window: 1, oack: got.oack}
	if got.oack == nil {
		if !reflect.DeepEqual(got, want) {
			t.Errorf("terms %+v without a word to the client", got)
		}
		return ""
	}
	text, ok := strings.CutPrefix(string(got.oack), "\x00\x06")
	fields := strings.Split(strings.TrimSuffix(text, "\x00"), "\x00")
	if !ok || len(fields)%2 != 0 || !strings.HasSuffix(text, "\x00") {
		t.Fatalf("malformed OACK %q", got.oack)
	}
	for i := 0; i < len(fields); i += 2 {
		n, err := strconv.Atoi(fields[i+1])
		if err != nil {
			t.Fatalf("OACK %q: %v", got.oack, err)
		}
		switch fields[i] {
		case "blksize":
			want.block = n
		case "windowsize":
			want.window = n
		case "timeout":
			want.timeout = time.Duration(n) * time.Second
		case "tsize":
		default:
			t.Fatalf("OACK %q", got.oack)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("terms %+v, but the client is told %q", got, got.oack)
	}
	return strings.Join(fields, " ")
}

func TestBlocksFitTheWay(t *testing.T) {
	r := request{options: []option{{"blksize", "1468"}}}
	if got := optionsOf(t, r.agree(1, 1368)); got != "blksize 1368" {
		t.Errorf("over a tunnel: %s", got)
	}
	here := netip.MustParseAddr("127.0.0.1")
	if got := room(here, netip.AddrPortFrom(here, 9)); got != 1468 {
		t.Errorf("room over loopback, whose frames are larger than any Ethernet's: %d", got)
	}
}

// FuzzPacket drives what a client sends through all that decides: a request and the
// terms that it is granted, an answer, and a transfer by those terms, which further
// bytes acknowledge.
func FuzzPacket(f *testing.F) {
	for _, op := range []byte{opRead, opAck, opError} {
		for _, seed := range captured(f, op) {
			f.Add(seed, int64(300_000), []byte{0, 0, 0, 1, 0, 2, 0xff, 0xff, 0, 1})
		}
	}
	f.Add([]byte("\x00\x01a\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x0016\x00"), int64(150<<20), []byte{0, 0, 0, 16, 0, 20, 0, 3})
	f.Add([]byte("\x00\x01a\x00octet\x00blksize\x008\x00timeout\x00255\x00windowsize\x0065535\x00"), int64(1<<32), []byte("\x00\x00\x00\x10"))
	f.Add([]byte("\x00\x02a\x00octet\x00"), int64(0), []byte{0, 1})
	f.Add([]byte("\x00\x01/\xff\x00NETASCII\x00\x00\x00"), int64(512), []byte{0, 1, 0, 2})
	f.Fuzz(func(t *testing.T, p []byte, size int64, answers []byte) {
		block, err := parseAnswer(p)
		switch {
		case err == nil && string(p[:4]) != string(ackPacket(block)):
			t.Errorf("%q acknowledges %d", p, block)
		case err == nil || errors.Is(err, badAnswer):
		case p[1] != opError || len(err.Error()) > 500 || !utf8.ValidString(err.Error()):
			t.Errorf("%q is %q", p, err)
		}
		r, err := parseRequest(p)
		if err != nil {
			var why refusal
			if !errors.As(err, &why) {
				t.Errorf("%q cannot be counted", err)
			}
			return
		}
		if len(r.name) > maxName || r.name == "" || strings.ContainsRune(r.name, 0) || len(p) > maxRequest {
			t.Errorf("name %q", r.name)
		}
		size = max(size, 0)
		a := r.agree(size, 1468)
		optionsOf(t, a)
		// The answer goes to an address that may be a victim's.
		if len(a.oack) >= 3*len(p) {
			t.Errorf("%d bytes are answered with %d", len(p), len(a.oack))
		}
		if a.block < minBlock || a.block > 1468 || a.window < 1 || a.window > maxWindow || a.timeout > 255*time.Second {
			t.Errorf("terms %+v", a)
		}
		acknowledge(t, a, size, answers)
	})
}

// acknowledge drives a transfer: each two bytes are an acknowledgement, counted
// from what has arrived, or nothing until the deadline where they are 0xffff.
func acknowledge(t *testing.T, a terms, size int64, answers []byte) {
	now := time.Unix(0, 0)
	w := newWindow(a, size, now)
	last := size/int64(a.block) + 1
	for ; len(answers) >= 2 && !w.done(); answers = answers[2:] {
		before := w.acked
		if before >= 0 {
			first, until := w.next(now)
			if n := until - first + 1; n > int64(a.window) || n > 0 && (first != before+1 || until > last) || n <= 0 && !now.Before(w.deadline) {
				t.Fatalf("%+v: blocks %d to %d of %d are sent while %d have arrived", a, first, until, last, before)
			}
			if d := w.deadline.Sub(now); d > max(longestWait, 2*a.timeout) {
				t.Fatalf("%+v: waits %s", a, d)
			}
		}
		n := binary.BigEndian.Uint16(answers)
		if n == 0xffff {
			now = w.deadline
			continue
		}
		now = now.Add(time.Duration(n) * 10 * time.Microsecond)
		moved := w.ack(now, uint16(before)+n)
		if w.acked < before || moved != (w.acked > before) || w.acked > w.sent || w.acked > last || moved && uint16(w.acked) != uint16(before)+n {
			t.Fatalf("%+v: block %d is acknowledged: %d have arrived, before %d, of %d sent, of %d", a, uint16(before)+n, w.acked, before, w.sent, last)
		}
	}
}

func TestGateBoundsOneSourceAndAll(t *testing.T) {
	start := time.Unix(0, 0)
	g := newGate(Limits{Rate: 2, Burst: 3, PerSource: 2, Transfers: 3, Sources: 3})
	a, b, c, d := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.4")
	step := func(what string, at time.Duration, from netip.Addr, want error) {
		t.Helper()
		if err := g.admit(start.Add(at), from); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	step("first", 0, a, nil)
	step("second", 0, a, nil)
	step("third is one transfer too many", 0, a, busySource)
	step("fourth finds the bucket empty", 0, a, busyRate)
	g.end(a)
	step("an ended transfer gives no token back", 0, a, busyRate)
	step("half a second gives one", 500*time.Millisecond, a, nil)
	step("another source is not touched", 500*time.Millisecond, b, nil)
	step("the server is full", 500*time.Millisecond, b, busyServer)
	g.end(a)
	step("and free again", 500*time.Millisecond, c, nil)
	step("no memory for a fourth source", 500*time.Millisecond, d, busySources)
	g.end(c)
	step("unless one is as good as new", 10*time.Second, d, nil)
	if len(g.sources) > 3 {
		t.Errorf("%d sources are remembered", len(g.sources))
	}
}

// captured are the packets with an opcode that real clients sent, one quoted on
// a line of testdata/clients.txt, behind the client's name.
func captured(t testing.TB, opcode byte) (packets [][]byte) {
	t.Helper()
	content, err := os.ReadFile("testdata/clients.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		_, quoted, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if strings.HasPrefix(line, "#") || !ok {
			continue
		}
		p, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if p[1] == opcode {
			packets = append(packets, []byte(p))
		}
	}
	if packets == nil {
		t.Fatalf("no packet with opcode %d is captured", opcode)
	}
	return packets
}
