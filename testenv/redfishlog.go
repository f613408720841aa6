package testenv

import (
	"net/http"
	"strconv"
	"time"
)

// redfishEntry is one entry of a system's event log (SEL).
type redfishEntry struct {
	id                string
	at                time.Time
	severity, message string
	text              string
	origin            string
}

// redfishLogMost is where the oldest entry goes.
const redfishLogMost = 512

// AddLogEntry writes an entry into the log of the first system. Severity is OK,
// Warning or Critical.
func (b *RedfishBMC) AddLogEntry(severity, text string) {
	b.logEntry(b.systems[0], severity, "ResourceEvent.ResourceChanged", b.systems[0].path(), text)
}

func (b *RedfishBMC) logEntry(s *redfishSystem, severity, message, origin, text string) {
	b.stateMu.Lock()
	s.nextLog++
	e := redfishEntry{id: strconv.Itoa(s.nextLog), at: time.Now(), severity: severity, message: message, text: text, origin: origin}
	if len(s.entries) >= redfishLogMost {
		s.entries = s.entries[1:]
	}
	s.entries = append(s.entries, e)
	b.stateMu.Unlock()
}

func (s *redfishSystem) logPath() string { return s.path() + "/LogServices/SEL" }

func (b *RedfishBMC) logServiceCollection(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		return redfishCollection(s.path()+"/LogServices", "LogService", []string{s.logPath()})
	}}
}

func (b *RedfishBMC) logServiceAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		return redfishNew(s.logPath(), "#LogService.v1_9_0.LogService", "SEL", "System Event Log", map[string]any{
			"ServiceEnabled": true, "LogEntryType": "SEL", "MaxNumberOfRecords": redfishLogMost, "OverWritePolicy": "WrapsWhenFull",
			"Status": redfishHealthy(), "Entries": redfishID(s.logPath() + "/Entries"),
			"Actions": map[string]any{"#LogService.ClearLog": map[string]any{"target": s.logPath() + "/Actions/LogService.ClearLog"}},
		})
	}}
}

func (s *redfishSystem) entry(e redfishEntry) map[string]any {
	return redfishNew(s.logPath()+"/Entries/"+e.id, "#LogEntry.v1_21_0.LogEntry", e.id, "Log Entry "+e.id, map[string]any{
		"EntryType": "SEL", "Created": redfishTime(e.at), "Severity": e.severity, "Message": e.text,
		"MessageId": redfishMessage(e.message, e.origin)["MessageId"],
		"Links":     map[string]any{"OriginOfCondition": redfishID(e.origin)},
	})
}

// logEntryCollection holds its members whole, as BMCs do.
func (b *RedfishBMC) logEntryCollection(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		b.stateMu.Lock()
		defer b.stateMu.Unlock()
		collection := redfishCollection(s.logPath()+"/Entries", "LogEntry", nil)
		members := make([]any, 0, len(s.entries))
		for _, e := range s.entries {
			members = append(members, s.entry(e))
		}
		collection["Members"], collection["Members@odata.count"] = members, len(members)
		return collection
	}}
}

func (b *RedfishBMC) logEntryAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	for _, e := range s.entries {
		if e.id == ids[1] {
			return &redfishResource{get: func() map[string]any { return s.entry(e) }}
		}
	}
	return nil
}

func (b *RedfishBMC) clearLogAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	return &redfishResource{action: true, post: func(c *redfishCall) {
		var body struct{ LogEntriesETag *string }
		if c.r.ContentLength != 0 && !c.read(&body) {
			return
		}
		b.record("clear-log", s.id, true)
		b.stateMu.Lock()
		s.entries = nil
		b.stateMu.Unlock()
		c.w.WriteHeader(http.StatusNoContent)
	}}
}
