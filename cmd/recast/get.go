package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
	"recast/web"
)

// kindNames that get knows.
var kindNames = []string{"machines", "groups", "definitions", "images", "networks", "generations", "rollouts", "discovered", "orphans", "leases", "audit", "secrets", "loaders"}

func newGet() *cobra.Command {
	var output string
	var watch bool
	cmd := &cobra.Command{
		Use: "get KIND [NAME]", GroupID: "look", Short: "List what is declared and what is seen",
		Long: `List objects of a kind: ` + strings.Join(kindNames[:6], ", ") + `,
` + strings.Join(kindNames[6:], ", ") + `.

Groups, definitions and networks are the applied ones; images are those the server holds;
discovered machines are undeclared ones, and orphans those that are declared no more. NAME is an
object's name, or the first digits of a digest. -o wide shows more columns; with discovered, the
YAML that declares each machine. audit is who did what, oldest first (NAME: to one machine); it ends
with an error that names each entry where the chain of hashes is broken, and -o wide shows the
hashes: keep the newest elsewhere to see that nothing was cut off the end.`,
		Example:           "  recast get machines -o wide\n  recast get machines --watch\n  recast get discovered -o wide",
		Args:              arguments(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name := kindOf(args[0]), ""
			if len(args) == 2 {
				name = args[1]
			}
			if !watch {
				return get(cmd, kind, name, output)
			}
			if kind != "machines" {
				return codeError{fmt.Errorf("get %s --watch: only machines can be watched", kind), exitUsage}
			}
			return watchMachines(cmd, name)
		},
	}
	addOutput(cmd, &output)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "follow changes of machines, a line each")
	return cmd
}

// kindsByName have names that people type, in the first column.
var kindsByName = []string{"machines", "groups", "definitions", "networks", "rollouts", "orphans", "secrets"}

// kindOf accepts the singular too.
func kindOf(s string) string {
	for _, k := range kindNames {
		if s == k || s+"s" == k {
			return k
		}
	}
	return s
}

func unknownKind(verb, kind string, known []string) error {
	return codeError{fmt.Errorf("%s %q: unknown kind; %s", verb, kind, inventory.DidYouMean(kind, known)), exitUsage}
}

func get(cmd *cobra.Command, kind, name, output string) error {
	if !slices.Contains(kindNames, kind) {
		return unknownKind("get", kind, kindNames)
	}
	c, err := clientOf(cmd)
	if err != nil {
		return err
	}
	l := listing{cmd, c, kind, name, output}
	switch kind {
	case "machines", "orphans":
		return list(l, named(func(v provision.View) string { return v.Name }), machineRow)
	case "generations":
		return list(l, func(g provision.GenerationInfo, name string) bool { return isDigits(g.Digest, name) }, generationRow)
	case "rollouts":
		return list(l, named(func(r provision.Rollout) string { return r.Group }), rolloutRow)
	case "discovered":
		return getDiscovered(l)
	case "leases":
		return list(l, named(func(v inventory.Lease) string { return v.Addr.String() }), leaseRow)
	case "audit":
		return getAudit(l)
	case "secrets":
		return list(l, named(func(s provision.SecretInfo) string { return s.Name }), secretRow)
	case "images":
		return list(l, func(i web.ImageView, name string) bool { return isDigits(i.Digest, name) }, imageRow)
	}
	if kind == "loaders" {
		return list(l, func(x ipxe.Imported, name string) bool { return isDigits(x.Digest, name) }, loaderRow)
	}
	var set inventory.Set
	if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/set", nil, &set); err != nil {
		return err
	}
	switch kind {
	case "groups":
		return showList(l, values(set.Groups), named(func(g inventory.Group) string { return g.Name }), groupRow)
	case "definitions":
		return showList(l, values(set.Definitions), named(func(d inventory.Definition) string { return d.Name }), definitionRow)
	}
	return showList(l, values(set.Networks), named(func(n inventory.Network) string { return n.Name }), networkRow)
}

// nearOr suggests the nearest name, else where to look.
func nearOr(name string, names []string, look string) string {
	if next := inventory.DidYouMean(name, names); strings.HasPrefix(next, "did you mean") {
		return next
	}
	return look
}

// listing is one question for a list.
type listing struct {
	cmd                *cobra.Command
	c                  *client
	kind, name, output string
}

func named[T any](nameOf func(T) string) func(T, string) bool {
	return func(v T, name string) bool { return nameOf(v) == name }
}

func isDigits(d inventory.Digest, digits string) bool {
	return strings.HasPrefix(d.Hex(), strings.TrimPrefix(digits, "sha256:"))
}

func values[T any](pointers []*T) []T {
	out := make([]T, len(pointers))
	for i, p := range pointers {
		out[i] = *p
	}
	return out
}

// list fetches a list and shows it.
func list[T any](l listing, is func(T, string) bool, row func(v *T, wide bool) []string) error {
	var all []T
	if err := l.c.call(l.cmd.Context(), http.MethodGet, "/api/v1/"+l.kind, nil, &all); err != nil {
		return err
	}
	return showList(l, all, is, row)
}

// showList keeps what the name asks for, and shows it.
func showList[T any](l listing, all []T, is func(T, string) bool, row func(v *T, wide bool) []string) error {
	kept := []T{}
	for _, v := range all {
		if l.name == "" || is(v, l.name) {
			kept = append(kept, v)
		}
	}
	if l.name != "" && len(kept) == 0 {
		var names []string
		if slices.Contains(kindsByName, l.kind) {
			for i := range all {
				names = append(names, row(&all[i], false)[0])
			}
		}
		return codeError{fmt.Errorf("get %s: there is no %q; %s", l.kind, l.name, nearOr(l.name, names, "recast get "+l.kind+" lists what there is")), exitRefused}
	}
	return show(l.cmd.OutOrStdout(), l.output, kept, func(w io.Writer, wide bool) {
		lines := [][]string{row(nil, wide)}
		for i := range kept {
			lines = append(lines, row(&kept[i], wide))
		}
		rows(w, lines)
	})
}

// getAudit shows the audit log, and fails where its chain of hashes is broken.
func getAudit(l listing) error {
	var all []provision.AuditEntry
	if err := l.c.call(l.cmd.Context(), http.MethodGet, "/api/v1/audit", nil, &all); err != nil {
		return err
	}
	err := showList(l, all, named(func(a provision.AuditEntry) string { return a.Machine }), auditRow)
	for _, a := range all {
		if a.Broken != "" {
			err = errors.Join(err, fmt.Errorf("the audit log was changed: entry %d: %s", a.Seq, a.Broken))
		}
	}
	return err
}

// getDiscovered shows, wide, the YAML that declares each machine.
func getDiscovered(l listing) error {
	is := named(func(d provision.Stray) string { return d.MAC.String() })
	if l.output != "wide" {
		return list(l, is, strayRow)
	}
	var all []provision.Stray
	if err := l.c.call(l.cmd.Context(), http.MethodGet, "/api/v1/discovered", nil, &all); err != nil {
		return err
	}
	found := false
	for _, d := range all {
		if l.name != "" && !is(d, l.name) {
			continue
		}
		if found {
			fmt.Fprintln(l.cmd.OutOrStdout(), "---")
		}
		found = true
		fmt.Fprint(l.cmd.OutOrStdout(), d.YAML)
	}
	if l.name != "" && !found {
		return codeError{fmt.Errorf("get discovered: there is no %q; recast get discovered lists what there is", l.name), exitRefused}
	}
	return nil
}
