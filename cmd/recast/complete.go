package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/inventory"
)

// completeTime bounds what a shell waits for names: it would rather have none.
const completeTime = 2 * time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// declaredNames asks the server; no server gives no names.
func declaredNames(cmd *cobra.Command, pick func(*inventory.Set) []string, taken []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := clientOf(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTime)
	defer cancel()
	var set inventory.Set
	if c.call(ctx, http.MethodGet, "/api/v1/set", nil, &set) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	have := map[string]bool{}
	for _, t := range taken {
		have[t] = true
	}
	var out []string
	for _, name := range pick(&set) {
		if strings.HasPrefix(name, prefix) && !have[name] {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func namesOf[T any](all []*T, nameOf func(*T) string) []string {
	out := make([]string, len(all))
	for i, v := range all {
		out[i] = nameOf(v)
	}
	return out
}

// pickNames of the declared objects of a kind, in the plural.
func pickNames(kind string) func(*inventory.Set) []string {
	return func(s *inventory.Set) []string {
		switch kind {
		case "machines":
			return namesOf(s.Machines, func(m *inventory.Machine) string { return m.Name })
		case "groups", "rollouts":
			return namesOf(s.Groups, func(g *inventory.Group) string { return g.Name })
		case "definitions":
			return namesOf(s.Definitions, func(d *inventory.Definition) string { return d.Name })
		case "images":
			return namesOf(s.Images, func(i *inventory.Image) string { return i.Name })
		case "networks":
			return namesOf(s.Networks, func(n *inventory.Network) string { return n.Name })
		}
		return nil
	}
}

func completeMachines(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return declaredNames(cmd, pickNames("machines"), args, prefix)
}

func completeGroups(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return declaredNames(cmd, pickNames("groups"), nil, prefix)
}

// completeKinds completes a kind, then its names.
func completeKinds(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return kindNames, cobra.ShellCompDirectiveNoFileComp
	case 1:
		return declaredNames(cmd, pickNames(kindOf(args[0])), nil, prefix)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func completeDescribe(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		machines, directive := completeMachines(cmd, nil, prefix)
		return append(append([]string{}, describeKinds...), machines...), directive
	case 1:
		return declaredNames(cmd, pickNames(kindOf(args[0])), nil, prefix)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

var _ = []completer{completeMachines, completeGroups, completeKinds, completeDescribe}

// newCompletion is cobra's own, but that it refuses a shell it does not know.
func newCompletion() *cobra.Command {
	cmd := &cobra.Command{Use: "completion", GroupID: "server", Short: "Print a shell's completion script",
		Long:    "Print the script that lets a shell complete commands, flags and the names of machines.",
		Example: "  recast completion bash > /etc/bash_completion.d/recast"}
	for _, sh := range []struct {
		name  string
		print func(*cobra.Command, io.Writer) error
	}{
		{"bash", func(root *cobra.Command, w io.Writer) error { return root.GenBashCompletionV2(w, true) }},
		{"fish", func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) }},
		{"powershell", func(root *cobra.Command, w io.Writer) error { return root.GenPowerShellCompletionWithDesc(w) }},
		{"zsh", func(root *cobra.Command, w io.Writer) error { return root.GenZshCompletion(w) }},
	} {
		cmd.AddCommand(&cobra.Command{Use: sh.name, Short: "The script for " + sh.name, Long: "Print the completion script for " + sh.name + ".",
			Args: arguments(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error { return sh.print(cmd.Root(), cmd.OutOrStdout()) }})
	}
	return parent(cmd)
}
