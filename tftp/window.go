package tftp

import "time"

// window is where a transfer stands (RFC 7440), and when it goes on. Blocks are
// counted from 1, the OACK as 0; on the wire the count is cut to 16 bits.
type window struct {
	size  int64 // blocks sent ahead of their acknowledgement
	last  int64 // the last block, the only one that is not full
	acked int64 // all blocks up to here have arrived
	sent  int64 // all blocks up to here have been sent

	at       time.Time // when those under way were sent
	again    bool      // not for the first time
	deadline time.Time // when they are sent again
	repeats  int       // since the client last moved on
	moved    time.Time // when it did

	round   time.Duration // trip, smoothed
	longest time.Duration // wait
}

// Silence means that something was lost. The first wait follows from the round
// trip and doubles until the client moves on (RFC 1123 section 4.2.3.2), beyond
// the time after which clients repeat themselves, mostly five seconds: atftp
// answers a repeated block once only, and each that arrives restarts its clock.
// The time that a client names (RFC 2349) can make the longest wait longer. It is
// no more than that: curl and U-Boot name five seconds and more without a thought,
// which each loss would cost them, and atftp keeps its own five whatever it names.
const (
	shortestWait = 50 * time.Millisecond
	longestFirst = time.Second
	longestWait  = shortestWait << 7
)

// newWindow begins with the first packet, the OACK or block 1, under way.
func newWindow(t terms, size int64, now time.Time) *window {
	w := &window{size: int64(t.window), last: size/int64(t.block) + 1, acked: -1, at: now, longest: max(longestWait, 2*t.timeout)}
	if t.oack == nil {
		w.acked, w.sent = 0, 1
	}
	return w
}

func (w *window) done() bool { return w.acked == w.last }

// next gives the blocks to send now. Those that were sent without being
// acknowledged in time go again, and what follows them.
func (w *window) next(now time.Time) (first, last int64) {
	w.again = w.acked < w.sent
	if w.again {
		if now.Before(w.deadline) {
			return 1, 0
		}
		w.repeats++
	}
	w.sent = min(w.acked+w.size, w.last)
	w.at, w.deadline = now, now.Add(w.wait(min(max(4*w.round, shortestWait), longestFirst)))
	return w.acked + 1, w.sent
}

// ack takes an acknowledgement and tells whether the client has moved on.
//
// That of the last block sent opens the next window. Any other tells of a loss
// (RFC 7440 section 4), or is a late copy: what is under way gets one round trip
// to arrive, and only then is sent again. To send it at once would answer each
// late copy with a window whose blocks the client has, and acknowledges again,
// edk2 each of them: a storm.
func (w *window) ack(now time.Time, block uint16) bool {
	n := int64(block - uint16(w.acked)) // modulo 65536, far more than a window
	if n > w.sent-w.acked {
		return false // of a block that is not under way
	}
	moved := n > 0
	if moved {
		w.acked += n
		w.moved, w.repeats = now, 0
		if w.acked == w.sent && !w.again {
			w.learn(now.Sub(w.at))
		}
	}
	if gap := now.Add(w.wait(2*w.round + time.Millisecond)); gap.Before(w.deadline) {
		w.deadline = gap
	}
	return moved
}

// learn takes the time of an answer to what was sent once (Karn's rule). The
// client's answer may have been lost and repeated after its own five seconds, so
// that what was learned too long is forgotten quickly.
func (w *window) learn(d time.Duration) {
	d = min(d, longestFirst)
	switch {
	case w.round == 0:
		w.round = d
	case d < w.round:
		w.round -= (w.round - d) / 2
	default:
		w.round += (d - w.round) / 8
	}
}

func (w *window) wait(d time.Duration) time.Duration {
	return min(d<<min(w.repeats, 12), w.longest)
}
