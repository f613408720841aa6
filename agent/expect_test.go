package agent

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// A disk that is nearly what it should be is not compared as a whole. What of it is not
// is found all the same: what moves before it is written, what stays when it is read
// back; and is fetched.
func TestWhatAnExpectedDiskDoesNotHoldIsFetched(t *testing.T) {
	a := packImage(t, gptImage(t, 48*MiB, 1))
	next := bytes.Clone(a.img)
	copy(next[20*MiB:], a.img[23*MiB:25*MiB]) // moves to the front
	copy(next[30*MiB:], a.img[26*MiB:28*MiB]) // and to the back
	rng := rand.New(rand.NewPCG(3, 1))
	for i := range next[33*MiB : 33*MiB+8*blockSize] {
		next[33*MiB+i] = byte(rng.Uint32())
	}
	b := packImage(t, next)
	const size = 56 * MiB
	for _, tt := range []struct {
		name  string
		spoil []int64
		most  int64 // MiBs fetched beside the difference and the table
		mends int
	}{
		{"as it should be", nil, 0, 0},
		// Blocks that moved stand where they stood, too.
		{"a block that moves to the front", []int64{23*MiB + 5*blockSize}, 4, 1},
		{"a block that moves to the back", []int64{26*MiB + 5*blockSize}, 4, 1},
		{"blocks that stay", []int64{9 * MiB, 12*MiB + 77, 45*MiB - 1}, 6, 3},
		{"zeros that stay", []int64{10*MiB + 3}, 3, 1},
		{"all of them", []int64{23 * MiB, 26 * MiB, 9 * MiB, 12 * MiB, 10 * MiB}, 10, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk, _ := diskFile(t, size, 0)
			before := wantDisk(t, a, size, 0, nil)
			for _, at := range tt.spoil {
				before[at] ^= 1
			}
			if _, err := disk.WriteAt(before, 0); err != nil {
				t.Fatal(err)
			}
			s := serveBytes(t, b)
			w := testWork(b, disk, nil, s.URL)
			d := differ(t, s, &w.Job.Image, a, b)
			var log []string
			w.Log = func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }
			watch := watched(&w, 48*MiB)
			if _, err := Write(context.Background(), w); err != nil {
				t.Fatal(err)
			}
			if watch.bad != "" {
				t.Error(watch.bad)
			}
			if watch.compared > 8*MiB {
				t.Errorf("%d bytes were compared before the first was written", watch.compared)
			}
			if have, want := readAll(t, disk), wantDisk(t, b, size, 0, nil); !bytes.Equal(have, want) {
				t.Error(firstDifference(have, want))
			}
			base := int64(len(b.manifest)+len(b.index)+len(d.Encode())) + d.PackSize
			if got := w.Progress.fetched.Load() - base; got > (tt.most+3)*MiB {
				t.Errorf("fetched %d bytes beside the difference", got)
			}
			mended := fmt.Sprintf("%d MiB were not what the disk was to hold", tt.mends)
			if text := strings.Join(log, "\n"); tt.mends > 0 != strings.Contains(text, mended) {
				t.Errorf("it says:\n%s", text)
			}
		})
	}
}

// What is mended is read back like all else: a disk that loses it does not boot.
func TestALostMendIsNoSuccess(t *testing.T) {
	a := packImage(t, gptImage(t, 48*MiB, 1))
	next := bytes.Clone(a.img)
	next[33*MiB] ^= 1
	b := packImage(t, next)
	base, _ := diskFile(t, 56*MiB, 0)
	before := wantDisk(t, a, 56*MiB, 0, nil)
	before[12*MiB+99] ^= 1
	if _, err := base.WriteAt(before, 0); err != nil {
		t.Fatal(err)
	}
	s := serveBytes(t, b)
	w := testWork(b, &lyingDisk{Disk: base, at: 12 * MiB}, nil, s.URL)
	differ(t, s, &w.Job.Image, a, b)
	if _, err := Write(context.Background(), w); err == nil || !strings.Contains(err.Error(), "gives back other bytes") {
		t.Errorf("error %v", err)
	}
	if !allZero(readAll(t, base)[:MiB]) {
		t.Error("the disk boots")
	}
}

// spillDisk writes what is written in one MiB over another, too.
type spillDisk struct {
	Disk
	at, over int64
}

func (d spillDisk) WriteAt(b []byte, off int64) (int, error) {
	if off/MiB == d.at/MiB {
		if _, err := d.Disk.WriteAt(b, off-d.at+d.over); err != nil {
			return 0, err
		}
	}
	return d.Disk.WriteAt(b, off)
}

// What stays in its place and was read back is not right for ever.
func TestADiskThatLosesWhatStaysIsFound(t *testing.T) {
	a := packImage(t, gptImage(t, 48*MiB, 1))
	next := bytes.Clone(a.img)
	next[33*MiB] ^= 1
	b := packImage(t, next)
	base, _ := diskFile(t, 56*MiB, 0)
	if _, err := base.WriteAt(wantDisk(t, a, 56*MiB, 0, nil), 0); err != nil {
		t.Fatal(err)
	}
	s := serveBytes(t, b)
	w := testWork(b, spillDisk{base, 33 * MiB, 3 * MiB}, nil, s.URL)
	differ(t, s, &w.Job.Image, a, b)
	if _, err := Write(context.Background(), w); err == nil || !strings.Contains(err.Error(), "gives back other bytes") {
		t.Errorf("error %v", err)
	}
	if !allZero(readAll(t, base)[:MiB]) {
		t.Error("the disk boots")
	}
}

// Disks that hold something else are compared as a whole: nothing but a few looks is lost.
func TestADiskThatIsNotWhatItShouldBeIsCompared(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	a := packImage(t, gptImage(t, 24*MiB, 1))
	b := packImage(t, rebuilt(a.img, 24*MiB, rng, t))
	for name, holds := range map[string][]byte{
		"nothing":                               make([]byte, 24*MiB),
		"another image":                         gptImage(t, 24*MiB, 9),
		"the image it gets":                     b.img,
		"half of each, as a write that was cut": append(bytes.Clone(b.img[:12*MiB]), a.img[12*MiB:]...),
	} {
		t.Run(name, func(t *testing.T) {
			disk, _ := diskFile(t, 32*MiB, 0)
			if _, err := disk.WriteAt(holds, 0); err != nil {
				t.Fatal(err)
			}
			s := serveBytes(t, b)
			w := testWork(b, disk, nil, s.URL)
			differ(t, s, &w.Job.Image, a, b)
			watch := watched(&w, 24*MiB)
			if _, err := Write(context.Background(), w); err != nil {
				t.Fatal(err)
			}
			if watch.compared < 20*MiB {
				t.Errorf("%d bytes were compared", watch.compared)
			}
			if have, want := readAll(t, disk), wantDisk(t, b, 32*MiB, 0, nil); !bytes.Equal(have, want) {
				t.Error(firstDifference(have, want))
			}
		})
	}
}
