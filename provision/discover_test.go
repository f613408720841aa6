package provision

import (
	"strings"
	"testing"

	"recast/inventory"
)

// discover sends an inventory as an undeclared machine does.
func (s *site) discover(i int, facts inventory.Facts) {
	s.t.Helper()
	if _, err := s.Discover(s.t.Context(), s.key.DiscoveryToken(s.Store.Epoch(), testMAC(i)), facts, testAddr(i)); err != nil {
		s.t.Fatal(err)
	}
}

// TestAPlanUsesWhatDiscoverySaw: a machine that was looked at before it was
// declared is not unknown.
func TestAPlanUsesWhatDiscoverySaw(t *testing.T) {
	blank := testFacts(1, testUUID(1))
	blank.Disks[0].Holds = ""
	two := testFacts(1, testUUID(1))
	two.Disks = append(two.Disks, inventory.DiskFacts{Name: "/dev/sdb", Serial: "E1", Size: 64 << 20, LogicalBlockSize: 512})
	for _, c := range []struct {
		name    string
		facts   inventory.Facts
		kind    EntryKind
		disk    string
		blocked string
	}{
		{"a blank disk", blank, EntryWrite, "disk serial D1, /dev/sda", ""},
		{"a disk that holds something", testFacts(1, testUUID(1)), EntryWrite, "disk serial D1, /dev/sda", "would be erased for the first time; apply with --erase m1"},
		{"two disks that fit", two, EntryWrite, "", "2 disks fit the hints"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, 1)
			s.discover(1, c.facts)
			p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(s.yaml(true))}}, nil)
			if err != nil || len(p.Entries) != 1 {
				t.Fatalf("%+v, %v", p.Entries, err)
			}
			e := p.Entries[0]
			if e.Kind != c.kind || !strings.HasPrefix(e.Disk, c.disk) || !strings.Contains(e.Blocked, c.blocked) || c.blocked == "" && e.Blocked != "" ||
				!strings.HasSuffix(e.Why, "of its disk is known what its discovery showed") {
				t.Errorf("%+v", e)
			}
		})
	}
}

// TestWhatDiscoverySawPermitsNoWrite: another disk than the one that was approved
// is left alone.
func TestWhatDiscoverySawPermitsNoWrite(t *testing.T) {
	s := newSite(t, 1)
	facts := testFacts(1, testUUID(1))
	facts.Disks[0].Serial = "OTHER"
	s.discover(1, facts)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	if _, o, err := s.boot(1, "b1", testUUID(1)); err != nil || o.Kind == inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	if v := s.await("m1", Available, StepNone); !strings.Contains(v.Status.LastError, "the erase that was asked for is of disk serial OTHER") {
		t.Errorf("%q", v.Status.LastError)
	}
}

// TestAStrangerIsSaidToBeADeclaredMachinesOtherCard: the document offered would
// otherwise be refused as a duplicate, or hold both.
func TestAStrangerIsSaidToBeADeclaredMachinesOtherCard(t *testing.T) {
	stranger := testFacts(9, testUUID(9))
	withUUID, withSerial, withCard := stranger, stranger, stranger
	withUUID.SystemVendor.UUID = strings.ToUpper(testUUID(1))
	withSerial.SystemVendor.SerialNumber = "S-1"
	withCard.Interfaces = []inventory.NICFacts{{MAC: testMAC(9)}, {MAC: testMAC(1)}}
	for _, c := range []struct {
		name  string
		facts inventory.Facts
		mayBe string
	}{
		{"another machine", stranger, ""},
		{"the UUID", withUUID, "another card of m1, which declares its UUID"},
		{"the serial", withSerial, "another card of m1, which declares its serial"},
		{"a card", withCard, "another card of m1, which declares its interface " + testMAC(1).String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, 1)
			s.apply(s.yaml(true) + "  serial: S-1\n")
			s.discover(9, c.facts)
			all := s.Discovered()
			if len(all) != 1 || all[0].MayBe != c.mayBe {
				t.Fatalf("%+v", all)
			}
			if c.mayBe == "" && strings.HasPrefix(all[0].YAML, "#") ||
				c.mayBe != "" && !strings.HasPrefix(all[0].YAML, "# It may be "+c.mayBe+`. Then add {mac: "`+testMAC(9).String()+`"} to the nics of m1:`) {
				t.Errorf("the document:\n%s", all[0].YAML)
			}
		})
	}
	t.Run("a UUID that is only said", func(t *testing.T) {
		s := newSite(t, 1)
		s.apply(s.yaml(false), "m1")
		s.await("m1", Deploying, StepBooting)
		if _, _, err := s.boot(1, "b1", testUUID(1)); err != nil {
			t.Fatal(err)
		}
		s.discover(9, withUUID)
		if all := s.Discovered(); len(all) != 1 || all[0].MayBe != "another card of m1, which says the same UUID" {
			t.Errorf("%+v", all)
		}
	})
}
