package provision

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
)

// learnPort writes what DHCP writes once it knows who is behind a port, "" for its
// removal.
func (s *site) learnPort(circuit string, mac inventory.MAC) {
	s.t.Helper()
	r := inventory.PortRecord{Network: "n", Port: inventory.Port{Circuit: circuit}, MAC: mac, Since: time.Now()}
	name := r.Network + "/" + r.Port.Key()
	op := s.portTable.DeleteOp(name, store.Any)
	if mac != "" {
		var err error
		if op, err = s.portTable.PutOp(name, r, store.Any); err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err := s.Store.Commit(s.t.Context(), op); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) knows(mac inventory.MAC, name string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s is %q", mac, name), func() bool {
		m := s.machineBehind(mac)
		return m == nil && name == "" || m != nil && m.Name == name
	})
}

// A machine that is declared by its switch port alone is deployed under the
// address that DHCP learned there; its system is told that address.
func TestMachineBehindALearnedPortIsDeployed(t *testing.T) {
	s := newSite(t, 1)
	yaml := strings.NewReplacer("dhcp: off", "dhcp: authoritative, unknown: ignore, pool: 10.0.0.100-10.0.0.199",
		`mac: "52:54:00:00:00:01"`, "port: {circuit: p1}").Replace(s.yaml(false))
	s.apply(yaml, "m1")
	s.await("m1", Deploying, StepBooting)
	ask := ipxe.Client{MAC: testMAC(1), Remote: testAddr(1)}
	if spec, err := s.BootSpec(t.Context(), ask); err != nil || spec.Kind != ipxe.SpecIgnore {
		t.Fatalf("before it is learned: %+v, %v", spec, err)
	}
	// DHCP knows it before we hear of it.
	ask.Machine = "m1"
	if spec, err := s.BootSpec(t.Context(), ask); err != nil || spec.Machine != "m1" || spec.Kind != ipxe.SpecRamdisk {
		t.Fatalf("as DHCP knows it: %+v, %v", spec, err)
	}
	s.learnPort("p1", testMAC(1))
	s.knows(testMAC(1), "m1")
	lease := inventory.Lease{Network: "n", Addr: testAddr(1), MAC: testMAC(1), Machine: "m1", State: inventory.LeaseBound, Expires: time.Now().Add(time.Hour)}
	if _, err := s.leaseTable.Put(t.Context(), "n/"+testAddr(1).String(), lease, 0); err != nil {
		t.Fatal(err)
	}
	s.Observe(inventory.Observation{Kind: inventory.SawAck, MAC: testMAC(1), Remote: testAddr(1)})
	s.restart()
	s.knows(testMAC(1), "m1") // from the store
	token, order, err := s.boot(1, "b1", testUUID(1))
	if err != nil || order.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", order, err)
	}
	volume, err := s.ConfigVolume(t.Context(), token)
	if err != nil || inventory.DigestOf(volume) != order.Job.Config.Digest {
		t.Fatalf("the volume is %s (%v), the job says %s", inventory.DigestOf(volume), err, order.Job.Config.Digest)
	}
	if !bytes.Contains(volume, []byte(`match: {macaddress: "52:54:00:00:00:01"}`)) {
		t.Error("the system is not told which interface is its own")
	}
	// Whatever is learned later, what is begun stays as it is.
	s.learnPort("p1", testMAC(9))
	s.knows(testMAC(9), "m1")
	s.knows(testMAC(1), "")
	if again, err := s.ConfigVolume(t.Context(), token); err != nil || !bytes.Equal(again, volume) {
		t.Errorf("another volume (%v)", err)
	}
	s.learnPort("p1", "")
	s.knows(testMAC(9), "")
}

func TestLearnedAddressGoesToTheInterfaceWithoutOne(t *testing.T) {
	for _, tt := range []struct {
		name string
		nics []inventory.RenderedNIC
		mac  inventory.MAC
		want string
	}{
		{"the one without", []inventory.RenderedNIC{{MAC: "a"}, {}}, "b", "a b"},
		{"it booted from the declared one", []inventory.RenderedNIC{{MAC: "a"}, {}}, "a", "a "},
		{"all are declared", []inventory.RenderedNIC{{MAC: "a"}}, "b", "a"},
		{"an old record", []inventory.RenderedNIC{{}}, "", ""},
	} {
		given := inventory.Rendered{NICs: tt.nics}
		var got []string
		for _, n := range withLearned(given, tt.mac).NICs {
			got = append(got, string(n.MAC))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
		}
	}
}
