package testenv

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/inventory"
)

// lab192Reasons is what the failed machines of testdata/LAB.yaml say.
var lab192Reasons = map[string]string{
	"r1u05": "refused the user or password",
	"r1u17": "power off: the BMC accepted the request but the change was not seen",
	"r1u30": "not answer",
	"r2u08": "set network boot",
	"r2u21": "no request for a boot script",
	"r2u33": "no request for a boot script",
	"r3u02": "the machine has no disk",
	"r3u15": "the image with its configuration needs",
	"r4u10": "input/output error",
	"r4u44": "no network boot",
}

// lab192Spec are deadlines that a test can wait for, on a host that has other work. No fault
// is seen by the last: it outlasts a system that asks DHCP twice, 31 s each time.
const lab192Spec = "  attempts: 1\n  deadlines: {stopping: 45s, arming: 45s, powering: 90s, booting: 30s, claiming: 20s, inspecting: 20s, writing: 40s, verifying: 40s}\n  health: {deadline: 2m}\n"

func readLab192(t *testing.T) LabFile {
	t.Helper()
	raw, err := os.ReadFile("testdata/LAB.yaml")
	simMust(t, err)
	lab, err := ParseLabFile("testdata/LAB.yaml", raw)
	simMust(t, err)
	if lab.Simulated() != 192 || lab.QEMU() != 2 || len(lab.Faults) != len(lab192Reasons) {
		t.Fatalf("%d simulated, %d QEMU, %d with faults", lab.Simulated(), lab.QEMU(), len(lab.Faults))
	}
	return lab
}

func TestLabOf192IsReimagedWithOneApply(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute: not in a short run")
	}
	lab := readLab192(t)
	lab.Machines = slices.DeleteFunc(lab.Machines, func(m RackMachine) bool { return !m.Simulated })
	reimage192(t, lab)
}

func TestLabOf192AndTwoQEMUIsReimagedWithOneApply(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines beside 192: only where RECAST_LONG is set")
	}
	reimage192(t, readLab192(t))
}

// reimage192 deploys the whole lab, lets the faults begin, and re-images all of it.
func reimage192(t *testing.T, lab LabFile) {
	s := newLabStory(t, lab)
	s.serve()
	s.setSecret()
	d := RackDeclare{SimulatedSpec: lab192Spec, MaxUnavailable: lab.MaxUnavailable, MaxFailures: lab.MaxFailures}
	var names []string
	for _, m := range lab.Machines {
		names = append(names, m.Name)
	}
	within := 3 * time.Minute
	if lab.QEMU() > 0 {
		within = 12 * time.Minute
	}

	s.sub("all are deployed", func() {
		d.Simulated = s.images192(1)
		if lab.QEMU() > 0 {
			img := s.image("first")
			d.Image = img.Digest
			s.recast("image", "add", img.Path)
		}
		s.declare(d)
		full := s.fillBudget(192 / 4)
		p := s.apply("--erase", strings.Join(names, ","))
		full()
		s.settled(p, nil, within)
	})
	s.sub("all are re-imaged, but those with faults", func() {
		d.Simulated = s.images192(2)
		if lab.QEMU() > 0 {
			img := s.image("second")
			d.Image = img.Digest
			s.recast("image", "add", img.Path)
		}
		for name, faults := range lab.Faults {
			if name == "r1u05" { // its session may be open still: it has to log in
				faults = append(slices.Clone(faults), Fault{Name: "restart-bmc"})
			}
			simMust(s.t, s.SetFaults(name, faults))
		}
		s.declare(d)
		before, began := map[string][2]int{}, time.Now()
		for _, m := range s.Simulated {
			before[m.Options.Name] = [2]int{len(m.Disks[0].Erases()), m.executed("power-on")}
		}
		budget := s.watchBudget()
		p := s.apply("--erase", strings.Join(names, ","))
		s.settled(p, lab192Reasons, within)
		most, said := budget()
		t.Logf("at most %d of 192 machines were away, the server said %d", most, said)
		if limit := 192 / 4; most > limit || said > limit || most < limit/2 {
			s.t.Errorf("%d machines were away at once, the server said %d; want at most %d, and at least half of that", most, said, limit)
		}
		for _, m := range s.Simulated {
			name := m.Options.Name
			if lab192Reasons[name] != "" {
				continue
			}
			s.checkSimDisk(m)
			if n := len(m.Disks[0].Erases()) - before[name][0]; n != 1 {
				s.t.Errorf("%s: erased %d times", name, n)
			}
			// On a host that is too busy one may be silent for so long that it is power-cycled.
			cycled := s.count(name, began, "it is power-cycled")
			if n := m.executed("power-on") - before[name][1]; n != 1+cycled || cycled > 1 {
				s.t.Errorf("%s: powered on %d times, its timeline has %d power cycles", name, n, cycled)
			}
		}
	})
}

