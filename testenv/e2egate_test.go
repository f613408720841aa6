package testenv

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestGateOnRealFirmware: every boot of a BIOS and of a UEFI goes through the ramdisk,
// which repairs what was tampered with and hands over by a restart.
func TestGateOnRealFirmware(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	s := newStory(t, storySetup{Takes: 15 * time.Minute, Machines: []RackMachine{
		{Name: "bios", Firmware: FirmwareBIOS, BMC: BMCIPMI, NetworkFirst: true}, {Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish, NetworkFirst: true}}})
	img := s.image("gate")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("gate"), Immutable: "[1, 2]", MaxFailures: "100%",
		Spec: "  boot: {every: gate, onMismatch: repair}\n  evidence: {minimum: read-back}\n"})
	begun := time.Now()
	p := s.apply("--erase", "bios,uefi")
	s.active(p, 8*time.Minute)
	for _, e := range p.Entries {
		name := e.Machine
		if s.count(name, begun, "every boot is proved from now on; on a mismatch: repair") != 1 {
			t.Errorf("%s: the standing intent is not on the timeline", name)
		}
		s.recast("power", "off", name)
		s.await(name, "off", time.Minute, func(storyView) bool { return !s.Node(name).Powered() })
		if _, err := s.Tamper(name, "2", 70000); err != nil {
			t.Fatal(err)
		}
		s.recast("power", "on", name)
	}
	for _, e := range p.Entries {
		name := e.Machine
		s.until(name+" is repaired and reports itself", 5*time.Minute, func() bool {
			return s.count(name, begun, "may write 1 blocks") == 1 && s.count(name, begun, "the system reports generation") == 2
		})
		v := s.await(name, "active", time.Minute, func(v storyView) bool { return v.runs(e) })
		if len(v.Status.Findings) > 0 {
			t.Errorf("%s: findings %q", name, v.Status.Findings)
		}
		s.checkDisk(name, img, storySays(name, "gate"))
		var paths []string
		for _, l := range s.timeline(name) {
			if l.Time.After(begun) && l.Kind != "seen" {
				paths = append(paths, l.Text)
			}
		}
		t.Logf("%s:\n%s", name, strings.Join(paths, "\n"))
	}
}
