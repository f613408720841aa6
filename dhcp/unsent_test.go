package dhcp

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// brokenWire refuses what goes to some addresses.
type brokenWire struct {
	mu      sync.Mutex
	refused map[string]error // by destination; "" for every one
	wire    wire
}

func (w *brokenWire) refuse(to string, err error) {
	w.mu.Lock()
	w.refused[to] = err
	w.mu.Unlock()
}

func (w *brokenWire) send(b []byte, from netip.Addr, to dest) error {
	w.mu.Lock()
	err := w.refused[to.to.Addr().String()]
	if err == nil {
		err = w.refused[""]
	}
	w.mu.Unlock()
	if err != nil {
		return fmt.Errorf("send reply to %s on eth0: %w", to.to, err)
	}
	return w.wire.send(b, from, to)
}

func TestAnswersThatCannotBeSentAreOneFindingForEachCause(t *testing.T) {
	var log bytes.Buffer
	r := newRig(t, rack(), func(r *rig) { r.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo})) })
	w := &brokenWire{refused: map[string]error{}, wire: r.tap}
	r.link.wire = w
	warnings := func() int { return strings.Count(log.String(), "level=WARN") }
	unsent := func() (out []string) {
		for _, f := range r.Findings() {
			if strings.Contains(f, "could not be sent") {
				out = append(out, f)
			}
		}
		return out
	}

	w.refuse("", unix.ENETDOWN)
	for range 5 {
		r.put(message(DISCOVER, macDeclared))
	}
	if f := unsent(); len(f) != 1 || !strings.Contains(f[0], "eth0") || !strings.Contains(f[0], "5 answers") || !strings.Contains(f[0], "network is down") || warnings() != 1 {
		t.Fatalf("%d warnings, findings %q", warnings(), f)
	}
	w.refuse("", unix.EPERM)
	r.put(message(DISCOVER, macDeclared))
	if f := unsent(); len(f) != 2 || warnings() != 2 {
		t.Fatalf("a firewall beside it: %d warnings, findings %q", warnings(), f)
	}
	if n := r.Stats().Silent["send error"]; n != 6 {
		t.Errorf("%d send errors are counted", n)
	}
	w.refuse("", unix.ENOBUFS)
	r.put(message(DISCOVER, macDeclared))
	if n := r.Stats().Silent["no room to send"]; n != 1 || len(unsent()) != 2 {
		t.Errorf("no room: counted %d times, findings %q", n, unsent())
	}
	w.refuse("", nil)
	r.put(message(DISCOVER, macDeclared))
	r.get()
	if f := unsent(); len(f) != 0 {
		t.Errorf("sent again: %q", f)
	}

	// What cannot be sent through a relay stays true while others get theirs.
	const relay = "10.20.0.254"
	w.refuse(relay, unix.EHOSTUNREACH)
	for range 3 {
		r.put(message(DISCOVER, macDeclared, giaddr(relay)))
		r.put(message(DISCOVER, macStranger))
		r.get()
	}
	if f := unsent(); len(f) != 1 || !strings.Contains(f[0], "3 answers") || !strings.Contains(f[0], relay) || warnings() != 3 {
		t.Fatalf("%d warnings, findings %q\n%s", warnings(), f, log.String())
	}
	// Who never comes back is no finding for ever.
	r.pass(quarantine + time.Second)
	if f := unsent(); len(f) != 0 {
		t.Errorf("long after: %q", f)
	}
	r.put(message(DISCOVER, macDeclared, giaddr(relay)))
	if f := unsent(); len(f) != 1 || !strings.Contains(f[0], "1 answer ") || warnings() != 4 {
		t.Errorf("again: %d warnings, findings %q", warnings(), f)
	}
}
