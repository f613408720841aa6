package provision

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/store"
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
		{inventory.Observation{Kind: inventory.SawDiscover, V6: "SOLICIT", Detail: "firmware, architecture 7"}, "dhcpv6-solicit firmware, architecture 7"},
		{inventory.Observation{Kind: inventory.SawAck, V6: "REPLY", Remote: netip.MustParseAddr("2001:db8:20::15"), Detail: "tftp://[2001:db8:20::2]/snponly.efi"}, "dhcpv6-reply of 2001:db8:20::15, snponly.efi"},
		{inventory.Observation{Kind: inventory.SawNak, V6: "REPLY", Detail: "NoAddrsAvail"}, "dhcpv6-reply NoAddrsAvail"},
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

// What a machine logs is on its timeline, bounded by itself, and no sign of life:
// anybody can send a datagram in its name.
func TestWhatAMachineLogsStandsOnItsTimeline(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	addr := testAddr(1)
	s.Engine.mu.Lock()
	s.leases[addr] = inventory.Lease{Addr: addr, Machine: "m1"}
	s.Engine.mu.Unlock()
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1)})
	for i := range 3 * keepLogs {
		s.Observe(inventory.Observation{Kind: inventory.SawSyslog, Remote: addr, Client: "ipxe", Detail: fmt.Sprintf("line %d", i)})
	}
	s.Observe(inventory.Observation{Kind: inventory.SawSyslog, Remote: addr, Detail: "last", Error: "7 lines before it were left out"})
	logs, packets := 0, 0
	lines := s.Timeline("m1")
	for _, l := range lines {
		if l.Kind == "log" {
			logs++
		}
		if l.Seen != nil && l.Seen.Kind == inventory.SawDiscover {
			packets++
		}
	}
	if last := lines[len(lines)-1]; logs != keepLogs || packets != 1 || last.Text != "last (7 lines before it were left out)" || lines[len(lines)-2].Text != fmt.Sprintf("ipxe: line %d", 3*keepLogs-1) {
		t.Errorf("%d lines and %d packets are kept, the last %+v", logs, packets, last)
	}
	if v, _ := s.View("m1"); v.Status.LastSeen != "dhcp-discover" {
		t.Errorf("last seen %q", v.Status.LastSeen)
	}
}

func TestScriptAndRamdiskAreToldWhereToLog(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	ask := func() ipxe.Spec {
		t.Helper()
		spec, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Arch: ipxe.FirmwareX64UEFI, Loader: ipxe.LoaderIPXE, Remote: testAddr(1)})
		if err != nil || spec.Kind != ipxe.SpecRamdisk {
			t.Fatalf("%v %+v", err, spec)
		}
		return spec
	}
	if spec := ask(); spec.Syslog.IsValid() {
		t.Errorf("%+v", spec)
	}
	s.SyslogPort = 514
	if spec := ask(); spec.Syslog != netip.MustParseAddrPort("10.0.0.1:514") || !slices.Contains(spec.Args, "recast.syslog=10.0.0.1:514") {
		t.Errorf("%+v", spec)
	}
}

