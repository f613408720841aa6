package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"recast/image"
	"recast/inventory"
	"recast/ipxe"
)

// The end-to-end tests boot real firmware, and speak to recast as operators do:
// through its commands. Each is a story: declare, start, act, await.

// e2eParts are what every story needs, made once for all of them.
type e2eParts struct {
	recast, agent string // binaries of this tree
	ramdisk       string // folder
	kernel, cache string
}

// e2eCache is in the repository and ignored by git.
const e2eCache = "../.cache"

// e2eKept is how long parts of another tree stay in the cache.
const e2eKept = 24 * time.Hour

var e2eMake = sync.OnceValues(func() (p e2eParts, err error) {
	if p.cache, err = filepath.Abs(e2eCache); err != nil {
		return p, err
	}
	if p.kernel, err = FindKernelDeb(p.cache); err != nil {
		return p, err
	}
	tmp, err := os.MkdirTemp(p.cache, "e2e.building-")
	if err != nil {
		return p, err
	}
	defer os.RemoveAll(tmp)
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", tmp+"/", "./cmd/recast", "./cmd/recast-agent")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return p, fmt.Errorf("build recast: %w: %s", err, text)
	}
	h := sha256.New()
	for _, f := range []string{filepath.Join(tmp, "recast"), filepath.Join(tmp, "recast-agent"), p.kernel} {
		if err := osHashFile(h, f); err != nil {
			return p, err
		}
	}
	dir := filepath.Join(p.cache, fmt.Sprintf("e2e-%x", h.Sum(nil)[:8]))
	p.recast, p.agent, p.ramdisk = filepath.Join(dir, "recast"), filepath.Join(dir, "recast-agent"), filepath.Join(dir, "ramdisk")
	old, _ := filepath.Glob(filepath.Join(p.cache, "e2e-*"))
	images, _ := filepath.Glob(filepath.Join(p.cache, "os-tiny-*")) // each holds an agent
	for _, o := range append(old, images...) {
		if info, err := os.Stat(o); err == nil && o != dir && time.Since(info.ModTime()) > e2eKept {
			_ = os.RemoveAll(o)
		}
	}
	if _, err := image.OpenRamdisk(p.ramdisk, inventory.AMD64); err == nil {
		now := time.Now()
		return p, os.Chtimes(dir, now, now)
	}
	if _, err := image.BuildRamdisk(context.Background(), image.RamdiskOptions{KernelDeb: p.kernel,
		Agent: filepath.Join(tmp, "recast-agent"), FirmwareDir: image.FirmwareOf("/"), Root: "/", Out: filepath.Join(tmp, "ramdisk")}); err != nil {
		return p, err
	}
	_ = os.RemoveAll(dir)
	return p, errors.Join(os.Chmod(tmp, 0o755), os.Rename(tmp, dir))
})

// e2eARM64 adds the ramdisk of arm64 to that of amd64.
func e2eARM64(t *testing.T, p e2eParts) {
	t.Helper()
	for program, pkg := range map[string]string{"qemu-system-aarch64": "qemu-system-arm", qemuAAVMFCode: "qemu-efi-aarch64"} {
		if _, err := exec.LookPath(program); err != nil && !strings.Contains(program, "/") {
			t.Skipf("needs %s (apt-get install %s)", program, pkg)
		}
		if _, err := os.Stat(program); err != nil && strings.Contains(program, "/") {
			t.Skipf("needs %s (apt-get install %s)", program, pkg)
		}
	}
	kernel, err := newestKernelDeb(p.cache, inventory.ARM64, "./setup.sh arm64")
	if err != nil {
		t.Skip("needs linux-image-*_arm64.deb in .cache (./setup.sh arm64)")
	}
	if _, err := image.OpenRamdisk(p.ramdisk, inventory.ARM64); err == nil {
		return
	}
	agent := filepath.Join(t.TempDir(), "recast-agent")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", agent, "./cmd/recast-agent")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent for arm64: %v: %s", err, text)
	}
	if _, err := image.BuildRamdisk(t.Context(), image.RamdiskOptions{KernelDeb: kernel, Agent: agent,
		FirmwareDir: image.FirmwareOf("/"), Out: p.ramdisk}); err != nil {
		t.Fatal(err)
	}
}

