package pack

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// mendGPT sets the checksums right, so that a fuzzer gets past them.
func mendGPT(img []byte, bs int) {
	if len(img) < 2*bs || string(img[bs:bs+8]) != gptSignature {
		return
	}
	h := img[bs : 2*bs]
	le := binary.LittleEndian
	at, n := le.Uint64(h[72:])*uint64(bs), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
	if at < uint64(len(img)) && n < uint64(len(img))-at {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(img[at:at+n]))
	}
	if size := le.Uint32(h[12:]); size >= 20 && size <= uint32(bs) {
		le.PutUint32(h[16:], headerCRC(h[:size]))
	}
}

func TestGUIDsReadAsTheyAreWritten(t *testing.T) {
	const s = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	g, err := ParseGUID(s)
	if err != nil || g.String() != s {
		t.Fatalf("%v %v", g, err)
	}
	// As it stands on disk: UEFI specification, appendix A.
	if want := (GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}); g != want {
		t.Errorf("bytes %x, want %x", g, want)
	}
	for _, s := range []string{"", s[1:], s + "0", "C12A7328-F81F-11D2-BA4B-00A0C93EC93G", "C12A7328-F81F-11D2-BA4B0-0A0C93EC93B"} {
		if _, err := ParseGUID(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}
