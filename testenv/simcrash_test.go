package testenv

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/inventory"
)

// simCrash is a server under fire: rounds of new generations, with the disks'
// counters as they stood when the round began.
type simCrash struct {
	*simServer
	image  inventory.Digest
	spec   string // added to the Definition's
	round  int
	begun  time.Time
	erases map[string]int // before the round
}

func newSimCrash(t *testing.T, machines int) *simCrash {
	s := newSimServer(t)
	c := &simCrash{simServer: s, image: s.addImage(SimImage(simImageSize, 7)), erases: map[string]int{}}
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range machines {
		s.add(i+1, func(o *SimulatedOptions) {
			o.Pace = 10 * time.Millisecond
			o.Faults.Delay = 3 * time.Millisecond
			o.Sessions = 200
		})
	}
	return c
}

func (c *simCrash) declare() simDeclare {
	return simDeclare{Image: c.image, Spec: c.spec, UserData: fmt.Sprintf("#cloud-config\nhostname: ${machine.name}\nbootcmd: [echo round %d]\n", c.round)}
}

// next begins a round: a new generation for everybody. The server may be killed
// in the middle of the request, and then it is asked again.
func (c *simCrash) next() error {
	c.round++
	c.begun = time.Now()
	for _, m := range c.machines {
		c.erases[m.Options.Name] = len(m.Disks[0].Erases())
	}
	return c.tryApply()
}

