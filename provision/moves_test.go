package provision

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/image"
	"recast/inventory"
	"recast/testenv"
)

func TestAnEntryTakesWhatItsDiskLacks(t *testing.T) {
	const a, b = "sha256:a", "sha256:b"
	to := ImageFacts{Size: 2000, Pack: 900, Index: 7}
	built := func(d image.Difference, why string) differenceOf {
		return func(from, to inventory.Digest) (image.Difference, string) {
			if from != a && from != b || to != b {
				t.Errorf("asked for %s to %s", from, to)
			}
			return d, why
		}
	}
	small := built(image.Difference{List: "sha256:l", Fetch: 40, Write: 500}, "")
	for name, c := range map[string]struct {
		e              Entry
		to             ImageFacts
		d              differenceOf
		fetch, written int64
		whole          string
	}{
		"a blank disk":          {Entry{toImage: b}, to, nil, 900, 2000, ""},
		"a foreign disk":        {Entry{toImage: b, look: true}, to, nil, 907, 2000, ""},
		"the image before":      {Entry{toImage: b, look: true, FromImage: a}, to, small, 47, 500, ""},
		"the same image":        {Entry{toImage: b, look: true, FromImage: b}, to, built(image.Difference{Fetch: 2, Write: 3}, ""), 9, 3, ""},
		"one that is not built": {Entry{toImage: b, look: true, FromImage: a}, to, built(image.Difference{}, "why"), 907, 2000, "why"},
		"nothing in common": {Entry{toImage: b, look: true, FromImage: a}, to, built(image.Difference{Fetch: 900, Write: 1999}, ""), 907, 1999,
			"image a, which its disk holds, has hardly a block of it"},
		"no index": {Entry{toImage: b, look: true, FromImage: a}, ImageFacts{Size: 2000, Pack: 900}, nil, 900, 2000, "the image's blocks are not indexed"},
	} {
		c.e.moves(c.to, c.d)
		if c.e.FetchBytes != c.fetch || c.e.WriteBytes != c.written || c.e.ImageBytes != 900 || c.e.Whole != c.whole {
			t.Errorf("%s: fetch %d, write %d of %d, %q; want %d, %d, %q", name,
				c.e.FetchBytes, c.e.WriteBytes, c.e.ImageBytes, c.e.Whole, c.fetch, c.written, c.whole)
		}
	}
}

