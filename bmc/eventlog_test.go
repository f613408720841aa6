package bmc_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"

	"recast/bmc"
	"recast/testenv"
)

// texts are what a log tells from the cursor on, in as many answers as it takes.
func texts(t *testing.T, c bmc.Client, cursor string) (all []string, last bmc.Events) {
	t.Helper()
	last.Cursor = cursor
	for range 20 {
		next, err := c.(bmc.EventLog).Events(within(t, 20*time.Second), last.Cursor)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range next.Events {
			all = append(all, e.Text)
		}
		next.Lost = next.Lost || last.Lost
		if last = next; !next.More {
			return all, last
		}
	}
	t.Fatal("the log has no end")
	return nil, last
}

// TestEventLogOfEachShape: newest first or last, in pages, whole or as links.
func TestEventLogOfEachShape(t *testing.T) {
	t.Parallel()
	const count = 250
	const at = "/redfish/v1/Managers/1/LogServices/Sel/Entries"
	for _, newestFirst := range []bool{false, true} {
		for _, links := range []bool{false, true} {
			t.Run(fmt.Sprintf("newest first %v, links %v", newestFirst, links), func(t *testing.T) {
				s := newTree(t, map[string]string{
					"/Systems/1":                    `{"PowerState":"Off"}`,
					"/Managers":                     `{"Members":[{"@odata.id":"/redfish/v1/Managers/1"}]}`,
					"/Managers/1":                   `{"LogServices":{"@odata.id":"/redfish/v1/Managers/1/LogServices"}}`,
					"/Managers/1/LogServices":       `{"Members":[{"@odata.id":"/redfish/v1/Managers/1/LogServices/Lclog"},{"@odata.id":"/redfish/v1/Managers/1/LogServices/Sel"}]}`,
					"/Managers/1/LogServices/Lclog": `{"Entries":{"@odata.id":"/redfish/v1/none"}}`,
					"/Managers/1/LogServices/Sel":   `{"Entries":{"@odata.id":"` + at + `"}}`,
				})
				n, first := count, 1
				s.on = func(w http.ResponseWriter, method, path string, _ map[string]any) bool {
					if !strings.HasPrefix(path, at) {
						return false
					}
					entry := func(i int) string {
						return fmt.Sprintf(`{"@odata.id":"%s/%d","Id":"%d","Created":"2026-01-02T03:%02d:%02dZ","Message":"event %d","Severity":"Warning"}`, at, i, i, i/60%60, i%60, i)
					}
					rest := strings.TrimPrefix(strings.TrimPrefix(path, at), "/")
					if i, err := strconv.Atoi(rest); err == nil {
						fmt.Fprint(w, entry(i))
						return true
					}
					var ids []int
					for i := first; i <= n; i++ {
						ids = append(ids, i)
					}
					if newestFirst {
						slices.Reverse(ids)
					}
					page, next := 0, ""
					if p, ok := strings.CutPrefix(rest, "page"); ok {
						page, _ = strconv.Atoi(p)
					}
					end := min(len(ids), (page+1)*50)
					if end < len(ids) {
						next = fmt.Sprintf(`,"Members@odata.nextLink":"%s/page%d"`, at, page+1)
					}
					var members []string
					for _, i := range ids[min(page*50, end):end] {
						if links {
							members = append(members, fmt.Sprintf(`{"@odata.id":"%s/%d"}`, at, i))
						} else {
							members = append(members, entry(i))
						}
					}
					fmt.Fprintf(w, `{"Members":[%s]%s}`, strings.Join(members, ","), next)
					return true
				}
				c := s.dial()
				all, last := texts(t, c, "")
				if len(all) != count || all[0] != "event 1" || all[count-1] != "event 250" || last.Lost {
					t.Fatalf("%d events, %v", len(all), all[:min(3, len(all))])
				}
				n += 2
				if more, next := texts(t, c, last.Cursor); fmt.Sprint(more) != "[event 251 event 252]" || next.Lost {
					t.Errorf("later: %v, %+v", more, next)
				}
				first = 252 // it is full: the entry of the cursor went
				if more, next := texts(t, c, last.Cursor); fmt.Sprint(more) != "[event 252]" || !next.Lost {
					t.Errorf("after the log ran over: %v, %+v", more, next)
				}
			})
		}
	}
}

