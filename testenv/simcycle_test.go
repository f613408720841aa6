package testenv

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// simMoment is a point in a power cycle: a command has come and is not executed, is
// executed and not answered, or was answered, so that the next look comes.
type simMoment struct{ verb, when string }

const (
	simArrived  = "has arrived"
	simExecuted = "was executed"
	simAnswered = "was answered"
)

// reached is closed when a BMC comes to a moment; what it was asked waits until go on.
func (m simMoment) arm(b interface {
	OnRequest(func(verb string, executed bool))
}) (reached <-chan struct{}, goOn func()) {
	came, proceed := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	seen, met := false, false
	b.OnRequest(func(verb string, executed bool) {
		mu.Lock()
		now := verb == m.verb && (m.when == simArrived && !executed || m.when == simExecuted && executed) ||
			m.when == simAnswered && seen && verb == "read"
		seen = seen || verb == m.verb && executed
		now = now && !met
		met = met || now
		mu.Unlock()
		if now {
			close(came)
			<-proceed
		}
	})
	return came, func() { close(proceed); b.OnRequest(nil) }
}

// simPower is what a machine's power went through.
type simPower struct{ stops, starts, attempts int }

func (c *simCrash) power(m *Simulated) simPower {
	front := m.front()
	return simPower{stops: m.Stops(), starts: front.Done("power-on"), attempts: c.view(m.Options.Name).Status.Attempt}
}

// newSimCycle has machines whose systems are deaf to the power button: each is
// switched off by one command.
func newSimCycle(t *testing.T, spec string) *simCrash {
	t.Helper()
	c := newSimCrash(t, 2) // one over IPMI, one over Redfish
	c.spec = spec
	for _, m := range c.machines {
		m.IgnoreACPI(true)
	}
	simMust(t, c.next())
	c.await("every machine arrives", time.Minute, c.arrived)
	return c
}

// simVictims does a test by either protocol, each with a server and a rack of its own.
func simVictims(t *testing.T, spec string, do func(*testing.T, *simCrash, *Simulated)) {
	for i, protocol := range []string{"ipmi", "redfish"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			c := newSimCycle(t, spec)
			do(t, c, c.machines[i])
		})
	}
}

func (s *Simulated) front() *bmcFront {
	if s.IPMI != nil {
		return s.IPMI.bmcFront
	}
	return s.Redfish.bmcFront
}

// killAt kills the server once a moment is reached that begin arms, starts it again and
// waits until all is over. It returns how often each machine was switched off and on.
func (c *simCrash) killAt(begin func() (reached <-chan struct{}, goOn func())) []simPower {
	c.t.Helper()
	var before []simPower
	for _, m := range c.machines {
		before = append(before, c.power(m))
	}
	reached, goOn := begin()
	select {
	case <-reached:
		c.kill()
	case <-time.After(time.Minute):
		c.tell()
		c.t.Fatal("the moment never came")
	}
	goOn()
	c.start()
	c.await("every machine arrives after a kill", 2*time.Minute, c.arrived)
	for i, m := range c.machines {
		now := c.power(m)
		before[i] = simPower{now.stops - before[i].stops, now.starts - before[i].starts, now.attempts}
	}
	return before
}

// TestAServerKilledInAPowerCycleNeverCyclesTwice kills a real server at each point of a
// re-image's power cycle, over IPMI and Redfish, and counts what the machines felt.
func TestAServerKilledInAPowerCycleNeverCyclesTwice(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	simVictims(t, "", func(t *testing.T, c *simCrash, victim *Simulated) {
		for _, verb := range []string{"power-off", "set-boot", "power-on"} {
			for _, when := range []string{simArrived, simExecuted, simAnswered} {
				at := simMoment{verb, when}
				for i, got := range c.killAt(func() (<-chan struct{}, func()) {
					reached, goOn := at.arm(victim.front())
					simMust(t, c.next())
					return reached, goOn
				}) {
					if want := (simPower{stops: 1, starts: 1, attempts: 1}); got != want {
						t.Errorf("killed when %s of %s %s: %s was switched off %d times and on %d times in %d attempts, want once each",
							verb, victim.Options.Name, when, c.machines[i].Options.Name, got.stops, got.starts, got.attempts)
					}
				}
				c.check()
			}
		}
	})
}

// TestAServerKilledWhileItCyclesAHungMachineCyclesItOnce does so at each point of the
// power cycle that helps a machine which hangs at its restart.
func TestAServerKilledWhileItCyclesAHungMachineCyclesItOnce(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	simVictims(t, "  health: {deadline: 6s}\n  deadlines: {booting: 3s}\n", func(t *testing.T, c *simCrash, victim *Simulated) {
		for _, verb := range []string{"power-off", "power-on"} {
			for _, when := range []string{simArrived, simExecuted, simAnswered} {
				at := simMoment{verb, when}
				got := c.killAt(func() (<-chan struct{}, func()) {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					views := c.watch(ctx)
					if _, ok := <-views; !ok {
						t.Fatal("the watch ends at once")
					}
					victim.HangAtRestart(1)
					simMust(t, c.next())
					for v := range views { // the cycle is meant, not that of the re-image before it
						if v.Name == victim.Options.Name && v.Status.Phase == "deploying" && v.Status.Step == "starting" {
							break
						}
					}
					return at.arm(victim.front())
				})
				i := slices.Index(c.machines, victim)
				if want := (simPower{stops: 2, starts: 2, attempts: 1}); got[i] != want {
					t.Errorf("killed when %s of %s %s: it was switched off %d times and on %d times in %d attempts, want twice each, once for its re-image",
						verb, victim.Options.Name, when, got[i].stops, got[i].starts, got[i].attempts)
				}
				c.check()
			}
		}
	})
}

// A `recast power cycle` that a kill cuts in two is not taken up: the machine is off
// once, and the watch says that it is.
func TestAnOperatorsPowerCycleIsNeverTakenUpAgain(t *testing.T) {
	t.Parallel()
	c := newSimCycle(t, "")
	for _, victim := range c.machines {
		for _, when := range []string{simArrived, simExecuted, simAnswered} {
			before := c.power(victim)
			reached, goOn := simMoment{"power-off", when}.arm(victim.front())
			over := make(chan error, 1)
			go func() {
				over <- c.call(http.MethodPost, "/api/v1/machines/"+victim.Options.Name+"/power", map[string]any{"verb": "cycle"}, nil)
			}()
			<-reached
			c.kill()
			goOn()
			if <-over == nil {
				t.Errorf("%s: the cycle is said to be done", victim.Options.Name)
			}
			c.await("the command is executed", 10*time.Second, func() bool { return !victim.Powered() })
			c.start()
			if now := c.power(victim); now.stops-before.stops != 1 || now.starts != before.starts {
				t.Errorf("killed when power-off %s: switched off %d times and on %d times", when, now.stops-before.stops, now.starts-before.starts)
			}
			c.must(http.MethodPost, "/api/v1/machines/"+victim.Options.Name+"/power", map[string]any{"verb": "on"}, nil)
			c.await("it reports again", time.Minute, c.arrived)
		}
	}
}
