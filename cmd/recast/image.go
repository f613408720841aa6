package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/image"
	"recast/inventory"
	"recast/web"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", GroupID: "server", Short: "Add, list, verify and remove images",
		Long: "Images are kept by the digest of their unpacked bytes, which Image objects name."}
	var digest string
	add := &cobra.Command{
		Use: "add FILE|URL|-", Short: "Ingest a disk image: raw, gzip, xz or zstd",
		Long: `Ingest a disk image from a file here, an https URL that the server fetches, or standard
input. The digest of its unpacked bytes is printed alone on standard output. Adding an image
that is damaged mends it. A dm-verity tree in it is held against each block of its data, and the
root hash is printed on standard error.`,
		Example: "  recast image add debian-12.raw.zst\n  curl -fsS https://images.example/os.raw | recast image add -",
		Args:    arguments(cobra.ExactArgs(1)),
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
			for _, line := range verityLines(info.Verity) {
				fmt.Fprintln(cmd.ErrOrStderr(), line)
			}
			fmt.Fprintln(cmd.OutOrStdout(), info.Digest)
			return nil
		},
	}
	add.Flags().StringVar(&digest, "digest", "", "refuse any other image")
	var output string
	list := &cobra.Command{Use: "list", Short: "List images", Args: arguments(cobra.NoArgs),
		Long: "List the images that the server holds, as recast get images does.",
		RunE: func(cmd *cobra.Command, _ []string) error { return get(cmd, "images", "", output) }}
	addOutput(list, &output)
	verify := &cobra.Command{Use: "verify IMAGE", Short: "Hash every byte of the server's copy", Args: arguments(cobra.ExactArgs(1)),
		Long: "Hash every byte of the server's copy. IMAGE is a digest, the first digits of one, or the name of\nan Image object.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, d, err := resolveImage(cmd, args[0])
			if err != nil {
				return err
			}
			var info image.Info
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/images/"+d.String()+"/verify", nil, &info); err != nil {
				return err
			}
			if info.Damaged != "" {
				return fmt.Errorf("image %s is damaged: %s; recast image add SOURCE mends it", info.Digest.Short(), info.Damaged)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: whole\n", info.Digest.Short())
			return nil
		}}
	remove := &cobra.Command{Use: "remove IMAGE", Short: "Remove an image that nothing needs", Args: arguments(cobra.ExactArgs(1)),
		Long: "Remove an image that no Image object and no kept generation needs. IMAGE is as for verify.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, d, err := resolveImage(cmd, args[0])
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodDelete, "/api/v1/images/"+d.String(), nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: removed\n", d.Short())
			return nil
		}}
	return parent(cmd, add, list, verify, remove)
}

func addImage(cmd *cobra.Command, c *client, source, digest string) (image.Info, error) {
	var info image.Info
	d, err := optionalDigest(digest)
	if err != nil {
		return info, err
	}
	if strings.Contains(source, "://") {
		return info, c.call(cmd.Context(), http.MethodPost, "/api/v1/images", web.ImageSource{Source: source, Digest: d}, &info)
	}
	body := io.Reader(cmd.InOrStdin())
	q := url.Values{}
	if d != "" {
		q.Set("digest", d.String())
	}
	total := int64(0)
	if source != "-" {
		f, err := os.Open(source)
		if err != nil {
			return info, fmt.Errorf("read image: %w", err)
		}
		defer f.Close()
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			total = st.Size()
		} else if err == nil && st.IsDir() {
			return info, fmt.Errorf("read image: %q is a folder; give the image file in it", source)
		}
		if path, err := filepath.Abs(source); err == nil {
			source = path
		}
		q.Set("source", source)
		body = f
	}
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && isTerminal(f) {
		p := &progressReader{r: body, w: f, total: total, start: time.Now()}
		defer p.end()
		body = p
	}
	resp, err := c.do(cmd.Context(), http.MethodPost, "/api/v1/images?"+q.Encode(), body, "application/octet-stream")
	if err != nil {
		return info, err
	}
	defer resp.Body.Close()
	return info, decodeBody(resp.Body, &info)
}

