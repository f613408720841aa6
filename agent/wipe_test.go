package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

func wipeWork(d Disk, quick bool) Work {
	return Work{
		Job: inventory.Job{Kind: inventory.JobWipe, Machine: "m1", Fence: 7, Attempt: 1, Quick: quick,
			Disk: inventory.DiskID{Serial: "S1", Size: d.Size(), LogicalBlockSize: 512}},
		Disk: d, Lease: aliveLease(), Progress: &Progress{}, wait: noWait,
	}
}

func TestWipeLeavesZerosEverywhere(t *testing.T) {
	for _, size := range []int64{8 * MiB, 8*MiB + 512*77, 2 * MiB, MiB + 512, MiB, 4096} {
		d, _ := diskFile(t, size, 0xA5)
		w := wipeWork(d, false)
		got, err := Wipe(t.Context(), w)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if !allZero(readAll(t, d)) {
			t.Errorf("%d bytes: something is left", size)
		}
		var r inventory.Report
		w.Progress.fill(&r)
		if got.Blank != size || !r.Erased || r.Step != inventory.AgentVerifying || r.Done != size || r.Total != size || r.Written != size {
			t.Errorf("%d bytes: result %+v, last report %+v", size, got, r)
		}
	}
}

func TestQuickWipeZeroesOnlyWhatMakesADiskLookUsed(t *testing.T) {
	const size = 24 * MiB
	img := gptImage(t, size, 1)
	for off := MiB; off < size-MiB; off += MiB { // no holes: every MiB tells whether it was touched
		for i := range img[off : off+MiB] {
			img[off+i] |= 1
		}
	}
	d, _ := diskFile(t, size, 0)
	if _, err := d.WriteAt(img, 0); err != nil {
		t.Fatal(err)
	}
	got, err := Wipe(t.Context(), wipeWork(d, true))
	if err != nil {
		t.Fatal(err)
	}
	// esp is the second MiB, root the third to the last but one.
	zeroed := []int{0, 1, 2, 22, 23}
	have := readAll(t, d)
	for i := range size / MiB {
		part := have[i*MiB : (i+1)*MiB]
		switch {
		case slices.Contains(zeroed, i) && i != 22 && !allZero(part):
			t.Errorf("MiB %d still holds something", i)
		case !slices.Contains(zeroed, i) && !bytes.Equal(part, img[i*MiB:(i+1)*MiB]):
			t.Errorf("MiB %d was changed", i)
		}
	}
	if holds, err := Holds(d, size); holds != "" || err != nil {
		t.Errorf("afterwards it holds %q (%v)", holds, err)
	}
	if got.Blank < 4*MiB || got.Blank > 5*MiB {
		t.Errorf("%d bytes were read back", got.Blank)
	}
}

func TestQuickWipeThatWasCutOffFindsThePartitionsAgain(t *testing.T) {
	const size = 24 * MiB
	img := gptImage(t, size, 1)
	for cut := 1; ; cut++ {
		file, _ := diskFile(t, size, 0)
		if _, err := file.WriteAt(img, 0); err != nil {
			t.Fatal(err)
		}
		d := &opDisk{Disk: file}
		ctx, stop := context.WithCancelCause(t.Context())
		d.onOp = func(n int) {
			if n == cut {
				stop(errAborted{"cut off"})
			}
		}
		_, first := Wipe(ctx, wipeWork(d, true))
		got, err := Wipe(t.Context(), wipeWork(file, true))
		if err != nil {
			t.Fatal(err)
		}
		if have := readAll(t, file); !allZero(have[:3*MiB]) || !allZero(have[size-MiB:]) {
			t.Errorf("cut off after %d changes: a partition's mark is left, %d bytes were read back", cut, got.Blank)
		}
		if stop(nil); first == nil {
			return
		}
	}
}

func TestQuickWipeOfATableThatCannotBeReadZeroesTheEnds(t *testing.T) {
	d, _ := diskFile(t, 8*MiB, 0xA5)
	if _, err := d.WriteAt([]byte("EFI PART"), 512); err != nil {
		t.Fatal(err)
	}
	if got, err := Wipe(t.Context(), wipeWork(d, true)); err != nil || got.Blank != 2*MiB {
		t.Fatalf("%+v, %v", got, err)
	}
	have := readAll(t, d)
	if !allZero(have[:MiB]) || !allZero(have[7*MiB:]) || !bytes.Equal(have[MiB:7*MiB], bytes.Repeat([]byte{0xA5}, 6*MiB)) {
		t.Error("the ends are not zeros, or something between them is")
	}
}

