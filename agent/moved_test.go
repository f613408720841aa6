package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	"recast/inventory"
	"recast/pack"
)

const blockSize = pack.BlockSize

// rebuilt is an image of the same shape whose root partition holds what that of
// img holds at other places, but for a share of new blocks: as a file system
// that is made anew after an upgrade.
func rebuilt(img []byte, size int64, rng *rand.Rand, t testing.TB) []byte {
	t.Helper()
	out := gptImage(t, size, 1)
	from, to := img[2*MiB:len(img)-2*MiB], out[2*MiB:size-MiB-MiB/2]
	for len(to) >= blockSize {
		n := min((1+rng.IntN(300))*blockSize, len(to)/blockSize*blockSize)
		switch kind := rng.IntN(10); {
		case kind == 0:
			for i := 0; i < n; i += 8 {
				binary.LittleEndian.PutUint64(to[i:], rng.Uint64())
			}
		case kind == 1:
			clear(to[:n])
		default:
			at := rng.IntN(len(from)/blockSize) * blockSize
			n = copy(to[:n], from[at:]) / blockSize * blockSize
		}
		to = to[n:]
	}
	return out
}

// differ makes the difference between two images, has it served and names it in
// a job's image.
func differ(t testing.TB, s *bytesServer, job *inventory.JobImage, a, b *packed) *pack.Difference {
	t.Helper()
	var buf bytes.Buffer
	d, err := pack.WriteDifference(context.Background(), &buf, a.x, b.x, b.chunk)
	if err != nil {
		t.Fatal(err)
	}
	job.Index = inventory.DigestOf(b.index)
	job.Difference = &inventory.JobDifference{
		List: s.serve("list", d.Encode()), Pack: s.serve("difference", buf.Bytes()),
		From: inventory.NewDigest(a.m.Digest), FromSize: a.m.Size,
	}
	return d
}

// watchedDisk sees a block that is read, while the image is written, after it
// was written. Behind the images blocks are copied aside and read again.
type watchedDisk struct {
	Disk
	progress *Progress
	aside    int64

	mu      sync.Mutex
	written map[int64]bool
	bad     string
	// bytes read before the image is written, and reads while it is
	compared, reads int
	// read may change what was read while the image is written.
	read func(b []byte, off int64)
}

func (d *watchedDisk) look(b []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch step, _ := d.progress.step.Load().(inventory.AgentStep); step {
	case inventory.AgentWriting:
	case inventory.AgentComparing:
		d.compared += len(b) / 2 // looked at before and after
		return
	default:
		return
	}
	d.reads++
	for k := off / blockSize; k*blockSize < off+int64(len(b)); k++ {
		if d.written[k] && k*blockSize < d.aside {
			d.bad = fmt.Sprintf("block %d is read after it was written", k)
		}
	}
}

func (d *watchedDisk) ReadAt(b []byte, off int64) (int, error) {
	d.look(b, off)
	n, err := d.Disk.ReadAt(b, off)
	d.look(b, off)
	if step, _ := d.progress.step.Load().(inventory.AgentStep); d.read != nil && step == inventory.AgentWriting {
		d.read(b, off)
	}
	return n, err
}

func (d *watchedDisk) mark(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := off / blockSize; k*blockSize < off+n; k++ {
		d.written[k] = true
	}
}

func (d *watchedDisk) WriteAt(b []byte, off int64) (int, error) {
	d.mark(off, int64(len(b)))
	return d.Disk.WriteAt(b, off)
}

func (d *watchedDisk) Zero(off, n int64) error {
	d.mark(off, n)
	return d.Disk.Zero(off, n)
}

// watched puts the disk of a work under watch.
func watched(w *Work, aside int64) *watchedDisk {
	d := &watchedDisk{Disk: w.Disk, progress: w.Progress, aside: aside, written: map[int64]bool{}}
	w.Disk = d
	return d
}

// slots is the memory for a work that shall keep no more than n blocks in it.
func slots(p *packed, n int64) int64 { return 2 * max(n*blockSize, pack.IndexMemory(p.m)) }