// A system that renews its lease for years does not push out how it booted, nor
// fill the memory; nor does a machine that waits for its turn.
func TestRenewalsAreOneLineWithACount(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	see := func(kind inventory.ObservationKind, client string, n int) {
		s.Observe(inventory.Observation{Kind: kind, MAC: testMAC(1), Client: client, Detail: client, Time: s.Now().Add(time.Duration(n) * time.Second)})
	}
	see(inventory.SawDiscover, "firmware", 0)
	see(inventory.SawDiscover, "firmware", 1)
	for i := range 1000 {
		see(inventory.SawRequest, "os", 2+2*i)
		see(inventory.SawAck, "os", 3+2*i)
	}
	see(inventory.SawDiscover, "firmware", 5000)
	see(inventory.SawRequest, "os", 5001)
	for i := range 10 {
		s.Observe(inventory.Observation{Kind: inventory.SawScript, MAC: testMAC(1), Detail: fmt.Sprintf("%s: %d wait", ipxe.SawWait, 10-i), Time: s.Now().Add(time.Duration(5002+i) * time.Second)})
	}
	var got []string
	for _, l := range s.Timeline("m1") {
		if l.Seen != nil {
			got = append(got, fmt.Sprintf("%s %d", l.Text, l.Times))
		}
	}
	want := []string{"dhcp-discover firmware 0", "dhcp-discover firmware 0", "dhcp-request os 1000", "dhcp-ack os 1000", "dhcp-discover firmware 0", "dhcp-request os 0",
		"boot-script not its turn: 1 wait 10"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestWhatIsSeenWaitsForNoStore: whoever tells is about to answer a machine.
func TestWhatIsSeenWaitsForNoStore(t *testing.T) {
	s := newSite(t, 1)
	yaml := strings.NewReplacer("dhcp: off", "dhcp: authoritative, pool: 10.0.0.200-10.0.0.210", "network: n}", "network: n, ip: 10.0.0.101}").Replace(s.yaml(true))
	s.apply(yaml, "m1")
	s.await("m1", Deploying, StepBooting)
	s.store.slow.Lock()
	told := make(chan struct{})
	go func() {
		defer close(told)
		for range 100 {
			s.Observe(inventory.Observation{Kind: inventory.SawScript, MAC: testMAC(1), Remote: testAddr(1), Detail: "ramdisk: deploy, attempt 1"})
		}
	}()
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Error("it waits for a lease to be read")
	}
	s.store.slow.Unlock()
	<-told
	s.await("m1", Deploying, StepClaiming)
	n := 0
	for _, l := range s.Timeline("m1") {
		if l.Seq > 0 && l.Text == string(StepClaiming) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("100 requests at once are recorded as %d", n)
	}
}

// TestBootsOfOneMomentAreEachOnTheirOwn: they share a transaction, and neither a record
// that changed meanwhile, nor a store that is full, nor the server's end costs another
// machine, or the same one when it asks again.
func TestBootsOfOneMomentAreEachOnTheirOwn(t *testing.T) {
	const machines = 20
	s := newSite(t, machines)
	var all []string
	for i := range machines {
		all = append(all, fmt.Sprintf("m%d", i+1))
	}
	s.apply(s.yaml(true), all...)
	for _, name := range all {
		s.await(name, Deploying, StepBooting)
	}
	ask := func(from, to int) {
		for i := from; i <= to; i++ {
			s.Observe(inventory.Observation{Kind: inventory.SawScript, MAC: testMAC(i), Remote: testAddr(i), Detail: "ramdisk: deploy, attempt 1"})
		}
	}
	settled := func() { // whatever came of what was asked
		t.Helper()
		s.until("boots are recorded", func() bool {
			return !slices.ContainsFunc(s.list(), func(m *machine) bool { return m.booting.Load() })
		})
	}
	step := func(i int) StepName {
		v, _ := s.View(all[i-1])
		return v.Status.Step
	}

	v, _ := s.View("m3")
	if _, err := s.statuses.Put(t.Context(), "m3", v.Status, store.Any); err != nil {
		t.Fatal(err)
	}
	ask(1, 8)
	for i := range 8 {
		if i+1 != 3 {
			s.await(all[i], Deploying, StepClaiming)
		}
	}
	settled()
	if got := step(3); got != StepBooting {
		t.Errorf("m3 is %s although its record was another", got)
	}

	s.store.full.Store(true)
	ask(9, 14)
	settled()
	for i := 9; i <= 14; i++ {
		if got := step(i); got != StepBooting {
			t.Errorf("m%d is %s, and that is on no record", i, got)
		}
	}
	s.store.full.Store(false)

	ask(15, machines)
	s.restart()
	for i := 1; i <= machines; i++ {
		if step(i) == StepBooting {
			ask(i, i)
		}
		s.await(all[i-1], Deploying, StepClaiming)
		settled()
		n := 0
		for _, l := range s.Timeline(all[i-1]) {
			if l.Seq > 0 && l.Text == string(StepClaiming) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("m%d has %d lines of its boot on record", i, n)
		}
	}
}

func TestABootThatItsClaimOvertakesIsNoRestart(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	over := make(chan struct{})
	s.moment.mu.Lock()
	s.moment.over = over // a moment that lasts
	s.moment.mu.Unlock()
	s.Observe(inventory.Observation{Kind: inventory.SawScript, MAC: testMAC(1), Remote: testAddr(1), Detail: "ramdisk: deploy, attempt 1"})
	m := s.list()[0]
	s.until("its boot is being recorded", m.booting.Load)
	if _, _, err := s.boot(1, "b1", testUUID(1)); err != nil {
		t.Fatal(err)
	}
	before := m.committed()
	close(over)
	s.until("its boot is recorded", func() bool { return !m.booting.Load() })
	if after := m.committed(); after.Intent.Asked || !after.Status.Deadline.Equal(before.Status.Deadline) {
		t.Errorf("it claimed, and is taken for one that started again: asked %v, deadline %s later", after.Intent.Asked, after.Status.Deadline.Sub(before.Status.Deadline))
	}
}

// TestAWatcherThatFallsBehindLooksOnce: what it missed is one look at everything,
// and what comes after that stands behind it.
func TestAWatcherThatFallsBehindLooksOnce(t *testing.T) {
	e := &Engine{changes: newBroadcast()}
	w := e.Watch(t.Context())
	everything := e.changes.declared()
	for i := range 10 * cap(w) {
		e.changes.send(fmt.Sprint("m", i))
	}
	select {
	case <-everything:
		t.Error("machines that wait to be declared are woken by packets")
	default:
	}
	e.changes.send("last")
	all, last := 0, ""
	for len(w) > 0 {
		if last = <-w; last == AllMachines {
			all++
		}
	}
	if all != 1 || last != "last" && last != AllMachines {
		t.Errorf("told %d times to look at everything, and last of %q", all, last)
	}
	e.changes.send(AllMachines)
	select {
	case <-everything:
	default:
		t.Error("machines that wait to be declared are not woken when they may be")
	}
}

// Beside another DHCP server, what a machine fetches and logs comes from an address
// that is in no lease of ours: it said which when it took it.
func TestAnAddressFromElsewhereIsJoined(t *testing.T) {
	s := newSite(t, 2)
	s.apply(s.yaml(true), "m1", "m2")
	took, other := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.9")
	lines := func(name string) (n int) {
		for _, l := range s.Timeline(name) {
			if strings.Contains(l.Text, "snponly.efi") || strings.Contains(l.Text, "ipxe: hello") {
				n++
			}
		}
		return n
	}
	say := func() {
		s.Observe(inventory.Observation{Kind: inventory.SawTFTP, Remote: took, Detail: "snponly.efi"})
		s.Observe(inventory.Observation{Kind: inventory.SawSyslog, Remote: took, Client: "ipxe", Detail: "hello"})
	}
	say()
	if n := lines("m1") + lines("m2"); n != 0 {
		t.Fatalf("%d lines of nobody are joined", n)
	}
	request := func(i int, at netip.Addr) {
		s.Observe(inventory.Observation{Kind: inventory.SawRequest, MAC: testMAC(i), Remote: at, Server: other, Foreign: true})
	}
	request(1, took)
	say()
	if lines("m1") != 2 {
		t.Errorf("the timeline is %+v", s.Timeline("m1"))
	}
	request(2, took) // given to another since
	say()
	if lines("m1") != 2 || lines("m2") != 2 {
		t.Errorf("%d and %d lines", lines("m1"), lines("m2"))
	}
	request(2, netip.MustParseAddr("10.0.0.201"))
	say()
	if lines("m1") != 2 || lines("m2") != 2 {
		t.Errorf("an address that was left is still joined: %d and %d lines", lines("m1"), lines("m2"))
	}
}
