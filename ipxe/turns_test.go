package ipxe

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

func addr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// A room comes back: everybody is served, never more than the bound at once, and
// nobody waits far longer than the ramdisk takes to send.
func TestAStormIsServedInTurns(t *testing.T) {
	const machines, places, fetch = 10_000, defaultTurns, 4 * time.Second
	turns := &Turns{}
	type machine struct {
		next, done time.Time // when it asks, and when it has fetched
	}
	fleet := make([]machine, machines)
	start := noon
	for i := range fleet {
		fleet[i].next = start
	}
	left, most, asks := machines, 0, 0
	now := start
	for ; left > 0 && now.Sub(start) < time.Hour; now = now.Add(time.Second) {
		for i := range fleet {
			m := &fleet[i]
			switch {
			case !m.done.IsZero() && m.done.Equal(now):
				turns.Done(addr(i), now)
				left--
			case m.done.IsZero() && !m.next.After(now):
				again, _, ok := turns.Ask(addr(i), now)
				asks++
				if ok {
					m.done = now.Add(fetch)
				} else {
					m.next = now.Add(again)
				}
			}
		}
		taken, _ := turns.Count()
		most = max(most, taken)
	}
	ideal := fetch * machines / places
	if took := now.Sub(start); left > 0 || most > places || took > ideal*3/2 {
		t.Errorf("%d left, %d at once, %s; want none, %d, and about %s", left, most, took, places, ideal)
	}
	if asks > 12*machines {
		t.Errorf("%d questions of %d machines", asks, machines)
	}
	if taken, waiting := turns.Count(); taken != 0 || waiting != 0 {
		t.Errorf("%d places taken and %d waiting after the end", taken, waiting)
	}
}

func TestAPlaceIsKeptWhileItIsUsedAndGivenBackWhenNot(t *testing.T) {
	turns := &Turns{Max: 1}
	if _, _, ok := turns.Ask(addr(1), noon); !ok {
		t.Fatal("the first has no place")
	}
	if _, _, ok := turns.Ask(addr(1), noon.Add(time.Second)); !ok {
		t.Error("whose fetch failed has to wait behind the rest")
	}
	again, waiting, ok := turns.Ask(addr(2), noon.Add(time.Second))
	if ok || waiting != 0 || again < minTurnWait || again > maxTurnWait*5/4 {
		t.Errorf("the second: %s, %d, %v", again, waiting, ok)
	}
	turns.Fetching(addr(1), noon.Add(turnTime))
	if _, _, ok := turns.Ask(addr(2), noon.Add(turnTime+2*time.Second)); ok {
		t.Error("a place was taken away from a machine at work")
	}
	if _, _, ok := turns.Ask(addr(2), noon.Add(2*turnTime+2*time.Second)); !ok {
		t.Error("a machine that died keeps its place")
	}
	var none *Turns
	none.Fetching(addr(1), noon)
	none.Done(addr(1), noon)
	if _, _, ok := none.Ask(addr(1), noon); !ok {
		t.Error("no bound bounds")
	}
	if _, _, ok := (&Turns{Max: -1}).Ask(addr(1), noon); !ok {
		t.Error("no bound bounds")
	}
}

func TestAMachineWhoseTurnHasNotComeIsToldWhenToAsk(t *testing.T) {
	var seen []inventory.Observation
	h := &Handler{
		Booter: booterFunc(func(c Client) (Spec, error) {
			return Spec{Kind: SpecRamdisk, Machine: "r1u05", Kernel: "/k", Initrds: []string{"/i"}}, nil
		}),
		Turns:   &Turns{Max: 1},
		Observe: func(o inventory.Observation) { seen = append(seen, o) },
		Now:     func() time.Time { return noon },
	}
	h.Turns.Ask(addr(1), noon)
	r := get(t, h, "GET", "/boot/script?mac=52:54:00:00:00:05")
	if text := body(t, r); r.StatusCode != http.StatusOK || !strings.Contains(text, "waits for its turn") || strings.Contains(text, "kernel") {
		t.Errorf("%d\n%s", r.StatusCode, text)
	}
	if len(seen) != 1 || !strings.HasPrefix(seen[0].Detail, SawWait) {
		t.Errorf("observed %+v", seen)
	}
	h.Turns.Done(addr(1), noon)
	if text := body(t, get(t, h, "GET", "/boot/script?mac=52:54:00:00:00:05")); !strings.Contains(text, "\nkernel /k") {
		t.Errorf("its turn has come, and it gets\n%s", text)
	}
}

// One answer to a machine that has to wait, with 100,000 that do.
func BenchmarkNotItsTurn(b *testing.B) {
	turns := &Turns{Max: 64}
	for i := range 100_000 {
		turns.Ask(addr(i), noon)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		turns.Ask(addr(i%100_000), noon)
		i++
	}
}
