package bmc

import (
	"encoding/json"
	"testing"
)

func TestConsolesOnOfferAreReadAsTold(t *testing.T) {
	for _, c := range []struct {
		name, system string
		want         consoleOffer
	}{
		{"OpenBMC", `{"IPMI":{"ServiceEnabled":true},"MaxConcurrentSessions":15,"SSH":{"HotKeySequenceDisplay":"Press ~. to exit console","Port":2200,"ServiceEnabled":true}}`,
			consoleOffer{ssh: 2200, ipmi: 623}},
		{"by a command", `{"SSH":{"ServiceEnabled":true,"SharedWithManagerCLI":true,"ConsoleEntryCommand":"console com2"}}`, consoleOffer{ssh: 22, command: "console com2"}},
		{"switched off", `{"SSH":{"ServiceEnabled":false,"Port":22},"IPMI":{"ServiceEnabled":false}}`, consoleOffer{}},
		{"nulls", `{"SSH":{"ServiceEnabled":null,"Port":null},"IPMI":null}`, consoleOffer{}},
		{"no port", `{"SSH":{"ServiceEnabled":true,"Port":99999}}`, consoleOffer{ssh: 22}},
		{"a command of two lines", `{"SSH":{"ServiceEnabled":true,"ConsoleEntryCommand":"a\rrm -rf /"}}`, consoleOffer{ssh: 22}},
		{"nothing", `{}`, consoleOffer{}},
	} {
		var told redfishConsole
		if err := json.Unmarshal([]byte(c.system), &told); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := offerOf(told); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	on := redfishProtocol{Enabled: true, Port: 2222}
	for _, c := range []struct {
		name      string
		ways      []string
		ssh, ipmi redfishProtocol
		command   string
		want      consoleOffer
	}{
		{"both", []string{"SSH", "IPMI", "Telnet"}, on, redfishProtocol{Enabled: true}, "vsp", consoleOffer{ssh: 2222, command: "vsp", ipmi: 623}},
		{"a shell of which nobody knows the way on", []string{"SSH", "IPMI"}, on, redfishProtocol{Enabled: true}, "", consoleOffer{ipmi: 623}},
		{"the protocol is off", []string{"SSH", "IPMI"}, redfishProtocol{}, redfishProtocol{}, "vsp", consoleOffer{}},
		{"Telnet alone", []string{"Telnet"}, on, on, "vsp", consoleOffer{}},
	} {
		if got := offerOfManager(c.ways, c.ssh, c.ipmi, c.command); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