func TestReimageFetchesTheDifference(t *testing.T) {
	a := packImage(t, gptImage(t, 24*MiB, 1))
	b := packImage(t, rebuilt(a.img, 26*MiB, rand.New(rand.NewPCG(1, 1)), t))
	for _, tt := range []struct {
		name   string
		size   int64
		memory int64
		all    bool // the difference has all of it
	}{
		{"all in memory", 64 * MiB, 128 * MiB, true},
		{"moved blocks behind the image", 64 * MiB, slots(b, 1), true},
		{"no room behind the image", 29 * MiB, slots(b, 1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk, _ := diskFile(t, tt.size, 0xA5)
			sa, sb := serveBytes(t, a), serveBytes(t, b)
			if _, err := Write(context.Background(), testWork(a, disk, nil, sa.URL)); err != nil {
				t.Fatal(err)
			}
			w := testWork(b, disk, bytes.Repeat([]byte{7}, MiB), sb.URL)
			w.Memory = tt.memory
			d := differ(t, sb, &w.Job.Image, a, b)
			watch := watched(&w, 26*MiB)
			if _, err := Write(context.Background(), w); err != nil {
				t.Fatal(err)
			}
			if watch.bad != "" {
				t.Error(watch.bad)
			}
			// It is what it should be: but for a few looks, what moves alone is read, once.
			if read := watch.compared; read > 8*MiB {
				t.Errorf("%d bytes were compared before the first was written", read)
			}
			want := wantDisk(t, b, tt.size, 0xA5, bytes.Repeat([]byte{7}, MiB))
			have := readAll(t, disk)
			if !bytes.Equal(have[:26*MiB], want[:26*MiB]) || !bytes.Equal(have[tt.size-2*MiB:], want[tt.size-2*MiB:]) {
				t.Error(firstDifference(have, want))
			}
			// Manifest, index, list, the difference, and the chunks of the table.
			most := int64(len(b.manifest)+len(b.index)+len(d.Encode())) + d.PackSize
			for _, i := range []int{0, 24, 25} {
				most += int64(b.m.Chunks[i].Length)
			}
			switch got := w.Progress.fetched.Load(); {
			case tt.all && got > most:
				t.Errorf("fetched %d bytes, want at most %d: the difference has %d of %d", got, most, d.PackSize, b.m.PackSize)
			case !tt.all && (got <= most || got > b.m.PackSize+most):
				t.Errorf("fetched %d bytes, want more than %d: chunks without room are fetched whole", got, most)
			}
		})
	}
}

// TestAnyDiskBecomesTheDeclaredOne writes over random disks with random
// differences, rooms and drift; none is trusted to be what was declared.
func TestAnyDiskBecomesTheDeclaredOne(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 5))
		size := func() int64 { return int64(6+rng.IntN(8))*MiB + 512*int64(rng.IntN(9)) }
		a := packImage(t, gptImage(t, size(), seed))
		b := packImage(t, rebuilt(a.img, size(), rng, t))
		room := []int64{1, 40, 4000}[rng.IntN(3)]
		total := max(a.m.Size, b.m.Size) + int64(3+rng.IntN(5))*MiB
		for _, holds := range []string{"the image it should", "that, drifted", "half of each", "another image", "nothing"} {
			disk, _ := diskFile(t, total, 0)
			before := make([]byte, total)
			switch holds {
			case "the image it should":
				copy(before, wantDisk(t, a, total, 0, nil))
			case "that, drifted":
				copy(before, wantDisk(t, a, total, 0, nil))
				for range 50 {
					before[rng.Int64N(total)] ^= 0x10
				}
			case "half of each":
				copy(before, a.img)
				copy(before[:len(b.img)/2], b.img)
			case "another image":
				copy(before, rebuilt(b.img, b.m.Size, rng, t))
			}
			if _, err := disk.WriteAt(before, 0); err != nil {
				t.Fatal(err)
			}
			s := serveBytes(t, b)
			w := testWork(b, disk, bytes.Repeat([]byte{3}, MiB/2), s.URL)
			w.Memory = slots(b, room)
			if rng.IntN(4) == 0 {
				w.Job.Image.Index = inventory.DigestOf(b.index)
			} else {
				differ(t, s, &w.Job.Image, a, b)
			}
			watch := watched(&w, alignUp(max(a.m.Size, b.m.Size)))
			if _, err := Write(context.Background(), w); err != nil {
				t.Fatalf("seed %d, disk with %s: %v", seed, holds, err)
			}
			if watch.bad != "" {
				t.Errorf("seed %d, disk with %s: %s", seed, holds, watch.bad)
			}
			have, want := readAll(t, disk), wantDisk(t, b, total, 0, bytes.Repeat([]byte{3}, MiB/2))
			if n := len(b.img); !bytes.Equal(have[:n], want[:n]) || !bytes.Equal(have[total-2*MiB:], want[total-2*MiB:]) {
				t.Errorf("seed %d, disk with %s: %s", seed, holds, firstDifference(have[:n], want[:n]))
			}
		}
	}
}

