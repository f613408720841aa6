package syslog

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

func TestLinesOfBothFormatsAreRead(t *testing.T) {
	for in, want := range map[string]Line{
		"<30>ipxe: http://10.0.0.1/boot/script... ok\n":                                         {6, "ipxe", "http://10.0.0.1/boot/script... ok"},
		"<30>r1u05 ipxe: net0: link down":                                                       {6, "ipxe", "net0: link down"},
		"<13>Nov 22 12:00:01 r1u05 sshd[812]: Accepted":                                         {5, "sshd", "Accepted"},
		"<13>Nov  2 12:00:01 kernel: oops":                                                      {5, "kernel", "oops"},
		"<11>1 2026-11-22T12:00:01Z r1u05 recast-agent 1 - - writing image":                     {3, "recast-agent", "writing image"},
		`<165>1 - - evntslog - ID47 [x@1 iut="3" e="a\"]"][y@1 c="2"] ` + "\ufeff" + `An event`: {5, "evntslog", "An event"},
		"<34>1 2026-11-22T12:00:01Z host - - - -":                                               {},
		"<34>1 cut short":    {2, "", "cut short"},
		"no priority at all": {5, "", "no priority at all"},
		"[   12.345678] Kernel panic - not syncing: sysrq triggered crash\n": {5, "kernel", "[ 12.345678] Kernel panic - not syncing: sysrq triggered crash"},
		"<4>kernel: [    0.512345] ACPI BIOS Warning (bug)":                  {4, "kernel", "[ 0.512345] ACPI BIOS Warning (bug)"},
		"[1] is no time": {5, "", "[1] is no time"},
		"<0>x":           {0, "", "x"},
		"<14>a: \x1b[31mred\x1b[0m\a\r\nnext\x00": {6, "a", "red next"},
		"<14>a: \xff\xfe bytes \u202e turned":     {6, "a", "bytes turned"},
		"<14>not a tag here: text":                {6, "", "not a tag here: text"},
		"<14>http://x/y: text":                    {6, "", "http://x/y: text"},
		"":                                        {},
		"<14>":                                    {},
		"<14> \x1b[":                              {},
		"<999>x":                                  {},
		"<>x":                                     {},
		"<1x>x":                                   {},
		"<14" + strings.Repeat("1", 100):          {},
		"<14>a: " + strings.Repeat("ü", 4000):     {6, "a", strings.Repeat("ü", maxText/2)},
	} {
		got, err := Parse([]byte(in))
		if want.Text == "" {
			if err == nil {
				t.Errorf("%q: %+v, want an error", in, got)
			}
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got)\n%s", in, err, diff)
		}
	}
}

// running is a server on loopback.
type running struct {
	*Server
	addr string
	mu   sync.Mutex
	seen []inventory.Observation
	more chan struct{}
}

