package bmc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// site counts what reaches its BMCs: the calls in flight, in all and at each.
type site struct {
	mu       sync.Mutex
	inFlight map[string]int
	all      int
	most     int // of all, ever
	mostAt   int // of one BMC, ever
	began    []time.Time
	logins   map[string]int
	logouts  map[string]int
	password string
	// answer is what a BMC says to a call; nil agrees.
	answer func(bmc, verb string) error
	took   func() time.Duration
}

func newSite() *site {
	return &site{inFlight: map[string]int{}, logins: map[string]int{}, logouts: map[string]int{}, password: "right",
		took: func() time.Duration { return 100 * time.Millisecond }}
}

// Dial is bmc.Dial but for the wire.
func (s *site) Dial(ctx context.Context, t Target) (Client, error) {
	a, err := parseURL(t.URL)
	if err != nil {
		return nil, err
	}
	t.Log = slog.New(slog.DiscardHandler)
	return dialWith(ctx, a, t, &siteDriver{site: s, at: a.hostPort(), password: t.Password})
}

func (s *site) count(of map[string]int) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, each := range of {
		n += each
	}
	return n
}

type siteDriver struct {
	*site
	at       string
	password Secret
	on       bool
}

func (d *siteDriver) call(ctx context.Context, verb string, note map[string]int) error {
	d.mu.Lock()
	d.began = append(d.began, time.Now())
	d.inFlight[d.at]++
	d.all++
	d.most, d.mostAt = max(d.most, d.all), max(d.mostAt, d.inFlight[d.at])
	if note != nil {
		note[d.at]++
	}
	took := d.took()
	var answer error
	if d.answer != nil {
		answer = d.answer(d.at, verb)
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.inFlight[d.at]--
		d.all--
	}()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return ctx.Err()
	}
	return answer
}

func (d *siteDriver) Name() string { return "site" }

func (d *siteDriver) Open(ctx context.Context) error {
	if err := d.call(ctx, "login", d.logins); err != nil {
		return err
	}
	if d.password.Reveal() != d.site.password {
		return &AnswerError{Reason: ErrAuth, Status: 401, Message: "no"}
	}
	return nil
}

func (d *siteDriver) Close(ctx context.Context) error { return d.call(ctx, "logout", d.logouts) }

func (d *siteDriver) PowerStateGet(ctx context.Context) (string, error) {
	err := d.call(ctx, "power", nil)
	if d.on {
		return "on", err
	}
	return "off", err
}

func (d *siteDriver) PowerSet(ctx context.Context, state string) (bool, error) {
	d.on = state == "on"
	return true, d.call(ctx, "set", nil)
}

func (d *siteDriver) setNextBoot(ctx context.Context, _ NextBoot) error {
	return d.call(ctx, "boot", nil)
}

func (d *siteDriver) nextBoot(ctx context.Context) (NextBoot, error) {
	return NextBoot{Device: BootDefault}, d.call(ctx, "override", nil)
}

func power(ctx context.Context, c Client) error {
	_, err := c.Power(ctx)
	return err
}

