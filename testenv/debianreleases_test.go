package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"recast/inventory"
)

var freeze = flag.Bool("freeze", false, "choose the packages of TestDebianReleasesMoveWhatChanged anew")

// frozenDebian are three releases of one Debian: a point release, and from there
// its userland and its kernel brought up to date.
const frozenDebian = "testdata/debian-releases.txt"

// debianRelease builds one, or takes it from the repository's cache.
func debianRelease(t *testing.T, name string, packages *[]osPackage) OSImage {
	t.Helper()
	cache, err := filepath.Abs(e2eCache)
	simMust(t, err)
	if err := osTools(OSDebian); err != nil {
		t.Skip(err)
	}
	img, err := BuildOS(t.Context(), OSOptions{Kind: OSDebian, CacheDir: cache, Variant: name, Frozen: frozenDebian, freeze: packages})
	simMust(t, err)
	return img
}

// TestDebianReleasesMoveWhatChanged re-images a machine over releases of a real
// distribution, each with a file system made from scratch, and back. The disk was full
// of something else, and after each re-image its root grows and is written to.
func TestDebianReleasesMoveWhatChanged(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" && !*freeze {
		t.Skip("builds operating systems for minutes: only where RECAST_LONG is set")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if *freeze {
		chosen := map[string][]osPackage{}
		for name := range osReleaseRules {
			var all []osPackage
			debianRelease(t, name, &all)
			chosen[name] = all
		}
		suite, err := osDebianSuite()
		simMust(t, err)
		simMust(t, osWriteFrozen(frozenDebian, "Packages of three releases of Debian "+suite+", chosen "+time.Now().UTC().Format(time.DateOnly), chosen))
	}
	s := newSimServer(t)
	s.setSecret(simSecret, simUser+":"+simPassword)
	images := map[string]OSImage{}
	var size int64
	for name := range osReleaseRules {
		img := debianRelease(t, name, nil)
		images[name], size = img, max(size, img.Size)
		s.addImageFile(img.Path)
	}
	// Larger than the image, and full of something else before.
	m := s.add(1, func(o *SimulatedOptions) { o.Disks[0].Size = (size + 512*osMiB) &^ (osMiB - 1) })
	for _, step := range []struct {
		to    string
		share int64 // most that is fetched of the image, in a hundred
	}{{"base", 105}, {"userland", 25}, {"base", 25}, {"kernel", 70}, {"base", 70}} {
		img := images[step.to]
		var p simPlan
		s.long(http.MethodPost, "/api/v1/plan", map[string]any{"erase": []string{m.Options.Name},
			"files": []inventory.File{{Name: "sim.yaml", Data: []byte(s.yaml(simDeclare{Image: img.Digest}))}}}, &p)
		if len(p.Entries) != 1 || p.Entries[0].Blocked != "" {
			t.Fatalf("the plan is %+v", p)
		}
		e := p.Entries[0]
		s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
		v := s.awaitActive(m.Options.Name, 10*time.Minute)
		moved := v.Status.Moved
		t.Logf("%s: planned to fetch %d, write %d; fetched %d, wrote %d: %.1f %% of %d", step.to,
			e.FetchBytes, e.WriteBytes, moved.Fetched, moved.Written, 100*float64(moved.Fetched)/float64(e.ImageBytes), e.ImageBytes)
		if moved.Fetched*100 > step.share*e.ImageBytes {
			t.Errorf("%s: more than %d %% was fetched", step.to, step.share)
		}
		checkImageFile(t, m.Disks[0], img.Path)
		simMust(t, m.PowerOff(t.Context()))
		debianLives(t, m.Disks[0])
		simMust(t, m.PowerOn(t.Context()))
		s.awaitActive(m.Options.Name, time.Minute)
	}
}

// debianLives does to a disk what the first start of its system would: the root grows
// to the disk's end, and files are written.
func debianLives(t *testing.T, d *SimDisk) {
	t.Helper()
	root := simGrow(t, d, osDebianName)
	dir := t.TempDir()
	file, fs := filepath.Join(dir, "drift"), filepath.Join(dir, "root") // resize2fs cuts off what stands behind
	b := make([]byte, 24*osMiB)
	rand.NewChaCha8([32]byte{9}).Read(b)
	simMust(t, os.WriteFile(file, b, 0o600))
	disk, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	simMust(t, err)
	defer disk.Close()
	out, err := os.Create(fs)
	simMust(t, err)
	defer out.Close()
	_, err = io.Copy(out, io.NewSectionReader(disk, root.Start, root.End-root.Start))
	simMust(t, err)
	defer func() {
		_, err := out.Seek(0, io.SeekStart)
		simMust(t, err)
		n, err := io.Copy(io.NewOffsetWriter(disk, root.Start), io.LimitReader(out, root.End-root.Start))
		simMust(t, err)
		t.Logf("its root has %d MiB now", n/osMiB)
	}()
	for _, command := range [][]string{
		{"e2fsck", "-f", "-y", fs},
		{"resize2fs", fs},
		{"debugfs", "-w", "-R", "write " + file + " var/drift", fs},
	} {
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !(command[0] == "e2fsck" && errors.As(err, &exit) && exit.ExitCode() == 1) { // 1: it wrote something
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
}

// checkImageFile is checkImage of one that need not fit in memory.
func checkImageFile(t *testing.T, d *SimDisk, path string) {
	t.Helper()
	want, err := os.Open(path)
	simMust(t, err)
	defer want.Close()
	got, err := os.Open(d.Path)
	simMust(t, err)
	defer got.Close()
	info, err := want.Stat()
	simMust(t, err)
	a, b := make([]byte, osMiB), make([]byte, osMiB)
	for off := int64(osMiB); off < info.Size()-osMiB; off += osMiB {
		_, e1 := want.ReadAt(a, off)
		_, e2 := got.ReadAt(b, off)
		if e1 != nil || e2 != nil || !bytes.Equal(a, b) {
			t.Fatalf("the disk is not image %s at byte %d: %v, %v", path, off, e1, e2)
		}
	}
	if !d.Bootable() {
		t.Error("the disk has no table")
	}
}

// addImageFile is addImage of one that need not fit in memory.
func (s *simServer) addImageFile(path string) {
	s.t.Helper()
	f, err := os.Open(path)
	simMust(s.t, err)
	defer f.Close()
	s.long(http.MethodPost, "/api/v1/images", f, nil)
}

// long is must of a call that may take minutes.
func (s *simServer) long(method, path string, in, out any) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 15*time.Minute)
	defer cancel()
	body, ok := in.(io.Reader)
	if !ok {
		raw, err := json.Marshal(in)
		simMust(s.t, err)
		body = bytes.NewReader(raw)
	}
	resp, err := s.do(ctx, method, path, body)
	simMust(s.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		s.t.Fatalf("%s %s: %d %s, %v", method, path, resp.StatusCode, raw, err)
	}
	if out != nil {
		simMust(s.t, json.Unmarshal(raw, out))
	}
}
