package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/image"
	"recast/inventory"
	"recast/provision"
)

// kindNames that get knows.
var kindNames = []string{"machines", "groups", "definitions", "images", "networks", "generations", "rollouts", "discovered", "orphans", "leases", "audit", "secrets"}

func newGet() *cobra.Command {
	var output string
	var watch bool
	cmd := &cobra.Command{
		Use: "get KIND [NAME]", GroupID: "look", Short: "List what is declared and what is seen",
		Long:      "List " + strings.Join(kindNames, ", ") + ".",
		Args:      arguments(cobra.RangeArgs(1, 2)),
		ValidArgs: kindNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			if watch {
				return watchMachines(cmd, c, name)
			}
			return get(cmd, c, kindOf(args[0]), name, output)
		},
	}
	addOutput(cmd, &output)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "follow changes of machines, a line each")
	return cmd
}

// kindOf accepts the singular too.
func kindOf(s string) string {
	for _, k := range kindNames {
		if s == k || s+"s" == k {
			return k
		}
	}
	return s
}

func get(cmd *cobra.Command, c *client, kind, name, output string) error {
	switch kind {
	case "machines", "orphans":
		return list(cmd, c, "/api/v1/"+kind, name, output, func(v provision.View) string { return v.Name }, machineRow)
	case "groups", "definitions", "networks":
		return getDeclared(cmd, c, kind, name, output)
	case "generations":
		return list(cmd, c, "/api/v1/generations", name, output, func(g provision.GenerationInfo) string { return g.Digest.Hex() }, generationRow)
	case "rollouts":
		return list(cmd, c, "/api/v1/rollouts", name, output, func(r provision.Rollout) string { return r.Group }, rolloutRow)
	case "discovered":
		return list(cmd, c, "/api/v1/discovered", name, output, func(d provision.Stray) string { return d.MAC.String() }, strayRow)
	case "leases":
		return list(cmd, c, "/api/v1/leases", name, output, func(l inventory.Lease) string { return l.Addr.String() }, leaseRow)
	case "audit":
		return list(cmd, c, "/api/v1/audit", name, output, func(a provision.AuditEntry) string { return a.Machine }, auditRow)
	case "secrets":
		return list(cmd, c, "/api/v1/secrets", name, output, func(s provision.SecretInfo) string { return s.Name }, secretRow)
	case "images":
		return list(cmd, c, "/api/v1/images", name, output, func(i image.Info) string { return i.Digest.Hex() }, imageRow)
	}
	return codeError{fmt.Errorf("get %q: want one of %s", kind, strings.Join(kindNames, ", ")), exitUsage}
}

// list fetches a list, keeps what the name (or the digits a digest begins with)
// asks for, and shows it. A row function with nil gives the heading.
func list[T any](cmd *cobra.Command, c *client, path, name, output string, nameOf func(T) string, row func(v *T, wide bool) []string) error {
	var all, kept []T
	if err := c.call(cmd.Context(), http.MethodGet, path, nil, &all); err != nil {
		return err
	}
	for _, v := range all {
		if name == "" || strings.HasPrefix(nameOf(v), strings.TrimPrefix(name, "sha256:")) {
			kept = append(kept, v)
		}
	}
	if name != "" && len(kept) == 0 {
		return fmt.Errorf("there is no %q; recast get %s lists what there is", name, path[strings.LastIndex(path, "/")+1:])
	}
	if kept == nil {
		kept = []T{}
	}
	return show(cmd.OutOrStdout(), output, kept, func(w io.Writer, wide bool) {
		lines := [][]string{row(nil, wide)}
		for i := range kept {
			lines = append(lines, row(&kept[i], wide))
		}
		rows(w, lines)
	})
}

func machineRow(v *provision.View, wide bool) []string {
	if v == nil {
		h := []string{"NAME", "PHASE", "STEP", "SYNC", "HEALTH", "EVIDENCE", "RUNNING", "WANTED", "PROGRESS"}
		if wide {
			h = append(h, "GROUP", "ATTEMPT", "DISK", "LAST SEEN", "WHY")
		}
		return h
	}
	now := time.Now()
	st := v.Status
	evidence := "-"
	if !st.Evidence.At.IsZero() {
		evidence = fmt.Sprintf("%s, %s ago", st.Evidence.Level, since(st.Evidence.At, now))
	}
	r := []string{v.Name, string(st.Phase), dash(string(st.Step)), string(v.Sync), string(st.Health), evidence,
		shortOr(st.Running, "-"), shortOr(v.Wanted, "-"), progressText(st, now)}
	if wide {
		disk := "-"
		if st.Disk != nil {
			disk = st.Disk.Serial
		}
		r = append(r, dash(v.Group), fmt.Sprint(st.Attempt), disk, dash(st.LastSeen), whyText(*v))
	}
	return r
}

// whyText is the one line that says why a machine is not done.
func whyText(v provision.View) string {
	switch {
	case v.Status.Hold != nil:
		return "held: " + v.Status.Hold.Reason
	case v.Status.LastError != "":
		return v.Status.LastError
	case v.Waiting != "":
		return v.Waiting
	}
	return dash(v.SyncWhy)
}

