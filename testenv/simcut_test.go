package testenv

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/agent"
	"recast/inventory"
	"recast/pack"
)

// simCuts is a rack under which power, network and server are cut while disks are
// written. Every disk is judged at each cut.
type simCuts struct {
	*simServer
	r       *rand.Rand
	images  [2][]byte
	digests [2]inventory.Digest
	round   int

	mu    sync.Mutex
	about map[*Simulated]*simTruth
	// wanted is which of images a generation is, and the user data that came with it.
	wanted map[inventory.Digest]simGeneration
	met    map[string]int // cuts by what was under way and what was cut
	half   map[string]int // that left no disk which boots
	bad    []string
	kills  chan chan struct{}
}

type simGeneration struct {
	image    int
	userData string
}

// simTruth is what may stand on a disk that boots beside what was declared.
type simTruth struct {
	esp, root []byte // as the system of a generation left them; nil: it has written nothing
	of        inventory.Digest
	config    []byte
	written   map[string]int64 // by an operation of that kind, last time
	op        string
}

// SimImage has these partitions.
const simESPStart, simRootStart = 1 << 20, 2 << 20

func newSimCuts(t testing.TB, machines int, seed uint64) *simCuts {
	t.Helper()
	s := newSimServer(t)
	c := &simCuts{simServer: s, r: rand.New(rand.NewPCG(seed, 1)), about: map[*Simulated]*simTruth{}, wanted: map[inventory.Digest]simGeneration{},
		met: map[string]int{}, half: map[string]int{}, kills: make(chan chan struct{})}
	// Half of the second is the first's, elsewhere.
	c.images[0] = SimImage(simImageSize, 7)
	c.images[1] = SimImage(simImageSize, 8)
	root := simImageSize - simRootStart - 1<<20
	copy(c.images[1][simRootStart:][:root/2], c.images[0][simRootStart+root/2-4096:])
	for i, raw := range c.images {
		c.digests[i] = s.addImage(raw)
	}
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range machines {
		m := s.add(i+1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, !o.UEFI })
		m.Disks[0].Pace = time.Millisecond
		c.about[m] = &simTruth{written: map[string]int64{"write": 10 << 20, "difference": 8 << 20, "repair": 200 << 10}}
	}
	return c
}

