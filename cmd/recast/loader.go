package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/ipxe"
)

// maxLoader is what is read of a file or URL that shall be a loader.
const maxLoader = 32 << 20

func newLoader() *cobra.Command {
	cmd := &cobra.Command{Use: "loader", GroupID: "server", Short: "Import and list boot loaders of your own",
		Long: `recast brings iPXE, and for Secure Boot Debian's shim and GRUB. A loader of your own is
imported by its SHA-256, and a Machine or Model names it by that: boot: {loader: "sha256:…"}.`}
	var sum, name, beside string
	imp := &cobra.Command{
		Use: "import FILE|URL", Short: "Import a loader by its SHA-256",
		Long: `Import a loader from a file or a URL. It must have the SHA-256 that you give, which is best
taken from where the loader's makers publish it. One whose SBAT generation is known to be
revoked is refused.

A shim loads what it starts from beside itself, by name: import the shim first, then that
with --beside and the shim's digest.`,
		Example: "  recast loader import ipxe.efi --sha256 4f1d…\n" +
			"  recast loader import https://boot.ipxe.org/x86_64-efi-sb/ipxe.efi --sha256 9a07… --beside 31c2…",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if sum == "" {
				return codeError{errors.New("give the loader's digest with --sha256: sha256sum FILE shows that of a file you trust"), exitUsage}
			}
			d, err := inventory.ParseDigest("sha256:" + strings.TrimPrefix(sum, "sha256:"))
			if err != nil {
				return codeError{err, exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			q := url.Values{"sha256": {d.String()}, "name": {name}}
			if beside != "" {
				shim, err := resolveLoader(cmd, c, beside)
				if err != nil {
					return err
				}
				q.Set("beside", shim.String())
			}
			b, origin, base, err := readLoader(cmd, args[0])
			if err != nil {
				return err
			}
			// Before it travels: a wrong file is told from a wrong digest here.
			if got := inventory.DigestOf(b); got != d {
				return codeError{fmt.Errorf("%s has the SHA-256 %s, not the given %s", origin, got.Hex(), d.Hex()), exitRefused}
			}
			q.Set("origin", origin)
			if name == "" {
				q.Set("name", base)
			}
			resp, err := c.do(cmd.Context(), http.MethodPost, "/api/v1/loaders?"+q.Encode(), bytes.NewReader(b), "application/octet-stream")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var x ipxe.Imported
			if err := decodeBody(resp.Body, &x); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s %s for %s: %s\n", loaderKind(x.Binary), dash(x.Binary.Version), x.Binary.Arch, loaderCan(x.Binary))
			fmt.Fprintln(cmd.OutOrStdout(), x.Digest)
			return nil
		},
	}
	imp.Flags().StringVar(&sum, "sha256", "", "digest that the loader must have, in hex")
	imp.Flags().StringVar(&name, "name", "", "file name to serve it by (default: its own)")
	imp.Flags().StringVar(&beside, "beside", "", "digest of the shim that starts it")
	var output string
	list := &cobra.Command{Use: "list", Short: "List imported loaders", Args: arguments(cobra.NoArgs),
		Long: "List the loaders that were imported: what each says it is, who signed it for Secure Boot (the\nfirmware checks that, recast does not), what it can do, and whether it is revoked.",
		RunE: func(cmd *cobra.Command, _ []string) error { return get(cmd, "loaders", "", output) }}
	addOutput(list, &output)
	remove := &cobra.Command{Use: "remove LOADER", Short: "Remove an imported loader", Args: arguments(cobra.ExactArgs(1)),
		Long: "Remove an imported loader that no Machine names. LOADER is its digest, or the first digits of it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			d, err := resolveLoader(cmd, c, args[0])
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodDelete, "/api/v1/loaders/"+d.String(), nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: removed\n", d.Short())
			return nil
		}}
	return parent(cmd, imp, list, remove)
}

// readLoader reads a file, or fetches a URL: whoever answers there, the digest says
// which bytes they have to be.
func readLoader(cmd *cobra.Command, source string) (b []byte, origin, base string, err error) {
	var from io.ReadCloser
	if u, err := url.Parse(source); err == nil && (u.Scheme == "https" || u.Scheme == "http") {
		req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, source, nil)
		if err != nil {
			return nil, "", "", fmt.Errorf("fetch loader: %w", err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, "", "", fmt.Errorf("fetch loader: %w", err)
		}
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return nil, "", "", fmt.Errorf("fetch loader: %s answered %s", u.Redacted(), resp.Status)
		}
		from, origin, base = resp.Body, u.Redacted(), path.Base(u.Path)
	} else {
		f, err := os.Open(source)
		if err != nil {
			return nil, "", "", fmt.Errorf("read loader: %w", err)
		}
		from, origin, base = f, source, filepath.Base(source)
		if abs, err := filepath.Abs(source); err == nil {
			origin = abs
		}
	}
	defer from.Close()
	if b, err = io.ReadAll(io.LimitReader(from, maxLoader+1)); err != nil {
		return nil, "", "", fmt.Errorf("read loader: %w", err)
	}
	if len(b) > maxLoader {
		return nil, "", "", fmt.Errorf("read loader: %s is larger than %d MiB, and no loader is", origin, maxLoader>>20)
	}
	return b, origin, base, nil
}

// resolveLoader accepts the digest of an imported loader or its first digits.
func resolveLoader(cmd *cobra.Command, c *client, s string) (inventory.Digest, error) {
	return c.resolve(cmd.Context(), "loader", "/api/v1/loaders", s, "recast loader list shows them")
}

func loaderKind(b ipxe.Binary) string {
	if b.Kind == "" {
		return "unknown"
	}
	return b.Kind
}

// loaderCan is what a loader can do, in words.
func loaderCan(b ipxe.Binary) string {
	var can []string
	if !b.UEFI {
		can = append(can, "BIOS")
	}
	if len(b.Signers) > 0 {
		can = append(can, "signed by "+strings.Join(b.Signers, " and "))
	}
	for _, f := range []struct {
		has  bool
		name string
	}{{b.HTTP, "HTTP"}, {b.HTTPS, "HTTPS"}, {b.IPv6, "IPv6"}} {
		if f.has {
			can = append(can, f.name)
		}
	}
	if can == nil {
		return "-"
	}
	return strings.Join(can, ", ")
}

// loaderSBAT are the components with their generations.
func loaderSBAT(b ipxe.Binary) string {
	var parts []string
	for _, e := range b.SBAT {
		if e.Component != "sbat" {
			parts = append(parts, fmt.Sprintf("%s %d", e.Component, e.Generation))
		}
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, ", ")
}
