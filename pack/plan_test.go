package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func scanned(t testing.TB, disk []byte, m *Manifest, x *Index, table *Table, o ScanOptions) *Found {
	t.Helper()
	o.Workers = 3
	f, err := Scan(context.Background(), bytes.NewReader(disk), m, x, table, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPlanTellsWhatEachChunkNeeds(t *testing.T) {
	img := testImage(t, 9*MiB, 512)
	x, p := indexed(t, img, WriteOptions{})
	m := x.Manifest
	table, err := RenderTable(m, chunksOf(m, p), 32*MiB, 512, &ConfigPart{Size: 3 * MiB, Label: "CIDATA"})
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 32*MiB)
	for name, x := range map[string]*Index{"with an index": x, "without": nil} {
		clear(disk)
		plan := func() []Decision {
			t.Helper()
			return NewPlan(scanned(t, disk, m, x, table, ScanOptions{}), nil, 100).Chunks
		}
		//                 0       1      2      3     4     5     6     7      8
		blank := []Decision{Render, Fetch, Fetch, Right, Right, Right, Right, Fetch, Render}
		if diff := cmp.Diff(blank, plan()); diff != "" {
			t.Errorf("%s: blank disk (-want +got):\n%s", name, diff)
		}
		for i := range disk {
			disk[i] = 0xa5
		}
		noise := []Decision{Render, Fetch, Fetch, Zero, Zero, Zero, Zero, Fetch, Render}
		if diff := cmp.Diff(noise, plan()); diff != "" {
			t.Errorf("%s: disk full of noise (-want +got):\n%s", name, diff)
		}
		// Do what was said; then all is right but for the table, and only then.
		for i, d := range noise {
			switch at := disk[i*ChunkSize:][:m.ChunkLen(i)]; d {
			case Zero:
				clear(at)
			case Fetch:
				copy(at, img[i*ChunkSize:])
			case Render:
				copy(at, table.Chunks[i].Disk)
			}
		}
		done := make([]Decision, 9)
		done[0], done[8] = Render, Render
		if diff := cmp.Diff(done, plan()); diff != "" {
			t.Errorf("%s: written disk (-want +got):\n%s", name, diff)
		}
		for i := range m.Chunks {
			disk[i*ChunkSize+777] ^= 1
			have := disk[i*ChunkSize:][:m.ChunkLen(i)]
			if d := Decide(m, table, i, have); d != noise[i] {
				t.Errorf("bit flipped in chunk %d: %s, want %s", i, d, noise[i])
			}
			// With an index blocks of chunk 7 are found beside it: it repeats itself.
			if got := plan()[i]; got != noise[i] && (x == nil || i != 7 || got != Elsewhere) {
				t.Errorf("%s: bit flipped in chunk %d: %s, want %s", name, i, got, noise[i])
			}
			disk[i*ChunkSize+777] ^= 1
		}
	}
}

// shuffled makes an image of blocks out of the others' blocks, some of its own
// and zeros: runs that moved, as a file system that is made anew has.
func shuffled(rng *rand.Rand, blocks int, others ...[]byte) []byte {
	out := make([]byte, 0, blocks*BlockSize)
	for len(out) < blocks*BlockSize {
		n := 1 + rng.IntN(40)
		if rng.IntN(6) == 0 {
			n += 600
		}
		n = min(n, blocks-len(out)/BlockSize)
		switch kind := rng.IntN(8); {
		case kind == 0:
			out = append(out, make([]byte, n*BlockSize)...)
		case kind == 1 || len(others) == 0:
			for range n {
				b := make([]byte, BlockSize)
				for i := 0; i < 16; i++ { // quick to make and to compress
					b[rng.IntN(BlockSize)] = byte(1 + rng.IntN(255))
				}
				out = append(out, b...)
			}
		default:
			from := others[rng.IntN(len(others))]
			at := rng.IntN(len(from)/BlockSize - min(n, len(from)/BlockSize) + 1)
			if kind < 5 { // near where it was
				at = min(max(0, len(out)/BlockSize+rng.IntN(200)-100), at)
			}
			out = append(out, from[at*BlockSize:][:min(n*BlockSize, len(from)-at*BlockSize)]...)
		}
	}
	return out
}

// plainDisk is an image without a table: the plan alone is looked at here.
func plainDisk(t testing.TB, content []byte) (*Index, []byte) {
	t.Helper()
	copy(content, make([]byte, 4*BlockSize))
	return indexed(t, content, WriteOptions{Workers: 2})
}

// carryOut does what a plan says to disk, chunk by chunk in the plan's order but
// writing each as soon as it is let go of, and fails where a block is read that
// was written before. It returns how many bytes were taken from the two packs.
func carryOut(t testing.TB, disk []byte, p *Plan, img []byte, d *Difference, diffPack []byte) {
	t.Helper()
	m := p.found.m
	written := make([]bool, len(disk)/BlockSize+1)
	read := func(at uint32) []byte {
		if written[at] {
			t.Fatalf("block %d of the disk is read after it was written", at)
		}
		return block(disk, int(at))
	}
	slots, keep := make([][]byte, p.Slots), p.Keep
	for i, dec := range p.Chunks {
		chunk := make([]byte, m.ChunkLen(i))
		switch dec {
		case Right:
			copy(chunk, disk[i*ChunkSize:])
		case Fetch:
			copy(chunk, img[i*ChunkSize:])
		case Elsewhere:
			for b, from := range p.Blocks(i) {
				at := chunk[b*BlockSize:]
				switch from.Decision {
				case Right, Elsewhere:
					copy(at, read(from.At))
				case Kept:
					copy(at, slots[from.At])
				case Fetch:
					f := int(from.At) / blocksPerChunk
					raw, err := d.Decode(f, diffPack[d.Frames[f].Offset:][:d.Frames[f].Length], nil)
					if err != nil {
						t.Fatal(err)
					}
					copy(at, raw[int(from.At)%blocksPerChunk*BlockSize:][:BlockSize])
				}
			}
		}
		for ; len(keep) > 0 && int(keep[0].From)/blocksPerChunk == i; keep = keep[1:] {
			slots[keep[0].Slot] = bytes.Clone(read(keep[0].From))
		}
		if Decide(m, nil, i, chunk) != Right {
			t.Fatalf("chunk %d (%s) is not the image's", i, dec)
		}
		for _, r := range p.Wrong(i) {
			copy(disk[int64(i)*ChunkSize+r.Start:], chunk[r.Start:r.End])
			for b := r.Start / BlockSize; b*BlockSize < r.End; b++ {
				written[i*blocksPerChunk+int(b)] = true
			}
		}
	}
	if len(keep) > 0 {
		t.Fatalf("%d blocks were never kept", len(keep))
	}
}

// TestAnyDiskBecomesTheImage is over random images, disks and rooms: the walk
// ends with the image, reads nothing that was written, and needs no more slots
// than there is room.
func TestAnyDiskBecomesTheImage(t *testing.T) {
	moved, kept, dropped := 0, 0, 0
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		a := shuffled(rng, 300+rng.IntN(1500))
		b := shuffled(rng, 300+rng.IntN(1500), a)
		b = b[:len(b)-512*rng.IntN(8)]
		xa, _ := plainDisk(t, a)
		xb, pb := plainDisk(t, b)
		var diffPack bytes.Buffer
		d, err := WriteDifference(context.Background(), &diffPack, xa, xb, chunksOf(xb.Manifest, pb))
		if errors.Is(err, ErrNoDifference) {
			d = nil
		} else if err != nil {
			t.Fatal(err)
		}
		for name, disk := range map[string][]byte{
			"the other image": bytes.Clone(a), "drifted": bytes.Clone(a), "half of each": bytes.Clone(a), "another": shuffled(rng, 900, b),
		} {
			disk = append(disk, make([]byte, max(0, max(len(a), len(b))+BlockSize-len(disk)))...)
			switch name {
			case "drifted":
				for range 20 {
					disk[rng.IntN(len(disk))] ^= 0x55
				}
			case "half of each":
				copy(disk, b[:len(b)/2/512*512])
			}
			room := []int{0, 5, 50, 10000}[rng.IntN(4)]
			f := scanned(t, disk, xb.Manifest, xb, nil, ScanOptions{Size: max(int64(len(a)), int64(len(b)))})
			// The ends are zeroed before anything is written.
			clear(disk[:MiB])
			f.Lose(0, MiB, true)
			from := xb.Manifest.Size - MiB/2/512*512
			clear(disk[from:xb.Manifest.Size])
			f.Lose(from, xb.Manifest.Size, true)
			p := NewPlan(f, d, room)
			if p.Slots > room {
				t.Fatalf("seed %d, %s: %d slots in a room for %d", seed, name, p.Slots, room)
			}
			carryOut(t, disk, p, b, d, diffPack.Bytes())
			if !bytes.Equal(disk[:len(b)], b) {
				t.Fatalf("seed %d, %s, room %d: the disk is not the image", seed, name, room)
			}
			kept += len(p.Keep)
			for i, dec := range p.Chunks {
				if dec == Elsewhere {
					moved++
				}
				if dec == Fetch && name == "the other image" && room < 50 && i > 0 {
					dropped++
				}
			}
		}
	}
	if moved == 0 || kept == 0 || dropped == 0 {
		t.Errorf("%d chunks put together, %d blocks kept, %d chunks without room: a case was never met", moved, kept, dropped)
	}
}

