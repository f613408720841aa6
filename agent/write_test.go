package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"recast/inventory"
)

const testImageSize = 9*MiB + 512*3

func TestWriteMakesTheDeclaredDisk(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	volume := bytes.Repeat([]byte("config! "), MiB/8)
	for _, tt := range []struct {
		name   string
		size   int64
		volume []byte
		wipe   inventory.WipeMode
	}{
		{"larger disk with config", 16 * MiB, volume, inventory.WipeTable},
		{"larger disk without config", 16 * MiB, nil, inventory.WipeTable},
		{"disk as large as the image", testImageSize, nil, inventory.WipeTable},
		{"disk a few blocks larger", testImageSize + 512*9, nil, inventory.WipeTable},
		{"smallest disk with config", 12 * MiB, volume, inventory.WipeTable},
		{"odd size with config", 16*MiB + 512*77, volume, inventory.WipeTable},
		{"discard behind the image", 24 * MiB, volume, inventory.WipeDiscard},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serveBytes(t, p)
			d, _ := diskFile(t, tt.size, 0xA5)
			w := testWork(p, d, tt.volume, s.URL)
			w.Job.Wipe = tt.wipe
			got, err := Write(context.Background(), w)
			if err != nil {
				t.Fatal(err)
			}
			if got.Image.String() != p.m.Digest.String() {
				t.Errorf("read back %s, want %s", got.Image, p.m.Digest)
			}
			have, want := readAll(t, d), wantDisk(t, p, tt.size, 0xA5, tt.volume)
			if tt.wipe == inventory.WipeDiscard {
				// What a discarded block reads as is undefined; only the rest counts.
				copy(have[testImageSize:22*MiB], want[testImageSize:22*MiB])
			}
			if !bytes.Equal(have, want) {
				t.Error(firstDifference(have, want))
			}
			if have := inventory.DigestOf(slices.Concat(want[:MiB], want[tt.size-MiB:])); got.Table != have {
				t.Errorf("table %s, want %s", got.Table, have)
			}
			var r inventory.Report
			w.Progress.fill(&r)
			if !r.Erased || r.Fetched == 0 || r.Written == 0 {
				t.Errorf("progress %+v: want erased, fetched and written", r)
			}
		})
	}
}

func TestSecondWriteFetchesOnlyWhatDiffers(t *testing.T) {
	img := gptImage(t, 32*MiB, 1)
	p := packImage(t, img)
	s := serveBytes(t, p)
	d, _ := diskFile(t, 40*MiB, 0xA5)
	if _, err := Write(context.Background(), testWork(p, d, nil, s.URL)); err != nil {
		t.Fatal(err)
	}
	next := bytes.Clone(img)
	next[5*MiB+17] ^= 1
	clear(next[6*MiB : 7*MiB]) // data becomes a hole
	p2 := packImage(t, next)
	s2 := serveBytes(t, p2)
	w := testWork(p2, d, nil, s2.URL)
	if _, err := Write(context.Background(), w); err != nil {
		t.Fatal(err)
	}
	if have, want := readAll(t, d), wantDisk(t, p2, 40*MiB, 0xA5, nil); !bytes.Equal(have, want) {
		t.Error(firstDifference(have, want))
	}
	// The changed chunk, the two of the tables, the manifest; of 21 data chunks.
	if got := w.Progress.fetched.Load(); got > 5*MiB {
		t.Errorf("fetched %d bytes for one changed MiB", got)
	}
}