// TestEventLogIsTheOneOfTheHardware among those that recorded trees have.
func TestEventLogIsTheOneOfTheHardware(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		system, manager map[string]string // by name, the LogEntryType
		want            string
	}{
		{"Dell, whose list of faults says SEL too", nil, map[string]string{"FaultList": "SEL", "Lclog": "OEM", "Sel": "SEL"}, "Sel"},
		{"AMI, whose BIOS has a log", map[string]string{"BIOS": "SEL"}, map[string]string{"AuditLog": "Event", "EventLog": "Event", "SEL": "SEL"}, "SEL"},
		{"HPE", map[string]string{"Event": "", "IML": "", "SL": ""}, map[string]string{"IEL": ""}, "IML"},
		{"Supermicro, of whose two one says so", map[string]string{"Log1": "SEL"}, map[string]string{"Log1": "OEM"}, "Log1"},
		{"Lenovo", map[string]string{"ActiveLog": "Multiple", "AuditLog": "Multiple", "PlatformLog": "Multiple"}, nil, "PlatformLog"},
		{"OpenBMC", map[string]string{"Dump": "", "EventLog": "", "PostCodes": "", "SEL": ""}, map[string]string{"Journal": ""}, "SEL"},
		{"only one of another name", map[string]string{"Mine": "SEL", "Log": ""}, nil, "Mine"},
		{"none", map[string]string{"HostLogger": ""}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			resources := map[string]string{
				"/Systems/1":  `{"PowerState":"Off","LogServices":{"@odata.id":"/redfish/v1/Systems/1/LogServices"}}`,
				"/Managers":   `{"Members":[{"@odata.id":"/redfish/v1/Managers/1"}]}`,
				"/Managers/1": `{"LogServices":{"@odata.id":"/redfish/v1/Managers/1/LogServices"}}`,
			}
			for at, logs := range map[string]map[string]string{"/Systems/1/LogServices": c.system, "/Managers/1/LogServices": c.manager} {
				var members []string
				for _, name := range slices.Sorted(maps.Keys(logs)) {
					uri := "/redfish/v1" + at + "/" + name
					members = append(members, `{"@odata.id":"`+uri+`"}`)
					kind := ""
					if logs[name] != "" {
						kind = `"LogEntryType":"` + logs[name] + `",`
					}
					resources[at+"/"+name] = `{` + kind + `"Entries":{"@odata.id":"` + uri + `/Entries"}}`
					resources[at+"/"+name+"/Entries"] = `{"Members":[{"@odata.id":"` + uri + `/Entries/1","Id":"1","Message":"` + logs[name] + " " + name + `"}]}`
				}
				resources[at] = `{"Members":[` + strings.Join(members, ",") + `]}`
			}
			found, err := newTree(t, resources).dial().(bmc.EventLog).Events(within(t, 20*time.Second), "")
			switch {
			case c.want == "" && !errors.Is(err, bmc.ErrUnsupported):
				t.Errorf("%+v, %v; want ErrUnsupported", found, err)
			case c.want != "" && (err != nil || len(found.Events) != 1 || !strings.HasSuffix(found.Events[0].Text, " "+c.want) && found.Events[0].Text != c.want):
				t.Errorf("%+v, %v; want %s", found, err, c.want)
			}
			if c.want == "Log1" && err == nil && found.Events[0].Text != "SEL Log1" {
				t.Errorf("%+v", found)
			}
		})
	}
}

func TestEventLogThatWasClearedIsToldAnew(t *testing.T) {
	t.Parallel()
	machine := &testenv.SimMachine{}
	b := newIPMI(t, testenv.IPMIOptions{Machine: machine})
	c := dial(t, ipmiTarget(b))
	if err := machine.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := machine.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before, last := texts(t, c, "")
	if len(before) < 3 || last.Lost {
		t.Fatalf("%v, %+v", before, last)
	}
	clearSEL(t, b)
	if none, now := texts(t, c, last.Cursor); len(none) != 0 || !now.Lost || now.Cursor != "" {
		t.Errorf("an empty log: %v, %+v", none, now)
	}
	if err := machine.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if some, now := texts(t, c, last.Cursor); len(some) == 0 || !now.Lost {
		t.Errorf("after it was cleared: %v, %+v", some, now)
	}
	if _, err := c.(bmc.EventLog).Events(t.Context(), "/redfish/v1/x#1"); !errors.Is(err, bmc.ErrUnsupported) {
		t.Errorf("a cursor of Redfish: %v", err)
	}
}

// clearSEL is somebody else with a tool of his own.
func clearSEL(t *testing.T, b *testenv.IPMIBMC) {
	t.Helper()
	host, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	lib, err := client.NewClient(host, n, user, password)
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lib.Close(context.Background()) }()
	reserved, err := lib.ReserveSEL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lib.ClearSEL(t.Context(), reserved.ReservationID); err != nil {
		t.Fatal(err)
	}
}
