package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/web"
)

func newLogin() *cobra.Command {
	var tokenFile, fingerprint, name string
	var list bool
	cmd := &cobra.Command{
		Use: "login URL | login --use NAME | login --list", GroupID: "server", Short: "Believe a server's CA and keep its address and token",
		Long: `Fetch a server's CA certificate, show its fingerprint, and store address, CA and token as
the current context. The fingerprint is what sha256sum says of the DER form of the server's
ca.pem, and what recast serve logs at its start. The token stands in the file operator.token of
the server's data folder. Root on the server needs no login.`,
		Example: "  recast login https://recast.example:8443 --token-file token\n  recast login --list\n  recast login --use lab",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			use, err := cmd.Flags().GetString("use")
			switch {
			case err != nil:
				return err
			case list && len(args) == 0 && use == "":
				return listContexts(cmd)
			case use != "" && len(args) == 0 && !list:
				return useContext(cmd, use)
			case len(args) == 1 && use == "" && !list:
				return login(cmd, args[0], name, tokenFile, fingerprint)
			}
			return codeError{errors.New("want one of URL, --use NAME and --list; see: recast login --help"), exitUsage}
		},
	}
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with the operator's token (default: standard input)")
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "the CA's fingerprint, where nobody is there to compare it")
	cmd.Flags().StringVar(&name, "name", "default", "name of the context")
	cmd.Flags().String("use", "", "make this context the current one")
	cmd.Flags().BoolVar(&list, "list", false, "list the contexts")
	return cmd
}

func login(cmd *cobra.Command, server, name, tokenFile, fingerprint string) error {
	if err := inventory.CheckName(name); err != nil || name == currentContext {
		return codeError{fmt.Errorf("context %q: want a name of lower-case letters and digits, and not %q", name, currentContext), exitUsage}
	}
	server, ca, err := fetchCA(server)
	if err != nil {
		return err
	}
	digest := inventory.DigestOf(ca.Raw)
	fmt.Fprintf(cmd.OutOrStdout(), "The CA of %s has the fingerprint\n  %s\n", server, digest)
	switch {
	case fingerprint != "" && fingerprint != digest.String() && fingerprint != digest.Hex():
		return codeError{fmt.Errorf("log in to %s: its CA is not %s; either the fingerprint is another server's, or somebody is in between", server, fingerprint), exitRefused}
	case fingerprint == "":
		ok, err := askYes(cmd, "Is that the fingerprint of the server's ca.pem?")
		if err != nil && !errors.Is(err, errNobody) {
			return errors.New("interrupted: not logged in")
		}
		if err != nil {
			return codeError{fmt.Errorf("nobody is there to compare it: repeat with --fingerprint %s once you know that it is right", digest), exitUsage}
		}
		if !ok {
			return errors.New("not logged in")
		}
	}
	token, err := readSecret(cmd, tokenFile, "Operator's token: ")
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	c := clientContext{Name: name, URL: server, CADigest: digest, Token: strings.TrimSpace(token),
		CAPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))}
	cl, err := newClient(c)
	if err != nil {
		return err
	}
	if err := cl.call(cmd.Context(), http.MethodGet, "/api/v1/status", nil, nil); err != nil {
		return err
	}
	dir, err := contextDir()
	if err != nil {
		return err
	}
	if err := saveContext(filepath.Join(dir, name+".json"), c); err != nil {
		return fmt.Errorf("save context: %w", err)
	}
	return useContext(cmd, name)
}

// fetchCA takes the last certificate of the chain that the server shows. It is
// believed only once a person, or --fingerprint, says so.
func fetchCA(raw string) (server string, ca *x509.Certificate, err error) {
	server, ca, _, err = fetchChain(raw)
	return server, ca, err
}

// fetchChain is the whole chain that the server shows.
func fetchChain(raw string) (server string, ca *x509.Certificate, chain []*x509.Certificate, err error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return "", nil, nil, codeError{fmt.Errorf("log in to %q: want https://host:port", raw), exitUsage}
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "8443")
	}
	server = "https://" + u.Host
	conn, err := tls.Dial("tcp", u.Host, &tls.Config{MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // nothing is sent; the fingerprint is what is compared
		VerifyConnection:   func(s tls.ConnectionState) error { chain = s.PeerCertificates; return nil }})
	if err != nil {
		return "", nil, nil, codeError{fmt.Errorf("log in to %s: %w; is the server running?", server, err), exitNoServer}
	}
	_ = conn.Close()
	if len(chain) < 2 || !chain[len(chain)-1].IsCA {
		return "", nil, nil, fmt.Errorf("log in to %s: it shows no CA certificate; is it a recast server's API port?", server)
	}
	return server, chain[len(chain)-1], chain, nil
}

// useContext makes a stored context the current one.
func useContext(cmd *cobra.Command, name string) error {
	dir, err := contextDir()
	if err != nil {
		return err
	}
	if _, err := readContext(filepath.Join(dir, name+".json")); errors.Is(err, os.ErrNotExist) {
		return codeError{fmt.Errorf("there is no context %q; recast login --list lists them", name), exitUsage}
	} else if err != nil {
		return err
	}
	if err := writePrivate(filepath.Join(dir, currentContext), []byte(name+"\n")); err != nil {
		return fmt.Errorf("save context: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Context %q is the current one.\n", name)
	return nil
}

func listContexts(cmd *cobra.Command) error {
	dir, err := contextDir()
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return err
	}
	current, _ := os.ReadFile(filepath.Join(dir, currentContext))
	lines := [][]string{{"CURRENT", "NAME", "SERVER"}}
	for _, f := range files {
		c, err := readContext(f)
		if err != nil {
			return err
		}
		mark := ""
		if c.Name == strings.TrimSpace(string(current)) {
			mark = "*"
		}
		lines = append(lines, []string{mark, c.Name, c.URL})
	}
	rows(cmd.OutOrStdout(), lines)
	return nil
}

func newVersion() *cobra.Command {
	return &cobra.Command{Use: "version", GroupID: "server", Short: "Show the version of this binary and of the server",
		Long: `Show the version of this binary, and of the server where one is known: whether its store takes
writes, whether rollouts are frozen, and, by reason, how many packets, requests and BMC answers
were malformed or refused.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "recast", version)
			c, err := clientOf(cmd)
			if err != nil {
				return nil // no server is known: that is no error here
			}
			var v web.StatusReply
			if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/status", nil, &v); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "server %s at %s\n", v.Version, c.ctx.URL)
			if v.ReadOnly != "" {
				fmt.Fprintln(cmd.OutOrStdout(), "the server's store is read-only:", v.ReadOnly)
			}
			if v.Frozen.Reason != "" {
				fmt.Fprintln(cmd.OutOrStdout(), "rollouts are frozen:", v.Frozen.Reason, "- recast unfreeze lets them go on")
			}
			for _, why := range slices.Sorted(maps.Keys(v.Malformed)) {
				fmt.Fprintf(cmd.OutOrStdout(), "malformed or refused since its start: %d, %s\n", v.Malformed[why], why)
			}
			return nil
		}}
}
