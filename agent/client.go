package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"recast/inventory"
)

const (
	// maxReply bounds a JSON reply; an Order is a few KiB.
	maxReply = 4 << 20
	// maxConfig bounds the configuration volume, which is held in memory.
	maxConfig = 64 << 20
	// pollTimeout is above the 30 s for which the server holds a poll.
	pollTimeout = 45 * time.Second
	callTimeout = 20 * time.Second
)

// StatusError is an answer of the server that was not a success.
type StatusError struct {
	Path   string
	Code   int
	Reason string
}

func (e *StatusError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s: the server answers %d %s", e.Path, e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("%s: the server answers %d: %s", e.Path, e.Code, e.Reason)
}

// Final reports whether asking again cannot help: the request itself was
// refused. Too many requests, a timeout and the server's own troubles can pass.
func (e *StatusError) Final() bool {
	return e.Code >= 400 && e.Code < 500 && e.Code != http.StatusTooManyRequests && e.Code != http.StatusRequestTimeout
}

// final reports whether err is an answer that no retry changes.
func final(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Final()
}

// PinnedTLS trusts one CA certificate, named by its SHA-256, and nothing else.
// The server presents that certificate in its chain, the leaf must be signed by
// it and made out to host (a name or an address).
func PinnedTLS(ca inventory.Digest, host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: host,
		// The standard verification knows no certificate by its digest;
		// VerifyConnection below does all of it, on resumed sessions too.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPinned(cs.PeerCertificates, ca, host)
		},
	}
}

func verifyPinned(chain []*x509.Certificate, ca inventory.Digest, host string) error {
	roots, middle := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain {
		if c.IsCA && inventory.DigestOf(c.Raw) == ca {
			roots.AddCert(c)
			found = true
		} else {
			middle.AddCert(c)
		}
	}
	if !found {
		return fmt.Errorf("the server does not present the CA certificate %s of the kernel arguments", ca.Short())
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle, DNSName: host})
	return err
}

// Client speaks the agent API. Its methods make one request each; Retry repeats.
type Client struct {
	base  string
	http  *http.Client
	trace string
	token string
}

// NewClient talks to the agent API at base and trusts only ca.
func NewClient(base string, ca inventory.Digest) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("parse server URL: %w", err)
	}
	return &Client{
		base: strings.TrimSuffix(base, "/"),
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig:     PinnedTLS(ca, u.Hostname()),
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout: 15 * time.Second,
			IdleConnTimeout:     60 * time.Second,
		}},
	}, nil
}

// DialFunc connects as net.Dialer.DialContext does.
type DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// DialBy makes every later connection by dial.
func (c *Client) DialBy(dial DialFunc) { c.http.Transport.(*http.Transport).DialContext = dial }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Claim redeems the nonce and keeps the token for every later call.
func (c *Client) Claim(ctx context.Context, claim inventory.Claim) (inventory.ClaimReply, error) {
	var reply inventory.ClaimReply
	if err := c.call(ctx, callTimeout, http.MethodPost, "/agent/v1/claim", claim, &reply); err != nil {
		return reply, err
	}
	c.token = reply.Token
	return reply, nil
}

// TPM tells of the machine's TPM, and gets what it shall do next.
func (c *Client) TPM(ctx context.Context, hello inventory.TPMHello) (inventory.TPMReply, error) {
	var reply inventory.TPMReply
	err := c.call(ctx, callTimeout, http.MethodPost, "/agent/v1/tpm", hello, &reply)
	return reply, err
}

// Inventory posts the facts and returns the first order.
func (c *Client) Inventory(ctx context.Context, facts inventory.Facts) (inventory.Order, error) {
	var order inventory.Order
	err := c.call(ctx, callTimeout, http.MethodPost, "/agent/v1/inventory", facts, &order)
	return order, err
}

// discovery is what a machine that nobody declared may say.
type discovery struct {
	Token string          `json:"token"`
	Facts inventory.Facts `json:"facts"`
}

// Discover posts the facts of an undeclared machine and keeps the token for
// asking for orders.
func (c *Client) Discover(ctx context.Context, token string, facts inventory.Facts) (inventory.Order, error) {
	var order inventory.Order
	err := c.call(ctx, callTimeout, http.MethodPost, "/agent/v1/discover", discovery{Token: token, Facts: facts}, &order)
	if err == nil {
		c.token = token
	}
	return order, err
}

// Order is a long poll: the server holds it for up to 30 s.
func (c *Client) Order(ctx context.Context) (inventory.Order, error) {
	var order inventory.Order
	err := c.call(ctx, pollTimeout, http.MethodGet, "/agent/v1/order", nil, &order)
	return order, err
}

// Report tells how the job goes.
func (c *Client) Report(ctx context.Context, r inventory.Report) (inventory.ReportReply, error) {
	var reply inventory.ReportReply
	err := c.call(ctx, callTimeout, http.MethodPost, "/agent/v1/report", r, &reply)
	return reply, err
}

// Config fetches the configuration volume, secrets included, into memory.
func (c *Client) Config(ctx context.Context, size int64) ([]byte, error) {
	if size <= 0 || size > maxConfig {
		return nil, fmt.Errorf("fetch config volume: %d bytes is not between 1 and %d", size, maxConfig)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/agent/v1/config", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(resp.Body, b); err != nil {
		return nil, fmt.Errorf("fetch config volume: %w", err)
	}
	return b, nil
}

// Booted posts what an installed system says of itself; token can do only that.
func (c *Client) Booted(ctx context.Context, token string, r inventory.BootReport) error {
	c.token = token
	return c.call(ctx, callTimeout, http.MethodPost, "/agent/v1/booted", r, nil)
}

func (c *Client) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(out); err != nil {
		return fmt.Errorf("%s: decode reply: %w", path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s: encode request: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.trace != "" {
		req.Header.Set(inventory.TraceHeader, c.trace)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, &StatusError{Path: path, Code: resp.StatusCode, Reason: reason(resp.Body)}
	}
	return resp, nil
}

// reason reads the text out of a problem document (RFC 9457) or plain text.
func reason(body io.Reader) string {
	b, _ := io.ReadAll(io.LimitReader(body, 4096))
	var problem struct{ Title, Detail, Message string }
	if json.Unmarshal(b, &problem) == nil {
		for _, s := range []string{problem.Detail, problem.Message, problem.Title} {
			if s != "" {
				return printable(s)
			}
		}
		return ""
	}
	return printable(strings.TrimSpace(string(b)))
}

// printable keeps a foreign text on one line of a console and free of escape
// sequences.
func printable(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, s)
}

// wait grows from one second to thirty, with jitter, so that a rack whose
// server restarts does not come back in one instant.
func wait(attempt int) time.Duration {
	d := min(time.Second<<min(attempt, 5), 30*time.Second)
	return d/2 + rand.N(d/2+1)
}

// sleep waits unless the context ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
