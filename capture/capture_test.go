package capture

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"recast/inventory"
)

const (
	ours  = "\x52\x54\x00\x00\x00\x05"
	other = "\x52\x54\x00\x00\x00\x06"
	us    = "\x52\x54\x00\x00\x00\x01"
	all   = "\xff\xff\xff\xff\xff\xff"
	addr1 = "\x0a\x14\x00\x01"
	addr5 = "\x0a\x14\x00\x05"
	addr6 = "\x0a\x14\x00\x06"
)

var options = Options{MACs: []inventory.MAC{"52:54:00:00:00:05"}, Addrs: []netip.Addr{netip.MustParseAddr("10.20.0.5")}, BootPort: 8080, AgentPort: 8443}

func be16(n int) string { return string(binary.BigEndian.AppendUint16(nil, uint16(n))) }

func ip4(dst, src string, proto byte, from, to, payload string) []byte {
	return []byte(dst + src + "\x08\x00" + "\x45\x00" + be16(20+len(payload)) + "\x00\x00\x00\x00\x40" + string(rune(proto)) + "\x00\x00" + from + to + payload)
}

func udp(dst, src, from, to string, sport, dport int, payload string) []byte {
	return ip4(dst, src, 17, from, to, be16(sport)+be16(dport)+be16(8+len(payload))+"\x00\x00"+payload)
}

func tcp(dst, src, from, to string, sport, dport int, flags byte, payload string) []byte {
	return ip4(dst, src, 6, from, to, be16(sport)+be16(dport)+strings.Repeat("\x00", 8)+"\x50"+string(rune(flags))+strings.Repeat("\x00", 6)+payload)
}

func dhcp(chaddr, more string) string {
	return "\x01\x01\x06\x00" + strings.Repeat("\x00", 24) + chaddr + strings.Repeat("\x00", 202) + "\x63\x82\x53\x63" + more
}

