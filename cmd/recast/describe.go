package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/provision"
	"recast/tpm"
	"recast/web"
)

// describeKinds that describe knows.
var describeKinds = []string{"machine", "group", "definition", "image", "network", "discovered"}

func newDescribe() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "describe [KIND] NAME", GroupID: "look", Short: "Show everything about one object",
		Long: `Show everything about a machine, or about a ` + strings.Join(describeKinds[1:], ", ") + `: what is
declared, who uses it, what is seen. A discovered machine is named by its MAC, and shown with the
YAML that declares it.`,
		Example:           "  recast describe r1u05\n  recast describe network rack1\n  recast describe discovered 52:54:00:00:00:09",
		Args:              arguments(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: completeDescribe,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name := "machine", args[len(args)-1]
			if len(args) == 2 {
				kind = strings.TrimSuffix(args[0], "s")
			}
			if !slices.Contains(describeKinds, kind) {
				return unknownKind("describe", args[0], describeKinds)
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			d, err := describe(cmd, c, kind, name)
			var coded codeError
			if k := strings.TrimSuffix(name, "s"); len(args) == 1 && slices.Contains(describeKinds, k) && errors.As(err, &coded) && coded.code == exitRefused {
				list := k + "s"
				if k == "discovered" {
					list = k
				}
				return codeError{fmt.Errorf("describe %s: name one; recast get %s lists them", name, list), exitUsage}
			}
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, d.value, func(w io.Writer, _ bool) { d.print(w) })
		},
	}
	addOutput(cmd, &output)
	return cmd
}

// description is one object, and how people see it.
type description struct {
	value any
	print func(io.Writer)
}

func describe(cmd *cobra.Command, c *client, kind, name string) (description, error) {
	ask := func(path string, out any) error {
		return c.call(cmd.Context(), http.MethodGet, "/api/v1/"+path, nil, out)
	}
	if kind == "machine" {
		var v provision.View
		err := c.call(cmd.Context(), http.MethodGet, machinePath(name), nil, &v)
		return description{v, func(w io.Writer) { printView(w, v) }}, err
	}
	if kind == "discovered" {
		var all []provision.Stray
		err := ask("discovered", &all)
		for _, d := range all {
			if d.MAC.String() == strings.ToLower(name) {
				return description{d, func(w io.Writer) { printStray(w, d) }}, nil
			}
		}
		return description{}, orNone(err, kind, name, "discovered")
	}
	var set inventory.Set
	if err := ask("set", &set); err != nil {
		return description{}, err
	}
	switch kind {
	case "group":
		for _, g := range set.Groups {
			if g.Name == name {
				var views []provision.View
				var rollouts []provision.Rollout
				if err := ask("machines", &views); err != nil {
					return description{}, err
				}
				err := ask("rollouts", &rollouts)
				return description{g, func(w io.Writer) { printGroup(w, g, views, rollouts) }}, err
			}
		}
	case "definition":
		for _, d := range set.Definitions {
			if d.Name == name {
				return description{d, func(w io.Writer) { printDefinition(w, d, set.Groups) }}, nil
			}
		}
	case "image":
		for _, i := range set.Images {
			if i.Name == name {
				var here []web.ImageView
				err := ask("images", &here)
				return description{i, func(w io.Writer) { printImage(w, i, here, set.Definitions) }}, err
			}
		}
	case "network":
		for _, n := range set.Networks {
			if n.Name == name {
				var leases []inventory.Lease
				var st web.StatusReply
				if err := ask("leases", &leases); err != nil {
					return description{}, err
				}
				err := ask("status", &st)
				return description{n, func(w io.Writer) { printNetwork(w, n, leases, st) }}, err
			}
		}
	}
	if next := nearOr(name, pickNames(kind+"s")(&set), ""); next != "" {
		return description{}, codeError{fmt.Errorf("there is no %s %q; %s", kind, name, next), exitRefused}
	}
	return description{}, orNone(nil, kind, name, kind+"s")
}

func orNone(err error, kind, name, list string) error {
	if err != nil {
		return err
	}
	return codeError{fmt.Errorf("there is no %s %q; recast get %s lists what there is", kind, name, list), exitRefused}
}

