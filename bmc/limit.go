package bmc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	backoffFirst = time.Second
	backoffMost  = time.Minute
)

// Backoff is how long to wait before a BMC is asked again that is busy, silent or
// out of reach. Its zero value is ready.
type Backoff struct {
	// Random is in [0,1); nil means math/rand.
	Random func() float64
	next   time.Duration
}

// Next doubles from a second to a minute, less up to a half: machines that failed
// together do not come back together. It is never shorter than the BMC's own wish.
func (b *Backoff) Next(err error) time.Duration {
	if b.next == 0 {
		b.next = backoffFirst
	}
	random := b.Random
	if random == nil {
		random = rand.Float64
	}
	pause := b.next - time.Duration(random()*float64(b.next/2))
	b.next = min(2*b.next, backoffMost)
	return max(pause, RetryAfter(err))
}

// pace spreads what begins in one subnet: a second's worth at once, the rest in step.
type pace struct {
	every time.Duration // 0 any
	burst int

	mu   sync.Mutex
	next time.Time // when the next would begin, had there been no pause
}

// turn is how long to wait for a place that is taken with it.
func (p *pace) turn(now time.Time) time.Duration {
	if p.every == 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if earliest := now.Add(-time.Duration(p.burst-1) * p.every); p.next.Before(earliest) {
		p.next = earliest
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(p.every)
	return max(wait, 0)
}

// paceLocked is that of a BMC's subnet. A host with a name is a subnet of its own:
// which one it is in, only its resolver knows.
func (f *Fleet) paceLocked(hostPort string) *pace {
	subnet := hostPort
	if at, err := netip.ParseAddrPort(hostPort); err == nil {
		addr := at.Addr().Unmap().WithZone("")
		bits := 24
		if addr.Is6() {
			bits = 64
		}
		subnet = netip.PrefixFrom(addr, bits).Masked().String()
	}
	p, ok := f.subnets[subnet]
	if !ok {
		p = &pace{burst: f.Rate}
		if f.Rate > 0 {
			p.every = time.Second / time.Duration(f.Rate)
		}
		f.subnets[subnet] = p
	}
	return p
}

// enter waits until one call may go out to the BMC: when no other is in flight
// there, the BMC's own wish to be left alone is over, its subnet's and the pool's
// turn has come. The caller calls leave with the call's outcome. A BMC without a
// Fleet has no limits.
func (b *board) enter(ctx context.Context) (leave func(error), err error) {
	if b == nil {
		return func(error) {}, nil
	}
	select {
	case b.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, queued(ctx, "wait for the BMC's turn")
	}
	if err := b.admit(ctx); err != nil {
		<-b.slot
		return nil, err
	}
	return func(err error) {
		<-b.fleet.pool
		if after := RetryAfter(err); after > 0 && errors.Is(err, ErrBusy) {
			b.mu.Lock()
			b.silent = time.Now().Add(after)
			b.mu.Unlock()
		}
		<-b.slot
	}, nil
}

// admit is enter once no other call is in flight; it takes a token of the pool.
func (b *board) admit(ctx context.Context) error {
	b.mu.Lock()
	silent := time.Until(b.silent)
	b.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok && silent > 0 && time.Until(deadline) < silent {
		return &AnswerError{Reason: ErrBusy, After: silent, Message: "it asked to be left alone"}
	}
	if err := pause(ctx, max(silent, 0)+b.pace.turn(time.Now().Add(max(silent, 0)))); err != nil {
		return err
	}
	select {
	case b.fleet.pool <- struct{}{}:
		return nil
	case <-ctx.Done():
		return queued(ctx, "wait for the BMC's turn")
	}
}

// pause sleeps unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return queued(ctx, "wait for the BMC's turn")
	}
}

// queued is what a call returns whose context was over before it went out.
func queued(ctx context.Context, verb string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", verb, context.Canceled)
	}
	return fmt.Errorf("%s: %w: other calls were before this one", verb, ErrBusy)
}
