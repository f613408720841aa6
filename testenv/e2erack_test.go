package testenv

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// storyWord is user data that a running machine repeats on its console.
func storyWord(word string) string {
	return "#!/bin/sh\necho \"word: ${machine.name} says " + word + "\"\n"
}

// storySays is the same as it must stand on a machine's disk.
func storySays(name, word string) string {
	return strings.ReplaceAll(storyWord(word), "${machine.name}", name)
}

// checkRunning asks the machine itself: its host name, generation and image as
// it prints them when it starts, and what its user data did.
func (s *story) checkRunning(e storyEntry, since int64, img OSImage, word string) {
	s.t.Helper()
	firmware := s.Node(e.Machine).Firmware
	got := s.says(e.Machine, since, `recast-tiny: (machine=.*)\r?\n`, time.Minute)[1]
	want := fmt.Sprintf("machine=%s generation=%s hostname=%s variant=%s firmware=%s", e.Machine, e.To, e.Machine, img.Variant, firmware)
	if strings.TrimSpace(got) != want {
		s.t.Errorf("the machine says %q, want %q", got, want)
	}
	if said := s.says(e.Machine, since, `word: (\S+ says \S+)`, time.Minute)[1]; said != e.Machine+" says "+word {
		s.t.Errorf("the machine's user data says %q, want that %s says %s", said, e.Machine, word)
	}
}

