package agent

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"recast/inventory"
	"recast/pack"
)

// provable is a disk that was written, with the job of its gate.
func provable(t testing.TB, seed uint64, regions ...string) (*packed, *bytesServer, Disk, Work) {
	t.Helper()
	p := packImage(t, gptImage(t, testImageSize, seed))
	s := serveBytes(t, p)
	d, _ := diskFile(t, 16*MiB, 0xA5)
	w := testWork(p, d, bytes.Repeat([]byte("config! "), 512), s.URL)
	if _, err := Write(context.Background(), w); err != nil {
		t.Fatal(err)
	}
	w.Job.Kind, w.Job.Config, w.Config, w.Job.Limit, w.Progress = inventory.JobGate, nil, nil, 1<<20, &Progress{}
	for _, name := range regions {
		part, err := p.m.Layout.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		w.Job.Regions = append(w.Job.Regions, inventory.Region{Name: name, Start: part.Start, End: part.End})
	}
	return p, s, d, w
}

func flip(t testing.TB, d Disk, at int64) {
	t.Helper()
	b := make([]byte, 1)
	if _, err := d.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := d.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func TestGateProvesADiskThatIsAsItWasWritten(t *testing.T) {
	p, s, d, w := provable(t, 1, "esp", "root")
	before, ranges := readAll(t, d), s.ranges
	got, err := Gate(context.Background(), w)
	if err != nil {
		t.Fatal(err)
	}
	v := got.Verdict
	if v == nil || !v.Matches() || !v.About(w.Job.Regions) {
		t.Fatalf("verdict %+v", v)
	}
	// Of whole chunks nothing is fetched; the root partition ends in the middle of one.
	if n := s.ranges - ranges; n != 1 {
		t.Errorf("%d requests for frames, want 1", n)
	}
	if !bytes.Equal(before, readAll(t, d)) {
		t.Error("the comparison wrote to the disk")
	}
	whole := v.Regions[0] // of one chunk: its sum's sum
	if sum := p.m.Chunks[1].Sum; whole.Read != inventory.DigestOf(sum[:]) {
		t.Errorf("esp reads as %s", whole.Read)
	}
}

func TestGateNamesWhatDiffersAndWritesNothing(t *testing.T) {
	_, s, d, w := provable(t, 2, "esp", "root")
	root := w.Job.Regions[1]
	flip(t, d, root.Start+3*MiB+5000) // in its second block there
	flip(t, d, root.Start+3*MiB+5001)
	flip(t, d, root.End-1)
	before, ranges := readAll(t, d), s.ranges
	got, err := Gate(context.Background(), w)
	if err != nil {
		t.Fatal(err)
	}
	v := got.Verdict
	esp, r := v.Regions[0], v.Regions[1]
	if v.Matches() || esp.Blocks != 0 || esp.Read != esp.Want || r.Blocks != 2 || r.First != 3*MiB+4096 || r.Read == r.Want {
		t.Errorf("verdict %+v", v)
	}
	if n := s.ranges - ranges; n != 2 {
		t.Errorf("%d requests for frames, want the two that differ", n)
	}
	if !bytes.Equal(before, readAll(t, d)) {
		t.Error("the comparison wrote to the disk")
	}
}

// A repair is a job behind the verdict's, and has what that fetched.
func TestRepairFetchesWhatDiffersOnce(t *testing.T) {
	p, s, d, w := provable(t, 2, "esp", "root")
	w.kept = &kept{}
	flip(t, d, w.Job.Regions[1].Start+3*MiB+5000)
	got := map[string]int{}
	s.spoil = func(kind string, _ int64, body []byte) []byte { got[kind]++; return body }
	for _, kind := range []inventory.JobKind{inventory.JobGate, inventory.JobRepair} {
		w.Job.Kind, w.Progress = kind, &Progress{}
		if _, err := Gate(context.Background(), w); err != nil {
			t.Fatal(err)
		}
	}
	if got["manifest"] != 1 || got["pack"] != 2 { // the root partition ends in the middle of a chunk
		t.Errorf("fetched were %v, want one manifest and two chunks", got)
	}
	if !bytes.Equal(readAll(t, d)[w.Job.Regions[1].Start:w.Job.Regions[1].End], p.img[w.Job.Regions[1].Start:w.Job.Regions[1].End]) {
		t.Error("the region is not the image's")
	}
	// Of another image nothing is taken for this one's.
	w.kept.begin(inventory.DigestOf([]byte("another")))
	if w.kept.chunk(4) != nil || w.kept.manifest != nil {
		t.Error("it is kept still")
	}
}

// Whatever happened to a disk, a comparison writes nothing, and a repair makes its
// regions the image's and leaves every other byte.
func TestRepairWritesTheRegionsAndNothingElse(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 3))
		regions := [][]string{{"esp"}, {"root"}, {"esp", "root"}}[r.IntN(3)]
		p, _, d, w := provable(t, seed, regions...)
		// The table stays: its meaning is another test's.
		for range r.IntN(200) {
			flip(t, d, MiB+r.Int64N(d.Size()-2*MiB))
		}
		before := readAll(t, d)
		first, err := Gate(context.Background(), w)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, readAll(t, d)) {
			t.Fatalf("seed %d: the comparison wrote to the disk", seed)
		}
		want, blocks := bytes.Clone(before), map[int64]bool{}
		for _, g := range w.Job.Regions {
			for at := g.Start; at < g.End; at++ {
				if want[at] != p.img[at] {
					blocks[at/inventory.GateBlock] = true
				}
			}
			copy(want[g.Start:g.End], p.img[g.Start:g.End])
		}
		if n := first.Verdict.Blocks(); n != int64(len(blocks)) || first.Verdict.Matches() != (n == 0) {
			t.Errorf("seed %d: %d blocks differ, %d were counted", seed, len(blocks), n)
		}
		w.Job.Kind, w.Progress = inventory.JobRepair, &Progress{}
		got, err := Gate(context.Background(), w)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Verdict.Matches() {
			t.Errorf("seed %d: after the repair %+v", seed, got.Verdict)
		}
		if have := readAll(t, d); !bytes.Equal(have, want) {
			t.Errorf("seed %d: %s", seed, firstDifference(have, want))
		}
		var rep inventory.Report
		if w.Progress.fill(&rep); rep.Written > int64(len(blocks))*inventory.GateBlock || rep.Erased {
			t.Errorf("seed %d: %d bytes written for %d blocks, erased %t", seed, rep.Written, len(blocks), rep.Erased)
		}
	}
}

