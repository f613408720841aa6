package provision

import (
	"net/netip"
	"testing"
	"time"

	"recast/inventory"
)

// TestAFloodOfPacketsPushesOutNoDecision: what is durable stays in sight, and
// both kinds are bounded.
func TestAFloodOfPacketsPushesOutNoDecision(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	decided := func() (n int) {
		for _, l := range s.Timeline("m1") {
			if l.Seq > 0 {
				n++
			}
		}
		return n
	}
	before := decided()
	for i := range 3 * (keepSeen + keepDurable) {
		s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1), Time: s.Now().Add(time.Duration(i))})
	}
	lines := s.Timeline("m1")
	if n := decided(); n != before || n == 0 || len(lines) != n+keepSeen {
		t.Errorf("%d of %d decisions are left in %d lines", n, before, len(lines))
	}
	for i := 1; i < len(lines); i++ {
		if lines[i].Time.Before(lines[i-1].Time) {
			t.Fatalf("line %d is out of order", i)
		}
	}
	for i := range keepDurable + 50 {
		verb := []func(){
			func() { _ = s.Hold(t.Context(), "m1", "ann", "look", 0) },
			func() { _ = s.Release(t.Context(), "m1", "ann") },
		}[i%2]
		verb()
	}
	if n := decided(); n != keepDurable {
		t.Errorf("%d durable lines are kept, want %d", n, keepDurable)
	}
}

func TestWhatIsSeenIsShortAndNamesTheAddress(t *testing.T) {
	addr := netip.MustParseAddr("10.77.0.11")
	for _, c := range []struct {
		o    inventory.Observation
		want string
	}{
		{inventory.Observation{Kind: inventory.SawDiscover, Detail: "firmware, architecture 7"}, "dhcp-discover firmware, architecture 7"},
		{inventory.Observation{Kind: inventory.SawOffer, Remote: addr, Detail: "http://10.77.0.1:8080/boot/script?mac=${netX/mac}&uuid=${uuid}"}, "dhcp-offer of 10.77.0.11, boot script"},
		{inventory.Observation{Kind: inventory.SawAck, Remote: addr, Detail: "snponly.efi"}, "dhcp-ack of 10.77.0.11, snponly.efi"},
		{inventory.Observation{Kind: inventory.SawAck, Remote: addr, Detail: "http://10.77.0.1:8080/boot/loader/snponly.efi"}, "dhcp-ack of 10.77.0.11, snponly.efi"},
		{inventory.Observation{Kind: inventory.SawAck, Remote: addr}, "dhcp-ack of 10.77.0.11"},
		{inventory.Observation{Kind: inventory.SawOffer, Remote: netip.IPv4Unspecified(), Detail: "undionly.kpxe"}, "dhcp-offer undionly.kpxe"},
		{inventory.Observation{Kind: inventory.SawScript, Remote: addr, Detail: "local: nothing to do", Bytes: 111}, "boot-script local: nothing to do (111 B)"},
		{inventory.Observation{Kind: inventory.SawTFTP, Remote: addr, Detail: "undionly.kpxe", Error: "no answer"}, "tftp-transfer undionly.kpxe: no answer"},
		{inventory.Observation{Kind: inventory.SawTFTP, Detail: "snponly.efi", Asked: true, Size: 4096}, "tftp-transfer snponly.efi (size only)"},
		{inventory.Observation{Kind: inventory.SawTFTP, Detail: "snponly.efi", Bytes: 2048, Size: 2048, BlockSize: 1468, Took: inventory.Duration(3 * time.Second)},
			"tftp-transfer snponly.efi (2.0 KiB, blocks of 1468, in 3s)"},
		{inventory.Observation{Kind: inventory.SawTFTP, Detail: "snponly.efi", Bytes: 1024, Size: 2048, BlockSize: 512, Error: "timeout"},
			"tftp-transfer snponly.efi (1.0 KiB of 2.0 KiB, blocks of 512): timeout"},
		{inventory.Observation{Kind: inventory.SawFile, Detail: "vmlinuz", Bytes: 1024, Offset: 1024, Size: 2048}, "boot-file vmlinuz (1.0 KiB of 2.0 KiB, from byte 1024)"},
		{inventory.Observation{Kind: inventory.SawOffer, Remote: addr, Server: netip.MustParseAddr("10.77.0.1"), Detail: "snponly.efi"}, "dhcp-offer of 10.77.0.11 by 10.77.0.1, snponly.efi"},
		{inventory.Observation{Kind: inventory.SawRequest, Detail: "os", Server: netip.MustParseAddr("10.77.0.9"), Foreign: true}, "dhcp-request os, of another DHCP server, 10.77.0.9"},
		{inventory.Observation{Kind: inventory.SawDiscover, Detail: "firmware, architecture 0", Relay: netip.MustParseAddr("10.78.0.1")},
			"dhcp-discover firmware, architecture 0, through relay 10.78.0.1"},
		{inventory.Observation{Kind: inventory.SawUnanswered, Detail: "DISCOVER", Error: "another DHCP server"}, "dhcp-unanswered DISCOVER: another DHCP server"},
		{inventory.Observation{Kind: inventory.SawScript, Detail: "ramdisk: deploy", Bytes: 512, Version: "1.0.0"}, "boot-script ramdisk: deploy (512 B, iPXE 1.0.0)"},
	} {
		if got := seenText(c.o); got != c.want {
			t.Errorf("%+v is %q, want %q", c.o, got, c.want)
		}
	}
}