// e2eNumber makes names unique within this process.
var e2eNumber atomic.Int32

// storySetup says what rack a story plays in. Every field may be zero.
type storySetup struct {
	OS       OSKind // "" tiny
	Machines []RackMachine
	DiskSize int64    // 0: a little larger than the image
	Segments []string // beside NetBridge
	// Takes is how long the story may last; what "go test -timeout" leaves must be more.
	Takes time.Duration
}

// story is a rack, a server in it, and an operator at its commands.
type story struct {
	t     *testing.T
	parts e2eParts
	os    OSKind
	*Rack
	server *RackServer
	yaml   string // the operator's file
	watch  *storyWatch
}

// newStory builds the rack: every machine is off, its disk full of 0xA5; no
// server runs yet.
func newStory(t *testing.T, o storySetup) *story {
	t.Helper()
	if o.OS == "" {
		o.OS = OSTiny
	}
	if o.Takes == 0 {
		o.Takes = 8 * time.Minute
	}
	e2eNeeds(t, o)
	parts, err := e2eMake()
	if err != nil {
		t.Fatal(err)
	}
	s := &story{t: t, parts: parts, os: o.OS}
	size := o.DiskSize
	if size == 0 {
		size = s.image("").Size + 64*osMiB // larger than the image, so that the backup table moves
		if o.OS == OSDebian {
			size += 448 * osMiB // its root grows
		}
	}
	s.build(RackOptions{Name: fmt.Sprintf("e2e-%d-%d", os.Getpid(), e2eNumber.Add(1)), Dir: t.TempDir(), Machines: o.Machines, DiskSize: size, Segments: o.Segments})
	return s
}

// build the rack, which ends with the test.
func (s *story) build(o RackOptions) {
	t := s.t
	t.Helper()
	var err error
	if s.Rack, err = NewRack(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s.yaml = filepath.Join(o.Dir, "rack.yaml")
	s.watch = newStoryWatch(LabContext(o.Dir))
	t.Cleanup(func() {
		s.watch.close()
		if t.Failed() {
			s.dump()
		}
		if err := s.Rack.Close(); err != nil {
			t.Error(err)
		}
		if left, err := Nets(RackNamespace(o.Name)); err != nil || len(left) != 0 {
			t.Errorf("left of the rack: %v, %v", left, err)
		}
	})
}

// e2eNeeds skips where this machine, or this run, cannot play a story.
func e2eNeeds(t *testing.T, o storySetup) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines: not in a short run")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, what := range LabMissing(o.OS) {
		program, cure, _ := strings.Cut(what, ": ")
		t.Skipf("needs %s (%s)", program, cure)
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs go in the PATH")
	}
	if _, err := FindKernelDeb(e2eCache); err != nil {
		t.Skip("needs linux-image-*.deb in .cache (make setup)")
	}
	loaders, err := ipxe.OpenLoaders()
	if err != nil {
		t.Fatal(err)
	}
	if !loaders.Have("snponly.efi") {
		t.Skip("needs boot loaders (make setup)")
	}
	if deadline, ok := t.Deadline(); ok && time.Until(deadline) < o.Takes {
		t.Skipf("needs %v more than go test leaves (go test -timeout 40m)", (o.Takes - time.Until(deadline)).Round(time.Second))
	}
}

// image of the story's operating system; another variant is another image.
func (s *story) image(variant string) OSImage {
	s.t.Helper()
	img, err := BuildOS(s.t.Context(), OSOptions{Kind: s.os, CacheDir: s.parts.cache, KernelDeb: s.parts.kernel,
		AgentBin: s.parts.agent, Variant: variant})
	if err != nil {
		s.t.Fatal(err)
	}
	return img
}

