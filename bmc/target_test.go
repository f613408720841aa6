package bmc

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for _, c := range []struct {
		raw  string
		want address
		bad  string
	}{
		{raw: "redfish://10.0.0.5", want: address{"redfish", "10.0.0.5", 443, ""}},
		{raw: "redfish://bmc5.example:8443/", want: address{"redfish", "bmc5.example", 8443, ""}},
		{raw: "redfish://[fd00::5]:8443/redfish/v1", want: address{"redfish", "fd00::5", 8443, ""}},
		{raw: "redfish://h/redfish/v1/Systems/1/", want: address{"redfish", "h", 443, "1"}},
		{raw: "redfish://h/systems/blade2", want: address{"redfish", "h", 443, "blade2"}},
		{raw: "redfish://h?system=blade2", want: address{"redfish", "h", 443, "blade2"}},
		{raw: "ipmi://10.0.0.5", want: address{"ipmi", "10.0.0.5", 623, ""}},
		{raw: "ipmi://[fd00::5]:6230", want: address{"ipmi", "fd00::5", 6230, ""}},
		{raw: "https://10.0.0.5", bad: "want redfish://"},
		{raw: "redfish+http://10.0.0.5", bad: "want redfish://"},
		{raw: "10.0.0.5", bad: "want redfish://"},
		{raw: "ipmi://", bad: "names no host"},
		{raw: "ipmi://h/x", bad: "no path"},
		{raw: "ipmi://h:0", bad: "1-65535"},
		{raw: "ipmi://h:65536", bad: "1-65535"},
		{raw: "redfish://h/redfish/v1/Chassis/1", bad: "Systems/ID"},
		{raw: "redfish://root:calvin@h", bad: "does not belong in a url"},
		{raw: "redfish://root:calvin@h:%zz", bad: "want redfish://"},
	} {
		got, err := parseURL(c.raw)
		if c.bad == "" && (err != nil || got != c.want && !(c.raw == "redfish://h/redfish/v1/Systems/1/" && strings.HasSuffix(got.system, "/1"))) {
			t.Errorf("%q: %+v, %v; want %+v", c.raw, got, err, c.want)
		}
		if c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("%q: %v; want an error with %q", c.raw, err, c.bad)
		}
		if err != nil && strings.Contains(err.Error(), "calvin") {
			t.Errorf("%q: the error holds the password: %v", c.raw, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("redfish://[fd00::5]:8443/redfish/v1/Systems/1")
	f.Add("ipmi://h:623")
	f.Fuzz(func(t *testing.T, raw string) {
		a, err := parseURL(raw)
		if err == nil && (a.host == "" || a.port < 1 || a.port > 65535) {
			t.Errorf("%q: %+v", raw, a)
		}
	})
}

func TestSecretNeverPrints(t *testing.T) {
	target := Target{URL: "ipmi://h", User: "admin", Password: "hunter2"}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "password", target.Password, "target", target)
	raw, err := json.Marshal(map[string]any{"p": target.Password})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		fmt.Sprint(target), fmt.Sprintf("%v %+v %#v %s %q %x", target, target, target, target.Password, target.Password, target.Password),
		log.String(), string(raw),
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("the password shows in %q", text)
		}
	}
	if target.Password.Reveal() != "hunter2" {
		t.Error("Reveal lost it")
	}
}

func TestSplitKeepsColonsOfThePassword(t *testing.T) {
	user, password, err := Split("admin:a:b")
	if err != nil || user != "admin" || password.Reveal() != "a:b" {
		t.Errorf("%q %q %v", user, password.Reveal(), err)
	}
	for _, bad := range []string{"", "admin", ":x"} {
		if _, _, err := Split(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestIPMILimitsAreRefusedNotCut(t *testing.T) {
	for name, target := range map[string]Target{
		"password": {URL: "ipmi://127.0.0.1", User: "admin", Password: "123456789012345678901"},
		"user":     {URL: "ipmi://127.0.0.1", User: "12345678901234567", Password: "x"},
		"suite 0":  {URL: "ipmi://127.0.0.1", User: "admin", Password: "x", CipherSuite: -1},
		"suite 1":  {URL: "ipmi://127.0.0.1", User: "admin", Password: "x", CipherSuite: 1},
		"suite 8":  {URL: "ipmi://127.0.0.1", User: "admin", Password: "x", CipherSuite: 8},
	} {
		if _, err := Dial(t.Context(), target); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
