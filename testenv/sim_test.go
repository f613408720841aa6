package testenv

import (
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

func TestSimulatedMachinesArriveOverRealWires(t *testing.T) {
	s := newSimServer(t)
	image := s.addImage(SimImage(simImageSize, 1))
	s.setSecret(simSecret, simUser+":"+simPassword)
	bios, uefi := s.add(1, nil), s.add(2, nil)
	s.apply(simDeclare{Image: image})
	for _, m := range []*Simulated{bios, uefi} {
		v := s.awaitActive(m.Options.Name, 60*time.Second)
		if v.Status.Evidence.Level != inventory.E3.String() || v.Status.Running != v.Wanted {
			t.Errorf("%v: evidence %+v", v, v.Status.Evidence)
		}
		d := m.Disks[0]
		if n := len(d.Erases()); n != 1 || !d.Bootable() {
			t.Errorf("%s: erased %d times, bootable %t; want once and bootable", m.Options.Name, n, d.Bootable())
		}
		var path []string
		for _, b := range m.Boots() {
			path = append(path, b.Path...)
		}
		want := "ramdisk: deploy, attempt 1 → reboots: the disk is written and read back → disk → reported"
		if got := strings.Join(path, " → "); got != want {
			t.Errorf("%s went %q, want %q", m.Options.Name, got, want)
		}
	}
	if p := s.plan(simDeclare{Image: image}); len(p.Entries) > 0 || len(p.Changes) > 0 {
		t.Errorf("the plan is not empty: %+v", p)
	}
}
