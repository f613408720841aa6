package testenv

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// newSimPartial is a rack of machines behind a gate, whose server gives no byte of an
// image while away is true.
func newSimPartial(t *testing.T, onMismatch string) (s *simServer, away *atomic.Bool) {
	away = new(atomic.Bool)
	s = newSimServer(t, simProxy(t, func(r *http.Response) error {
		if away.Load() && strings.HasPrefix(r.Request.URL.Path, "/images/") {
			return errors.New("no bytes today")
		}
		return nil
	}))
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range 2 {
		s.add(i+1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, !o.UEFI })
	}
	s.apply(simGate(s.addImage(SimImage(simImageSize, 7)), "onMismatch: "+onMismatch, "100%"))
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
	}
	return s, away
}

func TestADiskIsProvedWhileTheServerHasNoByteOfItsImage(t *testing.T) {
	s, away := newSimPartial(t, "hold")
	away.Store(true)
	for _, m := range s.machines {
		start := s.restart(m, func() {})
		s.awaitReport(m, start)
		if v := s.awaitActive(m.Options.Name, 10*time.Second); v.Status.Gate.Verdict != "matches" || v.Status.Evidence.Level != "read-back" || len(v.Status.Findings) > 0 {
			t.Errorf("%v, gate %+v", v, v.Status.Gate)
		}
	}
	// What differs is known without it too.
	m := s.machines[0]
	start := s.restart(m, func() { simTamper(t, m, "esp", 5000) })
	s.await("the machine is held", 30*time.Second, func() bool { return s.view("m01").Status.Hold != nil })
	if h := s.view("m01").Status.Hold; !strings.Contains(h.Reason, "not as it was written: esp at least 1 of its blocks") || simHas(m.path(start), simDiskStarted) {
		t.Errorf("hold %+v, path %q", h, m.path(start))
	}
}

func TestARepairWaitsForTheBytesThatItNeeds(t *testing.T) {
	s, away := newSimPartial(t, "repair")
	m := s.machines[1]
	away.Store(true)
	before := simBytes(t, m)
	start := s.restart(m, func() { simTamper(t, m, "esp", 5000) })
	s.await("a repair has begun", 30*time.Second, func() bool {
		g := s.view("m02").Status.Gate
		return g.Step == "repairing"
	})
	if simHas(m.path(start), simDiskStarted) || bytes.Equal(before, simBytes(t, m)) {
		t.Errorf("it went by %q", m.path(start))
	}
	away.Store(false)
	s.awaitReport(m, start)
	if v := s.awaitActive("m02", 10*time.Second); v.Status.Gate.Verdict != "repaired" || !bytes.Equal(before, simBytes(t, m)) {
		t.Errorf("%v, gate %+v", v, v.Status.Gate)
	}
}
