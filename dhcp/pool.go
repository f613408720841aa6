package dhcp

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"recast/inventory"
)

// slots is the number of addresses of a pool.
func slots(p *inventory.AddrRange) uint64 {
	if p == nil || !p.First.Is4() || !p.Last.Is4() || p.Last.Less(p.First) {
		return 0
	}
	return uint64(number(p.Last)) - uint64(number(p.First)) + 1
}

// slot is the pool's i-th address.
func slot(p *inventory.AddrRange, i uint64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(p.First)+uint32(i))
	return netip.AddrFrom4(b)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
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
