package testenv

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"recast/inventory"
)

// simReleases adds two releases of one system.
func simReleases(t *testing.T, s *simServer) (raw [2][]byte, digests [2]inventory.Digest) {
	t.Helper()
	if _, err := osLook("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4 (apt-get install e2fsprogs)")
	}
	for n := range raw {
		path := filepath.Join(t.TempDir(), "release.img")
		simMust(t, BuildRelease(t.Context(), path, 5, n))
		var err error
		raw[n], err = os.ReadFile(path)
		simMust(t, err)
		digests[n] = s.addImage(raw[n])
	}
	return raw, digests
}

// checkImage compares a disk with an image: every partition, and what is in front.
func checkImage(t *testing.T, d *SimDisk, want []byte) {
	t.Helper()
	got, err := os.ReadFile(d.Path)
	simMust(t, err)
	end := len(want) - osMiB
	if !bytes.Equal(got[osMiB:end], want[osMiB:end]) || !d.Bootable() {
		t.Errorf("%s is not the image", d.Path)
	}
}

// A re-image moves what changed, there and back, also from a disk that drifted and
// over a server that is killed while it builds.
func TestAReimageMovesWhatChanged(t *testing.T) {
	s := newSimServer(t)
	raw, images := simReleases(t, s)
	s.setSecret(simSecret, simUser+":"+simPassword)
	big := func(o *SimulatedOptions) { o.Disks[0].Size = 96 * osMiB }
	machines := []*Simulated{s.add(1, big), s.add(2, big)}
	s.apply(simDeclare{Image: images[0]})
	for _, m := range machines {
		s.awaitActive(m.Options.Name, time.Minute)
		checkImage(t, m.Disks[0], raw[0])
	}

	// The second machine has lived: it wrote to its root, and behind the image.
	life, err := os.OpenFile(machines[1].Disks[0].Path, os.O_WRONLY, 0)
	simMust(t, err)
	for i := range 30 {
		_, err := life.WriteAt(bytes.Repeat([]byte{byte(i)}, 3000), int64(osRootStart+i*osMiB+i*4096))
		simMust(t, err)
	}
	_, err = life.WriteAt(bytes.Repeat([]byte("grown"), 1000), int64(len(raw[0]))+osMiB)
	simMust(t, err)
	simMust(t, life.Close())

	s.kill()
	s.start() // differences are built by a server that knows of the images from its records
	forth := s.plan(simDeclare{Image: images[1]})
	s.kill()
	s.start()
	if again := s.plan(simDeclare{Image: images[1]}); again.Digest != forth.Digest || again.Entries[0] != forth.Entries[0] {
		t.Errorf("after a kill the plan is %+v, was %+v", again, forth)
	}
	check := func(p simPlan, raw []byte) {
		t.Helper()
		if len(p.Entries) != 2 {
			t.Fatalf("the plan is %+v", p)
		}
		s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
		for i, e := range p.Entries {
			if e.Whole != "" || e.FetchBytes*4 > e.ImageBytes || e.WriteBytes == 0 {
				t.Errorf("%s would fetch %d and write %d of %d: %q", e.Machine, e.FetchBytes, e.WriteBytes, e.ImageBytes, e.Whole)
			}
			v := s.awaitActive(e.Machine, time.Minute)
			checkImage(t, machines[i].Disks[0], raw)
			moved := v.Status.Moved
			t.Logf("%s: planned %d and %d of %d, moved %d and %d", e.Machine, e.FetchBytes, e.WriteBytes, e.ImageBytes, moved.Fetched, moved.Written)
			if machines[i] == machines[1] {
				continue // it drifted
			}
			// Beside the image a write has its configuration, both tables and the zeros first.
			const beside = 8 * osMiB
			if moved.Fetched > e.FetchBytes+e.FetchBytes/10+256<<10 || moved.Written < e.WriteBytes || moved.Written > e.WriteBytes+beside {
				t.Errorf("%s was to fetch %d and write %d, and moved %+v", e.Machine, e.FetchBytes, e.WriteBytes, moved)
			}
		}
	}
	check(forth, raw[1])
	var back simPlan
	s.must(http.MethodPost, "/api/v1/rollback", map[string]any{"group": "sim"}, &back)
	check(back, raw[0])
}
