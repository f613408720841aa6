package pack

import (
	"bytes"
)

// A table is suspended while the partitions that it names are neither what they were
// nor what they shall be: three marks say to firmware and kernels that there is none.
// What it says is all there, since it may be the machine's own by now: each mark is
// undone where it stands.

// Mark is one of them.
type Mark struct {
	At              int64 // on the disk
	Live, Suspended []byte
}

const suspendedSignature = "REC PART"

var bootMark = Mark{510, []byte{0x55, 0xaa}, []byte{0xaa, 0x55}}

// Marks are those of the GPT in a disk's first MiB, suspended or not, in the order in
// which they are set: the boot signature says first and last that there are others.
// The backup header's may be missing on a disk that lost it. Nil: there is no GPT with
// a boot signature.
func Marks(first []byte) (all []Mark, blockSize int) {
	first, _ = Resumed(first)
	g, err := parseGPT(first)
	if err != nil || g == nil || !bytes.Equal(first[bootMark.At:][:2], bootMark.Live) {
		return nil, 0
	}
	all = []Mark{bootMark}
	for _, block := range []uint64{1, g.alternate} {
		all = append(all, Mark{int64(block) * int64(g.blockSize), []byte(gptSignature), []byte(suspendedSignature)})
	}
	return all, g.blockSize
}

// Resumed gives the first MiB of a disk as it was before its table was suspended, and
// whether it is.
func Resumed(first []byte) ([]byte, bool) {
	if int64(len(first)) < bootMark.At+2 || !bytes.Equal(first[bootMark.At:][:2], bootMark.Suspended) {
		return first, false
	}
	b := bytes.Clone(first)
	copy(b[bootMark.At:], bootMark.Live)
	for _, bs := range []int{512, 4096} {
		if len(b) >= 2*bs && string(b[bs:][:len(suspendedSignature)]) == suspendedSignature {
			copy(b[bs:], gptSignature)
		}
	}
	if g, err := parseGPT(b); err != nil || g == nil {
		return first, false
	}
	return b, true
}
