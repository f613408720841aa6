package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/provision"
)

// stream follows the server's events until the context ends or f says stop.
// It comes back to a server that restarts, which then shows every machine again,
// and says so on standard error. A first connection that fails is an error, and
// so is an answer that says no.
func (c *client) stream(cmd *cobra.Command, f func(provision.View) (stop bool)) error {
	return c.streamWhile(cmd, func() error { return nil }, f)
}

// streamWhile is stream for a server that has an owner: where alive gives an
// error there is nobody to come back to.
func (c *client) streamWhile(cmd *cobra.Command, alive func() error, f func(provision.View) (stop bool)) error {
	say := func(format string, args ...any) {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", clock(time.Now()), fmt.Sprintf(format, args...))
	}
	return c.follow(cmd.Context(), eventStream{
		path: func(bool) string { return "/api/v1/watch" },
		lost: func(err error, first bool) error {
			if gone := alive(); gone != nil {
				return gone
			}
			if first {
				say("%v; reconnecting, ctrl-C ends it", err)
			}
			return nil
		},
		back: func() { say("the server is back") },
	}, func(event string, data []byte) (stop bool, err error) {
		if event != "machine" {
			return false, nil
		}
		var v provision.View
		if err := json.Unmarshal(data, &v); err != nil {
			return false, codeError{fmt.Errorf("read the server's events: %w", err), exitRefused}
		}
		return f(v), nil
	})
}

// A restart takes a second or two; a server that stays away is not pressed.
const (
	minReconnect = 250 * time.Millisecond
	maxReconnect = 15 * time.Second
)

// eventStream is where the server sends events, and what is done while it does not.
type eventStream struct {
	path func(again bool) string // again: events of it have come before
	lost func(err error, first bool) error
	back func()
}

// follow gives f the server's events until the context ends, or f says stop. It comes
// back to a server that restarts unless lost gives an error.
func (c *client) follow(ctx context.Context, e eventStream, f func(event string, data []byte) (stop bool, err error)) error {
	reached, away, wait := false, false, minReconnect
	for {
		stop, err := c.followOnce(ctx, e.path(reached), func(event string, data []byte) (bool, error) {
			if away {
				e.back()
			}
			reached, away, wait = true, false, minReconnect
			return f(event, data)
		})
		if stop || ctx.Err() != nil {
			return nil
		}
		var coded codeError
		if !reached || errors.As(err, &coded) && coded.code != exitNoServer && coded.code != exitError {
			return err
		}
		if err := e.lost(err, !away); err != nil {
			return err
		}
		away = true
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, maxReconnect)
	}
}

// followOnce follows one connection to its end.
func (c *client) followOnce(ctx context.Context, path string, f func(event string, data []byte) (stop bool, err error)) (stop bool, err error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil, "")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	event := ""
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = name
		}
		if data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: ")); ok {
			if stop, err := f(event, data); stop || err != nil {
				return stop, err
			}
		}
	}
	return false, codeError{errors.New("the server ended the stream"), exitNoServer}
}

func watchMachines(cmd *cobra.Command, name string) error {
	c, err := clientOf(cmd)
	if err != nil {
		return err
	}
	last := map[string]string{}
	return c.stream(cmd, func(v provision.View) bool {
		if name != "" && v.Name != name {
			return false
		}
		line := fmt.Sprintf("%s  %s/%s  %s  %s  %s", v.Name, v.Status.Phase, dash(string(v.Status.Step)), v.Sync, progressText(v.Status, time.Now()), whyText(v))
		if last[v.Name] != line {
			last[v.Name] = line
			fmt.Fprintln(cmd.OutOrStdout(), clock(time.Now()), line)
		}
		return false
	})
}
