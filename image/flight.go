package image

import (
	"context"
	"sync"
)

// flights build what is missing: each thing once, whoever asks for it, and one
// thing at a time, so that building never takes more than its own share of
// memory and CPU. A build ends early once nobody waits for it any more.
type flights struct {
	slot chan struct{} // held by the build that runs

	mu    sync.Mutex
	named map[string]*flight
	over  bool
	wg    sync.WaitGroup
}

type flight struct {
	done    chan struct{} // closed at its end
	err     error         // after done
	waiting int
	cancel  context.CancelCauseFunc
}

func newFlights() *flights {
	return &flights{slot: make(chan struct{}, 1), named: map[string]*flight{}}
}

// do waits for the build of that name, beginning it where it is not under way.
// build looks first whether there is anything left to do.
func (f *flights) do(ctx context.Context, name string, build func(context.Context) error) error {
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return errClosed
	}
	b := f.named[name]
	if b == nil {
		run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		b = &flight{done: make(chan struct{}), cancel: cancel}
		f.named[name] = b
		f.wg.Go(func() { f.run(run, name, b, build) })
	}
	b.waiting++
	f.mu.Unlock()
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		if b.waiting--; b.waiting == 0 {
			b.cancel(context.Cause(ctx))
			f.forget(name, b) // who asks from now on does not get our end of it
		}
		return context.Cause(ctx)
	}
}

func (f *flights) run(ctx context.Context, name string, b *flight, build func(context.Context) error) {
	defer b.cancel(nil)
	select {
	case f.slot <- struct{}{}:
		b.err = build(ctx)
		<-f.slot
	case <-ctx.Done():
		b.err = context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(name, b)
	close(b.done)
}

// forget a flight. The lock is held.
func (f *flights) forget(name string, b *flight) {
	if f.named[name] == b {
		delete(f.named, name)
	}
}

// end them all, and wait.
func (f *flights) end() {
	f.mu.Lock()
	f.over = true
	for _, b := range f.named {
		b.cancel(errClosed)
	}
	f.mu.Unlock()
	f.wg.Wait()
}
