package dhcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"sync"
	"time"

	"recast/inventory"
	"recast/store"
)

// place is one address on one Network, station one hardware address on it.
type place struct {
	network string
	addr    netip.Addr
}

type station struct {
	network string
	mac     inventory.MAC
}

// record is a lease with what we know of it in the store.
type record struct {
	inventory.Lease
	rev int64 // the stored record's revision; 0 when there is none
	// stored is the expiry that the store knows; Expires runs ahead of it while
	// the store is away.
	stored time.Time
	seen   int // the watch's round, to find what a new snapshot lacks
	// bound is when the client took it last, zero before the start: a RELEASE from
	// before that, still on its way to the store, does not take it back.
	bound time.Time
	// client is who bound it last by DHCPv6, "" unknown; see giveBack6.
	client string
}

// written is a record on its way to the store.
type written struct {
	lease inventory.Lease
	raw   []byte
}

// offer keeps an address free for the client that was offered it. It is never stored.
type offer struct {
	mac      inventory.MAC
	declared bool
	until    time.Time
}

// table is the in-memory index of leases: the store is the log behind it. The
// methods without "locked" work are called with mu held; reply only reads.
type table struct {
	mu      sync.Mutex
	byAddr  map[place]*record
	byMAC   map[station]netip.Addr
	offers  map[place]offer
	offered map[station]netip.Addr
	// unstored leases are in force here and still to be written; see later.
	unstored map[place]struct{}
	// writing holds what we write just now: the watch brings it back, and it need
	// not be decoded again.
	writing map[place]written
	// seen are pool addresses that somebody was heard using; see heard.
	seen map[place]sight
	// full holds when a Network's pool was last searched in vain.
	full   map[string]time.Time
	round  int
	loaded bool // the store's snapshot has been read once
}

func newTable() *table {
	return &table{
		byAddr: map[place]*record{}, byMAC: map[station]netip.Addr{},
		offers: map[place]offer{}, offered: map[station]netip.Addr{},
		full: map[string]time.Time{}, seen: map[place]sight{}, unstored: map[place]struct{}{}, writing: map[place]written{},
	}
}

// lease is the record of a hardware address, expired ones included: an address
// comes back to whom it belonged.
func (t *table) lease(network string, mac inventory.MAC) (*record, bool) {
	a, ok := t.byMAC[station{network, mac}]
	if !ok {
		return nil, false
	}
	r := t.byAddr[place{network, a}]
	return r, r != nil && r.State == inventory.LeaseBound
}

// holder is who may use an address now; quarantined means nobody.
type holder struct {
	mac         inventory.MAC
	machine     string
	bmc         bool
	quarantined bool
	offerOnly   bool
	declared    bool
}

func (t *table) holder(network string, a netip.Addr, now time.Time) (holder, bool) {
	p := place{network, a}
	if r := t.byAddr[p]; r != nil && now.Before(r.Expires) {
		return holder{mac: r.MAC, machine: r.Machine, bmc: r.BMC, quarantined: r.State == inventory.LeaseDeclined, declared: r.Machine != ""}, true
	}
	if o, ok := t.offers[p]; ok && now.Before(o.until) {
		return holder{mac: o.mac, offerOnly: true, declared: o.declared}, true
	}
	return holder{}, false
}

// hold keeps an address for a client that was just offered it.
func (t *table) hold(network string, mac inventory.MAC, declared bool, a netip.Addr, until time.Time) {
	s, p := station{network, mac}, place{network, a}
	if old, ok := t.offered[s]; ok && old != a {
		t.forgetOffer(s)
	}
	if o, ok := t.offers[p]; ok && o.mac != mac {
		delete(t.offered, station{network, o.mac})
	}
	t.offers[p] = offer{mac: mac, declared: declared, until: until}
	t.offered[s] = a
}

func (t *table) forgetOffer(s station) {
	a, ok := t.offered[s]
	if !ok {
		return
	}
	delete(t.offered, s)
	if p := (place{s.network, a}); t.offers[p].mac == s.mac {
		delete(t.offers, p)
	}
}

// sweep drops offers that were never taken up, and what was heard long ago.
func (t *table) sweep(now time.Time) {
	for p, s := range t.seen {
		if !now.Before(s.until) {
			delete(t.seen, p)
		}
	}
	for p, o := range t.offers {
		if !now.Before(o.until) {
			t.forgetOffer(station{p.network, o.mac})
		}
	}
}