// executed is how often the BMC of the machine did so.
func (m *RackSimulated) executed(verb string) int {
	if m.IPMI != nil {
		return m.IPMI.Done(verb)
	}
	return m.Redfish.Done(verb)
}

// images192 are those of the simulated machines in the n-th round.
func (s *story) images192(n uint64) map[string]inventory.Digest {
	s.t.Helper()
	raw := SimImage(simImageBytes, 100+n)
	path := filepath.Join(s.Options.Dir, rackGroupSimulated+".img")
	simMust(s.t, os.WriteFile(path, raw, 0o644))
	s.recast("image", "add", path)
	return map[string]inventory.Digest{rackGroupSimulated: inventory.DigestOf(raw)}
}

// settled waits until every machine of the plan runs what it wants, or failed for
// the reason given.
func (s *story) settled(p storyPlan, failed map[string]string, within time.Duration) {
	s.t.Helper()
	if len(p.Entries) != len(s.members) {
		s.t.Errorf("the plan has %d entries for %d machines", len(p.Entries), len(s.members))
	}
	deadline := time.Now().Add(within)
	for _, e := range p.Entries {
		v, err := s.watch.await(s.t.Context(), e.Machine, time.Until(deadline), func(v storyView) bool {
			return v.Status.Phase == "failed" || v.Status.Hold != nil || v.runs(e)
		})
		switch reason, faulty := failed[e.Machine]; {
		case err != nil:
			s.t.Errorf("%s has not arrived: %v; it is %v", e.Machine, err, v)
		case !faulty && !v.runs(e):
			out, _ := s.try("explain", e.Machine, "--lines", "60")
			s.t.Errorf("%v; want it to arrive\n%s", v, out)
		case faulty && (v.Status.Phase != "failed" || !strings.Contains(v.Status.LastError, reason) || v.Status.NextAction == ""):
			s.t.Errorf("%v; want it failed, for: %s", v, reason)
		}
	}
}

// fillBudget keeps every machine off whose BMC is told to switch it on, until as many are
// as may be away, and no more: the BMCs count them, whatever the server says. Then it
// lets them go.
func (s *story) fillBudget(limit int) (full func()) {
	s.t.Helper()
	proceed := make(chan struct{})
	var mu sync.Mutex
	told := map[string]bool{}
	hook := func(name string) func(string, bool) {
		return func(verb string, executed bool) {
			if verb == "power-on" && !executed {
				mu.Lock()
				told[name] = true
				mu.Unlock()
				<-proceed
			}
		}
	}
	for _, m := range s.Simulated {
		m.front().OnRequest(hook(m.Options.Name))
	}
	var once sync.Once
	release := func() {
		once.Do(func() {
			close(proceed)
			for _, m := range s.Simulated {
				m.front().OnRequest(nil)
			}
		})
	}
	s.t.Cleanup(release)
	away := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(told)
	}
	return func() {
		s.t.Helper()
		// Whoever the server has begun with comes to this point; who comes to it though the
		// server does not say so is counted as well.
		s.until("as many machines are away as may be", time.Minute, func() bool {
			n, begun := away(), 0
			s.watch.mu.Lock()
			defer s.watch.mu.Unlock()
			for _, m := range s.Simulated {
				if s.watch.views[m.Options.Name].Status.Phase == "deploying" {
					begun++
				}
			}
			return n >= limit && n >= begun
		})
		if n := away(); n != limit {
			s.t.Errorf("%d machines are away at once, want %d", n, limit)
		}
		release()
	}
}

// watchBudget looks at the machines until the answer is asked for: how many were
// away from their systems at once, and how many the server said were.
func (s *story) watchBudget() (most func() (machines, said int)) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	var machines, said int
	go func() {
		defer close(done)
		for simPause(ctx, 20*time.Millisecond) == nil {
			away, deploying := 0, 0
			for _, m := range s.Simulated {
				if !m.runsSystem() {
					away++
				}
			}
			s.watch.mu.Lock()
			for _, m := range s.Simulated {
				if s.watch.views[m.Options.Name].Status.Phase == "deploying" {
					deploying++
				}
			}
			s.watch.mu.Unlock()
			machines, said = max(machines, away), max(said, deploying)
		}
	}()
	s.t.Cleanup(func() { cancel(); <-done })
	return func() (int, int) {
		cancel()
		<-done
		return machines, said
	}
}

// runsSystem says whether its present start is one of its disk.
func (s *Simulated) runsSystem() bool {
	on := s.Powered()
	s.mu.Lock()
	defer s.mu.Unlock()
	return on && len(s.boots) > 0 && simHas(s.boots[len(s.boots)-1].Path, simDiskStarted)
}
