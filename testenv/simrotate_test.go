package testenv

import (
	"net/http"
	"sync"
	"testing"
	"time"
)

// armNth is closed at the nth request to a BMC from now on, which waits until go on.
func armNth(b *bmcFront, n int) (reached <-chan struct{}, goOn func()) {
	came, proceed := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	count := 0
	b.OnRequest(func(string, bool) {
		mu.Lock()
		count++
		now := count == n
		mu.Unlock()
		if now {
			close(came)
			<-proceed
		}
	})
	return came, func() { b.OnRequest(nil); close(proceed) }
}

// TestAServerKilledAnywhereInARotationKnowsAPasswordThatWorks kills a real server at
// each request of a rotation, over IPMI and Redfish. The BMCs lock after three refused
// logins, and IPMI's count one that a kill cuts off.
func TestAServerKilledAnywhereInARotationKnowsAPasswordThatWorks(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	for i, protocol := range []string{"ipmi", "redfish"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			c := newSimCrash(t, 2)
			c.must(http.MethodPost, "/api/v1/freeze", map[string]string{"reason": "only passwords"}, nil)
			simMust(t, c.next())
			m := c.machines[i]
			m.SetFaults(func(f *BMCFaults) { f.LockAfter = 3 })
			at := "/api/v1/machines/" + m.Options.Name
			type bmcView struct {
				BMC struct{ Rotated, Rotating time.Time }
			}
			view := func() (v bmcView) {
				c.must(http.MethodGet, at, nil, &v)
				return v
			}
			works := func(when string, n int) {
				t.Helper()
				var last error
				c.await("a password works", 30*time.Second, func() bool {
					last = c.call(http.MethodPost, at+"/power", map[string]any{"verb": "status"}, nil)
					return last == nil
				})
				if v := view(); !v.BMC.Rotating.IsZero() {
					t.Errorf("%s %d: a rotation is left: %+v", when, n, v.BMC)
				}
			}
			works("before", 0)
			begun := 0 // rotations that a kill cut off after they were on record
			for n := 1; ; n++ {
				before := view().BMC.Rotated
				changes := m.front().Done("set-account")
				reached, goOn := armNth(m.front(), n)
				over := make(chan error, 1)
				go func() { over <- c.call(http.MethodPost, at+"/bmc/rotate", map[string]any{}, nil) }()
				met := false
				select {
				case <-reached:
					met = true
					c.kill()
					goOn()
					if err := <-over; err == nil {
						t.Errorf("killed at request %d: the rotation is said to be done", n)
					}
					c.start()
				case err := <-over:
					goOn()
					if err != nil {
						t.Fatalf("the rotation of %d requests: %v", n-1, err)
					}
				}
				works("killed at request", n)
				now := view().BMC.Rotated
				told := m.front().Done("set-account") > changes
				if told != now.After(before) {
					t.Errorf("killed at request %d: the BMC was told %t, rotated %t", n, told, now.After(before))
				}
				if met && told {
					begun++
				}
				if !met {
					t.Logf("%d kills, %d rotations finished after one", n-1, begun)
					if begun < 3 {
						t.Errorf("only %d of %d kills came after the password was on record", begun, n-1)
					}
					break
				}
			}
		})
	}
}
