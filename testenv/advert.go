package testenv

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The iPXE in the boot ROMs of QEMU's cards configures IPv6 beside IPv4 and
// waits for both: 20 seconds at each boot in a network without a router. An
// advertisement of a router that routes nothing (RFC 4861 section 4.2: no
// lifetime, no prefix) ends the wait and configures nothing.

// advertHopLimit is what the advertisement tells hosts to send with: the only trace
// that it leaves on them, and not what a kernel takes by itself.
const advertHopLimit = 65

// advertise answers router solicitations on a bridge until the Net is closed.
func (n *Net) advertise(on string) error {
	var mac net.HardwareAddr
	var f *os.File
	err := n.Do(func() error {
		bridge, err := net.InterfaceByName(on)
		if err != nil {
			return err
		}
		mac = bridge.HardwareAddr
		ipv6 := bits.ReverseBytes16(unix.ETH_P_IPV6) // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(ipv6))
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "solicitations")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv6, Ifindex: bridge.Index})
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return fmt.Errorf("listen for router solicitations: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			k, err := f.Read(buf)
			if err != nil {
				return
			}
			if a := advert(buf[:k], mac); a != nil {
				_, _ = f.Write(a) // a lost one is asked for again
			}
		}
	}()
	n.adverts = append(n.adverts, func() {
		f.Close()
		<-done
	})
	return nil
}

// advert is the Ethernet frame that answers the one given, nil for what is no
// router solicitation. It goes to all nodes, since a host that asks from no
// address can be told no other way.
func advert(asked []byte, mac net.HardwareAddr) []byte {
	const eth, ip, ra = 14, 40, 16
	if len(asked) < eth+ip+8 || asked[eth]>>4 != 6 || asked[eth+6] != unix.IPPROTO_ICMPV6 || asked[eth+ip] != 133 {
		return nil
	}
	b := make([]byte, eth+ip+ra)
	copy(b, []byte{0x33, 0x33, 0, 0, 0, 1})
	copy(b[6:], mac)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
	h, icmp := b[eth:eth+ip], b[eth+ip:]
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], ra)
	h[6], h[7] = unix.IPPROTO_ICMPV6, 255
	// From the link-local address of the MAC (RFC 4291 appendix A) to ff02::1.
	copy(h[8:], []byte{0xfe, 0x80, 7: 0})
	copy(h[16:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	h[24], h[25], h[39] = 0xff, 0x02, 1
	icmp[0], icmp[4] = 134, advertHopLimit
	// The checksum is over a pseudo-header too (RFC 8200 section 8.1).
	sum := uint32(ra + unix.IPPROTO_ICMPV6)
	for p := h[8:]; len(p) > 0; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	for p := icmp; len(p) > 0; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))
	return b
}
