package main

import (
	"fmt"
	"regexp"
	"sort"
	"strings"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
	"recast/web"
)

// The rows of tables: a row function with nil gives the heading.

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
		if st.Gate != nil && st.Gate.Verdict == provision.GateUnverified {
			evidence = string(provision.GateUnverified) + ", " + evidence
		}
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

var longHex = regexp.MustCompile(`\b([0-9a-f]{12})[0-9a-f]{52}\b`)

// brief shortens the digests of a text, for tables.
func brief(s string) string { return longHex.ReplaceAllString(s, "$1") }

// whyText is the one line that says why a machine is not done.
func whyText(v provision.View) string { return brief(whyLine(v)) }

func whyLine(v provision.View) string {
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

// silentAfter is how long the ramdisk, which reports every second, says nothing
// before its rate is no news any more.
const silentAfter = 20 * time.Second

func progressText(st provision.Status, now time.Time) string {
	p := st.Progress
	if p == nil || p.Total == 0 {
		return "-"
	}
	text := fmt.Sprintf("%d%% of %s", p.Done*100/p.Total, size(p.Total))
	if string(p.Doing) != string(st.Step) {
		text = joined(" ", string(p.Doing), text) // writing begins with comparing
	}
	if quiet := now.Sub(p.At).Round(time.Second); !p.At.IsZero() && quiet >= silentAfter {
		return fmt.Sprintf("%s, silent for %s", text, quiet)
	}
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

func generationRow(g *provision.GenerationInfo, wide bool) []string {
	if g == nil {
		return []string{"GENERATION", "GROUP", "KEPT SINCE", "IMAGE", "RUNNING ON"}
	}
	return []string{digestText(g.Digest, wide), g.Group, dateClock(g.At), g.Resolved.Image.Digest.Short(), dash(strings.Join(g.Machines, ","))}
}

func rolloutRow(r *provision.Rollout, _ bool) []string {
	if r == nil {
		return []string{"GROUP", "PLAN", "BY", "SINCE", "MACHINES", "STOPPED"}
	}
	return []string{r.Group, r.Plan.Short(), r.By, dateClock(r.At), fmt.Sprint(len(r.Machines)), dash(r.Stopped)}
}

func strayRow(d *provision.Stray, _ bool) []string {
	if d == nil {
		return []string{"MAC", "NETWORK", "SEEN", "MODEL", "SERIAL", "CPUS", "MEMORY", "DISKS"}
	}
	var disks []string
	for _, disk := range d.Facts.Disks {
		disks = append(disks, fmt.Sprintf("%s %s", disk.Serial, size(disk.Size)))
	}
	v := d.Facts.SystemVendor
	return []string{d.MAC.String(), dash(d.Network), since(d.At, time.Now()) + " ago", dash(v.ProductName), dash(v.SerialNumber),
		fmt.Sprint(d.Facts.CPU.Count), size(d.Facts.Memory.Total), dash(strings.Join(disks, ", "))}
}

func leaseRow(l *inventory.Lease, wide bool) []string {
	row, port := []string{"ADDRESS", "MAC", "MACHINE", "NETWORK", "STATE", "EXPIRES"}, "PORT"
	if l != nil {
		row, port = []string{l.Addr.String(), l.MAC.String(), leaseHolder(l), l.Network, string(l.State), dateClock(l.Expires)}, "-"
		if l.Port != nil {
			port = l.Port.String()
		}
	}
	if wide {
		row = append(row, port)
	}
	return row
}

func leaseHolder(l *inventory.Lease) string {
	if l.BMC {
		return l.Machine + " (BMC)"
	}
	return dash(l.Machine)
}

func auditRow(a *provision.AuditEntry, wide bool) []string {
	row := []string{"SEQ", "AT", "WHO", "WHAT", "ABOUT", "PLAN", "ERASE", "DETAIL"}
	if a != nil {
		about := a.Machine
		if a.Image != "" {
			about = "image " + a.Image.Short()
		}
		row = []string{fmt.Sprint(a.Seq), dateClock(a.At), a.Who, a.What, dash(about), shortOr(a.Plan, "-"), dash(strings.Join(a.Erase, ",")), dash(a.Detail)}
	}
	switch {
	case wide && a == nil:
		row = append(row, "HASH")
	case wide:
		row = append(row, a.Hash.String())
	}
	return row
}

func secretRow(s *provision.SecretInfo, _ bool) []string {
	if s == nil {
		return []string{"NAME", "VERSION", "SET", "BY"}
	}
	return []string{s.Name, fmt.Sprint(s.Version), dateClock(s.At), dash(s.By)}
}

func imageRow(i *web.ImageView, wide bool) []string {
	if i == nil {
		return []string{"DIGEST", "SIZE", "PACKED", "ADDED", "STATE", "SOURCE"}
	}
	state := "whole"
	if i.Damaged != "" {
		state = "damaged"
		if wide {
			state += ": " + brief(i.Damaged)
		}
	}
	return []string{digestText(i.Digest, wide), size(i.Size), size(i.PackSize), dateClock(i.Added), state, dash(i.Source)}
}

func loaderRow(x *ipxe.Imported, wide bool) []string {
	if x == nil {
		h := []string{"DIGEST", "NAME", "KIND", "VERSION", "ARCH", "CAN", "STATE"}
		if wide {
			h = append(h, "SBAT", "BESIDE", "ADDED", "BY", "ORIGIN")
		}
		return h
	}
	state := "usable"
	if x.Revoked != "" {
		state = "refused: " + x.Revoked
	}
	r := []string{digestText(x.Digest, wide), x.Name, loaderKind(x.Binary), dash(x.Binary.Version), string(x.Binary.Arch), loaderCan(x.Binary), state}
	if wide {
		beside := "-"
		if x.Beside != "" {
			beside = x.Beside.Short()
		}
		r = append(r, loaderSBAT(x.Binary), beside, dateClock(x.Added), dash(x.By), dash(x.Origin))
	}
	return r
}

func digestText(d inventory.Digest, wide bool) string {
	if wide {
		return d.String()
	}
	return d.Short()
}

func networkRow(n *inventory.Network, wide bool) []string {
	if n == nil {
		h := []string{"NAME", "SUBNET", "DHCP", "UNKNOWN"}
		if wide {
			h = append(h, "POOL", "GATEWAY", "DNS", "LEASE")
		}
		return h
	}
	r := []string{n.Name, n.Subnet.String(), string(n.DHCP), string(n.Unknown)}
	if wide {
		pool, gateway, dns := "-", "-", make([]string, len(n.DNS))
		if n.Pool != nil {
			pool = fmt.Sprintf("%s-%s", n.Pool.First, n.Pool.Last)
		}
		if n.Gateway.IsValid() {
			gateway = n.Gateway.String()
		}
		for i, a := range n.DNS {
			dns[i] = a.String()
		}
		r = append(r, pool, gateway, dash(strings.Join(dns, ",")), n.LeaseTime.String())
	}
	return r
}

func definitionRow(d *inventory.Definition, wide bool) []string {
	if d == nil {
		h := []string{"NAME", "IMAGE", "BOOT", "CONFIG"}
		if wide {
			h = append(h, "EVIDENCE", "WIPE", "ATTEMPTS", "HEALTH DEADLINE")
		}
		return h
	}
	r := []string{d.Name, d.Image, string(d.Every), string(d.Config.Format)}
	if wide {
		r = append(r, d.Evidence.String(), string(d.Wipe), fmt.Sprint(d.Attempts), d.HealthDeadline.String())
	}
	return r
}

func groupRow(g *inventory.Group, wide bool) []string {
	if g == nil {
		h := []string{"NAME", "SELECT", "DEFINITION", "PINNED TO"}
		if wide {
			h = append(h, "CANARY", "MAX UNAVAILABLE", "MAX FAILURES")
		}
		return h
	}
	r := []string{g.Name, pairs(g.Select), g.Definition, shortOr(g.Generation, "-")}
	if wide {
		r = append(r, fmt.Sprint(g.Rollout.Canary), share(g.Rollout.MaxUnavailable), share(g.Rollout.MaxFailures))
	}
	return r
}

func share(v inventory.IntOrPercent) string {
	if v.Percent {
		return fmt.Sprintf("%d%%", v.Value)
	}
	return fmt.Sprint(v.Value)
}

// pairs of a map, in order.
func pairs(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}