func TestDifferenceHoldsWhatIsNowhereInTheOther(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	a := shuffled(rng, 2000)
	b := append(bytes.Clone(a[:MiB]), shuffled(rng, 1700, a)...)
	xa, _ := plainDisk(t, a)
	xb, pb := plainDisk(t, b)
	var diffPack, again bytes.Buffer
	d, err := WriteDifference(context.Background(), &diffPack, xa, xb, chunksOf(xb.Manifest, pb))
	if err != nil {
		t.Fatal(err)
	}
	if e, err := WriteDifference(context.Background(), &again, xa, xb, chunksOf(xb.Manifest, pb)); err != nil || !bytes.Equal(again.Bytes(), diffPack.Bytes()) || !bytes.Equal(d.Encode(), e.Encode()) {
		t.Errorf("made again it is another (%v)", err)
	}
	inA := map[string]bool{string(make([]byte, BlockSize)): true}
	for k := MiB / BlockSize; k < (len(a)-MiB)/BlockSize; k++ {
		if off := k * BlockSize; off+BlockSize <= len(b)-MiB || off >= len(b) {
			inA[string(a[off:][:BlockSize])] = true
		}
	}
	var want []uint32
	for k := blocksPerChunk; k < len(b)/BlockSize; k++ {
		if !inA[string(b[k*BlockSize:][:BlockSize])] {
			want = append(want, uint32(k))
		}
	}
	if diff := cmp.Diff(want, d.Blocks); diff != "" || len(want) == 0 {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	e, err := ParseDifference(d.Encode(), xb)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Expect(xa, xb).mib, e.Expect(nil).mib, cmp.Comparer(sameBlocks)); diff != "" {
		t.Errorf("what stands where (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(d.Blocks, e.Blocks); diff != "" || e.Pack != d.Pack || e.PackSize != int64(diffPack.Len()) {
		t.Errorf("read again it is another: %s", diff)
	}
	frame := bytes.Clone(diffPack.Bytes()[:d.Frames[0].Length])
	if _, err := d.Decode(0, frame, nil); err != nil {
		t.Error(err)
	}
	frame[len(frame)/2] ^= 1
	if _, err := d.Decode(0, frame, nil); !errors.Is(err, ErrBadFrame) {
		t.Errorf("a spoiled frame: %v", err)
	}
	// An image apart in everything is better sent whole.
	xc, _ := plainDisk(t, shuffled(rand.New(rand.NewPCG(8, 8)), 600))
	if _, err := WriteDifference(context.Background(), io.Discard, xc, xb, chunksOf(xb.Manifest, pb)); !errors.Is(err, ErrNoDifference) {
		t.Logf("the difference from nothing: %v", err)
	}
}

func TestPlanForeseesWhatADiskWillTake(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 1))
	a := shuffled(rng, 2000)
	b := shuffled(rng, 2000, a)
	xa, _ := plainDisk(t, a)
	xb, pb := plainDisk(t, b)
	d, err := WriteDifference(context.Background(), io.Discard, xa, xb, chunksOf(xb.Manifest, pb))
	if err != nil {
		t.Fatal(err)
	}
	f := scanned(t, append(a, make([]byte, MiB)...), xb.Manifest, xb, nil, ScanOptions{})
	f.Lose(0, MiB, false)
	f.Lose(int64(len(b))-MiB, int64(len(b)), false)
	want, got := NewPlan(f, d, 1<<20), NewPlan(Expect(xa, xb), d, 1<<20)
	if want.Fetched != got.Fetched || want.Written != got.Written {
		t.Errorf("%d fetched and %d written were foreseen, %d and %d it was", got.Fetched, got.Written, want.Fetched, want.Written)
	}
	if whole := xb.Manifest.PackSize; got.Fetched == 0 || got.Fetched > whole {
		t.Errorf("%d to fetch of %d", got.Fetched, whole)
	}
}

