package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/bmc"
	"recast/inventory"
	"recast/provision"
	"recast/web"
)

func newBMC() *cobra.Command {
	cmd := &cobra.Command{Use: "bmc", GroupID: "machine", Short: "Enrol, read and look after machines' BMCs",
		Long: "Enrol BMCs, give them passwords that nobody has seen, restart them, and read what they tell of\ntheir machines. recast power switches the machines."}
	return parent(cmd, newBMCEnrol(), newBMCRotate(), newBMCReset(), newBMCSensors(), newBMCEvents(), newBMCInventory(), newBMCScreenshot())
}

// bmcVerb is a command about the BMCs of machines, named or by rack.
type bmcVerb struct {
	use, short, long, example string
	// goOn: a machine that fails does not keep the next ones from their turn.
	goOn bool
	do   func(cmd *cobra.Command, c *client, name string) error
	flag func(cmd *cobra.Command)
}

func (v bmcVerb) command() *cobra.Command {
	var rack string
	cmd := &cobra.Command{Use: v.use + " MACHINE...", Short: v.short, Long: v.long, Example: v.example,
		ValidArgsFunction: completeMachines,
		Args: func(cmd *cobra.Command, args []string) error {
			if rack != "" && len(args) > 0 {
				return codeError{fmt.Errorf("%s: name machines or a --rack, not both", strings.TrimPrefix(cmd.CommandPath(), "recast ")), exitUsage}
			}
			if rack != "" {
				return nil
			}
			return arguments(cobra.MinimumNArgs(1))(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if rack != "" {
				if args, err = rackMachines(cmd, c, rack); err != nil {
					return err
				}
			}
			var failed []error
			for i, name := range args {
				err := v.do(cmd, c, name)
				if err == nil {
					continue
				}
				if left := len(args) - i - 1; !v.goOn && left > 0 {
					return fmt.Errorf("%w\nstopped: %d more were not begun", err, left)
				}
				if !v.goOn || len(args) == 1 || cmd.Context().Err() != nil {
					return err
				}
				failed = append(failed, err)
			}
			return errors.Join(failed...)
		}}
	cmd.Flags().StringVar(&rack, "rack", "", "all machines of this rack that declare a BMC, by name")
	if v.flag != nil {
		v.flag(cmd)
	}
	return cmd
}

// rackMachines are those that declare a BMC.
func rackMachines(cmd *cobra.Command, c *client, rack string) (names []string, err error) {
	var set inventory.Set
	if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/set", nil, &set); err != nil {
		return nil, err
	}
	var racks []string
	for _, m := range set.Machines {
		if m.Location.Rack != "" && !slices.Contains(racks, m.Location.Rack) {
			racks = append(racks, m.Location.Rack)
		}
		if m.BMC != nil && m.Location.Rack == rack {
			names = append(names, m.Name)
		}
	}
	if len(names) == 0 && slices.Contains(racks, rack) {
		return nil, codeError{fmt.Errorf("no machine of rack %q declares a bmc", rack), exitRefused}
	}
	if len(names) == 0 {
		return nil, codeError{fmt.Errorf("there is no rack %q; %s", rack, nearOr(rack, racks, "recast get machines lists them")), exitRefused}
	}
	return names, nil
}

func newBMCEnrol() *cobra.Command {
	var req web.EnrolRequest
	return bmcVerb{use: "enrol", goOn: true, short: "Pin BMCs' certificates and look what they leave open",
		long: `Look at a BMC and record which one it is: pin the certificate that it shows, log in once, and ask
its IPMI, without a login, for cipher suite 0, users without name or password, and IPMI 1.5. What it
leaves open is a finding of its machine.

Compare the certificate with what the BMC's own console shows. One that changes later stops recast:
it is a finding, and --pin accepts it. What bmc.pin declares is changed there alone.

--defaults names a secret with the vendor's default passwords, user:password, two lines at the most.
Each is tried once, since BMCs lock after a few that are wrong, and again only when the secret is
set anew. One that works is a finding, and no way in: recast logs in with bmc.credentials alone.`,
		example: "  recast bmc enrol r1u05\n  recast bmc enrol --rack r1 --defaults vendor-defaults\n  recast bmc enrol r1u05 --pin sha256:9f86d0…",
		flag: func(cmd *cobra.Command) {
			cmd.Flags().StringVar((*string)(&req.Pin), "pin", "", "the certificate that it must show, by its SHA-256, instead of the one accepted before")
			cmd.Flags().StringVar(&req.Defaults, "defaults", "", "the secret that lists default passwords to try once")
		},
		do: func(cmd *cobra.Command, c *client, name string) error {
			if req.Pin != "" {
				pin, err := inventory.ParseDigest(string(req.Pin))
				if err != nil {
					return codeError{fmt.Errorf("bmc enrol --pin: %w", err), exitUsage}
				}
				req.Pin = pin
			}
			var v provision.BMCView
			if err := c.call(cmd.Context(), http.MethodPost, machinePath(name)+"/bmc/enrol", req, &v); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, bmcText(v))
			if v.Pin != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "  certificate %s\n", v.Pin)
			}
			var x provision.View
			if err := c.call(cmd.Context(), http.MethodGet, machinePath(name), nil, &x); err != nil {
				return err
			}
			for _, f := range x.Status.Findings {
				if strings.HasPrefix(f, "its BMC") {
					fmt.Fprintf(cmd.OutOrStdout(), "  finding: %s\n", f)
				}
			}
			return nil
		}}.command()
}

