package testenv

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// storyOne is a rack of the one machine that starts fastest.
func storyOne() []RackMachine { return RackDefault()[:1] }

// TestDamagedImageStartsNoMachine flips one bit of the pack where it lies. Mended,
// the machine arrives; then it is wiped.
func TestDamagedImageStartsNoMachine(t *testing.T) {
	s := newStory(t, storySetup{Machines: storyOne(), Takes: 10 * time.Minute})
	img := s.image("first")
	s.ready(img)

	var images []struct {
		Digest, Pack inventory.Digest
		PackSize     int64
		Damaged      string
	}
	s.ask(&images, "image", "list")
	s.flip(filepath.Join(s.server.Data, "images", "blobs", images[0].Pack.Hex()), images[0].PackSize/2)

	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("one")})
	p := s.apply("--erase", "r1u01")
	v := s.await("r1u01", "failed", 5*time.Minute, func(v storyView) bool { return v.Status.Phase == "failed" })
	if !strings.Contains(v.Status.LastError, "the image is damaged") || v.Status.FailedImage != img.Digest || !strings.Contains(v.Status.NextAction, "recast image add") {
		t.Errorf("%v; want it to name the image, and the cure", v)
	}
	s.checkUnbootable("r1u01")
	if s.ask(&images, "image", "list"); images[0].Damaged == "" {
		t.Errorf("the image is not shown as damaged: %+v", images)
	}

	here := s.here("r1u01")
	s.recast("image", "add", img.Path)
	// By itself, once the engine has heard of it.
	s.await("r1u01", "begun again", time.Minute, func(v storyView) bool { return v.Status.Phase != "failed" })
	s.active(p, 5*time.Minute)
	s.checkRunning(p.Entries[0], here, img, "one")
	s.checkDisk("r1u01", img, storySays("r1u01", "one"))
	s.sub("and is wiped", func() { s.wiped("r1u01", "LAB0001-0") })
}

// wiped wipes a machine's disk: a wrong serial touches nothing, the right one
// leaves zeros and a machine that is off, for the next apply to deploy.
func (s *story) wiped(name, serial string) {
	s.t.Helper()
	sum, wrote := s.diskSum(name), s.written(name)
	if out, code := s.try("wipe", name, "--serial", "LAB9999-0"); code != 4 || !strings.Contains(out, "disk serial "+serial) {
		s.t.Errorf("a wrong serial: exit code %d: %s", code, out)
	}
	if s.diskSum(name) != sum || s.written(name) != wrote {
		s.t.Error("a wrong serial changed the disk")
	}
	s.recast("wipe", name, "--serial", serial)
	v := s.await(name, "wiped", 5*time.Minute, func(v storyView) bool { return v.Status.Phase == "available" || v.Status.Phase == "failed" })
	if v.Status.Phase != "available" || v.Status.LastError != "" || v.Status.Running != "" {
		s.t.Errorf("%v, runs %q", v, v.Status.Running)
	}
	if s.Node(name).Powered() {
		s.t.Error("it is on")
	}
	raw, err := os.ReadFile(s.Node(name).Disks[0].Path)
	s.must(err)
	if left := len(raw) - bytes.Count(raw, []byte{0}); left != 0 {
		s.t.Errorf("%d of the disk's %d bytes are not zero", left, len(raw))
	}
	if p := s.plan(); p.machines() != "write "+name || p.Entries[0].Blocked != "" {
		s.t.Errorf("the plan would %s: %+v", p.machines(), p.Entries)
	}
}

// slowly makes writing, or reading back, last long enough for something to happen
// in the middle, and no request as long as the 30 s that the kernel waits.
const slowly = 3 * osMiB

// TestDiskThatKeepsOtherBytesIsFoundOut changes one bit on the disk between the
// write and the end of the read-back.
func TestDiskThatKeepsOtherBytesIsFoundOut(t *testing.T) {
	s := newStory(t, storySetup{Machines: storyOne()})
	img := s.image("first")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("one")})
	p := s.apply("--erase", "r1u01")
	s.inStep("r1u01", "writing", 3*time.Minute)
	s.slowDisk("r1u01", slowly, 0)
	s.inStep("r1u01", "verifying", 3*time.Minute)
	f, _, layout := s.layout(img.Path)
	f.Close()
	root := layout.Partitions[len(layout.Partitions)-1]
	s.flip(s.Node("r1u01").Disks[0].Path, root.End-3*osMiB) // not read back yet
	v := s.await("r1u01", "found out", 2*time.Minute, func(v storyView) bool { return v.Status.Attempt == 2 || v.Status.Phase == "active" })
	if !strings.Contains(v.Status.LastError, "read") {
		t.Errorf("%v; want that the disk does not read back as written", v)
	}
	s.checkUnbootable("r1u01")
	here := s.here("r1u01")
	s.active(p, 5*time.Minute)
	s.checkRunning(p.Entries[0], here, img, "one")
	s.checkDisk("r1u01", img, storySays("r1u01", "one"))
}

// kill is kill -9 of the server, and its start again.
func (s *story) kill() {
	s.t.Helper()
	s.server.Kill()
	s.watch.forget() // what it shows from here on, the new one says
	s.serve()
}

// blank switches a machine off and empties its disk, so that the next deployment
// has every byte to write.
func (s *story) blank(name string) {
	s.t.Helper()
	n := s.Node(name)
	s.must(n.PowerOff(s.t.Context()))
	s.must(errors.Join(os.Truncate(n.Disks[0].Path, 0), os.Truncate(n.Disks[0].Path, n.Disks[0].Size)))
}

