package provision

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

func TestFirmwareThatAsksByHTTPBootAloneIsKnown(t *testing.T) {
	by := func(minute int, client ipxe.LoaderKind) TimelineEntry {
		at := t0.Add(time.Duration(minute) * time.Minute)
		return TimelineEntry{Time: at, Kind: "seen", Seen: &inventory.Observation{Time: at, Kind: inventory.SawDiscover, Client: string(client)}}
	}
	came := &inventory.Facts{Boot: inventory.BootFacts{Mode: "uefi", HTTPBoot: true}}
	for _, c := range []struct {
		name  string
		seen  []TimelineEntry
		facts *inventory.Facts
		want  bool
	}{
		{"nothing", nil, nil, false},
		{"its ramdisk came so", nil, came, true},
		{"its ramdisk came by PXE", nil, &inventory.Facts{}, false},
		{"it asked so", []TimelineEntry{by(0, ipxe.LoaderHTTP), by(1, ipxe.LoaderIPXE), by(2, ipxe.LoaderOS)}, nil, true},
		{"it asks either way in one boot", []TimelineEntry{by(0, ipxe.LoaderFirmware), by(3, ipxe.LoaderHTTP)}, nil, false},
		{"set to HTTP Boot since", []TimelineEntry{by(0, ipxe.LoaderFirmware), by(60, ipxe.LoaderHTTP)}, nil, true},
		{"set to PXE since", []TimelineEntry{by(0, ipxe.LoaderHTTP), by(1, ipxe.LoaderFirmware)}, came, false},
		{"its system alone", []TimelineEntry{by(0, ipxe.LoaderOS)}, came, true},
	} {
		if got := asksByHTTP(c.seen, c.facts); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestAMachineWithoutALoaderWaitsInThePlanUntilItHasOne(t *testing.T) {
	s := newSite(t, 1)
	const why = "asks by HTTP Boot, and has no loader for that"
	s.Loader = func(_ *inventory.Machine, byHTTP bool) string {
		if byHTTP {
			return why
		}
		return ""
	}
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1), Client: string(ipxe.LoaderHTTP)}) // not declared yet
	yaml := strings.Replace(s.yaml(false), "spec:\n  nics: [{mac: \"52", "spec:\n  secureBoot: true\n  nics: [{mac: \"52", 1)
	s.apply(strings.Replace(yaml, "select: {rack: r}", "select: {rack: none}", 1))
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1), Client: string(ipxe.LoaderHTTP)})
	p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(yaml)}}, []string{"m1"})
	if err != nil || len(p.Entries) != 1 || p.Entries[0].Waits != why {
		t.Fatalf("%+v, %v", p.Entries, err)
	}
	s.apply(yaml, "m1")
	s.until("explain says why", func() bool {
		x, err := s.Explain(t.Context(), "m1")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(x.Missing, why)
	})
	if f := s.bmcs["10.9.0.1"]; len(f.Boots()) != 0 {
		t.Errorf("it was started: %+v", f.Calls())
	}
	// Somebody sets its firmware to PXE; it goes on by itself, as after an import.
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1), Client: string(ipxe.LoaderFirmware)})
	s.await("m1", Deploying, StepBooting)
}

func TestSecureBootThatIsDeclaredAndOffIsAFinding(t *testing.T) {
	look := func(s *story, secure, on bool) []string {
		s.must(t, Started{Purpose: PurposeInspect, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"})
		for _, a := range []Action{ActOff, ActArm, ActOn} {
			s.must(t, BMCDone{Action: a})
		}
		s.must(t, BootServed{})
		s.must(t, Claimed{Claim: ClaimState{BootID: "b1", Until: s.now.Add(LeaseTime)}})
		s.must(t, Inspected{Facts: inventory.Facts{Boot: inventory.BootFacts{Mode: "uefi", SecureBoot: on}}, Decision: DiskDecision{Verdict: DiskLook},
			Declared: &inventory.Machine{Name: "m1", SecureBoot: secure}})
		return s.state.Status.Findings
	}
	s := newStory()
	for _, c := range []struct {
		secure, on bool
		findings   int
	}{{false, false, 0}, {true, false, 1}, {true, false, 1}, {true, true, 0}, {true, false, 1}, {false, false, 0}, {false, true, 0}} {
		f := look(s, c.secure, c.on)
		if len(f) != c.findings || c.findings == 1 && !strings.Contains(f[0], "secureBoot: true") {
			t.Errorf("declared %v, on %v: %q", c.secure, c.on, f)
		}
	}
}

// Somebody who switches it off in the firmware's setup does so after the machine was
// written, when no ramdisk looks.
func TestTheInstalledSystemTellsOfSecureBoot(t *testing.T) {
	s := newStory()
	s.writing(t, false)
	s.must(t, Reported{Report: inventory.Report{Step: inventory.AgentDone, Erased: true}})
	s.state.Status.Facts = &inventory.Facts{Boot: inventory.BootFacts{Mode: string(inventory.UEFI), SecureBoot: true}}
	declared := &inventory.Machine{Name: "m1", SecureBoot: true}
	for i, c := range []struct {
		word     string
		declared *inventory.Machine
		on       bool
		findings int
	}{
		{"01", declared, true, 0},
		{"00", declared, false, 1},
		{"00", declared, false, 1}, // told once
		{"", declared, false, 1},   // a system that cannot tell
		{"nonsense", declared, false, 1},
		{"01", declared, true, 0},
		{"00", &inventory.Machine{Name: "m1"}, false, 0},
	} {
		s.must(t, Running{Declared: c.declared, Report: inventory.BootReport{Generation: genA, Rendered: rendA, Write: s.state.Status.RunningWrite, BootID: fmt.Sprint(i), SecureBoot: c.word}})
		st := s.state.Status
		if st.Phase != Active || st.Facts.Boot.SecureBoot != c.on || len(st.Findings) != c.findings || c.findings == 1 && !strings.Contains(st.Findings[0], "secureBoot: true") {
			t.Errorf("%q: %s, facts %+v, findings %q", c.word, st.Phase, st.Facts.Boot, st.Findings)
		}
	}
}
