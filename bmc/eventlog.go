package bmc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Event is one entry of a BMC's system event log.
type Event struct {
	ID       string    `json:"id"`                 // given by the BMC; used again after the log was cleared
	At       time.Time `json:"at,omitzero"`        // by the BMC's clock; zero where it had none
	Severity string    `json:"severity,omitempty"` // ok, warning, critical, or the BMC's own word
	Text     string    `json:"text"`
}

// Events are what a log holds after a cursor, the oldest first.
type Events struct {
	Events []Event `json:"events"`
	// Cursor to go on from; it stays good across logins and restarts of either side.
	Cursor string `json:"cursor"`
	// More are there now.
	More bool `json:"more,omitempty"`
	// Lost: the entry of the cursor is gone, because the log was cleared or is full of
	// newer ones. All that it holds follows; there may have been more.
	Lost bool `json:"lost,omitempty"`
}

// EventLog is a Client that reads the system event log. Those of Dial and Fake do;
// where the BMC has none they return ErrUnsupported.
type EventLog interface {
	// Events after the cursor; "" begins at the oldest.
	Events(ctx context.Context, cursor string) (Events, error)
}

var (
	_ EventLog = (*session)(nil)
	_ EventLog = (*Fake)(nil)
)

// eventsMost bounds one answer. An entry costs a request over IPMI, and some
// BMCs hold thousands.
const eventsMost = 100

func (s *session) Events(ctx context.Context, cursor string) (found Events, err error) {
	d, ok := s.seen.driver.(interface {
		events(context.Context, cursorAt) (Events, error)
	})
	if !ok {
		return found, fmt.Errorf("read event log: %w", ErrUnsupported)
	}
	at, err := parseCursor(cursor)
	if err != nil {
		return found, err
	}
	err = s.call(ctx, "read event log", func(ctx context.Context) (err error) {
		found, err = d.events(ctx, at)
		return err
	})
	if err == nil && found.Cursor == "" {
		found.Cursor = cursor
		if found.Lost {
			found.Cursor = "" // an empty log: begin with whatever comes
		}
	}
	return found, err
}

// cursorAt is the last entry that was read: its id, and a sum of what it said,
// because ids begin anew when a log is cleared.
type cursorAt struct{ id, sum string }

func parseCursor(cursor string) (at cursorAt, err error) {
	if cursor == "" {
		return at, nil
	}
	i := strings.LastIndexByte(cursor, '#')
	if i < 1 {
		return at, fmt.Errorf("read event log: cursor %q is none of this program", cursor)
	}
	return cursorAt{id: cursor[:i], sum: cursor[i+1:]}, nil
}

func (c cursorAt) String() string { return c.id + "#" + c.sum }

func sumOf(said ...string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", said))
	return hex.EncodeToString(sum[:8])
}

// severities are the words of both protocols.
func severity(word string) string {
	switch word = strings.ToLower(plainText(word)); word {
	case "info", "ok":
		return "ok"
	case "warning", "degraded", "non-fatal":
		return "warning"
	}
	return word
}