// lived notes what the system of a machine has left in its partitions.
func (c *simCuts) lived(m *Simulated, disk []byte) {
	marker, err := simMarker(bytes.NewReader(disk), int64(len(disk)))
	simMust(c.t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.about[m].esp, c.about[m].root, c.about[m].of = disk[simESPStart:simRootStart], disk[simRootStart:simImageSize-1<<20], marker.Generation
}

// simMarker is what a disk says of itself.
func simMarker(disk io.ReaderAt, size int64) (m inventory.Marker, err error) {
	raw, err := agent.ReadConfigFile(disk, size, "recast.json")
	if err == nil && raw == nil {
		err = errors.New("it has no marker")
	}
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(raw, &m)
}

// judge says what is wrong with a disk that may boot; half: it does not.
func (c *simCuts) judge(m *Simulated, disk []byte) (wrong string, half bool) {
	size := int64(len(disk))
	layout, _, err := pack.ParseLayout(disk[:pack.MiB], size)
	primary := err == nil && layout.Scheme != pack.SchemeNone
	backup := bytes.HasPrefix(disk[size-512:], []byte("EFI PART"))
	if !primary && !backup {
		return "", true
	}
	c.mu.Lock()
	truth := *c.about[m]
	c.mu.Unlock()
	if primary && !backup {
		return "its table has no backup", false
	}
	at := bytes.NewReader(disk)
	if !primary { // what firmware would take the backup for
		b := bytes.Clone(disk)
		copy(b, truth.config)
		at = bytes.NewReader(b)
	}
	marker, err := simMarker(at, size)
	if err != nil {
		return err.Error(), false
	}
	c.mu.Lock()
	gen, known := c.wanted[marker.Generation]
	c.mu.Unlock()
	user, err := agent.ReadConfigFile(at, size, "user-data")
	if want := strings.ReplaceAll(gen.userData, "${machine.name}", m.Options.Name); !known || marker.Machine != m.Options.Name || err != nil || string(user) != want {
		return fmt.Sprintf("it says that it is generation %s of %s, with user data %q (%v)", marker.Generation.Short(), marker.Machine, user, err), false
	}
	image := c.images[gen.image]
	want, _, err := pack.ParseLayout(image[:pack.MiB], simImageSize)
	if err != nil {
		return err.Error(), false
	}
	if primary {
		if why := want.Differs(&layout); why != "" {
			return why, false
		}
		if !bytes.Equal(disk[:440], image[:440]) {
			return "its boot code is another image's", false
		}
	}
	end := int64(simImageSize - 1<<20)
	for _, part := range []struct {
		name       string
		start, end int64
		lived      []byte
	}{{"esp", simESPStart, simRootStart, truth.esp}, {"root", simRootStart, end, truth.root}} {
		have := disk[part.start:part.end]
		if !bytes.Equal(have, image[part.start:part.end]) && (marker.Generation != truth.of || part.lived == nil || !bytes.Equal(have, part.lived)) {
			return fmt.Sprintf("its %s is neither the image's nor what the system of that generation left", part.name), false
		}
	}
	return "", false
}

// look judges the disk of a machine as it is now.
func (c *simCuts) look(m *Simulated, when string) {
	disk, err := m.Disks[0].content()
	if err == nil {
		var wrong string
		var half bool
		if wrong, half = c.judge(m, disk); wrong != "" {
			err = errors.New(wrong)
		}
		if half {
			c.mu.Lock()
			c.half[c.about[m].op]++
			c.mu.Unlock()
		}
	}
	if err != nil {
		c.mu.Lock()
		c.bad = append(c.bad, fmt.Sprintf("round %d: %s of %s: it boots, and %v", c.round, when, m.Options.Name, err))
		c.mu.Unlock()
	}
}

// arm cuts something at a random place of what the machine does next.
func (c *simCuts) arm(m *Simulated, op string, kinds ...string) {
	c.mu.Lock()
	truth := c.about[m]
	truth.op = op
	at := 1 + c.r.Int64N(truth.written[op]+truth.written[op]/16)
	kind := kinds[c.r.IntN(len(kinds))]
	pause := time.Duration(c.r.Int64N(int64(400 * time.Millisecond)))
	c.mu.Unlock()
	m.Disks[0].CutAfter(at, func() {
		c.mu.Lock()
		c.met[op+", "+kind]++
		c.mu.Unlock()
		when := fmt.Sprintf("%s cut after %d bytes of a %s", kind, at, op)
		switch kind {
		case "power":
			_ = m.PowerOff(c.t.Context())
			c.look(m, when)
			go func() {
				_ = simPause(c.t.Context(), pause)
				_ = m.PowerOn(c.t.Context())
			}()
		case "network":
			m.Unplug(true)
			c.look(m, when)
			go func() {
				_ = simPause(c.t.Context(), 3*pause)
				m.Unplug(false)
			}()
		case "server":
			killed := make(chan struct{})
			c.kills <- killed
			<-killed
			c.look(m, when)
		}
	})
}

// until waits for ok, and kills the server meanwhile where a cut says so.
func (c *simCuts) until(what string, ok func() bool) {
	c.t.Helper()
	c.await(what, 2*time.Minute, func() bool {
		for {
			select {
			case killed := <-c.kills:
				c.kill()
				close(killed)
				c.start()
				continue
			default:
			}
			return ok()
		}
	})
}

func (c *simCuts) cuts() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.met {
		n += k
	}
	return n
}

var simCutKinds = []string{"power", "network", "server"}

