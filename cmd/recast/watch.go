package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/provision"
)

// stream follows the server's events until the context ends or f says stop.
func (c *client) stream(cmd *cobra.Command, f func(provision.View) (stop bool)) error {
	resp, err := c.do(cmd.Context(), http.MethodGet, "/api/v1/watch", nil, "")
	if err != nil {
		return err
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
			return fmt.Errorf("read the server's events: %w", err)
		}
		if f(v) {
			return nil
		}
	}
	if cmd.Context().Err() != nil {
		return nil
	}
	return codeError{fmt.Errorf("the server ended the stream: %w", io.ErrUnexpectedEOF), exitNoServer}
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
			fmt.Fprintln(cmd.OutOrStdout(), time.Now().Format(time.TimeOnly), line)
		}
		return false
	})
}
