package testenv

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// debianWord is user data that writes a file, and says on the console what the
// running system then holds.
func debianWord(word string) string {
	return `#cloud-config
hostname: ${machine.name}
write_files:
  - path: /etc/recast-word
    content: |
      ${machine.name} says ` + word + `
runcmd:
  - ['sh', '-c', 'echo "word: $(cat /etc/recast-word), host $(hostname), instance $(cat /var/lib/cloud/data/instance-id), $(. /etc/os-release; echo $ID)" >/dev/ttyS0']
`
}

// TestDebianRack brings both machines to a Debian with systemd and cloud-init,
// from powered-off machines and an empty store.
func TestDebianRack(t *testing.T) {
	s := newStory(t, storySetup{OS: OSDebian, Takes: 12 * time.Minute})
	img := s.image("")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: debianWord("one")})
	p := s.apply("--erase", "r1u01,r1u02")
	if p.machines() != "write r1u01, write r1u02" {
		t.Fatalf("the plan would %s", p.machines())
	}
	s.active(p, 11*time.Minute)
	for _, e := range p.Entries {
		// Each attempt is an instance of its own: machine, generation, attempt.
		want := fmt.Sprintf("%s says one, host %s, instance %s-%s-1, debian", e.Machine, e.Machine, e.Machine, e.To.Short())
		if got := strings.TrimSpace(s.says(e.Machine, 0, `word: (.* says .*)\r?\n`, 3*time.Minute)[1]); got != want {
			t.Errorf("%s says %q, want %q", e.Machine, got, want)
		}
	}
}

// debianDrift is user data of a system that writes to its disk what no image holds,
// and says how large its root has grown.
const debianDrift = `#cloud-config
hostname: ${machine.name}
runcmd:
  - ['sh', '-c', 'dd if=/dev/urandom of=/var/drift bs=1M count=24 && rm -r /usr/share/zoneinfo && sync && echo "drift: root of $(df -k --output=size / | tail -n 1) KiB, instance $(cat /var/lib/cloud/data/instance-id)" >/dev/ttyS0']
`

// TestDebianIsPutBackAndMovesWhatChanged is a Debian that writes to its disk and grows
// its root: each of its boots begins with the declared blocks, and to the next frozen
// release and back it moves what changed, and what it wrote.
func TestDebianIsPutBackAndMovesWhatChanged(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("builds operating systems, and boots them for minutes: only where RECAST_LONG is set")
	}
	images, size := map[string]OSImage{}, int64(0)
	for name := range osReleaseRules {
		img := debianRelease(t, name, nil)
		images[name], size = img, max(size, img.Size)
	}
	const name = "deb"
	s := newStory(t, storySetup{OS: OSDebian, Takes: time.Hour, DiskSize: (size + 768*osMiB) &^ (osMiB - 1),
		Machines: []RackMachine{{Name: name, Firmware: FirmwareBIOS, BMC: BMCRedfish, NetworkFirst: true}}})
	s.ready(images["base"])
	for _, release := range []string{"userland", "kernel"} {
		s.recast("image", "add", images[release].Path, "--digest", images[release].Digest.String())
	}
	n := s.Node(name)
	drifts := func(img OSImage, here int64, what string) {
		t.Helper()
		text := s.says(name, here, `drift: root of +(\d+) KiB, instance \S+\r?\n`, 12*time.Minute)[1]
		kib, err := strconv.ParseInt(text, 10, 64)
		s.must(err)
		if kib<<10 < img.Size {
			t.Errorf("%s: its root has %d KiB, and did not grow beyond its image of %d", what, kib, img.Size>>10)
		}
		t.Logf("%s: its root has grown to %d KiB", what, kib)
	}
	for i, step := range []struct {
		to    string
		share int64 // most that is fetched of the image, in a hundred
	}{{"base", 105}, {"userland", 25}, {"base", 25}, {"kernel", 70}, {"base", 70}} {
		img := images[step.to]
		s.declare(RackDeclare{Image: img.Digest, UserData: debianDrift, State: "[]", Spec: "  boot: {every: restore}\n  health: {deadline: 20m}\n"})
		begun := time.Now()
		p := s.apply("--erase", name)
		e := p.Entries[0]
		v := s.await(name, "written", 15*time.Minute, func(v storyView) bool { return v.Status.Step == "starting" || v.Status.Phase == "failed" })
		s.must(n.PowerOff(t.Context())) // before its firmware has found the disk
		if v.Status.Moved == nil {
			t.Fatalf("%v", v)
		}
		s.checkDisk(name, img, strings.ReplaceAll(debianDrift, "${machine.name}", name))
		t.Logf("%s: planned to fetch %d; fetched %d, wrote %d in %v: %.1f %% of %d", step.to, e.FetchBytes, v.Status.Moved.Fetched, v.Status.Moved.Written,
			time.Since(begun).Round(time.Second), 100*float64(v.Status.Moved.Fetched)/float64(e.ImageBytes), e.ImageBytes)
		if v.Status.Moved.Fetched*100 > step.share*e.ImageBytes {
			t.Errorf("%s: more than %d %% was fetched", step.to, step.share)
		}
		here := s.here(name)
		s.must(n.PowerOn(t.Context()))
		s.active(p, 15*time.Minute)
		drifts(img, here, step.to)
		if i > 0 {
			continue
		}
		// A cut, with its file systems mounted.
		s.must(n.PowerOff(t.Context()))
		if _, _, same := s.differs(name, img); same {
			t.Fatal("its system wrote nothing")
		}
		here, begun = s.here(name), time.Now()
		s.must(n.PowerOn(t.Context()))
		s.until("it is put back", 8*time.Minute, func() bool { return s.count(name, begun, "restored: ") > 0 })
		s.must(n.PowerOff(t.Context()))
		part, grown, same := s.differs(name, img)
		if !same {
			t.Errorf("partition %d is not the image's", part)
		}
		if !grown {
			t.Error("its root partition is no larger than the image's any more")
		}
		for _, l := range s.timeline(name) {
			if !l.Time.Before(begun) {
				t.Logf("%s: %s", l.Kind, l.Text)
			}
		}
		s.must(n.PowerOn(t.Context()))
		drifts(img, here, step.to+" again")
		s.until("it reports itself", 5*time.Minute, func() bool { return s.count(name, begun, "the system reports generation") > 0 })
	}
}

// differs compares each of an image's partitions with what stands on a machine's disk:
// the first that is another, and whether one has grown there.
func (s *story) differs(name string, img OSImage) (number int, grown, same bool) {
	s.t.Helper()
	disk, _, have := s.layout(s.Node(name).Disks[0].Path)
	source, _, want := s.layout(img.Path)
	defer disk.Close()
	defer source.Close()
	same = true
	for i, w := range want.Partitions {
		grown = grown || have.Partitions[i].End > w.End
		a, b := make([]byte, osMiB), make([]byte, osMiB)
		for at := w.Start; at < w.End; at += osMiB {
			part := min(osMiB, w.End-at)
			_, e1 := disk.ReadAt(a[:part], at)
			_, e2 := source.ReadAt(b[:part], at)
			s.must(e1)
			s.must(e2)
			if !bytes.Equal(a[:part], b[:part]) && same {
				number, same = w.Number, false
			}
		}
	}
	return number, grown, same
}
