package dhcp

import (
	"fmt"
	"net"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// listenFrames opens a packet socket on an interface for a protocol's packets, from
// their own header on, of those that the filter picks.
func listenFrames(f Interface, protocol int, filter []bpf.Instruction) (*packet.Conn, error) {
	raw, err := bpf.Assemble(append(ownFrames(f.Index), filter...))
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	pc, err := packet.Listen(&net.Interface{Index: f.Index, Name: f.Name, HardwareAddr: f.MAC}, packet.Datagram, protocol, &packet.Config{Filter: raw})
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", f.Name, err)
	}
	return pc, nil
}

// ownFrames drops what a packet socket sees and its interface does not: frames of
// VLANs, from which the kernel takes the tag before it shows them to the socket of
// the interface below. Those of a sub-interface (eth0.100) come with the index of
// that one; those of a VLAN without one are marked as for another host; a socket of
// all protocols sees both before, with the tag beside the frame. VLAN 0 is a
// priority alone (802.1Q §6.9.1).
func ownFrames(index int) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OTHERHOST, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		// Older kernels leave the number standing when they take the tag away.
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 4},
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xfff},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
}
