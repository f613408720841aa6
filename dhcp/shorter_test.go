package dhcp

import (
	"testing"
	"time"

	"recast/inventory"
)

// The cure for a full pool is a shorter leaseTime; and a clock that was a year ahead
// while leases were given must not keep their addresses for that year.
func TestRenewalMakesARecordThatLastsTooLongShorter(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*rig)
	}{
		{"a shorter leaseTime", func(r *rig) {
			r.pass(10 * time.Hour)
			if err := r.Update(rack(func(s *inventory.Set) { s.Networks[0].LeaseTime = inventory.Duration(10 * time.Minute) })); err != nil {
				t.Fatal(err)
			}
		}},
		{"a clock that was ahead", func(r *rig) { r.pass(-400 * 24 * time.Hour) }},
	} {
		for _, mac := range []string{macStranger, macDeclared} {
			t.Run(tt.name+" "+mac, func(t *testing.T) {
				r := newRig(t, rack(func(s *inventory.Set) { s.Networks[0].LeaseTime = inventory.Duration(24 * time.Hour) }))
				a := r.exchange(mac).YourIPAddr.String()
				tt.change(r)
				r.put(message(REQUEST, mac, ciaddr(a)))
				promised := r.get().IPAddressLeaseTime(0)
				eventually(t, "the record is as long as what was promised", func() bool {
					left := r.mem.leases(t)["rack1/"+a].Expires.Sub(r.now())
					return left >= promised && left <= promised*5/4
				})
				if l, ok := r.LeaseByAddr(r.mem.leases(t)["rack1/"+a].Addr); !ok || l.Expires.Sub(r.now()) > promised*5/4 {
					t.Errorf("the index has %+v", l)
				}
			})
		}
	}
}