func TestRepairThatMayNotBeWritesNothing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		spoil  func(t *testing.T, d Disk, w *Work)
		want   string
		differ bool
	}{
		{"more than the limit", func(t *testing.T, d Disk, w *Work) {
			w.Job.Limit = 2 * inventory.GateBlock
			for i := range int64(3) {
				flip(t, d, 3*MiB+i*8192)
			}
		}, "at most 8192 bytes may be written", true},
		{"far more than the limit", func(t *testing.T, d Disk, w *Work) {
			w.Job.Limit = inventory.GateBlock
			for i := range int64(5) {
				flip(t, d, (3+i)*MiB)
				flip(t, d, (3+i)*MiB+9000)
			}
		}, "at most 4096 bytes may be written", true},
		{"another table", func(t *testing.T, d Disk, _ *Work) {
			first, last, err := pack.FormatGPT(d.Size(), 512, pack.GUID{1}, []pack.Partition{
				{Type: pack.TypeESP.String(), GUID: pack.GUID{9}.String(), Name: "esp", Start: MiB, End: 2 * MiB}})
			if err != nil {
				t.Fatal(err)
			}
			_, a := d.WriteAt(first, 0)
			_, b := d.WriteAt(last, d.Size()-MiB)
			if err := errors.Join(a, b); err != nil {
				t.Fatal(err)
			}
			flip(t, d, 3*MiB)
		}, "the partition table is another one: partition 1 has GUID", true},
		{"no table", func(t *testing.T, d Disk, _ *Work) { flip(t, d, 512+20) }, "the partition table is another one", true},
		{"another disk", func(t *testing.T, d Disk, w *Work) { w.Job.Disk.Serial = "S2"; flip(t, d, 3*MiB) }, `has serial "S1", the job is for "S2"`, false},
		{"no lease", func(t *testing.T, d Disk, w *Work) { w.Lease = NewLease(nil); flip(t, d, 3*MiB) }, ErrLeaseLost.Error(), false},
		{"a region outside the image", func(t *testing.T, d Disk, w *Work) { w.Job.Regions[0].End = 15 * MiB }, "does not lie in the image", false},
		{"no region", func(t *testing.T, d Disk, w *Work) { w.Job.Regions = nil }, "names no region", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, d, w := provable(t, 5, "root")
			tt.spoil(t, d, &w)
			before := readAll(t, d)
			w.Job.Kind = inventory.JobRepair
			if _, err := Gate(context.Background(), w); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if !bytes.Equal(before, readAll(t, d)) {
				t.Error("it wrote to the disk")
			}
			if w.Job.Kind = inventory.JobGate; tt.differ {
				got, err := Gate(context.Background(), w)
				if err != nil || got.Verdict.Matches() {
					t.Errorf("a gate says %+v, %v", got.Verdict, err)
				}
			}
		})
	}
	_, _, _, w := provable(t, 5, "root")
	w.Job.Kind = inventory.JobWrite
	if _, err := Gate(context.Background(), w); err == nil {
		t.Error("a gate took a job to write")
	}
}