// sub plays a part of the story as a test of its own; the story ends with the
// first part that fails.
func (s *story) sub(name string, f func()) {
	s.t.Helper()
	outer := s.t
	ok := outer.Run(name, func(t *testing.T) {
		s.t = t
		defer func() { s.t = outer }()
		start := time.Now()
		f()
		t.Logf("took %v", time.Since(start).Round(time.Second))
	})
	if !ok {
		outer.FailNow()
	}
}

// serve starts the server, on the data that an earlier one left, and waits
// until it answers.
func (s *story) serve() {
	s.t.Helper()
	config := filepath.Join(s.Options.Dir, "recast.yaml")
	s.must(os.WriteFile(config, fmt.Appendf(nil, "ramdisk: %s\nsoftOff: 15s\n", s.parts.ramdisk), 0o644))
	server, err := s.Rack.Serve(RackServe{Recast: s.parts.recast, Args: []string{"--config", config}})
	s.must(err)
	s.server = server
	s.until("the server answers", time.Minute, func() bool {
		select {
		case <-server.Done():
			s.t.Fatalf("the server ended: %v", server.Err())
		default:
		}
		if _, err := os.Stat(LabContext(s.Options.Dir)); err != nil {
			return false
		}
		out, _ := s.try("version")
		return strings.Contains(out, "server ")
	})
}

// ready is serve, with the BMCs' secret set and an image added.
func (s *story) ready(img OSImage) {
	s.t.Helper()
	s.serve()
	s.setSecret()
	s.recast("image", "add", img.Path, "--digest", img.Digest.String())
}

func (s *story) setSecret() {
	s.t.Helper()
	file := filepath.Join(s.Options.Dir, "secret")
	s.must(os.WriteFile(file, []byte(s.Secret()), 0o600))
	s.recast("secret", "set", RackSecret, "--from-file", file)
}

