package tftp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestRequestsAreUnderstoodOrRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	for name, tc := range map[string]struct {
		packet string
		want   string // as the library gets it
		err    error
	}{
		"plain":                        {"\x00\x01snponly.efi\x00octet\x00", "\x00\x01snponly.efi\x00octet\x00", nil},
		"options":                      {"\x00\x01a\x00octet\x00tsize\x000\x00blksize\x001468\x00", "\x00\x01a\x00octet\x00tsize\x000\x00blksize\x001468\x00", nil},
		"case":                         {"\x00\x01a\x00OCTET\x00BLKSIZE\x001432\x00", "\x00\x01a\x00octet\x00blksize\x001432\x00", nil},
		"options nobody knows":         {"\x00\x01a\x00octet\x00windowsize\x004\x00multicast\x00x\x00", "\x00\x01a\x00octet\x00", nil},
		"option given twice":           {"\x00\x01a\x00octet\x00blksize\x00600\x00blksize\x00700\x00", "\x00\x01a\x00octet\x00blksize\x00600\x00", nil},
		"size of a text":               {"\x00\x01a\x00netascii\x00tsize\x000\x00", "\x00\x01a\x00netascii\x00", nil},
		"option with an empty value":   {"\x00\x01a\x00octet\x00tsize\x00\x000\x00", "", badOptions},
		"empty value, well formed":     {"\x00\x01a\x00octet\x00tsize\x00\x00blksize\x00600\x00", "\x00\x01a\x00octet\x00blksize\x00600\x00", nil},
		"leading slash":                {"\x00\x01/snponly.efi\x00octet\x00", "\x00\x01snponly.efi\x00octet\x00", nil},
		"end mark of DHCP":             {"\x00\x01snponly.efi\xff\x00octet\x00", "\x00\x01snponly.efi\x00octet\x00", nil},
		"zeros up to the buffer":       {"\x00\x01a\x00octet\x00" + strings.Repeat("\x00", 300), "\x00\x01a\x00octet\x00", nil},
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
		"traversal is a name like any": {"\x00\x01../../etc/passwd\x00octet\x00", "\x00\x01../../etc/passwd\x00octet\x00", nil},
	} {
		r, err := parseRequest([]byte(tc.packet))
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
			t.Errorf("%s: error %v, want %v", name, err, tc.err)
			continue
		}
		if err == nil && string(r.packet()) != tc.want {
			t.Errorf("%s: handed on %q, want %q", name, r.packet(), tc.want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00octet\x00tsize\x000\x00blksize\x001468\x00"))
	f.Add([]byte("\x00\x02a\x00octet\x00"))
	f.Add([]byte("\x00\x01/\xff\x00NETASCII\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := parseRequest(p)
		if err != nil {
			return
		}
		// What goes on must be understood the same way again, and never grow.
		out := r.packet()
		again, err := parseRequest(out)
		if err != nil || string(again.packet()) != string(out) || again.name != r.name || len(out) > len(p) {
			t.Errorf("%q became %q, then %q, %v", p, out, again.packet(), err)
		}
		if len(r.name) > maxName || strings.ContainsRune(r.name, 0) {
			t.Errorf("name %q", r.name)
		}
	})
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