func (c *simCrash) tryApply() error {
	var erase []string
	for _, m := range c.machines {
		erase = append(erase, m.Options.Name)
	}
	var p simPlan
	if err := c.call(http.MethodPost, "/api/v1/plan", map[string]any{
		"files": []inventory.File{{Name: "sim.yaml", Data: []byte(c.yaml(c.declare()))}}, "erase": erase}, &p); err != nil {
		return err
	}
	return c.call(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
}

// arrived reports whether every machine runs the round's generation and said so.
func (c *simCrash) arrived() bool {
	var views []simView
	if c.call(http.MethodGet, "/api/v1/machines", nil, &views) != nil || len(views) == 0 {
		return false
	}
	for _, v := range views {
		if v.Status.Phase == "failed" {
			for _, l := range c.timeline(v.Name) {
				c.t.Logf("%s %s %s: %s", v.Name, l.Time.Format("05.000"), l.Kind, l.Text)
			}
			c.t.Fatalf("round %d: %v", c.round, v)
		}
		if v.Status.Phase != "active" || v.Sync != "in sync" || v.Status.Health != "healthy" {
			return false
		}
	}
	return true
}

// check holds every promise of a round that is over against the disks.
func (c *simCrash) check() {
	c.t.Helper()
	if os.Getenv("RECAST_VERBOSE") != "" {
		for _, m := range c.machines {
			for _, l := range c.timeline(m.Options.Name) {
				c.t.Logf("%s %s %s: %s", m.Options.Name, l.Time.Format("04:05.000"), l.Kind, l.Text)
			}
		}
	}
	for _, m := range c.machines {
		name, d := m.Options.Name, m.Disks[0]
		v := c.view(name)
		if v.Status.Running != v.Wanted {
			c.t.Errorf("round %d: %v: runs %s, wanted %s", c.round, v, v.Status.Running.Short(), v.Wanted.Short())
		}
		raw, err := d.ConfigFile("recast.json")
		var marker inventory.Marker
		if err == nil {
			err = json.Unmarshal(raw, &marker)
		}
		if err != nil || marker.Generation != v.Wanted || marker.Machine != name || marker.Attempt != v.Status.Attempt || !d.Bootable() {
			c.t.Errorf("round %d: the disk of %v says %+v (%v), bootable %t", c.round, v, marker, err, d.Bootable())
		}
		erases := d.Erases()[c.erases[name]:]
		var intents []simLine
		for _, l := range c.timeline(name) {
			if l.Kind == "step" && strings.HasPrefix(l.Text, "may erase ") && !l.Time.Before(c.begun) {
				intents = append(intents, l)
			}
		}
		perAttempt := map[string]int{}
		for i, e := range erases {
			perAttempt[e.Reason]++
			if i >= len(intents) || e.At.Before(intents[i].Time) {
				c.t.Errorf("round %d: %s was erased at %s under no write intent recorded before (%v)", c.round, name, e.At.Format("05.000"), intents)
			}
		}
		for attempt, n := range perAttempt {
			if n > 1 {
				c.t.Errorf("round %d: %s was erased %d times in one attempt: %s", c.round, name, n, attempt)
			}
		}
		if len(erases) == 0 || len(erases) > v.Status.Attempt {
			c.t.Errorf("round %d: %s was erased %d times in %d attempts", c.round, name, len(erases), v.Status.Attempt)
		}
		if v.Status.Hold != nil || len(v.Status.Findings) > 0 {
			c.t.Errorf("round %d: %v", c.round, v)
		}
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
}

func TestServerKilledAtEveryStepBoundary(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	c := newSimCrash(t, 2)
	simMust(t, c.next())
	c.await("every machine arrives", time.Minute, c.arrived)
	for _, step := range []string{"stopping", "arming", "powering", "booting", "claiming", "inspecting", "writing", "verifying", "starting"} {
		met := 0
		for try := 0; met == 0 && try < 6; try++ {
			ctx, cancel := context.WithCancel(t.Context())
			views := c.watch(ctx)
			if _, ok := <-views; !ok {
				t.Fatal("the watch ends at once")
			}
			simMust(t, c.next())
			wanted := inventory.Digest("")
			for v := range views {
				if wanted == "" && v.Sync == "out of sync" {
					wanted = v.Wanted
				}
				if v.Status.Wanted == wanted && v.Status.Phase == "deploying" && v.Status.Step == step {
					c.kill()
					met++
					break
				}
				if wanted != "" && v.Status.Running == wanted && v.Status.Phase == "active" {
					break // it went by unseen
				}
			}
			cancel()
			if met > 0 {
				c.start()
			}
			c.await(fmt.Sprintf("every machine arrives after a kill while %s", step), 2*time.Minute, c.arrived)
			c.check()
		}
		t.Logf("%s: %d rounds", step, c.round)
		if met == 0 {
			t.Errorf("step %q was never met", step)
		}
	}
}

// simPoints is how many random points the server is killed at.
func simPoints(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("RECAST_KILLS")); err == nil {
		return n
	}
	switch {
	case testing.Short():
		return 20
	case os.Getenv("RECAST_LONG") != "":
		return 1000
	}
	return 200
}

func TestServerKilledAnywhere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("RECAST_SEED"), 10, 64); err == nil {
		seed = v
	}
	points := simPoints(t)
	t.Logf("%d points, RECAST_SEED=%d", points, seed)
	r := rand.New(rand.NewPCG(seed, 0))
	c := newSimCrash(t, 8)

	probe := &simProbe{simServer: c.simServer}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { probe.run(ctx) })
	defer work.Wait()
	defer cancel()

	at := map[string]int{}
	var starting, settling time.Duration
	for kills := 0; kills < points; {
		applied := c.next() == nil
		for kills < points {
			_ = simPause(ctx, time.Duration(r.Int64N(int64(250*time.Millisecond))))
			if applied && c.arrived() {
				break
			}
			var views []simView
			_ = c.call(http.MethodGet, "/api/v1/machines", nil, &views)
			for _, v := range views {
				at[strings.TrimSuffix(v.Status.Phase+"/"+v.Status.Step, "/")]++
			}
			_ = simPause(ctx, time.Duration(r.Int64N(int64(20*time.Millisecond))))
			c.kill()
			kills++
			for r.IntN(6) == 0 && kills < points { // and while it starts
				c.launch()
				_ = simPause(ctx, time.Duration(r.Int64N(int64(120*time.Millisecond))))
				c.kill()
				kills++
			}
			began := time.Now()
			c.start()
			starting += time.Since(began)
			probe.check()
			if !applied {
				applied = c.tryApply() == nil
			}
		}
		c.await("the round is applied", time.Minute, func() bool { applied = applied || c.tryApply() == nil; return applied })
		began := time.Now()
		c.await("every machine arrives", 2*time.Minute, c.arrived)
		settling += time.Since(began)
		c.check()
	}
	var states []string
	for state, n := range at {
		states = append(states, fmt.Sprintf("%s %d", state, n))
	}
	sort.Strings(states)
	t.Logf("starts took %s, the ends of rounds %s", starting.Round(time.Millisecond), settling.Round(time.Millisecond))
	t.Logf("%d rounds of %d machines; at the kills the machines were: %s; %d probes acknowledged", c.round, len(c.machines), strings.Join(states, ", "), probe.acked())
}

// simProbe writes all the time and remembers what was acknowledged.
type simProbe struct {
	*simServer
	mu sync.Mutex
	n  int
}

func (p *simProbe) acked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *simProbe) run(ctx context.Context) {
	for ctx.Err() == nil {
		var info struct{ Version int }
		if p.call(http.MethodPut, "/api/v1/secrets/probe", map[string]string{"value": "x"}, &info) == nil {
			p.mu.Lock()
			p.n = max(p.n, info.Version)
			p.mu.Unlock()
		}
		_ = simPause(ctx, 40*time.Millisecond)
	}
}

// check that what was acknowledged is there.
func (p *simProbe) check() {
	p.t.Helper()
	want := p.acked()
	var secrets []struct {
		Name    string
		Version int
	}
	p.must(http.MethodGet, "/api/v1/secrets", nil, &secrets)
	for _, s := range secrets {
		if s.Name == "probe" && s.Version >= want {
			return
		}
	}
	if want > 0 {
		p.t.Fatalf("version %d of a secret was acknowledged, after the crash there is %+v", want, secrets)
	}
}
