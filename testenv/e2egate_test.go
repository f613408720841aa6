package testenv

import (
	"os"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// gateKernel is the kernel of tiny, with an argument that its own boot loader does not
// give it.
const gateKernel = "{partition: " + osTinyName + ", kernel: /boot/vmlinuz, initrd: /boot/initrd, args: [quiet, panic=10, net.ifnames=0, by=kexec]}"

// gateWord has a machine tell on its console what started its kernel.
const gateWord = "#!/bin/sh\necho \"arguments: $(cat /proc/cmdline)\"\n"

// gateStory plays a machine whose every boot is proved.
type gateStory struct {
	*story
	img   OSImage
	begun time.Time
}

// deploy writes the image to every machine, with a gate that repairs.
func (s *gateStory) deploy(d RackDeclare) (names []string) {
	s.t.Helper()
	s.begun = time.Now()
	s.declare(d)
	for _, m := range s.Options.Machines {
		names = append(names, m.Name)
	}
	p := s.apply("--erase", strings.Join(names, ","))
	s.active(p, 8*time.Minute)
	for _, name := range names {
		if s.count(name, s.begun, "every boot is proved from now on; on a mismatch: repair") != 1 {
			s.t.Errorf("%s: the standing intent is not on the timeline", name)
		}
	}
	return names
}

// boots switches the machines off, lets change spoil their disks, switches them on and
// waits until each was handed over so and its system reported itself. by tells whether
// that was started by kexec.
func (s *gateStory) boots(names []string, change func(name string), handed string, by bool) {
	s.t.Helper()
	reports, here := map[string]int{}, map[string]int64{}
	for _, name := range names {
		s.recast("power", "off", name)
	}
	for _, name := range names {
		s.await(name, "off", time.Minute, func(storyView) bool { return !s.Node(name).Powered() })
		if change != nil {
			change(name)
		}
		reports[name], here[name] = s.count(name, s.begun, "the system reports generation"), s.here(name)
		s.recast("power", "on", name)
	}
	for _, name := range names {
		s.until(name+" is handed over and reports itself", 6*time.Minute, func() bool {
			return s.count(name, s.begun, handed) == 1 && s.count(name, s.begun, "the system reports generation") > reports[name]
		})
		v := s.await(name, "active", time.Minute, func(v storyView) bool { return v.Status.Phase == "active" && v.Status.Health == "healthy" })
		if len(v.Status.Findings) > 0 || v.Status.Evidence.Level != "read-back" {
			s.t.Errorf("%s: evidence %s, findings %q", name, v.Status.Evidence.Level, v.Status.Findings)
		}
		if got := s.says(name, here[name], `arguments: (.*)\r?\n`, time.Minute)[1]; strings.Contains(got, "by=kexec") != by || by && !strings.Contains(got, "console=ttyS0") {
			s.t.Errorf("%s: its kernel was started with %q", name, got)
		}
		s.checkDisk(name, s.img, gateWord)
		var path []string
		for _, l := range s.timeline(name) {
			if l.Time.After(s.begun) && l.Kind != "seen" {
				path = append(path, l.Text)
			}
		}
		s.t.Logf("%s:\n%s", name, strings.Join(path, "\n"))
	}
}

// TestGateOnRealFirmware: every boot of a BIOS and of a UEFI goes through the ramdisk,
// which repairs what was tampered with and hands over by kexec, or by a restart where
// the machine is declared so.
func TestGateOnRealFirmware(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	s := &gateStory{story: newStory(t, storySetup{Takes: 20 * time.Minute, Machines: []RackMachine{
		{Name: "bios", Firmware: FirmwareBIOS, BMC: BMCIPMI, NetworkFirst: true}, {Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish, NetworkFirst: true}}})}
	s.img = s.image("gate")
	s.ready(s.img)
	d := RackDeclare{Image: s.img.Digest, UserData: gateWord, Immutable: "[2, " + osTinyName + "]", Kernel: gateKernel, MaxFailures: "100%",
		Spec: "  boot: {every: gate, onMismatch: repair}\n  evidence: {minimum: read-back}\n"}
	names := s.deploy(d)
	s.boots(names, func(name string) {
		if name == "bios" {
			s.flip(s.Node(name).Disks[0].Path, 300)             // the code of its first sector
			s.flip(s.Node(name).Disks[0].Path, osBIOSStart+600) // and GRUB's core, which it starts
			return
		}
		if _, err := s.Tamper(name, "2", 70000); err != nil {
			t.Fatal(err)
		}
	}, "handed over by kexec: /boot/vmlinuz ", true)
	for name, want := range map[string]string{"bios": "not as it was written: 1 1 of its blocks, the first at byte 0; boot code 1 of its blocks, the first at byte 0; may write 2 blocks", "uefi": "may write 1 blocks"} {
		if s.count(name, s.begun, want) != 1 {
			t.Errorf("%s: %q is not on the timeline", name, want)
		}
	}
	d.Handover = inventory.HandoverReboot
	s.declare(d)
	if p := s.apply(); len(p.Entries) != 0 {
		t.Errorf("how it is handed over is no other generation, but the plan would %s", p.machines())
	}
	s.boots(names, nil, "handed over by a restart: its boot.handover is reboot", false)

	// The same image, put back at every boot from now on: what a system wrote is gone.
	d.Immutable, d.State, d.Handover, d.Spec = "", "[2]", "", "  boot: {every: restore}\n  evidence: {minimum: read-back}\n"
	s.begun = time.Now()
	s.declare(d)
	s.active(s.apply(), 8*time.Minute)
	s.boots(names, func(name string) {
		for _, at := range []int64{1 << 20, 2<<20 + 77} {
			if _, err := s.Tamper(name, osTinyName, at); err != nil {
				t.Fatal(err)
			}
		}
	}, "handed over by kexec: /boot/vmlinuz ", true)
	for _, name := range names {
		if s.count(name, s.begun, "restored: ") != 1 {
			t.Errorf("%s: no restore is on the timeline", name)
		}
	}
}

// TestGateUnderSecureBoot: the same where the firmware starts signed loaders only: the
// ramdisk comes by shim and GRUB from the network, and the disk by shim and GRUB of its own.
func TestGateUnderSecureBoot(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	s := &gateStory{story: newStory(t, storySetup{Takes: 20 * time.Minute, Machines: []RackMachine{
		{Name: "signed", Firmware: FirmwareUEFI, SecureBoot: true, BMC: BMCRedfish, NetworkFirst: true}}})}
	var err error
	s.img, err = BuildOS(t.Context(), OSOptions{Kind: OSTiny, CacheDir: s.parts.cache, KernelDeb: s.parts.kernel, AgentBin: s.parts.agent, Variant: "gate", Signed: true})
	s.must(err)
	d := RackDeclare{Image: s.img.Digest, UserData: gateWord, Immutable: "[2, " + osTinyName + "]", Kernel: gateKernel, MaxFailures: "100%",
		Spec: "  boot: {every: gate, onMismatch: repair, handover: kexec}\n  evidence: {minimum: read-back}\n"}
	s.ready(s.img)
	s.declare(d)
	if p := s.plan("--erase", "signed"); len(p.Entries) != 1 || !strings.Contains(p.Entries[0].Blocked, "recast does not know who signed the image's") {
		t.Errorf("the plan says %+v", p.Entries)
	}
	d.Spec = strings.Replace(d.Spec, ", handover: kexec", "", 1)
	names := s.deploy(d)
	s.boots(names, func(name string) {
		if _, err := s.Tamper(name, "2", 70000); err != nil {
			t.Fatal(err)
		}
	}, "handed over by a restart: it is declared secureBoot: true", false)
	if s.count("signed", s.begun, "may write 1 blocks") != 1 {
		t.Error("no repair is on the timeline")
	}
}

// TestServerAwayOnRealFirmware: a machine whose gate may be passed by starts its disk
// without the server, and it shows; one whose gate refuses starts over until the server
// is back.
func TestServerAwayOnRealFirmware(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	t.Run("lastGood", func(t *testing.T) {
		s := newStory(t, storySetup{Takes: 8 * time.Minute, Machines: []RackMachine{{Name: "bios", Firmware: FirmwareBIOS, BMC: BMCIPMI, NetworkFirst: true}}})
		s.gated("bios", "lastGood", "read-back")
		here, starts := s.here("bios"), time.Now()
		s.server.Kill()
		s.must(s.Node("bios").PowerOff(t.Context()))
		s.must(s.Node("bios").PowerOn(t.Context()))
		s.says("bios", here, storyBooted, 4*time.Minute)
		s.serve()
		v := s.await("bios", "known as unverified", 3*time.Minute, func(v storyView) bool { return s.count("bios", starts, "the system reports generation") == 1 })
		if out := s.recast("get", "machines"); !strings.Contains(out, "unverified, reported") {
			t.Errorf("%v: %s", v, out)
		}
		if out := s.recast("describe", "machine", "bios"); !strings.Contains(out, "its last start was not proved") {
			t.Errorf("it does not say so: %s", out)
		}
	})
	t.Run("refuse", func(t *testing.T) {
		s := newStory(t, storySetup{Takes: 30 * time.Minute, Machines: []RackMachine{{Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish, OwnOrder: true}}})
		s.gated("uefi", "refuse", "enforced")
		here, starts := s.here("uefi"), time.Now()
		s.server.Kill()
		s.must(s.Node("uefi").PowerOff(t.Context()))
		s.must(s.Node("uefi").PowerOn(t.Context()))
		// A round is minutes long: edk2 asks by PXE and HTTP, each over IPv4 and IPv6.
		s.until("it starts over", 12*time.Minute, func() bool {
			_, after, said := strings.Cut(s.console("uefi", here), "this machine does not start without it")
			return said && strings.Contains(after, "Start PXE over IPv4")
		})
		if text := s.console("uefi", here); strings.Contains(text, storyBooted) {
			t.Errorf("it started its disk:\n%s", text)
		}
		s.serve()
		s.until("it reports itself", 12*time.Minute, func() bool { return s.count("uefi", starts, "the system reports generation") == 1 })
		if text := s.console("uefi", here); strings.Count(text, storyBooted) != 1 {
			t.Errorf("its system started %d times", strings.Count(text, storyBooted))
		}
		if out := s.recast("get", "machines"); !strings.Contains(out, "enforced, ") {
			t.Errorf("%s", out)
		}
		// Nobody declares it any more, as after the loss of a store: a look gives it its disk back.
		s.declare(RackDeclare{Image: s.image("gate").Digest, Immutable: "[1, 2]", Unknown: inventory.UnknownDiscover, Only: []string{}})
		s.apply()
		here = s.here("uefi")
		s.must(s.Node("uefi").PowerOff(t.Context()))
		s.must(s.Node("uefi").PowerOn(t.Context()))
		s.until("it starts its disk, undeclared", 12*time.Minute, func() bool { return strings.Contains(s.console("uefi", here), storyBooted) })
		if text := s.console("uefi", here); strings.Count(text, "which started it over, is gone from the firmware's boot order") != 1 || strings.Contains(text, "this machine does not start without it") {
			t.Errorf("it was not the order that was given back:\n%s", text)
		}
	})
}

// gated deploys a machine for a gate, and awaits it in sync.
func (s *story) gated(name, onServerDown, minimum string) {
	s.t.Helper()
	img := s.image("gate")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("gate"), Immutable: "[1, 2]", MaxFailures: "100%",
		Spec: "  boot: {every: gate, onMismatch: hold, onServerDown: " + onServerDown + "}\n  evidence: {minimum: " + minimum + "}\n"})
	s.active(s.apply("--erase", name), 10*time.Minute)
}

// storyBooted begins what an installed system says of itself on its console.
const storyBooted = "recast-tiny: machine="