// TestReimageCutAnywhere stops a re-image by difference at each operation,
// loses a random part of what was not flushed, and goes on: by what the disk
// holds now, not by what it held.
func TestReimageCutAnywhere(t *testing.T) {
	const size = 12 * MiB
	rng := rand.New(rand.NewPCG(4, 4))
	a := packImage(t, gptImage(t, 6*MiB, 1))
	b := packImage(t, rebuilt(a.img, 6*MiB+512*5, rng, t))
	volume := bytes.Repeat([]byte("config! "), MiB/8)
	old, want := wantDisk(t, a, size, 0, volume), wantDisk(t, b, size, 0, volume)
	s := serveBytes(t, b)
	write := func(d *volatileDisk, stopAt int) (int, error) {
		o := &opDisk{Disk: d, stopAt: stopAt}
		w := testWork(b, o, volume, s.URL)
		w.Workers, w.Memory = 1, slots(b, 1)
		differ(t, s, &w.Job.Image, a, b)
		watch := watched(&w, 7*MiB)
		_, err := Write(context.Background(), w)
		if watch.bad != "" {
			t.Fatalf("stopped at operation %d: %s", stopAt, watch.bad)
		}
		return o.ops, err
	}
	fresh := func() *volatileDisk {
		return &volatileDisk{stable: bytes.Clone(old), pending: map[int64][]byte{}}
	}
	total, err := write(fresh(), 0)
	if err != nil {
		t.Fatal(err)
	}
	step := 1
	if testing.Short() {
		step = 5
	}
	for stop := 1; stop <= total; stop += step {
		d := fresh()
		if _, err := write(d, stop); !errors.Is(err, errCrash) {
			t.Fatalf("stopped at operation %d of %d: error %v", stop, total, err)
		}
		all := rng.IntN(3)
		d.crash(func() bool { return all == 1 || all == 2 && rng.IntN(2) == 0 })
		checkAfterCrash(t, stop, d.stable, old, want, int64(len(b.img)))
		if again := 1 + rng.IntN(total); rng.IntN(2) == 0 { // and cut a second time
			if _, err := write(d, again); err != nil && !errors.Is(err, errCrash) {
				t.Fatalf("stopped at operations %d and %d: %v", stop, again, err)
			}
			d.crash(func() bool { return rng.IntN(2) == 0 })
		}
		if _, err := write(d, 0); err != nil {
			t.Fatalf("resumed after operation %d: %v", stop, err)
		}
		d.crash(func() bool { return false })
		if have, n := d.stable, len(b.img); !bytes.Equal(have[:n], want[:n]) || !bytes.Equal(have[size-2*MiB:], want[size-2*MiB:]) {
			t.Fatalf("resumed after operation %d: the disk is not what was declared", stop)
		}
	}
}

func TestWithoutTheDifferenceTheImageIsFetched(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	a := packImage(t, gptImage(t, 8*MiB, 1))
	b := packImage(t, rebuilt(a.img, 8*MiB, rng, t))
	spoil := func(what string) func(*bytesServer, *watchedDisk) {
		return func(s *bytesServer, _ *watchedDisk) {
			s.spoil = func(kind string, _ int64, b []byte) []byte {
				if kind == what && len(b) > 0 {
					b[len(b)/2] ^= 1
				}
				return b
			}
		}
	}
	lack := func(what string) func(*bytesServer, *watchedDisk) {
		return func(s *bytesServer, _ *watchedDisk) {
			s.refuse = func(kind string) int {
				if kind == what {
					return http.StatusNotFound
				}
				return 0
			}
		}
	}
	for name, trouble := range map[string]func(*bytesServer, *watchedDisk){
		"no index": lack("index"), "no list": lack("list"), "no difference": lack("difference"),
		"index spoiled": spoil("index"), "list spoiled": spoil("list"), "difference spoiled": spoil("difference"),
		"the disk changes after it was looked at": func(_ *bytesServer, d *watchedDisk) {
			d.read = func(b []byte, off int64) { b[len(b)-1] ^= 1 }
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk, _ := diskFile(t, 16*MiB, 0)
			if _, err := disk.WriteAt(wantDisk(t, a, 16*MiB, 0, nil), 0); err != nil {
				t.Fatal(err)
			}
			s := serveBytes(t, b)
			w := testWork(b, disk, nil, s.URL)
			differ(t, s, &w.Job.Image, a, b)
			w.Memory = slots(b, 1) // what was looked at is read again
			trouble(s, watched(&w, 8*MiB))
			if _, err := Write(context.Background(), w); err != nil {
				t.Fatal(err)
			}
			have, want := readAll(t, disk), wantDisk(t, b, 16*MiB, 0, nil)
			clear(have[8*MiB : 15*MiB]) // what did not fit in memory was copied aside here
			if !bytes.Equal(have, want) {
				t.Error(firstDifference(have, want))
			}
		})
	}
}

// A block that moved must not be written while it is still wanted though the
// lease is looked at in between: each write has its own look.
func TestLeaseIsLookedAtBeforeEveryWriteOfADifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	a := packImage(t, gptImage(t, 8*MiB, 1))
	b := packImage(t, rebuilt(a.img, 8*MiB, rng, t))
	for _, at := range []int{5, 9, 16} {
		base, _ := diskFile(t, 16*MiB, 0)
		if _, err := base.WriteAt(wantDisk(t, a, 16*MiB, 0, nil), 0); err != nil {
			t.Fatal(err)
		}
		s := serveBytes(t, b)
		lease, lose := losableLease()
		after := 0
		w := testWork(b, &opDisk{Disk: base, onOp: func(n int) {
			if n == at {
				lose()
			} else if n > at {
				after++
			}
		}}, nil, s.URL)
		w.Lease, w.Workers, w.Memory = lease, 1, slots(b, 1)
		differ(t, s, &w.Job.Image, a, b)
		if _, err := Write(context.Background(), w); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("lease lost at operation %d: error %v", at, err)
		}
		// The walk, which copies aside, and the worker may each have passed the look.
		if after > 2 {
			t.Errorf("lease lost at operation %d: %d operations afterwards", at, after)
		}
		if have := readAll(t, base); !allZero(have[:MiB]) {
			t.Errorf("lease lost at operation %d: the disk boots", at)
		}
	}
}