// verityLines say of each dm-verity tree what it proves.
func verityLines(all []image.Verity) (lines []string) {
	for i, v := range all {
		same := func(o image.Verity) bool { return o.Tree == v.Tree }
		switch proves := slices.ContainsFunc(all, func(o image.Verity) bool { return same(o) && o.Wrong == "" }); {
		case v.Wrong == "":
			lines = append(lines, fmt.Sprintf("partition %d is proved by the dm-verity tree in partition %d: root hash %s", v.Data, v.Tree, v.RootHash))
		case v.Data == 0:
			lines = append(lines, fmt.Sprintf("the dm-verity tree in partition %d proves nothing: %s", v.Tree, v.Wrong))
		case !proves && !slices.ContainsFunc(all[:i], same):
			lines = append(lines, fmt.Sprintf("the dm-verity tree in partition %d proves nothing: no other partition is what it was made of", v.Tree))
		}
	}
	return lines
}

// progressReader draws on a terminal how much was read, in one line.
type progressReader struct {
	r           io.Reader
	w           io.Writer
	n, total    int64
	start, last time.Time
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	if now := time.Now(); now.Sub(p.last) > 200*time.Millisecond {
		p.last = now
		fmt.Fprintf(p.w, "\r\x1b[2K%s", progressLine(p.n, p.total, now.Sub(p.start)))
	}
	return n, err
}

func (p *progressReader) end() { fmt.Fprint(p.w, "\r\x1b[2K") }

// progressLine says bytes, rate, and the time left where the total is known.
func progressLine(n, total int64, took time.Duration) string {
	text := size(n)
	if total > 0 {
		text = fmt.Sprintf("%d%% of %s", n*100/total, size(total))
	}
	if took < time.Second {
		return text
	}
	rate := float64(n) / took.Seconds()
	text += fmt.Sprintf(", %s/s", size(int64(rate)))
	if total > n && rate > 0 {
		text += fmt.Sprintf(", %s left", (time.Duration(float64(total-n)/rate) * time.Second).Round(time.Second))
	}
	return text
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

// resolveImage accepts a digest, the first digits of one, or an Image's name.
func resolveImage(cmd *cobra.Command, s string) (*client, inventory.Digest, error) {
	c, err := clientOf(cmd)
	if err != nil {
		return nil, "", err
	}
	if d, err := inventory.ParseDigest(s); err == nil {
		return c, d, nil
	}
	var set inventory.Set
	if err := c.call(cmd.Context(), http.MethodGet, "/api/v1/set", nil, &set); err != nil {
		return nil, "", err
	}
	for _, i := range set.Images {
		if i.Name == s {
			return c, i.Digest, nil
		}
	}
	d, err := c.resolve(cmd.Context(), "image", "/api/v1/images", s, "recast get images lists them")
	return c, d, err
}

// byDigits finds the one digest that begins with the digits.
func byDigits(all []inventory.Digest, s string) (inventory.Digest, error) {
	digits := strings.TrimPrefix(s, "sha256:")
	found := map[inventory.Digest]bool{}
	var one inventory.Digest
	for _, d := range all {
		if len(digits) >= minDigits && strings.HasPrefix(d.Hex(), digits) {
			found[d], one = true, d
		}
	}
	switch {
	case len(digits) < minDigits:
		return "", fmt.Errorf("give at least %d digits", minDigits)
	case len(found) == 0:
		return "", codeError{errors.New("there is none"), exitRefused}
	case len(found) > 1:
		return "", fmt.Errorf("%d begin so; give more digits", len(found))
	}
	return one, nil
}

// minDigits of a shortened digest: fewer are a slip of the finger.
const minDigits = 4
