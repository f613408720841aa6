package testenv

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

// TestUndeclaredMachineGoesBackToItsDisk boots machines that nobody declared
// from the network: where the Network says discover one is shown, with what would
// declare it; where it says nothing the other gets no answer. Both keep their systems.
func TestUndeclaredMachineGoesBackToItsDisk(t *testing.T) {
	s := newStory(t, storySetup{Machines: []RackMachine{
		{Name: "shown", Firmware: FirmwareUEFI, BMC: BMCNone}, {Name: "ignored", Firmware: FirmwareBIOS, BMC: BMCNone},
	}})
	img := s.image("stray")
	s.serve()
	declare := func(mode inventory.UnknownMode) {
		t.Helper()
		s.declare(RackDeclare{Image: img.Digest, Only: []string{}, Unknown: mode})
		if p := s.apply(); len(p.Entries) != 0 {
			t.Errorf("the plan would %s", p.machines())
		}
	}
	// start boots a machine from the network and returns what must hold in the end.
	start := func(name string) (itsDisk func()) {
		t.Helper()
		n := s.Node(name)
		s.install(name, img)
		before, here := s.diskSum(name), s.here(name)
		s.must(n.SetBootOnce(BootOnce{Device: BootPXE, UEFI: n.UEFI()}))
		s.must(n.PowerOn(t.Context()))
		return func() {
			t.Helper()
			if got := s.says(name, here, `recast-tiny: (machine=.*)\r?\n`, 5*time.Minute)[1]; !strings.Contains(got, "variant=stray") {
				t.Errorf("%s started %q", name, got)
			}
			if after := s.diskSum(name); after != before || s.written(name) != 0 {
				t.Errorf("the disk of %s was changed: %d bytes written", name, s.written(name))
			}
			s.must(n.PowerOff(t.Context()))
		}
	}

	declare(inventory.UnknownDiscover)
	itsDisk := start("shown")
	var found []struct {
		MAC   inventory.MAC
		YAML  string
		Facts inventory.Facts
	}
	s.until("it is shown", 4*time.Minute, func() bool {
		s.ask(&found, "get", "discovered")
		return len(found) > 0
	})
	n := s.Node("shown")
	if d := found[0]; d.MAC != n.MAC || d.Facts.SystemVendor.SerialNumber != n.Serial || len(d.Facts.Disks) != 1 || d.Facts.Disks[0].Serial != n.Disks[0].Serial {
		t.Errorf("it is shown as %+v", found)
	}
	raw, err := os.ReadFile(s.yaml)
	s.must(err)
	set, err := inventory.Parse([]inventory.File{{Name: "rack.yaml", Data: raw}, {Name: "found.yaml", Data: []byte(found[0].YAML)}})
	if err != nil {
		t.Fatalf("the YAML that declares it: %v\n%s", err, found[0].YAML)
	}
	if m := set.MachineByMAC(n.MAC); m == nil || m.Serial != n.Serial || !strings.EqualFold(m.UUID, n.UUID) {
		t.Errorf("the YAML declares %+v:\n%s", m, found[0].YAML)
	}
	itsDisk()

	declare(inventory.UnknownIgnore)
	heard := s.listenDHCP()
	itsDisk = start("ignored")
	itsDisk()
	if asked, answered := heard(); asked == 0 || answered != 0 {
		t.Errorf("it asked for an address %d times and was answered %d times; want none", asked, answered)
	}
}

// install puts an image on a machine's disk, as if it had come so.
func (s *story) install(name string, img OSImage) {
	s.t.Helper()
	in, err := os.Open(img.Path)
	s.must(err)
	defer in.Close()
	disk, err := os.OpenFile(s.Node(name).Disks[0].Path, os.O_WRONLY, 0)
	s.must(err)
	_, err = io.Copy(disk, in)
	s.must(errors.Join(err, disk.Close()))
}

// listenDHCP counts the DHCP packets on the rack's wire from now until the
// returned function is called.
func (s *story) listenDHCP() (stop func() (asked, answered int)) {
	s.t.Helper()
	fd := -1
	s.must(s.Net.Do(func() (err error) {
		bridge, err := net.InterfaceByName(NetBridge)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8&0xff) // in network order; ETH_P_IP would not show what goes out
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: bridge.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}))
	}))
	quit := make(chan struct{})
	var asked, answered int
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			select {
			case <-quit:
				return
			default:
			}
			size, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil || size < 28 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_UDP {
				continue // a timeout, or another packet
			}
			udp := b[int(b[0]&15)*4:]
			switch {
			case binary.BigEndian.Uint16(udp) == 67:
				answered++
			case binary.BigEndian.Uint16(udp[2:]) == 67:
				asked++
			}
		}
	})
	return func() (int, int) {
		close(quit)
		wg.Wait()
		unix.Close(fd)
		return asked, answered
	}
}
