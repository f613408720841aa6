package bmc_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

// TestLostPacketsRepeatNothing sends 200 intents over IPMI while 15 % of all
// packets are lost on their way to the BMC, and as many on the way back.
func TestLostPacketsRepeatNothing(t *testing.T) {
	t.Parallel()
	const bmcs, intents = 50, 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	done, unknown := 0, 0
	for i := range bmcs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			machine := &testenv.SimMachine{Firmware: true}
			b := newIPMI(t, testenv.IPMIOptions{Machine: machine, Sessions: 60, Idle: 2 * time.Second, Seed: uint64(i + 1),
				Faults: testenv.BMCFaults{LoseIn: 0.15, LoseOut: 0.15}})
			var c bmc.Client
			for c == nil { // a login may lose too many of its packets
				var err error
				if c, err = bmc.Dial(within(t, 30*time.Second), ipmiTarget(b)); err != nil &&
					!errors.Is(err, bmc.ErrTimeout) && !errors.Is(err, bmc.ErrUnreachable) {
					t.Errorf("BMC %d: dial: %v: no word of a loss", i, err)
					return
				}
			}
			defer c.Close(context.Background())
			for n := range intents {
				verb, want := "power-on", true
				if n%2 == 1 {
					verb, want = "power-off", false
				}
				next := bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}
				name := fmt.Sprintf("BMC %d, intent %d, %s", i, n, verb)
				// What is unknown is observed again, as the engine does, and never
				// sent anew without that.
				for try := 0; machine.Powered() != want; try++ {
					if try == 20 {
						t.Errorf("%s: never", name)
						return
					}
					before := b.Done(verb)
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					var err error
					if want {
						if err = c.SetNextBoot(ctx, next); err == nil {
							if got := machine.BootOnce(); got != (testenv.BootOnce{Device: testenv.BootPXE, UEFI: true}) {
								t.Errorf("%s: the override is done, and it is %v", name, got)
							}
							err = c.On(ctx)
						}
					} else {
						err = c.Off(ctx, true)
					}
					cancel()
					if times := b.Done(verb) - before; times > 1 {
						t.Errorf("%s: executed %d times by one call", name, times)
					}
					mu.Lock()
					if err == nil {
						done++
					} else {
						unknown++
					}
					mu.Unlock()
					if err != nil && !errors.Is(err, bmc.ErrTimeout) && !errors.Is(err, bmc.ErrUnreachable) && !errors.Is(err, bmc.ErrUnverified) {
						t.Errorf("%s: %v: no word of a loss", name, err)
					}
					if err == nil && machine.Powered() != want {
						t.Errorf("%s: done, and the machine is on: %v", name, !want)
					}
				}
			}
			if starts, stops := len(machine.Starts()), machine.Stops(); starts != intents/2 || stops != intents/2 ||
				b.Done("power-on") != starts || b.Done("power-off") != stops {
				t.Errorf("BMC %d: %d starts by %d commands, %d stops by %d; want %d each", i,
					starts, b.Done("power-on"), stops, b.Done("power-off"), intents/2)
			}
		}()
	}
	wg.Wait()
	t.Logf("%d calls were seen done, %d remained unknown", done, unknown)
}
