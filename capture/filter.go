package capture

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"

	"recast/inventory"
)

// snap is how much of a frame the kernel hands over: any boot script. Larger ones
// are many segments that the kernel sends as one.
const snap = 4096

// filter is what the kernel picks: everything from and to the hardware addresses
// and the IPv4 addresses, and all DHCP, of which a machine's own is picked later,
// since only its payload says whose a broadcast or a relayed packet is.
func filter(macs []inventory.MAC, addrs []netip.Addr) []bpf.Instruction {
	var p program
	for _, m := range macs {
		hw, err := net.ParseMAC(string(m))
		if err != nil || len(hw) != 6 {
			continue
		}
		for _, at := range []uint32{0, 6} { // destination, source
			p.accept(load{at, 4, binary.BigEndian.Uint32(hw)}, load{at + 4, 2, uint32(binary.BigEndian.Uint16(hw[4:]))})
		}
	}
	for _, a := range addrs {
		if !a.Is4() {
			continue
		}
		b := a.As4()
		for _, at := range []uint32{26, 30} {
			p.accept(load{12, 2, 0x0800}, load{at, 4, binary.BigEndian.Uint32(b[:])})
		}
	}
	// Without IP options and fragments, as DHCP comes; and as the card below a VLAN's
	// sub-interface shows what goes out, with the tag in the frame.
	for _, tag := range []uint32{0, tagLen} {
		of := func(ethertype uint32, more ...load) []load {
			all := []load{{12 + tag, 2, ethertype}}
			if tag > 0 {
				all = []load{{12, 2, etherVLAN}, all[0]}
			}
			return append(all, more...)
		}
		for _, port := range []uint32{67, 68, 4011} {
			for _, at := range []uint32{34, 36} {
				p.accept(of(0x0800, load{14 + tag, 1, 0x45}, load{23 + tag, 1, 17}, load{at + tag, 2, port})...)
			}
		}
		for _, port := range []uint32{546, 547} {
			p.accept(of(0x86dd, load{20 + tag, 1, 17}, load{56 + tag, 2, port})...)
		}
	}
	return append(p, bpf.RetConstant{Val: 0})
}

type load struct {
	off  uint32
	size int
	want uint32
}

type program []bpf.Instruction

// accept adds: where all of these hold, the frame is picked. A frame too short for
// a load is not picked at all (BPF's own rule), which none of ours is.
func (p *program) accept(all ...load) {
	for i, l := range all {
		*p = append(*p, bpf.LoadAbsolute{Off: l.off, Size: l.size},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: l.want, SkipTrue: uint8(2*(len(all)-i-1) + 1)})
	}
	*p = append(*p, bpf.RetConstant{Val: snap})
}
