package main

import (
	"strings"
	"testing"

	"recast/image"
	"recast/provision"
	"recast/web"
)

// TestADamagedImageFitsItsTables: digests in full stand in describe and json.
func TestADamagedImageFitsItsTables(t *testing.T) {
	hex := strings.Repeat("0123456789ab", 6)[:64]
	i := &web.ImageView{Info: image.Info{Damaged: "pack blobs/" + hex + " has 7 bytes"}}
	if row := imageRow(i, false); row[4] != "damaged" {
		t.Errorf("state %q", row[4])
	}
	if row := imageRow(i, true); row[4] != "damaged: pack blobs/0123456789ab has 7 bytes" {
		t.Errorf("state %q", row[4])
	}
	if why := whyText(provision.View{Waiting: i.Damaged}); strings.Contains(why, hex) {
		t.Errorf("why %q", why)
	}
}

// TestUnknownHealthHasAReason, as of a machine that was adopted.
func TestUnknownHealthHasAReason(t *testing.T) {
	for _, c := range []struct {
		st   provision.Status
		want string
	}{
		{provision.Status{Phase: provision.Active, Health: provision.HealthUnknown}, "unknown: its system has not reported itself since"},
		{provision.Status{Phase: provision.Active, Health: provision.Healthy}, "healthy"},
		{provision.Status{Phase: provision.Available, Health: provision.HealthUnknown}, "unknown"},
	} {
		if got := healthText(c.st); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
