package provision

import (
	"fmt"
	"strings"
	"testing"

	"recast/inventory"
)

// TestTheUUIDIndexFollowsEveryMachine through inventory, claim and their ends.
func TestTheUUIDIndexFollowsEveryMachine(t *testing.T) {
	x := &uuidIndex{byUUID: map[string][]string{}}
	one, two := testUUID(1), testUUID(2)
	seen := func(uuid string) State {
		return State{Status: Status{Facts: &inventory.Facts{SystemVendor: inventory.SystemVendor{UUID: uuid}}}}
	}
	claimed := seen(one)
	claimed.Intent = &Intent{Live: true, Claim: &ClaimState{UUID: two}}
	over := seen(one)
	over.Intent = &Intent{Claim: &ClaimState{UUID: two}}
	shared := seen("00000000-0000-0000-0000-000000000000")
	var at State
	for _, c := range []struct {
		name     string
		next     State
		one, two string
	}{
		{"inventory", seen(one), "[m1]", "[]"},
		{"in capitals", seen(strings.ToUpper(one)), "[m1]", "[]"},
		{"a claim under way", claimed, "[m1]", "[m1]"},
		{"the claim is over", over, "[m1]", "[]"},
		{"another board", seen(two), "[]", "[m1]"},
		{"a UUID that proves nothing", shared, "[]", "[]"},
		{"nothing known", State{}, "[]", "[]"},
	} {
		x.moved("m1", at, c.next)
		at = c.next
		if got := fmt.Sprint(x.who(one), x.who(two)); got != c.one+" "+c.two {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	if len(x.byUUID) != 0 {
		t.Errorf("%d UUIDs are left of nobody", len(x.byUUID))
	}
	x.moved("m2", State{}, seen(one))
	x.moved("m1", State{}, seen(strings.ToUpper(one)))
	if got := fmt.Sprint(x.who(one)); got != "[m1 m2]" {
		t.Errorf("two with one UUID: %s", got)
	}
}