// What the kernel's filter picks and what is kept of it, frame by frame.
func TestOnlyTheMachinesBootIsKeptWithoutItsSecrets(t *testing.T) {
	script := "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n#!ipxe\nkernel /k recast.nonce=abcdef0123 recast.time=1 db_password=hunter2\n"
	for _, c := range []struct {
		name  string
		frame []byte
		keep  int    // bytes, -1 all, 0 none
		has   string // in what is kept
		not   string
	}{
		{"its DISCOVER", udp(all, ours, "\x00\x00\x00\x00", "\xff\xff\xff\xff", 68, 67, dhcp(ours, "\x35\x01\x01\xff")), -1, "\x63\x82\x53\x63", ""},
		{"a broadcast OFFER to it", udp(all, us, addr1, "\xff\xff\xff\xff", 67, 68, dhcp(ours, "\x35\x01\x02\xff")), -1, "", ""},
		{"a broadcast OFFER to another", udp(all, us, addr1, "\xff\xff\xff\xff", 67, 68, dhcp(other, "\xff")), 0, "", ""},
		{"its relayed DISCOVER", udp(us, other, addr6, addr1, 67, 67, dhcp(ours, "\xff")), -1, "", ""},
		{"another's DISCOVER", udp(all, other, "\x00\x00\x00\x00", "\xff\xff\xff\xff", 68, 67, dhcp(other, "\xff")), 0, "", ""},
		{"its boot server request", udp(us, ours, addr5, addr1, 68, 4011, dhcp(ours, "\xff")), -1, "", ""},
		{"its ARP", []byte(all + ours + "\x08\x06" + strings.Repeat("\x00", 28)), -1, "", ""},
		{"another's ARP", []byte(all + other + "\x08\x06" + strings.Repeat("\x00", 28)), 0, "", ""},
		{"its RRQ", udp(us, ours, addr5, addr1, 2070, 69, "\x00\x01snponly.efi\x00octet\x00"), -1, "snponly.efi", ""},
		{"its RRQ through a router", udp(us, other, addr5, addr1, 2070, 69, "\x00\x01snponly.efi\x00octet\x00"), -1, "snponly.efi", ""},
		{"a block of its file", udp(ours, us, addr1, addr5, 40000, 2070, "\x00\x03\x00\x07recast.nonce=abc"), 46, "\x00\x03\x00\x07", "recast"},
		{"its ACK", udp(us, ours, addr5, addr1, 2070, 40000, "\x00\x04\x00\x07"), -1, "", ""},
		{"its error", udp(us, ours, addr5, addr1, 2070, 40000, "\x00\x05\x00\x00no token=abc here"), -1, "token=*** here", "abc"},
		{"its DNS", udp(us, ours, addr5, addr1, 40000, 53, "query"), 0, "", ""},
		{"its syslog", udp(us, ours, addr5, addr1, 40000, 514, "<14>x"), 0, "", ""},
		{"its request for the script", tcp(us, ours, addr5, addr1, 5000, 8080, 0x18, "GET /boot/script?mac=52:54:00:00:00:05&token=abc&x=1 HTTP/1.1\r\nHost: x\r\n\r\n"), -1, "token=***&x=1", "abc"},
		{"the script", tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, script), -1, "recast.nonce=********** recast.time=1 db_password=*******\n", "hunter2"},
		{"the rest of a longer script", tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, "ecast.nonce=abc"), 0, "", ""},
		{"the kernel's head", tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nELF.."), 54 + 38, "Content-Length: 5", "ELF"},
		{"a head cut off", tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, "HTTP/1.1 200 OK\r\nX-Token: abc"), 54 + 12, "HTTP/1.1 200", "abc"},
		{"a SYN", tcp(us, ours, addr5, addr1, 5000, 8080, tcpSYN, ""), -1, "", ""},
		{"an ACK", tcp(us, ours, addr5, addr1, 5000, 8080, 0x10, ""), 0, "", ""},
		{"a SYN to the agent port", tcp(us, ours, addr5, addr1, 5000, 8443, tcpSYN, "x"), 54, "", ""},
		{"TLS", tcp(us, ours, addr5, addr1, 5000, 8443, 0x18, "\x16\x03"), 0, "", ""},
		{"its ssh", tcp(us, ours, addr5, addr6, 5000, 22, tcpSYN, ""), 0, "", ""},
		{"another's script", tcp(us, other, addr6, addr1, 5000, 8080, 0x18, "GET / HTTP/1.1\r\n\r\n"), 0, "", ""},
		{"port unreachable", ip4(ours, us, 1, addr1, addr5, "\x03\x03"+strings.Repeat("x", 100)), 34 + 48, "", ""},
		{"its DHCPv6", append([]byte("\x33\x33\x00\x01\x00\x02"+ours+"\x86\xdd\x60\x00\x00\x00\x00\x0c\x11\x40"+strings.Repeat("\x00", 32)), []byte(be16(546)+be16(547)+be16(12)+"\x00\x00\x01abc")...), -1, "", ""},
		{"DHCPv6 through a relay, with its address", append([]byte(us+other+"\x86\xdd\x60\x00\x00\x00\x00\x0c\x11\x40"+strings.Repeat("\x00", 32)), []byte(be16(547)+be16(547)+be16(12)+"\x00\x00\x0c"+ours)...), -1, "", ""},
		{"its DISCOVER in a VLAN", tagged(udp(all, ours, "\x00\x00\x00\x00", "\xff\xff\xff\xff", 68, 67, dhcp(ours, "\xff")), "\x00\x64"), -1, "\x81\x00\x00\x64\x08\x00", ""},
		{"a broadcast OFFER of it in a VLAN", tagged(udp(all, us, addr1, "\xff\xff\xff\xff", 67, 68, dhcp(ours, "\xff")), "\x00\x64"), -1, "\x81\x00\x00\x64\x08\x00", ""},
		{"a broadcast OFFER of another's in a VLAN", tagged(udp(all, us, addr1, "\xff\xff\xff\xff", 67, 68, dhcp(other, "\xff")), "\x00\x64"), 0, "", ""},
		{"the script in a VLAN", tagged(tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, script), "\x00\x64"), -1, "recast.nonce=********** recast.time=1 db_password=*******\n", "hunter2"},
		{"no frame", []byte("x"), 0, "", ""},
	} {
		vm, err := bpf.NewVM(filter(options.MACs, options.Addrs))
		if err != nil {
			t.Fatal(err)
		}
		n, err := vm.Run(c.frame)
		if err != nil {
			t.Fatal(err)
		}
		whole := len(c.frame)
		var kept []byte
		if n > 0 {
			frame, tag := untag(bytes.Clone(c.frame[:min(n, whole)]))
			if kept = newChooser(options).choose(frame); kept != nil {
				kept = retag(kept, nil, tag)
			}
		}
		want := c.keep
		if want < 0 {
			want = whole
		}
		if len(kept) != want || !bytes.Contains(kept, []byte(c.has)) || c.not != "" && bytes.Contains(kept, []byte(c.not)) {
			t.Errorf("%s: %d bytes are kept of %d (the kernel picks %d), want %d: %q", c.name, len(kept), whole, n, want, kept)
		}
	}
}

func tagged(frame []byte, tag string) []byte {
	return slices.Concat(frame[:12], []byte("\x81\x00"+tag), frame[12:])
}

