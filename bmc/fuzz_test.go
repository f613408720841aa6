package bmc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// answerTree is a Redfish BMC with one resource of each kind that is read.
var answerTree = map[string]string{
	"":                         `{"UUID":"u","Vendor":"v","Systems":{"@odata.id":"/redfish/v1/Systems"},"UpdateService":{"@odata.id":"/redfish/v1/UpdateService"},"Links":{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}}`,
	"/SessionService":          `{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}`,
	"/SessionService/Sessions": `{"@odata.id":"/redfish/v1/SessionService/Sessions/1","CreatedTime":"2026-01-02T03:04:05Z"}`,
	"/Systems":                 `{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}]}`,
	"/Systems/1": `{"PowerState":"Off","UUID":"u","SerialNumber":"s","Manufacturer":"Dell","SKU":"t","Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI",
		"HttpBootUri":null,"BootSourceOverrideTarget@Redfish.AllowableValues":["None","Pxe"]},"@Redfish.Settings":{"SettingsObject":{"@odata.id":"/redfish/v1/Systems/1/SD"}},
		"Actions":{"#ComputerSystem.Reset":{"target":"/redfish/v1/Systems/1/Reset","@Redfish.ActionInfo":"/redfish/v1/Systems/1/Info"}},
		"Links":{"ManagedBy":[{"@odata.id":"/redfish/v1/Managers/1"}],"Chassis":[{"@odata.id":"/redfish/v1/Chassis/1"},{"@odata.id":"/redfish/v1/Chassis/2"}]},"LogServices":{"@odata.id":"/redfish/v1/Logs"},
		"Processors":{"@odata.id":"/redfish/v1/Processors"},"Memory":{"@odata.id":"/redfish/v1/Memory"},"Storage":{"@odata.id":"/redfish/v1/Storage"},"SimpleStorage":{"@odata.id":"/redfish/v1/Simple"},"EthernetInterfaces":{"@odata.id":"/redfish/v1/NICs"},"SecureBoot":{"@odata.id":"/redfish/v1/SecureBoot"}}`,
	"/Systems/1/SD": `{"Boot":{"BootSourceOverrideTarget":"None","BootSourceOverrideEnabled":"Disabled"}}`,
	"/Managers/1":   `{"FirmwareVersion":"1","Model":"m","VirtualMedia":{"@odata.id":"/redfish/v1/Media"}}`,
	"/Media":        `{"Members":[{"@odata.id":"/redfish/v1/Media/CD"}],"Members@odata.nextLink":"/redfish/v1/Media2"}`,
	"/Media2":       `{"Members":[]}`,
	"/Media/CD":     `{"Id":"CD","MediaTypes":["CD"],"Inserted":false,"Actions":{"#VirtualMedia.InsertMedia":{"target":"/redfish/v1/Media/CD/Insert","@Redfish.ActionInfo":"/redfish/v1/Media/Info"}}}`,
	"/Media/Info":   `{"Parameters":[{"Name":"Image","Required":true},{"Name":"MediaType","AllowableValues":["CD"]}]}`,
	"/Logs":         `{"Members":[{"@odata.id":"/redfish/v1/Logs/SEL"}]}`,
	"/Logs/SEL":     `{"LogEntryType":"SEL","Entries":{"@odata.id":"/redfish/v1/Logs/SEL/Entries"}}`,
	"/Logs/SEL/Entries": `{"Members":[{"@odata.id":"/redfish/v1/Logs/SEL/Entries/2","Id":"2","Created":"2026-01-02T03:04:05Z","Severity":"OK","Message":"m"},
		{"@odata.id":"/redfish/v1/Logs/SEL/Entries/1"}]}`,
	"/Logs/SEL/Entries/1": `{"Id":"1","Message":"m","MessageId":"k"}`,
	"/Processors":         `{"Members":[{"@odata.id":"/redfish/v1/Processors/1"}]}`,
	"/Processors/1":       `{"Socket":"1","TotalCores":"16","Status":{"State":"Enabled"}}`,
	"/Memory":             `{"Members":[{"@odata.id":"/redfish/v1/Memory/1"}]}`,
	"/Memory/1":           `{"CapacityMiB":"16384 MiB","OperatingSpeedMhz":null}`,
	"/Storage":            `{"Members":[{"@odata.id":"/redfish/v1/Storage/1"}]}`,
	"/Storage/1":          `{"Id":"1","Drives":[{"@odata.id":"/redfish/v1/Drive"}]}`,
	"/Drive":              `{"Name":"d","CapacityBytes":960197124096}`,
	"/Simple":             `{"Members":[]}`,
	"/SecureBoot":         `{"SecureBootEnable":false,"SecureBootCurrentBoot":"Enabled"}`,
	"/NICs":               `{"Members":[{"@odata.id":"/redfish/v1/NICs/1"}]}`,
	"/NICs/1":             `{"MACAddress":"52-54-00-12-34-56"}`,
	"/UpdateService":      `{"FirmwareInventory":{"@odata.id":"/redfish/v1/Firmware"}}`,
	"/Firmware":           `{"Members":[{"@odata.id":"/redfish/v1/Firmware/1"}]}`,
	"/Firmware/1":         `{"Name":"BIOS","Version":"1"}`,
	"/Chassis/1":          `{"Thermal":{"@odata.id":"/redfish/v1/Thermal"},"Power":{"@odata.id":"/redfish/v1/Power"}}`,
	"/Thermal":            `{"Temperatures":[{"Name":"t","ReadingCelsius":20}],"Fans":[{"FanName":"f","Reading":3000,"ReadingUnits":"RPM"}]}`,
	"/Power":              `{"PowerControl":[{"PowerConsumedWatts":200}],"Voltages":[{"Name":"v","ReadingVolts":"12"}]}`,
	"/Chassis/2":          `{"Sensors":{"@odata.id":"/redfish/v1/Sensors"}}`,
	"/Sensors":            `{"Members":[{"@odata.id":"/redfish/v1/Sensors/1"}]}`,
	"/Sensors/1":          `{"Name":"s","ReadingType":"Temperature","Reading":20,"ReadingUnits":"Cel","Status":{"Health":"OK"}}`,
}