// line prints "Name:  value", aligned.
func line(w io.Writer, name, format string, args ...any) {
	fmt.Fprintf(w, "%-17s %s\n", name+":", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// heads prints a table's row as lines.
func heads(w io.Writer, heading, row []string) {
	for i, h := range heading {
		name := h[:1] + strings.ToLower(h[1:])
		if h == "DHCP" || h == "DNS" {
			name = h
		}
		line(w, name, "%s", row[i])
	}
}

func printGroup(w io.Writer, g *inventory.Group, views []provision.View, rollouts []provision.Rollout) {
	heads(w, groupRow(nil, true), groupRow(g, true))
	for _, r := range rollouts {
		if r.Group == g.Name {
			line(w, "Rollout", "plan %s by %s, %s ago, %d machines", r.Plan.Short(), r.By, since(r.At, time.Now()), len(r.Machines))
			if r.Stopped != "" {
				line(w, "Stopped", "%s", r.Stopped)
			}
		}
	}
	for _, v := range views {
		if v.Group == g.Name {
			line(w, "  machine", "%s  %s  %s  %s", v.Name, v.Status.Phase, v.Sync, whyText(v))
		}
	}
}

func printDefinition(w io.Writer, d *inventory.Definition, groups []*inventory.Group) {
	heads(w, definitionRow(nil, true), definitionRow(d, true))
	if len(d.Select.Hints) > 0 {
		line(w, "Disk", "%s", pairs(d.Select.Hints))
	}
	if d.Select.MinSize > 0 {
		line(w, "Min size", "%s", size(d.Select.MinSize))
	}
	if d.Select.MaxSize > 0 {
		line(w, "Max size", "%s", size(d.Select.MaxSize))
	}
	for _, g := range groups {
		if g.Definition == d.Name {
			line(w, "  group", "%s", g.Name)
		}
	}
	if d.Config.UserData != "" {
		fmt.Fprintf(w, "User data:\n")
		for l := range strings.Lines(d.Config.UserData) {
			fmt.Fprintf(w, "  %s", l)
		}
	}
}

func printImage(w io.Writer, i *inventory.Image, here []web.ImageView, definitions []*inventory.Definition) {
	line(w, "Name", "%s", i.Name)
	line(w, "Type", "%s, %s", i.Type, i.Arch)
	line(w, "Digest", "%s", i.Digest)
	line(w, "Source", "%s", dash(i.Source))
	state := "not here: recast image add SOURCE"
	for _, h := range here {
		if h.Digest == i.Digest {
			state = fmt.Sprintf("whole, %s unpacked, %s packed, added %s", size(h.Size), size(h.PackSize), dateClock(h.Added))
			if h.Damaged != "" {
				state = "damaged: " + h.Damaged + "; recast image add SOURCE mends it"
			}
		}
	}
	line(w, "Our copy", "%s", state)
	for _, h := range here {
		if h.Digest == i.Digest {
			printDifferences(w, h)
		}
	}
	for _, d := range definitions {
		if d.Image == i.Name {
			line(w, "  definition", "%s", d.Name)
		}
	}
}

// printDifferences says what it takes to make this image of others.
func printDifferences(w io.Writer, i web.ImageView) {
	for _, d := range i.Differences {
		line(w, "  from image", "%s: fetch %s, write %s", d.From.Short(), size(i.IndexSize+d.Fetch), size(d.Write))
	}
}

func printNetwork(w io.Writer, n *inventory.Network, leases []inventory.Lease, st web.StatusReply) {
	heads(w, networkRow(nil, true), networkRow(n, true))
	if n.VLAN != 0 {
		line(w, "VLAN", "%d, whose tag machines add themselves", n.VLAN)
	}
	for _, r := range n.Routes {
		line(w, "Route", "%s by %s", r.To, r.Via)
	}
	for _, f := range st.Findings {
		if strings.HasPrefix(f, "network ") && !strings.HasPrefix(f, fmt.Sprintf("network %q", n.Name)) {
			continue // of another
		}
		line(w, "Finding", "%s", f)
	}
	for _, why := range slices.Sorted(maps.Keys(st.Malformed)) {
		if from, _, _ := strings.Cut(why, ":"); from != "DHCP" && from != "TFTP" && from != "boot HTTP" {
			continue // recast version has the rest
		}
		line(w, "Malformed", "%d on all networks since the server's start: %s", st.Malformed[why], why)
	}
	for _, l := range leases {
		if l.Network == n.Name {
			port := ""
			if l.Port != nil {
				port = "  at " + l.Port.String()
			}
			line(w, "  lease", "%s  %s  %s  %s%s", l.Addr, l.MAC, leaseHolder(&l), l.State, port)
		}
	}
}

func printStray(w io.Writer, d provision.Stray) {
	line(w, "MAC", "%s", d.MAC)
	if d.MayBe != "" {
		line(w, "May be", "%s", d.MayBe)
	}
	line(w, "Network", "%s", dash(d.Network))
	line(w, "Address", "%s", d.Addr)
	line(w, "Seen", "%s ago", since(d.At, time.Now()))
	printFacts(w, &d.Facts)
	fmt.Fprintf(w, "\nTo declare it:\n\n%s", d.YAML)
}

// healthText says why the health of a machine that is done is not known.
func healthText(st provision.Status) string {
	if st.Phase == provision.Active && st.Health == provision.HealthUnknown {
		return string(st.Health) + ": its system has not reported itself since"
	}
	return string(st.Health)
}

// reportedText says how fresh a system's own word is that adds to stronger evidence.
func reportedText(e provision.Evidence, now time.Time) string {
	if e.Reported.IsZero() {
		return ""
	}
	return "reported " + ago(e.Reported, now)
}

func printView(w io.Writer, v provision.View) {
	st, now := v.Status, time.Now()
	line(w, "Name", "%s", v.Name)
	line(w, "Group", "%s", dash(v.Group))
	line(w, "Phase", "%s", phaseText(st, now))
	line(w, "Sync", "%s", joined(": ", string(v.Sync), v.SyncWhy))
	line(w, "Health", "%s", healthText(st))
	line(w, "Evidence", "%s", joined(", ", st.Evidence.Level.String(), ago(st.Evidence.At, now), st.Evidence.Detail, reportedText(st.Evidence, now)))
	if st.Gate != nil {
		line(w, "Gate", "%s", gateText(*st.Gate, now))
	}
	if st.TPM != nil {
		line(w, "TPM", "%s", tpmText(st.TPM, now))
	}
	line(w, "Running", "%s", runningText(st))
	line(w, "Wanted", "%s", shortOr(v.Wanted, "-"))
	line(w, "Attempt", "%d, ramdisk restarts %d", st.Attempt, st.Restarts)
	line(w, "Power", "%s", dash(st.Power))
	if v.BMC != nil {
		line(w, "BMC", "%s", bmcLine(*v.BMC, now))
	}
	if st.Identity != "" {
		line(w, "Identity", "%s", identityText(v))
	}
	if st.Disk != nil {
		line(w, "Disk", "%s, serial %s, %s", st.Disk.Name, dash(st.Disk.Serial), inventory.DiskSizeText(st.Disk.Size))
	}
	if m := st.Moved; m != nil {
		line(w, "Last write", "%s fetched, %s written, %s ago", size(m.Fetched), size(m.Written), since(m.At, now))
	}
	if st.Hold != nil {
		line(w, "Hold", "by %s: %s", st.Hold.Owner, st.Hold.Reason)
	}
	if v.Waiting != "" {
		line(w, "Waiting", "%s; see: recast explain %s", v.Waiting, v.Name)
	}
	if st.LastError != "" {
		line(w, "Last error", "%s", st.LastError)
	}
	if st.NextAction != "" {
		line(w, "Next", "%s", st.NextAction)
	}
	if len(st.Findings) > 0 {
		line(w, "Findings", "%s", strings.Join(st.Findings, "; "))
	}
	line(w, "Last seen", "%s", joined(", ", dash(st.LastSeen), ago(st.LastSeenAt, now)))
	if st.Facts != nil {
		printFacts(w, st.Facts)
	}
}

// gateText says what the gate of a machine saw of its last boot.
func gateText(g provision.GateSeen, now time.Time) string {
	parts := []string{string(g.Verdict), ago(g.At, now), g.Detail}
	if g.Verdict == "" {
		parts = []string{"has not seen a boot yet"}
	}
	if g.Unguarded != "" {
		parts = append(parts, "not enforced: "+g.Unguarded)
	}
	for _, r := range g.Regions {
		parts = append(parts, fmt.Sprintf("%s read as %s", r.Name, r.Read.Short()))
	}
	if g.Step != provision.GateIdle {
		parts = append(parts, fmt.Sprintf("boot %d: %s", g.Boot, g.Step))
	}
	if n := len(g.Repairs); n > 0 {
		last := g.Repairs[n-1]
		parts = append(parts, fmt.Sprintf("last repaired %s, %d blocks", ago(last.At, now), last.Blocks))
	}
	return joined(", ", parts...)
}

// tpmText says which TPM is on record, and what it told last.
func tpmText(t *provision.TPM, now time.Time) string {
	parts := []string{t.ID().Short(), "trusted, and has yet to enrol"}
	if t.AK != nil {
		parts[1] = "enrolled " + ago(t.Since, now)
	}
	if t.Cert != nil {
		parts = append(parts, "with a certificate, not verified")
	}
	if q := t.Quote; q != nil {
		parts = append(parts, fmt.Sprintf("last quote %s %s, of generation %s", q.Digest.Short(), ago(q.At, now), q.Generation.Short()))
		if text := tpm.Changed(t.Chain, tpm.ChainOf(q.PCRs, q.Initrd)); text != "" {
			parts = append(parts, "from another boot chain: "+text)
		}
	}
	if t.Other != nil {
		parts = append(parts, "but another one was shown: "+inventory.DigestOf(t.Other).Short())
	}
	return strings.Join(parts, ", ")
}

// identityText says what the identity is worth that a machine claimed with last.
func identityText(v provision.View) string {
	switch {
	case v.Status.Identity != inventory.L1:
		return string(v.Status.Identity) + ", its hardware address"
	case v.Machine != nil && v.Machine.Boot.Via == inventory.BootHTTP:
		return "L1, by a token over plain HTTP through its BMC: no proof against a listener"
	}
	return "L1, through its BMC"
}

// runningText is what a machine is known to run.
func runningText(st provision.Status) string {
	if st.Running == "" && st.Evidence.Level == inventory.E3 {
		return "nothing" // its disk was read back as blank
	}
	return shortOr(st.Running, "unknown")
}

// joined leaves out what is empty.
func joined(by string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), by)
}

