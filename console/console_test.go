package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeLine is a machine that says what it is told, and remembers what is typed.
type fakeLine struct {
	io.Reader
	says *io.PipeWriter

	mu     sync.Mutex
	typed  bytes.Buffer
	breaks int
	closed bool
}

func newFakeLine() *fakeLine {
	r, w := io.Pipe()
	return &fakeLine{Reader: r, says: w}
}

func (l *fakeLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.typed.Write(p)
}

func (l *fakeLine) Break() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaks++
	return nil
}

func (l *fakeLine) Way() string { return "wire" }

func (l *fakeLine) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.says.Close()
}

func (l *fakeLine) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(l.says, text); err != nil {
		t.Error(err)
	}
}

// desk is a hub whose lines a test hands out.
type desk struct {
	*Hub
	lines chan *fakeLine
	fails chan error
	evict chan bool
	stop  func()
}

func newDesk(t *testing.T, dir string) *desk {
	t.Helper()
	d := &desk{lines: make(chan *fakeLine, 8), fails: make(chan error, 8), evict: make(chan bool, 8)}
	d.Hub = &Hub{Dir: dir, again: time.Millisecond, Open: func(ctx context.Context, machine string, evict bool) (Line, error) {
		select {
		case l := <-d.lines:
			d.evict <- evict
			return l, nil
		case err := <-d.fails:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	d.stop = func() { cancel(); d.Wait() }
	t.Cleanup(d.stop)
	return d
}

// viewer gathers what one seat is shown.
type viewer struct {
	*Seat
	text  []byte
	state State
}

func (d *desk) watch(t *testing.T, who string, n int64) *viewer {
	t.Helper()
	s, err := d.Watch("m1", who, n, false)
	if err != nil {
		t.Fatal(err)
	}
	return &viewer{Seat: s}
}

func (v *viewer) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		text, st, err := v.Next(ctx)
		if err != nil {
			t.Fatalf("%s: never; %s saw %q, %+v", what, v.who, v.text, v.state)
		}
		v.text = append(v.text, text...)
		if st != nil {
			v.state = *st
		}
	}
}

func (v *viewer) sees(t *testing.T, text string) {
	t.Helper()
	v.until(t, text, func() bool { return strings.Contains(string(v.text), text) })
}

func TestManyWatchOneTypes(t *testing.T) {
	d := newDesk(t, t.TempDir())
	line := newFakeLine()
	d.lines <- line
	ann, bob := d.watch(t, "ann", 100), d.watch(t, "bob", 100)
	for _, v := range []*viewer{ann, bob} {
		v.until(t, "the line", func() bool { return v.state.Way == "wire" })
	}
	line.say(t, "login: ")
	ann.sees(t, "login: ")
	bob.sees(t, "login: ")

	if taken, err := ann.Type([]byte("root\r"), false); err != nil || !taken {
		t.Fatal(taken, err)
	}
	if taken, err := ann.Type(nil, true); err != nil || taken || line.breaks != 1 {
		t.Fatal(taken, err, line.breaks)
	}
	if _, err := bob.Type([]byte("halt\r"), false); !errors.Is(err, ErrKeyboard) || !strings.Contains(err.Error(), "ann") {
		t.Errorf("bob types while ann has the keyboard: %v", err)
	}
	bob.until(t, "whose keyboard it is", func() bool { return bob.state.Writer == "ann" && !bob.state.Yours })
	if from := bob.Take(); from != "ann" {
		t.Errorf("taken from %q", from)
	}
	ann.until(t, "that bob took it", func() bool { return ann.state.Writer == "bob" && !ann.state.Yours })
	bob.until(t, "that it is his", func() bool { return bob.state.Yours })
	if _, err := ann.Type([]byte("x"), false); !errors.Is(err, ErrKeyboard) {
		t.Errorf("ann types after bob took the keyboard: %v", err)
	}
	if _, err := bob.Type([]byte("ls\r"), false); err != nil {
		t.Error(err)
	}
	bob.Leave()
	ann.until(t, "that nobody has it", func() bool { return ann.state.Writer == "" && ann.state.Watchers == 1 })
	if _, err := bob.Type([]byte("x"), false); err == nil {
		t.Error("one who left types")
	}
	line.mu.Lock()
	if got := line.typed.String(); got != "root\rls\r" {
		t.Errorf("the machine got %q", got)
	}
	line.mu.Unlock()
	log, err := d.Tail("m1", 1<<20)
	if err != nil || !strings.Contains(string(log), "bob has the keyboard") {
		t.Errorf("%s, %v", log, err)
	}
}

func TestScrollbackOutlivesTheServerAndTheLine(t *testing.T) {
	dir := t.TempDir()
	d := newDesk(t, dir)
	first := newFakeLine()
	d.lines <- first
	d.Keep("m1", true) // nobody watches
	first.say(t, "kernel panic")
	_ = first.says.CloseWithError(errors.New("the BMC restarts"))
	second := newFakeLine()
	d.fails <- errors.New("not yet")
	d.lines <- second
	second.say(t, "back again")
	await(t, func() bool { text, _ := d.Tail("m1", 1<<20); return strings.Contains(string(text), "back again") })
	// No farewell: as after kill -9.
	again := newDesk(t, dir)
	v := again.watch(t, "ann", 1<<20)
	for _, want := range []string{"kernel panic", "the BMC restarts", "back again"} {
		v.sees(t, want)
	}
	if text, _ := again.Tail("m1", 5); string(text) != "again" {
		t.Errorf("the last five bytes: %q", text)
	}
	if text, err := again.Tail("m2", 100); len(text) > 0 || err != nil {
		t.Errorf("of a machine that said nothing: %q, %v", text, err)
	}
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	end, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("never")
		}
	}
}