// bmcText says which BMC it is.
func bmcText(v provision.BMCView) string {
	about := joined(" ", v.About.Vendor, v.About.Model)
	if v.About.Firmware != "" {
		about = joined(" ", about, "firmware "+v.About.Firmware)
	}
	return joined(", ", v.Driver, about)
}

func newBMCRotate() *cobra.Command {
	var req web.RotateRequest
	return bmcVerb{use: "rotate", short: "Give BMCs passwords that nobody has seen",
		long: `Give each BMC a random password of its own. It is on record, sealed, before the BMC hears it, and in
use once it was seen to work; a crash at any point is finished by the next conversation. No command
prints it: keep a backup of the store, and of its key, newer than the rotation.

--user makes recast log in as that user from then on, and makes the user where it is not there, with
the rights of the present one. The account that you know then stays as it is, for you.

Machines have their turn one after the other; the first that fails ends it.`,
		example: "  recast bmc rotate --rack r1 --user recast\n  recast bmc rotate r1u05",
		flag: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&req.User, "user", "", "log in as this user from then on")
		},
		do: func(cmd *cobra.Command, c *client, name string) error {
			var v provision.BMCView
			if err := c.call(cmd.Context(), http.MethodPost, machinePath(name)+"/bmc/rotate", req, &v); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %q has a new password\n", name, v.User)
			return nil
		}}.command()
}

func newBMCReset() *cobra.Command {
	return bmcVerb{use: "reset", short: "Restart BMCs; their machines do not notice",
		long:    "Restart a BMC, and wait until it has forgotten recast and answers again, which takes minutes. Its\nmachine goes on. Not while an attempt is under way.",
		example: "  recast bmc reset r1u05",
		do: func(cmd *cobra.Command, c *client, name string) error {
			if err := c.call(cmd.Context(), http.MethodPost, machinePath(name)+"/bmc/reset", nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: its BMC has restarted\n", name)
			return nil
		}}.command()
}

func newBMCSensors() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "sensors MACHINE", Short: "Read temperatures, fans, voltages and power",
		Long:    "Read the sensors that have numbers, as the BMC shows them now.",
		Example: "  recast bmc sensors r1u05", Args: arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeOneMachine,
		RunE: func(cmd *cobra.Command, args []string) error {
			return readBMC(cmd, args[0], "sensors", output, func(w io.Writer, v bmc.Sensors) {
				lines := [][]string{{"SENSOR", "KIND", "READING", "STATE"}}
				for _, s := range v.Sensors {
					reading := "-"
					if s.Reading != nil {
						reading = joined(" ", strconv.FormatFloat(*s.Reading, 'f', -1, 64), s.Unit)
					}
					lines = append(lines, []string{s.Name, s.Kind, reading, dash(s.State)})
				}
				rows(w, lines)
				holes(w, v.Holes)
			})
		}}
	addOutput(cmd, &output)
	return cmd
}

func newBMCEvents() *cobra.Command {
	var output, cursor string
	cmd := &cobra.Command{Use: "events MACHINE", Short: "Read a BMC's event log",
		Long: `Read the hardware's event log, oldest first, a hundred entries at the most. -o json tells a cursor:
with it --after goes on where this ended, across logins and restarts of either side, and says so
("lost") where the log was cleared or has run over meanwhile.`,
		Example: "  recast bmc events r1u05", Args: arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeOneMachine,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "events"
			if cursor != "" {
				path += "?cursor=" + url.QueryEscape(cursor)
			}
			return readBMC(cmd, args[0], path, output, func(w io.Writer, v bmc.Events) {
				lines := [][]string{{"TIME", "ID", "SEVERITY", "EVENT"}}
				for _, e := range v.Events {
					at := "-"
					if !e.At.IsZero() {
						at = dateClock(e.At)
					}
					lines = append(lines, []string{at, e.ID, dash(e.Severity), e.Text})
				}
				rows(w, lines)
				if v.Lost {
					fmt.Fprintln(w, "The entry of the cursor is gone: there may have been more.")
				}
				if v.More {
					fmt.Fprintf(w, "There are more: --after '%s'\n", v.Cursor)
				}
			})
		}}
	addOutput(cmd, &output)
	cmd.Flags().StringVar(&cursor, "after", "", "the cursor to go on from")
	return cmd
}