func TestRefusalsBeforeTheFirstByte(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	for _, tt := range []struct {
		name   string
		break_ func(w *Work, s *bytesServer)
		want   string
		frame  *int
	}{
		{"another serial", func(w *Work, _ *bytesServer) { w.Job.Disk.Serial = "S2" }, `serial "S1", the job is for "S2"`, nil},
		{"another size", func(w *Work, _ *bytesServer) { w.Job.Disk.Size++ }, "the job is for one of", nil},
		{"a WWN that the disk lacks", func(w *Work, _ *bytesServer) { w.Job.Disk.WWN = "0x5" }, "WWN", nil},
		{"no identity", func(w *Work, _ *bytesServer) { w.Job.Disk.Serial = "" }, "names no disk", nil},
		{"another block size", func(w *Work, _ *bytesServer) { w.Job.Disk.LogicalBlockSize = 4096 }, "blocks of 512 bytes", nil},
		{"manifest spoiled", func(_ *Work, s *bytesServer) {
			s.spoil = func(kind string, _ int64, b []byte) []byte {
				if kind == "manifest" {
					b[len(b)/2] ^= 1
				}
				return b
			}
		}, "manifest was wrong twice", ptr(-1)},
		{"manifest of another image", func(w *Work, _ *bytesServer) { w.Job.Image.Size++ }, "it describes image", ptr(-1)},
		{"first frame spoiled", func(_ *Work, s *bytesServer) {
			s.spoil = func(kind string, off int64, b []byte) []byte {
				if kind == "pack" && off == 0 {
					b[20] ^= 1
				}
				return b
			}
		}, "frame 0 was wrong twice", ptr(0)},
		{"config spoiled", func(w *Work, _ *bytesServer) { w.Job.Config.Digest = inventory.DigestOf(nil) }, "config volume has digest", nil},
		{"images gone", func(_ *Work, s *bytesServer) { s.refuse = func(string) int { return http.StatusNotFound } }, "404", nil},
		{"lease gone", func(w *Work, _ *bytesServer) { w.Lease = NewLease(nil) }, ErrLeaseLost.Error(), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serveBytes(t, p)
			d, _ := diskFile(t, 16*MiB, 0xA5)
			w := testWork(p, d, make([]byte, MiB), s.URL)
			tt.break_(&w, s)
			_, err := Write(context.Background(), w)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			bad := new(BadFrameError)
			if errors.As(err, &bad) != (tt.frame != nil) || tt.frame != nil && bad.Frame != *tt.frame {
				t.Errorf("bad frame in %v, want %v", err, tt.frame)
			}
			if !bytes.Equal(readAll(t, d), bytes.Repeat([]byte{0xA5}, 16*MiB)) {
				t.Error("the disk was changed")
			}
			if w.Progress.erased.Load() {
				t.Error("reports an erased disk")
			}
		})
	}
}

func TestWrongByteOnTheWire(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	victim := p.m.Chunks[5]
	for _, times := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d times", times), func(t *testing.T) {
			s := serveBytes(t, p)
			left := times
			s.spoil = func(kind string, off int64, b []byte) []byte {
				at := victim.Offset + int64(victim.Length/2) - off
				if kind == "pack" && at >= 0 && at < int64(len(b)) && left > 0 {
					b[at] ^= 1
					left--
				}
				return b
			}
			d, _ := diskFile(t, 16*MiB, 0xA5)
			_, err := Write(context.Background(), testWork(p, d, nil, s.URL))
			if times == 1 {
				if err != nil {
					t.Fatalf("one wrong byte was not mended: %v", err)
				}
				return
			}
			bad := new(BadFrameError)
			if !errors.As(err, &bad) || bad.Frame != 5 {
				t.Fatalf("error %v, want bad frame 5", err)
			}
			have := readAll(t, d)
			if !allZero(have[:MiB]) || !allZero(have[15*MiB:]) {
				t.Error("the disk boots")
			}
			if bytes.Contains(have, p.img[5*MiB:5*MiB+4096]) {
				t.Error("the wrong frame reached the disk")
			}
		})
	}
}

