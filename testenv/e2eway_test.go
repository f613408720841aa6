package testenv

import (
	"os"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// TestMachinesWithoutDHCPArriveByVirtualMedia: nobody gives addresses on their wire.
// Each finds its own, with loader and nonce, on the CD that its BMC is told to read.
func TestMachinesWithoutDHCPArriveByVirtualMedia(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	machines := []RackMachine{{Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish, Drive: true}, {Name: "bios", Firmware: FirmwareBIOS, BMC: BMCRedfish, Drive: true}}
	s := newStory(t, storySetup{Takes: 12 * time.Minute, Machines: machines})
	img := s.image("media")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("media"), DHCP: inventory.DHCPOff, Via: inventory.BootMedia,
		Spec: "  identity: {minimum: L1}\n"})
	heard := s.listenDHCP()
	begun, here := time.Now(), map[string]int64{}
	var names []string
	for _, n := range s.Nodes {
		names = append(names, n.Name)
		here[n.Name] = s.here(n.Name)
	}
	p := s.apply("--erase", strings.Join(names, ","))
	s.active(p, 9*time.Minute)
	for _, e := range p.Entries {
		here := here[e.Machine]
		s.checkRunning(e, here, img, "media")
		s.checkDisk(e.Machine, img, storySays(e.Machine, "media"))
		n := s.Node(e.Machine)
		if said := s.says(e.Machine, here, `address=(\S+)`, time.Minute)[1]; said != n.IP.String() {
			t.Errorf("the system of %s has address %s, want %s", e.Machine, said, n.IP)
		}
		for _, text := range []string{"insert the virtual medium and set boot from it: done", "its BMC reads the virtual medium"} {
			if s.count(e.Machine, begun, text) != 1 {
				t.Errorf("%s: the timeline does not say once %q", e.Machine, text)
			}
		}
		if n.medium != nil {
			t.Errorf("the medium is still in the drive of %s", e.Machine)
		}
		if v := s.await(e.Machine, "identity", time.Second, func(storyView) bool { return true }); v.Status.Identity != inventory.L1 {
			t.Errorf("%s claimed with identity %q, want L1", e.Machine, v.Status.Identity)
		}
	}
	if _, answered := heard(); answered != 0 {
		t.Errorf("DHCP was answered %d times", answered)
	}
}

// TestMachineArrivesByHTTPBootFromAOneTimeAddress: DHCP gives it an address, and
// nothing to boot; what it boots by came through its BMC.
func TestMachineArrivesByHTTPBootFromAOneTimeAddress(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots a machine for minutes: only where RECAST_LONG is set")
	}
	s := newStory(t, storySetup{Machines: []RackMachine{{Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish}}})
	img := s.image("httpboot")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("http"), Via: inventory.BootHTTP, Spec: "  identity: {minimum: L1}\n"})
	begun, here := time.Now(), s.here("uefi")
	p := s.plan("--erase", "uefi")
	if why := p.Entries[0].Why; !strings.Contains(why, "not a listener") {
		t.Errorf("the plan does not say what plain HTTP is worth: %s", why)
	}
	s.recast("apply", "--plan", p.Digest.String())
	s.active(p, 6*time.Minute)
	s.checkRunning(p.Entries[0], here, img, "http")
	s.checkDisk("uefi", img, storySays("uefi", "http"))
	if s.count("uefi", begun, "set UEFI HTTP Boot from a one-time address: done") != 1 {
		t.Error("the timeline does not name how it was armed")
	}
	for _, l := range s.timeline("uefi") {
		if strings.Contains(l.Text, "/boot/once/uefi") {
			t.Errorf("the one-time address stands in the timeline: %s", l.Text)
		}
	}
	if v := s.await("uefi", "identity", time.Second, func(storyView) bool { return true }); v.Status.Identity != inventory.L1 {
		t.Errorf("it claimed with identity %q, want L1", v.Status.Identity)
	}
}
