package pack

import "slices"

// Plan is the one walk over an image: what has to happen to each of its chunks,
// in order. First write, re-image and repair differ only in what was found.
//
// Who carries it out takes the chunks in order. For each it reads first what
// Blocks and Keep name, then lets go of it; it may be written any time after
// that. So no block is read after it may have been overwritten.
type Plan struct {
	Chunks []Decision
	// Keep are blocks of the disk to be copied aside, ascending by From: when the
	// walk comes to the chunk that From lies in, into the slot. A slot is used
	// again once nobody wants what is in it.
	Keep []Keep
	// Slots is how many there are; those from room on lie on the disk.
	Slots int
	// Frames of the difference that are needed, ascending.
	Frames []int
	// Fetched and Written are bytes: of frames, and of the disk.
	Fetched, Written int64

	found  *Found
	diff   *Difference
	blocks [][]Block // of the chunks that are put together
}

// Block is where one block of an image comes from. At is the disk's block for
// Elsewhere and Right, the slot for Kept, the place in Difference.Blocks for Fetch.
type Block struct {
	Decision Decision
	At       uint32
}

// Keep is one block that moves to a place behind its own.
type Keep struct {
	From, Slot uint32
	content    content
	users      []int // chunks, ascending
}

// NewPlan decides. A nil difference stands for none. room is how many blocks may
// be kept aside at a time; a chunk that would need more is fetched as a whole,
// and so is one of which a block is nowhere.
func NewPlan(f *Found, d *Difference, room int) *Plan {
	p := &Plan{Chunks: make([]Decision, len(f.m.Chunks)), found: f, diff: d, blocks: make([][]Block, len(f.m.Chunks))}
	src := f.sources()
	keeps := map[content]*Keep{}
	for i := range p.Chunks {
		if p.Chunks[i] = p.decide(i, src); p.Chunks[i] != Elsewhere {
			continue
		}
		for _, b := range p.blocks[i] {
			if b.Decision != Kept {
				continue
			}
			c := f.at(int(b.At))
			k := keeps[c]
			if k == nil {
				k = &Keep{From: b.At, content: c}
				keeps[c] = k
			}
			if n := len(k.users); n == 0 || k.users[n-1] != i {
				k.users = append(k.users, i)
			}
		}
	}
	p.stage(keeps, room)
	p.count()
	return p
}

// sources gives for each content where on the disk it is best read: a place that
// is never written if there is one, else the last, which is there the longest.
type sources [][]uint32 // by the content's block of the image; 1 + the disk's block

func (s sources) of(c content) (p int, ok bool) {
	if c < firstBlock {
		return 0, false
	}
	k := int(c - firstBlock)
	if s[k/blocksPerChunk] == nil {
		return 0, false
	}
	p = int(s[k/blocksPerChunk][k%blocksPerChunk]) - 1
	return p, p >= 0
}

func (f *Found) sources() sources {
	s := make(sources, len(f.m.Chunks))
	if f.x == nil {
		return s
	}
	for i, mib := range f.mib {
		for b, c := range mib {
			if c < firstBlock {
				continue
			}
			p, k := i*blocksPerChunk+b, int(c-firstBlock)
			if old, ok := s.of(c); ok && f.stays(old) {
				continue
			}
			if s[k/blocksPerChunk] == nil {
				s[k/blocksPerChunk] = make([]uint32, blocksPerChunk)
			}
			s[k/blocksPerChunk][k%blocksPerChunk] = uint32(p) + 1
		}
	}
	return s
}

// stays says that nothing will be written to block p of the disk.
func (f *Found) stays(p int) bool {
	return p/blocksPerChunk >= len(f.m.Chunks) || p < int((f.m.Size+BlockSize-1)/BlockSize) && f.right(p)
}

// decide fills p.blocks[i] where it says Elsewhere. A block that moves to a
// place behind its own is Kept there, with its place on the disk.
func (p *Plan) decide(i int, src sources) Decision {
	f := p.found
	if f.rendered(i) {
		return Render
	}
	n := blocksFor(f.m.ChunkLen(i), BlockSize)
	first := i * blocksPerChunk
	right := 0
	for right < n && f.right(first+right) {
		right++
	}
	switch {
	case right == n:
		return Right
	case f.m.Chunks[i].Hole:
		return Zero
	case f.x == nil:
		return Fetch
	}
	blocks := make([]Block, n)
	for b := range blocks {
		k := first + b
		want := f.want(k)
		if f.right(k) {
			blocks[b] = Block{Right, uint32(k)}
		} else if want == zeros {
			blocks[b] = Block{Decision: Zero}
		} else if from, ok := src.of(want); ok && (from/blocksPerChunk >= i || f.stays(from)) {
			blocks[b] = Block{Elsewhere, uint32(from)}
		} else if ok {
			blocks[b] = Block{Kept, uint32(from)}
		} else if at, ok := p.diff.find(k); ok {
			blocks[b] = Block{Fetch, uint32(at)}
		} else {
			return Fetch
		}
	}
	p.blocks[i] = blocks
	return Elsewhere
}

