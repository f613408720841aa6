package main

import (
	"bufio"
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
	ctx, wait := cmd.Context(), minReconnect
	reached, told := false, false
	for {
		stop, err := c.streamOnce(ctx, func(v provision.View) bool {
			if told {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s the server is back\n", clock(time.Now()))
			}
			reached, told, wait = true, false, minReconnect
			return f(v)
		})
		if stop || ctx.Err() != nil {
			return nil
		}
		var coded codeError
		if !reached || errors.As(err, &coded) && coded.code != exitNoServer && coded.code != exitError {
			return err
		}
		if gone := alive(); gone != nil {
			return gone
		}
		if !told {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s %v; reconnecting, ctrl-C ends it\n", clock(time.Now()), err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, maxReconnect)
	}
}

// A restart takes a second or two; a server that stays away is not pressed.
const (
	minReconnect = 250 * time.Millisecond
	maxReconnect = 15 * time.Second
)

// streamOnce follows one connection to its end.
func (c *client) streamOnce(ctx context.Context, f func(provision.View) (stop bool)) (stop bool, err error) {
	resp, err := c.do(ctx, http.MethodGet, "/api/v1/watch", nil, "")
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
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || event != "machine" {
			continue
		}
		var v provision.View
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			return false, codeError{fmt.Errorf("read the server's events: %w", err), exitRefused}
		}
		if f(v) {
			return true, nil
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