func start(t *testing.T, limits Limits) *running {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{addr: conn.LocalAddr().String(), more: make(chan struct{}, 1)}
	r.Server = &Server{Conn: conn, Limits: limits, Observe: func(o inventory.Observation) {
		r.mu.Lock()
		r.seen = append(r.seen, o)
		r.mu.Unlock()
		select {
		case r.more <- struct{}{}:
		default:
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// observed waits until a line with that text was observed.
func (r *running) observed(t *testing.T, text string) inventory.Observation {
	t.Helper()
	for deadline := time.After(10 * time.Second); ; {
		r.mu.Lock()
		for _, o := range r.seen {
			if strings.Contains(o.Detail, text) {
				r.mu.Unlock()
				return o
			}
		}
		r.mu.Unlock()
		select {
		case <-r.more:
		case <-deadline:
			t.Fatalf("no line %q", text)
		}
	}
}

func TestLinesAreObservedOfTheirSource(t *testing.T) {
	r := start(t, Limits{})
	c, err := net.Dial("udp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "<999>bad")
	fmt.Fprint(c, "<30>r1u05 ipxe: Booting")
	o := r.observed(t, "Booting")
	if o.Kind != inventory.SawSyslog || o.Client != "ipxe" || o.Detail != "Booting" || o.Remote != netip.MustParseAddr("127.0.0.1") || o.Time.IsZero() {
		t.Errorf("%+v", o)
	}
	if d := r.Dropped(); d["bad priority"] != 1 || len(d) != 1 {
		t.Errorf("dropped %v", d)
	}
}

// util-linux's logger is a client of either format.
func TestRealClientIsUnderstood(t *testing.T) {
	logger, err := exec.LookPath("logger")
	if err != nil {
		t.Skip("needs logger (apt-get install bsdutils)")
	}
	r := start(t, Limits{})
	host, port, _ := net.SplitHostPort(r.addr)
	for _, format := range []string{"--rfc3164", "--rfc5424"} {
		cmd := exec.CommandContext(t.Context(), logger, "--server", host, "--port", port, "--udp", format, "--tag", "installer", "--priority", "user.err", "hello by "+format[2:])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if o := r.observed(t, "hello by "+format[2:]); o.Client != "installer" || o.Detail != "hello by "+format[2:] {
			t.Errorf("%s: %+v", format, o)
		}
	}
}

func TestAFloodIsCutAndSaysSo(t *testing.T) {
	now := time.Unix(1000, 0)
	var seen []inventory.Observation
	s := &Server{Limits: Limits{Rate: 1, Burst: 3, Sources: 2}, Now: func() time.Time { return now }, Observe: func(o inventory.Observation) { seen = append(seen, o) }}
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for i := range 10 {
		s.take([]byte("line "+strconv.Itoa(i)), a)
	}
	s.take([]byte("of another"), b)
	s.take([]byte("of one too many"), c)
	now = now.Add(time.Second)
	s.take([]byte("later"), a)
	now = now.Add(time.Minute)
	s.take([]byte("now there is room"), c)
	var got []string
	for _, o := range seen {
		got = append(got, o.Remote.String()+" "+o.Detail+" "+o.Error)
	}
	if diff := cmp.Diff([]string{"10.0.0.1 line 0 ", "10.0.0.1 line 1 ", "10.0.0.1 line 2 ", "10.0.0.2 of another ",
		"10.0.0.1 later 7 lines before it were left out: they came too fast", "10.0.0.3 now there is room "}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"too many lines from this source": 7, "too many sources": 1}, s.Dropped()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// FuzzSyslog drives a datagram through all between the socket and the timeline.
func FuzzSyslog(f *testing.F) {
	for _, s := range []string{"<30>ipxe: ok", "<13>Nov 22 12:00:01 h t[1]: x", `<165>1 - - e - I [x@1 i="\"]"] m`, "<14>a: \x1b[31m\xff",
		"<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut=\"3\" eventSource=\"Application\"][examplePriority@32473 class=\"high\"] \ufeffAn application",
		"<6>kernel: [    1.2] e1000: eth0 NIC Link is Up\n", "no priority at all", "<192>x", "<1", "<30>\u202eipxe: \u2066\x9b31m"} {
		f.Add([]byte(s))
	}
	from := netip.MustParseAddr("10.20.0.5")
	f.Fuzz(func(t *testing.T, b []byte) {
		var seen []inventory.Observation
		s := &Server{Now: func() time.Time { return time.Unix(0, 0) }, Observe: func(o inventory.Observation) { seen = append(seen, o) }}
		whole := bytes.Clone(b)
		s.take(b, from)
		if !bytes.Equal(b, whole) {
			t.Fatal("the reader's buffer was changed")
		}
		l, err := Parse(b)
		if err != nil {
			if len(seen) != 0 || s.Dropped()[err.Error()] != 1 {
				t.Fatalf("%v, but %+v and %v", err, seen, s.Dropped())
			}
			return
		}
		if len(seen) != 1 || seen[0].Client != l.App || seen[0].Detail != l.Text || seen[0].Remote != from || len(s.Dropped()) != 0 {
			t.Fatalf("%+v is told as %+v", l, seen)
		}
		if l.Severity < 0 || l.Severity > 7 || len(l.App) > maxApp || len(l.Text) > maxText || l.Text == "" {
			t.Errorf("%+v", l)
		}
		for _, s := range []string{l.App, l.Text} {
			if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
				return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069
			}) {
				t.Errorf("%q is not clean", s)
			}
			if clean(s, maxText) != s {
				t.Errorf("%q is cleaned to %q", s, clean(s, maxText))
			}
		}
	})
}
