package bmc

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Outcome is what is known of a change after the call that was to make it.
type Outcome string

const (
	// Done was read back.
	Done Outcome = "done"
	// Refused did not happen: the BMC said so, or nothing was asked of it.
	Refused Outcome = "refused"
	// Unknown may have happened, may still happen, or did not: look, never repeat.
	Unknown Outcome = "unknown"
)

// OutcomeOf is the outcome of a call that changes something.
func OutcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Done
	// Unverified first: why the last look failed may stand beside it.
	case errors.Is(err, ErrUnverified), errors.Is(err, ErrTimeout), errors.Is(err, ErrUnreachable),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Unknown
	}
	return Refused
}

// verify looks until what was asked for is seen: look returns "" then, else what
// it sees instead. A refusal is believed after one look, because nothing is on
// its way. Nothing is asked again here. A patience of 0 lasts as long as ctx, and so
// does the first look at a BMC that took the change: some answer later than they change.
func (s *session) verify(ctx context.Context, verb string, patience time.Duration, actErr error, look func(context.Context) (string, error)) error {
	if errors.Is(actErr, context.Canceled) || final(actErr) || errors.Is(actErr, errClosed) {
		return actErr
	}
	if actErr != nil && OutcomeOf(actErr) == Refused {
		if other, err := look(ctx); err == nil && other == "" {
			return nil
		}
		return actErr
	}
	watch, cancel := context.WithCancel(ctx)
	if patience > 0 {
		cancel()
		watch, cancel = context.WithTimeout(ctx, s.wait(patience))
	}
	defer cancel()
	var last string
	var lastErr error
	first := watch
	if actErr == nil {
		first = ctx
	}
	for at, pause := first, pollFirst; ; at, pause = watch, min(2*pause, pollMost) {
		other, err := look(at)
		if err == nil && other == "" {
			return nil
		}
		if final(err) {
			return fmt.Errorf("%s: %w", verb, err)
		}
		if watch.Err() == nil || last == "" { // else it was cut short by the clock
			last, lastErr = other, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			continue
		case <-watch.Done():
			timer.Stop()
		}
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return ended(ctx, verb)
		case actErr != nil:
			return actErr
		case lastErr != nil:
			return fmt.Errorf("%s: %w: %w", verb, ErrUnverified, lastErr)
		}
		return fmt.Errorf("%s: %w: %s", verb, ErrUnverified, last)
	}
}