// ago is "" for a time that never was.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return since(t, now) + " ago"
}

func phaseText(st provision.Status, now time.Time) string {
	text := joined(", ", string(st.Phase), string(st.Step))
	if !st.Since.IsZero() {
		text += " for " + since(st.Since, now)
	}
	return text
}

// secureText is what was found of how a UEFI machine starts, by its system last.
func secureText(b inventory.BootFacts) string {
	text := ", Secure Boot off"
	switch {
	case b.Mode != string(inventory.UEFI):
		return ""
	case b.SecureBoot:
		text = ", Secure Boot on"
	}
	if b.HTTPBoot {
		text += ", came by HTTP Boot"
	}
	return text
}

func printFacts(w io.Writer, f *inventory.Facts) {
	chip := "no TPM"
	if f.TPM != "" {
		chip = "TPM " + f.TPM
	}
	if f.TPMError != "" {
		chip += ", which cannot be used: " + f.TPMError
	}
	line(w, "Hardware", "%s %s, serial %s; %d × %s; %s; %s; boots by %s%s", f.SystemVendor.Manufacturer, f.SystemVendor.ProductName,
		dash(f.SystemVendor.SerialNumber), f.CPU.Count, f.CPU.ModelName, size(f.Memory.Total), chip, f.Boot.Mode, secureText(f.Boot))
	for _, d := range f.Disks {
		line(w, "  disk", "%s %s serial %s, %s, %s", d.Name, d.Model, dash(d.Serial), inventory.DiskSizeText(d.Size), dash(d.Holds))
	}
	for _, n := range f.Interfaces {
		line(w, "  nic", "%s %s %s link %t", n.Name, n.MAC, n.Driver, n.HasCarrier)
	}
}
