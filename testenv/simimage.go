package testenv

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"unicode/utf16"

	"recast/pack"
)

// SimImage is a disk image of size bytes (a multiple of 1 MiB, at least 4) that
// no real firmware could start, but every part of recast takes for one: a GPT
// with an EFI system partition and a root partition, random bytes and holes. The
// same seed gives the same bytes.
func SimImage(size int64, seed uint64) []byte {
	const mib = 1 << 20
	img := make([]byte, size)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	r := rand.NewChaCha8(key)
	for off := int64(mib); off < size-mib; off += mib {
		if off/mib%4 != 3 { // every fourth is a hole
			r.Read(img[off : off+mib])
		}
	}
	copy(img, "boot code")
	blocks := uint64(size / 512)
	entries := make([]byte, 128*128)
	for i, p := range []struct {
		kind        pack.GUID
		name        string
		first, last uint64
	}{{pack.TypeESP, "esp", 2048, 4095}, {pack.TypeLinux, "root", 4096, blocks - 2049}} {
		e := entries[i*128:]
		copy(e, p.kind[:])
		copy(e[16:], bytes.Repeat([]byte{byte(i + 1)}, 16))
		binary.LittleEndian.PutUint64(e[32:], p.first)
		binary.LittleEndian.PutUint64(e[40:], p.last)
		for k, c := range utf16.Encode([]rune(p.name)) {
			binary.LittleEndian.PutUint16(e[56+2*k:], c)
		}
	}
	// UEFI specification 2.10, table 5.5.
	header := func(here, other, table uint64) []byte {
		h := make([]byte, 92)
		copy(h, "EFI PART\x00\x00\x01\x00")
		binary.LittleEndian.PutUint32(h[12:], 92)
		binary.LittleEndian.PutUint64(h[24:], here)
		binary.LittleEndian.PutUint64(h[32:], other)
		binary.LittleEndian.PutUint64(h[40:], 34)
		binary.LittleEndian.PutUint64(h[48:], blocks-34)
		copy(h[56:], "0123456789abcdef")
		binary.LittleEndian.PutUint64(h[72:], table)
		binary.LittleEndian.PutUint32(h[80:], 128)
		binary.LittleEndian.PutUint32(h[84:], 128)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
		return h
	}
	copy(img[512:], header(1, blocks-1, 2))
	copy(img[1024:], entries)
	copy(img[size-33*512:], entries)
	copy(img[size-512:], header(blocks-1, 1, blocks-33))
	// The protective MBR.
	copy(img[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	binary.LittleEndian.PutUint32(img[458:], uint32(blocks-1))
	img[510], img[511] = 0x55, 0xaa
	return img
}
