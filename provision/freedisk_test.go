package provision

import (
	"strings"
	"testing"

	"recast/inventory"
)

// againFacts are those of a machine whose boot order a gate with onServerDown: refuse left
// without a disk.
func againFacts(i int, marker string) inventory.Facts {
	f := testFacts(i, testUUID(i))
	f.Boot = inventory.BootFacts{Mode: "uefi", Again: true}
	if marker != "" {
		f.Disks[0].Recast = &inventory.Marker{Machine: marker, Generation: genA}
	}
	return f
}

func TestABootOrderIsGivenBackItsDiskOnlyWithoutDoubt(t *testing.T) {
	looked := func() State { return State{Intent: &Intent{Purpose: PurposeInspect}} }
	for what, tt := range map[string]struct {
		q    freeQuestion
		free bool
		want string
	}{
		"undeclared":              {freeQuestion{}, true, ""},
		"undeclared, of another":  {freeQuestion{Other: "m2", By: "whose disk it has"}, false, "it may be m2, whose disk it has"},
		"declared, and looked at": {freeQuestion{Machine: "m1", State: looked()}, true, ""},
		"with another's disk":     {freeQuestion{Machine: "m1", State: looked(), Other: "m2", By: "whose disk it has"}, false, "it may be m2"},
		"its definition refuses":  {freeQuestion{Machine: "m1", State: looked(), Refuse: true}, false, "its definition says"},
		"not to be told":          {freeQuestion{Machine: "m1", State: looked(), Unresolved: true}, false, "cannot be told"},
		"its gate refuses": {freeQuestion{Machine: "m1", State: State{Intent: &Intent{Gate: &Gate{Gate: inventory.Gate{Refuse: true}}}}}, false,
			"its gate is with"},
		"a gate with lastGood": {freeQuestion{Machine: "m1", State: State{Intent: &Intent{Gate: &Gate{}}}}, true, ""},
		"held":                 {freeQuestion{Machine: "m1", State: State{Status: Status{Hold: &Hold{}}, Intent: &Intent{}}}, false, "it is held"},
		"aborted":              {freeQuestion{Machine: "m1", State: State{Intent: &Intent{AbortedBy: "ann"}}}, false, "nobody has looked"},
		"never looked at":      {freeQuestion{Machine: "m1"}, false, "nobody has looked"},
	} {
		tt.q.Facts.Boot.Again = true
		if free, why := freesDisk(tt.q); free != tt.free || (why == "") != (tt.want == "") || !strings.Contains(why, tt.want) {
			t.Errorf("%s: %v, %q", what, free, why)
		}
		tt.q.Facts.Boot.Again = false
		if free, why := freesDisk(tt.q); free || why != "" {
			t.Errorf("%s, with an order like others: %v, %q", what, free, why)
		}
	}
}

func TestAStrangerGetsItsDiskBackUnlessItMayBeADeclaredMachine(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true))
	declared := func(f inventory.Facts) inventory.Facts {
		f.SystemVendor.UUID = testUUID(1)
		return f
	}
	for i, tt := range []struct {
		facts inventory.Facts
		free  bool
		want  string
	}{
		{againFacts(20, ""), true, "leads to it again"},
		{againFacts(21, "gone"), true, "leads to it again"},
		{againFacts(22, "m1"), false, "it may be m1, whose disk it has"},
		{declared(againFacts(23, "")), false, "it may be m1, which declares its UUID"},
		{testFacts(24, testUUID(24)), false, "inventory taken"},
	} {
		o, err := s.Discover(t.Context(), s.key.DiscoveryToken(s.Store.Epoch(), testMAC(20+i)), tt.facts, testAddr(20+i))
		if err != nil || o.Kind != inventory.OrderLocal || o.FreeDisk != tt.free || !strings.Contains(o.Reason, tt.want) {
			t.Errorf("%d: %+v, %v; want %v, %q", i, o, err, tt.free, tt.want)
		}
	}
}

// What an operator does about a declared machine that starts over for ever: a look.
func TestALookGivesADeclaredMachineItsDiskBack(t *testing.T) {
	for name, tt := range map[string]struct {
		facts func(i int) inventory.Facts
		free  bool
	}{
		"its own disk":              {func(i int) inventory.Facts { return againFacts(i, "m2") }, true},
		"a disk that says nothing":  {func(i int) inventory.Facts { return againFacts(i, "") }, true},
		"a boot order like others'": {func(i int) inventory.Facts { return testFacts(i, testUUID(i)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 2)
			s.apply(strings.Replace(s.yaml(true), "maxUnavailable: 100%", "canary: 1, maxUnavailable: 1", 1))
			if err := s.Look(t.Context(), "m2", "ann"); err != nil { // which waits for its canary
				t.Fatal(err)
			}
			s.await("m2", Inspecting, StepBooting)
			reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(2), MAC: testMAC(2), UUID: testUUID(2), Serial: "SN2", BootID: "b1"}, testAddr(2))
			if err != nil {
				t.Fatal(err)
			}
			o, err := s.Inventory(t.Context(), reply.Token, tt.facts(2))
			if err != nil || o.Kind != inventory.OrderLocal || o.FreeDisk != tt.free {
				t.Errorf("%+v, %v; want its disk freed: %v", o, err, tt.free)
			}
		})
	}
}
