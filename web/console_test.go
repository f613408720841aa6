package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"recast/console"
	"recast/provision"
)

// echoLine is a machine that says what is typed.
type echoLine struct {
	*io.PipeReader
	*io.PipeWriter
}

func (l echoLine) Break() error { _, err := io.WriteString(l, "<break>"); return err }
func (echoLine) Way() string    { return "wire" }
func (l echoLine) Close() error { return l.PipeWriter.Close() }

// watcher reads the stream of a console.
type watcher struct {
	t     *testing.T
	lines *bufio.Scanner
	text  string
	state console.State
}

func (s *site) console(t *testing.T, query string) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", s.api.URL+apiRoot+"/machines/m1/console"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	req.Header.Set(whoHeader, "ann")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	return &watcher{t: t, lines: bufio.NewScanner(resp.Body)}
}

func (w *watcher) until(ok func() bool) {
	w.t.Helper()
	event := ""
	for !ok() {
		if !w.lines.Scan() {
			w.t.Fatalf("the stream ended: %v; %q %+v", w.lines.Err(), w.text, w.state)
		}
		if name, is := strings.CutPrefix(w.lines.Text(), "event: "); is {
			event = name
		}
		data, is := strings.CutPrefix(w.lines.Text(), "data: ")
		if !is {
			continue
		}
		var text []byte
		var into any = &text
		if event == "state" {
			w.state = console.State{}
			into = &w.state
		}
		if err := json.Unmarshal([]byte(data), into); err != nil {
			w.t.Fatal(err)
		}
		w.text += string(text)
	}
}

func TestConsoleStreamsAndTakesWhatASeatTypes(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	const path = apiRoot + "/machines/m1/console"
	s.Consoles.Open = func(_ context.Context, machine string, _ bool) (console.Line, error) {
		if machine != "m1" {
			return nil, errors.New("no such line")
		}
		r, w := io.Pipe()
		return echoLine{r, w}, nil
	}
	w := s.console(t, "")
	w.until(func() bool { return w.state.Way == "wire" && w.state.Seat != "" })
	s.ok(t, "POST", path, ConsoleInput{Seat: w.state.Seat, Text: []byte("uptime\r"), Break: true}, nil)
	w.until(func() bool { return strings.HasSuffix(w.text, "uptime\r<break>") && w.state.Yours })

	other := s.console(t, "?tail=7")
	other.until(func() bool {
		return other.text == "<break>" && strings.HasPrefix(other.state.Writer, "ann@127.0.0.1") && !other.state.Yours
	})
	for _, c := range []struct {
		in   ConsoleInput
		code int
		want string
	}{
		{ConsoleInput{Seat: other.state.Seat, Text: []byte("x")}, http.StatusConflict, "has the keyboard"},
		{ConsoleInput{Seat: "guessed", Text: []byte("x")}, http.StatusConflict, "nobody watches from that seat"},
		{ConsoleInput{Seat: other.state.Seat, Take: true}, http.StatusNoContent, ""},
		{ConsoleInput{Seat: w.state.Seat, Text: []byte("x")}, http.StatusConflict, "has the keyboard"},
	} {
		if code, text, _ := s.send(t, "POST", path, operatorToken, c.in); code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%+v: %d %s", c.in, code, text)
		}
	}
	w.until(func() bool { return !w.state.Yours })
	code, text, _ := s.send(t, "GET", path+"/log?tail=100000", operatorToken, nil)
	if code != http.StatusOK || !strings.Contains(text, "uptime\r<break>") {
		t.Errorf("%d %s", code, text)
	}
	var x provision.Explanation
	s.ok(t, "GET", apiRoot+"/machines/m1/explain", nil, &x)
	if x.Missing == "" || len(x.Console) != 2 || x.Console[1] != "<break>" {
		t.Errorf("explained as %q, quoting %q", x.Missing, x.Console)
	}
	for query, want := range map[string]int{"?tail=x": http.StatusBadRequest, "?tail=-1": http.StatusBadRequest} {
		if code, text, _ := s.send(t, "GET", path+query, operatorToken, nil); code != want {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
	if code, text, _ := s.send(t, "GET", apiRoot+"/machines/m2/console", operatorToken, nil); code != http.StatusConflict || !strings.Contains(text, "no BMC") {
		t.Errorf("a machine without BMC: %d %s", code, text)
	}
	for _, method := range []string{"GET", "POST"} {
		if code, _, _ := s.send(t, method, path, "wrong", nil); code != http.StatusUnauthorized {
			t.Errorf("%s without the token: %d", method, code)
		}
	}
	var log []provision.AuditEntry
	s.ok(t, "GET", apiRoot+"/audit", nil, &log)
	var deeds []string
	for _, e := range log {
		if strings.HasPrefix(e.What, "console") && e.Machine == "m1" {
			deeds = append(deeds, e.What)
		}
	}
	if len(deeds) != 3 || deeds[1] != "console: break sent" || !strings.HasPrefix(deeds[2], "console: keyboard taken from ann@") {
		t.Errorf("audit: %q", deeds)
	}
}
