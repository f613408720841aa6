package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
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
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/machines/"+name+"/"+use, nil, nil); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, done)
			}
			return nil
		},
	}
}

func newHold() *cobra.Command {
	var reason string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "hold MACHINE...", GroupID: "machine", Short: "Start nothing on a machine until it is released",
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/machines/"+name+"/hold",
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
	var soft bool
	cmd := &cobra.Command{
		Use: "power status|on|off|cycle MACHINE...", GroupID: "machine", Short: "Read or change a machine's power",
		Args: arguments(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				var p web.PowerReply
				if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/machines/"+name+"/power", web.PowerRequest{Verb: args[0], Soft: soft}, &p); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, p.Power)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&soft, "soft", false, "ask the operating system, and give up where it does not obey")
	return cmd
}

func newFreeze() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "freeze", GroupID: "declare", Short: "Start nothing on any machine; what is under way goes on",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), http.MethodPost, "/api/v1/freeze", web.FreezeRequest{Reason: reason}, nil)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who find it frozen")
	return cmd
}

func newUnfreeze() *cobra.Command {
	return &cobra.Command{
		Use: "unfreeze", GroupID: "declare", Short: "Let rollouts go on", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), http.MethodPost, "/api/v1/unfreeze", nil, nil)
		},
	}
}

func newExplain() *cobra.Command {
	var output string
	var lines int
	cmd := &cobra.Command{
		Use: "explain MACHINE", GroupID: "look", Short: "Say what a machine waits for, and what to do",
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && kindOf(args[0]) == "machines" {
				args = args[1:]
			} else if len(args) == 2 {
				return codeError{fmt.Errorf("explain %q: only machines can be explained", args[0]), exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			var x provision.Explanation
			if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/machines/"+args[0]+"/explain", nil, &x); err != nil {
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
		fmt.Fprintf(w, "  perhaps: %s\n", c)
	}
	if x.Next != "" {
		fmt.Fprintf(w, "  next:    %s\n", x.Next)
	}
	t := x.Timeline
	if len(t) > n {
		t = t[len(t)-n:]
	}
	for _, l := range t {
		fmt.Fprintf(w, "  %s  %-8s %s\n", l.Time.Format(time.TimeOnly), l.Kind, l.Text)
	}
}

func newDescribe() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "describe MACHINE", GroupID: "look", Short: "Show everything about a machine",
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			var v provision.View
			if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/machines/"+args[len(args)-1], nil, &v); err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, v, func(w io.Writer, _ bool) { printView(w, v) })
		},
	}
	addOutput(cmd, &output)
	return cmd
}

func printView(w io.Writer, v provision.View) {
	st, now := v.Status, time.Now()
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	line("Name", "%s", v.Name)
	line("Group", "%s", dash(v.Group))
	line("Phase", "%s %s, for %s", st.Phase, st.Step, since(st.Since, now))
	line("Sync", "%s %s", v.Sync, v.SyncWhy)
	line("Health", "%s", st.Health)
	line("Evidence", "%s, %s ago, %s", st.Evidence.Level, since(st.Evidence.At, now), dash(st.Evidence.Detail))
	line("Running", "%s", shortOr(st.Running, "unknown"))
	line("Wanted", "%s", shortOr(v.Wanted, "-"))
	line("Attempt", "%d, ramdisk restarts %d", st.Attempt, st.Restarts)
	line("Power", "%s", dash(st.Power))
	if st.Disk != nil {
		line("Disk", "%s, serial %s, %s", st.Disk.Name, dash(st.Disk.Serial), size(st.Disk.Size))
	}
	if st.Hold != nil {
		line("Hold", "by %s: %s", st.Hold.Owner, st.Hold.Reason)
	}
	if v.Waiting != "" {
		line("Waiting", "%s", v.Waiting)
	}
	if st.LastError != "" {
		line("Last error", "%s", st.LastError)
	}
	if st.NextAction != "" {
		line("Next", "%s", st.NextAction)
	}
	if len(st.Findings) > 0 {
		line("Findings", "%s", strings.Join(st.Findings, "; "))
	}
	line("Last seen", "%s, %s ago", dash(st.LastSeen), since(st.LastSeenAt, now))
	if f := st.Facts; f != nil {
		line("Hardware", "%s %s, serial %s; %d × %s; %s; boots by %s", f.SystemVendor.Manufacturer, f.SystemVendor.ProductName,
			dash(f.SystemVendor.SerialNumber), f.CPU.Count, f.CPU.ModelName, size(f.Memory.Total), f.Boot.Mode)
		for _, d := range f.Disks {
			line("  disk", "%s %s serial %s, %s, %s", d.Name, d.Model, dash(d.Serial), size(d.Size), dash(d.Holds))
		}
		for _, n := range f.Interfaces {
			line("  nic", "%s %s %s link %t", n.Name, n.MAC, n.Driver, n.HasCarrier)
		}
	}
}
