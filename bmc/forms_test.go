package bmc

import (
	"bufio"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bougou/go-ipmi/pkg/types"
	"github.com/google/go-cmp/cmp"
)

func TestBootForms(t *testing.T) {
	uri, uefi := "http://192.0.2.1/b", NextBoot{Device: BootNetwork, UEFI: true}
	pxe := `{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI"}`
	noMode := `{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}`
	noEnabled := `{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideMode":"UEFI"}`
	target := `{"BootSourceOverrideTarget":"Pxe"}`
	for _, c := range []struct {
		name    string
		now     redfishBoot
		next    NextBoot
		target  string
		learned string
		want    []string
	}{
		{"mode right: may be left out", redfishBoot{Mode: "UEFI"}, uefi, "Pxe", "", []string{"full " + pxe, "no-mode " + noMode}},
		{"mode unknown: may be left out", redfishBoot{}, uefi, "Pxe", "", []string{"full " + pxe, "no-mode " + noMode}},
		{"mode wrong: never left out", redfishBoot{Mode: "Legacy"}, uefi, "Pxe", "", []string{"full " + pxe}},
		{"enabled right: may be left out", redfishBoot{Mode: "UEFI", Enabled: "Once"}, uefi, "Pxe", "",
			[]string{"full " + pxe, "no-mode " + noMode, "no-enabled " + noEnabled, "target " + target}},
		{"enabled right, mode wrong", redfishBoot{Mode: "Legacy", Enabled: "Once"}, uefi, "Pxe", "", []string{"full " + pxe, "no-enabled " + noEnabled}},
		{"what worked comes first", redfishBoot{Mode: "UEFI"}, uefi, "Pxe", "no-mode", []string{"no-mode " + noMode, "full " + pxe}},
		{"what worked does not fit now", redfishBoot{Mode: "Legacy"}, uefi, "Pxe", "no-mode", []string{"full " + pxe}},
		{"a URI", redfishBoot{Mode: "Legacy", URI: json.RawMessage("null")}, NextBoot{Device: BootHTTP, UEFI: true, URI: uri}, "UefiHttp", "",
			[]string{`full {"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI","HttpBootUri":"` + uri + `"}`}},
		{"an old URI is overwritten", redfishBoot{Mode: "Legacy", URI: json.RawMessage(`"x"`)}, NextBoot{Device: BootHTTP, UEFI: true}, "UefiHttp", "",
			[]string{`full {"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI","HttpBootUri":""}`}},
		{"clear", redfishBoot{Mode: "UEFI"}, NextBoot{Device: BootDefault}, "None", "", []string{
			`clear {"BootSourceOverrideTarget":"None","BootSourceOverrideEnabled":"Disabled"}`,
			`clear-full {"BootSourceOverrideTarget":"None","BootSourceOverrideEnabled":"Disabled","BootSourceOverrideMode":"UEFI"}`,
			`clear-enabled {"BootSourceOverrideEnabled":"Disabled"}`}},
	} {
		var got []string
		for _, f := range bootForms(c.now, c.next, c.target, c.learned) {
			raw, err := json.Marshal(f.patch)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, f.name+" "+string(raw))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestBootTargets(t *testing.T) {
	all := []string{"None", "Pxe", "Cd", "UsbCd", "Hdd"}
	cd := NextBoot{Device: BootCD, UEFI: true}
	x10 := []string{"None", "Pxe", "Hdd", "CD/DVD", "UsbCd", "UefiCd", "UefiHdd", "UefiUsbCd"}
	for _, c := range []struct {
		name          string
		vendor, model string
		boot          redfishBoot
		next          NextBoot
		want          string // begins with "!": unsupported
	}{
		{"a CD", "Dell Inc.", "R750", redfishBoot{Targets: all}, cd, "Cd"},
		{"a CD of Supermicro is on USB", "Supermicro", "SYS-1", redfishBoot{Targets: all}, cd, "UsbCd"},
		{"but of one model it is not", "Supermicro", "ARS-111GL-NHR", redfishBoot{Targets: all}, cd, "Cd"},
		{"only the other one is offered", "Supermicro", "SYS-1", redfishBoot{Targets: []string{"Cd"}}, cd, "Cd"},
		{"only that on USB is offered", "x", "y", redfishBoot{Targets: []string{"UsbCd"}}, cd, "UsbCd"},
		{"nothing is listed", "x", "y", redfishBoot{}, cd, "Cd"},
		{"no CD", "x", "y", redfishBoot{Targets: []string{"Pxe"}}, cd, "!"},
		{"no such mode", "x", "y", redfishBoot{Modes: []string{"UEFI"}}, NextBoot{Device: BootDisk}, "!"},
		{"a target tells the mode", "Supermicro", "X10", redfishBoot{Targets: x10}, NextBoot{Device: BootDisk, UEFI: true}, "UefiHdd"},
		{"a target tells the mode of a CD", "Supermicro", "X10", redfishBoot{Targets: x10}, cd, "UefiUsbCd"},
		{"a target tells the mode, BIOS", "Supermicro", "X10", redfishBoot{Targets: x10}, NextBoot{Device: BootDisk}, "Hdd"},
		{"a target without another for the mode", "Supermicro", "X10", redfishBoot{Targets: x10}, NextBoot{Device: BootNetwork, UEFI: true}, "Pxe"},
		{"the mode is told beside the target", "Supermicro", "X11", redfishBoot{Targets: x10, Mode: "UEFI"}, NextBoot{Device: BootDisk, UEFI: true}, "Hdd"},
		{"None need not be listed", "x", "y", redfishBoot{Targets: []string{"Pxe"}, Modes: []string{"UEFI"}}, NextBoot{Device: BootDefault}, "None"},
	} {
		got, err := c.boot.target(c.next, quirksOf(c.vendor, c.model, "").cd)
		if err != nil {
			got = "!"
		}
		if got != c.want {
			t.Errorf("%s: %q (%v), want %q", c.name, got, err, c.want)
		}
	}
}

func TestArmedIsReadInEveryWord(t *testing.T) {
	once := func(target, mode string) redfishBoot { return redfishBoot{Target: target, Enabled: "Once", Mode: mode} }
	for _, c := range []struct {
		boot  redfishBoot
		asked bool
		want  NextBoot
	}{
		{once("Pxe", "UEFI"), false, NextBoot{Device: BootNetwork, UEFI: true}},
		{once("Pxe", "Legacy"), true, NextBoot{Device: BootNetwork}},
		{once("Pxe", ""), true, NextBoot{Device: BootNetwork, UEFI: true}},
		{once("Pxe", ""), false, NextBoot{Device: BootNetwork}},
		{once("UefiHdd", ""), false, NextBoot{Device: BootDisk, UEFI: true}},
		{once("UefiUsbCd", ""), false, NextBoot{Device: BootCD, UEFI: true}},
		{once("CD/DVD", ""), false, NextBoot{Device: BootCD}},
		{once("BiosSetup", "UEFI"), true, NextBoot{Device: "biossetup", UEFI: true}},
		{redfishBoot{Target: "UefiHttp", Enabled: "Disabled", Mode: "UEFI"}, true, NextBoot{Device: BootDefault}},
		{redfishBoot{}, true, NextBoot{Device: BootDefault}},
	} {
		if got := c.boot.armed(c.asked); got != c.want {
			t.Errorf("%+v, asked %v: %v, want %v", c.boot, c.asked, got, c.want)
		}
	}
}

func TestDriveThatTakesAnImageIsChosen(t *testing.T) {
	types := []string{"CD"}
	inserted := true
	slot, usb1, usb2 := redfishDrive{uri: "/slot", types: types}, redfishDrive{uri: "/usb1", types: types, insert: "/i"}, redfishDrive{uri: "/usb2", types: types, insert: "/i"}
	full := redfishDrive{uri: "/full", types: types, inserted: &inserted, image: "http://x/y"}
	for _, c := range []struct {
		name    string
		found   []redfishDrive
		learned string
		want    string
	}{
		{"the first with an action", []redfishDrive{slot, usb1, usb2}, "", "/usb1"},
		{"the one that took one", []redfishDrive{slot, usb1, usb2}, "/usb2", "/usb2"},
		{"the one that holds it", []redfishDrive{slot, usb1, full}, "/usb1", "/full"},
		{"the first, where none has an action (Lenovo)", []redfishDrive{slot, {uri: "/ext2", types: types}}, "", "/slot"},
		{"none", []redfishDrive{{uri: "/floppy", types: []string{"Floppy"}, insert: "/i"}}, "", ""},
	} {
		if got, _ := chooseDrive(c.found, "http://x/y", c.learned); got.uri != c.want {
			t.Errorf("%s: %q, want %q", c.name, got.uri, c.want)
		}
	}
}

func TestInsertForms(t *testing.T) {
	action := redfishDrive{insert: "/insert"}
	told := redfishDrive{insert: "/insert", told: true, needed: []string{"MediaType"}, allowed: map[string][]string{"MediaType": {"DVD"}}}
	for _, c := range []struct {
		name           string
		drive          redfishDrive
		learned, known string
		want           string // the first forms
	}{
		{"as specified", action, "", "", "insert image"},
		{"as the table knows", action, "", "protocol", "protocol insert"},
		{"as it was learned", action, "user", "protocol", "user protocol insert"},
		{"as the BMC tells", told, "", "", "as-told insert"},
		{"as the BMC tells, then the table", told, "", "protocol", "as-told protocol insert"},
		{"as it was learned, then as the BMC tells", told, "image", "", "image as-told insert"},
		{"no action", redfishDrive{}, "", "", "patch patch-image"},
		{"learned of an action that is gone", redfishDrive{}, "insert", "", "patch patch-image"},
	} {
		var names []string
		for _, f := range insertForms(c.drive, c.learned, c.known) {
			names = append(names, f.name)
		}
		if got := strings.Join(names, " "); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s, want %s …", c.name, got, c.want)
		}
		if slices.Sort(names); len(slices.Compact(slices.Clone(names))) != len(names) {
			t.Errorf("%s: a form twice in %v", c.name, names)
		}
	}
	form := mediaForm{params: []string{"MediaType"}}
	if got := fmt.Sprint(form.payload(told, "https://x/y")); got != "map[Image:https://x/y MediaType:DVD]" {
		t.Errorf("payload %s", got)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct{ etag, learned, want string }{
		{`"1"`, "", `[ given] [ "1"]`},
		{`W/"1"`, "", `[ given strong] [ W/"1" "1"]`},
		{`W/"1"`, "strong", `[strong  given] ["1"  W/"1"]`},
		{"", "strong", `[] []`}, {`""`, "", `[] []`}, {`W/""`, "given", `[] []`},
	} {
		ways, values := matches(c.etag, c.learned)
		if got := fmt.Sprint(ways, values); got != c.want {
			t.Errorf("%q, learned %q: %s, want %s", c.etag, c.learned, got, c.want)
		}
	}
}

func TestFactsOfAnotherBoardAreForgotten(t *testing.T) {
	learned := Facts{Vendor: "v", Model: "m", Firmware: "1", BootForm: "full", SelectorOnly: true}
	for _, c := range []struct {
		vendor, model, firmware string
		want                    Facts
	}{
		{"v", "m", "1", learned},
		{"v", "m", "", learned},
		{"", "", "", learned},
		{"w", "m", "1", Facts{Vendor: "w", Model: "m", Firmware: "1"}},
		{"v", "n", "", Facts{Vendor: "v", Model: "n"}},
		{"v", "m", "2", Facts{Vendor: "v", Model: "m", Firmware: "2"}},
	} {
		m := memory{facts: learned}
		if m.of(c.vendor, c.model, c.firmware); m.get() != c.want {
			t.Errorf("%q %q %q: %+v, want %+v", c.vendor, c.model, c.firmware, m.get(), c.want)
		}
	}
}

func TestEveryProfileHasASourceAndAppliesToItsVendor(t *testing.T) {
	for i, p := range profiles {
		if p.source == "" || p.metal {
			t.Errorf("row %d: source %q, metal %v: nothing was seen on metal yet", i, p.source, p.metal)
		}
		if p.vendor != plainVendor(p.vendor) {
			t.Errorf("row %d: vendor %q is never met", i, p.vendor)
		}
		q, general := quirksOf(p.vendor, p.model+" rev 2", p.firmware), quirksOf("", "", "")
		if i > 0 && fmt.Sprint(q) == fmt.Sprint(general) && p.model == "" {
			t.Errorf("row %d (%s) changes nothing", i, p.vendor)
		}
	}
	if q := quirksOf("Super Micro Computer, Inc.", "", ""); q.uefiDisk != types.BootDeviceSelectorForceRemoteMedia {
		t.Errorf("%+v", q)
	}
}

// fruArea makes an info area of a FRU.
func fruTestArea(head []byte, fields ...string) []byte {
	area := append([]byte(nil), head...)
	for _, f := range fields {
		area = append(area, 0xc0|byte(len(f)))
		area = append(area, f...)
	}
	area = append(area, 0xc1)
	for len(area)%8 != 7 {
		area = append(area, 0)
	}
	area[1] = byte((len(area) + 1) / 8)
	var sum byte
	for _, b := range area {
		sum += b
	}
	return append(area, -sum)
}

func TestFRUNames(t *testing.T) {
	board := fruTestArea([]byte{1, 0, 25, 0, 0, 0}, "Maker", "Board", "B-1", "P-1", "")
	product := fruTestArea([]byte{1, 0, 25}, "Brand", "Server 1", "PN", "v1", "S-1")
	unnamed := fruTestArea([]byte{1, 0, 25}, "To be filled by O.E.M.", "", "", "", "Default string")
	broken := append([]byte(nil), product...)
	broken[5]++
	for _, c := range []struct {
		name           string
		board, product []byte
		want           ipmiFRU
	}{
		{"both", board, product, ipmiFRU{"Brand", "Server 1", "PN", "S-1", "B-1"}},
		{"the board stands for a product without names", board, unnamed, ipmiFRU{"Maker", "Board", "P-1", "B-1", "B-1"}},
		{"no product", board, nil, ipmiFRU{"Maker", "Board", "P-1", "B-1", "B-1"}},
		{"a broken sum", nil, broken, ipmiFRU{}},
		{"nothing", nil, nil, ipmiFRU{}},
	} {
		if got := fruNames(c.board, c.product); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestDeviceIDIsReadWithAndWithoutItsLastBytes(t *testing.T) {
	id := []byte{0x20, 0x81, 0x83, 0x16, 0x02, 0xbf, 0x7c, 0x2a, 0x00, 0x57, 0x09, 1, 2, 3, 4}
	for _, c := range []struct {
		length int
		want   string // "" is not believed
	}{{15, "Supermicro, product 2391, firmware 3.16"}, {11, "Supermicro, product 2391, firmware 3.16"}, {10, ""}, {0, ""}} {
		var d ipmiDevice
		err := d.decode(id[:c.length])
		if got := d.vendor + ", " + d.model + ", firmware " + d.firmware; err == nil && got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%d bytes: %s, %v; want %s", c.length, got, err, c.want)
		}
	}
	var d ipmiDevice
	if err := d.decode([]byte{0, 0, 1, 0, 2, 0, 0x39, 0x30, 0xff, 0, 0}); err != nil || d.vendor != "IANA 995385" { // 20 bits
		t.Errorf("%+v, %v", d, err)
	}
}

func TestGUIDInEachByteOrder(t *testing.T) {
	const want = "12345678-9abc-4def-8123-456789abcdef"
	for name, guid := range map[string][16]byte{
		"SMBIOS": {0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xef, 0x4d, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef},
		"RFC":    {0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef},
		"IPMI":   {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x81, 0xef, 0x4d, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12},
	} {
		if got := guidText(guid); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := guidText([16]byte{}); got != "" {
		t.Errorf("zeros: %q", got)
	}
}

func TestLooseValues(t *testing.T) {
	var v struct {
		A, B, C, D text
		E, F, G, H number
	}
	if err := json.Unmarshal([]byte(`{"A":" x\ny ","B":7,"C":null,"D":{"x":1},"E":16,"F":"16 GiB","G":null,"H":[1]}`), &v); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(v); got != "{x y 7   16 16 0 0}" {
		t.Errorf("%s", got)
	}
	for in, want := range map[string]string{"5254.0012.3456": "52:54:00:12:34:56", "52-54-00-AB-CD-EF": "52:54:00:ab:cd:ef", "N/A": "N/A", "80:00": "80:00"} {
		if got := plainMAC(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzFRU(f *testing.F) {
	f.Add(fruTestArea([]byte{1, 0, 25, 0, 0, 0}, "Maker", "Board", "B-1", "P-1", ""), fruTestArea([]byte{1, 0, 25}, "Brand", "Server 1", "PN", "v1", "S-1"))
	f.Fuzz(func(t *testing.T, board, product []byte) {
		for _, area := range [][]byte{board, product} { // let the sum be right
			if len(area) > 0 {
				area[len(area)-1] -= func() (sum byte) {
					for _, b := range area {
						sum += b
					}
					return sum
				}()
			}
		}
		fru := fruNames(board, product)
		for _, s := range []string{fru.manufacturer, fru.model, fru.part, fru.serial, fru.board} {
			if strings.ContainsAny(s, "\n\x00") || len(s) > 200 {
				t.Errorf("%q", s)
			}
		}
	})
}

func FuzzRedfishBoot(f *testing.F) {
	f.Add([]byte(`{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","HttpBootUri":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b redfishBoot
		if json.Unmarshal(raw, &b) != nil {
			return
		}
		now := b.armed(true)
		for _, next := range []NextBoot{now, {Device: BootHTTP, UEFI: true, URI: "http://x/y"}, {Device: BootCD}} {
			target, err := b.target(next, []string{"Cd"})
			if err == nil && next.Device == BootHTTP && !slices.Contains(b.Targets, target) {
				t.Errorf("HTTP Boot assumed of %s", raw)
			}
			for _, form := range bootForms(b, next, target, "") {
				if _, err := json.Marshal(form.patch); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func FuzzRedfishTask(f *testing.F) {
	f.Add([]byte(`{"TaskState":"Exception","Messages":[{"MessageId":"Base.1.8.ResourceInUse","Message":"m"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var task redfishTask
		if json.Unmarshal(raw, &task) != nil {
			return
		}
		if over, err := task.over(); !over && err != nil {
			t.Errorf("%s: running and failed: %v", raw, err)
		}
	})
}

func TestSELRecordsBecomeEvents(t *testing.T) {
	record := func(kind byte, rest ...byte) []byte {
		r := make([]byte, 16)
		r[0], r[1], r[2] = 0x34, 0x12, kind
		copy(r[3:], rest)
		return r
	}
	for _, c := range []struct {
		name   string
		record []byte
		want   string
	}{
		{"a sensor", record(2, 0x00, 0x00, 0x00, 0x68, 0x20, 0, 4, 8, 0x51, 0x6f, 1, 0xff, 0xff), "0x1234 2025-04-16T19:07:44Z critical"},
		{"since the BMC started", record(2, 9, 0, 0, 0, 0x20, 0, 4, 8, 0x51, 0x6f, 1, 0xff, 0xff), "0x1234 0001-01-01T00:00:00Z critical"},
		{"a vendor's, without a time", record(0xe5, 0, 0, 0, 0x68, 1, 2, 3), "0x1234 0001-01-01T00:00:00Z "},
	} {
		e, id := selEvent(c.record)
		if got := id + " " + e.At.Format("2006-01-02T15:04:05Z") + " " + e.Severity; got != c.want || e.Text == "" || e.ID != id {
			t.Errorf("%s: %s: %q, want %s", c.name, got, e.Text, c.want)
		}
	}
}

func FuzzSELRecord(f *testing.F) {
	f.Add([]byte{0x34, 0x12, 2, 0, 0, 0, 0x68, 0x20, 0, 4, 8, 0x51, 0x6f, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, record []byte) {
		if e, id := selEvent(record); e.Text == "" || id == "" || strings.Contains(e.Text, "\n") {
			t.Errorf("% x: %+v", record, e)
		}
	})
}

func TestNextEvent(t *testing.T) {
	long := "data: " + strings.Repeat("x", 5000) + "\n\n"
	for _, c := range []struct {
		name, stream string
		events       int
	}{
		{"nothing", "", 0},
		{"a sign of life", ": stream\n\n", 0},
		{"no data", "id: 1\nevent: x\n\n", 0},
		{"one", "id: 1\ndata: {}\n\n", 1},
		{"without its end", "data: {}\n", 0},
		{"carriage returns", "data: {}\r\n\r\ndata: {}\r\n\r\n", 2},
		{"lines of one event", "data: {\ndata: }\n\n", 1},
		{"longer than the buffer", long + long, 2},
		{"data in the middle of a long line", ": " + strings.Repeat("x", streamBuffer-2) + "data: no\n\n", 0},
		{"an empty rest of a long line", "data:" + strings.Repeat("x", streamBuffer-5) + "\n\n", 1},
	} {
		r := bufio.NewReaderSize(strings.NewReader(c.stream), streamBuffer)
		n := 0
		for nextEvent(r) == nil {
			n++
		}
		if n != c.events {
			t.Errorf("%s: %d events, want %d", c.name, n, c.events)
		}
	}
}

func FuzzNextEvent(f *testing.F) {
	f.Add("id: 1\ndata: {}\n\n: x\n\ndata: y\r\n\r\n")
	f.Fuzz(func(t *testing.T, stream string) {
		r := bufio.NewReaderSize(strings.NewReader(stream), streamBuffer)
		n := 0
		for nextEvent(r) == nil {
			n++
		}
		if n > strings.Count(stream, "data:") {
			t.Errorf("%d events in %q", n, stream)
		}
	})
}
