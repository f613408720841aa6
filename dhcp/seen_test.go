package dhcp

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

// What another server answered is seen by whom the machine chooses; and why we say
// nothing belongs to its story too.
func TestObservationsTellWhoAnsweredAndWhyWeDidNot(t *testing.T) {
	r := newRig(t, rack())
	foreign := netip.MustParseAddr("10.20.0.3")
	r.put(message(REQUEST, macDeclared, requested("10.20.0.15"), serverID(foreign.String())))
	d := r.link.state.Load().duties[0]
	eventually(t, "a choice", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 1 })
	d.state.Store(dutySilent)
	r.put(message(DISCOVER, macDeclared, pxe(7)))
	eventually(t, "a silence", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 2 })
	d.state.Store(dutyServing)
	r.exchange(macDeclared, pxe(7))
	eventually(t, "an exchange", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.seen) == 6 })
	var got []string
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.seen {
		got = append(got, fmt.Sprintf("%s server %v foreign %v, %s %d: %s", o.Kind, o.Server, o.Foreign, o.Client, o.Arch, o.Error))
	}
	none, ours := netip.Addr{}, ourAddr
	if diff := cmp.Diff([]string{
		fmt.Sprintf("%s server %v foreign true, os 0: ", inventory.SawRequest, foreign),
		fmt.Sprintf("%s server %v foreign false, firmware 7: another DHCP server", inventory.SawUnanswered, none),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawDiscover, none),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawOffer, ours),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawRequest, ours),
		fmt.Sprintf("%s server %v foreign false, firmware 7: ", inventory.SawAck, ours),
	}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