// deploy is a round of new generations: machines whose partitions were filled with
// something else are written whole, the others re-imaged by a difference.
func (c *simCuts) deploy(kinds ...string) {
	c.t.Helper()
	c.round++
	n := c.round % 2
	d := simDeclare{Image: c.digests[n], State: "[esp]", Spec: "  boot: {every: restore}\n",
		UserData: fmt.Sprintf("#cloud-config\nhostname: ${machine.name}\nbootcmd: [echo round %d]\n", c.round)}
	written := map[*Simulated]int64{}
	for _, m := range c.machines {
		op := "difference"
		if c.round == 1 || c.r.IntN(3) == 0 {
			op = "write"
		}
		if op == "write" && c.round > 1 {
			// Its partitions hold something else, but its table and marker are there: a disk
			// that another one was put in place of would be refused.
			simMust(c.t, m.PowerOff(c.t.Context()))
			disk := simBytes(c.t, m)
			copy(disk[simESPStart:], bytes.Repeat([]byte{0xA5}, simImageSize-1<<20-simESPStart))
			simMust(c.t, os.WriteFile(m.Disks[0].Path, disk, 0o600))
			c.lived(m, disk)
		}
		c.about[m].op, written[m] = op, m.Disks[0].Written()
	}
	var names []string
	for _, m := range c.machines {
		names = append(names, m.Options.Name)
	}
	p := c.plan(d, names...)
	if len(p.Entries) != len(c.machines) {
		c.t.Fatalf("the plan is %+v", p)
	}
	for _, m := range c.machines {
		if len(kinds) > 0 {
			c.arm(m, c.about[m].op, kinds...)
		}
	}
	simMust(c.t, c.call("POST", "/api/v1/apply", map[string]any{"plan": p.Digest}, nil))
	c.mu.Lock()
	c.wanted[c.view(c.machines[0].Options.Name).Wanted] = simGeneration{n, d.UserData}
	c.mu.Unlock()
	c.until(fmt.Sprintf("round %d: every machine arrives", c.round), func() bool {
		var views []simView
		if c.call("GET", "/api/v1/machines", nil, &views) != nil || len(views) == 0 {
			return false
		}
		all := true
		for _, v := range views {
			switch {
			case v.Status.Phase == "failed" && v.Status.LastError != "":
				c.t.Logf("round %d: %s failed with its reason, and is tried again: %s", c.round, v.Name, v.Status.LastError)
				_ = c.call("POST", "/api/v1/machines/"+v.Name+"/retry", nil, nil)
				all = false
			case v.Status.Phase != "active" || v.Sync != "in sync" || v.Status.Health != "healthy":
				all = false
			}
		}
		return all
	})
	for _, m := range c.machines {
		m.Disks[0].CutAfter(0, nil)
		op, name := c.about[m].op, m.Options.Name
		if len(kinds) == 0 {
			c.about[m].written[op] = m.Disks[0].Written() - written[m]
		}
		disk, err := m.Disks[0].content()
		simMust(c.t, err)
		c.about[m].esp, c.about[m].root, c.about[m].config = nil, nil, bytes.Clone(disk[:pack.MiB])
		c.look(m, "the arrival")
		if !bytes.Equal(disk[simESPStart:simImageSize-1<<20], c.images[n][simESPStart:simImageSize-1<<20]) {
			c.t.Errorf("round %d: %s arrived with another image", c.round, name)
		}
	}
}

// repair is a round of starts, of systems that wrote to their disks.
func (c *simCuts) repair(kinds ...string) {
	c.t.Helper()
	starts, written := map[*Simulated]int{}, map[*Simulated]int64{}
	for _, m := range c.machines {
		starts[m] = c.restart(m, func() {
			simDrift(c.t, m.Disks[0], c.r)
			c.about[m].op = "repair"
			c.lived(m, simBytes(c.t, m))
			written[m] = m.Disks[0].Written()
			if len(kinds) > 0 {
				c.arm(m, "repair", kinds...)
			}
		})
	}
	n := c.round % 2
	for _, m := range c.machines {
		c.until(m.Options.Name+" is put back and starts", func() bool {
			var v simView
			return simHas(m.path(starts[m]), simReported) && c.call("GET", "/api/v1/machines/"+m.Options.Name, nil, &v) == nil && v.Status.Health == "healthy" && v.Status.Hold == nil
		})
		m.Disks[0].CutAfter(0, nil)
		if len(kinds) == 0 {
			c.about[m].written["repair"] = m.Disks[0].Written() - written[m]
		}
		disk, err := m.Disks[0].content()
		simMust(c.t, err)
		c.about[m].root = nil
		c.look(m, "the start")
		if !bytes.Equal(disk[simESPStart:simRootStart], c.about[m].esp) || !bytes.Equal(disk[simRootStart:simImageSize-1<<20], c.images[n][simRootStart:simImageSize-1<<20]) {
			c.t.Errorf("round %d: the disk of %s is not: root as declared, its ESP as it was", c.round, m.Options.Name)
		}
	}
}