func TestWipeRefusesBeforeTheFirstByte(t *testing.T) {
	for _, tt := range []struct {
		name   string
		break_ func(*Work)
		want   string
	}{
		{"another serial", func(w *Work) { w.Job.Disk.Serial = "S2" }, `serial "S1", the job is for "S2"`},
		{"another size", func(w *Work) { w.Job.Disk.Size++ }, "the job is for one of"},
		{"another WWN", func(w *Work) { w.Job.Disk.WWN = "0x5" }, "WWN"},
		{"another block size", func(w *Work) { w.Job.Disk.LogicalBlockSize = 4096 }, "blocks of 512 bytes"},
		{"no identity", func(w *Work) { w.Job.Disk.Serial = "" }, "names no disk"},
		{"a job to write", func(w *Work) { w.Job.Kind = inventory.JobWrite }, `the job is to "write"`},
		{"a job without a kind", func(w *Work) { w.Job.Kind = "" }, `the job is to ""`},
		{"lease gone", func(w *Work) { w.Lease = NewLease(nil) }, ErrLeaseLost.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := diskFile(t, 4*MiB, 0xA5)
			w := wipeWork(d, false)
			tt.break_(&w)
			if _, err := Wipe(t.Context(), w); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if !bytes.Equal(readAll(t, d), bytes.Repeat([]byte{0xA5}, 4*MiB)) || w.Progress.erased.Load() {
				t.Error("the disk was changed")
			}
		})
	}
}

func TestAJobToWipeIsNeverWritten(t *testing.T) {
	d, _ := diskFile(t, 4*MiB, 0xA5)
	if _, err := Write(t.Context(), wipeWork(d, false)); err == nil || !strings.Contains(err.Error(), `the job is to "wipe"`) {
		t.Errorf("error %v", err)
	}
}

func TestWipeStopsWithItsLease(t *testing.T) {
	const size, alive = 16 * MiB, 5
	file, _ := diskFile(t, size, 0xA5)
	d := &opDisk{Disk: file}
	w := wipeWork(d, false)
	now := time.Now()
	w.Lease = NewLease(func() time.Time { return now })
	w.Lease.Renew(now, 60)
	d.onOp = func(n int) {
		if n == alive {
			now = now.Add(time.Minute)
		}
	}
	if _, err := Wipe(t.Context(), w); !errors.Is(err, ErrLeaseLost) {
		t.Fatalf("error %v, want the lease's end", err)
	}
	if d.ops != alive {
		t.Errorf("%d changes, the lease ended at the %dth", d.ops, alive)
	}
	if have := readAll(t, d); bytes.Count(have, []byte{0xA5}) < size-alive*MiB || !allZero(have[:MiB]) || !allZero(have[size-MiB:]) {
		t.Error("more was zeroed than the lease allowed, or the ends were not first")
	}
}

func TestWipeStopsAtTheServersWord(t *testing.T) {
	file, _ := diskFile(t, 16*MiB, 0xA5)
	d := &opDisk{Disk: file}
	ctx, stop := context.WithCancelCause(t.Context())
	d.onOp = func(n int) {
		if n == 5 {
			stop(errAborted{"by ann"})
		}
	}
	if _, err := Wipe(ctx, wipeWork(d, false)); err == nil || !strings.Contains(err.Error(), "by ann") || d.ops != 5 {
		t.Errorf("error %v after %d changes", err, d.ops)
	}
}

// stubbornDisk keeps one byte whatever is written.
type stubbornDisk struct {
	Disk
	at int64
}

func (d stubbornDisk) ReadBack(b []byte, off int64) (int, error) {
	n, err := d.Disk.ReadBack(b, off)
	if k := d.at - off; k >= 0 && k < int64(n) {
		b[k] = 0x5a
	}
	return n, err
}

func TestWipeFindsTheByteThatIsLeft(t *testing.T) {
	for _, at := range []int64{0, 3*MiB + 17, 8*MiB - 1} {
		file, _ := diskFile(t, 8*MiB, 0xA5)
		_, err := Wipe(t.Context(), wipeWork(stubbornDisk{file, at}, false))
		if err == nil || !strings.Contains(err.Error(), "reads back as 0x5a") {
			t.Errorf("byte %d: error %v", at, err)
		}
	}
}