// put installs a lease that is (rev > 0) or is not stored.
func (t *table) put(l inventory.Lease, rev int64) *record {
	p := place{l.Network, l.Addr}
	r := t.byAddr[p]
	if r == nil {
		r = &record{}
		t.byAddr[p] = r
	} else if s := (station{r.Network, r.MAC}); r.MAC != l.MAC && t.byMAC[s] == r.Addr {
		delete(t.byMAC, s)
	}
	r.Lease = l
	r.seen = t.round
	if rev > 0 {
		r.rev, r.stored = rev, l.Expires
	}
	s := station{l.Network, l.MAC}
	if l.State != inventory.LeaseBound {
		if t.byMAC[s] == l.Addr {
			delete(t.byMAC, s)
		}
		return r
	}
	if old, ok := t.byMAC[s]; ok && old != l.Addr {
		// Two records of one station (a change of address that was cut short):
		// the one that lasts longer counts.
		if other := t.byAddr[place{l.Network, old}]; other != nil && other.MAC == l.MAC && other.Expires.After(l.Expires) {
			return r
		}
	}
	t.byMAC[s] = l.Addr
	return r
}

// remove forgets an address.
func (t *table) remove(network string, a netip.Addr) {
	p := place{network, a}
	r := t.byAddr[p]
	if r == nil {
		return
	}
	delete(t.byAddr, p)
	if s := (station{network, r.MAC}); t.byMAC[s] == a {
		delete(t.byMAC, s)
	}
}

// deleted takes over that the store has no record of an address. A lease that came
// into force since and is still to be stored stays, and is stored anew. The lock is held.
func (t *table) deleted(p place) {
	if _, newer := t.unstored[p]; !newer {
		t.remove(p.network, p.addr)
	} else if r := t.byAddr[p]; r != nil {
		r.rev, r.stored = 0, time.Time{}
	}
}

// begin starts a new snapshot of the store.
func (t *table) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.round++
}

// apply takes over one event of the watch, our own commits included. An older
// revision than the one we hold is old news.
func (t *table) apply(e store.Event) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Synced {
		for p, r := range t.byAddr {
			if r.seen != t.round && r.rev > 0 && r.rev <= e.Revision {
				t.remove(p.network, p.addr)
			}
		}
		t.loaded = true
		return nil
	}
	p, err := parseLeaseKey(e.Key)
	if err != nil {
		return err
	}
	if r := t.byAddr[p]; r != nil && r.rev >= e.Revision {
		r.seen = t.round
		return nil
	}
	if e.Deleted {
		t.deleted(p)
		return nil
	}
	w := t.writing[p]
	l := w.lease
	if w.raw == nil || !bytes.Equal(w.raw, e.Value) {
		if l, err = leaseRecords.Decode(e.Record); err != nil {
			return fmt.Errorf("read lease: %w", err)
		}
	}
	if l.Network != p.network || l.Addr != p.addr {
		return fmt.Errorf("read lease %q: it names %s on %q", e.Key, l.Addr, l.Network)
	}
	if r := t.byAddr[p]; r != nil && r.MAC == l.MAC {
		if _, newer := t.unstored[p]; newer {
			r.rev, r.stored, r.seen = e.Revision, l.Expires, t.round // an earlier write of ours
			return nil
		}
	}
	t.put(l, e.Revision)
	return nil
}

// all is a copy of every record, by Network and address.
func (t *table) all() []inventory.Lease {
	t.mu.Lock()
	ls := make([]inventory.Lease, 0, len(t.byAddr))
	for _, r := range t.byAddr {
		ls = append(ls, r.Lease)
	}
	t.mu.Unlock()
	sort.Slice(ls, func(i, j int) bool {
		if ls[i].Network != ls[j].Network {
			return ls[i].Network < ls[j].Network
		}
		return ls[i].Addr.Less(ls[j].Addr)
	})
	return ls
}

// leaseRecords knows how a lease stands in the store.
var leaseRecords = store.NewTable[inventory.Lease](nil, inventory.LeasePrefix)

func leaseName(network string, a netip.Addr) string { return network + "/" + a.String() }

func parseLeaseKey(key string) (place, error) {
	network, addr, ok := strings.Cut(strings.TrimPrefix(key, inventory.LeasePrefix), "/")
	a, err := netip.ParseAddr(addr)
	if !ok || err != nil {
		return place{}, fmt.Errorf("read lease: the key %q is not network/address", key)
	}
	return place{network, a}, nil
}
