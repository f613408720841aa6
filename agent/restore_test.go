package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"recast/inventory"
	"recast/pack"
)

// mayStart tells whether firmware finds a table on a disk, by its first header or by
// its backup: more than one boot signature, to be on the safe side.
func mayStart(t testing.TB, disk []byte) bool {
	t.Helper()
	layout, _, err := pack.ParseLayout(disk[:MiB], int64(len(disk)))
	return err == nil && layout.Scheme != pack.SchemeNone || bytes.HasPrefix(disk[len(disk)-sector:], []byte("EFI PART"))
}

// TestRepairCutAnywhereLeavesNothingHalfThatBoots stops a repair at each operation,
// loses a random part of what was not flushed, and looks at what firmware would find:
// all as it was, or all as declared. Then the repair is taken up.
func TestRepairCutAnywhereLeavesNothingHalfThatBoots(t *testing.T) {
	const size = 8 * MiB
	rng := rand.New(rand.NewPCG(6, 1))
	p := packImage(t, gptImage(t, 5*MiB, 3))
	s := serveBytes(t, p)
	root, err := p.m.Layout.Find("root")
	if err != nil {
		t.Fatal(err)
	}
	want := wantDisk(t, p, size, 0xA5, bytes.Repeat([]byte("config! "), MiB/8))
	old := bytes.Clone(want)
	for at := root.Start + 5; at < root.End; at += 200000 {
		old[at] ^= 0xff
	}
	for _, at := range []int64{root.End - 1, MiB + 7, size - MiB - 9} { // the last two are state
		old[at] ^= 0xff
	}
	copy(want[MiB:2*MiB], old[MiB:2*MiB])
	copy(want[root.End:], old[root.End:])
	run := func(d *volatileDisk, stopAt int) (Result, int, error) {
		o := &opDisk{Disk: d, stopAt: stopAt}
		w := testWork(p, o, nil, s.URL)
		w.Workers = 1
		w.Job.Kind, w.Job.Limit, w.Job.Regions = inventory.JobRepair, size, []inventory.Region{{Name: "root", Start: root.Start, End: root.End}}
		got, err := Gate(context.Background(), w)
		return got, o.ops, err
	}
	fresh := func() *volatileDisk {
		return &volatileDisk{stable: bytes.Clone(old), pending: map[int64][]byte{}}
	}
	_, total, err := run(fresh(), 0)
	if err != nil {
		t.Fatal(err)
	}
	half := 0
	for stop := 1; stop <= total; stop++ {
		for _, keep := range []func() bool{
			func() bool { return false },
			func() bool { return true },
			func() bool { return rng.IntN(2) == 0 },
		} {
			d := fresh()
			if _, _, err := run(d, stop); !errors.Is(err, errCrash) {
				t.Fatalf("stopped at operation %d of %d: %v", stop, total, err)
			}
			d.crash(keep)
			first, suspended := pack.Resumed(d.stable[:MiB])
			region := d.stable[root.Start:root.End]
			whole := bytes.Equal(region, old[root.Start:root.End]) || bytes.Equal(region, want[root.Start:root.End])
			switch {
			case !whole && mayStart(t, d.stable):
				t.Fatalf("stopped at operation %d: it boots, and is half repaired", stop)
			case !bytes.Equal(first, want[:MiB]) || !bytes.Equal(d.stable[MiB:root.Start], want[MiB:root.Start]) || !bytes.Equal(d.stable[root.End:size-sector], want[root.End:size-sector]):
				t.Fatalf("stopped at operation %d: something else was written", stop)
			case !whole:
				half++
			}
			if suspended {
				if m, err := ReadConfigFile(d, size, "x"); m != nil || err != nil && !strings.Contains(err.Error(), "FAT") {
					t.Errorf("its own partition is not found: %v", err)
				}
				if holds, err := Holds(d, size); err != nil || !strings.Contains(holds, "did not end") {
					t.Errorf("it holds %q, %v", holds, err)
				}
			}
			got, _, err := run(d, 0)
			if err != nil || !got.Verdict.Matches() {
				t.Fatalf("taken up after operation %d: %+v, %v", stop, got.Verdict, err)
			}
			d.crash(func() bool { return false })
			if !bytes.Equal(d.stable, want) {
				t.Fatalf("taken up after operation %d: %s", stop, firstDifference(d.stable, want))
			}
		}
	}
	if half < 10 {
		t.Errorf("only %d cuts left a region half repaired", half)
	}
}

