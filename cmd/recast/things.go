package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"recast/image"
	"recast/inventory"
	"recast/web"
)

func newSecret() *cobra.Command {
	cmd := &cobra.Command{Use: "secret", GroupID: "server", Short: "Set, list and remove secrets"}
	var from string
	set := &cobra.Command{
		Use: "set NAME", Short: "Store a new version of a secret, read from standard input",
		Long: "Store a new version of a secret. The value is read from standard input or --from-file,\nnever from the command line. BMC credentials have the form user:password.",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			in := cmd.InOrStdin()
			if from != "" {
				f, err := os.Open(from)
				if err != nil {
					return fmt.Errorf("read secret: %w", err)
				}
				defer f.Close()
				in = f
			}
			raw, err := io.ReadAll(io.LimitReader(in, 1<<20))
			if err != nil {
				return fmt.Errorf("read secret: %w", err)
			}
			value := strings.TrimSuffix(string(raw), "\n")
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
	list := &cobra.Command{Use: "list", Short: "List names and versions", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			return get(cmd, c, "secrets", "", "table")
		}}
	remove := &cobra.Command{Use: "remove NAME", Short: "Remove a secret", Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), http.MethodDelete, "/api/v1/secrets/"+url.PathEscape(args[0]), nil, nil)
		}}
	cmd.AddCommand(set, list, remove)
	return cmd
}

func setSecret(ctx context.Context, c *client, name, value string) error {
	return c.call(ctx, http.MethodPut, "/api/v1/secrets/"+url.PathEscape(name), web.SecretRequest{Value: value}, nil)
}

func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", GroupID: "server", Short: "Add, list, verify and remove images"}
	var digest string
	add := &cobra.Command{
		Use: "add FILE|URL|-", Short: "Ingest a disk image: raw, gzip, xz or zstd",
		Long: "Ingest a disk image from a file here, an https URL that the server fetches, or standard input.\nIts digest is that of the unpacked bytes; it is printed last. Adding a damaged image again mends it.",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			info, err := addImage(cmd, c, args[0], digest)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s unpacked, %s packed\n", size(info.Size), size(info.PackSize))
			fmt.Fprintln(cmd.OutOrStdout(), info.Digest)
			return nil
		},
	}
	add.Flags().StringVar(&digest, "digest", "", "refuse any other image")
	var output string
	list := &cobra.Command{Use: "list", Short: "List images", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			return get(cmd, c, "images", "", output)
		}}
	addOutput(list, &output)
	verify := &cobra.Command{Use: "verify DIGEST", Short: "Hash every byte of the server's copy", Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			var info image.Info
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/images/"+url.PathEscape(args[0])+"/verify", nil, &info); err != nil {
				return err
			}
			if info.Damaged != "" {
				return fmt.Errorf("image %s is damaged: %s; recast image add SOURCE mends it", info.Digest.Short(), info.Damaged)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: whole\n", info.Digest)
			return nil
		}}
	remove := &cobra.Command{Use: "remove DIGEST", Short: "Remove an image that nothing needs", Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), http.MethodDelete, "/api/v1/images/"+url.PathEscape(args[0]), nil, nil)
		}}
	cmd.AddCommand(add, list, verify, remove)
	return cmd
}

func addImage(cmd *cobra.Command, c *client, source, digest string) (image.Info, error) {
	var info image.Info
	if strings.HasPrefix(source, "https://") {
		d, err := optionalDigest(digest)
		if err != nil {
			return info, err
		}
		return info, c.call(cmd.Context(), http.MethodPost, "/api/v1/images", web.ImageSource{Source: source, Digest: d}, &info)
	}
	in := cmd.InOrStdin()
	if source != "-" {
		f, err := os.Open(source)
		if err != nil {
			return info, fmt.Errorf("read image: %w", err)
		}
		defer f.Close()
		in = f
	}
	q := url.Values{}
	if digest != "" {
		q.Set("digest", digest)
	}
	if source != "-" {
		q.Set("source", source)
	}
	resp, err := c.do(cmd.Context(), http.MethodPost, "/api/v1/images?"+q.Encode(), in, "application/octet-stream")
	if err != nil {
		return info, err
	}
	defer resp.Body.Close()
	return info, decodeBody(resp.Body, &info)
}

func optionalDigest(s string) (inventory.Digest, error) {
	if s == "" {
		return "", nil
	}
	d, err := inventory.ParseDigest(s)
	if err != nil {
		return "", codeError{err, exitUsage}
	}
	return d, nil
}