// TestRackIsDeployedChangedAndRolledBack is the main job on two machines, BIOS
// behind IPMI and UEFI behind Redfish, from powered-off machines and an empty
// store: deploy, change, roll back, lose what can be lost.
func TestRackIsDeployedChangedAndRolledBack(t *testing.T) {
	machines := RackDefault()
	// A second disk, which the hint does not fit.
	machines[1].Disks = append(machines[1].Disks, RackDisk{Size: 32 * osMiB, Bus: BusNVMe})
	s := newStory(t, storySetup{Machines: machines, Takes: 15 * time.Minute})
	both := []string{"r1u01", "r1u02"}
	first := s.image("first")
	second := s.image("second")
	// The operator's own copy of the image, deleted later.
	source := filepath.Join(s.Options.Dir, "first.img")
	copyFile(t, source, first.Path)
	s.ready(OSImage{Path: source, Digest: first.Digest})

	here := map[string]int64{}
	mark := func() {
		for _, name := range both {
			here[name] = s.here(name)
		}
	}
	checkAll := func(p storyPlan, img OSImage, word string) {
		s.t.Helper()
		for _, e := range p.Entries {
			s.checkRunning(e, here[e.Machine], img, word)
			s.checkDisk(e.Machine, img, storySays(e.Machine, word))
		}
		other, err := os.ReadFile(s.Node("r1u02").Disks[1].Path)
		s.must(err)
		if len(bytes.Trim(other, "\xa5")) != 0 {
			s.t.Error("the disk that the hint does not fit was written")
		}
	}

	s.sub("a disk that holds something is not erased unless its machine is named", func() {
		before := s.diskSum("r1u01")
		s.declare(RackDeclare{Image: first.Digest, UserData: storyWord("one"), Only: both[:1]})
		if p := s.apply(); p.machines() != "inspect r1u01" {
			s.t.Errorf("the plan would %s, want it to inspect r1u01", p.machines())
		}
		v := s.await("r1u01", "asks", 4*time.Minute, func(v storyView) bool { return v.Status.LastError != "" })
		if v.Status.Phase != "available" || !strings.Contains(v.Status.LastError, "LAB0001-0 holds") ||
			!strings.Contains(v.Status.NextAction, "--erase r1u01") {
			s.t.Errorf("%v; want it to say what the disk holds and to ask for its name", v)
		}
		p := s.plan()
		if len(p.Entries) != 1 || !strings.Contains(p.Entries[0].Disk, "LAB0001-0") || p.Entries[0].Holds == "" ||
			!strings.Contains(p.Entries[0].Blocked, "--erase r1u01") {
			s.t.Errorf("the plan says %+v; want the disk by serial, what it holds, and why it is left out", p.Entries)
		}
		if after := s.diskSum("r1u01"); after != before || s.written("r1u01") != 0 {
			s.t.Errorf("the disk was changed: %s, %d bytes written", after, s.written("r1u01"))
		}
	})

	s.sub("both are deployed", func() {
		s.declare(RackDeclare{Image: first.Digest, UserData: storyWord("one")})
		mark()
		p := s.plan("--erase", "r1u01,r1u02")
		if p.machines() != "write r1u01, write r1u02" {
			s.t.Fatalf("the plan would %s", p.machines())
		}
		if by := p.Entries[0].Disk; !strings.Contains(by, "LAB0001-0") {
			s.t.Errorf("the disk of r1u01, which was inspected, is %q; want its serial", by)
		}
		if by := p.Entries[1].Disk; !strings.Contains(by, "minSize") {
			s.t.Errorf("the disk of r1u02, which nobody has seen, is %q; want the hint", by)
		}
		s.recast("apply", "--plan", p.Digest.String())
		s.active(p, 8*time.Minute)
		checkAll(p, first, "one")
	})

	s.sub("a changed line of user data: the canary first", func() {
		declared := RackDeclare{Image: first.Digest, UserData: storyWord("never"), Canary: "1"}
		s.declare(declared)
		outdated := s.plan()
		declared.UserData = storyWord("two")
		s.declare(declared)
		mark()
		begun := time.Now()
		p := s.apply()
		if p.machines() != "write r1u01, write r1u02" {
			s.t.Fatalf("the plan would %s", p.machines())
		}
		for i, e := range p.Entries {
			serial := fmt.Sprintf("LAB%04d-0", i+1)
			if !strings.Contains(e.Disk, serial) || !strings.Contains(e.Holds, e.From.Short()) || e.WriteBytes == 0 || e.WriteBytes > first.Size/4 || e.FetchBytes == 0 || e.FetchBytes > e.ImageBytes/4 || e.From == e.To {
				s.t.Errorf("the plan says %+v; want disk %s, that it holds generation %s, and hardly a byte of %d", e, serial, e.From.Short(), first.Size)
			}
		}
		if out, code := s.try("apply", "--plan", outdated.Digest.String()); code != 4 || !strings.Contains(out, "out of date") {
			s.t.Errorf("apply of an outdated plan: exit code %d: %s", code, out)
		}
		s.active(p, 10*time.Minute)
		checkAll(p, first, "two")
		canary, other := s.when("r1u01", begun, "active"), s.when("r1u02", begun, "deploying")
		if canary.IsZero() || other.Before(canary) {
			s.t.Errorf("r1u02 began at %v, before the canary was active at %v", other, canary)
		}
	})

	s.sub("another image, and a BMC that loses the boot flag", func() {
		s.recast("image", "add", second.Path)
		before := s.diskSum("r1u02")
		wrote := s.written("r1u02")
		s.Node("r1u02").SetFaults(func(f *BMCFaults) { f.LoseBoot = true })
		s.declare(RackDeclare{Image: second.Digest, UserData: storyWord("two"), Spec: "  attempts: 1\n"})
		mark()
		p := s.apply()
		if p.machines() != "write r1u01, write r1u02" {
			s.t.Fatalf("the plan would %s", p.machines())
		}
		v := s.await("r1u02", "failed", 6*time.Minute, func(v storyView) bool { return v.Status.Phase == "failed" })
		if !strings.Contains(v.Status.LastError, "no network boot") || !strings.Contains(v.Status.NextAction, "recast retry r1u02") {
			s.t.Errorf("%v; want the reason and the next action", v)
		}
		if after := s.diskSum("r1u02"); after != before || s.written("r1u02") != wrote {
			s.t.Errorf("the disk was changed: %s, %d bytes written, before %d", after, s.written("r1u02"), wrote)
		}
		s.Node("r1u02").SetFaults(func(f *BMCFaults) { f.LoseBoot = false })
		s.recast("retry", "r1u02")
		s.await("r1u02", "deploying again", time.Minute, func(v storyView) bool { return v.Status.Phase == "deploying" })
		s.active(p, 8*time.Minute)
		checkAll(p, second, "two")
	})

	s.sub("rolled back, the image's source gone", func() {
		s.must(os.Remove(source))
		mark()
		text := s.recast("rollback", "lab", "--yes")
		var p storyPlan
		for _, name := range both {
			v := s.await(name, "deploying", time.Minute, func(v storyView) bool { return v.Status.Phase == "deploying" })
			p.Entries = append(p.Entries, storyEntry{Machine: name, To: v.Wanted, ToRendered: v.WantedRendered})
		}
		if !strings.Contains(text, p.Entries[0].To.Short()) {
			s.t.Errorf("rollback says %s; the machines go to %s", text, p.Entries[0].To)
		}
		s.active(p, 8*time.Minute)
		checkAll(p, first, "two")
	})

	s.sub("out of the files and in again", func() {
		inSync := RackDeclare{Image: first.Digest, UserData: storyWord("two")}
		s.declare(inSync)
		if p := s.apply(); len(p.Entries) != 0 {
			s.t.Errorf("the files say what runs, but the plan would %s", p.machines())
		}
		sum, wrote, looked := s.diskSum("r1u02"), s.written("r1u02"), s.here("r1u02")
		inSync.Only = both[:1]
		s.declare(inSync)
		if p := s.apply(); len(p.Entries) != 0 {
			s.t.Errorf("without r1u02 the plan would %s", p.machines())
		}
		var orphans []struct{ Name string }
		if s.ask(&orphans, "get", "orphans"); len(orphans) != 1 || orphans[0].Name != "r1u02" {
			s.t.Errorf("orphans: %+v", orphans)
		}
		inSync.Only = nil
		s.declare(inSync)
		if p := s.apply(); len(p.Entries) != 0 {
			s.t.Errorf("added again, the plan would %s", p.machines())
		}
		s.await("r1u02", "in sync again", time.Minute, func(v storyView) bool { return v.Sync == "in sync" && v.Status.Phase == "active" })
		if !s.Node("r1u02").Powered() || s.here("r1u02") != looked || s.written("r1u02") != wrote || s.diskSum("r1u02") != sum {
			s.t.Error("r1u02 was touched")
		}
	})

	s.sub("the store is lost", func() {
		s.must(s.server.Stop(time.Minute))
		s.must(os.Remove(filepath.Join(s.server.Data, "recast.db")))
		s.watch.forget()
		sums, wrote := map[string]any{}, map[string]int64{}
		for _, name := range both {
			sums[name], wrote[name] = s.diskSum(name), s.written(name)
		}
		s.serve()
		s.setSecret()
		s.recast("freeze", "--reason", "the store was lost")
		p := s.apply()
		if strings.Contains(p.machines(), "write") || len(p.Entries) != 2 {
			s.t.Errorf("the plan would %s", p.machines())
		}
		// They reach their disks, also by way of the network. (OVMF would ask there
		// for two minutes before it goes on, so it starts by its own order.)
		mark()
		s.must(s.Node("r1u01").SetBootOnce(BootOnce{Device: BootPXE}))
		for _, name := range both {
			s.must(s.Node(name).Reset(s.t.Context()))
		}
		for _, name := range both {
			s.says(name, here[name], `recast-tiny: (machine=.*)\r?\n`, 4*time.Minute)
		}
		if n := s.count("r1u01", time.Time{}, "boot-script local"); n == 0 {
			s.t.Errorf("r1u01 did not ask the network and was not sent to its disk: %+v", s.timeline("r1u01"))
		}
		s.recast("adopt", "r1u01", "r1u02")
		for _, e := range p.Entries {
			s.await(e.Machine, "adopted", 5*time.Minute, func(v storyView) bool {
				return v.Status.Phase == "active" && v.Status.Running == e.To && v.Status.RunningRendered == e.ToRendered
			})
		}
		s.recast("unfreeze")
		if p := s.plan(); len(p.Entries) != 0 {
			s.t.Errorf("adopted, but the plan would %s: %+v", p.machines(), p.Entries)
		}
		for _, name := range both {
			if s.diskSum(name) != sums[name] || s.written(name) != wrote[name] {
				s.t.Errorf("the disk of %s was changed", name)
			}
		}
	})
}

// when is the first line since a time that says the machine entered a phase.
func (s *story) when(name string, since time.Time, phase string) time.Time {
	s.t.Helper()
	for _, l := range s.timeline(name) {
		if !l.Time.Before(since) && l.Kind == "phase" && l.Text == phase {
			return l.Time
		}
	}
	return time.Time{}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