func progressText(st provision.Status, now time.Time) string {
	p := st.Progress
	if p == nil || p.Total == 0 {
		return "-"
	}
	text := fmt.Sprintf("%d%% of %s", p.Done*100/p.Total, size(p.Total))
	if p.Rate > 0 {
		left := time.Duration(float64(p.Total-p.Done)/p.Rate) * time.Second
		text += fmt.Sprintf(", %s/s, %s left", size(int64(p.Rate)), left)
	}
	return text
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func generationRow(g *provision.GenerationInfo, _ bool) []string {
	if g == nil {
		return []string{"GENERATION", "GROUP", "KEPT SINCE", "IMAGE", "RUNNING ON"}
	}
	return []string{g.Digest.Short(), g.Group, g.At.Format(time.DateTime), g.Resolved.Image.Digest.Short(), dash(strings.Join(g.Machines, ","))}
}

func rolloutRow(r *provision.Rollout, _ bool) []string {
	if r == nil {
		return []string{"GROUP", "PLAN", "BY", "SINCE", "MACHINES", "STOPPED"}
	}
	return []string{r.Group, r.Plan.Short(), r.By, r.At.Format(time.DateTime), fmt.Sprint(len(r.Machines)), dash(r.Stopped)}
}

func strayRow(d *provision.Stray, wide bool) []string {
	if d == nil {
		h := []string{"MAC", "NETWORK", "SEEN", "MODEL", "SERIAL", "CPUS", "MEMORY", "DISKS"}
		return h
	}
	var disks []string
	for _, disk := range d.Facts.Disks {
		disks = append(disks, fmt.Sprintf("%s %s", disk.Serial, size(disk.Size)))
	}
	v := d.Facts.SystemVendor
	return []string{d.MAC.String(), dash(d.Network), since(d.At, time.Now()) + " ago", dash(v.ProductName), dash(v.SerialNumber),
		fmt.Sprint(d.Facts.CPU.Count), size(d.Facts.Memory.Total), dash(strings.Join(disks, ", "))}
}

func leaseRow(l *inventory.Lease, _ bool) []string {
	if l == nil {
		return []string{"ADDRESS", "MAC", "MACHINE", "NETWORK", "STATE", "EXPIRES"}
	}
	return []string{l.Addr.String(), l.MAC.String(), dash(l.Machine), l.Network, string(l.State), l.Expires.Format(time.DateTime)}
}

func auditRow(a *provision.AuditEntry, _ bool) []string {
	if a == nil {
		return []string{"SEQ", "AT", "WHO", "WHAT", "MACHINE", "PLAN", "ERASE", "DETAIL"}
	}
	return []string{fmt.Sprint(a.Seq), a.At.Format(time.DateTime), a.Who, a.What, dash(a.Machine), shortOr(a.Plan, "-"), dash(strings.Join(a.Erase, ",")), dash(a.Detail)}
}

func secretRow(s *provision.SecretInfo, _ bool) []string {
	if s == nil {
		return []string{"NAME", "VERSION", "SET", "BY"}
	}
	return []string{s.Name, fmt.Sprint(s.Version), s.At.Format(time.DateTime), dash(s.By)}
}

func imageRow(i *image.Info, wide bool) []string {
	if i == nil {
		return []string{"DIGEST", "SIZE", "PACKED", "ADDED", "STATE", "SOURCE"}
	}
	state := "whole"
	if i.Damaged != "" {
		state = "damaged: " + i.Damaged
	}
	digest := i.Digest.Short()
	if wide {
		digest = i.Digest.String()
	}
	return []string{digest, size(i.Size), size(i.PackSize), i.Added.Format(time.DateTime), state, dash(i.Source)}
}

// getDeclared shows objects of the Set in force.
func getDeclared(cmd *cobra.Command, c *client, kind, name, output string) error {
	var set inventory.Set
	if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/set", nil, &set); err != nil {
		return err
	}
	var all []any
	lines := [][]string{}
	add := func(n string, v any, cells ...string) {
		if name == "" || n == name {
			all = append(all, v)
			lines = append(lines, append([]string{n}, cells...))
		}
	}
	var heading []string
	switch kind {
	case "groups":
		heading = []string{"NAME", "SELECT", "DEFINITION", "PINNED TO", "ROLLOUT"}
		for _, g := range set.Groups {
			var sel []string
			for k, v := range g.Select {
				sel = append(sel, k+"="+v)
			}
			sort.Strings(sel)
			add(g.Name, g, strings.Join(sel, ","), g.Definition, shortOr(g.Generation, "-"), fmt.Sprintf("canary %d", g.Rollout.Canary))
		}
	case "definitions":
		heading = []string{"NAME", "IMAGE", "BOOT", "CONFIG"}
		for _, d := range set.Definitions {
			add(d.Name, d, d.Image, string(d.Every), string(d.Config.Format))
		}
	case "networks":
		heading = []string{"NAME", "SUBNET", "DHCP", "UNKNOWN"}
		for _, n := range set.Networks {
			add(n.Name, n, n.Subnet.String(), string(n.DHCP), string(n.Unknown))
		}
	}
	if name != "" && len(all) == 0 {
		return fmt.Errorf("there is no %q; recast get %s lists what there is", name, kind)
	}
	return show(cmd.OutOrStdout(), output, all, func(w io.Writer, _ bool) { rows(w, append([][]string{heading}, lines...)) })
}

// stream follows the server's events until the context ends or f says stop.
func (c *client) stream(cmd *cobra.Command, f func(provision.View) (stop bool)) error {
	resp, err := c.do(cmd.Context(), http.MethodGet, "/api/v1/watch", nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
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

func watchMachines(cmd *cobra.Command, c *client, name string) error {
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
