package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"recast/web"
)

func newSecret() *cobra.Command {
	cmd := &cobra.Command{Use: "secret", GroupID: "server", Short: "Set, list and remove secrets",
		Long: "Secrets are sealed in the store and leave it only for a BMC, or for a machine that has claimed\nits configuration. No command prints one."}
	var from string
	set := &cobra.Command{
		Use: "set NAME", Short: "Store a new version of a secret, read from standard input",
		Long: `Store a new version of a secret. The value is read from standard input or --from-file,
never from the command line; on a terminal it is not shown. Credentials of a BMC have the
form user:password. A generation that refers to a secret holds its version: a new version is
a change that the plan shows.`,
		Example: "  printf %s 'admin:hunter2' | recast secret set rack1-bmc",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			value, err := readSecret(cmd, from, fmt.Sprintf("Value of %s: ", args[0]))
			if err != nil {
				return fmt.Errorf("read secret: %w", err)
			}
			if value == "" {
				return errors.New("read secret: it is empty; give its value on standard input")
			}
			if err := setSecret(cmd.Context(), c, args[0], value); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: set\n", args[0])
			return nil
		},
	}
	set.Flags().StringVar(&from, "from-file", "", "read the value from this file")
	var output string
	list := &cobra.Command{Use: "list", Short: "List names and versions", Args: arguments(cobra.NoArgs),
		Long: "List names and versions, never a value.",
		RunE: func(cmd *cobra.Command, _ []string) error { return get(cmd, "secrets", "", output) }}
	addOutput(list, &output)
	remove := &cobra.Command{Use: "remove NAME", Short: "Remove a secret", Args: arguments(cobra.ExactArgs(1)),
		Long: "Remove a secret. What refers to it is refused from then on.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodDelete, "/api/v1/secrets/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: removed\n", args[0])
			return nil
		}}
	return parent(cmd, set, list, remove)
}

func setSecret(ctx context.Context, c *client, name, value string) error {
	return c.call(ctx, http.MethodPut, "/api/v1/secrets/"+url.PathEscape(name), web.SecretRequest{Value: value}, nil)
}

// secretLimit bounds what is read for a secret or a token.
const secretLimit = 512 << 10

// readSecret reads a file, or standard input: without echo on a terminal, else
// to its end. One newline at the end is the editor's.
func readSecret(cmd *cobra.Command, file, prompt string) (string, error) {
	in := cmd.InOrStdin()
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	} else if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		raw, err := readPassword(cmd.Context(), f)
		fmt.Fprintln(cmd.ErrOrStderr())
		return strings.TrimSuffix(string(raw), "\r"), err
	}
	raw, err := io.ReadAll(io.LimitReader(interruptible{cmd.Context(), in}, secretLimit+1))
	if err != nil {
		return "", err
	}
	if len(raw) > secretLimit {
		return "", fmt.Errorf("it is larger than %s", size(secretLimit))
	}
	return strings.TrimSuffix(string(raw), "\n"), nil
}
