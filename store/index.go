package store

import (
	"sort"
	"strings"
)

// index holds records in key order in memory: blocks of a few hundred, so that
// an insertion moves little however many records there are. The records it
// points to are never changed, only replaced.
type index struct {
	blocks [][]*Record // none empty; keys ascending within and across
	count  int
}

const blockSize = 512

// find returns the block that holds key or would hold it, and the place in it.
func (x *index) find(key string) (block, at int, found bool) {
	// The last block whose first key is not above key.
	block = sort.Search(len(x.blocks), func(i int) bool { return x.blocks[i][0].Key > key }) - 1
	if block < 0 {
		return 0, 0, false
	}
	b := x.blocks[block]
	at = sort.Search(len(b), func(i int) bool { return b[i].Key >= key })
	return block, at, at < len(b) && b[at].Key == key
}

func (x *index) get(key string) *Record {
	if b, i, ok := x.find(key); ok {
		return x.blocks[b][i]
	}
	return nil
}

func (x *index) put(r *Record) {
	b, i, ok := x.find(r.Key)
	if ok {
		x.blocks[b][i] = r
		return
	}
	x.count++
	if len(x.blocks) == 0 {
		x.blocks = append(x.blocks, append(make([]*Record, 0, blockSize), r))
		return
	}
	blk := x.blocks[b]
	blk = append(blk, nil)
	copy(blk[i+1:], blk[i:])
	blk[i] = r
	x.blocks[b] = blk
	if len(blk) < blockSize {
		return
	}
	half := len(blk) / 2
	if b == len(x.blocks)-1 {
		half = len(blk) - blockSize/8 // keys that only ever grow leave full blocks behind
	}
	right := append(make([]*Record, 0, blockSize), blk[half:]...)
	clear(blk[half:])
	x.blocks[b] = blk[:half]
	x.blocks = append(x.blocks, nil)
	copy(x.blocks[b+2:], x.blocks[b+1:])
	x.blocks[b+1] = right
}

func (x *index) delete(key string) {
	b, i, ok := x.find(key)
	if !ok {
		return
	}
	x.count--
	blk := x.blocks[b]
	copy(blk[i:], blk[i+1:])
	blk[len(blk)-1] = nil
	x.blocks[b] = blk[:len(blk)-1]
	if len(blk) == 1 {
		x.blocks = append(x.blocks[:b], x.blocks[b+1:]...)
	}
}

// list returns the records under prefix by key.
func (x *index) list(prefix string) []*Record {
	var out []*Record
	if prefix == "" {
		out = make([]*Record, 0, x.count)
	}
	b, i, _ := x.find(prefix)
	for ; b < len(x.blocks); b, i = b+1, 0 {
		for _, r := range x.blocks[b][i:] {
			if !strings.HasPrefix(r.Key, prefix) {
				return out
			}
			out = append(out, r)
		}
	}
	return out
}
