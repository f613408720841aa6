package bmc

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// redfishLogNames are the logs of hardware events, the best first: HPE's,
// Supermicro's, Lenovo's and others. Saying that it is a SEL comes before a name:
// but Dell's list of faults says so too, and the BIOS's log of AMI.
var redfishLogNames = []string{"sel", "iml", "log1", "platformlog", "eventlog", "log"}

// eventLog finds the one log of hardware events: under the system, or under its
// manager. Others hold logins and jobs.
func (d *redfishDriver) eventLog(ctx context.Context) (string, error) {
	if d.log != "" {
		return d.log, nil
	}
	system, managers, err := d.owners(ctx)
	if err != nil {
		return "", err
	}
	places := []string{system.Logs.ID}
	for _, m := range managers {
		places = append(places, m.Logs.ID)
	}
	best, rank := "", 2*len(redfishLogNames)+1
	for _, at := range places {
		uris, err := d.members(ctx, at)
		if err != nil {
			return "", err
		}
		for _, uri := range uris {
			var log struct {
				Type    text        `json:"LogEntryType"`
				Entries redfishLink `json:"Entries"`
			}
			if _, err := d.get(ctx, uri, &log); gone(err) {
				continue
			} else if err != nil {
				return "", err
			}
			entries := d.local(log.Entries.ID)
			if entries == "" {
				continue
			}
			r := slices.Index(redfishLogNames, strings.ToLower(path.Base(uri)))
			switch {
			case log.Type == "SEL" && r < 0:
				r = len(redfishLogNames)
			case r < 0:
				continue
			case log.Type != "SEL":
				r += len(redfishLogNames) + 1
			}
			if r < rank {
				best, rank = entries, r
			}
		}
	}
	if best == "" {
		return "", fmt.Errorf("%w: no log of hardware events", ErrUnsupported)
	}
	d.log = best
	return best, nil
}

// redfishEntry is a LogEntry, or the link to one that was not read yet.
type redfishEntry struct {
	URI      string `json:"@odata.id"`
	ID       text   `json:"Id"`
	Created  text   `json:"Created"`
	Severity text   `json:"Severity"`
	Message  text   `json:"Message"`
	Kind     text   `json:"MessageId"`
}

func (e redfishEntry) read() bool { return e.Created != "" || e.Message != "" || e.Kind != "" }

func (e redfishEntry) sum() string {
	return sumOf(string(e.Created), string(e.Message), string(e.Kind))
}

func (e redfishEntry) event() Event {
	event := Event{ID: either(e.ID, text(path.Base(e.URI))), Severity: severity(string(e.Severity)), Text: either(e.Message, e.Kind)}
	if at, err := time.Parse(time.RFC3339, string(e.Created)); err == nil && at.Year() > 1980 {
		event.At = at.UTC()
	}
	return event
}

// older reports whether a stands before b, as far as that can be told.
func (e redfishEntry) older(b redfishEntry) bool {
	n, err := strconv.ParseUint(path.Base(e.URI), 10, 64)
	m, errB := strconv.ParseUint(path.Base(b.URI), 10, 64)
	if err == nil && errB == nil {
		return n < m
	}
	at, err := time.Parse(time.RFC3339, string(e.Created))
	atB, errB := time.Parse(time.RFC3339, string(b.Created))
	return err != nil || errB != nil || !atB.Before(at)
}

func (d *redfishDriver) events(ctx context.Context, after cursorAt) (found Events, err error) {
	err = d.again(ctx, func() error {
		found, err = d.readEvents(ctx, after)
		return err
	})
	return found, err
}

func (d *redfishDriver) readEvents(ctx context.Context, after cursorAt) (found Events, err error) {
	log, err := d.eventLog(ctx)
	if err != nil {
		return found, err
	}
	entries, err := d.logEntries(ctx, log)
	if err != nil {
		return found, err
	}
	from := 0
	if after.id != "" {
		i := slices.IndexFunc(entries, func(e redfishEntry) bool { return e.URI == after.id })
		if i >= 0 {
			if err := d.readEntry(ctx, &entries[i]); err != nil {
				return found, err
			}
		}
		if i >= 0 && entries[i].sum() == after.sum {
			from = i + 1
		} else {
			found.Lost = true
		}
	}
	for i := from; i < len(entries); i++ {
		if len(found.Events) == eventsMost {
			found.More = true
			return found, nil
		}
		e := entries[i]
		if err := d.readEntry(ctx, &e); gone(err) {
			continue
		} else if err != nil {
			return found, err
		}
		found.Events = append(found.Events, e.event())
		found.Cursor = cursorAt{e.URI, e.sum()}.String()
	}
	return found, nil
}

// readEntry reads an entry of which the collection has the link alone.
func (d *redfishDriver) readEntry(ctx context.Context, e *redfishEntry) error {
	if e.read() {
		return nil
	}
	uri := e.URI
	_, err := d.get(ctx, uri, e)
	e.URI = uri
	return err
}

// logEntries are all entries, the oldest first: some BMCs begin with the newest.
func (d *redfishDriver) logEntries(ctx context.Context, at string) (entries []redfishEntry, err error) {
	const pages = 100
	for range pages {
		if at = d.local(at); at == "" {
			break
		}
		var page struct {
			Members []json.RawMessage `json:"Members"`
			Next    string            `json:"Members@odata.nextLink"`
		}
		if _, err := d.get(ctx, at, &page); err != nil {
			return nil, err
		}
		for _, raw := range page.Members {
			var e redfishEntry
			if json.Unmarshal(raw, &e) != nil || d.local(e.URI) == "" {
				continue // a hole
			}
			entries = append(entries, e)
		}
		at = page.Next
	}
	if n := len(entries); n > 1 && !entries[0].older(entries[n-1]) {
		slices.Reverse(entries)
	}
	return entries, nil
}
