package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table, wide, json or yaml")
}

// show prints a value in the wanted form; table draws the forms for people.
func show(w io.Writer, output string, v any, table func(w io.Writer, wide bool)) error {
	switch output {
	case "table", "wide":
		table(w, output == "wide")
		return nil
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		// Through JSON, so that both forms have the same names.
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		var plain any
		if err := yaml.Unmarshal(raw, &plain); err != nil {
			return err
		}
		return yaml.NewEncoder(w).Encode(plain)
	}
	return codeError{fmt.Errorf("output %q: want table, wide, json or yaml", output), exitUsage}
}

// rows prints a table; the first row is the heading.
func rows(w io.Writer, lines [][]string) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, l := range lines {
		for i, cell := range l {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell)
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
}

// Times are shown in UTC and say so: the reader's zone, the server's and the
// rack's may be three.
func clock(t time.Time) string     { return t.UTC().Format("15:04:05Z") }
func dateClock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