// fleet is one over the site; it is closed at the end of the bubble's test.
func (s *site) fleet(t *testing.T, f *Fleet) *Fleet {
	f.Dial = s.Dial
	t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func at(n int) Target {
	return Target{URL: fmt.Sprintf("ipmi://10.0.%d.%d", n/200, n%200+1), User: "admin", Password: "right"}
}

// Whatever a thousand callers do, give up or ask with wrong passwords, a BMC sees
// one call at a time, and all of them no more than the pool.
func TestOneCallInFlightPerBMCAndNeverMoreThanThePool(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := newSite()
			s.took = func() time.Duration { return time.Duration(r.IntN(2000)) * time.Millisecond }
			s.answer = func(_, verb string) error {
				if verb == "power" && r.IntN(10) == 0 {
					return &AnswerError{Reason: ErrBusy, After: time.Duration(r.IntN(3)) * time.Second}
				}
				return nil
			}
			pool := 1 + r.IntN(12)
			f := s.fleet(t, &Fleet{Calls: pool, Rate: 20 + r.IntN(200), Keep: time.Duration(1+r.IntN(10)) * time.Second})
			var talks []func()
			for range 300 {
				target := at(r.IntN(25))
				target.URL = strings.Replace(target.URL, "ipmi://", "redfish://", 1) + fmt.Sprintf("?system=%d", r.IntN(2))
				if r.IntN(20) == 0 {
					target.Password = "wrong"
				}
				start, patience := time.Duration(r.IntN(60))*time.Second, time.Duration(1+r.IntN(60))*time.Second
				verb := r.IntN(3)
				talks = append(talks, func() {
					time.Sleep(start)
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					_ = f.Do(ctx, target, func(ctx context.Context, c Client) error {
						switch verb {
						case 0:
							return c.On(ctx)
						case 1:
							return c.Off(ctx, true)
						}
						return power(ctx, c)
					})
				})
			}
			var callers sync.WaitGroup
			for _, talk := range talks {
				callers.Go(talk)
			}
			callers.Wait()
			if s.mostAt != 1 || s.most > pool || s.most == 0 {
				t.Errorf("seed %d: %d calls at one BMC, %d in all; want 1, and at most %d", seed, s.mostAt, s.most, pool)
			}
			if s.most < min(pool, 3) {
				t.Errorf("seed %d: never more than %d calls at once: the pool of %d is not used", seed, s.most, pool)
			}
		})
	}
}

func TestAWrongPasswordIsTriedOnceUntilItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{})
		target := at(1)
		target.Password = "wrong"
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() {
				err := f.Do(t.Context(), target, power)
				var refused *RefusedError
				if !errors.Is(err, ErrAuth) || !errors.As(err, &refused) || !strings.Contains(err.Error(), "not tried again until the credential changes") {
					t.Errorf("%v", err)
				}
			})
		}
		callers.Wait()
		time.Sleep(1000 * time.Hour)
		if err := f.Do(t.Context(), target, power); !errors.Is(err, ErrAuth) || s.count(s.logins) != 1 {
			t.Errorf("%v; %d logins, want 1", err, s.count(s.logins))
		}
		// The same password set again is a reason to ask: somebody may have mended the BMC.
		target.Credential = "rack@2"
		for range 2 {
			if err := f.Do(t.Context(), target, power); !errors.Is(err, ErrAuth) || s.count(s.logins) != 2 {
				t.Errorf("%v; %d logins, want 2", err, s.count(s.logins))
			}
		}
		right := at(1)
		for range 2 {
			if err := f.Do(t.Context(), right, power); err != nil || s.count(s.logins) != 3 {
				t.Errorf("%v; %d logins, want 3", err, s.count(s.logins))
			}
		}
		// One that is right for another system does not make the wrong one right.
		if err := f.Do(t.Context(), target, power); !errors.Is(err, ErrAuth) || s.count(s.logins) != 3 {
			t.Errorf("%v; %d logins, want 3", err, s.count(s.logins))
		}
		if err := f.Do(t.Context(), at(2), power); err != nil {
			t.Errorf("another BMC: %v", err)
		}
	})
}

func TestAPasswordRefusedInASessionIsNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{})
		if err := f.Do(t.Context(), at(1), power); err != nil {
			t.Fatal(err)
		}
		s.answer = func(_, verb string) error {
			if verb == "logout" {
				return nil
			}
			return fmt.Errorf("%s: %w", verb, ErrAuth)
		}
		// Even where whoever talks makes light of it.
		if err := f.Do(t.Context(), at(1), func(ctx context.Context, c Client) error { _ = power(ctx, c); return nil }); err != nil {
			t.Fatal(err)
		}
		calls := len(s.began)
		if err := f.Do(t.Context(), at(1), power); !errors.Is(err, ErrAuth) {
			t.Errorf("%v; want ErrAuth", err)
		}
		if len(s.began) != calls || s.count(s.logouts) != 1 {
			t.Errorf("%d calls after the refusal, %d logouts", len(s.began)-calls, s.count(s.logouts))
		}
	})
}

