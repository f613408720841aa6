package dhcp

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/store"
)

// ackDeclared is DISCOVER to ACK of the declared machine, whatever the store does.
func (r *rig) ackDeclared() {
	r.t.Helper()
	r.put(message(DISCOVER, macDeclared))
	r.get()
	r.put(message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2")))
	if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
		r.t.Fatal(ack.Summary())
	}
}

func TestADeclaredAddressIsAcknowledgedWhileTheStoreHangsAndStoredAfter(t *testing.T) {
	r := newRig(t, rack())
	gate := make(chan struct{})
	r.mem.mu.Lock()
	r.mem.hang = gate
	r.mem.mu.Unlock()
	r.ackDeclared()
	if l, ok := r.LeaseByAddr(netip.MustParseAddr("10.20.0.15")); !ok || l.Machine != "r1u05" {
		t.Errorf("in force: %+v, %v", l, ok)
	}
	if n := len(r.mem.leases(t)); n != 0 {
		t.Errorf("%d leases stored while the store hung", n)
	}
	close(gate)
	r.store()
	if l := r.mem.leases(t)["rack1/10.20.0.15"]; l.Machine != "r1u05" || l.Expires.Before(epoch.Add(time.Hour)) {
		t.Errorf("stored %+v", l)
	}
}

func TestWhatTheStoreDidNotTakeIsStoredWhenItIsBack(t *testing.T) {
	r := newRig(t, rack())
	r.mem.setFail(store.ErrUnavailable)
	r.ackDeclared()
	r.flush(t.Context())
	r.mem.setFail(nil)
	r.pass(2 * storePause)
	r.store()
	if l := r.mem.leases(t)["rack1/10.20.0.15"]; l.Machine != "r1u05" {
		t.Errorf("stored %+v", l)
	}
}

// Two servers of one store gave the same declared address: both wrote the same
// machine, and neither writes for ever.
func TestADeclaredLeaseThatAnotherServerStoredStands(t *testing.T) {
	r := newRig(t, rack())
	other := inventory.Lease{Network: "rack1", Addr: netip.MustParseAddr("10.20.0.15"), MAC: macDeclared, Machine: "r1u05",
		State: inventory.LeaseBound, Expires: epoch.Add(90 * time.Minute)}
	op, err := leaseRecords.PutOp(leaseName("rack1", other.Addr), other, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.mem.mu.Lock()
	r.mem.before = func() {
		if _, err := r.mem.Commit(context.Background(), op); err != nil {
			t.Error(err)
		}
	}
	r.mem.mu.Unlock()
	r.ackDeclared()
	r.store()
	if l := r.mem.leases(t)["rack1/10.20.0.15"]; !l.Expires.Equal(other.Expires) {
		t.Errorf("stored %+v", l)
	}
	// The next renewal writes upon it.
	r.pass(time.Hour)
	r.put(message(REQUEST, macDeclared, ciaddr("10.20.0.15")))
	if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatal(ack.Summary())
	}
	r.store()
	if l := r.mem.leases(t)["rack1/10.20.0.15"]; l.Expires.Before(epoch.Add(2 * time.Hour)) {
		t.Errorf("stored %+v after the renewal", l)
	}
}

func TestHundredsOfDeclaredLeasesAreStoredInFewTransactions(t *testing.T) {
	const machines = 450
	set := hall(machines)
	r := newRig(t, set)
	for _, m := range set.Machines {
		r.put(message(REQUEST, string(m.NICs[0].MAC), requested(m.NICs[0].IP.String())))
		if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
			t.Fatal(ack.Summary())
		}
	}
	r.store()
	if n := len(r.mem.leases(t)); n != machines {
		t.Errorf("%d leases stored, want %d", n, machines)
	}
	if r.mem.commits > machines/10 {
		t.Errorf("%d transactions for %d leases", r.mem.commits, machines)
	}
}

// What waits when the server stops is stored before it is gone.
func TestStoppingStoresWhatWaits(t *testing.T) {
	mem := newMemStore()
	t.Run("serve", func(t *testing.T) {
		newRig(t, rack(), func(r *rig) { r.mem, r.Store = mem, mem }).ackDeclared()
	})
	if l := mem.leases(t)["rack1/10.20.0.15"]; l.Machine != "r1u05" {
		t.Errorf("stored %+v", l)
	}
}

// A system that restarts its network releases its address and asks for it again,
// while the release is still being written.
func TestAnAddressTakenAgainWhileItsReleaseIsStoredIsKept(t *testing.T) {
	for name, mac := range map[string]string{"declared": macDeclared, "of the pool": macStranger} {
		t.Run(name, func(t *testing.T) {
			set := rack()
			set.Networks[0].Unknown = inventory.UnknownLocal
			r := newRig(t, set)
			a := addr4(r.exchange(mac).YourIPAddr)
			r.store()
			gate := make(chan struct{})
			r.mem.mu.Lock()
			r.mem.hang = gate
			r.mem.mu.Unlock()
			r.put(message(RELEASE, mac, ciaddr(a.String()), serverID("10.20.0.2")))
			r.pass(time.Second)
			r.put(message(DISCOVER, mac))
			if offer := r.get(); addr4(offer.YourIPAddr) != a {
				t.Fatal(offer.Summary())
			}
			r.put(message(REQUEST, mac, requested(a.String()), serverID("10.20.0.2")))
			r.mem.mu.Lock()
			r.mem.hang = nil
			r.mem.mu.Unlock()
			close(gate)
			if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck || addr4(ack.YourIPAddr) != a {
				t.Fatal(ack.Summary())
			}
			eventually(t, "the release is done", func() bool { return r.Stats().Silent["released"] == 1 })
			r.store()
			if l, ok := r.LeaseByAddr(a); !ok || string(l.MAC) != mac {
				t.Errorf("in force: %+v, %v", l, ok)
			}
			if l := r.mem.leases(t)["rack1/"+a.String()]; string(l.MAC) != mac {
				t.Errorf("stored %+v", l)
			}
		})
	}
}

// A store that is away may be so for hours, with the leases of a whole hall waiting.
func TestAStoreThatIsAwayIsAskedByOneLease(t *testing.T) {
	const machines = 450
	set := hall(machines)
	r := newRig(t, set)
	r.mem.setFail(store.ErrUnavailable)
	for _, m := range set.Machines {
		r.put(message(REQUEST, string(m.NICs[0].MAC), requested(m.NICs[0].IP.String())))
		if ack := r.get(); ack.MessageType() != dhcpv4.MessageTypeAck {
			t.Fatal(ack.Summary())
		}
	}
	r.flush(t.Context())
	if n := testing.AllocsPerRun(5, func() {
		r.pass(2 * storePause)
		r.flush(t.Context())
	}); n > machines {
		t.Errorf("%.0f allocations to ask whether the store is back", n)
	}
	r.mem.setFail(nil)
	r.pass(2 * storePause)
	r.store()
	if n := len(r.mem.leases(t)); n != machines {
		t.Errorf("%d leases stored, want %d", n, machines)
	}
}
