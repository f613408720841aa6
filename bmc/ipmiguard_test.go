package bmc

import (
	"bytes"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// guardInSession is a guard whose keys are known to the test.
func guardInSession() *ipmiGuard {
	g := &ipmiGuard{log: slog.New(slog.DiscardHandler), consoleID: 0xa0a1a2a3, active: true, seen: map[uint32]bool{}}
	g.keys.k1 = make([]byte, 32)
	g.keys.k2 = make([]byte, 32)
	g.keys.integrity = types.IntegrityAlg_HMAC_SHA256_128
	return g
}

// sealed is a packet as a BMC with those keys makes it.
func sealed(t testing.TB, g *ipmiGuard, sequence byte, encrypted []byte) []byte {
	p := []byte{6, 0, 0xff, 7, 6, 0xc0, 0xa3, 0xa2, 0xa1, 0xa0, sequence, 0, 0, 0, byte(len(encrypted)), byte(len(encrypted) >> 8)}
	p = append(p, encrypted...)
	pad := types.IntegrityPadLen(12, len(encrypted))
	for range pad {
		p = append(p, 0xff)
	}
	p = append(p, byte(pad), 7)
	code, err := crypto.SessionIntegrityAuthCode(g.keys.integrity, p[rmcpSize:], g.keys.k1, "")
	if err != nil {
		t.Fatal(err)
	}
	return append(p, code...)
}

func chassisIsOn(t testing.TB, g *ipmiGuard) []byte {
	plain := []byte{0x81, 0x04, 0x7b, 0x20, 0x04, 0x01, 0x00, 0x01, 0, 0, 0xda}
	e, err := crypto.EncryptAESPayload(plain, g.keys.k2, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestGuardTakesEachAnswerOnce(t *testing.T) {
	g := guardInSession()
	p := sealed(t, g, 1, chassisIsOn(t, g))
	if err := g.judge(p); err != nil {
		t.Fatalf("a true answer: %v", err)
	}
	if g.judge(p) == nil {
		t.Error("a replayed answer was taken")
	}
	if err := g.judge(sealed(t, g, 2, chassisIsOn(t, g))); err != nil {
		t.Errorf("the next answer: %v", err)
	}
	for i := range p {
		bad := append([]byte(nil), sealed(t, g, 3, chassisIsOn(t, g))...)
		bad[i] ^= 0x10
		// The RMCP header, but for version and class, is not covered by anything.
		if g.judge(bad) == nil && i != 1 && i != 2 && i != 3 {
			t.Errorf("an answer with byte %d flipped was taken", i)
		}
		delete(g.seen, 3)
	}
}

func TestGuardDropsWhatWouldPanicTheLibrary(t *testing.T) {
	g := guardInSession()
	// A BMC that knows the keys and lies about the padding.
	lying := make([]byte, 16)
	lying[15] = 0xff
	e, err := crypto.EncryptAES(lying, g.keys.k2[:16], make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"padding longer than the payload": append(make([]byte, 16), e...),
		"no ciphertext":                   make([]byte, 16),
		"half a block":                    make([]byte, 24),
		"empty":                           nil,
	} {
		if g.judge(sealed(t, g, 9, body)) == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestGuardRefusesAlgorithmsNobodyAskedFor(t *testing.T) {
	g := &ipmiGuard{log: slog.New(slog.DiscardHandler)}
	request := append([]byte{6, 0, 0xff, 7, 6, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0}, make([]byte, 32)...)
	copy(request[20:], []byte{0xa3, 0xa2, 0xa1, 0xa0})
	request[16+12], request[16+20], request[16+28] = 3, 4, 1 // suite 17
	g.follow(request)
	response := append([]byte{6, 0, 0xff, 7, 6, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 36, 0}, make([]byte, 36)...)
	copy(response[20:], []byte{0xa3, 0xa2, 0xa1, 0xa0})
	if g.judge(response) == nil {
		t.Error("a session without authentication was taken")
	}
	response[16+16], response[16+24], response[16+32] = 3, 4, 1
	if err := g.judge(response); err != nil {
		t.Errorf("the suite that was asked for: %v", err)
	}
}

func FuzzIPMIGuard(f *testing.F) {
	g := guardInSession()
	f.Add(sealed(f, g, 1, chassisIsOn(f, g)), true)
	f.Add([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0x81, 0x1c, 0x63, 0x20, 4, 0x38, 0, 0}, false)
	f.Fuzz(func(t *testing.T, p []byte, active bool) {
		g := guardInSession()
		g.active = active
		if active {
			// Sealed by a BMC that knows the keys: the worst that can come through.
			_ = g.judge(sealed(t, g, 1, p))
		} else {
			g.follow(p)
		}
		_ = g.judge(p)
	})
}

func TestGuardSendsEachLoginMessageOnce(t *testing.T) {
	g := &ipmiGuard{log: slog.New(slog.DiscardHandler)}
	message := func(kind types.PayloadType, size int) []byte {
		return append([]byte{6, 0, 0xff, 7, 6, byte(kind), 0, 0, 0, 0, 0, 0, 0, 0, byte(size), 0}, make([]byte, size)...)
	}
	for _, step := range []struct {
		kind types.PayloadType
		want bool
	}{
		{types.PayloadTypeRmcpOpenSessionRequest, true},
		{types.PayloadTypeRmcpOpenSessionRequest, true}, // harmless: the BMC opens another
		{types.PayloadTypeRAKPMessage1, true},
		{types.PayloadTypeRAKPMessage1, false},
		{types.PayloadTypeRAKPMessage3, true},
		{types.PayloadTypeRAKPMessage3, false},
		{types.PayloadTypeRmcpOpenSessionRequest, true}, // a new login
		{types.PayloadTypeRAKPMessage1, true},
	} {
		if got := g.follow(message(step.kind, 32)); got != step.want {
			t.Errorf("payload type %#02x: sent %v, want %v", uint8(step.kind), got, step.want)
		}
	}
}

// Datagrams of every kind that is not believed, and one that is, from a socket.
func TestDatagramsThatAreNotBelievedAreCountedByReason(t *testing.T) {
	back, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	conn, err := net.Dial("udp", back.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	g := guardInSession()
	g.Conn, g.bad = conn, &BadAnswers{}
	good := sealed(t, g, 1, chassisIsOn(t, g))
	with := func(at int, b byte) []byte {
		p := sealed(t, g, 2, chassisIsOn(t, g))
		p[at] = b
		return p
	}
	body := []byte{0x81, 0x04, 0x7b, 0x20, 0x04, 0x01, 0x00, 0x01, 0, 0, 0xda}
	sessionless := append([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(body))}, body...)
	read := func(packets ...[]byte) {
		t.Helper()
		for _, p := range packets {
			if _, err := back.WriteTo(p, conn.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		want := packets[len(packets)-1]
		p := make([]byte, 1024)
		if n, err := g.Read(p); err != nil || !bytes.Equal(p[:n], want) {
			t.Fatalf("%d bytes, %v; want the good one's %d", n, err, len(want))
		}
	}
	read(good)
	read(good, []byte{6}, []byte("SSH-2.0-dropbear"), with(5, 0), sessionless, with(6, 0), with(20, 0xee), with(20, 0xef),
		sealed(t, g, 2, make([]byte, 24)), sealed(t, g, 3, chassisIsOn(t, g)))

	// And within a login.
	g.active, g.await = false, types.PayloadTypeRmcpOpenSessionResponse
	g.algorithms = [3]byte{3, 4, 1}
	login := func(kind byte, console byte, size int, algorithms [3]byte) []byte {
		p := append([]byte{6, 0, 0xff, 7, 6, kind, 0, 0, 0, 0, 0, 0, 0, 0, byte(size), 0}, make([]byte, size)...)
		copy(p[20:], []byte{console, 0xa2, 0xa1, 0xa0})
		if size == 36 {
			p[16+16], p[16+24], p[16+32] = algorithms[0], algorithms[1], algorithms[2]
		}
		return p
	}
	suite := [3]byte{3, 4, 1}
	read(login(0x13, 0xa3, 36, suite), login(0x11, 0xa4, 36, suite), login(0x11, 0xa3, 20, suite), login(0x11, 0xa3, 36, [3]byte{}), login(0x11, 0xa3, 36, suite))

	want := map[string]uint64{string(badRepeated): 1, string(badIPMI): 2, string(badClear): 1, string(badSessionless): 1, string(badSession): 2,
		string(badCode): 2, string(badDecode): 1, string(badAwaited): 1, string(badLogin): 1, string(badAlgorithms): 1}
	if d := cmp.Diff(want, g.bad.Counts()); d != "" {
		t.Errorf("counted (-want +got):\n%s", d)
	}
}

// FuzzExposure: whatever comes instead of an answer is none, or says no more than
// its bytes.
func FuzzExposure(f *testing.F) {
	const console = 0x01020304
	answer := append([]byte{0x06, 0, 0xff, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0x81, 0x1c, 0x63, 0x20, 0, 0x38, 0}, 1, 0x97, 7, 3, 0, 0, 0, 0, 0)
	f.Add(answer)
	f.Add(answer[:20])
	f.Add(ipmiCapabilitiesRequest(true))
	f.Add(ipmiOpen0Request(console))
	open := ipmiOpen0Request(console)
	open[5] = 0x11
	f.Add(append(open, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, p []byte) {
		x, err := ipmiCapabilities(p)
		if err != nil && x != (Exposure{}) {
			t.Errorf("%+v beside %v", x, err)
		}
		if x.Open && !x.IPMI15 {
			t.Errorf("%+v", x)
		}
		if open, err := ipmiOpen0(p, console); open && (err != nil || len(p) < 52) {
			t.Errorf("%t, %v of %x", open, err, p)
		}
	})
}