func TestScrollbackIsBounded(t *testing.T) {
	d := newDesk(t, t.TempDir())
	d.Most = 1000
	line := newFakeLine()
	d.lines <- line
	d.Keep("m1", true)
	for i := range 500 {
		line.say(t, fmt.Sprintf("line %d\r\n", i))
	}
	await(t, func() bool { text, _ := d.Tail("m1", 1<<20); return strings.Contains(string(text), "line 499") })
	text, _ := d.Tail("m1", 1<<20)
	if len(text) < 500 || len(text) > 1100 || strings.Contains(string(text), "line 100\r") {
		t.Errorf("%d bytes are kept of 1000: %.40q", len(text), text)
	}
	var size int64
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if size += info.Size(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s may be read by others: %v", e.Name(), info.Mode())
		}
	}
	if size > 1100 {
		t.Errorf("%d bytes on disk", size)
	}
}

func TestALineIsOpenOnlyWhileItIsNeeded(t *testing.T) {
	d := newDesk(t, t.TempDir())
	line := newFakeLine()
	d.lines <- line
	d.Keep("m1", true)
	<-d.evict
	line.say(t, "x")
	d.Keep("m1", false)
	d.stop()
	line.mu.Lock()
	defer line.mu.Unlock()
	if !line.closed {
		t.Error("the line stays open after the end")
	}
	if _, err := d.Watch("m1", "ann", 0, false); err == nil {
		t.Error("a seat after the end")
	}
}

func TestAConsoleThatNobodyNeedsHoldsNoFileOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, t.TempDir())
		d.lines <- newFakeLine()
		d.Keep("m1", true)
		<-d.evict
		d.Keep("m1", false)
		time.Sleep(linger + time.Second)
		synctest.Wait()
		p := d.ports["m1"]
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.running || p.kept.file != nil {
			t.Errorf("it runs: %v, and has %v open", p.running, p.kept.file)
		}
	})
}