func newRamdisk() *cobra.Command {
	cmd := &cobra.Command{Use: "ramdisk", GroupID: "server", Short: "Build the ramdisk that machines netboot"}
	var deb, agent, firmware, out string
	build := &cobra.Command{
		Use: "build", Short: "Build kernel and ramdisk from a Debian kernel package and the agent",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if agent == "" {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				agent = filepath.Join(filepath.Dir(self), "recast-agent")
			}
			if deb == "" {
				return codeError{errors.New("name the kernel package with --kernel: apt-get download of what linux-image-amd64 depends on"), exitUsage}
			}
			r, err := image.BuildRamdisk(cmd.Context(), image.RamdiskOptions{KernelDeb: deb, Agent: agent, FirmwareDir: firmware, Out: out})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: kernel %s, ramdisk of %s\n", out, r.KernelVersion, size(r.Initrd.Size))
			if len(r.MissingFirmware) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "firmware not found: %s\n", strings.Join(r.MissingFirmware, ", "))
			}
			return nil
		},
	}
	build.Flags().StringVar(&deb, "kernel", "", "the linux-image-*-amd64 package file")
	build.Flags().StringVar(&agent, "agent", "", "the recast-agent binary (default: beside this one)")
	build.Flags().StringVar(&firmware, "firmware", "/lib/firmware", "where network cards' firmware is looked for")
	build.Flags().StringVar(&out, "out", filepath.Join(defaultData, "ramdisk"), "folder to write to")
	cmd.AddCommand(build)
	return cmd
}

func newLogin() *cobra.Command {
	var tokenFile, fingerprint, name string
	cmd := &cobra.Command{
		Use: "login URL", GroupID: "server", Short: "Believe a server's CA and keep its address and token",
		Long: "Fetch a server's CA certificate, show its fingerprint, and store address, CA and token as the\ncurrent context. The server prints where its token stands; root on the server needs no login.",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ca, err := fetchCA(args[0])
			if err != nil {
				return err
			}
			digest := inventory.DigestOf(ca.Raw)
			fmt.Fprintf(cmd.OutOrStdout(), "The CA of %s has the fingerprint\n  %s\n", args[0], digest)
			switch {
			case fingerprint != "" && fingerprint != digest.String():
				return codeError{fmt.Errorf("it is not %s", fingerprint), exitRefused}
			case fingerprint == "":
				if err := confirm(cmd, "Is that what the server's ca.pem has?", digest); err != nil {
					return fmt.Errorf("not logged in: repeat with --fingerprint %s once you know that it is right", digest)
				}
			}
			c := clientContext{Name: name, URL: args[0], CADigest: digest,
				CAPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))}
			raw, err := readToken(cmd, tokenFile)
			if err != nil {
				return err
			}
			c.Token = strings.TrimSpace(string(raw))
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			if err := cl.call(cmd.Context(), http.MethodGet, "/api/v1/secrets", nil, nil); err != nil {
				return err
			}
			dir, err := contextDir()
			if err != nil {
				return err
			}
			for _, file := range []string{name, "current"} {
				if err := saveContext(filepath.Join(dir, file+".json"), c); err != nil {
					return fmt.Errorf("save context: %w", err)
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Logged in; context %q is the current one.\n", name)
			return nil
		},
	}
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with the operator's token (default: standard input)")
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "the CA's fingerprint, where nobody is there to compare it")
	cmd.Flags().StringVar(&name, "name", "default", "name of the context")
	return cmd
}

func readToken(cmd *cobra.Command, file string) ([]byte, error) {
	if file != "" {
		return os.ReadFile(file)
	}
	fmt.Fprint(cmd.OutOrStdout(), "Operator's token: ")
	b := make([]byte, 256)
	n, err := cmd.InOrStdin().Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	return bytes.TrimSpace(b[:n]), nil
}

// fetchCA takes the last certificate of the chain that the server shows. It is
// believed only once a person, or --fingerprint, says so.
func fetchCA(raw string) (*x509.Certificate, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, codeError{fmt.Errorf("log in to %q: want https://host:port", raw), exitUsage}
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "8443")
	}
	var chain []*x509.Certificate
	conn, err := tls.Dial("tcp", host, &tls.Config{MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // nothing is sent; the fingerprint is what is compared
		VerifyConnection:   func(s tls.ConnectionState) error { chain = s.PeerCertificates; return nil }})
	if err != nil {
		return nil, codeError{fmt.Errorf("log in to %s: %w", raw, err), exitNoServer}
	}
	_ = conn.Close()
	if len(chain) < 2 || !chain[len(chain)-1].IsCA {
		return nil, fmt.Errorf("log in to %s: it shows no CA certificate; is it a recast server's API port?", raw)
	}
	return chain[len(chain)-1], nil
}

func newVersion() *cobra.Command {
	return &cobra.Command{Use: "version", GroupID: "server", Short: "Show the version of this binary and of the server",
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
			return nil
		}}
}