// stage gives each block that has to be kept a slot, from when its chunk is
// passed until the last chunk that wants it, and lets chunks be fetched as a
// whole where there is no slot.
func (p *Plan) stage(keeps map[content]*Keep, room int) {
	order := make([]*Keep, 0, len(keeps))
	for _, k := range keeps {
		order = append(order, k)
	}
	slices.SortFunc(order, func(a, b *Keep) int { return int(int64(a.From) - int64(b.From)) })
	wanted := map[int][]*Keep{} // by the chunk that wants it
	for _, k := range order {
		for _, i := range k.users {
			wanted[i] = append(wanted[i], k)
		}
	}
	var free []uint32
	held := map[*Keep]bool{}
	release := func(i int) { // chunk i wants nothing any more
		for _, k := range wanted[i] {
			k.users = slices.DeleteFunc(k.users, func(u int) bool { return u == i })
			if len(k.users) == 0 && held[k] {
				free = append(free, k.Slot)
				delete(held, k)
			}
		}
		delete(wanted, i)
	}
	slot := map[content]uint32{}
	for i := range p.Chunks {
		if p.Chunks[i] == Elsewhere {
			for b := range p.blocks[i] {
				if from := &p.blocks[i][b]; from.Decision == Kept {
					from.At = slot[p.found.at(int(from.At))]
				}
			}
		}
		release(i)
		for ; len(order) > 0 && int(order[0].From)/blocksPerChunk == i; order = order[1:] {
			k := order[0]
			switch {
			case len(k.users) == 0:
				continue
			case len(free) > 0:
				k.Slot, free = free[len(free)-1], free[:len(free)-1]
			case p.Slots < room:
				k.Slot = uint32(p.Slots)
				p.Slots++
			default:
				for _, u := range slices.Clone(k.users) {
					p.Chunks[u], p.blocks[u] = Fetch, nil
					release(u)
				}
				continue
			}
			held[k] = true
			slot[k.content] = k.Slot
			p.Keep = append(p.Keep, Keep{From: k.From, Slot: k.Slot})
		}
	}
}

func (p *Plan) count() {
	f := p.found
	for i, d := range p.Chunks {
		switch d {
		case Right:
			continue
		case Render, Zero:
			p.Written += int64(f.m.ChunkLen(i))
			continue
		case Fetch:
			p.Fetched += int64(f.m.Chunks[i].Length)
		}
		for b, at := 0, 0; b < blocksFor(f.m.ChunkLen(i), BlockSize); b++ {
			if !f.right(i*blocksPerChunk + b) {
				p.Written += BlockSize
			}
			if d != Elsewhere || p.blocks[i][b].Decision != Fetch {
				continue
			}
			at = int(p.blocks[i][b].At) / blocksPerChunk
			if n := len(p.Frames); n == 0 || p.Frames[n-1] != at {
				p.Frames = append(p.Frames, at)
				p.Fetched += int64(p.diff.Frames[at].Length)
			}
		}
	}
}

// Blocks of chunk i, where they come from; nil unless it is Elsewhere.
func (p *Plan) Blocks(i int) []Block { return p.blocks[i] }

// Region is the bytes from Start up to End.
type Region struct{ Start, End int64 }

// Wrong are the bytes of chunk i, counted from its start, that are to be written.
func (p *Plan) Wrong(i int) []Region {
	var out []Region
	n := int64(p.found.m.ChunkLen(i))
	for b := int64(0); b*BlockSize < n; b++ {
		if p.found.right(i*blocksPerChunk + int(b)) {
			continue
		}
		start, end := b*BlockSize, min((b+1)*BlockSize, n)
		if k := len(out) - 1; k >= 0 && out[k].End == start {
			out[k].End = end
		} else {
			out = append(out, Region{start, end})
		}
	}
	return out
}