// inStep awaits a step of a machine, fresh from the server.
func (s *story) inStep(name, step string, within time.Duration) storyView {
	s.t.Helper()
	return s.await(name, step, within, func(v storyView) bool { return v.Status.Step == step || v.Status.Phase == "failed" })
}

// TestMachineArrivesThoughTheServerIsKilled kills the server with the machine's
// claim under way and in the middle of the write: twice each, twenty times in a
// long run. The machine arrives in its first attempt, and one write is all that
// its disk sees.
func TestMachineArrivesThoughTheServerIsKilled(t *testing.T) {
	rounds, takes := 1, 8*time.Minute
	if os.Getenv("RECAST_LONG") != "" {
		rounds, takes = 5, time.Hour // four kills each
	}
	s := newStory(t, storySetup{Machines: storyOne(), Takes: takes})
	img := s.image("first")
	s.ready(img)
	kills := map[string]int{}
	for round := range rounds {
		word := "round" + string(rune('a'+round))
		s.declare(RackDeclare{Image: img.Digest, UserData: storyWord(word)})
		here, begun, wrote := s.here("r1u01"), time.Now(), s.written("r1u01")
		p := s.apply("--erase", "r1u01")
		// Once while loader, kernel and ramdisk are on their way, once when the agent
		// is about to claim.
		s.inStep("r1u01", "claiming", 3*time.Minute)
		for _, until := range []string{"", `recast agent`} {
			if until != "" {
				s.says("r1u01", here, until, 3*time.Minute)
			}
			v := s.await("r1u01", "to be killed under", time.Minute, func(storyView) bool { return true })
			if v.Status.Step == "claiming" {
				kills["claiming"]++
			}
			s.kill()
		}
		s.slowDisk("r1u01", 0, slowly)
		for done := int64(2 * osMiB); done <= 8*osMiB; done += 6 * osMiB {
			s.await("r1u01", "writing", 4*time.Minute, func(v storyView) bool {
				return v.Status.Step == "writing" && v.Status.Progress != nil && v.Status.Progress.Written > done
			})
			kills["writing"]++
			s.kill()
		}
		s.slowDisk("r1u01", 0, 0)
		s.active(p, 5*time.Minute)
		s.checkRunning(p.Entries[0], here, img, word)
		s.checkDisk("r1u01", img, storySays("r1u01", word))
		v := s.await("r1u01", "still active", time.Minute, func(v storyView) bool { return v.Status.Phase == "active" })
		if v.Status.Attempt != 1 {
			t.Errorf("it took %d attempts", v.Status.Attempt)
		}
		// A second erase would be followed by a second write.
		if wrote = s.written("r1u01") - wrote; wrote > img.Size+8*osMiB {
			t.Errorf("%d bytes written for an image of %d", wrote, img.Size)
		}
		if n := strings.Count(s.console("r1u01", here), "MiB are in their place"); n != 1 {
			t.Errorf("the ramdisk began to write %d times", n)
		}
		if n := s.count("r1u01", begun, "may erase"); n != 1 {
			t.Errorf("%d write intents", n)
		}
		s.blank("r1u01")
	}
	if kills["claiming"] < 2*rounds || kills["writing"] < 2*rounds {
		t.Errorf("the server was killed %v times", kills)
	}
}

// TestPowerFailsInMidWrite cuts the power twice: it comes back by itself the
// first time, the second time the server has to notice.
func TestPowerFailsInMidWrite(t *testing.T) {
	s := newStory(t, storySetup{Machines: storyOne()})
	img := s.image("first")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("one"), Spec: "  deadlines: {writing: 40s}\n"})
	begun := time.Now()
	p := s.apply("--erase", "r1u01")
	n := s.Node("r1u01")
	writes := func(more int64) {
		t.Helper()
		s.slowDisk("r1u01", 0, slowly)
		s.await("r1u01", "in the middle of the write", 3*time.Minute, func(v storyView) bool {
			return v.Status.Step == "writing" && v.Status.Progress != nil && v.Status.Progress.Written > more
		})
	}
	s.inStep("r1u01", "claiming", 3*time.Minute)
	writes(6 * osMiB)
	s.must(n.PowerOff(t.Context()))
	s.checkUnbootable("r1u01")

	here := s.here("r1u01")
	s.must(n.PowerOn(t.Context())) // the disk is first in its order, and starts nothing
	s.await("r1u01", "in the ramdisk again", 3*time.Minute, func(v storyView) bool { return v.Status.Restarts == 1 })
	writes(4 * osMiB)
	if text := s.console("r1u01", here); strings.Contains(text, "recast-tiny") || strings.Contains(text, "GRUB") {
		t.Error("the half-written disk was started")
	}
	s.must(n.PowerOff(t.Context()))
	s.checkUnbootable("r1u01")

	s.await("r1u01", "in its second attempt", 3*time.Minute, func(v storyView) bool { return v.Status.Attempt == 2 })
	here = s.here("r1u01")
	s.active(p, 5*time.Minute)
	// Under a fence of its own it is a first boot, not the first attempt's third.
	if v := s.inStep("r1u01", "", time.Minute); v.Status.Restarts != 0 {
		t.Errorf("%v; its ramdisk started again %d times", v, v.Status.Restarts)
	}
	s.checkRunning(p.Entries[0], here, img, "one")
	s.checkDisk("r1u01", img, storySays("r1u01", "one"))
	if n := s.count("r1u01", begun, "no byte moved"); n != 1 {
		t.Errorf("the reason of the second attempt stands %d times in the timeline", n)
	}
}
