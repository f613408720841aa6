package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/provision"
	"recast/testenv"
)

// watchLab shows the machines until all are active, or one has failed: on a
// terminal as a picture that stays in place, elsewhere as lines.
func watchLab(cmd *cobra.Command, c *client, s testenv.LabState) error {
	out := cmd.OutOrStdout()
	file, ok := out.(*os.File)
	live := ok && isTerminal(file)
	views := map[string]provision.View{}
	last := map[string]string{}
	start, drawn := time.Now(), 0
	var failed error
	err := c.stream(cmd, func(v provision.View) bool {
		views[v.Name] = v
		active := 0
		for _, m := range s.Machines {
			switch st := views[m.Name].Status; {
			case st.Phase == provision.Active && views[m.Name].Sync == provision.InSync:
				active++
			case st.Phase == provision.Failed:
				failed = fmt.Errorf("%s failed: %s; recast explain %s says more", m.Name, st.LastError, m.Name)
			}
		}
		if live {
			drawn = draw(out, s, views, drawn, time.Since(start))
		} else {
			printLine(out, v, last)
		}
		return active == len(s.Machines) || failed != nil
	})
	if err != nil {
		return err
	}
	if failed == nil && cmd.Context().Err() == nil {
		fmt.Fprintf(out, "All active after %s.\n", time.Since(start).Round(time.Second))
	}
	if failed == nil {
		failed = cmd.Context().Err()
	}
	return failed
}

// draw replaces the lines drawn before.
func draw(w io.Writer, s testenv.LabState, views map[string]provision.View, before int, elapsed time.Duration) int {
	var b strings.Builder
	if before > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", before)
	}
	fmt.Fprintf(&b, "\x1b[2K%s\n", elapsed.Round(time.Second))
	for _, m := range s.Machines {
		v := views[m.Name]
		fmt.Fprintf(&b, "\x1b[2K%-8s %-5s %-8s %-10s %-12s %s\n", m.Name, m.Firmware, m.BMC, v.Status.Phase, v.Status.Step, note(v))
	}
	_, _ = io.WriteString(w, b.String())
	return len(s.Machines) + 1
}

// printLine prints a machine where its step changed, or a tenth of its bytes.
func printLine(w io.Writer, v provision.View, last map[string]string) {
	tenth := int64(0)
	if p := v.Status.Progress; p != nil && p.Total > 0 {
		tenth = p.Done * 10 / p.Total
	}
	key := fmt.Sprint(v.Status.Phase, v.Status.Step, v.Status.Attempt, v.Status.LastError, tenth)
	if last[v.Name] == key {
		return
	}
	last[v.Name] = key
	fmt.Fprintf(w, "%s  %-8s %-10s %-12s %s\n", time.Now().Format(time.TimeOnly), v.Name, v.Status.Phase, v.Status.Step, note(v))
}

func note(v provision.View) string {
	switch {
	case v.Status.Progress != nil && v.Status.Progress.Total > 0:
		return progressText(v.Status, time.Now())
	case v.Status.LastError != "":
		return v.Status.LastError
	case v.Waiting != "":
		return v.Waiting
	}
	return v.Status.LastSeen
}
