package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/provision"
	"recast/web"
)

// machineVerb is a command that says one word about machines.
func machineVerb(use, short, long, done string) *cobra.Command {
	return &cobra.Command{
		Use: use + " MACHINE...", GroupID: "machine", Short: short, Long: long, Args: arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.call(cmd.Context(), http.MethodPost, machinePath(name)+"/"+use, nil, nil); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, done)
			}
			return nil
		},
	}
}

func newRelease() *cobra.Command {
	cmd := machineVerb("release", "End a hold", `End a hold, whoever set it. A machine that its gate holds goes through that again, and is
held again where what differs may still not be written. With --repair it may, this once, however
much it is: what differs of the partitions that are proved is written as the image has it, and
nothing else. Another disk, or another partition table, is held again all the same. Data that
dm-verity protects, which a gate else leaves to the machine's kernel, is read and written then
too, at the machine's next start, whether it is held or not.`, "released")
	cmd.Example = "  recast release r1u05\n  recast release r1u05 --repair"
	var repair bool
	cmd.Flags().BoolVar(&repair, "repair", false, "let its gate write what differs, this once")
	end := cmd.RunE
	again := machineVerb("repair", "", "", "released, to be repaired")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if repair {
			return again.RunE(cmd, args)
		}
		return end(cmd, args)
	}
	return cmd
}

func newHold() *cobra.Command {
	var reason string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "hold MACHINE...", GroupID: "machine", Short: "Start nothing on a machine until it is released",
		Long: `Keep recast's hands off a machine until it is released, or until --for has passed. It boots its
disk. An attempt that has not begun to write ends at once, and begins again after the hold; one
that writes goes on to its end: recast abort stops that too.`,
		Example: "  recast hold r1u05 --reason 'memory test' --for 4h",
		Args:    arguments(cobra.MinimumNArgs(1)), ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("for") && ttl <= 0 {
				return codeError{fmt.Errorf("hold --for %s: want more than 0, as 4h; without --for it is held until recast release", ttl), exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.call(cmd.Context(), http.MethodPost, machinePath(name)+"/hold",
					web.HoldRequest{Reason: reason, For: inventory.Duration(ttl)}, nil); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: held\n", name)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "by an operator", "why, for those who find it held")
	cmd.Flags().DurationVar(&ttl, "for", 0, "release it by itself after this time")
	return cmd
}

func newPower() *cobra.Command {
	cmd := &cobra.Command{Use: "power", GroupID: "machine", Short: "Read or change machines' power",
		Long: `Read or change machines' power through their BMCs, one machine after the other; one that fails
does not keep the next from its turn. While an attempt is under way the power is recast's: recast
abort first.`}
	return parent(cmd, powerVerb("status", "Read the power"), powerVerb("on", "Switch on"),
		powerVerb("off", "Switch off, at once or with --soft"), powerVerb("cycle", "Switch off and, once that is seen, on"))
}

func powerVerb(verb, short string) *cobra.Command {
	req := web.PowerRequest{Verb: verb}
	v := bmcVerb{use: verb, goOn: true, short: short, long: short + ", through the BMC, which is asked until it shows that it is so.",
		example: "  recast power " + verb + " r1u05 r1u06\n  recast power " + verb + " --rack r1",
		do: func(cmd *cobra.Command, c *client, name string) error {
			var p web.PowerReply
			if err := c.call(cmd.Context(), http.MethodPost, machinePath(name)+"/power", req, &p); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, p.Power)
			return nil
		}}
	switch verb {
	case "status":
		v.long = short + ", as the BMC shows it now."
	case "off", "cycle":
		v.flag = func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&req.Soft, "soft", false, "ask the operating system, and give up where it does not obey")
		}
	}
	return v.command()
}

func newFreeze() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "freeze", GroupID: "declare", Short: "Start nothing on any machine; what is under way goes on",
		Long: "Start nothing on any machine until unfreeze. What is under way goes on, and machines boot what\nthey have.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/freeze", web.FreezeRequest{Reason: reason}, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Frozen: nothing starts until recast unfreeze.")
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who find it frozen")
	return cmd
}

func newUnfreeze() *cobra.Command {
	return &cobra.Command{
		Use: "unfreeze", GroupID: "declare", Short: "Let rollouts go on", Args: arguments(cobra.NoArgs),
		Long: "Let rollouts go on where freeze stopped them.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/unfreeze", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Rollouts go on.")
			return nil
		},
	}
}

func newExplain() *cobra.Command {
	var output string
	var lines int
	cmd := &cobra.Command{
		Use: "explain MACHINE", GroupID: "look", Short: "Say what a machine waits for, and what to do",
		Long: `Say in which state a machine is and since when, and the first thing that is missing, from what the
servers saw of it. What may stand behind that comes ranked, each cause with a code and with what to
do; then, while an attempt is under way or has failed, its power and boot override as its BMC says
just now; what happens next, and the last lines of its console and of its timeline.`,
		Example: "  recast explain r1u05\n  recast explain r1u05 --lines 100", ValidArgsFunction: completeMachines,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && kindOf(args[0]) == "machines" {
				args = args[1:]
			} else if len(args) == 2 {
				return codeError{fmt.Errorf("explain %q: only machines can be explained; see: recast explain --help", args[0]), exitUsage}
			}
			if lines < 0 {
				return codeError{fmt.Errorf("explain --lines %d: want 0 or more", lines), exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			var x provision.Explanation
			if err := c.call(cmd.Context(), http.MethodGet, machinePath(args[0])+"/explain", nil, &x); err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, x, func(w io.Writer, _ bool) { printExplanation(w, x, lines) })
		},
	}
	addOutput(cmd, &output)
	cmd.Flags().IntVar(&lines, "lines", 20, "lines of the timeline")
	return cmd
}

func printExplanation(w io.Writer, x provision.Explanation, n int) {
	fmt.Fprintf(w, "%s: %s\n", x.Machine, x.State)
	if x.Missing != "" {
		fmt.Fprintf(w, "  missing: %s\n", x.Missing)
	}
	for _, c := range x.Causes {
		fmt.Fprintf(w, "  perhaps: %s (%s)\n", c.Text, c.Code)
		if c.Next != "" {
			fmt.Fprintf(w, "           -> %s\n", c.Next)
		}
	}
	for _, f := range x.Findings {
		fmt.Fprintf(w, "  finding: %s\n", f)
	}
	if x.Power != "" {
		fmt.Fprintf(w, "  power:   %s (its BMC, just now)\n", x.Power)
	}
	if x.Next != "" {
		fmt.Fprintf(w, "  next:    %s\n", x.Next)
	}
	if x.Trace != "" {
		fmt.Fprintf(w, "  trace:   %s\n", x.Trace)
	}
	for _, l := range x.Console {
		fmt.Fprintf(w, "  console: %s\n", l)
	}
	t := x.Timeline
	if len(t) > n {
		t = t[len(t)-n:]
	}
	for _, l := range t {
		times := ""
		if l.Times > 1 {
			times = fmt.Sprintf(" (%d times)", l.Times)
		}
		fmt.Fprintf(w, "  %s  %-8s %s%s\n", clock(l.Time), l.Kind, l.Text, times)
	}
}
