package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

var simNumbers = regexp.MustCompile(`[0-9]+ bytes`)

// newLabStory is a story in the rack of a lab file; its faults are still to come.
func newLabStory(t *testing.T, lab LabFile) *story {
	t.Helper()
	s := &story{t: t, os: OSTiny}
	var options RackOptions
	if lab.QEMU() > 0 {
		e2eNeeds(t, storySetup{OS: OSTiny, Takes: 25 * time.Minute})
		var err error
		s.parts, err = e2eMake()
		simMust(t, err)
		options.DiskSize = s.image("first").Size + 64*osMiB
	} else {
		bin := simNeeds(t)
		s.parts = e2eParts{recast: bin, ramdisk: filepath.Join(t.TempDir(), "ramdisk")}
		simMust(t, SimRamdisk(s.parts.ramdisk))
	}
	options.Name, options.Dir, options.Machines = fmt.Sprintf("sim-%d-%d", os.Getpid(), e2eNumber.Add(1)), t.TempDir(), lab.Machines
	s.build(options)
	return s
}

// simNeeds skips the test where a lab of simulated machines cannot run, and gives the
// recast to run it with.
func simNeeds(t *testing.T) (bin string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (apt-get install iproute2)")
	}
	if _, err := exec.LookPath("go"); err != nil && os.Getenv("RECAST_BIN") == "" {
		t.Skip("needs go in the PATH, or RECAST_BIN=/path/to/recast")
	}
	loaders, err := ipxe.OpenLoaders()
	simMust(t, err)
	if !loaders.Have("snponly.efi") {
		t.Skip("needs boot loaders (make setup)")
	}
	bin, err = simBuild()
	simMust(t, err)
	return bin
}

// simStory is a served lab of simulated machines, with their image added.
func simStory(t *testing.T, yaml string) (*story, RackDeclare) {
	t.Helper()
	lab, err := ParseLabFile("LAB.yaml", []byte(yaml))
	simMust(t, err)
	s := newLabStory(t, lab)
	images, err := s.SimImages(s.Options.Dir)
	simMust(t, err)
	s.serve()
	s.setSecret()
	for group := range images {
		s.recast("image", "add", filepath.Join(s.Options.Dir, group+".img"))
	}
	for name, faults := range lab.Faults {
		simMust(t, s.SetFaults(name, faults))
	}
	return s, RackDeclare{Simulated: images, MaxUnavailable: lab.MaxUnavailable, MaxFailures: lab.MaxFailures}
}

// path is what a simulated machine went through, start by start.
func (s *story) path(name string) (out []string) {
	s.t.Helper()
	for _, m := range s.Simulated {
		if m.Options.Name == name {
			for _, b := range m.Boots() {
				out = append(out, strings.Join(b.Path, " → "))
			}
		}
	}
	return out
}

// checkSimDisk compares a disk with the image of the machine, but for the partition
// tables, and looks at what stands behind the image.
func (s *story) checkSimDisk(m *RackSimulated) {
	s.t.Helper()
	group := rackGroupSimulated
	if m.Options.firmware().Arch() == inventory.ARM64 {
		group = rackGroupARM64
	}
	want, err := os.ReadFile(filepath.Join(s.Options.Dir, group+".img"))
	simMust(s.t, err)
	got, err := os.ReadFile(m.Disks[0].Path)
	simMust(s.t, err)
	if !bytes.Equal(got[osMiB:simImageBytes-osMiB], want[osMiB:simImageBytes-osMiB]) || !m.Disks[0].Bootable() {
		s.t.Errorf("%s: its disk is not the image", m.Options.Name)
	}
}

// Each asks DHCP, TFTP and HTTP in its firmware's own way, and arrives.
func TestSimulatedMachinesArriveByTheirFirmwareOnTheWire(t *testing.T) {
	s, d := simStory(t, `
racks:
- {name: r1, machines: 4, kind: simulated}
machines:
  r1u03: {firmware: uefi-http}
  r1u04: {firmware: u-boot, bmc: ipmi}
`)
	s.declare(d)
	p := s.plan("--erase", "r1u01,r1u02,r1u03,r1u04")
	s.recast("apply", "--plan", p.Digest.String())
	s.active(p, 2*time.Minute)
	for name, want := range map[string]string{
		"r1u01": "ramdisk: deploy, attempt 1",
		"r1u02": "snponly.efi: # bytes by TFTP → ramdisk: deploy, attempt 1",
		"r1u03": "http: http://10.77.0.1:8080/boot/loader/snponly.efi → ramdisk: deploy, attempt 1",
		"r1u04": "ipxe-arm64.efi: # bytes by TFTP → ramdisk: deploy, attempt 1",
	} {
		want += " → reboots: the disk is written and read back ⇒ disk → reported"
		var got string
		s.until(name+" went "+want, 10*time.Second, func() bool { // it hears of it after us
			got = simNumbers.ReplaceAllString(strings.Join(s.path(name), " ⇒ "), "# bytes")
			return got == want || strings.HasSuffix(got, simReported)
		})
		if got != want {
			t.Errorf("%s went %q, want %q", name, got, want)
		}
	}
	for _, m := range s.Simulated {
		if n := len(m.Disks[0].Erases()); n != 1 {
			t.Errorf("%s: erased %d times", m.Options.Name, n)
		}
		s.checkSimDisk(m)
	}
}

// A rack of both kinds is one that recast takes, whatever its size.
func TestRackOfBothKindsIsDeclaredByItsYAML(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, c := range []struct {
		yaml             string
		subnet           string
		machines, groups int
	}{
		{"racks:\n- {name: r1, machines: 3, kind: simulated}\n- {name: r2, machines: 2}\nmachines: {r1u03: {firmware: u-boot}}", "10.77.0.0/24", 5, 3},
		{"racks:\n- {name: r1, machines: 300, kind: simulated, bmc: none}\n- {name: r2, machines: 2}", "10.77.0.0/16", 302, 2},
	} {
		lab, err := ParseLabFile("LAB.yaml", []byte(c.yaml))
		simMust(t, err)
		r, err := NewRack(t.Context(), RackOptions{Name: fmt.Sprintf("both-%d-%d", os.Getpid(), e2eNumber.Add(1)), Dir: t.TempDir(), DiskSize: 4 * osMiB, Machines: lab.Machines})
		simMust(t, err)
		defer r.Close()
		images, err := r.SimImages(r.Options.Dir)
		simMust(t, err)
		set, err := inventory.Parse([]inventory.File{{Name: "rack.yaml", Data: []byte(r.YAML(RackDeclare{Image: inventory.DigestOf(nil), Simulated: images}))}})
		if err != nil {
			t.Fatal(err)
		}
		if len(set.Machines) != c.machines || len(set.Groups) != c.groups || set.Networks[0].Subnet.String() != c.subnet {
			t.Errorf("%d machines in %d groups on %s; want %d in %d on %s", len(set.Machines), len(set.Groups), set.Networks[0].Subnet, c.machines, c.groups, c.subnet)
		}
		for _, m := range set.Machines {
			if m.NICs[0].MAC == "" || !m.NICs[0].IP.IsValid() {
				t.Errorf("%+v", m)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left, err := Nets(RackNamespace(r.Options.Name)); err != nil || len(left) != 0 {
			t.Errorf("left of the rack: %v, %v", left, err)
		}
	}
}
