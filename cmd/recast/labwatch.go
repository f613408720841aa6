package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"recast/provision"
	"recast/testenv"
)

// watchLab shows the machines until all are active, or one has failed: on a
// terminal as a picture that stays in place, elsewhere as lines.
func watchLab(cmd *cobra.Command, c *client, f *labFlags, s testenv.LabState) error {
	out := cmd.OutOrStdout()
	file, ok := out.(*os.File)
	live := ok && isTerminal(file)
	views := map[string]provision.View{}
	last := map[string]string{}
	start, drawn := time.Now(), 0
	var failed error
	alive := func() error {
		if _, ok, err := testenv.ReadLab(f.dir()); err != nil || !ok {
			return codeError{f.down(), exitNoServer}
		}
		return nil
	}
	err := c.streamWhile(cmd, alive, func(v provision.View) bool {
		views[v.Name] = v
		active := 0
		for _, m := range s.Machines {
			switch st := views[m.Name].Status; {
			case st.Phase == provision.Active && views[m.Name].Sync == provision.InSync:
				active++
			case m.Faulty && (st.Phase == provision.Failed || st.Hold != nil):
				active++ // as it was asked to be
			case st.Phase == provision.Failed:
				failed = fmt.Errorf("%s failed: %s; recast explain %s says more", m.Name, st.LastError, m.Name)
			}
		}
		if live {
			width, _, err := term.GetSize(int(file.Fd()))
			if err != nil || width < 20 {
				width = 80
			}
			drawn = draw(out, s, views, drawn, time.Since(start), width)
		} else {
			printLine(out, v, last)
		}
		return active == len(s.Machines) || failed != nil
	})
	if err != nil {
		return err
	}
	if failed == nil && cmd.Context().Err() == nil {
		arrived(out, s, views, time.Since(start))
	}
	if failed == nil {
		failed = cmd.Context().Err()
	}
	return failed
}

// arrived says how it ended, and why the machines with faults failed.
func arrived(out io.Writer, s testenv.LabState, views map[string]provision.View, took time.Duration) {
	failed := 0
	for _, m := range s.Machines {
		if v := views[m.Name]; v.Status.Phase != provision.Active {
			failed++
			fmt.Fprintf(out, "%s has faults and is %s: %s\n", m.Name, v.Status.Phase, v.Status.LastError)
		}
	}
	if failed == 0 {
		fmt.Fprintf(out, "All active after %s.\n", took.Round(time.Second))
		return
	}
	fmt.Fprintf(out, "%d active after %s; %d with faults failed.\n", len(s.Machines)-failed, took.Round(time.Second), failed)
}

// draw replaces the lines drawn before. No line is wider than the terminal: one
// that wraps would push the picture down.
func draw(w io.Writer, s testenv.LabState, views map[string]provision.View, before int, elapsed time.Duration, width int) int {
	var b strings.Builder
	if before > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", before)
	}
	fmt.Fprintf(&b, "\x1b[2K%s\n", elapsed.Round(time.Second))
	if len(s.Machines) > labLines {
		lines := rackLines(s, views)
		for _, line := range lines {
			fmt.Fprintf(&b, "\x1b[2K%s\n", line[:min(len(line), width-1)])
		}
		_, _ = io.WriteString(w, b.String())
		return len(lines) + 1
	}
	for _, m := range s.Machines {
		v := views[m.Name]
		line := []rune(fmt.Sprintf("%-8s %-5s %-8s %-10s %-12s %s", m.Name, m.Firmware, m.BMC, v.Status.Phase, v.Status.Step, note(v)))
		fmt.Fprintf(&b, "\x1b[2K%s\n", string(line[:min(len(line), width-1)]))
	}
	_, _ = io.WriteString(w, b.String())
	return len(s.Machines) + 1
}

// labLines machines have a line each; of more each rack has one.
const labLines = 20

// rackLines count the phases of each rack's machines.
func rackLines(s testenv.LabState, views map[string]provision.View) (lines []string) {
	var racks []string
	counts := map[string]map[provision.Phase]int{}
	for _, m := range s.Machines {
		if counts[m.Rack] == nil {
			counts[m.Rack] = map[provision.Phase]int{}
			racks = append(racks, m.Rack)
		}
		counts[m.Rack][cmp.Or(views[m.Name].Status.Phase, provision.Available)]++
	}
	for _, rack := range racks {
		line := fmt.Sprintf("%-8s", rack)
		for _, phase := range slices.Sorted(maps.Keys(counts[rack])) {
			line += fmt.Sprintf(" %4d %s", counts[rack][phase], phase)
		}
		lines = append(lines, line)
	}
	return lines
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
	fmt.Fprintf(w, "%s  %-8s %-10s %-12s %s\n", clock(time.Now()), v.Name, v.Status.Phase, v.Status.Step, note(v))
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

func printNext(out io.Writer, f *labFlags, s testenv.LabState) {
	fmt.Fprintln(out, "\nThe machines run what was declared. To try next:")
	for _, line := range nextCommands(f, s) {
		fmt.Fprintln(out, "  "+line)
	}
}

// ownCommand is how this binary is called in a shell, and how with it the lab's
// server is asked.
func ownCommand(f *labFlags, s testenv.LabState) (self, ask string) {
	self = s.Recast
	if rel, err := filepath.Rel(mustGetwd(), self); err == nil && !strings.HasPrefix(rel, "..") {
		self = rel
		if !strings.Contains(rel, "/") {
			self = "./" + rel
		}
	}
	self = shellWord(self)
	ask = self
	// Who is logged in nowhere asks the lab by itself, if it is the only one.
	here := func(name string) bool {
		c, err := findContext(name)
		return err == nil && c.URL == "https://"+s.Operator
	}
	switch {
	case here(""):
	case here(f.name):
		ask += " --context " + shellWord(f.name)
	default:
		ask += " --context " + shellWord(f.contextFile())
	}
	return self, ask
}

// nextCommands to try in a lab, as they can be pasted into a shell: look,
// understand, change, bring back, end.
func nextCommands(f *labFlags, s testenv.LabState) []string {
	self, ask := ownCommand(f, s)
	yaml := shellWord(testenv.LabYAML(f.dir()))
	return []string{
		ask + " get machines -o wide",
		ask + " explain " + s.Machines[0].Name,
		fmt.Sprintf("sed -i 's/runs what was declared/was changed/' %s && %s apply %s --yes", yaml, ask, yaml),
		ask + " rollback " + s.Group() + " --yes",
		"sudo " + self + strings.TrimPrefix(f.command("down"), "recast"),
	}
}

// shellWord quotes what a shell would not take as one word.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:=@", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func mustGetwd() string {
	dir, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return dir
}