func TestALockedAccountIsLeftAloneForAsLongAsTheBMCSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{})
		s.answer = func(string, string) error { return &AnswerError{Reason: ErrLockedOut, After: 5 * time.Minute} }
		for range 3 {
			if err := f.Do(t.Context(), at(1), power); !errors.Is(err, ErrLockedOut) || !strings.Contains(err.Error(), "not tried again before") {
				t.Errorf("%v", err)
			}
			time.Sleep(time.Minute)
		}
		s.answer = nil
		if n := s.count(s.logins); n != 1 {
			t.Errorf("%d logins, want 1", n)
		}
		time.Sleep(3 * time.Minute)
		if err := f.Do(t.Context(), at(1), power); err != nil {
			t.Errorf("after its time: %v", err)
		}
	})
}

func TestASessionIsKeptBetweenConversationsAndClosedAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{Keep: time.Minute})
		for range 10 {
			if err := f.Do(t.Context(), at(1), power); err != nil {
				t.Fatal(err)
			}
			time.Sleep(59 * time.Second)
		}
		if s.count(s.logins) != 1 || s.count(s.logouts) != 0 {
			t.Errorf("%d logins, %d logouts; want 1 and none", s.count(s.logins), s.count(s.logouts))
		}
		time.Sleep(2 * time.Second)
		if s.count(s.logouts) != 1 {
			t.Errorf("%d logouts after a minute, want 1", s.count(s.logouts))
		}
		// A long conversation is not cut off by it.
		if err := f.Do(t.Context(), at(1), func(ctx context.Context, c Client) error {
			time.Sleep(time.Hour)
			return power(ctx, c)
		}); err != nil || s.count(s.logouts) != 1 {
			t.Errorf("%v, %d logouts", err, s.count(s.logouts))
		}
	})
}

func TestAChangedCredentialOpensAnotherSessionAndEndsTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{})
		newer := at(1)
		newer.Credential = "rack@2"
		err := f.Do(t.Context(), at(1), func(ctx context.Context, old Client) error {
			if err := f.Do(ctx, newer, power); err != nil {
				return err
			}
			if s.count(s.logouts) != 0 {
				t.Error("the old session ended under its user")
			}
			return power(ctx, old)
		})
		if err != nil || s.count(s.logins) != 2 || s.count(s.logouts) != 1 {
			t.Errorf("%v; %d logins, %d logouts, want 2 and 1", err, s.count(s.logins), s.count(s.logouts))
		}
	})
}

func TestCloseLogsOutEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := &Fleet{Dial: s.Dial, Calls: 10}
		var callers sync.WaitGroup
		for n := range 100 {
			callers.Go(func() {
				if err := f.Do(t.Context(), at(n), power); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		long := make(chan error)
		go func() {
			long <- f.Do(t.Context(), at(0), func(ctx context.Context, c Client) error {
				time.Sleep(3 * time.Second)
				return power(ctx, c)
			})
		}()
		synctest.Wait()
		began := time.Now()
		closed := make(chan error)
		go func() { closed <- f.Close(t.Context()) }()
		if err := <-long; err != nil {
			t.Errorf("the conversation under way: %v", err)
		}
		if err := <-closed; err != nil || s.count(s.logouts) != 100 {
			t.Errorf("%v, %d logouts; want 100", err, s.count(s.logouts))
		}
		// 3 s for the conversation, and 100 logouts of 100 ms by tens.
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if err := f.Do(t.Context(), at(0), power); !errors.Is(err, errFleetClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestCloseDoesNotWaitForASilentBMC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := &Fleet{Dial: s.Dial}
		if err := f.Do(t.Context(), at(1), power); err != nil {
			t.Fatal(err)
		}
		s.took = func() time.Duration { return time.Hour }
		began := time.Now()
		if err := f.Close(t.Context()); err != nil || time.Since(began) > closeTimeout {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestRetryAfterIsHonouredByEveryConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{})
		if err := f.Do(t.Context(), at(1), power); err != nil {
			t.Fatal(err)
		}
		s.answer = func(string, string) error { return &AnswerError{Reason: ErrBusy, After: 20 * time.Second} }
		if err := f.Do(t.Context(), at(1), power); !errors.Is(err, ErrBusy) || RetryAfter(err) != 20*time.Second {
			t.Fatalf("%v, retry after %s", err, RetryAfter(err))
		}
		s.answer = nil
		calls, asked := len(s.began), time.Now()
		// Who cannot wait is told how long it would be; nothing is sent.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := f.Do(ctx, at(1), power); !errors.Is(err, ErrBusy) || RetryAfter(err) != 20*time.Second || len(s.began) != calls {
			t.Errorf("%v, %d calls", err, len(s.began)-calls)
		}
		// Who can, waits.
		if err := f.Do(t.Context(), at(1), power); err != nil || len(s.began) != calls+1 || s.began[calls].Sub(asked) != 20*time.Second {
			t.Errorf("%v: asked after %s", err, s.began[len(s.began)-1].Sub(asked))
		}
		if err := f.Do(t.Context(), at(2), power); err != nil {
			t.Errorf("another BMC: %v", err)
		}
	})
}

func TestCallsInOneSubnetAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.took = func() time.Duration { return time.Millisecond }
		f := s.fleet(t, &Fleet{Calls: 1000, Rate: 50})
		began := time.Now()
		var callers sync.WaitGroup
		for n := range 400 { // two subnets of 200, two calls each
			callers.Go(func() {
				if err := f.Do(t.Context(), at(n), power); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		// 50 at once and 350 in steps of 20 ms, in both subnets at the same time.
		if took := time.Since(began).Round(100 * time.Millisecond); took != 7*time.Second {
			t.Errorf("400 calls in each subnet took %s, want 7 s", took)
		}
		perSecond := map[int]int{}
		for _, at := range s.began {
			perSecond[int(at.Sub(began)/time.Second)]++
		}
		for second, n := range perSecond {
			if n > 2*(50+50) {
				t.Errorf("second %d: %d calls", second, n)
			}
		}
	})
}

func TestWaitingForATurnIsBusyNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		f := s.fleet(t, &Fleet{Calls: 1})
		for n := range 2 {
			if err := f.Do(t.Context(), at(n), power); err != nil {
				t.Fatal(err)
			}
		}
		s.took = func() time.Duration { return 10 * time.Second }
		var slow sync.WaitGroup
		slow.Go(func() { _ = f.Do(t.Context(), at(0), power) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.Do(ctx, at(1), power); !errors.Is(err, ErrBusy) || errors.Is(err, ErrTimeout) {
			t.Errorf("%v; want ErrBusy", err)
		}
		slow.Wait()
	})
}

func TestBackoffDoublesToAMinuteAndHonoursTheBMC(t *testing.T) {
	var whole []time.Duration
	b := Backoff{Random: func() float64 { return 0 }}
	for range 9 {
		whole = append(whole, b.Next(ErrBusy))
	}
	if want := "[1s 2s 4s 8s 16s 32s 1m0s 1m0s 1m0s]"; fmt.Sprint(whole) != want {
		t.Errorf("%v, want %s", whole, want)
	}
	b = Backoff{}
	for _, most := range whole {
		if d := b.Next(ErrTimeout); d <= most/2 || d > most {
			t.Errorf("%s is not within (%s, %s]", d, most/2, most)
		}
	}
	b = Backoff{}
	if d := b.Next(&AnswerError{Reason: ErrBusy, After: 90 * time.Second}); d != 90*time.Second {
		t.Errorf("%s, want the BMC's own 90 s", d)
	}
}
