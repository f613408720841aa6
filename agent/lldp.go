package agent

import (
	"encoding/hex"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// lldpType is the Ethernet type of LLDP (IEEE 802.1AB).
const lldpType = 0x88cc

// listener collects what switches say of themselves. They do so every 30 s:
// nobody waits for them, what was heard until the inventory is told.
type listener struct {
	mu   sync.Mutex
	said map[string][]inventory.LLDPTLV
}

// listen begins to listen on every interface. The sockets live as long as the
// ramdisk.
func (l *listener) listen(nics []string) {
	for _, nic := range nics {
		i, err := net.InterfaceByName(nic)
		if err != nil {
			continue
		}
		proto := lldpType>>8 | lldpType<<8&0xff00 // network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return // a kernel without packet sockets hears nothing
		}
		// 01:80:c2:00:00:0e is the address that no bridge forwards.
		group := unix.PacketMreq{Ifindex: int32(i.Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6,
			Address: [8]uint8{0x01, 0x80, 0xc2, 0, 0, 0x0e}}
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &group)
		if unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: i.Index}) != nil {
			unix.Close(fd)
			continue
		}
		go func() {
			b := make([]byte, 9000)
			for {
				n, _, err := unix.Recvfrom(fd, b, 0)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					return
				}
				if tlvs := parseLLDP(b[:n]); len(tlvs) > 0 {
					l.mu.Lock()
					if l.said == nil {
						l.said = map[string][]inventory.LLDPTLV{}
					}
					l.said[nic] = tlvs
					l.mu.Unlock()
				}
			}
		}()
	}
}

func (l *listener) heard(nic string) []inventory.LLDPTLV {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said[nic]
}

// parseLLDP cuts a frame's payload into its TLVs: 7 bits of type, 9 of length.
func parseLLDP(b []byte) []inventory.LLDPTLV {
	var out []inventory.LLDPTLV
	for len(b) >= 2 && len(out) < 64 {
		kind, n := int(b[0]>>1), int(b[0]&1)<<8|int(b[1])
		if kind == 0 || 2+n > len(b) {
			break
		}
		out = append(out, inventory.LLDPTLV{Type: kind, Value: hex.EncodeToString(b[2 : 2+n])})
		b = b[2+n:]
	}
	return out
}