// answers is a BMC on no network: the resource at one path is what the test says.
type answers struct {
	t      *testing.T
	at     string
	status int
	body   []byte
	asked  int
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.asked++; r.URL.Host != "192.0.2.1:443" || r.URL.Scheme != "https" {
		a.t.Errorf("%s asked elsewhere: %s", r.Method, r.URL)
	}
	at := strings.TrimSuffix(strings.TrimPrefix(r.URL.RequestURI(), "/redfish/v1"), "/")
	status, header := http.StatusOK, http.Header{}
	body, ok := answerTree[at]
	switch {
	case at == a.at:
		status, body = a.status, string(a.body)
		if status >= 300 && status < 400 {
			header.Set("Location", body)
		}
	case !ok:
		status, body = http.StatusNotFound, `{"error":{"code":"Base.1.8.ResourceMissingAtURI"}}`
	}
	if r.Method == http.MethodPost {
		status = http.StatusCreated
		header.Set("X-Auth-Token", "t")
	}
	return &http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: header, Request: r,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}, nil
}

// answerStatuses that a fuzzed answer has.
var answerStatuses = []int{200, 200, 200, 200, 202, 204, 301, 308, 400, 401, 403, 404, 412, 500, 503}

// FuzzRedfishAnswers reads all that is read of a BMC, of which one resource is
// anything: no decoder may break, nothing may be asked of another host, or for ever, and
// every error has a reason and one line.
func FuzzRedfishAnswers(f *testing.F) {
	var places []string
	for at := range answerTree {
		places = append(places, at)
	}
	slices.Sort(places)
	for i, at := range places {
		f.Add(uint8(i), uint8(0), []byte(answerTree[at]))
		f.Add(uint8(i), uint8(6), []byte("https://192.0.2.2/redfish/v1"))
		f.Add(uint8(i), uint8(9), []byte(`{"error":{"code":"x","@Message.ExtendedInfo":[{"MessageId":"Base.1.8.NoValidSession","MessageArgs":["/redfish/v1/AccountService/Accounts/1"]}]}}`))
	}
	f.Add(uint8(slices.Index(places, "/Media")), uint8(0), []byte(`{"Members":[{"@odata.id":"//192.0.2.2/x"}],"Members@odata.nextLink":"/redfish/v1/Media"}`))
	f.Add(uint8(slices.Index(places, "/Storage/1")), uint8(0), []byte(`{"Drives":[{"@odata.id":"http://192.0.2.2/x"},{"@odata.id":7},null]}`))
	f.Add(uint8(slices.Index(places, "/Sensors/1")), uint8(0), []byte(`{"Name":"s","Reading":"NaN"}`))
	f.Add(uint8(slices.Index(places, "/Drive")), uint8(0), []byte(`{"Name":"d","CapacityBytes":-1e300}`))
	f.Fuzz(func(t *testing.T, place, status uint8, body []byte) {
		a := &answers{t: t, at: places[int(place)%len(places)], status: answerStatuses[int(status)%len(answerStatuses)], body: body}
		bad := &BadAnswers{}
		target := Target{URL: "redfish://192.0.2.1", User: "u", Password: "p", Bad: bad, Log: slog.New(slog.DiscardHandler), hurry: 1000}
		where, err := parseURL(target.URL)
		if err != nil {
			t.Fatal(err)
		}
		d, err := newRedfish(where, target)
		if err != nil {
			t.Fatal(err)
		}
		d.transport.base.RegisterProtocol("https", a)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := dialWith(ctx, where, target, d)
		errs := []error{err}
		if err == nil {
			_, err = c.Power(ctx)
			errs = append(errs, err)
			_, err = c.NextBoot(ctx)
			errs = append(errs, err)
			all, err := c.(Describer).Inventory(ctx)
			errs = append(errs, err)
			sensors, err := c.(SensorReader).Sensors(ctx)
			errs = append(errs, err)
			_, err = c.(EventLog).Events(ctx, "")
			errs = append(errs, err)
			_, err = c.(Media).Media(ctx)
			errs = append(errs, err, c.Close(ctx))
			if _, err := json.Marshal([]any{all, sensors}); err != nil {
				t.Errorf("it cannot be shown: %v", err)
			}
			for _, d := range all.Disks {
				if d.Bytes < 0 {
					t.Errorf("disk %+v", d)
				}
			}
			for _, said := range append(all.Holes, all.Serial, all.Model, all.BMC.Firmware, fmt.Sprint(all.Disks, all.NICs, all.Firmware)) {
				if strings.ContainsAny(said, "\n\x00\x1b") {
					t.Errorf("more than text: %q", said)
				}
			}
		}
		for _, err := range errs {
			if err != nil && (!classified(err) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("no reason, or several lines: %q", err)
			}
		}
		if n := bad.Counts()[string(badPanic)]; n > 0 {
			t.Errorf("%d decoders broke: %v", n, errs)
		}
		if ctx.Err() != nil || a.asked > 3000 {
			t.Errorf("asked %d times, %v", a.asked, ctx.Err())
		}
	})
}
