package agent

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"recast/inventory"
	"recast/pack"
)

var someCA = inventory.DigestOf([]byte("ca"))

func TestKernelArguments(t *testing.T) {
	base := "BOOT_IMAGE=vmlinuz console=ttyS0 recast.url=https://10.0.0.1:8443 recast.ca=" + someCA.String()
	armed := Args{URL: "https://10.0.0.1:8443", CA: someCA, Nonce: "n-1"}
	for _, tt := range []struct {
		name, line string
		want       Args
		err        string
	}{
		{"armed", base + " recast.nonce=n-1\n", armed, ""},
		{"all of it", base + " recast.time=1700000000 recast.mac=52-54-00-00-00-05 recast.nonce=n-1", Args{URL: armed.URL, CA: someCA,
			Time: time.Unix(1700000000, 0), MAC: "52:54:00:00:00:05", Nonce: "n-1"}, ""},
		{"stranger", base + " recast.discover=tok", Args{URL: armed.URL, CA: someCA, Discover: "tok"}, ""},
		{"with a place to log to", base + " recast.nonce=n-1 recast.syslog=10.0.0.1:514", Args{URL: armed.URL, CA: someCA, Nonce: "n-1", Syslog: netip.MustParseAddrPort("10.0.0.1:514")}, ""},
		{"a bad place to log to", base + " recast.nonce=n-1 recast.syslog=here", Args{}, "recast.syslog"},
		{"with a trace", base + " recast.nonce=n-1 recast.trace=1d44f94068682d44", Args{URL: armed.URL, CA: someCA, Nonce: "n-1", Trace: "1d44f94068682d44"}, ""},
		{"in a VLAN", base + " recast.nonce=n-1 recast.vlan=100", Args{URL: armed.URL, CA: someCA, Nonce: "n-1", VLAN: 100}, ""},
		{"without DHCP", base + " recast.nonce=n-1 recast.ip=10.0.0.15/23 recast.route=0.0.0.0/0,10.0.0.1 recast.route=10.9.1.1/16,10.0.0.2",
			Args{URL: armed.URL, CA: someCA, Nonce: "n-1", IP: netip.MustParsePrefix("10.0.0.15/23"), Routes: []inventory.Route{
				{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.1")}, {To: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.0.0.2")}}}, ""},
		{"an address without a subnet", base + " recast.nonce=n-1 recast.ip=10.0.0.15", Args{}, "recast.ip"},
		{"an IPv6 address", base + " recast.nonce=n-1 recast.ip=2001:db8::1/64", Args{}, "recast.ip"},
		{"a route to nowhere", base + " recast.nonce=n-1 recast.route=10.0.0.0/8", Args{}, "recast.route"},
		{"no VLAN", base + " recast.nonce=n-1 recast.vlan=4095", Args{}, "recast.vlan"},
		{"a newer server says more", base + " recast.nonce=n-1 recast.colour=blue", armed, ""},
		{"the last one counts", base + " recast.nonce=n-0 recast.nonce=n-1", armed, ""},
		{"slash at the end", "recast.url=https://10.0.0.1:8443/ recast.nonce=n-1 recast.ca=" + someCA.String(), armed, ""},
		{"empty mac", base + " recast.mac= recast.nonce=n-1", armed, ""},
		{"nothing", "console=ttyS0", Args{}, "recast.url"},
		{"no CA", "recast.url=https://10.0.0.1:8443 recast.nonce=n", Args{}, "recast.ca"},
		{"neither nonce nor token", base, Args{}, "exactly one"},
		{"both", base + " recast.nonce=a recast.discover=b", Args{}, "exactly one"},
		{"no TLS", "recast.url=http://10.0.0.1:8443", Args{}, "https://HOST:PORT"},
		{"a path", "recast.url=https://10.0.0.1:8443/x", Args{}, "https://HOST:PORT"},
		{"half a digest", base + " recast.ca=sha256:12", Args{}, "recast.ca"},
		{"a bad address", base + " recast.mac=xyz", Args{}, "recast.mac"},
		{"a bad time", base + " recast.time=today", Args{}, "recast.time"},
		{"a nonce with a quote", base + " recast.nonce=a'b", Args{}, "recast.nonce"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseArgs(tt.line)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// goldenOption is written down node by node from the UEFI specification
// (sections 3.1.3, 10.3.5.1 and 10.3.5.4), not from our encoder.
const goldenOption = "01000000" + // active
	"5e00" + // 94 bytes of device path
	"720065006300610073007400" + "0000" + // "recast"
	"04012a00" + "01000000" + "0008000000000000" + "0008000000000000" + "11223344556677889900aabbccddeeff" + "0202" + // hard drive
	"04043000" + "5c004500460049005c0042004f004f0054005c0042004f004f0054005800360034002e004500460049000000" + // file path
	"7fff0400" // end

func TestBootEntryIsTheOneOfTheSpecification(t *testing.T) {
	id, _ := hex.DecodeString("11223344556677889900aabbccddeeff")
	o := bootOption("recast", `\EFI\BOOT\BOOTX64.EFI`,
		systemPart{number: 1, start: 2048, blocks: 2048, id: pack.GUID(id)})
	if got := hex.EncodeToString(o.Encode()); got != goldenOption {
		t.Errorf("entry\n%s\nwant\n%s", got, goldenOption)
	}
	back, err := ParseLoadOption(o.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(o.Description, back.Description); diff != "" || !bytes.Equal(o.Path, back.Path) || back.Attributes != 1 {
		t.Errorf("parsed back: %+v", back)
	}
}

func FuzzLoadOption(f *testing.F) {
	f.Add(LoadOption{Attributes: 1, Description: "recast", Path: []byte{0x7f, 0xff, 4, 0}, Data: []byte("x")}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseLoadOption(b)
		if err != nil {
			return
		}
		again, err := ParseLoadOption(o.Encode())
		if err != nil || again.Description != o.Description || !bytes.Equal(again.Path, o.Path) {
			t.Errorf("%x does not survive a round trip: %+v, %v", b, again, err)
		}
	})
}

// fakeVars is the firmware's variables in a map.
type fakeVars map[string][]byte

func (v fakeVars) List() ([]string, error) {
	var names []string
	for n := range v {
		names = append(names, n)
	}
	return names, nil
}

func (v fakeVars) Get(name string) ([]byte, error) {
	b, ok := v[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (v fakeVars) Set(name string, _ uint32, value []byte) error { v[name] = value; return nil }
func (v fakeVars) Delete(name string) error                      { delete(v, name); return nil }

func order(numbers ...uint16) []byte {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	return b
}

func TestBootEntryReplacesOnlyOurOwn(t *testing.T) {
	other := LoadOption{Attributes: 1, Description: "debian", Path: []byte{0x7f, 0xff, 4, 0}}.Encode()
	ours := LoadOption{Attributes: 1, Description: "recast", Path: []byte{0x7f, 0xff, 4, 0}}.Encode()
	for _, tt := range []struct {
		name  string
		vars  fakeVars
		at    uint16
		order []byte
	}{
		{"empty firmware", fakeVars{}, 0, order(0)},
		{"another system", fakeVars{bootName(0): other, bootOrder: order(0)}, 1, order(1, 0)},
		{"ours, not first", fakeVars{bootName(0): other, bootName(3): ours, bootOrder: order(0, 3)}, 3, order(3, 0)},
		{"two of ours", fakeVars{bootName(0): other, bootName(3): ours, bootName(5): ours, bootOrder: order(5, 0, 3)}, 3, order(3, 0)},
		{"an entry that cannot be parsed", fakeVars{bootName(0): {1}, bootOrder: order(0)}, 1, order(1, 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(tt.vars)
			if _, err := setBootEntry(tt.vars, inventory.EFIEntry{Label: "recast", Loader: `\EFI\BOOT\BOOTX64.EFI`}, systemPart{number: 1}); err != nil {
				t.Fatal(err)
			}
			if got := tt.vars[bootOrder]; !bytes.Equal(got, tt.order) {
				t.Errorf("order %x, want %x", got, tt.order)
			}
			o, err := ParseLoadOption(tt.vars[bootName(tt.at)])
			if err != nil || o.Description != "recast" {
				t.Errorf("Boot%04X is %+v, %v", tt.at, o, err)
			}
			if b, ok := tt.vars[bootName(0)]; before > 0 && tt.at != 0 && (!ok || !bytes.Equal(b, other) && len(b) != 1) {
				t.Error("another system's entry was touched")
			}
		})
	}
}

func TestWriteSetsTheBootEntryOfTheWrittenDisk(t *testing.T) {
	p := packImage(t, gptImage(t, 6*MiB, 1))
	s := serveBytes(t, p)
	d, _ := diskFile(t, 12*MiB, 0)
	w := testWork(p, d, nil, s.URL)
	vars := fakeVars{}
	w.EFI, w.Job.EFI = vars, &inventory.EFIEntry{Label: "recast", Loader: `\EFI\BOOT\BOOTX64.EFI`}
	r, err := Write(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if r.BootOrder != "0000" || r.BootEntry != "" {
		t.Errorf("boot order %q, error %q", r.BootOrder, r.BootEntry)
	}
	o, err := ParseLoadOption(vars[bootName(0)])
	if err != nil {
		t.Fatal(err)
	}
	// Partition 1 begins at block 2048, and its GUID is sixteen ones.
	if binary.LittleEndian.Uint64(o.Path[8:]) != 2048 || !bytes.Equal(o.Path[24:40], bytes.Repeat([]byte{1}, 16)) {
		t.Errorf("device path %x", o.Path)
	}
	if next, has := vars[bootNextName]; has {
		t.Errorf("the first in the order is ordered to be next: %x", next)
	}
	w.Job.EFI.Second = true
	if _, err := Write(t.Context(), w); err != nil || !bytes.Equal(vars[bootNextName], []byte{0, 0}) {
		t.Errorf("after a write for a gate %x is next, %v", vars[bootNextName], err)
	}
}

// readOnlyVars are those of a firmware that keeps nothing.
type readOnlyVars struct{ fakeVars }

func (readOnlyVars) Set(string, uint32, []byte) error { return fs.ErrPermission }

func TestARefusedBootEntryIsToldAndFailsNoWrite(t *testing.T) {
	p := packImage(t, gptImage(t, 6*MiB, 1))
	s := serveBytes(t, p)
	d, _ := diskFile(t, 12*MiB, 0)
	w := testWork(p, d, nil, s.URL)
	w.EFI, w.Job.EFI = readOnlyVars{fakeVars{}}, &inventory.EFIEntry{Label: "recast", Loader: `\EFI\BOOT\BOOTX64.EFI`}
	r, err := Write(t.Context(), w)
	if err != nil || r.Image != w.Job.Image.Digest || !strings.Contains(r.BootEntry, "write Boot0000") || r.BootOrder != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// volume is a config volume that package target made.
func volume(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open("../target/testdata/" + name + ".img.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDiskSaysWhatWasWrittenToIt(t *testing.T) {
	p := packImage(t, gptImage(t, 4*MiB, 1))
	s := serveBytes(t, p)
	for name, label := range map[string]string{"cloud-init": "CIDATA", "none": "RECAST"} {
		d, _ := diskFile(t, 12*MiB, 0xA5)
		w := testWork(p, d, volume(t, name), s.URL)
		w.Job.Config.Label = label
		if _, err := Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		got, err := ReadMarker(d, d.Size())
		if err != nil {
			t.Fatal(err)
		}
		want := &inventory.Marker{Machine: "r1u05", Generation: inventory.DigestOf([]byte("generation")),
			Rendered: inventory.DigestOf([]byte("rendered")), Image: inventory.DigestOf([]byte("image")), Attempt: 2, Write: "e0.7"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		holds, err := Holds(d, d.Size())
		if err != nil || !strings.Contains(holds, "gpt, 3 partitions: esp (") || !strings.Contains(holds, label+" (vfat, 1 MiB)") {
			t.Errorf("%s: holds %q, %v", name, holds, err)
		}
	}
	for name, b := range map[string][]byte{"blank": make([]byte, 4*MiB), "another system": gptImage(t, 4*MiB, 2)} {
		if m, err := ReadMarker(bytes.NewReader(b), int64(len(b))); m != nil || err != nil {
			t.Errorf("%s: marker %+v, error %v", name, m, err)
		}
	}
}

func TestHoldsIsEmptyOnlyForZeros(t *testing.T) {
	put := func(at int, s string) []byte {
		b := make([]byte, 4*MiB)
		copy(b[at:], s)
		return b
	}
	for _, tt := range []struct {
		name string
		disk []byte
		want string
	}{
		{"zeros", make([]byte, 4*MiB), ""},
		{"zeros, smaller than a MiB", make([]byte, 1000), ""},
		{"one byte in the first MiB", put(700000, "x"), "data without a known signature"},
		{"one byte at the end", put(4*MiB-1, "x"), "data without a known signature"},
		{"xfs", put(0, "XFSB"), "xfs without a partition table"},
		{"ext4", put(1080, "\x53\xef"), "ext2/3/4 without a partition table"},
		{"lvm", put(536, "LVM2 001"), "LVM without a partition table"},
		{"swap", put(4086, "SWAPSPACE2"), "swap without a partition table"},
		{"backup table only", put(4*MiB-512, "EFI PART"), "gpt, only its backup table is left"},
		{"gpt", gptImage(t, 4*MiB, 1), "gpt, 2 partitions: esp (no known signature, 1 MiB), root (no known signature, 1 MiB)"},
	} {
		got, err := Holds(bytes.NewReader(tt.disk), int64(len(tt.disk)))
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func FuzzHolds(f *testing.F) {
	f.Add(gptImage(f, 4*MiB, 1)[:65536])
	f.Fuzz(func(t *testing.T, head []byte) {
		disk := make([]byte, 3*MiB)
		copy(disk, head)
		got, err := Holds(bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		if blank := allZero(disk[:MiB]) && allZero(disk[2*MiB:]); blank != (got == "") {
			t.Errorf("holds %q, blank %t", got, blank)
		}
	})
}

func TestLLDPFrame(t *testing.T) {
	frame, _ := hex.DecodeString("0207" + "04001122334455" + "0403" + "076531" + "0602" + "0078" + "0000" + "ffff")
	want := []inventory.LLDPTLV{{Type: 1, Value: "04001122334455"}, {Type: 2, Value: "076531"}, {Type: 3, Value: "0078"}}
	if diff := cmp.Diff(want, parseLLDP(frame)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := parseLLDP([]byte{0x02, 0x07, 4}); got != nil {
		t.Errorf("a cut frame gives %+v", got)
	}
}

// FuzzNetworkBytes drives what anybody on the segment can make the ramdisk read:
// the kernel's arguments, which came by an open script, a switch's words, a DHCP
// server's, and what the kernel has to say of all that.
func FuzzNetworkBytes(f *testing.F) {
	base := "BOOT_IMAGE=vmlinuz console=ttyS0 recast.url=https://10.0.0.1:8443 recast.ca=" + someCA.String()
	for _, line := range []string{base + " recast.nonce=a", base + " recast.discover=tok recast.time=1700000000 recast.mac=52-54-00-00-00-05",
		base + " recast.nonce=n-1 recast.syslog=10.0.0.1:514 recast.trace=1d44f94068682d44", base + " recast.nonce=n recast.syslog=[2001:db8::1]:514",
		strings.Replace(base, "10.0.0.1:8443", "[2001:db8::1]:8443/", 1) + " recast.nonce=a'b"} {
		f.Add([]byte(line))
	}
	frame, _ := hex.DecodeString("0207" + "04001122334455" + "0403" + "076531" + "0602" + "0078" + "0000" + "ffff")
	f.Add(frame)
	ack := dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootReply, HWType: 1, YourIPAddr: net.IP{10, 20, 0, 9}, Options: dhcpv4.Options{1: {255, 255, 255, 0}, 3: {10, 20, 0, 1},
		53: {5}, 121: {24, 10, 30, 0, 10, 20, 0, 254, 32, 10, 20, 0, 1, 0, 0, 0, 0, 0, 10, 20, 0, 1}}}
	f.Add(ack.ToBytes())
	f.Add(slices.Concat([]byte{7, 1, 2, 3, 0, 3, 0, 40, 0, 0, 0, 1}, make([]byte, 8), []byte{0, 5, 0, 24, 0x20, 1, 0xd, 0xb8}, make([]byte, 20)))
	f.Add([]byte("4,812,2100345,-;usb 1-1: Product: \x1b[31m\n SUBSYSTEM=usb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := dhcpv4.FromBytes(b); err == nil {
			if a, mask, err := given(p); err == nil && (!a.Is4() || a.IsUnspecified() || len(mask) != 4) {
				t.Errorf("%x gives %s, mask %s", b, a, mask)
			}
			for _, r := range routes(p) {
				if !r.To.IsValid() || r.To != r.To.Masked() || !r.To.Addr().Is4() || !r.Via.Is4() {
					t.Errorf("%x gives the route %+v", b, r)
				}
			}
		}
		if p, err := dhcpv6.MessageFromBytes(b); err == nil {
			if a, err := given6(p); err == nil && (!a.Is6() || a.Zone() != "" || !a.IsGlobalUnicast()) {
				t.Errorf("%x gives %s", b, a)
			}
		}
		var sent bytes.Buffer
		(&kmsg{to: &sent, now: func() time.Time { return time.Unix(0, 0) }}).record(string(b))
		if line := sent.String(); line != "" && (!strings.HasPrefix(line, "<") || len(line) > 4*kernelLine+100 || strings.ContainsAny(line, "\n") || strings.Contains(line, "recast.nonce=")) {
			t.Errorf("%q is sent as %q", b, line)
		}
		rest := b
		for _, tlv := range parseLLDP(b) {
			value, err := hex.DecodeString(tlv.Value)
			if err != nil || tlv.Type < 1 || tlv.Type > 127 || len(value) > 511 || len(rest) < 2+len(value) || !bytes.Equal(rest[2:2+len(value)], value) {
				t.Fatalf("%x has %+v", b, tlv)
			}
			rest = rest[2+len(value):]
		}
		a, err := ParseArgs(string(b))
		overIPv6(string(b))
		if err != nil {
			if len(err.Error()) > 2000+len(b)*4 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
			return
		}
		if !strings.HasPrefix(a.URL, "https://") || a.CA == "" || (a.Nonce == "") == (a.Discover == "") {
			t.Errorf("%q gives %+v", b, a)
		}
		if again, err := inventory.ParseDigest(a.CA.String()); err != nil || again != a.CA {
			t.Errorf("CA %q: %v", a.CA, err)
		}
		if m, err := inventory.ParseMAC(string(a.MAC)); a.MAC != "" && (err != nil || m != a.MAC) {
			t.Errorf("mac %q: %v", a.MAC, err)
		}
		if strings.ContainsFunc(a.Nonce+a.Discover+a.Trace, func(r rune) bool { return r <= ' ' || r == '\'' || r >= 0x7f }) {
			t.Errorf("%q gives %+v", b, a)
		}
	})
}
