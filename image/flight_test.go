package image

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestWhatManyNeedIsBuiltOnce(t *testing.T) {
	f := newFlights()
	var built atomic.Int32
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := f.do(t.Context(), "a", func(context.Context) error {
				if !done.Load() { // as a build does, which looks whether it is there
					built.Add(1)
					done.Store(true)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := built.Load(); n != 1 {
		t.Errorf("built %d times", n)
	}
}

func TestABuildLivesAsLongAsSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		finish := make(chan struct{})
		var ended error
		build := func(ctx context.Context) error {
			select {
			case <-finish:
			case <-ctx.Done():
				ended = context.Cause(ctx)
			}
			return ended
		}
		errs := make(chan error, 3)
		first, leave := context.WithCancel(t.Context())
		second, leaveToo := context.WithCancel(t.Context())
		go func() { errs <- f.do(first, "a", build) }()
		go func() { errs <- f.do(second, "a", build) }()
		synctest.Wait()
		leave()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		synctest.Wait()
		if ended != nil {
			t.Fatalf("the build ended although one waits: %v", ended)
		}
		leaveToo()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("who left last got %v", err)
		}
		synctest.Wait()
		if !errors.Is(ended, context.Canceled) {
			t.Errorf("the build nobody waits for ended with %v", ended)
		}
		// Who comes then gets a build of its own.
		go func() { errs <- f.do(t.Context(), "a", build) }()
		synctest.Wait()
		close(finish)
		if err := <-errs; err != nil && !errors.Is(err, context.Canceled) || len(f.named) > 0 {
			t.Errorf("%v, %v", err, f.named)
		}
		f.end()
		if err := f.do(t.Context(), "a", build); !errors.Is(err, errClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestOneThingIsBuiltAtATimeAndTheEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		var running, most int
		for _, name := range []string{"a", "b", "c"} {
			go f.do(t.Context(), name, func(ctx context.Context) error {
				running++ // the slot guards it
				most = max(most, running)
				<-ctx.Done()
				running--
				return context.Cause(ctx)
			})
		}
		synctest.Wait()
		f.end()
		if most != 1 || running != 0 {
			t.Errorf("%d ran at a time, %d still run", most, running)
		}
	})
}
