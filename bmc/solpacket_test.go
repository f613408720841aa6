package bmc

import (
	"bytes"
	"testing"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"
	"github.com/google/go-cmp/cmp"
)

func TestSOLPacketsAreReadAndWritten(t *testing.T) {
	for _, c := range []struct {
		name string
		raw  []byte
		want solPacket
		bad  bool
	}{
		{"text", []byte{3, 2, 5, 0, 'h', 'i'}, solPacket{seq: 3, ack: 2, accepted: 5, text: []byte("hi")}, false},
		{"acknowledgement alone", []byte{0, 7, 9, 0}, solPacket{ack: 7, accepted: 9, text: []byte{}}, false},
		{"reserved bits", []byte{0xf1, 0xf2, 0, 0x18}, solPacket{seq: 1, ack: 2, what: 0x18, text: []byte{}}, false},
		{"too short", []byte{1, 2, 3}, solPacket{}, true},
	} {
		got, err := parseSOL(c.raw)
		if (err != nil) != c.bad {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(solPacket{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if again, err := parseSOL(got.pack()); err != nil && !c.bad || !bytes.Equal(again.text, got.text) || again.seq != got.seq {
			t.Errorf("%s: packed and read again it is %v, %v", c.name, again, err)
		}
	}
}

func TestWhatAConsoleHearsIsShownOnceAndAcknowledged(t *testing.T) {
	type step struct {
		in    solPacket
		text  string
		reply string // "seq/accepted", "" none
		lost  bool
		over  bool
	}
	say := func(seq byte, text string) solPacket { return solPacket{seq: seq, text: []byte(text)} }
	for name, steps := range map[string][]step{
		"in order, over the end of the numbers": {{in: say(14, "ab"), text: "ab", reply: "\x0e\x02"}, {in: say(15, "c"), text: "c", reply: "\x0f\x01"}, {in: say(1, "d"), text: "d", reply: "\x01\x01"}},
		"sent again":                            {{in: say(1, "ab"), text: "ab", reply: "\x01\x02"}, {in: say(1, "ab"), reply: "\x01\x02"}},
		"sent again and grown":                  {{in: say(1, "ab"), text: "ab", reply: "\x01\x02"}, {in: say(1, "abc"), text: "c", reply: "\x01\x03"}},
		"sent again and shrunk":                 {{in: say(1, "ab"), text: "ab", reply: "\x01\x02"}, {in: say(1, "a"), reply: "\x01\x01"}},
		"an old one, long on its way":           {{in: say(1, "ab"), text: "ab", reply: "\x01\x02"}, {in: say(2, "c"), text: "c", reply: "\x02\x01"}, {in: say(1, "ab")}},
		"a gap":                                 {{in: say(1, "ab"), text: "ab", reply: "\x01\x02"}, {in: say(3, "d"), text: "d", reply: "\x03\x01", lost: true}},
		"an overrun":                            {{in: solPacket{seq: 1, what: solOverrun, text: []byte("z")}, text: "z", reply: "\x01\x01", lost: true}},
		"an acknowledgement alone":              {{in: solPacket{ack: 3, accepted: 1}}},
		"the end":                               {{in: solPacket{what: solOver}, over: true}},
	} {
		var l solLine
		for i, s := range steps {
			h := l.hear(s.in)
			reply := ""
			if h.reply != nil {
				reply = string([]byte{h.reply.ack, h.reply.accepted})
			}
			if string(h.text) != s.text || reply != s.reply || h.lost != s.lost || h.over != s.over || h.landed {
				t.Errorf("%s, packet %d: text %q, reply %q, lost %v, over %v; want %q, %q, %v, %v", name, i+1, h.text, reply, h.lost, h.over, s.text, s.reply, s.lost, s.over)
			}
		}
	}
}

func TestWhatIsTypedLandsOnce(t *testing.T) {
	var l solLine
	for i := range 40 {
		p := l.send([]byte("abcd"), 0)
		if p.seq == 0 || p.seq > 15 {
			t.Fatalf("packet %d has number %d", i, p.seq)
		}
		if h := l.hear(solPacket{ack: p.seq%15 + 1, accepted: 4}); h.landed {
			t.Fatalf("packet %d: another one's acknowledgement was taken", i)
		}
		if h := l.hear(solPacket{ack: p.seq, accepted: 3}); !h.landed || h.taken != 3 {
			t.Fatalf("packet %d: %+v, want 3 taken", i, h)
		}
		if h := l.hear(solPacket{ack: p.seq, accepted: 3}); h.landed {
			t.Fatalf("packet %d landed twice", i)
		}
	}
	p := l.send([]byte("ab"), 0)
	if h := l.hear(solPacket{ack: p.seq, accepted: 200}); h.taken != 2 {
		t.Errorf("%d of 2 characters taken", h.taken)
	}
}

func TestRoomOfAConsolePacketIsBelieved(t *testing.T) {
	for size, want := range map[uint16]int{0: 60, 4: 60, 5: 1, 64: 60, 255: 251, 0x4000: 60, 0xff00: 251, 65535: 60} {
		if got := solRoom(size); got != want {
			t.Errorf("size %#x: %d, want %d", size, got, want)
		}
	}
}

func TestReplayWindowTakesEachPacketOnce(t *testing.T) {
	var w replayWindow
	for i, c := range []struct {
		n    uint32
		want bool
	}{{5, true}, {5, false}, {4, true}, {4, false}, {70, true}, {7, true}, {6, false}, {69, true}, {70, false}, {1000, true}, {999, true}, {0, true}, {0, true}} {
		if got := w.fresh(c.n); got != c.want {
			t.Errorf("step %d, packet %d: new %v, want %v", i, c.n, got, c.want)
		}
	}
}

// wires are the two ends of one session.
func wires(t testing.TB) (ours, theirs *ipmiWire) {
	t.Helper()
	g := guardInSession()
	return &ipmiWire{keys: g.keys, bmcID: 7, consoleID: g.consoleID}, &ipmiWire{keys: g.keys, bmcID: g.consoleID, consoleID: 7}
}

func TestSealedPacketsAreOpenedByTheOtherSideAlone(t *testing.T) {
	ours, theirs := wires(t)
	for n := range 40 {
		text := bytes.Repeat([]byte{'x'}, n)
		p, err := ours.seal(types.PayloadTypeSOL, text, crypto.RandomBytes(16))
		if err != nil {
			t.Fatal(err)
		}
		for i := range p {
			bad := bytes.Clone(p)
			bad[i] ^= 0x10
			if _, _, err := theirs.open(bad); err == nil && i > 3 {
				t.Fatalf("a packet with byte %d flipped was taken", i)
			}
			theirs.replays = replayWindow{newest: uint32(n), seen: ^uint64(0)}
		}
		kind, plain, err := theirs.open(p)
		if err != nil || kind != types.PayloadTypeSOL || !bytes.Equal(plain, text) {
			t.Fatalf("%d bytes: %v %q %v", n, kind, plain, err)
		}
		if _, _, err := theirs.open(p); err == nil {
			t.Fatal("a packet was taken twice")
		}
		if _, _, err := ours.open(p); err == nil {
			t.Fatal("our own packet was taken for the other side's")
		}
	}
}

func FuzzSOL(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 'h', 'i'}, []byte{2, 1, 1, 0x48, 'h'})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ours, theirs := wires(t)
		var l solLine
		sent := l.send([]byte("typed"), 0)
		for _, raw := range [][]byte{a, b, a} {
			_, _, _ = ours.open(raw)
			// From a BMC that knows the keys: the worst that can come through.
			sealed, err := theirs.seal(types.PayloadTypeSOL, raw, make([]byte, 16))
			if err != nil {
				t.Fatal(err)
			}
			_, plain, err := ours.open(sealed)
			if err != nil || !bytes.Equal(plain, raw) {
				t.Fatalf("sealed and opened: %x, %v", plain, err)
			}
			p, err := parseSOL(plain)
			if err != nil {
				continue
			}
			h := l.hear(p)
			if len(h.text) > len(p.text) || h.taken > len(sent.text) || h.landed && p.ack != sent.seq {
				t.Errorf("of %x: %+v", raw, h)
			}
			if h.reply != nil && (h.reply.seq != 0 || h.reply.ack == 0) {
				t.Errorf("of %x: the reply %+v", raw, *h.reply)
			}
		}
	})
}
