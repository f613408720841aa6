package dhcp

import (
	"encoding/binary"
	"hash/fnv"
	"math/bits"
	"net/netip"

	"recast/inventory"
)

// maxSlots of a pool are used: every one of the largest of IPv4, and more of an
// IPv6 subnet than it has machines.
const maxSlots = 1 << 62

// slots is the number of addresses of a pool.
func slots(p *inventory.AddrRange) uint64 {
	if p == nil || !p.First.IsValid() || p.First.BitLen() != p.Last.BitLen() || p.Last.Less(p.First) {
		return 0
	}
	firstHigh, first := number(p.First)
	lastHigh, last := number(p.Last)
	n, borrow := bits.Sub64(last, first, 0)
	if high, _ := bits.Sub64(lastHigh, firstHigh, borrow); high == 0 && n < maxSlots {
		return n + 1
	}
	return maxSlots
}

// slot is the pool's i-th address.
func slot(p *inventory.AddrRange, i uint64) netip.Addr {
	high, low := number(p.First)
	low, carry := bits.Add64(low, i, 0)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], high+carry)
	binary.BigEndian.PutUint64(b[8:], low)
	if a := netip.AddrFrom16(b); p.First.Is6() {
		return a
	}
	return netip.AddrFrom4([4]byte(b[12:]))
}

// number is the address as one of 128 bits.
func number(a netip.Addr) (high, low uint64) {
	b := a.AsSlice()
	if len(b) == 4 {
		return 0, uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
}

// home is where the search for a machine's address begins. It depends on the
// hardware address alone, so that a lost lease table changes nothing, and two
// servers that do not see each other rarely choose the same address.
func home(mac inventory.MAC, n uint64) uint64 {
	h := fnv.New64a()
	h.Write([]byte(mac))
	// FNV's low bits are weak for addresses that differ in the last digit.
	v := h.Sum64()
	return (v ^ v>>32) % n
}

// kept is how many addresses at the end of the pool only declared machines get:
// one for each that has none of its own, so that no number of strangers keeps one
// of them waiting. Where the pool is smaller than that, an eighth is left to
// strangers, or none would ever be discovered.
func kept(n *inventory.Network, wanting uint64) uint64 {
	size := slots(n.Pool)
	return min(wanting, size-size/8)
}

// isKept reports whether an address of the pool is one of those.
func isKept(n *inventory.Network, a netip.Addr, keep uint64) bool {
	return keep > 0 && !a.Less(slot(n.Pool, slots(n.Pool)-keep))
}
