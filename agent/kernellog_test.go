package agent

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// datagrams keeps each write apart, as a UDP socket does.
type datagrams []string

func (d *datagrams) Write(b []byte) (int, error) {
	*d = append(*d, string(b))
	return len(b), nil
}

// records is /dev/kmsg: a record with each read, or an error.
type records struct{ list []any }

func (r *records) Read(b []byte) (int, error) {
	if len(r.list) == 0 {
		return 0, io.EOF
	}
	next := r.list[0]
	r.list = r.list[1:]
	if err, bad := next.(error); bad {
		return 0, err
	}
	return copy(b, next.(string)), nil
}

func TestKernelsWarningsGoToTheServer(t *testing.T) {
	var sent datagrams
	k := &kmsg{to: &sent, now: time.Now}
	k.follow(&records{[]any{
		"6,1,0,-;Linux version 6.1",
		"4,2,512345,-;ACPI BIOS Warning (bug): 32/64X address mismatch\n SUBSYSTEM=acpi\n",
		unix.EPIPE,
		"3,9,12000042,-;ata1.00: failed command: READ FPDMA QUEUED",
		"12,10,13000000,-;of a program's own",
		"4,11,13000000,-;Unknown parameters recast.nonce=secret",
		"4,12,13000000,-;",
		"nonsense", "x,1,2,-;y", "4,1;z",
		"2,13,14000000,-;" + strings.Repeat("long ", 200),
	}})
	want := datagrams{
		"<4>kernel: [    0.512345] ACPI BIOS Warning (bug): 32/64X address mismatch",
		"<3>kernel: [   12.000042] ata1.00: failed command: READ FPDMA QUEUED (1 lines before it were left out)",
		"<4>kernel: [   13.000000] of a program's own",
		"<2>kernel: [   14.000000] " + strings.Repeat("long ", kernelLine/5),
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	sent = nil
	k = &kmsg{to: &sent, now: time.Now, from: kernelConsole}
	k.follow(&records{[]any{"2,1,0,-;netconsole has sent it", "3,2,0,-;an error"}})
	if len(sent) != 1 || !strings.Contains(sent[0], "an error") {
		t.Errorf("beside netconsole: %q", sent)
	}
}

func TestAKernelThatRepeatsItselfIsCut(t *testing.T) {
	var sent datagrams
	now := time.Unix(1000, 0)
	k := &kmsg{to: &sent, now: func() time.Time { return now }}
	for i := range 10 * kernelBurst {
		k.record("3," + strconv.Itoa(i) + ",0,-;I/O error")
	}
	if len(sent) != kernelBurst {
		t.Fatalf("%d lines at once, want %d", len(sent), kernelBurst)
	}
	now = now.Add(kernelEvery)
	k.record("3,1,0,-;I/O error")
	k.record("3,2,0,-;I/O error")
	if len(sent) != kernelBurst+1 || !strings.HasSuffix(sent[kernelBurst], "(360 lines before it were left out)") {
		t.Errorf("later: %q", sent[kernelBurst:])
	}
}

func TestServerIsReachedByItsOwnAddressOrTheRouters(t *testing.T) {
	server, router, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.254"), netip.MustParseAddr("10.0.0.9")
	mac := func(n byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, n} }
	entry := func(a netip.Addr, ifindex uint32, state uint16, m net.HardwareAddr) []byte {
		data := binary.NativeEndian.AppendUint32(make([]byte, 4), ifindex)
		data = binary.NativeEndian.AppendUint16(data, state)
		data = append(data, 0, 0)
		for kind, value := range map[uint16][]byte{unix.NDA_DST: a.AsSlice(), unix.NDA_LLADDR: m} {
			data = binary.NativeEndian.AppendUint16(data, uint16(unix.SizeofRtAttr+len(value)))
			data = binary.NativeEndian.AppendUint16(data, kind)
			data = append(data, value...)
			data = append(data, make([]byte, -len(data)&3)...)
		}
		head := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(data)))
		head = binary.NativeEndian.AppendUint16(head, unix.RTM_NEWNEIGH)
		return append(append(head, make([]byte, unix.SizeofNlMsghdr-len(head))...), data...)
	}
	routerEntry := entry(router, 2, unix.NUD_REACHABLE, mac(254))
	for _, c := range []struct {
		name   string
		table  []byte
		atLast bool
		want   net.HardwareAddr
	}{
		{"the server's own", slices.Concat(routerEntry, entry(server, 2, unix.NUD_STALE, mac(1))), false, mac(1)},
		{"the router, but the server may answer yet", routerEntry, false, nil},
		{"the router", routerEntry, true, mac(254)},
		{"two that may be it", slices.Concat(routerEntry, entry(other, 2, unix.NUD_REACHABLE, mac(9))), true, nil},
		{"on another interface", entry(server, 3, unix.NUD_REACHABLE, mac(1)), true, nil},
		{"not there", entry(server, 2, unix.NUD_FAILED, mac(1)), true, nil},
		{"of another family", entry(netip.MustParseAddr("fe80::1"), 2, unix.NUD_REACHABLE, mac(1)), true, nil},
		{"cut short", routerEntry[:len(routerEntry)-3], true, nil},
		{"nobody", nil, true, nil},
	} {
		if got := nextHop(c.table, 2, server, c.atLast); !slices.Equal(got, c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