func TestFileIsAPcapAndEndsWhenItIsFull(t *testing.T) {
	var b bytes.Buffer
	w := &writer{to: &b, most: 100}
	if err := w.begin(); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1700000000, 123456789)
	if err := w.packet(at, []byte("kept"), 60); err != nil {
		t.Fatal(err)
	}
	if err := w.packet(at, make([]byte, 100), 100); err != errFull {
		t.Errorf("%v, want %v", err, errFull)
	}
	want := "\xd4\xc3\xb2\xa1\x02\x00\x04\x00" + strings.Repeat("\x00", 8) + "\xff\xff\x00\x00\x01\x00\x00\x00" +
		string(binary.LittleEndian.AppendUint32(nil, 1700000000)) + string(binary.LittleEndian.AppendUint32(nil, 123456)) + "\x04\x00\x00\x00\x3c\x00\x00\x00kept"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestCaptureOfNothingIsRefused(t *testing.T) {
	for _, o := range []Options{{}, {Interfaces: []string{"lo"}}, {Interfaces: []string{"there-is-none"}, MACs: options.MACs}} {
		if err := Run(t.Context(), o, io.Discard); err == nil {
			t.Errorf("%+v is captured", o)
		}
	}
}

// FuzzChoose drives frames through all that stands between the kernel and the file:
// of a machine that is named, and of whoever sent the frame.
func FuzzChoose(f *testing.F) {
	script := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n#!ipxe\nkernel /k recast.nonce=abcdef recast.time=1\n"
	for _, frame := range [][]byte{
		udp(all, ours, addr5, addr1, 68, 67, dhcp(ours, "\xff")),
		udp(us, other, addr6, addr1, 67, 67, dhcp(ours, "\xff")),
		udp(us, ours, addr5, addr1, 2070, 69, "\x00\x01snponly.efi\x00octet\x00"),
		udp(ours, us, addr1, addr5, 40000, 2070, "\x00\x03\x00\x07recast.nonce=abc"),
		udp(us, ours, addr5, addr1, 2070, 40000, "\x00\x05\x00\x00no token=abc here"),
		tcp(us, ours, addr5, addr1, 5000, 8080, 0x18, "GET /boot/script?mac=52:54:00:00:00:05&token=abc&x=1 HTTP/1.1\r\nAuthorization: x\r\n\r\n"),
		tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, script),
		tcp(ours, us, addr1, addr5, 8080, 5000, 0x18, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nELF.."),
		tcp(us, ours, addr5, addr1, 5000, 8443, tcpSYN, "x"),
		ip4(ours, us, 1, addr1, addr5, "\x03\x03"+strings.Repeat("x", 100)),
		[]byte(ours + us + "\x86\xdd" + strings.Repeat("\x06", 60)),
	} {
		f.Add(frame)
	}
	files, _ := filepath.Glob("../dhcp/testdata/*.pcap")
	if len(files) == 0 {
		f.Fatal("no captures")
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for at := 24; at+16 <= len(b); {
			n := int(binary.LittleEndian.Uint32(b[at+8:]))
			f.Add(b[at+16 : at+16+n])
			at += 16 + n
		}
	}
	f.Add(tagged(udp(us, ours, addr5, addr1, 2070, 69, "\x00\x01snponly.efi\x00octet\x00"), "\x20\x64"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if rest, tag := untag(bytes.Clone(frame)); !bytes.Equal(retag(rest, nil, tag), frame) {
			t.Fatalf("%x without its tag is %x and %x", frame, rest, tag)
		}
		sender := options
		if len(frame) >= 12 {
			sender.MACs = []inventory.MAC{inventory.MACOf(frame[6:12])}
		}
		for _, o := range []Options{options, sender} {
			kept := newChooser(o).choose(bytes.Clone(frame))
			if kept == nil {
				continue
			}
			if len(kept) > len(frame) {
				t.Fatalf("%d bytes of %d", len(kept), len(frame))
			}
			payload := payloadOf(kept)
			for _, m := range secrets.FindAllSubmatch(payload, -1) {
				if len(bytes.Trim(m[2], "*")) > 0 {
					t.Fatalf("%q is kept", m[0])
				}
			}
			if i := bytes.Index(payload, []byte("\r\n\r\n")); bytes.HasPrefix(payload, []byte("HTTP/1.")) && i >= 0 && i+4 < len(payload) &&
				!bytes.Contains(bytes.ToLower(frame), []byte("text/plain")) {
				t.Fatalf("bytes of a file are kept: %q", payload)
			}
			// What is kept is not changed by being looked at again, but for what was
			// recognised by what is no more to be read.
			if again := newChooser(o).choose(bytes.Clone(kept)); !bytes.HasPrefix(kept, again) {
				t.Fatalf("of %q is kept %q", kept, again)
			}
		}
	})
}

// payloadOf UDP or TCP, as the standards have it; nil of another frame.
func payloadOf(frame []byte) []byte {
	at := 14
	var proto byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		at, proto = at+int(frame[14]&15)*4, frame[23]
	case 0x86dd:
		at, proto = at+40, frame[20]
	}
	switch proto {
	case 17:
		return frame[at+8:]
	case 6:
		return frame[at+int(frame[at+12]>>4)*4:]
	}
	return nil
}