// countingDisk holds one byte everywhere and counts what is read.
type countingDisk struct {
	fill byte
	n    atomic.Int64
}

func (d *countingDisk) ReadAt(b []byte, _ int64) (int, error) {
	d.n.Add(int64(len(b)))
	for i := range b {
		b[i] = d.fill
	}
	return len(b), nil
}

func TestDiskWithNothingOfTheImageIsNotReadWhole(t *testing.T) {
	img := bytes.Repeat([]byte{7}, MiB)
	m := &Manifest{Size: 400 * MiB, Chunks: make([]Chunk, 400)}
	for i := range m.Chunks {
		m.Chunks[i] = Chunk{Sum: sha256.Sum256(img), Hole: i >= 300}
	}
	for fill, want := range map[byte]int64{7: 400, 8: 64 + 100, 0: 64 + 100} {
		d := &countingDisk{fill: fill}
		f, err := Scan(context.Background(), d, m, nil, nil, ScanOptions{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.n.Load() / MiB; got != want {
			t.Errorf("disk full of %d: %d MiB are read, want %d", fill, got, want)
		}
		for i, got := range NewPlan(f, nil, 0).Chunks {
			want := Fetch
			switch hole := i >= 300; {
			case hole && fill != 0:
				want = Zero
			case hole || fill == 7:
				want = Right
			}
			if got != want {
				t.Fatalf("disk full of %d: chunk %d is %s, want %s", fill, i, got, want)
			}
		}
	}
}

func TestIndexIsTheSameHoweverItWasMade(t *testing.T) {
	img := testImage(t, 9*MiB-512*3, 512)
	x, p := indexed(t, img, WriteOptions{})
	y, err := NewIndex(context.Background(), x.Manifest, chunksOf(x.Manifest, p))
	if err != nil {
		t.Fatal(err)
	}
	b := x.Encode()
	if !bytes.Equal(b, y.Encode()) {
		t.Error("made from frames it is another")
	}
	z, err := ParseIndex(b, x.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if z.Blocks() != len(img)/BlockSize+1 {
		t.Errorf("%d blocks", z.Blocks())
	}
	for k := range z.Blocks() {
		padded := make([]byte, BlockSize)
		copy(padded, img[k*BlockSize:])
		sum := SumBlock(padded)
		if z.Sum(k) != sum {
			t.Fatalf("block %d has another sum", k)
		}
		if sum == (BlockSum{}) {
			continue
		}
		if first, ok := z.Find(sum); !ok || first > k || z.Sum(first) != sum {
			t.Fatalf("block %d is found at %d, %t", k, first, ok)
		}
	}
	if _, ok := z.Find(BlockSum{1, 2, 3}); ok {
		t.Error("a block that is not there was found")
	}
	other, _ := indexed(t, testImage(t, 8*MiB, 512), WriteOptions{})
	for name, c := range map[string]struct {
		b    []byte
		says string
	}{
		"another image's": {other.Encode(), "parse index"},
		"too long":        {make([]byte, MaxIndexSize(x.Manifest)+1), "more than the limit"},
		"cut":             {b[:len(b)-5], "parse index"},
		"nothing":         {nil, "want"},
	} {
		if _, err := ParseIndex(c.b, x.Manifest); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadEndsWithTheFirstError(t *testing.T) {
	img := make([]byte, 9*MiB)
	none := func(int, []byte) error { return nil }
	nine := []int{0, 1, 2, 3, 4, 5, 6, 7, 8}
	err := Read(context.Background(), bytes.NewReader(img[:5*MiB]), 9*MiB, nine, 2, none)
	if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "byte 5242880") {
		t.Errorf("short disk: %v", err)
	}
	err = Read(context.Background(), bytes.NewReader(img), 9*MiB, nine, 2, func(int, []byte) error { return errBroken })
	if !errors.Is(err, errBroken) {
		t.Errorf("callback: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err = Read(ctx, bytes.NewReader(img), 9*MiB, nine, 2, none); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func FuzzIndex(f *testing.F) {
	x, _ := indexed(f, testImage(f, 5*MiB, 512), WriteOptions{})
	b := x.Encode()
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		y, err := ParseIndex(b, x.Manifest)
		if err != nil {
			return
		}
		if z, err := ParseIndex(y.Encode(), x.Manifest); err != nil || fmt.Sprint(z.sums) != fmt.Sprint(y.sums) {
			t.Fatalf("what was read cannot be written and read again: %v", err)
		}
	})
}

func FuzzDifference(f *testing.F) {
	rng := rand.New(rand.NewPCG(7, 1))
	a := shuffled(rng, 900)
	xa, _ := plainDisk(f, a)
	xb, pb := plainDisk(f, shuffled(rng, 900, a))
	d, err := WriteDifference(context.Background(), io.Discard, xa, xb, chunksOf(xb.Manifest, pb))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.Encode())
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDifference(b, xb)
		if err != nil {
			return
		}
		if !bytes.Equal(d.Encode(), b) {
			t.Fatal("another spelling was read")
		}
		for f := range d.Frames {
			if n := d.Len(f); n < 1 || n > blocksPerChunk {
				t.Fatalf("frame %d holds %d blocks", f, n)
			}
		}
		NewPlan(d.Expect(nil), d, 50)
	})
}

// sameBlocks compares MiBs; what is not there is foreign.
func sameBlocks(x, y []content) bool {
	f := Found{mib: [][]content{x, y}}
	for b := range blocksPerChunk {
		if f.at(b) != f.at(blocksPerChunk+b) {
			return false
		}
	}
	return true
}

// Of what a scan read, whoever carries out the plan can keep what will be read
// once more: the MiBs with blocks of the image that are not all right as they are.
func TestScanOffersWhatWillBeReadAgain(t *testing.T) {
	img := make([]byte, 6*MiB)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range img[:5*MiB] { // a hole at the end
		img[i] = byte(rng.Uint32())
	}
	x, _ := plainDisk(t, img)
	disk := append(bytes.Clone(img), make([]byte, MiB)...)
	copy(disk[2*MiB+7*BlockSize:], img[3*MiB:3*MiB+BlockSize]) // out of its place
	for i := range disk[4*MiB : 5*MiB] {                       // nothing of the image
		disk[4*MiB+i] = byte(i)
	}
	disk[5*MiB+9] = 1                  // a hole that is none, with nothing of the image else
	copy(disk[6*MiB:], img[MiB:2*MiB]) // behind the image
	held := make([][]byte, 7)
	scanned(t, disk, x.Manifest, x, nil, ScanOptions{Size: 7 * MiB, Hold: func(i int, have []byte) bool {
		held[i] = have
		return true
	}})
	for i, have := range held {
		if want := i == 2 || i == 6; want != (have != nil) {
			t.Errorf("MiB %d offered: %t, want %t", i, have != nil, want)
		} else if want && !bytes.Equal(have, disk[i*MiB:(i+1)*MiB]) {
			t.Errorf("MiB %d was used for another", i)
		}
	}
}
