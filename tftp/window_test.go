package tftp

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// way is a network, and the client at its end, in a time of its own.
type way struct {
	delay  time.Duration // one way
	loss   float64       // of what is sent, both ways
	twice  float64       // that arrives twice
	late   float64       // that arrives after what follows it
	blocks int64
	window int
	polite bool // the client answers only the first block that it does not expect, not each
}

// fetch runs a transfer and returns how many blocks were sent, the repeated ones
// too, and how long it took.
func (y way) fetch(t *testing.T, seed uint64) (sent int, took time.Duration) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	start := time.Unix(0, 0)
	now := start
	type packet struct {
		at    time.Time
		up    bool // to the server
		block uint16
	}
	var wire []packet
	put := func(up bool, block uint16) {
		if rnd.Float64() < y.loss {
			return
		}
		copies := 1
		if rnd.Float64() < y.twice {
			copies = 2
		}
		for range copies {
			d := y.delay + time.Duration(len(wire))*time.Microsecond
			if rnd.Float64() < y.late {
				d += y.delay / 2
			}
			wire = append(wire, packet{now.Add(d), up, block})
		}
	}
	w := newWindow(terms{block: 1, window: y.window, oack: []byte{0, opOACK}}, y.blocks-1, now)
	w.ack(now.Add(2*y.delay), 0)
	now = w.moved
	expected, inWindow, answered := int64(1), 0, false
	silent := now.Add(3 * time.Second) // until the client repeats itself
	receive := func(block uint16) {
		if block != uint16(expected) {
			if !y.polite || !answered {
				put(true, uint16(expected-1))
			}
			inWindow, answered = 0, true
			return
		}
		answered = false
		expected++
		silent = now.Add(3 * time.Second)
		if inWindow++; inWindow == y.window || expected > y.blocks {
			put(true, block)
			inWindow = 0
		}
	}
	for !w.done() {
		for block, last := w.next(now); block <= last; block++ {
			if block < 1 || block > y.blocks || block > expected-1+2*int64(y.window) {
				t.Fatalf("block %d of %d was sent while the client expected %d", block, y.blocks, expected)
			}
			put(false, uint16(block))
			sent++
		}
		if now.Sub(start) > time.Hour || int64(sent) > 10*y.blocks {
			t.Fatalf("in %s %d blocks were sent of the first %d of %d", now.Sub(start), sent, expected, y.blocks)
		}
		next := slices.MinFunc(append(wire, packet{at: w.deadline}, packet{at: silent}), func(a, b packet) int { return a.at.Compare(b.at) })
		now = next.at
		i := slices.Index(wire, next)
		switch {
		case i < 0 && now.Equal(silent):
			put(true, uint16(expected-1))
			silent = now.Add(3 * time.Second)
		case i < 0:
		default:
			wire = slices.Delete(wire, i, i+1)
			if next.up {
				w.ack(now, next.block)
			} else {
				receive(next.block)
			}
		}
	}
	if expected != y.blocks+1 {
		t.Fatalf("the transfer ended, and the client has %d of %d blocks", expected-1, y.blocks)
	}
	return sent, now.Sub(start)
}

