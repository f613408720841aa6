package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"recast/console"
	"recast/web"
)

func newConsole() *cobra.Command {
	var o consoleOptions
	var log bool
	var span time.Duration
	cmd := &cobra.Command{
		Use: "console MACHINE", GroupID: "machine", Short: "Watch a machine's serial console, and type to it",
		Long: `Watch a machine's serial console through its BMC, and type to it. Any number may watch, and one has
the keyboard: who types first, until that one leaves or another takes it, of which both are told.
On a terminal every key goes to the machine but these, at the beginning of a line:

  ~.  leave          ~t  take the keyboard     ~B  send a break
  ~~  a single ~     ~?  show these

The server keeps the last MiB of each console, with what stands behind "password", "token", "key"
and the like overwritten: --log shows it. It is recorded while somebody watches and while recast
is at work on the machine. Away from a terminal nothing is typed but with --write, which sends
standard input, each line with a carriage return, and goes on watching.`,
		Example: "  recast console r1u05\n  recast console r1u05 --log | less -R\n  echo reboot | recast console r1u05 --write --for 2m",
		Args:    arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case cmd.Flags().Changed("for") && span <= 0:
				return codeError{fmt.Errorf("console --for %s: want more than 0, as 60s", span), exitUsage}
			case o.watch && (o.write || o.take):
				return codeError{errors.New("console --watch types nothing: leave out --write and --take"), exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if log {
				resp, err := c.do(cmd.Context(), http.MethodGet, machinePath(args[0])+"/console/log", nil, "")
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if _, err := io.Copy(cmd.OutOrStdout(), resp.Body); err != nil {
					return fmt.Errorf("read the console: %w", err)
				}
				return nil
			}
			ctx := cmd.Context()
			if span > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, span)
				defer cancel()
			}
			t := &consoleTerminal{client: c, machine: args[0], o: o, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), news: make(chan struct{})}
			return t.run(ctx)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&log, "log", false, "show what was kept, and end")
	f.BoolVar(&o.watch, "watch", false, "only watch, on a terminal too")
	f.BoolVar(&o.write, "write", false, "type what comes on standard input, where that is no terminal")
	f.BoolVar(&o.take, "take", false, "take the keyboard from whoever has it")
	f.BoolVar(&o.evict, "evict", false, "put out whoever holds the console at the BMC, as ipmitool does")
	f.DurationVar(&span, "for", 0, "end after this time")
	return cmd
}

type consoleOptions struct{ watch, write, take, evict bool }

// consoleTerminal is one watcher of a console.
type consoleTerminal struct {
	client  *client
	machine string
	o       consoleOptions
	in      io.Reader
	out     io.Writer
	notes   io.Writer
	raw     bool // the terminal does not begin lines by itself

	mu    sync.Mutex
	state console.State
	news  chan struct{} // closed when the state changes
}

// run ends when the operator leaves, or with ctx.
func (t *consoleTerminal) run(ctx context.Context) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	keys := onTerminal(t.in) && !t.o.watch
	if keys {
		f := t.in.(*os.File)
		before, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return fmt.Errorf("set the terminal up: %w", err)
		}
		t.raw = true
		defer func() { _ = term.Restore(int(f.Fd()), before) }()
	}
	typing := make(chan error, 1)
	if keys || t.o.write || t.o.take {
		go func() {
			err := t.typeAll(ctx, keys)
			if err != nil || keys {
				leave()
			}
			typing <- err
		}()
	} else {
		typing <- nil
	}
	err := t.follow(ctx)
	leave()
	if typed := <-typing; err == nil && !errors.Is(typed, context.Canceled) && !errors.Is(typed, context.DeadlineExceeded) {
		err = typed
	}
	return err
}

// note tells the operator something that is not the machine's.
func (t *consoleTerminal) note(format string, args ...any) {
	text := "[recast: " + fmt.Sprintf(format, args...) + "]"
	if t.raw {
		fmt.Fprintf(t.notes, "\r\n%s\r\n", text)
	} else {
		fmt.Fprintln(t.notes, text)
	}
}

// follow shows the console until ctx ends; it comes back to a server that restarts.
func (t *consoleTerminal) follow(ctx context.Context) error {
	return t.client.follow(ctx, eventStream{
		path: func(again bool) string {
			query := fmt.Sprintf("?evict=%t", t.o.evict)
			if again {
				query = "?tail=0"
			}
			return machinePath(t.machine) + "/console" + query
		},
		lost: func(err error, first bool) error {
			t.set(console.State{})
			if first {
				t.note("%v; reconnecting", err)
			}
			return nil
		},
		back: func() { t.note("the server is back") },
	}, func(event string, data []byte) (stop bool, err error) {
		var text []byte
		var st console.State
		switch event {
		case "output":
			err = json.Unmarshal(data, &text)
		case "state":
			if err = json.Unmarshal(data, &st); err == nil {
				t.show(st)
			}
		}
		if err != nil {
			return false, codeError{fmt.Errorf("read the server's events: %w", err), exitRefused}
		}
		if _, err := t.out.Write(text); err != nil {
			return false, codeError{fmt.Errorf("show the console: %w", err), exitRefused}
		}
		return false, nil
	})
}

