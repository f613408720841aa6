package dhcp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// What is told of a declaration must not outlive it: who has mended the files
// looks at the findings next.
func TestFindingsGoWithTheDeclarationTheyWereAbout(t *testing.T) {
	p7 := inventory.Port{Circuit: "p7"}
	small := func(s *inventory.Set) { s.Networks[0].Pool.Last = s.Networks[0].Pool.First }
	unrelated := func(s *inventory.Set) {
		s.Machines = append(s.Machines, &inventory.Machine{Name: "r9u01", NICs: []inventory.NIC{{MAC: "52:54:00:00:09:01"}}})
	}
	wrongCable := func(r *rig) { r.relayed(macOther, pxe(7), atPort("p9")) }
	nothingFree := func(r *rig) { r.silence(message(DISCOVER, macOther)) } // all of it is kept for a declared machine
	for _, tt := range []struct {
		name          string
		before, after *inventory.Set
		do            func(*rig)
		left          string
	}{
		{"the port is corrected", rack(behindPort(p7, "10.20.0.17", macOther)), rack(behindPort(inventory.Port{Circuit: "p9"}, "10.20.0.17", macOther)), wrongCable, ""},
		{"the machine is removed", rack(behindPort(p7, "10.20.0.17", macOther)), rack(), wrongCable, ""},
		{"something else is declared: the cable is as wrong as before", rack(behindPort(p7, "10.20.0.17", macOther)), rack(behindPort(p7, "10.20.0.17", macOther), unrelated), wrongCable, "correct the cabling"},
		{"the pool is made larger", rack(small), rack(), nothingFree, ""},
		{"who found none is declared", rack(small), rack(small, func(s *inventory.Set) {
			s.Machines = append(s.Machines, &inventory.Machine{Name: "r9u01", NICs: []inventory.NIC{{MAC: macOther, Network: "rack1", IP: netip.MustParseAddr("10.20.0.19")}}})
		}), nothingFree, ""},
		{"another is declared: the pool is as full as before", rack(small), rack(small, unrelated), nothingFree, "is taken"},
		{"the Network is removed", rack(small), rack(small, func(s *inventory.Set) { s.Networks = nil; s.Machines = nil }), nothingFree, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.before)
			tt.do(r)
			if f := r.Findings(); len(f) != 1 {
				t.Fatalf("findings %q before", f)
			}
			_ = r.Update(tt.after)
			if f := strings.Join(r.Findings(), "\n"); (f == "") != (tt.left == "") || !strings.Contains(f, tt.left) {
				t.Errorf("findings %q; want %q", f, tt.left)
			}
		})
	}
}

// Two interfaces in one subnet, and a port that another has, are told until nobody
// wants them any more.
func TestFindingsAboutInterfacesGoWithTheirNetwork(t *testing.T) {
	s := &Server{}
	s.init()
	s.findings.set("attach/rack1", "two interfaces", epoch.AddDate(1, 0, 0))
	s.findings.set("listen/eth7", "in use", epoch.AddDate(1, 0, 0))
	s.findings.set("listen/eth7/547", "in use", epoch.AddDate(1, 0, 0))
	s.interfaces = func() ([]Interface, error) { return nil, nil }
	s.run = t.Context()
	if err := s.Update(nil); err != nil {
		t.Fatal(err)
	}
	if f := s.Findings(); len(f) != 0 {
		t.Errorf("findings %q", f)
	}
}

// A hundred machines that find the pool full are one thing to know.
func TestSameFindingOfManyMachinesIsToldOnce(t *testing.T) {
	r := newRig(t, rack(func(s *inventory.Set) { s.Networks[0].Pool.Last = s.Networks[0].Pool.First }))
	for i := range 3 {
		r.silence(message(DISCOVER, fmt.Sprintf("52:54:00:00:05:%02x", i)))
	}
	if f := r.Findings(); len(f) != 1 {
		t.Errorf("findings %q", f)
	}
}

// A new rack whose Network is declared wrong, or not yet, would otherwise be silent on both sides.
func TestRelayOfNoNetworkIsNamedOnceAnHourUntilAnotherDeclaration(t *testing.T) {
	r := newRig(t, rack())
	asks := func(relay string, change ...func(*dhcpv4.DHCPv4)) {
		t.Helper()
		r.silence(message(DISCOVER, macStranger, append(change, giaddr(relay))...))
	}
	want := func(of string) {
		t.Helper()
		f := r.Findings()
		if of == "" && len(f) != 0 || of != "" && (len(f) != 1 || !strings.Contains(f[0], of) || !strings.Contains(f[0], "declare that Network and apply")) {
			t.Errorf("findings %q, want %q", f, of)
		}
	}
	want("")
	asks("10.99.0.1")
	asks("10.98.0.1") // anybody can send such packets: no list of theirs
	want("relay 10.99.0.1 passes on requests, and lies in no Network")
	r.pass(relayTold + time.Second)
	want("")
	asks("10.98.0.1", option(82, 5, 4, 10, 97, 0, 0))
	want("relay 10.98.0.1 passes on requests for the link of 10.97.0.0, which lies in no Network")
	if err := r.Update(rack()); err != nil {
		t.Fatal(err)
	}
	want("")
}