// What differs too much is counted as at least so much, and not fetched.
func TestGateDoesNotFetchAnImageToCount(t *testing.T) {
	_, s, d, w := provable(t, 6, "root")
	w.Job.Limit, w.Workers = 1, 1
	for i := range int64(5) {
		flip(t, d, (3+i)*MiB)
	}
	ranges := s.ranges
	got, err := Gate(context.Background(), w)
	if err != nil {
		t.Fatal(err)
	}
	r := got.Verdict.Regions[0]
	if n := s.ranges - ranges; n != 1 || r.Blocks != 5 || r.Want != "" || got.Verdict.Matches() {
		t.Errorf("%d requests, verdict %+v", n, r)
	}
}

func TestAgentObeysItsGate(t *testing.T) {
	p, b, d, w := provable(t, 7, "esp", "root")
	flip(t, d, 3*MiB+1)
	s := startServer(t)
	job := w.Job
	gateJob, repairJob := job, job
	gateJob.Kind, repairJob.Kind, repairJob.Attempt = inventory.JobGate, inventory.JobRepair, 2
	s.orders = []inventory.Order{{Kind: inventory.OrderGate, Job: &gateJob}, {Kind: inventory.OrderRepair, Job: &repairJob}, {Kind: inventory.OrderLocal, Reason: "go"}}
	path, err := d.Identity()
	if err != nil {
		t.Fatal(err)
	}
	out, err := run(t, newAgent(t, s, path.Name))
	if err != nil || out.Kind != inventory.OrderLocal {
		t.Fatalf("outcome %+v, %v", out, err)
	}
	var verdicts []string
	for _, r := range s.told() {
		if r.Step == inventory.AgentDone {
			verdicts = append(verdicts, fmt.Sprintf("attempt %d matches %t blocks %d", r.Attempt, r.Verdict.Matches(), r.Verdict.Blocks()))
		}
	}
	if want := []string{"attempt 1 matches false blocks 1", "attempt 2 matches true blocks 0"}; !slices.Equal(verdicts, want) {
		t.Errorf("verdicts %q, want %q", verdicts, want)
	}
	if got := readAll(t, d)[3*MiB : 4*MiB]; !bytes.Equal(got, p.img[3*MiB:4*MiB]) {
		t.Error("the block was not repaired")
	}
	_ = b
}

// kernelOf gives, of a disk that is the image, what of a region the files of a system
// could be: two pieces with a hole between, and one.
func kernelOf(p *packed, r inventory.Region) (k *inventory.JobKernel, kernel, initrd []byte) {
	file := func(path string, extents ...inventory.Extent) (inventory.DiskFile, []byte) {
		var b []byte
		for _, e := range extents {
			if e.Start == inventory.ZeroExtent {
				b = append(b, make([]byte, e.Length)...)
			} else {
				b = append(b, p.img[e.Start:e.Start+e.Length]...)
			}
		}
		return inventory.DiskFile{Path: path, Size: int64(len(b)), Digest: inventory.DigestOf(b), Extents: extents}, b
	}
	k = &inventory.JobKernel{Args: "root=/dev/vda2 ro"}
	k.Kernel, kernel = file("/vmlinuz", inventory.Extent{Start: r.Start + 8192, Length: 70000}, inventory.Extent{Start: inventory.ZeroExtent, Length: 4096}, inventory.Extent{Start: r.Start, Length: 5000})
	i, initrd := file("/initrd.img", inventory.Extent{Start: r.Start + 2*MiB, Length: MiB + 5})
	k.Initrd = &i
	return k, kernel, initrd
}