func TestWhoWaitsForALineIsToldWhyAndMayPutOutItsHolder(t *testing.T) {
	d := newDesk(t, t.TempDir())
	d.again = time.Hour
	d.fails <- errors.New("in use by 10.0.0.9")
	ann := d.watch(t, "ann", 0)
	ann.until(t, "why", func() bool { return ann.state.Why == "in use by 10.0.0.9" })
	if _, err := ann.Type([]byte("x"), false); err == nil || !strings.Contains(err.Error(), "in use by 10.0.0.9") {
		t.Errorf("typed without a line: %v", err)
	}
	d.lines <- newFakeLine()
	bob, err := d.Watch("m1", "bob", 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer bob.Leave()
	if !<-d.evict {
		t.Error("nobody was put out")
	}
	ann.until(t, "the line", func() bool { return ann.state.Way == "wire" && ann.state.Why == "" })
}

func TestASlowWatcherHoldsUpNobody(t *testing.T) {
	d := newDesk(t, t.TempDir())
	line := newFakeLine()
	d.lines <- line
	slow, quick := d.watch(t, "slow", 0), d.watch(t, "quick", 0)
	page := strings.Repeat("0123456789abcde\n", 1024)
	for range 40 {
		line.say(t, page)
		quick.until(t, "a page", func() bool { return len(quick.text) >= len(page) })
		quick.text = quick.text[len(page):]
	}
	slow.sees(t, "bytes were not shown")
	if len(slow.text) > unreadMost+200 {
		t.Errorf("%d bytes waited", len(slow.text))
	}
}

func TestSecretsAreOverwrittenHoweverTheyArrive(t *testing.T) {
	for in, want := range map[string]string{
		"linux recast.nonce=abc123 quiet":     "linux recast.nonce=****** quiet",
		"recast.discover=deadbeef\r\nnext":    "recast.discover=********\r\nnext",
		"?mac=1&token=xyz&then=1":             "?mac=1&token=***&then=1",
		"Set root PASSWORD: hunter2\r\nok":    "Set root PASSWORD: *******\r\nok",
		"Password: \r\nlogin incorrect":       "Password: \r\nlogin incorrect",
		"Password:\r\nLast login: today":      "Password:\r\nLast login: today",
		"monkey=no matter, donkey: eeyore.":   "monkey=** matter, donkey: *******",
		"keyboard: us, tokens 3":              "keyboard: us, tokens 3",
		"Authorization: Bearer":               "Authorization: ******",
		"Authorization: Bearer abc d\r\nHost": "Authorization: ****** *** *\r\nHost",
		"secret=\x1b[1mbold":                  "secret=\x1b[1mbold",
		"the key is secret. That is no line":  "the key is secret. That is no line",
	} {
		for _, size := range []int{1, 2, 3, len(in)} {
			var r redactor
			var got []byte
			for text := []byte(in); len(text) > 0; {
				n := min(size, len(text))
				part := bytes.Clone(text[:n])
				r.redact(part)
				got, text = append(got, part...), text[n:]
			}
			if string(got) != want {
				t.Errorf("%q in pieces of %d: %q, want %q", in, size, got, want)
			}
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("recast.nonce=abc Password: x"), uint8(3))
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		var whole, parts redactor
		a, b := bytes.Clone(text), bytes.Clone(text)
		whole.redact(a)
		for rest := b; len(rest) > 0; {
			n := min(int(size)+1, len(rest))
			parts.redact(rest[:n])
			rest = rest[n:]
		}
		if !bytes.Equal(a, b) {
			t.Errorf("whole %q, in pieces %q", a, b)
		}
		for i := range a {
			if a[i] != text[i] && a[i] != '*' {
				t.Errorf("byte %d became %q", i, a[i])
			}
		}
	})
}

func TestLastLinesAreQuotedAsPlainText(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb\r\n\r\nc": "a|b|c",
		"1\n2\n3\n4\n5\n": "3|4|5",
		"\x1b[2J\x1b[01;31mGRUB\x1b[0m loading\r\n":                         "GRUB loading",
		"\x1b]0;title\x07shell\x00\x07 $ ":                                  "shell $",
		"x\r\n[2026-11-22T22:00:00Z recast: the console is lost: gone]\r\n": "x",
		strings.Repeat("y", 300):                                            strings.Repeat("y", 160) + "…",
		"\xff\xfebad":                                                       "bad",
		"":                                                                  "",
		"\x1b[":                                                             "",
	} {
		if got := strings.Join(Lines([]byte(in), 3), "|"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
