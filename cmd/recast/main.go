// Command recast re-images physical machines from declared definitions. One
// binary serves DHCP, TFTP, boot scripts and images, drives the machines' BMCs,
// and is the client that operators talk to it with.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// Exit codes. Scripts may rely on them.
const (
	exitOK       = 0
	exitError    = 1 // the command did not do what it was asked
	exitUsage    = 2 // the command line is wrong
	exitChanges  = 3 // plan --exit-code: the plan is not empty
	exitRefused  = 4 // the server refused: bad files, an outdated plan, a missing right
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
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	cmd := newRoot()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	var coded codeError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &coded):
		if coded.error.Error() != "" {
			fmt.Fprintln(os.Stderr, "recast:", coded.error)
		}
		return coded.code
	}
	fmt.Fprintln(os.Stderr, "recast:", err)
	return exitError
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "recast",
		Short:         "Re-image machines from declared definitions",
		SilenceErrors: true, SilenceUsage: true,
		Version: version,
	}
	root.PersistentFlags().String("context", "", "context file or name to use (default: the last login, else the server on this host)")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return codeError{fmt.Errorf("%w; see: %s --help", err, c.CommandPath()), exitUsage}
	})
	root.AddGroup(&cobra.Group{ID: "declare", Title: "Declare and roll out:"}, &cobra.Group{ID: "look", Title: "Look:"},
		&cobra.Group{ID: "machine", Title: "One machine:"}, &cobra.Group{ID: "server", Title: "Server and lab:"})
	root.AddCommand(commands()...)
	return root
}

// arguments wraps cobra's argument checks, so that a wrong count is a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return codeError{fmt.Errorf("%w; see: %s --help", err, c.CommandPath()), exitUsage}
		}
		return nil
	}
}