func TestBrokenTransfersResume(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	s, dead := serveBytes(t, p), serveBytes(t, p)
	n := 0
	s.refuse = func(string) int {
		if n++; n%3 == 0 {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	s.spoil = func(kind string, _ int64, b []byte) []byte {
		if kind == "pack" && len(b) > 3*MiB/2 {
			return b[:3*MiB/2] // the connection breaks in the second frame
		}
		return b
	}
	dead.Close()
	d, _ := diskFile(t, 16*MiB, 0)
	w := testWork(p, d, nil, dead.URL, s.URL)
	if _, err := Write(context.Background(), w); err != nil {
		t.Fatal(err)
	}
	if got, limit := w.Progress.fetched.Load(), int64(len(p.pack))*3; got > limit {
		t.Errorf("fetched %d bytes, more than %d: finished frames were fetched again", got, limit)
	}
}

// opDisk numbers every operation that reaches the disk, and stops at one.
type opDisk struct {
	Disk
	mu     sync.Mutex
	ops    int
	stopAt int
	onOp   func(n int)
	flush  func()
}

var errCrash = errors.New("power lost")

func (d *opDisk) op() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops++
	if d.onOp != nil {
		d.onOp(d.ops)
	}
	if d.stopAt > 0 && d.ops >= d.stopAt {
		return errCrash
	}
	return nil
}

func (d *opDisk) WriteAt(b []byte, off int64) (int, error) {
	if err := d.op(); err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(b, off)
}

func (d *opDisk) Zero(off, n int64) error {
	if err := d.op(); err != nil {
		return err
	}
	return d.Disk.Zero(off, n)
}

func (d *opDisk) Flush() error {
	if err := d.op(); err != nil {
		return err
	}
	d.mu.Lock()
	if d.flush != nil {
		d.flush()
	}
	d.mu.Unlock()
	return d.Disk.Flush()
}

// volatileDisk keeps what was not flushed in memory, sector by sector: a crash
// keeps any part of it, as a disk's cache does.
type volatileDisk struct {
	stable  []byte
	mu      sync.Mutex
	pending map[int64][]byte
}

const sector = 512

func (d *volatileDisk) ReadAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(b, d.stable[off:])
	for i := off / sector; i*sector < off+int64(len(b)); i++ {
		if s, ok := d.pending[i]; ok {
			from := max(i*sector, off)
			copy(b[from-off:], s[from-i*sector:])
		}
	}
	return len(b), nil
}

