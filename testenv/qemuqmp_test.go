package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// qmpForTest connects a client to a scripted QEMU: answer maps a command's name
// to the lines that QEMU sends for it, with %d for the id.
func qmpForTest(t *testing.T, answer map[string]string, events func(QMPEvent)) *qmpConn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		fmt.Fprintln(theirs, `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}`)
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var c struct {
				Execute string
				ID      int
			}
			if json.Unmarshal(lines.Bytes(), &c) != nil {
				return
			}
			if c.Execute == "qmp_capabilities" {
				fmt.Fprintf(theirs, "{\"return\": {}, \"id\": %d}\n", c.ID)
				continue
			}
			text, ok := answer[c.Execute]
			if !ok {
				return // as QEMU does at quit
			}
			fmt.Fprintln(theirs, strings.ReplaceAll(text, "%d", fmt.Sprint(c.ID)))
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	q, err := newQMP(ctx, ours, events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.close)
	return q
}

func TestQMPAnswersAndEvents(t *testing.T) {
	seen := make(chan QMPEvent, 1)
	q := qmpForTest(t, map[string]string{
		"query-status": `{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": "RESET", "data": {"guest": true}}` + "\n" +
			`{"return": {"running": true, "status": "running"}, "id": %d}`,
		"qom-set": `{"error": {"class": "GenericError", "desc": "The bootindex 1 has already been used"}, "id": %d}`,
		"stop":    `{"return": 7, "id": 99999}`,
	}, func(e QMPEvent) { seen <- e })
	ctx := t.Context()

	var status struct{ Status string }
	if err := q.execute(ctx, "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Fatalf("query-status: %+v, %v", status, err)
	}
	if e := <-seen; e.Event != "RESET" || e.Time().Unix() != 1700000000 {
		t.Errorf("event %+v, want RESET at 1700000000", e)
	}
	var refusal *QMPError
	if err := q.execute(ctx, "qom-set", nil, nil); !errors.As(err, &refusal) || refusal.Class != "GenericError" {
		t.Errorf("refused command: %v, want a GenericError", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := q.execute(short, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("answer for another command: %v, want the deadline", err)
	}
	if err := q.execute(ctx, "quit", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("command that closes the monitor: %v, want %v", err, errQMPClosed)
	}
	if err := q.execute(ctx, "query-status", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("command on a closed monitor: %v, want %v", err, errQMPClosed)
	}
}

func TestQMPGivesUpWithoutGreeting(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := newQMP(ctx, ours, func(QMPEvent) {}); err == nil {
		t.Error("no error although QEMU said nothing")
	}
}
