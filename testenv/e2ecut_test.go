package testenv

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"recast/inventory"
	"recast/pack"
)

// cutDisk judges the disk of a machine in QEMU: where firmware finds a table on it, all
// its partitions are those of the generation that its marker names, or what they were
// before.
type cutDisk struct {
	images  map[inventory.Digest]OSImage
	drifted []byte // of the root partition; nil: nothing was written to it
}

func (c cutDisk) judge(path string) (half bool, err error) {
	disk, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	size := int64(len(disk))
	layout, _, err := pack.ParseLayout(disk[:osMiB], size)
	primary, backup := err == nil && layout.Scheme != pack.SchemeNone, bytes.HasPrefix(disk[size-osSector:], []byte("EFI PART"))
	switch {
	case !primary && !backup:
		return true, nil
	case !primary: // erased but for its backup: nothing else may be touched, and nothing names it any more
		return true, nil
	case !backup:
		return false, fmt.Errorf("it boots, and its table has no backup")
	}
	marker, err := simMarker(bytes.NewReader(disk), size)
	if err != nil {
		return false, fmt.Errorf("it boots, and %w", err)
	}
	img, ok := c.images[marker.Generation]
	if !ok {
		return false, fmt.Errorf("it boots, and says that it is generation %s", marker.Generation.Short())
	}
	image, err := os.ReadFile(img.Path)
	if err != nil {
		return false, err
	}
	want, _, err := pack.ParseLayout(image[:osMiB], int64(len(image)))
	if err != nil {
		return false, err
	}
	if why := want.Differs(&layout); why != "" {
		return false, fmt.Errorf("it boots, and %s", why)
	}
	for _, p := range want.Partitions {
		have := disk[p.Start:p.End]
		if !bytes.Equal(have, image[p.Start:p.End]) && (c.drifted == nil || p.Number != 3 || !bytes.Equal(have, c.drifted)) {
			return false, fmt.Errorf("it boots, and partition %d is neither the image's nor what it was before", p.Number)
		}
	}
	return false, nil
}

// TestMachinesCutAnywhereBootTheWholeTruth cuts power, network and server of a machine
// in QEMU at random moments of writes, re-images and repairs, ten times.
func TestMachinesCutAnywhereBootTheWholeTruth(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("RECAST_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("RECAST_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	kinds := []string{"power", "power", "power", "power", "network", "network", "network", "server", "server", "server"}
	r.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })

	const name = "cut"
	s := newStory(t, storySetup{Takes: 50 * time.Minute, Machines: []RackMachine{{Name: name, Firmware: FirmwareBIOS, BMC: BMCRedfish, NetworkFirst: true}}})
	images := []OSImage{s.image("first"), s.image("second")}
	s.ready(images[0])
	s.recast("image", "add", images[1].Path, "--digest", images[1].Digest.String())
	n := s.Node(name)
	judge := cutDisk{images: map[inventory.Digest]OSImage{}}
	vm := func(command string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		m := n.QEMU
		m.mu.Lock()
		defer m.mu.Unlock()
		s.must(m.run.qmp.execute(ctx, command, nil, nil))
	}
	halves := 0
	look := func(when string) {
		t.Helper()
		half, err := judge.judge(n.Disks[0].Path)
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if half {
			halves++
		}
		t.Logf("%s: half written and unbootable: %t", when, half)
	}
	cut := func(kind, op string) {
		t.Helper()
		when := fmt.Sprintf("%s cut in a %s", kind, op)
		pause := time.Duration(r.Int64N(int64(5 * time.Second)))
		switch kind {
		case "power":
			s.must(n.PowerOff(t.Context()))
			look(when)
			_ = simPause(t.Context(), pause)
			s.must(n.PowerOn(t.Context()))
		case "network":
			s.must(s.Net.SetLink(n.NICs[0].Tap, false))
			vm("stop")
			look(when)
			vm("cont")
			_ = simPause(t.Context(), 2*pause)
			s.must(s.Net.SetLink(n.NICs[0].Tap, true))
		case "server":
			s.server.Kill()
			vm("stop")
			look(when)
			vm("cont")
			_ = simPause(t.Context(), pause)
			s.kill()
		}
	}
	// reached waits until the machine has written so much, or has ended before.
	reached := func(from, most int64, ended func() bool) {
		t.Helper()
		at := from + r.Int64N(most)
		s.until(fmt.Sprintf("%d bytes are written", at-from), 8*time.Minute, func() bool { return s.written(name) >= at || ended() })
	}
	for i := 0; i < len(kinds); i += 2 {
		img, word, op := images[i/2%2], fmt.Sprintf("round%d", i/2), "difference"
		if i == 0 || r.IntN(3) == 0 {
			op = "write"
			s.blank(name)
		}
		s.declare(RackDeclare{Image: img.Digest, UserData: storyWord(word), State: "[]", Spec: "  boot: {every: restore}\n"})
		p := s.apply("--erase", name)
		judge.images[p.Entries[0].To] = img
		s.inStep(name, "writing", 5*time.Minute)
		s.slowDisk(name, 0, slowly)
		most := int64(4 * osMiB)
		if op == "write" {
			most = 16 * osMiB
		}
		reached(s.written(name), most, func() bool {
			return s.await(name, "looked at", time.Minute, func(storyView) bool { return true }).Status.Step == "starting"
		})
		cut(kinds[i], op)
		if n.Powered() {
			s.slowDisk(name, 0, 0)
		}
		s.active(p, 8*time.Minute)

		s.must(n.PowerOff(t.Context()))
		judge.drifted = nil
		look("arrived")
		for at := int64(0); at < 12*osMiB; at += 400_000 {
			if _, err := s.Tamper(name, "3", at+r.Int64N(300_000)); err != nil {
				t.Fatal(err)
			}
		}
		disk, err := os.ReadFile(n.Disks[0].Path)
		s.must(err)
		root := s.root(n.Disks[0].Path)
		judge.drifted = bytes.Clone(disk[root.Start:root.End])
		begun := time.Now()
		s.must(n.PowerOn(t.Context()))
		s.until("it is being put back", 5*time.Minute, func() bool { return s.count(name, begun, "under the intent that stands") > 0 })
		s.slowDisk(name, 0, slowly/12)
		reached(s.written(name), 100<<10, func() bool { return s.count(name, begun, "restored: ") > 0 })
		cut(kinds[i+1], "repair")
		if n.Powered() {
			s.slowDisk(name, 0, 0)
		}
		s.until("it is put back and reports itself", 8*time.Minute, func() bool {
			return s.count(name, begun, "as it was written: ") > 0 && s.count(name, begun, "the system reports generation") > 0
		})
		judge.drifted = nil
		s.must(n.PowerOff(t.Context()))
		look("put back")
		s.checkDisk(name, img, storySays(name, word))
		s.must(n.PowerOn(t.Context()))
		if t.Failed() {
			return
		}
	}
	t.Logf("%d cuts, %d of them left a disk that did not boot", len(kinds), halves)
	if halves == 0 {
		t.Error("no cut met anything half way")
	}
}

// root is the third partition of a disk, where our systems have it.
func (s *story) root(path string) pack.Partition {
	s.t.Helper()
	f, _, layout := s.layout(path)
	defer f.Close()
	p, err := layout.Find("3")
	s.must(err)
	return p
}
