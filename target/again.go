package target

import (
	"encoding/binary"
	"slices"
	"unicode/utf16"

	"recast/inventory"
)

// AgainFile is the program on the volume that starts a machine over; see Again.
const AgainFile = "recast-again.efi"

// againText is what it says on the machine's screen, for as long as it waits.
const againText = "recast: the server was not reached, and this machine does not start without it; trying again in 30 s\r\n"

// againCode is its program, for amd64. The firmware calls it with the system table in
// RDX (UEFI specification, 2.3.4, 4.3, 4.4 and 4.5).
var againCode = slices.Concat(
	[]byte{0x53},                               // push rbx, which aligns the stack too
	[]byte{0x48, 0x83, 0xec, 0x20},             // sub rsp, 32: room that the calls may use
	[]byte{0x48, 0x89, 0xd3},                   // mov rbx, rdx
	[]byte{0x48, 0x8b, 0x4b, 0x40},             // mov rcx, [rbx+64]: ConOut, not there on every board
	[]byte{0x48, 0x85, 0xc9},                   // test rcx, rcx
	[]byte{0x74, 10},                           // jz over the next two
	[]byte{0x48, 0x8d, 0x15, 38, 0, 0, 0},      // lea rdx, [rip+38]: the text
	[]byte{0xff, 0x51, 8},                      // call [rcx+8]: OutputString
	[]byte{0x48, 0x8b, 0x43, 0x60},             // mov rax, [rbx+96]: BootServices
	[]byte{0xb9, 0x80, 0xc3, 0xc9, 0x01},       // mov ecx, 30000000 microseconds
	[]byte{0xff, 0x90, 0xf8, 0, 0, 0},          // call [rax+248]: Stall
	[]byte{0x48, 0x8b, 0x43, 0x58},             // mov rax, [rbx+88]: RuntimeServices
	[]byte{0x31, 0xc9},                         // xor ecx, ecx: EfiResetCold
	[]byte{0x31, 0xd2},                         // xor edx, edx: EFI_SUCCESS
	[]byte{0x45, 0x31, 0xc0, 0x45, 0x31, 0xc9}, // xor r8d, r8d; xor r9d, r9d: no data
	[]byte{0xff, 0x50, 0x68},                   // call [rax+104]: ResetSystem
	[]byte{0xf4, 0xeb, 0xfd},                   // hlt, for ever
)

// Again is a program for a UEFI that starts the machine over after half a minute, for as
// long as nobody answers it by the network. It is not signed.
func Again() []byte {
	const (
		align  = 0x200  // of the file
		page   = 0x1000 // of memory
		header = 240    // the optional one, with 16 empty directories
	)
	text := slices.Clone(againCode)
	for _, c := range utf16.Encode([]rune(againText + "\x00")) {
		text = binary.LittleEndian.AppendUint16(text, c)
	}
	le := binary.LittleEndian
	u16 := func(b []byte, v ...uint16) []byte {
		for _, n := range v {
			b = le.AppendUint16(b, n)
		}
		return b
	}
	u32 := func(b []byte, v ...uint32) []byte {
		for _, n := range v {
			b = le.AppendUint32(b, n)
		}
		return b
	}
	pad := func(b []byte, n int) []byte { return append(b, make([]byte, (n-len(b)%n)%n)...) }
	size := uint32(len(pad(slices.Clone(text), align)))

	b := append([]byte("MZ"), make([]byte, 58)...)
	b = u32(b, 64)                     // where the PE header begins
	b = append(b, 'P', 'E', 0, 0)      // PE format, sections 3.1 to 3.4
	b = u16(b, 0x8664, 1)              // amd64, one section
	b = u32(b, 0, 0, 0)                // no time, no symbols
	b = u16(b, header, 0x22e)          // executable, large addresses
	b = u16(b, 0x20b, 0)               // PE32+
	b = u32(b, size, 0, 0)             // code, data
	b = u32(b, page, page)             // entry, base of the code
	b = u32(b, 0, 0, page, align)      // image base, alignments
	b = u16(b, 0, 0, 0, 0, 0, 0)       // versions
	b = u32(b, 0, 2*page, align, 0)    // image and headers
	b = u16(b, 10, 0)                  // an EFI application
	b = append(b, make([]byte, 32)...) // stack and heap
	b = u32(b, 0, 16)
	b = append(b, make([]byte, 128)...)
	b = append(b, ".text\x00\x00\x00"...)
	b = u32(b, uint32(len(text)), page, size, align, 0, 0, 0, 0x60000020) // code that is read and executed
	return pad(append(pad(b, align), text...), align)
}

// AgainProgram names it for the machine's boot order.
func AgainProgram() *inventory.EFIProgram {
	return &inventory.EFIProgram{File: `\` + AgainFile, Digest: inventory.DigestOf(Again())}
}