// try runs one command of the operator's and gives its output and exit code.
func (s *story) try(args ...string) (string, int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.parts.recast, append([]string{"--context", LabContext(s.Options.Dir)}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("recast %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// recast runs a command that must succeed.
func (s *story) recast(args ...string) string {
	s.t.Helper()
	out, code := s.try(args...)
	if code != 0 {
		s.t.Fatalf("recast %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// ask runs a command with -o json and decodes what it says.
func (s *story) ask(out any, args ...string) {
	s.t.Helper()
	text := s.recast(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), out); err != nil {
		s.t.Fatalf("recast %s -o json: %v: %s", strings.Join(args, " "), err, text)
	}
}

// declare writes the operator's file.
func (s *story) declare(d RackDeclare) {
	s.t.Helper()
	s.must(os.WriteFile(s.yaml, []byte(s.YAML(d)), 0o644))
}

// storyPlan is what recast plan -o json says.
type storyPlan struct {
	Digest  inventory.Digest
	Changes []string
	Entries []storyEntry
}

type storyEntry struct {
	Machine, Kind, Why, Disk, Holds, Blocked, Waits string
	From, To, ToRendered                            inventory.Digest
	FetchBytes, WriteBytes, ImageBytes              int64
}

// machines that the plan names, in its order, with what it does to each.
func (p storyPlan) machines() string {
	var names []string
	for _, e := range p.Entries {
		names = append(names, e.Kind+" "+e.Machine)
	}
	return strings.Join(names, ", ")
}

func (s *story) plan(args ...string) (p storyPlan) {
	s.t.Helper()
	s.ask(&p, append([]string{"plan", s.yaml}, args...)...)
	return p
}

// apply plans, applies that plan, and returns it.
func (s *story) apply(args ...string) storyPlan {
	s.t.Helper()
	p := s.plan(args...)
	s.recast("apply", "--plan", p.Digest.String())
	return p
}

// until waits for a condition that nobody announces.
func (s *story) until(what string, within time.Duration, ok func() bool) {
	s.t.Helper()
	start := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(start) > within {
			s.t.Fatalf("%s: not within %v", what, within)
		}
		select {
		case <-tick.C:
		case <-s.t.Context().Done():
			s.t.Fatalf("%s: %v", what, s.t.Context().Err())
		}
	}
}

// await waits until the server shows a machine as ok wants it.
func (s *story) await(name, what string, within time.Duration, ok func(storyView) bool) storyView {
	s.t.Helper()
	start := time.Now()
	v, err := s.watch.await(s.t.Context(), name, within, ok)
	if err != nil {
		s.t.Fatalf("%s: %s: %v; it is %v", name, what, err, v)
	}
	s.t.Logf("%s: %s after %v", name, what, time.Since(start).Round(time.Second/10))
	return v
}

// active waits until every machine of the plan runs what the plan wants and
// said so itself. A failed machine ends the wait.
func (s *story) active(p storyPlan, within time.Duration) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for _, e := range p.Entries {
		v := s.await(e.Machine, "active", time.Until(deadline), func(v storyView) bool {
			return v.Status.Phase == "failed" || v.runs(e)
		})
		if !v.runs(e) {
			s.t.Fatalf("%v", v)
		}
	}
}

func (v storyView) runs(e storyEntry) bool {
	st := v.Status
	return st.Phase == "active" && st.Health == "healthy" && v.Sync == "in sync" && st.Running == e.To && st.RunningRendered == e.ToRendered
}

// storyLine is one line of a machine's timeline.
type storyLine struct {
	Time       time.Time
	Kind, Text string
}

func (s *story) timeline(name string) []storyLine {
	s.t.Helper()
	var x struct{ Timeline []storyLine }
	s.ask(&x, "explain", name)
	return x.Timeline
}

// count how many lines of a machine's timeline since a time hold a text.
func (s *story) count(name string, since time.Time, text string) (n int) {
	s.t.Helper()
	for _, l := range s.timeline(name) {
		if !l.Time.Before(since) && strings.Contains(l.Text, text) {
			n++
		}
	}
	return n
}

// here is the present end of a machine's console log.
func (s *story) here(name string) int64 {
	info, err := os.Stat(s.Node(name).ConsoleLog())
	if err != nil {
		return 0
	}
	return info.Size()
}

// console is what a machine said since.
func (s *story) console(name string, since int64) string {
	s.t.Helper()
	f, err := os.Open(s.Node(name).ConsoleLog())
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	s.must(err)
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, since, 64*osMiB))
	s.must(err)
	return string(text)
}

// says waits until the console of a machine holds the pattern, and gives the
// last match: what the machine itself says, not what the server believes.
func (s *story) says(name string, since int64, pattern string, within time.Duration) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	s.until(fmt.Sprintf("%s says %s", name, pattern), within, func() bool {
		all := re.FindAllStringSubmatch(s.console(name, since), -1)
		if len(all) > 0 {
			found = all[len(all)-1]
		}
		return len(all) > 0
	})
	return found
}

func (s *story) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// dump shows what a person would look at first.
func (s *story) dump() {
	tail := func(text string, lines int) string {
		all := strings.Split(strings.TrimSpace(text), "\n")
		return strings.Join(all[max(0, len(all)-lines):], "\n")
	}
	if s.server != nil {
		for _, n := range s.Nodes {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			out, _ := exec.CommandContext(ctx, s.parts.recast, "--context", LabContext(s.Options.Dir), "explain", n.Name, "--lines", "60").CombinedOutput()
			cancel()
			s.t.Logf("explain: %s", out)
		}
	}
	for _, n := range s.Nodes {
		text, _ := os.ReadFile(n.ConsoleLog())
		s.t.Logf("console of %s (on: %t):\n%s", n.Name, n.Powered(), tail(strings.ReplaceAll(string(text), "\r", ""), 50))
	}
	text, _ := os.ReadFile(filepath.Join(s.Options.Dir, "server.log"))
	s.t.Logf("server:\n%s", tail(string(text), 80))
}
