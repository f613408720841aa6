// Command recast re-images physical machines from declared definitions. One
// binary serves DHCP, TFTP, boot scripts and images, drives the machines' BMCs,
// and is the client that operators talk to it with.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"recast/inventory"
)

// version is set by the linker.
var version = "dev"

// Exit codes. Scripts may rely on them.
const (
	exitOK       = 0
	exitError    = 1 // the command did not do what it was asked
	exitUsage    = 2 // the command line, or the configuration it names, is wrong
	exitChanges  = 3 // plan --exit-code: the plan is not empty
	exitRefused  = 4 // the server refused: bad files, an outdated plan, a missing right, an unknown name
	exitNoServer = 5 // the server does not answer
)

// codeError is an error with its exit code.
type codeError struct {
	error
	code int
}

func (e codeError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt) }) // the second ctrl-C ends what does not end by itself
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	cmd := newRoot()
	cmd.SetArgs(args)
	return exitCode(cmd.ExecuteContext(ctx), os.Stderr)
}

// exitCode prints an error and gives its code.
func exitCode(err error, w io.Writer) int {
	var coded codeError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &coded):
		if text := err.Error(); text != "" { // whole: the code may stand deep in it
			fmt.Fprintln(w, "recast:", text)
		}
		return coded.code
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted: what the server was asked for before goes on, recast get machines shows it")
	}
	fmt.Fprintln(w, "recast:", err)
	return exitError
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "recast",
		Short: "Re-image machines from declared definitions",
		Long: `recast re-images machines from declared definitions: write YAML, look at the plan, apply it, and
every machine boots into exactly that state. recast lab up shows all of it on this machine.`,
		SilenceErrors: true, SilenceUsage: true,
		Version: version,
	}
	parent(root)
	root.PersistentFlags().String("context", "", "context to use: file, name or lab (default: the last login, else the server or the lab on this host)")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return codeError{fmt.Errorf("%w; %ssee: %s --help", err, nearFlag(c, err), c.CommandPath()), exitUsage}
	})
	root.AddGroup(&cobra.Group{ID: "declare", Title: "Declare and roll out:"}, &cobra.Group{ID: "look", Title: "Look:"},
		&cobra.Group{ID: "machine", Title: "One machine:"}, &cobra.Group{ID: "server", Title: "Server and lab:"})
	root.AddCommand(commands()...)
	return root
}

// nearFlag suggests a flag for one that is not known.
func nearFlag(c *cobra.Command, err error) string {
	name, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !ok {
		return ""
	}
	var known []string
	add := func(f *pflag.Flag) { known = append(known, "--"+f.Name) }
	c.LocalFlags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	if next := inventory.DidYouMean("--"+name, known); strings.HasPrefix(next, "did you mean") {
		return strings.ReplaceAll(next, `"`, "") + " "
	}
	return ""
}

// parent makes a command of commands say so when it is called with another.
func parent(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(children...)
	cmd.Args = cobra.ArbitraryArgs // RunE says which are known
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var known []string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				known = append(known, c.Name())
			}
		}
		next := inventory.DidYouMean(args[0], known)
		if len(known) > 8 && !strings.HasPrefix(next, "did you mean") {
			next = "see: " + cmd.CommandPath() + " --help"
		}
		return codeError{fmt.Errorf("unknown command %q for %q; %s", args[0], cmd.CommandPath(), next), exitUsage}
	}
	return cmd
}

// arguments wraps cobra's argument checks, so that a wrong count is a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			// cobra counts "arg(s)"; people look for which.
			want, given := strings.TrimPrefix(c.Use, c.Name()), "nothing"
			if want == "" {
				want = " no arguments"
			}
			if len(args) > 0 {
				given = fmt.Sprintf("%q", strings.Join(args, " "))
			}
			return codeError{fmt.Errorf("%s: want%s, got %s; see: %s --help", strings.TrimPrefix(c.CommandPath(), "recast "), want, given, c.CommandPath()), exitUsage}
		}
		return nil
	}
}