// TestDisksCutAnywhereBootTheWholeTruth cuts power, network or server at random places
// of writes, re-images and repairs. Whatever boots at a cut is the whole truth of one
// generation, and every machine arrives, or fails with the reason.
func TestDisksCutAnywhereBootTheWholeTruth(t *testing.T) {
	want, machines := 24, 6
	switch n, err := strconv.Atoi(os.Getenv("RECAST_CUTS")); {
	case err == nil:
		want = n
	case testing.Short():
		want = 6
	case os.Getenv("RECAST_LONG") != "":
		want, machines = 200, 8
	}
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("RECAST_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("%d cuts, RECAST_SEED=%d", want, seed)
	c := newSimCuts(t, machines, seed)
	c.deploy()
	for c.cuts() < want && len(c.bad) == 0 && !t.Failed() {
		c.deploy(simCutKinds...)
		c.repair(simCutKinds...)
	}
	for _, wrong := range c.bad {
		t.Error(wrong)
	}
	var met []string
	for what, n := range c.met {
		met = append(met, fmt.Sprintf("%s %d", what, n))
	}
	sort.Strings(met)
	t.Logf("%d cuts in %d rounds: %s; disks that did not boot then: %v", c.cuts(), c.round, strings.Join(met, "; "), c.half)
	for _, op := range []string{"write", "difference", "repair"} {
		if c.half[op] == 0 && want >= 200 {
			t.Errorf("no cut met a %s half way", op)
		}
	}
}

// The judge of that test sees what it is there for: with disks that keep their table
// while they are written, it finds some that boot with half of something.
func TestADiskThatKeepsItsTableIsFoundHalfWritten(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	c := newSimCuts(t, 4, 5)
	c.deploy()
	for _, m := range c.machines {
		m.Disks[0].keepsTable = true
	}
	// In the middle: what is written there differs from what was.
	cut := func(op string, n int64) {
		t.Helper()
		c.mu.Lock()
		c.bad = nil
		c.mu.Unlock()
		var done sync.WaitGroup
		for _, m := range c.machines {
			done.Add(1)
			m.Disks[0].CutAfter(n, sync.OnceFunc(func() {
				_ = m.PowerOff(t.Context())
				c.look(m, "the power cut in mid-"+op)
				done.Done()
			}))
		}
		switch op {
		case "repair":
			for _, m := range c.machines {
				simMust(t, m.PowerOff(t.Context()))
				simDrift(t, m.Disks[0], c.r)
				c.lived(m, simBytes(t, m))
				simMust(t, m.PowerOn(t.Context()))
			}
		default:
			c.apply(simDeclare{Image: c.digests[0], State: "[esp]", Spec: "  boot: {every: restore}\n"})
		}
		met := make(chan struct{})
		go func() { done.Wait(); close(met) }()
		select {
		case <-met:
		case <-time.After(2 * time.Minute):
			t.Fatalf("no %s was met", op)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		found := slices.DeleteFunc(slices.Clone(c.bad), func(s string) bool {
			return !strings.Contains(s, "neither the image's nor what the system of that generation left")
		})
		if len(found) != len(c.machines) {
			t.Errorf("%s: %d of %d disks that boot half were found: %q", op, len(found), len(c.machines), c.bad)
		}
	}
	cut("repair", 40<<10)
	cut("difference", 2<<20)
}