// set takes up how the console stands, and returns how it stood.
func (t *consoleTerminal) set(st console.State) (before console.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, t.state = t.state, st
	close(t.news)
	t.news = make(chan struct{})
	return before
}

// show says what changed.
func (t *consoleTerminal) show(st console.State) {
	before := t.set(st)
	switch {
	case st.Way != "" && before.Way == "":
		help := ""
		if t.raw {
			help = "; ~. leaves, ~? helps"
		}
		t.note("the console of %s, by %s%s", t.machine, st.Way, help)
	case st.Way == "" && (before.Way != "" || st.Why != before.Why):
		t.note("no line to %s: %s", t.machine, st.Why)
	}
	switch {
	case st.Yours && !before.Yours:
		t.note("the keyboard is yours")
	case !st.Yours && st.Writer != "" && st.Writer != before.Writer:
		t.note("%s has the keyboard", st.Writer)
	case st.Writer == "" && before.Writer != "":
		t.note("nobody has the keyboard")
	}
}

// await waits until the console stands as wanted.
func (t *consoleTerminal) await(ctx context.Context, wanted func(console.State) bool) (console.State, error) {
	for {
		t.mu.Lock()
		st, news := t.state, t.news
		t.mu.Unlock()
		if wanted(st) {
			return st, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// typeAll sends what comes in; on a terminal it ends with the operator's leave.
func (t *consoleTerminal) typeAll(ctx context.Context, keys bool) error {
	if t.o.take {
		if err := t.send(ctx, web.ConsoleInput{Take: true}); err != nil {
			return err
		}
	}
	if !keys && !t.o.write {
		return nil
	}
	in := interruptible{ctx, t.in}
	escape := consoleEscape{start: true}
	buf := make([]byte, 1<<10)
	for {
		n, err := in.Read(buf)
		text := bytes.Clone(buf[:n])
		if !keys {
			text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r"))
			if n > 0 {
				if _, err := t.await(ctx, func(st console.State) bool { return st.Way != "" }); err != nil {
					return err
				}
				if err := t.send(ctx, web.ConsoleInput{Text: text}); err != nil {
					return err
				}
			}
		} else {
			for _, key := range escape.read(text) {
				switch {
				case key.leave:
					t.note("left the console of %s", t.machine)
					return nil
				case key.help:
					t.note("~. leaves, ~t takes the keyboard, ~B sends a break, ~~ is a ~")
					continue
				}
				var refused problemError
				if err := t.send(ctx, web.ConsoleInput{Text: key.text, Break: key.brk, Take: key.take}); errors.As(err, &refused) {
					t.note("not typed: %v", err) // somebody else has the keyboard, or there is no line
				} else if err != nil && ctx.Err() == nil {
					t.note("not typed: %v", err)
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// send types from the seat that the server gave.
func (t *consoleTerminal) send(ctx context.Context, in web.ConsoleInput) error {
	st, err := t.await(ctx, func(st console.State) bool { return st.Seat != "" })
	if err != nil {
		return err
	}
	in.Seat = st.Seat
	return t.client.call(ctx, http.MethodPost, machinePath(t.machine)+"/console", in, nil)
}

// consoleKey is what one typed: text for the machine, or a word for us.
type consoleKey struct {
	text                   []byte
	leave, help, take, brk bool
}

// consoleEscape finds our words in what is typed: ~ and a letter at the beginning of
// a line, as in ssh and ipmitool.
type consoleEscape struct {
	start bool // of a line
	tilde bool // one is held back
}

func (e *consoleEscape) read(typed []byte) (keys []consoleKey) {
	text := func(c ...byte) {
		if n := len(keys); n > 0 && keys[n-1].text != nil {
			keys[n-1].text = append(keys[n-1].text, c...)
		} else {
			keys = append(keys, consoleKey{text: c})
		}
	}
	for _, c := range typed {
		if e.tilde {
			e.tilde = false
			switch c {
			case '.':
				return append(keys, consoleKey{leave: true})
			case '?':
				keys = append(keys, consoleKey{help: true})
				continue
			case 't':
				keys = append(keys, consoleKey{take: true})
				continue
			case 'B':
				keys = append(keys, consoleKey{brk: true})
				continue
			case '~':
				text('~')
				e.start = false
				continue
			}
			text('~')
		} else if e.start && c == '~' {
			e.tilde = true
			continue
		}
		text(c)
		e.start = c == '\r' || c == '\n'
	}
	return keys
}