func TestWipeReadsFromTheDisk(t *testing.T) {
	d := &volatileDisk{stable: bytes.Repeat([]byte{0xA5}, 4*MiB), pending: map[int64][]byte{}}
	if _, err := Wipe(t.Context(), wipeWork(d, false)); err != nil {
		t.Fatal(err) // ReadBack refuses what was not flushed
	}
	if !allZero(d.stable) {
		t.Error("zeros were left in the cache")
	}
}

func wipeOrder(size int64) inventory.Order {
	return inventory.Order{Kind: inventory.OrderWipe, Job: &inventory.Job{Kind: inventory.JobWipe, Machine: "m1", Fence: 7, Attempt: 1,
		Disk: inventory.DiskID{Serial: "S1", Size: size, LogicalBlockSize: 512}}}
}

func TestArmedMachineWipesReportsAndPowersOff(t *testing.T) {
	s := startServer(t)
	_, path := diskFile(t, 6*MiB, 0xA5)
	s.orders = []inventory.Order{wipeOrder(6 * MiB)}
	out, err := run(t, newAgent(t, s, path))
	if err != nil || out.Kind != inventory.OrderPowerOff {
		t.Fatalf("outcome %+v, error %v", out, err)
	}
	if have, err := os.ReadFile(path); err != nil || !allZero(have) {
		t.Errorf("the disk is not zeros (%v)", err)
	}
	last := s.ended(t)
	if last.Step != inventory.AgentDone || last.Blank != 6*MiB || last.ReadBack != "" || !last.Erased || last.Fence != 7 {
		t.Errorf("last report %+v", last)
	}
}

func TestAnOrderAndItsJobMustSayTheSame(t *testing.T) {
	for _, kind := range []inventory.OrderKind{inventory.OrderWrite, inventory.OrderWipe} {
		s := startServer(t)
		_, path := diskFile(t, 4*MiB, 0xA5)
		o := wipeOrder(4 * MiB)
		if o.Kind = kind; kind == inventory.OrderWipe {
			o.Job.Kind = inventory.JobWrite
		}
		s.orders = []inventory.Order{o}
		if _, err := run(t, newAgent(t, s, path)); err == nil || !strings.Contains(err.Error(), "without such a job") {
			t.Errorf("%s with a job to %s: error %v", kind, o.Job.Kind, err)
		}
		if have, _ := os.ReadFile(path); !bytes.Equal(have, bytes.Repeat([]byte{0xA5}, 4*MiB)) {
			t.Error("the disk was changed")
		}
	}
}

// TestWipeTakesItsBootEntryAlong: the firmware keeps no entry of ours that leads to
// the disk, and all others.
func TestWipeTakesItsBootEntryAlong(t *testing.T) {
	for _, quick := range []bool{false, true} {
		d, _ := diskFile(t, 12*MiB, 0)
		image := gptImage(t, 12*MiB, 1)
		if _, err := d.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
		esp, ok := systemPartition(image[:MiB], 12*MiB)
		if !ok {
			t.Fatal("no system partition")
		}
		entry := func(label string, p systemPart) []byte {
			return bootOption(label, `\EFI\BOOT\BOOTX64.EFI`, p).Encode()
		}
		elsewhere := esp
		elsewhere.id[0] ^= 1
		vars := fakeVars{bootName(0): entry("debian", esp), bootName(1): entry("recast", esp), bootName(2): entry("recast", elsewhere), bootOrder: order(1, 0, 2)}
		w := wipeWork(d, quick)
		w.EFI = vars
		r, err := Wipe(t.Context(), w)
		if err != nil || r.BootEntry != "" {
			t.Fatalf("%+v, %v", r, err)
		}
		if got := vars[bootOrder]; !bytes.Equal(got, order(0, 2)) || vars[bootName(1)] != nil || vars[bootName(0)] == nil || vars[bootName(2)] == nil {
			t.Errorf("quick %v: order %x, %d variables", quick, got, len(vars))
		}
		// Once more, of a blank disk; and a firmware that keeps what it has.
		if r, err = Wipe(t.Context(), w); err != nil || r.BootEntry != "" {
			t.Errorf("again: %+v, %v", r, err)
		}
		if _, err := d.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
		vars[bootName(1)] = entry("recast", esp)
		w.EFI = readOnlyVars{vars}
		if r, err = Wipe(t.Context(), w); err != nil || !strings.Contains(r.BootEntry, "write BootOrder") {
			t.Errorf("refused: %+v, %v", r, err)
		}
	}
}