func (d *volatileDisk) WriteAt(b []byte, off int64) (int, error) {
	if off%sector != 0 || len(b)%sector != 0 {
		return 0, fmt.Errorf("write of %d bytes at %d is not aligned", len(b), off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := 0; k < len(b); k += sector {
		d.pending[(off+int64(k))/sector] = bytes.Clone(b[k : k+sector])
	}
	return len(b), nil
}

func (d *volatileDisk) Zero(off, n int64) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

func (d *volatileDisk) Discard(off, n int64) error { return d.Zero(off, n) }

func (d *volatileDisk) Flush() error {
	d.crash(func() bool { return true })
	return nil
}

// crash makes the part of the cache that keep chooses durable, loses the rest.
func (d *volatileDisk) crash(keep func() bool) {
	d.crashAt(func(int64) bool { return keep() })
}

// crashAt does so by where a sector stands.
func (d *volatileDisk) crashAt(keep func(off int64) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, s := range d.pending {
		if keep(i * sector) {
			copy(d.stable[i*sector:], s)
		}
	}
	clear(d.pending)
}

// ReadBack refuses what was not flushed: it would be read from the cache.
func (d *volatileDisk) ReadBack(b []byte, off int64) (int, error) {
	d.mu.Lock()
	for i := off / sector; i*sector < off+int64(len(b)); i++ {
		if _, ok := d.pending[i]; ok {
			d.mu.Unlock()
			return 0, fmt.Errorf("byte %d is read back before it was flushed", i*sector)
		}
	}
	d.mu.Unlock()
	return d.ReadAt(b, off)
}

func (d *volatileDisk) Size() int64    { return int64(len(d.stable)) }
func (d *volatileDisk) BlockSize() int { return sector }
func (d *volatileDisk) Close() error   { return nil }
func (d *volatileDisk) Identity() (inventory.DiskID, error) {
	return inventory.DiskID{Name: "mem", Serial: "S1", Size: d.Size(), LogicalBlockSize: sector}, nil
}

// TestCrashAnywhereLeavesNothingThatBoots stops the write at each operation in
// turn, keeps a part of what the disk had not been told to flush, a random one, or its
// front alone, and looks at what a firmware would find. Then the write is resumed.
func TestCrashAnywhereLeavesNothingThatBoots(t *testing.T) {
	const size = 8 * MiB
	old := gptImage(t, size, 9) // another system is on the disk
	p := packImage(t, gptImage(t, 4*MiB+512, 1))
	volume := bytes.Repeat([]byte("config! "), MiB/8)
	want := wantDisk(t, p, size, 0, volume)
	s := serveBytes(t, p)
	rng := rand.New(rand.NewPCG(1, 2))

	write := func(d *volatileDisk, stopAt int) (int, error) {
		o := &opDisk{Disk: d, stopAt: stopAt}
		w := testWork(p, o, volume, s.URL)
		w.Workers = 1
		_, err := Write(context.Background(), w)
		return o.ops, err
	}
	fresh := func() *volatileDisk {
		return &volatileDisk{stable: bytes.Clone(old), pending: map[int64][]byte{}}
	}
	total, err := write(fresh(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if total < 12 {
		t.Fatalf("only %d operations seen", total)
	}
	for stop := 1; stop <= total; stop++ {
		for _, keep := range []func(off int64) bool{
			func(int64) bool { return false },
			func(int64) bool { return true },
			func(int64) bool { return rng.IntN(2) == 0 },
			func(off int64) bool { return off < MiB }, // the table, and nothing that came before it
			func(off int64) bool { return off >= MiB },
		} {
			d := fresh()
			if _, err := write(d, stop); !errors.Is(err, errCrash) {
				t.Fatalf("stopped at operation %d: error %v", stop, err)
			}
			d.crashAt(keep)
			checkAfterCrash(t, stop, d.stable, old, want, int64(len(p.img)))
			if _, err := write(d, 0); err != nil {
				t.Fatalf("resumed after operation %d: %v", stop, err)
			}
			d.crash(func() bool { return false })
			if have := d.stable; !bytes.Equal(have[:len(p.img)], want[:len(p.img)]) || !bytes.Equal(have[size-2*MiB:], want[size-2*MiB:]) {
				t.Fatalf("resumed after operation %d: the disk is not what was declared", stop)
			}
		}
	}
}

// checkAfterCrash accepts an untouched disk (or one whose first MiB is in part
// the old system's and in part zeros, as long as nothing else was touched), one
// with no new first MiB at all, and the whole truth.
func checkAfterCrash(t *testing.T, stop int, have, old, want []byte, image int64) {
	t.Helper()
	size := len(have)
	newFirst := false
	for k := 0; k < MiB; k += sector {
		s := have[k : k+sector]
		if !allZero(s) && !bytes.Equal(s, old[k:k+sector]) {
			newFirst = true
		}
	}
	if !newFirst {
		// Nothing of the new system may stand on the disk while something of
		// the old one could still be started.
		oldStarts := false
		for k := 0; k < size; k += sector {
			if k == MiB {
				k = size - MiB
			}
			s := have[k : k+sector]
			oldStarts = oldStarts || !allZero(s) && bytes.Equal(s, old[k:k+sector]) && !bytes.Equal(s, want[k:k+sector])
		}
		if oldStarts {
			for k := MiB; k < size-MiB; k += sector {
				s := have[k : k+sector]
				if !bytes.Equal(s, old[k:k+sector]) && !allZero(s) {
					t.Fatalf("stopped at operation %d: byte %d is the new system's and the old tables stand", stop, k)
				}
			}
		}
		return
	}
	if !bytes.Equal(have[MiB:image], want[MiB:image]) || !bytes.Equal(have[size-2*MiB:], want[size-2*MiB:]) {
		t.Fatalf("stopped at operation %d: the new first MiB stands on a disk that is not finished", stop)
	}
}

// losableLease lives until lose is called.
func losableLease() (l *Lease, lose func()) {
	start, late := time.Now(), atomic.Bool{}
	l = NewLease(func() time.Time {
		if late.Load() {
			return start.Add(301 * time.Second)
		}
		return start
	})
	l.Renew(start, 300)
	return l, func() { late.Store(true) }
}

func TestLeaseLostMidWrite(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	s := serveBytes(t, p)
	for _, at := range []int{4, 6, 9} {
		base, _ := diskFile(t, 16*MiB, 0xA5)
		lease, lose := losableLease()
		after := 0
		d := &opDisk{Disk: base, onOp: func(n int) {
			if n == at {
				lose()
			} else if n > at {
				after++
			}
		}}
		w := testWork(p, d, nil, s.URL)
		w.Lease, w.Workers = lease, 1
		_, err := Write(context.Background(), w)
		if !errors.Is(err, ErrLeaseLost) {
			t.Errorf("lease lost at operation %d: error %v", at, err)
		}
		// The fetching worker and the local one may each have passed the check.
		if after > 2 {
			t.Errorf("lease lost at operation %d: %d operations afterwards", at, after)
		}
		if have := readAll(t, base); !allZero(have[:MiB]) {
			t.Errorf("lease lost at operation %d: the disk boots", at)
		}
	}
}

// lyingDisk never brings one write to its medium. From its memory it reads as if
// it had.
type lyingDisk struct {
	Disk
	at     int64
	cached []byte
}

func (d *lyingDisk) WriteAt(b []byte, off int64) (int, error) {
	if off == d.at {
		d.cached = bytes.Clone(b)
		return len(b), nil
	}
	return d.Disk.WriteAt(b, off)
}

func (d *lyingDisk) ReadAt(b []byte, off int64) (int, error) {
	if off == d.at && d.cached != nil {
		return copy(b, d.cached), nil
	}
	return d.Disk.ReadAt(b, off)
}

func (d *lyingDisk) ReadBack(b []byte, off int64) (int, error) { return d.Disk.ReadAt(b, off) }

func TestReadBackCatchesADiskThatLies(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	s := serveBytes(t, p)
	size := int64(16 * MiB)
	for _, tt := range []struct {
		at    int64
		step  string
		boots bool
	}{
		{5 * MiB, "write the image", false},     // read back before the rest is written
		{8 * MiB, "read the image back", false}, // the image's own backup table
		{size - 2*MiB, "write the configuration", false},
		{size - MiB, "write the partition table", true},
		{0, "write the partition table", false},
	} {
		base, _ := diskFile(t, size, 0xA5)
		w := testWork(p, &lyingDisk{Disk: base, at: tt.at}, bytes.Repeat([]byte{7}, MiB), s.URL)
		w.turn = 4
		_, err := Write(context.Background(), w)
		if err == nil || !strings.HasPrefix(err.Error(), tt.step) {
			t.Errorf("write at byte %d lost: error %v, want one of step %q", tt.at, err, tt.step)
		}
		if boots := !allZero(readAll(t, base)[:MiB]); boots != tt.boots {
			t.Errorf("write at byte %d lost: first MiB there: %t, want %t", tt.at, boots, tt.boots)
		}
	}
}

func firstDifference(have, want []byte) string {
	if len(have) != len(want) {
		return fmt.Sprintf("%d bytes, want %d", len(have), len(want))
	}
	for i := range have {
		if have[i] != want[i] {
			return fmt.Sprintf("byte %d (MiB %d) is %#x, want %#x", i, i/MiB, have[i], want[i])
		}
	}
	return "no difference"
}

func ptr[T any](v T) *T { return &v }
