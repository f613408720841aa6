package bmc

import (
	"context"
	"fmt"
)

// EventStream is a BMC that tells by itself that something happened. What it says is
// not read: an event is a reason to look, and only what is seen then is believed.
type EventStream interface {
	// Next waits for the next event, and returns an error once the stream is over or
	// ctx ends.
	Next(ctx context.Context) error
	// Close ends the stream, and with it our subscription on the BMC.
	Close() error
}

// EventSource is a Client whose BMC may have events. A stream outlives its conversation;
// whoever opened it closes it. Those of Dial and Fake are.
type EventSource interface {
	// Listen opens a stream of its own connection; ErrUnsupported where there is none.
	Listen(ctx context.Context) (EventStream, error)
}

var (
	_ EventSource = (*session)(nil)
	_ EventSource = (*Fake)(nil)
)

func (s *session) Listen(ctx context.Context) (stream EventStream, err error) {
	const verb = "subscribe to events"
	d, ok := s.seen.driver.(*redfishDriver)
	if !ok {
		return nil, fmt.Errorf("%s: %w: not over IPMI", verb, ErrUnsupported)
	}
	err = s.call(ctx, verb, func(ctx context.Context) error {
		opened, err := d.listen(ctx)
		if err == nil {
			stream = opened
		}
		return err
	})
	return stream, err
}

// fakeEvents is the stream of a Fake.
type fakeEvents struct {
	fake *Fake
	told chan struct{}
}

// Tell sends an event to whoever listens to the Fake, and says to how many.
func (f *Fake) Tell() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		select {
		case s.told <- struct{}{}:
		default: // one is waiting already
		}
	}
	return len(f.streams)
}

func (f *Fake) Listen(ctx context.Context) (EventStream, error) {
	s := &fakeEvents{fake: f, told: make(chan struct{}, 1)}
	return s, f.call(ctx, "subscribe", NextBoot{}, func(Fault) (func(), error) {
		if f.NoEvents {
			return nil, fmt.Errorf("subscribe to events: %w", ErrUnsupported)
		}
		if f.streams == nil {
			f.streams = map[*fakeEvents]bool{}
		}
		f.streams[s] = true
		return nil, nil
	})
}

func (s *fakeEvents) Next(ctx context.Context) error {
	select {
	case <-s.told:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *fakeEvents) Close() error {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	delete(s.fake.streams, s)
	return nil
}