// Each bound is a multiple of the file: what a network that loses nothing needs
// is sent once, and no loss, late copy or reordering starts an avalanche (edk2
// answers each block that it does not expect: 1.7 MB became 20 GB behind a server
// that answered each of those).
func TestNothingIsSentTwiceWithoutNeed(t *testing.T) {
	const delay = 200 * time.Microsecond
	for name, tc := range map[string]struct {
		way
		most   float64 // blocks sent, of the file's
		longer time.Duration
	}{
		"quiet":                                  {way{delay: delay, blocks: 1000, window: 4}, 1, time.Second},
		"lock-step":                              {way{delay: delay, blocks: 1000, window: 1}, 1, time.Second},
		"a window that ends with the file":       {way{delay: delay, blocks: 1024, window: 16}, 1, time.Second},
		"the count begins again at 0":            {way{delay: delay, blocks: 70_000, window: 4}, 1, time.Minute},
		"likewise with windows across it":        {way{delay: delay, blocks: 70_000, window: 7}, 1, time.Minute},
		"every packet arrives twice":             {way{delay: delay, blocks: 1000, window: 4, twice: 1}, 1, time.Second},
		"lock-step, every packet arrives twice":  {way{delay: delay, blocks: 1000, window: 1, twice: 1}, 1, time.Second},
		"a long way, every packet arrives twice": {way{delay: 100 * time.Millisecond, blocks: 1000, window: 4, twice: 1}, 1.01, 2 * time.Minute},
		"out of order":                           {way{delay: delay, blocks: 1000, window: 4, late: 0.2}, 2.5, 10 * time.Second},
		"out of order, politely":                 {way{delay: delay, blocks: 1000, window: 4, late: 0.2, polite: true}, 2.5, 10 * time.Second},
		"a tenth lost":                           {way{delay: delay, blocks: 1000, window: 4, loss: 0.1}, 1.8, 20 * time.Second},
		"a tenth lost in lock-step":              {way{delay: delay, blocks: 1000, window: 1, loss: 0.1}, 1.4, 40 * time.Second},
		"a tenth lost in a large window":         {way{delay: delay, blocks: 1000, window: 16, loss: 0.1, polite: true}, 4, 20 * time.Second},
		"all at once":                            {way{delay: delay, blocks: 1000, window: 4, loss: 0.1, twice: 0.2, late: 0.2}, 3, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(5) {
				sent, took := tc.fetch(t, seed)
				if times := float64(sent) / float64(tc.blocks); times > tc.most || took > tc.longer {
					t.Errorf("seed %d: sent %.2f times the file in %s, want at most %.2f in %s", seed, times, took, tc.most, tc.longer)
				}
			}
		})
	}
}

func TestAWindowBeginsBehindWhatArrived(t *testing.T) {
	now := time.Unix(0, 0)
	w := newWindow(terms{block: 512, window: 4, oack: []byte{0, opOACK}}, 10*512, now)
	sends := func(what string, first, last int64) {
		t.Helper()
		if a, b := w.next(now); a != first || b != last {
			t.Errorf("%s: sends %d to %d, want %d to %d", what, a, b, first, last)
		}
	}
	w.ack(now, 0)
	sends("first", 1, 4)
	now = now.Add(time.Millisecond)
	w.ack(now, 2)
	sends("a gap waits a moment", 1, 0)
	now = now.Add(2 * time.Millisecond)
	sends("the client asked for 3", 3, 6)
	w.ack(now, 1)
	sends("a late copy moves nothing", 1, 0)
	w.ack(now, 7)
	sends("nor does a block that was never sent", 1, 0)
	w.ack(now, 6)
	sends("next", 7, 10)
	w.ack(now, 10)
	sends("a file of whole blocks ends with an empty one", 11, 11)
	if w.done() {
		t.Error("done before the last acknowledgement")
	}
	w.ack(now, 11)
	if !w.done() {
		t.Error("not done")
	}
}

// A client whose clock each packet restarts gets to repeat itself.
func TestWaitsGrowBeyondTheClientsTime(t *testing.T) {
	for _, tc := range []struct {
		asked, round, first, longest time.Duration
	}{
		{0, 0, shortestWait, longestWait},
		{0, 100 * time.Millisecond, 400 * time.Millisecond, longestWait},
		{5 * time.Second, 0, shortestWait, 10 * time.Second},
		{time.Second, 5 * time.Second, longestFirst, longestWait},
	} {
		now := time.Unix(0, 0)
		w := newWindow(terms{block: 512, window: 1, timeout: tc.asked, oack: []byte{0, opOACK}}, 512, now)
		w.ack(now.Add(tc.round), 0)
		var last time.Duration
		for i := range 20 {
			w.next(now)
			wait := w.deadline.Sub(now)
			if i == 0 && wait != tc.first || wait < last || wait > tc.longest || i == 19 && wait != tc.longest {
				t.Errorf("asked %s, round trip %s: wait %d is %s after %s, want %s up to %s", tc.asked, tc.round, i, wait, last, tc.first, tc.longest)
			}
			last, now = wait, w.deadline
		}
	}
}

// A client whose first answer was lost gives it again seconds later.
func TestAClientsPauseIsNoRoundTrip(t *testing.T) {
	now := time.Unix(0, 0)
	w := newWindow(terms{block: 512, window: 1, oack: []byte{0, opOACK}}, 100*512, now)
	now = now.Add(5 * time.Second)
	w.ack(now, 0)
	for block := range uint16(8) {
		w.next(now)
		now = now.Add(time.Millisecond)
		w.ack(now, block+1)
	}
	if w.next(now); w.deadline.Sub(now) > 2*shortestWait {
		t.Errorf("waits %s, though the last 8 blocks took a millisecond each", w.deadline.Sub(now))
	}
}
