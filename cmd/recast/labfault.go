package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/testenv"
)

// running says why a lab cannot be asked, if it cannot.
func (f *labFlags) running() error {
	_, alive, err := testenv.ReadLab(f.dir())
	switch {
	case errors.Is(err, os.ErrNotExist):
		return f.none()
	case err == nil && !alive:
		return codeError{f.down(), exitNoServer}
	}
	return err
}

// ask the lab's supervisor.
func (f *labFlags) ask(ctx context.Context, what string, ask testenv.LabAsk, out any) error {
	if err := f.running(); err != nil {
		return err
	}
	return testenv.AskLab(ctx, f.dir(), what, ask, out)
}

// faultHelp lists the faults by whose they are.
func faultHelp() string {
	var b strings.Builder
	for _, part := range []struct{ of, title string }{
		{"machine", "Of the machine:"}, {"link", "Of its network link:"},
		{"bmc", "Of its BMC, Redfish or IPMI:"}, {"ipmi", "Of a BMC with IPMI:"}, {"redfish", "Of a BMC with Redfish:"},
	} {
		fmt.Fprintf(&b, "\n%s\n", part.title)
		for _, k := range testenv.FaultKinds() {
			if k.Of != part.of {
				continue
			}
			name := k.Name
			if k.Value != "" {
				name += "=" + k.Value
			}
			fmt.Fprintf(&b, "  %-30s %s\n", name, k.Text)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

func newLabFault(f *labFlags) *cobra.Command {
	var length time.Duration
	var output string
	cmd := &cobra.Command{
		Use: "fault [MACHINE[,MACHINE…] [FAULT[=VALUE]…]]", Short: "Make a machine of a lab go wrong, or end that",
		Long: `Make machines of a lab, or their BMCs, go wrong: the faults are added to those that they have, and
none ends those that they had; a link that LAB.yaml declares stays. Without faults it shows what
they have, and what became of the frames on links that are no good ones; without machines, what all
have. A LAB.yaml names the same faults; see lab up. The faults are:
` + faultHelp(),
		Example: "  recast lab fault r1u03 no-boot\n  recast lab fault r1u04,r1u05 busy delay=2s --for 30s\n  recast lab fault r1u06 link-loss=0.15 link-delay=50ms\n  recast lab fault r1u03 none",
		RunE: func(cmd *cobra.Command, args []string) error {
			ask := testenv.LabAsk{For: length}
			if len(args) > 0 {
				ask.Machines, ask.Faults = strings.Split(args[0], ","), args[1:]
			}
			if length < 0 || length > 0 && len(ask.Faults) == 0 {
				return codeError{errors.New("lab fault --for: want faults, and a time such as 30s after which they end"), exitUsage}
			}
			for _, text := range ask.Faults {
				if text == "none" {
					continue
				}
				if _, err := testenv.ParseFault(text); err != nil {
					return codeError{err, exitUsage}
				}
			}
			var has []testenv.LabFaults
			if err := f.ask(cmd.Context(), "/faults", ask, &has); err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, has, func(w io.Writer, _ bool) {
				lines := [][]string{{"MACHINE", "FAULTS", "LINK"}}
				for _, h := range has {
					lines = append(lines, []string{h.Machine, cmp.Or(strings.Join(h.Faults, " "), "-"), linkText(h.Link)})
				}
				rows(w, lines)
			})
		},
	}
	cmd.Flags().DurationVar(&length, "for", 0, "end all faults of these machines after this time")
	addOutput(cmd, &output)
	return cmd
}

// linkText counts what became of the frames on a bad link.
func linkText(c *testenv.FrameCount) string {
	if c == nil {
		return "-"
	}
	return fmt.Sprintf("%d frames, %d lost, %d twice, %d late", c.Frames, c.Lost, c.Twice, c.Late)
}

func newLabReset(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "reset MACHINE…", Short: "Pull the reset line of a machine of a lab",
		Long: "Pull the reset line of machines of a lab, behind the back of their BMCs and of the server. One that\nis off stays off, and is an error, but without a BMC (bmc: none) it is started, as by its button.",
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var done struct{}
			return f.ask(cmd.Context(), "/reset", testenv.LabAsk{Machines: args}, &done)
		}}
}

func newLabLog(f *labFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "log MACHINE", Short: "Show what the BMC of a machine of a lab was asked",
		Long: "Show every request that the BMC of a machine of a lab has got, in order, with its number, and\nwhether it was executed: what was executed once stands there once.",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var log []testenv.BMCRequest
			if err := f.ask(cmd.Context(), "/requests", testenv.LabAsk{Machines: args}, &log); err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, log, func(w io.Writer, _ bool) {
				lines := [][]string{{"NUMBER", "TIME", "VERB", "EXECUTED", "DETAIL"}}
				for _, r := range log {
					executed := "-"
					if r.Done {
						executed = "yes"
					}
					lines = append(lines, []string{strconv.Itoa(r.Seq), clock(r.At), r.Verb, executed, r.Detail})
				}
				rows(w, lines)
			})
		}}
	addOutput(cmd, &output)
	return cmd
}
