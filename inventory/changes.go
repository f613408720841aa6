package inventory

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// Changes says in words what differs between two sets, one object a line,
// sorted: "definition compute changed: config, image", "machine r1u05 added".
func Changes(old, new *Set) []string {
	var lines []string
	for _, line := range changed("network", old.network, new.network) {
		// What recast cannot promise is said before it is begun.
		if n := new.network[strings.Fields(line)[1]]; n != nil && n.DHCP == DHCPProxy {
			line += " (dhcp: proxy: its addresses are not ours, another server gives them)"
		}
		lines = append(lines, line)
	}
	lines = append(lines, changed("image", old.image, new.image)...)
	lines = append(lines, changed("definition", old.definition, new.definition)...)
	selecting := map[*Group]bool{}
	for _, g := range new.groupOf {
		selecting[g] = true
	}
	for _, line := range changed("group", old.group, new.group) {
		name := strings.Fields(line)[1]
		g, was := new.group[name], old.group[name]
		switch enforced := was != nil && was.Power == PowerEnforce; {
		case g == nil || enforced == (g.Power == PowerEnforce):
		case enforced:
			line += " (power: report: where somebody switches one of its machines off, recast only says so)"
		default:
			line += " (power: enforce: where somebody switches one of its active machines off, recast switches it on again)"
		}
		if g != nil && !selecting[g] {
			line += " (selects no machine: compare its select with the machines' labels and location)"
		}
		lines = append(lines, line)
	}
	for _, line := range changed("machine", old.machine, new.machine) {
		name := strings.Fields(line)[1]
		if m, was := new.machine[name], old.machine[name]; m != nil && m.BMC == nil && (was == nil || was.BMC != nil) {
			line += " (no bmc: a person has to start it from the network, for every later change too)"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func changed[T any](kind string, old, new map[string]*T) (lines []string) {
	for name, was := range old {
		is, ok := new[name]
		if !ok {
			lines = append(lines, kind+" "+name+" removed")
			continue
		}
		if was == is {
			continue
		}
		if fields := differing(was, is); len(fields) > 0 {
			lines = append(lines, kind+" "+name+" changed: "+strings.Join(fields, ", "))
		}
	}
	for name := range new {
		if _, ok := old[name]; !ok {
			lines = append(lines, kind+" "+name+" added")
		}
	}
	return lines
}

// differing are the names of the JSON fields that differ, sorted.
func differing(a, b any) (fields []string) {
	rawA, errA := json.Marshal(a)
	rawB, errB := json.Marshal(b)
	if errA == nil && errB == nil && bytes.Equal(rawA, rawB) {
		return nil
	}
	var x, y map[string]json.RawMessage
	if json.Unmarshal(rawA, &x) != nil || json.Unmarshal(rawB, &y) != nil {
		return []string{"something"} // cannot happen; a change must never be hidden
	}
	for name, value := range x {
		if !bytes.Equal(value, y[name]) {
			fields = append(fields, name)
		}
	}
	for name := range y {
		if _, ok := x[name]; !ok {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	return fields
}
