package main

import (
	"os"
	"strings"
	"testing"

	"recast/bmc"
	"recast/testenv"
)

// picture is what the screen of the first machine shows.
const picture = "\x89PNG\r\n\x1a\n and so on"

// bmcRack declares two machines of rack r1 behind virtual BMCs, and keeps them from
// starting.
func bmcRack(t *testing.T) (redfish *testenv.RedfishBMC, ipmi *testenv.IPMIBMC) {
	t.Helper()
	workplace(t)
	redfish, err := testenv.NewRedfish(testenv.RedfishOptions{User: "admin", Password: "hunter2", Vendor: "Contoso", Manufacturer: "Dell Inc.", Serial: "SN1", Screen: func() []byte { return []byte(picture) }, Machine: &testenv.SimMachine{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = redfish.Close() })
	ipmi, err = testenv.NewIPMI(testenv.IPMIOptions{User: "admin", Password: "hunter2", Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{CipherZero: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ipmi.Close() })
	site := "apiVersion: recast/v1\nkind: Network\nmetadata: {name: loop}\nspec: {subnet: 127.0.0.0/24, dhcp: \"off\"}\n"
	for name, url := range map[string]string{"a1": redfish.URL(), "a2": ipmi.URL()} {
		site += "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: " + name + "}\nspec:\n  location: {rack: r1}\n" +
			"  nics: [{mac: \"52:54:00:00:00:0" + name[1:] + "\", network: loop}]\n  bmc: {url: \"" + url + "\", credentials: rack-bmc}\n"
	}
	if err := os.WriteFile("site.yaml", []byte(site), 0o644); err != nil {
		t.Fatal(err)
	}
	must := func(stdin string, args ...string) {
		t.Helper()
		if out, code := recast(t, strings.NewReader(stdin), args...); code != exitOK {
			t.Fatalf("recast %s: %d %s", strings.Join(args, " "), code, out)
		}
	}
	must("admin:hunter2", "secret", "set", "rack-bmc")
	must("", "apply", "site.yaml", "--yes")
	return redfish, ipmi
}

func TestBMCsAreEnrolledReadAndRotatedByRack(t *testing.T) {
	redfish, ipmi := bmcRack(t)
	for _, c := range []struct {
		args string
		code int
		says []string
	}{
		{"bmc enrol --rack r1", exitOK, []string{"a1: redfish, Contoso virtual BMC firmware 1.0", "  certificate " + string(redfish.Pin()), "a2: ipmi, ", "  finding: its BMC is open: IPMI cipher suite 0"}},
		{"bmc enrol --rack r2", exitRefused, []string{`there is no rack "r2"; did you mean "r1"?`}},
		{"bmc enrol", exitUsage, []string{"want MACHINE..., got nothing"}},
		{"bmc enrol a1 --pin sha256:12", exitUsage, []string{"bmc enrol --pin:"}},
		{"describe a1", exitOK, []string{"redfish, Contoso", "enrolled ", "certificate " + redfish.Pin().Short()}},
		{"describe a2", exitOK, []string{"its BMC is open"}},
		{"bmc sensors a1", exitOK, []string{"SENSOR", "Inlet temperature", "22 °C", "ok"}},
		{"bmc sensors a2 -o json", exitOK, []string{`"name": "Inlet Temp"`, `"reading": 22`}},
		{"bmc inventory a1", exitOK, []string{"serial SN1"}},
		{"bmc screenshot a1", exitOK, []string{picture}},
		{"bmc screenshot a2", exitRefused, []string{`screenshot of "a2": take a screenshot: the BMC does not offer this: IPMI does not know of a screen`}},
		{"bmc events a1", exitOK, []string{"SEVERITY"}},
		{"bmc reset a2", exitOK, []string{"a2: its BMC has restarted"}},
		{"bmc rotate --rack r1 --user recast", exitOK, []string{`a1: "recast" has a new password`, `a2: "recast" has a new password`}},
		{"describe a2", exitOK, []string{`password of "recast" rotated`}},
		{"power status a1 a2", exitOK, []string{"a1: off", "a2: off"}},
		{"power status a0 a1 --", exitRefused, []string{"a1: off", `there is no machine "a0"`}},
		{"power on --rack r1", exitOK, []string{"a1: on", "a2: on"}},
		{"get audit", exitOK, []string{"bmc pin", "bmc enrol", "bmc reset", "bmc rotate", "bmc screenshot"}},
	} {
		out, code := recast(t, strings.NewReader(""), strings.Fields(c.args)...)
		for _, want := range c.says {
			if !strings.Contains(out, want) {
				t.Errorf("recast %s says %q, without %q", c.args, out, want)
			}
		}
		if code != c.code {
			t.Errorf("recast %s: exit %d: %s", c.args, code, out)
		}
	}
	if redfish.Password("admin") != "hunter2" {
		t.Error("the account that the operator knows was changed")
	}

	// Nobody is let in any more: the rotation of the rack ends with its first machine.
	for _, b := range []interface {
		SetFaults(func(*testenv.BMCFaults))
	}{redfish, ipmi} {
		b.SetFaults(func(f *testenv.BMCFaults) { f.RefuseAuth = true })
	}
	redfish.Restart()
	ipmi.Restart()
	redfish.Forget()
	ipmi.Forget()
	out, code := recast(t, strings.NewReader(""), "bmc", "rotate", "--rack", "r1")
	if code == exitOK || !strings.Contains(out, "stopped: 1 more were not begun") {
		t.Errorf("exit %d: %s", code, out)
	}
	if n, m := redfish.Count("login"), ipmi.Count("login"); n != 1 || m != 0 {
		t.Errorf("%d and %d logins, want one with the first BMC alone", n, m)
	}
}

func TestBMCInventoryTellsFirmwareThatIsNotInUse(t *testing.T) {
	var b strings.Builder
	printBMCInventory(&b, bmc.Inventory{Firmware: []bmc.Firmware{{Name: "BIOS", Version: "2.2.4"}, {Name: "BIOS", Version: "2.3.6", State: "previous"}, {Name: "CPLD"}}})
	for _, want := range []string{"BIOS 2.2.4\n", "BIOS 2.3.6, previous\n", "CPLD -\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("without %q:\n%s", want, b.String())
		}
	}
}
