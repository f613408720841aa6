package testenv

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"recast/pack"
)

// newSimRestore is a rack of machines whose every boot puts back all but the ESP.
func newSimRestore(t *testing.T, machines int) (*simServer, []byte) {
	s := newSimServer(t)
	raw := SimImage(simImageSize, 7)
	d := simDeclare{Image: s.addImage(raw), State: "[esp]", Failures: "1", Spec: "  boot: {every: restore}\n"}
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range machines {
		s.add(i+1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, !o.UEFI })
	}
	s.apply(d)
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
	}
	return s, raw
}

// simRoot is where the root partition stands on a disk now.
func simRoot(t testing.TB, d *SimDisk) pack.Partition {
	t.Helper()
	layout, err := d.layout()
	simMust(t, err)
	root, err := layout.Find("root")
	simMust(t, err)
	return root
}

// simDrift writes to places all over the root partition, as its system does while it
// runs, and to the ESP.
func simDrift(t testing.TB, d *SimDisk, r *rand.Rand) {
	t.Helper()
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	simMust(t, err)
	defer f.Close()
	root := simRoot(t, d)
	for range 60 {
		at := root.Start + r.Int64N(root.End-root.Start-8192)
		b := make([]byte, 1+r.IntN(8192))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		_, err := f.WriteAt(b, at)
		simMust(t, err)
	}
	_, err = f.WriteAt([]byte("kept"), 1<<20+r.Int64N(1<<19))
	simMust(t, err)
}

// simGrow makes a partition reach up to the config partition, as a system does at its
// first start with its root, and tells where it ends now.
func simGrow(t testing.TB, d *SimDisk, name string) (part pack.Partition) {
	t.Helper()
	layout, err := d.layout()
	simMust(t, err)
	parts := layout.Partitions
	for i := range parts {
		if parts[i].Name == name {
			parts[i].End = parts[i+1].Start
			part = parts[i]
		}
	}
	id, err := pack.ParseGUID(layout.GUID)
	simMust(t, err)
	first, last, err := pack.FormatGPT(d.ID.Size, d.ID.LogicalBlockSize, id, parts)
	simMust(t, err)
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	simMust(t, err)
	defer f.Close()
	_, err = f.ReadAt(first[:440], 0) // boot code
	simMust(t, err)
	_, a := f.WriteAt(first, 0)
	_, b := f.WriteAt(last, d.ID.Size-int64(len(last)))
	simMust(t, errors.Join(a, b))
	return part
}

// restored is what a disk is after its gate, that was this before.
func restored(t testing.TB, d *SimDisk, before, image []byte) []byte {
	t.Helper()
	want := bytes.Clone(before)
	start, end := int64(2<<20), int64(len(image))-1<<20 // the root partition of SimImage
	copy(want[start:end], image[start:end])
	return want
}

func TestEveryBootPutsBackAllButState(t *testing.T) {
	s, raw := newSimRestore(t, 6)
	r := rand.New(rand.NewPCG(1, 9))
	for _, m := range s.machines {
		s.awaitReport(m, s.restart(m, func() { simGrow(t, m.Disks[0], "root") })) // else its pass is good for one more start
	}
	// More often than a gate may repair in an hour, and more machines than may fail.
	for round := range 5 {
		starts, want := map[*Simulated]int{}, map[*Simulated][]byte{}
		for _, m := range s.machines {
			starts[m] = s.restart(m, func() {
				if round < 4 {
					simDrift(t, m.Disks[0], r)
				}
				want[m] = restored(t, m.Disks[0], simBytes(t, m), raw)
			})
		}
		for _, m := range s.machines {
			s.awaitReport(m, starts[m])
			if have := simBytes(t, m); !bytes.Equal(have, want[m]) {
				t.Fatalf("round %d: the disk of %s is not: root as declared, all else as it was", round, m.Options.Name)
			}
			v, verdict := s.awaitActive(m.Options.Name, 20*time.Second), "restored"
			if round == 4 {
				verdict = "matches"
			}
			if g := v.Status.Gate; g.Verdict != verdict || v.Status.Evidence.Level != "read-back" || len(v.Status.Findings) > 0 || v.Status.Hold != nil {
				t.Errorf("round %d: %v, gate %+v, evidence %+v", round, v, g, v.Status.Evidence)
			}
			if path := strings.Join(m.path(starts[m]), " → "); !strings.HasPrefix(path, "ramdisk: gate, boot ") {
				t.Errorf("round %d: %s went by %s", round, m.Options.Name, path)
			}
		}
	}
	said := 0
	for _, l := range s.timeline("m01") {
		if strings.Contains(l.Text, "under the intent that stands") || strings.HasPrefix(l.Text, "restored: ") {
			said++
		}
	}
	if said != 8 {
		t.Errorf("%d lines of the timeline are about four uses of the standing intent", said)
	}
}

func TestARestoreThatIsCutDoesNotBootUntilItIsTakenUp(t *testing.T) {
	s, raw := newSimRestore(t, 2)
	r := rand.New(rand.NewPCG(2, 9))
	for _, m := range s.machines {
		var want []byte
		start := s.restartAndCut(m, 100<<10, func() {
			simDrift(t, m.Disks[0], r)
			want = restored(t, m.Disks[0], simBytes(t, m), raw)
		})
		if m.Disks[0].Bootable() || simHas(m.path(start), simDiskStarted) {
			t.Errorf("half restored it boots, or did: %q", m.path(start))
		}
		start = len(m.Boots())
		simMust(t, m.PowerOn(t.Context()))
		s.awaitReport(m, start)
		if !bytes.Equal(simBytes(t, m), want) {
			t.Error("the disk is not: root as declared, all else as it was")
		}
		if v := s.awaitActive(m.Options.Name, 20*time.Second); v.Status.Gate.Verdict != "restored" || v.Status.Hold != nil {
			t.Errorf("%v, gate %+v", v, v.Status.Gate)
		}
	}
}