func TestWhatADiskHoldsIsKnownByItsOwnWordOrAnUnfinishedErase(t *testing.T) {
	disk := inventory.DiskID{Name: "/dev/sda", Serial: "D1", Size: 64}
	other := inventory.DiskID{Name: "/dev/sdb", Serial: "D2", Size: 64}
	facts := func(m *inventory.Marker) *inventory.Facts {
		return &inventory.Facts{Disks: []inventory.DiskFacts{{Serial: "D2", Size: 64, Recast: &inventory.Marker{Image: "sha256:x"}}, {Serial: "D1", Size: 64, Recast: m}}}
	}
	kept := func(gen inventory.Digest) inventory.Digest {
		return map[inventory.Digest]inventory.Digest{"sha256:g": "sha256:a"}[gen]
	}
	for name, c := range map[string]struct {
		st   Status
		want inventory.Digest
	}{
		"nothing is known":               {Status{}, ""},
		"it says so":                     {Status{Facts: facts(&inventory.Marker{Image: "sha256:i", Generation: "sha256:g"})}, "sha256:i"},
		"it says its generation":         {Status{Facts: facts(&inventory.Marker{Generation: "sha256:g"})}, "sha256:a"},
		"a generation nobody kept":       {Status{Facts: facts(&inventory.Marker{Generation: "sha256:z"})}, ""},
		"it says nothing":                {Status{Facts: facts(nil), Disk: &disk, DiskImage: "sha256:i"}, ""},
		"it was erased and not finished": {Status{Facts: facts(nil), Disk: &disk, DiskImage: "sha256:i", Unfinished: true}, "sha256:i"},
		"another was":                    {Status{Facts: facts(nil), Disk: &other, DiskImage: "sha256:i", Unfinished: true}, ""},
	} {
		if got := beneath(c.st, disk, kept); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// bootHolding is boot of a machine whose disk says of itself what recast wrote.
func (s *site) bootHolding(i int, bootID string, m *inventory.Marker) (token string, job *inventory.Job) {
	s.t.Helper()
	reply, err := s.Claim(s.t.Context(), inventory.Claim{Nonce: s.nonce(i), MAC: testMAC(i), UUID: testUUID(i), Serial: fmt.Sprintf("SN%d", i), BootID: bootID}, testAddr(i))
	if err != nil {
		s.t.Fatal(err)
	}
	facts := testFacts(i, testUUID(i))
	facts.Disks[0].Recast = m
	o, err := s.Inventory(s.t.Context(), reply.Token, facts)
	if err != nil || o.Job == nil {
		s.t.Fatalf("order %+v, %v", o, err)
	}
	return reply.Token, o.Job
}

// finish a write and let the system report itself.
func (s *site) finish(name, token string, job *inventory.Job, fetched, written int64) {
	s.t.Helper()
	volume, err := s.ConfigVolume(s.t.Context(), token)
	if err != nil {
		s.t.Fatal(err)
	}
	boot := s.await(name, Deploying, StepWriting)
	m, _ := s.known(boot.Name)
	r := inventory.Report{BootID: m.snapshot().Intent.Claim.BootID, Fence: job.Fence, Attempt: job.Attempt, Step: inventory.AgentDone, Erased: true,
		ReadBack: job.Image.Digest, Fetched: fetched, Written: written}
	if _, err := s.Report(s.t.Context(), token, r); err != nil {
		s.t.Fatal(err)
	}
	token, said := reporter(s.t, volume)
	said.BootID, said.Hostname = "os"+r.BootID, name
	if err := s.Booted(s.t.Context(), token, said); err != nil {
		s.t.Fatal(err)
	}
	s.await(name, Active, StepNone)
}

func TestAReimageIsPlannedAndOrderedByTheDifference(t *testing.T) {
	s := newSite(t, 1)
	files := func() []inventory.File { return []inventory.File{{Name: "site.yaml", Data: []byte(s.yaml(true))}} }
	a := s.image
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	token, job := s.bootHolding(1, "b1", nil)
	if info, _ := s.images.Info(a); job.Image.Index != info.Index || job.Image.Difference != nil {
		t.Errorf("for a disk with something foreign: %+v", job.Image)
	}
	s.finish("m1", token, job, 1<<20, 2<<20)
	if m := s.await("m1", Active, StepNone).Status.Moved; m == nil || m.Fetched != 1<<20 || m.Written != 2<<20 {
		t.Errorf("moved %+v", m)
	}
	if said := s.Timeline("m1"); !strings.Contains(fmt.Sprint(said), "1.0 MiB fetched, 2.0 MiB written") {
		t.Errorf("the timeline says %v", said)
	}

	next := testenv.SimImage(4<<20, 1)
	copy(next[2<<20:], "another word")
	info, err := s.images.Add(t.Context(), bytes.NewReader(next), image.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.image = info.Digest
	set, err := inventory.Parse(files())
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.plan(set, nil)
	if err != nil || before.Entries[0].Whole == "" || before.Entries[0].FetchBytes < info.PackSize {
		t.Fatalf("before anything is built: %+v, %v", before, err)
	}
	p, err := s.Plan(t.Context(), files(), nil)
	if err != nil {
		t.Fatal(err)
	}
	e := p.Entries[0]
	if e.FromImage != a || e.Whole != "" || e.ImageBytes != info.PackSize || e.FetchBytes == 0 || e.FetchBytes > e.ImageBytes*3/4 || e.WriteBytes == 0 || e.WriteBytes >= info.Size {
		t.Errorf("the plan says %+v", e)
	}
	if p.Digest != before.Digest {
		t.Error("the digest of a plan depends on what is built")
	}
	if _, err := s.Apply(t.Context(), p.Digest, "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
	token, job = s.bootHolding(1, "b2", &inventory.Marker{Machine: "m1", Image: a, Generation: e.From, Attempt: 1})
	d, _ := s.images.Built(a, info.Digest)
	want := &inventory.JobDifference{List: d.List, Pack: d.Pack, From: a, FromSize: 4 << 20}
	if diff := cmp.Diff(want, job.Image.Difference); diff != "" || job.Image.Index != info.Index {
		t.Errorf("index %s, difference (-want +got):\n%s", job.Image.Index.Short(), diff)
	}
	// Once erased the disk says nothing of itself any more, and holds most of it still.
	if _, err := s.Report(t.Context(), token, inventory.Report{BootID: "b2", Fence: job.Fence, Attempt: 1, Step: inventory.AgentWriting, Erased: true, Total: 1}); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if _, err := s.Report(t.Context(), token, inventory.Report{BootID: "b2", Fence: job.Fence, Attempt: 1, Step: inventory.AgentFailed, Erased: true, Error: "the power went"}); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
	token, job = s.bootHolding(1, "b3", nil)
	if diff := cmp.Diff(want, job.Image.Difference); diff != "" || job.Attempt != 2 {
		t.Errorf("attempt %d, difference (-want +got):\n%s", job.Attempt, diff)
	}
	s.finish("m1", token, job, 1, 2)

	back, err := s.Rollback(t.Context(), "g", "")
	if err != nil {
		t.Fatal(err)
	}
	if e := back.Entries[0]; e.FromImage != info.Digest || e.Whole != "" || e.FetchBytes > e.ImageBytes*3/4 {
		t.Errorf("the way back: %+v", e)
	}
}

func TestABlankDiskAndAnImageThatIsGoneAreWrittenWhole(t *testing.T) {
	s := newSite(t, 1)
	info, _ := s.images.Info(s.image)
	st := Status{DiskImage: inventory.DigestOf([]byte("gone"))}
	state := func(holds string) State { return State{Status: st, Intent: &Intent{Write: &WriteState{Holds: holds}}} }
	if j := s.jobImage(info, state(""), "http://x"); j.Index != "" || j.Difference != nil {
		t.Errorf("a blank disk: %+v", j)
	}
	if j := s.jobImage(info, state("something"), "http://x"); j.Index != info.Index || j.Difference != nil {
		t.Errorf("an image that is gone: %+v", j)
	}
	if _, why := s.difference(st.DiskImage, info.Digest); !strings.Contains(why, "is not here any more") {
		t.Errorf("the plan says %q", why)
	}
}

func TestWhatAPlanDoesNotWaitForIsBuiltOn(t *testing.T) {
	s := newSite(t, 1)
	next := testenv.SimImage(4<<20, 1)
	copy(next[2<<20:], "another word")
	info, err := s.images.Add(t.Context(), bytes.NewReader(next), image.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := between{s.image, info.Digest}
	caller, hangUp := context.WithCancel(t.Context())
	patience, lose := context.WithCancel(caller)
	lose()
	if err := s.prepare(caller, b)(patience); err != nil && !errors.Is(err, errBuilding) {
		t.Fatal(err)
	}
	hangUp() // it is nobody's any more
	s.until("built on", func() bool { return s.ready(b) })
	// Who hangs up while it waits gets no plan, and leaves nothing half done.
	set, err := inventory.Parse([]inventory.File{{Name: "site.yaml", Data: []byte(s.yaml(true))}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.planSet(caller, set, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a plan for nobody: %v", err)
	}
}