// A kernel is started only if its boot has proved the disk, and if every byte of it is
// the image's.
func TestAgentLoadsTheKernelThatWasProved(t *testing.T) {
	for _, tt := range []struct {
		name   string
		spoil  func(d Disk, gate, kexec *inventory.Job)
		refuse bool   // the kernel's own word
		abort  bool   // the server's, to the last report
		want   string // of the report; "" it is started
	}{
		{"as it was proved", func(Disk, *inventory.Job, *inventory.Job) {}, false, false, ""},
		{"without a ramdisk", func(_ Disk, _, kexec *inventory.Job) { kexec.Kernel.Initrd = nil }, false, false, ""},
		{"a byte of it changed since", func(d Disk, _, kexec *inventory.Job) { flip(t, d, kexec.Kernel.Kernel.Extents[0].Start+77) }, false, false, "/vmlinuz reads from the disk as "},
		{"a byte of its ramdisk", func(d Disk, _, kexec *inventory.Job) { flip(t, d, kexec.Kernel.Initrd.Extents[0].Start) }, false, false, "/initrd.img reads from the disk as "},
		{"not proved by this boot", func(_ Disk, gate, _ *inventory.Job) { gate.Disk.Serial = "S2" }, false, false, "was not proved by this boot"},
		{"no kernel", func(_ Disk, _, kexec *inventory.Job) { kexec.Kernel = nil }, false, false, "names no kernel"},
		{"another machine's", func(_ Disk, _, kexec *inventory.Job) { kexec.Machine = "m2" }, false, false, `the job is for "m2"`},
		{"beyond the disk", func(d Disk, _, kexec *inventory.Job) { kexec.Kernel.Kernel.Extents[0].Start = d.Size() - 5 }, false, false, "does not lie on the disk"},
		{"shorter than it says", func(_ Disk, _, kexec *inventory.Job) { kexec.Kernel.Kernel.Size++ }, false, false, "its pieces have 79096 bytes, and it has 79097"},
		{"one that the kernel refuses", func(Disk, *inventory.Job, *inventory.Job) {}, true, false, "load /vmlinuz: key was rejected"},
		{"after the server has moved on", func(Disk, *inventory.Job, *inventory.Job) {}, false, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _, d, w := provable(t, 8, "esp", "root")
			s := startServer(t)
			gate, kexec := w.Job, w.Job
			gate.Kind, kexec.Kind, kexec.Attempt = inventory.JobGate, inventory.JobKexec, 2
			var kernel, initrd []byte
			kexec.Kernel, kernel, initrd = kernelOf(p, w.Job.Regions[1])
			tt.spoil(d, &gate, &kexec)
			s.orders = []inventory.Order{{Kind: inventory.OrderGate, Job: &gate}, {Kind: inventory.OrderKexec, Job: &kexec}, {Kind: inventory.OrderLocal, Reason: "restart"}}
			before := readAll(t, d)
			id, err := d.Identity()
			if err != nil {
				t.Fatal(err)
			}
			a := newAgent(t, s, id.Name)
			s.reply = func(r inventory.Report) inventory.ReportReply {
				return inventory.ReportReply{Abort: tt.abort && r.Attempt == 2 && r.Step == inventory.AgentDone, Reason: "it is about another boot or job", LeaseSeconds: 300}
			}
			loaded := 0
			if m := a.Machine.(simMachine); !tt.refuse {
				m.load = func(k, i []byte, args string) {
					if loaded++; !bytes.Equal(k, kernel) || kexec.Kernel.Initrd != nil && !bytes.Equal(i, initrd) || kexec.Kernel.Initrd == nil && i != nil || args != "root=/dev/vda2 ro" {
						t.Errorf("loaded %d and %d bytes with %q", len(k), len(i), args)
					}
				}
				a.Machine = m
			}
			out, err := run(t, a)
			last := s.ended(t)
			want, ended := inventory.OrderKexec, inventory.AgentDone
			if tt.want != "" {
				want, ended = inventory.OrderLocal, inventory.AgentFailed
			} else if tt.abort {
				want = inventory.OrderLocal
			}
			if err != nil || out.Kind != want || last.Attempt != 2 || last.Step != ended || !strings.Contains(last.Error, tt.want) || (loaded == 1) != (tt.want == "") {
				t.Errorf("outcome %+v, %v; loaded %d times; reported %s: %q", out, err, loaded, last.Step, last.Error)
			}
			if !bytes.Equal(before, readAll(t, d)) {
				t.Error("it wrote to the disk")
			}
		})
	}
}

func TestGatedDiskComesSecondAndIsNextOnce(t *testing.T) {
	vars := fakeVars{}
	net := LoadOption{Attributes: 1, Description: "PXE", Path: []byte{0x7f, 0xff, 4, 0}}
	vars[bootName(3)], vars[bootName(4)] = net.Encode(), net.Encode()
	vars[bootOrder], vars[bootCurrent] = []byte{4, 0, 3, 0}, []byte{3, 0}
	e := inventory.EFIEntry{Label: inventory.BootLabel, Loader: `\EFI\BOOT\BOOTX64.EFI`, Second: true}
	for range 2 { // the second time changes nothing
		if _, err := setBootEntry(vars, e, systemPart{number: 1, id: pack.GUID{7}}); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(vars[bootOrder]); got != "030000000400" {
			t.Errorf("boot order %s, want 0003,0000,0004", got)
		}
	}
	text, err := bootNext(vars, inventory.BootLabel)
	if err != nil || !strings.Contains(text, "Boot0000") || !bytes.Equal(vars[bootNextName], []byte{0, 0}) {
		t.Errorf("%q, %v, BootNext %x", text, err, vars[bootNextName])
	}
	if text, err := bootNext(fakeVars{}, inventory.BootLabel); text != "" || err != nil {
		t.Errorf("without an entry: %q, %v", text, err)
	}
	if text, err := bootNext(nil, inventory.BootLabel); text != "" || err != nil {
		t.Errorf("under a BIOS: %q, %v", text, err)
	}
}
