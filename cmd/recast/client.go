package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"recast/inventory"
	"recast/web"
)

// client asks one server's operator API.
type client struct {
	ctx  clientContext
	http *http.Client
}

func newClient(c clientContext) (*client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(c.CAPEM)) {
		return nil, fmt.Errorf("context %q holds no CA certificate; recast login %s makes a new one", c.Name, c.URL)
	}
	return &client{ctx: c, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}}, nil
}

// clientOf a command's context flag.
func clientOf(cmd *cobra.Command) (*client, error) {
	name, err := cmd.Flags().GetString("context")
	if err != nil {
		return nil, err
	}
	c, err := findContext(name)
	if err != nil {
		return nil, err
	}
	return newClient(c)
}

// problemError is what the server says no with.
type problemError struct{ web.Problem }

func (e problemError) Error() string {
	if len(e.Problems) > 0 {
		return e.Detail + "\n" + inventory.Problems(e.Problems).Error()
	}
	return e.Detail
}

// do sends a request and gives the open response of a success.
func (c *client) do(ctx context.Context, method, path string, body io.Reader, mime string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.ctx.URL, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if mime != "" {
		req.Header.Set("Content-Type", mime)
	}
	if c.ctx.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.ctx.Token)
	}
	if u, err := user.Current(); err == nil {
		req.Header.Set("Recast-Who", u.Username)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return nil, codeError{fmt.Errorf("ask %s: its certificate is not by the CA that was pinned: either another server answers there, or somebody is in between; recast login %s pins a new one", c.ctx.URL, c.ctx.URL), exitNoServer}
		}
		return nil, codeError{fmt.Errorf("ask %s: %w; is the server running?", c.ctx.URL, err), exitNoServer}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p web.Problem
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(raw, &p) != nil || p.Status == 0 {
		p = web.Problem{Status: resp.StatusCode, Detail: resp.Status}
	}
	code := exitRefused
	if p.Status >= 500 {
		code = exitError
	}
	return nil, codeError{problemError{p}, code}
}

// call sends in as JSON and decodes the answer into out; either may be nil.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	mime := ""
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body, mime = bytes.NewReader(raw), "application/json"
	}
	resp, err := c.do(ctx, method, path, body, mime)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("decode the server's answer: %w", err)
	}
	return nil
}

// resolve finds a digest, or the one that begins with the digits, in a list of the API.
func (c *client) resolve(ctx context.Context, what, path, s, next string) (inventory.Digest, error) {
	if d, err := inventory.ParseDigest(s); err == nil {
		return d, nil
	}
	var list []struct {
		Digest inventory.Digest `json:"digest"`
	}
	if err := c.call(ctx, http.MethodGet, path, nil, &list); err != nil {
		return "", err
	}
	all := make([]inventory.Digest, len(list))
	for i := range list {
		all[i] = list[i].Digest
	}
	d, err := byDigits(all, s)
	if err != nil {
		return "", fmt.Errorf("%s %q: %w; %s", what, s, err, next)
	}
	return d, nil
}

// machinePath of the API.
func machinePath(name string) string { return "/api/v1/machines/" + url.PathEscape(name) }

// isTerminal of a file; /dev/null is none.
func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// onTerminal tells whether somebody is there to answer.
func onTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && isTerminal(f)
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