func newBMCInventory() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "inventory MACHINE", Short: "Read the hardware as the BMC tells it",
		Long:    "Read identity, Secure Boot, processors, memory, disks, interfaces and firmware, as the BMC tells\nthem. Over IPMI there is the identity alone. What recast deploys by is the ramdisk's inventory:\nrecast describe.",
		Example: "  recast bmc inventory r1u05", Args: arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeOneMachine,
		RunE: func(cmd *cobra.Command, args []string) error {
			return readBMC(cmd, args[0], "inventory", output, printBMCInventory)
		}}
	addOutput(cmd, &output)
	return cmd
}

func newBMCScreenshot() *cobra.Command {
	return &cobra.Command{Use: "screenshot MACHINE", Short: "Write what a machine's screen shows now, as PNG",
		Long: `Write a picture of what the machine's screen shows now, a PNG file, to standard output. Dell's
iDRAC takes them, where its licence has the virtual console; recast has them of no other BMC.
recast console shows the serial console of any.`,
		Example: "  recast bmc screenshot r1u05 > r1u05.png", Args: arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeOneMachine,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out, ok := cmd.OutOrStdout().(*os.File); ok && isTerminal(out) {
				return codeError{fmt.Errorf("a PNG file is nothing for a terminal: recast bmc screenshot %s > %s.png", args[0], args[0]), exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			resp, err := c.do(cmd.Context(), http.MethodGet, machinePath(args[0])+"/bmc/screenshot", nil, "")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if _, err := io.Copy(cmd.OutOrStdout(), resp.Body); err != nil {
				return fmt.Errorf("write the screenshot: %w", err)
			}
			return nil
		}}
}

func readBMC[T any](cmd *cobra.Command, name, path, output string, table func(io.Writer, T)) error {
	c, err := clientOf(cmd)
	if err != nil {
		return err
	}
	var v T
	if err := c.call(cmd.Context(), http.MethodGet, machinePath(name)+"/bmc/"+path, nil, &v); err != nil {
		return err
	}
	return show(cmd.OutOrStdout(), output, v, func(w io.Writer, _ bool) { table(w, v) })
}

// completeOneMachine completes a single name.
func completeOneMachine(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeMachines(cmd, nil, prefix)
}

// holes are what a BMC did not tell.
func holes(w io.Writer, list []string) {
	for _, h := range list {
		fmt.Fprintf(w, "not read: %s\n", h)
	}
}

func printBMCInventory(w io.Writer, v bmc.Inventory) {
	line(w, "Machine", "%s", joined(", ", joined(" ", v.Manufacturer, v.Model), serialText(v.Serial), v.Part))
	line(w, "UUID", "%s", dash(v.UUID))
	line(w, "BIOS", "%s", dash(v.BIOS))
	if v.SecureBoot != "" {
		line(w, "Secure Boot", "%s", v.SecureBoot)
	}
	line(w, "BMC", "%s", joined(" ", v.BMC.Vendor, v.BMC.Model, v.BMC.Firmware))
	for _, p := range v.Processors {
		line(w, "  processor", "%s", joined(", ", p.Slot, joined(" ", p.Manufacturer, p.Model), countText(p.Cores, "cores"), countText(p.Threads, "threads")))
	}
	for _, m := range v.Memory {
		line(w, "  memory", "%s", joined(", ", m.Slot, size(m.MiB<<20), m.Type, countText(m.MHz, "MHz"), joined(" ", m.Manufacturer, m.Part), serialText(m.Serial)))
	}
	for _, d := range v.Disks {
		line(w, "  disk", "%s", joined(", ", d.Name, joined(" ", d.Manufacturer, d.Model), serialText(d.Serial), d.Protocol, d.Media, inventory.DiskSizeText(d.Bytes), d.Health))
	}
	for _, n := range v.NICs {
		line(w, "  nic", "%s", joined(", ", n.Name, n.MAC, n.Link, countText(n.Mbps, "Mbit/s")))
	}
	for _, f := range v.Firmware {
		line(w, "  firmware", "%s", joined(", ", f.Name+" "+dash(f.Version), f.State))
	}
	holes(w, v.Holes)
}

func serialText(serial string) string {
	if serial == "" {
		return ""
	}
	return "serial " + serial
}

func countText(n int, what string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s", n, what)
}

// bmcLine is what describe tells of a machine's BMC.
func bmcLine(v provision.BMCView, now time.Time) string {
	state := "not enrolled"
	if !v.At.IsZero() {
		state = "enrolled " + ago(v.At, now)
	}
	login := ""
	if !v.Rotated.IsZero() {
		login = fmt.Sprintf("password of %q rotated %s", v.User, ago(v.Rotated, now))
	}
	pin := ""
	if v.Pin != "" {
		pin = "certificate " + v.Pin.Short()
	}
	if !v.Rotating.IsZero() {
		login = joined(", ", login, "a rotation begun "+ago(v.Rotating, now)+" is not finished")
	}
	return joined(", ", bmcText(v), state, pin, login)
}
