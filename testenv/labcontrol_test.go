package testenv

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// controlledRack is a lab's control over machines that nobody boots.
func controlledRack(t *testing.T) (dir string, rack *Rack) {
	t.Helper()
	dir = t.TempDir()
	rack = &Rack{}
	for i, bmc := range []RackBMC{BMCIPMI, BMCRedfish} {
		sim, err := NewSimulated(SimulatedOptions{Name: fmt.Sprintf("r1u%02d", i+1), Dir: dir, MAC: "52:54:00:00:00:01", Server: "127.0.0.1:9",
			BMC: bmc, User: "admin", Password: "secret", Disks: []inventory.DiskID{{Serial: "S", Size: osMiB}}})
		simMust(t, err)
		t.Cleanup(func() { simMust(t, sim.Close()) })
		rack.members = append(rack.members, rackMember{spec: RackMachine{Name: sim.Options.Name, BMC: bmc, Simulated: true}, machine: sim,
			MachineBMC: sim.MachineBMC, simulated: sim})
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, err := serveLabControl(ctx, dir, rack)
	simMust(t, err)
	t.Cleanup(func() { cancel(); <-ended })
	return dir, rack
}

func TestLabIsAskedToFailItsMachines(t *testing.T) {
	dir, rack := controlledRack(t)
	ask := func(machines, faults string, length time.Duration) string {
		t.Helper()
		var has []LabFaults
		err := AskLab(t.Context(), dir, "/faults", LabAsk{Machines: strings.Fields(machines), Faults: strings.Fields(faults), For: length}, &has)
		if err != nil {
			return err.Error()
		}
		var b strings.Builder
		for _, h := range has {
			fmt.Fprintf(&b, "%s: %s; ", h.Machine, strings.Join(h.Faults, " "))
		}
		return b.String()
	}
	for _, c := range []struct{ machines, faults, want string }{
		{"", "", ""},
		{"r1u01 r1u02", "delay=2s no-boot", "r1u01: delay=2s no-boot; r1u02: delay=2s no-boot; "},
		{"r1u01", "hang delay=3s", "r1u01: no-boot hang delay=3s; "},
		{"r1u01", "power-cut=4MiB", "r1u01: no-boot hang delay=3s; "}, // happens once
		{"r1u01 r1u02", "etag=weak", `r1u01 cannot have the fault "etag": its BMC speaks IPMI, the fault is one of Redfish`},
		{"", "", "r1u01: no-boot hang delay=3s; r1u02: delay=2s no-boot; "},
		{"r1u02", "none", "r1u02: ; "},
		{"r1u02", "none busy", "r1u02: busy; "},
		{"r1u01", "bang", `there is no fault "bang"; did you mean "hang"? recast lab fault --help lists all`},
		{"r1u01", "zzzzzzzz", `there is no fault "zzzzzzzz"; recast lab fault --help lists them`},
		{"r1u3", "hang", `there is no machine "r1u3"; did you mean "r1u01"?`},
	} {
		if got := ask(c.machines, c.faults, 0); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.machines, c.faults, got, c.want)
		}
	}
	if f := rack.members[0].IPMI.now(); !f.Hang || f.Delay != 3*time.Second {
		t.Errorf("the BMC has %+v", f)
	}
	if f := rack.members[1].Redfish.now(); !f.Busy || f.Delay != 0 {
		t.Errorf("the BMC has %+v", f)
	}
	if got := ask("r1u01", "none stale-reads=2", time.Millisecond); got != "r1u01: stale-reads=2; " {
		t.Error(got)
	}
	await(t, "the fault is over", 20*time.Second, func() bool { return ask("r1u01", "", 0) == "r1u01: ; " })
	info, err := os.Stat(LabControl(dir))
	if err != nil || info.Mode().Perm() != 0o700 && info.Mode().Perm() != 0o600 {
		t.Errorf("others may ask: %v %v", info, err)
	}
}

func TestLabResetsAMachineThatIsOnAndTellsItsLog(t *testing.T) {
	dir, rack := controlledRack(t)
	var none struct{}
	reset := func() error { return AskLab(t.Context(), dir, "/reset", LabAsk{Machines: []string{"r1u02"}}, &none) }
	if err := reset(); err == nil || !strings.Contains(err.Error(), "r1u02 is off; recast power on r1u02 starts it") {
		t.Errorf("a machine that is off: %v", err)
	}
	sim := rack.members[1].simulated
	simMust(t, sim.PowerOn(t.Context()))
	simMust(t, reset())
	if n := len(sim.Boots()); n != 2 {
		t.Errorf("%d starts, want that of the power and that of the reset", n)
	}
	redfishStep{method: "POST", path: "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset", body: `{"ResetType":"ForceOff"}`, status: 204}.run(t, sim.Redfish)
	var log []BMCRequest
	simMust(t, AskLab(t.Context(), dir, "/requests", LabAsk{Machines: []string{"r1u02"}}, &log))
	done := 0
	for i, r := range log {
		if r.Seq != i+1 {
			t.Errorf("request %d has the number %d", i+1, r.Seq)
		}
		if r.Verb == "power-off" && r.Done {
			done++
		}
	}
	if done != 1 {
		t.Errorf("executed %d times: %+v", done, log)
	}

	rack.members[0].spec.BMC = BMCNone
	simMust(t, AskLab(t.Context(), dir, "/reset", LabAsk{Machines: []string{"r1u01"}}, &none))
	if n := len(rack.members[0].simulated.Boots()); n != 1 {
		t.Errorf("%d starts of a machine that has a button alone, want 1", n)
	}
}
