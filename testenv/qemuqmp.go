package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// QMPEvent is one asynchronous message of QEMU's monitor, such as RESET or SHUTDOWN.
type QMPEvent struct {
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`

	// n counts the events of one conversation, from 1.
	n int
}

// Time is when QEMU saw it.
func (e QMPEvent) Time() time.Time {
	return time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *QMPError) Error() string { return e.Class + ": " + e.Desc }

// errQMPClosed ends every call on a monitor whose QEMU is gone.
var errQMPClosed = errors.New("QEMU's monitor is closed")

// qmpConn speaks QEMU's machine protocol: one JSON object per line, answers in
// the order of the commands, events between them.
type qmpConn struct {
	conn   net.Conn
	events func(QMPEvent) // called from the reader; must not call execute

	mu      sync.Mutex
	next    int
	waiting map[int]chan qmpMessage
	err     error // once the reader has ended
	ended   chan struct{}
}

// qmpMessage is any line that QEMU sends.
type qmpMessage struct {
	QMPEvent
	Greeting json.RawMessage `json:"QMP"`
	ID       *int            `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *QMPError       `json:"error"`
}

// newQMP takes the conversation over and leaves negotiation behind.
func newQMP(ctx context.Context, conn net.Conn, events func(QMPEvent)) (*qmpConn, error) {
	q := &qmpConn{conn: conn, events: events, waiting: map[int]chan qmpMessage{}, ended: make(chan struct{})}
	lines := bufio.NewReader(conn)
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	greeting, err := qmpRead(lines)
	if stop() {
		conn.SetReadDeadline(time.Time{})
	}
	if err == nil && greeting.Greeting == nil {
		err = errors.New("no greeting")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet QEMU's monitor: %w", err)
	}
	go q.read(lines)
	if err := q.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func qmpRead(lines *bufio.Reader) (qmpMessage, error) {
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return qmpMessage{}, err
	}
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return qmpMessage{}, fmt.Errorf("parse QMP message %q: %w", line, err)
	}
	return m, nil
}

func (q *qmpConn) read(lines *bufio.Reader) {
	defer close(q.ended)
	var events int
	for {
		m, err := qmpRead(lines)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				err = errQMPClosed
			}
			q.mu.Lock()
			q.err = err
			for id, c := range q.waiting {
				close(c)
				delete(q.waiting, id)
			}
			q.mu.Unlock()
			q.conn.Close()
			return
		}
		if m.Event != "" {
			events++
			m.n = events
			q.events(m.QMPEvent)
			continue
		}
		if m.ID == nil {
			continue // an error about a line that we did not number: none of ours
		}
		q.mu.Lock()
		m.n = events
		c := q.waiting[*m.ID]
		delete(q.waiting, *m.ID)
		q.mu.Unlock()
		if c != nil {
			c <- m
		}
	}
}

// execute runs one command and decodes its answer into result (nil discards it).
func (q *qmpConn) execute(ctx context.Context, command string, arguments, result any) error {
	_, err := q.executeAt(ctx, command, arguments, result)
	return err
}

// executeAt is execute and tells how many events came before the answer: what a
// later event says, QEMU did after the command.
func (q *qmpConn) executeAt(ctx context.Context, command string, arguments, result any) (int, error) {
	q.mu.Lock()
	if q.err != nil {
		defer q.mu.Unlock()
		return 0, fmt.Errorf("run %s: %w", command, q.err)
	}
	q.next++
	id := q.next
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, arguments, id})
	if err != nil {
		q.mu.Unlock()
		return 0, fmt.Errorf("run %s: %w", command, err)
	}
	answer := make(chan qmpMessage, 1)
	q.waiting[id] = answer
	_, err = q.conn.Write(append(line, '\n'))
	q.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", command, err)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return 0, fmt.Errorf("run %s: %w", command, errQMPClosed)
		}
		if m.Error != nil {
			return 0, fmt.Errorf("run %s: %w", command, m.Error)
		}
		if result == nil {
			return m.n, nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return 0, fmt.Errorf("run %s: parse answer: %w", command, err)
		}
		return m.n, nil
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		return 0, fmt.Errorf("run %s: %w", command, context.Cause(ctx))
	}
}

// close ends the conversation and waits for the reader.
func (q *qmpConn) close() {
	q.conn.Close()
	<-q.ended
}