// A gate that may not write says of a repair that was cut that it does not boot.
func TestGateSeesThatARepairDidNotEnd(t *testing.T) {
	_, _, d, w := provable(t, 4, "root")
	first := make([]byte, MiB)
	if _, err := d.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	marks, _ := pack.Marks(first)
	if len(marks) != 3 {
		t.Fatalf("marks %v", marks)
	}
	for _, m := range marks {
		if _, err := d.WriteAt(m.Suspended, m.At); err != nil {
			t.Fatal(err)
		}
	}
	before := readAll(t, d)
	got, err := Gate(context.Background(), w)
	if v := got.Verdict; err != nil || v.Matches() || !v.Suspended || v.Table != "" || v.Blocks() != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if !bytes.Equal(before, readAll(t, d)) || mayStart(t, before) {
		t.Error("the comparison wrote to the disk, or it boots")
	}
	if ids, err := partitionIDs(d, d.Size()); err != nil || len(ids) != 3 {
		t.Errorf("a wipe finds the partitions %v, %v", ids, err)
	}
}

// TestRestorePutsBackAFileSystemThatGrew is every boot of a machine whose root file
// system was written to and grown into a larger disk: its blocks are the declared ones
// again, what lies behind them and its state are left, and only what differs is fetched.
func TestRestorePutsBackAFileSystemThatGrew(t *testing.T) {
	for _, tool := range []string{"mkfs.ext4", "debugfs", "resize2fs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	const size, grown = 40 * MiB, 100 * MiB // of the image, of the disk
	dir := t.TempDir()
	command := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	img := gptImage(t, size, 8)
	layout, _, err := pack.ParseLayout(img[:MiB], size)
	if err != nil {
		t.Fatal(err)
	}
	root, err := layout.Find("root")
	if err != nil {
		t.Fatal(err)
	}
	// Random bytes beneath: mkfs writes but a part, and unused blocks are declared too.
	fs := filepath.Join(dir, "root")
	if err := os.WriteFile(fs, img[root.Start:root.End], 0o600); err != nil {
		t.Fatal(err)
	}
	hello := filepath.Join(dir, "hello")
	if err := os.WriteFile(hello, bytes.Repeat([]byte("hello\n"), 50000), 0o600); err != nil {
		t.Fatal(err)
	}
	command("mkfs.ext4", "-q", "-F", "-E", "nodiscard", fs)
	command("debugfs", "-w", "-R", "write "+hello+" declared", fs)
	b, err := os.ReadFile(fs)
	if err != nil {
		t.Fatal(err)
	}
	copy(img[root.Start:], b)
	p := packImage(t, img)
	s := serveBytes(t, p)
	d, path := diskFile(t, grown, 0xA5)
	w := testWork(p, d, bytes.Repeat([]byte("config! "), 512), s.URL)
	if _, err := Write(context.Background(), w); err != nil {
		t.Fatal(err)
	}

	// What the system did: it grew the partition up to the config partition, the file
	// system in it, wrote and removed files, and kept something in its state.
	first := make([]byte, MiB)
	if _, err := d.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	rendered, _, err := pack.ParseLayout(first, grown)
	if err != nil {
		t.Fatal(err)
	}
	parts := rendered.Partitions
	parts[1].End = parts[2].Start
	a, z, err := pack.FormatGPT(grown, 512, pack.GUID{7}, parts)
	if err != nil {
		t.Fatal(err)
	}
	_, e1 := d.WriteAt(a, 0)
	_, e2 := d.WriteAt(z, grown-MiB)
	disk := readAll(t, d)
	if err := errors.Join(e1, e2, os.WriteFile(fs, disk[root.Start:parts[1].End], 0o600)); err != nil {
		t.Fatal(err)
	}
	command("e2fsck", "-fy", fs)
	command("resize2fs", fs)
	for i := range 40 {
		command("debugfs", "-w", "-R", fmt.Sprintf("write %s drift%d", hello, i), fs)
	}
	command("debugfs", "-w", "-R", "rm declared", fs)
	if b, err = os.ReadFile(fs); err != nil {
		t.Fatal(err)
	}
	_, e1 = d.WriteAt(b, root.Start)
	flip(t, d, MiB+99) // the other partition, which is state
	if e1 != nil {
		t.Fatal(e1)
	}
	before := readAll(t, d)

	w.Job.Config, w.Config, w.Progress = nil, nil, &Progress{}
	w.Job.Kind, w.Job.Limit, w.Job.Regions = inventory.JobGate, 0, []inventory.Region{{Name: "root", Start: root.Start, End: root.End}}
	got, err := Gate(context.Background(), w)
	if v := got.Verdict; err != nil || v.Matches() || v.Table != "" || v.Regions[0].Blocks == 0 {
		t.Fatalf("before: %+v, %v", v, err)
	}
	w.Job.Kind, w.Job.Limit, w.Progress = inventory.JobRepair, size, &Progress{}
	if got, err = Gate(context.Background(), w); err != nil || !got.Verdict.Matches() {
		t.Fatalf("after: %+v, %v", got.Verdict, err)
	}
	want := bytes.Clone(before)
	copy(want[root.Start:root.End], img[root.Start:root.End])
	if have := readAll(t, d); !bytes.Equal(have, want) {
		t.Errorf("%s: %s", path, firstDifference(have, want))
	}
	var blocks, chunks, frames int64
	for i := range p.m.Chunks {
		from, to := max(root.Start, int64(i)*MiB), min(root.End, int64(i+1)*MiB)
		if from >= to {
			continue
		}
		if !bytes.Equal(before[from:to], img[from:to]) || to-from < MiB {
			chunks, frames = chunks+1, frames+int64(p.m.Chunks[i].Length)
		}
		for at := from; at < to; at += inventory.GateBlock {
			if !bytes.Equal(before[at:at+inventory.GateBlock], img[at:at+inventory.GateBlock]) {
				blocks++
			}
		}
	}
	var rep inventory.Report
	w.Progress.fill(&rep)
	if rep.Written != blocks*inventory.GateBlock {
		t.Errorf("%d bytes written for %d blocks", rep.Written, blocks)
	}
	// Once each, and once more the chunk that the region ends in, which has no sum of its own.
	if most := frames + int64(len(p.manifest)) + 3*MiB; rep.Fetched > most {
		t.Errorf("%d bytes fetched, want at most %d: of %d chunks", rep.Fetched, most, chunks)
	}
	t.Logf("%d blocks in %d of %d chunks: %d bytes fetched, %d written", blocks, chunks, len(p.m.Chunks), rep.Fetched, rep.Written)

	// It is a file system of the declared size again, and grows anew.
	after := readAll(t, d)
	if err := os.WriteFile(fs, after[root.Start:parts[1].End], 0o600); err != nil {
		t.Fatal(err)
	}
	command("e2fsck", "-fy", fs)
	command("resize2fs", fs)
	command("e2fsck", "-fn", fs)
	if out := command("debugfs", "-R", "ls -p /", fs); !strings.Contains(out, "declared") || strings.Contains(out, "drift") {
		t.Errorf("the root holds %s", out)
	}
}
